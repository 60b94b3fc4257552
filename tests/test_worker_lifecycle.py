"""Starting and stopping a worker: both can be asked for at any moment, and no task is lost over it."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, BackendUnavailableError, SQLiteBackend, TaskQueue, Worker
from sitq.models import Reservation
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows
from tests.worker_tasks import gate, wait_at, write_lock


class TellsOfReserving(SQLiteBackend):
    """Says when it is asked for tasks."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = asyncio.Event()

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Says so, and reserves."""
        self.asked.set()
        return await super().reserve(limit, lease=lease, alone=alone)


class SlowToConnect(SQLiteBackend):
    """Opens the file only when it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def connect(self) -> None:
        """Waits, and connects."""
        self.asked.set()
        await self.go_on.wait()
        await super().connect()


def statuses(path: Path) -> list[tuple[str, int]]:
    """Returns status and attempt of each row."""
    return [(row["status"], row["attempt"]) for row in rows(path)]


async def runs_a_task(queue: TaskQueue) -> bool:
    """Whether some worker runs what is enqueued now."""
    result = await queue.get_result(await queue.enqueue(add, 1, 2), DEADLINE_SECONDS)
    return result is not None and result.unwrap() == 3


async def runs_nothing(queue: TaskQueue, path: Path) -> bool:
    """Whether nobody takes a task that is enqueued now, so that it is left for a worker of its own."""
    task_id = await queue.enqueue(add, 1, 2)
    for _ in range(3):  # a worker that is woken has reserved before the first of these calls
        await queue.get_result(task_id, timeout=0)
    left: int = rows(path, "SELECT count(*) AS count FROM tasks WHERE status = 'pending'")[0]["count"]
    return left > 0 and await Worker(SQLiteBackend(path)).drain() == left


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_concurrency", [0, -1]),
        ("batch_size", [0, -5]),
        ("poll_interval", [0, -1.0, float("inf"), float("nan")]),
        ("lease", [0, -0.1, float("inf")]),
        ("shutdown_timeout", [-1, float("nan")]),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, values: list[float], tmp_path: Path) -> None:
    """A number out of range is a ValueError that names the argument, and no file is made."""
    for value in values:
        arguments: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=name):
            Worker(SQLiteBackend(tmp_path / "queue.db"), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_concurrency", 2.5),
        ("batch_size", "2"),
        ("lease", "30"),
        ("poll_interval", None),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Any, backend: SQLiteBackend) -> None:
    """What is no number is a TypeError that names the argument."""
    with pytest.raises(TypeError, match=name):
        Worker(backend, **{name: value})


async def test_a_worker_without_arguments_works_on_the_default_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Worker()`` and ``TaskQueue()`` meet at ``sitq.db`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    async with TaskQueue() as queue, Worker():
        assert await runs_a_task(queue)
    assert (tmp_path / "sitq.db").exists()


async def test_an_embedded_worker_runs_inside_its_block_only(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Tasks are run while the block runs, and left alone after it."""
    async with Worker(backend):
        assert await runs_a_task(queue)
    assert await runs_nothing(queue, path)


async def test_an_exception_of_the_block_goes_on_and_the_worker_stops(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Leaving the block by an exception stops the worker and does not hide the exception."""
    with pytest.raises(KeyError, match="mine"):
        async with Worker(backend):
            raise KeyError("mine")
    assert await runs_nothing(queue, path)


async def test_an_embedded_worker_leaves_signal_handlers_alone(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The handlers of every signal are the same before, inside and after the block."""

    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in sorted(signal.valid_signals())]

    before = handlers()
    async with Worker(backend):
        assert await runs_a_task(queue)
        inside = handlers()
    assert before == inside == handlers()


async def test_start_returns_when_the_worker_runs_and_may_be_repeated(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Starting a worker again, or ten times at once, changes nothing, and one stop() ends it."""
    worker = Worker(backend)
    await asyncio.gather(*(worker.start() for _ in range(10)))
    await worker.start()
    ids = await queue.enqueue_many(partial(log_async, runs, n) for n in range(50))
    for task_id in ids:
        await queue.get_result(task_id)
    await worker.stop()
    assert sorted(runs.count().values()) == [1] * 50
    assert await Worker(backend).drain() == 0


@pytest.mark.parametrize("times", [1, 3])
async def test_a_stopped_worker_can_be_started_again(
    times: int, path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """After each start it runs tasks, after each stop it does not."""
    worker = Worker(backend)
    for _ in range(times):
        await worker.start()
        assert await runs_a_task(queue)
        await worker.stop()
        assert await runs_nothing(queue, path)
    async with worker:
        assert await runs_a_task(queue)


async def test_start_during_stop_waits_for_it_and_starts(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """start() beside a stop() that waits for a task gives a running worker."""
    worker = Worker(backend)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(wait_at, "gate", "kept")
        await here.arrived()
        stopping = asyncio.create_task(worker.stop())
        starting = [asyncio.create_task(worker.start()) for _ in range(3)]
        await asyncio.sleep(0)
    await asyncio.gather(stopping, *starting)
    assert await runs_a_task(queue)
    result = await queue.get_result(task_id)
    assert result is not None
    assert (result.value, result.attempt) == ("kept", 1)
    await worker.stop()


def test_a_worker_can_be_started_again_in_another_event_loop(path: Path) -> None:
    """One worker object serves one loop after another."""
    worker = Worker(SQLiteBackend(path))

    async def serve() -> bool:
        async with TaskQueue(SQLiteBackend(path)) as queue, worker:
            return await runs_a_task(queue)

    assert asyncio.run(serve())
    assert asyncio.run(serve())


async def test_a_start_that_fails_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    """The BackendError reaches the caller; once the store can be opened, the same worker starts."""
    path = tmp_path / "missing" / "queue.db"
    worker = Worker(SQLiteBackend(path))
    for begin in (worker.start, worker.run, worker.drain, worker.__aenter__):
        with pytest.raises(BackendUnavailableError, match="missing"):
            await begin()
        await worker.stop()
    path.parent.mkdir()
    async with TaskQueue(SQLiteBackend(path)) as queue, worker:
        assert await runs_a_task(queue)


async def test_a_start_that_is_cancelled_leaves_nothing_running(path: Path, runs: Runs) -> None:
    """Whoever is cancelled in start() need not call stop()."""
    backend = SlowToConnect(path)
    starting = asyncio.create_task(Worker(backend).start())
    await backend.asked.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    backend.go_on.set()
    async with TaskQueue(SQLiteBackend(path)) as queue:
        assert await runs_nothing(queue, path)


async def test_stop_before_the_first_poll_is_not_lost(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """stop() straight after start() returns, nothing is held then, and no task starts after it."""
    await queue.enqueue_many(partial(log_async, runs, n) for n in range(3))
    worker = Worker(backend, max_concurrency=1)
    await worker.start()
    await worker.stop()
    lines = runs.lines()
    assert statuses(path) == [("success", 1)] * len(lines) + [("pending", 0)] * (3 - len(lines))
    await queue.get_result(await queue.enqueue(add, 1, 2), timeout=0)
    assert runs.lines() == lines
    assert statuses(path)[-1] == ("pending", 0)


@pytest.mark.parametrize("begin", ["run", "start"])
async def test_stop_before_the_loops_first_turn_is_not_lost(
    begin: str, path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """A run() or start() that was only scheduled when stop() was awaited ends, and no task is started."""
    await queue.enqueue(log_async, runs, "early")
    worker = Worker(backend)
    beginning = asyncio.create_task(getattr(worker, begin)())
    await worker.stop()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await beginning
    assert runs.lines() == []
    assert statuses(path) == [("pending", 0)]
    assert await runs_nothing(queue, path)


async def test_stop_while_the_file_is_opened_is_not_lost(path: Path, runs: Runs) -> None:
    """stop() beside a start() that waits for the store ends the worker before it takes a task."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(log_async, runs, "early")
        backend = SlowToConnect(path)
        worker = Worker(backend)
        starting = asyncio.create_task(worker.start())
        await backend.asked.wait()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        backend.go_on.set()
        await asyncio.gather(starting, stopping)
        assert runs.lines() == []
        assert await runs_nothing(queue, path)


async def test_stop_of_a_worker_that_never_started_returns(backend: SQLiteBackend) -> None:
    """stop() of a fresh worker does nothing, any number of times."""
    worker = Worker(backend)
    await worker.stop()
    await asyncio.gather(worker.stop(), worker.stop())


async def test_every_stop_returns(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Stops at the same time and one after the other all return when the tasks have finished."""
    worker = Worker(backend)
    await worker.start()
    with gate() as here:
        task_id = await queue.enqueue(wait_at, "gate", 1)
        await here.arrived()
        stops = [asyncio.create_task(worker.stop()) for _ in range(5)]
        await asyncio.sleep(0)
        assert not any(stop.done() for stop in stops)
    await asyncio.gather(*stops)
    await worker.stop()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == 1


async def test_stop_waits_for_what_runs_and_takes_nothing_new(
    path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Running tasks are finished and recorded when stop() returns; what was due meanwhile is untouched."""
    worker = Worker(backend, max_concurrency=2)
    await worker.start()
    with gate() as here:
        await queue.enqueue_many(partial(wait_at, "gate", n) for n in range(4))
        await here.arrived(2)
        stopping = asyncio.create_task(worker.stop())
        await queue.enqueue(add, 1, 2)
    await stopping
    assert statuses(path) == [("success", 1)] * 2 + [("pending", 0)] * 3


@pytest.mark.parametrize("shutdown_timeout", [None, 0])
async def test_what_was_reserved_while_stopping_is_given_back(
    shutdown_timeout: float | None, path: Path, runs: Runs
) -> None:
    """A reservation that waits for the file when stop() comes leaves nothing in progress, and nothing of it runs."""
    backend = TellsOfReserving(path)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue_many(partial(log_async, runs, n) for n in range(3))
        with write_lock(path):
            worker = Worker(backend, shutdown_timeout=shutdown_timeout)
            await worker.start()
            await backend.asked.wait()
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
        await stopping
    assert statuses(path) == [("pending", 0)] * 3
    assert runs.lines() == []


async def test_workers_and_queues_share_a_backend_that_closes_after_the_last(path: Path) -> None:
    """Two workers and a queue on one backend object stop one by one; then the backend is closed."""
    backend = SQLiteBackend(path)
    first, second = Worker(backend), Worker(backend)
    await first.start()
    await second.start()
    async with TaskQueue(backend) as queue:
        assert await runs_a_task(queue)
        await first.stop()
        assert await runs_a_task(queue)
    await second.stop()
    with pytest.raises(BackendError, match="connect"):
        await backend.reserve(1, lease=30, alone=True)


def in_thread(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine in an event loop of another thread."""
    errors: list[BaseException] = []

    def target() -> None:
        try:
            asyncio.run(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert errors == []


def test_run_outside_of_the_main_thread_leaves_signals_alone(path: Path) -> None:
    """In a loop of another thread run() works, and returns after stop()."""

    async def serve() -> None:
        worker = Worker(SQLiteBackend(path))
        async with TaskQueue(SQLiteBackend(path)) as queue:
            running = asyncio.create_task(worker.run())
            assert await runs_a_task(queue)
            await worker.stop()
            await running

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    in_thread(serve)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("end", ["stop", "cancel"])
async def test_run_puts_the_signal_handlers_back(end: str, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """run() returns after stop(), or is cancelled, and the handlers are those from before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    worker = Worker(backend)
    running = asyncio.create_task(worker.run())
    assert await runs_a_task(queue)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    if end == "stop":
        await worker.stop()
        await running
    else:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert running.cancelled()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_worker_is_not_started_by_its_construction(path: Path) -> None:
    """A worker that nobody starts opens no file."""
    Worker(SQLiteBackend(path))
    assert not path.exists()
