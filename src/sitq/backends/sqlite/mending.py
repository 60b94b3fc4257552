"""Changing tasks by hand: retrying, cancelling, pruning.

Beside the hot path: the changes are operations of their own on the view ``change``, whose triggers
a connection gets at the first of these calls. Each piece is looked at first, which takes no lock,
and then what was found is changed in one transaction; what has changed in between is refused.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import batched
from typing import Literal

from sitq.backends.sqlite.connection import Job
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.statements import Notes, Row
from sitq.models import new_claim

CHANGED_PER_TRANSACTION = 500
"""A million in one transaction kept the write lock for longer than others wait for it."""

# An abandoned task is one whose lease is over: its worker is gone, or will find its claim gone.
_ABANDONED = "status = 'in_progress' AND available_at <= "
_RETRIED = f"(status IN ('failed', 'cancelled') OR {_ABANDONED}"
_CANCELLED = f"finished_at IS NULL AND (status = 'pending' OR {_ABANDONED}"
_NOTE_REFUSAL = "INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;"

# key is the task's id, or how many to delete at most; claim is a token of the call, by which it
# finds its notes among those of others.
_OPERATIONS = {
    "retry": f"""
        UPDATE tasks SET status = 'pending', attempt = 0, available_at = NEW.now, started_at = NULL,
            finished_at = NULL, claim = NULL, result = NULL, error = NULL, traceback = NULL
            WHERE task_id = NEW.key AND {_RETRIED} NEW.now);
        {_NOTE_REFUSAL}
    """,
    "cancel": f"""
        UPDATE tasks SET status = 'cancelled', finished_at = NEW.now, claim = NULL
            WHERE task_id = NEW.key AND {_CANCELLED} NEW.now);
        {_NOTE_REFUSAL}
    """,
    "sweep": """
        DELETE FROM tasks WHERE id IN (
            SELECT id FROM tasks INDEXED BY tasks_finished
                WHERE finished_at IS NOT NULL AND finished_at < NEW.at LIMIT NEW.key);
        INSERT INTO note SELECT 'swept', changes(), NEW.claim;
    """,
}

_CAN = {
    "retry": f"SELECT 1 FROM tasks WHERE task_id = ? AND {_RETRIED} ?)",
    "cancel": f"SELECT 1 FROM tasks WHERE task_id = ? AND {_CANCELLED} ?)",
}
_CAN_SWEEP = "SELECT 1 FROM tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL AND finished_at < ? LIMIT 1"


async def change(
    connection: Connected, operation: Literal["retry", "cancel"], task_ids: Iterable[str]
) -> Sequence[str]:
    """Carries out ``operation`` for those tasks for which it can be done; returns their ids.

    Between two transactions other callers, of this process and of others, get their turn.
    """
    done: list[str] = []
    for piece in batched(dict.fromkeys(task_ids), CHANGED_PER_TRANSACTION, strict=False):
        done += await _change_piece(connection, operation, piece)
    return done


async def _change_piece(connection: Connected, operation: str, task_ids: Sequence[str]) -> Sequence[str]:
    found = await connection.call(Job(lambda sqlite, now, _: _possible(sqlite, now, operation, task_ids)))
    if not found:
        return found
    token = new_claim()

    def changes(now: int) -> Iterator[Row]:
        return ((operation, now, task_id, token, None, None, None, None, None) for task_id in found)

    def done(_: sqlite3.Connection, now: int, notes: Notes) -> Sequence[str]:
        return [task_id for task_id in found if ("refused", task_id, token) not in notes]

    # Synced like an enqueue: what an operator was told must not be undone by a power cut.
    return await connection.call(Job(done, changes, synced=True, announce=lambda ids: [*ids, None] if ids else ()))


async def prune(connection: Connected, older_than: int) -> int:
    """Deletes the tasks that finished more than ``older_than`` microseconds ago; returns how many."""
    pruned = 0
    while await connection.call(Job(lambda sqlite, now, _: _can_sweep(sqlite, now - older_than))):
        pruned += await connection.call(_sweeping(older_than))
    return pruned


def _possible(sqlite: sqlite3.Connection, now: int, operation: str, task_ids: Sequence[str]) -> Sequence[str]:
    _install(sqlite)
    return [task_id for task_id in task_ids if _is_possible(sqlite, now, operation, task_id)]


def _is_possible(sqlite: sqlite3.Connection, now: int, operation: str, task_id: str) -> bool:
    try:
        return sqlite.execute(_CAN[operation], (task_id, now)).fetchone() is not None
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return False


def _can_sweep(sqlite: sqlite3.Connection, before: int) -> bool:
    _install(sqlite)
    return sqlite.execute(_CAN_SWEEP, (before,)).fetchone() is not None


def _sweeping(older_than: int) -> Job[int]:
    token = new_claim()
    return Job(
        lambda _, __, notes: sum(count for kind, count, its in notes if (kind, its) == ("swept", token)),
        lambda now: [("sweep", now, CHANGED_PER_TRANSACTION, token, now - older_than, None, None, None, None)],
    )


def _install(sqlite: sqlite3.Connection) -> None:
    """Makes the triggers of the operations for this connection, unless it has them."""
    for operation, body in _OPERATIONS.items():
        sqlite.execute(
            f"CREATE TEMP TRIGGER IF NOT EXISTS change_{operation} INSTEAD OF INSERT ON change "
            f"WHEN NEW.op = '{operation}' BEGIN {body} END"
        )
