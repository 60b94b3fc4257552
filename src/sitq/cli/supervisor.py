"""``sitq worker``: keeps worker processes running, and ends with them."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from typing import Any

from sitq._delays import Delays
from sitq._signals import stop_signals
from sitq.cli.child import UNUSABLE_STATUS, ChildSettings

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 30.0
SAME_SIGNAL_SECONDS = 0.5
"""`timeout`, `uv run` and others signal a process and then its group, which comes to two signals."""

STEADY_SECONDS = 60.0
"""A process that lived this long has got over whatever its predecessor died of."""


class Supervisor:
    """Starts worker processes, starts another for each that ends by itself, and stops them all.

    Args:
        settings: What each process is told.
        processes: How many there are.
    """

    def __init__(self, settings: ChildSettings, processes: int) -> None:
        self._settings = settings
        self._processes = processes
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._lifeline = Lifeline()

    async def run(self) -> int:
        """Runs until SIGTERM or SIGINT, and until the processes have finished what they had in hand.

        A second signal kills them and ends this process at once, by the signal's default action.

        Returns:
            0 if every process ended well, else 1.
        """
        signals = stop_signals(
            self._stop,
            same_seconds=SAME_SIGNAL_SECONDS,
            same_number=False,
            on_second=self._kill_all,
            ignored_after=True,
        )
        with signals, contextlib.closing(self._lifeline):
            settings = dataclasses.replace(self._settings, lifeline=self._lifeline.reading)
            ended_well = await asyncio.gather(*(self._keep(n + 1, settings) for n in range(self._processes)))
        return 0 if all(ended_well) else 1

    async def _keep(self, number: int, settings: ChildSettings) -> bool:
        """Keeps one process running; returns whether the last one ended well."""
        settings = dataclasses.replace(settings, label=f"worker-{number}")
        pauses = Delays(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_child(number, settings)
            if self._stopping.is_set():
                # Killed by the SIGTERM that systemd sends to all of a service: it had not come so
                # far as to take a task.
                return status in (0, -signal.SIGTERM)
            if status == UNUSABLE_STATUS:
                logger.error("%s said why it cannot work: all of them end", settings.label)
                self._stop_all()
                return False
            if time.monotonic() - started >= STEADY_SECONDS:
                pauses.reset()
            pause = pauses.next()
            logger.warning("%s is started again in %.1f s", settings.label, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        return True

    async def _run_child(self, number: int, settings: ChildSettings) -> int | None:
        """Runs one process to its end; returns its status, ``None`` if it could not be started."""
        try:
            child = await _start(settings)
        except OSError as error:
            logger.error("%s cannot be started: %s", settings.label, error)
            return None
        self._children[number] = child
        status = await child.wait()
        del self._children[number]
        level = logging.INFO if status == 0 else logging.ERROR
        logger.log(level, "%s, pid %d, %s", settings.label, child.pid, _cause(status))
        return status

    def _stop(self, received: signal.Signals) -> None:
        logger.info("received %s: the workers finish what they have in hand", received.name)
        self._stop_all()

    def _stop_all(self) -> None:
        self._stopping.set()
        # Not a signal: systemd sends one to each process of a service, and a worker takes the second
        # one that it gets for the order to die.
        self._lifeline.cut()
        if self._lifeline.reading is None:
            for child in self._children.values():
                child.terminate()

    def _kill_all(self) -> bool:
        """Kills the processes; returns whether there were any.

        If there were none, the order to end is carried out: coming again, the signal must not make
        a death of the rest of the exit.
        """
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        return bool(self._children)


class Lifeline:
    """A pipe that nobody writes to: who holds its reading end learns that the supervisor ends.

    Also if it is killed and cannot say so.

    Attributes:
        reading: The descriptor to hand on; ``None`` if descriptors cannot be handed on.
    """

    def __init__(self) -> None:
        self.reading: int | None = None
        self._writing: int | None = None
        if os.name == "posix":
            self.reading, self._writing = os.pipe()

    def cut(self) -> None:
        """Lets the processes see the end."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def close(self) -> None:
        """Closes both ends."""
        self.cut()
        if self.reading is not None:
            os.close(self.reading)


async def check(settings: ChildSettings) -> bool:
    """Whether a worker process could load what it is told to; else it has said why.

    In a process of its own: an application's module may open files and start threads, of which the
    supervisor has no use.
    """
    settings = dataclasses.replace(settings, label="supervisor", check=True)
    child = await asyncio.create_subprocess_exec(*settings.command(), stdin=asyncio.subprocess.DEVNULL)
    return await child.wait() == 0


async def _start(settings: ChildSettings) -> asyncio.subprocess.Process:
    options: dict[str, Any] = {}
    if settings.lifeline is not None:
        # A group of its own: what is sent to ours, twice by some, is for the supervisor to judge.
        options = {"pass_fds": [settings.lifeline], "process_group": 0}
    child = await asyncio.create_subprocess_exec(*settings.command(), stdin=asyncio.subprocess.DEVNULL, **options)
    logger.info("%s, pid %d, started", settings.label, child.pid)
    return child


def _cause(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
