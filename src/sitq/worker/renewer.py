"""Renewing leases from a thread that a blocked event loop cannot starve."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.errors import BackendError
from sitq.models import ReservedTask

logger = SafeLogger("sitq.worker")

TICKS_PER_LEASE = 4
"""A lease is renewed when a quarter of it is over, and three more ticks may fail before its end."""


@dataclass(slots=True, eq=False)
class HeldTask:
    """A task that the worker holds, and how long it may be sure of that.

    Attributes:
        task: The task.
        renewed: The monotonic time at which its current lease had not begun yet.
        lost: Whether another may hold it by now.
        aio: The asyncio task that runs it; ``None`` before it has begun.
        in_thread: Whether a plain function of its own is under way.
    """

    task: ReservedTask
    renewed: float
    lost: bool = False
    aio: asyncio.Task[None] | None = None
    in_thread: bool = False


class Renewer:
    """Renews the leases of what a worker holds, and watches that worker's event loop.

    Args:
        backend: Where the leases are.
        lease: Their length in seconds.
        held: Gives the tasks that are held now; called in the thread.

    Raises:
        RuntimeError: The system has no thread or no descriptors left for it.
    """

    def __init__(self, backend: Backend, lease: float, held: Callable[[], Collection[HeldTask]]) -> None:
        self._backend = backend
        self._lease = lease
        self._held = held
        self._watched = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stopping = threading.Event()
        self._asked = self._answered = 0
        self._warned = -1
        self._tick_seconds = lease / TICKS_PER_LEASE
        self._thread = threading.Thread(target=self._run, name="sitq-renewal", daemon=True)
        # All that a renewal needs is made here: what is missing then is an error of start(), and not
        # one that comes when there are leases to lose.
        try:
            self._loop = asyncio.new_event_loop()
            try:
                self._thread.start()
            except BaseException:
                self._loop.close()
                raise
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"the worker cannot renew leases: it needs a thread and an event loop for it ({error})"
            ) from error

    def end(self) -> None:
        """Tells the thread to end, after the renewal that may be under way."""
        self._stopping.set()

    async def stop(self) -> None:
        """Ends the thread, after the renewal that may be under way."""
        self.end()
        await self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        # Leases of a closed loop lapse, for nothing of it goes on: others take its tasks.
        while not self._stopping.wait(self._tick_seconds) and not self._watched.is_closed():
            try:
                self._tick()
            except BaseException as error:  # whatever it was: without this thread every lease would lapse
                logger.log(
                    logging.ERROR,
                    "renewing leases failed, trying again in %.1f seconds",
                    self._tick_seconds,
                    exc_info=error,
                )
        self._loop.close()
        with contextlib.suppress(RuntimeError):  # the worker's loop is closed
            self._watched.call_soon_threadsafe(self._ended.set)

    def _tick(self) -> None:
        self._ask_loop()
        # Read before the hop: the lease cannot have begun earlier.
        now = time.monotonic()
        due = [held for held in self._held() if now - held.renewed >= self._tick_seconds]
        if due:
            self._loop.run_until_complete(self._renew(due, now))

    async def _renew(self, due: Sequence[HeldTask], now: float) -> None:
        try:
            lost = await self._backend.renew([held.task for held in due], lease=self._lease)
        except Exception as error:
            level = logging.WARNING if isinstance(error, BackendError) else logging.ERROR
            logger.log(level, "renewing the leases of %d tasks failed: %s", len(due), error)
            return
        refused = {(task.key, task.claim) for task in lost}
        for held in due:
            if (held.task.key, held.task.claim) not in refused:
                held.renewed = now
            elif not held.lost and not (held.aio is not None and held.aio.done()):
                held.lost = True
                logger.warning(
                    "task %s (%s) lost its lease in attempt %d and may be run elsewhere; "
                    "what this run returns will change nothing",
                    held.task.task_id,
                    held.task.name,
                    held.task.attempt,
                )

    def _ask_loop(self) -> None:
        """Warns, once, when the loop did not turn since the last tick."""
        if self._asked == self._answered:
            self._asked += 1
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._watched.call_soon_threadsafe(self._answer)
        elif self._warned != self._asked:
            self._warned = self._asked
            running = asyncio.current_task(self._watched)
            blocking = [
                f"task {held.task.task_id} ({held.task.name})"
                for held in self._held()
                if held.aio is not None and held.aio is running
            ]
            logger.warning(
                "%s has blocked the event loop for %.1f seconds or longer: no other task of this "
                "worker moves; use a plain function, which gets a thread, or await",
                blocking[0] if blocking else "something outside of the worker's tasks",
                self._tick_seconds,
            )

    def _answer(self) -> None:
        self._answered = self._asked
