"""Retries, cancelled runs and tasks that are stored with an outcome, as they stand in the file."""

from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite.jobs import DUE, RecordJob
from sitq.models import EPOCH, Extras, Outcome, ReservedTask, Unique
from tests.faults import Clock, connected, new_task, on_connection
from tests.support import rows


async def take(backend: SQLiteBackend) -> list[ReservedTask]:
    """Returns all that is due."""
    return list((await backend.reserve(9, lease=30, alone=True)).tasks)


def retry(task: ReservedTask, seconds: float = 0, **fields: Any) -> Outcome:
    """Returns an outcome that has ``task`` tried again."""
    return Outcome(task, error="E: no", traceback="Traceback", retry_in=seconds, **fields)


async def test_a_row_that_waits_to_be_retried_keeps_its_claim(path: Path) -> None:
    """By it the outcome is recognised; the row says when it is due, and why it was not the end."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        (running,) = rows(path)
        await backend.mark_failure([retry(held, 10)])
    assert rows(path) == [
        running
        | {
            "status": "pending",
            "available_at": int((clock.now + 10) * 1_000_000),
            "max_attempts": 6,
            "failures": 1,
            "error": "E: no",
            "traceback": "Traceback",
        }
    ]


@pytest.mark.parametrize("counts", [True, False])
async def test_a_retry_by_hand_gives_a_task_its_lives_back(counts: bool, path: Path) -> None:
    """It may be started as often as when it was new, however often it was tried again, and whether that counted."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(max_attempts=3)])
        for _ in range(4):
            (held,) = await take(backend)
            await backend.mark_failure([retry(held)._replace(counts=counts)])
        (held,) = await take(backend)
        await backend.mark_failure([Outcome(held, error="E: no")])
        assert await backend.retry(["task"]) == ["task"]
        (held,) = await take(backend)
    assert (held.attempt, held.max_attempts, held.failures) == (1, 3, 0)


@pytest.mark.parametrize("counts", [True, False])
async def test_a_listing_shows_the_attempts_that_were_asked_for(counts: bool, path: Path) -> None:
    """Retries by a policy do not change them, and the latest error is shown while the task waits."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(max_attempts=3)])
        for _ in range(2):
            (held,) = await take(backend)
            await backend.mark_failure([retry(held)._replace(counts=counts)])
        (listed,) = await backend.list(error="E: no")
        shown = await backend.show("task")
    assert shown is not None
    assert (listed.status, listed.attempt, listed.max_attempts, listed.error) == ("pending", 2, 3, "E: no")
    assert (shown.max_attempts, shown.error, shown.traceback) == (3, "E: no", "Traceback")


async def test_a_task_that_waits_to_be_retried_can_be_cancelled_by_hand(path: Path) -> None:
    """The outcome of its run is not recognised any more."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        await backend.mark_failure([retry(held, 60)])
        assert await backend.cancel(["task"]) == ["task"]
        assert await backend.mark_failure([retry(held, 60)]) == [held]


async def test_a_buried_task_tells_its_deaths_from_its_failures(path: Path) -> None:
    """The error counts the attempts that ended with a death, and those that were tried again beside them."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(max_attempts=1)])
        for counts in (True, False):
            (held,) = await take(backend)
            await backend.mark_failure([retry(held)._replace(counts=counts)])
        await backend.reserve(9, lease=0, alone=True)
        assert (await backend.reserve(9, lease=30, alone=True)).buried == ["task"]
    (row,) = rows(path)
    assert row["error"].startswith(
        "WorkerDiedError: each of 1 attempts, beside 2 that were tried again, ended with the death"
    )
    assert row["traceback"] is None


async def test_a_delay_beyond_all_dates_is_the_last_one(path: Path) -> None:
    """The task can be listed all the same."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        await backend.mark_failure([retry(held, 1e15)])
        (listed,) = await backend.list()
    assert listed.due_at is not None
    assert listed.due_at.year == 9999


def test_who_is_woken_by_what() -> None:
    """Workers by a retry and by new tasks, those who wait for a result by an end only."""
    task = ReservedTask(1, 1, "task", b"", "", "", 1, 5, EPOCH)
    wakes = [
        list(RecordJob([outcome], "failed").notifies([]))
        for outcome in (Outcome(task), retry(task), Outcome(task, then=[new_task("next")]))
    ]
    assert wakes == [["task"], [DUE], ["task", DUE]]


@pytest.mark.parametrize("mark", ["mark_success", "mark_failure"])
@pytest.mark.parametrize("extras", [None, Extras(queue="mail"), Extras(unique=Unique("key"))])
async def test_a_task_that_cannot_be_stored_refuses_the_call(path: Path, mark: str, extras: Extras | None) -> None:
    """Nothing of it is recorded, and nothing is stored."""
    async with connected(SQLiteBackend(path, max_payload_bytes=100)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        before = rows(path)
        with pytest.raises(ValueError, match="101 bytes"):
            await getattr(backend, mark)([Outcome(held, then=[new_task("next", b"x" * 101, extras=extras)])])
        assert rows(path) == before


async def test_the_triggers_of_endings_are_made_at_the_first_one(path: Path) -> None:
    """Until then, a backend whose tasks are not retried pays nothing for them."""

    async def triggers() -> set[str]:
        sql = "SELECT name FROM sqlite_temp_schema WHERE type = 'trigger'"
        return {name for (name,) in await on_connection(backend, lambda connection: connection.execute(sql).fetchall())}

    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        assert not {"change_KeepAndRetry", "change_StoreThen"} & await triggers()
        await backend.mark_failure([retry(held, then=[new_task("next")])])
        assert {"change_KeepAndRetry", "change_StoreThen"} <= await triggers()


async def test_a_call_of_many_statements_records_all_or_nothing(path: Path) -> None:
    """What was made for the first retry is made again, if the transaction in which it was made is rolled back."""
    count = 1000
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(str(n)) for n in range(count)])
        held = (await backend.reserve(count, lease=30, alone=True)).tasks
        outcomes = [retry(task, then=[new_task(f"after {task.task_id}")]) for task in held]
        before = rows(path)
        broken = [*outcomes[:-1], outcomes[-1]._replace(retry_in=float("nan"))]
        with pytest.raises(ValueError, match="NaN"):
            await backend.mark_failure(broken)
        assert rows(path) == before
        assert await backend.mark_failure(outcomes) == []
        counts = await backend.counts()
    assert (counts.pending, counts.in_progress) == (2 * count, 0)
