"""What a worker does with its extensions."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from sitq._checks import check_seconds
from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.backends.endings import Ending, Endings
from sitq.extensions.base import (
    AfterFailure,
    Around,
    Beside,
    Event,
    EventKind,
    Extension,
    FailedRun,
    Listener,
    Run,
    Runs,
)
from sitq.models import ReservedTask
from sitq.worker.reports import TaskLog

logger = SafeLogger("sitq.worker")

type AroundRun = Callable[[Run], AbstractAsyncContextManager[object] | None]
"""Returns what is put around a run; for most runs that is nothing."""


def around_of(extensions: Sequence[Extension]) -> AroundRun:
    """Returns what gives the context manager of a run, which enters those of the extensions in their order."""
    arounds = [extension.around for extension in extensions if isinstance(extension, Around)]

    def around(run: Run) -> AbstractAsyncContextManager[object] | None:
        found: AbstractAsyncContextManager[object] | None = None
        more: list[AbstractAsyncContextManager[object]] = []
        for each in arounds:  # no comprehension: this is done for every run, and finds nothing for nearly all
            manager = each(run)
            if manager is not None:
                if found is None:
                    found = manager
                else:
                    more.append(manager)
        return _nested([found, *more]) if found is not None and more else found

    return arounds[0] if len(arounds) == 1 else around  # most workers have the standard one and no other


@contextlib.asynccontextmanager
async def _nested(managers: Sequence[AbstractAsyncContextManager[object]]) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for manager in managers:
            await stack.enter_async_context(manager)
        yield


class Decisions:
    """Decides what becomes of a task whose run did not succeed.

    Args:
        extensions: Are asked in this order.
        backend: Where the outcome will be recorded; what it cannot record is not decided.
    """

    def __init__(self, extensions: Sequence[Extension], backend: Backend) -> None:
        self._endings = backend.endings if isinstance(backend, Endings) else frozenset()
        self._extensions = [extension for extension in extensions if isinstance(extension, AfterFailure)]

    def make(self, failure: FailedRun) -> None:
        """Lets the extensions change ``failure``; never raises."""
        for extension in self._extensions:
            try:
                extension.after_failure(failure)
                # At once: who is asked after this one has to know what becomes of the task.
                self._check(failure)
            except BaseException as error:  # SystemExit as well: the outcome has to be recorded
                failure.retry_in = None
                message = "after_failure() of %s failed on task %s"
                logger.log(logging.ERROR, message, type(extension).__name__, failure.task.task_id, exc_info=error)

    def _check(self, failure: FailedRun) -> None:
        """Takes back what contradicts itself, or what the backend cannot record."""
        if failure.cancelled:
            failure.retry_in = None
        elif failure.retry_in is not None:
            failure.retry_in = check_seconds("retry_in", failure.retry_in)
        self._need("retry", "tried again", failure.retry_in is not None, failure)
        self._need("cancel", "ended as cancelled", failure.cancelled, failure)
        self._need("then", "followed by another one", bool(failure.then), failure)

    def _need(self, ending: Ending, what: str, is_so: bool, failure: FailedRun) -> None:
        if not is_so or ending in self._endings:
            return
        message = "task %s (%s) fails: it should be %s, which its backend cannot record (sitq.backends.endings)"
        logger.error(message, failure.task.task_id, failure.task.name, what)
        match ending:
            case "retry":
                failure.retry_in = None
            case "cancel":
                failure.cancelled = False
            case "then":
                failure.then = []


class EnteredBeside:
    """What goes on beside a worker: entered in order and left in reverse, by the task that runs the worker.

    Attributes:
        is_entering: Whether some of it has not been entered yet.
    """

    def __init__(self, extensions: Sequence[Extension]) -> None:
        self._besides = [extension.beside for extension in extensions if isinstance(extension, Beside)]
        self._stack = contextlib.AsyncExitStack()
        self._timeout: asyncio.Timeout | None = None
        self._is_cut_short = False
        self.is_entering = False

    async def enter(self, backend: Backend, runs: Runs) -> None:
        """Enters all of it; raises what the first raises that cannot be entered."""
        self.is_entering = bool(self._besides)
        for beside in self._besides:
            await self._stack.enter_async_context(beside(backend, runs))
        self.is_entering = False

    async def leave(self, error: BaseException | None, seconds: float | None) -> None:
        """Leaves all that was entered.

        Args:
            error: What ended the worker; those that are left see it, and cannot swallow it.
            seconds: Until what has not ended is cancelled; ``None`` waits for as long as it takes.
        """
        if not self._besides:
            return
        try:
            async with asyncio.timeout(0.0 if self._is_cut_short else seconds) as self._timeout:
                if error is None:
                    await self._stack.aclose()
                else:
                    await self._stack.__aexit__(type(error), error, error.__traceback__)
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise
            logger.warning("what goes on beside the worker did not end in time and was cancelled")

    def cut_short(self) -> None:
        """Has :meth:`leave` wait no longer."""
        self._is_cut_short = True
        if self._timeout is not None and not self._timeout.expired():
            with contextlib.suppress(RuntimeError):  # it has ended
                self._timeout.reschedule(asyncio.get_running_loop().time())


class Events:
    """Notifies listeners of what happens to a worker's tasks; none of them can harm one.

    Args:
        log: Is notified first.
        listeners: Are notified then, in this order.
    """

    def __init__(self, log: TaskLog, listeners: Sequence[Listener]) -> None:
        self._log = log
        self._listeners = [listener.on_event for listener in listeners]
        self._blamed: set[int] = set()

    def emit(
        self,
        kind: EventKind,
        task: ReservedTask,
        seconds: float | None = None,
        reason: str = "",
        error: BaseException | None = None,
    ) -> None:
        """Notifies of something that happened to ``task``; never raises."""
        if self._listeners or self._log.is_heard(kind):  # else it is not worth to be made
            self.send(Event(kind, task.task_id, task.name, task.attempt, seconds, reason, error))

    def send(self, event: Event) -> None:
        """Hands on an event; never raises."""
        self._log.on_event(event)
        for number, on_event in enumerate(self._listeners):
            try:
                on_event(event)
            except BaseException as error:  # SystemExit as well: the worker is in the middle of something
                if number not in self._blamed:
                    self._blamed.add(number)
                    logger.log(
                        logging.ERROR, "a listener failed on an event; this is logged once for it", exc_info=error
                    )


class Hooks(NamedTuple):
    """What the extensions of a worker have to do with the runs of its tasks.

    Attributes:
        around: Gives what is put around a run.
        decisions: Decides what becomes of a task whose run did not succeed.
        events: Notifies of what happens.
    """

    around: AroundRun
    decisions: Decisions
    events: Events


def hooks_of(extensions: Sequence[Extension], log: TaskLog, backend: Backend) -> Hooks:
    """Returns the hooks of ``extensions``; ``log`` is notified of each event first."""
    listeners = [extension for extension in extensions if isinstance(extension, Listener)]
    return Hooks(around_of(extensions), Decisions(extensions, backend), Events(log, listeners))
