"""Searching tasks, the newest first, in pieces between which other callers get their turn."""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sitq.backends.sqlite.abilities import abilities
from sitq.backends.sqlite.jobs import Job, ReadJob
from sitq.backends.sqlite.lanes import LANES, live_rows
from sitq.backends.sqlite.statements import Row
from sitq.models import FINISHED, Status

ROWS_PER_PIECE = 10_000
"""So many rows are read in a few milliseconds, for which other callers of the connection have to wait."""

LAST = 2**63 - 1
"""No key and no time of SQLite's is larger."""


class Connected(Protocol):
    """What carries out a job: a connection of the backend's, or one that only reads."""

    async def call[T](self, job: Job[T]) -> T:
        """Runs ``job`` and returns its result."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """Which tasks are wanted; what is ``None`` is no condition.

    Attributes:
        status: Their status.
        name: A text that their name contains, or a pattern for all of it.
        error: A text that their error contains.
        since: How many seconds ago they were finished, or else stored, at most.
        before: The id of the task that comes before them in the order.
        queue: The name of their queue, empty for the default one.
    """

    status: Status | None = None
    name: str | None = None
    error: str | None = None
    since: float | None = None
    before: str | None = None
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class _Order:
    """An order in which rows can be read by an index, and a place in it named.

    Attributes:
        rows: What stands between FROM and the first further condition.
        place: The columns of a place.
        after: The condition of the rows that come after a place.
        until: The condition of the rows that come before another place, or are that.
        direction: What stands behind ORDER BY.
    """

    rows: str
    place: str
    after: str
    until: str
    direction: str


_BY_KEY = _Order("tasks NOT INDEXED WHERE 1", "0, id", "id < :id", "id >= :last_id", "id DESC")
# By way of the indexes of the live rows (see schema.py and lanes.py). It reads all of them: if there are many,
# the newest of them are found sooner among the newest rows.
_LIVE_IDS, _LIVE_IDS_IN_LANES = (
    " UNION ALL ".join(f"SELECT id FROM {rows}" for rows in live_rows(has_lanes=has_lanes))
    for has_lanes in (False, True)
)
_LIVE, _LIVE_IN_LANES = (
    _Order(f"tasks WHERE id IN ({ids})", "0, id", "id < :id", "id >= :last_id", "id DESC")
    for ids in (_LIVE_IDS, _LIVE_IDS_IN_LANES)
)
_MANY_LIVE, _MANY_LIVE_IN_LANES = (
    f"SELECT 1 FROM ({ids}) LIMIT 1 OFFSET {ROWS_PER_PIECE}" for ids in (_LIVE_IDS, _LIVE_IDS_IN_LANES)
)
_BY_END = _Order(
    "tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL AND finished_at > :since",
    "finished_at, id",
    "(finished_at, id) < (:at, :id)",
    "(finished_at, id) >= (:last_at, :last_id)",
    "finished_at DESC, id DESC",
)
_PLACE_OF = "SELECT finished_at, id FROM tasks WHERE task_id = ?"


@dataclass(frozen=True, slots=True)
class _Walk:
    """A search that has begun."""

    order: _Order
    conditions: str
    values: dict[str, object]

    def piece(self, sqlite: sqlite3.Connection, columns: str, limit: int) -> tuple[list[Row], Row | None]:
        """Returns what fits among the next rows, and the place up to which rows were read; ``None`` at the end."""
        order, source = self.order, f"{self.order.rows} AND {self.order.after}"
        conditions, values, last = self.conditions, self.values | {"limit": limit}, None
        if conditions:  # without any, the limit ends it
            sql = f"SELECT {order.place} FROM {source} ORDER BY {order.direction} LIMIT 1 OFFSET {ROWS_PER_PIECE - 1}"
            last = sqlite.execute(sql, values).fetchone()
        if last:
            conditions += f" AND {order.until}"
            values |= {"last_at": last[0], "last_id": last[1]}
        sql = f"SELECT {columns} FROM {source}{conditions} ORDER BY {order.direction} LIMIT :limit"
        with decoded(sqlite):
            return sqlite.execute(sql, values).fetchall(), last


async def walk(connection: Connected, query: Query, columns: str, limit: int = 2**31 - 1) -> list[Row]:
    """Returns ``columns`` of up to ``limit`` tasks, the newest first.

    What is stored or finished meanwhile comes before the first of them, and is not found.

    Raises:
        ValueError: ``query.before`` is not in this list.
        BackendError: SQLite refused.
    """
    found: list[Row] = []
    last: Row | None
    try:
        search = await connection.call(ReadJob(lambda sqlite, now: _begin(sqlite, now, query)))
        while True:
            left = limit - len(found)
            rows, last = await connection.call(ReadJob(lambda sqlite, _: search.piece(sqlite, columns, left)))  # noqa: B023
            found += rows
            if last is None or len(found) >= limit:
                return found
            search.values["at"], search.values["id"] = last
    except UnicodeEncodeError:  # a lone surrogate: no row holds one
        return found


def _begin(sqlite: sqlite3.Connection, now: int, query: Query) -> _Walk:
    order = _BY_KEY
    if query.status in FINISHED:
        order = _BY_END
    elif query.status is not None:
        has_lanes = LANES.name in abilities(sqlite)
        if not sqlite.execute(_MANY_LIVE_IN_LANES if has_lanes else _MANY_LIVE).fetchone():
            order = _LIVE_IN_LANES if has_lanes else _LIVE
    conditions = {
        "status": "status = :status",
        "name": "name GLOB :name" if any(char in (query.name or "") for char in "*?[") else "instr(name, :name) > 0",
        "error": "instr(error, :error) > 0",
        "queue": "ifnull(queue, '') = :queue",
    }
    values: dict[str, object] = {name: value for name in conditions if (value := getattr(query, name)) is not None}
    wanted = "".join(f" AND {conditions[name]}" for name in values)
    if query.since is not None and order is not _BY_END:  # which ends there by itself
        wanted += " AND enqueued_at > :since"
    values["since"] = -LAST if query.since is None else now - int(query.since * 1_000_000)
    values["at"], values["id"] = _place(sqlite, order, query.before)
    return _Walk(order, wanted, values)


def _place(sqlite: sqlite3.Connection, order: _Order, task_id: str | None) -> Row:
    if task_id is None:
        return LAST, LAST
    row: Row | None = sqlite.execute(_PLACE_OF, (task_id,)).fetchone()
    if row is None or (order is _BY_END and row[0] is None):
        raise ValueError(
            f"before: there is no task {task_id!r} in this list; it was deleted or retried, or never there: "
            "begin again without it"
        )
    return row


@contextlib.contextmanager
def decoded(sqlite: sqlite3.Connection) -> Iterator[None]:
    """Lets text that is not UTF-8, which some other program wrote, be shown instead of being refused."""
    before, sqlite.text_factory = sqlite.text_factory, lambda data: data.decode(errors="backslashreplace")
    try:
        yield
    finally:
        sqlite.text_factory = before
