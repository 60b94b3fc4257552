"""What the tests of the contract have in common: hooks, event loops, short words."""

import asyncio
import contextlib
import functools
import inspect
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Any
from unittest import mock

import pytest

from sitq import Backend, BackendError, BackendUnavailableError, NewTask, ReservedTask, Result
from sitq.models import Outcome, Reservation, new_task_id, now_seconds

DEADLINE_SECONDS = 30.0
"""How long a test waits for what has to happen; never a measure of speed."""

LEASE_SECONDS = 60.0
"""Longer than what a test takes if the backend's clock goes on by itself."""

PAUSE_SECONDS = 0.005
"""Between two queries for what has to come."""


class Contract:
    """The hooks by which a suite gets at a backend.

    A subclass overrides the fixture :meth:`backend` and :meth:`advance`, and of the others what its
    store needs. Each number of seconds in a test goes through :meth:`seconds`, so that a store whose
    clock cannot be moved runs the suite in real time, a hundred times as fast as written.

    Attributes:
        knows_next_due: Whether ``next_due_in`` and ``last_attempt_waiting`` of a reservation tell
            what is in the store. A store that cannot know says ``None`` and ``False``.
        has_own_clock: Whether the store has a clock of its own, which is not that of the host. A file
            has none: all who use it are on one host, and its clock is theirs.
        knows_extras: The fields of ``Extras`` that the backend carries out; it refuses the others.
    """

    knows_next_due: bool = True
    has_own_clock: bool = False
    knows_extras: frozenset[str] = frozenset()

    @pytest.fixture
    def backend(self) -> Backend:
        """Gives a backend on an empty store of its own, not connected. Every subclass overrides it."""
        raise NotImplementedError("override the fixture `backend`")

    def another(self, backend: Backend) -> Backend | None:
        """Returns a second, independent backend on the same store, not connected.

        Args:
            backend: What the fixture gave.

        Returns:
            ``None`` if there is no such thing; then one backend stands for two.
        """
        return None

    def advance(self, backend: Backend, seconds: float) -> Awaitable[None] | None:
        """Puts the clock of ``backend``, and of every other on its store, ahead; every subclass overrides it.

        For a server, this can be an offset that its statements add to the server's clock. It may be
        an ``async def``, and wait until so much time has passed.

        Args:
            backend: What the fixture gave.
            seconds: How far, as :meth:`seconds` has given it. The clock may also go on by itself, but
                not stand still or go back.
        """
        raise NotImplementedError("override `advance`")

    def seconds(self, n: float) -> float:
        """Returns what the suite takes for ``n`` seconds: each lease, delay and ``eta`` is made of it."""
        return n

    async def settle(self) -> None:
        """Waits until a query finds whatever was stored before; called before one that has to find something."""

    def cut(self, backend: Backend) -> AbstractAsyncContextManager[object]:
        """Returns a block in which a connection of ``backend`` breaks between a change and its answer.

        The store carries out the first call that is made inside of the block, and its answer is
        lost. The call raises :class:`~sitq.BackendUnavailableError`, or the backend repeats it by
        itself. After the block, the store can be reached. The tests of it are skipped unless this
        is overridden.

        Args:
            backend: What the fixture gave, connected.
        """
        pytest.skip("`cut` is not overridden: what a broken connection does to this backend is not tested")

    async def restart(self, backend: Backend) -> None:
        """Restarts the store between two calls of ``backend``; for a server, override it.

        By default, the backend is closed and connected again, unless its store may end with it.

        Args:
            backend: What the fixture gave, connected once.
        """
        if self.another(backend) is None:
            pytest.skip("there is no other backend on this store: it may end with its connection")
        await backend.close()
        await backend.connect()

    def host_clock_off(self, backend: Backend, seconds: float) -> AbstractContextManager[object]:
        """Returns a block in which the clock of the host that ``backend`` is on is wrong by so many seconds.

        By default, that is what ``time.time``, ``time.time_ns`` and sitq's own clock show.
        """
        return _host_clock_off(seconds)

    @contextlib.asynccontextmanager
    async def other(self, backend: Backend) -> AsyncIterator[Backend]:
        """Another backend, or the same one, connected inside the block."""
        other = self.another(backend) or backend
        await other.connect()
        try:
            yield other
        finally:
            await other.close()

    @property
    def lease(self) -> float:
        """The lease that tests ask for, in the suite's seconds."""
        return self.seconds(LEASE_SECONDS)

    async def pass_time(self, backend: Backend, seconds: float) -> None:
        """Lets so many of the suite's seconds pass."""
        passing = self.advance(backend, self.seconds(seconds))
        if inspect.isawaitable(passing):
            await passing

    async def end_leases(self, backend: Backend) -> None:
        """Lets every lease that a test has asked for end."""
        await self.pass_time(backend, LEASE_SECONDS + 1)

    async def reserve(self, backend: Backend, limit: int = 100, *, alone: bool = True) -> Reservation:
        """Returns what a reservation found that comes after everything stored before."""
        await self.settle()
        return await backend.reserve(limit, lease=self.lease, alone=alone)

    async def take(self, backend: Backend, limit: int = 100, *, alone: bool = True) -> list[ReservedTask]:
        """Returns what such a reservation gave out."""
        return list((await self.reserve(backend, limit, alone=alone)).tasks)

    def says_that_a_last_attempt_waits(self, found: Reservation) -> bool:
        """Whether a reservation says so; taken for granted of a store that cannot know."""
        return found.last_attempt_waiting or not self.knows_next_due


@contextlib.contextmanager
def _host_clock_off(seconds: float) -> Iterator[None]:
    shown = {"time": time.time, "time_ns": time.time_ns, "now_seconds": now_seconds}
    wrong: dict[str, Callable[[], float]] = {
        "time": lambda: shown["time"]() + seconds,
        "time_ns": lambda: shown["time_ns"]() + int(seconds * 1e9),
        "now_seconds": lambda: shown["now_seconds"]() + seconds,
    }
    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            for name in wrong:
                if getattr(module, "__dict__", {}).get(name) is shown[name]:  # also if it was imported by name
                    stack.enter_context(mock.patch.object(module, name, wrong[name]))
        yield


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


async def take(
    backend: Backend, limit: int = 100, *, alone: bool = True, lease: float = LEASE_SECONDS
) -> list[ReservedTask]:
    """Returns what a reservation gave out; with a suite at hand, rather its own :meth:`Contract.take`."""
    return list((await backend.reserve(limit, lease=lease, alone=alone)).tasks)


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
    """Asks until there is something to see."""
    while not (found := await seen()):  # noqa: ASYNC110 - a store of which nothing is known
        await asyncio.sleep(PAUSE_SECONDS)
    return found


async def repeated[T](call: Callable[[], Awaitable[T]]) -> T:
    """Makes a call, again and again while the store cannot be reached, as a worker does."""
    while True:
        try:
            return await call()
        except BackendUnavailableError:
            await asyncio.sleep(PAUSE_SECONDS)
