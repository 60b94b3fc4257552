"""Every change of state, in SQL.

A change is a row that is inserted into the temporary view ``change``; the view's triggers carry it
out. So whatever a hop has to change is one ``INSERT``: one statement, which is one transaction and
one step of SQLite's, during which the interpreter lock is free and the event loop can run tasks.
A statement for each change, between BEGIN and COMMIT, took a third longer, and each of them had to
get the interpreter lock back from the loop.

========  ========  ==============  ============  ===============  ==========  ======  =========
op        key       claim           at            a                b           c       d
========  ========  ==============  ============  ===============  ==========  ======  =========
enqueue   task_id   max_attempts    due           payload          name        format
reserve   limit     claim           lease's end   alone
renew     id        claim           lease's end
finish    id        claim                         status           result      error   traceback
release   id        claim
prune     limit                     older than
========  ========  ==============  ============  ===============  ==========  ======  =========

``now`` goes with each. What could not be done for want of a claim, and which tasks were buried, is
told in the temporary table ``note``. The triggers belong to the connection, not to the file.
"""

import itertools
import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Literal, get_args

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

type Row = tuple[Any, ...]
type Notes = frozenset[tuple[str, Any, int]]
type Found = tuple[list[Row], Reservation]
"""What a reservation found: its tasks as SQLite gives them, and the rest as the contract has it."""

BURIED_PER_RESERVATION = 100
PRUNED_PER_RESERVATION = 200
ROW_COUNTS = (1, 2, 3, 4, 6, 9, 13, 17, 25, 33, 51, 70, 105, 160, 240, 360, 540, 810)
"""Rows in one INSERT, filled up with rows that change nothing, so that few statements are prepared.
Nine columns in each: 7,290 variables at most. Stock SQLite allows 32,766 since 3.32."""

PIECE_BYTES = 1024 * 1024
"""Payloads and results in one INSERT: a cached statement holds what was bound to it until its next use."""

STATUSES = frozenset(get_args(Status.__value__))

# The live rows, by what their next attempt would be (see schema.py).
_DUE = "tasks INDEXED BY tasks_due WHERE finished_at IS NULL AND max_attempts > attempt + 1"
_LAST_OR_SPENT = "tasks INDEXED BY tasks_last WHERE finished_at IS NULL AND max_attempts <= attempt + 1"
_LAST = f"{_LAST_OR_SPENT} AND max_attempts > attempt"
_SPENT = "tasks INDEXED BY tasks_spent WHERE finished_at IS NULL AND max_attempts <= attempt"
_OLD = "tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL"
_HELD = "id = NEW.key AND claim = NEW.claim AND finished_at IS NULL"
_OLDEST_FIRST = "ORDER BY available_at, id"
_NOTE_REFUSAL = "INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;"
_RESERVE = "status = 'in_progress', attempt = attempt + 1, claim = NEW.claim, started_at = NEW.now"

_TRIGGERS = {
    "enqueue": """
        INSERT INTO tasks (task_id, max_attempts, available_at, payload, name, format, enqueued_at)
        VALUES (NEW.key, NEW.claim, NEW.at, NEW.a, NEW.b, NEW.c, NEW.now);
    """,
    # First what nobody may try again, then a last attempt, if it is the oldest and its worker is
    # empty, and only where there was none the others. Leases end a microsecond apart, in the order
    # in which the tasks were due: that is how the order is read back.
    "reserve": f"""
        INSERT INTO note SELECT 'buried', task_id, NEW.claim
            FROM {_SPENT} AND available_at <= NEW.now
            {_OLDEST_FIRST} LIMIT {BURIED_PER_RESERVATION};
        UPDATE tasks SET status = 'failed', finished_at = NEW.now, claim = NULL,
            error = 'WorkerDiedError: each of ' || attempt || ' attempts ended with the death of its '
                || 'worker, or with a lease that was not renewed; the last one ran alone'
            WHERE task_id IN (SELECT key FROM note WHERE kind = 'buried' AND claim = NEW.claim);
        UPDATE tasks SET {_RESERVE}, available_at = NEW.at
            WHERE NEW.a AND available_at <= ifnull((SELECT min(available_at) FROM {_DUE}), available_at)
            AND id = (SELECT id FROM {_LAST} AND available_at <= NEW.now {_OLDEST_FIRST} LIMIT 1);
        UPDATE tasks SET {_RESERVE}, available_at = NEW.at + oldest.n
            FROM (SELECT id AS key, row_number() OVER ({_OLDEST_FIRST}) AS n FROM (
                SELECT id, available_at FROM {_DUE} AND available_at <= NEW.now
                {_OLDEST_FIRST} LIMIT NEW.key)) AS oldest
            WHERE tasks.id = oldest.key AND changes() = 0;
    """,
    "renew": f"UPDATE tasks SET available_at = NEW.at WHERE {_HELD}; {_NOTE_REFUSAL}",
    # A finished row keeps its claim: so an outcome that was recorded although its commit seemed to
    # fail is told from one that came too late.
    "finish": f"""
        UPDATE tasks SET status = NEW.a, finished_at = NEW.now, result = NEW.b, error = NEW.c, traceback = NEW.d
            WHERE {_HELD};
        {_NOTE_REFUSAL}
    """,
    "release": f"""
        UPDATE tasks SET status = 'pending', claim = NULL, attempt = attempt - 1,
            available_at = min(enqueued_at, NEW.now), started_at = CASE attempt WHEN 1 THEN NULL ELSE started_at END
            WHERE {_HELD};
        {_NOTE_REFUSAL}
    """,
    "prune": f"DELETE FROM tasks WHERE id IN (SELECT id FROM {_OLD} AND finished_at < NEW.at LIMIT NEW.key);",
}

_VALUES = {count: f"VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?, ?, ?)'] * count)}" for count in ROW_COUNTS}
_CHANGES = {count: f"INSERT INTO change {values}" for count, values in _VALUES.items()}
# Rows that are stored and nothing else need no trigger, which is a third cheaper.
_ENQUEUES = {
    count: f"""
        INSERT INTO tasks (enqueued_at, task_id, max_attempts, available_at, payload, name, format)
        SELECT column2, column3, column4, column5, column6, column7, column8
        FROM ({values}) WHERE column1 = 'enqueue'
    """
    for count, values in _VALUES.items()
}
_DATA = {"enqueue": 5, "finish": 6}  # where a row holds what may be large
_NO_CHANGE: Row = (None,) * 9

_HEADS = "SELECT " + ", ".join(
    f"(SELECT available_at FROM {some} AND available_at NOTNULL {_OLDEST_FIRST} LIMIT 1)"
    for some in (_DUE, _LAST, _SPENT)
)
_RESERVED = " UNION ALL ".join(
    f"""
    SELECT available_at, id, claim, task_id, payload, name, format, attempt, max_attempts, enqueued_at
        FROM {some} AND available_at BETWEEN ?1 AND ?2 AND claim = ?3
    """
    for some in (_DUE, _LAST_OR_SPENT)
)
_IS_RECORDED = "SELECT 1 FROM tasks WHERE id = ? AND claim = ? AND status = ? AND finished_at IS NOT NULL"
_GET = """
    SELECT task_id, status, result, error, traceback, attempt, enqueued_at, started_at, finished_at
    FROM tasks WHERE task_id = ?
"""


_ENDED = """
    SELECT asked.value FROM json_each(?) AS asked
    WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE task_id = asked.value AND finished_at IS NULL)
"""


def fetch_all(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Returns all rows of a query; in text that is not UTF-8, which sitq does not write, the bytes are replaced."""
    try:
        return connection.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # a third slower than SQLite's own
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.text_factory = str


def install(connection: sqlite3.Connection) -> None:
    """Makes the view and its triggers, in memory, for this connection."""
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("CREATE TEMP TABLE note (kind, key, claim)")
    columns = ("op", "now", "key", "claim", "at", "a", "b", "c", "d")
    nulls = ", ".join(f"NULL AS {column}" for column in columns)
    connection.execute(f"CREATE TEMP VIEW change AS SELECT {nulls}")
    for op, body in _TRIGGERS.items():
        connection.execute(
            f"CREATE TEMP TRIGGER change_{op} INSTEAD OF INSERT ON change WHEN NEW.op = '{op}' BEGIN {body} END"
        )


def apply(connection: sqlite3.Connection, rows: Iterable[Row]) -> Notes:
    """Carries out changes, all or none, and returns what there is to note about them."""
    # Piece by piece: rows made all at once would keep the interpreter lock from the event loop for as long.
    pieces = _pieces(rows)
    begun = list(itertools.islice(pieces, 2))
    only_stored = False
    if not begun:
        return frozenset()
    if len(begun) == 1:
        only_stored = _insert(connection, begun[0])
    else:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for piece in itertools.chain(begun, pieces):
                _insert(connection, piece)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise
    if only_stored:
        return frozenset()
    notes = frozenset(fetch_all(connection, "SELECT kind, key, claim FROM note"))
    if notes:
        connection.execute("DELETE FROM note")
    return notes


def _pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Divides changes into what one statement takes."""
    piece: list[Row] = []
    size = 0
    for row in rows:
        size += len(row[_DATA.get(row[0], 8)] or b"")
        if piece and (len(piece) == ROW_COUNTS[-1] or size > PIECE_BYTES):
            yield piece
            piece, size = [], len(row[_DATA.get(row[0], 8)] or b"")
        piece.append(row)
    if piece:
        yield piece


def _insert(connection: sqlite3.Connection, rows: list[Row]) -> bool:
    """Carries out up to a statement's worth of changes; whether they only stored tasks."""
    only_stored = all(row[0] == "enqueue" for row in rows)
    statements = _ENQUEUES if only_stored else _CHANGES
    count = ROW_COUNTS[bisect_left(ROW_COUNTS, len(rows))]
    rows += [_NO_CHANGE] * (count - len(rows))
    connection.execute(statements[count], list(itertools.chain.from_iterable(rows)))
    return only_stored


def enqueue(now: int, tasks: Sequence[NewTask]) -> Iterator[Row]:
    """Stores ``tasks`` in this order."""
    for task in tasks:
        due = now + int((task.delay or 0) * 1_000_000) if task.eta is None else max(now, to_micros(task.eta))
        yield "enqueue", now, task.task_id, task.max_attempts, due, task.payload, task.name, task.format, None


def reserve(now: int, limit: int, claim: int, until: int, alone: bool) -> Row:
    """Gives out due tasks under ``claim``; :func:`reserved` reads which."""
    return "reserve", now, limit, claim, until, alone, None, None, None


def finish(now: int, outcomes: Sequence[Outcome], status: Status) -> Iterator[Row]:
    """Records outcomes."""
    for task, result, error, traceback, *_ in outcomes:
        yield "finish", now, task.key, task.claim, None, status, result, error, traceback


def held(
    op: Literal["renew", "release"], now: int, tasks: Sequence[ReservedTask], until: int | None = None
) -> Iterator[Row]:
    """Moves the end of leases to ``until``, or gives tasks back with the attempt unspent."""
    for task in tasks:
        yield op, now, task.key, task.claim, until, None, None, None, None


def prune(now: int, before: int) -> Row:
    """Deletes some tasks that finished before ``before``."""
    return "prune", now, PRUNED_PER_RESERVATION, None, before, None, None, None, None


def _heads(connection: sqlite3.Connection) -> list[float]:
    """Returns when the first ordinary task, the first last attempt and the first spent one are due."""
    # What is no integer was not written by sitq. A REAL stands among the integers by its value: taking
    # that task, when it is due, mends the row. SQLite sorts text behind every number: never due.
    (heads,) = fetch_all(connection, _HEADS)
    return [at if isinstance(at, (int, float)) else inf for at in heads]


def is_due(connection: sqlite3.Connection, now: int, alone: bool) -> bool:
    """Whether a reservation would change anything, which costs the write lock to try."""
    due, last, spent = _heads(connection)
    return due <= now or spent <= now or (alone and last <= now)


def is_prunable(connection: sqlite3.Connection, before: int) -> bool:
    """Whether :func:`prune` would delete anything."""
    return connection.execute(f"SELECT 1 FROM {_OLD} AND finished_at < ? LIMIT 1", (before,)).fetchone() is not None


def reserved(connection: sqlite3.Connection, now: int, limit: int, claim: int, until: int, notes: Notes) -> Found:
    """Reads what a reservation gave out, and what a caller should know of the rest."""
    rows = fetch_all(connection, _RESERVED, (until, until + limit, claim))
    due, last, spent = _heads(connection)
    ahead = min((at for at in (due, last, spent) if at > now), default=inf)
    return rows, Reservation(
        buried=[key for kind, key, its_claim in notes if kind == "buried" and its_claim == claim],
        next_due_in=None if ahead == inf else (ahead - now) / 1_000_000,
        last_attempt_waiting=last <= now and last <= due,
    )


def to_reservation(found: Found) -> Reservation:
    """Returns what was read as the contract has it; made by the event loop while SQLite is at the next hop."""
    rows, reservation = found
    rows.sort()  # by the end of the lease, which keeps the order
    return replace(reservation, tasks=[_reserved(row) for row in rows])


def _reserved(row: Row) -> ReservedTask:
    _, key, claim, task_id, payload, name, format_, attempt, max_attempts, micros = row
    # What is of another's making must not strand the whole batch.
    try:
        enqueued_at = from_micros(micros)
    except (TypeError, OverflowError):
        enqueued_at = EPOCH
    if not isinstance(attempt, int):
        attempt = 1
    if not isinstance(max_attempts, int):
        max_attempts = attempt + 1
    return ReservedTask(key, claim, task_id, payload, name, format_, attempt, max_attempts, enqueued_at)


def refused(tasks: Iterable[ReservedTask], notes: Notes) -> list[ReservedTask]:
    """Returns the tasks whose claim did not hold."""
    if not notes:
        return []
    return [task for task in tasks if ("refused", task.key, task.claim) in notes]


def unrecorded(
    connection: sqlite3.Connection, outcomes: Sequence[Outcome], status: Status, notes: Notes
) -> list[ReservedTask]:
    """Returns the tasks whose outcome was refused, and had not been recorded by an earlier try."""
    return [
        task
        for task in refused((outcome.task for outcome in outcomes), notes)
        if not connection.execute(_IS_RECORDED, (task.key, task.claim, status)).fetchone()
    ]


def ended(connection: sqlite3.Connection, task_ids: Sequence[str], seen: object) -> tuple[object, Sequence[str]]:
    """Returns which of some tasks are finished or deleted, and the state of the file that was seen.

    Args:
        connection: Its own commits are announced, and are not looked for.
        task_ids: The tasks.
        seen: What an earlier call returned, or ``None``; nothing is looked for if no other connection
            has committed since.
    """
    state = connection, connection.execute("PRAGMA data_version").fetchone()[0]
    if state == seen:
        return state, ()
    return state, [task_id for (task_id,) in fetch_all(connection, _ENDED, (json.dumps(task_ids),))]


def get_result(connection: sqlite3.Connection, task_id: str) -> Result[bytes] | None:
    """Looks for a task.

    Raises:
        BackendCorruptError: Its row holds what sitq did not write.
    """
    try:
        found = fetch_all(connection, _GET, (task_id,))
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    if not found:
        return None
    key, status, value, error, traceback, attempt, *times = found[0]
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
