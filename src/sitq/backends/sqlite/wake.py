"""Who waits for what, and how a commit of another process wakes them."""

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

POLL_SECONDS = 0.02
"""How often the times of the -wal file are read if there is no inotify."""

CHECK_SECONDS = 1.0
"""How often a check for results is made although nobody has notified this process."""

RESTS_PER_CHECK = 20.0
"""How many times as long as a check the pause after it is, so that checks take a twentieth of the time."""

MAX_PIECE = 1_000
"""How many tasks are looked at in one query of a check."""

MAX_REST_SECONDS = 0.05
"""The longest pause for each such query. It may mostly have waited for its turn, while the connection waited
for a lock."""

MAX_LONG_REST_SECONDS = 0.25
"""The longest pause however many tasks are waited for."""


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
        loop, waiting = self._of_this_loop()
        callback = functools.partial(on_change)  # told from another of the same function
        waiting.add(callback, task_id)
        try:
            yield
        finally:
            if not waiting.remove(callback, task_id):
                self._loops.pop(loop, None)

    @contextlib.contextmanager
    def watching_many(self, on_change: Callable[[str], object], task_ids: Collection[str]) -> Iterator[None]:
        """Has ``on_change`` called with the id of one of ``task_ids``, which may shrink meanwhile."""
        loop, waiting = self._of_this_loop()
        group = _Group(on_change, task_ids)
        waiting.add_group(group)
        try:
            yield
        finally:
            if not waiting.remove_group(group):
                self._loops.pop(loop, None)

    def _of_this_loop(self) -> "tuple[asyncio.AbstractEventLoop, _Waiting]":
        loop = asyncio.get_running_loop()
        waiting = self._loops.get(loop)
        if waiting is None:
            waiting = self._loops[loop] = _Waiting(loop, self._wal_path, self._find)
        return loop, waiting

    def notify(self, topics: Collection[str | None]) -> None:
        """Calls those who wait for one of ``topics``: ids of tasks, or ``None`` for due tasks."""
        for waiting in list(self._loops.values()):
            waiting.notify(topics)

    def begin_anew(self) -> None:
        """Forgets those who wait, in the child of a fork: their loops stayed in the parent."""
        self._loops = {}


class _Group:
    """Tasks that are waited for together: one entry, however many they are."""

    def __init__(self, on_change: Callable[[str], object], task_ids: Collection[str]) -> None:
        self.on_change = on_change
        self.task_ids = task_ids


class _Check:
    """A look at all tasks that are waited for, in pieces between which other callers of the connection have their turn.

    Attributes:
        at: How many of them were looked at.
        is_unchanged: Whether the file is as it was at the check before.
    """

    def __init__(self, task_ids: Sequence[str], begun: float) -> None:
        self._task_ids = task_ids
        self._begun = begun
        self.at = 0
        self.is_unchanged = False

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be found in those that were not looked at."""
        return self.is_unchanged or self.at >= len(self._task_ids)

    @property
    def piece(self) -> Sequence[str]:
        """Those to look at next."""
        return self._task_ids[self.at : self.at + MAX_PIECE]

    @property
    def left(self) -> Sequence[str]:
        """Those that were not looked at."""
        return self._task_ids[self.at :]

    def rest(self, now: float) -> float:
        """Returns the pause after it, in seconds."""
        longest = MAX_REST_SECONDS * max(1, len(self._task_ids) // MAX_PIECE)
        return min(RESTS_PER_CHECK * (now - self._begun), longest, MAX_LONG_REST_SECONDS)


class _Waiting:
    """The callbacks of one event loop, by what they wait for.

    A commit of another process says only that something changed. However many wait for results, one
    query finds whose task has ended; a query for each of a hundred took half of a core.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wal_path: str | None, find: Find) -> None:
        self._loop = loop
        self._find = find
        self._callbacks: dict[str | None, set[Callable[[], object]]] = {}
        self._groups: tuple[_Group, ...] = ()  # made anew at each change: the thread of a connection reads it
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
        return self._is_of_use()

    def add_group(self, group: _Group) -> None:
        self._groups += (group,)

    def remove_group(self, group: _Group) -> bool:
        """As :meth:`remove`."""
        self._groups = tuple(each for each in self._groups if each is not group)
        return self._is_of_use()

    def _is_of_use(self) -> bool:
        if self._callbacks or self._groups:
            return True
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        return False

    def notify(self, topics: Collection[str | None]) -> None:
        """Calls those who wait for one of ``topics``; may be called in any thread."""
        if not any(self._is_waited_for(topic) for topic in topics):
            return
        if asyncio._get_running_loop() is self._loop:
            self._call(topics)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._call, topics)

    def _is_waited_for(self, topic: str | None) -> bool:
        return topic in self._callbacks or any(topic in group.task_ids for group in self._groups)

    def _call(self, topics: Collection[str | None]) -> None:
        for topic in topics:
            for callback in tuple(self._callbacks.get(topic, ())):
                callback()
        for group in self._groups:
            for topic in topics:
                if topic is not None and topic in group.task_ids and group in self._groups:
                    group.on_change(topic)

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
        for group in self._groups:
            ids += group.task_ids
        if not self._checking and ids:
            self._checking = True
            self._ask(_Check(ids, self._loop.time()), self._seen)

    def _ask(self, check: "_Check", seen: Seen) -> None:
        try:
            found = self._find(check.piece, seen)
        except Exception:  # the backend is closed, or its file is away: each learns it by a query of its own
            self._checking = False
            self._call(check.left)
            return
        found.add_done_callback(functools.partial(self._found, check))

    def _found(self, check: "_Check", found: asyncio.Future[tuple[Seen, Sequence[str]]]) -> None:
        failed = found.cancelled() or found.exception() is not None
        seen, ended = (None, check.left) if failed else found.result()
        if check.at == 0:
            check.is_unchanged = seen == self._seen
            self._seen = seen  # as of the first piece: what is committed during a later one is looked for again
        self._call(ended)
        check.at += len(ended) if failed else MAX_PIECE
        if not check.is_over:
            self._ask(check, None)
            return
        # No rest after a commit of our own, which touches the file as well: what is waited for comes next.
        rest = 0.0 if check.is_unchanged else check.rest(self._loop.time())
        self._loop.call_later(rest, self._rested)

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
