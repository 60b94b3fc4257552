"""Reading results: how long a wait lasts, what ends it, and what a result says."""

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from sitq import Result, SerializationError, SQLiteBackend, TaskFailedError, TaskQueue, Worker, WorkerDiedError
from sitq.models import BURIED_ERROR_PREFIX
from tests.support import DEADLINE_SECONDS, add, multiply, rows, start_python

FOR_EVER_SECONDS = 3600.0

WORKER = """
import asyncio, sys
from sitq import SQLiteBackend, Worker
print("ready")
sys.stdin.readline()
asyncio.run(Worker(SQLiteBackend(sys.argv[1])).drain())
"""


class Observed(SQLiteBackend):
    """A backend that counts the queries for a result and tells when somebody waits."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.queries = 0
        self.changed = asyncio.Condition()
        self.waits = asyncio.Semaphore(0)

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Counts, after the query."""
        found = await super().get_result(task_id)
        async with self.changed:
            self.queries += 1
            self.changed.notify_all()
        return found

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Tells, once the watch is set."""
        with super().watch(on_change, task_id=task_id):
            if task_id is not None:
                self.waits.release()
            yield

    async def waited_for(self, count: int = 1) -> None:
        """Returns when ``count`` more callers are waiting."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(count):
                await self.waits.acquire()

    async def queried(self, count: int) -> None:
        """Returns when that many queries have been made."""
        async with asyncio.timeout(DEADLINE_SECONDS), self.changed:
            await self.changed.wait_for(lambda: self.queries >= count)


class TwoArgumentsError(Exception):
    """Can be pickled and not be loaded."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class UnpicklableError(Exception):
    """Cannot be pickled, because it carries what cannot."""

    def __init__(self) -> None:
        super().__init__("carries a generator")
        self.generator = (n for n in ())


class SilentError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        """Fails."""
        raise RuntimeError("no words")


class FailsToLoad:
    """A value that can be stored, and raises when it is loaded."""

    def __reduce__(self) -> Any:
        """Makes a pickle that raises."""
        return int, ("not a number",)


def helper(key: str) -> None:
    """Raises in a frame below the task."""
    raise KeyError(key)  # the line that raised


def raises_of_another_task() -> None:
    """Raises what unwrap() raised for another task."""
    raise WorkerDiedError("other", f"{BURIED_ERROR_PREFIX}each of 5 attempts")


def fails_in_helper(key: str) -> None:
    """Raises in its helper."""
    helper(key)


def raises(kind: type[Exception], *args: str) -> None:
    """Raises."""
    raise kind(*args)


def give(value: Any) -> Any:
    """Returns its argument."""
    return value


def give_what_fails_to_load() -> FailsToLoad:
    """Returns what cannot be loaded."""
    return FailsToLoad()


@pytest.fixture
async def observed(path: Path) -> Observed:
    """A backend on the file that can be observed."""
    return Observed(path)


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away the safety net of a wait: it ends when it is woken, or not at all."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", FOR_EVER_SECONDS)


async def run_and_get(queue: TaskQueue, backend: SQLiteBackend, func: Callable[..., Any], *args: Any) -> Result[Any]:
    """Runs a task and returns its result."""
    task_id = await queue.enqueue(func, *args)
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result


@pytest.mark.parametrize("timeout", [None, 0, 0.0, 5, 60.5])
async def test_a_finished_task_is_read_without_waiting(observed: Observed, timeout: float | None) -> None:
    """Whatever the timeout, one query is enough and no watch is set."""
    async with TaskQueue(observed) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        await Worker(observed).drain()
        result = await queue.get_result(task_id, timeout)
    assert result is not None
    assert result.unwrap() == 3
    assert observed.queries == 1
    assert observed.waits.locked()


@pytest.mark.parametrize(
    ("default", "timeout"), [(None, 0), (None, 0.0), (0, None), (0, 0), (FOR_EVER_SECONDS, 0)], ids=str
)
async def test_a_timeout_of_zero_asks_once(path: Path, default: float | None, timeout: float | None) -> None:
    """Given to the call, or to the queue if the call has none: one query, and no wait."""
    observed = Observed(path)
    async with TaskQueue(observed, default_result_timeout=default) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        assert await queue.get_result(task_id, timeout) is None
    assert observed.queries == 1
    assert observed.waits.locked()


@pytest.mark.parametrize(("default", "timeout"), [(None, 0.05), (0.05, None), (0, 0.05), (FOR_EVER_SECONDS, 0.05)])
async def test_a_wait_that_is_too_short_gives_none(path: Path, default: float | None, timeout: float | None) -> None:
    """The timeout of the call goes before that of the queue; the task is untouched by the wait."""
    observed = Observed(path)
    async with TaskQueue(observed, default_result_timeout=default) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        before = rows(path)
        assert await queue.get_result(task_id, timeout) is None
        assert rows(path) == before
    assert observed.queries >= 2
    assert not observed.waits.locked()


@pytest.mark.parametrize(
    ("default", "timeout"),
    [(None, None), (None, FOR_EVER_SECONDS), (FOR_EVER_SECONDS, None), (0, FOR_EVER_SECONDS), (0.01, FOR_EVER_SECONDS)],
)
@pytest.mark.usefixtures("never_polls")
async def test_a_wait_ends_when_the_task_is_finished(path: Path, default: float | None, timeout: float | None) -> None:
    """The write of the result wakes it, in the same process; without any timeout it waits for that alone."""
    observed = Observed(path)
    async with TaskQueue(observed, default_result_timeout=default) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        waiting = asyncio.create_task(queue.get_result(task_id, timeout))
        await observed.waited_for()
        assert not waiting.done()
        async with Worker(observed, poll_interval=FOR_EVER_SECONDS), asyncio.timeout(DEADLINE_SECONDS):
            result = await waiting
    assert result is not None
    assert result.unwrap() == 3


async def test_a_wait_without_a_limit_goes_on(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlasts any number of queries that find the task unfinished, running or given back."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", 0.005)
    async with TaskQueue(observed) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        waiting = asyncio.create_task(queue.get_result(task_id))
        await observed.queried(10)
        (task,) = (await observed.reserve(1, lease=60, alone=True)).tasks
        await observed.queried(20)
        await observed.release([task])
        await observed.queried(30)
        assert not waiting.done()
        await Worker(observed).drain()
        result = await waiting
    assert result is not None
    assert result.unwrap() == 3


@pytest.mark.usefixtures("never_polls")
async def test_a_failure_ends_a_wait(observed: Observed) -> None:
    """A task that raises wakes as one that returns does."""
    async with TaskQueue(observed) as queue:
        task_id = await queue.enqueue(raises, ValueError, "no")
        waiting = asyncio.create_task(queue.get_result(task_id))
        await observed.waited_for()
        await Worker(observed).drain()
        async with asyncio.timeout(DEADLINE_SECONDS):
            result = await waiting
    assert result is not None
    assert result.status == "failed"


@pytest.mark.usefixtures("never_polls")
async def test_a_burial_ends_a_wait(path: Path) -> None:
    """A task whose workers all died is failed by the next reservation, which wakes who waits for it."""
    clock = [1_700_000_000.0]
    observed = Observed(path, clock=lambda: clock[0])
    async with TaskQueue(observed, max_attempts=1) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        await observed.reserve(1, lease=10, alone=True)
        waiting = asyncio.create_task(queue.get_result(task_id))
        await observed.waited_for()
        clock[0] += 11
        await observed.reserve(1, lease=10, alone=True)
        async with asyncio.timeout(DEADLINE_SECONDS):
            result = await waiting
    assert result is not None
    assert (result.status, result.value, result.traceback, result.attempt) == ("failed", None, None, 1)
    assert str(result.error).startswith("WorkerDiedError: each of 1 attempts ended with the death of its worker")


@pytest.mark.usefixtures("never_polls")
async def test_a_wait_is_woken_by_another_process(path: Path) -> None:
    """Many callers wait for tasks; a worker in a process of its own finishes them, and each wakes."""
    observed = Observed(path)
    async with TaskQueue(observed) as queue:
        ids = [await queue.enqueue(multiply, n, n) for n in range(5)]
        with start_python(WORKER, path, stdin=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            await asyncio.to_thread(worker.stdout.readline)
            waiting = [asyncio.create_task(queue.get_result(task_id)) for task_id in ids for _ in range(2)]
            await observed.waited_for(len(waiting))
            await asyncio.to_thread(worker.communicate, "go\n", DEADLINE_SECONDS)
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(*waiting)
    assert [result and result.unwrap() for result in results] == [n * n for n in range(5) for _ in range(2)]


@pytest.mark.usefixtures("never_polls")
async def test_every_waiter_of_a_task_gets_its_result(observed: Observed) -> None:
    """Ten coroutines wait for one task, and one of them is cancelled, which the others do not notice."""
    async with TaskQueue(observed) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        waiting = [asyncio.create_task(queue.get_result(task_id)) for _ in range(10)]
        await observed.waited_for(10)
        waiting.pop().cancel()
        await Worker(observed).drain()
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(*waiting)
    assert [result and result.unwrap() for result in results] == [3] * 9


@pytest.mark.parametrize("timeout", [None, 0, FOR_EVER_SECONDS])
@pytest.mark.parametrize(
    "task_id",
    ["no-such-task", "", "0" * 32, "\0", "%", "' OR 1 = 1 --", "\ud800", "x" * 100_000],
    ids=lambda value: repr(value)[:20],
)
async def test_an_unknown_id_gives_none_at_once(observed: Observed, task_id: str, timeout: float | None) -> None:
    """Whatever text it is and whatever the timeout, nothing is waited for."""
    async with TaskQueue(observed) as queue:
        await queue.enqueue(add, 1, 2)
        assert await queue.get_result(task_id, timeout) is None
    assert observed.waits.locked()


async def test_a_task_that_is_deleted_while_it_is_waited_for_gives_none(
    observed: Observed, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that somebody took away ends the wait at the next query."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", 0.01)
    async with TaskQueue(observed) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        waiting = asyncio.create_task(queue.get_result(task_id))
        await observed.queried(3)
        assert not waiting.done()
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM tasks")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await waiting is None


async def test_an_id_is_text_like_any_other(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Written down and read again, it finds the result."""
    task_id = await queue.enqueue(add, 1, 2)
    await Worker(backend).drain()
    result = await queue.get_result(bytes(task_id, "ascii").decode())
    assert result is not None
    assert result.task_id == task_id


@pytest.mark.parametrize("value", [3, None, "", b"\0", [1, {"a": (2, {3})}], 10**50], ids=repr)
async def test_a_success_says_what_was_returned(queue: TaskQueue, backend: SQLiteBackend, value: object) -> None:
    """An equal object, the number of the attempt, and neither error nor traceback."""
    result = await run_and_get(queue, backend, give, value)
    assert (result.status, result.value, result.unwrap()) == ("success", value, value)
    assert (result.error, result.traceback, result.attempt) == (None, None, 1)


async def test_a_failure_says_what_was_raised_and_where(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Error text and remote traceback are there, also on the exception that ``unwrap`` raises."""
    result = await run_and_get(queue, backend, fails_in_helper, "missing")
    assert (result.status, result.value, result.error, result.attempt) == ("failed", None, "KeyError: 'missing'", 1)
    assert result.traceback is not None
    assert "raise KeyError(key)  # the line that raised" in result.traceback
    assert "in helper" in result.traceback
    with pytest.raises(TaskFailedError) as caught:
        result.unwrap()
    assert (caught.value.error, caught.value.traceback) == (result.error, result.traceback)
    assert caught.value.task_id == result.task_id


async def test_the_death_of_all_workers_is_an_error_of_its_own(path: Path) -> None:
    """Code that waits for a result can tell it from what the task raised."""
    clock = [1_000.0]
    backend = SQLiteBackend(path, clock=lambda: clock[0])
    async with TaskQueue(backend, max_attempts=1) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        for _ in range(2):  # by workers that are never heard of again
            await backend.reserve(1, lease=30, alone=True)
            clock[0] += 31
        result = await queue.get_result(task_id)
    assert result is not None
    with pytest.raises(WorkerDiedError, match="failed: WorkerDiedError: each of 1 attempts ended with the death of"):
        result.unwrap()


async def test_an_error_of_a_task_is_that_of_the_task_whatever_its_name(
    queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """One that waits for another task and lets its error through failed by itself: its worker lives."""
    result = await run_and_get(queue, backend, raises_of_another_task)
    assert str(result.error).startswith("WorkerDiedError: task other failed")
    with pytest.raises(TaskFailedError) as caught:
        result.unwrap()
    assert type(caught.value) is TaskFailedError


async def test_the_times_of_a_result_are_aware_and_in_order(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Stored, started, finished: in UTC, one after the other."""
    result = await run_and_get(queue, backend, add, 1, 2)
    times = [result.enqueued_at, result.started_at, result.finished_at]
    assert [moment and moment.tzinfo for moment in times] == [UTC, UTC, UTC]
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.enqueued_at <= result.started_at <= result.finished_at


@pytest.mark.parametrize(
    ("kind", "args", "error"),
    [
        (TwoArgumentsError, ("one", "two"), "TwoArgumentsError: one and two"),
        (UnpicklableError, (), "UnpicklableError: carries a generator"),
        (SilentError, (), "SilentError: "),
        (ValueError, ("\ud800 is half a character",), "ValueError: "),
    ],
)
async def test_a_failure_is_text_whatever_its_exception_is(
    queue: TaskQueue, backend: SQLiteBackend, kind: type[Exception], args: tuple[str, ...], error: str
) -> None:
    """An exception that cannot be pickled, loaded or printed still reads fine."""
    result = await run_and_get(queue, backend, raises, kind, *args)
    assert result.status == "failed"
    assert str(result.error).startswith(error)
    assert "in raises" in str(result.traceback)


async def test_a_failure_of_a_class_that_the_reader_lacks_reads_fine(path: Path, tmp_path: Path) -> None:
    """The exception's class is known to the worker's process alone."""
    (tmp_path / "only_the_worker.py").write_text(
        "class OwnError(Exception): pass\ndef task(): raise OwnError('own words')\n"
    )
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue("only_the_worker:task")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WORKER}"
        with start_python(code, path, stdin=subprocess.PIPE) as worker:
            await asyncio.to_thread(worker.communicate, "go\n", DEADLINE_SECONDS)
        result = await queue.get_result(task_id)
    assert result is not None
    assert result.error == "OwnError: own words"


async def test_a_value_that_cannot_be_loaded_is_said(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """The error names the task and chains its cause; the task stays a success and the queue works on."""
    task_id = await queue.enqueue(give_what_fails_to_load)
    await Worker(backend).drain()
    for _ in range(2):
        with pytest.raises(SerializationError, match=rf"{task_id}.*ValueError.*not a number") as caught:
            await queue.get_result(task_id)
        assert isinstance(caught.value.__cause__, ValueError)
    assert [row["status"] for row in rows(path)] == ["success"]
    assert (await run_and_get(queue, backend, add, 1, 2)).unwrap() == 3


async def test_a_backend_reports_what_is_not_finished(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Pending and in progress are statuses of a backend, with bytes for values; ``unwrap`` refuses them."""
    task_id = await queue.enqueue(add, 1, 2)
    pending = await backend.get_result(task_id)
    (task,) = (await backend.reserve(1, lease=60, alone=True)).tasks
    in_progress = await backend.get_result(task_id)
    assert pending is not None
    assert in_progress is not None
    assert (pending.status, pending.attempt, pending.started_at, pending.finished_at) == ("pending", 0, None, None)
    assert (in_progress.status, in_progress.attempt, in_progress.finished_at) == ("in_progress", task.attempt, None)
    for unfinished in (pending, in_progress):
        with pytest.raises(RuntimeError, match=unfinished.status):
            unfinished.unwrap()
