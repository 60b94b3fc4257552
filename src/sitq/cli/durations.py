"""Durations as people write and read them."""

import re

from sitq._checks import check_seconds

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(text: str, *, unit: str | None = "s") -> float:
    """Returns ``"90"``, ``"90s"``, ``"15m"``, ``"2h"``, ``"7d"`` or ``"1w"`` in seconds.

    Args:
        text: The duration.
        unit: What a number alone is in; ``None`` refuses it, because 30 may be meant in days.

    Raises:
        ValueError: ``text`` is not of that form, or longer than a hundred years.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text, re.ASCII)
    if match is None or not (match[2] or unit or float(match[1]) == 0):
        raise ValueError(f"{text!r} is not a duration: write 90s, 15m, 2h, 7d or 1w")
    return check_seconds("the duration", float(match[1]) * UNIT_SECONDS[match[2] or unit or "s"])


def format_duration(seconds: float) -> str:
    """Returns seconds in the largest unit that still says something: ``"95s"``, ``"12m"``, ``"3d"``."""
    seconds = max(seconds, 0)
    for unit, below in (("s", 120), ("m", 120 * 60), ("h", 48 * 3600)):
        if seconds < below:
            return f"{seconds / UNIT_SECONDS[unit]:.0f}{unit}"
    return f"{seconds / UNIT_SECONDS['d']:.0f}d"
