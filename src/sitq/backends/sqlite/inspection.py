"""Looking into the file, and mending what is in it: what ``SQLiteBackend`` offers as ``Inspectable``.

Beside the hot path: the changes are operations of their own on the view ``change``, whose triggers
a connection gets at the first of these calls. Each call looks first, in a hop that takes no lock,
and then changes what it found, in one transaction; what has changed in between is refused.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from sitq.backends.inspect import Counts, Finding, PayloadFormat, TaskDetails, TaskInfo
from sitq.backends.sqlite import examination
from sitq.backends.sqlite.connection import Connection, Job
from sitq.backends.sqlite.statements import STATUSES, Notes, Row
from sitq.errors import BackendCorruptError
from sitq.models import FINISHED, Status, from_micros, new_claim

PRUNED_PER_CHANGE = 500
MINUTE_MICROS = 60_000_000

_NOTE_REFUSAL = "INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;"

# key is the task's id, or how many to delete at most; claim is a token of the call, by which it
# finds its notes among those of others.
_OPERATIONS = {
    "retry": f"""
        UPDATE tasks SET status = 'pending', attempt = 0, available_at = NEW.now, started_at = NULL,
            finished_at = NULL, claim = NULL, result = NULL, error = NULL, traceback = NULL
            WHERE task_id = NEW.key AND status IN ('failed', 'cancelled');
        {_NOTE_REFUSAL}
    """,
    "cancel": f"""
        UPDATE tasks SET status = 'cancelled', finished_at = NEW.now
            WHERE task_id = NEW.key AND status = 'pending' AND finished_at IS NULL;
        {_NOTE_REFUSAL}
    """,
    "sweep": """
        DELETE FROM tasks WHERE id IN (
            SELECT id FROM tasks INDEXED BY tasks_finished
                WHERE finished_at IS NOT NULL AND finished_at < NEW.at LIMIT NEW.key);
        INSERT INTO note SELECT 'swept', changes(), NEW.claim;
    """,
}

_CAN = {
    "retry": "SELECT 1 FROM tasks WHERE task_id = ? AND status IN ('failed', 'cancelled')",
    "cancel": "SELECT 1 FROM tasks WHERE task_id = ? AND status = 'pending' AND finished_at IS NULL",
}
_CAN_SWEEP = "SELECT 1 FROM tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL AND finished_at < ? LIMIT 1"
_FAILED = "SELECT task_id FROM tasks WHERE status = 'failed' ORDER BY id"

# One pass over the rows, and no grouping, which would sort them. The columns stand in a row before
# the payload, so that no page of a large one is read.
_COUNTS = """
    SELECT count(*) FILTER (WHERE status = 'pending'),
        count(*) FILTER (WHERE status = 'in_progress'),
        count(*) FILTER (WHERE status = 'success'),
        count(*) FILTER (WHERE status = 'failed'),
        count(*) FILTER (WHERE status = 'cancelled'),
        count(*) FILTER (WHERE status = 'pending' AND available_at > ?1),
        count(*) FILTER (WHERE status = 'in_progress' AND available_at <= ?1),
        min(available_at) FILTER (WHERE status = 'pending' AND available_at <= ?1),
        count(*) FILTER (WHERE enqueued_at > ?2),
        count(*) FILTER (WHERE status = 'success' AND finished_at > ?2),
        count(*) FILTER (WHERE status = 'failed' AND finished_at > ?2)
    FROM tasks
"""

_OLDEST = 7  # which of them is a time

_INFO = """task_id, name, status, attempt, max_attempts, error, enqueued_at,
    CASE status WHEN 'pending' THEN available_at END, CASE status WHEN 'in_progress' THEN available_at END,
    started_at, finished_at"""
_LIST_ALL = f"SELECT {_INFO} FROM tasks ORDER BY id DESC LIMIT ?"
# Two indexes hold the live rows, by whether their next attempt is an ordinary one (see schema.py).
_LIST_LIVE = f"""
    SELECT {_INFO} FROM tasks WHERE id IN (
        SELECT id FROM tasks INDEXED BY tasks_due
            WHERE finished_at IS NULL AND max_attempts > attempt + 1 AND status = ?1
        UNION ALL
        SELECT id FROM tasks INDEXED BY tasks_last
            WHERE finished_at IS NULL AND max_attempts <= attempt + 1 AND status = ?1
        ORDER BY id DESC LIMIT ?2)
    ORDER BY id DESC
"""
_LIST_FINISHED = f"""
    SELECT {_INFO} FROM tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL AND status = ?
    ORDER BY finished_at DESC, id DESC LIMIT ?
"""
_SHOW = f"SELECT traceback, format, length(payload), length(result), {_INFO} FROM tasks WHERE task_id = ?"
_FORMATS = """
    SELECT format, count(*), sum(instr(payload, ?) > 0) FROM tasks WHERE finished_at IS NULL
    GROUP BY format ORDER BY format
"""


class _Backend(Protocol):
    """What is needed of the backend."""

    @property
    def _path(self) -> str: ...

    def _connected(self) -> Connection: ...


class Inspection:
    """Mixed into ``SQLiteBackend``; see :class:`~sitq.backends.inspect.Inspectable`."""

    async def counts(self: _Backend) -> Counts:
        """Counts the tasks, in one pass over the file. Half a second for a million of them."""
        return await self._connected().call(Job(lambda connection, now, _: _counts(connection, now)))

    async def show(self: _Backend, task_id: str) -> TaskDetails | None:
        """Looks at one task; ``None`` where there is no such task.

        Raises:
            BackendCorruptError: Its row holds what sitq did not write.
        """
        return await self._connected().call(Job(lambda connection, *_: _show(connection, task_id)))

    async def retry(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Makes failed and cancelled tasks pending again, due now; returns the ids of those."""
        return await _change(self, "retry", task_ids)

    async def retry_failed(self: _Backend) -> Sequence[str]:
        """Retries every task that is failed; returns their ids."""
        # The rows are read outside of the transaction: what fails meanwhile may wait for the next
        # call, and the write lock is held for no longer than the changes take.
        failed = await self._connected().call(Job(lambda connection, *_: connection.execute(_FAILED).fetchall()))
        return await _change(self, "retry", [task_id for (task_id,) in failed])

    async def cancel(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Finishes pending tasks without running them; returns the ids of those."""
        return await _change(self, "cancel", task_ids)

    async def prune(self: _Backend, *, older_than: float) -> int:
        """Deletes the tasks that finished more than ``older_than`` seconds ago, 500 in a change."""
        connection, micros, pruned = self._connected(), int(older_than * 1_000_000), 0
        while await connection.call(Job(lambda sqlite, now, _: _can_sweep(sqlite, now - micros))):
            pruned += await connection.call(_sweeping(micros))
        return pruned

    async def payload_formats(self: _Backend, mark: bytes) -> Sequence[PayloadFormat]:
        """Counts the unfinished tasks by the format of their payload, and those that hold ``mark``."""
        rows = await self._connected().call(
            Job(lambda connection, *_: connection.execute(_FORMATS, (mark,)).fetchall())
        )
        return [PayloadFormat(*row) for row in rows]

    async def examine(self: _Backend) -> Sequence[Finding]:
        """Examines SQLite, the file system, the file and whether anyone works on it.

        Reads the whole file, and keeps other callers of this backend object waiting meanwhile.
        """
        path = self._path
        return await self._connected().call(Job(lambda connection, now, _: examination.examine(connection, path, now)))

    async def list(self: _Backend, *, status: Status | None = None, limit: int = 100) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first: by when they were finished, or else by when they were stored.

        Raises:
            BackendCorruptError: A row holds what sitq did not write.
        """
        return await self._connected().call(Job(lambda connection, *_: _list(connection, status, limit)))


async def _change(backend: _Backend, op: str, task_ids: Iterable[str]) -> Sequence[str]:
    """Carries out ``op`` for those of ``task_ids`` for which it can be done; returns them."""
    connection = backend._connected()
    found = await connection.call(Job(lambda sqlite, *_: _look(sqlite, op, dict.fromkeys(task_ids))))
    if not found:
        return found
    token = new_claim()

    def changes(now: int) -> Iterator[Row]:
        return ((op, now, task_id, token, None, None, None, None, None) for task_id in found)

    def done(_: sqlite3.Connection, now: int, notes: Notes) -> Sequence[str]:
        return [task_id for task_id in found if ("refused", task_id, token) not in notes]

    # Synced like an enqueue: what an operator was told must not be undone by a power cut.
    return await connection.call(Job(done, changes, synced=True, announce=lambda ids: [*ids, None] if ids else ()))


def _look(connection: sqlite3.Connection, op: str, task_ids: Iterable[str]) -> Sequence[str]:
    _install(connection)
    return [task_id for task_id in task_ids if _fetch(connection, _CAN[op], task_id)]


def _can_sweep(connection: sqlite3.Connection, before: int) -> bool:
    _install(connection)
    return connection.execute(_CAN_SWEEP, (before,)).fetchone() is not None


def _sweeping(older_than: int) -> Job[int]:
    token = new_claim()
    return Job(
        lambda _, __, notes: sum(count for kind, count, its in notes if (kind, its) == ("swept", token)),
        lambda now: [("sweep", now, PRUNED_PER_CHANGE, token, now - older_than, None, None, None, None)],
    )


def _install(connection: sqlite3.Connection) -> None:
    """Makes the triggers of the operations for this connection, unless it has them."""
    for op, body in _OPERATIONS.items():
        connection.execute(
            f"CREATE TEMP TRIGGER IF NOT EXISTS change_{op} INSTEAD OF INSERT ON change "
            f"WHEN NEW.op = '{op}' BEGIN {body} END"
        )


def _fetch(connection: sqlite3.Connection, sql: str, task_id: str) -> Row | None:
    try:
        row: Row | None = connection.execute(sql, (task_id,)).fetchone()
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    return row


def _counts(connection: sqlite3.Connection, now: int) -> Counts:
    values = list(connection.execute(_COUNTS, (now, now - MINUTE_MICROS)).fetchone())
    if values[_OLDEST] is not None:
        values[_OLDEST] = (now - values[_OLDEST]) / 1_000_000
    return Counts(*values)


def _list(connection: sqlite3.Connection, status: Status | None, limit: int) -> Sequence[TaskInfo]:
    if status is None:
        rows = connection.execute(_LIST_ALL, (limit,))
    else:
        rows = connection.execute(_LIST_FINISHED if status in FINISHED else _LIST_LIVE, (status, limit))
    return [TaskInfo(**_info(row)) for row in rows]


def _show(connection: sqlite3.Connection, task_id: str) -> TaskDetails | None:
    row = _fetch(connection, _SHOW, task_id)
    if row is None:
        return None
    (traceback, format_, payload_bytes, result_bytes), info = row[:4], row[4:]
    return TaskDetails(
        **_info(info), traceback=traceback, format=format_, payload_bytes=payload_bytes, result_bytes=result_bytes
    )


def _info(row: Row) -> dict[str, Any]:
    task_id, name, status, attempt, max_attempts, error, *micros = row
    try:
        times = [None if time is None else from_micros(time) for time in micros]
        if status not in STATUSES or times[0] is None:
            raise ValueError("not a status, or not a time")
    except (TypeError, ValueError, OverflowError) as reason:
        raise BackendCorruptError(
            f"the row of task {task_id} was not written by sitq: its status is {status!r} and its times are "
            f"{micros}; correct it or delete it"
        ) from reason
    names = ("enqueued_at", "due_at", "lease_ends_at", "started_at", "finished_at")
    return {
        "task_id": task_id,
        "name": name,
        "status": status,
        "attempt": attempt,
        "max_attempts": max_attempts,
        "error": error,
        **dict(zip(names, times, strict=True)),
    }
