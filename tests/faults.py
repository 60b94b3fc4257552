"""What the tests of faults share: ways to make a file sick, and looks into the process."""

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from sitq import NewTask, SQLiteBackend
from sitq.backends.sqlite.jobs import ReadJob
from tests.support import DEADLINE_SECONDS, Runs, start_python, until

OVERWRITE = """
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    old = file.read(int(sys.argv[3]))
    file.seek(int(sys.argv[2]))
    file.write(bytes.fromhex(sys.argv[4]))
print(old.hex())
"""


class Clock:
    """A wall clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        """Returns the time in seconds since 1970."""
        return self.now


class Waits:
    """Stands for the module ``time`` while a lock is waited for, and says how often that was done."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._waited = threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        """Sleeps, and counts it."""
        self._waited.release()
        time.sleep(seconds)

    def several(self) -> None:
        """Blocks until the lock was found taken ten more times."""
        for _ in range(10):
            assert self._waited.acquire(timeout=DEADLINE_SECONDS)


def run_python(code: str, *arguments: object) -> str:
    """Runs a Python process that must exit with status 0 and say nothing to stderr; returns its output."""
    process = start_python(code, *arguments)
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, errors) == (0, "")
    return output


def new_task(task_id: str = "task", payload: bytes = b"payload", **fields: Any) -> NewTask:
    """Returns a task of bytes that nobody loads."""
    return NewTask(task_id, payload, **fields)


@contextlib.asynccontextmanager
async def connected(backend: SQLiteBackend) -> AsyncIterator[SQLiteBackend]:
    """Connects a backend for the length of the block."""
    await backend.connect()
    try:
        yield backend
    finally:
        await backend.close()


@contextlib.contextmanager
def shared_folder(mode: int) -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, mode)
        yield Path(folder)
        os.chmod(folder, 0o755)


async def run_until(runs: Runs, line: str, gate: Path) -> str:
    """A task that says it runs, and ends once there is a file ``gate``."""
    runs.add(line)
    await until(gate.exists)
    return line


async def on_connection[T](backend: SQLiteBackend, run: Callable[[sqlite3.Connection], T]) -> T:
    """Runs ``run`` with the backend's own connection, in that one's thread."""
    return await backend._connected().call(ReadJob(lambda connection, _: run(connection)))


@contextlib.contextmanager
def outside(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of another program's; it waits for locks for as long as the test may."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=DEADLINE_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def lasting(
    fault: Callable[[Path], contextlib.AbstractContextManager[None]],
) -> Callable[[SQLiteBackend, Path], contextlib.AbstractAsyncContextManager[None]]:
    """Returns a fault of the file as one that async tests can use like the faults of a connection."""

    @contextlib.asynccontextmanager
    async def done(_: SQLiteBackend, path: Path) -> AsyncIterator[None]:
        with fault(path):
            yield

    return done


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another program holds the file's write lock."""
    with outside(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process can grow beyond the present size of the ``-wal`` file.

    What a file system with no room left does, for anyone without privileges; the system's word for
    it is another one (EFBIG), and SQLite reports an I/O error.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.asynccontextmanager
async def no_free_page(backend: SQLiteBackend) -> AsyncIterator[None]:
    """The database cannot get another page: SQLite's own word for a full disk."""

    def cap(connection: sqlite3.Connection) -> int:
        before: int = connection.execute("PRAGMA max_page_count").fetchone()[0]
        connection.execute("PRAGMA max_page_count = 1")  # the present size, because it cannot be less
        return before

    before = await on_connection(backend, cap)
    try:
        yield
    finally:
        await on_connection(backend, lambda connection: connection.execute(f"PRAGMA max_page_count = {before}"))


@contextlib.asynccontextmanager
async def read_only(backend: SQLiteBackend) -> AsyncIterator[None]:
    """The connection may not write; what an open file does when its file system turned read-only."""
    await on_connection(backend, lambda connection: connection.execute("PRAGMA query_only = ON"))
    try:
        yield
    finally:
        await on_connection(backend, lambda connection: connection.execute("PRAGMA query_only = OFF"))


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """The file is known by another name for a while."""
    elsewhere = path.with_suffix(".moved")
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


def overwrite(path: Path, offset: int, data: bytes) -> bytes:
    """Writes into a database file behind SQLite's back and returns what was there.

    In another process: closing a file drops every POSIX lock that this process holds on it.
    """
    arguments = [OVERWRITE, path, offset, len(data), data.hex()]
    done = subprocess.run([sys.executable, "-ISc", *map(str, arguments)], capture_output=True, text=True, check=True)
    return bytes.fromhex(done.stdout.strip())


@contextlib.contextmanager
def damaged(path: Path, *, page_of: str | None) -> Iterator[None]:
    """The header, or the first page of a table or index, holds rubbish for a while.

    The WAL is emptied before, so that all is read from the file, and once more afterwards: that makes every
    connection forget its pages. Else one that looked in between, which a quick file system makes likely, would
    go on with the sound page that it has in memory, and see nothing.
    """
    with outside(path) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        found = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (page_of,)).fetchone()
        offset, length = ((found[0] - 1) * size, size) if found else (0, 100)
        old = overwrite(path, offset, b"\xa5" * length)
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # it does not read the header
        assert not busy
    try:
        yield
    finally:
        overwrite(path, offset, old)
        with outside(path) as connection:  # a commit, so that the others forget what they have read
            connection.execute(f"PRAGMA user_version = {version}")


def assert_healthy(path: Path) -> None:
    """Asserts that SQLite finds nothing wrong with the file."""
    with outside(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_unlocked(path: Path) -> None:
    """Asserts that another program can get the write lock: nobody keeps it for good."""
    with write_lock(path):
        pass


def open_files() -> int:
    """Returns how many files this process has open."""
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
