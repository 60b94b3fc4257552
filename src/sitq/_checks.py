"""The checks that several modules share."""

import asyncio
import math
from collections.abc import Iterable
from datetime import timedelta

MAX_SECONDS = 100 * 365.25 * 24 * 3600.0
"""A hundred years: what is longer overflows some clock, and is meant to last for ever."""

MAX_COUNT = 2**31 - 1
"""The largest count unless told otherwise: what any store takes as an integer."""

DEFAULT_QUEUE = "default"
"""How callers name the queue of the tasks that were given none. In a store, its name is empty."""

MAX_QUEUE_CHARACTERS = 100
MAX_PRIORITY = 100
"""The highest priority; the lowest is its negative."""


def check_seconds(name: str, value: float) -> float:
    """Returns a duration in seconds, as a float.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is negative, not finite, or longer than a hundred years.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fix = ": write its total_seconds()" if isinstance(value, timedelta) else ""
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}{fix}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of seconds, at least 0; got {value!r}")
    if value > MAX_SECONDS:
        raise ValueError(f"{name} must be at most a hundred years, in seconds; got {value!r}")
    return float(value)


def check_count(name: str, value: int, *, max_value: int = MAX_COUNT) -> int:
    """Returns a count from 1 to ``max_value``.

    Raises:
        TypeError: ``value`` is not an ``int``.
        ValueError: ``value`` is out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 1 <= value <= max_value:
        raise ValueError(f"{name} must be from 1 to {max_value:,}; got {value}")
    return value


def check_positive_seconds(name: str, value: float) -> float:
    """Returns a duration in seconds, as a float.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is not finite, or not more than 0.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
        raise ValueError(f"{name} must be more than 0 seconds; got {value!r}")
    return check_seconds(name, value)


def check_queue(name: str) -> str:
    """Returns the name of a queue as a store keeps it: empty for ``"default"``.

    Raises:
        TypeError: It is not a ``str``.
        ValueError: It is empty, longer than 100 characters, holds what cannot be printed, or begins or ends with
            a space.
    """
    if not isinstance(name, str):
        raise TypeError(f"queue must be the name of a queue, a str, not {type(name).__name__}")
    if not name:
        raise ValueError("queue must not be empty: leave it out for the default queue, or name that 'default'")
    if len(name) > MAX_QUEUE_CHARACTERS or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"queue must be up to {MAX_QUEUE_CHARACTERS} printable characters, with no space at its ends; "
            f"got {name!r:.200}"
        )
    return "" if name == DEFAULT_QUEUE else name


def check_known_queue(name: str) -> str:
    """Returns the name of a queue as a store keeps it; an empty one, as a ``Lane`` has it, is the default queue.

    Raises:
        TypeError: As :func:`check_queue`.
        ValueError: As :func:`check_queue`, except for an empty name.
    """
    return "" if isinstance(name, str) and not name else check_queue(name)


def check_queues(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of one queue or more, as a store keeps them.

    Raises:
        TypeError: ``names`` is a ``str``, or not iterable, or holds what is no ``str``.
        ValueError: There is none, or the same one twice, or a name is not one of a queue.
    """
    if isinstance(names, str):
        raise TypeError(f"queues must be a list of names: write queues=[{names!r}]")
    if not isinstance(names, Iterable):
        raise TypeError(f"queues must be a list of names, not {type(names).__name__}")
    checked = tuple(map(check_known_queue, names))
    if not checked:
        raise ValueError("queues must name at least one queue: leave it out to serve all of them")
    if len(set(checked)) < len(checked):
        raise ValueError(f"queues names a queue twice: {[name or DEFAULT_QUEUE for name in checked]}")
    return checked


def check_priority(priority: int) -> int:
    """Returns a priority.

    Raises:
        TypeError: It is not an ``int``.
        ValueError: It is not from -100 to 100.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {type(priority).__name__}")
    if abs(priority) > MAX_PRIORITY:
        raise ValueError(f"priority must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, higher is sooner; got {priority}")
    return priority


def refuse_running_loop() -> None:
    """Makes sure that a call for sync code blocks no event loop.

    Raises:
        RuntimeError: An event loop runs in this thread.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "SyncTaskQueue would block the event loop that runs in this thread: use TaskQueue and await its methods"
        )
