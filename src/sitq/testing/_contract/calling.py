"""Tests of calls that are cancelled, and of calls from several threads."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from sitq import Backend, NewTask
from sitq.models import FINISHED
from sitq.testing._contract.base import (
    Contract,
    connected,
    failures,
    ids,
    in_loop,
    new,
    refuses,
    statuses,
    successes,
    until,
)


def turns() -> Iterator[int]:
    """Yields after how many turns of the loop a call is cancelled: each of the first ones, then some."""
    yield from range(12)
    some = 12
    while True:
        yield some
        some += some // 2


async def cancel(call: Coroutine[Any, Any, object], after: int) -> bool:
    """Cancels a call after some turns of the loop; whether it was still under way."""
    task = asyncio.ensure_future(call)
    for _ in range(after):
        if task.done():
            break
        await asyncio.sleep(0)
    if task.done():
        await task
        return False
    task.cancel()
    await asyncio.wait([task])
    return True


CHANGES: dict[str, set[str | None]] = {
    "enqueue": {None, "pending"},
    "reserve": {"pending", "in_progress"},
    "renew": {"in_progress"},
    "mark_success": {"in_progress", "success"},
    "mark_failure": {"in_progress", "failed"},
    "release": {"in_progress", "pending"},
    "get_result": {"pending"},
}
"""The statuses in which a cancelled call may leave its tasks, all of them in the same one."""


class Calling(Contract):
    """A call that is cancelled does no harm, and calls come from everywhere."""

    @pytest.mark.parametrize("name", CHANGES)
    @connected
    async def test_a_cancelled_call_is_made_whole_or_not_at_all(self, backend: Backend, name: str) -> None:
        """Cancelled at any of its awaits it leaves no lock, no half of a batch, and no task beyond its lease."""
        async with self.other(backend) as other:
            for after in turns():
                tasks = new(3, max_attempts=100)
                call = await self.prepare_call(backend, other, name, tasks)
                cancelled = await cancel(call, after)
                await other.enqueue(probe := new())

                async def settled(tasks: list[NewTask] = tasks) -> bool:
                    seen = set(await statuses(other, tasks))
                    return len(seen) == 1 and seen <= CHANGES[name]

                await until(settled)
                stored = [*probe, *(tasks if (await statuses(other, tasks))[0] else ())]
                await until(partial(self.all_finished, backend, other, stored))
                if not cancelled:
                    break

    async def prepare_call(
        self, backend: Backend, other: Backend, name: str, tasks: list[NewTask]
    ) -> Coroutine[Any, Any, object]:
        """Returns a call that changes ``tasks``, and that nobody has awaited yet."""
        if name == "enqueue":
            return backend.enqueue(tasks)
        await other.enqueue(tasks)
        if name == "get_result":
            return backend.get_result(tasks[1].task_id)
        if name == "reserve":
            return backend.reserve(3, lease=self.lease, alone=False)
        held = await self.take(backend)
        assert ids(held) == ids(tasks)
        calls: dict[str, Coroutine[Any, Any, object]] = {
            "renew": backend.renew(held, lease=self.lease),
            "mark_success": backend.mark_success(successes(held)),
            "mark_failure": backend.mark_failure(failures(held)),
            "release": backend.release(held),
        }
        call = calls.pop(name)
        for unused in calls.values():
            unused.close()
        return call

    async def all_finished(self, backend: Backend, other: Backend, tasks: list[NewTask]) -> bool:
        """Lets every lease end, and finishes what can be taken then; whether that was all."""
        await self.end_leases(backend)
        await other.mark_success(successes(await self.take(other)))
        return all(status in FINISHED for status in await statuses(other, tasks))

    @in_loop
    async def test_a_cancelled_connect_does_not_count(self, backend: Backend) -> None:
        """Whenever it is cancelled, a later user connects, works, and is the last one to close."""
        for after in turns():
            cancelled = await cancel(backend.connect(), after)
            await backend.connect()
            await backend.enqueue(new())
            assert len(await until(lambda: self.take(backend))) == 1
            await backend.close()
            if not cancelled:
                await backend.close()
            await refuses(backend)
            if not cancelled:
                break

    @in_loop
    async def test_a_cancelled_connect_does_not_disturb_the_others(self, backend: Backend) -> None:
        """Of several who connect at the same moment the first is cancelled, and the others are connected."""
        for after in turns():
            others = asyncio.gather(*(self.connect_later(backend) for _ in range(3)))
            cancelled = await cancel(backend.connect(), after)
            await others
            await backend.enqueue(new())
            assert len(await self.take(backend)) == 1
            for _ in range(3 if cancelled else 4):
                await backend.close()
            await refuses(backend)
            if not cancelled:
                break

    async def connect_later(self, backend: Backend) -> None:
        """Connects after a turn of the loop, so that another comes first."""
        await asyncio.sleep(0)
        await backend.connect()

    @in_loop
    async def test_a_cancelled_close_can_be_made_good(self, backend: Backend) -> None:
        """Whenever it is cancelled, the backend can be connected and closed afterwards."""
        for after in turns():
            await backend.connect()
            cancelled = await cancel(backend.close(), after)
            await backend.connect()
            await backend.enqueue(new())
            assert len(await self.take(backend)) == 1
            await backend.close()
            await backend.close()
            await refuses(backend)
            if not cancelled:
                break

    @connected
    async def test_event_loops_in_several_threads_share_one_backend(self, backend: Backend) -> None:
        """Three loops enqueue, reserve and record through one backend object, and each task has one holder."""
        taken: Counter[str] = Counter()

        async def work() -> list[NewTask]:
            await backend.connect()
            tasks = new(40)
            await asyncio.gather(*(backend.enqueue([task]) for task in tasks))

            async def all_done() -> bool:
                held = await self.take(backend, 5, alone=False)
                taken.update(ids(held))
                assert list(await backend.mark_success(successes(held))) == []
                return all(status in FINISHED for status in await statuses(backend, tasks))

            await until(all_done)
            await backend.close()
            return tasks

        stored = await asyncio.gather(*(asyncio.to_thread(lambda: asyncio.run(work())) for _ in range(3)))
        assert taken == Counter(task_id for tasks in stored for task_id in ids(tasks))
