"""A backend that keeps its tasks in memory: small, complete, and a pattern for one of your own.

It is a class that has the members of ``sitq.Backend`` and derives from nothing. Every change is made
under a lock and without an ``await`` in it, so it is made whole or not at all, whoever is cancelled.
It looks through all tasks at each reservation, which a real store leaves to an index.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sitq import BackendError, NewTask, ReservedTask, Result
from sitq.models import Outcome, Reservation, Status


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
        )


def moment(seconds: float) -> datetime:
    """Returns a stored time as callers get to see it."""
    return datetime.fromtimestamp(seconds, UTC)


class MemoryBackend:
    """Keeps tasks in this object, for any number of queues and workers in its process.

    Args:
        max_payload_bytes: The largest payload or result; ``None`` for no limit.
        clock: Gives the time in seconds since 1970 UTC; for tests.
    """

    def __init__(self, max_payload_bytes: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self.max_payload_bytes = max_payload_bytes
        self._clock = clock
        self._lock = threading.Lock()  # calls come from several event loops: a worker renews from its own
        self._users = 0
        self._rows: dict[str, Row] = {}  # by task id, in the order in which they were stored
        self._claims = itertools.count(1)
        self._watchers: dict[object, tuple[str | None, asyncio.AbstractEventLoop, Callable[[], object]]] = {}

    async def connect(self) -> None:
        """Counts one more user."""
        with self._lock:
            self._users += 1

    async def close(self) -> None:
        """Counts one user less; harmless when called too often."""
        with self._lock:
            self._users = max(self._users - 1, 0)

    @contextlib.contextmanager
    def _change(self) -> Iterator[float]:
        """Holds the lock for one atomic change, and gives the time."""
        with self._lock:
            if not self._users:
                raise BackendError("the memory backend is not connected: call connect() first")
            yield self._clock()

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Stores all of ``tasks`` or none, in this order."""
        with self._change() as now:
            new: dict[str, Row] = {}
            for task in tasks:
                if self.max_payload_bytes is not None and len(task.payload) > self.max_payload_bytes:
                    raise ValueError(f"{len(task.payload)} bytes are more than the {self.max_payload_bytes} allowed")
                if task.task_id in self._rows or task.task_id in new:
                    raise BackendError(f"there is a task {task.task_id} already")
                due = now + (task.delay or 0) if task.eta is None else max(now, task.eta.timestamp())
                new[task.task_id] = Row(task, len(self._rows) + len(new), now, due)
            self._rows |= new
        self._tell(None)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out up to ``limit`` due tasks, the oldest first; a last attempt alone, to a caller that is alone."""
        await asyncio.sleep(0)  # a store that never waits would keep the worker's event loop to itself
        with self._change() as now:
            buried = self._bury(now)
            claim = next(self._claims)
            taken = self._choose(now, limit, alone)
            for row in taken:
                row.status = "in_progress"
                row.attempt += 1
                row.claim = claim
                row.started_at = now
                row.available_at = now + lease
            waiting = self._due(now)
            ahead = [row.available_at - now for row in self._live() if row.available_at > now]
            reservation = Reservation(
                tasks=[row.reserved() for row in taken],
                buried=buried,
                next_due_in=min(ahead, default=None),
                last_attempt_waiting=bool(waiting) and waiting[0].attempts_left == 1,
            )
        for task_id in buried:
            self._tell(task_id)
        return reservation

    def _live(self) -> list[Row]:
        return [row for row in self._rows.values() if row.finished_at is None]

    def _due(self, now: float) -> list[Row]:
        due = [row for row in self._live() if row.available_at <= now]
        return sorted(due, key=lambda row: (row.available_at, row.key))

    def _bury(self, now: float) -> list[str]:
        """Fails the tasks whose last permitted attempt lost its lease."""
        spent = [row for row in self._due(now) if row.attempts_left <= 0]
        for row in spent:
            row.status, row.claim, row.finished_at = "failed", None, now
            row.error = f"WorkerDiedError: each of {row.attempt} attempts ended with the death of its worker"
        return [row.task.task_id for row in spent]

    def _choose(self, now: float, limit: int, alone: bool) -> list[Row]:
        due = self._due(now)
        if alone and due and due[0].attempts_left == 1:
            return due[:1]
        return [row for row in due if row.attempts_left > 1][:limit]

    def _held(self, task: ReservedTask) -> Row | None:
        """Returns the row, where the claim that comes with ``task`` still holds."""
        row = self._rows.get(task.task_id)
        return row if row is not None and row.claim == task.claim and row.finished_at is None else None

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Lets leases end ``lease`` seconds from now; returns the tasks that are not held."""
        with self._change() as now:
            lost = []
            for task in tasks:
                if (row := self._held(task)) is None:
                    lost.append(task)
                else:
                    row.available_at = now + lease
            return lost

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back, due at once and the attempt unspent; returns those that are not held."""
        with self._change() as now:
            lost = []
            for task in tasks:
                if (row := self._held(task)) is None:
                    lost.append(task)
                else:
                    row.status, row.claim, row.attempt = "pending", None, row.attempt - 1
                    row.available_at = min(row.enqueued_at, now)  # it keeps its place in the line
                    row.started_at = row.started_at if row.attempt else None
        self._tell(None)
        return lost

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results; returns the tasks that were not held."""
        return self._finish("success", outcomes)

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors; returns the tasks that were not held."""
        return self._finish("failed", outcomes)

    def _finish(self, status: Status, outcomes: Sequence[Outcome]) -> list[ReservedTask]:
        with self._change() as now:
            lost = []
            for outcome in outcomes:
                if (row := self._held(outcome.task)) is not None:
                    row.status, row.finished_at = status, now  # the claim stays: it tells a second try from a late one
                    row.result, row.error, row.traceback = outcome.result, outcome.error, outcome.traceback
                elif not self._is_recorded(outcome, status):
                    lost.append(outcome.task)
        for outcome in outcomes:
            self._tell(outcome.task.task_id)
        return lost

    def _is_recorded(self, outcome: Outcome, status: Status) -> bool:
        row = self._rows.get(outcome.task.task_id)
        return row is not None and row.claim == outcome.task.claim and row.status == status

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Looks once for a task."""
        with self._change():
            row = self._rows.get(task_id)
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

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Calls ``on_change`` in the caller's loop when another look may find something."""
        key = object()
        with self._lock:
            self._watchers[key] = task_id, asyncio.get_running_loop(), on_change
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[key]

    def _tell(self, topic: str | None) -> None:
        with self._lock:
            found = list(self._watchers.values())
        for its_topic, loop, on_change in found:
            if its_topic == topic:
                with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(on_change)
