"""Workloads for what only sitq has, or only sitq has in that resolution."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

from dev.bench.case import Case, Metrics
from dev.bench.contestants.sitq import Sitq
from dev.bench.serve import serving
from dev.bench.tasks import PAYLOAD, noop, stamp
from dev.bench.workloads.latency import (
    SETTLE_SECONDS,
    WARM_UP,
    all_stamps,
    percentiles,
    stamp_file,
)
from dev.bench.workloads.throughput import rate
from sitq import SyncTaskQueue

ETA_SECONDS = (0.050, 0.500)


async def enqueue_sync(contestant: Sitq, case: Case) -> Metrics:
    """Code in a thread without an event loop enqueues one by one through `SyncTaskQueue`."""

    def enqueue() -> Metrics:
        with SyncTaskQueue(contestant.backend()) as queue:
            queue.enqueue(noop, PAYLOAD)  # connects
            started = time.perf_counter()
            for _ in range(case.count):
                queue.enqueue(noop, PAYLOAD)
            return rate(case.count, time.perf_counter() - started)

    return await asyncio.to_thread(enqueue)


async def eta(contestant: Sitq, case: Case) -> Metrics:
    """How late after its `eta` a task starts in another process; etas are 50 to 500 ms ahead."""
    stamps = stamp_file(contestant)
    due = []
    async with serving(case, contestant.store):
        await asyncio.sleep(SETTLE_SECONDS)
        for number in range(WARM_UP + case.count):
            moment = datetime.now(UTC) + timedelta(seconds=random.uniform(*ETA_SECONDS))
            await contestant.enqueue_at(stamp, number, moment)
            due.append(round(moment.timestamp() * 1e6) * 1_000)
        started = await all_stamps(stamps, WARM_UP + case.count)
    return percentiles([entry.wall_ns - due[entry.number] for entry in started])
