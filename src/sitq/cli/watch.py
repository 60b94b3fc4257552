"""``sitq watch``: a view that stays up to date."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from sitq.backends.inspect import Counts, Inspectable, TaskInfo
from sitq.cli import render
from sitq.cli.durations import format_duration
from sitq.models import STATUSES

RUNNING_SHOWN = 10
MAX_SHARE_OF_TIME = 0.2
"""How much of the time queries may take; one of a large file is followed by a longer pause."""

type Show = Callable[[Counts, Sequence[TaskInfo]], None]


async def watch(backend: Inspectable, name: str, interval: float, *, as_json: bool) -> None:
    """Shows what there is, again and again, until it is cancelled.

    Args:
        backend: What to query.
        name: What to call it.
        interval: Seconds between two queries, at least.
        as_json: Write a JSON document in a line for each query.
    """
    console = render.console()
    if as_json:
        await _query(backend, interval, _show_json)
    elif not console.is_terminal:
        await _query(backend, interval, lambda counts, _: render.show(_line(counts)))
    else:
        with Live(console=console, auto_refresh=False) as live:
            await _query(
                backend, interval, lambda counts, running: live.update(_view(name, counts, running), refresh=True)
            )


async def _query(backend: Inspectable, interval: float, show: Show) -> None:
    while True:
        started = time.monotonic()
        counts = await backend.counts()
        running = await backend.list(status="in_progress", limit=RUNNING_SHOWN)
        show(counts, running)
        await asyncio.sleep(max(interval, (time.monotonic() - started) / MAX_SHARE_OF_TIME))


def _show_json(counts: Counts, running: Sequence[TaskInfo]) -> None:
    found = {
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        **render.as_json(counts),
        "running": [render.as_json(task) for task in running],
    }
    render.show_json(found, indent=None)


def _line(counts: Counts) -> Text:
    oldest = "-" if counts.oldest_waiting is None else format_duration(counts.oldest_waiting)
    numbers = " ".join(f"{status}={getattr(counts, status)}" for status in STATUSES)
    return Text(
        f"{datetime.now(UTC):%H:%M:%S} {numbers} oldest={oldest} enqueued/min={counts.enqueued_last_minute} "
        f"succeeded/min={counts.succeeded_last_minute} failed/min={counts.failed_last_minute}"
    )


def _view(name: str, counts: Counts, running: Sequence[TaskInfo]) -> RenderableType:
    parts: list[RenderableType] = [
        Text(f"{name}   {datetime.now(UTC):%H:%M:%S} UTC   (Ctrl-C ends this)", "dim"),
        Text(),
        render.counts(counts),
    ]
    if running:
        more = counts.in_progress - len(running)
        parts += [Text(), render.listing(running)]
        parts += [Text(f"and {more:,} more", "dim")] if more > 0 else []
    return Group(*parts)
