"""The thread that owns a SQLite connection: one hop for a change, one commit for many."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from sitq.backends.sqlite.schema import create_private_file, prepare
from sitq.errors import (
    BackendCorruptError,
    BackendError,
    BackendReadOnlyError,
    BackendUnavailableError,
)

type Durability = Literal["enqueue", "full", "normal"]
type Kind = Literal["read", "look", "write"]

CACHED_STATEMENTS = 128

_AGAIN = "nothing was changed; try again later"
_ERRORS: dict[int, tuple[type[BackendError], str]] = {
    sqlite3.SQLITE_BUSY: (
        BackendUnavailableError,
        f"another connection holds the write lock for longer than the busy timeout; {_AGAIN}",
    ),
    sqlite3.SQLITE_LOCKED: (BackendUnavailableError, f"it is locked; {_AGAIN}"),
    sqlite3.SQLITE_FULL: (BackendUnavailableError, f"the disk is full; make room: {_AGAIN}"),
    sqlite3.SQLITE_IOERR: (BackendUnavailableError, f"the disk reports an error; {_AGAIN}"),
    sqlite3.SQLITE_CANTOPEN: (
        BackendUnavailableError,
        "it cannot be opened; check that its folder exists and that this user may write there",
    ),
    sqlite3.SQLITE_READONLY: (
        BackendReadOnlyError,
        "it is read-only; give this user the right to write the file and its folder",
    ),
    sqlite3.SQLITE_PERM: (BackendReadOnlyError, "access is denied; check the file's mode"),
    sqlite3.SQLITE_CORRUPT: (
        BackendCorruptError,
        "it is damaged; stop its users, keep a copy, and restore a backup or run `.recover`",
    ),
    sqlite3.SQLITE_NOTADB: (BackendCorruptError, "it is not a SQLite database; check the path"),
}

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def translate(error: sqlite3.Error, path: str) -> BackendError:
    """Returns the error of sitq's that tells a caller what to do about one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind, advice = _ERRORS.get(code, (BackendError, "SQLite refused a statement of sitq's"))
    return kind(f"{path}: {advice} ({error})")


class Job[T]:
    """A function for the connection's thread, and who waits for it.

    Attributes:
        run: Called once with the connection; called again, alone, if a merged transaction failed.
        kind: ``"write"`` needs the write lock; ``"look"`` takes it itself, and only when it found
            something, with statements that are atomic each; ``"read"`` never does.
        synced: Whether the commit has to survive a power cut.
        on_commit: Called on the thread with the result, once it is committed.
        on_abandoned: Called with the result where nobody waits for it any more.
    """

    __slots__ = ("error", "future", "kind", "on_abandoned", "on_commit", "result", "run", "synced")

    def __init__(
        self,
        run: Callable[[sqlite3.Connection], T],
        kind: Kind,
        *,
        synced: bool = False,
        on_commit: Callable[[T], object] | None = None,
        on_abandoned: Callable[[T], object] | None = None,
    ) -> None:
        self.run = run
        self.kind = kind
        self.synced = synced
        self.on_commit = on_commit
        self.on_abandoned = on_abandoned
        self.future: asyncio.Future[T] | None = None
        self.result: T | None = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """Hands the outcome to the one who waits; called in that one's event loop."""
        future = self.future
        if future is None or future.done():
            if self.error is None and self.on_abandoned:
                self.on_abandoned(self.result)  # type: ignore[arg-type]  # a T where error is None
        elif self.error is None:
            future.set_result(self.result)  # type: ignore[arg-type]
        else:
            future.set_exception(self.error)


class Connection:
    """One SQLite connection on a thread of its own.

    Jobs that arrive while the thread is busy are run together at its next turn, in one transaction
    (group commit): a lone caller pays one hop, a thousand concurrent ones pay a few.
    """

    def __init__(self, path: str, durability: Durability, busy_timeout: float) -> None:
        self._path = path
        self._durability = durability
        self._busy_timeout = busy_timeout
        self._jobs: deque[Job[Any]] = deque()
        self._lock = threading.Lock()
        self._hop_queued = False
        self._closed = False
        self._forks = _forks
        self._synchronous = ""
        self._identity: tuple[int, int] | None = None

    async def open(self) -> None:
        """Opens the file, creating it for its owner only, and brings it to the current schema."""
        in_memory = self._path == ":memory:"
        try:
            if not in_memory:
                create_private_file(Path(self._path))
            self._aiosqlite = aiosqlite.connect(
                self._path,
                timeout=self._busy_timeout,
                isolation_level=None,
                cached_statements=CACHED_STATEMENTS,
            )
            await self._aiosqlite
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        except PermissionError as error:
            raise BackendReadOnlyError(
                f"{self._path}: the folder cannot be written by this user; choose another path"
            ) from error
        except OSError as error:
            raise BackendUnavailableError(
                f"{self._path}: the file cannot be created; check that its folder exists ({error})"
            ) from error
        _stop_at_exit(self._aiosqlite)
        self._sqlite = self._aiosqlite._conn
        try:
            await self.call(Job(lambda connection: prepare(connection, self._path), "read"))
            if not in_memory:
                self._identity = self._stat()
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def close(self) -> None:
        """Runs what is queued, then closes the connection and ends the thread."""
        if not self._closed:
            self._closed = True
            if self._forks == _forks:
                await self._aiosqlite.close()

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
        if self._closed:
            raise BackendError(f"{self._path}: the backend is closed; connect it again")
        if self._forks != _forks:
            raise BackendError(
                f"{self._path}: the backend was connected before a fork(), and a SQLite connection "
                "must not be used across one; make a new backend in the child"
            )
        with self._lock:
            self._jobs.append(job)
            if self._hop_queued:
                return
            self._hop_queued = True
        # aiosqlite has no public call for "run this on your thread, and wake nobody": its own
        # future would wake the loop a second time for each hop.
        self._aiosqlite._tx.put_nowait((None, self._hop))

    def _hop(self) -> None:
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            self._hop_queued = False
        try:
            self._check_identity()
            self._run(jobs)
        except BaseException as error:
            for job in jobs:
                job.error = self._translated(error)
        for job in jobs:
            if job.error is None and job.on_commit:
                job.on_commit(job.result)
        by_loop: dict[asyncio.AbstractEventLoop | None, list[Job[Any]]] = {}
        for job in jobs:
            by_loop.setdefault(job.future.get_loop() if job.future else None, []).append(job)
        for loop, delivered in by_loop.items():
            if loop is not None:
                # A loop that is closed has nobody left who waits.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_deliver, delivered)

    def _run(self, jobs: list[Job[Any]]) -> None:
        writers = [job for job in jobs if job.kind == "write"]
        self._set_synchronous(full=any(job.synced for job in writers))
        if not writers:
            for job in jobs:
                self._run_alone(job, transaction=False)
            return
        try:
            self._transaction(jobs)
        except sqlite3.Error as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            for job in jobs:
                if busy and job.kind != "read":
                    job.error = self._translated(error)  # waited for the lock once: that is enough
                else:
                    self._run_alone(job, transaction=job.kind == "write")
        except Exception:
            # One job of several is at fault: each gets a transaction, and an answer, of its own.
            for job in jobs:
                self._run_alone(job, transaction=job.kind == "write")

    def _run_alone(self, job: Job[Any], *, transaction: bool) -> None:
        try:
            if transaction:
                self._transaction([job])
            else:
                job.result = job.run(self._sqlite)
        except BaseException as error:
            job.error = self._translated(error)

    def _transaction(self, jobs: list[Job[Any]]) -> None:
        connection = self._sqlite
        connection.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                job.result = job.run(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise

    def _set_synchronous(self, *, full: bool) -> None:
        # Set in the hop that needs it: the level belongs to the connection, and between two hops
        # another caller's write would slip in.
        full = self._durability == "full" or (full and self._durability == "enqueue")
        level = "FULL" if full else "NORMAL"
        if level != self._synchronous:
            self._sqlite.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            translated = translate(error, self._path)
            translated.__cause__ = error
            return translated
        return error

    def _stat(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise BackendUnavailableError(
                f"{self._path} is not there any more: it was deleted or moved while it was open; "
                "put it back, or restart what uses it"
            ) from error
        return found.st_dev, found.st_ino

    def _check_identity(self) -> None:
        # SQLite goes on writing into a file that has lost its name, and nothing fails.
        if self._identity is not None and self._stat() != self._identity:
            raise BackendUnavailableError(
                f"{self._path} is another file than the one that was opened: it was replaced while "
                "it was open; put it back, or restart what uses it"
            )


def _deliver(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()


_open: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()
_reaper: threading.Thread | None = None


def _stop_at_exit(connection: aiosqlite.Connection) -> None:
    """Lets the interpreter exit although nobody closed ``connection``.

    aiosqlite's thread is not a daemon, and the interpreter waits for it before atexit runs. One
    daemon thread that waits for the end of the main thread gets its turn before that.
    """
    global _reaper
    _open.add(connection)
    if _reaper is None or not _reaper.is_alive():
        _reaper = threading.Thread(target=_stop_open, name="sitq-exit", daemon=True)
        _reaper.start()


def _stop_open() -> None:
    threading.main_thread().join()
    for connection in list(_open):
        connection.stop()
