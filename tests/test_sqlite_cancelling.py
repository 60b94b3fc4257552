"""Ending tasks that run, from a queue and as it stands in the file."""

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest

from sitq import BackendError, Result, SQLiteBackend, SyncTaskQueue, TaskCancelledError, TaskQueue, Worker
from sitq.backends.cancelling import Cancelling
from sitq.backends.sqlite import asking
from sitq.backends.sqlite.abilities import SCHEMA_SIZE
from sitq.errors import ASKED, CUT
from sitq.models import Extras, Outcome, ReservedTask
from tests.faults import Clock, connected, new_task, on_connection, outside, write_lock
from tests.support import Runs, add, log_async, rows
from tests.test_inspection import Plain

SHAPE = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"


async def hold(backend: SQLiteBackend, *task_ids: str, lease: float = 30) -> list[ReservedTask]:
    """Stores tasks, and returns them as they are held."""
    await backend.enqueue([new_task(task_id) for task_id in task_ids])
    return list((await backend.reserve(len(task_ids), lease=lease, alone=True)).tasks)


async def test_a_file_in_which_nobody_was_asked_to_end_is_as_it_was(path: Path) -> None:
    """Nothing is made by looking, by asking what does not run, or by a cut; and a look is no statement on a table."""
    async with connected(SQLiteBackend(path)) as backend:
        before = rows(path, SHAPE)
        await hold(backend, "running", "done")
        await backend.enqueue([new_task("waiting")])
        assert list(await backend.ask(["waiting", "nothing"])) == []
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        assert list(await backend.asked()) == []
        await on_connection(backend, lambda connection: connection.set_trace_callback(None))
        assert statements == [f"SELECT {SCHEMA_SIZE}"]
        assert list(await backend.cut(["done"])) == ["done"]
        assert rows(path, SHAPE) == before
        assert list(await backend.ask(["running"])) == ["running"]
        assert {row["name"] for row in rows(path, SHAPE)} - {row["name"] for row in before} == {
            "features",
            "tasks_cancelling",
            "task_asked",
        }


async def test_the_row_of_a_task_that_was_asked_keeps_all_it_was(path: Path) -> None:
    """One column says when it was asked first."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await hold(backend, "task")
        (before,) = rows(path)
        await backend.ask(["task"])
        asked_at = int(clock.now * 1_000_000)
        clock.now += 1
        await backend.ask(["task"])
    assert rows(path) == [before | {"cancelling": asked_at}]


async def test_a_task_that_was_put_back_has_ended_when_it_was_asked(path: Path) -> None:
    """The file has no clock of the store's; a takeover and a burial have a time of their own."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, retention=None)) as backend:
        given_back, retried, taken, buried = await hold(backend, "given back", "retried", "taken over", "buried")
        await on_connection(
            backend, lambda it: it.execute("UPDATE tasks SET max_attempts = 1 WHERE task_id = 'buried'").fetchall()
        )
        asked_at = clock.now = clock.now + 1
        await backend.ask([task.task_id for task in (given_back, retried, taken, buried)])
        clock.now += 1
        await backend.release([given_back])
        await backend.mark_failure([Outcome(retried, error="E: no", traceback="Traceback", retry_in=1)])
        clock.now += 60
        assert (await backend.reserve(9, lease=30, alone=True)).tasks == []
        found = {row["task_id"]: row for row in rows(path)}
    assert {row["status"] for row in found.values()} == {"cancelled"}
    assert {(row["error"], row["traceback"]) for row in found.values()} == {(ASKED, None)}
    at = {task_id: row["finished_at"] / 1_000_000 for task_id, row in found.items()}
    assert at == {
        "given back": asked_at,
        "retried": asked_at,
        "taken over": pytest.approx(clock.now),
        "buried": pytest.approx(clock.now),
    }
    claims = {task_id: row["claim"] for task_id, row in found.items()}
    assert (claims["given back"], claims["retried"], claims["buried"]) == (None, retried.claim, None)
    assert claims["taken over"] < 0


async def test_a_connection_that_never_heard_of_requests_keeps_to_them(path: Path) -> None:
    """The trigger is the file's: also statements that were prepared before it was made."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as one, connected(SQLiteBackend(path, clock=clock)) as other:
        await hold(other, "earlier")  # its statements are prepared
        await hold(one, "task")
        await one.ask(["task"])
        clock.now += 31
        assert [task.task_id for task in (await other.reserve(9, lease=30, alone=True)).tasks] == ["earlier"]
        assert [row["status"] for row in rows(path, "SELECT status FROM tasks ORDER BY id")] == [
            "in_progress",
            "cancelled",
        ]


async def test_a_request_and_a_retry_may_be_made_by_hand(path: Path) -> None:
    """With any SQLite client: the worker learns of it, and a finished task that is made pending is free of it."""
    async with connected(SQLiteBackend(path)) as backend:
        (held,) = await hold(backend, "task")
        await backend.ask(["task"])
        await backend.release([held])
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET status = 'pending', attempt = 0, finished_at = NULL, error = NULL")
        (held,) = (await backend.reserve(9, lease=30, alone=True)).tasks
        assert list(await backend.asked()) == []
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET cancelling = started_at")
        assert list(await backend.asked()) == [(held.key, held.claim)]


async def test_a_worker_that_asks_takes_no_lock(path: Path) -> None:
    """Nor does asking, or cutting, what does not run."""
    async with connected(SQLiteBackend(path, busy_timeout=0)) as backend:
        (held,) = await hold(backend, "task")
        await backend.ask(["task"])
        with write_lock(path):
            assert list(await backend.asked()) == [(held.key, held.claim)]
            assert list(await backend.ask(["nothing"])) == []
            assert list(await backend.cut(["nothing"])) == []


async def test_requests_go_along_their_indexes(path: Path) -> None:
    """However many tasks there are: no statement of it, nor of the file's trigger, scans the table or sorts."""
    async with connected(SQLiteBackend(path, retention=None)) as backend:
        held = await hold(backend, "given back", "retried", "cut", "taken over")
        await backend.ask(["retried"])
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        await backend.ask([task.task_id for task in held])
        await backend.asked()
        await backend.cut(["cut"])
        await backend.release(held[:1])
        outcome = Outcome(held[1], error="E: no", retry_in=0)
        await backend.mark_failure([outcome])
        assert list(await backend.mark_failure([outcome])) == []
        await backend.renew(held[3:], lease=0)
        await backend.reserve(9, lease=30, alone=True)
        await backend.list(limit=1)

        def plans(connection: sqlite3.Connection) -> list[str]:
            connection.set_trace_callback(None)
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_TRIGGER_EQP, True)
            asked = [sql for sql in statements if sql.split()[0] in ("SELECT", "INSERT") and "FROM note" not in sql]
            asked += [asking._ASKED, "UPDATE tasks SET status = 'pending' WHERE id = 1"]
            return [row[3] for sql in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await on_connection(backend, plans)
    assert any("tasks_cancelling" in step for step in steps)
    scans = [step for step in steps if step.startswith(("SCAN tasks", "USE TEMP"))]
    assert [step for step in scans if "INDEX tasks_" not in step and step != "SCAN tasks"] == []
    assert scans.count("SCAN tasks") <= 1  # the list, which ends at its limit


async def test_what_cannot_be_read_does_not_strand_a_reservation(path: Path) -> None:
    """An id that is not UTF-8 is of another program's making; what was given out is given out."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await hold(backend, "one", "two")
        await backend.ask(["one"])
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET task_id = CAST(x'ff' AS TEXT) WHERE task_id = 'one'")
        clock.now += 31
        assert [task.task_id for task in (await backend.reserve(9, lease=30, alone=True)).tasks] == ["two"]


async def test_a_worker_runs_what_is_left_behind_tasks_that_were_to_end(path: Path, runs: Runs) -> None:
    """It does not take a reservation in which all have ended for an empty queue, although it polls once an hour."""
    clock = Clock()
    backend = SQLiteBackend(path, clock=clock)
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many([lambda: None] * 6)
        await backend.reserve(6, lease=30, alone=True)
        await queue.cancel([*ids[:2], *ids[3:]], running="ask")
        clock.now += 31
        for n in range(3):
            await queue.enqueue(log_async, runs, n)
        assert await Worker(backend, max_concurrency=2, poll_interval=3600).drain() == 4
        assert [task.status for task in await queue.list(limit=9)].count("cancelled") == 5
    assert sorted(runs.lines()) == ["0", "1", "2"]


async def test_a_queue_asks_what_runs_and_cancels_what_waits(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """In one call, of which the ids come back in the order given; what is finished stays."""
    done, running, abandoned, waiting = await queue.enqueue_many([lambda: None] * 4)
    first, second, third = (await backend.reserve(3, lease=30, alone=True)).tasks
    await backend.mark_success([Outcome(first, b"")])
    await backend.renew([third], lease=0)
    ids = [waiting, "nothing", running, done, abandoned]
    assert list(await queue.cancel(ids, running="ask")) == [waiting, running, abandoned]
    statuses = [getattr(await queue.get(task_id), "status", None) for task_id in ids]
    assert statuses == ["cancelled", None, "in_progress", "success", "cancelled"]
    assert list(await backend.asked()) == [(second.key, second.claim)]
    (listed,) = await queue.list("in_progress")
    assert listed.asked_at is not None
    assert list(await queue.cancel(ids)) == []
    assert list(await queue.cancel(ids, running="cut")) == [running]


@pytest.mark.parametrize(("running", "error"), [("ask", ASKED), ("cut", CUT)])
async def test_who_waits_learns_why_a_run_was_ended(
    queue: TaskQueue, backend: SQLiteBackend, running: str, error: str
) -> None:
    """``get_result`` without a timeout ends, and the error of ``unwrap`` says it in one sentence."""
    task_id = await queue.enqueue(add, 1, 2)
    waiting: asyncio.Task[Result[int] | None] = asyncio.create_task(queue.get_result(task_id))
    held = (await backend.reserve(1, lease=30, alone=True)).tasks
    assert list(await queue.cancel(task_id, running=running)) == [task_id]  # type: ignore[arg-type]
    if running == "ask":
        await backend.release(held)
    result = await waiting
    assert result is not None
    with pytest.raises(TaskCancelledError, match=f"^task {task_id} was {error}$"):
        result.unwrap()


async def test_a_task_that_is_given_back_meanwhile_is_cancelled(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Between the two looks of one call, of which the first saw it running and the second waiting."""
    task_id = await queue.enqueue(add, 1, 2)
    held = (await backend.reserve(1, lease=30, alone=True)).tasks

    class Releases(SQLiteBackend):
        async def ask(self, task_ids: object) -> list[str]:
            await backend.release(held)
            return list(await super().ask(task_ids))  # type: ignore[arg-type]

    async with TaskQueue(Releases(backend._path)) as other:
        assert list(await other.cancel(task_id, running="ask")) == [task_id]
    assert getattr(await queue.get(task_id), "status", None) == "cancelled"


async def test_what_to_do_with_running_tasks_is_one_of_three_words(queue: TaskQueue) -> None:
    """Anything else is refused before anything is cancelled."""
    task_id = await queue.enqueue(add, 1, 2)
    for wrong in ("kill", None, True):
        with pytest.raises(ValueError, match="running must be one of leave, ask, cut; got"):
            await queue.cancel(task_id, running=wrong)  # type: ignore[arg-type]
    assert getattr(await queue.get(task_id), "status", None) == "pending"


async def test_a_backend_that_cannot_end_what_runs_says_so(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Before anything is cancelled; without asking it for that, it cancels what waits."""
    task_id = await queue.enqueue(add, 1, 2)
    assert isinstance(backend, Cancelling)

    class Lesser(Plain):
        def __init__(self) -> None:
            super().__init__(backend)
            for name in ("counts", "show", "find_ids", "retry", "retry_failed", "cancel", "prune", "list"):
                setattr(self, name, getattr(backend, name))
            self.payload_formats, self.examine = backend.payload_formats, backend.examine

    async with TaskQueue(Lesser()) as lesser:
        for running in ("ask", "cut"):
            with pytest.raises(BackendError, match=r"Lesser cannot end tasks that run.*nothing was cancelled"):
                await lesser.cancel(task_id, running=running)  # type: ignore[arg-type]
        assert list(await lesser.cancel(task_id)) == [task_id]


async def test_code_without_a_loop_can_end_what_runs(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """As code with one."""
    task_id = await queue.enqueue(add, 1, 2)
    await backend.reserve(1, lease=30, alone=True)
    other = SyncTaskQueue(SQLiteBackend(backend._path))
    assert await asyncio.to_thread(other.cancel, task_id, running="ask") == [task_id]
    assert await asyncio.to_thread(other.cancel, [task_id], running="cut") == [task_id]
    await asyncio.to_thread(other.close)


async def test_what_was_ended_by_hand_survives_a_power_cut(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """As every change by hand: what an operator was told holds."""
    task_id = await queue.enqueue(add, 1, 2)
    await backend.reserve(1, lease=30, alone=True)
    for call in (backend.ask, backend.cut):
        await backend.renew([], lease=1)
        assert backend._connected()._file.open()._synchronous == "NORMAL"
        await call([task_id])
        assert backend._connected()._file.open()._synchronous == "FULL"


STEPS = ("reserve", "reserve", "ask", "ask", "cut", "end", "end", "retry", "time", "renew")


@pytest.mark.parametrize("seed", range(10))
async def test_nobody_gets_a_task_that_was_asked_to_end(seed: int, path: Path) -> None:
    """Whatever happens in whatever order, by two processes, with deaths and a clock that is set back, also in lanes."""
    chance, clock = random.Random(seed), Clock()
    asked: set[str] = set()
    held: list[ReservedTask] = []
    async with (
        connected(SQLiteBackend(path, clock=clock, retention=None)) as one,
        connected(SQLiteBackend(path, clock=clock, retention=None)) as other,
    ):
        ids = [f"task-{n}" for n in range(12)]
        for task_id in ids:
            extras = Extras(chance.choice(("", "mail")), chance.choice((0, 5))) if seed % 2 else None
            await one.enqueue([new_task(task_id, max_attempts=chance.choice((1, 2, 5)), extras=extras)])
        for _ in range(150):
            backend = chance.choice((one, other))
            some = chance.sample(ids, 3)
            mine = [held.pop(chance.randrange(len(held)))] if held else []
            match chance.choice(STEPS):
                case "reserve":
                    found = await backend.reserve(chance.randint(1, 4), lease=30, alone=chance.random() < 0.5)
                    assert not asked & ({task.task_id for task in found.tasks} | set(found.buried))
                    held += [*found.tasks, *mine]
                case "ask":
                    asked |= set(await backend.ask(some))
                    held += mine
                case "cut":
                    await backend.cut(some[:1])
                case "renew":
                    await backend.renew(mine, lease=30)
                    held += mine
                case "end" if chance.random() < 0.3:
                    await backend.release(mine)
                case "end" if chance.random() < 0.3:
                    await backend.mark_success([Outcome(task, b"") for task in mine])
                case "end":
                    retry_in = chance.choice((None, 0, 20))
                    outcomes = [Outcome(task, error="E: no", retry_in=retry_in) for task in mine]
                    late = await backend.mark_failure(outcomes)
                    assert await backend.mark_failure(outcomes) == late
                case "retry":
                    pending = set(await backend.retry(some))
                    assert {row["status"] for row in rows(path) if row["task_id"] in pending} <= {"pending"}
                    asked -= pending
                case "time":
                    clock.now += chance.choice((1, 31, 100, -50))
            running = rows(path, "SELECT * FROM tasks WHERE status = 'in_progress'")
            marked = {(row["id"], row["claim"]) for row in running if row.get("cancelling") is not None}
            assert set(await backend.asked()) == marked
        for _ in range(20):
            clock.now += 200
            found = await one.reserve(9, lease=30, alone=True)
            assert not asked & {task.task_id for task in found.tasks}
            await one.mark_success([Outcome(task, b"") for task in found.tasks])
    ended = {row["task_id"]: row["status"] for row in rows(path)}
    assert set(ended) == set(ids)
    assert set(ended.values()) <= {"success", "failed", "cancelled"}
