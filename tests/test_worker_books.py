"""Whatever the code of others does inside a worker, its books are right: what ends is recorded, its slot is free."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

import sitq.worker.execution
from sitq import CloudpickleSerializer, SQLiteBackend, TaskQueue, Worker, current_task
from sitq.executors.threads import CallPool, ThreadExecutor
from tests.support import DEADLINE_SECONDS, Runs, add, rows, start_python, until
from tests.worker_tasks import FAR_AHEAD_SECONDS, TellingBackend, far_ahead, gate, wait_at

SHORT_LEASE_SECONDS = 0.4
NEVER_SECONDS = 3600.0

DRAIN = """
import asyncio, sys, time
from sitq import SQLiteBackend, Worker
path, ahead = sys.argv[1], float(sys.argv[2])
worker = Worker(SQLiteBackend(path, clock=lambda: time.time() + ahead))
print(asyncio.run(worker.drain()))
"""

INTERRUPTED_HOST = """
import asyncio, sys
from sitq import SQLiteBackend, Worker

async def main():
    async with Worker(SQLiteBackend(sys.argv[1]), shutdown_timeout=0):
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def exit_in_a_child(runs: Runs) -> None:
    """Lets a child of its own raise SystemExit."""
    runs.add("killer")

    async def leave() -> NoReturn:
        sys.exit(3)

    await asyncio.gather(leave())


async def interrupt_in_a_callback(runs: Runs) -> None:
    """Lets a callback raise KeyboardInterrupt."""
    runs.add("killer")

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_soon(interrupt)
    await asyncio.Event().wait()


async def stop_the_loop(runs: Runs) -> None:
    """Stops the loop that it runs in."""
    runs.add("killer")
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


async def cancel_everything(runs: Runs) -> None:
    """Cancels all tasks of its loop, itself included."""
    runs.add("killer")
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.Event().wait()


async def end_the_second_time(runs: Runs, line: str) -> None:
    """Logs that it ran, and waits for nothing in its first attempt."""
    runs.add(line)
    if current_task().attempt == 1:
        await asyncio.Event().wait()


def drain_ahead(path: Path, leases: int) -> int:
    """Drains in a process for which the leases of the earlier ones have ended; returns its status."""
    process = start_python(DRAIN, path, leases * FAR_AHEAD_SECONDS)
    process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode


@pytest.mark.parametrize("killer", [exit_in_a_child, interrupt_in_a_callback, stop_the_loop, cancel_everything])
async def test_a_task_that_ends_its_workers_loop_is_buried(killer: Callable[..., Any], path: Path, runs: Runs) -> None:
    """It is run max_attempts times, in a process each; its neighbours run with it, or after it, and succeed."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=2) as queue:
        neighbours = [partial(end_the_second_time, runs, line) for line in "ab"]
        ids = await queue.enqueue_many([neighbours[0], partial(killer, runs), neighbours[1]])
        statuses = [drain_ahead(path, n) for n in range(3)]
        results = [await queue.get_result(task_id, timeout=0) for task_id in ids]
    assert [(result and result.status, result and result.attempt) for result in results] == [
        ("success", 2),
        ("failed", 2),
        ("success", 2),
    ]
    assert [status != 0 for status in statuses] == [True, True, False]
    assert results[1] is not None
    assert (results[1].error or "").startswith("WorkerDiedError")
    count = runs.count()
    assert (count["killer"], count["a"]) == (2, 2)
    assert 1 <= count["b"] <= 2  # perhaps it had not begun when the killer did it


async def test_a_host_that_is_interrupted_gives_back(path: Path, runs: Runs) -> None:
    """Ctrl-C cancels its main coroutine, whose block ends by stop(): the task is pending and its attempt unspent."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(wait_forever, runs)
        process = start_python(INTERRUPTED_HOST, path)
        await until(runs.lines)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.communicate, timeout=DEADLINE_SECONDS)
    assert process.returncode == -signal.SIGINT
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)]


async def wait_forever(runs: Runs) -> None:
    """Logs that it ran, and waits for nothing."""
    runs.add("ran")
    await asyncio.Event().wait()


async def serve(worker: Worker) -> None:
    """Runs a worker as an embedding host does."""
    async with worker:
        await asyncio.Event().wait()


@pytest.mark.parametrize("face", [serve, Worker.run, Worker.drain])
async def test_an_owner_that_is_cancelled_gives_back(
    face: Callable[[Worker], Any], path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Whoever cancels the block, run() or drain() has asked for the end: the attempt is unspent."""
    owner = asyncio.create_task(face(Worker(backend, shutdown_timeout=0)))
    with gate() as here:
        await queue.enqueue(wait_at, "gate")
        await here.arrived()
        owner.cancel()
        await asyncio.wait([owner])
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)]


class Raises(logging.Handler):
    """A handler that raises for every record, and does not ask logging what to do about it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Raises."""
        self.calls += 1
        raise self.error

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything pass."""
        return True


class RaisesInFilter(Raises):
    """A handler whose filter raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raises."""
        self.emit(record)
        return False


@pytest.fixture
def attach() -> Iterator[Callable[[logging.Handler], None]]:
    """Attaches handlers to sitq's loggers for the length of the test."""
    logger = logging.getLogger("sitq")
    level, attached = logger.level, []

    def attach_one(handler: logging.Handler) -> None:
        attached.append(handler)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

    yield attach_one
    for handler in attached:
        logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("error", [OSError("the disk is full"), SystemExit(1)], ids=["OSError", "SystemExit"])
@pytest.mark.parametrize("kind", [Raises, RaisesInFilter])
async def test_a_log_handler_that_raises_changes_nothing(
    kind: type[Raises],
    error: BaseException,
    backend: SQLiteBackend,
    path: Path,
    attach: Callable[[logging.Handler], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tasks that succeed and fail are recorded, what is late is given back, stop() returns, and stderr says why."""
    handler = kind(error)
    attach(handler)
    async with TaskQueue(backend) as queue:
        worker = Worker(backend, max_concurrency=2, shutdown_timeout=0)
        async with worker:
            ids = await queue.enqueue_many([partial(add, 1, 2), partial(add, 1, "2")] * 4)
            results = [await queue.get_result(task_id, DEADLINE_SECONDS) for task_id in ids]
            with gate() as here:
                late = await queue.enqueue(wait_at, "gate")
                await here.arrived()
                await asyncio.wait_for(worker.stop(), DEADLINE_SECONDS)
    assert [result and result.status for result in results] == ["success", "failed"] * 4
    assert [row["task_id"] for row in rows(path) if row["status"] == "pending"] == [late]
    assert handler.calls
    assert type(error).__name__ in capsys.readouterr().err


class NamelessMeta(type):
    """The class of classes whose name cannot be had."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=NamelessMeta):
    """Cannot be described at all."""


async def raise_nameless() -> NoReturn:
    """Raises what cannot be described."""
    raise NamelessError


class NoLength(CloudpickleSerializer):
    """Breaks its promise: what it dumps is not bytes."""

    def dumps(self, value: Any) -> Any:
        """Returns a number."""
        return 5


class NoLimit(SQLiteBackend):
    """Breaks its promise: its limit raises."""

    @property
    def max_payload_bytes(self) -> int | None:
        """Raises."""
        raise ValueError("no limit")


async def run_two_by_two(backend: SQLiteBackend, queue: TaskQueue, call: Callable[[], Any], **options: Any) -> None:
    """Runs two bad calls, then two good ones in the slots that they must have left."""
    async with Worker(backend, max_concurrency=2, poll_interval=NEVER_SECONDS, **options):
        bad = await queue.enqueue_many([call] * 2)
        results = [await queue.get_result(task_id, DEADLINE_SECONDS) for task_id in bad]
        assert [(result and result.status, result and result.attempt) for result in results] == [("failed", 1)] * 2
        assert all(result and result.error for result in results)
        with gate() as here:
            await queue.enqueue_many([partial(wait_at, "gate")] * 2)
            await here.arrived(2)


async def test_an_exception_whose_class_cannot_be_named_is_a_failed_task(
    queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """It is recorded with a text of ours, and its slot is free."""
    await run_two_by_two(backend, queue, raise_nameless)


async def test_no_memory_for_the_description_is_a_failed_task(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is not even memory for the text of an error, the task is failed and its slot is free."""

    def no_memory(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(sitq.worker.execution, "_text", no_memory)
    await run_two_by_two(backend, queue, partial(add, 1, "2"))


async def test_a_serializer_that_breaks_its_promise_keeps_no_slot(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A result that is not bytes is a failed task that says so."""
    await run_two_by_two(backend, queue, partial(add, 1, 2), serializer=NoLength())


@pytest.mark.parametrize("method", ["start", "drain"])
async def test_a_backend_whose_limit_raises_runs_nothing(method: str, path: Path, queue: TaskQueue) -> None:
    """The limit is read once, when the worker starts: then it says so, and neither a task nor a pool is begun."""
    task_id = await queue.enqueue(add, 1, 2)
    started: list[int] = []

    class Counting(ThreadExecutor):
        def start(self, slots: int) -> CallPool:
            started.append(slots)
            return super().start(slots)

    with pytest.raises(ValueError, match="no limit"):
        await getattr(Worker(NoLimit(path), executor=Counting()), method)()
    assert started == []
    found = await queue.get(task_id)
    assert found is not None
    assert (found.status, found.attempt) == ("pending", 0)


telling: list[TellingBackend] = []
"""The backend of the worker whose loop is blocked."""


def drain_in_thread(backend: Callable[[Path], SQLiteBackend], path: Path) -> None:
    """Drains with another backend, in a loop of its own."""
    thread = threading.Thread(target=lambda: asyncio.run(Worker(backend(path)).drain()))
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


async def block_beside_a_rival(runs: Runs, path: Path, rival: Callable[[Path], SQLiteBackend] | None) -> None:
    """Keeps the loop for several leases, lets a rival take what it gets, and waits for another renewal or two."""
    runs.add(f"blocks {current_task().attempt}")
    if rival is not None and current_task().attempt == 1:
        telling[-1].renewals(5)
        drain_in_thread(rival, path)
        telling[-1].renewals(2)


def log_with_attempt(runs: Runs, line: str) -> None:
    """Logs that it runs, and in which attempt."""
    runs.add(f"{line} {current_task().attempt}")


async def log_on_loop(runs: Runs, line: str) -> None:
    """As :func:`log_with_attempt`."""
    log_with_attempt(runs, line)


@pytest.mark.parametrize("neighbour", [log_with_attempt, log_on_loop])
@pytest.mark.parametrize(
    ("rival", "expected"),
    [(SQLiteBackend, ["blocks 1", "0 1", "1 1"]), (far_ahead, ["blocks 1", "blocks 2", "0 2", "1 2"])],
    ids=["renewed", "lost"],
)
async def test_the_neighbours_of_a_task_that_blocks_the_loop_are_held(
    rival: Callable[[Path], SQLiteBackend],
    expected: list[str],
    neighbour: Callable[..., Any],
    path: Path,
    runs: Runs,
) -> None:
    """What came in one reservation is renewed before it is started; what was lost all the same is not started here."""
    backend = TellingBackend(path)
    telling[:] = [backend]
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([partial(block_beside_a_rival, runs, path, None), partial(neighbour, runs, "first")])
        assert await Worker(backend).drain() == 2  # so that loading them again needs no thread
        before = len(runs.lines())
        blocking = partial(block_beside_a_rival, runs, path, rival)
        await queue.enqueue_many([blocking, partial(neighbour, runs, "0"), partial(neighbour, runs, "1")])
        await Worker(backend, lease=SHORT_LEASE_SECONDS).drain()
    assert sorted(runs.lines()[before:]) == sorted(expected)
    assert {row["status"] for row in rows(path)} == {"success"}
