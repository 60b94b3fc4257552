"""How many tasks a second: enqueueing in several ways, and draining."""

import asyncio
import time
from itertools import repeat

from dev.bench import tasks
from dev.bench.case import Case, Metrics
from dev.bench.contestants.base import WAVE, Contestant
from dev.bench.tasks import PAYLOAD, tally


async def drain(contestant: Contestant, case: Case) -> Metrics:
    """One worker, in this process, runs `count` waiting tasks.

    Timed: from the start of the worker, its loop running, until the last outcome is recorded.
    Not timed: enqueueing before, stopping the worker after.

    Raises:
        RuntimeError: when the tasks ran more or less than once each.
    """
    await contestant.fill(getattr(tasks, case.task), repeat(PAYLOAD, case.count))
    tally.expect(case.count)
    span = await contestant.drain(case.concurrency, case.count)
    executions = tally.executions()
    if executions != case.count:
        raise RuntimeError(f"{executions} executions of {case.count} tasks")
    return rate(case.count, span.seconds)


async def enqueue(contestant: Contestant, case: Case) -> Metrics:
    """One caller enqueues `count` tasks, each awaited until the store has acknowledged it."""
    started = time.perf_counter()
    for _ in range(case.count):
        await contestant.enqueue(tasks.noop, PAYLOAD)
    return rate(case.count, time.perf_counter() - started)


async def enqueue_concurrent(contestant: Contestant, case: Case) -> Metrics:
    """Waves of 1,000 callers on one event loop enqueue a task each, `count` in all."""
    started = time.perf_counter()
    for first in range(0, case.count, WAVE):
        wave = min(WAVE, case.count - first)
        await asyncio.gather(*(contestant.enqueue(tasks.noop, PAYLOAD) for _ in range(wave)))
    return rate(case.count, time.perf_counter() - started)


async def enqueue_many(contestant: Contestant, case: Case) -> Metrics:
    """One call, or what the contestant offers for it, enqueues `count` tasks."""
    started = time.perf_counter()
    await contestant.enqueue_many(case.count)
    return rate(case.count, time.perf_counter() - started)


def rate(count: int, seconds: float) -> Metrics:
    """The figure of a throughput workload."""
    return {"per_second": count / seconds}
