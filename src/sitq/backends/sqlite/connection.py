"""The thread that owns a SQLite connection: what arrives together is one batch, and one commit."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import itertools
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from sitq import _forks
from sitq.backends.sqlite.changes import Change
from sitq.backends.sqlite.file import QueueFile
from sitq.backends.sqlite.patience import PatientConnection
from sitq.backends.sqlite.statements import Notes, apply
from sitq.backends.sqlite.translation import translate
from sitq.errors import BackendError

type Durability = Literal["enqueue", "full", "normal"]

CACHED_STATEMENTS = 128

SETTLING_SECONDS = 5.0
"""How long the exit of the interpreter may wait for what is queued."""


@dataclass(slots=True, eq=False)
class Job[T]:
    """Something to change and something to read, and who waits for it.

    Attributes:
        read: Called on the connection's thread, after the changes were committed, with the
            connection, the time in microseconds and what there is to note about the changes.
        changes: Gives, for a time, the changes to make; ``None`` where the job only reads. Called
            again, alone, where changes that were merged with others failed.
        wanted: Asked, if nothing else in the batch writes, whether the changes would change
            anything: trying costs the write lock.
        synced: Whether the commit has to survive a power cut.
        announce: Gives, for the result, what another look may find from now on: the ids of tasks
            that ended, and ``None`` for tasks that are due.
        on_abandoned: Called with the result where nobody waits for it any more.
    """

    read: Callable[[sqlite3.Connection, int, Notes], T]
    changes: Callable[[int], Iterable[Change]] | None = None
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
    transaction (group commit): a lone caller pays one batch, a thousand concurrent ones pay a few.
    But a batch takes one reservation only: while a worker runs what it gave out, the thread can be
    at the next one.

    The file is opened by the first batch. Before a fork it is closed; the next batch opens it anew,
    in the parent and in the child.
    """

    def __init__(
        self,
        path: str,
        durability: Durability,
        busy_timeout: float,
        clock: Callable[[], float],
        announce: Callable[[Collection[str | None]], None],
    ) -> None:
        self._path = path
        self._durability = durability
        self._clock = clock
        self._announce = announce
        self._closed = False
        self._stayed_behind = False
        self._file = QueueFile(path, busy_timeout, lambda: self._thread._connector(), self)
        self._begin()
        _forks.begin_anew_in_child(self._begin_in_child)

    def _begin(self) -> None:
        # Of aiosqlite, its thread with the queue is what we use. There is no public call for "run
        # this on your thread, and wake nobody": its own futures would wake the loop for each job.
        self._thread = aiosqlite.connect(
            self._path,
            timeout=0.0,
            isolation_level=None,
            cached_statements=CACHED_STATEMENTS,
            factory=PatientConnection,
        )
        # A daemon: a backend that nobody closed must not keep the interpreter from exiting (see _settle_all).
        self._thread._thread.daemon = True
        self._is_started = False
        self._lock = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._batch_queued = False

    def _begin_in_child(self) -> None:
        self._thread._connection = None
        self._file.forget()
        self._stayed_behind |= self._path == ":memory:" and self._is_started
        self._begin()

    async def close(self) -> None:
        """Runs what is queued, then closes the connection and ends the thread."""
        with self._lock:
            first, self._closed = not self._closed, True
            if not first or not self._is_started:
                return
            ended: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._send(partial(self._end, ended))
        # Not stop() of aiosqlite's: its thread would die of a loop that is closed before it has answered.
        await asyncio.wrap_future(ended)

    def close_for_fork(self) -> None:
        """Has the file closed by the thread, between two batches; the next one opens it again."""
        if self._path == ":memory:":
            _forks.leave(self)  # it lives in this process only
        else:
            self._send(self._let_go)

    def _let_go(self) -> None:
        self._thread._connection = None
        self._file.close()

    def _end(self, ended: concurrent.futures.Future[None]) -> object:
        with contextlib.suppress(sqlite3.Error):
            self._let_go()
        ended.set_result(None)
        return _STOP_RUNNING_SENTINEL

    def settle(self) -> None:
        """Waits for what is queued, and has what stands in the -wal file written into the file itself."""
        settled = threading.Event()
        with self._lock:
            if self._closed or not self._thread._thread.is_alive():
                return
            self._send(self._write_back)
            self._send(settled.set)
        settled.wait(SETTLING_SECONDS)

    def _write_back(self) -> None:
        if self._file.is_open:
            self._file.open().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _send(self, run: Callable[[], object]) -> None:
        self._thread._tx.put_nowait((None, run))

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
        future = self.submit(job)
        if on_queued:
            on_queued()
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the delivery and this coroutine's turn: deliver() could not know.
            if not future.cancelled() and future.exception() is None and job.on_abandoned:
                job.on_abandoned(future.result())
            raise

    def submit[T](self, job: Job[T]) -> asyncio.Future[T]:
        """Queues ``job`` and returns the future of its result; raises as :meth:`post` does."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job.future = future
        self.post(job)
        return future

    def post(self, job: Job[Any]) -> None:
        """Queues ``job``; nobody needs to wait for it.

        Raises:
            BackendError: The connection is closed, or its file is not there any more.
            RuntimeError: Its thread cannot be started.
        """
        _forks.check_process()
        if not self._jobs:
            self._file.check()
        with self._lock:
            if self._closed:
                raise BackendError(f"{self._path}: the backend is closed")
            if self._stayed_behind:
                raise BackendError("a queue in memory stays in the process that made it: use a file across a fork")
            if not self._is_started:
                self._thread._thread.start()
                self._is_started = True
            self._jobs.append(job)
            if not self._batch_queued:
                self._batch_queued = True
                self._send(self._run_batch)

    def _run_batch(self) -> None:
        jobs = self._take()
        self._try(jobs)
        topics = {topic for job in jobs if job.announce and job.error is None for topic in job.announce(job.result)}
        # If more is queued, first the system call, because in it the loop would take the interpreter lock
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
                self._send(self._run_batch)
            else:
                self._jobs.clear()
                self._batch_queued = False
        return jobs

    def _try(self, jobs: list[Job[Any]]) -> None:
        try:
            self._run(jobs)
        except BaseException as error:
            for job in jobs:
                job.error = self._translated(error)

    def _run(self, jobs: list[Job[Any]]) -> None:
        now = int(self._clock() * 1_000_000)
        sqlite = self._open()
        synced = any(job.synced for job in jobs)
        self._set_synchronous(sqlite, synced)
        others = any(job.changes and not job.wanted for job in jobs)  # then there is a commit anyhow
        writers = [job for job in jobs if job.changes and (others or not job.wanted or job.wanted(sqlite, now))]
        try:
            changes = (job.changes(now) for job in writers if job.changes)
            notes = apply(sqlite, now, itertools.chain.from_iterable(changes))
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
            self._file.check_commit()  # what is about to be acknowledged may have waited for the lock long enough
            sqlite = self._open()
        for job in jobs:
            try:
                job.result = job.read(sqlite, now, notes)
            except Exception as error:
                job.error = self._translated(error)

    def _open(self) -> PatientConnection:
        sqlite = self._file.open()
        self._thread._connection = sqlite  # so that aiosqlite warns of a connection that nobody closed
        return sqlite

    def _set_synchronous(self, sqlite: PatientConnection, synced: bool) -> None:
        # Set in the batch that needs it: the level belongs to the connection, and between two batches
        # another caller's write would slip in.
        level = "FULL" if self._durability == "full" or (synced and self._durability == "enqueue") else "NORMAL"
        if level != self._file.synchronous:
            sqlite.execute(f"PRAGMA synchronous = {level}")
            self._file.synchronous = level

    def _translated(self, error: BaseException) -> BaseException:
        return translate(error, self._path) if isinstance(error, (sqlite3.Error, OSError)) else error


def _deliver(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()


@atexit.register
def _settle_all() -> None:
    # Only daemons are left of the threads, and the next one to need the interpreter lock may not get it:
    # what was acknowledged last would not be announced. Not closed: other functions of this kind follow.
    for holder in _forks.holders():
        if isinstance(holder, Connection):
            holder.settle()
