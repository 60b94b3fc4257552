"""Failed tasks that are kept for another time than the rest."""

import itertools
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite import pruning
from sitq.models import Outcome
from tests.faults import Clock, assert_healthy, connected, new_task, on_connection, write_lock
from tests.support import rows

HOUR = 3600.0
INDEXES = "SELECT name FROM sqlite_schema WHERE type = 'index' AND name LIKE 'tasks_%' ORDER BY name"
OTHERS = ["tasks_due", "tasks_finished", "tasks_last", "tasks_spent"]


@pytest.fixture(autouse=True)
def prune_at_every_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished tasks go as soon as they may."""
    monkeypatch.setattr(pruning, "PRUNE_PAUSE_SECONDS", 0.0)


async def finish(backend: SQLiteBackend, **counts: int) -> None:
    """Stores so many tasks of each status, and ends them."""
    for status, count in counts.items():
        ids = [f"{status} {n}" for n in range(count)]
        await backend.enqueue([new_task(task_id) for task_id in ids])
        if status == "cancelled":
            await backend.cancel(ids)
            continue
        held = (await backend.reserve(max(count, 1), lease=HOUR, alone=True)).tasks
        if status == "failed":
            await backend.mark_failure([Outcome(task, error="E: no") for task in held])
        else:
            await backend.mark_success([Outcome(task, b"") for task in held])


async def left(path: Path, clock: Clock, **options: Any) -> set[str]:
    """Returns which statuses are left after a worker has looked for tasks."""
    async with connected(SQLiteBackend(path, clock=clock, **options)) as backend:
        await backend.reserve(1, lease=1, alone=True)
    return {row["status"] for row in rows(path)}


@pytest.mark.parametrize(
    ("options", "after_an_hour", "after_two"),
    [
        ({"retention": HOUR, "retention_failed": 2 * HOUR}, {"failed"}, set()),
        ({"retention": HOUR, "retention_failed": timedelta(hours=2)}, {"failed"}, set()),
        ({"retention": HOUR, "retention_failed": None}, {"failed"}, {"failed"}),
        ({"retention": 2 * HOUR, "retention_failed": HOUR}, {"success", "cancelled"}, set()),
        ({"retention": None, "retention_failed": HOUR}, {"success", "cancelled"}, {"success", "cancelled"}),
        ({"retention": HOUR, "retention_failed": HOUR}, set(), set()),
        ({"retention": HOUR, "retention_failed": "as retention"}, set(), set()),
        ({"retention": HOUR}, set(), set()),
        ({"retention": None, "retention_failed": None}, *[{"success", "cancelled", "failed"}] * 2),
    ],
)
async def test_failed_tasks_are_kept_for_a_time_of_their_own(
    path: Path, options: dict[str, Any], after_an_hour: set[str], after_two: set[str]
) -> None:
    """The others, cancelled ones among them, for theirs; if nothing is said of failed ones, all alike."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=None)) as backend:
        await finish(backend, success=2, failed=2, cancelled=2)
    for expected in (after_an_hour, after_two):
        clock.now += HOUR
        await left(path, clock, **options)
        clock.now += 1
        assert await left(path, clock, **options) == expected
    assert_healthy(path)


async def test_a_time_for_failed_tasks_holds_for_who_does_not_choose(path: Path) -> None:
    """It stands in the file, beside that of the others; the latest choice does."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=HOUR, retention_failed=None)) as backend:
        await finish(backend, success=1, failed=1)
    clock.now += 2 * HOUR
    assert await left(path, clock) == {"failed"}
    assert await left(path, clock, retention=0) == {"failed"}
    assert await left(path, clock, retention_failed=3 * HOUR) == {"failed"}
    clock.now += 2 * HOUR
    assert await left(path, clock) == set()
    stored = {row["key"]: row["value"] for row in rows(path, "SELECT * FROM settings")}
    assert stored == {"retention": 0, "retention_failed": 3 * 3600 * 1_000_000}


async def test_a_time_for_failed_tasks_that_nobody_chose_leaves_no_trace(path: Path) -> None:
    """No index and no setting; nor does one that is the same as for the others leave an index."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=HOUR)) as backend:
        await finish(backend, success=1, failed=1)
    assert [row["key"] for row in rows(path, "SELECT key FROM settings")] == ["retention"]
    assert await left(path, clock, retention_failed=HOUR) == {"success", "failed"}
    assert [row["name"] for row in rows(path, INDEXES)] == OTHERS


async def test_the_index_is_made_by_the_first_worker(path: Path) -> None:
    """A producer that chooses does not wait for it."""
    async with connected(SQLiteBackend(path, retention_failed=None)) as backend:
        await backend.enqueue([new_task()])
        assert [row["name"] for row in rows(path, INDEXES)] == OTHERS
        assert len((await backend.reserve(1, lease=HOUR, alone=True)).tasks) == 1
        assert [row["name"] for row in rows(path, INDEXES)] == sorted([*OTHERS, "tasks_finished_apart"])
    assert rows(path, "SELECT name FROM features") == [{"name": "failed_rows"}]


async def test_a_process_that_has_the_file_open_goes_on_when_failed_tasks_are_kept_longer(path: Path) -> None:
    """Its statements are prepared and name an index: that one stays; it prunes as it did."""
    clock = Clock()
    async with (
        connected(SQLiteBackend(path, clock=clock, retention=HOUR)) as old,
        connected(SQLiteBackend(path, clock=clock, retention=HOUR, retention_failed=3 * HOUR)) as backend,
    ):
        await finish(old, success=1, failed=1)
        clock.now += 2 * HOUR
        assert {row["status"] for row in rows(path)} == {"success", "failed"}
        await backend.reserve(1, lease=1, alone=True)
        assert {row["status"] for row in rows(path)} == {"failed"}
        await finish(old, success=1)  # deletes the failed task: it has read the settings before they were chosen
        assert {row["status"] for row in rows(path)} == {"success"}
        await old.list(status="success", limit=1)
        await old.examine()


async def test_pruning_by_hand_deletes_both(path: Path) -> None:
    """What is older than was said, whatever is kept for how long."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=None, retention_failed=90 * 24 * HOUR)) as backend:
        await finish(backend, success=2, failed=2)
        clock.now += HOUR
        await backend.reserve(1, lease=1, alone=True)
        assert await backend.prune(older_than=2 * HOUR) == 0
        assert await backend.prune(older_than=HOUR / 2) == 4
    assert rows(path) == []


async def test_both_together_are_pruned_in_small_batches(path: Path) -> None:
    """One reservation deletes no more than a fixed number of rows, failed ones among them."""
    clock, most = Clock(), pruning.MAX_PRUNED_PER_RESERVATION
    async with connected(SQLiteBackend(path, clock=clock, retention=HOUR, retention_failed=2 * HOUR)) as backend:
        await finish(backend, success=most + 50, failed=most + 50)
        clock.now += 3 * HOUR
        counts = []
        while not counts or counts[-1]:
            await backend.reserve(1, lease=1, alone=True)
            counts.append(len(rows(path, "SELECT id FROM tasks")))
    assert counts == [most + 100, 100, 0]


@pytest.mark.parametrize(("many", "one"), [("failed", "success"), ("success", "failed")])
async def test_pruning_does_not_read_what_is_kept(path: Path, many: str, one: str) -> None:
    """The steps of SQLite's machine are as many with a thousand older tasks that stay as with one."""
    names = ("retention_failed", "retention") if many == "failed" else ("retention", "retention_failed")
    options: dict[str, Any] = dict(zip(names, (30 * 24 * HOUR, HOUR), strict=True))
    steps = []
    for count in (1, 1000):
        clock, file = Clock(), path.with_name(f"{count}.db")
        async with connected(SQLiteBackend(file, clock=clock, **options)) as backend:
            await finish(backend, **{many: count})
            clock.now += 60
            await finish(backend, **{one: 1})
            clock.now += 2 * HOUR
            counted = itertools.count()
            await on_connection(backend, lambda it, c=counted: it.set_progress_handler(lambda: next(c) and 0, 1))
            for _ in range(2):  # one that deletes, and one that finds nothing
                await backend.reserve(1, lease=1, alone=True)
            await on_connection(backend, lambda it: it.set_progress_handler(None, 1))
            steps.append(next(counted))
        assert {row["status"] for row in rows(file)} == {many}
    assert steps[1] < steps[0] + 100


async def test_pruning_apart_goes_along_its_index(path: Path) -> None:
    """No statement scans the table."""
    async with connected(SQLiteBackend(path, retention_failed=None)) as backend:
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        await backend.enqueue([new_task()])
        await backend.reserve(1, lease=1, alone=True)

        def plans(connection: sqlite3.Connection) -> list[str]:
            connection.set_trace_callback(None)
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_TRIGGER_EQP, True)
            asked = [sql for sql in statements if "PruneApart" in sql or "tasks_finished_apart" in sql]
            asked = [sql for sql in asked if sql.split()[0] in ("SELECT", "INSERT")]
            return [row[3] for sql in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await on_connection(backend, plans)
    assert any("tasks_finished_apart (<expr>=? AND" in step and "finished_at<?)" in step for step in steps)
    assert [step for step in steps if step.startswith("SCAN tasks")] == []


async def test_a_choice_for_failed_tasks_that_cannot_be_stored_keeps_nobody_from_working(path: Path) -> None:
    """The file is locked by another program when it is opened: the choice holds here, and for nobody else."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=HOUR)) as backend:
        await finish(backend, success=1, failed=1)
    clock.now += 2 * HOUR
    with write_lock(path):
        backend = SQLiteBackend(path, clock=clock, retention_failed=None, busy_timeout=0)
        await backend.connect()
    await backend.reserve(1, lease=1, alone=True)
    await backend.close()
    assert {row["status"] for row in rows(path)} == {"failed"}
    assert await left(path, clock) == set()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (timedelta(seconds=-1), ValueError),
        ("a week", TypeError),
        (True, TypeError),
    ],
)
def test_a_time_that_makes_no_sense_is_refused(path: Path, value: Any, error: type[Exception]) -> None:
    """The message names the argument."""
    with pytest.raises(error, match="retention_failed"):
        SQLiteBackend(path, retention_failed=value)
