"""Looking into a file as a user who may read it, but may write neither the file nor its folder."""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from sitq import BackendReadOnlyError, BackendUnavailableError, SQLiteBackend
from sitq.backends.sqlite import reading
from sitq.backends.sqlite.reading import Reader
from tests.cli.support import Filled, fill
from tests.cli.test_trouble import change
from tests.faults import run_python, shared_folder

AS_READER = """
import json, os, sys, tempfile, traceback
from click.testing import CliRunner
from sitq import SQLiteBackend, SyncTaskQueue
from sitq.cli.commands import root

path, *commands = sys.argv[1:]
"warm".encode("unicode_escape")
with tempfile.TemporaryDirectory() as folder:  # another user could not read what is imported late
    with SyncTaskQueue(SQLiteBackend(folder + "/queue.db")) as queue:
        queue.enqueue("operator:add", 1, 2)
    for command in ("status", "list", "doctor"):
        assert not CliRunner().invoke(root, [command, folder + "/queue.db"]).stderr
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
assert not os.access(path, os.W_OK) and not os.access(os.path.dirname(path), os.W_OK)
for command in commands:
    words = command.split()
    result = CliRunner().invoke(root, [words[0], path, *words[1:]])
    raised = [] if isinstance(result.exception, SystemExit | None) else traceback.format_exception(result.exception)
    print(json.dumps([result.exit_code, result.stdout, result.stderr + "".join(raised)]))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A file that everybody may read, in such a folder, and nobody may write unless they are root."""
    with shared_folder(0o755) as folder:
        yield folder / "queue.db"


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Takes the right to write from whoever is not root."""
    for each in path.parent.iterdir():
        each.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        yield
    finally:
        path.parent.chmod(0o755)
        for each in path.parent.iterdir():
            each.chmod(0o644)


def as_reader(path: Path, *commands: str) -> list[tuple[int, str, str]]:
    """Runs commands as a user who may only read; returns how each of them ended."""
    with unwritable(path):
        lines = run_python(AS_READER, path, *commands).splitlines()
    return [tuple(json.loads(line)) for line in lines]


LOOKS = ("status --json", "list", "doctor", "retry --failed")


def assert_seen(filled: Filled, path: Path, pending: int) -> None:
    """Asserts that a reader sees what is there, and that what would change something is one clear line."""
    before = sorted(path.parent.iterdir())
    status, listed, doctor, retried = as_reader(path, *LOOKS)
    assert (status[0], status[2]) == (0, "")
    assert f'"pending": {pending}' in status[1]
    assert (listed[0], listed[2]) == (0, "")
    assert all(task_id in listed[1] for task_id in filled.ids)
    assert "this user cannot write it" in doctor[1]
    assert "ok     integrity" in doctor[1]
    assert "Traceback" not in doctor[2]
    assert (retried[0], retried[1], retried[2].count("\n")) == (1, "", 1)
    assert sorted(path.parent.iterdir()) == before


async def test_a_file_that_nobody_has_open_can_be_looked_into(shared: Path) -> None:
    """There is no -wal file, and none can be made."""
    filled = await fill(shared)
    await asyncio.to_thread(assert_seen, filled, shared, 2)


async def test_a_file_that_a_worker_has_open_can_be_looked_into(shared: Path) -> None:
    """Also what stands in the -wal file only is seen."""
    filled = await fill(shared)
    backend = SQLiteBackend(shared)
    await backend.connect()
    try:
        assert list(await backend.cancel([filled.waiting])) == [filled.waiting]
        await asyncio.to_thread(assert_seen, filled, shared, 1)
        assert list(await backend.retry([filled.waiting])) == [filled.waiting]
    finally:
        await backend.close()


async def test_a_file_whose_users_were_killed_can_be_looked_into(shared: Path) -> None:
    """The -wal and -shm files are left over, and nobody holds a lock."""
    filled = await fill(shared)
    connection = sqlite3.connect(shared, isolation_level=None)
    connection.execute("UPDATE tasks SET status = 'cancelled', finished_at = 1 WHERE task_id = ?", (filled.waiting,))
    with shared_folder(0o755) as folder:
        for name in ("queue.db", "queue.db-wal", "queue.db-shm"):  # as the crash has left them
            (folder / name).write_bytes((shared.parent / name).read_bytes())
        connection.close()
        await asyncio.to_thread(assert_seen, filled, folder / "queue.db", 1)


async def test_a_look_that_the_file_was_changed_under_is_made_again(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read from a file of which nobody knew that it was read is worth nothing then."""
    reads = 0
    checked = reading._checked_version

    def change_it(connection: sqlite3.Connection, path: str) -> int:
        nonlocal reads
        version = checked(connection, path)
        reads += 1
        if reads <= 2:
            change(
                filled.path,
                "INSERT INTO tasks (task_id, max_attempts, enqueued_at, available_at, payload)"
                " VALUES (?, 5, 1, 1, zeroblob(9000))",
                f"new {reads}",
            )
        return version

    monkeypatch.setattr(reading, "_checked_version", change_it)
    assert (await Reader(filled.path).counts()).pending == 4
    assert reads == 3


async def test_a_file_that_never_keeps_still_is_an_error(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a number of reads, and not never."""
    checked = reading._checked_version

    def touch(connection: sqlite3.Connection, path: str) -> int:
        status = os.stat(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        return checked(connection, path)

    monkeypatch.setattr(reading, "_checked_version", touch)
    with pytest.raises(BackendUnavailableError, match="others changed it under each of 10 reads"):
        await Reader(filled.path).counts()


async def test_a_reader_changes_nothing(filled: Filled) -> None:
    """Whoever asks it to learns that it cannot."""
    reader = Reader(filled.path)
    with pytest.raises(BackendReadOnlyError, match="this user cannot write it"):
        await reader.prune(older_than=0)
    with pytest.raises(BackendReadOnlyError, match="this user cannot write it"):
        await reader.cancel([filled.waiting])
    assert list(await reader.cancel(["unknown"])) == []


@pytest.mark.parametrize("live", [False, True])
async def test_a_worker_that_cannot_write_ends_at_once(shared: Path, live: bool) -> None:
    """With one clear line, before a process is started; whether others work on the file or not."""
    await fill(shared)
    backend = SQLiteBackend(shared)
    if live:
        await backend.connect()
        assert await backend.release([]) == []
    ((status, output, errors),) = await asyncio.to_thread(as_reader, shared, "worker")
    await backend.close()
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert f"Error: {shared}: it cannot be " in errors or f"Error: {shared}: this user cannot write it" in errors
    assert "this user" in errors
