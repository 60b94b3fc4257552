"""What the tests of the contract have in common: hooks, event loops, short words."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any

import pytest

from sitq import Backend, BackendError, NewTask, ReservedTask, Result
from sitq.models import Outcome, new_task_id

DEADLINE_SECONDS = 30.0
"""How long a test waits for what has to happen; never a measure of speed."""

LEASE_SECONDS = 60.0
"""Longer than what a test takes, where the backend's clock goes on by itself."""


class Contract:
    """The hooks by which a suite gets at a backend."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Gives a backend on an empty store of its own, not connected. Every subclass overrides it."""
        raise NotImplementedError("override the fixture `backend`")

    def another(self, backend: Backend) -> Backend | None:
        """Returns a second, independent backend on the same store, not connected.

        Args:
            backend: What the fixture gave.

        Returns:
            ``None`` where there is no such thing; then one backend stands for two.
        """
        return None

    def advance(self, backend: Backend, seconds: float) -> None:
        """Puts the clock of ``backend``, and of every other on its store, ahead.

        Args:
            backend: What the fixture gave.
            seconds: How far. The clock may also go on by itself, but not stand still or go back.
        """
        raise NotImplementedError("override `advance`")

    @contextlib.asynccontextmanager
    async def other(self, backend: Backend) -> AsyncIterator[Backend]:
        """Another backend, or the same one, connected inside the block."""
        other = self.another(backend) or backend
        await other.connect()
        try:
            yield other
        finally:
            await other.close()


type _Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: _Test) -> Callable[..., None]:
    """Runs a test in an event loop, with its backend as the fixture gave it."""

    @functools.wraps(test)
    def run(self: Contract, backend: Backend, **parameters: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await test(self, backend, **parameters)

        asyncio.run(limited())

    return run


def connected(test: _Test) -> Callable[..., None]:
    """Runs a test in an event loop, with its backend connected."""

    @functools.wraps(test)
    async def run(self: Contract, backend: Backend, **parameters: Any) -> None:
        await backend.connect()
        try:
            await test(self, backend, **parameters)
        finally:
            await backend.close()

    return in_loop(run)


def new(
    count: int = 1, *, eta: datetime | None = None, max_attempts: int = 5, delay: float | None = None
) -> list[NewTask]:
    """Returns tasks that differ from each other."""
    return [
        NewTask(new_task_id(), b"payload %d" % n, f"module:name{n}", f"format {n}", eta, max_attempts, delay)
        for n in range(count)
    ]


def ids(tasks: Iterable[NewTask | ReservedTask]) -> list[str]:
    """Returns the ids of tasks."""
    return [task.task_id for task in tasks]


def successes(tasks: Iterable[ReservedTask], result: bytes = b"result") -> list[Outcome]:
    """Returns outcomes of tasks that succeeded."""
    return [Outcome(task, result) for task in tasks]


def failures(tasks: Iterable[ReservedTask], error: str = "ValueError: no") -> list[Outcome]:
    """Returns outcomes of tasks that failed."""
    return [Outcome(task, error=error) for task in tasks]


async def take(backend: Backend, limit: int = 100, *, alone: bool = True) -> list[ReservedTask]:
    """Returns what a reservation gave out."""
    return list((await backend.reserve(limit, lease=LEASE_SECONDS, alone=alone)).tasks)


async def look(backend: Backend, task: NewTask | ReservedTask) -> Result[bytes]:
    """Returns what the backend knows of a task that is there."""
    found = await backend.get_result(task.task_id)
    assert found is not None
    return found


async def statuses(backend: Backend, tasks: Iterable[NewTask | ReservedTask]) -> list[str | None]:
    """Returns the statuses of tasks, ``None`` for one that is not there."""
    found = [await backend.get_result(task_id) for task_id in ids(tasks)]
    return [None if result is None else result.status for result in found]


async def refuses(backend: Backend) -> None:
    """Checks that a backend is not connected."""
    calls: list[Coroutine[Any, Any, object]] = [
        backend.enqueue(new()),
        backend.reserve(1, lease=LEASE_SECONDS, alone=True),
        backend.get_result(new_task_id()),
    ]
    for refused in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(refused, BackendError)


async def until[T](seen: Callable[[], Awaitable[T]]) -> T:
    """Looks until there is something to see."""
    while not (found := await seen()):  # noqa: ASYNC110 - a store of which nothing is known
        await asyncio.sleep(0.005)
    return found
