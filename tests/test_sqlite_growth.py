"""A file that stays healthy: finished rows go, live ones stay, the WAL is bounded, nothing is left open."""

import asyncio
import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import pruning
from sitq.backends.sqlite.schema import MAX_WAL_BYTES, SCHEMA_VERSION
from sitq.models import Outcome
from tests.faults import Clock, assert_healthy, connected, new_task, on_connection, outside, write_lock
from tests.support import Runs, log_async, log_plain, rows, until

HOUR = 3600.0
WEEK = 7 * 24 * HOUR
MEGABYTE = bytes(1024 * 1024)
ALARM = """
    CREATE TABLE alarm (task_id TEXT);
    CREATE TRIGGER alarm AFTER DELETE ON tasks WHEN old.finished_at IS NULL
    BEGIN INSERT INTO alarm VALUES (old.task_id); END;
"""


async def finish_some(backend: SQLiteBackend, count: int, payload: bytes = b"") -> None:
    """Enqueues and finishes ``count`` tasks."""
    await backend.enqueue([new_task(f"old-{n}", payload) for n in range(count)])
    held = (await backend.reserve(count, lease=HOUR, alone=True)).tasks
    assert await backend.mark_success([Outcome(task, b"value") for task in held]) == []


def backend_later(path: Path, age: float, retention: timedelta | float | None = HOUR) -> SQLiteBackend:
    """Returns a backend, about to prune, whose clock stands ``age`` seconds after 1970."""
    return SQLiteBackend(path, clock=lambda: age, retention=retention)


@pytest.mark.parametrize(
    ("retention", "age", "kept"),
    [
        (HOUR, HOUR, 1),
        (HOUR, HOUR + 1, 0),
        (timedelta(hours=1), HOUR + 1, 0),
        (0, 0.5, 0),
        (None, 1e9, 1),
        (timedelta(days=36500), 1e9, 1),
        (timedelta(days=7), 1e9, 0),
    ],
)
async def test_a_finished_task_is_kept_for_the_retention_and_no_longer(
    path: Path, retention: timedelta | float | None, age: float, kept: int
) -> None:
    """A reservation deletes what finished longer ago; with ``None``, never."""
    async with connected(backend_later(path, 0.0)) as backend:
        await finish_some(backend, 1)
    async with connected(backend_later(path, age, retention)) as backend:
        await backend.reserve(1, lease=1, alone=True)
        assert (await backend.get_result("old-0") is not None) == bool(kept)
    assert len(rows(path)) == kept


async def test_a_finished_task_is_kept_for_a_week_where_nothing_else_is_said(path: Path) -> None:
    """A worker made without arguments deletes it then, and not before."""
    clock = Clock()
    for age, kept in ((0.0, 1), (WEEK, 1), (WEEK + 1, 0)):
        async with connected(SQLiteBackend(path, clock=clock)) as backend:
            if not age:
                await finish_some(backend, 1)
            clock.now = Clock().now + age
            await backend.reserve(1, lease=1, alone=True)
        assert len(rows(path)) == kept


async def test_pruning_pauses_when_nothing_is_left_to_prune(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reservations do not ask for old rows again, until the pause is over."""
    clock, uptime = Clock(), 1000.0
    monkeypatch.setattr(pruning, "time", SimpleNamespace(monotonic=lambda: uptime))
    async with connected(SQLiteBackend(path, clock=clock, retention=HOUR)) as backend:
        await finish_some(backend, 1)
        clock.now += 2 * HOUR
        uptime += pruning.PRUNE_PAUSE_SECONDS
        await backend.reserve(1, lease=1, alone=True)
        assert rows(path) == []
        await finish_some(backend, 1)
        clock.now += 2 * HOUR
        await backend.reserve(1, lease=1, alone=True)
        assert len(rows(path)) == 1
        uptime += pruning.PRUNE_PAUSE_SECONDS
        await backend.reserve(1, lease=1, alone=True)
    assert rows(path) == []


async def test_a_live_task_is_kept_however_old(path: Path) -> None:
    """Pending, held, abandoned, on its last attempt: none of them is deleted by age."""
    async with connected(backend_later(path, 0.0)) as backend:
        await backend.enqueue([new_task("held"), new_task("abandoned"), new_task("last", max_attempts=2)])
        held, *_ = (await backend.reserve(3, lease=0, alone=True)).tasks
        await backend.renew([held], lease=1e9)
        await backend.enqueue([new_task("pending")])
    async with connected(backend_later(path, 1e8)) as backend:
        # The last attempt waits for a worker of its own, and the others are taken.
        taken = (await backend.reserve(9, lease=1, alone=False)).tasks
        assert {task.task_id for task in taken} == {"abandoned", "pending"}
    assert {row["task_id"] for row in rows(path)} == {"held", "abandoned", "last", "pending"}


async def test_pruning_goes_in_small_batches(path: Path) -> None:
    """One reservation deletes no more than a fixed number of rows, so that others get their turn in between."""
    count = 3 * pruning.MAX_PRUNED_PER_RESERVATION + 50
    async with connected(backend_later(path, 0.0)) as backend:
        await finish_some(backend, count)
    async with connected(backend_later(path, 2 * HOUR)) as backend:
        left = [count]
        while left[-1]:
            await backend.reserve(1, lease=1, alone=True)
            left.append(len(rows(path)))
            assert 0 < left[-2] - left[-1] <= pruning.MAX_PRUNED_PER_RESERVATION
    assert len(left) == 5


async def test_a_drain_prunes_and_loses_nothing(path: Path, runs: Runs) -> None:
    """Old rows go while new tasks are run, each once, and no row is deleted before it is finished."""
    new = 300
    async with connected(backend_later(path, 0.0)) as backend:
        await finish_some(backend, 1000)
    with outside(path) as connection:
        connection.executescript(ALARM)
    backend = backend_later(path, 2 * HOUR)
    async with TaskQueue(backend) as queue:
        for n in range(new):
            await queue.enqueue(log_async if n % 2 else log_plain, runs, n)
        assert await Worker(backend, max_concurrency=20).drain() == new
        async with Worker(backend):
            assert await queue.get_result(await queue.enqueue(log_async, runs, "last")) is not None
    assert rows(path, "SELECT * FROM alarm") == []
    assert rows(path, "SELECT status, count(*) AS count FROM tasks WHERE task_id NOT LIKE 'old-%' GROUP BY status") == [
        {"status": "success", "count": new + 1}
    ]
    assert rows(path, "SELECT count(*) AS count FROM tasks WHERE task_id LIKE 'old-%'") == [{"count": 0}]
    assert set(runs.count().values()) == {1}
    assert_healthy(path)


async def test_the_pages_of_pruned_tasks_are_used_again(path: Path) -> None:
    """The file does not grow while as much is pruned as is enqueued."""
    async with connected(backend_later(path, 0.0)) as backend:
        await finish_some(backend, 150, b"x" * 2000)
    (full,) = rows(path, "PRAGMA page_count")
    for n in range(5):
        async with connected(backend_later(path, (n + 1) * 2 * HOUR)) as backend:
            await backend.reserve(1, lease=1, alone=True)
            assert rows(path) == []
            (free,) = rows(path, "PRAGMA freelist_count")
            assert free["freelist_count"] > full["page_count"] / 2
            await finish_some(backend, 150, b"x" * 2000)
    (after,) = rows(path, "PRAGMA page_count")
    assert after["page_count"] <= full["page_count"] + 2


def wal_size(path: Path) -> int:
    """Returns the size of the WAL in bytes."""
    return os.stat(f"{path}-wal").st_size


async def test_the_wal_shrinks_after_a_long_reader_has_left(path: Path) -> None:
    """A read that stays open lets the WAL grow; once it is closed, a few commits bring it back below its limit."""
    async with connected(SQLiteBackend(path, durability="normal")) as backend:
        await backend.enqueue([new_task("first")])
        with outside(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tasks").fetchone()
            while wal_size(path) < 1.5 * MAX_WAL_BYTES:
                await backend.enqueue([new_task(f"big-{wal_size(path)}", MEGABYTE)])
            assert reader.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
        for n in range(3):
            await backend.enqueue([new_task(f"after-{n}", MEGABYTE)])
        assert wal_size(path) <= MAX_WAL_BYTES


async def test_the_wal_is_bounded_while_nobody_reads_for_long(path: Path) -> None:
    """Checkpoints keep up with the writer."""
    async with connected(SQLiteBackend(path, durability="normal")) as backend:
        for n in range(30):
            await backend.enqueue([new_task(f"big-{n}", MEGABYTE)])
            await backend.get_result("big-0")
            assert wal_size(path) <= MAX_WAL_BYTES


def can_empty_wal(path: Path) -> bool:
    """Empties the WAL from another connection, at once, and tells whether nothing was in the way."""
    connection = sqlite3.connect(path, timeout=0)
    try:
        busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        connection.close()
    return not busy and wal_size(path) == 0


async def test_idle_workers_and_waiters_keep_nothing_open(
    backend: SQLiteBackend, queue: TaskQueue, path: Path, runs: Runs
) -> None:
    """While they wait, another connection can empty the WAL, which any open read or write would forbid."""
    async with Worker(backend, poll_interval=HOUR), Worker(SQLiteBackend(path), poll_interval=HOUR):
        await queue.get_result(await queue.enqueue(log_async, runs, "done"))
        later = await queue.enqueue(log_async, runs, "later", eta=datetime.now(UTC) + timedelta(hours=1))
        waiting = asyncio.ensure_future(queue.get_result(later))
        await until(lambda: can_empty_wal(path))
        assert not waiting.done()
        waiting.cancel()
    assert runs.lines() == ["done"]


async def test_a_reservation_that_finds_nothing_takes_no_lock(backend: SQLiteBackend, path: Path) -> None:
    """It returns while another program holds the write lock, and no connection sees a change."""
    async with connected(backend):
        await finish_some(backend, 3)
        await backend.enqueue([new_task("held")])
        await backend.reserve(1, lease=HOUR, alone=True)
        assert not (await backend.reserve(1, lease=HOUR, alone=True)).tasks
        with outside(path) as connection:
            before = connection.execute("PRAGMA data_version").fetchone()
            with write_lock(path):
                for _ in range(100):
                    assert not (await backend.reserve(10, lease=1, alone=True)).tasks
            assert connection.execute("PRAGMA data_version").fetchone() == before


async def test_a_busy_worker_takes_no_lock_for_a_last_attempt_that_it_may_not_run(
    backend: SQLiteBackend, path: Path
) -> None:
    """However long the task waits: who is not alone looks at it while another program holds the write lock."""
    async with connected(backend):
        await backend.enqueue([new_task("last", max_attempts=1)])
        assert (await backend.reserve(1, lease=HOUR, alone=False)).last_attempt_waiting
        with write_lock(path):
            found = await backend.reserve(10, lease=HOUR, alone=False)
        assert (list(found.tasks), found.last_attempt_waiting) == ([], True)


async def test_notes_of_what_was_not_held_or_buried_are_not_kept_in_memory(backend: SQLiteBackend) -> None:
    """The connection's notes are empty again after each call that made some."""
    async with connected(backend):
        await backend.enqueue([new_task(), new_task("buried", max_attempts=1)])
        (held,) = (await backend.reserve(1, lease=HOUR, alone=False)).tasks
        await backend.release([held])
        assert await backend.renew([held], lease=HOUR) == [held]
        assert await on_connection(backend, lambda it: it.execute("SELECT * FROM note").fetchall()) == []
        await backend.reserve(1, lease=HOUR, alone=False)
        await backend.reserve(1, lease=0, alone=True)
        assert (await backend.reserve(1, lease=0, alone=True)).buried == ["buried"]
        assert await on_connection(backend, lambda it: it.execute("SELECT * FROM note").fetchall()) == []


async def prunes(path: Path, **options: Any) -> bool:
    """Whether a worker of this backend deletes a task of the year 1970."""
    backend = SQLiteBackend(path, **options)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue("operator:add", 1, 2)
        await queue.cancel(task_id)
        sql = f"UPDATE tasks SET finished_at = 1 WHERE task_id = '{task_id}'"
        await on_connection(backend, lambda connection: connection.execute(sql))
        await Worker(backend).drain()
        return await queue.get_result(task_id) is None


async def test_a_retention_that_was_chosen_holds_for_who_does_not_choose(path: Path) -> None:
    """The latest choice does; without any it is a week."""
    assert await prunes(path)
    assert not await prunes(path, retention=None)
    assert not await prunes(path)
    assert await prunes(path, retention=timedelta(days=7))
    assert await prunes(path)
    assert not await prunes(path, retention=90 * 365.25 * 86400)
    assert not await prunes(path)


async def test_a_retention_that_nobody_chose_leaves_no_trace(path: Path) -> None:
    """The table is made by the first choice, and the version of the schema stays what it was."""
    await prunes(path)
    assert [row["name"] for row in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")] == ["tasks"]
    await prunes(path, retention=None)
    assert rows(path, "SELECT * FROM settings") == [{"key": "retention", "value": None}]
    assert rows(path, "PRAGMA user_version") == [{"user_version": SCHEMA_VERSION}]


async def test_a_choice_that_cannot_be_stored_keeps_nobody_from_working(path: Path) -> None:
    """The file is locked by another program when it is opened: the choice holds here, and is stored another time."""
    await prunes(path)
    with write_lock(path):
        backend = SQLiteBackend(path, retention=None, busy_timeout=0)
        await backend.connect()
    assert not (await backend.reserve(1, lease=60, alone=True)).tasks
    await backend.close()
    assert not await prunes(path, retention=None)
    change = "UPDATE settings SET value = 'soon'"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await on_connection(queue._backend, lambda connection: connection.execute(change))  # type: ignore[arg-type]
    assert await prunes(path)
