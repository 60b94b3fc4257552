"""How far tasks have come: what they report, what is written of it, and who is told."""

import asyncio
import contextlib
import contextvars
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.memory_backend import MemoryBackend
from sitq import (
    Backend,
    BackendCorruptError,
    BackendError,
    BackendUnavailableError,
    ReservedTask,
    SQLiteBackend,
    SyncTaskQueue,
    TaskQueue,
    Worker,
    progress,
    task,
)
from sitq.backends.progressing import MAX_NOTE_CHARACTERS, Progress, Progressing, Report
from sitq.backends.sqlite.progressing import ReportJob
from sitq.extensions.cancelling import Cancelling
from sitq.extensions.reporting import Reporting, reporter
from sitq.models import Outcome
from tests.support import DEADLINE_SECONDS, rows
from tests.worker_tasks import block_at, gate, wait_at

FOR_EVER = 3600.0
"""Between two writes: what a test sees was written at once."""


class Writing(SQLiteBackend):
    """Counts what is written; a write may be made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.written: list[Sequence[Report]] = []
        self.fails = 0
        self.wrote = asyncio.Event()

    async def report(self, reports: Sequence[Report]) -> None:
        """Writes down that it was called."""
        if self.fails:
            self.fails -= 1
            raise BackendUnavailableError("locked")
        await super().report(reports)
        self.written.append(reports)
        self.wrote.set()


@pytest.fixture
def backend(path: Path) -> Writing:
    """Counts what is written."""
    return Writing(path)


async def a_thousand(name: str) -> None:
    """Reports often, and waits at a gate."""
    for number in range(1000):
        progress(number + 1, 1000)
    await wait_at(name)


def a_thousand_in_thread(name: str) -> None:
    """Reports often, in a thread, and waits at a gate."""
    for number in range(1000):
        progress(number + 1, 1000)
    block_at(name)


async def report_at_gates(*names: str) -> str:
    """Reports, and waits at one gate after the other."""
    for number, name in enumerate(names):
        progress(number + 1, len(names), name)
        await wait_at(name)
    return "done"


late: list[Callable[[], None]] = []


async def hands_out_its_context(name: str) -> None:
    """Reports, and leaves behind what reports in its name."""
    here = contextvars.copy_context()
    late.append(lambda: here.run(progress, 99))
    progress(1)
    await wait_at(name)


async def no_report() -> None:
    """Reports nothing."""


async def go_on() -> None:
    """Reports until that raises."""
    while True:
        progress(1)
        await asyncio.sleep(0)


def go_on_in_thread() -> None:
    """Reports until that raises."""
    while True:
        progress(1)
        time.sleep(0.001)


def writing_worker(backend: Backend, every: float = FOR_EVER) -> Worker:
    """Writes at once, and then, unless it is said otherwise, not for a long time."""
    return Worker(backend, extensions=[Reporting(every=every), Cancelling(every=0.01)])


def told(found: Progress | None) -> tuple[float, float | None, str] | None:
    """Returns progress without its time."""
    return None if found is None else found[:3]


@pytest.mark.parametrize("func", [a_thousand, a_thousand_in_thread])
async def test_a_thousand_calls_are_one_write(func: Any, queue: TaskQueue, backend: Writing) -> None:
    """On the loop it holds the last of them; what a thread reports meanwhile is for the next one."""
    with gate() as here:
        async with writing_worker(backend):
            task_id = await queue.enqueue(func, "gate")
            await here.arrived()
            await backend.wrote.wait()
            found = await queue.progress(task_id)
            here.open()
            await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert [len(reports) for reports in backend.written] == [1]
    assert found is not None
    assert found.total == 1000
    assert found.done == 1000 or func is a_thousand_in_thread


async def test_all_tasks_of_a_worker_are_written_in_one_change(queue: TaskQueue, backend: Writing) -> None:
    """Of those that begin together, at once; and the last report of each comes with a later write."""
    with gate("first") as first, gate("second") as second:
        async with writing_worker(backend, every=0.01):
            ids = [await queue.enqueue(report_at_gates, "first", "second") for _ in range(5)]
            await first.arrived(5)
            first.open()
            await second.arrived(5)
            for task_id in ids:
                await reported(queue, task_id, (2.0, 2.0, "second"))
            assert max(len(reports) for reports in backend.written) > 1
            second.open()


async def reported(queue: TaskQueue, task_id: str, wanted: tuple[float, float | None, str]) -> None:
    """Returns when that is written."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for found in queue.follow(task_id):
            if told(found) == wanted:
                return
    raise AssertionError(f"{wanted} was never written")


async def test_nothing_is_made_and_nothing_goes_on_if_nobody_reports(
    queue: TaskQueue, backend: Writing, path: Path
) -> None:
    """Neither in the file nor in the worker."""
    async with writing_worker(backend):
        before = asyncio.all_tasks()
        task_id = await queue.enqueue(no_report)
        await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
        assert {task for task in asyncio.all_tasks() - before if "write" in str(task.get_coro())} == set()
        assert await queue.progress(task_id) is None
    assert backend.written == []
    assert rows(path, "SELECT 1 FROM sqlite_schema WHERE name LIKE 'progress%'") == []


async def test_a_report_after_the_run_raises_and_changes_nothing(queue: TaskQueue, backend: Writing) -> None:
    """From a context that has outlived the run, for instance."""
    late.clear()
    with gate() as here:
        async with writing_worker(backend):
            task_id = await queue.enqueue(hands_out_its_context, "gate")
            await here.arrived()
            await backend.wrote.wait()
            here.open()
            await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
            with pytest.raises(asyncio.CancelledError):
                late[0]()
    assert told(await queue.progress(task_id)) == (1.0, None, "")
    assert len(backend.written) == 1


async def test_a_write_that_fails_is_made_again(
    queue: TaskQueue, backend: Writing, caplog: pytest.LogCaptureFixture
) -> None:
    """The task goes on meanwhile, and the log says why."""
    backend.fails = 2
    with gate() as here:
        async with writing_worker(backend, every=0.01):
            task_id = await queue.enqueue(a_thousand, "gate")
            await here.arrived()
            await backend.wrote.wait()
            assert told(await queue.progress(task_id)) == (1000.0, 1000.0, "")
            here.open()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["writing down the progress of 1 tasks failed: locked"] * 2


async def test_who_follows_a_task_sees_its_reports_and_its_end(queue: TaskQueue, backend: Writing) -> None:
    """Each one that was written, in order, and no more when the task is finished."""
    seen = []
    with gate("first") as first, gate("second") as second:
        async with writing_worker(backend, every=0.01):
            task_id = await queue.enqueue(report_at_gates, "first", "second")
            async with asyncio.timeout(DEADLINE_SECONDS):
                async for found in queue.follow(task_id):
                    seen.append(told(found))
                    (first if len(seen) == 1 else second).open()
    assert seen == [(1.0, 2.0, "first"), (2.0, 2.0, "second")]
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == "done"


async def test_following_sees_what_another_process_writes(queue: TaskQueue, backend: Writing, path: Path) -> None:
    """Though nobody announces it: it looks once a second."""
    (task_id,) = [await queue.enqueue(no_report)]
    (held,) = (await backend.reserve(1, lease=60, alone=True)).tasks
    other = SQLiteBackend(path)
    await other.connect()
    try:
        await other.report([Report(held, 1.0)])
        following = queue.follow(task_id)
        assert told(await anext(following)) == (1.0, None, "")
        coming = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        await other.report([Report(held, 2.0)])
        assert told(await asyncio.wait_for(coming, DEADLINE_SECONDS)) == (2.0, None, "")
        await other.mark_success([Outcome(held, b"")])
        assert [each async for each in following] == []
    finally:
        await other.close()


async def test_following_an_unknown_task_ends_at_once(queue: TaskQueue) -> None:
    """It has no progress, either."""
    assert [found async for found in queue.follow("unknown")] == []
    assert await queue.progress("unknown") is None
    assert await queue.progress("\ud800") is None


def test_a_sync_queue_follows_as_well(path: Path) -> None:
    """From a thread, while a worker runs elsewhere."""
    backend = SQLiteBackend(path)
    with SyncTaskQueue(backend) as queue:
        task_id = queue.enqueue(no_report)

        async def work() -> None:
            await backend.connect()
            (held,) = (await backend.reserve(1, lease=60, alone=True)).tasks
            await backend.report([Report(held, 1.0, 2.0, "half")])
            held_by.append(held)
            await backend.close()

        async def end() -> None:
            await backend.connect()
            await backend.mark_success([Outcome(held_by[0], b"")])
            await backend.close()

        held_by: list[ReservedTask] = []
        asyncio.run(work())
        assert told(queue.progress(task_id)) == (1.0, 2.0, "half")
        following = queue.follow(task_id)
        assert told(next(following)) == (1.0, 2.0, "half")
        asyncio.run(end())
        assert list(following) == []
        assert told(next(queue.follow(task_id))) == (1.0, 2.0, "half")  # and left before its end


@pytest.mark.parametrize("func", [go_on, go_on_in_thread])
async def test_reporting_raises_if_the_task_was_asked_to_end(func: Any, queue: TaskQueue, backend: Writing) -> None:
    """So a plain function that reports can be cancelled."""
    async with writing_worker(backend):
        task_id = await queue.enqueue(func)
        await asyncio.wait_for(backend.wrote.wait(), DEADLINE_SECONDS)
        await backend.ask([task_id])
        result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert result is not None
    assert result.status == "cancelled"


@task(timeout=0.05)
def too_long() -> None:
    """Reports for longer than it may run."""
    while True:
        progress(1)
        time.sleep(0.001)


async def test_reporting_raises_if_the_time_of_the_task_is_over(queue: TaskQueue, backend: Writing) -> None:
    """In a thread, which nothing else can end."""
    task_id = await queue.enqueue(too_long)
    await writing_worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.error == "TaskTimeoutError: it took longer than its timeout of 0.05 seconds"


async def test_reports_are_deleted_with_their_task(queue: TaskQueue, backend: Writing, path: Path) -> None:
    """By the file itself, whoever deletes it."""
    with gate() as here:
        async with writing_worker(backend):
            task_id = await queue.enqueue(a_thousand, "gate")
            await here.arrived()
            await backend.wrote.wait()
            here.open()
            await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert len(rows(path, "SELECT * FROM progress")) == 1
    assert await backend.prune(older_than=0) == 1
    assert rows(path, "SELECT * FROM progress") == []


async def test_a_report_is_not_synced(queue: TaskQueue, backend: Writing) -> None:
    """Another one comes soon."""
    assert not ReportJob([]).synced


def test_outside_of_a_task_only_the_arguments_are_checked() -> None:
    """So that a function that reports can be called by a test."""
    progress(1, 2, "a note")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("1",), TypeError, "done must be a number, not str"),
        ((True,), TypeError, "done must be a number, not bool"),
        ((1, "2"), TypeError, "total must be a number, not str"),
        ((1, 2, 3), TypeError, "note must be a str, not int"),
        ((-1,), ValueError, "done must be a finite number, at least 0; got -1"),
        ((math.nan,), ValueError, "done must be a finite number"),
        ((10**400,), ValueError, "done must be a finite number"),
        ((1, math.inf), ValueError, "total must be a finite number"),
    ],
)
def test_what_is_no_number_is_refused(arguments: Any, error: type[Exception], said: str) -> None:
    """At once, and outside of a task as well."""
    with pytest.raises(error, match=said):
        progress(*arguments)


async def strange_note(name: str) -> None:
    """Reports what no store takes as it is."""
    progress(1, note="\ud800" + "x" * 1000)
    await wait_at(name)


async def test_a_note_is_cut_to_what_stores_keep(queue: TaskQueue, backend: Writing) -> None:
    """And holds text only."""
    with gate() as here:
        async with writing_worker(backend):
            task_id = await queue.enqueue(strange_note, "gate")
            await here.arrived()
            await backend.wrote.wait()
            found = await queue.progress(task_id)
            here.open()
    assert found is not None
    assert found.note == "?" + "x" * (MAX_NOTE_CHARACTERS - 1)


class Plain(MemoryBackend):
    """Keeps no reports."""

    report = progress = None  # type: ignore[assignment]


async def test_a_backend_that_keeps_no_reports_is_told_none() -> None:
    """Tasks that report run all the same; who asks for their progress gets an error."""
    backend = Plain()
    assert not isinstance(backend, Progressing)
    with gate() as here:
        here.open()
        async with TaskQueue(backend) as queue:
            task_id = await queue.enqueue(a_thousand, "gate")
            await writing_worker(backend).drain()
            result = await queue.get_result(task_id, timeout=0)
            assert result is not None
            assert result.status == "success"
            with pytest.raises(BackendError, match="Plain does not keep how far tasks have come"):
                await queue.progress(task_id)
            with pytest.raises(BackendError, match="Plain does not keep how far tasks have come"):
                queue.follow(task_id)


async def test_what_is_no_id_is_refused(queue: TaskQueue) -> None:
    """By both calls, at once."""
    with pytest.raises(TypeError, match="task_id must be a str, not int"):
        await queue.progress(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="task_id must be a str, not int"):
        queue.follow(1)  # type: ignore[arg-type]


async def test_a_malformed_report_is_told_from_a_report(queue: TaskQueue, backend: Writing, path: Path) -> None:
    """As a row of the file that sitq did not write."""
    task_id = await queue.enqueue(no_report)
    (held,) = (await backend.reserve(1, lease=60, alone=True)).tasks
    await backend.report([Report(held, 1.0)])
    with contextlib.closing(sqlite3.connect(path, autocommit=True)) as connection:
        connection.execute("UPDATE progress SET at = 'yesterday'")
    with pytest.raises(BackendCorruptError, match=f"the progress of task {task_id}"):
        await queue.progress(task_id)


async def test_what_a_worker_sets_for_reports_is_gone_when_it_has_stopped(backend: Writing) -> None:
    """Nobody else's code runs with it."""
    async with writing_worker(backend):
        assert reporter.get() is None
    assert reporter.get() is None
