"""What a plain function can ask while it runs as a task: whether it was asked to end, and what time it has left.

A thread cannot be ended from outside. A function that takes long calls :func:`check` now and then; when that
raises, it cleans up and ends.
"""

import asyncio
import time

from sitq.extensions.timeouts import timed_out
from sitq.worker.execution import running

__all__ = ["check", "seconds_left"]


def check() -> None:
    """Returns if the running task may go on. Outside of a task it does nothing, so that the function can be tested.

    Raises:
        asyncio.CancelledError: The task was asked to end, or its run is over: its worker was stopped, for
            instance, and has given the task back.
        TaskTimeoutError: Its time is over.
    """
    run = running.get()
    if run is None:
        return
    if run.asked is not None:
        raise asyncio.CancelledError(run.asked)
    if run.is_over:
        raise asyncio.CancelledError("the run is over: what it returns changes nothing")
    if run.deadline is not None and time.monotonic() >= run.deadline:
        raise timed_out(run.options["timeout"])


def seconds_left() -> float | None:
    """Returns the seconds until the timeout of the running task, at least 0.

    ``None`` means that it has none, or that no task runs here.
    """
    run = running.get()
    if run is None or run.deadline is None:
        return None
    return max(0.0, run.deadline - time.monotonic())
