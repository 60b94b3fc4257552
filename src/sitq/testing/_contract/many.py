"""Tests of looking at many tasks at once, and of watching them together."""

import asyncio
import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence

import pytest

from sitq import Backend, NewTask, ReservedTask, Result
from sitq.backends.many import ManyResults
from sitq.models import new_task_id
from sitq.testing._contract.base import Contract, connected, failures, ids, look, new, successes

ODD_IDS = ["", "\0", "%", "_", "*", "'", "\ud800", "a\nb", "x" * 100_000]
LARGE_BYTES = 700_000


class Told:
    """Notes which tasks it is notified of."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.ids: list[str] = []
        self.threads: set[int] = set()

    def __call__(self, task_id: str) -> None:
        """Takes note; the ``on_change`` of a watcher."""
        self.ids.append(task_id)
        self.threads.add(threading.get_ident())
        self._changed.set()

    async def of(self, task_id: str) -> None:
        """Returns once it was notified of a task."""
        while task_id not in self.ids:
            self._changed.clear()
            await self._changed.wait()


@contextlib.contextmanager
def watching(backend: Backend, task_ids: Collection[str]) -> Iterator[Told]:
    """Watches for the ends of tasks."""
    assert isinstance(backend, ManyResults)
    told = Told()
    with backend.watch_results(told, task_ids):
        yield told


async def results(backend: Backend, task_ids: Sequence[str]) -> dict[str, Result[bytes] | None]:
    """Returns what is told of those tasks that have ended, in as many calls as it takes."""
    assert isinstance(backend, ManyResults)
    found: dict[str, Result[bytes] | None] = {}
    while task_ids:
        ended = await backend.get_results(task_ids)
        assert len(ended.left) < len(task_ids), "each call has to look at one of them at least"
        assert {*ended.left} <= {*task_ids}
        assert {*ended.results} <= {*task_ids} - {*ended.left}
        found.update(ended.results)
        task_ids = ended.left
    return found


class ManyTests(Contract):
    """What is told of many tasks is what ``get_result`` and ``watch`` tell of each."""

    async def hold(self, backend: Backend, count: int) -> tuple[list[NewTask], dict[str, ReservedTask]]:
        """Returns new tasks, and them as they are held, by their ids."""
        tasks = new(count)
        await backend.enqueue(tasks)
        return tasks, {task.task_id: task for task in await self.take(backend)}

    @connected
    async def test_what_has_ended_is_told_and_nothing_else(self, backend: Backend) -> None:
        """Successes and failures as ``get_result`` gives them, unknown ids as such; neither pending nor held tasks."""
        tasks, held = await self.hold(backend, 9)
        await backend.mark_success(successes([held[task.task_id] for task in tasks[:3]], b"value"))
        await backend.mark_failure(failures([held[task.task_id] for task in tasks[3:6]]))
        waiting = new(3)
        await backend.enqueue(waiting)
        await self.settle()
        unknown = [new_task_id(), new_task_id()]
        found = await results(backend, [*ids(waiting), *unknown, *reversed(ids(tasks))])
        single = {task.task_id: await look(backend, task) for task in tasks[:6]}
        assert found == single | dict.fromkeys(unknown)
        assert [single[task.task_id].value for task in tasks[:3]] == [b"value"] * 3
        assert [each and each.value for each in map(found.get, ids(tasks[:3]))] == [b"value"] * 3

    @connected
    async def test_a_buried_task_has_ended(self, backend: Backend) -> None:
        """It is told like any other failure."""
        (task,) = new(max_attempts=1)
        await backend.enqueue([task])
        await self.take(backend)
        assert await results(backend, ids([task])) == {}
        await self.end_leases(backend)
        await self.reserve(backend)
        assert await results(backend, ids([task])) == {task.task_id: await look(backend, task)}

    @pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: repr(odd)[:12])
    @connected
    async def test_an_id_is_that_of_its_own_task_only(self, backend: Backend, odd: str) -> None:
        """Odd text beside a finished task is unknown, at its end as well, and does not hide the task."""
        tasks, held = await self.hold(backend, 1)
        await backend.mark_success(successes(held.values()))
        await self.settle()
        (task_id,) = ids(tasks)
        asked = [odd, task_id, task_id + odd if odd else "-"]
        assert await results(backend, asked) == {odd: None, task_id: await look(backend, tasks[0]), asked[2]: None}

    @connected
    async def test_some_hundreds_are_told_in_one_call_if_they_are_small(self, backend: Backend) -> None:
        """Nothing is left for another one."""
        assert isinstance(backend, ManyResults)
        tasks, held = await self.hold(backend, 100)
        unknown = [new_task_id() for _ in range(400)]
        await backend.mark_success(successes(held.values(), b"small"))
        await self.settle()
        ended = await backend.get_results([*unknown, *ids(tasks)])
        assert not ended.left
        assert ended.results.keys() == {*unknown, *ids(tasks)}

    @connected
    async def test_large_results_are_told_in_any_number_of_calls(self, backend: Backend) -> None:
        """None is lost between two of them, and none is told twice."""
        tasks, held = await self.hold(backend, 5)
        size = min(LARGE_BYTES, backend.max_payload_bytes or LARGE_BYTES)
        await backend.mark_success(
            [each for n, task in enumerate(tasks) for each in successes([held[task.task_id]], bytes([n]) * size)]
        )
        await self.settle()
        found = await results(backend, ids(tasks))
        assert [each and each.value for each in map(found.get, ids(tasks))] == [bytes([n]) * size for n in range(5)]

    @pytest.mark.parametrize("by", ["itself", "another", "thread"])
    @connected
    async def test_the_end_of_each_task_is_told(self, backend: Backend, by: str) -> None:
        """By its id, in the watcher's own loop, whoever has recorded it; nothing is told of other tasks."""
        tasks, held = await self.hold(backend, 3)
        async with self.other(backend) as other:
            with watching(backend, dict.fromkeys(ids(tasks))) as told:
                for task, mark in zip(tasks, ("success", "failure", "success"), strict=True):
                    recorder = backend if by == "itself" else other
                    outcomes = successes if mark == "success" else failures
                    marking = getattr(recorder, f"mark_{mark}")(outcomes([held[task.task_id]]))
                    if by == "thread":
                        await asyncio.to_thread(asyncio.run, marking)
                    else:
                        await marking
                    await told.of(task.task_id)
        assert told.threads == {threading.get_ident()}
        assert {*told.ids} == {*ids(tasks)}

    @connected
    async def test_an_end_in_the_moment_of_entering_is_told(self, backend: Backend) -> None:
        """If watching takes time to begin, each task is told of when it has begun."""
        tasks, held = await self.hold(backend, 2)
        async with self.other(backend) as other:
            with watching(backend, dict.fromkeys(ids(tasks))) as told:
                await other.mark_success(successes(held.values()))
                for task_id in ids(tasks):
                    await told.of(task_id)

    @connected
    async def test_what_is_taken_out_is_not_waited_for(self, backend: Backend) -> None:
        """A task that is not in the collection any more, by the time it ends, is not told of."""
        tasks, held = await self.hold(backend, 2)
        left = dict.fromkeys(ids(tasks))
        async with self.other(backend) as other:
            with watching(backend, left) as told:
                await self.settle()
                calls = len(told.ids)
                del left[tasks[0].task_id]
                for task in tasks:
                    await other.mark_success(successes([held[task.task_id]]))
                await told.of(tasks[1].task_id)
        assert tasks[0].task_id not in told.ids[calls:]

    @connected
    async def test_nobody_is_told_after_leaving(self, backend: Backend) -> None:
        """Once the block is left there are no more calls; others who watch the same task go on."""
        tasks, held = await self.hold(backend, 2)
        first, second = ids(tasks)
        with watching(backend, dict.fromkeys(ids(tasks))) as stays:
            with watching(backend, dict.fromkeys(ids(tasks))) as leaves:
                await backend.mark_success(successes([held[first]]))
                await leaves.of(first)
            calls = len(leaves.ids)
            await backend.mark_success(successes([held[second]]))
            await stays.of(second)
        assert len(leaves.ids) == calls
