"""Failed attempts: the table that a file is given at the first one, and how they are kept in it.

Only failures write there. A row goes with its task, whoever deletes that: a trigger of the file sees to it.
A retry by hand leaves them: whoever asks for it wants to see later what happened before.
"""

from sitq.backends.sqlite.abilities import Ability
from sitq.backends.sqlite.changes import Change, KeepAndFail, KeepAndRetry
from sitq.backends.sqlite.conditions import IS_HELD
from sitq.backends.sqlite.operations import FAIL, RETRY_LATER

MAX_KEPT_FAILURES = 50
"""Failed attempts that are kept of one task; the oldest goes if there is another one."""

# The number counts the failures of a task for as long as it is there; its attempts begin anew with a retry by hand.
ABILITY = Ability(
    "failures",
    (
        """
        CREATE TABLE task_failures (
            task INTEGER NOT NULL,
            number INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            started_at INTEGER,
            ended_at INTEGER NOT NULL,
            error TEXT,
            traceback TEXT,
            ran_on TEXT NOT NULL,
            PRIMARY KEY (task, number)
        ) WITHOUT ROWID
        """,
        """
        CREATE TRIGGER task_deleted_with_failures AFTER DELETE ON tasks BEGIN
            DELETE FROM task_failures WHERE task = OLD.id;
        END
        """,
    ),
)

# Before the record of the outcome, which ends the claim: recorded again, the outcome keeps nothing.
_KEEP = f"""
    INSERT INTO task_failures (task, number, attempt, started_at, ended_at, error, traceback, ran_on)
        SELECT id, 1 + ifnull((SELECT max(number) FROM task_failures WHERE task = NEW.id), 0),
            attempt, started_at, NEW.now, NEW.error, NEW.traceback, NEW.ran_on
        FROM tasks WHERE {IS_HELD};
    DELETE FROM task_failures WHERE task = NEW.id
        AND number <= (SELECT max(number) FROM task_failures WHERE task = NEW.id) - {MAX_KEPT_FAILURES};
"""

OPERATIONS: dict[type[Change], str] = {KeepAndFail: _KEEP + FAIL, KeepAndRetry: _KEEP + RETRY_LATER}
