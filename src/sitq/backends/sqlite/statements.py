"""The SQL of every change of state, and how changes are carried out.

A change is a row that is inserted into a temporary view, ``change`` or ``often_change``; its triggers carry it
out. So all changes of a batch are one ``INSERT``: one statement, which is one transaction and
one step of SQLite's, during which the interpreter lock is free and the event loop can run tasks.
A statement for each change, between BEGIN and COMMIT, took a third longer, and each of them had to
get the interpreter lock back from the loop.

The columns of the views are the fields of the records (see ``changes``), and two more: ``operation``,
which is the name of the record's class, and ``now``. There is a statement for each operation in ``operations``.
What those who asked for a change have to know of it stands in the temporary table ``note``:

===========  ===========  ========  ==================================================
kind         subject      token     what it says
===========  ===========  ========  ==================================================
not held     id           claim     the claim does not hold: nothing was changed
buried       task_id      claim     the task was failed, because its attempts are spent
unchanged    task_id      call      the task was not, or no longer, in a state to change
pruned       how many     call      so many tasks were deleted
stands       task_id      call      this task stands for the one that was to be stored
taken        how many     claim     so many tasks were given out (see ``lane_operations``)
===========  ===========  ========  ==================================================

Views, triggers and table belong to the connection, not to the file.
"""

import functools
import itertools
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from sitq.backends.sqlite import asking, failed_rows, failures, operations, reports, uniques
from sitq.backends.sqlite.changes import Change, StoreTask, Succeed
from sitq.backends.sqlite.lane_operations import LANE_OPERATIONS

type Row = tuple[Any, ...]
type Notes = frozenset[tuple[str, Any, int]]

ROW_COUNTS = (1, 2, 3, 4, 6, 9, 13, 17, 25, 33, 51, 70, 105, 160, 240, 360, 540, 810)
"""Rows in one INSERT, filled up with rows that change nothing, so that few statements are prepared.
Thirty-one columns in each at most: 25,110 variables. Stock SQLite allows 32,766 since 3.32."""

MAX_PIECE_BYTES = 1024 * 1024
"""Payloads and results in one INSERT: a cached statement holds what was bound to it until its next use."""

_OF_ABILITIES = failures.OPERATIONS | asking.OPERATIONS | LANE_OPERATIONS
_OF_ABILITIES |= uniques.OPERATIONS | failed_rows.OPERATIONS | reports.OPERATIONS
# Outcomes first: see _Layout.
_SQL: dict[type[Change], str] = {Succeed: operations.SUCCEED} | failures.OPERATIONS | operations.OFTEN
_SQL |= operations.SELDOM | _OF_ABILITIES
_SELDOM: frozenset[type[Change]] = frozenset(operations.SELDOM | _OF_ABILITIES)
_HAS_PAYLOAD: frozenset[type[Change]] = frozenset(kind for kind in _SQL if "payload" in kind._fields)

_COLUMNS = ("now", "operation", *dict.fromkeys(field for kind in _SQL for field in kind._fields))
_OFTEN_COLUMNS = [name for name in _COLUMNS if any(name in kind._fields for kind in operations.OFTEN)]

_VIEWS = {"often_change": ("now", "operation", *_OFTEN_COLUMNS), "change": _COLUMNS}
"""Each row of a view costs something for each of its columns, also for those that nothing is written to: so there
is one for the changes that every task needs, and one for all of them."""


class _Layout:
    """The INSERT for changes of some kinds, which names the columns that these have: the others cost nothing.

    Args:
        kinds: The classes of the records.
    """

    def __init__(self, kinds: frozenset[type[Change]]) -> None:
        # The fields of outcomes first, of which there are most: their values need not be put into another order.
        in_order = [kind for kind in _SQL if kind in kinds]
        columns = [*dict.fromkeys(field for kind in in_order for field in kind._fields), "operation"]
        self._row = f"(?1, {', '.join('?' * len(columns))})"  # the first parameter is the time, once for all rows
        self._start = f"INSERT INTO {_view_for(kinds)} (now, {', '.join(columns)}) VALUES"
        self._statements: dict[int, str] = {}  # by the number of rows
        self._no_change = (None,) * len(columns)
        self._rows = {kind: self._row_of(kind, columns) for kind in kinds}

    @staticmethod
    def _row_of(kind: type[Change], columns: list[str]) -> tuple[tuple[str | None, ...], Any]:
        """Returns what to put behind the values of a record, and what puts them in order unless they are."""
        fields = kind._fields
        if fields == tuple(columns[: len(fields)]):
            return (None,) * (len(columns) - len(fields) - 1) + (kind.__name__,), None
        places = {name: place for place, name in enumerate((*fields, "operation"))}
        none = len(places)
        return (kind.__name__, None), itemgetter(*(places.get(column, none) for column in columns))

    def execute(self, connection: sqlite3.Connection, now: int, changes: list[Change]) -> None:
        """Carries the changes out."""
        count = ROW_COUNTS[bisect_left(ROW_COUNTS, len(changes))]
        rows = self._rows
        values: list[Any] = [now]
        for change in changes:
            tail, in_order = rows[type(change)]
            row = change + tail
            values += row if in_order is None else in_order(row)
        values += self._no_change * (count - len(changes))
        sql = self._statements.get(count)
        if sql is None:
            sql = self._statements[count] = f"{self._start} {', '.join([self._row] * count)}"
        connection.execute(sql, values)


_layout = functools.lru_cache(maxsize=64)(_Layout)  # few sets of kinds meet in a batch again and again

_ONLY_STORED: frozenset[type[Change]] = frozenset({StoreTask})

# Tasks that are stored and nothing else need no trigger, which is a third cheaper.
_STORE_TASKS = {
    count: f"""
        INSERT INTO tasks (enqueued_at, {", ".join(StoreTask._fields)})
        SELECT * FROM (VALUES {", ".join([f"(?1, {', '.join('?' * len(StoreTask._fields))})"] * count)})
        LIMIT ?
    """
    for count in ROW_COUNTS
}


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
    connection.execute("CREATE TEMP TABLE note (kind, subject, token)")
    for view, columns in _VIEWS.items():
        connection.execute(f"CREATE TEMP VIEW {view} AS SELECT {', '.join(f'NULL AS {name}' for name in columns)}")
    for kind in operations.OFTEN:
        _install_trigger(connection, kind, "often_change")


def _view_for(kinds: frozenset[type[Change]]) -> str:
    return "change" if kinds & _SELDOM else "often_change"


def _install_trigger(connection: sqlite3.Connection, kind: type[Change], view: str) -> None:
    """Makes the trigger of an operation on a view for this connection, unless it is there."""
    connection.execute(
        f"CREATE TEMP TRIGGER IF NOT EXISTS {view}_{kind.__name__} INSTEAD OF INSERT ON {view} "
        f"WHEN NEW.operation = '{kind.__name__}' BEGIN {_SQL[kind]} END"
    )


def apply(connection: sqlite3.Connection, now: int, changes: Iterable[Change]) -> Notes:
    """Carries out changes, all or none, and returns what there is to note about them.

    Args:
        connection: One for which :func:`install` was called.
        now: When the changes are made, in microseconds.
        changes: In this order.
    """
    # Piece by piece: records made all at once would keep the interpreter lock from the event loop for as long.
    pieces = _pieces(changes)
    begun = list(itertools.islice(pieces, 2))
    only_stored = False
    if not begun:
        return frozenset()
    if len(begun) == 1:
        only_stored = _insert(connection, now, begun[0])
    else:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for piece in itertools.chain(begun, pieces):
                _insert(connection, now, piece)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise
    if only_stored:
        return frozenset()
    notes = frozenset(fetch_all(connection, "SELECT kind, subject, token FROM note"))
    if notes:
        connection.execute("DELETE FROM note")
    return notes


def _pieces(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Divides changes into what one statement takes."""
    piece: list[Change] = []
    size = 0
    for change in changes:
        length = _length(change)
        size += length
        if piece and (len(piece) == ROW_COUNTS[-1] or size > MAX_PIECE_BYTES):
            yield piece
            piece, size = [], length
        piece.append(change)
    if piece:
        yield piece


def _length(change: Change) -> int:
    """Returns the number of bytes of what may be large."""
    if type(change) is Succeed:
        return len(change.result or b"")
    return len(change.payload) if type(change) in _HAS_PAYLOAD else 0  # type: ignore[union-attr]


def _insert(connection: sqlite3.Connection, now: int, changes: list[Change]) -> bool:
    """Carries out up to a statement's worth of changes; returns whether they only stored tasks."""
    kinds = frozenset(map(type, changes))
    if kinds == _ONLY_STORED:
        count = ROW_COUNTS[bisect_left(ROW_COUNTS, len(changes))]
        no_task = (None,) * (len(StoreTask._fields) * (count - len(changes)))
        values = [now, *itertools.chain.from_iterable(changes), *no_task, len(changes)]
        connection.execute(_STORE_TASKS[count], values)
        return True
    if kinds & _SELDOM:
        for kind in kinds:
            _install_trigger(connection, kind, "change")
    _layout(kinds).execute(connection, now, changes)
    return False
