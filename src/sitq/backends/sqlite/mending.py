"""Changing tasks by hand: retrying, cancelling, pruning.

Beside the hot path. For each piece it is read first what can be changed, which takes no lock, and
then that is changed in one transaction; what has changed in between is left as it is.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import batched
from typing import Literal

from sitq.backends.sqlite import asking
from sitq.backends.sqlite.changes import Ask, Cancel, Change, Cut, Prune, Retry, Unask
from sitq.backends.sqlite.conditions import CAN_CANCEL, CAN_RETRY
from sitq.backends.sqlite.jobs import DUE, Job, ReadJob, Topic
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.queries import is_prunable
from sitq.backends.sqlite.statements import Notes
from sitq.models import new_claim

type ByHand = Literal["retry", "cancel", "ask", "cut"]

CHANGED_PER_TRANSACTION = 500
"""A million in one transaction kept the write lock for longer than others wait for it."""

_CAN = {
    "retry": f"SELECT 1 FROM tasks WHERE task_id = :task_id AND {CAN_RETRY.format(now=':now')}",
    "cancel": f"SELECT 1 FROM tasks WHERE task_id = :task_id AND {CAN_CANCEL.format(now=':now')}",
    "ask": f"SELECT 1 FROM tasks WHERE task_id = :task_id AND {asking.CAN_END}",
    "cut": f"SELECT 1 FROM tasks WHERE task_id = :task_id AND {asking.CAN_END}",
}
_RECORDS: dict[ByHand, type[Retry | Cancel | Ask | Cut]] = {"retry": Retry, "cancel": Cancel, "ask": Ask, "cut": Cut}


class _ChangeJob(Job[Sequence[str]]):
    """Retries, cancels, asks or cuts tasks; returns the ids of those that were changed."""

    writes = True
    synced = True  # like an enqueue: what an operator was told must not be undone by a power cut

    def __init__(self, operation: ByHand, task_ids: Sequence[str], *, unasks: bool) -> None:
        super().__init__()
        self._operation = operation
        self._task_ids = task_ids
        self._unasks = unasks
        self.abilities = (asking.ABILITY,) if operation == "ask" else ()
        self._call = new_claim()

    def changes(self, now: int) -> Iterator[Change]:
        """Gives one for each task, and before it one that forgets a request if need be."""
        record = _RECORDS[self._operation]
        for task_id in self._task_ids:
            if self._unasks:
                yield Unask(task_id)
            yield record(task_id, self._call)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> Sequence[str]:
        """Returns those that were changed."""
        return [task_id for task_id in self._task_ids if ("unchanged", task_id, self._call) not in notes]

    def notifies(self, result: Sequence[str]) -> Iterable[Topic]:
        """Wakes those who watch one of the tasks, and workers if there may be something new to do."""
        if not result or self._operation in ("ask", "cut"):
            return result
        return [*result, DUE]


class _PruneJob(Job[int]):
    """Deletes some tasks; returns how many."""

    writes = True

    def __init__(self, older_than: int) -> None:
        super().__init__()
        self._older_than = older_than
        self._call = new_claim()

    def changes(self, now: int) -> Iterable[Prune]:
        """Gives one."""
        return [Prune(now - self._older_than, CHANGED_PER_TRANSACTION, self._call)]

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> int:
        """Returns how many were deleted."""
        return sum(count for kind, count, token in notes if (kind, token) == ("pruned", self._call))


async def change(connection: Connected, operation: ByHand, task_ids: Iterable[str]) -> Sequence[str]:
    """Carries out ``operation`` for those tasks for which it can be done; returns their ids.

    Between two transactions other callers, of this process and of others, get their turn.
    """
    done: list[str] = []
    for piece in batched(dict.fromkeys(task_ids), CHANGED_PER_TRANSACTION, strict=False):
        done += await _change_piece(connection, operation, piece)
    return done


async def _change_piece(connection: Connected, operation: ByHand, task_ids: Sequence[str]) -> Sequence[str]:
    def read(sqlite: sqlite3.Connection, now: int) -> tuple[Sequence[str], bool]:
        found = [each for each in task_ids if _is_possible(sqlite, now, operation, each)]
        return found, operation == "retry" and asking.is_used(sqlite)

    found, unasks = await connection.call(ReadJob(read))
    return await connection.call(_ChangeJob(operation, found, unasks=unasks)) if found else found


def _is_possible(sqlite: sqlite3.Connection, now: int, operation: ByHand, task_id: str) -> bool:
    try:
        return sqlite.execute(_CAN[operation], {"task_id": task_id, "now": now}).fetchone() is not None
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return False


async def prune(connection: Connected, older_than: int) -> int:
    """Deletes the tasks that finished more than ``older_than`` microseconds ago; returns how many."""
    pruned = 0
    while await connection.call(ReadJob(lambda sqlite, now: is_prunable(sqlite, now - older_than))):
        pruned += await connection.call(_PruneJob(older_than))
    return pruned
