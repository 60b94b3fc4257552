"""SQLite stores for a suite of the contract: mixed into a test class, before the suite."""

from pathlib import Path

import pytest

from sitq import Backend, SQLiteBackend
from sitq.testing import ManualClock


class OnAFile:
    """Runs a suite on a fresh file, which several backends can share."""

    path: Path
    clock: ManualClock

    @pytest.fixture
    def backend(self, path: Path) -> Backend:
        """A backend on a fresh file."""
        self.path, self.clock = path, ManualClock()
        return SQLiteBackend(path, durability="normal", retention=None, clock=self.clock)

    def another(self, backend: Backend) -> Backend:
        """Another connection to the file."""
        return SQLiteBackend(self.path, durability="normal", retention=None, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves the clock of both."""
        self.clock.advance(seconds)


class InMemory:
    """Runs a suite in memory."""

    clock: ManualClock

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", retention=None, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)
