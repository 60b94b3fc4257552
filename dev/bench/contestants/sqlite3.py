"""Bare sqlite3 on a table like sitq's: what a queue in one SQLite file could reach at best.

The columns are sitq's, with the one index that a reservation needs. No serialization, no
execution, no other thread: statements only, from a plain loop.
"""

import random
import sqlite3
import time
from collections.abc import Iterable
from itertools import repeat

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant, Span
from dev.bench.tasks import PAYLOAD, Task, noop, tally

SCHEMA = """
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL DEFAULT 'pending',
        name TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        max_attempts INTEGER NOT NULL,
        enqueued_at INTEGER NOT NULL,
        available_at INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        claim INTEGER,
        format TEXT NOT NULL,
        payload BLOB NOT NULL,
        result BLOB,
        error TEXT,
        traceback TEXT
    );
    CREATE INDEX tasks_due ON tasks (available_at, id) WHERE finished_at IS NULL;
"""
INSERT = """
    INSERT INTO tasks (task_id, name, max_attempts, enqueued_at, available_at, format, payload)
    VALUES (?, 'dev.bench.tasks:noop', 5, ?, ?, 'bare', ?)
"""
RESERVE = """
    UPDATE tasks
    SET status = 'in_progress', attempt = attempt + 1, claim = ?, started_at = ?, available_at = ?
    WHERE id IN (
        SELECT id FROM tasks
        WHERE finished_at IS NULL AND available_at <= ?
        ORDER BY available_at, id LIMIT ?
    )
    RETURNING id, task_id, payload, attempt
"""
COMPLETE = """
    UPDATE tasks SET status = 'success', finished_at = ?, result = ? WHERE id = ? AND claim = ?
"""
LEASE_MICROSECONDS = 30_000_000


class BareSqlite(Contestant):
    """Inserts are synced (`synchronous=FULL`), reservations and completions are not (`NORMAL`)."""

    distributions = ()
    workloads = frozenset({"drain", "enqueue", "enqueue_many"})
    note = "the ceiling: statements only, nothing is pickled or run; N at a time means in batches"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.connection = sqlite3.connect(store.folder / "bare.db", isolation_level=None)

    async def open(self) -> None:
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.executescript(SCHEMA)
        self.connection.execute("PRAGMA synchronous=FULL")

    async def close(self) -> None:
        self.connection.close()

    async def enqueue(self, task: Task, argument: object) -> None:
        """One autocommitted, synced insert."""
        self.connection.execute(INSERT, _row(argument))

    async def enqueue_many(self, count: int) -> None:
        """One synced transaction."""
        await self.fill(noop, repeat(PAYLOAD, count))

    async def fill(self, task: Task, arguments: Iterable[object]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(INSERT, map(_row, arguments))
        self.connection.execute("COMMIT")

    async def drain(self, concurrency: int, count: int) -> Span:
        """Reserve up to `concurrency` rows by one statement, complete them in one transaction."""
        self.connection.execute("PRAGMA synchronous=NORMAL")
        started = time.perf_counter()
        while reserved := self._reserve(concurrency):
            self._complete(reserved)
        return Span(started, time.perf_counter())

    def _reserve(self, limit: int) -> list[tuple[int, int]]:
        now = _now()
        claim = random.getrandbits(62)
        rows = self.connection.execute(RESERVE, (claim, now, now + LEASE_MICROSECONDS, now, limit)).fetchall()
        return [(row[0], claim) for row in rows]

    def _complete(self, reserved: list[tuple[int, int]]) -> None:
        now = _now()
        rows = [(now, b"result", row_id, claim) for row_id, claim in reserved]
        if len(rows) == 1:
            self.connection.execute(COMPLETE, rows[0])
        else:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(COMPLETE, rows)
            self.connection.execute("COMMIT")
        for _ in rows:
            tally.add()


def _now() -> int:
    return time.time_ns() // 1_000


def _row(argument: object) -> tuple[str, int, int, bytes]:
    now = _now()
    return f"{time.monotonic_ns():032x}", now, now, str(argument).encode()


CONTESTANT = BareSqlite
