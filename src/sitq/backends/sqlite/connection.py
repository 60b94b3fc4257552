"""The thread that owns a SQLite connection: one hop for a change, one commit for many."""

import asyncio
import atexit
import itertools
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import aiosqlite

from sitq.backends.sqlite.patience import PatientConnection
from sitq.backends.sqlite.schema import create_private_file, prepare
from sitq.backends.sqlite.statements import Notes, Row, apply, install
from sitq.backends.sqlite.translation import translate
from sitq.errors import BackendError, BackendUnavailableError

type Durability = Literal["enqueue", "full", "normal"]

CACHED_STATEMENTS = 128


@dataclass(slots=True, eq=False)
class Job[T]:
    """Something to change and something to read, and who waits for it.

    Attributes:
        read: Called on the connection's thread, after the changes were committed, with the
            connection, the time in microseconds and what there is to note about the changes.
        changes: Gives, for a time, the changes to make; ``None`` where the job only reads. Called
            again, alone, where changes that were merged with others failed.
        wanted: Asked, where nothing else in the hop writes, whether the changes would change
            anything: trying costs the write lock.
        synced: Whether the commit has to survive a power cut.
        announce: Gives, for the result, what another look may find from now on: the ids of tasks
            that ended, and ``None`` for tasks that are due.
        on_abandoned: Called with the result where nobody waits for it any more.
    """

    read: Callable[[sqlite3.Connection, int, Notes], T]
    changes: Callable[[int], Iterable[Row]] | None = None
    _: KW_ONLY
    wanted: Callable[[sqlite3.Connection, int], bool] | None = None
    synced: bool = False
    announce: Callable[[T], Iterable[str | None]] | None = None
    on_abandoned: Callable[[T], object] | None = None
    future: asyncio.Future[T] | None = field(default=None, init=False)
    result: T | None = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)

    def abandon(self) -> None:
        """Undoes what nobody waits for."""
        if self.error is None and self.on_abandoned:
            self.on_abandoned(self.result)  # type: ignore[arg-type]  # a T where error is None

    def deliver(self) -> None:
        """Hands the outcome to the one who waits; called in that one's event loop."""
        future = self.future
        if future is None or future.done():
            self.abandon()
        elif self.error is None:
            future.set_result(self.result)  # type: ignore[arg-type]
        else:
            future.set_exception(self.error)


class Connection:
    """One SQLite connection on a thread of its own.

    Jobs that arrive while the thread is busy are carried out together at its next turn, in one
    transaction (group commit): a lone caller pays one hop, a thousand concurrent ones pay a few.
    But a hop takes one reservation only: while a worker runs what it gave out, the thread can be
    at the next one.
    """

    def __init__(
        self,
        path: str,
        durability: Durability,
        busy_timeout: float,
        clock: Callable[[], float],
        announce: Callable[[Iterable[str | None]], None],
    ) -> None:
        self._path = path
        self._durability = durability
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._announce = announce
        self._jobs: deque[Job[Any]] = deque()
        self._lock = threading.Lock()
        self._hop_queued = False
        self._closed = False
        self._pid = os.getpid()
        self._synchronous = ""
        self._identity: os.stat_result | None = None

    async def open(self) -> Self:
        """Opens the file, creating it for its owner only, and brings it to the current schema."""
        try:
            if self._path != ":memory:":
                create_private_file(Path(self._path))
            self._aiosqlite = aiosqlite.connect(
                self._path,
                timeout=0.0,
                isolation_level=None,
                cached_statements=CACHED_STATEMENTS,
                factory=PatientConnection,
            )
            # A daemon: a backend that nobody closed must not keep the interpreter from exiting (see _settle_open).
            self._aiosqlite._thread.daemon = True
            try:
                await self._aiosqlite
            except BaseException:
                # The thread was told to end, and answers to this loop before it does: wait for that,
                # for the loop may be closed soon.
                if self._aiosqlite._thread.is_alive():
                    await asyncio.to_thread(self._aiosqlite._thread.join)
                raise
        except (sqlite3.Error, OSError) as error:
            raise translate(error, self._path) from error
        assert isinstance(self._aiosqlite._conn, PatientConnection)
        self._sqlite = self._aiosqlite._conn
        self._sqlite.patience = self._busy_timeout
        try:
            await self.call(Job(lambda connection, *_: self._prepare(connection)))
        except BaseException:
            await asyncio.shield(self.close())
            raise
        _open.add(self)
        return self

    def _prepare(self, connection: sqlite3.Connection) -> None:
        prepare(connection, self._path)
        install(connection)
        self._synchronous = ""  # whatever it is by now
        if self._path != ":memory:":
            self._identity = os.stat(self._path)

    async def close(self) -> None:
        """Runs what is queued, then closes the connection and ends the thread."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first and self._pid == os.getpid():
            await self._aiosqlite.close()

    def settle(self) -> None:
        """Waits for what is queued, and has what stands in the -wal file written into the file itself."""
        settled = threading.Event()
        with self._lock:
            if self._closed or self._pid != os.getpid():
                return
            self._aiosqlite._tx.put_nowait((None, partial(self._sqlite.execute, "PRAGMA wal_checkpoint(PASSIVE)")))
            self._aiosqlite._tx.put_nowait((None, settled.set))
        settled.wait()

    async def call[T](self, job: Job[T], *, on_queued: Callable[[], object] | None = None) -> T:
        """Runs ``job`` and returns its result.

        A job whose caller is cancelled still runs.

        Args:
            job: What to run.
            on_queued: Called when ``job`` is in the queue: what is queued from then on runs after
                it, or with it.

        Raises:
            BackendError: SQLite refused, or the connection cannot be used.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job.future = future
        self.post(job)
        if on_queued:
            on_queued()
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the delivery and this coroutine's turn: deliver() could not know.
            if not future.cancelled() and future.exception() is None and job.on_abandoned:
                job.on_abandoned(future.result())
            raise

    def post(self, job: Job[Any]) -> None:
        """Queues ``job``; nobody needs to wait for it."""
        if self._pid != os.getpid():
            raise BackendError(
                f"{self._path}: the backend was connected before a fork(), and a SQLite connection "
                "must not be used across one; make a new backend in the child"
            )
        if not self._jobs:
            self._check_identity()
        with self._lock:
            if self._closed:
                raise BackendError(f"{self._path}: the backend is closed")
            self._jobs.append(job)
            if self._hop_queued:
                return
            self._hop_queued = True
            # aiosqlite has no public call for "run this on your thread, and wake nobody": its own
            # future would wake the loop a second time for each hop.
            self._aiosqlite._tx.put_nowait((None, self._hop))

    def _hop(self) -> None:
        jobs = self._take()
        self._try(jobs)
        topics = {topic for job in jobs if job.announce and job.error is None for topic in job.announce(job.result)}
        # Where more is queued, first the system call, for in it the loop would take the interpreter lock
        # as soon as it has its answers: so the next statement starts while the loop wakes up.
        more = bool(self._jobs)
        if more and topics:
            self._announce(topics)
        by_loop: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
        for job in jobs:
            if job.future is None or job.future.cancelled():
                job.abandon()
            else:
                by_loop.setdefault(job.future.get_loop(), []).append(job)
        for loop, delivered in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, delivered)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                for job in delivered:
                    job.abandon()
        if topics and not more:
            self._announce(topics)

    def _take(self) -> list[Job[Any]]:
        """Returns what is queued, up to the second reservation."""
        with self._lock:
            jobs = list(self._jobs)
            reservations = [n for n, job in enumerate(jobs) if job.wanted is not None]
            if len(reservations) > 1 and not self._closed:  # what is queued then runs after the close
                del jobs[reservations[1] :]
                self._jobs = deque(itertools.islice(self._jobs, len(jobs), None))
                self._aiosqlite._tx.put_nowait((None, self._hop))
            else:
                self._jobs.clear()
                self._hop_queued = False
        return jobs

    def _try(self, jobs: list[Job[Any]]) -> None:
        try:
            self._run(jobs, int(self._clock() * 1_000_000))
        except BaseException as error:
            for job in jobs:
                job.error = self._translated(error)

    def _run(self, jobs: list[Job[Any]], now: int) -> None:
        synced = any(job.synced for job in jobs)
        self._set_synchronous(synced)
        others = any(job.changes and not job.wanted for job in jobs)  # then there is a commit anyhow
        writers = [job for job in jobs if job.changes and (others or not job.wanted or job.wanted(self._sqlite, now))]
        try:
            changes = (job.changes(now) for job in writers if job.changes)
            notes = apply(self._sqlite, itertools.chain.from_iterable(changes))
        except Exception as error:
            if len(jobs) == 1:
                raise
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            for job in jobs:
                if busy and job in writers:
                    job.error = self._translated(error)  # it waited for the lock once: enough
                else:
                    self._try([job])  # one is at fault: each gets a transaction, and an answer, of its own
            return
        if synced:
            self._check_identity()  # what is about to be acknowledged may have waited for the lock long enough
        for job in jobs:
            try:
                job.result = job.read(self._sqlite, now, notes)
            except Exception as error:
                job.error = self._translated(error)

    def _set_synchronous(self, synced: bool) -> None:
        # Set in the hop that needs it: the level belongs to the connection, and between two hops
        # another caller's write would slip in.
        level = "FULL" if self._durability == "full" or (synced and self._durability == "enqueue") else "NORMAL"
        if level != self._synchronous:
            self._sqlite.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _translated(self, error: BaseException) -> BaseException:
        return translate(error, self._path) if isinstance(error, (sqlite3.Error, OSError)) else error

    def _check_identity(self) -> None:
        # SQLite goes on writing into a file that has lost its name, and nothing fails. Asked by who
        # queues the first job of a hop: on the connection's thread the system call would hand the
        # interpreter lock to the loop, just when SQLite could have started beside it.
        reason = None
        try:
            if self._identity is None or os.path.samestat(os.stat(self._path), self._identity):
                return
        except OSError as error:
            reason = error
        raise BackendUnavailableError(
            f"{self._path} is not there any more: it was deleted or moved, or replaced by another, while it was "
            "open; put it back, or restart what uses it"
        ) from reason


def _deliver(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _settle_open() -> None:
    # Only daemons are left of the threads, and the next one to need the interpreter lock may not get it:
    # what was acknowledged last would not be announced. Not closed: other functions of this kind follow.
    for connection in list(_open):
        connection.settle()
