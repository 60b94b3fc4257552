"""What is read: whether anything is due, what a reservation gave out, what became of a task."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Any, NamedTuple

from sitq.backends.sqlite.abilities import SCHEMA_SIZE, notice
from sitq.backends.sqlite.conditions import (
    DUE_ROWS,
    LAST_OR_SPENT_ROWS,
    LAST_ROWS,
    OLD_ROWS,
    OLDEST_FIRST,
    SPENT_ROWS,
)
from sitq.backends.sqlite.statements import Notes, Row, fetch_all
from sitq.errors import BackendCorruptError
from sitq.models import EPOCH, FINISHED, STATUSES, NewTask, Reservation, ReservedTask, Result, Status, from_micros

_HEADS = "SELECT " + ", ".join(
    f"(SELECT available_at FROM {some} AND available_at NOTNULL {OLDEST_FIRST} LIMIT 1)"
    for some in (DUE_ROWS, LAST_ROWS, SPENT_ROWS)
)
_HEADS += f", {SCHEMA_SIZE}"
TAKEN_FROM = """
    SELECT available_at, id, claim, task_id, payload, name, format, attempt, max_attempts, enqueued_at, failures
        FROM {rows} AND available_at BETWEEN ?1 AND ?2 AND claim = ?3
"""
TAKEN = " UNION ALL ".join(TAKEN_FROM.format(rows=some) for some in (DUE_ROWS, LAST_OR_SPENT_ROWS))
_IS_RECORDED = "SELECT 1 FROM tasks WHERE id = ? AND claim = ? AND status = ?"
_GET = """
    SELECT task_id, status, result, error, traceback, attempt, enqueued_at, started_at, finished_at
    FROM tasks WHERE task_id = ?
"""
_ENDED = """
    SELECT asked.value FROM json_each(?) AS asked
    WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE task_id = asked.value AND finished_at IS NULL)
"""


class Found(NamedTuple):
    """What a reservation found.

    Attributes:
        now: When it was made, in microseconds.
        rows: Its tasks as SQLite gives them.
        reservation: The rest, as the contract has it.
        ended: Tasks that were asked to end, and were ended in place of being given out.
    """

    now: int
    rows: list[Row]
    reservation: Reservation
    ended: Sequence[str] = ()


def _heads(connection: sqlite3.Connection) -> list[float]:
    """Returns when the first ordinary task, the first last attempt and the first spent one are due."""
    # What is no integer was not written by sitq. A REAL stands among the integers by its value: taking
    # that task, when it is due, mends the row. SQLite sorts text behind every number: never due.
    ((*heads, schema_size),) = fetch_all(connection, _HEADS)
    notice(connection, schema_size)
    return [at if isinstance(at, (int, float)) else inf for at in heads]


def is_due(connection: sqlite3.Connection, now: int, alone: bool) -> bool:
    """Whether a reservation would change anything, which costs the write lock to try."""
    due, last, spent = _heads(connection)
    return due <= now or spent <= now or (alone and last <= now)


def is_prunable(connection: sqlite3.Connection, finished_before: int) -> bool:
    """Whether there is anything to prune."""
    sql = f"SELECT 1 FROM {OLD_ROWS} AND finished_at < ? LIMIT 1"
    return connection.execute(sql, (finished_before,)).fetchone() is not None


def reserved(connection: sqlite3.Connection, now: int, limit: int, claim: int, until: int, notes: Notes) -> Found:
    """Reads what a reservation gave out, and what a caller should know of the rest."""
    rows = fetch_all(connection, TAKEN, (until, until + limit, claim))
    due, last, spent = _heads(connection)
    ahead = min((at for at in (due, last, spent) if at > now), default=inf)
    reservation = Reservation(
        buried=[task_id for kind, task_id, token in notes if kind == "buried" and token == claim],
        next_due_in=None if ahead == inf else (ahead - now) / 1_000_000,
        last_attempt_waiting=last <= now and last <= due,
    )
    return Found(now, rows, reservation)


def to_reservation(found: Found) -> Reservation:
    """Returns what was read as the contract has it; made by the event loop while SQLite is at the next batch."""
    now, rows, reservation, _ = found
    rows.sort()  # by the end of the lease, which keeps the order
    started_at = from_micros(now)
    return replace(reservation, tasks=[_reserved(row, started_at) for row in rows])


def _reserved(row: Row, started_at: datetime) -> ReservedTask:
    _, key, claim, task_id, payload, name, format_, attempt, max_attempts, micros, failures = row
    # A malformed row must not strand all tasks of the reservation.
    try:
        enqueued_at = from_micros(micros)
    except (TypeError, OverflowError):
        enqueued_at = EPOCH
    if not isinstance(attempt, int):
        attempt = 1
    if not isinstance(max_attempts, int):
        max_attempts = attempt + 1
    if not isinstance(failures, int):
        failures = 0
    return ReservedTask(
        key, claim, task_id, payload, name, format_, attempt, max_attempts, enqueued_at, failures, started_at
    )


def not_held(tasks: Iterable[ReservedTask], notes: Notes) -> list[ReservedTask]:
    """Returns the tasks whose claim did not hold."""
    if not notes:
        return []
    return [task for task in tasks if ("not held", task.key, task.claim) in notes]


def is_stored(connection: sqlite3.Connection, task: NewTask) -> bool:
    """Whether there is a task with this id and this payload."""
    sql = "SELECT 1 FROM tasks WHERE task_id = ? AND payload = ?"
    return connection.execute(sql, (task.task_id, task.payload)).fetchone() is not None


def is_recorded(connection: sqlite3.Connection, task: ReservedTask, status: Status) -> bool:
    """Whether the claim of ``task`` was the last one, and left it in ``status``."""
    return connection.execute(_IS_RECORDED, (task.key, task.claim, status)).fetchone() is not None


def ended(connection: sqlite3.Connection, task_ids: Sequence[str], seen: object) -> tuple[object, Sequence[str]]:
    """Returns which of some tasks are finished or deleted, and the state of the file that was seen.

    Args:
        connection: Who waits for its own commits is notified of them; no query is made for them.
        task_ids: The tasks.
        seen: What an earlier call returned, or ``None``; no query is made if no other connection
            has committed since.
    """
    state = connection, connection.execute("PRAGMA data_version").fetchone()[0]
    if state == seen:
        return state, ()
    return state, [task_id for (task_id,) in fetch_all(connection, _ENDED, (json.dumps(task_ids),))]


def get_result(connection: sqlite3.Connection, task_id: str) -> Result[bytes] | None:
    """Returns what is known of a task; ``None`` if there is no such task.

    Raises:
        BackendCorruptError: Its row is malformed.
    """
    try:
        found = fetch_all(connection, _GET, (task_id,))
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    return to_result(found[0]) if found else None


def to_result(row: Sequence[Any]) -> Result[bytes]:
    """Returns a row of the table as a result.

    Args:
        row: ``task_id``, ``status``, ``result``, ``error``, ``traceback``, ``attempt`` and the three times.

    Raises:
        BackendCorruptError: It is malformed.
    """
    key, status, value, error, traceback, attempt, *times = row
    try:
        enqueued, started, finished = (None if time is None else from_micros(time) for time in times)
        if enqueued is None or status not in STATUSES or (status in FINISHED) != (finished is not None):
            raise ValueError("its status and its times do not agree")
    except (TypeError, ValueError, OverflowError) as reason:
        raise BackendCorruptError(
            f"the row of task {key} was not written by sitq: its status is {status!r} and enqueued_at, started_at "
            f"and finished_at are {times}; correct it or delete it"
        ) from reason
    return Result(key, status, value, error, traceback, attempt, enqueued, started, finished)
