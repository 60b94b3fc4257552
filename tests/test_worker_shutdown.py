"""What is still running when a worker has no time left is given back, and the attempt is not spent."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendUnavailableError, ReservedTask, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows
from tests.worker_tasks import block_at, connected, far_ahead, gate, log_attempt, wait_at

END_AT_ONCE = 0.0


async def turns_of_the_loop() -> None:
    """Returns after so many turns that whoever does not wait for it is through before."""
    for _ in range(100):
        await asyncio.sleep(0)


async def clean_up(runs: Runs) -> None:
    """Logs its cancellation and its finally block, which takes turns of the loop."""
    try:
        await wait_at("gate")
    except asyncio.CancelledError:
        runs.add("cancelled")
        raise
    finally:
        await turns_of_the_loop()
        runs.add("cleaned up")


async def finish_in_spite_of_it(runs: Runs) -> str:
    """Returns a value when it is cancelled."""
    try:
        await wait_at("gate")
    except asyncio.CancelledError:
        runs.add("cancelled")
        await turns_of_the_loop()
    return "finished"


async def fail_because_of_it(runs: Runs) -> None:
    """Raises something else when it is cancelled."""
    try:
        await wait_at("gate")
    except asyncio.CancelledError:
        runs.add("cancelled")
        raise RuntimeError("cannot go on") from None


async def ignore_it(runs: Runs) -> str:
    """Does not let itself be cancelled."""
    here = asyncio.ensure_future(wait_at("gate"))
    while not here.done():
        try:
            await asyncio.shield(here)
        except asyncio.CancelledError:
            runs.add("cancelled")
    runs.add("late")
    return "late"


def live(path: Path) -> list[dict[str, Any]]:
    """Returns what the rows say of being run."""
    return rows(path, "SELECT status, attempt, result, error, finished_at FROM tasks")


PENDING = {"status": "pending", "attempt": 0, "result": None, "error": None, "finished_at": None}


@pytest.mark.parametrize(
    ("task", "logged"), [(clean_up, ["cancelled", "cleaned up"]), (fail_because_of_it, ["cancelled"])]
)
async def test_a_coroutine_that_does_not_finish_in_time_is_cancelled_and_given_back(
    task: Callable[[Runs], Coroutine[Any, Any, None]],
    logged: list[str],
    path: Path,
    queue: TaskQueue,
    backend: SQLiteBackend,
    runs: Runs,
) -> None:
    """It gets CancelledError, unwinds, and its row is pending and due at once with the attempt unspent."""
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        await queue.enqueue(task, runs)
        await here.arrived()
        await worker.stop()
        assert runs.lines() == logged
        assert live(path) == [PENDING]
        reservation = await backend.reserve(1, lease=30, alone=True)
        assert [task.attempt for task in reservation.tasks] == [1]


async def test_giving_back_leaves_earlier_attempts_spent(path: Path, queue: TaskQueue, runs: Runs) -> None:
    """A task whose first worker died has attempt 1 again after its second worker gave it back."""
    with gate() as here:
        await queue.enqueue(wait_at, "gate")
        async with connected(SQLiteBackend(path)) as dead:
            assert len((await dead.reserve(1, lease=30, alone=True)).tasks) == 1
        worker = Worker(far_ahead(path), shutdown_timeout=END_AT_ONCE)
        await worker.start()
        await here.arrived()
        assert [row["attempt"] for row in rows(path)] == [2]
        await worker.stop()
        assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 1)]


async def test_what_is_finished_before_the_timeout_is_recorded(
    path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """stop() with time left waits, and nothing is cancelled."""
    worker = Worker(backend, shutdown_timeout=DEADLINE_SECONDS)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(wait_at, "gate", "in time")
        await here.arrived()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        here.open()
        await stopping
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == "in time"


async def test_a_value_that_is_returned_upon_cancellation_is_recorded(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """A cancelled task that finishes all the same is a success, and is not run again."""
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(finish_in_spite_of_it, runs)
        await here.arrived()
        await worker.stop()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.value, result.attempt) == ("finished", 1)
    assert runs.lines() == ["cancelled"]


async def test_a_coroutine_that_ignores_its_cancellation_does_not_keep_stop(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is given back, stop() returns while it runs, and its late outcome changes nothing."""
    caplog.set_level(logging.INFO, "sitq.worker")
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(ignore_it, runs)
        await here.arrived()
        before = asyncio.all_tasks()
        await worker.stop()
        assert runs.lines() == ["cancelled"]
        assert live(path) == [PENDING]
        here.open()
        (still_running,) = [
            task
            for task in before
            if not task.done() and task.get_coro().__qualname__.endswith("._run")  # type: ignore[union-attr]
        ]
        await still_running
    assert runs.lines() == ["cancelled", "late"]
    assert live(path) == [PENDING]
    said = [record for record in caplog.records if task_id in record.getMessage()]
    assert [record.levelno for record in said] == [logging.INFO, logging.WARNING]
    assert "started" in said[0].getMessage()
    assert "given back" in said[1].getMessage()


@pytest.mark.parametrize("rerun", ["before", "after"])
async def test_a_plain_function_is_given_back_and_its_late_result_changes_nothing(
    rerun: str, path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """stop() returns while the thread goes on, the log says so, and only another worker's run is recorded."""
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(block_at, "gate", "late", runs)
        await here.arrived()
        threads = {thread for thread in threading.enumerate() if thread.name.startswith("sitq-worker")}
        await worker.stop()
        assert live(path) == [PENDING]
        said = [record for record in caplog.records if task_id in record.getMessage()]
        assert [record.levelno for record in said] == [logging.WARNING]
        assert "thread goes on" in said[0].getMessage()
        drained = None
        if rerun == "before":
            drained = asyncio.create_task(Worker(backend).drain())
            await here.arrived()
        here.open()
        for thread in threads:
            await asyncio.to_thread(thread.join, DEADLINE_SECONDS)
            assert not thread.is_alive()
        if drained is None:
            assert live(path) == [PENDING]
            drained = asyncio.create_task(Worker(backend).drain())
        assert await drained == 1
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.value, result.attempt) == ("success", "late", 1)
    assert runs.lines() == ["late", "late"]


async def test_only_what_is_late_is_given_back(path: Path, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Of a finished, a blocked and a waiting task the first is recorded and the others are given back."""
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        await queue.get_result(await queue.enqueue(add, 1, 2))
        await queue.enqueue(wait_at, "gate")
        await queue.enqueue(block_at, "gate")
        await here.arrived(2)
        await worker.stop()
        assert [(row["status"], row["attempt"]) for row in live(path)] == [
            ("success", 1),
            ("pending", 0),
            ("pending", 0),
        ]


async def test_a_worker_that_gave_back_can_be_started_again(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """The same worker takes what it gave back, while its old thread still runs, and has all its slots."""
    worker = Worker(backend, max_concurrency=1, shutdown_timeout=END_AT_ONCE)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(block_at, "gate", "value", runs)
        await here.arrived()
        await worker.stop()
        await worker.start()
        await here.arrived()
        here.open()
        result = await queue.get_result(task_id)
        assert result is not None
        assert (result.value, result.attempt) == ("value", 1)
        await worker.stop()
    assert runs.lines() == ["value", "value"]


class RefusesToRelease(SQLiteBackend):
    """Takes nothing back the first times."""

    def __init__(self, path: Path, refusals: int) -> None:
        super().__init__(path)
        self._refusals = refusals

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Refuses, or releases."""
        if self._refusals:
            self._refusals -= 1
            raise BackendUnavailableError("not now")
        return await super().release(tasks)


@pytest.mark.parametrize(("refusals", "row"), [(1, ("pending", 0)), (2, ("pending", 0)), (3, ("in_progress", 1))])
async def test_giving_back_is_tried_three_times_and_then_left_to_the_lease(
    refusals: int, row: tuple[str, int], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is locked for a while gets its tasks back, and stop() returns in any case and says what it left."""
    backend = RefusesToRelease(path, refusals)
    worker = Worker(backend, shutdown_timeout=END_AT_ONCE)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await worker.start()
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            await worker.stop()
    assert [(found["status"], found["attempt"]) for found in live(path)] == [row]
    said = [record for record in caplog.records if "not now" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * refusals
    assert ("their leases will end" in said[-1].getMessage()) is (refusals == 3)


class TellsOfRecording(SQLiteBackend):
    """Says when an outcome is about to be recorded."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recording = asyncio.Event()

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Says so, and records."""
        self.recording.set()
        return await super().mark_success(outcomes)


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> threading.Thread:
    """Starts ``asyncio.run(main())`` in a thread."""
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    return thread


def test_a_loop_that_ends_without_stop_records_what_has_finished(path: Path, runs: Runs) -> None:
    """Where asyncio.run() cancels everything while an outcome waits for the file, it ends, and the outcome is kept."""
    leaving, locked = threading.Event(), threading.Event()

    async def main() -> None:
        backend = TellsOfRecording(path)
        queue = TaskQueue(backend)
        await Worker(backend).start()
        with gate() as here:
            await queue.enqueue(wait_at, "gate", "kept", runs)
            await here.arrived()
            leaving.set()
            assert await asyncio.to_thread(locked.wait, DEADLINE_SECONDS)
        await backend.recording.wait()
        leaving.set()

    thread = run_loop(main)
    assert leaving.wait(DEADLINE_SECONDS)
    leaving.clear()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    locked.set()
    assert leaving.wait(DEADLINE_SECONDS)
    connection.execute("ROLLBACK")
    connection.close()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 1)]
    assert runs.lines() == ["kept"]


class RefusesOnce(SQLiteBackend):
    """Does not take the first outcome, and says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refused = asyncio.Event()

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Refuses, then records."""
        if not self.refused.is_set():
            self.refused.set()
            raise BackendUnavailableError("not yet")
        return await super().mark_success(outcomes)


def test_a_loop_that_ends_without_stop_tries_a_refused_outcome_once_more(
    path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where asyncio.run() cancels everything between two tries to record an outcome, it is recorded at the end."""
    monkeypatch.setattr("sitq.worker.recorder.FIRST_DELAY_SECONDS", 3600.0)

    async def main() -> None:
        backend = RefusesOnce(path)
        await Worker(backend).start()
        await TaskQueue(backend).enqueue(log_async, runs, "kept")
        await backend.refused.wait()

    thread = run_loop(main)
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 1)]
    assert runs.lines() == ["kept"]


class HangsOnce(SQLiteBackend):
    """Does not answer to the first failure, and says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hangs = asyncio.Event()

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Hangs, then records."""
        if not self.hangs.is_set():
            self.hangs.set()
            await asyncio.Event().wait()
        return await super().mark_failure(outcomes)


def test_a_loop_that_ends_while_a_failure_is_recorded_ends_and_keeps_it(path: Path) -> None:
    """The worker's end, which waits for the recording, is told that it was cancelled and has it done again."""

    async def main() -> None:
        backend = HangsOnce(path)
        await Worker(backend).start()
        await TaskQueue(backend).enqueue("tests.support:add", 1, "two")
        await backend.hangs.wait()

    thread = run_loop(main)
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("failed", 1)]


@pytest.mark.parametrize("task", [wait_at, block_at])
@pytest.mark.parametrize("begin", ["start", "run", "drain", "stop"])
def test_a_loop_that_ends_without_stop_abandons_what_runs(
    task: Callable[..., Any], begin: str, path: Path, runs: Runs
) -> None:
    """Where asyncio.run() cancels everything while a task runs, that is a death, unless stop() was called before."""
    beginning: list[asyncio.Task[Any]] = []
    with contextlib.ExitStack() as open_at_the_end:

        async def main() -> None:
            here = open_at_the_end.enter_context(gate())
            async with TaskQueue(SQLiteBackend(path)) as queue:
                await queue.enqueue(task, "gate", 1, runs)
            worker = Worker(SQLiteBackend(path))
            beginning.append(asyncio.create_task(worker.start() if begin == "stop" else getattr(worker, begin)()))
            await here.arrived()
            if begin == "stop":
                beginning.append(asyncio.create_task(worker.stop()))
                await asyncio.sleep(0)

        thread = run_loop(main)
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
        assert live(path) == [PENDING if begin == "stop" else PENDING | {"status": "in_progress", "attempt": 1}]
    assert runs.lines() == ["1"]


async def test_a_task_that_was_given_back_knows_its_attempt(path: Path, queue: TaskQueue, runs: Runs) -> None:
    """What was released is run as attempt 1, what was abandoned as attempt 2."""
    async with connected(SQLiteBackend(path)) as backend:
        await queue.enqueue(log_attempt, runs)
        await backend.release((await backend.reserve(1, lease=30, alone=True)).tasks)
        assert await Worker(backend).drain() == 1
        await queue.enqueue(log_attempt, runs)
        await backend.reserve(1, lease=30, alone=True)
    assert await Worker(SQLiteBackend(path, clock=lambda: time.time() + 31)).drain() == 1
    assert runs.lines() == ["1", "2"]
