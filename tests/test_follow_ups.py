"""Tasks that are stored with the outcome of another one, or not at all."""

import asyncio
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    BackendError,
    BackendUnavailableError,
    Backoff,
    ReservedTask,
    Retry,
    SQLiteBackend,
    TaskQueue,
    Worker,
    current_task,
    follow_up,
    task,
)
from sitq.models import Outcome
from tests.storm.fleet import fleet
from tests.support import DEADLINE_SECONDS, Runs, rows, until
from tests.test_retries import PlainBackend
from tests.worker_tasks import FAR_AHEAD_SECONDS, block_at, gate, kill_worker

AT_ONCE = Backoff(retries=8, first=0.0)


def log(runs: Runs, line: str) -> None:
    """Logs that it ran."""
    runs.add(line)


def report(task_id: str, name: str, error: str) -> list[str]:
    """Is told of a failure."""
    return [task_id, name, error]


async def chain(runs: Runs, count: int) -> str:
    """Has as many tasks follow as it is told."""
    ids = [follow_up(log, runs, f"{n}") for n in range(count)]
    return ",".join(ids)


def chain_in_a_thread(runs: Runs, count: int) -> str:
    """As above, in a plain function."""
    return ",".join(follow_up(log, runs, f"{n}") for n in range(count))


async def chain_and_raise(runs: Runs, attempt: int) -> None:
    """Has a task follow, and raises in each attempt before this one."""
    follow_up(log, runs, f"after {current_task().attempt}")
    if current_task().attempt < attempt:
        raise ValueError(current_task().attempt)


def chain_and_block(runs: Runs, name: str) -> None:
    """Has a task follow, and waits at a gate."""
    follow_up(log, runs, f"after {current_task().attempt}")
    block_at(name)


async def chain_and_die(runs: Runs) -> None:
    """Has a task follow, and in the first attempt its process dies."""
    follow_up(log, runs, f"after {current_task().attempt}")
    if current_task().attempt == 1:
        kill_worker(runs)


async def error_of(queue: TaskQueue, task_id: str) -> str | None:
    """Returns the status and the error of a task that has ended."""
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.error or result.status


@pytest.mark.parametrize("func", [chain, chain_in_a_thread])
async def test_tasks_follow_when_a_run_returns(func: Any, queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """As many as it has asked for, with the ids that it was given."""
    task_id = await queue.enqueue(func, runs, 3)
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    ids = result.unwrap().split(",")
    assert sorted(runs.lines()) == ["0", "1", "2"]
    assert [await error_of(queue, each) for each in ids] == ["success"] * 3


async def test_nothing_follows_on_a_run_that_raises(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, path: Path
) -> None:
    """Neither when it is tried again nor at its end."""
    await queue.options(retry=AT_ONCE).enqueue(chain_and_raise, runs, 4)
    await queue.enqueue(chain_and_raise, runs, 4)
    await Worker(backend).drain()
    assert runs.lines() == ["after 4"]
    assert len(rows(path)) == 3


async def test_nothing_follows_on_a_result_that_cannot_be_stored(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """The task has failed."""
    await queue.enqueue(chain_and_return_nonsense)
    await Worker(backend).drain()
    assert [row["status"] for row in rows(path)] == ["failed"]


async def chain_and_return_nonsense() -> Any:
    """Has a task follow, and returns what no pickle holds."""
    follow_up(report, "", "", "")
    return (each for each in ())


async def test_nothing_follows_on_a_run_that_dies(path: Path, runs: Runs) -> None:
    """And its second run has it follow once."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(chain_and_die, runs)
        with fleet(path, "serve", lease=0.5) as workers:

            def is_over() -> bool:
                workers.start(1 - len(workers.running()))
                return not rows(path, "SELECT 1 FROM tasks WHERE finished_at IS NULL")

            await until(is_over)
    assert runs.lines() == ["killer", "after 2"]


async def test_nothing_follows_on_a_run_that_lost_its_lease(
    queue: TaskQueue, backend: SQLiteBackend, path: Path, runs: Runs
) -> None:
    """The run of the worker that took the task over has it follow, and not the first one as well."""
    with gate() as here:
        async with Worker(backend):
            await queue.enqueue(chain_and_block, runs, "gate")
            await here.arrived()
            ahead = SQLiteBackend(path, clock=lambda: time.time() + FAR_AHEAD_SECONDS)
            second = asyncio.create_task(Worker(ahead).drain())
            await here.arrived()
            here.open()
            await second
    await Worker(ahead).drain()
    assert runs.lines() == ["after 2"]


async def test_an_outcome_that_is_recorded_twice_has_tasks_follow_once(path: Path, runs: Runs) -> None:
    """The answer to the first time was lost."""

    class Forgetful(SQLiteBackend):
        lost = 0

        async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
            done = await super().mark_success(outcomes)
            if self.lost < 2:
                self.lost += 1
                raise BackendUnavailableError("no answer")
            return done

    backend = Forgetful(path)
    async with TaskQueue(backend) as queue:
        await queue.enqueue(chain, runs, 2)
        await Worker(backend).drain()
    assert sorted(runs.lines()) == ["0", "1"]
    assert len(rows(path)) == 3


async def test_what_follows_has_its_own_options(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """It is said with the task, and what is declared with it holds, too."""
    await queue.enqueue(chain_with_options)
    await Worker(backend).drain()
    assert [(row["max_attempts"], row["status"]) for row in rows(path)][1:] == [(3, "pending"), (7, "success")]


@task(max_attempts=7)
async def declared() -> None:
    """Has options."""


async def chain_with_options() -> None:
    """Has tasks with options follow."""
    follow_up(declared.options(max_attempts=3, eta=timedelta(hours=1)))
    follow_up(declared)


LATE: list[BaseException] = []


async def chain_too_late(runs: Runs) -> None:
    """Leaves somebody behind who has a task follow after the end."""
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        await asyncio.sleep(0)
        try:
            follow_up(log, runs, "late")
        except BaseException as error:
            LATE.append(error)

    LEFT.append(asyncio.ensure_future(late()))
    asyncio.get_running_loop().call_later(0.05, over.set)


LEFT: list[Any] = []


async def test_follow_up_is_refused_outside_of_a_run_and_after_it(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """It would be stored with nothing."""
    with pytest.raises(RuntimeError, match=r"follow_up\(\) was called outside of a running sitq task"):
        follow_up(log, runs, "outside")
    LATE.clear()
    LEFT.clear()
    await queue.enqueue(chain_too_late, runs)
    await Worker(backend).drain()
    await asyncio.gather(*LEFT)
    assert [str(error) for error in LATE] == [
        "follow_up() was called after the run of its task was over: call it before the task returns"
    ]


async def chain_badly(kind: str) -> str:
    """Is refused what it asks for, and says how."""
    try:
        if kind == "arguments":
            follow_up(report, "one")  # type: ignore[call-arg]
        elif kind == "function":
            follow_up(7)  # type: ignore[arg-type]
        elif kind == "argument":
            follow_up(report, threading.Lock(), "", "")  # type: ignore[arg-type]
        else:
            follow_up(report, "x" * 5000, "", "")
    except Exception as error:
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("arguments", "TypeError"),
        ("function", "TypeError"),
        ("argument", "SerializationError"),
        ("size", "ValueError"),
    ],
)
async def test_nonsense_is_refused_where_it_is_said(kind: str, error: str, path: Path) -> None:
    """In the task, and not when its outcome is recorded."""
    backend = SQLiteBackend(path, max_payload_bytes=3000)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(chain_badly, kind)
        await Worker(backend).drain()
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == error
    assert len(rows(path)) == 1


async def test_a_backend_that_cannot_store_it_refuses_it(path: Path, runs: Runs) -> None:
    """In the task, which fails if it does not mind that."""
    backend = PlainBackend(path)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(chain, runs, 1)
        await Worker(backend).drain()
        assert "PlainBackend cannot do what an option of this task needs (then" in str(await error_of(queue, task_id))


async def fail(error: BaseException) -> None:
    """Raises."""
    raise error


def reports(path: Path) -> int:
    """Returns how many tasks were stored for a failure."""
    return len(rows(path, "SELECT 1 FROM tasks WHERE name LIKE '%:report'"))


async def test_a_failure_for_good_stores_the_task_that_is_named_for_it(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Once, after the last retry; it is told the id, the name and the error."""
    task_id = await queue.options(retry=Backoff(retries=2, first=0), on_failure=report).enqueue(fail, KeyError("k"))
    await Worker(backend).drain()
    assert reports(path) == 1
    reported = await queue.get_result(rows(path)[-1]["task_id"], timeout=0)
    assert reported is not None
    assert reported.unwrap() == [task_id, f"{__name__}:fail", "KeyError: 'k'"]


async def test_it_is_told_what_is_shown_of_the_failure(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """Not the order of a task that had no retry left."""
    await queue.options(retry=Backoff(retries=0), on_failure=report).enqueue(fail, Retry(5))
    await Worker(backend).drain()
    reported = await queue.get_result(rows(path)[-1]["task_id"], timeout=0)
    assert reported is not None
    assert reported.unwrap()[2] == rows(path)[0]["error"] == "Retry: the task asked to be tried again, after 0 retries"


@task(on_failure=f"{__name__}:report")
async def declared_to_fail() -> Any:
    """Returns what cannot be stored."""
    return (each for each in ())


async def test_a_result_that_cannot_be_stored_is_a_failure_for_good(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """What is to follow on it may be declared, and be named by an import path."""
    await queue.enqueue(declared_to_fail)
    await Worker(backend).drain()
    assert reports(path) == 1


async def test_a_success_has_nothing_follow_on_failure(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """Nothing has failed."""
    await queue.options(on_failure=report).enqueue(asyncio.sleep, 0)
    await Worker(backend).drain()
    assert len(rows(path)) == 1


@task
def takes_nothing() -> None:
    """Cannot be called with what it would be told; a declared function is looked at when it is stored."""


async def test_what_cannot_follow_on_a_failure_does_not_keep_the_failure(
    queue: TaskQueue, backend: SQLiteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""
    task_id = await queue.options(on_failure=takes_nothing).enqueue(fail, KeyError("k"))
    await Worker(backend).drain()
    assert await error_of(queue, task_id) == "KeyError: 'k'"
    assert f"what is to follow on the failure of task {task_id}" in caplog.text


class Refusing(SQLiteBackend):
    """Refuses every call with an outcome that has another task follow."""

    error: Exception
    calls = 0

    def _refuse(self, outcomes: Sequence[Outcome]) -> None:
        self.calls += 1
        if any(outcome.then for outcome in outcomes):
            raise self.error

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records, or refuses the whole call."""
        self._refuse(outcomes)
        return await super().mark_success(outcomes)

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records, or refuses the whole call."""
        self._refuse(outcomes)
        return await super().mark_failure(outcomes)


@pytest.mark.parametrize("error", [ValueError("too large"), BackendError("no such extra")])
async def test_an_outcome_that_is_refused_keeps_no_other_one(
    error: Exception, path: Path, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """Its neighbours are recorded one by one, and it is recorded as a failure that says why."""
    backend = Refusing(path)
    backend.error = error
    async with TaskQueue(backend) as queue:
        others = await queue.enqueue_many([partial(log, runs, "other")] * 9)
        bad = await queue.enqueue(chain, runs, 1)
        worse = await queue.options(on_failure=report).enqueue(fail, KeyError("k"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await Worker(backend).drain()
        assert [await error_of(queue, each) for each in others] == ["success"] * 9
        assert f"{type(error).__name__}: the outcome was refused: {error}" in str(await error_of(queue, bad))
        assert f"the outcome was refused: {error}" in str(await error_of(queue, worse))
    assert "is refused by its backend" in caplog.text


async def test_a_neighbour_of_what_cannot_be_recorded_is_not_kept(path: Path, runs: Runs) -> None:
    """What is refused for a reason that nobody knows is tried again by itself."""
    backend = Refusing(path)
    backend.error = RuntimeError("who knows")
    async with TaskQueue(backend) as queue:
        bad = await queue.enqueue(chain, runs, 1)
        other = await queue.enqueue(log, runs, "other")
        async with Worker(backend):
            assert await queue.get_result(other, timeout=DEADLINE_SECONDS) is not None
            assert await queue.get_result(bad, timeout=0) is None
            backend._refuse = lambda outcomes: None  # type: ignore[method-assign]
            assert await error_of_soon(queue, bad) == "success"


async def error_of_soon(queue: TaskQueue, task_id: str) -> str | None:
    """Waits for the end of a task and returns its error, or else its status."""
    await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    return await error_of(queue, task_id)


async def test_a_store_that_is_busy_gets_them_together_again(path: Path, runs: Runs) -> None:
    """It has refused nothing."""
    backend = Refusing(path)
    backend.error = BackendUnavailableError("busy")
    async with TaskQueue(backend) as queue:
        bad = await queue.enqueue(chain, runs, 1)
        async with Worker(backend):
            await until(lambda: backend.calls > 2)
            assert await queue.get_result(bad, timeout=0) is None
            backend._refuse = lambda outcomes: None  # type: ignore[method-assign]
            assert await queue.get_result(bad, timeout=DEADLINE_SECONDS) is not None
