"""Cancelling a caller at each of its awaits in turn: no lock is kept, nothing is stranded, nothing is half done."""

import asyncio
import gc
import itertools
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import guard
from sitq.backends.sqlite.jobs import ReadJob
from sitq.models import Outcome
from tests.faults import Clock, assert_healthy, assert_unlocked, connected, new_task, open_files, write_lock
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, log_plain, rows, until
from tests.worker_tasks import far_ahead

LEASE = 600.0
OF_A_WORKER = ("sitq-worker", "sitq-renewal")

type When = Literal["while it waits", "when it is woken"]
type Make = Callable[[], Coroutine[Any, Any, Any]]


@types.coroutine
def cancelled_at(coroutine: Coroutine[Any, Any, Any], point: int, when: When) -> Generator[Any, Any, Any]:
    """Runs ``coroutine`` and has the task that runs it cancelled at its suspension number ``point``.

    Cancelled while it waits, it may get its ``CancelledError`` before the work that it waits for is
    done; cancelled when it is woken, it gets that instead of what is there for it already.
    """
    task = asyncio.current_task()
    assert task is not None
    resume: Callable[[], Any] = partial(coroutine.send, None)
    for number in itertools.count():
        try:
            future = resume()
        except StopIteration as stop:
            return stop.value
        if number == point:
            if future is not None and when == "when it is woken":
                # Before the task's own callback, which is added when it gets the future.
                future.add_done_callback(lambda _: task.cancel())
            else:
                asyncio.get_running_loop().call_soon(task.cancel)
        try:
            yield future
            resume = partial(coroutine.send, None)
        except BaseException as error:
            resume = partial(coroutine.throw, error)
    return None


async def sweep(make: Make, when: When) -> AsyncIterator[int]:
    """Yields after each cancelled run of what ``make`` gives, once for each point; ends with a run to the end."""
    for point in itertools.count():
        coroutine = make()
        task = asyncio.ensure_future(as_coroutine(cancelled_at(coroutine, point, when)))
        try:
            await task
        except asyncio.CancelledError:
            yield point
        else:
            assert point > 0
            return


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    """Awaits what only a coroutine may."""
    return await awaitable


@pytest.fixture(params=["while it waits", "when it is woken"])
def when(request: pytest.FixtureRequest) -> When:
    """When the caller is cancelled."""
    found: When = request.param
    return found


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """After each test there are no more threads and open files than before."""
    threads, files = set(threading.enumerate()), open_files()
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(DEADLINE_SECONDS)  # a connection's thread says that it has closed just before it ends
    assert {thread.name for thread in set(threading.enumerate()) - threads} == set()
    # A statement that the garbage collector has just freed kept its connection's file open beyond the
    # close; for its sake a guard's descriptor stays until the next close of any backend, which this stands for.
    guard.tidy()
    assert open_files() <= files


async def test_a_cancelled_enqueue_stores_all_or_nothing(backend: SQLiteBackend, path: Path, when: When) -> None:
    """Wherever it is cancelled, its batch is there as a whole or not at all, and the next one is stored."""
    numbers = itertools.count()

    def make() -> Coroutine[Any, Any, Any]:
        batch = next(numbers)
        return backend.enqueue([new_task(f"{batch}-{n}") for n in range(3)])

    async with connected(backend):
        async for _ in sweep(make, when):
            assert_unlocked(path)
        stored = [row["task_id"].split("-")[0] for row in rows(path)]
        assert all(stored.count(batch) == 3 for batch in stored)
        await backend.enqueue([new_task("after")])
    assert "after" in {row["task_id"] for row in rows(path)}


async def test_a_cancelled_first_enqueue_of_a_queue_stores_all_or_nothing(
    tmp_path: Path, runs: Runs, when: When
) -> None:
    """Also while it connects; the queue can be used and closed afterwards."""
    numbers = itertools.count()
    queues: list[tuple[TaskQueue, Path]] = []

    def make() -> Coroutine[Any, Any, Any]:
        path = tmp_path / f"{next(numbers)}.db"
        queues.append((TaskQueue(SQLiteBackend(path)), path))
        return queues[-1][0].enqueue(log_async, runs, "cancelled")

    async for _ in sweep(make, when):
        queue, path = queues[-1]
        task_id = await queue.enqueue(add, 1, 2)
        await queue.close()
        assert task_id in {row["task_id"] for row in rows(path)}
        assert_unlocked(path)
        assert_healthy(path)
    await queues[-1][0].close()


async def test_a_cancelled_reservation_is_given_back(backend: SQLiteBackend, path: Path, when: When) -> None:
    """No task stays with a caller that went away: another gets all of them, on their first attempt."""
    async with connected(backend):
        await backend.enqueue([new_task(str(n)) for n in range(5)])
        async for _ in sweep(lambda: backend.reserve(5, lease=LEASE, alone=True), when):
            await backend.get_result("0")  # the cancelled call's turn on the thread is over
            await until(lambda: {row["status"] for row in rows(path)} == {"pending"})
            assert_unlocked(path)
            taken = (await backend.reserve(5, lease=LEASE, alone=True)).tasks
            assert [(task.task_id, task.attempt) for task in taken] == [(str(n), 1) for n in range(5)]
            assert await backend.release(taken) == []


async def test_a_cancellation_is_not_lost_to_an_error_that_comes_with_it(path: Path) -> None:
    """Who is cancelled just when the file has refused is cancelled, as a timeout and a task group count on."""
    async with connected(SQLiteBackend(path, busy_timeout=0.01)) as backend:
        await backend.enqueue([new_task()])
        with write_lock(path):
            reserving = backend.reserve(1, lease=LEASE, alone=True)
            cancelled = asyncio.ensure_future(as_coroutine(cancelled_at(reserving, 0, "when it is woken")))
            with pytest.raises(asyncio.CancelledError):
                await cancelled


async def test_a_cancelled_reservation_does_not_cost_its_neighbours_their_answer(path: Path) -> None:
    """If the backend is closed as well, the task stays with its lease, and who shares the commit is answered."""
    begun = threading.Event()

    class Tells(Clock):
        def __call__(self) -> float:
            begun.set()  # asked at the beginning of each batch
            return super().__call__()

    backend = SQLiteBackend(path, clock=Tells())
    await backend.connect()
    await backend.enqueue([new_task("due")])
    with write_lock(path):
        begun.clear()
        first = asyncio.ensure_future(backend.enqueue([new_task("first")]))
        assert await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        reserving = asyncio.ensure_future(backend.reserve(9, lease=LEASE, alone=True))
        neighbour = asyncio.ensure_future(backend.enqueue([new_task("neighbour")]))
        await asyncio.sleep(0)
        reserving.cancel()
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(first, neighbour, closing)
    assert {row["task_id"]: row["attempt"] for row in rows(path)} == {"due": 1, "first": 1, "neighbour": 0}


@pytest.mark.parametrize("outcome", ["success", "failure"])
async def test_a_cancelled_completion_can_be_made_again(
    backend: SQLiteBackend, path: Path, when: When, outcome: str
) -> None:
    """It was recorded whole or not at all, and the second try never learns that the task is not held."""
    numbers = itertools.count()
    waiting: list[Outcome] = []
    mark = backend.mark_success if outcome == "success" else backend.mark_failure

    async with connected(backend):
        await backend.enqueue([new_task(str(n)) for n in range(100)])
        held = (await backend.reserve(100, lease=LEASE, alone=True)).tasks

        def make() -> Coroutine[Any, Any, Any]:
            task = held[next(numbers)]
            result = b"value" if outcome == "success" else None
            waiting.append(Outcome(task, result, None if result else "E: no"))
            return as_coroutine(mark([waiting[-1]]))

        async for _ in sweep(make, when):
            assert_unlocked(path)
            assert await mark([waiting[-1]]) == []
            found = await backend.get_result(waiting[-1].task.task_id)
            assert found is not None
            assert found.status == ("success" if outcome == "success" else "failed")


@pytest.mark.parametrize("call", ["renew", "release"])
async def test_a_cancelled_renewal_or_release_is_whole(
    backend: SQLiteBackend, path: Path, when: When, call: str
) -> None:
    """All tasks of the call have the new lease, or were given back, or none."""
    async with connected(backend):
        await backend.enqueue([new_task(str(n)) for n in range(3)])
        held = (await backend.reserve(3, lease=LEASE, alone=True)).tasks
        make: Make = (
            (lambda: as_coroutine(backend.renew(held, lease=2 * LEASE)))
            if call == "renew"
            else (lambda: as_coroutine(backend.release(held)))
        )
        async for _ in sweep(make, when):
            assert_unlocked(path)
            found = rows(path)
            assert len({(row["status"], row["available_at"] // 1_000_000) for row in found}) == 1
            if found[0]["status"] == "pending":
                held = (await backend.reserve(3, lease=LEASE, alone=True)).tasks
            assert len(held) == 3


async def test_a_cancelled_waiter_leaves_nothing_behind(
    backend: SQLiteBackend, queue: TaskQueue, path: Path, when: When
) -> None:
    """Whoever stops waiting for a result holds no watch and no file; the result is there for the next one."""
    task_id = await queue.enqueue(add, 1, 2)
    files = open_files()

    async def wait() -> None:
        assert await queue.get_result(task_id, timeout=0.01) is None

    async for _ in sweep(wait, when):
        assert open_files() == files  # not after a query from outside: SQLite keeps such a file open for a while
    assert_unlocked(path)
    assert await Worker(backend).drain() == 1
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.value == 3


async def test_a_cancelled_connect_leaves_nothing_open(tmp_path: Path, when: When) -> None:
    """Nobody uses the backend then, and it can be connected later."""
    numbers = itertools.count()
    backends: list[SQLiteBackend] = []
    threads = threading.active_count()

    def make() -> Coroutine[Any, Any, Any]:
        backends.append(SQLiteBackend(tmp_path / f"{next(numbers)}.db"))
        return backends[-1].connect()

    async for _ in sweep(make, when):
        await until(lambda: threading.active_count() <= threads + 1)  # one that waits for the exit
        async with connected(backends[-1]):
            await backends[-1].enqueue([new_task()])
    await backends[-1].close()


async def test_a_cancelled_connect_does_not_take_the_file_from_others(path: Path, when: When) -> None:
    """Who connects at the same time through the same object gets the file all the same."""
    backend = SQLiteBackend(path)
    others: list[asyncio.Future[None]] = []

    async def connect() -> None:
        others.append(asyncio.ensure_future(backend.connect()))
        await backend.connect()

    async for _ in sweep(connect, when):
        await others[-1]
        await backend.enqueue([new_task(str(len(others)))])
        await backend.close()
    await others[-1]
    await backend.close()
    await backend.close()
    assert len(rows(path)) == len(others) - 1


async def test_a_cancelled_close_closes(path: Path, when: When) -> None:
    """Whether of a queue or of a backend, and another close does no harm."""
    threads = threading.active_count()
    queues: list[TaskQueue] = []
    backend = SQLiteBackend(path)

    async def close() -> None:
        await queues[-1].close()

    async def use() -> None:
        queues.append(TaskQueue(SQLiteBackend(path)))
        await queues[-1].enqueue(add, 1, 2)

    await use()
    async for _ in sweep(close, when):
        await queues[-1].close()
        await until(lambda: threading.active_count() <= threads + 1)
        await use()
    await queues[-1].close()

    await backend.connect()
    async for _ in sweep(backend.close, when):
        await backend.close()
        await until(lambda: threading.active_count() <= threads + 1)
        await backend.connect()
    await backend.close()
    assert_healthy(path)


def test_a_loop_that_ends_in_the_middle_of_a_close_leaves_no_thread(path: Path) -> None:
    """What is under way is finished all the same, then the file is closed and its thread ends."""
    go_on, before = threading.Event(), set(threading.enumerate())

    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        backend._connected().post(ReadJob(lambda *_: go_on.wait(DEADLINE_SECONDS)))
        closing = asyncio.ensure_future(backend.close())
        await until(lambda: backend._connection is None)
        await asyncio.sleep(0)  # it waits for the thread now
        assert not closing.done()

    asyncio.run(main())  # and cancels what is left
    (thread,) = set(threading.enumerate()) - before
    go_on.set()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


async def test_a_cancelled_entry_leaves_nothing_open(tmp_path: Path, runs: Runs, when: When) -> None:
    """``async with`` that is cancelled before its block was entered never calls its exit: it has cleaned up itself."""
    numbers = itertools.count()
    threads = threading.active_count()
    paths: list[Path] = []

    async def enter_queue() -> None:
        paths.append(tmp_path / f"{next(numbers)}.db")
        async with TaskQueue(SQLiteBackend(paths[-1])):
            pass

    async def enter_worker() -> None:
        paths.append(tmp_path / f"{next(numbers)}.db")
        async with Worker(SQLiteBackend(paths[-1])):
            pass

    for enter in (enter_queue, enter_worker):
        async for _ in sweep(enter, when):
            await until(lambda: threading.active_count() <= threads + 1)
            async with TaskQueue(SQLiteBackend(paths[-1])) as queue:
                await queue.enqueue(log_async, runs, len(paths))
            # Else the file would be open here while it is closed there, and a descriptor would be kept for that.
            await until(lambda: threading.active_count() <= threads)
            assert_healthy(paths[-1])


async def test_a_cancelled_drain_leaves_no_task_behind(path: Path, runs: Runs, when: When) -> None:
    """Wherever it is cancelled, each task is finished or waits for the next one, its attempt unspent."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        for n in range(20):
            await queue.enqueue(log_async if n % 2 else log_plain, runs, n)

        async for _ in sweep(lambda: Worker(backend, max_concurrency=3, lease=LEASE).drain(), when):
            found = rows(path)
            assert {row["status"] for row in found} <= {"pending", "success"}
            assert all(row["attempt"] == (row["status"] == "success") for row in found)
            assert_unlocked(path)
            if all(row["status"] == "success" for row in found):
                for n in range(20, 40):
                    await queue.enqueue(log_async, runs, n)
        assert {row["status"] for row in rows(path)} == {"success"}


async def test_a_worker_that_is_cancelled_at_any_await_of_its_own_leaves_nothing_behind(
    path: Path, runs: Runs, when: When, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a loop's end does it: each task is finished, pending, or waits for its lease to end, and the threads end."""
    backend, live = SQLiteBackend(path), Worker._live
    point = -1

    def cancelled(*arguments: Any, **options: Any) -> Coroutine[Any, Any, int]:
        return as_coroutine(cancelled_at(live(*arguments, **options), point, when))

    monkeypatch.setattr(Worker, "_live", cancelled)
    async with TaskQueue(backend) as queue:
        for point in itertools.count():  # noqa: B007 - read by cancelled()
            for n in range(4):
                await queue.enqueue(log_async if n % 2 else log_plain, runs, n)
            try:
                await Worker(backend, max_concurrency=2, lease=LEASE).drain()
            except asyncio.CancelledError:
                found = rows(path)
                assert {row["status"] for row in found} <= {"pending", "in_progress", "success"}
                assert all(row["attempt"] == (row["status"] != "pending") for row in found)
                assert_unlocked(path)
                await until(
                    lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(OF_A_WORKER)]
                )
            else:
                break
        monkeypatch.setattr(Worker, "_live", live)  # the last drain has more to do, and would come to that point
        await Worker(far_ahead(path)).drain()
        assert {row["status"] for row in rows(path)} == {"success"}
    assert point > 0


async def test_a_queue_whose_close_was_cancelled_lets_go_once(path: Path) -> None:
    """Closing it again does not take the file from who has connected since."""
    backend = SQLiteBackend(path)
    queue = TaskQueue(backend)
    await queue.enqueue(add, 1, 2)
    closing = asyncio.ensure_future(queue.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with TaskQueue(backend) as other:
        await queue.close()
        await other.enqueue(add, 3, 4)
    assert len(rows(path)) == 2


async def test_a_cancelled_stop_goes_on(path: Path, runs: Runs, when: When) -> None:
    """The worker stops, the running task finishes, and another ``stop`` waits for it."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        workers = [Worker(backend)]
        await workers[0].start()

        async def stop() -> None:
            await workers[-1].stop()

        async for point in sweep(stop, when):
            await workers[-1].stop()
            waiting = await queue.enqueue(log_async, runs, point)
            assert await queue.get_result(waiting, timeout=0) is None
            workers.append(Worker(backend))
            await workers[-1].start()
            assert await queue.get_result(waiting) is not None
    assert set(runs.count().values()) == {1}
    assert_healthy(path)
