"""Storing tasks: the life of a queue, one task or many, now or later, with a context."""

import asyncio
import contextlib
import sqlite3
import subprocess
import threading
from collections import ChainMap, UserDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from sitq import BackendError, CloudpickleSerializer, SQLiteBackend, TaskQueue, Worker, current_task
from sitq.models import to_micros
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, Runs, add, log_plain, rows, start_python

MANY = 40_000
NOW = datetime(2026, 5, 4, 3, 2, 1, 500_000, tzinfo=UTC)


def echo(value: Any) -> Any:
    """Gives back its argument."""
    return value


def read_context() -> dict[str, Any]:
    """Gives what the running task finds as its context."""
    return dict(current_task().context)


async def value_of(queue: TaskQueue, task_id: str) -> Any:
    """Returns what a task that has been run returned."""
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.unwrap()


def is_there(path: Path) -> bool:
    """Whether there is a file."""
    return path.exists()


async def is_closed(backend: SQLiteBackend) -> bool:
    """Whether a backend has been let go of by its last user."""
    try:
        await backend.get_result("x")
    except BackendError:
        return True
    return False


async def test_a_queue_with_nothing_given_works_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue and worker meet in ``sitq.db``, and the payload is that of the default serializer."""
    monkeypatch.chdir(tmp_path)
    async with TaskQueue() as queue:
        task_id = await queue.enqueue(add, 1, b=2)
        assert await Worker().drain() == 1
        assert await value_of(queue, task_id) == 3
    (row,) = rows(tmp_path / "sitq.db")
    assert row["format"] == CloudpickleSerializer().format
    assert CloudpickleSerializer().loads(row["payload"])["func"] is add


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.enqueue(add, 1, 2),
        lambda queue: queue.enqueue_many([partial(add, 1, 2)]),
        lambda queue: queue.get_result("x"),
    ],
    ids=["enqueue", "enqueue_many", "get_result"],
)
async def test_the_first_call_connects(backend: SQLiteBackend, path: Path, call: Callable[[TaskQueue], Any]) -> None:
    """A queue works without ``async with``: nothing is opened before the first call, and it opens."""
    queue = TaskQueue(backend)
    assert not is_there(path)
    await call(queue)
    assert is_there(path)
    await queue.close()
    assert await is_closed(backend)


async def test_close_is_safe_at_any_time(backend: SQLiteBackend) -> None:
    """Before the first call, twice, and from several callers at once."""
    queue = TaskQueue(backend)
    await queue.close()
    await queue.enqueue(add, 1, 2)
    await asyncio.gather(queue.close(), queue.close(), queue.close())
    await queue.close()
    assert await is_closed(backend)


async def test_a_closed_queue_connects_again(backend: SQLiteBackend, path: Path) -> None:
    """A call after ``close`` is a first call."""
    queue = TaskQueue(backend)
    for count in (1, 2, 3):
        async with queue:
            await queue.enqueue(add, 1, 2)
        assert await is_closed(backend)
        assert len(rows(path)) == count


async def test_calls_that_connect_together_are_one_user(backend: SQLiteBackend, path: Path) -> None:
    """Twenty first calls at once store their tasks, and one ``close`` closes."""
    queue = TaskQueue(backend)
    await asyncio.gather(*(queue.enqueue(add, 1, n) for n in range(20)))
    assert len(rows(path)) == 20
    await queue.close()
    assert await is_closed(backend)


def test_a_queue_may_be_closed_in_another_event_loop(backend: SQLiteBackend, path: Path) -> None:
    """Each call may come from an ``asyncio.run`` of its own."""
    queue = TaskQueue(backend)
    task_id = asyncio.run(queue.enqueue(add, 1, 2))
    asyncio.run(queue.enqueue(add, 3, 4))
    assert asyncio.run(Worker(backend).drain()) == 2
    assert asyncio.run(value_of(queue, task_id)) == 3
    asyncio.run(queue.close())
    assert asyncio.run(is_closed(backend))


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_close_can_be_made_good(backend: SQLiteBackend, turns: int) -> None:
    """Wherever ``close`` was cancelled, the backend is closed after the next one."""
    queue = TaskQueue(backend)
    await queue.enqueue(add, 1, 2)
    closing = asyncio.create_task(queue.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await queue.close()
    assert await is_closed(backend)


def test_a_first_call_that_was_cancelled_does_not_matter(tmp_path: Path) -> None:
    """Wherever the end of an event loop cut it off, the loop ends, and the next call connects."""
    printed = run_script(
        """
        import asyncio, sys
        from sitq import SQLiteBackend, TaskQueue

        async def first(queue, turns):
            caller = asyncio.create_task(queue.enqueue(len, "a"))
            for _ in range(turns):
                await asyncio.sleep(0)

        async def then(queue):
            task_id = await queue.enqueue(len, "b")
            await queue.close()
            return len(task_id)

        for turns in range(9):
            queue = TaskQueue(SQLiteBackend(f"{sys.argv[1]}/{turns}.db"))
            asyncio.run(first(queue, turns))
            print(turns, asyncio.run(then(queue)) > 0)
        """,
        tmp_path,
    )
    assert printed.split() == [word for turns in range(9) for word in (str(turns), "True")]


async def test_a_backend_closes_with_its_last_user_and_not_before(backend: SQLiteBackend) -> None:
    """Two queues and a worker share one object; each of them still works when the others have closed."""
    one, two, worker = TaskQueue(backend), TaskQueue(backend), Worker(backend)
    await worker.start()
    task_id = await one.enqueue(add, 1, 2)
    assert await two.get_result(task_id, timeout=30)
    await one.close()
    await two.enqueue(add, 1, 2)
    await worker.stop()
    assert len(await two.enqueue_many([partial(add, 1, 2)])) == 1
    assert not await is_closed(backend)
    await two.close()
    assert await is_closed(backend)


async def test_a_task_outlives_its_killed_producer(path: Path, runs: Runs) -> None:
    """What was acknowledged before SIGKILL is run later, with the arguments given."""
    producer = start_python(
        """
import asyncio, sys
from pathlib import Path
from sitq import SQLiteBackend, TaskQueue
from tests.support import Runs, log_plain
async def main():
    queue = TaskQueue(SQLiteBackend(sys.argv[1]))
    print(await queue.enqueue(log_plain, Runs(Path(sys.argv[2])), line="ran"))
    sys.stdin.read()
asyncio.run(main())
""",
        path,
        runs.path,
        stdin=subprocess.PIPE,
    )
    with producer:
        assert producer.stdout is not None
        task_id = (await asyncio.to_thread(producer.stdout.readline)).strip()
        producer.kill()
    assert producer.returncode < 0
    assert await Worker(SQLiteBackend(path)).drain() == 1
    assert runs.lines() == ["ran"]
    assert [row["task_id"] for row in rows(path)] == [task_id]


async def test_an_acknowledged_task_is_committed(queue: TaskQueue, path: Path) -> None:
    """Another connection sees each task as soon as ``enqueue`` has returned its id."""
    for _ in range(20):
        task_id = await queue.enqueue(add, 1, 2)
        assert rows(path, "SELECT status FROM tasks WHERE task_id = ?", task_id) == [{"status": "pending"}]


async def test_a_cancelled_enqueue_stores_all_or_nothing(queue: TaskQueue, path: Path) -> None:
    """Wherever it was cancelled, the batch is whole or absent, and the file is not left locked."""
    for turns in range(8):
        caller = asyncio.create_task(queue.enqueue_many([partial(add, 1, 2)] * 3))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await caller
    await queue.enqueue(add, 1, 2)  # it is behind all that is still under way
    assert (len(rows(path)) - 1) % 3 == 0
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    "zone", [UTC, timezone(timedelta(hours=5)), timezone(-timedelta(hours=9, minutes=30, microseconds=1))], ids=str
)
async def test_an_eta_is_stored_as_the_same_instant_in_utc(queue: TaskQueue, path: Path, zone: timezone) -> None:
    """``available_at`` holds it in microseconds, whatever the caller's time zone."""
    eta = (datetime.now(UTC) + timedelta(days=3)).astimezone(zone)
    await queue.enqueue(add, 1, 2, eta=eta)
    await queue.enqueue_many([partial(add, 1, 2)] * 2, eta=eta)
    assert [row["available_at"] for row in rows(path)] == [to_micros(eta)] * 3


async def test_a_task_starts_at_its_eta_and_not_before(path: Path) -> None:
    """A microsecond before it nothing is due; when the backend's clock reaches it, the task is run."""
    clock = [NOW.timestamp()]
    backend = SQLiteBackend(path, clock=lambda: clock[0])
    eta = NOW + timedelta(hours=1)
    async with TaskQueue(backend) as queue:
        await queue.enqueue(add, 1, 2, eta=eta)
        worker = Worker(backend)
        assert await worker.drain() == 0
        clock[0] = (eta - timedelta(microseconds=2)).timestamp()
        assert await worker.drain() == 0
        clock[0] = eta.timestamp()
        assert await worker.drain() == 1


@pytest.mark.parametrize(
    "eta", [datetime.now(UTC) - timedelta(hours=1), datetime(1, 1, 1, tzinfo=UTC)], ids=["an hour ago", "the year 1"]
)
async def test_a_past_eta_means_now(queue: TaskQueue, backend: SQLiteBackend, path: Path, eta: datetime) -> None:
    """The task is due from the moment at which it was stored, and runs."""
    await queue.enqueue(add, 1, 2, eta=eta)
    (row,) = rows(path)
    assert row["available_at"] == row["enqueued_at"]
    assert await Worker(backend).drain() == 1


@pytest.mark.parametrize(
    "context",
    [
        {"request_id": "r1", "nested": {"a": [1, 2]}},
        MappingProxyType({"tenant": "t"}),
        ChainMap({"a": 1}, {"b": 2}),
        UserDict({"a": (1, 2)}),
        {},
        None,
    ],
    ids=lambda context: type(context).__name__,
)
async def test_a_context_arrives(
    queue: TaskQueue, backend: SQLiteBackend, path: Path, context: Mapping[str, Any] | None
) -> None:
    """Any mapping is stored as a dictionary and read by the running task; without one there is an empty one."""
    ids = [
        await queue.enqueue(read_context, context=context),
        *await queue.enqueue_many([read_context], context=context),
    ]
    await Worker(backend).drain()
    assert [await value_of(queue, task_id) for task_id in ids] == [dict(context or {})] * 2
    assert [type(CloudpickleSerializer().loads(row["payload"])["context"]) for row in rows(path)] == [dict] * 2


async def test_a_context_is_taken_as_it_was(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What the caller changes in it later does not reach the task."""
    context = {"tenant": "one"}
    task_id = await queue.enqueue(read_context, context=context)
    context["tenant"] = "two"
    await Worker(backend).drain()
    assert await value_of(queue, task_id) == {"tenant": "one"}


async def test_a_batch_shares_its_context(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Every task of the batch reads it, whatever the others do to theirs."""
    ids = await queue.enqueue_many([read_context] * 5, context={"tenant": "t"})
    await Worker(backend).drain()
    assert [await value_of(queue, task_id) for task_id in ids] == [{"tenant": "t"}] * 5


async def test_the_ids_of_a_batch_are_in_the_order_of_its_calls(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The id at a position belongs to the task whose call stood there."""
    ids = await queue.enqueue_many(partial(echo, n) for n in range(1000))
    assert await Worker(backend, max_concurrency=100).drain() == 1000
    assert [await value_of(queue, task_id) for task_id in ids] == list(range(1000))


@pytest.mark.parametrize("make", [list, tuple, iter, dict.fromkeys, lambda calls: (call for call in calls)])
async def test_a_batch_is_any_iterable(queue: TaskQueue, path: Path, make: Callable[[Any], Any]) -> None:
    """A list, a tuple, an iterator, the keys of a dictionary or a generator."""
    assert len(await queue.enqueue_many(make([partial(echo, n) for n in range(5)]))) == len(rows(path)) == 5


async def test_an_empty_batch_gives_no_ids(queue: TaskQueue, path: Path) -> None:
    """Nothing is stored, and nothing is raised."""
    assert await queue.enqueue_many(iter(())) == []
    assert rows(path) == []


async def test_a_very_large_batch_is_one_transaction(queue: TaskQueue, path: Path) -> None:
    """Another connection, which reads all the time, sees none of its tasks or all of them."""
    seen: set[int] = set()
    looked, stored = threading.Event(), threading.Event()

    def observe() -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            is_last = False
            while not is_last:
                is_last = stored.is_set()
                seen.add(connection.execute("SELECT count(*) FROM tasks").fetchone()[0])
                looked.set()

    def calls() -> Iterator[Callable[[], Any]]:
        for n in range(MANY):
            yield partial(echo, n)

    observer = asyncio.create_task(asyncio.to_thread(observe))
    try:
        assert await asyncio.to_thread(looked.wait, DEADLINE_SECONDS)
        ids = await queue.enqueue_many(calls())
    finally:
        stored.set()
        await observer
    assert seen == {0, MANY}
    assert len(set(ids)) == MANY
    assert rows(path, "SELECT count(*) AS n, count(DISTINCT task_id) AS ids FROM tasks") == [{"n": MANY, "ids": MANY}]


async def test_a_partial_is_taken_apart(queue: TaskQueue, path: Path) -> None:
    """It is stored as its function and arguments: the same bytes as without the partial."""
    await queue.enqueue(log_plain, "a", line=1)
    await queue.enqueue(partial(log_plain, "a"), line=1)
    await queue.enqueue_many([partial(partial(log_plain, "a"), line=1)])
    plain, *others = ((row["payload"], row["name"]) for row in rows(path))
    assert others == [plain, plain]
    assert CloudpickleSerializer().loads(plain[0])["func"] is log_plain


@pytest.mark.parametrize("max_attempts", [1, 2, 2**31 - 1])
async def test_a_task_keeps_the_attempts_of_its_queue(backend: SQLiteBackend, path: Path, max_attempts: int) -> None:
    """The row has the number that the queue was made with, for both ways to enqueue."""
    async with TaskQueue(backend, max_attempts=max_attempts) as queue:
        await queue.enqueue(add, 1, 2)
        await queue.enqueue_many([partial(add, 1, 2)])
    assert [row["max_attempts"] for row in rows(path)] == [max_attempts] * 2
