"""Every change of state: functions that run on the connection's thread, within one hop."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from sitq.errors import BackendCorruptError
from sitq.models import (
    EPOCH,
    FINISHED,
    NewTask,
    Outcome,
    Reservation,
    ReservedTask,
    Result,
    Status,
    from_micros,
    to_micros,
)

ROWS_PER_STATEMENT = 128  # times seven columns stays below 999 variables, SQLite's smallest limit
BURIED_PER_RESERVATION = 100
PRUNED_PER_RESERVATION = 200

STATUSES = frozenset(get_args(Status.__value__))

_INSERT = """
    INSERT INTO tasks (task_id, payload, name, format, max_attempts, enqueued_at, available_at)
    VALUES {rows}
"""

# One row count tells whether every claim still held. Rows of values instead of one statement a
# row: the whole batch is one step of SQLite's, during which the interpreter lock is free.
_FINISH = """
    UPDATE tasks SET status = v.column3, finished_at = ?, result = v.column4, error = v.column5,
        traceback = v.column6
    FROM (VALUES {rows}) AS v
    WHERE tasks.id = v.column1 AND tasks.claim = v.column2 AND tasks.finished_at IS NULL
"""
_IS_RECORDED = """
    SELECT 1 FROM tasks WHERE id = ? AND claim = ? AND status = ? AND finished_at IS NOT NULL
"""

_LOOK_DUE = """
    SELECT id, available_at FROM tasks INDEXED BY tasks_due
    WHERE finished_at IS NULL AND max_attempts > attempt + 1
    ORDER BY available_at, id LIMIT ?
"""
_LOOK_LAST = """
    SELECT id, available_at, attempt >= max_attempts FROM tasks INDEXED BY tasks_last
    WHERE finished_at IS NULL AND max_attempts <= attempt + 1
    ORDER BY available_at, id LIMIT ?
"""
_RESERVE = """
    UPDATE tasks SET status = 'in_progress', attempt = attempt + 1, claim = ?, started_at = ?,
        available_at = ?
    WHERE id IN ({chosen})
    RETURNING id, claim, task_id, payload, name, format, attempt, max_attempts, enqueued_at
"""
_RESERVE_DUE = _RESERVE.format(
    chosen="""
    SELECT id FROM tasks INDEXED BY tasks_due
    WHERE finished_at IS NULL AND max_attempts > attempt + 1 AND available_at <= ?
    ORDER BY available_at, id LIMIT ?"""
)
_RESERVE_LAST = _RESERVE.format(
    chosen="""
    SELECT id FROM tasks INDEXED BY tasks_last
    WHERE finished_at IS NULL AND max_attempts <= attempt + 1 AND max_attempts > attempt
        AND available_at <= ?
    ORDER BY available_at, id LIMIT ?"""
)
_BURY = """
    UPDATE tasks SET status = 'failed', finished_at = ?,
        error = 'WorkerDiedError: each of ' || attempt || ' attempts ended with the death of its '
            || 'worker, or with a lease that was not renewed; the last one ran alone'
    WHERE id IN (
        SELECT id FROM tasks INDEXED BY tasks_last
        WHERE finished_at IS NULL AND max_attempts <= attempt + 1 AND max_attempts <= attempt
            AND available_at <= ?
        ORDER BY available_at, id LIMIT ?)
    RETURNING task_id
"""
_RENEW = "UPDATE tasks SET available_at = ? WHERE id = ? AND claim = ? AND finished_at IS NULL"
_RELEASE = """
    UPDATE tasks SET status = 'pending', claim = NULL, attempt = attempt - 1,
        available_at = min(enqueued_at, ?),
        started_at = CASE attempt WHEN 1 THEN NULL ELSE started_at END
    WHERE id = ? AND claim = ? AND finished_at IS NULL
"""
_OLD = """
    SELECT id FROM tasks INDEXED BY tasks_finished
    WHERE finished_at IS NOT NULL AND finished_at < ? LIMIT ?
"""
_PRUNE = f"DELETE FROM tasks WHERE id IN ({_OLD})"
_GET = """
    SELECT task_id, status, result, error, traceback, attempt, enqueued_at, started_at, finished_at
    FROM tasks WHERE task_id = ?
"""


def _powers_of_two[T](items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cuts ``items`` into pieces of few different sizes, so that few statements are prepared."""
    start = 0
    while start < len(items):
        size = min(1 << (len(items) - start).bit_length() - 1, ROWS_PER_STATEMENT)
        yield items[start : start + size]
        start += size


def _rows(columns: int, count: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * count)


_INSERTS = {1 << n: _INSERT.format(rows=_rows(7, 1 << n)) for n in range(8)}
_FINISHES = {1 << n: _FINISH.format(rows=_rows(6, 1 << n)) for n in range(8)}


def _reserved(row: tuple[Any, ...]) -> ReservedTask:
    key, claim, task_id, payload, name, format_, attempt, max_attempts, micros = row
    try:
        enqueued_at = from_micros(micros)
    except (TypeError, OverflowError):  # another's making; it must not strand the whole batch
        enqueued_at = EPOCH
    return ReservedTask(key, claim, task_id, payload, name, format_, attempt, max_attempts, enqueued_at)


def insert(connection: sqlite3.Connection, now: int, tasks: Sequence[NewTask]) -> None:
    """Stores ``tasks`` in this order."""
    for some in _powers_of_two(tasks):
        values: list[Any] = []
        for task in some:
            due = now if task.eta is None else max(now, to_micros(task.eta))
            values += (
                task.task_id,
                task.payload,
                task.name,
                task.format,
                task.max_attempts,
                now,
                due,
            )
        connection.execute(_INSERTS[len(some)], values)


def reserve(connection: sqlite3.Connection, now: int, limit: int, lease: int, claim: int, alone: bool) -> Reservation:
    """Gives out due tasks under ``claim``; see :meth:`sitq.Backend.reserve`.

    Looks first: an ``UPDATE`` takes the write lock even where it finds nothing.
    """
    due = connection.execute(_LOOK_DUE, (limit,)).fetchall()
    last = connection.execute(_LOOK_LAST, (BURIED_PER_RESERVATION,)).fetchall()
    next_due = [at for _, at, *_ in (*due, *last) if at > now]
    order = {key: n for n, (key, at) in enumerate(due) if at <= now}
    statement, last_waits, buried = _RESERVE_DUE, False, []
    if last and last[0][1] <= now:
        buried = [task_id for (task_id,) in connection.execute(_BURY, (now, now, BURIED_PER_RESERVATION)).fetchall()]
        waiting = [at for _, at, spent in last if at <= now and not spent]
        if waiting and alone and (not order or waiting[0] <= due[0][1]):
            statement, limit = _RESERVE_LAST, 1
        else:
            last_waits = bool(waiting) and (len(order) < limit or waiting[0] <= due[0][1])
    rows = []
    if order or statement is _RESERVE_LAST:
        # Fetched to the end: a half-read RETURNING keeps the write lock.
        parameters = (claim, now, now + lease, now, limit)
        rows = connection.execute(statement, parameters).fetchall()
        rows.sort(key=lambda row: order.get(row[0], limit))  # they come back in any order
    return Reservation(
        tasks=[_reserved(row) for row in rows],
        buried=buried,
        next_due_in=(min(next_due) - now) / 1_000_000 if next_due else None,
        last_attempt_waiting=last_waits,
    )


def finish(connection: sqlite3.Connection, now: int, status: Status, outcomes: Sequence[Outcome]) -> list[ReservedTask]:
    """Records outcomes and returns the tasks that were not held."""
    lost: list[ReservedTask] = []
    for some in _powers_of_two(outcomes):
        values: list[Any] = [now]
        for outcome in some:
            task = outcome.task
            values += (
                task.key,
                task.claim,
                status,
                outcome.result,
                outcome.error,
                outcome.traceback,
            )
        if connection.execute(_FINISHES[len(some)], values).rowcount < len(some):
            for outcome in some:
                task = outcome.task
                # A finished row keeps its claim, so that an outcome which was recorded although
                # its commit seemed to fail is told from one that came too late.
                if not connection.execute(_IS_RECORDED, (task.key, task.claim, status)).fetchone():
                    lost.append(task)
    return lost


def renew(connection: sqlite3.Connection, until: int, tasks: Sequence[ReservedTask]) -> list[ReservedTask]:
    """Moves the end of leases and returns the tasks that were not held."""
    return [task for task in tasks if not connection.execute(_RENEW, (until, task.key, task.claim)).rowcount]


def release(connection: sqlite3.Connection, now: int, tasks: Sequence[ReservedTask]) -> list[ReservedTask]:
    """Gives tasks back with the attempt unspent and returns those that were not held."""
    return [task for task in tasks if not connection.execute(_RELEASE, (now, task.key, task.claim)).rowcount]


def prune(connection: sqlite3.Connection, before: int) -> bool:
    """Deletes some tasks that finished before ``before``; whether there may be more."""
    if not connection.execute(_OLD, (before, 1)).fetchone():
        return False
    deleted = connection.execute(_PRUNE, (before, PRUNED_PER_RESERVATION)).rowcount
    return deleted >= PRUNED_PER_RESERVATION


def get_result(connection: sqlite3.Connection, task_id: str) -> Result[bytes] | None:
    """Looks for a task.

    Raises:
        BackendCorruptError: Its row holds what sitq did not write.
    """
    row = connection.execute(_GET, (task_id,)).fetchone()
    if row is None:
        return None
    key, status, value, error, traceback, attempt, enqueued, started, finished = row
    if status not in STATUSES or (status in FINISHED) != (finished is not None):
        raise BackendCorruptError(
            f"the row of task {key} was not written by sitq: its status is {status!r} and "
            f"finished_at is {finished!r}; correct it or delete it"
        )
    return Result(
        key,
        status,
        value,
        error,
        traceback,
        attempt,
        from_micros(enqueued),
        None if started is None else from_micros(started),
        None if finished is None else from_micros(finished),
    )
