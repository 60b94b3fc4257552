"""What a worker does with its extensions."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.extensions.base import Around, Beside, Event, EventKind, Extension, Listener, Run
from sitq.models import ReservedTask
from sitq.worker.reports import TaskLog

logger = SafeLogger("sitq.worker")

type CallAround = Callable[[Run, Callable[[Run], Awaitable[Any]]], Awaitable[Any]]
"""Makes a run with everything around it that there is, and returns what its function returns."""


def check_extensions(extensions: Sequence[Extension]) -> tuple[Extension, ...]:
    """Returns the extensions.

    Raises:
        TypeError: One of them has none of the methods of an extension, or one that is ``async`` in the wrong way.
    """
    for extension in extensions:
        if isinstance(extension, type) or not isinstance(extension, (Around, Beside, Listener)):
            what = f"the class {extension.__name__}" if isinstance(extension, type) else type(extension).__name__
            raise TypeError(f"an extension is an object with around(), beside() or on_event(), not {what}")
        # Found here and not in the first run: there it would be the failure of each task of the queue.
        for name in ("around", "beside"):
            method = getattr(extension, name, None)
            if inspect.isasyncgenfunction(method) or inspect.iscoroutinefunction(method):
                raise TypeError(
                    f"{name}() of {type(extension).__name__} must return an async context manager: "
                    "write @asynccontextmanager above a function that yields once"
                )
        if inspect.iscoroutinefunction(getattr(extension, "on_event", None)):
            raise TypeError(f"on_event() of {type(extension).__name__} must not be async: nothing awaits it")
    return tuple(extensions)


def call_around(extensions: Sequence[Extension]) -> CallAround | None:
    """Returns what calls a function with the extensions around it, the first outermost; ``None`` without any."""
    arounds = [extension.around for extension in extensions if isinstance(extension, Around)]
    if not arounds:
        return None

    async def call(run: Run, inside: Callable[[Run], Awaitable[Any]]) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            for around in arounds:
                await stack.enter_async_context(around(run))
            return await inside(run)

    return call


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

    async def enter(self, backend: Backend) -> None:
        """Enters all of it; raises what the first raises that cannot be entered."""
        self.is_entering = bool(self._besides)
        for beside in self._besides:
            await self._stack.enter_async_context(beside(backend))
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
