"""Writing the -wal file to the disk ahead of the checkpoint."""

import contextlib
import os
import threading

COMMITS_BETWEEN = 16


class Writeback:
    """Has what is committed without a sync written to the disk, in a thread of its own.

    A checkpoint syncs the -wal file before it copies pages, and who commits then waits for all that
    was written since the last one. Where most of it is on the disk by then, a drain gains a tenth.
    Nothing is promised by it: durability is SQLite's own business.

    Args:
        wal_path: The -wal file.
    """

    def __init__(self, wal_path: str) -> None:
        self._path = wal_path
        self._commits = 0
        self._due = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """Counts a commit, and asks for the writing when there were enough."""
        self._commits += 1
        if self._commits % COMMITS_BETWEEN == 0:
            if self._thread is None:  # not before: who only enqueues has no use for it
                self._start()
            self._due.set()

    def close(self) -> None:
        """Ends the thread and waits for it, a few milliseconds."""
        self._closed = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="sitq-writeback", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: what was committed is committed
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        # An error is SQLite's to report: its own sync is told of it as well.
        with contextlib.suppress(OSError), open(self._path, "rb") as wal:  # SQLite has no POSIX lock on this file
            while True:
                self._due.wait()
                self._due.clear()
                if self._closed:  # set before the event: read after the event was cleared
                    return
                os.fdatasync(wal.fileno())
