"""Tests of what the holder of a task may do with it, and nobody else."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from sitq import Backend, ReservedTask
from sitq.models import Outcome
from sitq.testing._contract.base import (
    LEASE_SECONDS,
    Contract,
    connected,
    failures,
    ids,
    look,
    new,
    statuses,
    successes,
)

ACTS = ["renew", "mark_success", "mark_failure", "release"]
"""What a holder does, each returning the tasks that were not held."""

STATUS_AFTER = {"renew": "in_progress", "mark_success": "success", "mark_failure": "failed", "release": "pending"}


class Holding(Contract):
    """Only the holder of the current claim changes anything."""

    async def act(self, name: str, backend: Backend, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Does with tasks what a call of this name does."""
        if name == "renew":
            return await backend.renew(tasks, lease=self.lease)
        if name == "release":
            return await backend.release(tasks)
        if name == "mark_success":
            return await backend.mark_success(successes(tasks))
        return await backend.mark_failure(failures(tasks))

    @connected
    async def test_a_task_is_seen_in_each_status(self, backend: Backend) -> None:
        """pending, in_progress, success: with the times and values that belong to each, by the backend's clock."""
        (task,) = new()
        await backend.enqueue([task])
        pending = await look(backend, task)
        assert (pending.task_id, pending.status, pending.attempt) == (task.task_id, "pending", 0)
        assert (pending.value, pending.error, pending.traceback) == (None, None, None)
        assert (pending.started_at, pending.finished_at) == (None, None)
        await self.pass_time(backend, 10)
        held = await self.take(backend)
        running = await look(backend, task)
        assert (running.status, running.attempt, running.value, running.finished_at) == ("in_progress", 1, None, None)
        assert running.started_at is not None
        assert running.started_at - pending.enqueued_at >= timedelta(seconds=self.seconds(10))
        await self.pass_time(backend, 10)
        assert list(await backend.mark_success(successes(held, b"value"))) == []
        done = await look(backend, task)
        assert (done.status, done.attempt, done.value, done.error) == ("success", 1, b"value", None)
        assert (done.enqueued_at, done.started_at) == (pending.enqueued_at, running.started_at)
        assert done.finished_at is not None
        assert done.finished_at - running.started_at >= timedelta(seconds=self.seconds(10))
        assert {at.utcoffset() for at in (done.enqueued_at, running.started_at, done.finished_at)} == {timedelta(0)}

    @pytest.mark.parametrize("traceback", [None, "Traceback:\n  ünïcode 🐍\n"], ids=["without", "with"])
    @connected
    async def test_a_failure_keeps_its_texts(self, backend: Backend, traceback: str | None) -> None:
        """Error and traceback come back as they were given."""
        (task,) = new()
        await backend.enqueue([task])
        (held,) = await self.take(backend)
        error = "ValueError: 'quoted' ünïcode 🐍\n" * 500
        assert list(await backend.mark_failure([Outcome(held, error=error, traceback=traceback)])) == []
        seen = await look(backend, task)
        assert (seen.status, seen.value, seen.error, seen.traceback) == ("failed", None, error, traceback)

    @connected
    async def test_a_character_that_a_store_cannot_hold_does_not_take_the_rest_along(self, backend: Backend) -> None:
        """NUL in a name, an error or a traceback may be replaced; the outcome is recorded, and recognised."""
        text = "before\0after"
        first, second = new(2)
        await backend.enqueue([first._replace(name=text), second])
        held = await self.take(backend)
        assert [each.task_id for each in held] == [first.task_id, second.task_id]
        outcomes = [Outcome(each, error=text, traceback=text) for each in held]
        for _ in range(2):
            assert list(await backend.mark_failure(outcomes)) == []
        for kept in (held[0].name, (await look(backend, first)).error, (await look(backend, second)).traceback):
            assert kept is not None
            assert kept.startswith("before")
            assert kept.endswith("after")

    @pytest.mark.parametrize("act", ACTS)
    @connected
    async def test_no_task_is_no_change(self, backend: Backend, act: str) -> None:
        """Each call may be made with an empty sequence."""
        assert list(await self.act(act, backend, [])) == []

    @pytest.mark.parametrize("act", ACTS)
    @connected
    async def test_a_lost_claim_is_returned_and_the_others_are_served(self, backend: Backend, act: str) -> None:
        """Of 150 tasks one was taken over: it alone is returned and stays as it is, the others are changed."""
        tasks = new(150)
        async with self.other(backend) as other:
            await backend.enqueue(tasks)
            held = await self.take(backend, 150)
            await backend.release(held[70:71])
            (taken,) = await self.take(other)
            before = await look(backend, taken)
            await self.pass_time(backend, 1)
            assert list(await self.act(act, backend, held)) == [held[70]]
            assert await look(backend, taken) == before
            expected = [STATUS_AFTER[act]] * 150
            expected[70] = "in_progress"
            assert await statuses(other, tasks) == expected
            assert list(await self.act(act, other, [taken])) == []

    @pytest.mark.parametrize("act", ACTS)
    @pytest.mark.parametrize("end", ["success", "failed", "buried"])
    @connected
    async def test_a_finished_task_is_left_as_it_is(self, backend: Backend, act: str, end: str) -> None:
        """A claim that did not hold before the end changes nothing after it either."""
        (task,) = new(max_attempts=2)
        await backend.enqueue([task])
        old = await self.take(backend)
        await self.end_leases(backend)
        current = await self.take(backend)
        if end == "buried":
            await self.end_leases(backend)
            assert await self.take(backend) == []
            old += current
        elif end == "success":
            await backend.mark_success(successes(current, b"of the current holder"))
        else:
            await backend.mark_failure(failures(current, "ValueError: of the current holder"))
        before = await look(backend, task)
        assert before.status == ("success" if end == "success" else "failed")
        await self.pass_time(backend, 1)
        for each in old:
            assert list(await self.act(act, backend, [each])) == [each]
            assert await look(backend, task) == before
        await self.end_leases(backend)
        assert await self.take(backend) == []

    @pytest.mark.parametrize("act", ACTS)
    @connected
    async def test_a_released_task_is_not_held(self, backend: Backend, act: str) -> None:
        """Whoever gave a task back may do nothing with it any more, whether or not another has it."""
        (task,) = new()
        await backend.enqueue([task])
        held = await self.take(backend)
        await backend.release(held)
        assert list(await self.act(act, backend, held)) == held
        assert (await look(backend, task)).status == "pending"
        assert ids(await self.take(backend)) == ids([task])
        assert list(await self.act(act, backend, held)) == held

    @pytest.mark.parametrize("act", ["mark_success", "mark_failure"])
    @connected
    async def test_an_outcome_that_is_late_but_not_too_late_is_recorded(self, backend: Backend, act: str) -> None:
        """If a lease has ended and nobody has taken the task over, its holder may still record."""
        (task,) = new()
        await backend.enqueue([task])
        held = await self.take(backend)
        await self.end_leases(backend)
        assert list(await self.act(act, backend, held)) == []
        assert (await look(backend, task)).status == STATUS_AFTER[act]
        assert await self.take(backend) == []

    @pytest.mark.parametrize("act", ["mark_success", "mark_failure"])
    @connected
    async def test_an_outcome_may_be_recorded_again(self, backend: Backend, act: str) -> None:
        """The same outcome a second time, alone or in a larger batch, is recognised, and changes nothing."""
        tasks = new(3)
        await backend.enqueue(tasks)
        held = await self.take(backend)
        await self.act(act, backend, held[:2])
        before = [await look(backend, task) for task in tasks[:2]]
        await self.pass_time(backend, 1)
        async with self.other(backend) as other:
            assert list(await self.act(act, other, held[:1])) == []
            assert list(await self.act(act, other, held)) == []
        assert [await look(backend, task) for task in tasks[:2]] == before
        assert await statuses(backend, tasks) == [STATUS_AFTER[act]] * 3

    @connected
    async def test_the_opposite_of_a_recorded_outcome_is_not_held(self, backend: Backend) -> None:
        """A task that succeeded cannot fail under the same claim, nor the other way round."""
        tasks = new(2)
        await backend.enqueue(tasks)
        good, bad = await self.take(backend)
        await backend.mark_success(successes([good]))
        await backend.mark_failure(failures([bad]))
        before = [await look(backend, task) for task in tasks]
        assert list(await backend.mark_failure(failures([good]))) == [good]
        assert list(await backend.mark_success(successes([bad]))) == [bad]
        assert [await look(backend, task) for task in tasks] == before

    @connected
    async def test_a_task_shows_when_its_latest_run_was_started(self, backend: Backend) -> None:
        """After a lease has ended it is that of the run that took the task over."""
        (task,) = new()
        await backend.enqueue([task])
        await self.take(backend)
        first = (await look(backend, task)).started_at
        await self.end_leases(backend)
        await self.take(backend)
        latest = (await look(backend, task)).started_at
        assert first is not None
        assert latest is not None
        assert latest - first >= timedelta(seconds=self.lease)

    @connected
    async def test_a_first_run_that_was_given_back_was_never_started(self, backend: Backend) -> None:
        """The task shows no start, as if nobody had reserved it."""
        (task,) = new()
        await backend.enqueue([task])
        before = await look(backend, task)
        await backend.release(await self.take(backend))
        after = await look(backend, task)
        assert (after, after.started_at) == (before, None)

    @connected
    async def test_a_task_that_is_given_back_keeps_its_place(self, backend: Backend) -> None:
        """It is due as of when it was stored: before all that was stored later, also if it had a delay."""
        first, second, last = new(delay=self.seconds(100)), new(), new()
        for tasks in (first, second, last):
            await backend.enqueue(tasks)
            await self.pass_time(backend, 1)
        (held,) = await self.take(backend, 1, alone=False)
        assert held.task_id == second[0].task_id
        await backend.release([held])
        again = await self.take(backend)
        assert ids(again) == ids([*second, *last])
        await backend.mark_success(successes(again))
        await self.pass_time(backend, 100)
        (held,) = await self.take(backend)
        assert held.task_id == first[0].task_id
        (later,) = new()
        await backend.enqueue([later])
        await backend.release([held])
        assert ids(await self.take(backend)) == ids([*first, later])

    @connected
    async def test_renewing_again_and_again_keeps_a_task(self, backend: Backend) -> None:
        """However long it is held, nobody else gets it, and its attempt stays the same."""
        (task,) = new()
        await backend.enqueue([task])
        held = await self.take(backend)
        started_at = (await look(backend, task)).started_at
        for _ in range(5):
            await self.pass_time(backend, LEASE_SECONDS / 2)
            assert list(await backend.renew(held, lease=self.lease)) == []
            assert await self.take(backend) == []
        seen = await look(backend, task)
        assert (seen.status, seen.attempt, seen.started_at) == ("in_progress", 1, started_at)
        await self.end_leases(backend)
        assert [each.attempt for each in await self.take(backend)] == [2]

    @connected
    async def test_a_renewal_by_another_does_not_move_the_lease(self, backend: Backend) -> None:
        """A former holder's renewal leaves the lease of the current one as it is."""
        await backend.enqueue(new())
        old = await self.take(backend)
        await self.end_leases(backend)
        assert len(await self.take(backend)) == 1
        assert list(await backend.renew(old, lease=100 * self.lease)) == old
        await self.end_leases(backend)
        assert [each.attempt for each in await self.take(backend)] == [3]

    @connected
    async def test_a_released_task_is_due_at_once_with_its_attempt_unspent(self, backend: Backend) -> None:
        """Given back in its second attempt it is pending, and handed out as the second attempt again."""
        tasks = new(2)
        await backend.enqueue(tasks)
        await self.take(backend)
        await self.end_leases(backend)
        held = await self.take(backend)
        assert [each.attempt for each in held] == [2, 2]
        assert list(await backend.release(held)) == []
        assert [((await look(backend, task)).status, (await look(backend, task)).attempt) for task in tasks] == [
            ("pending", 1)
        ] * 2
        again = await self.take(backend)
        assert [(each.task_id, each.attempt) for each in again] == [(task.task_id, 2) for task in tasks]
        assert not {each.claim for each in again} & {each.claim for each in held}

    @connected
    async def test_a_released_last_attempt_can_be_taken_again(self, backend: Backend) -> None:
        """Giving a last attempt back any number of times does not bury the task."""
        await backend.enqueue(new(max_attempts=1))
        for _ in range(3):
            (held,) = await self.take(backend)
            assert (held.attempt, held.is_last_attempt) == (1, True)
            await backend.release([held])
        assert not (await backend.reserve(1, lease=self.lease, alone=False)).buried
