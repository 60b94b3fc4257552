"""What several test files share: tasks, a log of executions, processes, a look into the file."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 30.0
"""How long a test waits for an event before it fails; never a measure of speed."""


@dataclass(frozen=True)
class Runs:
    """An append-only file with a line for each execution; can be passed to a task.

    One write of a short line to a file opened with O_APPEND is atomic, so it is safe to share
    between processes, and what was written survives the death of the writer.
    """

    path: Path

    def add(self, line: object) -> None:
        """Appends a line."""
        handle = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)

    def lines(self) -> list[str]:
        """Returns the complete lines so far."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def count(self) -> Counter[str]:
        """Returns how often each line was written."""
        return Counter(self.lines())


async def add(a: int, b: int) -> int:
    """A coroutine task."""
    return a + b


def multiply(a: int, b: int) -> int:
    """A plain task."""
    return a * b


async def log_async(runs: Runs, line: object) -> None:
    """Logs that it ran."""
    runs.add(line)


def log_plain(runs: Runs, line: object) -> None:
    """Logs that it ran."""
    runs.add(line)


async def until(condition: Callable[[], object]) -> None:
    """Returns when ``condition`` holds; for what another process does, which sends no event."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.01)


def rows(path: Path | str, sql: str = "SELECT * FROM tasks", *parameters: Any) -> list[dict[str, Any]]:
    """Looks into a queue file with a connection of its own."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql, parameters)]
    finally:
        connection.close()


def start_python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Starts a Python process that can import sitq and tests; its output is piped."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        **options,
    )
