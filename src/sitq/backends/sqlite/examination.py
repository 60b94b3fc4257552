"""What may be wrong with a queue file, and what to do about it."""

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sitq.backends.inspect import Finding
from sitq.backends.sqlite import contents
from sitq.backends.sqlite.abilities import abilities
from sitq.backends.sqlite.lanes import LANES

MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    }
    | {"vboxsf", "virtiofs", "vmhgfs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.vmhgfs-fuse"}
)
VOLATILE_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})

WAL_RESET_FIXES = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""Where SQLite may no longer lose pages when the write-ahead log is reset (sqlite.org/wal.html)."""

SHOWN_DAMAGES = 5
LONG_SECONDS = 60.0
"""How long a task may be due, or its lease be over, before it looks as if no worker were running."""

FREE_SHARE = 0.25
FREE_BYTES = 16 * 1024 * 1024
"""Free pages are worth a word if they are this share of the file and this many bytes."""

type Examination = Callable[[sqlite3.Connection], Finding]


def examine(connection: sqlite3.Connection, path: str, now: int) -> list[Finding]:
    """Examines the file that ``connection`` has open as ``path``.

    Args:
        connection: Of the backend's own.
        path: The file, or ``":memory:"``.
        now: Microseconds since 1970 UTC.
    """
    findings = [sqlite_version(sqlite3.sqlite_version_info)]
    if path != ":memory:":
        mode = file_mode(os.stat(path).st_mode, writable=os.access(path, os.W_OK))
        folder = os.path.dirname(path)
        around = folder_mode(os.stat(folder).st_mode, writable=os.access(folder, os.W_OK))
        findings += [file_system(path, _mounts()), mode, around, journal_mode(connection)]
    findings.append(integrity(connection))
    for name, examination in (
        ("leases", lambda connection: leases(connection, now)),
        ("waiting tasks", lambda connection: waiting(connection, now)),
        ("failures", lambda connection: contents.failures(connection, now)),
        ("rows", contents.rows),
        ("free pages", free_pages),
    ):
        findings.append(_examined(name, examination, connection))
    with contextlib.suppress(sqlite3.DatabaseError):  # so badly damaged that even this cannot be read
        if LANES.name in abilities(connection):
            findings.append(_examined("queues", lambda connection: contents.queues(connection, now), connection))
    return findings


def _examined(name: str, examination: Examination, connection: sqlite3.Connection) -> Finding:
    # A damaged file must not keep the other findings from being shown.
    try:
        return examination(connection)
    except sqlite3.DatabaseError as error:
        return Finding(name, "wrong", f"SQLite cannot tell: {error}", "see what `integrity` says")


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Says whether this SQLite has the WAL-reset bug."""
    text = ".".join(map(str, version))
    newest = WAL_RESET_FIXES[-1]
    if version >= newest or any(fix <= version < (*fix[:2], 1000) for fix in WAL_RESET_FIXES):
        return Finding("SQLite", "ok", text)
    return Finding(
        "SQLite",
        "note",
        f"{text} can, very rarely, lose pages when the write-ahead log is reset during another checkpoint",
        "use 3.51.3, 3.50.7, 3.44.6 or newer when your Python brings it; see https://sqlite.org/wal.html",
    )


def file_system(path: str, mounts: str) -> Finding:
    """Says whether the file is on a local file system, which write-ahead logging needs.

    Args:
        path: An absolute path without links.
        mounts: What ``/proc/self/mountinfo`` says; empty if there is none.
    """
    kind = _file_system_type(path, mounts)
    if kind is None:
        return Finding("file system", "ok", "unknown on this system; it must be a local one")
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(
            "file system",
            "wrong",
            f"{kind}, a network file system: processes on two hosts, or two of its clients, damage the file",
            "move the file to a local disk and keep all of its users on that host",
        )
    if kind in VOLATILE_FILE_SYSTEMS:
        return Finding(
            "file system",
            "note",
            f"{kind}, which is memory: every task is gone after a restart of the machine",
            "move the file to a disk if tasks have to survive that",
        )
    return Finding("file system", "ok", kind)


def _mounts() -> str:
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _file_system_type(path: str, mounts: str) -> str | None:
    found: str | None = None
    longest = -1
    for point, kind in _mount_points(mounts):
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # the later one hides what was mounted there before
            found, longest = kind, len(point)
    return found


def _mount_points(mounts: str) -> Iterator[tuple[str, str]]:
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        fields, kinds = mount.split(" "), source.split(" ")
        if len(fields) > 4:
            # Blanks in it are written as octal numbers (proc_pid_mountinfo(5)).
            yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]), kinds[0]


def file_mode(mode: int, *, writable: bool) -> Finding:
    """Says whether this user can write the file, and who besides its owner can read or write it."""
    text = stat.filemode(mode)
    if not writable:
        return Finding(
            "file mode",
            "wrong",
            f"{text}: this user cannot write it",
            "run sitq as the user who owns it, or give this one the right to write the file and its folder",
        )
    advice = "chmod 600 the file, unless its users need it so: whoever can write it can run code in the workers"
    if os.name != "posix" or not mode & 0o077:
        return Finding("file mode", "ok", f"{text}, for its owner only" if os.name == "posix" else text)
    if mode & stat.S_IWOTH:
        return Finding("file mode", "wrong", f"{text}: every user can write it", advice)
    others = "every user can read it" if mode & stat.S_IROTH else "its group can use it"
    return Finding("file mode", "note", f"{text}: {others}", advice)


def folder_mode(mode: int, *, writable: bool) -> Finding:
    """Says who besides its owner can put something in the place of the file, or of its -wal file."""
    text = stat.filemode(mode)
    if os.name != "posix":
        return Finding("folder mode", "ok", text)
    if not writable:
        return Finding(
            "folder mode",
            "wrong",
            f"{text}: this user cannot make files in it, and SQLite needs a -wal file beside the queue file",
            "run sitq as the user who owns it, or give this one the right to write in the folder",
        )
    advice = "move the file to a folder that only its users can write in: what they put there can run code in workers"
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return Finding("folder mode", "wrong", f"{text}: every user can replace the file", advice)
    if mode & stat.S_IWOTH:
        return Finding("folder mode", "wrong", f"{text}: every user can put a -wal file beside the file", advice)
    if mode & stat.S_IWGRP:
        return Finding("folder mode", "note", f"{text}: its group can replace the file", advice)
    return Finding("folder mode", "ok", f"{text}, for its owner only to write in")


def journal_mode(connection: sqlite3.Connection) -> Finding:
    """Says whether the file is in WAL mode, as sitq left it."""
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if mode == "wal":
        return Finding("journal mode", "ok", mode)
    return Finding("journal mode", "wrong", mode, "another program has changed it: restart what uses the file")


def integrity(connection: sqlite3.Connection) -> Finding:
    """Says whether SQLite finds the file whole."""
    try:
        damages = [row[0] for row in connection.execute(f"PRAGMA integrity_check({SHOWN_DAMAGES})")]
    except sqlite3.DatabaseError as error:  # so badly that it cannot even be checked
        damages = [str(error)]
    if damages == ["ok"]:
        return Finding("integrity", "ok", "SQLite finds nothing wrong")
    return Finding(
        "integrity",
        "wrong",
        "; ".join(" ".join(damage.split()) for damage in damages),
        "stop the users of the file, keep a copy, and restore a backup or run `.recover` of the sqlite3 shell",
    )


def leases(connection: sqlite3.Connection, now: int) -> Finding:
    """Says whether tasks were abandoned by their workers and not taken over."""
    count, oldest = connection.execute(
        "SELECT count(*), min(available_at) FROM tasks WHERE status = 'in_progress' AND available_at <= ?", (now,)
    ).fetchone()
    if not count:
        return Finding("leases", "ok", "none is over")
    seconds = (now - oldest) / 1_000_000
    return Finding(
        "leases",
        "wrong" if seconds > LONG_SECONDS else "note",
        f"{count} over, the oldest for {seconds:.0f} seconds: the workers of these tasks are gone",
        "a worker with a free slot takes them over: see that one is running",
    )


def waiting(connection: sqlite3.Connection, now: int) -> Finding:
    """Says whether tasks are due although nothing is running."""
    due, oldest, running = connection.execute(
        """
        SELECT count(*) FILTER (WHERE status = 'pending' AND available_at <= ?1),
            min(available_at) FILTER (WHERE status = 'pending'),
            count(*) FILTER (WHERE status = 'in_progress' AND available_at > ?1)
        FROM tasks WHERE finished_at IS NULL
        """,
        (now,),
    ).fetchone()
    if not due:
        return Finding("waiting tasks", "ok", "none is due")
    seconds = (now - oldest) / 1_000_000
    found = f"{due} due, the oldest for {seconds:.0f} seconds, and {running} running"
    if running or seconds <= LONG_SECONDS:
        return Finding("waiting tasks", "ok", found)
    return Finding("waiting tasks", "note", found, "see that a worker is running")


def free_pages(connection: sqlite3.Connection) -> Finding:
    """Says how much of the file is left over from deleted tasks."""
    free, pages, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count", "page_size")
    )
    found = f"{free} of {pages} pages, {free * size / 2**20:.1f} MiB"
    if free * size < FREE_BYTES or free < pages * FREE_SHARE:
        return Finding("free pages", "ok", found)
    return Finding(
        "free pages",
        "note",
        found,
        "new tasks use them again; to give them back to the disk, run VACUUM while no worker is running",
    )
