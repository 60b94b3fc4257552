"""A task that uses its own queue: ``current_task().queue`` and ``current_task().sync_queue``."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sitq import Result, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker, current_task
from sitq.backends.inspect import Counts
from sitq.testing import ManualQueue, ManualSyncQueue
from tests.faults import open_files
from tests.support import DEADLINE_SECONDS, Runs, add, log_plain, multiply, rows, until
from tests.test_serialization import JsonSerializer


async def follow(runs: Runs, line: str) -> str:
    """A coroutine that enqueues another task."""
    return await current_task().queue.enqueue(log_plain, runs, line)


def follow_in_thread(runs: Runs, line: str) -> str:
    """A plain function that enqueues another task."""
    return current_task().sync_queue.enqueue(log_plain, runs, line)


async def follow_in_block(runs: Runs, line: str) -> str:
    """A coroutine that opens and closes its queue."""
    async with current_task().queue as queue:
        return await queue.enqueue(log_plain, runs, line)


def follow_in_block_in_thread(runs: Runs, line: str) -> str:
    """A plain function that opens and closes its queue."""
    with current_task().sync_queue as queue:
        return queue.enqueue(log_plain, runs, line)


async def ask(a: int, b: int) -> int | None:
    """A coroutine that waits for what it has enqueued."""
    queue = current_task().queue
    result = await queue.get_result(await queue.enqueue(multiply, a, b))
    return result and result.unwrap()


def ask_in_thread(a: int, b: int) -> int | None:
    """A plain function that waits for what it has enqueued."""
    queue = current_task().sync_queue
    result = queue.get_result(queue.enqueue(add, a, b))
    return result and result.unwrap()


async def count() -> Counts:
    """Looks into its queue."""
    return await current_task().queue.counts()


async def enqueue_sync() -> None:
    """A coroutine that takes the wrong one."""
    current_task().sync_queue.enqueue(add, 1, 2)


async def same() -> bool:
    """Whether the queue is made once."""
    task = current_task()
    return task.queue is current_task().queue and task.sync_queue is current_task().sync_queue


async def follow_by_path() -> str:
    """Enqueues by an import path, with whatever serializer there is."""
    return await current_task().queue.enqueue("tests.support:add", 1, 2)


async def value(queue: TaskQueue, task_id: str) -> Any:
    """What a task returned."""
    result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert isinstance(result, Result)
    return result.unwrap()


EVERY_WAY = pytest.mark.parametrize("task", [follow, follow_in_thread, follow_in_block, follow_in_block_in_thread])


@EVERY_WAY
async def test_a_task_enqueues_into_its_own_queue(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, task: Any
) -> None:
    """Coroutines and plain functions, again and again: what they enqueue is run by the same worker."""
    async with Worker(backend):
        for line in ("one", "two"):
            await value(queue, await value(queue, await queue.enqueue(task, runs, line)))
    assert runs.lines() == ["one", "two"]


@EVERY_WAY
async def test_what_a_task_enqueues_is_drained_with_it(task_queue: ManualQueue, runs: Runs, task: Any) -> None:
    """Under the fixture of pytest, the same drain runs it."""
    await task_queue.enqueue(task, runs, "line")
    assert await task_queue.drain() == 2
    assert runs.lines() == ["line"]


@EVERY_WAY
def test_what_a_task_enqueues_is_drained_by_sync_code(sync_task_queue: ManualSyncQueue, runs: Runs, task: Any) -> None:
    """Under the fixture for plain tests as well."""
    sync_task_queue.enqueue(task, runs, "line")
    assert sync_task_queue.drain() == 2
    assert runs.lines() == ["line"]


@pytest.mark.parametrize(("task", "expected"), [(ask, 12), (ask_in_thread, 7)])
async def test_a_task_waits_for_the_result_of_another(task_queue: ManualQueue, task: Any, expected: int) -> None:
    """A coroutine waits on the loop, a plain function in its thread."""
    task_id = await task_queue.enqueue(task, 3, 4)
    assert await task_queue.drain() == 2
    assert await value(task_queue, task_id) == expected


async def test_a_task_inspects_its_queue(task_queue: ManualQueue) -> None:
    """What the backend offers beside the protocol is there under the fixture, too."""
    task_id = await task_queue.enqueue(count)
    await task_queue.drain()
    assert (await value(task_queue, task_id)).in_progress == 1


async def test_a_coroutine_is_told_to_take_the_other_one(task_queue: ManualQueue) -> None:
    """The sync queue would block the loop in which it works, and says so."""
    task_id = await task_queue.enqueue(enqueue_sync)
    await task_queue.drain(check=False)
    result = await task_queue.get_result(task_id)
    assert result is not None
    assert "RuntimeError: SyncTaskQueue would block the event loop" in str(result.error)


async def test_the_queue_is_made_once_for_a_worker(task_queue: ManualQueue) -> None:
    """All tasks of a worker share it."""
    task_id = await task_queue.enqueue(same)
    await task_queue.drain()
    assert await value(task_queue, task_id) is True


async def test_the_queue_has_the_workers_serializer_and_the_defaults(backend: SQLiteBackend, path: Path) -> None:
    """What it stores is in the format that the worker reads, and has the usual number of attempts."""
    async with TaskQueue(backend, JsonSerializer(), max_attempts=9) as queue:
        await queue.enqueue("tests.test_task_queues:follow_by_path")
        assert await Worker(backend, JsonSerializer()).drain() == 2
    first, second = rows(path)
    assert (first["format"], first["max_attempts"]) == ("json-1", 9)
    assert (second["format"], second["max_attempts"], second["status"]) == ("json-1", 5, "success")


async def test_a_queue_of_a_task_leaves_nothing_behind(path: Path, runs: Runs) -> None:
    """No thread, no descriptor and no user of the backend is left when the worker has stopped."""
    backend = SQLiteBackend(path)
    threads, files = threading.active_count(), open_files()
    async with Worker(backend), TaskQueue(backend) as queue:
        for task in (follow, follow_in_thread, follow_in_block, follow_in_block_in_thread):
            await value(queue, await queue.enqueue(task, runs, "line"))
        inside = {thread.name for thread in threading.enumerate()}
    assert "sitq-sync" not in inside
    assert backend._users == 0
    await until(lambda: threading.active_count() <= threads and open_files() <= files)


@pytest.mark.parametrize("name", ["queue", "sync_queue"])
async def test_outside_of_a_task_there_is_no_queue(task_queue: ManualQueue, name: str) -> None:
    """What a task knew of itself can be kept and pickled, but its queue is that of a running task."""
    task_id = await task_queue.enqueue(current_task)
    await task_queue.drain()
    kept = await value(task_queue, task_id)
    assert kept.task_id == task_id
    with pytest.raises(RuntimeError, match="outside"):
        getattr(kept, name)


async def test_a_child_of_a_fork_has_the_queue_too(task_queue: ManualQueue, runs: Runs) -> None:
    """The worker's loop stayed in the parent: the child's call runs in a loop of its own, and its task is run."""
    await task_queue.enqueue(fork_and_enqueue, runs)
    assert await task_queue.drain() == 2
    assert runs.lines() == ["from the child"]


def fork_and_enqueue(runs: Runs) -> None:
    """A plain function that forks and enqueues in the child."""
    queue: SyncTaskQueue = current_task().sync_queue
    child = os.fork()
    if child == 0:
        try:
            queue.enqueue(log_plain, runs, "from the child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
