"""What was chosen for a file, and holds for those who do not choose."""

import contextlib
import sqlite3

_MAKE = "CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID"


def settle_retention(sqlite: sqlite3.Connection, mine: int | None, *, chosen: bool) -> int | None:
    """Returns how long finished tasks of this file are kept, in microseconds; ``None`` for ever.

    The table is made when somebody chooses. A process of an earlier version does not look at it.

    Args:
        sqlite: The connection.
        mine: What this backend was given, or its default.
        chosen: Whether it was given: then it is stored, else what was stored last holds.
    """
    with contextlib.suppress(sqlite3.Error):  # a file that is busy or cannot be written is opened all the same
        is_there = sqlite.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settings'").fetchone()
        found = is_there and sqlite.execute("SELECT value FROM settings WHERE key = 'retention'").fetchone()
        if found and not chosen and (found[0] is None or isinstance(found[0], int)):
            kept: int | None = found[0]
            return kept
        if chosen and found != (mine,):
            sqlite.execute(_MAKE)
            sqlite.execute("INSERT OR REPLACE INTO settings VALUES ('retention', ?)", (mine,))
    return mine
