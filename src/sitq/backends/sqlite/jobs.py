"""What is done on the connection's thread for one caller."""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Literal, cast

from sitq.backends.sqlite import asking, failures, queries, uniques
from sitq.backends.sqlite.abilities import Ability, known_abilities
from sitq.backends.sqlite.changes import (
    Change,
    Fail,
    KeepAndFail,
    KeepAndRetry,
    Release,
    Renew,
    Reserve,
    RetryLater,
    StoreTask,
    StoreThen,
    Succeed,
)
from sitq.backends.sqlite.choosing import Plan, Selection, make_plan
from sitq.backends.sqlite.lanes import LANES, StoreInLane, lane_of
from sitq.backends.sqlite.pruning import Pruning
from sitq.backends.sqlite.queries import Found
from sitq.backends.sqlite.statements import Notes
from sitq.models import NewTask, Outcome, ReservedTask, Status, new_claim, to_micros

type Topic = str | None
"""What somebody may wait for: that the task with this id has ended, or that tasks are due."""

DUE: Final[Topic] = None

MAX_MOMENT = to_micros(datetime.max.replace(tzinfo=UTC))
"""The last moment that a datetime can hold, in microseconds."""


def micros(seconds: float) -> int:
    """Returns a duration as whole microseconds."""
    return int(seconds * 1_000_000)


class Job[T](ABC):
    """Something to change and something to read, and who waits for it.

    Attributes:
        writes: Whether there are changes to make.
        synced: Whether the commit has to survive a power cut.
        is_reservation: Whether :meth:`is_wanted` has to be asked. A batch takes one such job.
        abilities: What the file has to have for the changes; it is made if need be.
    """

    writes = False
    synced = False
    is_reservation = False
    abilities: Collection[Ability] = ()

    def __init__(self) -> None:
        self.future: asyncio.Future[T] | None = None
        self.result: T | None = None
        self.error: BaseException | None = None

    def is_wanted(self, sqlite: sqlite3.Connection, now: int, *, anyhow: bool) -> bool:
        """Whether the changes would change anything: trying costs the write lock.

        Args:
            sqlite: The connection.
            now: The time in microseconds.
            anyhow: Whether the lock is taken for other jobs anyhow; then the answer is yes.
        """
        return True

    def changes(self, now: int) -> Iterable[Change]:
        """Gives the changes to make at a time; asked again if changes that were merged with others failed."""
        return ()

    def was_carried_out(self, sqlite: sqlite3.Connection) -> bool:
        """Whether an earlier call did just this; asked if the changes break a rule of the table."""
        return False

    @abstractmethod
    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> T:
        """Returns the result, after the changes were committed."""

    def notifies(self, result: T) -> Iterable[Topic]:
        """Gives what may be found from now on."""
        return ()

    def on_abandoned(self, result: T) -> None:  # noqa: B027 - most have nothing to undo
        """Undoes what nobody waits for any more."""

    def abandon(self) -> None:
        """Undoes the job if it was carried out."""
        if self.error is None:
            self.on_abandoned(cast("T", self.result))

    def answer(self) -> None:
        """Hands the result, or the error, to the one who waits; called in that one's event loop."""
        future = self.future
        if future is None or future.done():
            self.abandon()
        elif self.error is None:
            future.set_result(cast("T", self.result))
        else:
            future.set_exception(self.error)


class ReadJob[T](Job[T]):
    """Reads, and changes nothing.

    Args:
        query: Called with the connection and the time in microseconds.
    """

    def __init__(self, query: Callable[[sqlite3.Connection, int], T]) -> None:
        super().__init__()
        self._query = query

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> T:
        """Returns what the query returns."""
        return self._query(sqlite, now)


def records(tasks: Iterable[NewTask], now: int) -> Iterator[StoreTask | StoreInLane]:
    """Gives tasks as they are stored at a time."""
    for task in tasks:
        due = min(now + micros(task.delay or 0), MAX_MOMENT) if task.eta is None else max(now, to_micros(task.eta))
        lane = None if task.extras is None else lane_of(task.extras)
        if lane is None:
            yield StoreTask(task.task_id, task.name, task.format, task.payload, task.max_attempts, due)
        else:
            yield StoreInLane(task.task_id, task.name, task.format, task.payload, task.max_attempts, due, *lane)


class EnqueueJob(Job[None]):
    """Stores all of ``tasks`` or none, in this order."""

    writes = True
    synced = True

    def __init__(self, tasks: Sequence[NewTask], abilities: Collection[Ability] = ()) -> None:
        super().__init__()
        self._tasks = tasks
        self.abilities = abilities

    def changes(self, now: int) -> Iterator[StoreTask | StoreInLane]:
        """Gives one for each task."""
        return records(self._tasks, now)

    def was_carried_out(self, sqlite: sqlite3.Connection) -> bool:
        """Whether all of the tasks are stored: then the call is made again, because its answer was lost."""
        ids = {task.task_id for task in self._tasks}
        return len(ids) == len(self._tasks) and all(queries.is_stored(sqlite, task) for task in self._tasks)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> None:
        """Returns nothing."""

    def notifies(self, result: None) -> Iterable[Topic]:
        """Wakes workers."""
        return (DUE,)


class ReserveState:
    """What one reservation leaves for the next one of the same backend, and from which queues it takes."""

    def __init__(self, pruning: Pruning, selection: Selection) -> None:
        self.pruning = pruning
        self.selection = selection
        self.more_is_due = False
        """Whether the latest reservation brought all that was asked for."""


class ReserveJob(Job[Found]):
    """Gives out due tasks, and prunes a little if it is time to.

    Args:
        limit: How many tasks to give out at most.
        lease: Seconds for which they are held.
        alone: Whether the caller holds no other task.
        state: Of the backend.
        give_back: Called with what was found if nobody waits for it any more.
    """

    writes = True
    is_reservation = True

    def __init__(
        self, limit: int, lease: float, alone: bool, state: ReserveState, give_back: Callable[[Found], None]
    ) -> None:
        super().__init__()
        self._limit = limit
        self._lease = lease
        self._alone = alone
        self._state = state
        self._give_back = give_back
        self._claim = new_claim()
        self.abilities = state.pruning.abilities
        self._until = 0  # when the first of the leases ends, in microseconds
        self._plan: Plan | None = None

    def is_wanted(self, sqlite: sqlite3.Connection, now: int, *, anyhow: bool) -> bool:
        """Whether anything is due, or can be pruned."""
        state = self._state
        self._plan = None
        if self._has_lanes(sqlite):
            return self._is_planned(sqlite, now) or anyhow
        if anyhow:
            return True
        # If the latest reservation brought all that was asked for, there is more: asking would only
        # hand the interpreter lock to the loop, just when SQLite could have started beside it.
        more, state.more_is_due = state.more_is_due, False
        is_wanted = more or queries.is_due(sqlite, now, self._alone) or self._may_prune(sqlite, now)
        # By that query it may have been noticed that somebody has made lanes.
        return self._is_planned(sqlite, now) if self._has_lanes(sqlite) else is_wanted

    def _has_lanes(self, sqlite: sqlite3.Connection) -> bool:
        return LANES.name in known_abilities(sqlite) or not self._state.selection.has_default

    def _is_planned(self, sqlite: sqlite3.Connection, now: int) -> bool:
        self._plan = make_plan(sqlite, now, self._limit, self._alone, self._state.selection)
        return self._plan.changes_anything or self._may_prune(sqlite, now)

    def changes(self, now: int) -> Iterator[Change]:
        """Gives the reservation, and one for pruning if it is time to."""
        self._until = now + micros(self._lease)
        if self._plan is None:
            yield Reserve(self._claim, self._until, self._limit, self._alone)
        else:
            yield from self._plan.changes(self._claim, self._until, self._limit)
        if self._state.pruning.is_time:
            yield self._state.pruning.change(now)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> Found:
        """Returns what was given out."""
        if self._state.pruning.is_time and not self._may_prune(sqlite, now):
            self._state.pruning.pause()
        if self._plan is None:
            found = queries.reserved(sqlite, now, self._limit, self._claim, self._until, notes)
        else:
            found = self._plan.read(sqlite, now, self._limit, self._claim, self._until, notes)
        self._state.more_is_due = len(found.rows) == self._limit
        if ended := asking.ended_instead(sqlite, now, self._claim, found.reservation.buried):
            buried = [task_id for task_id in found.reservation.buried if task_id not in ended]
            # Fewer came back than were asked for, although there may be more.
            return found._replace(ended=ended, reservation=replace(found.reservation, buried=buried, next_due_in=0.0))
        return found

    def notifies(self, result: Found) -> Iterable[Topic]:
        """Wakes those who wait for a task that was buried, or that was to end and has ended."""
        return [*result.reservation.buried, *result.ended]

    def on_abandoned(self, result: Found) -> None:
        """Gives the tasks back."""
        self._give_back(result)

    def _may_prune(self, sqlite: sqlite3.Connection, now: int) -> bool:
        return self._state.pruning.may_prune(sqlite, now)


class _HoldingJob(Job[list[ReservedTask]]):
    """Changes tasks that are held, and returns those that are not."""

    writes = True

    def __init__(self, tasks: Sequence[ReservedTask]) -> None:
        super().__init__()
        self._tasks = tasks

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> list[ReservedTask]:
        """Returns the tasks that were not held."""
        return queries.not_held(self._tasks, notes)


class RenewJob(_HoldingJob):
    """Lets the leases of ``tasks`` end ``lease`` seconds from now."""

    def __init__(self, tasks: Sequence[ReservedTask], lease: float) -> None:
        super().__init__(tasks)
        self._lease = lease

    def changes(self, now: int) -> Iterator[Renew]:
        """Gives one for each task."""
        until = now + micros(self._lease)
        return (Renew(task.key, task.claim, until) for task in self._tasks)


class ReleaseJob(_HoldingJob):
    """Gives tasks back, due at once and the attempt unspent."""

    _may_end = False  # whether some may have been asked to end, and have ended by it

    def changes(self, now: int) -> Iterator[Release]:
        """Gives one for each task."""
        return (Release(task.key, task.claim) for task in self._tasks)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> list[ReservedTask]:
        """Returns the tasks that were not held."""
        self._may_end = asking.is_used(sqlite)
        return super().read(sqlite, now, notes)

    def notifies(self, result: list[ReservedTask]) -> Iterable[Topic]:
        """Wakes workers, and those who wait for a task that may have ended instead."""
        return [DUE, *(task.task_id for task in self._tasks)] if self._may_end else (DUE,)


def _then_records(outcome: Outcome, now: int) -> Iterator[Change]:
    task = outcome.task
    for new, record in zip(outcome.then, records(outcome.then, now), strict=True):
        if uniques.is_unique(new):
            yield uniques.store_then(outcome, new, record.available_at)
        else:
            yield StoreThen(task.key, task.claim, *record)


def _is_failed_attempt(outcome: Outcome) -> bool:
    """Whether a run has failed: neither did it end because it was to, nor does it only wait for something."""
    return not outcome.cancelled and (outcome.retry_in is None or outcome.counts)


class RecordJob(Job[list[ReservedTask]]):
    """Records how tasks ended, and returns those that were not held."""

    writes = True

    def __init__(
        self, outcomes: Sequence[Outcome], status: Literal["success", "failed"], abilities: Collection[Ability] = ()
    ) -> None:
        super().__init__()
        self.abilities = abilities
        self._outcomes = outcomes
        self.synced = any(outcome.then for outcome in outcomes)  # they are new tasks like any other
        self._status: Literal["success", "failed"] = status
        self._may_end = False  # whether some that are tried again may have been asked to end, and have ended by it
        if status == "failed" and any(map(_is_failed_attempt, outcomes)):
            self.abilities = (*abilities, failures.ABILITY)

    def changes(self, now: int) -> Iterator[Change]:
        """Gives one for each outcome, and before it one for each task that is stored with it."""
        for outcome in self._outcomes:
            task, result, error, traceback, retry_in, counts, cancelled, then, ran_on = outcome
            if then:
                yield from _then_records(outcome, now)
            if retry_in is not None:
                due = min(now + micros(retry_in), MAX_MOMENT)
                if counts and failures.ABILITY in self.abilities:
                    yield KeepAndRetry(task.key, task.claim, due, error, traceback, counts, ran_on)
                else:
                    yield RetryLater(task.key, task.claim, due, error, traceback, counts)
            elif cancelled:
                yield Fail(task.key, task.claim, "cancelled", error, traceback)
            elif self._status == "success":
                yield Succeed(task.key, task.claim, result)
            else:
                yield KeepAndFail(task.key, task.claim, "failed", error, traceback, ran_on)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> list[ReservedTask]:
        """Returns the tasks that were not held, unless the same outcome had been recorded by an earlier try."""
        if self._status == "failed" and any(each.retry_in is not None for each in self._outcomes):
            self._may_end = asking.is_used(sqlite)
        if not notes:
            return []
        return [
            outcome.task
            for outcome in self._outcomes
            if ("not held", outcome.task.key, outcome.task.claim) in notes
            and not queries.is_recorded(sqlite, outcome.task, self._status_after(outcome))
            and not (outcome.retry_in is not None and asking.is_ended(sqlite, outcome.task))
        ]

    def notifies(self, result: list[ReservedTask]) -> Iterable[Topic]:
        """Wakes those who wait for tasks that have ended, and workers if there is something new to do."""
        topics: list[Topic] = [outcome.task.task_id for outcome in self._outcomes if outcome.retry_in is None]
        if len(topics) < len(self._outcomes) or any(outcome.then for outcome in self._outcomes):
            topics.append(DUE)
        if self._may_end:
            topics += [outcome.task.task_id for outcome in self._outcomes if outcome.retry_in is not None]
        return topics

    def _status_after(self, outcome: Outcome) -> Status:
        if outcome.retry_in is not None:
            return "pending"
        return "cancelled" if outcome.cancelled else self._status
