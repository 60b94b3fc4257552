"""A worker runs what is due: coroutines and functions, never more than it may, the oldest first."""

import asyncio
import contextvars
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import CloudpickleSerializer, ReservedTask, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome, Reservation, to_micros
from tests.support import Runs, add, log_async, log_plain, multiply, rows
from tests.worker_tasks import TellingBackend, block_at, connected, gate, wait_at

setting: contextvars.ContextVar[str] = contextvars.ContextVar("setting", default="unset")


async def thread_of_coroutine() -> int:
    """Returns where it runs."""
    await asyncio.sleep(0)
    return threading.get_ident()


def thread_of_function() -> int:
    """Returns where it runs."""
    return threading.get_ident()


def returns_coroutine() -> Awaitable[int]:
    """A plain function that hands out a coroutine."""
    return thread_of_coroutine()


class Asynchronous:
    """An object with an async ``__call__``, an async method and an async static method."""

    async def __call__(self) -> int:
        return await thread_of_coroutine()

    async def method(self) -> int:
        return await thread_of_coroutine()

    @staticmethod
    async def static() -> int:
        return await thread_of_coroutine()


class Awaits:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[Any, None, int]:
        return thread_of_coroutine().__await__()


def read_and_set(value: str) -> str:
    """Returns what the context variable was before it is set."""
    before = setting.get()
    setting.set(value)
    return before


async def read_and_set_async(value: str) -> str:
    """As :func:`read_and_set`, in a coroutine."""
    return read_and_set(value)


async def fail_if_odd(number: int) -> int:
    """Raises for every other number, some of them after a turn of the loop."""
    if number % 3:
        await asyncio.sleep(0)
    if number % 2:
        raise ValueError(number)
    return number


async def enqueue_next(path: Path, count: int) -> int:
    """Enqueues itself until ``count`` is 0."""
    if count:
        async with TaskQueue(SQLiteBackend(path)) as queue:
            await queue.enqueue(enqueue_next, path, count - 1)
    return count


async def value_of(queue: TaskQueue, func: Callable[..., Any], *args: Any) -> Any:
    """Runs a task and returns its value."""
    result = await queue.get_result(await queue.enqueue(func, *args))
    assert result is not None
    return result.unwrap()


@pytest.mark.parametrize(
    "func",
    [
        thread_of_coroutine,
        partial(thread_of_coroutine),
        Asynchronous(),
        partial(Asynchronous()),
        Asynchronous().method,
        Asynchronous.static,
        returns_coroutine,
        Awaits,
        lambda: thread_of_coroutine(),
    ],
    ids=["function", "partial", "object", "partial-of-object", "method", "static", "plain", "awaitable", "lambda"],
)
async def test_whatever_is_async_runs_on_the_loop_and_is_awaited(
    func: Callable[[], Any], queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Each kind of async callable gives the awaited value, computed in the thread of the loop."""
    async with Worker(backend):
        assert await value_of(queue, func) == threading.get_ident()


async def test_a_plain_function_runs_in_another_thread(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A plain function does not run in the thread of the loop, nor in the default executor's."""
    await asyncio.to_thread(lambda: None)
    executor_threads = {thread.ident for thread in threading.enumerate() if thread.name.startswith("asyncio_")}
    async with Worker(backend):
        assert await value_of(queue, thread_of_function) not in {threading.get_ident(), *executor_threads}


async def test_as_many_functions_block_side_by_side_as_there_are_slots(
    queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """With every slot blocked by a plain function the loop turns, and the default executor is free."""
    async with Worker(backend, max_concurrency=40):
        with gate() as here:
            ids = await queue.enqueue_many(partial(block_at, "gate", n) for n in range(40))
            await here.arrived(40)
            assert await asyncio.to_thread(add_plain, 1, 2) == 3
        results = [await queue.get_result(id_) for id_ in ids]
    assert [result and result.value for result in results] == list(range(40))


def add_plain(a: int, b: int) -> int:
    """Adds."""
    return a + b


@pytest.mark.parametrize("func", [read_and_set, read_and_set_async])
async def test_tasks_get_a_copy_of_the_context_variables(
    func: Callable[[str], Any], queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """A task reads what was set before the worker started; what it sets is not seen by the next one."""
    token = setting.set("of the host")
    try:
        async with Worker(backend, max_concurrency=1):
            assert await value_of(queue, func, "of the first") == "of the host"
            assert await value_of(queue, func, "of the second") == "of the host"
        assert setting.get() == "of the host"
    finally:
        setting.reset(token)


@pytest.mark.parametrize("func", [fail_if_odd, multiply], ids=["some-fail", "plain"])
async def test_a_worker_never_holds_more_than_max_concurrency(
    func: Callable[..., Any], path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """At no commit are there more rows in progress than slots, while outcomes of both kinds are recorded."""
    calls = [partial(func, n) if func is fail_if_odd else partial(func, n, n) for n in range(300)]
    await queue.enqueue_many(calls)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE held (count INTEGER)")
        connection.execute(
            "CREATE TRIGGER count_held AFTER UPDATE ON tasks BEGIN "
            "INSERT INTO held SELECT count(*) FROM tasks WHERE status = 'in_progress'; END"
        )
    connection.close()
    assert await Worker(backend, max_concurrency=5).drain() == 300
    assert rows(path, "SELECT max(count) AS most FROM held") == [{"most": 5}]


async def test_a_reservation_takes_no_more_than_batch_size(path: Path) -> None:
    """With ``batch_size=2`` no reservation asks for more than two tasks, and all ten slots fill."""
    backend = TellingBackend(path)
    with gate() as here:
        async with TaskQueue(backend) as queue:
            await queue.enqueue_many(partial(wait_at, "gate") for _ in range(12))
            async with Worker(backend, max_concurrency=10, batch_size=2):
                await here.arrived(10)
                assert here.arrivals() == 0
                here.open()
                await here.arrived(2)
    assert max(backend.limits) == 2


async def test_a_reservation_takes_as_many_as_there_are_free_slots(path: Path) -> None:
    """Without a ``batch_size`` one reservation fills the worker, and it asks for no more than is free."""
    backend = TellingBackend(path)
    with gate() as here:
        async with TaskQueue(backend) as queue:
            await queue.enqueue_many(partial(wait_at, "gate") for _ in range(12))
            async with Worker(backend, max_concurrency=10):
                await here.arrived(10)
                assert backend.limits == [10]
                here.open()
                await here.arrived(2)
    assert max(backend.limits) == 10


async def test_a_free_slot_is_used_while_the_rest_of_the_batch_runs(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """When one of two running tasks finishes, a third one starts beside the other."""
    async with Worker(backend, max_concurrency=2):
        with gate("first") as first, gate("second") as second:
            await queue.enqueue_many(partial(wait_at, name) for name in ("first", "second", "second"))
            await first.arrived()
            await second.arrived()
            assert second.arrivals() == 0
            first.open()
            await second.arrived()


async def test_due_tasks_are_taken_oldest_first(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """One slot runs tasks in the order in which they became due, whatever order they were enqueued in."""
    now = datetime.now(UTC)
    for line, seconds in (("new", 0), ("later", 30), ("soon", 10), ("past", -60)):
        await queue.enqueue(log_async, runs, line, eta=now + timedelta(seconds=seconds))
    await queue.enqueue_many(partial(log_plain, runs, n) for n in range(5))
    ahead = SQLiteBackend(backend._path, clock=lambda: now.timestamp() + 60)
    assert await Worker(ahead, max_concurrency=1).drain() == 9
    assert runs.lines() == ["new", "past", "0", "1", "2", "3", "4", "soon", "later"]


async def test_an_eta_is_not_run_before_it_has_come(path: Path, runs: Runs) -> None:
    """By the backend's clock a task waits until the microsecond of its eta, and runs then."""
    eta = datetime(2030, 1, 1, 12, 0, 0, 123457, UTC)
    now = [0.0]
    async with connected(SQLiteBackend(path, clock=lambda: now[0])) as backend, TaskQueue(backend) as queue:
        await queue.enqueue(log_async, runs, "ran", eta=eta)
        for micros, count in ((to_micros(eta) - 1, 0), (to_micros(eta), 1), (to_micros(eta) + 1, 0)):
            now[0] = (micros + 0.5) / 1_000_000
            assert await Worker(backend).drain() == count
    assert runs.lines() == ["ran"]


@pytest.mark.parametrize("slots", [1, 3, 100])
async def test_drain_runs_what_is_due_and_gives_the_count(slots: int, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Ten tasks are due: drain() returns 10, however many slots there are, and all are finished."""
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(10))
    assert await Worker(backend, max_concurrency=slots).drain() == 10
    assert [(await queue.get_result(id_, timeout=0)).value for id_ in ids] == [2 * n for n in range(10)]  # type: ignore[union-attr]
    assert await Worker(backend, max_concurrency=slots).drain() == 0


class Immediate(SQLiteBackend):
    """Answers without a wait, as a store in the process's own memory would."""

    def __init__(self, count: int) -> None:
        super().__init__(":memory:")
        self.waiting = list(range(count))
        self.done: list[ReservedTask] = []

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out some."""
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        payload = CloudpickleSerializer().dumps({"func": add, "args": (1, 2), "kwargs": {}, "context": {}})
        format_, now = CloudpickleSerializer().format, datetime.now(UTC)
        return Reservation([ReservedTask(n, n, str(n), payload, "add", format_, 1, 5, now) for n in taken])

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Takes them."""
        self.done += [outcome.task for outcome in outcomes]
        return []


async def test_a_backend_that_never_waits_is_drained() -> None:
    """However many reservations it answers at once, none of them is made inside another."""
    backend = Immediate(20_000)
    assert await Worker(backend, max_concurrency=5).drain() == 20_000
    assert len(backend.done) == 20_000


async def test_drain_does_not_wait_for_an_eta(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """If nothing is due, drain() returns 0, although a task waits for its eta."""
    await queue.enqueue(add, 1, 2, eta=datetime.now(UTC) + timedelta(hours=1))
    assert await Worker(backend).drain() == 0


@pytest.mark.parametrize("slots", [1, 10])
async def test_drain_runs_what_its_tasks_enqueue(
    slots: int, path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """A task that enqueues a task that enqueues a task counts three times and one."""
    await queue.enqueue(enqueue_next, path, 3)
    assert await Worker(backend, max_concurrency=slots).drain() == 4


async def test_drain_counts_failures_and_does_not_raise(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """One of three tasks raises, and drain() returns 3."""
    await queue.enqueue_many(partial(fail_if_odd, n) for n in (2, 3, 4))
    assert await Worker(backend).drain() == 3


async def test_drain_of_a_running_worker_is_refused(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """drain() of a running worker raises, says what to do, and does not disturb the worker."""
    async with Worker(backend) as worker:
        with pytest.raises(RuntimeError, match=r"stop\(\)"):
            await worker.drain()
        assert await value_of(queue, add, 1, 2) == 3
    assert await worker.drain() == 0


async def test_two_drains_of_one_worker_are_refused(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A second drain() beside the first raises, and the first one goes on."""
    worker = Worker(backend)
    with gate() as here:
        await queue.enqueue(wait_at, "gate")
        first = asyncio.create_task(worker.drain())
        await here.arrived()
        with pytest.raises(RuntimeError, match="running"):
            await worker.drain()
        here.open()
        assert await first == 1


async def test_a_cancelled_drain_gives_its_tasks_back(path: Path, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What a cancelled drain() was running is pending again when the cancellation arrives."""
    with gate() as here:
        await queue.enqueue(wait_at, "gate")
        draining = asyncio.create_task(Worker(backend).drain())
        await here.arrived()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)]


async def test_stop_ends_a_drain(path: Path, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """stop() lets a drain() finish what runs and return before the rest."""
    worker = Worker(backend, max_concurrency=1)
    with gate() as here:
        await queue.enqueue_many(partial(wait_at, "gate") for _ in range(3))
        draining = asyncio.create_task(worker.drain())
        await here.arrived()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        here.open()
        await stopping
        assert await draining == 1
    assert [row["status"] for row in rows(path)] == ["success", "pending", "pending"]
