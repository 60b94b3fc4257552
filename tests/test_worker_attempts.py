"""Attempts are bounded, and the last one runs alone: no task is failed for what its neighbours did."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import NewTask, SQLiteBackend, TaskId, TaskQueue, Worker
from sitq.models import Outcome, Reservation
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows
from tests.worker_tasks import TellingBackend, block_at, connected, far_ahead, gate, log_attempt, pass_by, wait_at

NEVER_SECONDS = 3600.0


async def abandon(path: Path, times: int) -> None:
    """Lets as many workers take every due task and die, as far as the file can tell."""
    for n in range(times):
        async with connected(far_ahead(path, 100.0 * n)) as dead:
            while (await dead.reserve(100, lease=30, alone=True)).tasks:
                pass


async def chain(name: str, runs: Runs) -> None:
    """Enqueues itself again until the gate is open."""
    runs.add("chain")
    if not pass_by(name):
        await queues[-1].enqueue(chain, name, runs)


queues: list[TaskQueue] = []
"""Where :func:`chain` enqueues."""


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_task_whose_workers_died_too_often_is_failed(
    attempts: int, path: Path, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """It is failed with an error that says so and gives the number, has no traceback, and its waiter is woken."""
    backend = far_ahead(path)
    async with TaskQueue(SQLiteBackend(path), max_attempts=attempts) as queue:
        task_id = await queue.enqueue(log_async, runs, "ran")
        await abandon(path, attempts)
        waiting = asyncio.create_task(queue.get_result(task_id))
        assert await Worker(backend).drain() == 0
        result = await waiting
    assert result is not None
    assert (result.status, result.attempt, result.traceback) == ("failed", attempts, None)
    assert str(result.error).startswith(f"WorkerDiedError: each of {attempts} attempts ended with the death of its")
    assert result.finished_at is not None
    assert runs.lines() == []
    said = [record for record in caplog.records if task_id in record.getMessage()]
    assert [record.levelno for record in said] == [logging.ERROR]


@pytest.mark.parametrize("attempts", [2, 5])
async def test_the_last_attempt_still_succeeds(attempts: int, path: Path, runs: Runs) -> None:
    """A task that was abandoned on every attempt but the last runs, knows its attempt, and succeeds."""
    backend = far_ahead(path)
    async with TaskQueue(SQLiteBackend(path), max_attempts=attempts) as queue:
        task_id = await queue.enqueue(log_attempt, runs)
        await abandon(path, attempts - 1)
        assert await Worker(backend).drain() == 1
        result = await queue.get_result(task_id)
    assert result is not None
    assert (result.value, result.attempt) == (attempts, attempts)
    assert runs.lines() == [str(attempts)]


async def test_a_last_attempt_that_raises_is_failed_with_what_it_raised(path: Path) -> None:
    """Its error is its own and not that of a burial."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=1) as queue:
        task_id = await queue.enqueue("tests.support:multiply", 1)
        await Worker(SQLiteBackend(path)).drain()
        result = await queue.get_result(task_id)
    assert result is not None
    assert (result.error or "").startswith("TypeError")


async def test_a_busy_worker_buries_what_is_spent(path: Path) -> None:
    """A worker that holds another task fails the task whose workers died, and is not woken for it again."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=1) as queue:
        spent = await queue.enqueue(add, 1, 2)
        await abandon(path, 1)
        backend = far_ahead(path)
        async with TaskQueue(backend) as other, Worker(backend):
            with gate() as here:
                await other.enqueue(wait_at, "gate", eta=None)
                result = await queue.get_result(spent, DEADLINE_SECONDS)
                await here.arrived()
    assert result is not None
    assert result.status == "failed"


async def test_a_drain_buries_however_many_are_spent(path: Path) -> None:
    """One reservation buries a hundred; a drain does not end before the others are."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([NewTask(str(n), b"", max_attempts=1) for n in range(150)])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE tasks SET status = 'in_progress', attempt = 1, claim = id")
        assert await Worker(backend).drain() == 0
    assert {row["status"] for row in rows(path)} == {"failed"}


@pytest.mark.parametrize("task", [wait_at, block_at])
async def test_a_last_attempt_runs_alone_in_its_worker(
    task: Callable[..., Any], path: Path, backend: SQLiteBackend
) -> None:
    """While it runs its worker takes nothing else, and another worker may; afterwards the first one goes on."""
    async with TaskQueue(backend, max_attempts=1) as last, TaskQueue(backend) as queue, Worker(backend):
        with gate() as here:
            last_id = await last.enqueue(task, "gate")
            await here.arrived()
            ids = await queue.enqueue_many(partial(add, n, n) for n in range(6))
            for task_id in ids[:3]:
                assert await queue.get_result(task_id, timeout=0) is None
            assert [row["status"] for row in rows(path)] == ["in_progress"] + ["pending"] * 6
            other = Worker(SQLiteBackend(path), max_concurrency=2)
            assert await other.drain() == 6
            waiting = await queue.enqueue(add, 3, 4)
        result, after = await last.get_result(last_id), await queue.get_result(waiting)
    assert result is not None
    assert result.status == "success"
    assert after is not None
    assert after.value == 7


@pytest.mark.parametrize("slots", [4, 32, 100])
async def test_last_attempts_never_have_neighbours_in_a_saturated_worker(
    slots: int, path: Path, backend: SQLiteBackend
) -> None:
    """In a queue of many short tasks with last attempts among them, no commit shows one beside another task."""
    async with TaskQueue(backend, max_attempts=1) as last, TaskQueue(backend) as queue:
        for n in range(12):
            await queue.enqueue_many(partial(add, m, m) for m in range(slots + n))
            await last.enqueue(add, n, n)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE seen (held INTEGER, last INTEGER)")
            connection.execute(
                "CREATE TRIGGER see AFTER UPDATE ON tasks BEGIN INSERT INTO seen SELECT count(*), "
                "total(max_attempts = 1) FROM tasks INDEXED BY tasks_by_status WHERE status = 'in_progress'; END"
            )
            connection.execute("CREATE INDEX tasks_by_status ON tasks (status)")
        assert await Worker(backend, max_concurrency=slots).drain() == 12 * slots + sum(range(12)) + 12
    assert rows(path, "SELECT DISTINCT held FROM seen WHERE last > 0") == [{"held": 1}]
    assert rows(path, "SELECT max(held) AS most FROM seen")[0]["most"] > 1


async def test_with_one_attempt_only_each_task_runs_alone(path: Path) -> None:
    """Of tasks with ``max_attempts=1`` a worker never holds two, and two workers hold one each."""
    first, second = TellingBackend(path), TellingBackend(path)
    async with TaskQueue(first, max_attempts=1) as queue:
        with gate() as here:
            ids = await queue.enqueue_many(partial(wait_at, "gate", n) for n in range(4))
            async with Worker(first), Worker(second):
                await here.arrived(2)
                await first.looks(1)
                assert here.arrivals() == 0
                assert [row["status"] for row in rows(path)].count("in_progress") == 2
                here.open()
                results = [await queue.get_result(task_id, DEADLINE_SECONDS) for task_id in ids]
    assert [result and (result.value, result.attempt) for result in results] == [(n, 1) for n in range(4)]


async def test_a_busy_worker_makes_room_for_a_last_attempt(backend: SQLiteBackend, runs: Runs) -> None:
    """With ordinary tasks that never cease, the only worker runs a last attempt, and then goes on with them."""
    async with TaskQueue(backend, max_attempts=1) as last, TaskQueue(backend) as queue:
        queues[:] = [queue]
        # A lease that is longer than the machine has been up, for room is made by the monotonic clock.
        async with Worker(backend, max_concurrency=3, lease=1e9, poll_interval=NEVER_SECONDS):
            with gate() as here:
                await queue.enqueue_many(partial(chain, "gate", runs) for _ in range(5))
                await here.arrived(10)
                result = await last.get_result(await last.enqueue(log_async, runs, "last"), DEADLINE_SECONDS)
                assert result is not None
                assert result.status == "success"
                await here.arrived(100)
    lines = runs.lines()
    assert lines.count("last") == 1
    assert "chain" in lines[lines.index("last") :]


@pytest.mark.parametrize(("slots", "count"), [(1, 0), (5, 1)])
async def test_a_worker_says_once_that_last_attempts_run_alone(
    slots: int, count: int, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for each run of a worker that has several slots tells what ``max_attempts=1`` means."""
    worker = Worker(backend, max_concurrency=slots)
    async with TaskQueue(backend, max_attempts=1) as last:
        for _ in range(2):
            await last.enqueue_many(partial(add, n, n) for n in range(10))
            assert await worker.drain() == 10
    said = [record for record in caplog.records if "max_attempts=1" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * 2 * count


class SeesLastAttempts(SQLiteBackend):
    """Says when a reservation has told its worker of a last attempt that waits until it is empty."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.seen = asyncio.Event()

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Reserves, and says so."""
        reservation = await super().reserve(limit, lease=lease, alone=alone)
        if reservation.last_attempt_waiting:
            self.seen.set()
        return reservation

    async def saw(self) -> None:
        """Returns when a worker knows of a last attempt."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.seen.wait()


async def test_a_worker_that_becomes_empty_looks_for_the_last_attempt_at_once(runs: Runs) -> None:
    """A last attempt becomes due beside a task; the task ends, nobody enqueues anything, and it is run."""
    backend = SeesLastAttempts(":memory:")  # on a file, an outcome of its own wakes a worker as well
    async with (
        TaskQueue(backend, max_attempts=1) as last,
        TaskQueue(backend) as queue,
        Worker(backend, lease=1e9, poll_interval=NEVER_SECONDS),
    ):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            last_id = await last.enqueue(log_async, runs, "last", eta=datetime.now(UTC) + timedelta(seconds=0.2))
            await backend.saw()
        assert await last.get_result(last_id, DEADLINE_SECONDS) is not None


async def test_what_waited_with_a_last_attempt_is_taken_after_it(runs: Runs) -> None:
    """A worker reserves again when a last attempt has ended, though nothing was enqueued meanwhile."""
    backend = SeesLastAttempts(":memory:")  # on a file, an outcome of its own wakes a worker as well
    async with (
        TaskQueue(backend, max_attempts=1) as last,
        TaskQueue(backend) as queue,
        Worker(backend, lease=1e9, poll_interval=NEVER_SECONDS),
    ):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            await last.enqueue(log_async, runs, "last")
            await backend.saw()
            behind = await queue.enqueue(log_async, runs, "behind")
        assert await queue.get_result(behind, DEADLINE_SECONDS) is not None
    assert runs.lines() == ["last", "behind"]


async def test_a_worker_has_all_its_slots_again_after_a_last_attempt(path: Path, runs: Runs) -> None:
    """Once it has made room for a last attempt and run it, it takes a task beside another, its lease not over."""
    backend = SeesLastAttempts(path)
    async with (
        TaskQueue(backend, max_attempts=1) as last,
        TaskQueue(backend) as queue,
        # A lease that is longer than the machine has been up, for room is made by the monotonic clock.
        Worker(backend, lease=1e9, poll_interval=NEVER_SECONDS),
    ):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            last_id = await last.enqueue(log_async, runs, "last")
            await backend.saw()
        assert await last.get_result(last_id, DEADLINE_SECONDS) is not None
        with gate() as here:
            for _ in range(2):
                await queue.enqueue(wait_at, "gate")
                await here.arrived()


async def test_a_long_task_in_the_way_of_a_last_attempt_does_not_stop_the_service(
    path: Path, backend: SQLiteBackend, runs: Runs
) -> None:
    """The worker goes on taking ordinary tasks, long before a lease is over; the last attempt runs when it can."""
    async with (
        TaskQueue(backend, max_attempts=1) as last,
        TaskQueue(backend) as queue,
        Worker(backend, lease=NEVER_SECONDS, poll_interval=NEVER_SECONDS),
    ):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            last_id = await last.enqueue(log_async, runs, "last")
            for n in range(3):
                ordinary = await queue.enqueue(log_async, runs, n)
                result = await queue.get_result(ordinary, DEADLINE_SECONDS)
                assert result is not None
                assert result.status == "success"
            assert [row["status"] for row in rows(path) if row["task_id"] == last_id] == ["pending"]
        result = await last.get_result(last_id, DEADLINE_SECONDS)
    assert result is not None
    assert result.status == "success"
    assert runs.lines() == ["0", "1", "2", "last"]


async def enqueue_last(path: Path, runs: Runs, count: int) -> None:
    """Enqueues itself with one attempt only, until ``count`` is 0."""
    runs.add(count)
    if count:
        async with TaskQueue(SQLiteBackend(path), max_attempts=1) as last:
            await last.enqueue(enqueue_last, path, runs, count - 1)


@pytest.mark.parametrize("slots", [1, 10, 100])
async def test_drain_runs_a_last_attempt_that_its_tasks_enqueue(
    slots: int, path: Path, backend: SQLiteBackend, runs: Runs
) -> None:
    """A task that enqueues one with a single attempt, and so on, does not end a drain() before all are run."""
    async with TaskQueue(backend) as queue:
        await queue.enqueue(enqueue_last, path, runs, 3)
        assert await Worker(backend, max_concurrency=slots).drain() == 4
    assert runs.lines() == ["3", "2", "1", "0"]


async def test_a_last_attempt_takes_its_turn_by_due_time(path: Path, runs: Runs) -> None:
    """Last attempts and ordinary tasks are run in the order in which they became due."""
    start = datetime.now(UTC)
    async with TaskQueue(SQLiteBackend(path), max_attempts=1) as last, TaskQueue(SQLiteBackend(path)) as queue:
        for n, by in enumerate([queue, last, last, queue, queue, last]):
            await by.enqueue(log_async, runs, n, eta=start + timedelta(seconds=n + 1))
        assert await Worker(far_ahead(path), max_concurrency=1).drain() == 6
    assert runs.lines() == [str(n) for n in range(6)]


async def test_a_burial_is_final(path: Path, runs: Runs) -> None:
    """Neither its last holder's outcome nor a release brings a buried task back."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=1) as queue:
        task_id: TaskId[None] = await queue.enqueue(log_async, runs, "ran")
        async with connected(SQLiteBackend(path)) as dead:
            (held,) = (await dead.reserve(1, lease=30, alone=True)).tasks
            assert await Worker(far_ahead(path)).drain() == 0
            before = rows(path)
            assert await dead.mark_success([Outcome(held, b"late")]) == [held]
            assert await dead.mark_failure([Outcome(held, error="late")]) == [held]
            assert await dead.release([held]) == [held]
            assert await dead.renew([held], lease=30) == [held]
        assert rows(path) == before
        result = await queue.get_result(task_id)
    assert result is not None
    assert result.status == "failed"
