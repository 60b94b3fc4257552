"""Tests of named queues and priorities."""

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.endings import Endings
from sitq.backends.lanes import Lane, Lanes
from sitq.models import Extras, Outcome
from sitq.testing._contract.base import LEASE_SECONDS, Contract, connected, failures, ids, look, new, successes
from sitq.testing._contract.watching import watching

HEAD_START = 10.0
"""Of the suite's seconds, for each step of priority."""


class LanedBackend(Lanes, Backend, Protocol):
    """What is tested."""


type _Test = Callable[..., Coroutine[Any, Any, None]]


def laned(test: _Test) -> Callable[..., None]:
    """Runs a test with a connected backend whose head start is the suite's."""

    @functools.wraps(test)
    async def run(self: Contract, backend: LanedBackend, **parameters: Any) -> None:
        assert isinstance(backend, Lanes)
        await test(self, backend.select(None, self.seconds(HEAD_START)), **parameters)

    return connected(run)


def in_lane(queue: str = "", priority: int = 0, *, max_attempts: int = 5, delay: float | None = None) -> NewTask:
    """Returns a task of a queue and a priority."""
    (task,) = new(max_attempts=max_attempts, delay=delay)
    return task._replace(extras=Extras(queue=queue, priority=priority))


def numbers(lane: Lane) -> tuple[str, int, int, int, int, int, bool]:
    """Returns what a lane says, except for how long its oldest task waits."""
    return lane.queue, lane.priority, lane.waiting, lane.due, lane.running, lane.abandoned, lane.paused


class LaneTests(Contract):
    """A task comes in its turn, and to those only who serve its queue."""

    def test_a_backend_says_that_it_has_lanes(self, backend: Backend) -> None:
        """It has every member of the protocol, and so has a view of it."""
        assert isinstance(backend, Lanes)
        view: object = backend.select(["mail"])
        assert isinstance(view, Backend)
        assert isinstance(view, Lanes)

    async def store(self, backend: LanedBackend, *tasks: NewTask) -> list[str]:
        """Stores tasks one after the other, each of them later than those before; returns their ids."""
        for task in tasks:
            await self.pass_time(backend, 0.01)
            await backend.enqueue([task])
        await self.pass_time(backend, 0.01)
        return ids(tasks)

    async def ready(self, backend: LanedBackend, state: str, task: NewTask) -> None:
        """Stores a task and has it made due again, as ``state`` says; nothing else is due."""
        await backend.enqueue([task])
        if state == "new":
            return
        (held,) = await self.take(backend)
        if state == "released":
            await backend.release([held])
        elif state == "retried":
            if not isinstance(backend, Endings) or "retry" not in backend.endings:
                pytest.skip("the backend has no 'retry'")
            await backend.mark_failure([Outcome(held, error="ValueError: no", retry_in=0.0)])
            await self.pass_time(backend, 1)
        else:
            await self.end_leases(backend)

    @pytest.mark.parametrize("state", ["new", "abandoned", "retried", "released"])
    @pytest.mark.parametrize(("queue", "priority"), [("", 0), ("", 5), ("mail", 0), ("mail", -5)])
    @laned
    async def test_no_worker_takes_a_queue_that_it_does_not_serve(
        self, backend: LanedBackend, queue: str, priority: int, state: str
    ) -> None:
        """However the task came to be due: it stays in its lane until somebody takes it who serves its queue."""
        task = in_lane(queue, priority)
        await self.ready(backend, state, task)
        for others in (["other"], ["other", "" if queue else "mail"]):
            for alone in (False, True):
                found = await self.reserve(backend.select(others), alone=alone)
                assert (list(found.tasks), found.next_due_in, found.last_attempt_waiting) == ([], None, False)
        (held,) = await self.take(backend.select([queue, "other"]))
        assert (held.task_id, held.payload) == (task.task_id, task.payload)
        assert list(await backend.mark_success(successes([held]))) == []

    @laned
    async def test_all_queues_are_served_if_none_is_named(self, backend: LanedBackend) -> None:
        """Also those of which nobody has heard before; each task comes once, the oldest first."""
        stored = await self.store(backend, in_lane("b"), in_lane(), in_lane("a"), in_lane("b"))
        assert ids(await self.take(backend, 3)) == stored[:3]
        stored += await self.store(backend, in_lane("new"))
        assert ids(await self.take(backend)) == stored[3:]
        assert ids(await self.take(backend)) == []

    @laned
    async def test_a_priority_is_a_head_start(self, backend: LanedBackend) -> None:
        """The higher one comes first as long as it became due within its advantage, and else later."""
        (low,) = await self.store(backend, in_lane("q", 0))
        await self.pass_time(backend, HEAD_START / 2)
        (high,) = await self.store(backend, in_lane("other", 1))
        await self.pass_time(backend, HEAD_START)
        (late,) = await self.store(backend, in_lane("q", 1))
        (below,) = await self.store(backend, in_lane("", -1))
        assert [ids(await self.take(backend, 1)) for _ in range(4)] == [[high], [low], [late], [below]]

    @pytest.mark.parametrize("limit", [1, 100])
    @laned
    async def test_an_infinite_head_start_is_a_strict_order(self, backend: LanedBackend, limit: int) -> None:
        """Then a higher priority comes first, however long the others have been waiting."""
        view = backend.select(None, math.inf)
        stored = await self.store(view, in_lane("a", -1), in_lane("b", 0), in_lane())
        await self.pass_time(backend, 100 * HEAD_START)
        stored += await self.store(view, in_lane("a", 1))
        found = []
        while tasks := await self.take(view, limit):
            found += ids(tasks)
        assert found == [stored[3], stored[1], stored[2], stored[0]]

    @laned
    async def test_a_paused_queue_is_left_alone(self, backend: LanedBackend) -> None:
        """By everybody, at any priority, and again when it is paused again; what was taken before goes on."""
        async with self.other(backend) as other:
            assert isinstance(other, Lanes)
            stored = await self.store(backend, in_lane("mail"), in_lane("mail", 5), in_lane())
            (held,) = await self.take(backend.select(["mail"]), 1)
            for _ in range(2):
                await backend.pause("mail")
                await backend.pause("mail")
                for each in (backend, backend.select(["mail"]), other):
                    found = await self.reserve(each.select(["mail"]))
                    assert (list(found.tasks), found.next_due_in) == ([], None)
                await other.resume("mail")
                await other.resume("mail")
            assert list(await backend.mark_success(successes([held]))) == []
            assert {held.task_id, *ids(await self.take(backend))} == set(stored)

    @pytest.mark.parametrize("priority", [0, 5])
    @laned
    async def test_the_default_queue_can_be_paused(self, backend: LanedBackend, priority: int) -> None:
        """It has an empty name; the others are served meanwhile."""
        await backend.pause("")
        default, named = await self.store(backend, in_lane("", priority), in_lane("mail"))
        assert ids(await self.take(backend)) == [named]
        await backend.resume("")
        assert ids(await self.take(backend)) == [default]

    @laned
    async def test_who_waits_is_woken_when_a_queue_is_resumed(self, backend: LanedBackend) -> None:
        """By this backend or by another one."""
        (task,) = await self.store(backend, in_lane("mail"))
        await backend.pause("mail")
        async with self.other(backend) as other:
            for by in (backend, other):
                assert isinstance(by, Lanes)
                with watching(backend, None) as seen:
                    assert not await self.take(backend)
                    await by.resume("mail")
                    held: list[ReservedTask] = []

                    async def found(held: list[ReservedTask] = held) -> bool:
                        held += await self.take(backend)
                        return bool(held)

                    await seen.until(found)
                assert ids(held) == [task]
                await backend.release(held)
                await backend.pause("mail")

    @laned
    async def test_a_last_attempt_of_a_lane_comes_alone(self, backend: LanedBackend) -> None:
        """To a caller that is alone, after the ordinary tasks of a smaller rank, and before the others."""
        before, last, after = await self.store(
            backend, in_lane("a"), in_lane("b", max_attempts=1), in_lane("c", max_attempts=1)
        )
        (later,) = await self.store(backend, in_lane("a"))
        (held,) = await self.take(backend, 1)
        assert held.task_id == before
        assert self.says_that_a_last_attempt_waits(await self.reserve(backend.select(["b"]), alone=False))
        assert not (await self.reserve(backend.select(["x"]), alone=False)).last_attempt_waiting
        assert ids(await self.take(backend)) == [last]
        assert ids(await self.take(backend)) == [after]
        assert ids(await self.take(backend)) == [later]

    @laned
    async def test_a_last_attempt_has_the_head_start_of_its_priority(self, backend: LanedBackend) -> None:
        """A backlog of a lower priority does not keep it waiting."""
        (backlog,) = await self.store(backend, in_lane("bulk", -5))
        (last,) = await self.store(backend, in_lane("mail", 5, max_attempts=1))
        assert ids(await self.take(backend)) == [last]
        assert ids(await self.take(backend)) == [backlog]

    @laned
    async def test_what_is_spent_is_buried_by_anybody(self, backend: LanedBackend) -> None:
        """Whatever its queue, and also while that one is paused."""
        task = in_lane("mail", 5, max_attempts=1)
        await backend.enqueue([task])
        assert ids(await self.take(backend)) == [task.task_id]
        await backend.pause("mail")
        await self.end_leases(backend)
        found = await self.reserve(backend.select(["other"]))
        assert (list(found.buried), list(found.tasks)) == ([task.task_id], [])
        assert (await look(backend, task)).status == "failed"

    @laned
    async def test_when_the_next_is_due_is_told_of_the_queues_that_are_served(self, backend: LanedBackend) -> None:
        """A worker is not to wake up for what it does not serve."""
        for queue, delay in (("a", 5.0), ("", 20.0), ("b", 40.0)):
            await backend.enqueue([in_lane(queue, delay=self.seconds(delay))])
        for queues, least, most in ((["b"], 20, 40), ([""], 5, 20), (None, 0, 5), (["b", ""], 5, 20)):
            found = await self.reserve(backend.select(queues))
            assert not found.tasks
            if self.knows_next_due:
                assert found.next_due_in is not None
                assert self.seconds(least) < found.next_due_in <= self.seconds(most)
            else:
                assert found.next_due_in is None or found.next_due_in <= self.seconds(most)
        await backend.pause("b")
        assert (await self.reserve(backend.select(["b"]))).next_due_in is None

    @laned
    async def test_of_many_who_reserve_at_once_none_gets_what_another_gets(self, backend: LanedBackend) -> None:
        """Out of several lanes, by views of them and by two backends."""
        lanes = [("", 0), ("", 3), ("a", 0), ("a", -3), ("b", 1)]
        tasks = [in_lane(*lanes[n % len(lanes)]) for n in range(60)]
        await backend.enqueue(tasks)
        await self.settle()
        async with self.other(backend) as other:
            assert isinstance(other, Lanes)
            views = [backend, other, backend.select(["a", ""]), other.select(["b"])]
            found: list[str] = []
            while len(found) < len(tasks):
                reserving = [view.reserve(7, lease=self.lease, alone=False) for view in views]
                got = [task.task_id for each in await asyncio.gather(*reserving) for task in each.tasks]
                assert got, "tasks are due, and nobody got one"
                found += got
        assert sorted(found) == sorted(ids(tasks))

    @laned
    async def test_tasks_stored_with_an_outcome_have_their_lane(self, backend: LanedBackend) -> None:
        """As if they had been enqueued."""
        if not isinstance(backend, Endings) or "then" not in backend.endings:
            pytest.skip("the backend has no 'then'")
        await backend.enqueue([in_lane("a")])
        then: Sequence[NewTask] = [in_lane("b", 5), in_lane("", 5), in_lane()]
        (held,) = await self.take(backend)
        await backend.mark_failure([failures([held])[0]._replace(then=then)])
        assert ids(await self.take(backend.select(["b"]))) == ids(then[:1])
        assert ids(await self.take(backend.select([""]))) == ids(then[1:])

    @laned
    async def test_a_repeated_enqueue_is_recognised(self, backend: LanedBackend) -> None:
        """As of any other task."""
        tasks = [in_lane("a"), in_lane("", 1), in_lane()]
        await backend.enqueue(tasks)
        await backend.enqueue(tasks)
        assert sorted(ids(await self.take(backend))) == sorted(ids(tasks))

    @laned
    async def test_lanes_say_what_waits_and_runs(self, backend: LanedBackend) -> None:
        """One for each queue and priority that has unfinished tasks, and one for each queue that is paused."""
        assert list(await backend.lanes()) == []
        await self.store(
            backend, in_lane("b"), in_lane("b", 5), in_lane(), in_lane("b", 5), in_lane("c", max_attempts=1)
        )
        await backend.enqueue([in_lane("b", delay=self.seconds(1000))])
        assert len(await self.take(backend, 1)) == 1  # of b, at 5
        (done,) = await self.take(backend.select([""]))
        await backend.mark_success(successes([done]))
        (_,) = await self.take(backend.select(["c"]))
        await backend.pause("a")
        await backend.pause("b")
        await self.settle()
        assert [numbers(lane) for lane in await backend.lanes()] == [
            ("a", 0, 0, 0, 0, 0, True),
            ("b", 5, 1, 1, 1, 0, True),
            ("b", 0, 2, 1, 0, 0, True),
            ("c", 0, 0, 0, 1, 0, False),
        ]
        await self.end_leases(backend)
        _, high, low, last = await backend.lanes()
        assert (high.running, high.abandoned, last.running, last.abandoned) == (0, 1, 0, 1)
        assert low.oldest_due is not None
        assert low.oldest_due >= self.seconds(LEASE_SECONDS)
        assert last.oldest_due is None

    @connected
    async def test_a_view_is_the_same_user_of_the_store(self, backend: Backend) -> None:
        """What it stores the backend finds, and the store is open until both are closed."""
        assert isinstance(backend, Lanes)
        view: Any = backend.select(["mail"])
        task = in_lane("mail")
        await view.connect()
        await backend.close()
        await view.enqueue([task])
        assert ids(await self.take(view)) == [task.task_id]
        assert (await look(backend, task)).status == "in_progress"
        await backend.connect()
        await view.close()
        assert (await look(backend, task)).status == "in_progress"
