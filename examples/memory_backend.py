"""A backend that keeps its tasks in memory: small, complete, and a pattern for one of your own.

It is a class that has the members of ``sitq.Backend`` and derives from nothing. Every change is made
under a lock and without an ``await`` in it, so it is made whole or not at all, whoever is cancelled.
It goes through all tasks at each reservation; a real store has an index for that.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sitq import BackendError, NewTask, ReservedTask, Result
from sitq.backends.progressing import Progress, Report
from sitq.models import BURIED_ERROR_PREFIX, Extras, Outcome, Reservation, Status


@dataclass
class Row:
    """A task, and what has become of it; moments in seconds since 1970 UTC."""

    task: NewTask
    key: int
    enqueued_at: float
    available_at: float  # when it is due; while it runs, when its lease ends
    status: Status = "pending"
    attempt: int = 0
    claim: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes | None = None
    error: str | None = None
    traceback: str | None = None
    progress: tuple[int, Progress] | None = None  # of the run with that claim

    @property
    def attempts_left(self) -> int:
        """How often it may still be started."""
        return self.task.max_attempts - self.attempt

    def reserved(self) -> ReservedTask:
        """Returns what a worker gets to see of it."""
        task = self.task
        return ReservedTask(
            key=self.key,
            claim=self.claim or 0,
            task_id=task.task_id,
            payload=task.payload,
            name=task.name,
            format=task.format,
            attempt=self.attempt,
            max_attempts=task.max_attempts,
            enqueued_at=moment(self.enqueued_at),
            started_at=None if self.started_at is None else moment(self.started_at),
        )


def moment(seconds: float) -> datetime:
    """Returns a stored time as callers get to see it."""
    return datetime.fromtimestamp(seconds, UTC)


type Watcher = tuple[str | None, asyncio.AbstractEventLoop, Callable[[], object]]


@dataclass
class MemoryStore:
    """What several backends can share, as they would share a file or a server.

    Attributes:
        clock: Gives the time in seconds since 1970 UTC; for tests.
        lock: Calls come from several event loops, because a worker renews its leases from its own.
        rows: By task id, in the order in which they were stored.
        claims: A number for each reservation.
        watchers: Who waits for what, in which event loop.
    """

    clock: Callable[[], float] = time.time
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: dict[str, Row] = field(default_factory=dict)
    claims: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    watchers: dict[object, Watcher] = field(default_factory=dict)


class MemoryBackend:
    """Keeps tasks in this process, for any number of its queues and workers.

    Args:
        store: Where the tasks are; ``None`` for a store of its own.
        max_payload_bytes: The largest payload or result; ``None`` for no limit.
    """

    def __init__(self, store: MemoryStore | None = None, *, max_payload_bytes: int | None = None) -> None:
        self.store = MemoryStore() if store is None else store
        self.max_payload_bytes = max_payload_bytes
        self._users = 0

    async def connect(self) -> None:
        """Counts one more user."""
        with self.store.lock:
            self._users += 1

    async def close(self) -> None:
        """Counts one user less; harmless when called too often."""
        with self.store.lock:
            self._users = max(self._users - 1, 0)

    @contextlib.contextmanager
    def _change(self) -> Iterator[float]:
        """Holds the lock for one atomic change, and gives the time."""
        with self.store.lock:
            if not self._users:
                raise BackendError("the memory backend is not connected: call connect() first")
            yield self.store.clock()

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Stores all of ``tasks`` or none, in this order; a batch that is stored already stays as it is."""
        rows = self.store.rows
        with self._change() as now:
            repeated = [task for task in tasks if task.task_id in rows and rows[task.task_id].task == task]
            if len(repeated) < len(tasks):
                new: dict[str, Row] = {}
                for task in tasks:
                    self._check(task)
                    if task.task_id in rows or task.task_id in new:
                        raise BackendError(f"there is a task {task.task_id} already")
                    due = now + (task.delay or 0) if task.eta is None else max(now, task.eta.timestamp())
                    new[task.task_id] = Row(task, len(rows) + len(new), now, due)
                rows |= new
        self._notify([None])

    def _check(self, task: NewTask) -> None:
        if self.max_payload_bytes is not None and len(task.payload) > self.max_payload_bytes:
            raise ValueError(f"{len(task.payload)} bytes are more than the {self.max_payload_bytes} allowed")
        if task.extras not in (None, Extras()):
            raise BackendError(f"the memory backend cannot do what task {task.task_id} asks for: {task.extras}")

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out up to ``limit`` due tasks, the oldest first; a last attempt alone, to a caller that is alone."""
        await asyncio.sleep(0)  # a store that never waits would keep the worker's event loop to itself
        with self._change() as now:
            buried = self._bury(now)
            claim = next(self.store.claims)
            reserved = self._choose(now, limit, alone)
            for row in reserved:
                row.status = "in_progress"
                row.attempt += 1
                row.claim = claim
                row.started_at = now
                row.available_at = now + lease
            left = self._due(now)
            ahead = [row.available_at - now for row in self._live() if row.available_at > now]
            reservation = Reservation(
                tasks=[row.reserved() for row in reserved],
                buried=buried,
                next_due_in=min(ahead, default=None),
                last_attempt_waiting=bool(left) and left[0].attempts_left == 1,
            )
        self._notify(buried)
        return reservation

    def _live(self) -> list[Row]:
        return [row for row in self.store.rows.values() if row.finished_at is None]

    def _due(self, now: float) -> list[Row]:
        due = [row for row in self._live() if row.available_at <= now]
        return sorted(due, key=lambda row: (row.available_at, row.key))

    def _bury(self, now: float) -> list[str]:
        """Fails the tasks whose lease ended in their last permitted attempt."""
        spent = [row for row in self._due(now) if row.attempts_left <= 0]
        for row in spent:
            row.status, row.claim, row.finished_at = "failed", None, now
            # By how the error begins, and because there is no traceback, unwrap() knows what to raise.
            row.error = f"{BURIED_ERROR_PREFIX}each of {row.attempt} attempts ended with the death of its worker"
        return [row.task.task_id for row in spent]

    def _choose(self, now: float, limit: int, alone: bool) -> list[Row]:
        due = self._due(now)
        if alone and due and due[0].attempts_left == 1:
            return due[:1]
        return [row for row in due if row.attempts_left > 1][:limit]

    def _held(self, task: ReservedTask) -> Row | None:
        """Returns the row if the claim that comes with ``task`` still holds."""
        row = self.store.rows.get(task.task_id)
        return row if row is not None and row.claim == task.claim and row.finished_at is None else None

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Lets leases end ``lease`` seconds from now; returns the tasks that are not held."""
        with self._change() as now:
            not_held = []
            for task in tasks:
                if (row := self._held(task)) is None:
                    not_held.append(task)
                else:
                    row.available_at = now + lease
            return not_held

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back, due at once and the attempt unspent; returns those that are not held."""
        with self._change() as now:
            not_held = []
            for task in tasks:
                if (row := self._held(task)) is None:
                    not_held.append(task)
                else:
                    row.status, row.claim, row.attempt = "pending", None, row.attempt - 1
                    row.available_at = min(row.enqueued_at, now)  # it keeps its place in the line
                    row.started_at = row.started_at if row.attempt else None
        self._notify([None])
        return not_held

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results; returns the tasks that were not held."""
        return self._finish("success", outcomes)

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors; returns the tasks that were not held."""
        return self._finish("failed", outcomes)

    def _finish(self, status: Status, outcomes: Sequence[Outcome]) -> list[ReservedTask]:
        with self._change() as now:
            not_held = []
            for outcome in outcomes:
                if (row := self._held(outcome.task)) is not None:
                    row.status, row.finished_at = status, now  # the claim stays: it tells a repeat from a late outcome
                    row.result, row.error, row.traceback = outcome.result, outcome.error, outcome.traceback
                elif not self._is_recorded(outcome, status):
                    not_held.append(outcome.task)
        self._notify(outcome.task.task_id for outcome in outcomes)
        return not_held

    def _is_recorded(self, outcome: Outcome, status: Status) -> bool:
        row = self.store.rows.get(outcome.task.task_id)
        return row is not None and row.claim == outcome.task.claim and row.status == status

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Returns what is known of a task; ``None`` if there is no such task."""
        with self._change():
            row = self.store.rows.get(task_id)
            if row is None:
                return None
            return Result(
                task_id=task_id,
                status=row.status,
                value=row.result,
                error=row.error,
                traceback=row.traceback,
                attempt=row.attempt,
                enqueued_at=moment(row.enqueued_at),
                started_at=None if row.started_at is None else moment(row.started_at),
                finished_at=None if row.finished_at is None else moment(row.finished_at),
            )

    async def report(self, reports: Sequence[Report]) -> None:
        """Keeps how far tasks have come that are held."""
        with self._change() as now:
            for task, *told in reports:
                if (row := self._held(task)) is not None and row.claim is not None:
                    row.progress = row.claim, Progress(*told, at=moment(now))
        self._notify(report.task.task_id for report in reports)

    async def progress(self, task_id: str) -> Progress | None:
        """Returns the last report of the task's latest run; ``None`` if there is none."""
        with self._change():
            row = self.store.rows.get(task_id)
            return row.progress[1] if row is not None and row.progress and row.progress[0] == row.claim else None

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Calls ``on_change`` in the caller's event loop when there may be something new."""
        key = object()
        with self.store.lock:
            self.store.watchers[key] = task_id, asyncio.get_running_loop(), self._while_inside(key, on_change)
        try:
            yield
        finally:
            with self.store.lock:
                del self.store.watchers[key]

    def _while_inside(self, key: object, on_change: Callable[[], object]) -> Callable[[], object]:
        # What was handed to the loop before the block was left would be called after it.
        return lambda: key in self.store.watchers and on_change()

    def _notify(self, topics: Iterable[str | None]) -> None:
        """Notifies those who wait for the end of one of these tasks, or, by ``None``, for due tasks."""
        found = set(topics)
        with self.store.lock:
            watchers = [watcher for watcher in self.store.watchers.values() if watcher[0] in found]
        for _, loop, on_change in watchers:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(on_change)
