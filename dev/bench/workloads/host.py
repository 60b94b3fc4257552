"""What a program feels of the queue inside it: callers that wait, and the lateness of its event loop."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import repeat
from statistics import quantiles

from dev.bench.case import Case, Metrics
from dev.bench.contestants.sitq import Sitq
from dev.bench.serve import serving
from dev.bench.tasks import PAYLOAD, noop
from dev.bench.workloads.latency import SETTLE_SECONDS
from sitq import TaskQueue, Worker

PACE_PER_SECOND = 110
"""Tasks a second of the process beside the waiting callers: each is an enqueue, a reservation and an outcome."""

PACE_TOLERANCE = 0.8
"""The share of it that the process has to reach, or the measurement says nothing."""

FAR = timedelta(hours=1)

TIMER_SECONDS = 0.002


async def waiting(contestant: Sitq, case: Case) -> Metrics:
    """Processor time of a process with `count` callers in `get_result`, in per cent of one core.

    Their tasks are not due before an hour has passed. Meanwhile another process enqueues and runs 110
    tasks a second on the same file, which concern none of them. Timed: `seconds`, with all callers waiting.

    Raises:
        RuntimeError: when the other process did not keep the pace, or a caller came back.
    """
    calls = [partial(noop, PAYLOAD)] * case.count
    ids = await contestant.queue.enqueue_many(calls, eta=datetime.now(UTC) + FAR)
    callers = [asyncio.create_task(contestant.queue.get_result(task_id)) for task_id in ids]
    async with serving(case, contestant.store, mode="pace"):
        await asyncio.sleep(SETTLE_SECONDS + case.count / 2_000)
        before = await _finished(contestant)
        used, clock = time.process_time(), time.perf_counter()
        await asyncio.sleep(case.seconds)
        used, clock = time.process_time() - used, time.perf_counter() - clock
        ran = await _finished(contestant) - before
    if ran < PACE_TOLERANCE * PACE_PER_SECOND * clock:
        raise RuntimeError(f"the other process ran {ran / clock:.0f} tasks a second, not {PACE_PER_SECOND}")
    if any(caller.done() for caller in callers):
        raise RuntimeError("a caller came back before its task was due")
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return {"cpu_percent": 100 * used / clock}


async def pace(contestant: Sitq, case: Case, ended: Callable[[], bool]) -> None:
    """The process beside them: enqueues and runs tasks at an even pace until told to end."""
    start = time.perf_counter()
    async with contestant.worker(case.concurrency):
        number = 0
        while not ended():
            await contestant.enqueue(noop, PAYLOAD)
            number += 1
            await asyncio.sleep(start + number / PACE_PER_SECOND - time.perf_counter())


async def awaited(contestant: Sitq, case: Case) -> Metrics:
    """`count` callers wait, each for its own task, beside the worker that runs them, on one backend object.

    Timed: from the worker's start, with all callers waiting, until the last one has its result.

    Raises:
        RuntimeError: when a caller came back without its result.
    """
    backend = contestant.backend()
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many(repeat(partial(noop, PAYLOAD), case.count))
        callers = [asyncio.create_task(queue.get_result(task_id)) for task_id in ids]
        await asyncio.sleep(SETTLE_SECONDS)
        started = time.perf_counter()
        async with Worker(backend, max_concurrency=case.concurrency):
            results = await asyncio.gather(*callers)
            seconds = time.perf_counter() - started
    if not all(result is not None and result.status == "success" for result in results):
        raise RuntimeError("a caller came back without a result")
    return {"seconds": seconds}


async def lateness(contestant: Sitq, case: Case) -> Metrics:
    """How late a timer of 2 ms is in the event loop that enqueues `count` tasks at once, drains them, or does nothing.

    The timer is set anew whenever it went off. The waiting tasks of the drain are stored before.
    """
    if case.variant == "drain":
        await contestant.fill(noop, repeat(PAYLOAD, case.count))
    await asyncio.sleep(SETTLE_SECONDS)
    async with _timed() as late:
        if case.variant == "enqueue_many":
            await contestant.enqueue_many(case.count)
        elif case.variant == "drain":
            await contestant.drain(case.concurrency, case.count)
        else:
            await asyncio.sleep(case.seconds)
    cuts = quantiles(late, n=100, method="inclusive")
    return {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98], "max_ms": 1e3 * max(late)}


@asynccontextmanager
async def _timed() -> AsyncGenerator[list[float]]:
    """By how many seconds each ringing of the timer was late, in the order of time."""
    late: list[float] = []

    async def ring() -> None:
        while True:
            due = time.perf_counter() + TIMER_SECONDS
            await asyncio.sleep(TIMER_SECONDS)
            late.append(time.perf_counter() - due)

    ringing = asyncio.create_task(ring())
    await asyncio.sleep(0)
    try:
        yield late
    finally:
        await asyncio.sleep(2 * TIMER_SECONDS)  # else a hold at the very end would not be seen
        ringing.cancel()


async def _finished(contestant: Sitq) -> int:
    return (await contestant.queue.counts()).success
