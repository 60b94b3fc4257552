"""The thread that owns a SQLite connection: what arrives together is one batch, and one commit."""

import asyncio
import atexit
import concurrent.futures
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from sitq import _forks
from sitq.backends.sqlite.batch import Batch, Durability
from sitq.backends.sqlite.file import QueueFile
from sitq.backends.sqlite.jobs import Job, Topic
from sitq.backends.sqlite.patience import PatientConnection
from sitq.errors import BackendError

CACHED_STATEMENTS = 128

SETTLING_SECONDS = 5.0
"""How long the exit of the interpreter may wait for what is queued."""


class Connection:
    """One SQLite connection on a thread of its own.

    Jobs that arrive while the thread is busy are carried out together at its next turn, in one
    transaction (group commit): a single caller pays one batch, a thousand concurrent ones pay a few.
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
        notify: Callable[[Collection[Topic]], None],
    ) -> None:
        self._path = path
        self._durability = durability
        self._clock = clock
        self._notify = notify
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
            ended.set_running_or_notify_cancel()  # so that no cancelled waiter can cancel it: the thread would not end
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
        # Whatever it raises: the thread ends, and who waits for that is told.
        try:
            self._let_go()
        except (sqlite3.Error, OSError):
            pass  # there is nothing more to be done with the file
        except BaseException as error:
            ended.set_exception(error)
        if not ended.done():
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
        if self._file.handle is not None:
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
            # Cancelled between the answer and this coroutine's turn: Job.answer could not know.
            if not future.cancelled() and future.exception() is None:
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
        with self._lock:
            jobs = Batch.collect(self._jobs, all_of_them=self._closed)  # what is queued now runs after the close
            if self._jobs:
                self._send(self._run_batch)
            else:
                self._batch_queued = False
        batch = Batch(jobs, self._file, self._durability, self._clock)
        batch.carry_out()
        self._thread._connection = self._file.handle  # so that aiosqlite warns of a connection that nobody closed
        # If more is queued, first the system call, because in it the loop would take the interpreter lock
        # as soon as it has its answers: so the next statement starts while the loop wakes up.
        if self._jobs:
            batch.notify(self._notify)
            batch.answer()
        else:
            batch.answer()
            batch.notify(self._notify)


@atexit.register
def _settle_all() -> None:
    # Only daemons are left of the threads, and the next one to need the interpreter lock may not get it:
    # nobody would be notified of what was acknowledged last. Not closed: other functions of this kind follow.
    for holder in _forks.holders():
        if isinstance(holder, Connection):
            holder.settle()
