"""Fixtures that every test may use: a fresh file, a backend on it, a queue, a log of executions."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sitq import SQLiteBackend, TaskQueue
from tests.support import Runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a queue file may be made; it does not exist yet."""
    return tmp_path / "queue.db"


@pytest.fixture
def backend(path: Path) -> SQLiteBackend:
    """A backend on a fresh file, not connected yet."""
    return SQLiteBackend(path)


@pytest.fixture
async def queue(backend: SQLiteBackend) -> AsyncIterator[TaskQueue]:
    """A connected queue on ``backend``."""
    async with TaskQueue(backend) as queue:
        yield queue


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """An append-only log that tasks write, outside of sitq."""
    return Runs(tmp_path / "runs.log")
