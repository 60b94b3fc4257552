"""The tasks that every contestant runs, and how their executions are counted and timed.

They are module-level functions, so that each contestant can name them in its own way.
"""

import asyncio
import itertools
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PAYLOAD = "x" * 100
"""The one argument of the counted tasks: a text, which every contestant's serializer can carry."""

SPIN_ROUNDS = 27_000
"""Rounds of `spin`'s loop, about 2 ms of pure Python on a 2.4 GHz server core."""

STAMPS_VARIABLE = "SITQ_BENCH_STAMPS"
"""Environment variable: the file to which `stamp` appends, in whichever process it runs."""

_STAMP = struct.Struct("<qqq")

type Task = Callable[[Any], Any]


class Tally:
    """Counts executions on all threads of this process and tells when enough have happened."""

    def __init__(self) -> None:
        self.expect(0)

    def expect(self, count: int) -> None:
        """Start at zero and wait for `count` executions; to be called on the event loop."""
        self._numbers = itertools.count(1)
        self._expected = count
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop() if count else None
        self.reached_at = 0.0

    def add(self) -> int:
        """Count one execution. `itertools.count` is what makes it exact between threads."""
        number = next(self._numbers)
        if number == self._expected and self._loop is not None:
            self.reached_at = time.perf_counter()
            self._loop.call_soon_threadsafe(self._event.set)
        return number

    async def reached(self) -> None:
        """Return when the expected number of executions has been counted."""
        await self._event.wait()

    def executions(self) -> int:
        """The executions counted so far. It uses up a number: call it once, at the end."""
        return next(self._numbers) - 1


tally = Tally()


class Stamp(NamedTuple):
    """When a task began: the clock that processes share, and the wall clock, in nanoseconds."""

    number: int
    monotonic_ns: int
    wall_ns: int


def read_stamps(path: Path) -> list[Stamp]:
    """What the tasks have written to `path` so far."""
    data = path.read_bytes()
    whole = len(data) // _STAMP.size * _STAMP.size
    return [Stamp(*fields) for fields in _STAMP.iter_unpack(data[:whole])]


async def noop(payload: str) -> int:
    """Do nothing but be counted; the number is a result to keep."""
    return tally.add()


def noop_plain(payload: str) -> int:
    """Do the same as `noop`, without `async`."""
    return tally.add()


def spin(payload: str) -> int:
    """Keep a core busy for about 2 ms."""
    total = 0
    for number in range(SPIN_ROUNDS):
        total += number * number % 7
    tally.add()
    return total


async def stamp(number: int) -> int:
    """Write down when the task began; give the moment at which it ended."""
    return stamp_plain(number)


def stamp_plain(number: int) -> int:
    """Do the same as `stamp`, without `async`."""
    record = _STAMP.pack(number, time.monotonic_ns(), time.time_ns())
    file = os.open(os.environ[STAMPS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, record)
    finally:
        os.close(file)
    return time.monotonic_ns()


TASKS: tuple[Task, ...] = (noop, noop_plain, spin, stamp, stamp_plain)

PLAIN: dict[Task, Task] = {noop: noop_plain, stamp: stamp_plain}
"""The plain twin of each `async def` task, for contestants that run plain functions only."""
