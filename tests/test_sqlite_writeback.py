"""Writing the -wal file ahead of the checkpoint: a thread that comes when it is of use, and goes with the file."""

import threading
from pathlib import Path

from sitq import SQLiteBackend
from sitq.backends.sqlite.writeback import COMMITS_BETWEEN, Writeback
from tests.faults import connected, new_task


def threads() -> list[str]:
    """Returns the names of the threads that write back."""
    return [thread.name for thread in threading.enumerate() if thread.name == "sitq-writeback"]


async def test_a_backend_that_only_stores_has_no_thread_for_it(path: Path) -> None:
    """Its commits are synced as they are."""
    async with connected(SQLiteBackend(path)) as backend:
        for n in range(2 * COMMITS_BETWEEN):
            await backend.enqueue([new_task(str(n))])
        assert threads() == []


async def test_the_thread_ends_when_the_file_is_closed(path: Path) -> None:
    """It comes with the commits that are not synced, and has ended when close() returns."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(str(n)) for n in range(COMMITS_BETWEEN)])
        for _ in range(COMMITS_BETWEEN):
            await backend.reserve(1, lease=30, alone=True)
        assert threads() == ["sitq-writeback"]
    assert threads() == []


def test_a_file_that_cannot_be_opened_is_nobodys_trouble(tmp_path: Path) -> None:
    """The thread ends, and who commits goes on."""
    writeback = Writeback(str(tmp_path / "missing"))
    for _ in range(3 * COMMITS_BETWEEN):
        writeback.committed()
    writeback.close()
    assert threads() == []
