"""A process of the benchmark: `python -m dev.bench.child MODE JOB`.

Modes: `measure` runs a workload and prints its figures; `serve` runs a worker until standard
input ends; `pace` has one run tasks at an even pace until then; `drain` waits for a line and
empties the store; `fill` makes a file for `backlog`.
"""

import asyncio
import json
import sys
from typing import Any

from dev.bench import contestants, workloads
from dev.bench.case import Job
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import tally


async def measure(contestant: Contestant, job: Job) -> None:
    """Print the figures of one round."""
    async with contestant:
        _say(await workloads.load(job.case.workload)(contestant, job.case))


async def serve(contestant: Contestant, job: Job) -> None:
    """Run a worker until the parent closes the pipe."""
    async with contestant, contestant.worker(job.case.concurrency):
        _say("ready")
        await _line()


async def pace(contestant: Contestant, job: Job) -> None:
    """Enqueue and run tasks until the parent closes the pipe."""
    from dev.bench.contestants.sitq import Sitq
    from dev.bench.workloads import host

    assert isinstance(contestant, Sitq)
    async with contestant:
        _say("ready")
        closed = asyncio.create_task(_line())
        await host.pace(contestant, job.case, closed.done)


async def drain(contestant: Contestant, job: Job) -> None:
    """Empty the store when told to; print the time it took and how many tasks ran here."""
    _say("ready")
    await _line()
    span = await contestant.drain(job.case.concurrency, job.case.count)
    _say([*span, tally.executions()])
    await _line()


async def fill(contestant: Contestant, job: Job) -> None:
    """Make the file that the workload `backlog` starts from."""
    from dev.bench.contestants.sitq import Sitq
    from dev.bench.workloads import scale

    assert isinstance(contestant, Sitq)
    async with contestant:
        _say(await scale.fill(contestant, job.case))


MODES = {"measure": measure, "serve": serve, "pace": pace, "drain": drain, "fill": fill}


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


async def _line() -> None:
    """Wait for a line from the parent, or for the end of its input."""
    await asyncio.to_thread(sys.stdin.readline)


async def main() -> None:
    mode, text = sys.argv[1:]
    job = Job.load(text)
    contestant = contestants.load(job.case.contestant)(job.store)
    await MODES[mode](contestant, job)


if __name__ == "__main__":
    asyncio.run(main())
