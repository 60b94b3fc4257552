"""``sitq worker --retention-failed``: how long failed tasks are kept."""

from pathlib import Path

import pytest

from sitq import SQLiteBackend, TaskQueue
from sitq.models import Outcome
from tests.cli.support import ok, run, working
from tests.cli.test_trouble import change
from tests.faults import connected, new_task
from tests.support import DEADLINE_SECONDS, rows, until


async def finish_both(path: Path) -> None:
    """Leaves a task that succeeded and one that failed, in the year 1970."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("success"), new_task("failed")])
        one, other = (await backend.reserve(2, lease=60, alone=True)).tasks
        await backend.mark_success([Outcome(one, b"")])
        await backend.mark_failure([Outcome(other, error="E: no")])
    change(path, "UPDATE tasks SET finished_at = 1")


async def work(path: Path, tmp_path: Path, *options: str) -> None:
    """Has a worker of the command run a task, and wait for others."""
    async with TaskQueue(SQLiteBackend(path), default_result_timeout=DEADLINE_SECONDS) as queue:
        with working(tmp_path, path, *options) as worker:
            assert await queue.get_result(await queue.enqueue(ok)) is not None
            await until(lambda: "success" not in left(path))
            worker.process.terminate()
            assert await worker.ended() == 0


def left(path: Path) -> set[str]:
    """Returns which of the two tasks are there."""
    return {row["task_id"] for row in rows(path, "SELECT task_id FROM tasks")} & {"success", "failed"}


@pytest.mark.parametrize(("age", "kept"), [("forever", {"failed"}), ("36500d", {"failed"}), ("1h", set())])
async def test_failed_tasks_are_kept_as_long_as_the_command_is_told(
    path: Path, tmp_path: Path, age: str, kept: set[str]
) -> None:
    """The others as long as they are."""
    await finish_both(path)
    await work(path, tmp_path, "--retention", "1d", "--retention-failed", age)
    assert left(path) == kept


async def test_failed_tasks_are_kept_as_the_application_chose(path: Path, tmp_path: Path) -> None:
    """If the command is not told."""
    await finish_both(path)
    async with connected(SQLiteBackend(path, retention_failed=None)):
        pass
    await work(path, tmp_path)
    assert left(path) == {"failed"}


def test_an_age_of_failed_tasks_needs_its_unit(path: Path) -> None:
    """As that of the others."""
    done = run("worker", path, "--retention-failed", "30")
    assert done.status == 2
    assert "is not a duration" in done.errors
