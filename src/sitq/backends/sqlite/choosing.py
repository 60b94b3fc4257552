"""Which lanes a reservation takes from, and how much from each.

The lanes of a file are found by two loose scans, one inside of the other: the next queue, and in it the next
priority. Each is one seek in an index, however many tasks there are. (``(queue, priority) > (?, ?)`` uses the
index for its first column only: among a million tasks that took 10,000 times as long.)

What is read here is read before the write lock is taken. So a reservation is asked for numbers, not for rows:
the oldest that a lane has then are taken, and what one lane does not have any more the others give.
"""

import functools
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from sitq.backends.sqlite.abilities import SCHEMA_SIZE, known_abilities, notice
from sitq.backends.sqlite.conditions import DUE_ROWS, LAST_ROWS, OLDEST_FIRST, SPENT_ROWS
from sitq.backends.sqlite.lanes import (
    LANE_DUE_ROWS,
    LANE_LAST_ROWS,
    LANES,
    Bury,
    LaneChange,
    TakeDue,
    TakeDueInLane,
    TakeLast,
    TakeLastInLane,
)
from sitq.backends.sqlite.queries import TAKEN, TAKEN_FROM, Found
from sitq.backends.sqlite.statements import Notes, Row, fetch_all
from sitq.models import Reservation

STRICT_MICROS = 10**19
"""A head start that no two moments can make good."""

_LOWEST = -(2**63)

# The served queues that are not paused, and then their lanes. A row whose priority is NULL, which sitq does not
# write, must not hide the lanes of its queue.
_ALL_QUEUES = """
    SELECT (SELECT queue FROM {rows} ORDER BY queue LIMIT 1)
    UNION ALL SELECT (SELECT queue FROM {rows} AND queue > queues.q ORDER BY queue LIMIT 1)
        FROM queues WHERE queues.q NOTNULL"""
_LANES = f"""
    WITH RECURSIVE queues (q) AS ({{queues}}), lanes (q, p) AS (
        SELECT q, (SELECT priority FROM {{rows}} AND queue = queues.q AND priority >= {_LOWEST}
                ORDER BY priority LIMIT 1)
            FROM queues WHERE q NOTNULL AND NOT EXISTS (SELECT 1 FROM paused WHERE queue = queues.q)
        UNION ALL
        SELECT q, (SELECT priority FROM {{rows}} AND queue = lanes.q AND priority > lanes.p ORDER BY priority LIMIT 1)
            FROM lanes WHERE p NOTNULL)
    SELECT q, p, (SELECT available_at FROM {{rows}} AND queue = lanes.q AND priority = lanes.p
        AND available_at NOTNULL {OLDEST_FIRST} LIMIT 1) FROM lanes WHERE p NOTNULL
"""
_IN_LANES = (LANE_DUE_ROWS, LANE_LAST_ROWS)
ALL_LANES = {rows: _LANES.format(queues=_ALL_QUEUES.format(rows=rows), rows=rows) for rows in _IN_LANES}
SOME_LANES = {rows: _LANES.format(queues="SELECT value FROM json_each(?1)", rows=rows) for rows in _IN_LANES}
_HEAD = f"SELECT available_at FROM {{rows}} AND available_at NOTNULL {OLDEST_FIRST} LIMIT 1"
HEAD = {rows: _HEAD.format(rows=rows) for rows in (DUE_ROWS, LAST_ROWS, SPENT_ROWS)}
IS_PAUSED = "SELECT 1 FROM paused WHERE queue = ''"

_FIRST = f"SELECT available_at, id FROM {{rows}} AND available_at <= ?1 {OLDEST_FIRST} LIMIT ?2"
FIRST_OF_DEFAULT = _FIRST.format(rows=DUE_ROWS)
FIRST_OF_LANE = _FIRST.format(rows=f"{LANE_DUE_ROWS} AND queue = ?3 AND priority = ?4")


# By its attempt, what was taken may be one whose next attempt would be the last.
_OF_LANE = "AND queue = ?4 AND priority = ?5"
TAKEN_FROM_LANE = " UNION ALL ".join(TAKEN_FROM.format(rows=f"{rows} {_OF_LANE}") for rows in _IN_LANES)
TAKEN_AS_LAST = TAKEN_FROM.format(rows=SPENT_ROWS)  # until it ends, it is what may not be started again


class Selection(NamedTuple):
    """What a backend, or a view of one, gives out.

    Attributes:
        queues: The names of the queues that are served; ``None`` for all.
        head_start: Microseconds for each step of priority.
    """

    queues: tuple[str, ...] | None
    head_start: int

    @property
    def has_default(self) -> bool:
        """Whether the default queue is served."""
        return self.queues is None or "" in self.queues

    @property
    def json(self) -> str:
        """The names of the queues, for a statement."""
        return json.dumps(self.queues)


class Head(NamedTuple):
    """A lane, and the first of its tasks of one kind.

    Attributes:
        rank: Which lane is served first: ``at``, less the head start.
        at: When that task is due, or its lease over, in microseconds.
        queue: Of the lane; ``None`` for the default lane.
        priority: Of the lane.
    """

    rank: float
    at: float
    queue: str | None
    priority: int


class Heads(NamedTuple):
    """The lanes that are served.

    Attributes:
        due: Those that have ordinary tasks, due or not, the smallest rank first.
        last: Those that have last attempts.
        spent: When the first spent task of any queue is to be buried; infinite if there is none.
        has_default: Whether the default lane is served, whether it has tasks or not.
    """

    due: list[Head]
    last: list[Head]
    spent: float
    has_default: bool

    def due_at(self, now: int) -> list[Head]:
        """Returns the lanes of which something is due."""
        return [head for head in self.due if head.at <= now]

    def last_attempt(self, now: int) -> Head | None:
        """Returns the lane whose last attempt is due and comes before every ordinary task that is due."""
        last = min((head for head in self.last if head.at <= now), key=attrgetter("rank"), default=None)
        due = self.due_at(now)
        return last if last is not None and (not due or last.rank <= due[0].rank) else None

    def next_after(self, now: int) -> float:
        """Returns the first moment at which something else is due; infinite if there is none."""
        moments = [head.at for head in (*self.due, *self.last)]
        return min((at for at in (*moments, self.spent) if at > now), default=math.inf)


def find_heads(connection: sqlite3.Connection, selection: Selection, *, last_only: bool = False) -> Heads:
    """Returns the lanes from which a reservation may take now; of those with ordinary tasks none, if so asked."""
    has_lanes = LANES.name in known_abilities(connection)
    parameters = () if selection.queues is None or not has_lanes else (selection.json,)
    due: list[Row] = []
    last: list[Row] = []
    has_default, spent = selection.has_default, math.inf
    for kind, *lane in fetch_all(connection, _heads(selection.queues is None, has_lanes, last_only), parameters):
        if kind == "paused":
            has_default = False
        elif kind == "schema":
            notice(connection, lane[2])
        elif kind == "spent":
            spent = lane[2] if isinstance(lane[2], (int, float)) else math.inf
        else:
            (due if kind == "due" else last).append(tuple(lane))
    by_rank = attrgetter("rank")
    return Heads(
        sorted(_ranked(selection, due, has_default), key=by_rank),
        sorted(_ranked(selection, last, has_default), key=by_rank),
        spent,
        has_default,
    )


@functools.cache
def _heads(all_queues: bool, has_lanes: bool, last_only: bool) -> str:
    """Returns the query for all heads: one, because each statement has to get the interpreter lock back."""
    parts = [f"SELECT 'spent', NULL, 0, ({HEAD[SPENT_ROWS]})", f"SELECT 'schema', NULL, 0, {SCHEMA_SIZE}"]
    for kind, of_default, of_lanes in (("due", DUE_ROWS, LANE_DUE_ROWS), ("last", LAST_ROWS, LANE_LAST_ROWS)):
        if kind == "due" and last_only:
            continue
        parts.append(f"SELECT '{kind}', NULL, 0, ({HEAD[of_default]})")
        if has_lanes:
            parts.append(f"SELECT '{kind}', * FROM ({(ALL_LANES if all_queues else SOME_LANES)[of_lanes]})")
    if has_lanes:
        parts.append(f"SELECT 'paused', NULL, 0, 0 WHERE EXISTS ({IS_PAUSED})")
    return " UNION ALL ".join(parts)


def _ranked(selection: Selection, lanes: Iterable[Row], has_default: bool) -> Iterator[Head]:
    for queue, priority, at in lanes:
        if queue is None and not has_default:
            continue
        # What is no number was not written by sitq, and is never due: SQLite sorts it behind every number.
        if isinstance(at, (int, float)) and isinstance(priority, int):
            yield Head(at - priority * selection.head_start, at, queue, priority)


class Plan(NamedTuple):
    """What a reservation asks for.

    Attributes:
        buries: Whether there is something to bury.
        last: The lane of the last attempt that comes first; ``None`` if an ordinary task does.
        takes: The lanes to take from, the smallest rank first, each with the number of tasks that are taken
            from it and those before it together.
        others: The lanes to take from if those have less than they had.
        order: The lanes of the tasks in the order in which they come; ``None`` if there is one lane only.
        selection: What is served.
        has_last: Whether there are last attempts, due or not.
    """

    buries: bool
    last: Head | None
    takes: Sequence[tuple[Head, int]]
    others: Sequence[Head]
    order: Sequence[Head] | None
    selection: Selection
    has_last: bool

    @property
    def changes_anything(self) -> bool:
        """Whether there is something to give out or to bury, by what was seen."""
        return self.buries or self.last is not None or bool(self.takes)

    def changes(self, claim: int, until: int, limit: int) -> Iterator[LaneChange]:
        """Gives the changes that carry it out."""
        if self.buries:
            yield Bury(claim)
        if self.last is not None:
            if self.last.queue is None:
                yield TakeLast(claim, until)
            else:
                yield TakeLastInLane(claim, until, self.last.queue, self.last.priority)
        for head, most in (*self.takes, *((head, limit) for head in self.others)):
            if head.queue is None:
                yield TakeDue(claim, until, most)
            else:
                yield TakeDueInLane(claim, until, most, head.queue, head.priority)

    def read(self, connection: sqlite3.Connection, now: int, limit: int, claim: int, until: int, notes: Notes) -> Found:
        """Reads what was given out, and what a caller should know of the rest."""
        is_taken = any(kind == "taken" and token == claim for kind, _, token in notes)
        rows = self._rows(connection, limit, claim, until) if is_taken else []
        if len(rows) == limit and not self.has_last:  # who gets all that was asked for comes again anyhow
            return Found(now, rows, Reservation(buried=self._buried(claim, notes)))
        # And needs to know of last attempts only.
        heads = find_heads(connection, self.selection, last_only=len(rows) == limit)
        if heads.last_attempt(now) and len(rows) == limit:
            heads = find_heads(connection, self.selection)
        ahead = heads.next_after(now)
        reservation = Reservation(
            buried=self._buried(claim, notes),
            next_due_in=None if ahead == math.inf else (ahead - now) / 1_000_000,
            last_attempt_waiting=heads.last_attempt(now) is not None,
        )
        return Found(now, rows, reservation)

    @staticmethod
    def _buried(claim: int, notes: Notes) -> list[str]:
        return [task_id for kind, task_id, token in notes if kind == "buried" and token == claim]

    def _rows(self, connection: sqlite3.Connection, limit: int, claim: int, until: int) -> list[Row]:
        if self.last is not None and (rows := fetch_all(connection, TAKEN_AS_LAST, (until, until, claim))):
            return rows
        by_lane: dict[Head, Iterator[Row]] = {}
        found = 0
        for head in dict.fromkeys([*(head for head, _ in self.takes), *self.others]):
            sql, lane = (TAKEN, ()) if head.queue is None else (TAKEN_FROM_LANE, (head.queue, head.priority))
            rows = sorted(fetch_all(connection, sql, (until, until + limit, claim, *lane)))
            by_lane[head] = iter(rows)
            found += len(rows)
            if found == limit:
                break
        in_order = [row for head in self.order or () if head in by_lane and (row := next(by_lane[head], None))]
        in_order += [row for rows in by_lane.values() for row in rows]  # of one lane, or in place of what is gone
        # The leases of two lanes may end at the same moment: the order is told by the place instead.
        return [(place, *row[1:]) for place, row in enumerate(in_order)]


def make_plan(connection: sqlite3.Connection, now: int, limit: int, alone: bool, selection: Selection) -> Plan:
    """Decides what a reservation asks for."""
    heads = find_heads(connection, selection)
    due = heads.due_at(now)
    last = heads.last_attempt(now) if alone else None
    takes, order = _divide(connection, now, limit, due, selection)
    # What they do not have any more, because another process was faster, the others may have.
    others = list(due) if order is not None and (not takes or takes[-1][1] >= limit) else []
    if heads.has_default and all(head.queue is not None for head in due):
        others.append(Head(0, 0, None, 0))  # what this batch stores
    return Plan(heads.spent <= now, last, takes, others, order, selection, bool(heads.last))


def _divide(
    connection: sqlite3.Connection, now: int, limit: int, due: list[Head], selection: Selection
) -> tuple[list[tuple[Head, int]], list[Head] | None]:
    """Divides ``limit`` among lanes as the ranks of their tasks are."""
    if len(due) <= 1:
        return [(head, limit) for head in due], None
    first: list[tuple[float, int, int]] = []  # rank, id, number of the lane
    for number, head in enumerate(due):
        bonus, until = head.priority * selection.head_start, now
        if len(first) == limit:
            if head.rank > first[-1][0]:
                break
            until = min(now, int(first[-1][0] + bonus))
        rows = fetch_all(connection, *_first(head, until, limit))
        first = sorted([*first, *((at - bonus, key, number) for at, key in rows)])[:limit]
    counts, order = [0] * len(due), [due[number] for _, _, number in first]
    for _, _, number in first:
        counts[number] += 1
    takes, total = [], 0
    for head, count in zip(due, counts, strict=True):
        total += count
        if count:
            takes.append((head, total))
    return takes, order


def _first(head: Head, until: int, limit: int) -> tuple[str, Sequence[object]]:
    if head.queue is None:
        return FIRST_OF_DEFAULT, (until, limit)
    return FIRST_OF_LANE, (until, limit, head.queue, head.priority)
