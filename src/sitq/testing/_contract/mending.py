"""Tests of mending what is in a store: retrying, cancelling, pruning."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sitq import Backend
from sitq.backends.inspect import Inspectable
from sitq.models import FINISHED, Outcome, Status
from sitq.testing._contract.base import (
    connected,
    failures,
    ids,
    look,
    new,
    statuses,
    successes,
)
from sitq.testing._contract.inspecting import Preparing, inspectable


class Mending(Preparing):
    """Mending changes what may be changed, and leaves the rest."""

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    @connected
    async def test_a_retried_task_is_as_if_it_had_never_been_run(self, backend: Backend, status: Status) -> None:
        """Pending, due now, at attempt 0, without an outcome and without the times of the run."""
        task = await self.bring(backend, status)
        assert list(await inspectable(backend).retry([task.task_id])) == [task.task_id]
        found = await look(backend, task)
        assert (found.status, found.attempt, found.error, found.value) == ("pending", 0, None, None)
        assert (found.traceback, found.started_at, found.finished_at) == (None, None, None)
        (held,) = await self.take(backend)
        assert (held.task_id, held.attempt, held.payload) == (task.task_id, 1, task.payload)

    @pytest.mark.parametrize("status", ["pending", "in_progress", "success"])
    @connected
    async def test_other_tasks_cannot_be_retried(self, backend: Backend, status: Status) -> None:
        """One that waits, runs or has succeeded is left as it is."""
        task = await self.bring(backend, status)
        before = await look(backend, task)
        assert list(await inspectable(backend).retry([task.task_id])) == []
        assert await look(backend, task) == before

    @connected
    async def test_every_attempt_is_free_again(self, backend: Backend) -> None:
        """A task whose attempts were spent can be run as often as when it was new."""
        (task,) = new(max_attempts=2)
        await backend.enqueue([task])
        for _ in range(3):
            await self.take(backend)
            await self.end_leases(backend)
        assert await statuses(backend, [task]) == ["failed"]
        await inspectable(backend).retry([task.task_id])
        for attempt in (1, 2):
            assert [held.attempt for held in await self.take(backend)] == [attempt]
            await self.end_leases(backend)

    @connected
    async def test_the_ids_come_back_in_order_and_once(self, backend: Backend) -> None:
        """Those that were changed, in the order given; the others are missing."""
        tasks, _ = await self.fail(backend, 3)
        waiting = await self.bring(backend, "pending")
        one, two, three = ids(tasks)
        asked = [three, waiting.task_id, one, "no-such-task", two, three]
        assert list(await inspectable(backend).retry(asked)) == [three, one, two]
        assert list(await inspectable(backend).cancel([*asked, one])) == [three, waiting.task_id, one, two]

    @connected
    async def test_a_late_outcome_of_a_retried_task_changes_nothing(self, backend: Backend) -> None:
        """Whoever ran it before holds a claim that is over, and cannot finish, renew or release it."""
        (task,), held = await self.fail(backend, 1)
        await inspectable(backend).retry([task.task_id])
        assert list(await backend.mark_success(successes(held))) == held
        assert list(await backend.mark_failure(failures(held))) == held
        assert list(await backend.renew(held, lease=self.lease)) == held
        assert list(await backend.release(held)) == held
        assert await statuses(backend, [task]) == ["pending"]

    @connected
    async def test_all_failed_tasks_are_retried_at_once(self, backend: Backend) -> None:
        """Every one that is failed, and none of another status."""
        tasks = await self.bring_all(backend)
        await self.take(backend)
        more, _ = await self.fail(backend, 250)
        assert set(await inspectable(backend).retry_failed()) == {tasks["failed"].task_id, *ids(more)}
        assert set(await statuses(backend, [tasks["failed"], *more])) == {"pending"}
        assert await statuses(backend, [tasks["success"], tasks["cancelled"]]) == ["success", "cancelled"]
        assert list(await inspectable(backend).retry_failed()) == []

    @connected
    async def test_only_failed_tasks_that_fit_are_retried(self, backend: Backend) -> None:
        """By a part of the error, by the name, and by how long ago they failed."""
        old, _ = await self.fail(backend, 2)
        await self.pass_time(backend, 100)
        tasks = new(3)
        await backend.enqueue(tasks)
        held = await self.take(backend)
        await backend.mark_failure([Outcome(task, error=f"KeyError: {task.name}") for task in held])
        asked = inspectable(backend)
        assert list(await asked.retry_failed(error="KeyError", name="*0")) == [tasks[0].task_id]
        assert list(await asked.retry_failed(error="no such error")) == []
        assert set(await asked.retry_failed(since=self.seconds(50))) == {task.task_id for task in tasks[1:]}
        assert await statuses(backend, [*old, *tasks]) == ["failed"] * 2 + ["pending"] * 3
        assert set(await asked.retry_failed(error="ValueError")) == set(ids(old))

    @connected
    async def test_an_abandoned_task_can_be_retried(self, backend: Backend) -> None:
        """It waits as if it had never been run, and the run that was thought dead can change nothing any more."""
        (task,), held = await self.abandon(backend)
        assert list(await inspectable(backend).retry([task.task_id])) == [task.task_id]
        found = await look(backend, task)
        assert (found.status, found.attempt, found.started_at) == ("pending", 0, None)
        assert list(await backend.mark_success(successes(held))) == held
        assert list(await backend.renew(held, lease=self.lease)) == held
        assert list(await backend.release(held)) == held
        assert [again.attempt for again in await self.take(backend)] == [1]

    @connected
    async def test_an_abandoned_task_can_be_cancelled(self, backend: Backend) -> None:
        """Nobody takes it over, and the run that was thought dead cannot record an outcome any more."""
        (task,), held = await self.abandon(backend)
        assert list(await inspectable(backend).cancel([task.task_id])) == [task.task_id]
        assert list(await backend.mark_failure(failures(held))) == held
        assert list(await backend.mark_success(successes(held))) == held
        assert list(await backend.release(held)) == held
        assert await statuses(backend, [task]) == ["cancelled"]
        assert await self.take(backend) == []

    @connected
    async def test_retrying_what_failed_leaves_abandoned_tasks(self, backend: Backend) -> None:
        """They have not failed: a worker takes them over."""
        (task,), _ = await self.abandon(backend)
        assert list(await inspectable(backend).retry_failed()) == []
        assert [again.attempt for again in await self.take(backend)] == [2]
        assert await statuses(backend, [task]) == ["in_progress"]

    @connected
    async def test_more_than_fit_into_one_change_are_retried_and_cancelled(self, backend: Backend) -> None:
        """However many there are, each is changed once, and the ids come back in order."""
        tasks = new(1201)
        await backend.enqueue(tasks)
        asked = inspectable(backend)
        assert list(await asked.cancel(ids(tasks))) == ids(tasks)
        assert list(await asked.cancel(ids(tasks))) == []
        assert list(await asked.retry(ids(tasks))) == ids(tasks)
        assert (await asked.counts()).pending == 1201

    @connected
    async def test_a_cancelled_task_is_finished_and_never_given_out(self, backend: Backend) -> None:
        """It has a time at which it was finished, no outcome, and no worker gets it."""
        first, second = new(2)
        await backend.enqueue([first, second])
        assert list(await inspectable(backend).cancel([first.task_id])) == [first.task_id]
        found = await look(backend, first)
        assert (found.status, found.attempt, found.value, found.error) == ("cancelled", 0, None, None)
        assert found.finished_at is not None
        assert ids(await self.take(backend)) == [second.task_id]

    @connected
    async def test_a_task_that_is_not_due_yet_can_be_cancelled(self, backend: Backend) -> None:
        """It waits, although nobody may run it."""
        (task,) = new(eta=datetime.now(UTC) + timedelta(seconds=self.seconds(100)))
        await backend.enqueue([task])
        await inspectable(backend).cancel([task.task_id])
        await self.pass_time(backend, 200)
        assert await self.take(backend) == []

    @pytest.mark.parametrize("status", ["in_progress", "success", "failed", "cancelled"])
    @connected
    async def test_only_waiting_tasks_can_be_cancelled(self, backend: Backend, status: Status) -> None:
        """One that runs or is finished is left as it is."""
        task = await self.bring(backend, status)
        before = await look(backend, task)
        assert list(await inspectable(backend).cancel([task.task_id])) == []
        assert await look(backend, task) == before

    @connected
    async def test_a_task_that_was_given_back_can_be_cancelled(self, backend: Backend) -> None:
        """It waits again, and who held it before can change nothing."""
        task = await self.bring(backend, "pending")
        held = await self.take(backend)
        await backend.release(held)
        assert list(await inspectable(backend).cancel([task.task_id])) == [task.task_id]
        assert list(await backend.mark_success(successes(held))) == held
        assert await statuses(backend, [task]) == ["cancelled"]

    @pytest.mark.parametrize("call", ["retry", "retry_failed", "cancel"])
    @connected
    async def test_who_waits_is_told(self, backend: Backend, call: str) -> None:
        """A worker of a task that is due again, a waiter of a task that is cancelled; another backend's as well."""
        task = await self.bring(backend, "pending" if call == "cancel" else "failed")
        calls: dict[str, Callable[[Inspectable], Awaitable[Sequence[str]]]] = {
            "retry": lambda by: by.retry([task.task_id]),
            "retry_failed": lambda by: by.retry_failed(),
            "cancel": lambda by: by.cancel([task.task_id]),
        }
        after = "cancelled" if call == "cancel" else "pending"
        changed = asyncio.Event()
        async with self.other(backend) as other:
            with backend.watch(changed.set, task_id=task.task_id if call == "cancel" else None):
                await calls[call](inspectable(other))
                while await statuses(backend, [task]) != [after]:
                    await changed.wait()
                    changed.clear()

    @connected
    async def test_pruning_takes_what_finished_long_ago(self, backend: Backend) -> None:
        """Finished tasks of every kind go, younger ones and unfinished ones stay."""
        old = await self.bring_all(backend)
        await self.pass_time(backend, 200)
        young = await self.bring(backend, "cancelled")
        assert await inspectable(backend).prune(older_than=self.seconds(100)) == len(FINISHED)
        kept = [old["pending"], old["in_progress"], young]
        assert await statuses(backend, [*kept, *(old[status] for status in FINISHED)]) == [
            "pending",
            "in_progress",
            "cancelled",
            None,
            None,
            None,
        ]
        await self.pass_time(backend, 1)
        assert await inspectable(backend).prune(older_than=0) == 1

    @connected
    async def test_pruning_goes_on_to_the_end(self, backend: Backend) -> None:
        """However many there are."""
        await self.fail(backend, 1)
        for _ in range(12):
            await self.fail(backend, 100)
        await self.pass_time(backend, 1)
        assert await inspectable(backend).prune(older_than=0) == 1201
        assert list(await inspectable(backend).list()) == []
