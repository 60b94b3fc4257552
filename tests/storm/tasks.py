"""The tasks of the storms: each says in the log, which survives it, that it ran."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from sitq import current_task
from tests.support import Runs, until

type Run = tuple[int, int, int]
"""What a task logs and returns: its number, its attempt, and the process that ran it."""


def say(runs: Runs, number: int) -> Run:
    """Logs a run and returns what was logged."""
    run = (number, current_task().attempt, os.getpid())
    runs.add(" ".join(map(str, run)))
    return run


async def work_async(runs: Runs, number: int, seconds: float) -> Run:
    """Takes up to ``seconds`` on the loop."""
    run = say(runs, number)
    await asyncio.sleep(random.uniform(0, seconds))  # work of some length
    return run


def work_plain(runs: Runs, number: int, seconds: float) -> Run:
    """Takes up to ``seconds`` in a thread."""
    run = say(runs, number)
    time.sleep(random.uniform(0, seconds))  # work of some length
    return run


def in_a_batch(batch: str, size: int) -> None:
    """Knows the batch in which it was enqueued, and how large that is."""


async def kill_worker(runs: Runs, number: int) -> None:
    """Ends the process that runs it, as a crash or the kernel would."""
    say(runs, number)
    os.kill(os.getpid(), signal.SIGKILL)


async def linger_async(runs: Runs, number: int, gate: Path, fails: bool) -> str:
    """Waits for a file, in its first attempt."""
    _, attempt, _ = say(runs, number)
    if attempt == 1:
        await until(gate.exists)
    if fails and attempt == 1:
        raise ValueError("too late")
    return f"attempt {attempt}"


def linger_plain(runs: Runs, number: int, gate: Path, fails: bool) -> str:
    """Waits for a file, in its first attempt."""
    return asyncio.run(linger_async(runs, number, gate, fails))


def runs_of(runs: Runs) -> list[Run]:
    """Returns what was logged."""
    return [tuple(map(int, line.split())) for line in runs.lines()]  # type: ignore[misc]  # three of them
