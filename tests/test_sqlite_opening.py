"""Opening a file: by many at once, of another version, of another program, without the right to."""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sitq import BackendError, SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import patience, schema
from sitq.backends.sqlite.translation import translate
from sitq.errors import (
    BackendCorruptError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendVersionError,
)
from tests.faults import Waits, connected, new_task, open_files, outside, run_python, shared_folder
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, rows, until

TOGETHER = 24
NOBODY = 65534
NEXT_STEP = "ALTER TABLE tasks ADD COLUMN urgency INTEGER NOT NULL DEFAULT 3"


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A file's place that other users can reach, unlike pytest's own folders."""
    with shared_folder(0o755) as folder:
        yield folder / "queue.db"


OPEN_TOGETHER = """
import asyncio, os, sys, traceback
from sitq import NewTask, SQLiteBackend

async def main(n):
    backend = SQLiteBackend(sys.argv[1])
    await backend.connect()
    await backend.enqueue([NewTask(f"task-{n}", b"")])
    await backend.close()

starter, shot = os.pipe()
for n in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.close(shot)
        os.read(starter, 1)  # all go when the parent closes its end
        try:
            asyncio.run(main(n))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
os.close(shot)
sys.exit(sum(os.wait()[1] != 0 for _ in range(int(sys.argv[2]))))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_many_processes_can_open_a_fresh_file_at_once(path: Path, attempt: int) -> None:
    """All of them get a file of one shape, and every task is in it."""
    run_python(OPEN_TOGETHER, path, TOGETHER)
    assert {row["task_id"] for row in rows(path)} == {f"task-{n}" for n in range(TOGETHER)}


@pytest.mark.parametrize("version", [0, 1])
async def test_an_empty_database_is_made_sitqs(backend: SQLiteBackend, path: Path, version: int) -> None:
    """A file without a table is nobody's, also if it has a version already."""
    with outside(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    async with connected(backend):
        await backend.enqueue([new_task()])
    assert len(rows(path)) == 1


async def test_the_switch_to_wal_waits_for_readers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite refuses it at once while anybody reads: it is tried again until the busy timeout is over."""
    waits = Waits()
    with outside(path) as reader:
        reader.execute("PRAGMA user_version = 1")  # a file with a page to read
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_schema").fetchall()
        with pytest.raises(BackendUnavailableError):
            await SQLiteBackend(path, busy_timeout=0.01).connect()
        monkeypatch.setattr(patience, "time", waits)
        backend = SQLiteBackend(path, busy_timeout=DEADLINE_SECONDS)
        connecting = asyncio.ensure_future(backend.connect())
        await asyncio.to_thread(waits.several)
        assert not connecting.done()
        reader.execute("ROLLBACK")
        await connecting
        await backend.close()


def foreign_database(path: Path, *, journal: str, version: int) -> None:
    """Makes another program's database, the way a program leaves it that was killed in its work."""
    code = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
connection.execute(f"PRAGMA user_version = {sys.argv[3]}")
connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, note TEXT)")
connection.execute("INSERT INTO tasks (note) VALUES ('mine')")
os._exit(0)
"""
    run_python(code, path, journal, version)


def contents(path: Path) -> dict[str, bytes]:
    """Returns the bytes of a database and of its WAL; an empty WAL is as good as none."""
    found = {name: Path(f"{path}{name}") for name in ("", "-wal")}
    return {name: file.read_bytes() for name, file in found.items() if file.exists() and file.stat().st_size}


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
@pytest.mark.parametrize("version", [0, 1, 7])
async def test_another_programs_database_is_left_alone(
    backend: SQLiteBackend, path: Path, journal: str, version: int
) -> None:
    """It is refused whatever its version is, and not a byte of it changes."""
    foreign_database(path, journal=journal, version=version)
    before = contents(path)
    with pytest.raises(BackendCorruptError, match="not one of sitq's") as caught:
        await backend.connect()
    assert str(path) in str(caught.value)
    assert contents(path) == before


@pytest.fixture
def diary(path: Path) -> bytes:
    """A text file in place of the database."""
    path.write_text("Dear diary, " * 200)
    return path.read_bytes()


async def test_a_text_file_is_left_alone(backend: SQLiteBackend, path: Path, diary: bytes) -> None:
    """What is no database at all is refused and stays as it was."""
    with pytest.raises(BackendCorruptError, match="not a SQLite database") as caught:
        await backend.connect()
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert contents(path) == {"": diary}


@pytest.mark.parametrize("has_wal", [False, True], ids=["closed", "killed"])
async def test_a_file_of_a_newer_sitq_is_left_alone(backend: SQLiteBackend, path: Path, has_wal: bool) -> None:
    """The error names both versions and the way out; the file is unchanged, also after a crash of its writer."""
    code = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("ALTER TABLE tasks ADD COLUMN urgency INTEGER")
connection.execute("PRAGMA user_version = 9")
if sys.argv[2] == "False":
    connection.close()
os._exit(0)
"""
    async with connected(backend):
        await backend.enqueue([new_task()])
    run_python(code, path, has_wal)
    before = contents(path)
    assert ("-wal" in before) == has_wal
    with pytest.raises(BackendVersionError, match=rf"version 9.*up to {schema.SCHEMA_VERSION}.*upgrade"):
        await backend.connect()
    assert contents(path) == before


def upgrade_sitq(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Lets this process be a sitq that knows one more step."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)


async def test_an_older_file_is_brought_up_to_date(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks are kept and can be run."""
    async with connected(backend):
        await backend.enqueue([new_task("kept")])
    upgrade_sitq(monkeypatch, NEXT_STEP)
    async with connected(backend):
        (held,) = (await backend.reserve(9, lease=30, alone=True)).tasks
    assert held.task_id == "kept"
    (row,) = rows(path)
    assert row["urgency"] == 3
    assert rows(path, "PRAGMA user_version") == [{"user_version": schema.SCHEMA_VERSION}]


async def test_a_step_that_fails_leaves_the_older_file_whole(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half of a step stays, and the sitq that wrote the file can go on with it."""
    async with connected(backend):
        await backend.enqueue([new_task("kept")])
    before = rows(path), rows(path, "SELECT sql FROM sqlite_schema"), rows(path, "PRAGMA user_version")
    with monkeypatch.context() as patch:
        upgrade_sitq(patch, f"{NEXT_STEP}; DROP TABLE no_such_table")
        with pytest.raises(BackendError, match="no_such_table"):
            await backend.connect()
    assert (rows(path), rows(path, "SELECT sql FROM sqlite_schema"), rows(path, "PRAGMA user_version")) == before
    async with connected(backend):
        assert len((await backend.reserve(9, lease=30, alone=True)).tasks) == 1


async def test_two_processes_can_bring_a_file_up_to_date_at_once(backend: SQLiteBackend, path: Path) -> None:
    """The step, which would fail a second time, is made once, and all of them work."""
    async with connected(backend):
        await backend.enqueue([new_task("old")])
    newer = f"""
from sitq.backends.sqlite import patience, schema
schema.MIGRATIONS += ({NEXT_STEP!r},)
schema.SCHEMA_VERSION += 1
"""
    run_python(newer + OPEN_TOGETHER, path, 8)
    assert {row["task_id"] for row in rows(path)} == {"old", *(f"task-{n}" for n in range(8))}


@pytest.mark.timeout(10)
def test_a_database_that_cannot_do_wal_is_refused() -> None:
    """SQLite may answer the switch to WAL with another mode and no error: that is one, and not waited for."""
    with (
        contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection,
        pytest.raises(BackendUnavailableError, match="local file system"),
    ):
        schema.prepare(connection, "a path whose file system has no shared memory")


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The error says which file could not be made and what to check."""
    path = tmp_path / "missing" / "queue.db"
    for backend in (SQLiteBackend(path), SQLiteBackend(path)):
        with pytest.raises(BackendUnavailableError, match="folder exists") as caught:
            await backend.connect()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(BackendUnavailableError):
        await Worker(SQLiteBackend(path)).start()


async def test_a_refused_file_is_not_kept_open(backend: SQLiteBackend, path: Path) -> None:
    """Neither the file nor the thread that looked at it outlives the refusal."""
    path.write_bytes(b"not a database " * 100)  # noqa: ASYNC240
    threads, files = set(threading.enumerate()), open_files()
    with pytest.raises(BackendCorruptError) as refused:
        await backend.connect()
    await until(lambda: {thread.name for thread in set(threading.enumerate()) - threads} == set())
    assert open_files() <= files
    assert refused.value.__traceback__ is not None  # it is here still, and so is all that it refers to


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """A path that names a folder is an error that names it."""
    with pytest.raises(BackendUnavailableError, match=str(tmp_path)):
        await SQLiteBackend(tmp_path).connect()


def test_a_failed_connect_leaves_no_noise(tmp_path: Path) -> None:
    """A script that cannot open its file, and ends, prints nothing that it did not ask for."""
    code = """
import asyncio, sys
from sitq import BackendError, SQLiteBackend
for _ in range(20):
    try:
        asyncio.run(SQLiteBackend(sys.argv[1]).connect())
    except BackendError:
        print("refused")
"""
    assert run_python(code, tmp_path).split() == ["refused"] * 20


TRY = """
import asyncio, os, sys
from sitq import NewTask, SQLiteBackend

async def main():
    if os.geteuid() == 0:  # root may write everything
        os.setuid(int(sys.argv[2]))
    backend = SQLiteBackend(sys.argv[1])
    try:
        await backend.connect()
        print("connected")
        print(await backend.get_result("task"))
        await backend.enqueue([NewTask("new", b"")])
    except Exception as error:
        print(type(error).__name__, error)
    await backend.close()

asyncio.run(main())
"""


def test_a_folder_that_cannot_be_written_is_named(shared_path: Path) -> None:
    """It is an error that trying again does not help."""
    shared_path.parent.chmod(0o555)
    output = run_python(TRY, shared_path, NOBODY)
    assert output.startswith(f"{BackendReadOnlyError.__name__} {shared_path}")


async def test_a_file_that_cannot_be_written_can_be_read(shared_path: Path) -> None:
    """A result can be read by whom the file is readable for; a write is refused as read-only, and nothing changes."""
    async with connected(SQLiteBackend(shared_path)) as backend:
        await backend.enqueue([new_task()])
        for name in ("", "-wal", "-shm"):
            os.chmod(f"{shared_path}{name}", 0o444)
        first, result, refusal = run_python(TRY, shared_path, NOBODY).splitlines()
        assert first == "connected"
        assert "pending" in result
        assert refusal.startswith(f"{BackendReadOnlyError.__name__} {shared_path}")
        assert len(rows(shared_path)) == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_first_caller_that_is_cancelled_does_not_close_for_the_next_one(path: Path, turns: int) -> None:
    """While the file is locked one call gives up and another begins: the second one and all that follow succeed."""
    backend = SQLiteBackend(path)
    queue, other = TaskQueue(backend), TaskQueue(backend)
    with outside(path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        first = asyncio.create_task(queue.enqueue(str, "first"))
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(other.enqueue(str, "second"))
        await asyncio.sleep(0)
        connection.execute("ROLLBACK")
    await asyncio.wait([first])
    await second
    await queue.enqueue(str, "third")
    await queue.close()
    await other.close()
    assert len(rows(path)) == 2


def test_the_loop_of_the_first_caller_need_not_turn_for_the_others(path: Path) -> None:
    """It stands still after its call began; another thread's call opens the file nevertheless."""
    run_script(
        """
        import asyncio, sys, threading
        from sitq import SQLiteBackend, TaskQueue

        backend = SQLiteBackend(sys.argv[1])
        begun, done = threading.Event(), threading.Event()

        async def stand_still():
            call = asyncio.create_task(TaskQueue(backend).enqueue(len, "a"))
            await asyncio.sleep(0)
            begun.set()
            done.wait()
            await call

        standing = threading.Thread(target=asyncio.run, args=(stand_still(),))
        standing.start()
        begun.wait()
        asyncio.run(TaskQueue(backend).enqueue(len, "b"))
        done.set()
        standing.join()
        asyncio.run(backend.close())
        asyncio.run(backend.close())
        """,
        path,
    )
    assert len(rows(path)) == 2


async def test_a_call_outside_of_asyncio_changes_nothing(path: Path) -> None:
    """In a thread whose loop is another library's it is an error, and the next call of ours connects."""
    backend = SQLiteBackend(path)

    def step() -> None:
        backend.connect().send(None)  # as trio does: a coroutine without asyncio's loop

    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(step)
    async with connected(backend):
        await backend.enqueue([new_task()])
    with pytest.raises(BackendError, match="connect"):
        await backend.get_result("task")


@pytest.mark.parametrize("code", [sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_BUSY])
def test_a_lock_that_could_not_be_had_is_worth_another_try(code: int) -> None:
    """SQLite gives up with one of two codes, and both mean the same to a caller."""
    error = sqlite3.OperationalError("locking protocol")
    error.sqlite_errorcode = code
    assert type(translate(error, "queue.db")) is BackendUnavailableError
