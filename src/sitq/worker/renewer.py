"""Renewing leases from a thread that a blocked event loop cannot starve."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.backends.leaving import Leaving
from sitq.errors import BackendError
from sitq.worker.extending import Events
from sitq.worker.held import HeldTask

logger = SafeLogger("sitq.worker")

TICKS_PER_LEASE = 4
"""A lease is renewed when a quarter of it is over, and three more ticks may fail before its end."""


class LoopCheck:
    """Finds out whether an event loop turns; used in another thread, at every tick.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked = self._answered = 0
        self._reported = -1

    def is_blocked(self) -> bool:
        """Returns whether the loop has not turned since the last call; once for each time that it is blocked."""
        if self._asked == self._answered:
            self._asked += 1
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._answer)
            return False
        if self._reported == self._asked:
            return False
        self._reported = self._asked
        return True

    def _answer(self) -> None:
        self._answered = self._asked


class Renewer:
    """Renews the leases of what a worker holds, and watches that worker's event loop.

    Args:
        backend: Where the leases are.
        lease: Their length in seconds.
        held: Gives the tasks that are held now; called in the thread.
        events: Notified of the tasks that are not held any more; called in the thread.

    Raises:
        RuntimeError: The system has no thread or no descriptors left for it.
    """

    def __init__(
        self, backend: Backend, lease: float, held: Callable[[], Collection[HeldTask]], events: Events
    ) -> None:
        self._backend = backend
        self._lease = lease
        self._held = held
        self._events = events
        self._loop_check = LoopCheck(asyncio.get_running_loop())
        self._ended = asyncio.Event()
        self._stopping = threading.Event()
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
        """Lets the thread end, after the renewal that may be under way."""
        self._stopping.set()

    async def stop(self) -> None:
        """Ends the thread, after the renewal that may be under way."""
        self.end()
        await self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        watched = self._loop_check.loop
        # Leases of a closed loop lapse, because nothing of it goes on: others take its tasks.
        while not self._stopping.wait(self._tick_seconds) and not watched.is_closed():
            try:
                self._tick()
            except BaseException as error:  # whatever it was: without this thread every lease would lapse
                logger.log(
                    logging.ERROR,
                    "renewing leases failed, trying again in %.1f seconds",
                    self._tick_seconds,
                    exc_info=error,
                )
        try:
            self._leave()
        finally:
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed
                watched.call_soon_threadsafe(self._ended.set)

    def _leave(self) -> None:
        try:
            if isinstance(self._backend, Leaving):
                self._loop.run_until_complete(self._backend.leave())
        except BaseException as error:
            logger.warning("the backend did not let go of the renewal's event loop: %s", error)
        finally:
            self._loop.close()

    def _tick(self) -> None:
        if self._loop_check.is_blocked():
            self._warn_of_block()
        now = time.monotonic()  # just before the lease is asked for: it begins no earlier
        due = [held for held in self._held() if now - held.renewed >= self._tick_seconds]
        if due:
            self._loop.run_until_complete(self._renew(due, now))

    async def _renew(self, due: Sequence[HeldTask], now: float) -> None:
        try:
            not_held = await self._backend.renew([held.task for held in due], lease=self._lease)
        except Exception as error:
            level = logging.WARNING if isinstance(error, BackendError) else logging.ERROR
            logger.log(level, "renewing the leases of %d tasks failed: %s", len(due), error)
            return
        claims = {(task.key, task.claim) for task in not_held}
        for held in due:
            if (held.task.key, held.task.claim) not in claims:
                held.renewed = now
            elif not held.not_held and not (held.aio is not None and held.aio.done()):
                held.not_held = True
                if held.run is not None:
                    held.run.not_held = True
                reason = "it may be run elsewhere, and what this run returns will change nothing"
                self._events.emit("not_held", held.task, reason=reason)

    def _warn_of_block(self) -> None:
        running = asyncio.current_task(self._loop_check.loop)
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
