"""Tests of the reports of tasks that run."""

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.progressing import MAX_NOTE_CHARACTERS, Progress, Progressing, Report
from sitq.testing._contract.base import Contract, connected, failures, new, successes
from sitq.testing._contract.watching import watching


def progressing(backend: Backend) -> Progressing:
    """Returns ``backend`` as what it has to be."""
    assert isinstance(backend, Progressing)
    return backend


async def told(backend: Backend, task: NewTask | ReservedTask) -> tuple[float, float | None, str] | None:
    """Returns what is known of the progress of a task, without the time."""
    found = await progressing(backend).progress(task.task_id)
    assert found is None or isinstance(found, Progress)
    return None if found is None else found[:3]


class ProgressTests(Contract):
    """The last report of a task's latest run is kept, if the run held its task when it reported."""

    async def hold(self, backend: Backend, count: int = 1) -> list[ReservedTask]:
        """Returns new tasks that are held; nothing else may be due."""
        await backend.enqueue(new(count))
        return list(await self.take(backend, count))

    @connected
    async def test_the_last_report_is_kept(self, backend: Backend) -> None:
        """In place of the ones before, with the time; of several tasks in one call, each its own."""
        one, other = await self.hold(backend, 2)
        assert await told(backend, one) is None
        await progressing(backend).report([Report(one, 1.0), Report(other, 0.5, 1.0, "half")])
        await progressing(backend).report([Report(one, 2.0, 3.0, "zwei Drittel: ⅔")])
        assert await told(backend, one) == (2.0, 3.0, "zwei Drittel: ⅔")
        assert await told(backend, other) == (0.5, 1.0, "half")
        found = await progressing(backend).progress(one.task_id)
        result = await backend.get_result(one.task_id)
        assert found is not None
        assert result is not None
        assert found.at.utcoffset() is not None
        assert result.started_at is not None
        assert found.at >= result.started_at

    @connected
    async def test_an_unknown_task_has_no_progress(self, backend: Backend) -> None:
        """Nor one that waits, and no reports are no error."""
        (task,) = new()
        await progressing(backend).report([])
        assert await told(backend, task) is None
        await backend.enqueue([task])
        assert await told(backend, task) is None

    @connected
    async def test_large_numbers_and_long_notes_are_kept(self, backend: Backend) -> None:
        """Up to what a worker gives."""
        (task,) = await self.hold(backend)
        report = Report(task, 1e300, 0.0, "é" * MAX_NOTE_CHARACTERS)
        await progressing(backend).report([report])
        assert await told(backend, task) == report[1:]

    @connected
    async def test_a_report_after_the_end_changes_nothing(self, backend: Backend) -> None:
        """What was told before stays, for one that has succeeded and one that has failed."""
        one, other = await self.hold(backend, 2)
        await progressing(backend).report([Report(one, 1.0), Report(other, 1.0)])
        await backend.mark_success(successes([one]))
        await backend.mark_failure(failures([other]))
        await progressing(backend).report([Report(one, 2.0), Report(other, 2.0)])
        assert [await told(backend, task) for task in (one, other)] == [(1.0, None, "")] * 2

    @connected
    async def test_a_late_report_changes_nothing(self, backend: Backend) -> None:
        """Of a worker whose lease was over: neither before the next run has reported, nor after it."""
        (late,) = await self.hold(backend)
        await progressing(backend).report([Report(late, 90.0)])
        await self.end_leases(backend)
        (now,) = await self.take(backend)
        assert await told(backend, now) is None
        await progressing(backend).report([Report(late, 99.0)])
        assert await told(backend, now) is None
        await progressing(backend).report([Report(now, 1.0)])
        await progressing(backend).report([Report(late, 99.0)])
        assert await told(backend, now) == (1.0, None, "")

    @connected
    async def test_a_task_that_was_given_back_begins_anew(self, backend: Backend) -> None:
        """What it has reported before says nothing of the next run, and a report after it changes nothing."""
        (task,) = await self.hold(backend)
        await progressing(backend).report([Report(task, 50.0)])
        await backend.release([task])
        await progressing(backend).report([Report(task, 60.0)])
        assert await told(backend, task) is None

    @connected
    async def test_a_watcher_is_woken_by_a_report(self, backend: Backend) -> None:
        """One that watches the task, by this backend object."""
        (task,) = await self.hold(backend)

        async def found() -> bool:
            return await told(backend, task) is not None

        with watching(backend, task) as seen:
            await progressing(backend).report([Report(task, 1.0)])
            await seen.until(found)

    @connected
    async def test_another_backend_sees_what_was_reported(self, backend: Backend) -> None:
        """Reports are in the store, and not in the object."""
        (task,) = await self.hold(backend)
        await progressing(backend).report([Report(task, 1.0, 2.0, "here")])
        async with self.other(backend) as other:
            assert await told(other, task) == (1.0, 2.0, "here")
