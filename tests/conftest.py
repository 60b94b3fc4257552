"""Fixtures that every test may use: a fresh file, a backend on it, a queue, a log of executions."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sitq import SQLiteBackend, TaskQueue
from tests.servers.fixtures import nats_server as nats_server
from tests.servers.fixtures import postgres_server as postgres_server
from tests.servers.fixtures import redis_server as redis_server
from tests.support import Runs


def pytest_configure() -> None:
    """Lets the processes that tests start be interrupted, also if whoever started pytest ignores SIGINT.

    A background job of a script inherits that, and so would every process of it. A handler is not inherited: they
    get the default action, while this process goes on ignoring the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


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
