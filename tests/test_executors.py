"""Where the plain functions of a worker run: in threads, or where an executor says."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sitq import ReservedTask, SQLiteBackend, TaskQueue, Worker
from sitq.executors import NoThreadError, Pool, ThreadExecutor
from sitq.extensions import Run
from sitq.serializers.calls import Call


def where() -> str:
    """The name of the thread that runs this."""
    return threading.current_thread().name


async def where_async() -> str:
    """The same, for a coroutine."""
    return threading.current_thread().name


async def in_a_coroutine() -> str:
    """What a plain function may return to be awaited."""
    return "awaited"


def later() -> Any:
    """A plain function that returns a coroutine."""
    return in_a_coroutine()


class OneThread:
    """An executor of a test's own: it runs each call in a new thread, and writes down which."""

    def __init__(self, refuses: int = 0) -> None:
        self.slots: list[int] = []
        self.names: list[str] = []
        self.closed = 0
        self.refuses = refuses

    def start(self, slots: int) -> Pool:
        """Makes a pool; here it is the executor itself."""
        self.slots.append(slots)
        return self

    def submit(self, task: ReservedTask, call: Call) -> asyncio.Future[Any]:
        """Runs a call."""
        if self.refuses:
            self.refuses -= 1
            raise NoThreadError("none left")
        self.names.append(task.name.partition(":")[2])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            try:
                returned: tuple[Any, BaseException | None] = call.func(*call.args, **call.kwargs), None  # type: ignore[operator]
            except BaseException as error:
                returned = None, error
            loop.call_soon_threadsafe(future.set_result, returned)

        threading.Thread(target=run, name="of the test").start()
        return future

    def close(self) -> None:
        """Counts."""
        self.closed += 1


async def value(queue: TaskQueue, worker: Worker, func: Callable[[], Any]) -> Any:
    """Runs a task and returns its value."""
    task_id = await queue.enqueue(func)
    await worker.drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.unwrap()


@pytest.mark.parametrize("executor", [None, ThreadExecutor()], ids=["none", "threads"])
async def test_plain_functions_run_in_threads_of_the_worker(
    executor: ThreadExecutor | None, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Unless told otherwise; coroutines run on the loop, and what a plain function returns is awaited there."""
    worker = Worker(backend, executor=executor)
    assert await value(queue, worker, where) == "sitq-worker-1"
    assert await value(queue, worker, where_async) == threading.current_thread().name
    assert await value(queue, worker, later) == "awaited"


async def test_an_executor_runs_the_plain_functions_and_nothing_else(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """It is started and closed with the worker, and told how many slots there are."""
    executor = OneThread()
    worker = Worker(backend, max_concurrency=3, executor=executor)
    assert await value(queue, worker, where) == "of the test"
    assert await value(queue, worker, where_async) == threading.current_thread().name
    assert await value(queue, worker, later) == "awaited"
    assert (executor.names, executor.slots, executor.closed) == (["where", "later"], [3] * 3, 3)


async def test_a_call_that_an_executor_cannot_begin_is_given_back(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its attempt unspent; the worker pauses, and asks again."""
    monkeypatch.setattr("sitq.worker.dispatcher.NO_THREAD_PAUSE_SECONDS", 0.01)
    task_id = await queue.enqueue(where)
    async with Worker(backend, executor=OneThread(refuses=2)):
        result = await queue.get_result(task_id)
    assert result is not None
    assert (result.value, result.attempt) == ("of the test", 1)


def test_what_is_no_executor_is_refused() -> None:
    """When the worker is made."""
    with pytest.raises(TypeError, match="executor must have start"):
        Worker(executor=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not the class ThreadExecutor"):
        Worker(executor=ThreadExecutor)  # type: ignore[arg-type]


class NoPool:
    """Gives no pool."""

    def start(self, slots: int) -> Any:
        """Returns nothing."""


async def test_what_is_no_pool_ends_the_start(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """No task is failed for it."""
    task_id = await queue.enqueue(where)
    with pytest.raises(TypeError, match=r"start\(\) of NoPool must return an object with submit\(\) and close\(\)"):
        await Worker(backend, executor=NoPool()).start()
    task = await queue.get(task_id)
    assert task is not None
    assert task.status == "pending"


@pytest.mark.parametrize("makes", ["nothing", "another error"])
async def test_what_is_around_cannot_make_an_end_of_a_call_that_did_not_begin(
    makes: str, queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may swallow the error, or raise one of its own: the task is given back, and runs later."""
    monkeypatch.setattr("sitq.worker.dispatcher.NO_THREAD_PAUSE_SECONDS", 0.01)

    class Around:
        @contextlib.asynccontextmanager
        async def around(self, run: Run) -> AsyncIterator[None]:
            try:
                yield
            except Exception as error:
                if makes == "another error":
                    raise ValueError("translated") from error

    task_id = await queue.enqueue(where)
    async with Worker(backend, executor=OneThread(refuses=1), extensions=[Around()]):
        result = await queue.get_result(task_id)
    assert result is not None
    assert (result.status, result.value, result.attempt) == ("success", "of the test", 1)


def raise_no_thread() -> None:
    """A task that raises what a pool raises."""
    raise NoThreadError("mine")


async def test_a_task_that_raises_the_error_of_a_pool_has_failed(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """It did begin, and is not run again and again."""
    task_id = await queue.enqueue(raise_no_thread)
    assert await Worker(backend).drain() == 1
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.error) == ("failed", "NoThreadError: mine")


async def test_a_pool_that_cannot_be_closed_changes_nothing(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What was run counts, and the threads of the worker end."""

    class Unclosable(OneThread):
        def close(self) -> None:
            raise OSError("not now")

    await queue.enqueue(where)
    assert await Worker(backend, executor=Unclosable()).drain() == 1
