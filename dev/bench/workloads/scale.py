"""A large file, and more than one worker process: whether sitq keeps its speed."""

import asyncio
import os
import shutil
import sqlite3
import time
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from dev.bench import tasks
from dev.bench.case import Case, Job, Metrics, Store
from dev.bench.contestants.base import Span
from dev.bench.contestants.sitq import Sitq
from dev.bench.serve import Draining, draining, run
from dev.bench.tasks import PAYLOAD, noop, tally
from dev.bench.workloads.throughput import rate

FILL_SECONDS = 900.0
FILL_STEP = 20_000

FINISH = """
    UPDATE tasks
    SET status = 'success', attempt = 1, started_at = :now, finished_at = :now, claim = 1,
        result = (SELECT result FROM tasks WHERE status = 'success' LIMIT 1)
    WHERE finished_at IS NULL
"""


async def backlog(contestant: Sitq, case: Case) -> Metrics:
    """Run `count` tasks from a file that holds `backlog` more, either waiting or finished.

    All waiting tasks are due, those of the backlog included. Timed: from the worker's start
    until `count` tasks have run. `peak_mib` is the most memory that this process has taken,
    which did not fill the file itself.
    """
    await contestant.close()
    shutil.copyfile(await _template(case, contestant.store), contestant.path)
    # Else the first checkpoint would have to wait until the whole copy is on the disk.
    await asyncio.to_thread(os.sync)
    tally.expect(case.count)
    started = time.perf_counter()
    async with contestant.worker(case.concurrency):
        await tally.reached()
    return rate(case.count, tally.reached_at - started) | {"peak_mib": peak_mib()}


async def _template(case: Case, store: Store) -> Path:
    """The file that the case starts from, made once in a run by a process of its own."""
    path = store.shared / f"{case.state}-{case.backlog}.db"
    if not path.exists():
        await run("fill", Job(case, replace(store, folder=store.shared)), FILL_SECONDS)
        (store.shared / "sitq.db").rename(path)
    return path


async def fill(contestant: Sitq, case: Case) -> Metrics:
    """Make the file for `backlog`: its history first, then the tasks to run, then the rest.

    The history comes in steps, as it would by and by: else a large file would begin with the
    holes that a million waiting tasks have left behind in the index of what is due.
    """
    with closing(sqlite3.connect(contestant.path, isolation_level=None)) as connection:
        if case.state == "finished":
            await contestant.fill(noop, [PAYLOAD])
            tally.expect(1)
            await contestant.drain(1, 1)
            for count in _steps(case.backlog):
                await contestant.fill(noop, repeat(PAYLOAD, count))
                connection.execute(FINISH, {"now": time.time_ns() // 1_000})
        waiting = case.count + (case.backlog if case.state == "waiting" else 0)
        for count in _steps(waiting):
            await contestant.fill(noop, repeat(PAYLOAD, count))
        await contestant.close()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {}


def _steps(count: int) -> list[int]:
    return [min(FILL_STEP, count - first) for first in range(0, count, FILL_STEP)]


async def processes(contestant: Sitq, case: Case) -> Metrics:
    """One or two worker processes drain one file of `count` tasks.

    Timed: from the first worker's start, all processes being ready, to the last one's end.

    Raises:
        RuntimeError: when the tasks ran more or less than once each.
    """
    await contestant.fill(getattr(tasks, case.task), repeat(PAYLOAD, case.count))
    async with AsyncExitStack() as stack:
        workers: list[Draining] = [
            await stack.enter_async_context(draining(case, contestant.store)) for _ in range(case.processes)
        ]
        outcomes = await asyncio.gather(*(worker() for worker in workers))
    executions = sum(outcome.executions for outcome in outcomes)
    if executions != case.count:
        raise RuntimeError(f"{executions} executions of {case.count} tasks")
    span = Span(
        min(outcome.span.started for outcome in outcomes),
        max(outcome.span.finished for outcome in outcomes),
    )
    return rate(case.count, span.seconds)


def peak_mib() -> float:
    """The most memory this process has had resident, in MiB.

    `getrusage` will not do: on Linux its maximum includes the parent's, from before the exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")
