"""``sitq retry``, ``cancel``, ``prune``: what they change, and what they leave."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskCancelledError, TaskQueue, Worker
from tests.cli.support import Filled, ask, ask_here, refuse, run
from tests.cli.test_trouble import change
from tests.support import rows


def statuses(filled: Filled) -> dict[str, str]:
    """Returns the status of each task, by its id."""
    return {row["task_id"]: row["status"] for row in rows(filled.path)}


def test_retry_makes_tasks_pending_again(filled: Filled) -> None:
    """A failed one and a cancelled one, from their first attempt."""
    assert ask("retry", filled.path, filled.failed, filled.cancelled) == "retried 2 tasks\n"
    for row in rows(filled.path, "SELECT * FROM tasks WHERE task_id IN (?, ?)", filled.failed, filled.cancelled):
        assert (row["status"], row["attempt"], row["error"], row["claim"]) == ("pending", 0, None, None)


def test_retry_says_what_it_did_not_retry(filled: Filled) -> None:
    """In a line for each on stderr, with status 1; the others are retried all the same."""
    ended = run("retry", filled.path, filled.success, filled.failed, "nothing", filled.waiting)
    assert (ended.status, ended.output) == (1, "retried 1 task\n")
    assert ended.errors.splitlines() == [
        f"not retried: {filled.success}: it is success",
        "not retried: nothing: there is no such task",
        f"not retried: {filled.waiting}: it is pending",
    ]


def test_retry_in_json(filled: Filled) -> None:
    """What was retried, and of what was refused the status; null if there is no such task."""
    ended = run("retry", filled.path, filled.success, filled.failed, "nothing", "--json")
    assert (ended.status, ended.errors) == (1, "")
    assert ended.json == {
        "retried": [filled.failed],
        "refused": [{"task_id": filled.success, "status": "success"}, {"task_id": "nothing", "status": None}],
    }


def test_every_failed_task_is_retried(filled: Filled) -> None:
    """And none that was cancelled."""
    found = json.loads(ask("retry", filled.path, "--failed", "--json"))
    assert (set(found["retried"]), found["refused"]) == ({filled.failed, filled.coloured}, [])
    assert statuses(filled)[filled.cancelled] == "cancelled"
    assert ask_here("retry", filled.path, "--failed") == "retried 0 tasks\n"


def test_failed_tasks_are_retried_by_their_cause(filled: Filled) -> None:
    """Those that fit, and no others."""
    assert ask_here("retry", filled.path, "--failed", "--error", "no such error") == "retried 0 tasks\n"
    assert ask_here("retry", filled.path, "--failed", "--name", "*:refuse", "--since", "1h") == "retried 1 task\n"
    assert (statuses(filled)[filled.failed], statuses(filled)[filled.coloured]) == ("pending", "failed")


@pytest.mark.parametrize(("command", "status"), [("retry", "pending"), ("cancel", "cancelled")])
def test_what_was_abandoned_can_be_mended_by_hand(filled: Filled, command: str, status: str) -> None:
    """A task whose lease is over; its claim is gone, and with it what the run could still record."""
    change(
        filled.path,
        "UPDATE tasks SET status = 'in_progress', claim = 7, attempt = 2, available_at = 1 WHERE task_id = ?",
        filled.waiting,
    )
    assert ask_here(command, filled.path, filled.waiting).endswith(" 1 task\n")
    (row,) = rows(filled.path, "SELECT status, claim FROM tasks WHERE task_id = ?", filled.waiting)
    assert row == {"status": status, "claim": None}


def test_a_change_needs_the_whole_id(filled: Filled) -> None:
    """What is enough to look is not enough to change something."""
    ended = run("cancel", filled.path, filled.waiting[:-1])
    assert (ended.status, ended.output) == (1, "cancelled 0 tasks\n")
    assert ended.errors == f"not cancelled: {filled.waiting[:-1]}: there is no such task\n"


async def test_a_retried_task_is_run_by_a_worker_that_waits(path: Path) -> None:
    """The worker of this process is woken by the command of another."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(refuse, "the mail")
        async with Worker(backend, poll_interval=3600):
            first = await queue.get_result(task_id)
            await asyncio.to_thread(ask, "retry", path, task_id)
            second = await queue.get_result(task_id)
    assert first is not None
    assert second is not None
    assert (first.attempt, second.attempt) == (1, 1)
    assert (first.status, second.status) == ("failed", "failed")
    assert (second.finished_at or second.enqueued_at) > (first.finished_at or first.enqueued_at)


def test_cancel_finishes_waiting_tasks(filled: Filled) -> None:
    """One that is due and one that is not; whoever asks for the result learns it at once."""
    assert ask("cancel", filled.path, filled.waiting, filled.scheduled) == "cancelled 2 tasks\n"
    with SyncTaskQueue(SQLiteBackend(filled.path)) as queue:
        result = queue.get_result(filled.waiting)
    assert result is not None
    with pytest.raises(TaskCancelledError, match=f"task {filled.waiting} was cancelled while it waited to be run"):
        result.unwrap()


def test_cancel_says_what_it_did_not_cancel(filled: Filled) -> None:
    """What has ended, and what is not there; the status is 1."""
    ended = run("cancel", filled.path, filled.failed, filled.waiting, "nothing")
    assert (ended.status, ended.output) == (1, "cancelled 1 task\n")
    assert ended.errors.splitlines() == [
        f"not cancelled: {filled.failed}: it is failed",
        "not cancelled: nothing: there is no such task",
    ]
    assert run("cancel", filled.path, filled.waiting, "--json").json == {
        "cancelled": [],
        "refused": [{"task_id": filled.waiting, "status": "cancelled"}],
    }


async def test_a_running_task_cannot_be_cancelled(path: Path, filled: Filled) -> None:
    """It stays with its worker."""
    backend = SQLiteBackend(path)
    await backend.connect()
    try:
        held = await backend.reserve(1, lease=60, alone=True)
        ended = await asyncio.to_thread(run, "cancel", path, filled.waiting)
        assert ended.errors == f"not cancelled: {filled.waiting}: it is in_progress\n"
        assert list(await backend.release(held.tasks)) == []
    finally:
        await backend.close()


async def test_who_waits_for_a_cancelled_task_is_woken(path: Path) -> None:
    """``get_result`` without a timeout returns when the command of another process has cancelled the task."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(refuse, "it is never run")
        waiting = asyncio.create_task(queue.get_result(task_id))
        await asyncio.to_thread(ask, "cancel", path, task_id)
        result = await waiting
    assert result is not None
    assert result.status == "cancelled"


def test_prune_deletes_what_finished_long_ago(filled: Filled) -> None:
    """Finished tasks older than that, and no others."""
    assert ask_here("prune", filled.path, "--older-than", "1h") == "pruned 0 tasks\n"
    assert json.loads(ask("prune", filled.path, "--older-than", "0", "--json")) == {"pruned": 4}
    assert set(statuses(filled)) == {filled.waiting, filled.scheduled}


def test_a_command_prunes_nothing_by_itself(filled: Filled) -> None:
    """The retention is that of the workers: however old a result is, looking at it does not delete it."""
    connection = sqlite3.connect(filled.path)
    with connection:
        connection.execute("UPDATE tasks SET finished_at = 1 WHERE finished_at IS NOT NULL")
    connection.close()
    ask_here("list", filled.path)
    ask_here("retry", filled.path, filled.failed)
    assert len(rows(filled.path)) == 6
