"""What the tests of the worker share: tasks, gates at which tasks wait, backends that tell what is asked of them."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from sitq import ReservedTask, SQLiteBackend, current_task
from sitq.models import Reservation
from tests.support import DEADLINE_SECONDS, Runs, until

FAR_AHEAD_SECONDS = 86_400.0
"""How far a second backend's clock is put ahead, so that every lease has ended for it."""


class Gate:
    """A place in a task where the task says that it is there and waits until it may go on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrivals = asyncio.Semaphore(0)
        self._opened = asyncio.Event()
        self._opened_for_threads = threading.Event()

    def open(self) -> None:
        """Lets everyone through, now and later."""
        self._opened.set()
        self._opened_for_threads.set()

    async def arrived(self, count: int = 1) -> None:
        """Returns when ``count`` more tasks are at the gate."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(count):
                await self._arrivals.acquire()

    def arrivals(self) -> int:
        """Returns how many tasks came that nobody waited for."""
        return self._arrivals._value

    def pass_by(self) -> bool:
        """Arrives and does not wait; whether the gate is open."""
        self._arrivals.release()
        return self._opened.is_set()

    async def wait(self) -> None:
        """Waits at the gate in a coroutine."""
        self._arrivals.release()
        await self._opened.wait()

    def block(self) -> None:
        """Waits at the gate in a thread."""
        self._loop.call_soon_threadsafe(self._arrivals.release)
        assert self._opened_for_threads.wait(DEADLINE_SECONDS)


_gates: dict[str, Gate] = {}


@contextlib.contextmanager
def gate(name: str = "gate") -> Iterator[Gate]:
    """A closed gate that tasks of this process find by its name; open to all at the end."""
    made = _gates[name] = Gate()
    try:
        yield made
    finally:
        made.open()
        del _gates[name]


async def wait_at(name: str, value: Any = None, runs: Runs | None = None) -> Any:
    """Logs that it runs, waits at a gate, then returns ``value``."""
    here = _gates[name]
    if runs is not None:
        runs.add(value)
    await here.wait()
    return value


def block_at(name: str, value: Any = None, runs: Runs | None = None) -> Any:
    """As :func:`wait_at`, in a plain function."""
    here = _gates[name]
    if runs is not None:
        runs.add(value)
    here.block()
    return value


def pass_by(name: str) -> bool:
    """Arrives at a gate and does not wait; whether it is open, or is not there any more."""
    return name not in _gates or _gates[name].pass_by()


def log_attempt(runs: Runs) -> int:
    """Logs and returns the number of the attempt."""
    runs.add(current_task().attempt)
    return current_task().attempt


async def wait_for_file(path: Path, runs: Runs, line: object = "started") -> str:
    """Logs that it runs and returns when ``path`` exists."""
    runs.add(line)
    await until(path.exists)
    runs.add("ended")
    return "done"


def block_for_file(path: Path, runs: Runs, line: object = "started") -> str:
    """As :func:`wait_for_file`, in a plain function."""
    runs.add(line)
    while not path.exists():
        time.sleep(0.01)  # it is there to block, and a file sends no event
    runs.add("ended")
    return "done"


async def block_loop_for_file(path: Path, runs: Runs, line: object = "started") -> str:
    """As :func:`wait_for_file`, and no other coroutine gets a turn meanwhile."""
    return block_for_file(path, runs, line)


def kill_worker(runs: Runs) -> None:
    """Logs that it runs and ends its process as the kernel would."""
    runs.add("killer")
    os.kill(os.getpid(), 9)


class TellingBackend(SQLiteBackend):
    """A real backend that keeps a list of what a worker asked of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits: list[int] = []
        self.looked = asyncio.Semaphore(0)
        self.renewed = threading.Semaphore(0)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Notes the limit."""
        self.limits.append(limit)
        try:
            return await super().reserve(limit, lease=lease, alone=alone)
        finally:
            self.looked.release()

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Notes that it was called."""
        try:
            return await super().renew(tasks, lease=lease)
        finally:
            self.renewed.release()

    async def looks(self, count: int) -> None:
        """Returns when the worker has tried to reserve ``count`` more times."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(count):
                await self.looked.acquire()

    def renewals(self, count: int) -> None:
        """Blocks until ``count`` more renewals are over."""
        for _ in range(count):
            assert self.renewed.acquire(timeout=DEADLINE_SECONDS)


@contextlib.asynccontextmanager
async def connected[B: SQLiteBackend](backend: B) -> AsyncIterator[B]:
    """A backend that is open inside the block."""
    await backend.connect()
    try:
        yield backend
    finally:
        await backend.close()


def far_ahead(path: Path, seconds: float = FAR_AHEAD_SECONDS) -> SQLiteBackend:
    """A second backend on a file, by whose clock every lease has ended."""
    return SQLiteBackend(path, clock=lambda: time.time() + seconds)


def execute(path: Path, sql: str, *parameters: Any) -> None:
    """Changes a queue file with a connection of its own, and wakes nobody."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(sql, parameters)
    finally:
        connection.close()


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Keeps everyone else from writing a queue file inside the block."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
