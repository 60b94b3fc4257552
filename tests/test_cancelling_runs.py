"""Tasks that are ended while they run: by asking, which their code may answer, and by a cut, which it cannot."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    BackendUnavailableError,
    Backoff,
    ReservedTask,
    Retry,
    SQLiteBackend,
    TaskCancelledError,
    TaskQueue,
    Worker,
    follow_up,
    running,
)
from sitq.errors import ASKED, CUT
from sitq.extensions import Cancelling, Event, Run, cancelling
from sitq.models import Result
from tests.storm.fleet import fleet
from tests.support import DEADLINE_SECONDS, Runs, rows, until
from tests.worker_tasks import _gates, block_at, gate, wait_at, wait_for_file

SOON = Cancelling(every=0.01)


class Listening:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Keeps it."""
        self.events.append(event)

    def kinds(self) -> list[str]:
        """Returns what kinds of events there were."""
        return [event.kind for event in self.events]


async def result_of(queue: TaskQueue, task_id: str) -> Result[Any]:
    """Waits for the result of a task."""
    result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert result is not None
    return result


async def return_when_cancelled(name: str) -> str:
    """Waits at a gate; if it is cancelled, it returns a value."""
    try:
        await wait_at(name)
    except asyncio.CancelledError:
        return "cleaned up"
    return "not cancelled"


async def raise_when_cancelled(name: str, error: BaseException) -> None:
    """Waits at a gate; if it is cancelled, it raises something else."""
    try:
        await wait_at(name)
    except asyncio.CancelledError:
        raise error from None


async def return_nonsense_when_cancelled(name: str) -> Any:
    """Waits at a gate; if it is cancelled, it returns what cannot be stored."""
    with contextlib.suppress(asyncio.CancelledError):
        await wait_at(name)
    return (each for each in ())


async def be_deaf(name: str, other: str) -> str:
    """Waits at a gate; if it is cancelled, it waits at another one."""
    with contextlib.suppress(asyncio.CancelledError):
        await wait_at(name)
    await wait_at(other)
    return "done"


async def in_a_group(name: str) -> None:
    """Waits for others in a group, under a limit of its own."""
    async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
        group.create_task(wait_at(name))
        group.create_task(asyncio.Event().wait())


def check_at(name: str, runs: Runs | None = None) -> str:
    """Says that it is at a gate, and asks again and again whether it may go on."""
    here = _gates[name]
    here._loop.call_soon_threadsafe(here._arrivals.release)
    try:
        while not here._opened_for_threads.is_set():
            running.check()
            time.sleep(0.001)  # work of some length
    finally:
        if runs is not None:
            runs.add("ended")
    return "not asked"


def return_an_awaitable(name: str) -> Awaitable[Any]:
    """Blocks at a gate, and returns what has to be awaited."""
    block_at(name)
    return asyncio.Event().wait()


@contextlib.asynccontextmanager
async def asked(
    queue: TaskQueue, backend: SQLiteBackend, func: Any, *args: Any, extensions: Sequence[Any] = (), **options: Any
) -> AsyncIterator[str]:
    """A task that waits at a gate, and that was asked to end."""
    with gate() as here:
        async with Worker(backend, max_concurrency=2, extensions=[SOON, *extensions]):
            task_id = await queue.options(**options).enqueue(func, "gate", *args)
            await here.arrived()
            assert await queue.cancel([task_id], running="ask") == [task_id]
            yield task_id


@pytest.mark.parametrize("func", [wait_at, in_a_group, check_at])
async def test_a_run_that_is_asked_to_end_is_cancelled(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A coroutine wherever it waits, and a plain function when it asks."""
    async with asked(queue, backend, func) as task_id:
        result = await result_of(queue, task_id)
    assert (result.status, result.error) == ("cancelled", ASKED)
    with pytest.raises(TaskCancelledError, match="because somebody asked for it"):
        result.unwrap()


async def test_a_task_that_was_asked_to_end_and_returned_is_a_success(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The work is done."""
    async with asked(queue, backend, return_when_cancelled) as task_id:
        assert (await result_of(queue, task_id)).unwrap() == "cleaned up"


@pytest.mark.parametrize("error", [KeyError("own"), Retry(0), SystemExit(3), TimeoutError(), asyncio.CancelledError()])
async def test_a_task_that_was_asked_to_end_and_raised_is_cancelled_and_not_retried(
    error: BaseException, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Whatever it raises, and whatever its policy says."""
    policy = Backoff(first=0)
    async with asked(queue, backend, raise_when_cancelled, error, retry=policy, timeout=3600) as task_id:
        result = await result_of(queue, task_id)
    assert (result.status, result.error, result.attempt) == ("cancelled", ASKED, 1)
    assert (result.traceback is not None) == isinstance(error, Exception)


async def test_a_result_that_cannot_be_stored_is_a_failure_although_it_was_asked_to_end(
    queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The task has run to its end."""
    async with asked(queue, backend, return_nonsense_when_cancelled) as task_id:
        assert (await result_of(queue, task_id)).status == "failed"


async def test_a_thread_that_never_looks_goes_on(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its slot, is named once, and what it returns is its result."""
    monkeypatch.setattr(cancelling, "DEAF_SECONDS", 0.0)
    with gate("other") as other:
        async with asked(queue, backend, block_at, "done") as task_id:
            await until(lambda: any("goes on" in line for line in caplog.messages))
            second = await queue.enqueue(wait_at, "other")
            await other.arrived()
            third = await queue.enqueue(wait_at, "other", 3)
            assert other.arrivals() == 0
            _gates["gate"].open()
            assert (await result_of(queue, task_id)).unwrap() == "done"
            await other.arrived()
            other.open()
            assert (await result_of(queue, third)).unwrap() == 3
            await result_of(queue, second)
    warned = [line for line in caplog.messages if "goes on" in line]
    assert [task_id in line for line in warned] == [True]


async def test_a_coroutine_that_does_not_end_is_named_once(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cancelled once, and not again and again."""
    monkeypatch.setattr(cancelling, "DEAF_SECONDS", 0.0)
    with gate("other") as other:
        async with asked(queue, backend, be_deaf, "other") as task_id:
            await other.arrived()
            await until(lambda: any("goes on" in line for line in caplog.messages))
            await queue.cancel([task_id], running="ask")
            other.open()
            assert (await result_of(queue, task_id)).unwrap() == "done"
    assert len([line for line in caplog.messages if "goes on" in line]) == 1


async def test_what_a_plain_function_returned_to_be_awaited_is_ended(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Not before it is awaited: until then its thread is under way."""
    seen: list[Run] = []

    class Seeing:
        @contextlib.asynccontextmanager
        async def around(self, run: Run) -> AsyncIterator[None]:
            seen.append(run)
            yield

    async with asked(queue, backend, return_an_awaitable, extensions=[Seeing()]) as task_id:
        await until(lambda: seen[0].asked)
        _gates["gate"].open()
        result = await result_of(queue, task_id)
    assert (result.status, result.error) == ("cancelled", ASKED)


async def test_what_is_around_a_run_sees_its_cancellation(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """And is left in order."""
    seen: list[str] = []

    class Around:
        @contextlib.asynccontextmanager
        async def around(self, run: Run) -> AsyncIterator[None]:
            try:
                yield
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

    async with asked(queue, backend, wait_at, extensions=[Around()]) as task_id:
        assert (await result_of(queue, task_id)).status == "cancelled"
    assert seen == ["CancelledError"]


async def test_who_listens_is_told_why_a_task_is_cancelled(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says it without any text of the task's."""
    caplog.set_level(logging.INFO, "sitq.worker")
    listening = Listening()
    async with asked(queue, backend, raise_when_cancelled, KeyError("secret"), extensions=[listening]) as task_id:
        await result_of(queue, task_id)
    assert listening.kinds() == ["started", "cancelled"]
    assert listening.events[1].reason == ASKED
    assert f"is cancelled: {ASKED}" in caplog.text
    assert "secret" not in caplog.text


async def test_what_was_to_follow_on_success_does_not_follow_on_a_cancellation(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Nor what was to follow on a failure."""
    async with asked(queue, backend, follow_and_wait, on_failure=report) as task_id:
        assert (await result_of(queue, task_id)).status == "cancelled"
    assert len(rows(path)) == 1


async def follow_and_wait(name: str) -> None:
    """Has a task follow, then waits at a gate."""
    follow_up(report, "", "", "")
    await wait_at(name)


def report(task_id: str, name: str, error: str) -> None:
    """Would tell of a failure."""


@pytest.mark.parametrize("func", [wait_at, block_at])
async def test_stop_and_cancel_together(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The worker gives the task back, and because it was asked to end, that is its end."""
    with gate() as here:
        async with Worker(backend, shutdown_timeout=0, extensions=[Cancelling(every=3600)]):
            task_id = await queue.enqueue(func, "gate")
            await here.arrived()
            await queue.cancel([task_id], running="ask")
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.error) == ("cancelled", ASKED)


async def test_a_task_of_another_process_is_ended(queue: TaskQueue, path: Path, runs: Runs) -> None:
    """Within a second or so, asked or cut."""
    with fleet(path, "serve", lease=0.5) as workers:
        workers.start()
        ids = [await queue.enqueue(wait_for_file, path.with_name(f"never-{n}"), runs) for n in range(2)]
        await until(lambda: len(runs.lines()) == 2)
        await queue.cancel(ids[:1], running="ask")
        await queue.cancel(ids[1:], running="cut")
        errors = [(await result_of(queue, task_id)).error for task_id in ids]
    assert errors == [ASKED, CUT]


@pytest.mark.parametrize("func", [wait_at, check_at])
async def test_a_cut_ends_a_task_at_once_and_its_code_soon_after(
    func: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Everybody sees it as cancelled before its code knows; what that does then changes nothing."""
    over = asyncio.Event()
    seen: list[str] = []

    class Around:
        @contextlib.asynccontextmanager
        async def around(self, run: Run) -> AsyncIterator[None]:
            try:
                yield
            except BaseException as error:
                seen.append(f"{type(error).__name__}: {run.asked}")
                raise
            finally:
                over.set()

    with gate() as here:
        async with Worker(backend, lease=0.5, extensions=[SOON, Around()]):
            task_id = await queue.enqueue(func, "gate")
            await here.arrived()
            await queue.cancel([task_id], running="cut")
            result = await queue.get_result(task_id, timeout=0)
            assert result is not None
            assert (result.status, result.error) == ("cancelled", CUT)
            async with asyncio.timeout(DEADLINE_SECONDS):
                await over.wait()
        assert seen == [f"CancelledError: {CUT}"]
        assert await queue.get_result(task_id, timeout=0) == result


async def test_the_late_outcome_of_a_cut_task_changes_nothing(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Not even what was to follow."""
    with gate() as here:
        async with Worker(backend, extensions=[Cancelling(every=3600)]):
            task_id = await queue.enqueue(follow_and_block, "gate")
            await here.arrived()
            await queue.cancel([task_id], running="cut")
            here.open()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.error) == ("cancelled", CUT)
    assert len(rows(path)) == 1


def follow_and_block(name: str) -> str:
    """Has a task follow, waits at a gate, and succeeds."""
    follow_up(report, "", "", "")
    block_at(name)
    return "too late"


async def test_a_run_that_only_lost_its_lease_is_not_ended(path: Path, queue: TaskQueue) -> None:
    """Another worker may run the task; the code of this one goes on, as ever."""
    looked = asyncio.Event()

    class Looked(SQLiteBackend):
        async def get_result(self, task_id: str) -> Any:
            found = await super().get_result(task_id)
            looked.set()
            return found

        async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
            return tasks

    with gate() as here:
        async with Worker(Looked(path), lease=0.5, extensions=[SOON]):
            task_id = await queue.enqueue(wait_at, "gate", "done")
            await here.arrived()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await looked.wait()
            here.open()
            assert (await result_of(queue, task_id)).unwrap() == "done"


class Sick(SQLiteBackend):
    """Cannot tell who was asked, at first."""

    errors: list[Exception]

    async def asked(self) -> Any:
        """Raises what there is to raise."""
        if self.errors:
            raise self.errors.pop()
        return await super().asked()


async def test_a_look_that_fails_is_made_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And harms nothing."""
    backend = Sick(path)
    backend.errors = [BackendUnavailableError("busy"), RuntimeError("broken")]
    async with TaskQueue(backend) as queue, asked(queue, backend, wait_at) as task_id:
        assert (await result_of(queue, task_id)).status == "cancelled"
    assert [line for line in caplog.messages if "failed, trying again" in line] == [
        "looking for tasks that are to be ended failed, trying again: broken",
        "looking for tasks that are to be ended failed, trying again: busy",
    ]


async def test_a_worker_that_runs_nothing_looks_for_nobody(path: Path) -> None:
    """Not even once."""
    backend = Sick(path)
    backend.errors = [RuntimeError("nobody should have asked")]
    async with Worker(backend, extensions=[Cancelling(every=0.001)]):
        for _ in range(20):
            await asyncio.sleep(0.001)  # several looks
    assert backend.errors


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), ("1", TypeError), (float("nan"), ValueError)])
def test_nonsense_is_refused(every: Any, error: type[Exception]) -> None:
    """When the extension is made."""
    with pytest.raises(error, match="every"):
        Cancelling(every=every)
