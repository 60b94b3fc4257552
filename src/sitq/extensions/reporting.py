"""Writing down how far the tasks of a worker have come, all of them together, at most once a second."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar

from sitq._checks import check_positive_seconds
from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.backends.progressing import Progressing, Report
from sitq.errors import BackendError
from sitq.extensions.base import Run, Runs

logger = SafeLogger("sitq.worker")

reporter: ContextVar["Reporter | None"] = ContextVar("sitq_reporter", default=None)
"""Of the worker whose task runs here."""


class Reporting:
    """Writes down what tasks report by ``progress()``; every worker has this extension.

    It does nothing until the first task reports, and as long as none does.

    Args:
        every: Seconds between two writes at least.

    Raises:
        TypeError: ``every`` is not a number.
        ValueError: ``every`` is not more than 0.
    """

    def __init__(self, *, every: float = 1.0) -> None:
        self._every = check_positive_seconds("every", every)

    def beside(self, backend: Backend, runs: Runs) -> AbstractAsyncContextManager[object]:
        """Writes for as long as the worker runs."""
        return self._writing(backend) if isinstance(backend, Progressing) else contextlib.nullcontext()

    @asynccontextmanager
    async def _writing(self, backend: Progressing) -> AsyncIterator[None]:
        # Set in the task that is the worker's life: what it starts, and the threads, inherit it, and nobody else.
        made = Reporter(backend, self._every)
        token = reporter.set(made)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # the loop was closed, and this is collected as garbage elsewhere
                reporter.reset(token)
            await made.close()


class Reporter:
    """Takes reports, in any thread, and writes the last one of each run.

    Args:
        backend: Where to.
        every: Seconds between two writes at least.
    """

    def __init__(self, backend: Progressing, every: float) -> None:
        self._backend = backend
        self._every = every
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._latest: dict[Run, Report] = {}
        self._is_called = False
        self._writer: asyncio.Task[None] | None = None

    def add(self, run: Run, report: Report) -> None:
        """Has a report written soon, unless the run reports again before."""
        with self._lock:
            self._latest[run] = report
            if self._is_called:
                return
            self._is_called = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._begin)

    async def close(self) -> None:
        """Writes nothing more: the runs are over, and their reports would be late."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])

    def _begin(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_task(self._write_while_there_is_something())

    async def _write_while_there_is_something(self) -> None:
        while latest := self._taken():
            await self._write({run: report for run, report in latest.items() if not run.is_over})
            await asyncio.sleep(self._every)
        self._writer = None

    def _taken(self) -> dict[Run, Report]:
        with self._lock:
            latest, self._latest = self._latest, {}
            self._is_called = bool(latest)  # as long as the writer is at work, nobody has to call it
        return latest

    async def _write(self, latest: dict[Run, Report]) -> None:
        if not latest:
            return
        try:
            await self._backend.report([*latest.values()])
        except Exception as error:  # whatever it was: without the writer, what is reported would pile up for ever
            level = logging.WARNING if isinstance(error, BackendError) else logging.ERROR
            logger.log(level, "writing down the progress of %d tasks failed: %s", len(latest), error)
            with self._lock:
                self._latest = latest | self._latest
