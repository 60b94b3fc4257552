"""Waiting for the write lock."""

import sqlite3
import time
from typing import Any

FIRST_WAIT_SECONDS = 0.0002
MAX_WAIT_SECONDS = 0.002


class PatientConnection(sqlite3.Connection):
    """A connection that waits for the write lock in short sleeps.

    SQLite's own busy handler sleeps for 1, 2, 5, 10, 15, 20 and 25 ms in a row, and a batch holds the
    lock for less than one: of two busy workers, one would sleep most of the time.

    Attributes:
        patience: Seconds until SQLITE_BUSY is an error.
        abilities: The size of the schema that was seen last, and what the file had then (see ``abilities``).
    """

    patience = 0.0
    abilities: tuple[int, frozenset[str]] = -1, frozenset()
    _synchronous = ""  # the level that was set last

    def set_synchronous(self, level: str) -> None:
        """Sets whether a commit is synced: ``"FULL"`` or ``"NORMAL"``."""
        if level != self._synchronous:
            self.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Executes a statement, again and again while another connection has the lock."""
        give_up_at, wait = time.monotonic() + self.patience, FIRST_WAIT_SECONDS
        while True:
            try:
                return super().execute(sql, parameters)
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)
