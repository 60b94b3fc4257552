"""What SQLite's errors mean to a caller."""

import sqlite3

from sitq.errors import BackendCorruptError, BackendError, BackendReadOnlyError, BackendUnavailableError

_AGAIN = "nothing was changed; try again later"
_ERRORS: dict[int, tuple[type[BackendError], str]] = {
    sqlite3.SQLITE_BUSY: (
        BackendUnavailableError,
        f"another connection holds the write lock for longer than the busy timeout; {_AGAIN}",
    ),
    sqlite3.SQLITE_LOCKED: (BackendUnavailableError, f"it is locked; {_AGAIN}"),
    sqlite3.SQLITE_PROTOCOL: (BackendUnavailableError, f"its lock could not be had in many tries; {_AGAIN}"),
    sqlite3.SQLITE_FULL: (BackendUnavailableError, f"the disk is full; make room: {_AGAIN}"),
    sqlite3.SQLITE_IOERR: (
        BackendUnavailableError,
        "the disk reports an error, perhaps after the change was made; try again later: nothing is made twice",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        BackendUnavailableError,
        "it cannot be opened; check that its folder exists and that this user may write there",
    ),
    sqlite3.SQLITE_READONLY: (
        BackendReadOnlyError,
        "it cannot be written; give this user the right to write the file and its folder, or choose another path",
    ),
    sqlite3.SQLITE_PERM: (BackendReadOnlyError, "access is denied; check the file's mode"),
    sqlite3.SQLITE_CORRUPT: (
        BackendCorruptError,
        "it is damaged; stop its users, keep a copy, and restore a backup or run `.recover`",
    ),
    sqlite3.SQLITE_NOTADB: (BackendCorruptError, "it is not a SQLite database; check the path"),
}


def translate(error: sqlite3.Error | OSError, path: str) -> BackendError:
    """Returns the error of sitq's that tells a caller what to do about one of SQLite's, or of the file system's."""
    if isinstance(error, OSError):
        code = sqlite3.SQLITE_READONLY if isinstance(error, PermissionError) else sqlite3.SQLITE_CANTOPEN
    else:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind, advice = _ERRORS.get(code, (BackendError, "SQLite refused a statement of sitq's"))
    translated = kind(f"{path}: {advice} ({error})")
    translated.__cause__ = error
    return translated
