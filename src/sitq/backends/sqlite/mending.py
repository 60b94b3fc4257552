"""Changing tasks by hand: retrying, cancelling, pruning.

Beside the hot path. For each piece it is read first what can be changed, which takes no lock, and
then that is changed in one transaction; what has changed in between is left as it is.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import batched
from typing import Literal

from sitq.backends.sqlite.changes import Cancel, Prune, Retry
from sitq.backends.sqlite.connection import Job
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.queries import is_prunable
from sitq.backends.sqlite.statements import CAN_CANCEL, CAN_RETRY, Notes
from sitq.models import new_claim

CHANGED_PER_TRANSACTION = 500
"""A million in one transaction kept the write lock for longer than others wait for it."""

_CAN = {
    "retry": f"SELECT 1 FROM tasks WHERE task_id = ?1 AND {CAN_RETRY.format(now='?2')}",
    "cancel": f"SELECT 1 FROM tasks WHERE task_id = ?1 AND {CAN_CANCEL.format(now='?2')}",
}


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
    call = new_claim()

    def changes(_: int) -> Iterator[Retry | Cancel]:
        for task_id in found:
            yield Retry(task_id, call) if operation == "retry" else Cancel(task_id, call)

    def done(_: sqlite3.Connection, now: int, notes: Notes) -> Sequence[str]:
        return [task_id for task_id in found if ("unchanged", task_id, call) not in notes]

    # Synced like an enqueue: what an operator was told must not be undone by a power cut.
    return await connection.call(Job(done, changes, synced=True, announce=lambda ids: [*ids, None] if ids else ()))


async def prune(connection: Connected, older_than: int) -> int:
    """Deletes the tasks that finished more than ``older_than`` microseconds ago; returns how many."""
    pruned = 0
    while await connection.call(Job(lambda sqlite, now, _: is_prunable(sqlite, now - older_than))):
        pruned += await connection.call(_pruning(older_than))
    return pruned


def _possible(sqlite: sqlite3.Connection, now: int, operation: str, task_ids: Sequence[str]) -> Sequence[str]:
    return [task_id for task_id in task_ids if _is_possible(sqlite, now, operation, task_id)]


def _is_possible(sqlite: sqlite3.Connection, now: int, operation: str, task_id: str) -> bool:
    try:
        return sqlite.execute(_CAN[operation], (task_id, now)).fetchone() is not None
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return False


def _pruning(older_than: int) -> Job[int]:
    call = new_claim()
    return Job(
        lambda _, __, notes: sum(count for kind, count, token in notes if (kind, token) == ("pruned", call)),
        lambda now: [Prune(now - older_than, CHANGED_PER_TRANSACTION, call)],
    )
