"""Limits of time: how long a run may take, and until when it may begin."""

import asyncio
import inspect
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.errors import GiveUp, Retry, TaskTimeoutError
from sitq.extensions.base import FailedRun, Run, Runs
from sitq.extensions.looking import Looking
from sitq.models import ReservedTask
from sitq.serializers.calls import is_async

logger = SafeLogger("sitq.worker")

DEAF_SECONDS = 2.0
"""How long after its time a run may go on before it is warned of."""

LOOK_SECONDS = 1.0


class Expired(BaseException):
    """The task was not started in time: no error, and never seen by anybody but this module."""


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
            return _Limit(run, seconds, seconds)
        # From when a thread begins with it: it may have waited for one.
        run.threaded = _Threaded(run, seconds)
        return None

    def beside(self, backend: Backend, runs: Runs) -> AbstractAsyncContextManager[object]:
        """Looks for runs that go on after their time, for as long as the worker runs."""
        return Looking(LOOK_SECONDS, _Deaf(runs).look)

    def after_failure(self, failure: FailedRun) -> None:
        """Decides that a task that was not started in time is cancelled."""
        if isinstance(failure.error, Expired):
            failure.cancelled, failure.shown = True, f"Expired: {failure.error}"


def expiry_of(task: ReservedTask, expires: datetime | timedelta) -> datetime:
    """Returns the moment from which on a task is not started any more."""
    return task.enqueued_at + expires if isinstance(expires, timedelta) else expires


def timed_out(seconds: float) -> TaskTimeoutError:
    """Returns the error of a run that has a limit of so many seconds."""
    return TaskTimeoutError(f"it took longer than its timeout of {seconds:g} seconds")


def _check_expiry(run: Run, expires: datetime | timedelta) -> None:
    moment = expiry_of(run.task, expires)
    # By the store's clock, which has said when the task was stored, too.
    if (run.task.started_at or datetime.now(UTC)) >= moment:
        raise Expired(f"was not started before {moment.isoformat(timespec='seconds')}")


class _Limit:
    """Limits a coroutine.

    Args:
        run: The run.
        seconds: Its limit.
        left: What is left of that.
    """

    __slots__ = ("_cancelling", "_is_over", "_left", "_run", "_seconds", "_task", "_timer")

    # Not asyncio.timeout(), which does the same by two more coroutines and objects for each run: a drain of tasks
    # that all have a limit took a tenth longer.
    def __init__(self, run: Run, seconds: float, left: float) -> None:
        self._run = run
        self._seconds = seconds
        self._left = left
        self._is_over = False

    async def __aenter__(self) -> None:
        self._run.deadline = time.monotonic() + self._left
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._timer = task.get_loop().call_later(self._left, self._end)

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._is_over:
            return
        # A cancellation is ours if nobody else has asked for one.
        is_ours = self._task.uncancel() <= self._cancelling
        if error is None:
            _warn_of_late_value(self._run, self._seconds)
        elif (is_ours and isinstance(error, asyncio.CancelledError)) or _is_late(error):
            raise timed_out(self._seconds) from error


class _Threaded:
    """What a thread calls in place of a function that has a limit."""

    def __init__(self, run: Run, seconds: float) -> None:
        self._run = run
        self._seconds = seconds

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        run, seconds = self._run, self._seconds
        deadline = run.deadline = time.monotonic() + seconds
        func: Any = run.call.func  # as it is now: what is around the run may have changed it
        try:
            value = func(*args, **kwargs)
        except BaseException as error:
            if time.monotonic() >= deadline and _is_late(error):
                raise timed_out(seconds) from error
            raise
        if inspect.isawaitable(value):
            return _rest(run, seconds, deadline, value)
        if time.monotonic() >= deadline:
            _warn_of_late_value(run, seconds)
        return value


async def _rest(run: Run, seconds: float, deadline: float, value: Any) -> Any:
    """Awaits what a function has returned, in the rest of its time."""
    async with _Limit(run, seconds, max(0.0, deadline - time.monotonic())):
        return await value


def _is_late(error: BaseException) -> bool:
    """Whether what a run has raised after its time means that it took too long, and is no order of the task's."""
    return isinstance(error, Exception) and not isinstance(error, (TaskTimeoutError, Retry, GiveUp))


class _Deaf:
    """Warns of runs that go on after their time, once of each."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._warned: set[Run] = set()

    def look(self) -> None:
        """Looks at what runs."""
        latest = time.monotonic() - DEAF_SECONDS
        deaf = {run for run in self._runs() if run.deadline is not None and run.deadline < latest}
        for run in deaf - self._warned:
            logger.warning(
                "task %s (%s) goes on %g seconds after its timeout of %g seconds; it keeps its slot until it ends",
                run.task.task_id,
                run.task.name,
                DEAF_SECONDS,
                run.options["timeout"],
            )
        self._warned = deaf


def _warn_of_late_value(run: Run, seconds: float) -> None:
    logger.warning(
        "task %s (%s) returned a value after its timeout of %g seconds: that is its result",
        run.task.task_id,
        run.task.name,
        seconds,
    )
