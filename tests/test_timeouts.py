"""Limits of time: what ends a run whose time is over, whose error it is, and tasks that are not started late."""

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    Backoff,
    GiveUp,
    Retry,
    SQLiteBackend,
    TaskCancelledError,
    TaskQueue,
    TaskTimeoutError,
    Worker,
    current_task,
    running,
    task,
)
from sitq.executors import ThreadExecutor
from sitq.extensions import Run, timeouts
from sitq.models import Result
from sitq.testing import ManualClock
from tests.support import DEADLINE_SECONDS, Runs, rows, until
from tests.worker_tasks import block_at, gate

SHORT = 0.05
LATE = "TaskTimeoutError: it took longer than its timeout of 0.05 seconds"


@pytest.fixture
def clock() -> ManualClock:
    """The time of the file, moved by hand."""
    return ManualClock()


@pytest.fixture
def backend(path: Path, clock: ManualClock) -> SQLiteBackend:
    """A backend with a moved clock."""
    return SQLiteBackend(path, clock=clock)


async def ended(queue: TaskQueue, backend: SQLiteBackend, func: Any, *args: Any, **options: Any) -> Result[Any]:
    """Runs one task with a short timeout and returns its result."""
    task_id = await queue.options(**{"timeout": SHORT} | options).enqueue(func, *args)
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result


async def for_ever() -> None:
    """Never returns."""
    await asyncio.Event().wait()


async def raise_timeout() -> None:
    """Raises the error of another limit."""
    raise TimeoutError("the server did not answer")


async def inner_limit() -> None:
    """Is ended by a limit of its own."""
    async with asyncio.timeout(0):
        await for_ever()


async def outer_limit() -> None:
    """Has a limit of its own that would come later."""
    async with asyncio.timeout(3600):
        await for_ever()


async def in_a_group() -> None:
    """Waits for others in a group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(for_ever())
        group.create_task(for_ever())


async def return_all_the_same() -> str:
    """Does not care that it is cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await for_ever()
    await asyncio.sleep(0)  # nothing of the cancellation is left
    return "done"


async def raise_on_cancel(error: Exception) -> None:
    """Raises an error of its own where it is cancelled."""
    try:
        await for_ever()
    except asyncio.CancelledError:
        raise error from None


async def cancel_itself() -> None:
    """Cancels the asyncio task that it runs in."""
    found = asyncio.current_task()
    assert found is not None
    found.cancel()
    await asyncio.sleep(0)


async def at_once() -> int:
    """Needs no time."""
    return 42


def check_for_ever() -> None:
    """Asks whether it may go on."""
    while True:
        running.check()
        time.sleep(0.001)  # work of some length


def sleep_and_return(seconds: float) -> str:
    """Does not ask."""
    time.sleep(seconds)  # work of some length
    return "done"


def sleep_and_raise(seconds: float, error: Exception) -> None:
    """Does not ask, and raises."""
    time.sleep(seconds)  # work of some length
    raise error


def return_an_awaitable() -> Awaitable[None]:
    """Is no coroutine function, and returns what has to be awaited."""
    return for_ever()


@pytest.mark.parametrize("func", [for_ever, outer_limit, in_a_group, check_for_ever, return_an_awaitable])
async def test_a_run_whose_time_is_over_is_ended(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A coroutine wherever it waits; a plain function when it asks; what it returned, when that is awaited."""
    result = await ended(queue, backend, func)
    assert (result.status, result.error) == ("failed", LATE)


@pytest.mark.parametrize(
    ("func", "args", "error"),
    [
        (raise_timeout, (), "TimeoutError: the server did not answer"),
        (inner_limit, (), "TimeoutError: "),
        (sleep_and_raise, (0, TimeoutError("own")), "TimeoutError: own"),
        (cancel_itself, (), "CancelledError: "),
    ],
)
async def test_a_timeout_is_told_from_the_tasks_own(
    func: Any, args: Any, error: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """A limit inside of the task has its own error, and so has a task that cancels itself."""
    result = await ended(queue, backend, func, *args, timeout=3600)
    assert (result.status, result.error) == ("failed", error)


async def test_a_run_in_time_is_a_success(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """And nothing of its limit is left."""
    assert (await ended(queue, backend, at_once, timeout=3600)).unwrap() == 42
    assert (await ended(queue, backend, sleep_and_return, 0, timeout=3600)).unwrap() == "done"


@pytest.mark.parametrize(("func", "args"), [(return_all_the_same, ()), (sleep_and_return, (2 * SHORT,))])
async def test_a_value_after_its_time_is_a_success_and_a_warning(
    func: Any, args: Any, queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """The work is done: to fail it would be to do it again."""
    assert (await ended(queue, backend, func, *args)).unwrap() == "done"
    assert [line for line in caplog.messages if "returned a value after its timeout of 0.05 seconds" in line]


@pytest.mark.parametrize(
    ("func", "args"), [(raise_on_cancel, (KeyError("own"),)), (sleep_and_raise, (2 * SHORT, KeyError("own")))]
)
async def test_what_is_raised_after_its_time_is_the_cause_of_the_timeout(
    func: Any, args: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The run took too long, whatever it says of that."""
    result = await ended(queue, backend, func, *args)
    assert result.error == LATE
    assert "KeyError: 'own'" in (result.traceback or "")


@pytest.mark.parametrize("error", [GiveUp("enough"), Retry(3600)])
async def test_an_order_of_the_tasks_holds_after_its_time(
    error: Exception, queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Whoever raises it has seen that the time is over, and knows better than a policy."""
    options = queue.options(timeout=SHORT, retry=Backoff(retries=3, first=0))
    await options.enqueue(raise_on_cancel, error)
    await Worker(backend).drain()
    row = rows(path)[0]
    assert (row["status"], row["attempt"]) == ("failed" if isinstance(error, GiveUp) else "pending", 1)


@pytest.mark.parametrize("func", [for_ever, check_for_ever])
async def test_a_timeout_is_tried_again_by_the_policy(
    func: Any, queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """It is an exception like any other, and a TimeoutError."""
    policy = Backoff(retries=2, first=0, on=(TaskTimeoutError,))
    result = await ended(queue, backend, func, retry=policy)
    assert (result.error, result.attempt) == (LATE, 3)
    assert issubclass(TaskTimeoutError, TimeoutError)


@task(timeout=SHORT)
async def declared() -> None:
    """Has a limit."""
    await for_ever()


async def test_a_timeout_may_be_declared(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """And an option of the queue wins over it."""
    assert (await ended(queue, backend, declared, timeout=None)).error == LATE
    longer = await ended(queue, backend, declared, timeout=0.06)
    assert longer.error == LATE.replace("0.05", "0.06")


async def test_a_timed_out_thread_keeps_its_slot(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it has ended; it is named once in a warning, and nothing runs beside it."""
    monkeypatch.setattr(timeouts, "DEAF_SECONDS", 0.0)
    monkeypatch.setattr(timeouts, "LOOK_SECONDS", 0.01)
    with gate() as here:
        async with Worker(backend, max_concurrency=1):
            deaf = await queue.options(timeout=SHORT).enqueue(block_at, "gate", "late")
            other = await queue.enqueue(at_once)
            await here.arrived()
            await until(lambda: any("goes on" in line for line in caplog.messages))
            assert await queue.get_result(other, timeout=0) is None
            here.open()
            assert (await queue.get_result(other, timeout=DEADLINE_SECONDS)) is not None
        warned = [line for line in caplog.messages if "goes on" in line]
        assert len(warned) == 1
        assert deaf in warned[0]
        result = await queue.get_result(deaf, timeout=0)
        assert result is not None
        assert result.unwrap() == "late"


async def test_a_deaf_coroutine_is_named_once(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has swallowed its cancellation and goes on."""
    monkeypatch.setattr(timeouts, "DEAF_SECONDS", 0.0)
    monkeypatch.setattr(timeouts, "LOOK_SECONDS", 0.01)
    task_id = await queue.options(timeout=SHORT).enqueue(go_on_for, 0.3)
    await Worker(backend).drain()
    warned = [line for line in caplog.messages if "goes on" in line]
    assert [task_id in line for line in warned] == [True]


async def go_on_for(seconds: float) -> None:
    """Swallows its cancellation and goes on for a while."""
    with contextlib.suppress(asyncio.CancelledError):
        await for_ever()
    await asyncio.sleep(seconds)  # work of some length


def how_long(runs: Runs) -> float:
    """Tells what time it has left when it begins."""
    left = running.seconds_left()
    assert left is not None
    runs.add(f"{left:.0f}")
    return left


async def how_long_on_the_loop(runs: Runs) -> float:
    """As above."""
    running.check()
    return how_long(runs)


@pytest.mark.parametrize("func", [how_long, how_long_on_the_loop])
async def test_a_task_can_ask_what_time_it_has_left(
    func: Any, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """On the loop and in a thread."""
    assert 0 < (await ended(queue, backend, func, runs, timeout=1000)).unwrap() <= 1000
    assert runs.lines() == ["1000"]


async def no_limit() -> None:
    """Has none."""
    running.check()
    assert running.seconds_left() is None


async def test_without_a_limit_or_a_task_there_is_none_to_ask_for(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """So that a function can be tested as it is."""
    await no_limit()
    assert (await ended(queue, backend, no_limit, timeout=None)).status == "success"


class Waiting:
    """A pool that begins a call only after the limit of its task is over."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    def submit(self, task: Any, call: Any) -> asyncio.Future[Any]:
        """Begins later."""
        future = self._loop.create_future()

        def begin() -> None:
            self._pool.submit(task, call).add_done_callback(lambda done: future.set_result(done.result()))

        self._loop.call_later(3 * SHORT, begin)
        return future

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()


async def test_the_time_of_a_plain_function_counts_from_when_its_thread_begins(
    queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """What it waited for a thread is not its own."""

    class Executor:
        def start(self, slots: int) -> Waiting:
            return Waiting(ThreadExecutor().start(slots))

    task_id = await queue.options(timeout=2 * SHORT).enqueue(running.check)
    await Worker(backend, executor=Executor()).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.status == "success"


async def test_what_is_around_a_run_is_limited_and_sees_the_function(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A session that cannot be opened takes the task's time; a plain function is seen as what it is."""
    seen: list[Any] = []

    class Slow:
        @contextlib.asynccontextmanager
        async def around(self, run: Run) -> AsyncIterator[None]:
            seen.append(run.call.func)
            if run.task.name.endswith("at_once"):
                await for_ever()
            yield

    ids = [await queue.options(timeout=SHORT).enqueue(func) for func in (at_once, check_for_ever)]
    await Worker(backend, extensions=[Slow()]).drain()
    errors = [getattr(await queue.get_result(task_id, timeout=0), "error", None) for task_id in ids]
    assert errors == [LATE, LATE]
    assert {at_once, check_for_ever} == set(seen)


@pytest.mark.parametrize("func", [for_ever, check_for_ever])
async def test_a_timeout_while_the_worker_stops_is_the_tasks_end(
    func: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The worker waits for it, as it waits for whatever runs."""
    listening = asyncio.Event()

    class Begun:
        def on_event(self, event: Any) -> None:
            listening.set()

    async with Worker(backend, extensions=[Begun()]):
        task_id = await queue.options(timeout=4 * SHORT).enqueue(func)
        await listening.wait()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert "TaskTimeoutError" in (result.error or "")


async def test_a_stop_that_waits_for_nothing_says_nothing(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """What the standard extensions do beside a worker ends at once."""
    caplog.set_level(logging.WARNING)
    async with Worker(backend, shutdown_timeout=0):
        await queue.get_result(await queue.enqueue(at_once), timeout=DEADLINE_SECONDS)
    assert caplog.messages == []


async def test_a_thread_that_was_given_back_learns_of_it(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Nothing that it returns changes anything, so its next check ends it."""
    with gate() as here:
        async with Worker(backend, shutdown_timeout=0):
            await queue.enqueue(check_behind, "gate")
            await here.arrived()
        here.open()
        await until(ENDED.is_set)  # nobody waits for its thread


ENDED = threading.Event()


def check_behind(name: str) -> None:
    """Waits at a gate, then asks."""
    ENDED.clear()
    block_at(name)
    try:
        running.check()
    except asyncio.CancelledError:
        ENDED.set()
        raise


@pytest.mark.parametrize("moment", ["after", "at"])
async def test_an_expired_task_is_never_started(
    moment: str, queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock, runs: Runs
) -> None:
    """It is cancelled instead, without a traceback, and not tried again."""
    expires = timedelta(minutes=5) if moment == "after" else clock.now() + timedelta(minutes=5)
    options = queue.options(expires=expires, retry=Backoff(first=0))
    in_time = await options.enqueue(log, runs, "in time")
    await Worker(backend).drain()
    late = await options.enqueue(log, runs, "late")
    clock.advance(301)
    await Worker(backend).drain()
    assert runs.lines() == ["in time"]
    assert (await queue.get_result(in_time, timeout=0)).status == "success"  # type: ignore[union-attr]
    result = await queue.get_result(late, timeout=0)
    assert result is not None
    assert (result.status, result.traceback) == ("cancelled", None)
    assert (result.error or "").startswith("Expired: was not started before ")
    with pytest.raises(TaskCancelledError, match="Expired"):
        result.unwrap()


def log(runs: Runs, line: str) -> None:
    """Logs that it ran."""
    runs.add(line)


async def test_a_task_that_began_in_time_is_not_ended_by_its_expiry(
    queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock
) -> None:
    """It is a limit for the start, not for the run."""
    with gate() as here:
        task_id = await queue.options(expires=timedelta(minutes=5)).enqueue(block_at, "gate", "done")
        drain = asyncio.create_task(Worker(backend).drain())
        await here.arrived()
        clock.advance(3600)
        here.open()
        await drain
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == "done"


async def test_a_moment_is_told_by_the_stores_clock(path: Path, runs: Runs) -> None:
    """Not by the worker's, which may be wrong."""
    behind = SQLiteBackend(path, clock=lambda: time.time() - 86_400)
    async with TaskQueue(behind) as queue:
        await queue.options(expires=datetime.now(UTC) - timedelta(hours=1)).enqueue(log, runs, "in time")
        await Worker(behind).drain()
    assert runs.lines() == ["in time"]


async def test_nothing_of_a_run_is_left_when_it_is_over(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """No asyncio task, no thread, no reference, and no complaint to the loop."""
    before = {id(each) for each in found(Run)}
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    options = queue.options(timeout=3600, retry=Backoff(retries=1, first=0))
    short = queue.options(timeout=0.001)
    for _ in range(100):
        await options.enqueue(at_once)
        await options.enqueue(sleep_and_return, 0)
        await options.enqueue(raise_timeout)
        await short.enqueue(for_ever)
        await options.enqueue(check_in_task)
    async with asyncio.timeout(4 * DEADLINE_SECONDS):
        await Worker(backend, max_concurrency=32).drain()
    await asyncio.sleep(0)
    gc.collect()
    assert [each for each in found(Run) if id(each) not in before] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert complaints == []


def found(kind: type) -> list[Any]:
    """Returns all objects of a class that this process holds."""
    return [each for each in gc.get_objects() if type(each) is kind]


async def check_in_task() -> int:
    """Looks at itself."""
    running.check()
    return current_task().attempt


async def test_a_run_is_freed_without_the_collector(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """It holds its asyncio task, whose context holds it."""
    await queue.options(timeout=3600).enqueue(at_once)
    await queue.enqueue(sleep_and_return, 0)
    gc.collect()
    before = len(found(Run))
    gc.disable()
    try:
        await Worker(backend).drain()
        assert len(found(Run)) == before
    finally:
        gc.enable()
