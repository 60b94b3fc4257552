"""What a function can ask and say while it runs as a task: whether to end, what time is left, how far it has come.

A thread cannot be ended from outside. A function that takes long calls :func:`check` now and then; when that
raises, it cleans up and ends.
"""

import asyncio
import math
import numbers
import time

from sitq.backends.progressing import MAX_NOTE_CHARACTERS, Report
from sitq.extensions.reporting import reporter
from sitq.extensions.timeouts import timed_out
from sitq.worker.execution import running

__all__ = ["check", "progress", "seconds_left"]


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


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Reports how far the running task has come, for ``queue.progress()`` and ``queue.follow()``.

    It is cheap, and may be called for each step, in a thread too: a worker writes down the last report of each of its
    tasks, all in one change, at most once a second. What a task reports just before it ends may not be written. Like
    :func:`sitq.running.check`, it raises if the task is to end. Outside of a task it only checks its arguments,
    and with a backend that keeps no reports nothing is written.

    Args:
        done: How much is done, at least 0, in a unit of your own.
        total: How much there is to do, at least 0; ``None``: that is not known.
        note: A text for people. What is longer than 500 characters is cut.

    Raises:
        TypeError: A number or the text is of the wrong type.
        ValueError: A number is negative or not finite.
        asyncio.CancelledError: As for :func:`sitq.running.check`.
        TaskTimeoutError: Its time is over.
    """
    done = _number("done", done)
    total = None if total is None else _number("total", total)
    if not isinstance(note, str):
        raise TypeError(f"note must be a str, not {type(note).__name__}")
    run, taker = running.get(), reporter.get()
    if run is None:
        return
    check()
    if taker is not None:
        note = note[:MAX_NOTE_CHARACTERS]
        if not note.isascii():
            note = note.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text
        taker.add(run, Report(run.task, done, total, note))


def _number(name: str, value: float) -> float:
    if type(value) not in (int, float) and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0; got {value!r}")
    return number
