"""Storing tasks of which some are unique."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from sitq.backends.sqlite import uniques
from sitq.backends.sqlite.abilities import Ability
from sitq.backends.sqlite.ability_changes import StoreUnique
from sitq.backends.sqlite.connection import Connection
from sitq.backends.sqlite.jobs import DUE, Job, ReadJob, Topic, records
from sitq.backends.sqlite.statements import Notes
from sitq.errors import BackendError
from sitq.models import NewTask, new_claim


class UniqueEnqueueJob(Job[Sequence[str]]):
    """Stores all of ``tasks`` that are to be stored or none, in this order; returns the ids of those that stand.

    Args:
        tasks: What to store.
        abilities: What the file has to have for them.

    Raises:
        BackendError: Two of them have one id.
    """

    writes = True
    synced = True

    def __init__(self, tasks: Sequence[NewTask], abilities: Collection[Ability]) -> None:
        super().__init__()
        self.abilities = abilities
        # What is stored already is taken for a repeat, which a second one of the same call is not.
        if len({task.task_id for task in tasks}) < len(tasks):
            raise BackendError("two tasks of one call have the same id; nothing was stored")
        self._tasks = tasks
        self._calls = [new_claim() for _ in tasks]
        self._now = 0

    def changes(self, now: int) -> Iterator[StoreUnique]:
        """Gives one for each task."""
        self._now = now
        for task, record, call in zip(self._tasks, records(self._tasks, now), self._calls, strict=True):
            yield uniques.store(task, record.available_at, call)

    def was_carried_out(self, sqlite: sqlite3.Connection) -> bool:
        """Says which task stands for one that must not be kept out: that is what broke a rule of the table.

        A call that was carried out before breaks none.

        Raises:
            DuplicateTaskError: Another task stands for one of them.
        """
        if duplicate := uniques.find_duplicate(sqlite, self._now, self._tasks):
            raise duplicate
        return False

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> Sequence[str]:
        """Returns the ids, in the order of the tasks."""
        standing = _standing(notes) if notes else {}
        return [standing.get(call, task.task_id) for task, call in zip(self._tasks, self._calls, strict=True)]

    def notifies(self, result: Sequence[str]) -> Iterable[Topic]:
        """Wakes workers."""
        return (DUE,)


@lru_cache(maxsize=1)  # one batch may have many such jobs
def _standing(notes: Notes) -> Mapping[int, str]:
    return {token: subject for kind, subject, token in notes if kind == "stands"}


async def enqueue(
    connection: Connection,
    tasks: Sequence[NewTask],
    abilities: Collection[Ability],
    on_queued: Callable[[], object],
) -> Sequence[str]:
    """Stores tasks and returns the ids of those that stand, in their order.

    Args:
        connection: Where.
        tasks: At least one of them unique.
        abilities: What the file has to have for them.
        on_queued: Called when they are about to be stored.

    Raises:
        DuplicateTaskError: Another task stands for one of them.
        BackendError: The file did not take them.
    """
    job = UniqueEnqueueJob(tasks, abilities)
    if any(uniques.of_task(task)[-1] == "raise" for task in tasks):
        # Most duplicates are found by looking: one that is found by storing it rolls the whole batch back, and
        # each of the calls in it is made again by itself.
        duplicate = await connection.call(ReadJob(lambda sqlite, now: uniques.find_duplicate(sqlite, now, tasks)))
        if duplicate is not None:
            raise duplicate
    return await connection.call(job, on_queued=on_queued)
