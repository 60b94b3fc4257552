"""Ending runs that somebody asked to end, or whose tasks were cut."""

import asyncio
import contextlib
import logging
import math
import time
from contextlib import AbstractAsyncContextManager

from sitq._checks import check_positive_seconds
from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.backends.cancelling import Cancelling as CanCancel
from sitq.errors import ASKED, CUT, BackendError
from sitq.extensions.base import FailedRun, Run, Runs
from sitq.extensions.looking import Looking

logger = SafeLogger("sitq.worker")

DEAF_SECONDS = 2.0
"""How long a run that was asked to end may go on before it is warned of."""


class Cancelling:
    """Ends what :meth:`TaskQueue.cancel` asks to end, or has cut; every worker has this extension.

    A coroutine is cancelled. A plain function in a thread cannot be: it finds out by ``sitq.running.check()``.
    If the run returns a value all the same, its task has succeeded; whatever it raises, its task is cancelled.
    A task that was cut has ended for everybody; its code is ended after the next renewal of its lease.

    Args:
        every: Seconds between two looks, while something runs.

    Raises:
        TypeError: ``every`` is not a number.
        ValueError: ``every`` is not more than 0.
    """

    def __init__(self, *, every: float = 0.5) -> None:
        self._every = check_positive_seconds("every", every)

    def beside(self, backend: Backend, runs: Runs) -> AbstractAsyncContextManager[object]:
        """Looks for requests for as long as the worker runs."""
        return _Looking(self._every, backend, runs) if isinstance(backend, CanCancel) else contextlib.nullcontext()

    def after_failure(self, failure: FailedRun) -> None:
        """Decides that a task that was asked to end, and raised, is cancelled."""
        if failure.run is not None and failure.run.asked is not None and failure.kind != "result":
            failure.cancelled, failure.shown = True, failure.run.asked


class _Looking(Looking):
    """Looks for runs that are to be ended, for one start of a worker."""

    def __init__(self, every: float, backend: CanCancel, runs: Runs) -> None:
        super().__init__(every, self._begin)
        self._backend = backend
        self._runs = runs
        self._asking: asyncio.Task[None] | None = None
        self._ended: dict[Run, float] = {}  # those that were asked, and when they are warned of

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__(*_)
        if self._asking is not None:
            self._asking.cancel()

    def _begin(self) -> None:
        runs = self._runs()
        self._warn_of_deaf()
        if runs and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)

    def _asked(self, asking: asyncio.Task[None]) -> None:
        self._asking = None
        if not asking.cancelled() and (error := asking.exception()) is not None:
            level = logging.WARNING if isinstance(error, BackendError) else logging.ERROR
            logger.log(level, "looking for tasks that are to be ended failed, trying again: %s", error)

    async def _ask(self) -> None:
        asked = set(await self._backend.asked())
        for run in self._runs() if asked else ():
            if (run.task.key, run.task.claim) in asked:
                self._end(run, ASKED)
        for run in self._runs():
            # Because its lease has ended, perhaps, and then it goes on: only what was cut is to be ended.
            if run.not_held and run.asked is None and await self._is_cut(run):
                self._end(run, CUT)

    async def _is_cut(self, run: Run) -> bool:
        assert isinstance(self._backend, Backend)
        found = await self._backend.get_result(run.task.task_id)
        return found is not None and found.status == "cancelled"

    def _end(self, run: Run, reason: str) -> None:
        if run not in self._ended:
            self._ended[run] = time.monotonic() + DEAF_SECONDS
            end(run, reason)

    def _warn_of_deaf(self) -> None:
        if not self._ended:
            return
        now = time.monotonic()
        self._ended = {run: moment for run, moment in self._ended.items() if not run.is_over}
        for run, moment in self._ended.items():
            if moment <= now:
                self._ended[run] = math.inf
                message = "task %s (%s) was asked to end %g seconds ago and goes on; it keeps its slot until it ends"
                logger.warning(message, run.task.task_id, run.task.name, DEAF_SECONDS)


def end(run: Run, reason: str) -> None:
    """Asks a run to end, once; called in its event loop."""
    if run.asked is None:
        run.asked = reason
        if run.aio is not None and not run.in_thread:
            run.aio.cancel()
