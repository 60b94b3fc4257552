"""Limits of time: how long a run may take, and until when it may begin."""

import asyncio
import contextlib
import inspect
import threading
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from sitq._logs import SafeLogger
from sitq.errors import TaskTimeoutError
from sitq.extensions.base import FailedRun, Run
from sitq.models import ReservedTask
from sitq.serializers.calls import is_async

logger = SafeLogger("sitq.worker")

DEAF_SECONDS = 2.0
"""How long after its time a run may go on before it is warned of."""


class Expired(Exception):  # noqa: N818 - it ends the task as cancelled, and is never seen
    """The task was not started in time."""


class Timeouts:
    """Ends runs whose time is over, and starts no task that has expired; every worker has this extension.

    A coroutine is cancelled. A plain function in a thread cannot be: it is asked to end, see ``sitq.running``.
    Either way its slot is taken until it has ended. If it returns a value all the same, that is its result.
    """

    def around(self, run: Run) -> AbstractAsyncContextManager[object] | None:
        """Returns what limits the run; ``None`` if it has no limit."""
        options = run.options
        if not options:
            return None
        if (expires := options.get("expires")) is not None:
            _check_expiry(run, expires)
        seconds = options.get("timeout")
        if seconds is None:
            return None
        if is_async(run.call.func):  # type: ignore[arg-type]  # its import path was resolved
            return _Limit(run, seconds)
        # From when a thread begins with it: it may have waited for one.
        run.call = run.call._replace(func=_Limited(run, seconds))
        return None

    def after_failure(self, failure: FailedRun) -> None:
        """Decides that a task that was not started in time is cancelled."""
        if isinstance(failure.error, Expired):
            failure.cancelled, failure.shown = True, f"Expired: {failure.error}"


def expiry_of(task: ReservedTask, expires: datetime | timedelta) -> datetime:
    """Returns the moment from which on a task is not started any more."""
    return task.enqueued_at + expires if isinstance(expires, timedelta) else expires


def _check_expiry(run: Run, expires: datetime | timedelta) -> None:
    moment = expiry_of(run.task, expires)
    # By the store's clock, which has said when the task was stored, too.
    if (run.task.started_at or datetime.now(UTC)) >= moment:
        raise Expired(f"was not started before {moment.isoformat(timespec='seconds')}")


class _Limit:
    """Limits a coroutine."""

    __slots__ = ("_alarm", "_run", "_seconds", "_timeout")

    def __init__(self, run: Run, seconds: float) -> None:
        self._run = run
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        run, seconds = self._run, self._seconds
        run.deadline = time.monotonic() + seconds
        self._alarm = asyncio.get_running_loop().call_later(seconds + DEAF_SECONDS, _warn_of_deaf, run, seconds)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as over:
            if not self._timeout.expired():
                raise
            raise _timed_out(self._seconds) from (over.__cause__ or error)
        if not self._timeout.expired():
            return
        if error is None:
            _warn_of_late_value(self._run, self._seconds)
        elif isinstance(error, Exception):
            raise _timed_out(self._seconds) from error


class _Limited:
    """The function of a run that has a limit, for a thread."""

    def __init__(self, run: Run, seconds: float) -> None:
        self._run = run
        self._func: Any = run.call.func
        self.__wrapped__ = self._func  # by this, others find out what it calls
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; in its thread, so the time that it waited for one does not count."""
        run, seconds = self._run, self._seconds
        run.deadline = time.monotonic() + seconds
        ended = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._watch, ended)
        try:
            value = self._func(*args, **kwargs)
        except TaskTimeoutError:  # of check()
            raise
        except Exception as error:
            if time.monotonic() >= run.deadline:
                raise _timed_out(seconds) from error
            raise
        finally:
            ended.set()
        if inspect.isawaitable(value):
            return self._awaited(value, run.deadline)
        if time.monotonic() >= run.deadline:
            _warn_of_late_value(run, seconds)
        return value

    def _watch(self, ended: threading.Event) -> None:
        def warn() -> None:
            if not ended.is_set():
                _warn_of_deaf(self._run, self._seconds)

        self._loop.call_later(self._seconds + DEAF_SECONDS, warn)

    async def _awaited(self, value: Any, deadline: float) -> Any:
        """Awaits what the function returned, in the rest of its time."""
        async with _Limit(self._run, max(0.0, deadline - time.monotonic())):
            return await value


def _timed_out(seconds: float) -> TaskTimeoutError:
    return TaskTimeoutError(f"it took longer than its timeout of {seconds:g} seconds")


def _warn_of_deaf(run: Run, seconds: float) -> None:
    logger.warning(
        "task %s (%s) goes on %g seconds after its timeout of %g seconds; it keeps its slot until it ends",
        run.task.task_id,
        run.task.name,
        DEAF_SECONDS,
        seconds,
    )


def _warn_of_late_value(run: Run, seconds: float) -> None:
    logger.warning(
        "task %s (%s) returned a value after its timeout of %g seconds: that is its result",
        run.task.task_id,
        run.task.name,
        seconds,
    )
