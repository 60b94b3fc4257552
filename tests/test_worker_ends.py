"""Starting and ending a worker in the middle of somebody else's program: no hang, no leak, and no doubt about why."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import Result, SQLiteBackend, TaskQueue, Worker
from tests.faults import open_files
from tests.support import DEADLINE_SECONDS, Runs, log_async, until
from tests.test_worker_lifecycle import runs_a_task, runs_nothing, statuses
from tests.worker_tasks import block_at, gate, wait_at, wait_for_file, write_lock

NEVER_SECONDS = 3600.0

_workers: dict[str, Worker] = {}
"""The workers of this process that tasks of a test find by their names."""


@contextlib.contextmanager
def known(name: str, worker: Worker) -> Any:
    """Lets tasks find ``worker`` inside the block."""
    _workers[name] = worker
    try:
        yield worker
    finally:
        del _workers[name]


async def ask(name: str, method: str) -> None:
    """Awaits a method of a worker."""
    await getattr(_workers[name], method)()


async def ask_in_a_child(name: str, method: str) -> None:
    """As :func:`ask`, in an asyncio task of its own that is awaited."""
    await asyncio.create_task(ask(name, method))


def ask_from_a_thread(name: str, method: str) -> None:
    """As :func:`ask`, from a plain function that waits for it."""
    loop = _workers[name]._main.get_loop()  # type: ignore[union-attr]
    asyncio.run_coroutine_threadsafe(ask(name, method), loop).result(DEADLINE_SECONDS)


async def enter(name: str) -> None:
    """Enters a worker's block and leaves it."""
    async with _workers[name]:
        pass


async def result_of(queue: TaskQueue, task_id: str) -> Result[object]:
    """Returns the result of a task, which must come."""
    result = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert result is not None
    return result


@pytest.mark.parametrize("how", [ask, ask_in_a_child, ask_from_a_thread])
@pytest.mark.parametrize("method", ["stop", "run", "drain"])
async def test_a_task_cannot_wait_for_the_end_of_its_own_worker(
    method: str, how: Callable[..., Any], queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """It is failed with an error that says why, and the worker runs the next task."""
    async with Worker(backend) as worker:
        with known("own", worker):
            result = await result_of(queue, await queue.enqueue(how, "own", method))
        assert result.error is not None
        assert result.error.startswith("RuntimeError: ")
        assert f"{method}()" in result.error
        assert "task" in result.error
        assert await runs_a_task(queue)


async def test_a_task_that_enters_its_own_worker_leaves_it_running(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The block ends, and the worker goes on because another block is not left yet."""
    async with Worker(backend) as worker:
        with known("own", worker):
            assert (await result_of(queue, await queue.enqueue(enter, "own"))).status == "success"
        assert await runs_a_task(queue)


async def test_a_task_may_stop_and_drain_another_worker(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """Only its own one waits for it."""
    async with Worker(backend), Worker(SQLiteBackend(path.with_name("other.db"))) as other:
        with known("other", other):
            for method in ("stop", "drain"):
                result = await result_of(queue, await queue.enqueue(ask, "other", method))
                assert (result.status, result.error) == ("success", None)


_stops: list[asyncio.Task[None]] = []


async def leave_a_stop_behind(name: str) -> None:
    """Has its worker stopped as soon as this task has ended."""
    here = asyncio.current_task()
    assert here is not None
    loop = asyncio.get_running_loop()
    here.add_done_callback(lambda _: _stops.append(loop.create_task(_workers[name].stop())))


async def test_what_a_task_leaves_behind_may_stop_the_worker(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Once the task has ended, a stop() of its making keeps nobody waiting."""
    worker = Worker(backend)
    await worker.start()
    with known("own", worker):
        result = await result_of(queue, await queue.enqueue(leave_a_stop_behind, "own"))
        assert result.status == "success"
        await _stops.pop()
    assert await runs_nothing(queue, path)


async def test_a_worker_that_is_entered_twice_stops_when_it_is_left_twice(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """What the outer block still uses goes on after the inner one."""
    worker = Worker(backend)
    async with worker:
        async with worker:
            assert await runs_a_task(queue)
        assert await runs_a_task(queue)
    assert await runs_nothing(queue, path)
    async with worker:
        assert await runs_a_task(queue)
    assert await runs_nothing(queue, path)


async def test_stop_says_what_it_waits_for(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, with the ids and names of some of the tasks, in a line of bounded length."""
    monkeypatch.setattr("sitq.worker.worker.FIRST_REPORT_SECONDS", 0.01)

    def said() -> list[str]:
        return [message for message in caplog.messages if "stopping" in message]

    worker = Worker(backend, max_concurrency=20)
    await worker.start()
    with gate() as here:
        ids = await queue.enqueue_many(partial(wait_at, "gate", n) for n in range(20))
        await here.arrived(20)
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: len(said()) >= 2)
    await stopping
    for message in said():
        assert "20 tasks" in message
        assert "wait_at" in message
        assert "shutdown_timeout" in message
        assert 0 < sum(task_id in message for task_id in ids) < 20
        assert len(message) < 1000
    assert {record.levelno for record in caplog.records if "stopping" in record.getMessage()} == {logging.WARNING}
    count = len(said())
    await worker.start()
    await worker.stop()
    assert len(said()) == count


async def test_a_stop_that_only_waits_for_the_file_says_so(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task runs any more, and an outcome is not recorded yet."""
    monkeypatch.setattr("sitq.worker.worker.FIRST_REPORT_SECONDS", 0.01)
    backend = SQLiteBackend(path)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        worker = Worker(backend)
        await worker.start()
        with gate() as here:
            await queue.enqueue(wait_at, "gate", 1)
            await here.arrived()
            with write_lock(path):
                here.open()
                stopping = asyncio.create_task(worker.stop())
                await until(lambda: "stopping: waiting for the backend" in caplog.text)
        await stopping
    assert statuses(path) == [("success", 1)]


@pytest.mark.parametrize("task", [wait_at, block_at])
async def test_a_stop_that_is_cancelled_gives_back_at_once(
    task: Callable[..., Any], path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Whoever waits no longer has given a second order: what still runs is given back, its attempt unspent."""
    worker = Worker(backend)
    await worker.start()
    with gate() as here:
        await queue.enqueue(task, "gate", 1, runs)
        await here.arrived()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.stop(), 0.01)
        await queue.enqueue(log_async, runs, "new")
        await worker.stop()
        assert statuses(path) == [("pending", 0)] * 2
    assert runs.lines() == ["1"]


async def test_a_stop_that_is_cancelled_ends_the_other_stops(
    path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """One of those that wait has lost its patience, and none waits for the tasks any more."""
    worker = Worker(backend)
    await worker.start()
    with gate() as here:
        await queue.enqueue(wait_at, "gate")
        await here.arrived()
        first, second = asyncio.create_task(worker.stop()), asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert statuses(path) == [("pending", 0)]


class UnluckyError(Exception):
    """What a backend of the tests raises."""


@pytest.mark.parametrize("begin", ["start", "run", "drain", "__aenter__"])
async def test_a_start_that_fails_after_the_store_was_opened_says_why_and_leaks_nothing(
    begin: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is the one that was raised, no user of the backend is left, and the same worker can start later."""

    def refuse(*_: object, **__: object) -> None:
        raise UnluckyError("no luck")

    async with TaskQueue(SQLiteBackend(path)) as queue:
        await runs_nothing(queue, path)
        threads, files = threading.active_count(), open_files()
        backend = SQLiteBackend(path)
        worker = Worker(backend)
        with monkeypatch.context() as patched:
            patched.setattr("sitq.worker.runner.ThreadPool", refuse)
            with pytest.raises(UnluckyError, match="no luck"):
                await getattr(worker, begin)()
        assert backend._users == 0
        await until(lambda: threading.active_count() <= threads and open_files() <= files)
        async with worker:
            assert await runs_a_task(queue)


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that does not complain about what is left in it when it is closed."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    return loop


def test_a_worker_whose_loop_was_closed_starts_anew(path: Path) -> None:
    """It runs tasks in the next loop, and what the closed one left behind is gone: thread, descriptors and user."""
    backend = SQLiteBackend(path)
    worker = Worker(backend)
    first = new_loop()
    first.run_until_complete(worker.start())
    first.close()

    async def serve() -> bool:
        async with TaskQueue(SQLiteBackend(path)) as queue:
            await worker.stop()  # of a worker that does not run
            async with worker:
                works = await runs_a_task(queue)
                assert backend._users == 1
                await until(lambda: [thread.name for thread in threading.enumerate()].count("sitq-renewal") == 1)
            assert backend._users == 0
            return works

    assert asyncio.run(serve())


def test_a_drain_after_a_closed_loop_works(path: Path) -> None:
    """The worker does not claim to run."""
    worker = Worker(SQLiteBackend(path))
    first = new_loop()
    first.run_until_complete(worker.start())
    first.close()
    assert asyncio.run(worker.drain()) == 0


def test_leases_of_a_closed_loop_are_not_renewed(path: Path, tmp_path: Path, runs: Runs) -> None:
    """What it held is taken over, as from a worker that died."""
    may_end = tmp_path / "may-end"
    first = new_loop()

    async def hold() -> str:
        async with TaskQueue(SQLiteBackend(path)) as queue:
            task_id = await queue.enqueue(wait_for_file, may_end, runs)
            await Worker(SQLiteBackend(path), lease=0.1).start()
            await until(runs.lines)
            return task_id

    task_id = first.run_until_complete(hold())
    first.close()
    may_end.touch()

    async def take_over() -> int:
        async with TaskQueue(SQLiteBackend(path)) as queue, Worker(SQLiteBackend(path)):
            return (await result_of(queue, task_id)).attempt

    assert asyncio.run(take_over()) == 2
    assert runs.lines() == ["started", "started", "ended"]


def test_a_worker_of_another_loop_is_not_waited_for(path: Path) -> None:
    """A call in another loop than the one in which the worker runs says so, and does not hang."""
    worker = Worker(SQLiteBackend(path))
    first = new_loop()
    first.run_until_complete(worker.start())
    for call in (worker.start, worker.stop, worker.run, worker.drain):
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call())
    first.run_until_complete(worker.stop())
    first.close()
