"""The backend that keeps everything in one SQLite file."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, get_args

from sitq import _forks
from sitq._checks import check_count, check_seconds
from sitq.backends.endings import Ending
from sitq.backends.many import Ended
from sitq.backends.sqlite import many, queries, unique_jobs, uniques
from sitq.backends.sqlite.abilities import Ability
from sitq.backends.sqlite.batch import Durability
from sitq.backends.sqlite.cancelling import Cancellation
from sitq.backends.sqlite.choosing import Selection
from sitq.backends.sqlite.connection import Connection
from sitq.backends.sqlite.inspection import Inspection
from sitq.backends.sqlite.jobs import (
    DUE,
    EnqueueJob,
    ReadJob,
    RecordJob,
    ReleaseJob,
    RenewJob,
    ReserveJob,
    ReserveState,
    Topic,
    micros,
)
from sitq.backends.sqlite.lanes import LANES, lane_of
from sitq.backends.sqlite.pausing import LaneOperations, check_head_start
from sitq.backends.sqlite.progressing import ProgressReports
from sitq.backends.sqlite.pruning import Pruning
from sitq.backends.sqlite.queries import Found, to_reservation
from sitq.backends.sqlite.wake import Seen, Watchers, touch
from sitq.errors import BackendError
from sitq.models import NewTask, Outcome, Reservation, ReservedTask, Result, now_seconds

DEFAULT_PATH = "sitq.db"
DEFAULT_RETENTION = timedelta(days=7)
AS_RETENTION: Final = "as retention"
BUSY_TIMEOUT_SECONDS = 5.0
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
HEAD_START_SECONDS = 60.0
MAX_STORABLE_BYTES = 500_000_000
"""Payload and result of a task share a row, and a row has at most a billion bytes (SQLITE_MAX_LENGTH)."""


class SQLiteBackend(Inspection, Cancellation, LaneOperations, ProgressReports):
    """Keeps tasks in one SQLite file, shared by any number of processes on one host.

    The file is created for its owner only, in WAL mode, and must be on a local file system.
    ``":memory:"`` keeps everything inside this one object, for tests.

    Args:
        path: The file. Its folder must exist.
        durability: What a commit has to survive beyond the death of every process.
            ``"enqueue"``: an acknowledged ``enqueue`` survives a power cut; a reservation or an
            outcome may be lost in one, which means one more run. ``"full"``: every commit survives
            a power cut. ``"normal"``: a power cut may drop the newest commits, enqueued tasks
            included. None of them can damage the file.
        retention: How long a finished task is kept, as a ``timedelta`` or in seconds; ``None``
            keeps it for ever. Workers prune in small batches. What is given is stored in the file,
            when it is opened, and holds for workers that are not given any; left out, it is what was
            stored last, or else a week.
        retention_failed: The same for failed tasks, to keep them until somebody has looked at them.
            Stored and left out as ``retention``; until one is given, failed tasks are kept as all others.
            If it differs, the file gets one more index at the first reservation of a worker.
        busy_timeout: Seconds to wait for the write lock before a call gives up with
            :class:`~sitq.BackendUnavailableError`. Leases should be several times longer.
        max_payload_bytes: The largest payload or result, in bytes.
        clock: Gives the time in seconds since 1970 UTC; for tests.
        head_start: Seconds by which a task is sooner for each step of its priority: it is overtaken by
            those only that became due within its disadvantage after it. With ``inf`` a task of a
            higher priority always comes first, and others may wait for ever. For workers of this backend.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is negative or not finite, or ``durability`` is none of the three.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        durability: Durability = "enqueue",
        retention: timedelta | float | None = DEFAULT_RETENTION,
        retention_failed: timedelta | float | Literal["as retention"] | None = AS_RETENTION,
        busy_timeout: float = BUSY_TIMEOUT_SECONDS,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        clock: Callable[[], float] = now_seconds,
        head_start: float = HEAD_START_SECONDS,
    ) -> None:
        if durability not in get_args(Durability.__value__):
            raise ValueError(f"durability must be 'enqueue', 'full' or 'normal', not {durability!r}")
        path = os.fspath(path)
        if not isinstance(path, str):
            raise TypeError(f"path must be a str or a path to one, not {type(path).__name__}")
        # An absolute path: the host may change its working directory. SQLite follows links, and
        # keeps the -wal file beside what they point to.
        self._path = path if path == ":memory:" else os.path.realpath(path)
        self._durability: Durability = durability
        failed_chosen = retention_failed != AS_RETENTION
        pruning = Pruning(
            _kept("retention", retention),
            chosen=retention is not DEFAULT_RETENTION,
            failed=_kept("retention_failed", retention_failed) if failed_chosen else None,
            failed_chosen=failed_chosen,
        )
        self._reserve_state = ReserveState(pruning, Selection(None, check_head_start(head_start)))
        self._busy_timeout = check_seconds("busy_timeout", busy_timeout)
        self._max_payload_bytes = check_count("max_payload_bytes", max_payload_bytes, max_value=MAX_STORABLE_BYTES)
        self._clock = clock
        self._wal_path = None if path == ":memory:" else f"{self._path}-wal"
        self._watchers = Watchers(self._wal_path, self._find_ended)
        self._lock = threading.Lock()
        self._users = 0
        self._connection: Connection | None = None
        _forks.begin_anew_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        self._lock = threading.Lock()
        self._watchers.begin_anew()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    @property
    def max_payload_bytes(self) -> int | None:
        """The largest payload or result, in bytes."""
        return self._max_payload_bytes

    @property
    def endings(self) -> frozenset[Ending]:
        """All that an outcome can say: see :class:`~sitq.backends.endings.Endings`."""
        return frozenset({"retry", "cancel", "then"})

    @property
    def has_uniques(self) -> bool:
        """Whether one of several tasks with a key can be enough: see :class:`~sitq.backends.uniques.Uniques`."""
        return True

    async def connect(self) -> None:
        """Opens the file, or counts one more user of it if it is open.

        Raises:
            BackendUnavailableError: The file cannot be opened, or is locked.
            BackendReadOnlyError: The file is missing or old, and cannot be written.
            BackendCorruptError: The file is damaged, not a database, or not one of sitq's.
            BackendVersionError: The file was written by a newer sitq.
        """
        asyncio.get_running_loop()  # or a RuntimeError, before anything is counted
        with self._lock:
            self._users += 1
            if self._connection is None:
                self._connection = Connection(
                    self._path, self._durability, self._busy_timeout, self._clock, self._notify
                )
            connection = self._connection
        try:
            # The first job opens the file.
            await connection.call(ReadJob(lambda sqlite, _: self._reserve_state.pruning.settle(sqlite)))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Counts one user less, and closes the file after the last one. Safe to call too often."""
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users:
                return
            connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.shield(asyncio.ensure_future(connection.close()))

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[str] | None:
        """Stores all of ``tasks`` or none, in one transaction; returns the ids of those that stand.

        ``None`` means that each stands for itself; see :class:`~sitq.backends.uniques.Uniques`.

        If all of their ids are taken, by the same payloads, the call was carried out before and its answer
        was lost: then there is nothing more to do.

        Raises:
            ValueError: A payload is larger than ``max_payload_bytes``, or the ``period`` of a unique task
                is longer than finished tasks are kept.
            DuplicateTaskError: Another task stands for a unique one that is to raise then.
            BackendError: The file did not take them.
        """
        needed = self._check(tasks)
        connection = self._connected()
        # Notified now, not after the commit: the reservation of a worker queues right behind the insert.
        on_queued = partial(self._watchers.notify, (DUE,))
        if uniques.ABILITY in needed:
            uniques.check_periods(tasks, self._reserve_state.pruning.kept)
            return await unique_jobs.enqueue(connection, tasks, needed, on_queued)
        await connection.call(EnqueueJob(tasks, needed), on_queued=on_queued)
        return None

    def _check(self, tasks: Iterable[NewTask]) -> Collection[Ability]:
        """Returns what the file has to have for these tasks."""
        needed: tuple[Ability, ...] = ()
        for task in tasks:
            if len(task.payload) > self._max_payload_bytes:
                raise ValueError(
                    f"the call of {task.name} takes {len(task.payload)} bytes, more than the "
                    f"{self._max_payload_bytes} that max_payload_bytes allows: store the data "
                    "elsewhere and pass a reference, or raise the limit"
                )
            if task.extras is not None:
                if uniques.is_unique(task) and uniques.ABILITY not in needed:
                    needed = (*needed, uniques.ABILITY)
                if lane_of(task.extras) is not None and LANES not in needed:
                    needed = (*needed, LANES)
        return needed

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out up to ``limit`` due tasks, the oldest first; see :class:`~sitq.Backend`."""
        while True:
            job = ReserveJob(limit, lease, alone, self._reserve_state, self._give_back)
            found = await self._connected().call(job)
            if found.rows or found.reservation.buried or not found.ended:
                return to_reservation(found)

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Lets the leases of ``tasks`` end ``lease`` seconds from now; returns those not held."""
        return await self._connected().call(RenewJob(tasks, lease))

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results; returns the tasks that were not held.

        Raises:
            ValueError: The payload of a task that is to be stored as well is larger than ``max_payload_bytes``.
            BackendError: The file did not take them, or such a task asks for what this backend does not have.
        """
        needed = self._check(task for outcome in outcomes if outcome.then for task in outcome.then)
        return await self._connected().call(RecordJob(outcomes, "success", needed))

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors, retries and cancellations; returns the tasks that were not held.

        Raises:
            ValueError: As for :meth:`mark_success`.
            BackendError: As for :meth:`mark_success`.
        """
        needed = self._check(task for outcome in outcomes if outcome.then for task in outcome.then)
        return await self._connected().call(RecordJob(outcomes, "failed", needed))

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back, due at once and the attempt unspent; returns those not held."""
        return await self._connected().call(ReleaseJob(tasks))

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Reads one task; ``None`` if there is no such task.

        Raises:
            BackendCorruptError: Its row is malformed.
        """
        return await self._connected().call(ReadJob(lambda sqlite, _: queries.get_result(sqlite, task_id)))

    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> AbstractContextManager[None]:
        """Calls ``on_change`` when there may be something new to find; see :class:`~sitq.Backend`."""
        return self._watchers.watching(on_change, task_id)

    async def get_results(self, task_ids: Sequence[str]) -> Ended:
        """Returns which of some tasks have ended; see :class:`~sitq.backends.many.ManyResults`.

        Raises:
            BackendCorruptError: The row of one of them is malformed.
        """
        return await self._connected().call(ReadJob(lambda sqlite, _: many.get_results(sqlite, task_ids)))

    def watch_results(
        self, on_change: Callable[[str], object], task_ids: Collection[str]
    ) -> AbstractContextManager[None]:
        """Calls ``on_change`` when one of some tasks may have ended; see :class:`~sitq.backends.many.ManyResults`."""
        return self._watchers.watching_many(on_change, task_ids)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise BackendError(f"{self._path} is not open: call connect() first")
        return self._connection

    def _find_ended(self, task_ids: Sequence[str], seen: Seen) -> asyncio.Future[tuple[Seen, Sequence[str]]]:
        return self._connected().submit(ReadJob(lambda sqlite, _: queries.ended(sqlite, task_ids, seen)))

    def _notify(self, topics: Collection[Topic]) -> None:
        self._watchers.notify(topics)
        if self._wal_path is not None:
            touch(self._wal_path)

    def _give_back(self, found: Found) -> None:
        if found.rows:
            with contextlib.suppress(BackendError):  # closed since: the lease will end
                self._connected().post(ReleaseJob(to_reservation(found).tasks))


def _kept(name: str, value: Any) -> int | None:
    """Returns how long tasks are kept, in microseconds; ``None`` for ever."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return None if seconds is None else micros(check_seconds(name, seconds))
