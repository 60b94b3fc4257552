"""Failed attempts: what is kept of them, for how long, and who pays for it."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.backends.inspect import FailedAttempt, TaskDetails
from sitq.backends.sqlite.failures import MAX_KEPT_FAILURES
from sitq.backends.sqlite.reading import Reader
from sitq.models import Outcome, ReservedTask, from_micros
from tests.faults import Clock, connected, new_task, on_connection, outside
from tests.support import add, rows

KEPT = "SELECT * FROM task_failures ORDER BY task, number"


def failure(task: ReservedTask, error: str = "E: no", **fields: Any) -> Outcome:
    """Returns the failure of a run."""
    return Outcome(task, error=error, traceback=f"Traceback of {error}", ran_on="host, pid 7", **fields)


async def take(backend: SQLiteBackend, limit: int = 9) -> list[ReservedTask]:
    """Returns what is due."""
    return list((await backend.reserve(limit, lease=30, alone=True)).tasks)


async def show(backend: SQLiteBackend, task_id: str = "task") -> TaskDetails:
    """Returns what is shown of a task that is there."""
    found = await backend.show(task_id)
    assert found is not None
    return found


def moment(seconds: float) -> datetime:
    """Returns what is shown of a time of the clock."""
    return from_micros(int(seconds * 1_000_000))


async def test_each_failed_attempt_is_shown(path: Path) -> None:
    """With its number, its times, its error and traceback and where it ran; also while the task waits to be retried."""
    clock = Clock()
    expected = []
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([new_task()])
        for attempt in (1, 2, 3):
            clock.now += 10
            (held,) = await take(backend)
            started_at = clock.now
            clock.now += 2
            error = f"E: {attempt}"
            await backend.mark_failure([failure(held, error, retry_in=0 if attempt < 3 else None)])
            expected.append(
                FailedAttempt(
                    attempt=attempt,
                    started_at=moment(started_at),
                    ended_at=moment(clock.now),
                    error=error,
                    traceback=f"Traceback of {error}",
                    ran_on="host, pid 7",
                )
            )
            found = await show(backend)
            assert list(found.failed_attempts) == expected
            assert (found.error, found.failures) == (error, min(attempt, 2))
        (listed,) = await backend.list()
        assert (listed.status, listed.failures) == ("failed", 2)
    assert list((await Reader(path).show("task") or found).failed_attempts) == expected


async def test_a_worker_says_where_a_run_failed(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The host and the process, beside the error that the task shows."""
    task_id = await queue.enqueue(divmod, 1, 0)
    await Worker(backend).drain()
    found = await show(backend, task_id)
    (failed,) = found.failed_attempts
    assert (failed.error, failed.traceback, failed.attempt) == (found.error, found.traceback, 1)
    assert failed.ran_on.rpartition(", pid ")[2].isdigit()
    assert failed.started_at == found.started_at
    assert failed.ended_at == found.finished_at


@pytest.mark.parametrize("retry_in", [None, 0])
async def test_a_late_failure_is_not_kept(path: Path, retry_in: float | None) -> None:
    """A run that does not hold its task any more has failed for nobody; its neighbour in the call is kept."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([new_task()])
        (late,) = await take(backend)
        clock.now += 31
        (held,) = await take(backend)
        await backend.enqueue([new_task("other")])
        (other,) = await take(backend)
        outcomes = [failure(each, retry_in=retry_in) for each in (late, other)]
        assert list(await backend.mark_failure(outcomes)) == [late]
        assert (await show(backend)).failed_attempts == []
        assert len((await show(backend, "other")).failed_attempts) == 1
        await backend.mark_success([Outcome(held, b"")])
        assert (await show(backend)).failed_attempts == []


@pytest.mark.parametrize("retry_in", [None, 100])
async def test_a_failure_that_is_recorded_again_is_kept_once(path: Path, retry_in: float | None) -> None:
    """Because the answer to the first call was lost."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        for _ in range(3):
            assert list(await backend.mark_failure([failure(held, retry_in=retry_in)])) == []
        assert len((await show(backend)).failed_attempts) == 1


async def test_a_buried_task_shows_the_failures_before_its_death(path: Path) -> None:
    """The death of a worker leaves no error to keep; the task's own error says what became of it."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([new_task(max_attempts=1)])
        (held,) = await take(backend)
        await backend.mark_failure([failure(held, retry_in=0)])
        await take(backend)
        clock.now += 31
        assert list((await backend.reserve(9, lease=30, alone=True)).buried) == ["task"]
        found = await show(backend)
    assert str(found.error).startswith("WorkerDiedError")
    assert [(failed.attempt, failed.error) for failed in found.failed_attempts] == [(1, "E: no")]


async def test_what_is_no_failure_is_not_kept(path: Path) -> None:
    """A success, a run that was cancelled, one that only waits for something, and one that was given back."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(str(n)) for n in range(4)])
        success, cancelled, waits, given_back = await take(backend)
        before = rows(path, "SELECT name FROM sqlite_schema")
        await backend.mark_success([Outcome(success, b"")])
        await backend.mark_failure([failure(cancelled, cancelled=True), failure(waits, retry_in=9, counts=False)])
        await backend.release([given_back])
        assert rows(path, "SELECT name FROM sqlite_schema") == before
        assert [(await show(backend, str(n))).failed_attempts for n in range(4)] == [()] * 4


async def test_a_success_after_failures_shows_them(path: Path) -> None:
    """Of a task that has succeeded there is no error, but there is what came before."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        await backend.mark_failure([failure(held, retry_in=0) for held in await take(backend)])
        await backend.mark_success([Outcome(held, b"") for held in await take(backend)])
        found = await show(backend)
    assert (found.status, found.error, found.failures) == ("success", None, 1)
    assert [failed.error for failed in found.failed_attempts] == ["E: no"]


async def test_a_retry_by_hand_keeps_the_failures(path: Path) -> None:
    """Whoever asks for it can see what happened before; the numbers of attempts begin anew."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        for error in ("E: one", "E: two"):
            await backend.mark_failure([failure(held, error) for held in await take(backend)])
            await backend.retry(["task"])
        found = await show(backend)
    assert (found.status, found.error, found.failures) == ("pending", None, 0)
    assert [(failed.attempt, failed.error) for failed in found.failed_attempts] == [(1, "E: one"), (1, "E: two")]


async def test_the_latest_failures_are_kept_and_no_more(path: Path) -> None:
    """A task that is retried for ever does not fill the disk."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        for n in range(MAX_KEPT_FAILURES + 7):
            await backend.mark_failure([failure(held, f"E: {n}", retry_in=0) for held in await take(backend)])
        found = await show(backend)
    assert [failed.error for failed in found.failed_attempts] == [f"E: {n}" for n in range(7, MAX_KEPT_FAILURES + 7)]
    assert len(rows(path, KEPT)) == MAX_KEPT_FAILURES


@pytest.mark.parametrize("how", ["by a worker", "by prune", "by hand"])
async def test_failures_go_with_their_task(path: Path, how: str) -> None:
    """Whoever deletes it; those of the others stay, and the numbers say how many were deleted."""
    clock = Clock()
    retention = timedelta(seconds=60) if how == "by a worker" else None
    async with connected(SQLiteBackend(path, clock=clock, retention=retention)) as backend:
        await backend.enqueue([new_task(f"old-{n}") for n in range(3)])
        await backend.mark_failure([failure(held) for held in await take(backend)])
        clock.now += 100
        await backend.enqueue([new_task("young")])
        if how == "by prune":
            assert await backend.prune(older_than=50) == 3
        elif how == "by hand":
            with outside(path) as connection:
                connection.execute("DELETE FROM tasks WHERE task_id LIKE 'old-%'")
    async with connected(SQLiteBackend(path, clock=clock)) as worker:  # it has not yet found that there is nothing old
        await worker.mark_failure([failure(held) for held in await take(worker)])
    assert [row["task_id"] for row in rows(path)] == ["young"]
    (kept,) = rows(path, KEPT)
    assert [kept["task"]] == [row["id"] for row in rows(path)]


async def test_only_failures_pay_for_it(path: Path) -> None:
    """The table, and the triggers of a connection, are made by the first failure."""
    sql = "SELECT name FROM sqlite_temp_schema WHERE type = 'trigger'"

    async def triggers() -> set[str]:
        return {name for (name,) in await on_connection(backend, lambda connection: connection.execute(sql).fetchall())}

    async with connected(SQLiteBackend(path)) as backend:
        before = rows(path, "SELECT name FROM sqlite_schema")
        await backend.enqueue([new_task(), new_task("other")])
        held, other = await take(backend)
        await backend.mark_success([Outcome(held, b"")])
        assert (await show(backend)).failed_attempts == ()
        assert rows(path, "SELECT name FROM sqlite_schema") == before
        assert not {"change_Fail", "change_KeepAndFail", "change_KeepAndRetry"} & await triggers()
        await backend.mark_failure([failure(other)])
        made = {row["name"] for row in rows(path, "SELECT name FROM sqlite_schema WHERE sql NOTNULL")}
    assert made - {row["name"] for row in before} == {"features", "task_failures", "task_deleted_with_failures"}


async def test_a_failure_goes_along_its_indexes(path: Path) -> None:
    """Neither the table of tasks nor that of failures is scanned or sorted, to keep, to show or to delete them."""
    async with connected(SQLiteBackend(path, retention=None)) as backend:
        await backend.enqueue([new_task(), new_task("other")])
        held, other = await take(backend)
        await backend.mark_failure([failure(held)])
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        await backend.mark_failure([failure(other, retry_in=0)])
        await backend.show("other")

        def plans(connection: Any) -> list[str]:
            connection.set_trace_callback(None)
            connection.setconfig(1008, True)  # SQLITE_DBCONFIG_TRIGGER_EQP
            asked = [sql for sql in statements if sql.split()[0] in ("SELECT", "INSERT") and "FROM note" not in sql]
            asked.append("DELETE FROM tasks WHERE id = 1")
            return [row[3] for sql in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await on_connection(backend, plans)
    assert any("task_failures USING PRIMARY KEY" in step for step in steps)
    assert [step for step in steps if step.startswith(("SCAN task", "USE TEMP"))] == []


async def test_a_task_that_was_asked_to_end_shows_why_its_run_ended(path: Path) -> None:
    """Its error says that somebody asked; what the run raised stands among its failed attempts."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task()])
        (held,) = await take(backend)
        await backend.ask(["task"])
        await backend.mark_failure([failure(held, retry_in=0)])
        found = await show(backend)
    assert found.status == "cancelled"
    assert [failed.error for failed in found.failed_attempts] == ["E: no"]


async def test_other_work_goes_on_beside_failures(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Failures and successes of one batch are recorded together, each as what it is."""
    ids = await queue.enqueue_many([lambda: 1 / 0, lambda: 1] * 20)
    await Worker(backend).drain()
    await queue.enqueue(add, 1, 2)
    found = [await show(backend, task_id) for task_id in ids]
    assert [(task.status, len(task.failed_attempts)) for task in found] == [("failed", 1), ("success", 0)] * 20
