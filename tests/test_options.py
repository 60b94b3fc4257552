"""Options that are given before the call: ``queue.options(...).enqueue(func, ...)``."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue, Worker, current_task
from sitq.models import to_micros
from sitq.testing import ManualQueue
from tests.support import add, rows

NOON = datetime(2001, 2, 3, 12, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def book(eta: str, context: int, max_attempts: int = 0) -> list[object]:
    """Has parameters that are named as options are, and gives what it was called with."""
    return [eta, context, max_attempts, dict(current_task().context)]


async def enqueue_with_options() -> str:
    """A task that enqueues another one with options."""
    return await current_task().queue.options(max_attempts=7).enqueue(add, 1, 2)


async def value(queue: TaskQueue, task_id: str) -> Any:
    """Returns what a finished task returned."""
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.unwrap()


async def test_options_are_those_of_each_task(queue: TaskQueue, path: Path) -> None:
    """They are stored with each task that the enqueuer stores, one by one and many at a time."""
    enqueuer = queue.options(eta=LATER, max_attempts=3)
    ids = [await enqueuer.enqueue(add, 1, 2), *await enqueuer.enqueue_many([partial(add, 1, 2)] * 2)]
    stored = rows(path)
    assert [row["task_id"] for row in stored] == ids
    assert {(row["available_at"], row["max_attempts"]) for row in stored} == {(to_micros(LATER), 3)}


async def test_without_an_option_the_defaults_hold(path: Path) -> None:
    """The queue's own number of attempts, no context, due at once: as without ``options``."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=4) as queue:
        await queue.options().enqueue(add, 1, 2)
        await queue.options(context={"tenant": "t"}).enqueue(add, 1, 2)
        await queue.options(max_attempts=None, eta=None, context=None).enqueue(add, 1, 2)
    assert {row["max_attempts"] for row in rows(path)} == {4}
    assert all(row["available_at"] == row["enqueued_at"] for row in rows(path))


async def test_behind_options_every_keyword_is_the_tasks(backend: SQLiteBackend) -> None:
    """A task may have parameters named as the options are; by import path, too."""
    async with TaskQueue(backend) as queue:
        enqueuer = queue.options(context={"tenant": "t"})
        ids = [
            await enqueuer.enqueue(book, eta="noon", context=5),
            await enqueuer.enqueue("tests.test_options:book", eta="noon", context=5),
            *await enqueuer.enqueue_many([partial(book, eta="noon", context=5)]),
        ]
        assert await Worker(backend).drain() == 3
        assert [await value(queue, task_id) for task_id in ids] == [["noon", 5, 0, {"tenant": "t"}]] * 3


async def test_a_delay_counts_from_each_enqueue(path: Path) -> None:
    """An enqueuer may be kept: what is stored an hour later is due an hour later."""
    clock = [NOON.timestamp()]
    async with TaskQueue(SQLiteBackend(path, clock=lambda: clock[0])) as queue:
        enqueuer = queue.options(eta=HOUR)
        for _ in range(2):
            await enqueuer.enqueue(add, 1, 2)
            clock[0] += HOUR.total_seconds()
    assert [row["available_at"] for row in rows(path)] == [to_micros(NOON + HOUR), to_micros(NOON + 2 * HOUR)]


async def test_the_context_is_copied_when_it_is_given(task_queue: ManualQueue) -> None:
    """What the caller does with the mapping afterwards changes no task."""
    context = {"tenant": "t"}
    enqueuer = task_queue.options(context=context)
    context["tenant"] = "other"
    task_id = await enqueuer.enqueue(book, "noon", 5)
    await task_queue.drain()
    assert (await value(task_queue, task_id))[-1] == {"tenant": "t"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eta": "noon"}, TypeError, "eta must be a datetime or a timedelta, not str"),
        ({"eta": datetime(2030, 1, 1)}, ValueError, "eta must be timezone-aware"),  # noqa: DTZ001
        ({"context": ["tenant"]}, TypeError, "context must be a mapping, not list"),
        ({"max_attempts": 0}, ValueError, "max_attempts must be from 1 to"),
        ({"max_attempts": "3"}, TypeError, "max_attempts must be an int, not str"),
        ({"priority": 101}, ValueError, "priority must be from -100 to 100"),
        ({"priority": True}, TypeError, "priority must be an int, not bool"),
        ({"queue": ""}, ValueError, "queue must not be empty"),
        ({"queue": 5}, TypeError, "queue must be the name of a queue"),
        ({"queue": " mail"}, ValueError, "with no space at its ends"),
        ({"timeout": -1}, ValueError, "timeout must be more than 0 seconds; got -1"),
        ({"timeout": timedelta(seconds=3)}, TypeError, r"not timedelta: write its total_seconds\(\)"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
        ({"retry": 5}, TypeError, "retry must be a policy"),
        ({"expires": timedelta(0)}, ValueError, "expires must be more than no time"),
        ({"expires": datetime(2030, 1, 1)}, ValueError, "expires must be timezone-aware"),  # noqa: DTZ001
        ({"unique": 5}, TypeError, "unique must be a key"),
        ({"on_failure": 5}, TypeError, "on_failure must be a function or an import path"),
        (
            {"eta": timedelta(minutes=2), "expires": timedelta(minutes=1)},
            ValueError,
            "the task would never be started",
        ),
        ({"delay": 5}, TypeError, "unexpected keyword argument 'delay'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("kind", [TaskQueue, SyncTaskQueue])
def test_options_are_checked_when_they_are_given(
    path: Path,
    kind: Callable[[SQLiteBackend], Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """A wrong one is refused before there is a task, and so is one that there is not."""
    with pytest.raises(error, match=message):
        kind(SQLiteBackend(path)).options(**options)
    assert not path.exists()


@pytest.mark.parametrize("name", ["eta", "context"])
async def test_an_option_among_the_arguments_is_refused_with_a_hint(queue: TaskQueue, path: Path, name: str) -> None:
    """Behind ``options`` it would be an argument of the task, which does not take it."""
    with pytest.raises(TypeError, match=rf"takes no argument '{name}'; .*options\(\)"):
        await queue.options().enqueue(add, 1, 2, **{name: None})
    assert rows(path) == []


async def test_an_enqueuer_outlives_the_closing_of_its_queue(path: Path) -> None:
    """As a call of the queue does, it connects again."""
    queue = TaskQueue(SQLiteBackend(path))
    enqueuer = queue.options(max_attempts=3)
    await enqueuer.enqueue(add, 1, 2)
    await queue.close()
    await enqueuer.enqueue_many([partial(add, 1, 2)])
    await queue.close()
    assert len(rows(path)) == 2


async def test_a_task_gives_options_to_its_own_queue(task_queue: ManualQueue) -> None:
    """``current_task().queue.options(...)`` stores with them, and the task is run."""
    task_id = await task_queue.enqueue(enqueue_with_options)
    assert await task_queue.drain() == 2
    info = await task_queue.get(await value(task_queue, task_id))
    assert info is not None
    assert info.max_attempts == 7


def test_sync_code_has_the_same_options(path: Path) -> None:
    """They are stored as from async code, and an enqueuer may be kept while the queue is closed."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    enqueuer = queue.options(eta=NOON, context={"tenant": "t"}, max_attempts=3)
    one = enqueuer.enqueue(book, eta="noon", context=5)
    queue.close()
    (two,) = enqueuer.enqueue_many([partial(book, eta="noon", context=5)])
    queue.options(eta=LATER, max_attempts=3).enqueue(add, 1, 2)
    queue.close()
    assert [row["max_attempts"] for row in rows(path)] == [3, 3, 3]
    assert rows(path)[2]["available_at"] == to_micros(LATER)
    assert asyncio.run(Worker(SQLiteBackend(path)).drain()) == 2
    with queue:
        results = [queue.get_result(task_id, timeout=0) for task_id in (one, two)]
    assert [result and result.unwrap() for result in results] == [["noon", 5, 0, {"tenant": "t"}]] * 2


async def test_an_enqueuer_for_sync_code_blocks_no_event_loop(queue: TaskQueue, path: Path) -> None:
    """If one runs in the same thread, it points to ``TaskQueue`` and stores nothing."""
    enqueuer = SyncTaskQueue(SQLiteBackend(path)).options(max_attempts=3)
    with pytest.raises(RuntimeError, match=r"\bTaskQueue\b"):
        enqueuer.enqueue(add, 1, 2)
    with pytest.raises(RuntimeError, match=r"\bTaskQueue\b"):
        enqueuer.enqueue_many([partial(add, 1, 2)])
    assert await queue.list() == []
