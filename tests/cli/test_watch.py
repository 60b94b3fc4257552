"""``sitq watch``: a view that stays up to date, for a terminal, a pipe and a program."""

import json
import os
import signal
from pathlib import Path

import pytest

from sitq import SQLiteBackend, SyncTaskQueue
from sitq.backends.inspect import Counts
from sitq.cli import render
from sitq.cli.durations import format_duration, parse_duration
from tests.cli.support import Filled, in_terminal, ok, start, without_codes


def test_a_change_is_seen_by_the_next_look(filled: Filled) -> None:
    """A line of JSON for each query; a task that is enqueued meanwhile is counted by a later one."""
    process = start("watch", filled.path, "--json", "--interval", "0.05s")
    assert process.stdout is not None
    with process:
        first = json.loads(process.stdout.readline())
        with SyncTaskQueue(SQLiteBackend(filled.path)) as queue:
            queue.enqueue(ok)
        while json.loads(process.stdout.readline())["pending"] == first["pending"]:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (first["pending"], first["failed"], first["running"]) == (2, 2, [])
    assert list(first) == ["at", *Counts.__dataclass_fields__, "running"]
    assert (process.returncode, errors) == (0, "")


def test_a_pipe_gets_a_line_for_each_look(filled: Filled) -> None:
    """Without colours, and at once; Ctrl-C ends it with status 0."""
    process = start("watch", filled.path, "--interval", "0.05")
    assert process.stdout is not None
    with process:
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert all(" pending=2 in_progress=0 success=1 failed=2 cancelled=1 oldest=" in line for line in lines)
    assert (process.returncode, errors) == (0, "")


def test_a_file_that_goes_away_is_one_line(filled: Filled) -> None:
    """It is said on stderr, with status 1, and the file is not made again."""
    process = start("watch", filled.path, "--interval", "0.05")
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        filled.path.unlink()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "is not there any more" in errors
    assert not filled.path.exists()


async def test_a_terminal_shows_what_is_running(path: Path, filled: Filled) -> None:
    """Counts, rates, the oldest waiting task, and each task that runs; Ctrl-C ends it with status 0."""
    backend = SQLiteBackend(path)
    await backend.connect()
    try:
        (task,) = (await backend.reserve(1, lease=60, alone=True)).tasks
        with in_terminal("watch", path) as (process, leader):
            shown = ""
            while f"{task.task_id}  in_progress" not in shown:
                shown = without_codes(shown + os.read(leader, 65536).decode())
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        await backend.close()
    lines = shown.splitlines()
    assert str(path) in "".join(lines)  # a long one is folded
    assert "last minute: 6 enqueued, 1 succeeded, 2 failed" in [line.strip() for line in lines]
    assert any(line.split() == ["pending", "1", "1", "not", "due", "yet"] for line in lines)
    assert any(line.split() == ["in_progress", "1"] for line in lines)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("1.5m", 90), (" 2h ", 7200), ("7d", 604800), ("1w", 604800)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """A number, and a unit if it is not seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "1 2", "1e3", "٣s", "inf", "nan", "1d2h", "99999999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Rather than guessed."""
    with pytest.raises(ValueError, match=r"duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.4, "0s"),
        (119.4, "119s"),
        (120, "2m"),
        (7199, "120m"),
        (7200, "2h"),
        (172_799, "48h"),
        (1e6, "12d"),
    ],
)
def test_durations_are_written_in_one_unit(seconds: float, text: str) -> None:
    """The largest one that still says something."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2Jb", r"a\x1b[2Jb"), ("a\x07\r\n\tb", "a\\x07\\r\n\tb"), ("é→", "é→")]
)
def test_a_tasks_text_gives_no_orders_to_the_terminal(text: str, shown: str) -> None:
    """Control characters are written out; lines, tabs and letters of any language stay."""
    assert render.printable(text) == shown
