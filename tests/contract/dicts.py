"""A backend that is written elsewhere: it keeps tasks in a dictionary and derives from nothing of sitq's."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sitq import BackendError, NewTask, ReservedTask, Result
from sitq.models import Outcome, Reservation, Status

type Watcher = tuple[asyncio.AbstractEventLoop, Callable[[], object], str | None]


@dataclass
class Row:
    """A task; times in seconds since 1970."""

    task: NewTask
    number: int
    enqueued_at: float
    available_at: float
    attempt: int = 0
    claim: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes | None = None
    error: str | None = None
    traceback: str | None = None

    @property
    def turn(self) -> tuple[float, int]:
        """What due tasks are sorted by."""
        return self.available_at, self.number

    @property
    def status(self) -> Status:
        """The status."""
        if self.finished_at is not None:
            return "success" if self.error is None else "failed"
        return "in_progress" if self.claim else "pending"


@dataclass
class Store:
    """What several backends share."""

    clock: Callable[[], float] = time.time
    rows: dict[str, Row] = field(default_factory=dict)
    watchers: dict[int, Watcher] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def tell(self, *topics: str | None) -> None:
        """Tells who waits for one of ``topics``."""
        for loop, on_change, topic in list(self.watchers.values()):
            if topic in topics:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(on_change)


class DictBackend:
    """Keeps the contract of a backend, within one process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._users = 0

    @property
    def max_payload_bytes(self) -> int | None:
        """A limit that is easily reached."""
        return 1_000_000

    async def connect(self) -> None:
        """Counts a user."""
        await asyncio.sleep(0)
        self._users += 1

    async def close(self) -> None:
        """Counts one user less."""
        await asyncio.sleep(0)
        self._users = max(0, self._users - 1)

    @contextlib.contextmanager
    def _open(self) -> Iterator[float]:
        if not self._users:
            raise BackendError("not connected: call connect() first")
        with self.store.lock:
            yield self.store.clock()

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Stores all or none."""
        await asyncio.sleep(0)
        with self._open() as now:
            for task in tasks:
                if len(task.payload) > 1_000_000:
                    raise ValueError(f"the call of {task.name} is larger than 1000000 bytes")
                if task.task_id in self.store.rows:
                    raise BackendError(f"there is a task {task.task_id} already")
            for task in tasks:
                due = now + (task.delay or 0) if task.eta is None else max(now, task.eta.timestamp())
                self.store.rows[task.task_id] = Row(task, next(self.store.numbers), now, due)
            self.store.tell(None)
        await asyncio.sleep(0)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out due tasks."""
        await asyncio.sleep(0)
        with self._open() as now:
            buried = [row for row in self._live() if row.available_at <= now and row.attempt >= row.task.max_attempts]
            for row in buried:
                row.finished_at = now
                row.error = f"WorkerDiedError: {row.attempt} attempts ended with the death of their worker"
            self.store.tell(*(row.task.task_id for row in buried))
            due = sorted((row for row in self._live() if row.available_at <= now), key=lambda row: row.turn)
            last = [row for row in due if row.attempt + 1 >= row.task.max_attempts]
            chosen = [row for row in due if row not in last][:limit]
            if alone and last and due[0] is last[0]:
                chosen = last[:1]
            left = [row for row in due if row not in chosen]
            for row in chosen:
                row.attempt += 1
                row.claim = next(self.store.numbers)
                row.started_at, row.available_at = now, now + lease
            return Reservation(
                tasks=[_reserved(row) for row in chosen],
                buried=[row.task.task_id for row in buried],
                next_due_in=min(
                    (row.available_at - now for row in self._live() if row.available_at > now), default=None
                ),
                last_attempt_waiting=bool(left) and left[0] in last,
            )

    def _live(self) -> list[Row]:
        return [row for row in self.store.rows.values() if row.finished_at is None]

    async def _each_held(
        self, tasks: Sequence[ReservedTask], change: Callable[[Row, float, int], object]
    ) -> list[ReservedTask]:
        await asyncio.sleep(0)
        lost = []
        with self._open() as now:
            for n, task in enumerate(tasks):
                row = self.store.rows[task.task_id]
                if row.claim == task.claim and row.finished_at is None:
                    change(row, now, n)
                else:
                    lost.append(task)
            self.store.tell(None, *(task.task_id for task in tasks))
        await asyncio.sleep(0)
        return lost

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Moves the ends of leases."""
        return await self._each_held(tasks, lambda row, now, n: setattr(row, "available_at", now + lease))

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results."""
        return await self._finish(outcomes)

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors."""
        return await self._finish(outcomes)

    async def _finish(self, outcomes: Sequence[Outcome]) -> list[ReservedTask]:
        def record(row: Row, now: float, n: int) -> None:
            row.finished_at = now
            _, row.result, row.error, row.traceback, *_ = outcomes[n]

        lost = await self._each_held([outcome.task for outcome in outcomes], record)
        recorded = {
            outcome.task.task_id
            for outcome in outcomes
            if (row := self.store.rows[outcome.task.task_id]).claim == outcome.task.claim
            and (row.result, row.error) == (outcome.result, outcome.error)
        }
        return [task for task in lost if task.task_id not in recorded]

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back."""

        def give_back(row: Row, now: float, n: int) -> None:
            row.claim, row.attempt, row.available_at = 0, row.attempt - 1, min(now, row.enqueued_at)
            row.started_at = row.started_at if row.attempt else None

        return await self._each_held(tasks, give_back)

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Looks once."""
        await asyncio.sleep(0)
        with self._open():
            row = self.store.rows.get(task_id)
            if row is None:
                return None
            return Result(
                task_id,
                row.status,
                row.result,
                row.error,
                row.traceback,
                row.attempt,
                _moment(row.enqueued_at),
                None if row.started_at is None else _moment(row.started_at),
                None if row.finished_at is None else _moment(row.finished_at),
            )

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Calls back on changes."""
        number = next(self.store.numbers)
        inside = True
        self.store.watchers[number] = asyncio.get_running_loop(), lambda: inside and on_change(), task_id
        try:
            yield
        finally:
            inside = False
            del self.store.watchers[number]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _reserved(row: Row) -> ReservedTask:
    task = row.task
    return ReservedTask(
        task.task_id,
        row.claim,
        task.task_id,
        task.payload,
        task.name,
        task.format,
        row.attempt,
        task.max_attempts,
        _moment(row.enqueued_at),
    )
