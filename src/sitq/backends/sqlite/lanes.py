"""Named queues and priorities in the file: what a lane adds to it, and the changes that concern lanes.

A task of the default queue at the default priority has neither, and stands in the indexes that every file
has. All other tasks stand in two indexes of their own, which begin with queue and priority: so there is one
ordered range for each lane, and neither what is not due nor what stands in other lanes is read to find the
first of a lane.

The default queue is named ``''`` where its tasks have a priority. What finds the lanes and chooses among them
stands in ``choosing``, the statements in ``lane_operations``.
"""

from typing import NamedTuple

from sitq.backends.sqlite.abilities import Ability
from sitq.backends.sqlite.conditions import DUE_ROWS, LAST_OR_SPENT_ROWS, SPENT_ROWS
from sitq.models import Extras

LANES = Ability(
    "lanes",
    (
        # Without the rows of the lanes, which nobody takes from these two. The names stay, and every statement
        # of a process of schema 3 asks for `queue IS NULL`, so that it goes on. A process of schema 2 that has
        # the file open gets an error for each reservation from now on.
        "DROP INDEX tasks_due",
        "DROP INDEX tasks_last",
        """CREATE INDEX tasks_due ON tasks (available_at, id)
        WHERE finished_at IS NULL AND queue IS NULL AND max_attempts > attempt + 1""",
        """CREATE INDEX tasks_last ON tasks (available_at, id)
        WHERE finished_at IS NULL AND queue IS NULL AND max_attempts <= attempt + 1""",
        """CREATE INDEX tasks_lane_due ON tasks (queue, priority, available_at, id)
        WHERE finished_at IS NULL AND queue IS NOT NULL AND max_attempts > attempt + 1""",
        # Not those that are spent: `tasks_spent` has them, of whatever lane.
        """CREATE INDEX tasks_lane_last ON tasks (queue, priority, available_at, id)
        WHERE finished_at IS NULL AND queue IS NOT NULL AND max_attempts <= attempt + 1 AND max_attempts > attempt""",
        "CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID",
    ),
)

LANE_DUE_ROWS = (
    "tasks INDEXED BY tasks_lane_due WHERE finished_at IS NULL AND queue IS NOT NULL AND max_attempts > attempt + 1"
)
LANE_LAST_ROWS = (
    "tasks INDEXED BY tasks_lane_last WHERE finished_at IS NULL AND queue IS NOT NULL "
    "AND max_attempts <= attempt + 1 AND max_attempts > attempt"
)


class StoreInLane(NamedTuple):
    """Stores a task of a named queue, or one with a priority."""

    task_id: str
    name: str
    format: str
    payload: bytes
    max_attempts: int
    available_at: int
    queue: str
    priority: int


class Bury(NamedTuple):
    """Fails tasks whose attempts are spent, of whatever lane."""

    claim: int


class TakeDue(NamedTuple):
    """Gives out due tasks of the default lane, until ``max_rows`` are given out under this claim."""

    claim: int
    available_at: int
    max_rows: int


class TakeDueInLane(NamedTuple):
    """Gives out due tasks of a lane, until ``max_rows`` are given out under this claim."""

    claim: int
    available_at: int
    max_rows: int
    queue: str
    priority: int


class TakeLast(NamedTuple):
    """Gives out the first last attempt of the default lane, and nothing else under this claim."""

    claim: int
    available_at: int


class TakeLastInLane(NamedTuple):
    """Gives out the first last attempt of a lane, and nothing else under this claim."""

    claim: int
    available_at: int
    queue: str
    priority: int


class Pause(NamedTuple):
    """Has nobody take tasks of a queue."""

    queue: str


class Resume(NamedTuple):
    """Ends a pause."""

    queue: str


type LaneChange = StoreInLane | Bury | TakeDue | TakeDueInLane | TakeLast | TakeLastInLane | Pause | Resume


def live_rows(*, has_lanes: bool) -> tuple[str, ...]:
    """Returns where the unfinished tasks of a file are found, each of them once."""
    if not has_lanes:
        return DUE_ROWS, LAST_OR_SPENT_ROWS
    return DUE_ROWS, LAST_OR_SPENT_ROWS, LANE_DUE_ROWS, LANE_LAST_ROWS, f"{SPENT_ROWS} AND queue IS NOT NULL"


def lane_of(extras: Extras | None) -> tuple[str, int] | None:
    """Returns queue and priority of a task as its row has them; ``None`` for the default lane."""
    if extras is None or not (extras.queue or extras.priority):
        return None
    return extras.queue, extras.priority
