"""Tests of looking into a store."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.inspect import Counts, Inspectable, TaskDetails
from sitq.models import FINISHED, STATUSES, Outcome, Status, new_task_id
from sitq.testing._contract.base import (
    Contract,
    connected,
    failures,
    ids,
    new,
    successes,
)

BOMB = b"cos\nsystem\n(S'touch %s'\ntR."
"""A pickle that makes a file of this name when it is loaded."""


def inspectable(backend: Backend) -> Inspectable:
    """Returns ``backend`` as what it has to be."""
    assert isinstance(backend, Inspectable)
    return backend


async def details(backend: Backend, task: NewTask) -> TaskDetails:
    """Returns what is shown of a task."""
    found = await inspectable(backend).show(task.task_id)
    assert found is not None
    return found


class Preparing(Contract):
    """Brings tasks to where a test needs them."""

    async def bring(self, backend: Backend, status: Status) -> NewTask:
        """Returns a new task that was brought to ``status``; nothing else may be due."""
        (task,) = new()
        await backend.enqueue([task])
        if status == "cancelled":
            assert await inspectable(backend).cancel([task.task_id]) == [task.task_id]
        elif status != "pending":
            held = await self.take(backend)
            assert ids(held) == [task.task_id]
            if status == "success":
                await backend.mark_success(successes(held))
            elif status == "failed":
                await backend.mark_failure(failures(held))
        return task

    async def bring_all(self, backend: Backend) -> dict[Status, NewTask]:
        """Returns a task of each status."""
        order: tuple[Status, ...] = ("success", "failed", "cancelled", "in_progress", "pending")
        return {status: await self.bring(backend, status) for status in order}

    async def fail(self, backend: Backend, count: int) -> tuple[list[NewTask], list[ReservedTask]]:
        """Returns tasks that have failed, and under what they were held."""
        tasks = new(count)
        await backend.enqueue(tasks)
        held = await self.take(backend, count)
        await backend.mark_failure(failures(held))
        return tasks, held

    async def abandon(self, backend: Backend, count: int = 1) -> tuple[list[NewTask], list[ReservedTask]]:
        """Returns tasks whose worker is gone, and under what they were held."""
        tasks = new(count)
        await backend.enqueue(tasks)
        held = await self.take(backend, count)
        await self.end_leases(backend)
        return tasks, held


class Inspecting(Preparing):
    """Looking in shows what is there."""

    @connected
    async def test_an_empty_store_counts_nothing(self, backend: Backend) -> None:
        """Every number is 0, and nothing waits."""
        assert await inspectable(backend).counts() == Counts(0, 0, 0, 0, 0, 0, 0, None, 0, 0, 0)
        assert list(await inspectable(backend).list()) == []

    @connected
    async def test_each_task_is_counted_once_by_its_status(self, backend: Backend) -> None:
        """One task of each status makes five ones; all of them are of the last minute."""
        await self.bring_all(backend)
        counts = await inspectable(backend).counts()
        assert [getattr(counts, status) for status in STATUSES] == [1, 1, 1, 1, 1]
        assert (counts.enqueued_last_minute, counts.succeeded_last_minute, counts.failed_last_minute) == (5, 1, 1)
        if self.seconds(61) < 61:
            return  # a minute of the store is longer than this suite waits
        await self.pass_time(backend, 61)
        counts = await inspectable(backend).counts()
        assert (counts.enqueued_last_minute, counts.succeeded_last_minute, counts.failed_last_minute) == (0, 0, 0)

    @connected
    async def test_what_is_not_due_yet_does_not_wait(self, backend: Backend) -> None:
        """A task with an eta is scheduled until then; the oldest due task gives its time by the backend's clock."""
        await backend.enqueue(new(eta=datetime.now(UTC) + timedelta(seconds=self.seconds(400))))
        counts = await inspectable(backend).counts()
        assert (counts.pending, counts.scheduled, counts.oldest_waiting) == (1, 1, None)
        await backend.enqueue(new(2))
        await self.pass_time(backend, 100)
        counts = await inspectable(backend).counts()
        assert (counts.pending, counts.scheduled) == (3, 1)
        assert counts.oldest_waiting is not None
        assert self.seconds(100) <= counts.oldest_waiting < self.seconds(400)

    @connected
    async def test_a_lease_that_is_over_counts_as_abandoned(self, backend: Backend) -> None:
        """Until a worker takes the task over it is in progress all the same."""
        await self.bring(backend, "in_progress")
        assert (await inspectable(backend).counts()).abandoned == 0
        await self.end_leases(backend)
        counts = await inspectable(backend).counts()
        assert (counts.in_progress, counts.abandoned) == (1, 1)

    @pytest.mark.parametrize("status", STATUSES)
    @connected
    async def test_a_task_is_shown_in_any_status(self, backend: Backend, status: Status) -> None:
        """With its name, its attempts, its times, and what came of it."""
        task = await self.bring(backend, status)
        found = await details(backend, task)
        assert (found.task_id, found.name, found.format) == (task.task_id, task.name, task.format)
        assert (found.status, found.payload_bytes) == (status, len(task.payload))
        assert (found.attempt, found.max_attempts) == (0 if status in ("pending", "cancelled") else 1, 5)
        assert (found.due_at is None, found.lease_ends_at is None) == (status != "pending", status != "in_progress")
        assert (found.started_at is None) == (found.attempt == 0)
        assert (found.finished_at is not None) == (status in FINISHED)
        assert found.error == ("ValueError: no" if status == "failed" else None)
        assert found.result_bytes == (len(b"result") if status == "success" else None)

    @connected
    async def test_a_traceback_is_shown(self, backend: Backend) -> None:
        """As the worker stored it."""
        (task,) = new()
        await backend.enqueue([task])
        (outcome,) = failures(await self.take(backend))
        await backend.mark_failure([outcome._replace(traceback="Traceback\n  line\nValueError: no")])
        assert (await details(backend, task)).traceback == "Traceback\n  line\nValueError: no"

    @pytest.mark.parametrize("task_id", ["no-such-task", "", "\ud800", "x' OR 1=1"])
    @connected
    async def test_an_unknown_id_is_nothing(self, backend: Backend, task_id: str) -> None:
        """It is shown as ``None``, and neither retried nor cancelled."""
        await self.bring(backend, "pending")
        asked = inspectable(backend)
        assert await asked.show(task_id) is None
        assert list(await asked.retry([task_id])) == []
        assert list(await asked.cancel([task_id])) == []
        assert (await asked.counts()).pending == 1

    @connected
    async def test_the_newest_is_listed_first(self, backend: Backend) -> None:
        """Unfinished tasks by when they were stored, finished ones by when they were finished, at most so many."""
        tasks = new(4)
        await backend.enqueue(tasks)
        asked = inspectable(backend)
        by_age = list(reversed(ids(tasks)))
        assert [task.task_id for task in await asked.list()] == by_age
        assert [task.task_id for task in await asked.list(status="pending", limit=2)] == by_age[:2]
        held = await self.take(backend)
        for task in reversed(held):  # so that the first to be stored is the last to be finished
            await backend.mark_failure(failures([task]))
            await self.pass_time(backend, 1)
        assert [task.task_id for task in await asked.list(status="failed", limit=3)] == ids(tasks)[:3]
        assert [task.task_id for task in await asked.list()] == by_age

    @pytest.mark.parametrize("status", STATUSES)
    @connected
    async def test_a_status_is_listed_alone(self, backend: Backend, status: Status) -> None:
        """Of one task of each status, the one that is asked for, with the same words as when it is shown."""
        tasks = await self.bring_all(backend)
        (found,) = await inspectable(backend).list(status=status)
        shown = await details(backend, tasks[status])
        assert all(getattr(found, name) == getattr(shown, name) for name in ("task_id", "status", "error", "due_at"))
        assert len(await inspectable(backend).list()) == len(STATUSES)

    @pytest.mark.parametrize("status", [None, "pending", "failed"])
    @connected
    async def test_pages_neither_repeat_nor_leave_out_a_task(self, backend: Backend, status: Status | None) -> None:
        """Each page begins after the last task of the one before, whatever is stored and finished meanwhile."""
        tasks = [*new(3), *(await self.fail(backend, 4))[0]] if status == "failed" else new(7)
        await backend.enqueue(tasks[:3] if status == "failed" else tasks)
        wanted = [task.task_id for task in await inspectable(backend).list(status=status)]
        found: list[str] = []
        while page := await inspectable(backend).list(status=status, limit=2, before=found[-1] if found else None):
            found += [task.task_id for task in page]
            await self.bring(backend, "cancelled")
            if status == "failed":
                (held,) = await self.take(backend, 1)
                await backend.mark_failure(failures([held]))
            elif status == "pending":
                await backend.enqueue(new(1))
        assert found == wanted

    @pytest.mark.parametrize("status", [None, "failed"])
    @connected
    async def test_a_page_after_nothing_is_refused(self, backend: Backend, status: Status | None) -> None:
        """A task that is unknown, or has left the list since, has no place in it."""
        tasks, _ = await self.fail(backend, 2)
        asked = inspectable(backend)
        with pytest.raises(ValueError, match="before"):
            await asked.list(status=status, before="no-such-task")
        await asked.retry([tasks[0].task_id])
        if status is None:
            assert [task.task_id for task in await asked.list(before=tasks[1].task_id)] == [tasks[0].task_id]
        else:
            with pytest.raises(ValueError, match="before"):
                await asked.list(status=status, before=tasks[0].task_id)

    @connected
    async def test_a_list_can_be_narrowed(self, backend: Backend) -> None:
        """By a part of the name or a pattern for all of it, by a part of the error, and by age; case matters."""
        tasks = [
            NewTask(new_task_id(), b"", name=name) for name in ("mail:send", "mail:fetch", "Mail:send", "web:mail")
        ]
        await backend.enqueue(tasks)
        held = await self.take(backend)
        await backend.mark_failure([Outcome(task, error=f"ValueError: {task.name} 100%") for task in held[:2]])
        await self.pass_time(backend, 100)
        await backend.mark_failure([Outcome(task, error="KeyError: 'x'") for task in held[2:]])

        async def names(**filters: Any) -> set[str]:
            found = [await inspectable(backend).list(status=status, **filters) for status in (None, "failed")]
            assert {task.task_id for task in found[0]} == {task.task_id for task in found[1]}
            return {task.name for task in found[0]}

        assert await names(name="mail") == {"mail:send", "mail:fetch", "web:mail"}
        assert await names(name="mail*") == {"mail:send", "mail:fetch"}
        assert await names(name="?ail:send") == {"mail:send", "Mail:send"}
        assert await names(name="*") == {"mail:send", "mail:fetch", "Mail:send", "web:mail"}
        assert await names(error="ValueError: mail") == {"mail:send", "mail:fetch"}
        assert await names(error="%") == {"mail:send", "mail:fetch"}
        assert await names(error="*") == set()
        assert await names(name="Mail", error="KeyError") == {"Mail:send"}
        assert await names(name="\ud800") == set()
        asked = inspectable(backend)
        assert {task.name for task in await asked.list(status="failed", since=self.seconds(50))} == {
            "Mail:send",
            "web:mail",
        }
        assert list(await asked.list(since=self.seconds(50))) == []
        assert len(await asked.list(since=self.seconds(150))) == 4
        assert len(await asked.list(since=self.seconds(150), name="mail:", limit=1)) == 1

    @connected
    async def test_an_id_is_found_by_how_it_begins(self, backend: Backend) -> None:
        """Up to so many ids, in their order; what is no beginning of any finds none."""
        tasks = [NewTask(task_id, b"") for task_id in ("ab1", "ab2", "ab%", "b1", "ac", "aB3")]
        await backend.enqueue(tasks)
        asked = inspectable(backend)
        assert list(await asked.find_ids("ab", limit=9)) == ["ab%", "ab1", "ab2"]
        assert list(await asked.find_ids("ab", limit=2)) == ["ab%", "ab1"]
        assert list(await asked.find_ids("b1", limit=9)) == ["b1"]
        for prefix in ("b11", "%", "c", "\ud800"):
            assert list(await asked.find_ids(prefix, limit=9)) == []

    @connected
    async def test_last_attempts_are_listed_with_the_others(self, backend: Backend) -> None:
        """However many attempts a waiting task has left."""
        tasks = [*new(1, max_attempts=1), *new(1, max_attempts=9)]
        await backend.enqueue(tasks)
        listed = await inspectable(backend).list(status="pending")
        assert {task.task_id for task in listed} == set(ids(tasks))

    @connected
    async def test_formats_are_counted_for_unfinished_tasks(self, backend: Backend) -> None:
        """With how many of the payloads hold the mark."""
        await self.bring(backend, "success")
        await backend.enqueue(
            [
                NewTask(new_task_id(), b"with the mark\0 in it", format="b"),
                NewTask(new_task_id(), b"without", format="b"),
                NewTask(new_task_id(), b"", format="a"),
            ]
        )
        found = await inspectable(backend).payload_formats(b"mark\0")
        assert sorted((each.format, each.tasks, each.marked) for each in found) == [("a", 1, 0), ("b", 2, 1)]

    @connected
    async def test_a_fresh_store_is_healthy(self, backend: Backend) -> None:
        """Something was examined, each thing under a name of its own, and nothing is wrong."""
        found = await inspectable(backend).examine()
        assert found
        assert len({finding.name for finding in found}) == len(found)
        assert [finding for finding in found if finding.level == "wrong"] == []

    @connected
    async def test_nothing_is_loaded(self, backend: Backend, tmp_path: Any) -> None:
        """Payloads and results that would leave a trace pass through every method, and there is none."""
        trace = tmp_path / "trace"
        bomb = BOMB % str(trace).encode()
        tasks = [NewTask(new_task_id(), bomb, name="n", format="f") for _ in range(3)]
        await backend.enqueue(tasks)
        first, second = await self.take(backend, 2)
        await backend.mark_success(successes([first], bomb))
        await backend.mark_failure(failures([second]))
        asked = inspectable(backend)
        for task in tasks:
            await asked.show(task.task_id)
        await asked.counts()
        await asked.list()
        await asked.examine()
        await asked.payload_formats(b"mark")
        await asked.cancel(ids(tasks))
        await asked.retry(ids(tasks))
        await asked.prune(older_than=0)
        assert not trace.exists()
