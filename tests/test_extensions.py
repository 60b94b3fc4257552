"""What is put around and beside the runs of a worker, and who is told of them."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from sitq import Backend, ReservedTask, SQLiteBackend, TaskQueue, Worker, current_task
from sitq.executors import Pool
from sitq.extensions import Event, Run
from sitq.extensions.base import Runs
from sitq.models import EPOCH
from sitq.serializers.calls import Call
from sitq.worker.extending import around_of
from sitq.worker.standard import with_standard
from tests.support import DEADLINE_SECONDS, until
from tests.worker_tasks import gate, wait_at

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


async def add(a: int, b: int = 0) -> int:
    """Adds."""
    return a + b


def tenant() -> str:
    """Whose task this is."""
    return TENANT.get()


async def tenant_on_the_loop() -> str:
    """Whose task this is."""
    return TENANT.get()


async def fail(message: str) -> None:
    """Raises."""
    raise ValueError(message)


def stop_iteration() -> None:
    """Raises what cannot come out of a coroutine."""
    raise StopIteration("over")


class Steps:
    """Writes down what it sees, around each run."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name = name
        self.steps = steps

    @contextlib.asynccontextmanager
    async def around(self, run: Run) -> AsyncIterator[None]:
        """Writes down the entry, and how it was left."""
        self.steps.append(f"{self.name} enters {run.task.name.partition(':')[2]}")
        try:
            yield
        except BaseException as error:
            self.steps.append(f"{self.name} sees {type(error).__name__}")
            raise
        self.steps.append(f"{self.name} leaves")


class Around:
    """Has an ``around`` of a test's own."""

    def __init__(self, around: Any) -> None:
        self.around = contextlib.asynccontextmanager(around)


class Listening:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Keeps it."""
        self.events.append(event)


async def outcome(queue: TaskQueue, worker: Worker, func: Any, *args: Any) -> tuple[str, Any, str | None]:
    """Runs one task and returns its status, its value and its error."""
    task_id = await queue.enqueue(func, *args)
    await worker.drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.status, result.value, result.error


@pytest.mark.parametrize(
    ("func", "last"), [(partial(add, 1), "leaves"), (tenant, "leaves"), (partial(fail, "no"), "sees ValueError")]
)
async def test_extensions_stand_around_a_run_the_first_outermost(
    func: Any, last: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """On the loop and in a thread, for success and failure; they are left in reverse."""
    steps: list[str] = []
    worker = Worker(backend, extensions=[Steps("outer", steps), Steps("inner", steps)])
    await outcome(queue, worker, func)
    entered = [f"{name} enters {getattr(func, 'func', func).__name__}" for name in ("outer", "inner")]
    assert steps == [*entered, f"inner {last}", f"outer {last}"]


@pytest.mark.parametrize("func", [tenant, tenant_on_the_loop])
async def test_a_variable_that_is_set_around_a_run_reaches_it_and_not_the_next(
    func: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """In its thread, too."""

    async def around(run: Run) -> AsyncIterator[None]:
        if run.task.attempt == 1 and "first" in current_task().context:
            TENANT.set("acme")
        yield

    worker = Worker(backend, max_concurrency=1, extensions=[Around(around)])
    first = await queue.enqueue(func, context={"first": True})
    second = await queue.enqueue(func)
    await worker.drain()
    values = [(await queue.get_result(task_id, 0)).unwrap() for task_id in (first, second)]  # type: ignore[union-attr]
    assert values == ["acme", "nobody"]


async def test_arguments_may_be_added_before_the_call(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What is put into the call's keywords is what the function gets."""

    async def around(run: Run) -> AsyncIterator[None]:
        run.call.kwargs["b"] = 40
        yield

    worker = Worker(backend, extensions=[Around(around)])
    assert await outcome(queue, worker, add, 2) == ("success", 42, None)


@pytest.mark.parametrize("when", ["in", "out"])
async def test_what_is_raised_around_a_run_is_the_tasks_failure(
    when: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Before the function was called, or after it, when a commit fails for instance."""

    async def around(run: Run) -> AsyncIterator[None]:
        if when == "in":
            raise RuntimeError("no session")
        yield
        raise RuntimeError("no commit")

    worker = Worker(backend, extensions=[Around(around)])
    error = "RuntimeError: no session" if when == "in" else "RuntimeError: no commit"
    assert await outcome(queue, worker, add, 2) == ("failed", None, error)


async def test_what_is_swallowed_around_a_run_is_a_success(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """With ``None``, because there is no value."""

    async def around(run: Run) -> AsyncIterator[None]:
        with contextlib.suppress(ValueError):
            yield

    assert await outcome(queue, Worker(backend, extensions=[Around(around)]), fail, "no") == ("success", None, None)


async def test_a_stop_iteration_passes_through_what_is_around(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """As the failure that Python makes of it: it cannot come out of a coroutine."""
    status, _, error = await outcome(queue, Worker(backend, extensions=[Steps("it", [])]), stop_iteration)
    assert (status, error) == ("failed", "RuntimeError: coroutine raised StopIteration")


async def test_what_is_around_is_left_when_a_stop_cancels_the_run(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """It sees the cancellation, and the task is given back, its attempt unspent."""
    steps: list[str] = []
    with gate() as here:
        worker = Worker(backend, shutdown_timeout=0, extensions=[Steps("it", steps)])
        async with worker:
            task_id = await queue.enqueue(wait_at, "gate")
            await here.arrived()
    assert steps == ["it enters wait_at", "it sees CancelledError"]
    found = await queue.get(task_id)
    assert found is not None
    assert (found.status, found.attempt) == ("pending", 0)


async def test_what_is_beside_goes_on_for_as_long_as_the_worker(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """It is entered before the first reservation and left after the last outcome, with the worker's backend."""
    steps: list[str] = []

    class Beside:
        @contextlib.asynccontextmanager
        async def beside(self, given: Backend, runs: Runs) -> AsyncIterator[None]:
            assert given is backend
            steps.append(f"enters, {(await queue.counts()).in_progress} in progress")
            yield
            counts = await queue.counts()
            steps.append(f"leaves, {counts.success} done, {counts.in_progress} in progress")

    await queue.enqueue(add, 1)
    worker = Worker(backend, extensions=[Beside()])
    for _ in range(2):
        await worker.drain()
    assert steps == ["enters, 0 in progress", "leaves, 1 done, 0 in progress"] * 2


@pytest.mark.parametrize("method", ["start", "drain"])
async def test_what_fails_beside_at_the_start_ends_the_start(
    method: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The error is raised by whoever starts the worker, and what was entered before is left."""
    left: list[str] = []

    class Beside:
        def __init__(self, error: str = "") -> None:
            self.error = error

        @contextlib.asynccontextmanager
        async def beside(self, given: Backend, runs: Runs) -> AsyncIterator[None]:
            if self.error:
                raise OSError(self.error)
            yield
            left.append("left")

    worker = Worker(backend, extensions=[Beside(), Beside("no port")])
    with pytest.raises(OSError, match="no port"):
        await getattr(worker, method)()
    assert backend._users == 1  # the queue's
    await worker.stop()


async def test_a_listener_is_told_what_happens(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Of each run its start and its end, with the time that it took and the type of its error."""
    listening = Listening()
    worker = Worker(backend, max_concurrency=1, extensions=[listening])
    good, bad = await queue.enqueue(add, 1), await queue.enqueue(fail, "a secret")
    await worker.drain()
    told = [(event.kind, event.task_id, event.attempt, event.reason) for event in listening.events]
    assert told == [
        ("started", good, 1, ""),
        ("succeeded", good, 1, ""),
        ("started", bad, 1, ""),
        ("failed", bad, 1, "ValueError"),
    ]
    assert [event.seconds is None for event in listening.events] == [True, False, True, False]
    assert [type(event.error) for event in listening.events] == [type(None)] * 3 + [ValueError]
    assert {event.name for event in listening.events} == {"tests.test_extensions:add", "tests.test_extensions:fail"}


async def test_a_listener_is_told_of_what_is_given_back(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A task that does not end in time."""
    listening = Listening()
    with gate() as here:
        async with Worker(backend, shutdown_timeout=0, extensions=[listening]):
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
    assert [event.kind for event in listening.events] == ["started", "given_back"]


async def test_a_listener_that_raises_harms_no_task_and_is_named_once(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with a SystemExit either; the other listeners are told all the same."""

    class Bad:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def on_event(self, event: Event) -> None:
            raise self.error

    listening = Listening()
    worker = Worker(backend, extensions=[Bad(SystemExit("no")), Bad(ValueError("no")), listening])
    ids = await queue.enqueue_many([lambda: 1] * 5)
    assert await worker.drain() == 5
    assert [(await queue.get_result(task_id, 0)).unwrap() for task_id in ids] == [1] * 5  # type: ignore[union-attr]
    assert len(listening.events) == 10
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [type(record.exc_info[1]) for record in said if record.exc_info] == [SystemExit, ValueError]


@pytest.mark.parametrize(("wrong", "said"), [(object(), "not object"), (Steps, "not the class Steps"), (None, "None")])
def test_what_is_no_extension_is_refused(wrong: Any, said: str) -> None:
    """When the worker is made: an object with none of the methods, and a class in place of an object."""
    with pytest.raises(TypeError, match=said):
        Worker(extensions=[wrong])


class Bare:
    """Forgets ``asynccontextmanager``."""

    async def around(self, run: Run) -> AsyncIterator[None]:
        """Yields, and is no context manager for that."""
        yield


class Awaited:
    """Has coroutine functions in place of plain ones."""

    async def beside(self, backend: Backend, runs: Runs) -> None:
        """Would have to be awaited."""


class Deaf:
    """Hears nothing, because nobody awaits it."""

    async def on_event(self, event: Event) -> None:
        """Would have to be awaited."""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Bare(), r"around\(\) of Bare .* @asynccontextmanager"),
        (Awaited(), r"beside\(\) of Awaited .* @asynccontextmanager"),
        (Deaf(), r"on_event\(\) of Deaf must not be async"),
    ],
)
def test_a_method_that_is_async_in_the_wrong_way_is_refused(wrong: Any, said: str) -> None:
    """When the worker is made, and not as the failure of each task."""
    with pytest.raises(TypeError, match=said):
        Worker(extensions=[wrong])


def test_without_extensions_nothing_is_called_around_a_run() -> None:
    """Whoever does not use them does not pay for them, and a listener alone is none of those that are around."""
    run = Run(ReservedTask(1, 1, "id", b"", "len", "", 1, 5, EPOCH), Call(len, ([],), {}, {}))
    assert not around_of(())(run)
    assert not around_of([Listening()])(run)
    assert not around_of(with_standard(()))(run)


class Hanging:
    """Goes on beside a worker, and does not end when it should, or does not begin."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.here = asyncio.Event()
        self.cancelled: list[str] = []

    @contextlib.asynccontextmanager
    async def beside(self, backend: Backend, runs: Runs) -> AsyncIterator[None]:
        """Hangs on its way in, or out."""
        if self.when == "in":
            await self.hang()
        yield
        await self.hang()

    async def hang(self) -> None:
        """Waits for ever."""
        self.here.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(self.when)
            raise


async def test_what_does_not_end_beside_a_worker_is_cancelled_after_the_shutdown_timeout(
    backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """stop() returns, and says so."""
    hanging = Hanging("out")
    worker = Worker(backend, shutdown_timeout=0, extensions=[hanging])
    async with asyncio.timeout(DEADLINE_SECONDS):
        async with worker:
            pass
    assert hanging.cancelled == ["out"]
    assert "did not end in time" in caplog.text
    assert backend._users == 0


async def test_a_second_order_ends_the_wait_for_what_is_beside(backend: SQLiteBackend) -> None:
    """A stop() that is cancelled waits no longer, however long shutdown_timeout is."""
    hanging = Hanging("out")
    worker = Worker(backend, extensions=[hanging])
    await worker.start()
    stopping = asyncio.ensure_future(worker.stop())
    await hanging.here.wait()
    stopping.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await worker.stop()
    assert hanging.cancelled == ["out"]


async def test_a_start_that_is_cancelled_ends_what_hangs_on_its_way_in(backend: SQLiteBackend) -> None:
    """The worker does not run, and can be stopped and started."""
    hanging = Hanging("in")
    worker = Worker(backend, extensions=[hanging])
    starting = asyncio.ensure_future(worker.start())
    await hanging.here.wait()
    starting.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await worker.stop()
    assert hanging.cancelled == ["in"]
    assert backend._users == 0


@pytest.mark.parametrize("method", ["drain", "start"])
async def test_what_is_beside_cannot_hide_how_a_worker_ended(method: str, backend: SQLiteBackend) -> None:
    """It sees the error, and whoever waits for the worker gets it all the same."""
    seen: list[BaseException] = []

    class Swallows:
        @contextlib.asynccontextmanager
        async def beside(self, given: Backend, runs: Runs) -> AsyncIterator[None]:
            try:
                yield
            except OSError as error:
                seen.append(error)

    class NoPool:
        def start(self, slots: int) -> Pool:
            raise OSError("no pool")

    worker = Worker(backend, executor=NoPool(), extensions=[Swallows()])
    with pytest.raises(OSError, match="no pool"):
        await getattr(worker, method)()
    assert [str(error) for error in seen] == ["no pool"]
    await until(lambda: "sitq-renewal" not in [thread.name for thread in threading.enumerate()])
