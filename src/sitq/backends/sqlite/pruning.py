"""When workers prune, and how long a finished task is kept."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Collection

from sitq.backends.sqlite import failed_rows, queries
from sitq.backends.sqlite.abilities import Ability
from sitq.backends.sqlite.ability_changes import PruneApart
from sitq.backends.sqlite.changes import Prune

PRUNE_PAUSE_SECONDS = 5.0
MAX_PRUNED_PER_RESERVATION = 200

_MAKE_SETTINGS = "CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID"


class Pruning:
    """The retention of one file, and whether it is time to prune.

    Args:
        retention: How long finished tasks are kept, in microseconds; ``None`` for ever.
        chosen: Whether somebody chose that: then it is stored in the file, else what was stored last holds.
        failed: The same for failed tasks, if that was chosen.
        failed_chosen: Whether somebody chose that; until somebody does, they are kept as long as all others.
    """

    def __init__(
        self, retention: int | None, *, chosen: bool, failed: int | None = None, failed_chosen: bool = False
    ) -> None:
        self._mine = retention
        self._chosen = chosen
        self._mine_failed = failed
        self._failed_chosen = failed_chosen
        self._kept: int | None = None  # as the file has it
        self._failed_kept: int | None = None
        self.abilities: Collection[Ability] = ()
        """What the file has to have for the pruning."""
        self._next_at = math.inf  # on the monotonic clock

    def settle(self, sqlite: sqlite3.Connection) -> None:
        """Finds out what holds for this file, and begins to prune."""
        self._kept = _settle(sqlite, "retention", self._mine, chosen=self._chosen)
        mine_failed = self._mine_failed if self._failed_chosen else self._kept
        self._failed_kept = _settle(sqlite, "retention_failed", mine_failed, chosen=self._failed_chosen)
        self.abilities = () if self._kept == self._failed_kept else (failed_rows.ABILITY,)
        self._next_at = math.inf if self._kept is None and self._failed_kept is None else 0.0

    @property
    def kept(self) -> int | None:
        """How long a finished task is kept at least, in microseconds, however it ended; ``None`` for ever."""
        return min((each for each in (self._kept, self._failed_kept) if each is not None), default=None)

    @property
    def is_time(self) -> bool:
        """Whether there may be something to prune."""
        return time.monotonic() >= self._next_at

    def change(self, now: int) -> Prune | PruneApart:
        """Returns what deletes some of the tasks that have been kept long enough at ``now``."""
        before, failed_before = self._before(now)
        if self.abilities or before is None:
            return PruneApart(before, failed_before, MAX_PRUNED_PER_RESERVATION)
        return Prune(before, MAX_PRUNED_PER_RESERVATION, None)

    def may_prune(self, sqlite: sqlite3.Connection, now: int) -> bool:
        """Whether it is time, and there is something to prune."""
        if not self.is_time:
            return False
        before, failed_before = self._before(now)
        if self.abilities or before is None:
            return failed_rows.is_prunable(sqlite, before, failed_before)
        return queries.is_prunable(sqlite, before)

    def _before(self, now: int) -> tuple[int | None, int | None]:
        before, failed_before = (None if kept is None else now - kept for kept in (self._kept, self._failed_kept))
        return before, failed_before

    def pause(self) -> None:
        """Lets some time pass: nothing is left to prune."""
        self._next_at = time.monotonic() + PRUNE_PAUSE_SECONDS


def _settle(sqlite: sqlite3.Connection, key: str, mine: int | None, *, chosen: bool) -> int | None:
    # The table is made when somebody chooses. A process of an earlier version does not read it.
    with contextlib.suppress(sqlite3.Error):  # a file that is busy or cannot be written is opened all the same
        is_there = sqlite.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settings'").fetchone()
        found = is_there and sqlite.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        if found and not chosen and (found[0] is None or isinstance(found[0], int)):
            kept: int | None = found[0]
            return kept
        if chosen and found != (mine,):
            sqlite.execute(_MAKE_SETTINGS)
            sqlite.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, mine))
    return mine
