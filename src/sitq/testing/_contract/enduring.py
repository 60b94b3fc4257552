"""Tests of what breaks around a backend: connections, servers, event loops, clocks."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import pytest

from sitq import Backend, BackendUnavailableError, NewTask, ReservedTask
from sitq.backends.leaving import Leaving
from sitq.testing._contract.base import (
    Contract,
    connected,
    failures,
    ids,
    in_loop,
    look,
    new,
    refuses,
    repeated,
    statuses,
    successes,
)
from sitq.testing._contract.watching import watching

DAY_SECONDS = 86_400.0


def run_and_go[T](use: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine in a loop of its own and closes that one at once, without a clean end."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(use())
    finally:
        loop.close()


class Enduring(Contract):
    """What breaks is mended, and nothing is lost or done twice."""

    async def through_a_cut[T](self, backend: Backend, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call whose answer is lost, and, unless the backend has done so by itself, makes it again."""
        with contextlib.suppress(BackendUnavailableError):
            async with self.cut(backend):
                return await call()
        return await repeated(call)

    @connected
    async def test_an_enqueue_whose_answer_was_lost_can_be_repeated(self, backend: Backend) -> None:
        """It stores its tasks once, in order, whether the store had carried it out or not."""
        tasks = new(3)
        await self.through_a_cut(backend, lambda: backend.enqueue(tasks))
        assert ids(await self.take(backend)) == ids(tasks)
        assert await self.take(backend) == []

    @connected
    async def test_a_reservation_whose_answer_was_lost_comes_back(self, backend: Backend) -> None:
        """What it gave out to nobody is due again when its lease has ended, and nobody else holds it meanwhile."""
        tasks = new(4)
        await backend.enqueue(tasks)
        await self.settle()
        found = await self.through_a_cut(backend, lambda: backend.reserve(2, lease=self.lease, alone=False))
        await self.end_leases(backend)
        again = await self.take(backend)
        assert sorted(ids(again)) == sorted(ids(tasks))
        assert {each.attempt for each in again} <= {1, 2}
        assert list(await backend.mark_success(successes(found.tasks))) == list(found.tasks)

    @pytest.mark.parametrize("call", ["renew", "release"])
    @connected
    async def test_a_lease_is_moved_or_ended_once(self, backend: Backend, call: str) -> None:
        """A renewal and a release whose answers were lost leave the tasks as one call does."""
        await backend.enqueue(new(2))
        held = await self.take(backend)
        if call == "renew":
            await self.pass_time(backend, 40)
            assert not await self.through_a_cut(backend, lambda: backend.renew(held, lease=self.lease))
            await self.pass_time(backend, 40)
            assert await self.take(backend) == []
        else:
            assert list(await self.through_a_cut(backend, lambda: backend.release(held))) in ([], held)
            assert [(each.task_id, each.attempt) for each in await self.take(backend)] == [
                (each.task_id, 1) for each in held
            ]

    @pytest.mark.parametrize("status", ["success", "failed"])
    @connected
    async def test_an_outcome_whose_answer_was_lost_is_recognised(self, backend: Backend, status: str) -> None:
        """Its repeat is not said to be not held, and the task has one outcome."""
        tasks = new(2)
        await backend.enqueue(tasks)
        held = await self.take(backend)

        async def record() -> Sequence[ReservedTask]:
            if status == "success":
                return await backend.mark_success(successes(held))
            return await backend.mark_failure(failures(held))

        assert list(await self.through_a_cut(backend, record)) == []
        assert await statuses(backend, tasks) == [status] * 2

    @connected
    async def test_a_question_whose_answer_was_lost_can_be_asked_again(self, backend: Backend) -> None:
        """And neither it nor the next question gets the answer that is still owed to another."""
        tasks = new(2)
        await backend.enqueue(tasks)
        found = await self.through_a_cut(backend, lambda: backend.get_result(tasks[0].task_id))
        assert found is not None
        assert found.task_id == tasks[0].task_id
        assert (await look(backend, tasks[1])).task_id == tasks[1].task_id

    @connected
    async def test_a_restart_between_two_calls_changes_nothing(self, backend: Backend) -> None:
        """What is stored is there afterwards, and so are claims, leases and outcomes."""
        first, second = new(), new()
        await backend.enqueue(first)
        await self.restart(backend)
        await repeated(lambda: backend.enqueue(second))
        await self.settle()
        held = await repeated(lambda: self.take(backend))
        assert ids(held) == ids([*first, *second])
        await self.restart(backend)
        assert not await repeated(lambda: backend.renew(held, lease=self.lease))
        assert await self.take(backend) == []
        await self.restart(backend)
        assert not await repeated(lambda: backend.mark_success(successes(held[:1], b"value")))
        await self.restart(backend)
        assert not await repeated(lambda: backend.mark_success(successes(held[:1], b"value")))
        assert (await look(backend, held[0])).value == b"value"
        assert not await repeated(lambda: backend.release(held[1:]))
        assert [(each.task_id, each.attempt) for each in await self.take(backend)] == [(second[0].task_id, 1)]

    @connected
    async def test_who_waits_is_told_after_a_restart(self, backend: Backend) -> None:
        """A block that was entered before it is notified of what changes afterwards, by this backend and by another."""
        first, second = new(), new()
        with watching(backend, None) as seen:
            await self.restart(backend)
            async with self.other(backend) as other:
                for by, tasks in ((backend, first), (other, second)):
                    await repeated(functools.partial(by.enqueue, tasks))
                    await seen.until(lambda: repeated(lambda: self.take(backend)))

    @in_loop
    async def test_a_loop_that_ends_without_closing_leaves_the_backend_to_others(self, backend: Backend) -> None:
        """Whatever it was about to do, it keeps no lock, disturbs no other loop, and still counts as a user."""
        before, after = new(2), new(2)
        waiting = contextlib.ExitStack()
        await backend.connect()

        async def use() -> list[ReservedTask]:
            await backend.connect()
            await backend.enqueue(before)
            waiting.enter_context(backend.watch(lambda: None))
            return await self.take(backend)

        held = await asyncio.to_thread(run_and_go, use)
        assert ids(held) == ids(before)
        with watching(backend, None) as seen:
            await backend.enqueue(after)
            await seen.until(lambda: self.are_there(backend, after))
        assert list(await backend.mark_success(successes(held))) == []
        assert await asyncio.to_thread(run_and_go, lambda: self.are_there(backend, [*before, *after]))
        await backend.close()
        assert await statuses(backend, before) == ["success"] * 2
        waiting.close()
        await backend.close()
        await refuses(backend)

    async def are_there(self, backend: Backend, tasks: Sequence[NewTask]) -> bool:
        """Whether all of ``tasks`` are stored."""
        await self.settle()
        return None not in await statuses(backend, tasks)

    @connected
    async def test_a_loop_can_be_left(self, backend: Backend) -> None:
        """What belongs to it goes: other loops go on, the users are as many as before, and it may come back."""
        if not isinstance(backend, Leaving):
            pytest.skip("this backend keeps nothing for an event loop: it has no `leave`")
        leave = backend.leave
        tasks = new(3)
        await leave()
        await backend.enqueue(tasks[:1])

        async def use_and_leave() -> None:
            await backend.enqueue(tasks[1:2])
            await leave()
            await leave()
            await backend.enqueue(tasks[2:])
            await leave()

        with watching(backend, None) as seen:
            await asyncio.to_thread(run_and_go, use_and_leave)
            await seen.until(lambda: self.are_there(backend, tasks))
        await backend.close()
        await refuses(backend)
        await backend.connect()

    @pytest.mark.parametrize("days", [-1, 1], ids=["slow", "fast"])
    @connected
    async def test_the_clock_of_the_host_does_not_matter(self, backend: Backend, days: int) -> None:
        """A day behind the store or ahead of it: leases, delays and times are those of the store."""
        if not self.has_own_clock:
            pytest.skip("the clock of this store is the host's: `has_own_clock` is false")
        (probe,), (due,), (delayed,) = new(), new(), new(delay=self.seconds(100))
        await backend.enqueue([probe])
        now = (await look(backend, probe)).enqueued_at
        await backend.mark_success(successes(await self.take(backend)))
        with self.host_clock_off(backend, days * DAY_SECONDS):
            await backend.enqueue([delayed, due])
            (held,) = await self.take(backend)
            assert held.task_id == due.task_id
            assert await self.take(backend) == []
            assert not await backend.renew([held], lease=self.lease)
            assert await self.take(backend) == []
            await self.end_leases(backend)
            assert [(each.task_id, each.attempt) for each in await self.take(backend)] == [(due.task_id, 2)]
            await self.pass_time(backend, 100)
            assert delayed.task_id in ids(await self.take(backend))
            seen = await look(backend, due)
            assert seen.started_at is not None
            for at in (seen.enqueued_at, seen.started_at, held.enqueued_at):
                assert abs(at - now) < timedelta(hours=1)
