"""How the number of a run is shown if most of the runs do not count."""

from pathlib import Path

from sitq import Backoff, SQLiteBackend, TaskQueue, Worker
from tests.cli.support import ask


def refuse() -> None:
    """Raises, each time."""
    raise ConnectionError("no route to host")


async def test_more_runs_than_may_end_with_a_death_are_not_shown_as_too_many(tmp_path: Path) -> None:
    """After eight runs that raised stands no `8 of 5`: only deaths bring a task nearer to its last attempt."""
    path = tmp_path / "queue.db"
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(retry=Backoff(retries=7, first=0)).enqueue(refuse)
        assert await Worker(backend).drain() == 8
    (line,) = [line.split() for line in ask("list", path).splitlines() if task_id in line]
    assert line[:3] == [task_id, "failed", "8"]
    assert ["attempt", "8"] in [line.split() for line in ask("show", path, task_id).splitlines()]
