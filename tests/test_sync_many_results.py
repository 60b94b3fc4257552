"""The results of many tasks for code that has no event loop."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, Result, SerializationError, SQLiteBackend, SyncTaskQueue, Worker
from tests.support import DEADLINE_SECONDS, add, multiply, start_python
from tests.test_many_results import Counted
from tests.test_results import FOR_EVER_SECONDS, WORKER, give_what_fails_to_load


@pytest.fixture
def sync_queue(path: Path) -> Iterator[SyncTaskQueue]:
    """A queue on the file."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        yield queue


def drain(path: Path) -> int:
    """Runs all tasks that are due, by a worker of this process."""
    return asyncio.run(Worker(SQLiteBackend(path)).drain())


def test_a_list_and_an_iterator_without_await(sync_queue: SyncTaskQueue, path: Path) -> None:
    """Results in the order of the ids, and as they come; unknown ids are ``None``, or left out."""
    ids = sync_queue.enqueue_many(partial(multiply, n, n) for n in range(10))
    assert sync_queue.get_results(ids, timeout=0) == [None] * 10
    drain(path)
    results = sync_queue.get_results(["unknown", *reversed(ids)])
    assert [result and result.value for result in results] == [None, *(n * n for n in reversed(range(10)))]
    assert {result.value for result in sync_queue.as_completed(["unknown", *ids])} == {n * n for n in range(10)}
    assert [*sync_queue.as_completed([])] == sync_queue.get_results([]) == []


def test_results_of_another_process_come_to_sync_code(sync_queue: SyncTaskQueue, path: Path) -> None:
    """A worker in a process of its own finishes the tasks while a thread is in the loop over them."""
    ids = sync_queue.enqueue_many(partial(multiply, n, n) for n in range(20))
    with start_python(WORKER, path, stdin=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
        given = {result.unwrap() for result in sync_queue.as_completed(ids, timeout=DEADLINE_SECONDS)}
    assert given == {n * n for n in range(20)}


def test_a_timeout_is_an_error_of_the_iterator(sync_queue: SyncTaskQueue, path: Path) -> None:
    """Behind what is finished; the list has ``None`` instead."""
    done = sync_queue.enqueue(add, 1, 2)
    drain(path)
    ids = [done, sync_queue.enqueue(add, 3, 4)]
    given = sync_queue.as_completed(ids, timeout=0.05)
    assert next(given).task_id == done
    with pytest.raises(TimeoutError, match="1 of the tasks were not finished in time"):
        next(given)
    assert [result and result.value for result in sync_queue.get_results(ids, timeout=0.05)] == [3, None]


def test_ids_are_taken_from_the_caller_in_its_thread(sync_queue: SyncTaskQueue) -> None:
    """A generator may depend on it."""
    threads = set()

    def ids() -> Iterator[str]:
        threads.add(threading.get_ident())
        yield "unknown"

    assert sync_queue.get_results(ids()) == [None]
    assert [*sync_queue.as_completed(ids())] == []
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("task_ids", ["unknown", [1], None])
def test_bad_ids_are_refused_at_the_call(sync_queue: SyncTaskQueue, task_ids: Any) -> None:
    """As by the async queue."""
    with pytest.raises(TypeError):
        sync_queue.get_results(task_ids)
    with pytest.raises(TypeError):
        sync_queue.as_completed(task_ids)


async def test_neither_blocks_a_running_loop(path: Path) -> None:
    """Called in a coroutine, they are refused; and so is an iterator that was made elsewhere."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    given = await asyncio.to_thread(queue.as_completed, ["unknown"])
    for call in (lambda: queue.get_results([]), lambda: queue.as_completed([]), lambda: next(given)):
        with pytest.raises(RuntimeError, match="would block the event loop"):
            call()
    await asyncio.to_thread(queue.close)


def test_a_value_that_cannot_be_loaded_does_not_end_the_loop(sync_queue: SyncTaskQueue, path: Path) -> None:
    """The iterator raises, and has the others when it is asked again."""
    ids = [sync_queue.enqueue(give_what_fails_to_load), sync_queue.enqueue(add, 1, 2)]
    drain(path)
    given = sync_queue.as_completed(ids)
    seen: list[Any] = []
    for _ in ids:
        try:
            seen.append(next(given).unwrap())
        except SerializationError:
            seen.append("cannot be loaded")
    assert sorted(seen, key=str) == [3, "cannot be loaded"]
    assert [*given] == []


def test_several_threads_share_one_iterator(sync_queue: SyncTaskQueue, path: Path) -> None:
    """Each result is given to one of them."""
    ids = sync_queue.enqueue_many(partial(add, n, n) for n in range(50))
    given = sync_queue.as_completed(ids, timeout=DEADLINE_SECONDS)

    def take(_: int) -> list[Result[Any]]:
        return [*given]

    with ThreadPoolExecutor(4) as pool:
        taken = pool.map(take, range(4))
        drain(path)
    assert sorted(result.task_id for some in taken for result in some) == sorted(ids)


def wait_in_vain(backend: Counted, queue: SyncTaskQueue) -> None:
    """Returns when nobody watches any more, as the thread of the queue sees it."""
    for _ in range(1000):
        queue.get_result("unknown", timeout=0)  # a turn of its loop
        if not backend.is_watched:
            return
    raise AssertionError("somebody still watches")


def test_a_loop_that_is_left_leaves_no_watch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ``break`` in the caller's thread, or if the iterator is closed; the watch was in another thread."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", FOR_EVER_SECONDS)
    backend = Counted(path)
    with SyncTaskQueue(backend) as queue:
        ids = [queue.enqueue(add, 1, 2)]
        drain(path)
        ids.append(queue.enqueue(add, 1, 2))
        for result in queue.as_completed(ids):
            assert result.task_id == ids[0]
            assert backend.is_watched
            break
        wait_in_vain(backend, queue)
        given = queue.as_completed(ids)
        next(given)
        assert backend.is_watched
        given.close()
        assert not backend.is_watched
        assert [*given] == []


def test_closing_the_queue_ends_the_loops(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a thread which waits, and one that comes back for the next result; no watch stays."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", FOR_EVER_SECONDS)
    backend = Counted(path)
    keeper = asyncio.Runner()
    keeper.run(backend.connect())  # another user of the backend: it stays open
    queue = SyncTaskQueue(backend)
    ids = [queue.enqueue(add, 1, 2)]
    drain(path)
    ids.append(queue.enqueue(add, 1, 2))
    idle = queue.as_completed(ids)
    next(idle)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(next, queue.as_completed(ids[1:])), pool.submit(queue.get_results, ids)]
        looked = threading.Event()

        async def wait() -> None:
            await backend.waited_for(3)
            looked.set()

        queue._portal.call(wait)
        assert looked.is_set()
        queue.close()
        for call in calls:
            with pytest.raises(BackendError, match="was closed while this call waited"):
                call.result(DEADLINE_SECONDS)
    with pytest.raises(BackendError, match="the queue was closed while these results were waited for"):
        next(idle)
    queue.close()
    del calls
    assert not backend.is_watched
    keeper.run(backend.close())
    keeper.close()
