"""What the tests of the command line share: processes, a file with failures in it, tasks."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.cli.commands import root
from tests.support import DEADLINE_SECONDS, ROOT, until

TASKS = "tests.cli.support"
"""Where tasks are imported from, in commands that run in another folder."""


def ok(value: int = 1) -> int:
    """A task that succeeds."""
    return value


def refuse(what: str) -> None:
    """A task that fails."""
    raise ConnectionError(f"{what} was refused")


def colour() -> None:
    """A task whose error would change the colours of a terminal, and takes more than one line."""
    raise ValueError("\x1b[31mred\nsecond line")


def kill_worker(marker: str) -> str:
    """A task that kills its process the first time."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def wait_for(marker: str) -> str:
    """A plain task that says that it runs, and ends when a file is there."""
    Path(f"{marker}.running").touch()
    while not Path(marker).exists():
        signal.sigtimedwait([], 0.01)  # it is there to block, and a file sends no event
    return "waited"


async def leave_thread(marker: str) -> None:
    """A task that leaves a thread behind when it is cancelled."""
    await asyncio.to_thread(wait_for, marker)


async def never() -> None:
    """A task that ends when it is cancelled."""
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Filled:
    """A queue file with a task of each kind; the ids by what they are."""

    path: Path
    success: str
    failed: str
    coloured: str
    waiting: str
    scheduled: str
    cancelled: str

    @property
    def ids(self) -> list[str]:
        """Returns the ids, the newest first."""
        names = ("cancelled", "scheduled", "waiting", "coloured", "failed", "success")
        return [getattr(self, name) for name in names]


async def fill(path: Path) -> Filled:
    """Makes a queue file with a task of each kind but a running one."""
    backend = SQLiteBackend(path, durability="normal")
    async with TaskQueue(backend) as queue:
        success, failed = await queue.enqueue(ok, 41), await queue.enqueue(refuse, "the mail")
        coloured = await queue.enqueue(colour)
        await Worker(backend).drain()
        waiting = await queue.enqueue(ok, 42)
        scheduled = await queue.enqueue(ok, eta=datetime.now(UTC) + timedelta(hours=5))
        cancelled = await queue.enqueue(ok)
        await queue.cancel(cancelled)
    return Filled(path, success, failed, coloured, waiting, scheduled, cancelled)


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a command: tests can be imported, and nothing is said of a terminal."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM")
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"} | more


def start(*arguments: object, encoding: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts ``sitq`` with its output piped, and encoded as it is told."""
    return subprocess.Popen(
        [sys.executable, "-m", "sitq", *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": encoding} | options,
        env=environment(**({} if encoding is None else {"PYTHONIOENCODING": encoding})),
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.output)


def run(*arguments: object, **options: Any) -> Ended:
    """Runs ``sitq`` to its end."""
    process = start(*arguments, **options)
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return Ended(process.returncode, output, errors)


def ask(*arguments: object) -> str:
    """Runs ``sitq``, which must exit with status 0 and say nothing to stderr; returns its output."""
    ended = run(*arguments)
    assert (ended.status, ended.errors) == (0, "")
    return ended.output


@contextlib.contextmanager
def in_terminal(
    *arguments: object, columns: int = 80, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs ``sitq`` in a terminal; gives the process and a descriptor to read from."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sitq", *map(str, arguments)],
        stdout=follower,
        env=environment(COLUMNS=str(columns), TERM="xterm", **variables),
    )
    os.close(follower)
    try:
        yield process, leader
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def without_codes(text: str) -> str:
    """Returns what a terminal was sent without what is for it alone."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def run_in_terminal(*arguments: object, columns: int = 80, **variables: str) -> tuple[int, str]:
    """Runs ``sitq`` in a terminal to its end; returns its status and the text that it wrote."""
    output = b""
    with in_terminal(*arguments, columns=columns, **variables) as (process, leader):
        with contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
            while piece := os.read(leader, 65536):
                output += piece
        return process.wait(), without_codes(output.decode())


def ask_here(*arguments: object) -> str:
    """The same in this process, which takes a tenth of the time."""
    result = CliRunner().invoke(root, [*map(str, arguments)])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


MODULE = (sys.executable, "-m", "sitq")
SCRIPT = (Path(sys.executable).parent / "sitq",)


class RunningWorker:
    """A ``sitq worker`` whose log goes to a file, so that it can be read while it runs."""

    def __init__(self, log: Path, *arguments: object, command: Sequence[object], **options: Any) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*map(str, command), "worker", *map(str, arguments)],
                stderr=stderr,
                start_new_session=True,
                **options,
            )

    @property
    def log(self) -> str:
        """What was logged so far."""
        return self._log.read_text()

    def pids(self) -> list[int]:
        """Returns the ids of the processes that were started so far."""
        words = [line.split() for line in self.log.splitlines() if line.endswith(", started")]
        return [int(line[line.index("pid") + 1].rstrip(",")) for line in words]

    async def logged(self, words: str, times: int = 1) -> None:
        """Returns when something was logged so many times."""
        await until(lambda: self.log.count(words) >= times)

    async def ready(self, processes: int = 1) -> None:
        """Returns when so many processes have begun to work since the start."""
        await self.logged(": worker started, ", processes)

    async def ended(self) -> int:
        """Returns the status, when the process has ended."""
        await until(lambda: self.process.poll() is not None)
        status: int = self.process.returncode
        return status

    def end(self) -> None:
        """Ends what is left of it, whatever became of the test."""
        for pid in (self.process.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def working(folder: Path, *arguments: object) -> Iterator[RunningWorker]:
    """Runs ``sitq worker`` for the length of the block."""
    worker = RunningWorker(folder / "worker.log", *arguments, command=MODULE, env=environment(), cwd=ROOT)
    try:
        yield worker
    finally:
        worker.end()


def is_running(pid: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
