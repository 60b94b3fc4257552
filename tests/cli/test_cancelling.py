"""``sitq cancel --running``, and what is shown of tasks that were asked to end and of failed attempts."""

import asyncio
import json

from sitq import SQLiteBackend
from sitq.errors import CUT
from sitq.models import Outcome
from tests.cli.support import Filled, ask_here, run
from tests.cli.test_trouble import change
from tests.support import rows


def start_waiting(filled: Filled) -> None:
    """Lets a worker that does nothing more hold the task that is due."""
    change(
        filled.path,
        "UPDATE tasks SET status = 'in_progress', claim = 7, attempt = 1, started_at = enqueued_at, "
        "available_at = enqueued_at + 3600000000 WHERE task_id = ?",
        filled.waiting,
    )


def test_a_running_task_is_left_unless_it_is_said_otherwise(filled: Filled) -> None:
    """As it was: what waits is cancelled, what runs is not."""
    start_waiting(filled)
    ended = run("cancel", filled.path, filled.waiting, filled.scheduled)
    assert (ended.status, ended.output) == (1, "cancelled 1 task\n")
    assert ended.errors == f"not cancelled: {filled.waiting}: it is in_progress\n"


def test_a_running_task_is_asked_to_end(filled: Filled) -> None:
    """It is said how many were asked beside those that were cancelled, and what was left."""
    start_waiting(filled)
    ended = run("cancel", filled.path, filled.waiting, filled.scheduled, filled.success, "--running", "ask")
    assert (ended.status, ended.output) == (1, "cancelled 1 task\nasked 1 task to end\n")
    assert ended.errors == f"not cancelled: {filled.success}: it is success\n"
    assert ask_here("cancel", filled.path, filled.waiting, "--running", "ask") == (
        "cancelled 0 tasks\nasked 1 task to end\n"
    )
    (listed,) = [line for line in ask_here("list", filled.path).splitlines() if line.startswith(filled.waiting)]
    assert "  in_progress, asked to end  " in listed
    assert "\nasked      20" in ask_here("show", filled.path, filled.waiting)
    assert json.loads(ask_here("show", filled.path, filled.waiting, "--json"))["asked_at"].endswith("+00:00")


def test_a_running_task_is_cut(filled: Filled) -> None:
    """It is cancelled at once, with the reason."""
    start_waiting(filled)
    assert json.loads(ask_here("cancel", filled.path, filled.waiting, "--running", "cut", "--json")) == {
        "cancelled": [],
        "cut": [filled.waiting],
        "refused": [],
    }
    (row,) = rows(filled.path, "SELECT status, claim, error FROM tasks WHERE task_id = ?", filled.waiting)
    assert row == {"status": "cancelled", "claim": None, "error": CUT}


def fail_again(filled: Filled) -> None:
    """Has the task that is due fail twice, of which the first is retried."""

    async def fail() -> None:
        backend = SQLiteBackend(filled.path)
        await backend.connect()
        for n, retry_in in enumerate((0, None)):
            (held,) = (await backend.reserve(1, lease=60, alone=True)).tasks
            outcome = Outcome(held, error=f"KeyError: {n}\nstatus", traceback=f"Traceback {n}\nstatus", ran_on="a\nb")
            await backend.mark_failure([outcome._replace(retry_in=retry_in)])
        await backend.close()

    asyncio.run(fail())


def test_each_failed_attempt_is_printed(filled: Filled) -> None:
    """When, for how long, where and why; of the tracebacks only the last one, unless all are asked for."""
    fail_again(filled)
    shown = ask_here("show", filled.path, filled.waiting)
    lines = [line for line in shown.splitlines() if line.startswith("failed ")]
    assert len(lines) == 2
    for n, line in enumerate(lines):
        assert line.startswith(f"failed     attempt {n + 1}, 20")
        assert line.endswith(" seconds, on a\\nb")
        assert f"           KeyError: {n}\n           status\n" in shown
    assert (shown.count("Traceback 0"), shown.count("Traceback 1")) == (0, 1)
    shown = ask_here("show", filled.path, filled.waiting, "--tracebacks")
    assert (shown.count("Traceback 0"), shown.count("Traceback 1")) == (1, 2)
    assert [line for line in shown.splitlines() if line.startswith("status ")] == ["status     failed"]


def test_each_failed_attempt_is_in_json(filled: Filled) -> None:
    """With its traceback; a task that never failed has none."""
    fail_again(filled)
    shown = json.loads(ask_here("show", filled.path, filled.waiting, "--json"))
    assert shown["failures"] == 1
    first, second = shown["failed_attempts"]
    assert (first["attempt"], first["error"], first["traceback"], first["ran_on"]) == (
        1,
        "KeyError: 0\nstatus",
        "Traceback 0\nstatus",
        "a\nb",
    )
    assert first["started_at"] < first["ended_at"] <= second["started_at"]
    assert first["ended_at"].endswith("+00:00")
    assert json.loads(ask_here("show", filled.path, filled.success, "--json"))["failed_attempts"] == []
