"""Processes that can be killed by the dozen: forked from one that has everything imported.

A fork of a small process without threads takes a few milliseconds, a new interpreter a quarter of
a second: what is killed is then mostly work, and seldom a process that is still starting.
"""

import asyncio
import atexit
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sitq import NewTask, ReservedTask, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome, Reservation
from tests.faults import on_connection
from tests.storm.tasks import in_a_batch, work_async
from tests.support import DEADLINE_SECONDS, Runs, start_python

PROBLEM = "Traceback"


def die(*_: object) -> NoReturn:
    """Ends this process, here and now, as a crash or the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class DoomedBackend(SQLiteBackend):
    """Ends its process in the middle of a call: ``dies`` says before or after which."""

    dies = ""

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Reserves, and may die with what it got."""
        found = await super().reserve(limit, lease=lease, alone=alone)
        if found.tasks and self.dies == "after reserve":
            die()
        return found

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records, and may die before or after that."""
        if self.dies == "before mark_success":
            die()
        lost = await super().mark_success(outcomes)
        if self.dies == "after mark_success":
            die()
        return lost


async def serve(path: str, settings: dict[str, Any]) -> None:
    """A worker's process: serves until SIGTERM."""
    backend = DoomedBackend(path, busy_timeout=settings.pop("busy_timeout", 5.0))
    backend.dies = settings.pop("dies", "")
    await Worker(backend, **settings).run()


async def die_in_enqueue(path: str, settings: dict[str, Any]) -> None:
    """A producer's process that dies while a batch of ``size`` is stored, at number ``victim``."""
    backend = SQLiteBackend(path)
    await backend.connect()

    def arm(connection: sqlite3.Connection) -> None:
        connection.create_function("die", 0, die)
        connection.execute(
            f"CREATE TEMP TRIGGER die AFTER INSERT ON main.tasks WHEN new.task_id = 'new-{settings['victim']}' "
            "BEGIN SELECT die(); END"
        )

    await on_connection(backend, arm)
    await backend.enqueue([NewTask(f"new-{n}", b"") for n in range(settings["size"])])


async def die_after_enqueue(path: str, settings: dict[str, Any]) -> None:
    """A producer's process that dies as soon as a task was acknowledged."""
    backend = SQLiteBackend(path, durability=settings["durability"])
    await backend.connect()
    await backend.enqueue([NewTask("acknowledged", b"")])
    die()


async def drain(path: str, settings: dict[str, Any]) -> None:
    """A worker's process that ends when there is nothing left."""
    await Worker(SQLiteBackend(path), **settings).drain()


async def produce(path: str, settings: dict[str, Any]) -> None:
    """A producer's process: enqueues for ever, one by one and in batches, and logs each id that it was given."""
    acknowledged, runs = Runs(Path(settings["acknowledged"])), Runs(Path(settings["runs"]))
    numbers = itertools.count()
    async with TaskQueue(SQLiteBackend(path)) as queue:
        while True:
            acknowledged.add(await queue.enqueue(work_async, runs, next(numbers), 0.0))
            size = random.randint(2, 150)
            call = functools.partial(in_a_batch, f"{os.getpid()}-{next(numbers)}", size)
            for task_id in await queue.enqueue_many([call] * size):
                acknowledged.add(task_id)


ROLES: dict[str, Callable[[str, dict[str, Any]], Coroutine[Any, Any, None]]] = {
    "serve": serve,
    "drain": drain,
    "produce": produce,
    "die_in_enqueue": die_in_enqueue,
    "die_after_enqueue": die_after_enqueue,
}


def _live(job: dict[str, Any]) -> NoReturn:
    """The life of a forked process."""
    status = 1
    try:
        # Whatever it prints, a traceback at its end included, is looked for in the log.
        log = os.open(job["log"], os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.WARNING, format=f"{os.getpid()} %(message)s")
        asyncio.run(ROLES[job["role"]](job["path"], job["settings"]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def nursery() -> None:
    """The process that forks: for each line on stdin one, whose pid it answers with."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    alive, kept = os.pipe()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(kept)
            threading.Thread(target=_follow, args=(alive,), daemon=True).start()
            _live(json.loads(line))
        print(pid, flush=True)


def _follow(alive: int) -> None:
    """Ends this process after the one that forked it, so that a test that was killed leaves nothing running."""
    os.read(alive, 1)
    os._exit(1)


@functools.cache
def _shared_nursery() -> subprocess.Popen[str]:
    """The nursery of all fleets, which ends with this process."""
    process = start_python("from tests.storm.fleet import nursery; nursery()", stdin=subprocess.PIPE)
    atexit.register(process.communicate)
    return process


class Fleet:
    """Some processes of one role on one file.

    Attributes:
        pids: Those that were started and not ended by the fleet.
        kills: How many were ended by SIGKILL.
    """

    def __init__(self, path: Path, role: str, **settings: Any) -> None:
        self.log = path.with_name(f"{role}.log")
        self._job = {"role": role, "path": str(path), "settings": settings, "log": str(self.log)}
        self._nursery = _shared_nursery()
        self.pids: list[int] = []
        self.kills = 0

    def start(self, count: int = 1) -> None:
        """Starts some processes."""
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        for _ in range(count):
            self._nursery.stdin.write(json.dumps(self._job) + "\n")
            self._nursery.stdin.flush()
            self.pids.append(int(self._nursery.stdout.readline()))

    def signal(self, pid: int, number: int) -> None:
        """Sends a signal; one that has ended is nobody's any more."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def freeze(self, pid: int, path: Path) -> None:
        """Stops a process, at a moment when it does not hold the file's lock, which nobody could get then."""
        while True:
            self.signal(pid, signal.SIGSTOP)
            looking = sqlite3.connect(path, timeout=1.0, isolation_level=None)
            try:
                looking.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                self.signal(pid, signal.SIGCONT)
            else:
                return
            finally:
                looking.close()

    def kill_one(self) -> int:
        """Kills one of them, whatever it is doing, and forgets it."""
        pid = self.pids.pop(random.randrange(len(self.pids)))
        self.signal(pid, signal.SIGKILL)
        self.kills += 1
        return pid

    def is_running(self, pid: int) -> bool:
        """Whether a process has not ended yet."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def running(self) -> list[int]:
        """Returns those that have not ended, and forgets the others."""
        self.pids = [pid for pid in self.pids if self.is_running(pid)]
        return self.pids

    def logged(self) -> str:
        """Returns what they printed and logged."""
        return self.log.read_text() if self.log.exists() else ""

    def close(self) -> None:
        """Ends all of them."""
        for pid in self.pids:
            self.signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.01)  # a process that ends sends no event


@contextlib.contextmanager
def fleet(path: Path, role: str, **settings: Any) -> Iterator[Fleet]:
    """A fleet without processes, all of which are ended with the block; none of them may have gone wrong."""
    some = Fleet(path, role, **settings)
    try:
        yield some
    finally:
        some.close()
    assert PROBLEM not in some.logged()
