"""Tests of waiting for a change."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.models import FINISHED
from sitq.testing._contract.base import Contract, connected, failures, look, new, successes, until

CALLS = ["enqueue", "release", "mark_success", "mark_failure", "bury"]
"""What somebody waits for: the first two are new work, the others the end of a task."""


class Seen:
    """Is notified of changes, and queries each time."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.threads: list[int] = []

    def __call__(self) -> None:
        """Takes note; the ``on_change`` of a watcher."""
        self.threads.append(threading.get_ident())
        self._changed.set()

    async def until(self, seen: Callable[[], Awaitable[object]]) -> None:
        """Returns once a query that followed a notification has found something; makes no other query."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if await seen():
                return


@contextlib.contextmanager
def watching(backend: Backend, task: NewTask | ReservedTask | None) -> Iterator[Seen]:
    """Watches for due tasks, or for the end of one."""
    seen = Seen()
    with backend.watch(seen, task_id=None if task is None else task.task_id):
        yield seen


class Watching(Contract):
    """Whoever waits is notified when there may be something to find."""

    async def prepare(self, backend: Backend, call: str) -> tuple[NewTask, Callable[[Backend], Awaitable[object]]]:
        """Returns a task, and what will change it as the name of a call says."""
        (task,) = new(max_attempts=1)
        if call == "enqueue":
            return task, lambda by: by.enqueue([task])
        await backend.enqueue([task])
        held = await self.take(backend)
        if call == "release":
            return task, lambda by: by.release(held)
        if call == "mark_success":
            return task, lambda by: by.mark_success(successes(held))
        if call == "mark_failure":
            return task, lambda by: by.mark_failure(failures(held))
        await self.end_leases(backend)
        return task, lambda by: by.reserve(1, lease=self.lease, alone=True)

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("by", ["itself", "another", "thread"])
    @connected
    async def test_a_change_is_told_and_found_by_the_next_look(self, backend: Backend, call: str, by: str) -> None:
        """Made by the same backend, by another, or in another thread: it is notified in the watcher's own loop."""
        task, change = await self.prepare(backend, call)

        async def found() -> object:
            if call in {"enqueue", "release"}:
                return await self.take(backend)
            return (await look(backend, task)).status in FINISHED

        async with self.other(backend) as other:
            with watching(backend, task if call in CALLS[2:] else None) as seen:
                assert not await found()
                if by == "thread":
                    await asyncio.to_thread(lambda: asyncio.run(_awaited(change(backend))))
                else:
                    await change(backend if by == "itself" else other)
                await seen.until(found)
        assert set(seen.threads) == {threading.get_ident()}

    @pytest.mark.parametrize("call", CALLS)
    @connected
    async def test_a_change_in_the_moment_of_entering_is_told(self, backend: Backend, call: str) -> None:
        """If watching takes time to begin, whoever waits is notified when it has begun, and finds what came before."""
        task, change = await self.prepare(backend, call)

        async def found() -> object:
            if call in {"enqueue", "release"}:
                return await self.take(backend)
            return (await look(backend, task)).status in FINISHED

        async with self.other(backend) as other:
            with watching(backend, task if call in CALLS[2:] else None) as seen:
                await change(other)
                await seen.until(found)

    @connected
    async def test_each_of_several_watchers_is_told(self, backend: Backend) -> None:
        """Ten who wait for a task's end, in one loop, are all notified; who has left is not."""
        task, change = await self.prepare(backend, "mark_success")

        async def found() -> bool:
            return (await look(backend, task)).status in FINISHED

        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(watching(backend, task)) for _ in range(10)]
            with watching(backend, task) as left:
                pass
            calls = len(left.threads)
            await change(backend)
            await asyncio.gather(*(seen.until(found) for seen in many))
        assert len(left.threads) == calls

    @connected
    async def test_nobody_is_told_after_leaving(self, backend: Backend) -> None:
        """Once the block is left there are no more calls, however much changes."""
        with watching(backend, None) as seen:
            await backend.enqueue(new())
            await seen.until(lambda: self.take(backend))
        calls = len(seen.threads)
        async with self.other(backend) as other:
            for by in (backend, other):
                await by.enqueue(new(3))
                await by.release(await until(lambda: self.take(backend)))
        assert len(seen.threads) == calls

    @pytest.mark.parametrize("turns", range(8))
    @connected
    async def test_nobody_is_told_after_leaving_of_what_changed_before(self, backend: Backend, turns: int) -> None:
        """A change is made while the block is left: a notification that is under way by then does not arrive."""
        async with self.other(backend) as other:
            for by in (backend, other):
                (task,) = new()
                with watching(backend, None) as left:
                    changing = asyncio.ensure_future(by.enqueue([task]))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    calls = len(left.threads)
                await changing
                with watching(backend, None) as seen:
                    await by.release(await self.take(by))
                    await seen.until(lambda: self.take(backend))
                assert len(left.threads) == calls

    @connected
    async def test_a_watcher_that_raises_or_leaves_does_not_stop_the_others(self, backend: Backend) -> None:
        """A block that is left by an exception leaves no trace, and the next watcher is notified."""
        with pytest.raises(ZeroDivisionError), watching(backend, None):
            raise ZeroDivisionError
        with watching(backend, None) as seen:
            await backend.enqueue(new())
            await seen.until(lambda: self.take(backend))


async def _awaited(awaitable: Awaitable[object]) -> None:
    await awaitable
