"""SQLite, in a file and in memory, through the suite of unique tasks; and faults that it must find."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from sitq import Backend, SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.unique_contract import UniqueContract
from tests.contract.test_sqlite import one_commit_unanswered


class TestOnAFile(UniqueContract):
    @pytest.fixture
    def backend(self, path: Path) -> Backend:
        """A backend on a fresh file."""
        self.path, self.clock = path, ManualClock()
        return SQLiteBackend(path, durability="normal", clock=self.clock)

    def another(self, backend: Backend) -> Backend:
        """Another connection to the file."""
        return SQLiteBackend(self.path, durability="normal", clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Both look at one clock."""
        self.clock.advance(seconds)

    def cut(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """A file has no connection that could break, but a disk that fails after the commit."""
        return one_commit_unanswered()


class TestInMemory(UniqueContract):
    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)

    def cut(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """As on a file."""
        return one_commit_unanswered()
