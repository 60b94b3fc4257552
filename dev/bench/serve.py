"""Processes beside the measuring one: starting them, and talking to them over their pipes."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dev.bench.case import Case, Job, Store
from dev.bench.contestants.base import Span

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0
STOP_SECONDS = 30.0
DRAIN_SECONDS = 600.0


class ChildError(Exception):
    """A process has failed; the message is the last line of its standard error."""


class Outcome(NamedTuple):
    """What a worker process did: the time it took and the executions it counted."""

    span: Span
    executions: int


type Draining = Callable[[], Awaitable[Outcome]]


def command(mode: str, job: Job) -> list[str]:
    """The command line of a process that does `job` in the given mode of `child.py`."""
    return [sys.executable, "-m", "dev.bench.child", mode, job.dump()]


async def run(mode: str, job: Job, seconds: float) -> Any:
    """Run a process to its end; give what it printed last.

    Raises:
        ChildError: when it exits with an error or takes longer than `seconds`.
    """
    async with _started(mode, job) as process:
        try:
            async with asyncio.timeout(seconds):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise ChildError(f"not finished after {seconds:.0f} s") from error
    lines = output.decode().splitlines()
    if process.returncode or not lines:
        raise ChildError(_last_line(errors) or f"exit code {process.returncode}")
    return json.loads(lines[-1])


@asynccontextmanager
async def serving(case: Case, store: Store, mode: str = "serve") -> AsyncGenerator[None]:
    """A worker process of the case's contestant: running inside the block, stopped after it."""
    async with _started(mode, Job(case, store)) as process:
        await _answer(process, READY_SECONDS)
        yield
        await _finish(process)


@asynccontextmanager
async def draining(case: Case, store: Store) -> AsyncGenerator[Draining]:
    """A worker process that is ready to drain the store, and does it when called."""
    async with _started("drain", Job(case, store)) as process:
        await _answer(process, READY_SECONDS)

        async def drain() -> Outcome:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            started, finished, executions = await _answer(process, DRAIN_SECONDS)
            return Outcome(Span(started, finished), executions)

        yield drain
        await _finish(process)


@asynccontextmanager
async def _started(mode: str, job: Job) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command(mode, job),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _answer(process: asyncio.subprocess.Process, seconds: float) -> Any:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(seconds):
        line = await process.stdout.readline()
        if not line:
            raise ChildError(_last_line(await process.stderr.read()) or "no answer")
    return json.loads(line)


async def _finish(process: asyncio.subprocess.Process) -> None:
    """Close the process's standard input, on which it stops, and wait for its end."""
    async with asyncio.timeout(STOP_SECONDS):
        _, errors = await process.communicate()
    if process.returncode:
        raise ChildError(_last_line(errors) or f"exit code {process.returncode}")


def without_paths(text: str) -> str:
    """A message without the folders of this machine, fit for a file that others read."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", text)


def _last_line(errors: bytes) -> str:
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return without_paths(lines[-1].strip()) if lines else ""
