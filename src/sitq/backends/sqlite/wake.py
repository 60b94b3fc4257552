"""Who waits for what, and how a commit of another process wakes them."""

import asyncio
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

POLL_SECONDS = 0.02
"""How often the -wal file is looked at where there is no inotify."""


@functools.cache
def _libc() -> Any:
    import ctypes  # not before it is needed: from Python 3.14 on, the import opens a file and keeps it open

    return ctypes.CDLL(None)


_IN_ATTRIB = 0x4  # sys/inotify.h; the O_ flags of inotify_init1 are those of os


def touch(wal_path: str) -> None:
    """Tells the watchers of other processes that a commit is visible.

    Called after the commit: the write itself comes before the sync, when the commit cannot be
    read yet. The time is given, for the kernel's own is no finer than its tick.
    """
    now = time.time_ns()
    # SQLite deletes the file when the last connection closes; then nobody waits.
    with contextlib.suppress(OSError):
        try:
            os.utime(wal_path, ns=(now, now))
        except PermissionError:  # a time of one's own choice takes the owner; the kernel's does not
            os.utime(wal_path)


type _Watch = _InotifyWatch | _PollWatch


class Watchers:
    """The callbacks that wait for a change, by what they wait for.

    A callback is called in the event loop in which it was added. While there is one in a loop, the
    -wal file is watched in that loop for the commits of other processes.
    """

    def __init__(self, wal_path: str | None) -> None:
        self._wal_path = wal_path
        self._lock = threading.Lock()
        self._callbacks: dict[str | None, dict[Callable[[], object], asyncio.AbstractEventLoop]] = {}
        self._watches: dict[asyncio.AbstractEventLoop, tuple[_Watch, int]] = {}

    @contextlib.contextmanager
    def watching(self, on_change: Callable[[], object], task_id: str | None) -> Iterator[None]:
        """Has ``on_change`` called from the entry of the block to its end."""
        loop = asyncio.get_running_loop()
        callback = functools.partial(on_change)  # told from another of the same function
        with self._lock:
            self._callbacks.setdefault(task_id, {})[callback] = loop
        self._watch_file(loop)
        try:
            yield
        finally:
            with self._lock:
                waiting = self._callbacks[task_id]
                del waiting[callback]
                if not waiting:
                    del self._callbacks[task_id]
            self._unwatch_file(loop)

    def notify(self, topics: Iterable[str | None]) -> None:
        """Calls those who wait for one of ``topics``: ids of tasks, or ``None`` for due tasks."""
        if not self._callbacks:
            return
        with self._lock:
            found = [item for topic in topics for item in self._callbacks.get(topic, {}).items()]
        here = asyncio._get_running_loop()
        for callback, loop in found:
            if loop is here:
                callback()
            else:
                with contextlib.suppress(RuntimeError):  # that loop is closed
                    loop.call_soon_threadsafe(callback)

    def _notify_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            found = [
                callback
                for waiting in self._callbacks.values()
                for callback, its_loop in waiting.items()
                if its_loop is loop
            ]
        for callback in found:
            callback()

    def _watch_file(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._wal_path is None:
            return
        watch, users = self._watches.get(loop, (None, 0))
        if watch is None:
            watch = _watch(loop, self._wal_path, lambda: self._notify_loop(loop))
        self._watches[loop] = (watch, users + 1)

    def _unwatch_file(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._wal_path is None:
            return
        watch, users = self._watches.pop(loop)
        if users > 1:
            self._watches[loop] = (watch, users - 1)
        else:
            watch.close()


def _watch(loop: asyncio.AbstractEventLoop, path: str, on_change: Callable[[], None]) -> _Watch:
    if sys.platform == "linux":
        # No inotify or no ctypes here, no watches or descriptors left, or a loop that cannot watch any: poll instead.
        with contextlib.suppress(OSError, ImportError, AttributeError, NotImplementedError):
            return _InotifyWatch(loop, path, on_change)
    return _PollWatch(loop, path, on_change)


class _InotifyWatch:
    """Watches a file's attributes, which :func:`touch` changes, in an event loop.

    The folder is what is watched: a watch of the file itself would stay with the old one when the
    -wal file is deleted and made anew.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change
        folder, name = os.path.split(os.fsencode(path))
        self._name = name + b"\0"
        self._fd = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError("inotify_init1 failed")
        try:
            if _libc().inotify_add_watch(self._fd, folder, _IN_ATTRIB) < 0:
                raise OSError("inotify_add_watch failed")
            loop.add_reader(self._fd, self._read)
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            # Events are told apart by the name in them and by nothing else: each says "look again".
            if self._name in os.read(self._fd, 65536):
                self._on_change()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)


class _PollWatch:
    """Looks at a file's times now and then; for systems without inotify."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._on_change = on_change
        self._seen = self._state()
        self._timer = loop.call_later(POLL_SECONDS, self._look)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _look(self) -> None:
        self._timer = self._loop.call_later(POLL_SECONDS, self._look)
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._on_change()

    def close(self) -> None:
        self._timer.cancel()
