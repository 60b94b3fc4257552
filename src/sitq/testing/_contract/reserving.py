"""Tests of reservations: what is due, to whom it is given, and when it is given up."""

import asyncio
import itertools
from collections import Counter
from datetime import datetime, timedelta

import pytest

from sitq import Backend, WorkerDiedError
from sitq.models import BURIED_ERROR_PREFIX
from sitq.testing._contract.base import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    Contract,
    connected,
    ids,
    look,
    new,
    successes,
)


class Reserving(Contract):
    """Each task has one holder at a time, and the oldest comes first."""

    async def now_of(self, backend: Backend) -> datetime:
        """Returns the time by the backend's clock, and leaves nothing that could be taken."""
        (probe,) = new()
        await backend.enqueue([probe])
        held = await self.take(backend)
        await backend.mark_success(successes(held))
        return (await look(backend, probe)).enqueued_at

    async def due_in(self, backend: Backend) -> float:
        """Returns what a reservation that finds nothing says."""
        found = await self.reserve(backend, 5, alone=False)
        assert list(found.tasks) == []
        assert found.next_due_in is not None
        return found.next_due_in

    @connected
    async def test_no_more_than_the_limit_are_handed_out(self, backend: Backend) -> None:
        """Five tasks and a limit of two: two, two, one, none."""
        tasks = new(5)
        await backend.enqueue(tasks)
        found = [ids(await self.take(backend, 2)) for _ in range(4)]
        assert found == [ids(tasks[:2]), ids(tasks[2:4]), ids(tasks[4:]), []]

    @connected
    async def test_an_eta_is_waited_for(self, backend: Backend) -> None:
        """A task is handed out once its eta has come by the backend's clock; a past eta means now."""
        now = await self.now_of(backend)
        (later,), (past,) = new(eta=now + timedelta(seconds=self.seconds(100))), new(eta=now - timedelta(days=1000))
        await backend.enqueue([later, past])
        assert ids(await self.take(backend)) == ids([past])
        await self.pass_time(backend, 50)
        assert await self.take(backend, alone=False) == []
        await self.pass_time(backend, 51)
        (held,) = await self.take(backend, 1, alone=False)
        assert (held.task_id, held.attempt) in {(later.task_id, 1), (past.task_id, 2)}

    @connected
    async def test_a_past_eta_gives_no_task_precedence(self, backend: Backend) -> None:
        """It is due as of when it was stored, and stands behind what was stored before it."""
        now = await self.now_of(backend)
        tasks = [*new(), *new(eta=now - timedelta(days=1000)), *new()]
        for task in tasks:
            await backend.enqueue([task])
        assert ids(await self.take(backend)) == ids(tasks)

    @connected
    async def test_an_eta_wins_over_a_delay(self, backend: Backend) -> None:
        """Of a task that has both, the delay does not count."""
        now = await self.now_of(backend)
        (past,) = new(eta=now - timedelta(days=1000), delay=self.seconds(100))
        (later,) = new(eta=now + timedelta(seconds=self.seconds(100)), delay=0.0)
        await backend.enqueue([later, past])
        held = await self.take(backend)
        assert ids(held) == ids([past])
        await backend.mark_success(successes(held))
        await self.pass_time(backend, 101)
        assert ids(await self.take(backend)) == ids([later])

    @connected
    async def test_the_oldest_due_task_comes_first(self, backend: Backend) -> None:
        """Tasks are handed out by the time at which they became due, whatever order they were stored in."""
        now = await self.now_of(backend)
        first = new(2)
        await backend.enqueue(first)
        later = [new(eta=now + timedelta(seconds=self.seconds(seconds)))[0] for seconds in (300, 100, 200)]
        await backend.enqueue(later)
        await self.pass_time(backend, 400)
        last = new(2)
        await backend.enqueue(last)
        assert ids(await self.take(backend)) == ids([*first, later[1], later[2], later[0], *last])

    @connected
    async def test_a_task_is_held_until_its_lease_ends(self, backend: Backend) -> None:
        """Nobody else gets it before; then anyone does, with another claim and ``attempt`` one higher."""
        await backend.enqueue(new(max_attempts=9))
        claims = set()
        async with self.other(backend) as other:
            for attempt, by in enumerate([backend, other, backend, other], 1):
                (held,) = await self.take(by)
                assert held.attempt == attempt
                claims.add(held.claim)
                for seconds in (0, LEASE_SECONDS / 2):
                    await self.pass_time(backend, seconds)
                    assert [await self.take(backend), await self.take(other)] == [[], []]
                await self.pass_time(backend, LEASE_SECONDS / 2 + 1)
        assert len(claims) == 4

    @connected
    async def test_each_task_has_one_holder_among_many_who_reserve(self, backend: Backend) -> None:
        """Eighty concurrent reservations of two backends hand out each of two hundred tasks once."""
        tasks = new(200)
        async with self.other(backend) as other:
            await backend.enqueue(tasks)
            found = await asyncio.gather(*(self.take(by, 3, alone=False) for _ in range(40) for by in (backend, other)))
        assert sorted(itertools.chain(*map(ids, found))) == sorted(ids(tasks))

    @connected
    async def test_reservations_of_two_backends_keep_each_other_from_no_task(self, backend: Backend) -> None:
        """While both reserve and record without a pause, and others enqueue, every task is given out, and once."""
        tasks, given = new(300), Counter[str]()

        async def work(by: Backend) -> None:
            while given.keys() < set(ids(tasks)):
                held = list((await by.reserve(7, lease=self.lease, alone=False)).tasks)
                given.update(ids(held))
                await asyncio.sleep(0)
                assert list(await by.mark_success(successes(held))) == []

        async with self.other(backend) as other, asyncio.TaskGroup() as group:
            for by in (backend, other, backend, other):
                group.create_task(work(by))
            for some in itertools.batched(tasks, 20, strict=True):
                await other.enqueue(some)
        assert given == Counter(ids(tasks))

    @connected
    async def test_next_due_in_says_when_to_look_again(self, backend: Backend) -> None:
        """It is None, or the seconds until the next eta or the end of the next lease, whichever comes first."""
        if not self.knows_next_due:
            pytest.skip("this store cannot know when the next task is due: `knows_next_due` is false")
        now = await self.now_of(backend)
        lease, eta = self.seconds(1000), self.seconds(500)
        assert (await backend.reserve(5, lease=lease, alone=True)).next_due_in is None
        await backend.enqueue(new())
        await self.settle()
        await backend.reserve(5, lease=lease, alone=True)
        assert lease - DEADLINE_SECONDS < await self.due_in(backend) < lease + 1
        await backend.enqueue(new(eta=now + timedelta(seconds=eta)))
        assert eta - DEADLINE_SECONDS < await self.due_in(backend) < eta + 1
        await self.pass_time(backend, 300)
        rest = eta - self.seconds(300)
        assert rest - DEADLINE_SECONDS < await self.due_in(backend) < rest + 1

    @connected
    async def test_a_last_attempt_comes_alone(self, backend: Backend) -> None:
        """It is the only task of its reservation, takes its turn by due time, and until then is said to wait."""
        tasks = [new(max_attempts=attempts)[0] for attempts in (5, 1, 5, 5, 1)]
        for task in tasks:
            await backend.enqueue([task])
            await self.pass_time(backend, 1)
        found = [await self.reserve(backend, 10, alone=True) for _ in range(5)]
        order = list(itertools.chain(*(ids(each.tasks) for each in found)))
        assert sorted(order) == sorted(ids(tasks))
        assert order[0] == tasks[0].task_id
        assert order.index(tasks[1].task_id) < order.index(tasks[4].task_id)
        for each in found:
            assert len(each.tasks) == 1 or not any(task.is_last_attempt for task in each.tasks)
        assert self.says_that_a_last_attempt_waits(found[0])
        assert not found[-1].last_attempt_waiting

    @connected
    async def test_a_last_attempt_is_not_handed_to_a_busy_caller(self, backend: Backend) -> None:
        """A caller that holds other tasks gets what else is due, and is told that a last attempt waits."""
        (last,), ordinary = new(max_attempts=1), new(3)
        await backend.enqueue([last])
        await self.pass_time(backend, 1)
        await backend.enqueue(ordinary)
        for expected in (ordinary, []):
            found = await self.reserve(backend, 10, alone=False)
            assert ids(found.tasks) == ids(expected)
            assert self.says_that_a_last_attempt_waits(found)
        (held,) = await self.take(backend)
        assert (held.task_id, held.is_last_attempt) == (last.task_id, True)
        found = await self.reserve(backend, 10, alone=False)
        assert (list(found.tasks), found.last_attempt_waiting) == ([], False)

    @connected
    async def test_a_last_attempt_waits_for_the_ordinary_tasks_before_it(self, backend: Backend) -> None:
        """It is said to wait only once no ordinary task is left that became due before it."""
        ordinary, last = new(2), new(max_attempts=1)
        await backend.enqueue(ordinary)
        await self.pass_time(backend, 1)
        await backend.enqueue(last)
        first = await self.reserve(backend, 1, alone=False)
        assert (ids(first.tasks), first.last_attempt_waiting) == (ids(ordinary[:1]), False)
        second = await self.reserve(backend, 1, alone=False)
        assert ids(second.tasks) == ids(ordinary[1:])
        assert self.says_that_a_last_attempt_waits(second)

    @connected
    async def test_a_second_attempt_may_be_the_last(self, backend: Backend) -> None:
        """Tasks whose first of two leases ended are handed out one by one, to callers that are alone."""
        tasks = new(3, max_attempts=2)
        await backend.enqueue(tasks)
        assert len(await self.take(backend)) == 3
        await self.end_leases(backend)
        assert await self.take(backend, alone=False) == []
        found = [await self.take(backend) for _ in range(4)]
        assert [len(held) for held in found] == [1, 1, 1, 0]
        assert sorted(itertools.chain(*map(ids, found))) == sorted(ids(tasks))
        assert {held.attempt for held in itertools.chain(*found)} == {2}

    @pytest.mark.parametrize("alone", [True, False])
    @pytest.mark.parametrize("attempts", [1, 3])
    @connected
    async def test_a_task_whose_last_lease_ended_is_buried(self, backend: Backend, attempts: int, alone: bool) -> None:
        """The next reservations, whoever asks, fail it, name it once, and give out the rest; its error can be told."""
        tasks, ordinary = new(2, max_attempts=attempts), new()
        await backend.enqueue(tasks)
        for _ in range(attempts):
            while await self.take(backend):
                pass
            await self.end_leases(backend)
        await backend.enqueue(ordinary)
        found = await self.reserve(backend, 10, alone=alone)
        assert ids(found.tasks) == ids(ordinary)
        buried = list(found.buried)
        while found.buried:  # a store may bury some at a time
            found = await self.reserve(backend, 10, alone=alone)
            buried += found.buried
        assert sorted(buried) == sorted(ids(tasks))
        for task in tasks:
            seen = await look(backend, task)
            assert (seen.status, seen.attempt, seen.value, seen.traceback) == ("failed", attempts, None, None)
            assert (seen.error or "").startswith(BURIED_ERROR_PREFIX)
            assert str(attempts) in (seen.error or "")
            assert seen.finished_at is not None
            with pytest.raises(WorkerDiedError):
                seen.unwrap()

    @connected
    async def test_a_spent_task_is_buried_behind_a_last_attempt_that_waits(self, backend: Backend) -> None:
        """A caller that is not alone does not get the older one, and buries the other nevertheless."""
        first, second = new(max_attempts=1), new(max_attempts=1)
        await backend.enqueue(first)
        await backend.enqueue(second)
        assert len(await self.take(backend)) == 1
        await self.end_leases(backend)
        found = await self.reserve(backend, 10, alone=False)
        assert (ids(found.tasks), len(found.buried)) == ([], 1)
        assert self.says_that_a_last_attempt_waits(found)
