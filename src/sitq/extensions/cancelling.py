"""Ending runs that somebody asked to end, or whose tasks were cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sitq._checks import check_positive_seconds
from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.backends.cancelling import Cancelling as CanCancel
from sitq.errors import ASKED, BackendError
from sitq.extensions.base import FailedRun, Run, Runs
from sitq.serializers.calls import is_async

logger = SafeLogger("sitq.worker")


class Cancelling:
    """Ends what :meth:`TaskQueue.cancel` asks to end; every worker has this extension.

    A coroutine is cancelled. A plain function in a thread cannot be: it finds out by ``sitq.running.check()``.
    If the run returns a value all the same, its task has succeeded; whatever it raises, its task is cancelled.

    Args:
        every: Seconds between two looks, while something runs.

    Raises:
        TypeError: ``every`` is not a number.
        ValueError: ``every`` is not more than 0.
    """

    def __init__(self, *, every: float = 1.0) -> None:
        self._every = check_positive_seconds("every", every)

    def beside(self, backend: Backend, runs: Runs) -> AbstractAsyncContextManager[object]:
        """Looks for requests for as long as the worker runs."""
        return self._looking(backend, runs) if isinstance(backend, CanCancel) else contextlib.nullcontext()

    def after_failure(self, failure: FailedRun) -> None:
        """Decides that a task that was asked to end, and raised, is cancelled."""
        if failure.run is not None and failure.run.asked is not None and failure.kind != "result":
            failure.cancelled, failure.shown = True, failure.run.asked

    @asynccontextmanager
    async def _looking(self, backend: CanCancel, runs: Runs) -> AsyncIterator[None]:
        looking = asyncio.create_task(self._look(backend, runs))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def _look(self, backend: CanCancel, runs: Runs) -> None:
        while True:
            await asyncio.sleep(self._every)
            if not runs():
                continue
            try:
                asked = set(await backend.asked())
            except BackendError as error:
                logger.warning("looking for tasks that are to be cancelled failed: %s", error)
                continue
            if asked:
                for run in runs():
                    if (run.task.key, run.task.claim) in asked:
                        end(run, ASKED)


def end(run: Run, reason: str) -> None:
    """Asks a run to end, once; called in its event loop."""
    if run.asked is not None:
        return
    run.asked = reason
    if run.aio is not None and is_async(run.call.func):  # type: ignore[arg-type]  # its import path was resolved
        run.aio.cancel()
