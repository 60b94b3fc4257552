"""Tasks that raise and are tried again: policies, what a task asks for itself, and what a raise does not cost."""

import asyncio
import contextlib
import logging
import random
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import Backoff, GiveUp, Retry, SQLiteBackend, TaskQueue, Worker, current_task, per_exception, task
from sitq.extensions import Event, Failed, FailedRun, Retries
from sitq.models import EPOCH, ReservedTask
from sitq.testing import ManualClock
from tests.support import DEADLINE_SECONDS, Runs, rows, until
from tests.worker_tasks import block_at, gate, kill_worker, wait_at

AT_ONCE = Backoff(retries=8, first=0.0)


@pytest.fixture
def clock() -> ManualClock:
    """The time of the file, moved by hand."""
    return ManualClock()


@pytest.fixture
def backend(path: Path, clock: ManualClock) -> SQLiteBackend:
    """A backend with a moved clock."""
    return SQLiteBackend(path, clock=clock)


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


async def raise_until(runs: Runs, attempt: int) -> int:
    """Raises in each attempt before this one."""
    runs.add(current_task().attempt)
    if current_task().attempt < attempt:
        raise ValueError(f"secret {current_task().attempt}")
    return attempt


def raise_in_a_thread(runs: Runs, attempt: int) -> int:
    """As the other one, in a plain function."""
    runs.add(current_task().attempt)
    if current_task().attempt < attempt:
        raise ValueError(f"secret {current_task().attempt}")
    return attempt


async def raise_this(error: BaseException, cause: Exception | None = None) -> None:
    """Raises it."""
    if cause is None:
        raise error
    try:
        raise cause
    except Exception as raised:
        raise error from raised


@task(retry=AT_ONCE)
async def declared(runs: Runs) -> str:
    """Succeeds in the second attempt."""
    await raise_until(runs, 2)
    return "done"


async def together(name: str, runs: Runs, raises: int) -> None:
    """Meets others of its kind at a gate, then raises in each of its first attempts."""
    attempt = current_task().attempt
    await wait_at(f"{name}-{attempt}")
    runs.add(attempt)
    if attempt <= raises:
        raise ValueError(attempt)


async def raise_slowly(runs: Runs, attempt: int) -> None:
    """Says when it comes and when it goes, and gives others many a chance to come between; then raises."""
    runs.add("in")
    for _ in range(20):
        await asyncio.sleep(0)
    runs.add("out")
    if current_task().attempt < attempt:
        raise ValueError(current_task().attempt)


def failed(error: BaseException, failures: int = 1) -> Failed:
    """What a policy is asked about."""
    return Failed(error, failures, ReservedTask(1, 1, "id", b"", "name", "", failures, 5, EPOCH))


async def failure_of(queue: TaskQueue, task_id: str) -> str | None:
    """Returns the status and the error of a task, if it has ended."""
    result = await queue.get_result(task_id, timeout=0)
    return result and f"{result.status}: {result.error}"


@pytest.mark.parametrize("func", [raise_until, raise_in_a_thread])
async def test_a_task_that_raises_is_tried_again_until_it_succeeds(
    func: Any, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Its runs go on being numbered."""
    task_id = await queue.options(retry=AT_ONCE).enqueue(func, runs, 4)
    assert await Worker(backend).drain() == 4
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.unwrap(), result.attempt, runs.lines()) == (4, 4, ["1", "2", "3", "4"])


async def test_a_task_that_raises_fails_at_once_unless_told_otherwise(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """Nobody has asked for another attempt."""
    task_id = await queue.enqueue(raise_until, runs, 2)
    await Worker(backend).drain()
    assert (await failure_of(queue, task_id), runs.lines()) == ("failed: ValueError: secret 1", ["1"])


async def test_what_is_declared_is_read_where_the_task_runs(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """And an option of the queue wins over it."""
    as_declared = await queue.enqueue(declared, runs)
    otherwise = await queue.options(retry=Backoff(retries=0)).enqueue(declared, runs)
    await Worker(backend).drain()
    assert (await failure_of(queue, as_declared)) == "success: None"
    assert (await failure_of(queue, otherwise)) == "failed: ValueError: secret 1"


async def test_the_latest_failure_is_seen_while_a_task_waits(
    queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock, runs: Runs
) -> None:
    """Error and traceback; when it has succeeded, they are gone."""
    task_id = await queue.options(retry=Backoff(first=60, jitter=0)).enqueue(raise_until, runs, 3)
    for attempt in (1, 2):
        await Worker(backend).drain()
        waiting = await backend.get_result(task_id)
        assert waiting is not None
        assert (waiting.status, waiting.error) == ("pending", f"ValueError: secret {attempt}")
        assert "raise_until" in (waiting.traceback or "")
        assert await queue.get_result(task_id, timeout=0) is None
        clock.advance(timedelta(hours=1))
    await Worker(backend).drain()
    ended = await queue.get_result(task_id, timeout=0)
    assert ended is not None
    assert (ended.unwrap(), ended.error, ended.traceback) == (3, None, None)


async def test_a_task_is_tried_again_no_earlier_than_its_delay(
    queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock, runs: Runs
) -> None:
    """The pause doubles with each failure."""
    await queue.options(retry=Backoff(first=1000, jitter=0)).enqueue(raise_until, runs, 5)
    worker = Worker(backend)
    await worker.drain()
    for pause in (1000, 2000, 3600):
        before = len(runs.lines())
        clock.advance(pause - 100)
        await worker.drain()
        assert len(runs.lines()) == before
        clock.advance(100)
        await worker.drain()
        assert len(runs.lines()) == before + 1


@pytest.mark.parametrize("max_attempts", [5, 2])
async def test_a_raise_does_not_bring_the_last_attempt_nearer(
    max_attempts: int, queue: TaskQueue, backend: SQLiteBackend, runs: Runs, path: Path
) -> None:
    """Ten run at a time through eight raises."""
    options = queue.options(retry=AT_ONCE, max_attempts=max_attempts)
    await options.enqueue_many([partial(together, "all", runs, 8)] * 10)
    with contextlib.ExitStack() as stack:
        gates = [stack.enter_context(gate(f"all-{attempt}")) for attempt in range(1, 10)]
        drain = asyncio.create_task(Worker(backend, max_concurrency=10).drain())
        for each in gates:
            await each.arrived(10)  # all of them at once, or it would wait for ever
            each.open()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await drain
    assert {row["status"] for row in rows(path)} == {"success"}


async def test_with_one_attempt_each_retry_runs_alone_too(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, path: Path
) -> None:
    """Each of them may be the death of its worker, and there is no second one."""
    options = queue.options(retry=AT_ONCE, max_attempts=1)
    await options.enqueue_many([partial(raise_slowly, runs, 4)] * 5)
    await Worker(backend, max_concurrency=10).drain()
    assert runs.lines() == ["in", "out"] * 20
    assert {row["status"] for row in rows(path)} == {"success"}


async def test_many_tasks_that_fail_four_times_all_succeed(
    queue: TaskQueue, backend: SQLiteBackend, path: Path, runs: Runs
) -> None:
    """With no more attempts than two for the death of a worker."""
    calls = [partial(raise_until, runs, 5)] * 400
    await queue.options(retry=AT_ONCE, max_attempts=2).enqueue_many(calls)
    assert await Worker(backend, max_concurrency=32).drain() == 2000
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 5)] * 400


async def test_an_idle_worker_is_woken_for_a_retry(queue: TaskQueue, path: Path, runs: Runs) -> None:
    """It would look by itself in an hour."""
    async with Worker(SQLiteBackend(path), poll_interval=3600):
        task_id = await queue.options(retry=Backoff(first=0.2, jitter=0)).enqueue(raise_until, runs, 3)
        result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    assert result is not None
    assert result.unwrap() == 3


@pytest.mark.parametrize("func", [wait_at, block_at])
async def test_a_stop_in_mid_run_is_given_back_and_not_a_failure(
    func: Any, queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Its attempt and its retries are unspent."""
    with gate() as here:
        async with Worker(backend, shutdown_timeout=0):
            await queue.options(retry=AT_ONCE).enqueue(func, "gate")
            await here.arrived()
        assert [(row["status"], row["attempt"], row["failures"]) for row in rows(path)] == [("pending", 0, 0)]


async def test_a_policy_gives_up_after_its_retries(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """What is shown is the latest failure."""
    task_id = await queue.options(retry=Backoff(retries=2, first=0)).enqueue(raise_until, runs, 9)
    await Worker(backend).drain()
    assert (await failure_of(queue, task_id), len(runs.lines())) == ("failed: ValueError: secret 3", 3)


async def test_each_kind_of_exception_may_have_its_own_policy(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """The first that fits is asked; what none fits is given up."""
    policy = per_exception({FileNotFoundError: Backoff(retries=0), OSError: Backoff(retries=3, first=0)})
    for error in (FileNotFoundError("a"), PermissionError("b"), KeyError("c")):
        await queue.options(retry=policy).enqueue(raise_this, error)
    await Worker(backend).drain()
    assert [row["attempt"] for row in rows(path)] == [1, 4, 1]
    policy = per_exception({OSError: None}, Backoff(retries=1, first=0))
    await queue.options(retry=policy).enqueue(raise_this, KeyError("d"))
    await Worker(backend).drain()
    assert rows(path)[-1]["attempt"] == 2


def twice_in_no_time(failed: Failed) -> timedelta | None:
    """A policy of somebody's own."""
    return timedelta(0) if failed.failures <= 2 and isinstance(failed.error, ValueError) else None


async def test_a_function_of_ones_own_may_decide(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """It is told what was raised, and how often."""
    await queue.options(retry=twice_in_no_time).enqueue(raise_until, runs, 9)
    await Worker(backend).drain()
    assert len(runs.lines()) == 3


def odd(answer: Any, failed: Failed) -> Any:
    """A policy that returns nonsense, or raises it."""
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize("answer", ["soon", -1, float("nan"), float("inf"), True, 1e300, ZeroDivisionError("oops")])
async def test_a_policy_that_returns_nonsense_or_raises_gives_up(
    answer: Any, queue: TaskQueue, backend: SQLiteBackend, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is logged; the task fails with its own error."""
    task_id = await queue.options(retry=partial(odd, answer)).enqueue(raise_until, runs, 9)
    await Worker(backend).drain()
    assert await failure_of(queue, task_id) == "failed: ValueError: secret 1"
    assert [line.levelname for line in caplog.records if "the retry policy of task" in line.message] == ["ERROR"]


async def policy_coroutine(failed: Failed) -> float:
    """No policy: nobody would await it."""
    return 1.0


def test_a_coroutine_function_is_no_policy() -> None:
    """It is refused when it is declared, and not at the first failure."""
    with pytest.raises(TypeError, match="nobody would await"):
        task(retry=policy_coroutine)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="the class Backoff"):
        Retries(unloadable=Backoff)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [0, 0.0, timedelta(0)])
async def test_a_task_may_ask_to_be_tried_again(
    delay: Any, queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Within the retries of its policy, which is not asked for the delay."""
    policy = Backoff(retries=2, first=3600)
    asked = await queue.options(retry=policy).enqueue(raise_this, Retry(delay))
    await Worker(backend).drain()
    assert await failure_of(queue, asked) == "failed: Retry: the task asked to be tried again, after 2 retries"
    assert rows(path)[0]["attempt"] == 3


async def test_the_delay_that_a_task_asks_for_is_kept(
    queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock
) -> None:
    """And its cause is what is shown meanwhile."""
    task_id = await queue.enqueue(raise_this, Retry(timedelta(hours=1)), KeyError("later"))
    await Worker(backend).drain()
    waiting = await backend.get_result(task_id)
    assert waiting is not None
    assert (waiting.status, waiting.error) == ("pending", "KeyError: 'later'")
    clock.advance(3590)
    assert await Worker(backend).drain() == 0
    clock.advance(20)
    assert await Worker(backend).drain() == 1


async def ask_until(runs: Runs, attempt: int, counts: bool) -> int:
    """Asks to be tried again until this attempt."""
    runs.add(current_task().attempt)
    if current_task().attempt < attempt:
        raise Retry(0, counts=counts)
    return attempt


@pytest.mark.parametrize(("options", "counts"), [({}, True), ({"retry": Backoff(retries=0)}, False)])
async def test_without_a_number_of_retries_a_task_may_ask_for_ever(
    options: Any, counts: bool, queue: TaskQueue, backend: SQLiteBackend, path: Path, runs: Runs
) -> None:
    """It has no policy, or it says that this was no failure."""
    task_id = await queue.options(**options).enqueue(ask_until, runs, 30, counts)
    await Worker(backend).drain()
    assert await failure_of(queue, task_id) == "success: None"
    assert rows(path)[0]["failures"] == (29 if counts else 0)


async def test_give_up_wins_over_the_policy(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Its text is the error, and its cause is in the traceback."""
    task_id = await queue.options(retry=AT_ONCE).enqueue(raise_this, GiveUp("no such user"), KeyError("u"))
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.error, result.attempt) == ("GiveUp: no such user", 1)
    assert "KeyError: 'u'" in (result.traceback or "")


def unserializable() -> Any:
    """Returns what no pickle holds."""
    return (each for each in ())


def large() -> bytes:
    """Returns more than the store allows."""
    return bytes(2000)


@pytest.mark.parametrize(
    ("func", "error"),
    [
        (partial(raise_this, SystemExit(1)), "SystemExit"),
        (partial(raise_this, KeyboardInterrupt()), "KeyboardInterrupt"),
        (partial(raise_this, asyncio.CancelledError()), "CancelledError"),
        (unserializable, "TypeError"),
        (large, "ValueError"),
    ],
)
async def test_some_ends_are_not_tried_again_whatever_the_policy(func: Any, error: str, path: Path) -> None:
    """What is no error of the task's, and a result that cannot be stored: the task has run."""
    backend = SQLiteBackend(path, max_payload_bytes=1500)
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(retry=AT_ONCE).enqueue(func)
        await Worker(backend).drain()
        assert f"failed: {error}: " in f"{await failure_of(queue, task_id)}: "


async def test_a_retry_that_would_come_too_late_is_a_failure(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A task that expires is not kept for an attempt that would not be started."""
    options = queue.options(retry=Backoff(first=100, jitter=0), expires=timedelta(seconds=60))
    by_policy = await options.enqueue(raise_this, KeyError("a"))
    by_itself = await options.enqueue(raise_this, Retry(100))
    await Worker(backend).drain()
    assert await failure_of(queue, by_policy) == "failed: KeyError: 'a'"
    assert await failure_of(queue, by_itself) == "failed: Retry: the task asked to be tried again after it expires"


def test_the_time_that_a_run_took_counts_for_its_expiry() -> None:
    """A run of ten minutes cannot be tried again within five."""
    reserved = ReservedTask(1, 1, "id", b"", "name", "", 1, 5, EPOCH, 0, EPOCH)
    run = type("Run", (), {"options": {"retry": Backoff(), "expires": timedelta(minutes=5)}})()
    for seconds, is_late in ((1.0, False), (600.0, True)):
        failure = FailedRun(reserved, run, ValueError(), "raised", "ValueError: ", seconds)
        Retries().after_failure(failure)
        assert (failure.retry_in is None) == is_late


class Unloadable:
    """Cannot be loaded until there is a file."""

    def __init__(self, there: Path) -> None:
        self.there = there

    def __reduce__(self) -> Any:
        return _loaded, (self.there,)


def _loaded(there: Path) -> str:
    if not there.exists():
        raise RuntimeError("not deployed yet")
    return "loaded"


async def echo(value: str) -> str:
    """Returns it."""
    return value


async def test_a_worker_may_try_again_what_it_cannot_load(
    queue: TaskQueue, backend: SQLiteBackend, clock: ManualClock, tmp_path: Path
) -> None:
    """By a policy of its own: the task's is in the payload. Others fail it at once."""
    at_once = await queue.options(retry=AT_ONCE).enqueue(echo, Unloadable(tmp_path / "there"))
    await Worker(backend).drain()
    assert "payload cannot be loaded" in str(await failure_of(queue, at_once))
    later = await queue.enqueue(echo, Unloadable(tmp_path / "there"))
    worker = Worker(backend, extensions=[Retries(unloadable=Backoff(retries=5, first=10))])
    await worker.drain()
    assert await failure_of(queue, later) is None
    (tmp_path / "there").touch()
    clock.advance(10)
    await worker.drain()
    assert await failure_of(queue, later) == "success: None"


async def test_a_worker_in_the_wrong_place_gives_back_before_it_asks_a_policy(
    queue: TaskQueue, backend: SQLiteBackend, path: Path
) -> None:
    """Nothing can be loaded there, and one task is tried for each pause."""
    for _ in range(20):
        await queue.enqueue("no_such_module:func")
    worker = Worker(backend, extensions=[Retries(unloadable=Backoff(first=3600))])
    with pytest.raises(Exception, match="nothing that this worker tried could be loaded"):
        await worker.drain()
    statuses = [(row["status"], row["attempt"]) for row in rows(path)]
    assert statuses.count(("pending", 1)) == 5
    assert statuses.count(("pending", 0)) == 15


def test_delays_stay_between_the_bounds_of_the_jitter() -> None:
    """They grow up to the most, and the random part is never more than it may be."""
    for jitter in (0.0, 0.5, 1.0):
        policy = Backoff(retries=10_000, first=1, factor=2, most=100, jitter=jitter)
        for failures in (1, 2, 5, 7, 100, 10_000):
            longest = min(100.0, 2.0 ** min(failures - 1, 10))
            for _ in range(50):
                delay = policy(failed(ValueError(), failures))
                assert delay is not None
                assert longest * (1 - jitter) <= delay <= longest
    assert Backoff(retries=10_000, first=0)(failed(ValueError(), 9_999)) == 0


def test_a_thousand_failures_of_one_moment_come_back_spread() -> None:
    """Whatever a host does with the global generator."""
    delays = []
    for _ in range(1000):
        random.seed(1)
        delays.append(Backoff(first=60)(failed(ValueError())))
    assert len(set(delays)) > 900
    assert max(delays) - min(delays) > 25  # type: ignore[type-var,operator]


async def test_what_is_retried_is_told_without_its_text(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """As a line at info, and as an event that has the exception."""
    caplog.set_level(logging.INFO, "sitq.worker")
    listening = Listening()
    await queue.options(retry=AT_ONCE).enqueue(raise_until, runs, 2)
    await Worker(backend, extensions=[listening]).drain()
    assert listening.kinds() == ["started", "retried", "started", "succeeded"]
    retried = listening.events[1]
    assert (retried.reason, str(retried.error)) == ("ValueError", "secret 1")
    lines = [line.message for line in caplog.records if line.levelno >= logging.INFO]
    assert any("raised ValueError in attempt 1 and is tried again" in line for line in lines)
    assert "secret" not in caplog.text


async def test_an_extension_that_decides_nonsense_decides_nothing(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """The task fails, its neighbours are recorded, and it is logged."""

    class Nonsense:
        def after_failure(self, failure: FailedRun) -> None:
            failure.retry_in = "soon"  # type: ignore[assignment]

    task_id = await queue.enqueue(raise_until, runs, 2)
    await Worker(backend, extensions=[Nonsense()]).drain()
    assert await failure_of(queue, task_id) == "failed: ValueError: secret 1"
    assert "after_failure() of Nonsense failed" in caplog.text


class PlainBackend(SQLiteBackend):
    """A store that can record nothing more than an end."""

    @property
    def endings(self) -> frozenset[Any]:
        """None."""
        return frozenset()


async def test_a_backend_that_cannot_record_a_retry_fails_the_task_and_says_so(
    path: Path, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """It was enqueued by somebody who knows nothing of what is declared."""
    async with TaskQueue(PlainBackend(path)) as queue:
        task_id = await queue.enqueue(f"{__name__}:declared", runs)
        await Worker(PlainBackend(path)).drain()
        assert await failure_of(queue, task_id) == "failed: ValueError: secret 1"
    assert "it should be tried again, which its backend cannot record" in caplog.text


async def test_a_killer_among_retried_tasks_is_buried_after_its_own_deaths(path: Path, runs: Runs) -> None:
    """Its neighbours raise, are tried again and succeed, although they have no more than two attempts."""
    from tests.storm.fleet import fleet

    backend = SQLiteBackend(path)
    async with TaskQueue(backend, max_attempts=2) as queue:
        await queue.options(retry=AT_ONCE).enqueue_many([partial(raise_until, runs, 4)] * 30)
        killer = await queue.options(retry=AT_ONCE).enqueue(kill_worker, runs)
        with fleet(path, "serve", max_concurrency=4, lease=1.0) as workers:

            def is_over() -> bool:
                workers.start(2 - len(workers.running()))
                return not rows(path, "SELECT 1 FROM tasks WHERE finished_at IS NULL")

            await until(is_over)
        buried = await queue.get_result(killer, timeout=0)
    assert buried is not None
    assert str(buried.error).startswith("WorkerDiedError")
    assert runs.count()["killer"] <= 2
    assert [row["status"] for row in rows(path)].count("success") == 30
