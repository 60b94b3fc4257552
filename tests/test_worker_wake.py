"""A worker sleeps until there is something to do: woken by a new task, or by the moment at which one is due."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskId, TaskQueue, Worker
from tests.faults import Clock
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows
from tests.worker_tasks import TellingBackend, connected, execute, gate, wait_at

NEVER_SECONDS = 3600.0
"""A poll_interval that is over after the test's deadline: only a wake can have been the reason."""


@pytest.fixture(params=["file", "memory"])
async def telling(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[TellingBackend]:
    """An open backend that says when a worker tries to reserve."""
    async with connected(TellingBackend(path if request.param == "file" else ":memory:")) as backend:
        yield backend


@pytest.fixture
async def idle(telling: TellingBackend) -> AsyncIterator[Worker]:
    """A worker that has tried to reserve, found nothing, and sleeps."""
    async with Worker(telling, poll_interval=NEVER_SECONDS) as worker:
        await telling.looks(2)
        yield worker


async def value(queue: TaskQueue, task_id: TaskId[int]) -> int:
    """Returns the value of a task, within the deadline."""
    result = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert result is not None
    return result.unwrap()


@pytest.mark.parametrize("times", [1, 20])
async def test_a_task_of_the_same_process_wakes_an_idle_worker(
    times: int, telling: TellingBackend, idle: Worker
) -> None:
    """Each of several tasks, one after the other, is run although nobody polls."""
    async with TaskQueue(telling) as queue:
        for n in range(times):
            assert await value(queue, await queue.enqueue(add, n, n)) == 2 * n


async def test_tasks_enqueued_together_are_all_run(telling: TellingBackend, idle: Worker) -> None:
    """Concurrent callers and a batch larger than the worker wake it for all of their tasks."""
    async with TaskQueue(telling) as queue:
        many = asyncio.create_task(queue.enqueue_many(partial(add, n, 1) for n in range(50)))
        single = await asyncio.gather(*(queue.enqueue(add, n, 2) for n in range(50)))
        ids = await many
        assert [await value(queue, id_) for id_ in ids] == [n + 1 for n in range(50)]
        assert [await value(queue, id_) for id_ in single] == [n + 2 for n in range(50)]


@pytest.mark.parametrize("attempts", [(1, 1, 1), (5, 1), (1, 5), (5, 1, 5, 1)], ids=str)
async def test_last_attempts_and_others_are_all_run_by_one_wake(
    attempts: tuple[int, ...], telling: TellingBackend, idle: Worker
) -> None:
    """What a reservation leaves because a last attempt runs alone is taken when the worker is free again."""
    queues = [TaskQueue(telling, max_attempts=attempt) for attempt in attempts]
    ids = await asyncio.gather(*(queue.enqueue(add, n, n) for n, queue in enumerate(queues)))
    for n, (queue, task_id) in enumerate(zip(queues, ids, strict=True)):
        assert await value(queue, task_id) == 2 * n
        await queue.close()


async def test_a_last_attempt_is_run_when_its_worker_has_become_empty(telling: TellingBackend, idle: Worker) -> None:
    """One that has to be left, because another task is running, is taken as soon as that one has finished."""
    async with TaskQueue(telling) as queue, TaskQueue(telling, max_attempts=1) as last:
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            task_id = await last.enqueue(add, 1, 2)
            assert await last.get_result(task_id, timeout=0) is None
        assert await value(last, task_id) == 3


async def test_a_task_of_another_thread_wakes_an_idle_worker(telling: TellingBackend, idle: Worker) -> None:
    """A SyncTaskQueue on the same backend object, in a thread of its own, wakes the worker."""

    def enqueue() -> int:
        with SyncTaskQueue(telling) as queue:
            result = queue.get_result(queue.enqueue(add, 1, 2), timeout=DEADLINE_SECONDS)
            assert result is not None
            return result.unwrap()

    assert await asyncio.to_thread(enqueue) == 3


async def test_a_task_of_another_backend_object_wakes_an_idle_worker(path: Path) -> None:
    """A queue with a connection of its own on the same file wakes the worker."""
    async with connected(TellingBackend(path)) as backend, Worker(backend, poll_interval=NEVER_SECONDS):
        await backend.looks(2)
        async with TaskQueue(SQLiteBackend(path)) as queue:
            assert await value(queue, await queue.enqueue(add, 1, 2)) == 3


async def test_a_task_that_is_given_back_wakes_an_idle_worker(telling: TellingBackend, idle: Worker) -> None:
    """What another holder releases is run at once."""
    async with TaskQueue(telling) as queue:
        await idle.stop()
        task_id = await queue.enqueue(add, 1, 2)
        held = (await telling.reserve(1, lease=NEVER_SECONDS, alone=True)).tasks
        await idle.start()
        await telling.looks(3)
        await telling.release(held)
        assert await value(queue, task_id) == 3


async def test_a_worker_sleeps_until_the_next_eta(telling: TellingBackend, idle: Worker, runs: Runs) -> None:
    """Tasks a fraction of a second ahead are run in the order of their eta, none before it has come."""
    async with TaskQueue(telling) as queue:
        start = datetime.now(UTC)
        etas = [start + timedelta(milliseconds=ms) for ms in (300, 200, 250)]
        ids = [await queue.enqueue(add, n, n, eta=eta) for n, eta in enumerate(etas)]
        for n, task_id in enumerate(ids):
            assert await value(queue, task_id) == 2 * n
        results = [await queue.get_result(task_id) for task_id in ids]
    for eta, result in zip(etas, results, strict=True):
        assert result is not None
        assert result.started_at is not None
        assert result.started_at >= eta


async def test_an_earlier_eta_wakes_a_worker_that_waits_for_a_later_one(telling: TellingBackend, idle: Worker) -> None:
    """A worker that sleeps until an eta far ahead runs one that comes before it."""
    async with TaskQueue(telling) as queue:
        await queue.enqueue(add, 0, 0, eta=datetime.now(UTC) + timedelta(hours=1))
        await telling.looks(1)
        task_id = await queue.enqueue(add, 1, 1, eta=datetime.now(UTC) + timedelta(milliseconds=100))
        assert await value(queue, task_id) == 2


async def test_an_eta_that_comes_while_the_worker_is_full_is_run_after(path: Path, runs: Runs) -> None:
    """A task that becomes due while every slot is taken is run when one is free."""
    clock = Clock()
    backend = SQLiteBackend(path, clock=clock)
    async with TaskQueue(backend) as queue, Worker(backend, max_concurrency=1, poll_interval=NEVER_SECONDS):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            task_id = await queue.enqueue(log_async, runs, "due", eta=timedelta(hours=1))
            clock.now += NEVER_SECONDS
        await queue.get_result(task_id, DEADLINE_SECONDS)
    assert runs.lines() == ["due"]


async def test_a_row_that_wakes_nobody_is_found_by_the_poll(path: Path) -> None:
    """What another program moves into the present, without a word, is run after poll_interval."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(add, 1, 2, eta=datetime.now(UTC) + timedelta(days=1))
        backend = TellingBackend(path)
        async with Worker(backend, poll_interval=0.05):
            await backend.looks(2)
            execute(path, "UPDATE tasks SET available_at = enqueued_at")
            assert await value(queue, task_id) == 3


async def test_an_idle_worker_writes_nothing(path: Path) -> None:
    """Looks that find nothing leave the file as it is: no commit, and no write lock."""
    async with connected(TellingBackend(path)) as backend:
        watching = sqlite3.connect(path, isolation_level=None)
        wal = path.with_name(f"{path.name}-wal")
        watching.execute("SELECT count(*) FROM tasks").fetchall()
        before = watching.execute("PRAGMA data_version").fetchall(), wal.stat().st_size, wal.stat().st_mtime_ns
        watching.execute("BEGIN IMMEDIATE")  # a worker that asked for the lock would fail to reserve
        async with Worker(backend, poll_interval=0.01):
            await backend.looks(20)
        watching.execute("ROLLBACK")
        after = watching.execute("PRAGMA data_version").fetchall(), wal.stat().st_size, wal.stat().st_mtime_ns
        watching.close()
    assert after == before
    assert rows(path) == []
