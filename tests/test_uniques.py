"""Unique tasks in the file: who stands for a key, what of it is stored, and when nothing can fail for it."""

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, NewTask, SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite.schema import SCHEMA_VERSION
from sitq.errors import DuplicateTaskError
from sitq.models import MAX_KEY_CHARACTERS, Extras, Outcome, Unique
from tests.faults import Clock, connected, new_task, on_connection, run_python
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows, start_python

HOUR = 3600.0
PRODUCER = """
import asyncio, sys
from sitq import SQLiteBackend
from sitq.models import Extras, Unique, NewTask, new_task_id

async def main(path, calls):
    backend = SQLiteBackend(path, durability="normal", busy_timeout=30)
    await backend.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(calls)):
        tasks = [NewTask(new_task_id(), b"", extras=Extras(unique=Unique(f"key {n}", "unfinished"))) for _ in range(3)]
        found = await asyncio.gather(*(backend.enqueue([task]) for task in tasks))
        print(*{standing for (standing,) in found})
    await backend.close()

asyncio.run(main(*sys.argv[1:]))
"""


def unique_task(task_id: str, key: str = "key", *, payload: bytes | None = None, **options: Any) -> NewTask:
    """Returns a task with a key."""
    return new_task(
        task_id, task_id.encode() if payload is None else payload, extras=Extras(unique=Unique(key, **options))
    )


class Keyed(SQLiteBackend):
    """Gives every task of a queue one key, as a queue that is told to does."""

    unique = Unique("key")

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[str] | None:
        """Stores one of them."""
        return await super().enqueue([task._replace(extras=Extras(unique=self.unique)) for task in tasks])


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", ValueError),
        ("x" * (MAX_KEY_CHARACTERS + 1), ValueError),
        ("a\ud800b", ValueError),
        ("a\0b", ValueError),
        (b"key", TypeError),
        (None, TypeError),
        (7, TypeError),
    ],
)
def test_a_key_that_not_every_store_keeps_is_refused(key: Any, error: type[Exception]) -> None:
    """When the record is made, so that nothing was stored."""
    with pytest.raises(error):
        Unique(key)


@pytest.mark.parametrize("key", ["x", "x" * MAX_KEY_CHARACTERS, "sync:42", "\U0001f600ä"])
def test_a_key_may_be_any_other_text(key: str) -> None:
    """Of one character or of a thousand."""
    assert Unique(key).key == key


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"while_": "running"}, ValueError),
        ({"otherwise": "drop"}, ValueError),
        ({"otherwise": ["keep"]}, ValueError),
        ({"period": 5}, TypeError),
        ({"period": timedelta(0)}, ValueError),
        ({"period": timedelta(seconds=-1)}, ValueError),
        ({"period": timedelta(days=40_000)}, ValueError),
    ],
)
def test_what_makes_no_sense_of_a_unique_task_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """The message names the argument."""
    with pytest.raises(error, match=next(iter(options))):
        Unique("key", **options)


def test_of_many_producers_one_stores_it(path: Path) -> None:
    """Processes that enqueue the same keys at the same time store one task of each, and all get its id."""
    run_python(
        "import asyncio, sys; from sitq import TaskQueue, SQLiteBackend\n"
        "asyncio.run(TaskQueue(SQLiteBackend(sys.argv[1])).counts())",
        path,
    )
    calls = 40
    producers = [start_python(PRODUCER, path, calls, stdin=-1) for _ in range(4)]
    for producer in producers:
        assert producer.stdout is not None
        assert producer.stdout.readline() == "ready\n"
    outputs = [producer.communicate("go\n", timeout=DEADLINE_SECONDS) for producer in producers]
    assert [errors for _, errors in outputs] == [""] * 4
    stored = rows(path, "SELECT task_id, unique_key FROM tasks ORDER BY id")
    assert sorted(row["unique_key"] for row in stored) == sorted(f"key {n}" for n in range(calls))
    by_key = {row["unique_key"]: row["task_id"] for row in stored}
    for output, _ in outputs:
        assert output.split() == [by_key[f"key {n}"] for n in range(calls)]


async def test_nothing_is_made_in_a_file_where_it_is_unused(path: Path) -> None:
    """No column, no index, no table: by no other call, nor by one that is refused; then all of it at the first use."""
    sql = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    async with connected(SQLiteBackend(path, retention=HOUR)) as backend:
        before = rows(path, sql)
        await backend.enqueue([new_task("plain", extras=Extras()), new_task("other")])
        held = (await backend.reserve(9, lease=HOUR, alone=True)).tasks
        await backend.mark_success([Outcome(held[0], b"", then=[new_task("then")]), Outcome(held[1], b"")])
        with pytest.raises(ValueError, match="period"):
            await backend.enqueue([unique_task("refused", period=timedelta(days=1))])
        assert rows(path, sql) == before
        await backend.enqueue([unique_task("first")])
    made = {row["name"] for row in rows(path, sql)} - {row["name"] for row in before}
    assert made == {"features", "replaced", "sqlite_autoindex_replaced_1", "tasks_unique", "tasks_unique_live"}
    assert rows(path, "SELECT * FROM features") == [{"name": "uniques", "version": 1}]
    assert rows(path, "PRAGMA user_version") == [{"user_version": SCHEMA_VERSION}]


async def test_a_process_that_has_the_file_open_goes_on_when_keys_are_first_used(path: Path) -> None:
    """Its statements are prepared; it stores, runs and releases what has a key like all else."""
    async with connected(SQLiteBackend(path)) as old, connected(SQLiteBackend(path)) as backend:
        for turn in range(2):
            await old.enqueue([new_task(f"plain {turn}")])
            await backend.enqueue([unique_task(f"unique {turn}")])
            held = (await old.reserve(9, lease=HOUR, alone=True)).tasks
            assert [task.task_id for task in held] == [f"plain {turn}", f"unique {turn}"]
            assert await old.release(held[1:]) == []
            held = [held[0], *(await old.reserve(9, lease=HOUR, alone=True)).tasks]
            assert await old.mark_success([Outcome(task, b"") for task in held]) == []
    assert {row["status"] for row in rows(path)} == {"success"}


@pytest.mark.parametrize("option", ["retention", "retention_failed"])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_period_longer_than_the_retention_is_refused(path: Path, stored: bool, option: str) -> None:
    """Also one that somebody else has chosen for the file: the task that it counts from may be gone."""
    if stored:
        async with connected(SQLiteBackend(path, **{option: timedelta(hours=1)})):  # type: ignore[arg-type]
            pass
    options: dict[str, Any] = {} if stored else {option: HOUR}
    async with connected(SQLiteBackend(path, **options)) as backend:
        with pytest.raises(ValueError, match="period"):
            await backend.enqueue([new_task("plain"), unique_task("long", period=timedelta(seconds=HOUR + 1))])
        assert rows(path) == []
        assert await backend.enqueue([unique_task("short", period=timedelta(hours=1))]) == ["short"]


async def test_a_period_may_be_as_long_as_you_like_if_all_is_kept(path: Path) -> None:
    """With a retention of None nothing is pruned."""
    clock = Clock()
    async with connected(SQLiteBackend(path, retention=None, clock=clock)) as backend:
        await backend.enqueue([unique_task("first")])
        await backend.cancel(["first"])
        clock.now += 3600 * 24 * 3600
        assert await backend.enqueue([unique_task("second", period=timedelta(days=3601))]) == ["first"]
        assert await backend.enqueue([unique_task("second", period=timedelta(days=3599))]) == ["second"]


async def test_a_queue_gives_the_ids_that_stand(path: Path) -> None:
    """Of one call and of many; the result of the one that stands is there for both."""
    async with TaskQueue(Keyed(path)) as queue:
        first = await queue.enqueue(add, 1, 2)
        assert await queue.enqueue(add, 3, 4) == first
        assert await queue.enqueue_many([partial(add, 5, 6), partial(add, 7, 8)]) == [first, first]
        assert await Worker(SQLiteBackend(path)).drain() == 1
        second = await queue.enqueue(add, 3, 4)
        assert second != first
        result = await queue.get_result(first, DEADLINE_SECONDS)
        assert result is not None
        assert result.unwrap() == 3


async def test_a_queue_raises_for_a_duplicate(path: Path) -> None:
    """With the id of the one that stands."""

    class Raising(Keyed):
        unique = Unique("key", otherwise="raise")

    async with TaskQueue(Raising(path)) as queue:
        first = await queue.enqueue(add, 1, 2)
        with pytest.raises(DuplicateTaskError, match=first) as caught:
            await queue.enqueue(add, 3, 4)
        assert caught.value.task_id == first
        await Worker(SQLiteBackend(path)).drain()
        with pytest.raises(DuplicateTaskError):
            await queue.enqueue_many([partial(add, 5, 6), partial(add, 7, 8)])
        assert (await queue.counts()).pending == 0


async def test_news_are_seen_by_a_run_that_begins_after_them(path: Path, runs: Runs) -> None:
    """Whatever is enqueued while workers run: each enqueue is followed by a start of its task."""
    async with TaskQueue(Keyed(path, durability="normal")) as queue, Worker(SQLiteBackend(path), poll_interval=HOUR):
        for n in range(30):
            standing = await queue.enqueue(log_async, runs, n)
            if n % 3:
                await asyncio.sleep(0)
            else:
                assert await queue.get_result(standing, DEADLINE_SECONDS) is not None
        assert await queue.get_result(standing, DEADLINE_SECONDS) is not None
    assert runs.lines()[-1] in ("29", "28", "27")
    assert set(runs.count().values()) == {1}


async def test_what_was_replaced_is_forgotten_after_an_hour(path: Path) -> None:
    """A debounced key that is replaced for ever does not make the file grow for ever."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([unique_task("first")])
        for n in range(200):
            clock.now += 60
            await backend.enqueue([unique_task(f"call {n}", otherwise="replace", payload=b"%d" % n)])
        assert len(rows(path, "SELECT * FROM replaced")) <= 63
        assert [row["payload"] for row in rows(path)] == [b"199"]
        for n in (150, 199):
            again = unique_task(f"call {n}", otherwise="replace", payload=b"%d" % n)
            assert await backend.enqueue([again]) == ["first"]
        assert [row["payload"] for row in rows(path)] == [b"199"]


async def test_a_replaced_task_is_in_the_queue_that_is_asked_for(path: Path) -> None:
    """A row holds nothing of what it was before, but for its id and when it was stored."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([unique_task("first")])
        (before,) = rows(path)
        for queue, priority in (("mail", 3), ("", 3), ("mail", 0), ("", 0)):
            extras = Extras(queue, priority, Unique("key", otherwise="replace"))
            await backend.enqueue([new_task(f"{queue} {priority}", b"second", name="n", format="f", extras=extras)])
            lane = {"queue": queue, "priority": priority} if queue or priority else {"queue": None, "priority": None}
            assert rows(path) == [before | {"payload": b"second", "name": "n", "format": "f"} | lane]
        (held,) = (await backend.reserve(9, lease=HOUR, alone=True)).tasks
        assert (held.task_id, held.payload) == ("first", b"second")


@pytest.mark.parametrize("stored", ["enqueued", "with an outcome"])
async def test_a_unique_task_of_a_named_queue_is_run_there(path: Path, stored: str) -> None:
    """Also if it is the first one of any queue but the default one."""
    async with connected(SQLiteBackend(path)) as backend:
        task = new_task("mail", extras=Extras("mail", 7, Unique("key")))
        if stored == "enqueued":
            await backend.enqueue([task])
        else:
            await backend.enqueue([new_task("plain")])
            (held,) = (await backend.reserve(9, lease=HOUR, alone=True)).tasks
            await backend.mark_success([Outcome(held, b"", then=[task])])
        assert (await backend.select([""]).reserve(9, lease=HOUR, alone=True)).tasks == []
        assert await backend.enqueue([unique_task("other", while_="unfinished")]) == ["mail"]
        (held,) = (await backend.select(["mail"]).reserve(9, lease=HOUR, alone=True)).tasks
        assert held.task_id == "mail"


async def test_a_lookup_goes_along_its_indexes(path: Path) -> None:
    """No statement of an enqueue, nor of the triggers that carry it out, scans the table or sorts."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([unique_task("first")])
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        with pytest.raises(DuplicateTaskError):
            await backend.enqueue([unique_task("other", otherwise="raise")])
        await backend.enqueue(
            [unique_task("second", otherwise="replace", period=timedelta(hours=1)), unique_task("third", "other")]
        )
        held = (await backend.reserve(9, lease=HOUR, alone=True)).tasks
        await backend.mark_success([Outcome(held[0], b"", then=[unique_task("fourth", otherwise="replace")])])

        def plans(connection: sqlite3.Connection) -> list[str]:
            connection.set_trace_callback(None)
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_TRIGGER_EQP, True)
            asked = [sql for sql in statements if "StoreUnique" in sql or "coalesce" in sql]
            return [row[3] for sql in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await on_connection(backend, plans)
    assert all(any(f"INDEX {index} " in step for step in steps) for index in ("tasks_unique", "tasks_unique_live"))
    scans = [step for step in steps if step.startswith(("SCAN", "USE TEMP")) and "CONSTANT ROW" not in step]
    # Of tables only what the connection has in memory, and the oldest two calls that have replaced another.
    tables = {step.split()[1] for step in scans if "(subquery-" not in step}
    assert tables <= {"NEW", "note", "oldest", "replaced"}


async def test_an_id_twice_in_a_call_is_refused_before_anything_is_made(path: Path) -> None:
    """Not taken for a call that is made again."""
    async with connected(SQLiteBackend(path)) as backend:
        with pytest.raises(BackendError, match="same id"):
            await backend.enqueue([unique_task("one"), unique_task("one")])
        assert rows(path, "SELECT name FROM sqlite_schema WHERE name = 'features'") == []
