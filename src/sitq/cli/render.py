"""How things look: tables for people, JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sitq import _logs
from sitq._checks import DEFAULT_QUEUE
from sitq.backends.inspect import Counts, FailedAttempt, Finding, TaskDetails, TaskInfo
from sitq.backends.lanes import Lane
from sitq.cli.durations import format_duration
from sitq.models import STATUSES

STYLES = {"pending": "cyan", "in_progress": "blue", "success": "green", "failed": "red", "cancelled": "yellow"}
LEVEL_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
WIDTH_WITHOUT_TERMINAL = 1_000_000
"""So that nothing is cut or wrapped in what another program reads."""

INDENT = 2
"""What a task has written stands to the right of what sitq says: it cannot pass for that."""

LINES_OF_AN_ERROR = 3
"""How many lines of a terminal an error may take in a list; ``show`` has all of it."""


def console() -> Console:
    """Returns where output goes: in colour and cut to the width if that is a terminal."""
    found = Console(highlight=False, emoji=False, markup=False)
    if not found.is_terminal:
        found = Console(highlight=False, emoji=False, markup=False, width=WIDTH_WITHOUT_TERMINAL, no_color=True)
    return found


def show(*renderables: RenderableType) -> None:
    """Writes to the standard output, without blanks at the ends of lines."""
    out = console()
    if out.is_terminal:
        out.print(*renderables, sep="\n")
        return
    with out.capture() as captured:
        out.print(*renderables, sep="\n")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def show_json(value: Any, *, indent: int | None = 2) -> None:
    """Writes one JSON document to the standard output, in one line if ``indent`` is ``None``."""
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def as_json(value: Any) -> dict[str, Any]:
    """Returns one of the dataclasses with its moments in ISO 8601, and the default queue by its name."""
    found: dict[str, Any] = _plain(dataclasses.asdict(value))
    return found | {"queue": DEFAULT_QUEUE} if found.get("queue") == "" else found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def printable(text: str) -> str:
    """Returns text of a task's that cannot give orders to a terminal; it may have several lines."""
    return _logs.printable(text, keep="\n\t")


def line(text: str) -> str:
    """Returns the same in one line: what ends a line is written out, so that it cannot pass for another one."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def can_encode(text: str) -> bool:
    """Whether the standard output has the characters of ``text``."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def file_size(size: int) -> str:
    """Returns a number of bytes in the largest unit that still says something."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def counts(found: Counts) -> RenderableType:
    """The number of tasks of each status, and what there is to say about them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=11)
    table.add_column(justify="right", min_width=9)
    table.add_column()
    remarks = {"pending": _waiting(found), "in_progress": _abandoned(found)}
    for status in STATUSES:
        number = getattr(found, status)
        table.add_row(Text(status, STYLES[status] if number else "dim"), f"{number:,}", remarks.get(status, ""))
    lately = (
        f"last minute: {found.enqueued_last_minute:,} enqueued, {found.succeeded_last_minute:,} succeeded, "
        f"{found.failed_last_minute:,} failed"
    )
    return Group(table, Text(), Text(lately))


def _waiting(found: Counts) -> str:
    due = found.pending - found.scheduled
    parts = []
    if found.oldest_waiting is not None:
        parts.append(f"{due:,} due, the oldest for {format_duration(found.oldest_waiting)}")
    if found.scheduled:
        parts.append(f"{found.scheduled:,} not due yet")
    return "; ".join(parts)


def _abandoned(found: Counts) -> str:
    return f"{found.abandoned:,} whose lease is over" if found.abandoned else ""


def listing(tasks: Sequence[TaskInfo]) -> RenderableType:
    """A line for each task; below one that failed stands its error, in all the room there is.

    If a name does not fit beside the rest, all of them stand below, too.
    """
    if not tasks:
        return Text("no tasks")
    out, now = console(), datetime.now(UTC)
    rows: list[tuple[str, ...]] = [("TASK", "STATUS", "ATTEMPT", "AGE")]
    rows += [(line(task.task_id), _status(task), _attempt(task, "/"), age(task, now)) for task in tasks]
    if any(task.queue or task.priority for task in tasks):
        queues = ["QUEUE", *(_queue(task) for task in tasks)]
        rows = [(*row, queue) for row, queue in zip(rows, queues, strict=True)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    room = out.width - sum(widths) - 2 * len(widths)
    names = ["NAME", *(line(task.name) for task in tasks)]
    beside = max(map(cell_len, names)) <= room
    lines = [_row(rows[0], widths, names[0] if beside else "", "bold")]
    if not beside:
        lines.append(Text(" " * INDENT + names[0], "bold"))
    for task, row, name in zip(tasks, rows[1:], names[1:], strict=True):
        lines.append(_row(row, widths, name if beside else "", STYLES[task.status]))
        if not beside:
            lines.append(Text(" " * INDENT + name, no_wrap=True, overflow="ellipsis"))
        if task.error is not None:
            lines += _error(line(task.error.strip()), out)
    return Group(*lines)


def _status(task: TaskInfo) -> str:
    return "in_progress, asked to end" if task.asked_at and task.status == "in_progress" else task.status


def _queue(task: TaskInfo) -> str:
    name = line(task.queue or DEFAULT_QUEUE)
    return f"{name} {task.priority:+}" if task.priority else name


def lanes(found: Sequence[Lane]) -> RenderableType:
    """A line for each queue and priority."""
    if not found:
        return Text("no unfinished tasks")
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=8)
    for _ in range(5):
        table.add_column(justify="right", min_width=7)
    table.add_column()
    table.add_row(*(Text(head, "bold") for head in ("QUEUE", "PRIORITY", "WAITING", "DUE", "RUNNING", "OLDEST", "")))
    for lane in found:
        oldest = "" if lane.oldest_due is None else format_duration(lane.oldest_due)
        remarks = ["paused"] if lane.paused else []
        remarks += [f"{lane.abandoned:,} whose lease is over"] if lane.abandoned else []
        counted = (f"{number:,}" for number in (lane.waiting, lane.due, lane.running))
        name, priority = line(lane.queue or DEFAULT_QUEUE), str(lane.priority)
        table.add_row(Text(name), priority, *counted, oldest, Text("; ".join(remarks), "yellow"))
    return table


def _row(row: Sequence[str], widths: Sequence[int], name: str, style: str) -> Text:
    cells = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)]
    found = Text("  ".join([*cells, name]).rstrip(), no_wrap=True, overflow="ellipsis")
    start = widths[0] + 2
    if row[0] == "TASK":
        found.stylize(style)
    else:
        found.stylize(style, start, start + widths[1])
    return found


def _error(error: str, out: Console) -> Iterable[Text]:
    if not out.is_terminal:
        return [Text(" " * 2 * INDENT + error, "red", no_wrap=True, overflow="ignore")]
    width = max(out.width - 2 * INDENT, 1)
    found = list(Text(error, "red").wrap(out, width))
    if len(found) > LINES_OF_AN_ERROR:
        found = found[:LINES_OF_AN_ERROR]
        found[-1].truncate(width - 1)
        found[-1].append("…")
    for each in found:
        each.rstrip()
        each.pad_left(2 * INDENT)
    return found


def age(task: TaskInfo, now: datetime) -> str:
    """Returns how long a task has been in its status; for one that is not due yet, how long it will be."""
    since = task.finished_at or task.due_at or task.started_at or task.enqueued_at
    seconds = (now - since).total_seconds()
    return f"in {format_duration(-seconds)}" if seconds < 0 else format_duration(seconds)


def details(task: TaskDetails, *, tracebacks: bool) -> RenderableType:
    """Everything about one task, and the traceback of each of its failed attempts if ``tracebacks`` is set."""
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=9, style="dim")
    table.add_column(overflow="fold")
    table.add_row("task", Text(line(task.task_id), "bold"))
    table.add_row("name", Text(line(task.name)))
    table.add_row("status", Text(task.status, STYLES[task.status]))
    if task.queue or task.priority:
        table.add_row("queue", Text(f"{line(task.queue or DEFAULT_QUEUE)}, priority {task.priority}"))
    table.add_row("attempt", _attempt(task, " of "))
    now = datetime.now(UTC)
    for name, moment in _moments(task):
        table.add_row(name, _moment(moment, now))
    table.add_row("payload", f"{task.payload_bytes:,} bytes, {line(task.format) or 'format unknown'}")
    if task.result_bytes is not None:
        table.add_row("result", f"{task.result_bytes:,} bytes")
    if task.error is not None:
        table.add_row("error", Text(printable(task.error), "red"))
    parts: list[RenderableType] = [table]
    if task.traceback is not None:
        traceback = Text(printable(task.traceback).rstrip())
        parts += [Text(), Padding(traceback, (0, 0, 0, INDENT), expand=False)]
    if task.failed_attempts:
        parts += [Text(), _failed_attempts(task.failed_attempts, now, tracebacks=tracebacks)]
    return Group(*parts)


def _attempt(task: TaskInfo, of: str) -> str:
    """The number of the latest run; how many there may be, unless runs that do not count make it a riddle."""
    return f"{task.attempt}" if task.attempt > task.max_attempts else f"{task.attempt}{of}{task.max_attempts}"


def _failed_attempts(failed: Iterable[FailedAttempt], now: datetime, *, tracebacks: bool) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=9, style="dim")
    table.add_column(overflow="fold")
    for each in failed:
        said = f"attempt {each.attempt}, {_moment(each.ended_at, now)}"
        if each.started_at is not None:
            said += f", after {(each.ended_at - each.started_at).total_seconds():,.3f} seconds"
        if each.ran_on:
            said += f", on {line(each.ran_on)}"
        table.add_row("failed", Text(said))
        table.add_row("", Text(printable(each.error), "red"))
        if tracebacks and each.traceback is not None:
            table.add_row("", Text(printable(each.traceback).rstrip()))
    return table


def _moments(task: TaskInfo) -> Iterable[tuple[str, datetime]]:
    moments = {
        "enqueued": task.enqueued_at,
        "due": task.due_at,
        "started": task.started_at,
        "lease end": task.lease_ends_at,
        "asked": task.asked_at,
        "cancelled" if task.status == "cancelled" else "finished": task.finished_at,
    }
    return ((name, moment) for name, moment in moments.items() if moment is not None)


def _moment(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    distance = f"in {format_duration(-seconds)}" if seconds < 0 else f"{format_duration(seconds)} ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({distance})"


def findings(found: Sequence[Finding]) -> RenderableType:
    """What was examined, and under each what to do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=5)
    table.add_column(min_width=13)
    table.add_column(overflow="fold")
    arrow = "→" if can_encode("→") else "->"
    for finding in found:
        what = Text(line(finding.found))
        if finding.advice is not None:
            what.append(f"\n{arrow} {finding.advice}", "bold")
        table.add_row(Text(finding.level, LEVEL_STYLES[finding.level]), finding.name, what)
    return table
