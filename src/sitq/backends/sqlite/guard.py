"""A lock on a queue file that no other code of the process can drop by accident.

Every process that has the file open holds SQLite's shared lock on it. Whoever closes the file and
meets no such lock takes itself for the last user, and deletes the -wal file. But a POSIX lock is
gone as soon as any code of its process opens and closes the file, be it to read its first bytes
(sqlite.org/howtocorrupt.html, 2.2). So the same bytes are locked once more, by a lock that belongs
to a descriptor and not to the process (fcntl_locking(2), "Open file description locks").

Tried or read and not taken: SQLITE_FCNTL_PERSIST_WAL and NO_CKPT_ON_CLOSE bind only the connection
that sets them, not the sqlite3 shell, and leave a -wal file that would be played back into a
restored backup; locking_mode=EXCLUSIVE keeps every other process out; a read transaction that
stays open locks the -shm file, which nobody asks before deleting.
"""

import contextlib
import os
import struct
import sys
import threading
from dataclasses import dataclass

if sys.platform == "linux":
    import fcntl

_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510
"""The bytes that SQLite locks in a database file (os.h of its source)."""

type Identity = tuple[int, int]
"""Device and inode of a file."""


@dataclass(slots=True)
class _Guard:
    descriptor: int
    users: int = 0


_lock = threading.Lock()
_guards: dict[Identity, _Guard] = {}


def identity_of(path: str | int) -> Identity:
    """Returns what tells a file from every other one of this host.

    Raises:
        OSError: There is no such file.
    """
    found = os.stat(path)
    return found.st_dev, found.st_ino


def hold(path: str, identity: Identity) -> bool:
    """Locks the file for one more user in this process; returns whether there is one to release."""
    if sys.platform != "linux":
        return False
    with _lock, contextlib.suppress(OSError):  # a file system without them, or no descriptor left
        guard = _guards.get(identity)
        if guard is None:
            guard = _guards[identity] = _Guard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        if not guard.users:
            _set(guard, fcntl.F_RDLCK)  # before it is counted: if it fails, the next user tries again
        guard.users += 1
        return True
    return False


def release(identity: Identity) -> None:
    """Unlocks the file after its last user in this process; called before that one's handle is closed."""
    with _lock, contextlib.suppress(OSError):
        guard = _guards.get(identity)
        if guard is not None and guard.users:
            guard.users -= 1
            if not guard.users:
                _set(guard, fcntl.F_UNLCK)


def tidy() -> None:
    """Closes the descriptors without users, but for those of files that the process has open elsewhere.

    The locks of who has it open there would be dropped. Such a descriptor is closed by a later call.
    """
    with _lock:
        unused = {identity: guard for identity, guard in _guards.items() if not guard.users}
        if not unused:
            return
        own = {guard.descriptor for guard in unused.values()}
        open_elsewhere = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of this listing
                if int(name) not in own:
                    open_elsewhere.add(identity_of(int(name)))
        for identity in unused.keys() - open_elsewhere:
            os.close(_guards.pop(identity).descriptor)


def begin_anew() -> None:
    """Forgets what the parent of a fork had locked; its descriptors stay, and hold no lock of this process."""
    global _lock
    _lock = threading.Lock()
    _guards.clear()


if hasattr(os, "register_at_fork"):
    # Also if no connection is alive to ask for it: a lock of a shared descriptor would be shared.
    os.register_at_fork(after_in_child=begin_anew)


def _set(guard: _Guard, kind: int) -> None:
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
    fcntl.fcntl(guard.descriptor, fcntl.F_OFD_SETLK, lock)
