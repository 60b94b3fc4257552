"""Context variables that are taken along, from the code that enqueues a task into its run."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    Carry,
    CloudpickleSerializer,
    Retry,
    SerializationError,
    SQLiteBackend,
    SyncTaskQueue,
    TaskQueue,
    Worker,
    current_task,
    follow_up,
)
from sitq.extensions import Extension

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
REQUEST: ContextVar[Any] = ContextVar("request")


def in_thread() -> tuple[str, Any]:
    """Returns the variables, in a thread."""
    assert threading.current_thread() is not threading.main_thread()
    return TENANT.get(), REQUEST.get(None)


async def on_loop() -> tuple[str, Any]:
    """Returns the variables, on the loop."""
    return TENANT.get(), REQUEST.get(None)


async def set_it() -> None:
    """Sets a variable in its own way, which is nobody else's matter."""
    TENANT.set("the task's own")


async def twice() -> str:
    """Is tried again once."""
    if current_task().attempt == 1:
        raise Retry(0)
    return TENANT.get()


async def enqueue_more() -> list[str]:
    """Enqueues by all ways that a task has, and returns the ids."""
    one = await current_task().queue.enqueue(on_loop)
    return [one, follow_up(on_loop)]


def enqueue_more_in_thread() -> list[str]:
    """As above, for plain functions."""
    one = current_task().sync_queue.enqueue(in_thread)
    return [one, follow_up(in_thread)]


async def values(queue: TaskQueue, *task_ids: str) -> list[Any]:
    """Returns what tasks have returned."""
    found = [await queue.get_result(task_id, timeout=0) for task_id in task_ids]
    return [None if each is None else each.unwrap() for each in found]


def carry() -> Carry:
    """Takes both variables along."""
    return Carry(tenant=TENANT, request=REQUEST)


async def alone[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Awaits with no variable set, as a worker in another process does."""
    return await asyncio.create_task(coroutine, context=Context())


def drained(backend: SQLiteBackend, *extensions: Extension, **options: Any) -> Coroutine[Any, Any, int]:
    """Runs what is due with no variable set."""
    return alone(Worker(backend, extensions=extensions, **options).drain())


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    """Sets both variables for a test."""
    tokens = TENANT.set("acme"), REQUEST.set(7)
    yield
    TENANT.reset(tokens[0])
    REQUEST.reset(tokens[1])


@pytest.fixture
async def carrying(backend: SQLiteBackend, variables: None) -> AsyncIterator[TaskQueue]:
    """A queue that takes both along."""
    async with TaskQueue(backend, extensions=[carry()]) as queue:
        yield queue


@pytest.mark.parametrize("func", [in_thread, on_loop])
async def test_variables_reach_a_run_and_not_the_next_task(
    func: Any, carrying: TaskQueue, backend: SQLiteBackend
) -> None:
    """In threads, too: a task that was enqueued with none of them set finds them unset, in the same slot."""
    TENANT.set("acme"), REQUEST.set(7)
    first = await carrying.enqueue(func)
    await alone(carrying.enqueue(set_it))
    second = await alone(carrying.enqueue(func))
    assert await drained(backend, carry(), max_concurrency=1) == 3
    assert await values(carrying, first, second) == [("acme", 7), ("nobody", None)]


async def test_a_variable_that_is_not_set_is_not_sent(carrying: TaskQueue, backend: SQLiteBackend) -> None:
    """Its default counts in the worker; what is stored without any has no headers."""
    await alone(carrying.enqueue(on_loop))
    (task,) = (await backend.reserve(1, lease=60, alone=False)).tasks
    assert "options" not in CloudpickleSerializer().loads(task.payload)


async def test_a_worker_passes_over_names_that_it_does_not_know(carrying: TaskQueue, backend: SQLiteBackend) -> None:
    """And one without the extension passes over all of them, as an older one does."""
    REQUEST.set("r"), TENANT.set("acme")
    task_id = await carrying.enqueue(on_loop)
    await drained(backend, Carry(tenant=TENANT))
    other = await carrying.enqueue(on_loop)
    await drained(backend)
    assert await values(carrying, task_id, other) == [("acme", None), ("nobody", None)]


async def test_two_carry_objects_get_along(backend: SQLiteBackend) -> None:
    """Each has its own variables, in the queue and in the worker."""
    TENANT.set("acme"), REQUEST.set(7)
    both = Carry(tenant=TENANT), Carry(request=REQUEST)
    async with TaskQueue(backend, extensions=both) as queue:
        task_id = await queue.enqueue(on_loop)
        await drained(backend, *reversed(both))
        assert await values(queue, task_id) == [("acme", 7)]


async def test_variables_survive_a_retry(carrying: TaskQueue, backend: SQLiteBackend) -> None:
    """They are stored with the task."""
    TENANT.set("acme")
    task_id = await carrying.enqueue(twice)
    assert await drained(backend, carry()) == 2
    assert await values(carrying, task_id) == ["acme"]


@pytest.mark.parametrize("func", [enqueue_more, enqueue_more_in_thread])
async def test_what_a_task_enqueues_has_its_variables(func: Any, carrying: TaskQueue, backend: SQLiteBackend) -> None:
    """By its queue and by ``follow_up``, on the loop and in a thread."""
    TENANT.set("acme"), REQUEST.set([7])
    task_id = await carrying.enqueue(func)
    assert await drained(backend, carry()) == 3
    (ids,) = await values(carrying, task_id)
    assert await values(carrying, *ids) == [("acme", [7])] * 2


def test_a_sync_queue_takes_the_variables_of_the_calling_thread(path: Path) -> None:
    """Though it works in an event loop of its own."""
    with SyncTaskQueue(SQLiteBackend(path), extensions=[carry()]) as queue:
        task_id = queue.enqueue(on_loop)
        asyncio.run(drained(SQLiteBackend(path), carry()))
        result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == ("acme", 7)


async def test_a_value_that_cannot_be_carried_is_refused_by_name(carrying: TaskQueue) -> None:
    """When the task is enqueued; nothing is stored."""
    REQUEST.set(threading.Lock())
    with pytest.raises(SerializationError, match=r"header 'carry\.request' of tests\.test_carry:on_loop, a lock"):
        await carrying.enqueue(on_loop)
    assert (await carrying.counts()).pending == 0


async def test_a_context_of_the_callers_own_stays_what_it_is(carrying: TaskQueue, backend: SQLiteBackend) -> None:
    """Headers are none of its matter."""
    await carrying.enqueue(on_loop, context={"tenant": "in the context"})
    (task,) = (await backend.reserve(1, lease=60, alone=False)).tasks
    assert CloudpickleSerializer().loads(task.payload)["context"] == {"tenant": "in the context"}


@pytest.mark.parametrize(("wrong", "said"), [({}, "at least one"), ({"tenant": "acme"}, r"Carry\(tenant=...\) .* str")])
def test_what_is_no_variable_is_refused(wrong: Any, said: str) -> None:
    """When it is made."""
    with pytest.raises(TypeError, match=said):
        Carry(**wrong)
