"""The SQL of the changes that concern lanes (see ``statements`` and ``lanes``).

A note of the kind ``taken`` says how many tasks a claim has been given, so that the next lane of the same
reservation gives the rest.
"""

from sitq.backends.sqlite.changes import Change
from sitq.backends.sqlite.conditions import DUE_ROWS, LAST_ROWS, OLDEST_FIRST, START
from sitq.backends.sqlite.lanes import (
    LANE_DUE_ROWS,
    LANE_LAST_ROWS,
    Bury,
    Pause,
    Resume,
    StoreInLane,
    TakeDue,
    TakeDueInLane,
    TakeLast,
    TakeLastInLane,
)
from sitq.backends.sqlite.operations import BURY

_OF_LANE = "AND queue = NEW.queue AND priority = NEW.priority"
_MAX_ROWS = 2**31 - 1
"""Noted as taken with a last attempt: more than anybody asks for."""

_STORE = """
    INSERT INTO tasks (task_id, name, format, payload, max_attempts, available_at, enqueued_at, queue, priority)
    VALUES (NEW.task_id, NEW.name, NEW.format, NEW.payload, NEW.max_attempts, NEW.available_at, NEW.now,
        NEW.queue, NEW.priority);
"""

# A negative limit would be none at all. (An aggregate of no rows is one row: the sum is NULL.)
_TAKE_DUE = f"""
    UPDATE tasks SET {START}, available_at = NEW.available_at + oldest.n
        FROM (SELECT id AS key, row_number() OVER ({OLDEST_FIRST}) AS n FROM (
            SELECT id, available_at FROM {{rows}} AND available_at <= NEW.now {OLDEST_FIRST}
            LIMIT max(0, NEW.max_rows - ifnull(
                (SELECT sum(subject) FROM note WHERE kind = 'taken' AND token = NEW.claim), 0)))) AS oldest
        WHERE tasks.id = oldest.key;
    INSERT INTO note SELECT 'taken', changes(), NEW.claim WHERE changes() > 0;
"""

_TAKE_LAST = f"""
    UPDATE tasks SET {START}, available_at = NEW.available_at
        WHERE id = (SELECT id FROM {{rows}} AND available_at <= NEW.now {OLDEST_FIRST} LIMIT 1);
    INSERT INTO note SELECT 'taken', {_MAX_ROWS}, NEW.claim WHERE changes() > 0;
"""

LANE_OPERATIONS: dict[type[Change], str] = {
    StoreInLane: _STORE,
    Bury: BURY,
    TakeDue: _TAKE_DUE.format(rows=DUE_ROWS),
    TakeDueInLane: _TAKE_DUE.format(rows=f"{LANE_DUE_ROWS} {_OF_LANE}"),
    TakeLast: _TAKE_LAST.format(rows=LAST_ROWS),
    TakeLastInLane: _TAKE_LAST.format(rows=f"{LANE_LAST_ROWS} {_OF_LANE}"),
    Pause: "INSERT OR IGNORE INTO paused VALUES (NEW.queue);",
    Resume: "DELETE FROM paused WHERE queue = NEW.queue;",
}
"""By the class of the record; the trigger of each is made when such a change is made for the first time."""
