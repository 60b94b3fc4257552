"""Who waits for what, and how a commit of another process wakes them."""

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

POLL_SECONDS = 0.02
"""How often the times of the -wal file are read if there is no inotify."""

CHECK_SECONDS = 1.0
"""How often a check for results is made although nobody has notified this process."""

RESTS_PER_CHECK = 20.0
"""How many times as long as a check the pause after it is, so that checks take a twentieth of the time."""

MAX_REST_SECONDS = 0.05
"""The longest pause: a check may mostly have waited for its turn, while the connection waited for a lock."""


@functools.cache
def _libc() -> Any:
    import ctypes  # not before it is needed: from Python 3.14 on, the import opens a file and keeps it open

    return ctypes.CDLL(None)


_IN_ATTRIB = 0x4  # sys/inotify.h; the O_ flags of inotify_init1 are those of os


def touch(wal_path: str) -> None:
    """Notifies the watchers of other processes that a commit is visible.

    Called after the commit: the write itself comes before the sync, when the commit cannot be
    read yet. The time is given, because the kernel's own is no finer than its tick.
    """
    now = time.time_ns()
    # SQLite deletes the file when the last connection closes; then nobody waits.
    with contextlib.suppress(OSError):
        try:
            os.utime(wal_path, ns=(now, now))
        except PermissionError:  # a time of one's own choice takes the owner; the kernel's does not
            os.utime(wal_path)


type _Watch = _InotifyWatch | _PollWatch
type Seen = object
"""The state of the file at a check, by which the next one tells whether there is anything new."""

type Find = Callable[[Sequence[str], Seen], asyncio.Future[tuple[Seen, Sequence[str]]]]
"""Finds which of some tasks have ended, unless the file is as it was seen."""


class Watchers:
    """Who waits for a change in which event loop.

    Args:
        wal_path: The file that is touched after a commit; ``None`` if there is no other process.
        find: Called in the loop of those who wait.
    """

    def __init__(self, wal_path: str | None, find: Find) -> None:
        self._wal_path = wal_path
        self._find = find
        # Each loop changes its own entry only, and others read: no lock, which a fork could copy locked.
        self._loops: dict[asyncio.AbstractEventLoop, _Waiting] = {}

    @contextlib.contextmanager
    def watching(self, on_change: Callable[[], object], task_id: str | None) -> Iterator[None]:
        """Has ``on_change`` called from the entry of the block to its end."""
        loop = asyncio.get_running_loop()
        waiting = self._loops.get(loop)
        if waiting is None:
            waiting = self._loops[loop] = _Waiting(loop, self._wal_path, self._find)
        callback = functools.partial(on_change)  # told from another of the same function
        waiting.add(callback, task_id)
        try:
            yield
        finally:
            if not waiting.remove(callback, task_id):
                self._loops.pop(loop, None)

    def notify(self, topics: Collection[str | None]) -> None:
        """Calls those who wait for one of ``topics``: ids of tasks, or ``None`` for due tasks."""
        for waiting in list(self._loops.values()):
            waiting.notify(topics)

    def begin_anew(self) -> None:
        """Forgets those who wait, in the child of a fork: their loops stayed in the parent."""
        self._loops = {}


class _Waiting:
    """The callbacks of one event loop, by what they wait for.

    A commit of another process says only that something changed. However many wait for results, one
    query finds whose task has ended; a query for each of a hundred took half of a core.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wal_path: str | None, find: Find) -> None:
        self._loop = loop
        self._find = find
        self._callbacks: dict[str | None, set[Callable[[], object]]] = {}
        self._seen: Seen = None
        self._checking = False
        self._check_again = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch = None if wal_path is None else _watch(loop, wal_path, self._on_file)
        if self._watch is not None:
            self._tick()

    def add(self, callback: Callable[[], object], topic: str | None) -> None:
        self._callbacks.setdefault(topic, set()).add(callback)

    def remove(self, callback: Callable[[], object], topic: str | None) -> bool:
        """Returns whether there is another one; if not, this object is of no more use."""
        waiting = self._callbacks[topic]
        waiting.discard(callback)
        if not waiting:
            del self._callbacks[topic]
        if self._callbacks:
            return True
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        return False

    def notify(self, topics: Collection[str | None]) -> None:
        """Calls those who wait for one of ``topics``; may be called in any thread."""
        if not any(topic in self._callbacks for topic in topics):
            return
        if asyncio._get_running_loop() is self._loop:
            self._call(topics)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._call, topics)

    def _call(self, topics: Iterable[str | None]) -> None:
        for topic in topics:
            for callback in tuple(self._callbacks.get(topic, ())):
                callback()

    def _on_file(self) -> None:
        self._call((None,))
        self._check()

    def _tick(self) -> None:
        """Checks now and then, because a process can die between its commit and the touch."""
        self._timer = self._loop.call_later(CHECK_SECONDS, self._tick)
        self._check()

    def _check(self) -> None:
        self._check_again = self._checking
        ids = [topic for topic in self._callbacks if topic is not None]
        if self._checking or not ids:
            return
        try:
            found = self._find(ids, self._seen)
        except Exception:  # the backend is closed, or its file is away: each learns it by a query of its own
            self._call(ids)
            return
        self._checking = True
        found.add_done_callback(functools.partial(self._found, ids, self._loop.time()))

    def _found(self, ids: Sequence[str], begun: float, found: asyncio.Future[tuple[Seen, Sequence[str]]]) -> None:
        seen, ended = (None, ids) if found.cancelled() or found.exception() else found.result()
        # No rest after a commit of our own, which touches the file as well: what is waited for comes next.
        rest = 0.0 if seen == self._seen else RESTS_PER_CHECK * (self._loop.time() - begun)
        self._seen = seen
        self._call(ended)
        self._loop.call_later(min(rest, MAX_REST_SECONDS), self._rested)

    def _rested(self) -> None:
        self._checking = False
        if self._check_again:
            self._check()


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
            # Events are told apart by the name in them and by nothing else: each says that something has changed.
            if self._name in os.read(self._fd, 65536):
                self._on_change()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)


class _PollWatch:
    """Reads a file's times now and then; for systems without inotify."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._on_change = on_change
        self._seen = self._state()
        self._timer = loop.call_later(POLL_SECONDS, self._check)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _check(self) -> None:
        self._timer = self._loop.call_later(POLL_SECONDS, self._check)
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._on_change()

    def close(self) -> None:
        self._timer.cancel()
