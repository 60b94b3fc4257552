"""The queue for code without an event loop: the same surface, one private loop, shared by threads."""

import asyncio
import contextlib
import inspect
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker, current_task
from sitq._enqueuer import Enqueuer
from sitq.backends.progressing import Progress
from sitq.models import to_micros
from sitq.sync import SyncEnqueuer
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, add, multiply, rows

THREAD_NAME = "sitq-sync"
PUBLIC_METHODS = [name for name in dir(TaskQueue) if name[0] != "_"]
PUBLIC_ENQUEUER = [name for name in vars(Enqueuer) if name[0] != "_"]


def loop_threads() -> list[threading.Thread]:
    """Returns the threads of private event loops that are running."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def drain(path: Path) -> int:
    """Runs what is due, with a backend object of its own."""
    return asyncio.run(Worker(SQLiteBackend(path)).drain())


def read_context() -> dict[str, Any]:
    """Gives what the running task finds as its context."""
    return dict(current_task().context)


class Watched(SQLiteBackend):
    """A backend that tells when somebody waits for a result, and when nobody does any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.waiting = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Lets go of one semaphore, watches, then lets go of the other one."""
        self.waiting.release()
        with super().watch(on_change, task_id=task_id):
            try:
                yield
            finally:
                self.left.release()


@pytest.fixture
def watched(path: Path) -> Watched:
    """A backend on the file that tells when somebody waits."""
    return Watched(path)


@pytest.fixture
def sync_queue(watched: Watched) -> Iterator[SyncTaskQueue]:
    """A queue that is closed at the end."""
    with SyncTaskQueue(watched) as queue:
        yield queue


class EndOfProgramOnPickling:
    """Raises when it is pickled what ends a program elsewhere."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        """Raises."""
        raise self.error("pickled")


def raise_it(error: type[BaseException]) -> None:
    """Raises what it is told."""
    raise error("loaded")


class EndOfProgramOnLoading:
    """Raises when it is loaded what ends a program elsewhere."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        """Makes a pickle that raises."""
        return raise_it, (self.error,)


def give_what_ends(error: type[BaseException]) -> EndOfProgramOnLoading:
    """Returns a value that can be stored and not be loaded."""
    return EndOfProgramOnLoading(error)


def test_a_round_trip(sync_queue: SyncTaskQueue, path: Path) -> None:
    """A task is stored with its arguments, a worker runs it, and its result is read."""
    one = sync_queue.enqueue(add, 1, b=2)
    two, three = sync_queue.enqueue_many(partial(multiply, n, n) for n in (2, 3))
    assert [type(task_id) for task_id in (one, two, three)] == [str] * 3
    assert sync_queue.get_result(one, timeout=0) is None
    assert drain(path) == 3
    results = [sync_queue.get_result(task_id, timeout=60) for task_id in (one, two, three)]
    assert [result and result.unwrap() for result in results] == [3, 4, 9]
    assert sync_queue.get_result("no-such-task") is None


def test_eta_context_and_attempts_are_those_of_the_async_queue(path: Path) -> None:
    """They are stored and read as ``TaskQueue`` stores them."""
    eta = datetime.now(UTC) + timedelta(days=1)
    with SyncTaskQueue(SQLiteBackend(path), max_attempts=2, default_result_timeout=0) as queue:
        queue.enqueue(add, 1, 2, eta=eta)
        task_id = queue.enqueue(read_context, context={"tenant": "t"})
        assert queue.get_result(task_id) is None
        assert drain(path) == 1
        result = queue.get_result(task_id)
        assert result is not None
        assert result.unwrap() == {"tenant": "t"}
    assert [row["max_attempts"] for row in rows(path)] == [2, 2]
    assert rows(path)[0]["available_at"] == to_micros(eta)


@pytest.mark.parametrize("name", ["__init__", *PUBLIC_METHODS])
def test_the_signatures_agree(name: str) -> None:
    """Each method has the parameters, kinds, defaults and annotations of the one of ``TaskQueue``."""
    ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (SyncTaskQueue, TaskQueue))
    assert list(ours.parameters.values()) == list(theirs.parameters.values())
    if name == "options":
        assert (ours.return_annotation, theirs.return_annotation) == (SyncEnqueuer, Enqueuer)
    elif name == "as_completed":
        assert (ours.return_annotation, theirs.return_annotation) == ("SyncCompleted[Any]", "Completed[Any]")
    elif name == "follow":
        assert (ours.return_annotation, theirs.return_annotation) == (Iterator[Progress], AsyncIterator[Progress])
    else:
        assert ours.return_annotation == theirs.return_annotation


@pytest.mark.parametrize("name", PUBLIC_ENQUEUER)
def test_the_signatures_of_the_enqueuers_agree(name: str) -> None:
    """They have the same methods, with the same parameters and what they return."""
    assert inspect.signature(getattr(SyncEnqueuer, name)) == inspect.signature(getattr(Enqueuer, name))
    assert {name for name in vars(SyncEnqueuer) if name[0] != "_"} == set(PUBLIC_ENQUEUER)


def test_both_queues_have_the_same_methods() -> None:
    """Neither has a public name that the other one lacks."""
    assert {name for name in dir(SyncTaskQueue) if name[0] != "_"} == set(PUBLIC_METHODS)
    assert set(PUBLIC_METHODS) >= {"enqueue", "enqueue_many", "get_result", "get_results", "as_completed", "close"}


@pytest.mark.parametrize("error", [None, KeyError])
def test_leaving_the_block_closes(watched: Watched, error: type[Exception] | None) -> None:
    """Normally or by an exception: the thread is gone and the backend closed."""
    queue = SyncTaskQueue(watched)
    with contextlib.suppress(KeyError), queue as entered:
        assert entered is queue
        queue.enqueue(add, 1, 2)
        assert len(loop_threads()) == 1
        if error is not None:
            raise error
    assert loop_threads() == []
    with pytest.raises(BackendError):
        asyncio.run(watched.get_result("x"))


def test_close_is_safe_at_any_time(path: Path) -> None:
    """Before the first call, twice, and from several threads at once; a call after it connects again."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    queue.close()
    assert loop_threads() == []
    for count in (1, 2):
        queue.enqueue(add, 1, 2)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: queue.close(), range(8)))
        queue.close()
        assert loop_threads() == []
        assert len(rows(path)) == count


def test_no_thread_before_the_first_call(path: Path) -> None:
    """A queue that is only made costs nothing and opens nothing."""
    SyncTaskQueue(SQLiteBackend(path))
    assert loop_threads() == []
    assert not path.exists()


def test_many_threads_share_one_queue_and_one_loop(sync_queue: SyncTaskQueue, path: Path) -> None:
    """Each of 16 threads gets the ids of its own 100 tasks, and one loop's thread served them all."""

    def produce(thread: int) -> list[str]:
        return [sync_queue.enqueue(add, thread, n) for n in range(100)]

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(produce, range(16)))
    assert len(loop_threads()) == 1
    stored = {row["task_id"] for row in rows(path)}
    assert len(stored) == 1600
    assert stored == {task_id for some in ids for task_id in some}
    assert asyncio.run(Worker(SQLiteBackend(path), max_concurrency=100).drain()) == 1600
    results = [sync_queue.get_result(task_id, timeout=0) for task_id in ids[7]]
    assert [result and result.value for result in results] == [7 + n for n in range(100)]


def test_a_waiting_thread_does_not_hold_up_the_others(sync_queue: SyncTaskQueue, watched: Watched, path: Path) -> None:
    """While several threads wait for a task, others enqueue and read; then all get the result."""
    task_id = sync_queue.enqueue(add, 1, 2)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(sync_queue.get_result, task_id) for _ in range(4)]
        for _ in waiting:
            assert watched.waiting.acquire(timeout=DEADLINE_SECONDS)
        assert sync_queue.get_result(sync_queue.enqueue(add, 3, 4), timeout=0) is None
        assert not any(future.done() for future in waiting)
        assert drain(path) == 2
        results = [future.result(DEADLINE_SECONDS) for future in waiting]
    assert [result and result.unwrap() for result in results] == [3] * 4


def test_closing_ends_the_calls_that_wait(watched: Watched) -> None:
    """Each thread that waits for a result gets an error that says so, instead of hanging."""
    queue = SyncTaskQueue(watched)
    task_id = queue.enqueue(add, 1, 2)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(queue.get_result, task_id) for _ in range(3)]
        for _ in waiting:
            assert watched.waiting.acquire(timeout=DEADLINE_SECONDS)
        queue.close()
        for future in waiting:
            with pytest.raises(BackendError, match="closed"):
                future.result(DEADLINE_SECONDS)
    assert loop_threads() == []


def test_calls_and_closes_may_race(path: Path) -> None:
    """Threads enqueue while others close: each call stores its task or raises, and nothing is left open."""
    backend = SQLiteBackend(path)
    queue = SyncTaskQueue(backend)
    stored: list[str] = []

    def produce() -> None:
        for _ in range(150):
            with contextlib.suppress(BackendError):
                stored.append(queue.enqueue(add, 1, 2))

    with ThreadPoolExecutor(6) as pool:
        producers = [pool.submit(produce) for _ in range(4)]
        closers = [pool.submit(lambda: [queue.close() for _ in range(40)]) for _ in range(2)]
        for future in [*producers, *closers]:
            future.result(DEADLINE_SECONDS)
    queue.enqueue(add, 1, 2)
    queue.close()
    assert {row["task_id"] for row in rows(path)} >= set(stored)
    assert loop_threads() == []
    with pytest.raises(BackendError):
        asyncio.run(backend.get_result("x"))


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.enqueue(add, 1, 2),
        lambda queue: queue.enqueue_many([partial(add, 1, 2)]),
        lambda queue: queue.get_result("x"),
        lambda queue: queue.counts(),
        lambda queue: queue.list(),
        lambda queue: queue.retry("x"),
        lambda queue: queue.cancel("x"),
        lambda queue: queue.close(),
        lambda queue: queue.__enter__(),
        lambda queue: queue.__exit__(None, None, None),
    ],
    ids=["enqueue", "enqueue_many", "get_result", "counts", "list", "retry", "cancel", "close", "enter", "exit"],
)
async def test_inside_an_event_loop_it_is_refused(
    path: Path, sync_queue: SyncTaskQueue, call: Callable[[SyncTaskQueue], Any]
) -> None:
    """The error points to ``TaskQueue``, and neither a used queue nor a fresh one stores anything."""
    for queue in (sync_queue, SyncTaskQueue(SQLiteBackend(path))):
        with pytest.raises(RuntimeError, match=r"\bTaskQueue\b.*await"):
            call(queue)
    assert rows(path) == []
    assert len(loop_threads()) == 1


async def test_a_thread_of_an_async_program_may_use_it(path: Path) -> None:
    """No loop runs in a thread of ``asyncio.to_thread``, and the backend may be shared with a worker of the loop."""
    backend = SQLiteBackend(path)
    queue = SyncTaskQueue(backend)
    async with Worker(backend, poll_interval=3600):
        task_id = await asyncio.to_thread(queue.enqueue, add, 1, 2)
        result = await asyncio.to_thread(queue.get_result, task_id, DEADLINE_SECONDS)
    await asyncio.to_thread(queue.close)
    assert result is not None
    assert result.unwrap() == 3


def test_the_calls_of_a_batch_are_made_in_the_callers_thread(sync_queue: SyncTaskQueue, path: Path) -> None:
    """A generator may use what belongs to its thread, the queue itself included."""
    owner = threading.get_ident()
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:

        def calls() -> Iterator[Callable[[], Any]]:
            for (n,) in connection.execute("VALUES (1), (2)"):
                sync_queue.enqueue(multiply, n, threading.get_ident())
                yield partial(add, n, threading.get_ident())

        sync_queue.enqueue_many(calls())
    assert drain(path) == 4
    results = [sync_queue.get_result(row["task_id"], timeout=0) for row in rows(path)]
    assert [result and result.value for result in results] == [owner, 2 * owner, owner + 1, owner + 2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_ends_a_program_does_not_end_the_loop(
    sync_queue: SyncTaskQueue, path: Path, error: type[BaseException]
) -> None:
    """Raised by pickling, by the calls of a batch or by loading a result, it reaches the caller; the queue goes on."""

    def calls() -> Iterator[Callable[[], Any]]:
        yield partial(add, 1, 2)
        raise error("called")

    with pytest.raises(error, match="pickled"):
        sync_queue.enqueue(multiply, EndOfProgramOnPickling(error), 2)
    with pytest.raises(error, match="called"):
        sync_queue.enqueue_many(calls())
    task_id = sync_queue.enqueue(give_what_ends, error)
    assert drain(path) == 1
    with pytest.raises(BaseException, match="loaded"):
        sync_queue.get_result(task_id, timeout=0)
    sync_queue.enqueue(add, 1, 2)
    assert drain(path) == 1


def test_a_thread_that_cannot_be_started_is_an_error_once(path: Path) -> None:
    """The call raises, and the next one, when threads can be started again, works."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    before = threading.stack_size(2**46)
    try:
        with pytest.raises((RuntimeError, BackendError), match="thread"):
            queue.enqueue(add, 1, 2)
    finally:
        threading.stack_size(before)
    queue.close()
    queue.enqueue(add, 1, 2)
    queue.close()
    assert len(rows(path)) == 1


def test_a_call_that_is_interrupted_as_it_begins_is_ended_as_well(path: Path) -> None:
    """The interrupt comes when the private loop has the call, and the caller does not wait for it yet."""
    backend = Watched(str(path))
    with SyncTaskQueue(backend) as queue:
        task_id = queue.enqueue(add, 1, 2)
        loop = queue._portal._loop
        assert loop is not None
        hand_over = loop.call_soon_threadsafe

        def interrupted(*args: Any) -> None:
            loop.call_soon_threadsafe = hand_over  # type: ignore[method-assign]
            hand_over(*args)
            assert backend.waiting.acquire(timeout=DEADLINE_SECONDS)
            raise KeyboardInterrupt

        loop.call_soon_threadsafe = interrupted  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            queue.get_result(task_id)
        assert backend.left.acquire(timeout=DEADLINE_SECONDS)


def test_an_interrupted_wait_leaves_the_queue_usable(path: Path) -> None:
    """Ctrl-C in a thread that waits for a result ends the call, also in the loop, and the queue can be used again."""
    printed = run_script(
        """
        import os, signal, sys, threading
        from sitq import SyncTaskQueue
        from tests.support import DEADLINE_SECONDS, add
        from tests.test_sync import Watched

        backend = Watched(sys.argv[1])

        def interrupt():
            backend.waiting.acquire()
            os.kill(os.getpid(), signal.SIGINT)

        with SyncTaskQueue(backend) as queue:
            task_id = queue.enqueue(add, 1, 2)
            for _ in range(2):
                threading.Thread(target=interrupt).start()
                try:
                    queue.get_result(task_id)
                except KeyboardInterrupt:
                    print("interrupted", backend.left.acquire(timeout=DEADLINE_SECONDS / 4))
            print(queue.enqueue(add, 1, 2) != task_id)
        """,
        path,
    )
    assert printed.split() == ["interrupted", "True", "interrupted", "True", "True"]
    assert len(rows(path)) == 2
