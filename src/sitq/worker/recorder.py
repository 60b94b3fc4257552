"""Recording how tasks ended, until the backend takes it."""

import asyncio
import functools
import os
import socket
import time
from collections.abc import Callable, Iterable

from sitq._delays import Delays
from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.errors import (
    BackendCorruptError,
    BackendError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendVersionError,
)
from sitq.models import Outcome, ReservedTask
from sitq.worker.extending import Events
from sitq.worker.held import HeldTask
from sitq.worker.settings import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS

logger = SafeLogger("sitq.worker")

MAX_GROUPS = 2
"""How many groups of outcomes may be under way: one that the backend is busy with, and the next one."""

RELEASE_TRIES = 3

OF_THE_STORE = (BackendUnavailableError, BackendReadOnlyError, BackendCorruptError, BackendVersionError)
"""Errors that say nothing against an outcome: the others may be about what one of a group holds."""


class Recorder:
    """Hands outcomes to a backend, many at a time, while the worker goes on.

    Args:
        backend: Where they are recorded.
        on_recorded: Called with the tasks that need not be held any more; there may be room for another group.
        events: Notified of the tasks that were not held any more.

    Attributes:
        added: How many outcomes it was given.
    """

    def __init__(self, backend: Backend, on_recorded: Callable[[Iterable[HeldTask]], None], events: Events) -> None:
        self._backend = backend
        self._on_recorded = on_recorded
        self._events = events
        self.added = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[HeldTask, Outcome]] = []
        self._groups: set[asyncio.Task[None]] = set()
        self._under_way = 0  # groups that are not recorded yet
        self._failed = 0  # outcomes that the backend has not taken at the first try
        self._give_up_at: float | None = None

    @property
    def behind(self) -> int:
        """How many outcomes keep a slot taken, because the backend is not busy with them yet."""
        return len(self._waiting) + self._failed

    @property
    def idle(self) -> bool:
        """Whether everything is recorded, or given up."""
        return not (self._waiting or self._under_way)

    def add(self, held: HeldTask, outcome: Outcome) -> None:
        """Takes an outcome; :meth:`flush` hands it on."""
        self.added += 1
        self._waiting.append((held, outcome))

    def flush(self) -> None:
        """Hands the outcomes so far to the backend, unless it is behind with earlier ones."""
        if self._waiting and self._under_way < MAX_GROUPS:
            group, self._waiting = self._waiting, []
            # Eager: it is in the backend's queue before the reservation that follows.
            self._under_way += 1
            task = asyncio.Task(self._record(group), loop=self._loop, eager_start=True)
            self._groups.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._groups.discard)

    def give_up_after(self, seconds: float) -> None:
        """Tries no longer than that; what is not recorded then will run again."""
        self._give_up_at = time.monotonic() + seconds

    async def _record(self, group: list[tuple[HeldTask, Outcome]]) -> None:
        delays, failed = Delays(FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS), 0
        try:
            while True:
                try:
                    self._report(await self._mark([outcome for _, outcome in group]))
                    break
                except Exception as error:
                    if not isinstance(error, OF_THE_STORE):
                        await self._record_apart(group)
                        if not group:
                            break
                    self._failed += len(group) - failed
                    failed = len(group)
                    if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                        logger.error("%d outcomes are not recorded; their tasks will run again: %s", failed, error)
                        break
                    logger.warning("recording %d outcomes failed, trying again: %s", failed, error)
                await asyncio.sleep(delays.next())
        except BaseException:
            # The loop ends, and nobody stopped the worker: its end has the last word.
            self._waiting[:0] = group
            group = []
            raise
        finally:
            self._failed -= failed
            self._under_way -= 1
            self._on_recorded(held for held, _ in group)

    async def _mark(self, outcomes: list[Outcome]) -> Iterable[ReservedTask]:
        failures = [_located(outcome) for outcome in outcomes if outcome.error is not None]
        if not failures:
            return await self._backend.mark_success(outcomes)
        calls = [self._backend.mark_failure(failures)]
        if len(failures) < len(outcomes):
            calls.append(self._backend.mark_success([outcome for outcome in outcomes if outcome.error is None]))
        # Both are queued before the reservation that follows, which would find their slots taken otherwise.
        marking = [asyncio.Task(call, loop=self._loop, eager_start=True) for call in calls]
        return [task for not_held in await asyncio.gather(*marking) for task in not_held]

    async def _record_apart(self, group: list[tuple[HeldTask, Outcome]]) -> None:
        """Records outcomes one by one and removes them from ``group``: one that is refused must keep no other one."""
        for held, outcome in group.copy():
            try:
                self._report(await self._mark([outcome]))
            except Exception as error:
                if not (outcome.then and (isinstance(error, (ValueError, TypeError)) or type(error) is BackendError)):
                    continue
                # For what is to be stored with it. The task has run, and is not run again for that.
                task = outcome.task
                logger.error("the outcome of task %s (%s) is refused by its backend", task.task_id, task.name)
                reason = f"{type(error).__name__}: the outcome was refused: {error}"
                self._report(await self._mark([Outcome(task, error=reason, ran_on=outcome.ran_on)]))
            group.remove((held, outcome))
            self._on_recorded((held,))

    def _report(self, not_held: Iterable[ReservedTask]) -> None:
        for task in not_held:
            self._events.emit("not_held", task, reason="what it returned changes nothing")


def _located(outcome: Outcome) -> Outcome:
    """Says of a failure that it was in this process, unless an executor knows better."""
    return outcome if outcome.ran_on else outcome._replace(ran_on=_here(os.getpid()))


@functools.cache
def _here(pid: int) -> str:
    return f"{socket.gethostname()}, pid {pid}"


async def give_back(backend: Backend, tasks: list[ReservedTask]) -> None:
    """Releases ``tasks`` and empties the list; tried a few times.

    What is left in the list is tried again with what is given back next, unless its lease ends before.
    """
    for again in reversed(range(RELEASE_TRIES if tasks else 0)):
        giving = tasks.copy()
        try:
            await backend.release(giving)
            del tasks[: len(giving)]
            return
        except Exception as error:
            logger.warning(
                "giving back %d tasks failed, %s: %s",
                len(giving),
                "trying again" if again else "their leases will end",
                error,
            )
