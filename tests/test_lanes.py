"""Lanes in the SQLite file: the order in which they are served, what it costs, and who may go on with the file."""

import asyncio
import functools
import itertools
import math
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sitq import BackendError, NewTask, SQLiteBackend
from sitq.backends.lanes import Lanes
from sitq.backends.sqlite import choosing, lane_operations, schema
from sitq.backends.sqlite.abilities import SCHEMA_SIZE, abilities
from sitq.backends.sqlite.changes import Change
from sitq.backends.sqlite.lanes import LANES, Bury, Pause, Resume, StoreInLane
from sitq.backends.sqlite.reading import Reader
from sitq.models import Extras, Outcome
from tests.faults import Clock, connected, new_task, on_connection, outside, write_lock
from tests.support import rows

HOUR = 3600.0
HEAD_START = 60.0
INDEXES = "SELECT name FROM sqlite_schema WHERE type = 'index' AND name LIKE 'tasks%' ORDER BY name"
names = itertools.count()


def task_in(queue: str = "", priority: int = 0, task_id: str = "", **fields: Any) -> NewTask:
    """Returns a task of a queue and a priority."""
    return new_task(task_id or f"{next(names)}", extras=Extras(queue=queue, priority=priority), **fields)


async def reserved(backend: Any, limit: int = 100, *, alone: bool = False, lease: float = HOUR) -> list[str]:
    """Returns the ids of what a reservation gave out, in its order."""
    return [task.task_id for task in (await backend.reserve(limit, lease=lease, alone=alone)).tasks]


class Model:
    """What a file with lanes ought to give out: a sort of all that is due."""

    def __init__(self, head_start: float) -> None:
        self.head_start = head_start
        self.waiting: list[tuple[str, int, float, int, str]] = []

    def add(self, queue: str, priority: int, due: float, task_id: str) -> None:
        """Takes a task that was stored."""
        self.waiting.append((queue, priority, due, len(self.waiting), task_id))

    def take(self, limit: int, now: float, queues: set[str] | None, paused: set[str]) -> list[str]:
        """Gives out the first of those that are served."""

        def rank(each: tuple[str, int, float, int, str]) -> tuple[float, float, int]:
            _, priority, due, stored, _ = each
            if self.head_start == math.inf:
                return -priority, due, stored
            return due - priority * self.head_start, 0, stored

        served = [each for each in self.waiting if each[0] not in paused and (queues is None or each[0] in queues)]
        taken = sorted((each for each in served if each[2] <= now), key=rank)[:limit]
        self.waiting = [each for each in self.waiting if each not in taken]
        return [task_id for *_, task_id in taken]


QUEUES = st.sampled_from(["", "a", "b"])
PRIORITIES = st.sampled_from([0, 0, 1, 5, -2, 100, -100])
STORE = st.tuples(st.just("store"), QUEUES, PRIORITIES, st.integers(0, 300))
TAKE = st.tuples(st.just("take"), st.integers(1, 7), st.sampled_from([None, ("a",), ("", "b"), ("b", "a")]))
WAIT = st.tuples(st.just("wait"), st.integers(1, 200))
PAUSE = st.tuples(st.sampled_from(["pause", "resume"]), QUEUES)


@pytest.mark.parametrize("head_start", [HEAD_START, math.inf, 0.0])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(STORE, STORE, STORE, TAKE, TAKE, WAIT, PAUSE), max_size=40))
def test_a_task_is_overtaken_only_within_its_disadvantage(head_start: float, steps: list[tuple[Any, ...]]) -> None:
    """Whatever is stored, paused and asked for, each reservation gives out what a sort of all tasks would, in order."""

    async def check() -> None:
        clock, model, paused = Clock(), Model(head_start), set[str]()
        async with connected(SQLiteBackend(":memory:", clock=clock, head_start=head_start)) as backend:
            for number, (step, *values) in enumerate(steps):
                if step == "store":
                    queue, priority, delay = values
                    task = task_in(queue, priority, f"task-{number}", delay=float(delay))
                    await backend.enqueue([task])
                    model.add(queue, priority, clock.now + delay, task.task_id)
                elif step == "take":
                    limit, queues = values
                    wanted = model.take(limit, clock.now, None if queues is None else set(queues), paused)
                    assert await reserved(backend.select(queues), limit) == wanted
                elif step == "wait":
                    clock.now += values[0]
                elif step == "pause":
                    await backend.pause(values[0])
                    paused.add(values[0])
                else:
                    await backend.resume(values[0])
                    paused.discard(values[0])

    asyncio.run(check())


async def test_strict_means_strict(path: Path) -> None:
    """With an infinite head start a task of a year ago waits for one of now, if that has the higher priority."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock, head_start=math.inf)) as backend:
        await backend.enqueue([task_in("a", 1, "low"), task_in("b", -100, "least")])
        clock.now += 365 * 24 * HOUR
        await backend.enqueue([task_in("b", 2, "high"), task_in("", 100, "most"), task_in("", 0, "plain")])
        assert await reserved(backend, 2) == ["most", "high"]
        await backend.enqueue([task_in("c", 50, "between")])
        assert await reserved(backend) == ["between", "low", "plain", "least"]


async def test_a_backend_has_a_head_start_of_a_minute_unless_told_otherwise(path: Path) -> None:
    """For each step; a view that is not given another one has that of its backend."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([task_in(task_id="plain")])
        clock.now += 59
        await backend.enqueue([task_in("a", 1, "within")])
        clock.now += 2
        await backend.enqueue([task_in("a", 1, "without")])
        assert await reserved(backend.select(None)) == ["within", "plain", "without"]


@pytest.mark.parametrize("head_start", [-1, math.nan, 1e12, -math.inf])
def test_a_head_start_is_a_number_of_seconds_or_infinite(head_start: float, path: Path) -> None:
    """What is neither is refused, by a backend and by a view."""
    with pytest.raises(ValueError, match="head_start"):
        SQLiteBackend(path, head_start=head_start)
    with pytest.raises(ValueError, match="head_start"):
        SQLiteBackend(path).select(None, head_start)
    with pytest.raises(TypeError, match="head_start"):
        SQLiteBackend(path, head_start="60")  # type: ignore[arg-type]


async def test_the_default_path_makes_no_lane_index(path: Path) -> None:
    """Whoever uses no queue and no priority has the indexes of ever and no further table, views and looks included."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("a"), new_task("b", extras=Extras())])
        assert await reserved(backend.select(["mail"])) == []
        await backend.resume("mail")
        assert len(await backend.lanes()) == 1
        assert await reserved(backend.select([""]), 1) == ["a"]
        assert await reserved(backend) == ["b"]
    assert [row["name"] for row in rows(path, INDEXES)] == ["tasks_due", "tasks_finished", "tasks_last", "tasks_spent"]
    assert [row["name"] for row in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")] == ["tasks"]


async def test_a_task_without_queue_and_priority_stays_in_the_indexes_of_ever(path: Path) -> None:
    """Also in a file with lanes: its row has neither, and so the path that most tasks take is as short as before."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([task_in("a"), task_in("", 1), task_in()])
    found = rows(path, "SELECT queue, priority FROM tasks ORDER BY id")
    assert [(row["queue"], row["priority"]) for row in found] == [("a", 0), ("", 1), (None, None)]


@pytest.mark.parametrize("use", ["enqueue", "then", "pause"])
async def test_lanes_are_made_at_their_first_use(path: Path, use: str) -> None:
    """By whatever needs them first, and once."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("plain")])
        if use == "enqueue":
            await backend.enqueue([task_in("mail")])
        elif use == "then":
            (held,) = (await backend.reserve(1, lease=HOUR, alone=True)).tasks
            await backend.mark_success([Outcome(held, b"", then=[task_in("mail")])])
        else:
            await backend.pause("mail")
        assert "lanes" in await on_connection(backend, abilities)
        await backend.enqueue([task_in("other", 3)])
    assert {"tasks_lane_due", "tasks_lane_last"} <= {row["name"] for row in rows(path, INDEXES)}


async def test_a_running_process_goes_on_when_another_one_makes_the_lanes(path: Path) -> None:
    """Its statements name the indexes that were made anew; from then on it finds the tasks of all queues."""
    async with connected(SQLiteBackend(path)) as first, connected(SQLiteBackend(path)) as second:
        await first.enqueue([new_task("one"), new_task("two"), new_task("last", max_attempts=1)])
        assert await reserved(first, 1) == ["one"]
        await second.enqueue([task_in("mail", 0, "mail")])
        assert await reserved(first, 1) == ["two"]
        assert await reserved(first) == ["mail"]
        assert await reserved(first, alone=True) == ["last"]


async def test_the_statements_of_this_schema_that_know_no_lanes_go_on(path: Path) -> None:
    """A process that was started before there were lanes takes tasks of the default lane, and buries of all."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as before:
        await on_connection(before, lambda connection: setattr(connection, "abilities", (-1, frozenset())))
        async with connected(SQLiteBackend(path, clock=clock)) as other:
            await other.enqueue([task_in("mail"), task_in("", 7), new_task("plain"), task_in("mail", 0, "spent")])
            (held,) = (await other.select(["mail"]).reserve(1, lease=1.0, alone=True)).tasks
            assert held.task_id != "spent"
        await on_connection(before, lambda it: it.execute(f"UPDATE tasks SET max_attempts = 1 WHERE id = {held.key}"))
        clock.now += 2
        version = await on_connection(before, lambda it: it.execute(f"SELECT {SCHEMA_SIZE}").fetchone()[0])
        # As if it had never heard of an ability.
        await on_connection(before, lambda it: setattr(it, "abilities", (version, frozenset())))
        found = await before.reserve(100, lease=HOUR, alone=True)
        assert ([task.task_id for task in found.tasks], found.buried) == (["plain"], [held.task_id])


async def test_a_process_of_schema_2_fails_loudly_once_there_are_lanes(path: Path) -> None:
    """Its statements name an index that no longer covers what they ask for: SQLite refuses them, no task is lost."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("plain")])
        sql = "SELECT id FROM tasks INDEXED BY tasks_due WHERE finished_at IS NULL AND max_attempts > attempt + 1"
        with outside(path) as old:
            assert len(old.execute(sql).fetchall()) == 1
            await backend.enqueue([task_in("mail")])
            with pytest.raises(sqlite3.OperationalError, match="no query solution"):
                old.execute(sql)
        assert len(await reserved(backend)) == 2


def fill(count: int, queue: str | None, priority: int | None, available_at: str, max_attempts: int = 5) -> str:
    """Returns SQL that stores so many tasks of a lane."""
    name, number = ("NULL", "NULL") if queue is None else (f"'{queue}'", priority)
    return f"""
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
        INSERT INTO tasks (task_id, max_attempts, enqueued_at, available_at, payload, queue, priority)
        SELECT hex(randomblob(16)), {max_attempts}, 1, {available_at}, x'', {name}, {number} FROM n
    """


FUTURE = f"{int((Clock().now + 24 * HOUR) * 1e6)} + n"
OTHERS = {
    "tomorrow, in the same lane": ("a", 0, FUTURE, 5),
    "tomorrow, at another priority": ("a", 7, FUTURE, 5),
    "tomorrow, in another queue": ("b", 0, FUTURE, 5),
    "tomorrow, in the default lane": (None, None, FUTURE, 5),
    "due, in a queue that is not served": ("b", 9, "n", 5),
    "due, in the default lane, not served": (None, None, "n", 5),
    "due, in a queue that is paused": ("paused", 0, "n", 5),
    "last attempts, in a queue that is not served": ("b", 9, "n", 1),
    "last attempts, tomorrow": ("a", 0, FUTURE, 1),
    "due, in the same lane": ("a", 0, "2 + n", 5),
    "due, at another priority": ("a", 7, "2 + n", 5),
}


async def steps_of(backend: SQLiteBackend, call: Callable[[], Any]) -> int:
    """Returns how many steps SQLite's virtual machine makes for a call."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    await on_connection(backend, lambda it: it.set_progress_handler(step, 1))
    await call()
    await on_connection(backend, lambda it: it.set_progress_handler(None, 0))
    return steps


@pytest.mark.parametrize("others", OTHERS)
async def test_a_million_future_tasks_do_not_slow_a_lane(path: Path, others: str) -> None:
    """Nor do due ones that are not asked for: with a hundred times as many, SQLite makes as many steps, not more.

    There are thousands of them here, not a million: what is counted does not grow with them at all.
    """
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.pause("paused")
        view, steps = backend.select(["a", "paused"]), []
        queue, priority, available_at, max_attempts = OTHERS[others]
        for count in (100, 10_000):
            await on_connection(
                backend,
                lambda it, count=count: it.execute(fill(count, queue, priority, available_at, max_attempts)),  # type: ignore[misc]
            )
            for _ in range(2):  # the first one prepares statements and triggers
                await on_connection(backend, lambda it: it.execute(fill(3, "a", 3, "1")))
                clock.now += 1  # so that no two leases end at the same time
                made = await steps_of(backend, lambda: view.reserve(3, lease=HOUR, alone=False))
            steps.append(made)
    few, many = steps
    assert few > 100, "the steps were not counted"
    assert many <= few * 1.01


async def test_a_foreign_lane_of_any_size_does_not_slow_the_default_lane(path: Path) -> None:
    """A worker of all queues, and one of the default queue only."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([task_in("a")])
        steps = {}
        for count in (1_000, 9_000):
            await on_connection(backend, lambda it, count=count: it.execute(fill(count, "b", -50, "n + 100")))  # type: ignore[misc]
            for name, view in (("all", backend), ("default", backend.select([""]))):
                for _ in range(2):
                    await on_connection(backend, lambda it: it.execute(fill(3, None, None, "1")))
                    clock.now += 1  # so that no two leases end at the same time
                    call = functools.partial(view.reserve, 3, lease=HOUR, alone=False)
                    steps[name, count] = await steps_of(backend, call)
    for name in ("all", "default"):
        assert steps[name, 9_000] <= steps[name, 1_000] * 1.01


@pytest.mark.parametrize("queues", [None, ("a", "b", "")], ids=str)
async def test_the_plans_name_their_index(path: Path, queues: tuple[str, ...] | None) -> None:
    """Every statement of a reservation in lanes searches the tasks by an index or a key, and scans none of them."""
    async with connected(SQLiteBackend(path, clock=Clock())) as backend:
        for lane in (("a", 0), ("a", 5), ("b", 0), (None, None)):
            for max_attempts in (5, 1):
                sql = fill(5, *lane, "n", max_attempts)  # type: ignore[arg-type]
                await backend.enqueue([task_in("a")])
                await on_connection(backend, lambda it, sql=sql: it.execute(sql))  # type: ignore[misc]
        statements: list[str] = []
        await on_connection(backend, lambda it: it.set_trace_callback(statements.append))
        await backend.select(queues).reserve(3, lease=HOUR, alone=False)
        await backend.select(queues).reserve(3, lease=HOUR, alone=True)
        await on_connection(backend, lambda it: it.set_trace_callback(None))
        looks = {sql for sql in statements if "tasks" in sql and sql.lstrip().startswith(("SELECT", "WITH"))}
        assert len(looks) >= 6

        def plans(connection: sqlite3.Connection) -> list[str]:
            steps = [row[3] for sql in looks for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
            for kind, sql in lane_operations.LANE_OPERATIONS.items():
                if kind not in (StoreInLane, Pause, Resume):
                    steps += [row[3] for each in parts(kind, sql) for row in connection.execute(*each)]
            return steps

        steps = await on_connection(backend, plans)
    of_tasks = [step for step in steps if "tasks" in step]
    assert {"tasks_lane_due", "tasks_lane_last", "tasks_due", "tasks_last", "tasks_spent"} <= {
        word for step in of_tasks for word in step.split()
    }
    for step in of_tasks:
        # The first queue of all, and the first task of a lane of the default, are read from the index's begin.
        assert step.startswith(("SEARCH tasks USING", "SCAN tasks USING COVERING INDEX", "SCAN tasks USING INDEX")), (
            step
        )
        assert "TEMP B-TREE" not in step


def parts(kind: type[Change], sql: str) -> list[tuple[str, dict[str, int]]]:
    """Returns the statements of an operation, to be explained, with values for what a change has."""
    values = dict.fromkeys((*kind._fields, "now"), 1)
    for name in values:
        sql = sql.replace(f"NEW.{name}", f":{name}")
    return [(f"EXPLAIN QUERY PLAN {part}", values) for part in re.split(r";\n", sql) if "tasks" in part]


def test_no_statement_of_lanes_scans_to_find_the_first() -> None:
    """What is read from the begin of an index is its first entry, and no more: it ends with a limit of one."""
    for sql in (*choosing.HEAD.values(), *choosing.ALL_LANES.values(), *choosing.SOME_LANES.values()):
        assert sql.count("FROM tasks") == sql.count("LIMIT 1")


async def test_an_idle_worker_takes_no_lock_for_what_it_may_not_take(path: Path) -> None:
    """A paused or a foreign queue, and a last attempt beside others: it looks while another program has the lock."""
    async with connected(SQLiteBackend(path, busy_timeout=0)) as backend:
        await backend.enqueue([task_in("mail"), task_in("paused"), task_in("", 5), task_in("a", max_attempts=1)])
        await backend.pause("paused")
        with write_lock(path):
            for queues in (["paused"], ["other"], ["a"]):
                found = await backend.select(queues).reserve(10, lease=HOUR, alone=False)
                assert (list(found.tasks), found.next_due_in) == ([], None)
            with pytest.raises(BackendError):
                await backend.select(["mail"]).reserve(10, lease=HOUR, alone=False)


async def test_a_lane_that_another_process_has_emptied_is_made_up_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the lock others may take what was seen: the rest of the limit comes from other lanes."""
    async with connected(SQLiteBackend(path)) as backend, connected(SQLiteBackend(path)) as other:
        await backend.enqueue(
            [task_in("a", 0, f"a{n}") for n in range(4)] + [task_in("b", 0, f"b{n}") for n in range(4)]
        )
        await backend.enqueue([task_in("c", 0, "c")])
        make_plan = choosing.make_plan

        def late(sqlite: sqlite3.Connection, *arguments: Any) -> choosing.Plan:
            plan = make_plan(sqlite, *arguments)
            with outside(path) as connection:
                connection.execute("UPDATE tasks SET finished_at = 1, status = 'cancelled' WHERE queue = 'a'")
            return plan

        monkeypatch.setattr("sitq.backends.sqlite.jobs.make_plan", late)
        assert await reserved(backend, 6) == ["b0", "b1", "b2", "b3", "c"]
        monkeypatch.undo()
        assert await reserved(other) == []


async def test_what_is_stored_together_with_a_reservation_is_found_by_it_or_the_next(path: Path) -> None:
    """A task of the default lane by the same batch, as ever; one of another lane when its commit is announced."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([task_in("a", 0, "a")])
        changed = asyncio.Event()
        with backend.watch(changed.set):
            storing = asyncio.ensure_future(backend.enqueue([new_task("plain"), task_in("new", 0, "new")]))
            found = await reserved(backend)
            await storing
            while len(found) < 3:
                await changed.wait()
                changed.clear()
                found += await reserved(backend)
        assert sorted(found) == ["a", "new", "plain"]


async def test_a_malformed_lane_hides_no_other(path: Path) -> None:
    """A row with a queue and no priority, a queue that is a number or not UTF-8, a due time that is text."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([task_in("m", 0, "good"), task_in("z", 1, "better")])
        for change in (
            "queue = 'm', priority = NULL",
            "queue = CAST(x'6dff' AS TEXT), priority = 0",
            "queue = x'00', priority = 0",
            "queue = 'm', priority = 'high'",
            "queue = 'k', priority = 0, available_at = 'soon'",
        ):
            await backend.enqueue([task_in("a", 0, change)])
            sql = f"UPDATE tasks SET {change} WHERE task_id = ?"
            await on_connection(backend, lambda it, sql=sql, change=change: it.execute(sql, (change,)))  # type: ignore[misc]
        found = await reserved(backend.select(["m", "z"]))
        assert found == ["better", "good"]
        assert not set(await reserved(backend)) & {"good", "better"}


async def test_lists_of_a_status_find_tasks_of_every_queue(path: Path) -> None:
    """Waiting, running and finished ones; with their queue and priority, and of one queue if that is asked for."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([task_in("a", 3, "held", max_attempts=1)])
        assert await reserved(backend, alone=True) == ["held"]
        await backend.enqueue([task_in("a", 0, "1"), task_in("", 5, "2"), task_in("", 0, "3"), task_in("b", -1, "4")])
        await backend.enqueue([task_in("b", -1, "last", max_attempts=1)])
        found = await backend.list(status="pending")
        assert [(task.task_id, task.queue, task.priority) for task in found] == [
            ("last", "b", -1),
            ("4", "b", -1),
            ("3", "", 0),
            ("2", "", 5),
            ("1", "a", 0),
        ]
        assert [task.task_id for task in await backend.list(status="in_progress")] == ["held"]
        assert [task.task_id for task in await backend.list(queue="a")] == ["1", "held"]
        assert [task.task_id for task in await backend.list(queue="", status="pending")] == ["3", "2"]
        shown = await backend.show("2")
        assert shown is not None
        assert (shown.queue, shown.priority) == ("", 5)


async def test_lanes_are_shown_to_who_may_only_read_the_file(path: Path) -> None:
    """Whether it has lanes or not; such a user can pause nothing."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("plain")])
        assert [(lane.queue, lane.waiting) for lane in await Reader(path).lanes()] == [("", 1)]
        await backend.enqueue([task_in("mail", 3)])
        await backend.pause("mail")
        assert [(lane.queue, lane.priority, lane.paused) for lane in await Reader(path).lanes()] == [
            ("", 0, False),
            ("mail", 3, True),
        ]
    assert not isinstance(Reader(path), Lanes)


async def test_pausing_and_resuming_survive_a_power_cut(path: Path) -> None:
    """They are synced as an enqueue is."""
    async with connected(SQLiteBackend(path)) as backend:
        for call in (backend.pause, backend.resume):
            await backend.renew([], lease=1)
            assert backend._connected()._file.open()._synchronous == "NORMAL"
            await call("a")
            assert backend._connected()._file.open()._synchronous == "FULL"


def test_lanes_are_one_ability() -> None:
    """Every statement of it is carried out at once, and none of them by any file that does not need it."""
    assert LANES.name == "lanes"
    assert not any("lane" in migration for migration in schema.MIGRATIONS)
    assert Bury in lane_operations.LANE_OPERATIONS
