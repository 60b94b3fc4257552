"""Tasks in progress that were asked to end: what a file is given for them, and what is read of them.

A task that was asked is one with a moment in the column ``cancelling``. That it is not given out again is
seen to by a trigger of the file: so it holds for processes of an older sitq and for SQL by hand as well.
"""

import sqlite3
from collections.abc import Sequence

from sitq.backends.sqlite.abilities import Ability, abilities, known_abilities
from sitq.backends.sqlite.changes import Ask, Change, Cut, Unask
from sitq.backends.sqlite.conditions import ABANDONED, NOTE_UNCHANGED
from sitq.errors import ASKED, CUT
from sitq.models import ReservedTask

# The trigger has three cases: put back by a release or a retry by policy; taken over or buried, because its
# worker is gone; and made pending after it had finished, by which the request is forgotten. A trigger has no
# clock of the store's: a task that was put back has ended when it was asked. One that was put back keeps its
# claim, by which the outcome is recognised. The claim of a takeover is negated: by that the reservation finds
# it, and as a task that it has given out nobody can.
ABILITY = Ability(
    "cancelling",
    (
        "ALTER TABLE tasks ADD COLUMN cancelling INTEGER",
        "CREATE INDEX tasks_cancelling ON tasks (id) WHERE cancelling IS NOT NULL AND finished_at IS NULL",
        f"""
        CREATE TRIGGER task_asked AFTER UPDATE OF status ON tasks WHEN NEW.cancelling IS NOT NULL BEGIN
            UPDATE tasks SET status = 'cancelled', error = '{ASKED}', traceback = NULL,
                finished_at = CASE NEW.status
                    WHEN 'pending' THEN max(NEW.cancelling, ifnull(NEW.started_at, 0))
                    WHEN 'in_progress' THEN NEW.started_at
                    ELSE NEW.finished_at END,
                claim = iif(NEW.status = 'pending', NEW.claim, -NEW.claim)
                WHERE id = NEW.id AND OLD.status = 'in_progress' AND (
                    NEW.status = 'pending'
                    OR (NEW.status = 'in_progress' AND NEW.claim IS NOT OLD.claim)
                    OR (NEW.status = 'failed' AND NEW.claim IS NULL));
            UPDATE tasks SET cancelling = NULL
                WHERE id = NEW.id AND OLD.finished_at IS NOT NULL AND NEW.finished_at IS NULL;
        END
        """,
    ),
)

CAN_END = "(status = 'in_progress' AND finished_at IS NULL)"

OPERATIONS: dict[type[Change], str] = {
    Ask: f"""
        UPDATE tasks SET cancelling = ifnull(cancelling, NEW.now) WHERE task_id = NEW.task_id AND {CAN_END};
        {NOTE_UNCHANGED}
    """,
    Cut: f"""
        UPDATE tasks SET status = 'cancelled', finished_at = NEW.now, claim = NULL, error = '{CUT}', traceback = NULL
            WHERE task_id = NEW.task_id AND {CAN_END};
        {NOTE_UNCHANGED}
    """,
    # Before a retry by hand of an abandoned task, which the trigger would take for one that was put back.
    Unask: f"""
        UPDATE tasks SET cancelling = NULL WHERE task_id = NEW.task_id AND {ABANDONED.format(now="NEW.now")};
    """,
}

_ASKED = """
    SELECT id, claim FROM tasks INDEXED BY tasks_cancelling
    WHERE cancelling IS NOT NULL AND finished_at IS NULL AND status = 'in_progress'
"""
# As bytes: a malformed text must not strand what the reservation has given out.
_NOT_TAKEN = "SELECT CAST(task_id AS BLOB) FROM tasks INDEXED BY tasks_finished WHERE finished_at = ? AND claim = ?"
_NOT_BURIED = "SELECT 1 FROM tasks WHERE task_id = ? AND status = 'cancelled'"
_IS_ENDED = "SELECT 1 FROM tasks WHERE id = ? AND claim = ? AND status = 'cancelled' AND cancelling IS NOT NULL"


def is_used(connection: sqlite3.Connection) -> bool:
    """Whether anybody has ever asked a task of this file to end."""
    return ABILITY.name in abilities(connection)


def asked(connection: sqlite3.Connection) -> list[tuple[int | str, int | str]]:
    """Returns the key and the claim of every task in progress that was asked to end."""
    return connection.execute(_ASKED).fetchall() if is_used(connection) else []


def column(connection: sqlite3.Connection) -> str:
    """Returns what a query says for the moment at which a task was asked to end."""
    return "cancelling" if is_used(connection) else "NULL"


def ended_instead(connection: sqlite3.Connection, now: int, claim: int, buried: Sequence[str]) -> list[str]:
    """Returns the tasks that a reservation has ended because they were asked to end, which it wanted to take or bury.

    Args:
        connection: Where it was made.
        now: When it was made, in microseconds.
        claim: Its claim.
        buried: The tasks that it has buried, or so it seems.
    """
    if ABILITY.name not in known_abilities(connection):
        return []
    taken = [data.decode(errors="replace") for (data,) in connection.execute(_NOT_TAKEN, (now, -claim))]
    return taken + [task_id for task_id in buried if connection.execute(_NOT_BURIED, (task_id,)).fetchone()]


def is_ended(connection: sqlite3.Connection, task: ReservedTask) -> bool:
    """Whether the outcome of ``task``, which was to be tried again, was recorded and has ended it."""
    return is_used(connection) and connection.execute(_IS_ENDED, (task.key, task.claim)).fetchone() is not None
