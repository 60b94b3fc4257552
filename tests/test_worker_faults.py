"""A live worker on a busy or sick file: it lives, it backs off, it loses nothing, and nothing is recorded wrongly."""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, BackendUnavailableError, ReservedTask, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome, Reservation
from tests.faults import (
    Clock,
    assert_healthy,
    damaged,
    full_disk,
    lasting,
    moved_away,
    no_free_page,
    outside,
    read_only,
    run_until,
    write_lock,
)
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, log_plain, rows, until
from tests.worker_tasks import TellingBackend

BUSY_SECONDS = 0.05
HOUR = 3600.0
FIRST_DELAY_SECONDS = 0.05

type Fault = Callable[[SQLiteBackend, Path], AbstractAsyncContextManager[None]]

FAULTS: dict[str, Fault] = {
    "locked": lasting(write_lock),
    "disk full": lasting(full_disk),
    "moved away": lasting(moved_away),
    "read-only": lambda backend, path: read_only(backend),
    "damaged header": lasting(lambda path: damaged(path, page_of=None)),
    "damaged page": lasting(lambda path: damaged(path, page_of="tasks")),
}


class Warnings:
    """The warnings of the worker so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self, text: str) -> list[logging.LogRecord]:
        """Returns those that hold ``text``."""
        return [
            record
            for record in self._caplog.records
            if record.name == "sitq.worker" and record.levelno >= logging.WARNING and text in record.getMessage()
        ]

    def are_backing_off(self, text: str) -> bool:
        """Whether each of them came later than the one before it by twice as much, the work not counted."""
        times = [record.created for record in self(text)]
        waits = [FIRST_DELAY_SECONDS * 2**n for n in range(len(times) - 1)]
        return all(after - before >= 0.9 * wait for before, after, wait in zip(times, times[1:], waits, strict=False))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    """The warnings of the worker so far."""
    return Warnings(caplog)


@pytest.fixture
def sick(path: Path) -> SQLiteBackend:
    """A backend that gives up soon."""
    return SQLiteBackend(path, busy_timeout=BUSY_SECONDS)


async def succeed(queue: TaskQueue, task_id: str) -> None:
    """Asserts that a task succeeds, on its first attempt."""
    result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert result is not None
    assert (result.status, result.attempt, result.error) == ("success", 1, None)


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_outcome_is_kept_until_the_file_takes_it(
    sick: SQLiteBackend, path: Path, runs: Runs, warnings: Warnings, fault: str
) -> None:
    """A task that ends while the file is sick has run once, and is a success when the file is well again."""
    gate = path.with_suffix(".gate")
    async with TaskQueue(sick) as queue, Worker(sick, max_concurrency=2, lease=HOUR) as worker:
        held = await queue.enqueue(run_until, runs, "held", gate)
        await until(runs.lines)
        async with FAULTS[fault](sick, path):
            gate.touch()
            await until(lambda: len(warnings("recording 1 outcomes failed")) >= 3)
        await succeed(queue, held)
        await succeed(queue, await queue.enqueue(log_async, runs, "next"))
        await worker.stop()
    assert warnings.are_backing_off("recording 1 outcomes failed")
    assert runs.lines() == ["held", "next"]
    assert_healthy(path)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_worker_that_cannot_reserve_backs_off_and_goes_on_later(
    path: Path, runs: Runs, warnings: Warnings, fault: str
) -> None:
    """Tasks that become due while the file is sick are each run once when it is well again."""
    clock = Clock()
    sick = SQLiteBackend(path, busy_timeout=BUSY_SECONDS, clock=clock)
    async with TaskQueue(sick) as queue:
        eta = datetime.fromtimestamp(clock.now + HOUR, UTC)
        later = [await queue.enqueue(log_plain, runs, n, eta=eta) for n in range(5)]
        async with Worker(sick, poll_interval=0.05):
            async with FAULTS[fault](sick, path):
                clock.now += 2 * HOUR
                await until(lambda: len(warnings("reserving failed")) >= 3)
            for task_id in later:
                await succeed(queue, task_id)
    assert warnings.are_backing_off("reserving failed")
    assert sorted(runs.lines()) == ["0", "1", "2", "3", "4"]
    assert_healthy(path)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_lease_is_renewed_as_soon_as_the_file_is_well_again(
    sick: SQLiteBackend, path: Path, runs: Runs, warnings: Warnings, fault: str
) -> None:
    """Renewals that fail are said and tried again, and the task goes on undisturbed."""
    gate = path.with_suffix(".gate")

    def lease_end() -> int:
        return int(rows(path, "SELECT available_at FROM tasks")[0]["available_at"])

    async with TaskQueue(sick) as queue, Worker(sick, max_concurrency=1, lease=0.5):
        held = await queue.enqueue(run_until, runs, "held", gate)
        await until(runs.lines)
        async with FAULTS[fault](sick, path):
            await until(lambda: len(warnings("renewing")) >= 2)
        before = lease_end()
        await until(lambda: lease_end() > before)
        gate.touch()
        await succeed(queue, held)
    assert runs.lines() == ["held"]
    assert warnings("lost its lease") == []


async def test_a_result_that_finds_no_free_page_is_kept_too(
    sick: SQLiteBackend, path: Path, runs: Runs, warnings: Warnings
) -> None:
    """A disk that is full by SQLite's own account makes no failure of a success."""
    gate = path.with_suffix(".gate")
    async with TaskQueue(sick) as queue, Worker(sick, lease=HOUR):
        held = await queue.enqueue(run_until, runs, "held" * 10_000, gate)
        await until(runs.lines)
        async with no_free_page(sick):
            gate.touch()
            await until(lambda: len(warnings("recording 1 outcomes failed")) >= 2)
            assert "disk is full" in warnings("recording")[0].getMessage()
        await succeed(queue, held)
    assert len(runs.lines()) == 1


async def test_a_worker_survives_its_file(sick: SQLiteBackend, path: Path, runs: Runs, warnings: Warnings) -> None:
    """If the file was deleted for good, the worker says so, waits without spinning, and can be stopped."""
    gate = path.with_suffix(".gate")
    async with TaskQueue(sick) as queue:
        worker = Worker(sick, lease=0.5, shutdown_timeout=0.2)
        await worker.start()
        await queue.enqueue(run_until, runs, "held", gate)
        await until(runs.lines)
        os.unlink(path)
        gate.touch()
        await until(lambda: len(warnings("recording 1 outcomes failed")) >= 3)
        await until(lambda: len(warnings("reserving failed")) >= 1)
        with pytest.raises(BackendError):
            await queue.enqueue(add, 1, 2)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await worker.stop()
    assert warnings.are_backing_off("recording 1 outcomes failed")
    assert warnings("deleted or moved")
    assert warnings("will run again")
    assert runs.lines() == ["held"]
    assert not os.path.exists(path)  # noqa: ASYNC240


class AnswersNot(SQLiteBackend):
    """Records outcomes, and the first time its answer is lost on the way."""

    calls = 0

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records, and may fail after the commit."""
        self.calls += 1
        not_held = await super().mark_success(outcomes)
        if self.calls == 1:
            raise BackendUnavailableError("no answer")
        return not_held


async def test_an_outcome_that_was_recorded_but_not_heard_counts(path: Path, runs: Runs, warnings: Warnings) -> None:
    """The worker tries again and does not learn that the task is not held: it is finished, and has run once."""
    backend = AnswersNot(path)
    async with TaskQueue(backend) as queue, Worker(backend, lease=HOUR) as worker:
        await succeed(queue, await queue.enqueue(log_async, runs, "once"))
        await worker.stop()
    assert backend.calls == 2
    assert runs.lines() == ["once"]
    assert len(warnings("recording 1 outcomes failed")) == len(warnings("")) == 1


class FailsOnce(SQLiteBackend):
    """Its third reservation fails."""

    reservations = 0

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Counts."""
        self.reservations += 1
        if self.reservations == 3:
            raise BackendUnavailableError("no")
        return await super().reserve(limit, lease=lease, alone=alone)


async def test_a_drain_goes_no_further_than_the_first_error(path: Path) -> None:
    """What comes with a reservation beside the one that failed is given back, and the error is raised."""
    backend = FailsOnce(path)
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many(partial(add, n, n) for n in range(5000))
        with pytest.raises(BackendUnavailableError):
            await Worker(backend, max_concurrency=100).drain()
        assert backend.reservations <= 5
        found = [row["status"] for row in rows(path)]
        assert set(found) == {"pending", "success"}
        assert found.count("pending") > 4000
        assert await Worker(backend, max_concurrency=100).drain() == found.count("pending")


async def test_a_drain_of_a_sick_file_ends_with_the_error(sick: SQLiteBackend, path: Path, runs: Runs) -> None:
    """It does not wait for better times, and what it could not take is run by the next one."""
    async with TaskQueue(sick) as queue:
        await queue.enqueue(log_async, runs, 1)
        with write_lock(path), pytest.raises(BackendError):
            await Worker(sick).drain()
        assert await Worker(sick).drain() == 1
    assert runs.lines() == ["1"]


@pytest.mark.parametrize("fault", ["moved away", "damaged header", "locked"])
async def test_a_waiter_gets_an_answer_from_a_sick_file(sick: SQLiteBackend, path: Path, fault: str) -> None:
    """Whoever waits for a result when the file falls sick gets the error or the result, not silence."""
    async with TaskQueue(sick) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        waiting = asyncio.ensure_future(queue.get_result(task_id))
        await asyncio.sleep(0)
        async with FAULTS[fault](sick, path):
            if fault != "locked":  # nothing that a reader would notice
                async with asyncio.timeout(DEADLINE_SECONDS):
                    with pytest.raises(BackendError):
                        await waiting
        if fault == "locked":
            assert await Worker(sick).drain() == 1
            result = await waiting
            assert result is not None
            assert result.value == 3


class Turns:
    """Counts the turns of the running event loop from now on."""

    def __init__(self) -> None:
        self.count = 0
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select = selector.select

        def counted(timeout: float | None) -> Any:
            self.count += 1
            return select(timeout)

        selector.select = counted


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_worker_that_waits_does_not_spin(path: Path, runs: Runs, slots: int) -> None:
    """With all slots taken its loop stands still, although it polls; with one free it turns for reservations only."""
    telling, turns = TellingBackend(path), Turns()
    async with (
        TaskQueue(telling) as queue,
        Worker(telling, max_concurrency=slots, poll_interval=0.02, lease=0.4, shutdown_timeout=0),
    ):
        await queue.enqueue(asyncio.Event().wait)
        await queue.enqueue(log_async, runs, "second")
        await until(lambda: len(rows(path, "SELECT 1 FROM tasks WHERE status = 'pending'")) == 2 - slots)
        await asyncio.to_thread(telling.renewals, 2)
        looks, before = len(telling.limits), turns.count
        await asyncio.to_thread(telling.renewals, 4)  # several poll intervals
        looks, taken = len(telling.limits) - looks, turns.count - before
    assert (looks > 0) == (slots > 1)
    assert taken <= 20 * (1 + looks)
    assert runs.lines() == ["second"] * (slots - 1)


@pytest.mark.parametrize(
    ("status", "finished_at"), [("paused", None), ("", None), ("success", None), ("paused", 1), ("pending", 1)]
)
async def test_a_row_with_a_status_of_anothers_making_ends(
    path: Path, runs: Runs, status: str, finished_at: int | None
) -> None:
    """The worker lives, the other tasks are run once, and whoever asks for the strange one gets an answer."""
    backend = SQLiteBackend(path, retention=None)
    async with TaskQueue(backend) as queue:
        strange = await queue.enqueue(log_plain, runs, "strange")
        others = [await queue.enqueue(log_async, runs, n) for n in range(5)]
        with outside(path) as connection:
            connection.execute(
                "UPDATE tasks SET status = ?, finished_at = ? WHERE task_id = ?", (status, finished_at, strange)
            )
        async with Worker(backend, max_concurrency=3):
            for task_id in others:
                await succeed(queue, task_id)
            if finished_at is None:
                await succeed(queue, strange)
            else:
                with pytest.raises(BackendError, match=strange):
                    await queue.get_result(strange)
    lines = runs.count()
    assert all(lines[str(n)] == 1 for n in range(5))
    assert lines["strange"] == (finished_at is None)


NULLABLE = ["name", "format", "payload", "max_attempts", "attempt", "available_at", "enqueued_at", "status"]


@pytest.mark.parametrize("column", NULLABLE)
async def test_a_null_where_none_belongs_does_not_stop_the_neighbours(path: Path, runs: Runs, column: str) -> None:
    """The file forbids it, and a file that was tampered with does not stop a worker either."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        strange = await queue.enqueue(log_plain, runs, "strange")
        with outside(path) as connection:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"UPDATE tasks SET {column} = NULL")
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'tasks'")
    with outside(path) as connection:
        connection.execute(f"UPDATE tasks SET {column} = NULL")
    async with TaskQueue(backend) as queue:
        others = [await queue.enqueue(log_async, runs, n) for n in range(5)]
        async with Worker(backend, max_concurrency=3):
            for task_id in others:
                await succeed(queue, task_id)
            with contextlib.suppress(BackendError):
                await queue.get_result(strange, timeout=0.1)
    assert sorted(line for line in runs.lines() if line != "strange") == ["0", "1", "2", "3", "4"]


async def test_a_watch_that_raises_strands_nothing(path: Path, queue: TaskQueue) -> None:
    """What was reserved just before is given back, and the worker ends with the error."""

    class NoWatch(SQLiteBackend):
        def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Any:
            raise BackendError("no watch")

    await queue.enqueue_many([partial(add, 1, 2)] * 3)
    worker = Worker(NoWatch(path))
    with pytest.raises(BackendError, match="no watch"):
        await worker.run()
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)] * 3


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), SystemExit(), ValueError()], ids=lambda error: type(error).__name__
)
async def test_a_backend_that_cannot_be_left_does_not_hold_up_the_stop(error: BaseException, path: Path) -> None:
    """Whatever it raises at the end of the renewal's loop."""

    class NoLeave(SQLiteBackend):
        async def leave(self) -> None:
            raise error

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with Worker(NoLeave(path)):
            pass
