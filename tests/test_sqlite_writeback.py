"""Writing the -wal file ahead of the checkpoint: a thread that comes when it is of use, and goes with the file."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite import writeback
from sitq.backends.sqlite.writeback import COMMITS_BETWEEN, Writeback
from tests.faults import connected, new_task
from tests.support import DEADLINE_SECONDS


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


def test_it_is_asked_for_once_in_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many commits the -wal file is written to the disk, once, and then not before as many more."""
    written: list[int] = []
    done = threading.Semaphore(0)

    def fdatasync(descriptor: int) -> None:
        written.append(os.fstat(descriptor).st_ino)
        done.release()

    monkeypatch.setattr(writeback, "os", SimpleNamespace(fdatasync=fdatasync))
    path.touch()
    ahead = Writeback(str(path))
    for _ in range(2):
        for _ in range(COMMITS_BETWEEN - 1):
            ahead.committed()
        assert not done.acquire(timeout=0.1)
        ahead.committed()
        assert done.acquire(timeout=DEADLINE_SECONDS)
    ahead.close()
    assert written == [path.stat().st_ino] * 2


def test_a_close_in_the_middle_of_a_turn_is_not_lost(tmp_path: Path) -> None:
    """Wherever the thread stands when it is told to end, it ends."""
    wal = tmp_path / "wal"
    wal.touch()
    writeback = Writeback(str(wal))
    ending: list[threading.Thread] = []

    told = threading.Event()

    class Due(threading.Event):
        """Lets close() come just before the flag is cleared."""

        def set(self) -> None:
            super().set()
            if ending:
                told.set()

        def clear(self) -> None:
            if not ending:
                ending.append(threading.Thread(target=writeback.close))
                ending[0].start()
                assert told.wait(DEADLINE_SECONDS)
            super().clear()

    writeback._due = Due()
    for _ in range(COMMITS_BETWEEN):
        writeback.committed()
    assert writeback._thread is not None
    writeback._thread.join(DEADLINE_SECONDS)
    assert not writeback._thread.is_alive()


async def test_a_thread_that_cannot_be_started_fails_no_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed is answered as it is, and the next turn tries again."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(str(n)) for n in range(3 * COMMITS_BETWEEN)])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(COMMITS_BETWEEN + 1):
                assert len((await backend.reserve(1, lease=30, alone=True)).tasks) == 1
        assert threads() == []
        for _ in range(COMMITS_BETWEEN):
            await backend.reserve(1, lease=30, alone=True)
        assert threads() == ["sitq-writeback"]
    assert threads() == []
