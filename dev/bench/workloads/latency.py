"""How long a task waits for an idle worker, and a caller for a result."""

import asyncio
import os
import random
import time
from pathlib import Path
from statistics import quantiles

from dev.bench.case import Case, Metrics
from dev.bench.contestants.base import Contestant
from dev.bench.serve import serving
from dev.bench.tasks import STAMPS_VARIABLE, Stamp, read_stamps, stamp

PAUSE_SECONDS = (0.005, 0.050)
SETTLE_SECONDS = 0.5
"""Pause after a worker has started, so that it is idle when the first task arrives."""

WARM_UP = 3
"""Tasks before those that count: the first ones pay for imports and empty caches."""

STRAGGLERS_SECONDS = 30.0


async def wake(contestant: Contestant, case: Case) -> Metrics:
    """An idle worker in another process: from the acknowledged enqueue to the task's start.

    The tasks come at random intervals of 5 to 50 ms. A figure below zero is possible: the
    worker can begin before the producer's own call has returned.
    """
    stamps = stamp_file(contestant)
    async with serving(case, contestant.store):
        await asyncio.sleep(SETTLE_SECONDS)
        return await _wake(contestant, case.count, stamps)


async def wake_same(contestant: Contestant, case: Case) -> Metrics:
    """The same with the worker on the producer's own event loop."""
    stamps = stamp_file(contestant)
    async with contestant.worker(case.concurrency):
        await asyncio.sleep(SETTLE_SECONDS)
        return await _wake(contestant, case.count, stamps)


async def result(contestant: Contestant, case: Case) -> Metrics:
    """From the task's end in a worker process to its result being returned in this one."""
    stamp_file(contestant)
    delays = []
    async with serving(case, contestant.store):
        await asyncio.sleep(SETTLE_SECONDS)
        for number in range(WARM_UP + case.count):
            handle = await contestant.enqueue(stamp, number)
            ended = await contestant.result(handle)
            delays.append(time.monotonic_ns() - ended)
            await pause()
    return percentiles(delays[WARM_UP:])


async def _wake(contestant: Contestant, count: int, stamps: Path) -> Metrics:
    acknowledged = []
    for number in range(WARM_UP + count):
        await contestant.enqueue(stamp, number)
        acknowledged.append(time.monotonic_ns())
        await pause()
    started = await all_stamps(stamps, WARM_UP + count)
    return percentiles([entry.monotonic_ns - acknowledged[entry.number] for entry in started])


def stamp_file(contestant: Contestant) -> Path:
    """Name the file for stamps, for this process and for those that it starts."""
    path = contestant.store.folder / "stamps"
    path.touch()
    os.environ[STAMPS_VARIABLE] = str(path)
    return path


async def all_stamps(path: Path, count: int) -> list[Stamp]:
    """The stamps of `count` tasks, when they are all there, without those of the warm-up.

    Raises:
        RuntimeError: when there are too many, or not enough after half a minute.
    """
    deadline = time.monotonic() + STRAGGLERS_SECONDS
    while len(stamps := read_stamps(path)) < count and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if len(stamps) != count:
        raise RuntimeError(f"{len(stamps)} stamps of {count} tasks")
    return [entry for entry in stamps if entry.number >= WARM_UP]


async def pause() -> None:
    """Let a random time of 5 to 50 ms pass."""
    await asyncio.sleep(random.uniform(*PAUSE_SECONDS))


def percentiles(nanoseconds: list[int]) -> Metrics:
    """The figures of a latency workload, in milliseconds."""
    cuts = quantiles(nanoseconds, n=20, method="inclusive")
    return {"p50_ms": cuts[9] / 1e6, "p95_ms": cuts[18] / 1e6}
