"""When workers prune, and how long a finished task is kept."""

import contextlib
import math
import sqlite3
import time

PRUNE_PAUSE_SECONDS = 5.0
MAX_PRUNED_PER_RESERVATION = 200

_MAKE_SETTINGS = "CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID"


class Pruning:
    """The retention of one file, and whether it is time to prune.

    Args:
        retention: How long finished tasks are kept, in microseconds; ``None`` for ever.
        chosen: Whether somebody chose that: then it is stored in the file, else what was stored last holds.
    """

    def __init__(self, retention: int | None, *, chosen: bool) -> None:
        self._mine = retention
        self._chosen = chosen
        self._kept = retention or 0  # as the file has it
        self._next_at = math.inf  # on the monotonic clock

    def settle(self, sqlite: sqlite3.Connection) -> None:
        """Finds out what holds for this file, and begins to prune."""
        kept = _settle_retention(sqlite, self._mine, chosen=self._chosen)
        self._kept, self._next_at = kept or 0, math.inf if kept is None else 0.0

    @property
    def kept(self) -> int | None:
        """How long finished tasks are kept at least, in microseconds; ``None`` for ever."""
        return None if self._next_at == math.inf else self._kept

    @property
    def is_time(self) -> bool:
        """Whether there may be something to prune."""
        return time.monotonic() >= self._next_at

    def finished_before(self, now: int) -> int:
        """Returns the moment before which a task must have finished to be deleted at ``now``."""
        return now - self._kept

    def pause(self) -> None:
        """Lets some time pass: nothing is left to prune."""
        self._next_at = time.monotonic() + PRUNE_PAUSE_SECONDS


def _settle_retention(sqlite: sqlite3.Connection, mine: int | None, *, chosen: bool) -> int | None:
    # The table is made when somebody chooses. A process of an earlier version does not read it.
    with contextlib.suppress(sqlite3.Error):  # a file that is busy or cannot be written is opened all the same
        is_there = sqlite.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settings'").fetchone()
        found = is_there and sqlite.execute("SELECT value FROM settings WHERE key = 'retention'").fetchone()
        if found and not chosen and (found[0] is None or isinstance(found[0], int)):
            kept: int | None = found[0]
            return kept
        if chosen and found != (mine,):
            sqlite.execute(_MAKE_SETTINGS)
            sqlite.execute("INSERT OR REPLACE INTO settings VALUES ('retention', ?)", (mine,))
    return mine
