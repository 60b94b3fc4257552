"""The pytest plugin: fixtures for tests of code that enqueues tasks.

It stands outside of the package, because importing anything below ``sitq`` imports all of it, and
pytest loads its plugins at each start. Nothing of sitq is imported before a fixture is used.
"""

import asyncio
import inspect
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sitq import SQLiteBackend
    from sitq.testing import ManualClock, ManualQueue, ManualSyncQueue

FIXTURES = frozenset({"task_backend", "task_clock", "task_queue", "sync_task_queue"})


@pytest.fixture
def task_queue_path(tmp_path: Path) -> str | Path:
    """The queue file of the test, which does not exist yet; override it to return ``":memory:"``."""
    return tmp_path / "tasks.db"


@pytest.fixture
def task_clock() -> "ManualClock":
    """The clock of ``task_backend``: the host's time until the test advances it."""
    from sitq.testing import ManualClock

    return ManualClock()


@pytest.fixture
def task_backend(task_queue_path: str | Path, task_clock: "ManualClock") -> "SQLiteBackend":
    """A fresh backend, for the queue and for workers of the test's own."""
    from sitq import SQLiteBackend

    # Nothing of a test has to survive a power cut, and a clock that is far ahead must not prune.
    return SQLiteBackend(task_queue_path, durability="normal", retention=None, clock=task_clock)


@pytest.fixture
def task_queue(task_backend: "SQLiteBackend") -> Iterator["ManualQueue"]:
    """A queue for async tests, and for sync ones with ``asyncio.run``; ``drain()`` runs its tasks."""
    from sitq.testing import ManualQueue

    queue = ManualQueue(task_backend)
    yield queue
    # Not an async fixture, which would be bound to one plugin, and to one of its modes. By now the
    # test's loop may be closed or not: a thread has one of its own.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(queue.close())).result()


@pytest.fixture
def sync_task_queue(task_backend: "SQLiteBackend") -> Iterator["ManualSyncQueue"]:
    """A queue for sync tests; ``drain()`` runs its tasks."""
    from sitq.testing import ManualSyncQueue

    queue = ManualSyncQueue(task_backend)
    yield queue
    with ThreadPoolExecutor(1) as thread:
        thread.submit(queue.close).result()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Says what is missing if nothing runs an async test; pytest's own implementation comes after this."""
    if inspect.iscoroutinefunction(pyfuncitem.obj) and not FIXTURES.isdisjoint(pyfuncitem.fixturenames):
        if "pytest_asyncio.plugin" in sys.modules:
            fix = 'mark it with @pytest.mark.asyncio, or set asyncio_mode = "auto" for pytest-asyncio'
        elif "anyio.pytest_plugin" in sys.modules:
            fix = "mark it with @pytest.mark.anyio, or install pytest-asyncio"
        else:
            fix = "install pytest-asyncio or anyio, or make it a plain function that uses sync_task_queue"
        pytest.fail(f"{pyfuncitem.name} is an async test, and nothing here runs it: {fix}", pytrace=False)
