"""Reading what is in the file, and mending what is in it: what ``SQLiteBackend`` offers as ``Inspectable``.

Beside the hot path. How tasks are searched stands in ``listing``, how they are changed in ``mending``.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

from sitq.backends.inspect import Counts, FailedAttempt, Finding, PayloadFormat, TaskDetails, TaskInfo
from sitq.backends.sqlite import asking, examination, failures, mending
from sitq.backends.sqlite.abilities import abilities
from sitq.backends.sqlite.jobs import ReadJob
from sitq.backends.sqlite.listing import Connected, Query, decoded, walk
from sitq.backends.sqlite.statements import Row
from sitq.errors import BackendCorruptError
from sitq.models import STATUSES, Status, from_micros

MINUTE_MICROS = 60_000_000

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

# A run that was retried by a policy has raised max_attempts by one: what is shown is what was asked for.
_INFO = """task_id, name, status, attempt, max_attempts - failures - snoozes, error, failures, enqueued_at,
    CASE status WHEN 'pending' THEN available_at END, CASE status WHEN 'in_progress' THEN available_at END,
    started_at, finished_at, {asked_at}, ifnull(queue, ''), ifnull(priority, 0)"""
_SHOW = f"SELECT traceback, format, length(payload), length(result), {_INFO} FROM tasks WHERE task_id = ?"
_FAILURES = """
    SELECT attempt, started_at, ended_at, error, traceback, ran_on FROM task_failures
    WHERE task = (SELECT id FROM tasks WHERE task_id = ?) ORDER BY number
"""
# By the index of the ids. Nothing that can stand in an id sorts behind the last character.
_IDS = "SELECT task_id FROM tasks WHERE task_id >= ?1 AND task_id < ?1 || char(1114111) ORDER BY task_id LIMIT ?2"
_FORMATS = """
    SELECT format, count(*), sum(instr(payload, ?) > 0) FROM tasks WHERE finished_at IS NULL
    GROUP BY format ORDER BY format
"""


class _Backend(Protocol):
    """What is needed of the backend."""

    @property
    def _path(self) -> str: ...

    def _connected(self) -> Connected: ...


class Inspection:
    """Mixed into ``SQLiteBackend``; see :class:`~sitq.backends.inspect.Inspectable`."""

    async def counts(self: _Backend) -> Counts:
        """Counts the tasks, in one pass over the file. Half a second for a million of them."""
        return await self._connected().call(ReadJob(lambda connection, now: _counts(connection, now)))

    async def show(self: _Backend, task_id: str) -> TaskDetails | None:
        """Reads one task; ``None`` if there is no such task.

        Raises:
            BackendCorruptError: Its row holds what sitq did not write.
        """
        return await self._connected().call(ReadJob(lambda connection, _: _show(connection, task_id)))

    async def find_ids(self: _Backend, prefix: str, *, limit: int) -> Sequence[str]:
        """Returns the ids that begin with ``prefix``, in their order, up to ``limit`` of them."""
        return await self._connected().call(ReadJob(lambda connection, _: _ids(connection, prefix, limit)))

    async def retry(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Makes tasks pending again, due now; returns the ids of those. 500 in a transaction."""
        return await mending.change(self._connected(), "retry", task_ids)

    async def retry_failed(
        self: _Backend, *, name: str | None = None, error: str | None = None, since: float | None = None
    ) -> Sequence[str]:
        """Retries every task that is failed and fits; returns their ids. 500 in a transaction."""
        # What fails meanwhile may wait for the next call: a task that fails at once would never let it end.
        connection = self._connected()
        rows = await walk(connection, Query("failed", name, error, since), "task_id")
        return await mending.change(connection, "retry", [task_id for (task_id,) in reversed(rows)])

    async def cancel(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Finishes tasks without running them; returns the ids of those. 500 in a transaction."""
        return await mending.change(self._connected(), "cancel", task_ids)

    async def prune(self: _Backend, *, older_than: float) -> int:
        """Deletes the tasks that finished more than ``older_than`` seconds ago, 500 in a transaction."""
        return await mending.prune(self._connected(), int(older_than * 1_000_000))

    async def payload_formats(self: _Backend, mark: bytes) -> Sequence[PayloadFormat]:
        """Counts the unfinished tasks by the format of their payload, and those that hold ``mark``."""
        rows = await self._connected().call(
            ReadJob(lambda connection, _: connection.execute(_FORMATS, (mark,)).fetchall())
        )
        return [PayloadFormat(*row) for row in rows]

    async def examine(self: _Backend) -> Sequence[Finding]:
        """Examines SQLite, the file system, the file and whether anyone works on it.

        Reads the whole file, and keeps other callers of this backend object waiting meanwhile.
        """
        path = self._path
        return await self._connected().call(ReadJob(lambda connection, now: examination.examine(connection, path, now)))

    async def list(
        self: _Backend,
        *,
        status: Status | None = None,
        limit: int = 100,
        name: str | None = None,
        error: str | None = None,
        since: float | None = None,
        before: str | None = None,
        queue: str | None = None,
    ) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first; see :class:`~sitq.backends.inspect.Inspectable`.

        Raises:
            ValueError: ``before`` is not in this list.
            BackendCorruptError: A row holds what sitq did not write.
        """
        connection = self._connected()
        asked_at = await connection.call(ReadJob(lambda sqlite, _: asking.column(sqlite)))
        columns = _INFO.format(asked_at=asked_at)
        rows = await walk(connection, Query(status, name, error, since, before, queue), columns, limit)
        return [TaskInfo(**_info(row)) for row in rows]


def _counts(connection: sqlite3.Connection, now: int) -> Counts:
    values = list(connection.execute(_COUNTS, (now, now - MINUTE_MICROS)).fetchone())
    if values[_OLDEST] is not None:
        values[_OLDEST] = (now - values[_OLDEST]) / 1_000_000
    return Counts(*values)


def _show(connection: sqlite3.Connection, task_id: str) -> TaskDetails | None:
    try:
        with decoded(connection):
            sql = _SHOW.format(asked_at=asking.column(connection))
            row = connection.execute(sql, (task_id,)).fetchone()
            failed_attempts = _failed_attempts(connection, task_id)
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    if row is None:
        return None
    (traceback, format_, payload_bytes, result_bytes), info = row[:4], row[4:]
    return TaskDetails(
        **_info(info),
        traceback=traceback,
        format=format_,
        payload_bytes=payload_bytes,
        result_bytes=result_bytes,
        failed_attempts=failed_attempts,
    )


def _failed_attempts(connection: sqlite3.Connection, task_id: str) -> Sequence[FailedAttempt]:
    if failures.ABILITY.name not in abilities(connection):
        return ()
    return [
        FailedAttempt(
            attempt=attempt,
            started_at=None if started is None else from_micros(started),
            ended_at=from_micros(ended),
            error=error or "",
            traceback=traceback,
            ran_on=ran_on,
        )
        for attempt, started, ended, error, traceback, ran_on in connection.execute(_FAILURES, (task_id,))
    ]


def _ids(connection: sqlite3.Connection, prefix: str, limit: int) -> Sequence[str]:
    try:
        with decoded(connection):
            return [task_id for (task_id,) in connection.execute(_IDS, (prefix, limit))]
    except UnicodeEncodeError:
        return []


def _info(row: Row) -> dict[str, Any]:
    task_id, name, status, attempt, max_attempts, error, failed, *micros, queue, priority = row
    try:
        times = [None if time is None else from_micros(time) for time in micros]
        if status not in STATUSES or times[0] is None:
            raise ValueError("not a status, or not a time")
    except (TypeError, ValueError, OverflowError) as reason:
        raise BackendCorruptError(
            f"the row of task {task_id} was not written by sitq: its status is {status!r} and its times are "
            f"{micros}; correct it or delete it"
        ) from reason
    names = ("enqueued_at", "due_at", "lease_ends_at", "started_at", "finished_at", "asked_at")
    return {
        "task_id": task_id,
        "name": name,
        "status": status,
        "attempt": attempt,
        "max_attempts": max_attempts,
        "error": error,
        "failures": failed,
        "queue": queue,
        "priority": priority,
        **dict(zip(names, times, strict=True)),
    }
