"""Parameters that a worker fills in, and the clean-up of what their providers gave."""

import asyncio
import contextlib
import functools
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from sitq import Inject, SQLiteBackend, TaskQueue, Worker, task
from sitq.extensions import Run
from sitq.extensions.cancelling import Cancelling
from sitq.extensions.inject import Injections
from sitq.models import EPOCH, ReservedTask
from sitq.serializers.calls import Call
from tests.worker_tasks import gate, wait_at

steps: list[str] = []
"""What the providers and tasks of a test have done."""

threads: dict[str, bool] = {}
"""Which of them was in the main thread."""


@pytest.fixture(autouse=True)
def no_steps() -> None:
    """Begins anew."""
    steps.clear()
    threads.clear()


def note(step: str) -> None:
    """Writes down a step, and where it was made."""
    steps.append(step)
    threads[step.partition(" ")[0]] = threading.current_thread() is threading.main_thread()


def plain() -> str:
    """A provider that only returns."""
    note("plain")
    return "plain value"


async def coroutine() -> str:
    """One that has to be awaited."""
    note("coroutine")
    return "coroutine value"


def generator() -> Iterator[str]:
    """One that cleans up."""
    note("generator")
    try:
        yield "generator value"
    except BaseException as error:
        note(f"generator sees {type(error).__name__}")
        raise
    note("generator ends")


async def async_generator() -> AsyncIterator[str]:
    """One that cleans up on the loop."""
    note("async_generator")
    try:
        yield "async_generator value"
    except BaseException as error:
        await asyncio.sleep(0)
        note(f"async_generator sees {type(error).__name__}")
        raise
    note("async_generator ends")


manager = contextlib.contextmanager(generator)
async_manager = contextlib.asynccontextmanager(async_generator)


async def on_loop(a: str = Inject(async_generator), g: str = Inject(generator)) -> tuple[str, str]:
    """Has both."""
    note("task")
    return a, g


def in_thread(g: str = Inject(generator), a: str = Inject(async_generator)) -> tuple[str, str]:
    """Has both, the other way round."""
    note("task")
    return a, g


async def fail_on_loop(a: str = Inject(async_generator), g: str = Inject(generator)) -> None:
    """Raises."""
    raise ValueError("no")


def fail_in_thread(a: str = Inject(async_generator), g: str = Inject(generator)) -> None:
    """Raises."""
    raise ValueError("no")


@task(timeout=0.05)
async def too_long(a: str = Inject(async_generator), g: str = Inject(generator)) -> None:
    """Takes longer than it may."""
    await asyncio.Event().wait()


async def wait(name: str, a: str = Inject(async_generator), g: str = Inject(generator)) -> None:
    """Waits at a gate."""
    await wait_at(name)


async def outcome(queue: TaskQueue, backend: SQLiteBackend, func: Any, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """Runs one task and returns its status and its value, or its error."""
    task_id = await queue.enqueue(func, *args, **kwargs)
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.status, result.value if result.error is None else result.error


KINDS = ["plain", "coroutine", "generator", "async generator", "manager", "async manager"]
PROVIDERS = [plain, coroutine, generator, async_generator, manager, async_manager]


@pytest.mark.parametrize(
    "provider", PROVIDERS, ids=["plain", "coroutine", "gen", "async gen", "manager", "async manager"]
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_provider_gives_the_value(
    is_async: bool, provider: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Of whatever kind it is, to a coroutine and to a plain function; what is async works on the loop."""
    if is_async:

        async def func(value: Any = Inject(provider)) -> Any:
            return value
    else:

        def func(value: Any = Inject(provider)) -> Any:
            return value

    func.__module__ = "__main__"  # so that it is stored by value
    name = {manager: "generator", async_manager: "async_generator"}.get(provider, getattr(provider, "__name__", ""))
    assert await outcome(queue, backend, func) == ("success", f"{name} value")
    assert threads[name] is (is_async or name in {"coroutine", "async_generator"})


@pytest.mark.parametrize("func", [on_loop, in_thread])
async def test_clean_up_comes_in_reverse_after_success(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What is async stands outside of what works in the thread."""
    assert await outcome(queue, backend, func) == ("success", ("async_generator value", "generator value"))
    assert steps == ["async_generator", "generator", "task", "generator ends", "async_generator ends"]
    assert threads["generator"] is threads["task"] is (func is on_loop)


SEEN = ["async_generator", "generator", "generator sees {0}", "async_generator sees {0}"]


@pytest.mark.parametrize("func", [fail_on_loop, fail_in_thread])
async def test_clean_up_comes_in_reverse_after_failure(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """And sees what was raised."""
    assert await outcome(queue, backend, func) == ("failed", "ValueError: no")
    assert steps == [step.format("ValueError") for step in SEEN]


async def test_clean_up_comes_in_reverse_after_a_timeout(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The run is cancelled at its end, and the clean-up still may await."""
    status, error = await outcome(queue, backend, too_long)
    assert (status, error.partition(":")[0]) == ("failed", "TaskTimeoutError")
    assert steps == [step.format("CancelledError") for step in SEEN]


async def test_clean_up_comes_in_reverse_after_a_stop(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The task is given back, its attempt unspent."""
    with gate() as here:
        async with Worker(backend, shutdown_timeout=0):
            task_id = await queue.enqueue(wait, "gate")
            await here.arrived()
    assert steps == [step.format("CancelledError") for step in SEEN]
    found = await queue.get(task_id)
    assert found is not None
    assert (found.status, found.attempt) == ("pending", 0)


async def test_clean_up_comes_in_reverse_after_a_cancellation(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Of the running task, which somebody has asked to end."""
    with gate() as here:
        async with Worker(backend, extensions=[Cancelling(every=0.01)]):
            task_id = await queue.enqueue(wait, "gate")
            await here.arrived()
            assert await backend.ask([task_id]) == [task_id]
            result = await queue.get_result(task_id, timeout=30)
    assert result is not None
    assert result.status == "cancelled"
    assert steps == [step.format("CancelledError") for step in SEEN]


def forgetful() -> Iterator[str]:
    """Forgets to raise again what it has caught."""
    with contextlib.suppress(ValueError):
        yield "value"


async def forgetful_async() -> AsyncIterator[str]:
    """As above."""
    with contextlib.suppress(ValueError):
        yield "value"


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("provider", [forgetful, forgetful_async])
async def test_a_provider_cannot_swallow_a_failure(
    provider: Any, is_async: bool, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The task fails, and the providers outside of it see that it does."""
    outer: Any = async_generator if provider is forgetful_async or is_async else generator
    if is_async:

        async def func(outer: Any = Inject(outer), value: Any = Inject(provider)) -> Any:
            raise ValueError("no")
    else:

        def func(outer: Any = Inject(outer), value: Any = Inject(provider)) -> Any:
            raise ValueError("no")

    func.__module__ = "__main__"
    assert await outcome(queue, backend, cloudpickle.loads(cloudpickle.dumps(func))) == ("failed", "ValueError: no")
    assert steps[-1].endswith("sees ValueError")


commits: list[bool] = []


def committing() -> Iterator[str]:
    """A session whose commit fails once."""
    yield "session"
    commits.append(len(commits) > 0)
    if not commits[-1]:
        raise ConnectionError("no commit")


async def committing_async() -> AsyncIterator[str]:
    """As above, on the loop."""
    for value in committing():
        yield value


@task(retry=lambda failed: 0 if failed.failures == 1 else None)
def commit_in_thread(session: str = Inject(committing)) -> str:
    """Has its session committed."""
    return session


@task(retry=lambda failed: 0 if failed.failures == 1 else None)
async def commit_on_loop(session: str = Inject(committing_async)) -> str:
    """Has its session committed."""
    return session


@pytest.mark.parametrize("func", [commit_in_thread, commit_on_loop])
async def test_a_failing_commit_is_a_failure_and_retried(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """By the task's policy, as what the task itself raises."""
    commits.clear()
    assert await outcome(queue, backend, func) == ("success", "session")
    assert commits == [False, True]


class Resource:
    """Something of which there is one for a run."""


def resource() -> Resource:
    """Gives one."""
    return Resource()


async def same_on_loop(one: Resource = Inject(resource), other: Resource = Inject(resource)) -> bool:
    """Compares."""
    return one is other


def same_in_thread(one: Resource = Inject(resource), *, other: Resource = Inject(resource)) -> bool:
    """Compares."""
    return one is other


@pytest.mark.parametrize("func", [same_on_loop, same_in_thread])
async def test_a_provider_is_asked_once_for_a_run(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Two parameters with the same provider have the same object."""
    assert await outcome(queue, backend, func) == ("success", True)


@pytest.mark.parametrize("func", [on_loop, in_thread])
async def test_an_argument_that_is_passed_wins(func: Any, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """By its position or by its name; its provider is not asked."""
    assert await outcome(queue, backend, func, "x", **{"g" if func is on_loop else "a": "y"}) in [
        ("success", ("x", "y")),
        ("success", ("y", "x")),
    ]
    assert steps == ["task"]


def attempt(run: Run) -> int:
    """Takes the run by its name."""
    return run.task.attempt


def task_id(the_run: Run) -> str:
    """Takes the run by its annotation."""
    return the_run.task.task_id


async def with_run(number: int = Inject(attempt), own: str = Inject(task_id)) -> tuple[int, str]:
    """Knows about itself."""
    return number, own


async def test_a_provider_may_take_the_run(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """If a parameter is named or annotated so."""
    status, (number, own) = await outcome(queue, backend, with_run)
    assert (status, number) == ("success", 1)
    assert await queue.get(own) is not None


class Service:
    """Has methods and can be called."""

    async def method(self, value: str = Inject(plain)) -> str:
        """A task."""
        return value

    def __call__(self, value: str = Inject(plain)) -> str:
        """Another one."""
        return value


def wrapped[**P, T](func: Callable[P, T]) -> Callable[P, T]:
    """Decorates."""

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    return wrapper


@wrapped
def decorated(a: int, value: str = Inject(plain)) -> str:
    """Stands behind a wrapper."""
    return f"{a} {value}"


@task(timeout=30)
def limited(a: int, value: str = Inject(plain)) -> str:
    """Has a limit of time around it."""
    return f"{a} {value}"


def gives_awaitable(value: str = Inject(generator)) -> Any:
    """Is plain, and what it returns is awaited."""

    async def rest() -> str:
        note("task")
        return value

    return rest()


@pytest.mark.parametrize(
    ("func", "args", "value"),
    [
        (Service().method, (), "plain value"),
        (Service(), (), "plain value"),
        (decorated, (1,), "1 plain value"),
        (functools.partial(decorated, 2), (), "2 plain value"),
        (limited, (3,), "3 plain value"),
        ("tests.test_inject:limited", (4,), "4 plain value"),
    ],
)
async def test_whatever_is_called_has_its_parameters_filled_in(
    func: Any, args: Any, value: Any, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Methods, objects, what is behind a wrapper, what has a limit of time."""
    assert await outcome(queue, backend, func, *args) == ("success", value)


async def test_clean_up_waits_for_what_a_plain_function_returned(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """If that is awaited, it is a part of the run."""
    assert await outcome(queue, backend, gives_awaitable) == ("success", "generator value")
    assert steps == ["generator", "task", "generator ends"]


async def broken(value: str = Inject(lambda: 1 / 0)) -> None:
    """Has a provider that raises."""


def given_a_coroutine(value: str = Inject(lambda: coroutine())) -> None:
    """Has one that gives to a thread what only a loop can await."""


@pytest.mark.parametrize(
    ("func", "error"),
    [
        (broken, "ZeroDivisionError: division by zero"),
        (given_a_coroutine, "TypeError: the provider of Inject(<lambda>)"),
    ],
)
async def test_what_a_provider_raises_is_the_failure_of_the_task(
    func: Any, error: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """The function is not called."""
    status, said = await outcome(queue, backend, func)
    assert status == "failed"
    assert said.startswith(error)


def needs_more(run: Run, url: str) -> None:
    """Is no provider."""


def nested(value: str = Inject(plain)) -> None:
    """Is no provider, either."""


@pytest.mark.parametrize(
    ("wrong", "said"), [(3, "not int"), (needs_more, "needs 'url'"), (nested, "cannot have injected parameters itself")]
)
def test_what_is_no_provider_is_refused(wrong: Any, said: str) -> None:
    """When the function is defined."""
    with pytest.raises(TypeError, match=said):
        Inject(wrong)


def use(service: Service = Inject(Service)) -> Any:
    """Uses it."""
    return service.method()


def call(service: Service = Inject(Service)) -> Any:
    """Calls it."""
    return service()


@pytest.mark.parametrize("func", [use, call])
def test_a_direct_call_without_the_argument_says_what_is_missing(func: Any) -> None:
    """As soon as the value is used; with the argument, it is an ordinary function."""
    with pytest.raises(RuntimeError, match=r"Inject\(Service\) is filled in by a worker .* pass the argument"):
        func()
    assert func(lambda: "given") == "given" if func is call else True


async def by_position_only(value: str = Inject(plain), /) -> None:
    """Cannot be given by its name."""


async def test_a_parameter_by_position_only_is_refused(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """With the reason."""
    status, error = await outcome(queue, backend, by_position_only)
    assert (status, "cannot be injected" in error) == ("failed", True)


def test_a_payload_names_nothing_of_sitq_that_is_not_public() -> None:
    """A function that is stored by value carries its defaults."""

    def func(value: str = Inject(plain)) -> str:
        return value

    assert b"sitq.extensions" not in cloudpickle.dumps(func.__defaults__)
    assert repr(cloudpickle.loads(cloudpickle.dumps(func.__defaults__))) == "(Inject(plain),)"


@pytest.mark.parametrize("func", [plain, coroutine, len, Service, wrapped(plain), lambda a=1, *, b=2: a])
def test_without_injected_parameters_nothing_is_put_around_a_run(func: Any) -> None:
    """And the call stays what it is."""
    run = Run(ReservedTask(1, 1, "id", b"", "x", "", 1, 5, EPOCH), Call(func, (), {}, {}))
    before = run.call
    assert Injections().around(run) is None
    assert run.call is before


made: list[weakref.ref[Resource]] = []


def tracked() -> Iterator[Resource]:
    """Gives one that is watched."""
    value = Resource()
    made.append(weakref.ref(value))
    yield value


async def keep_on_loop(number: int, value: Resource = Inject(tracked)) -> None:
    """Every other one fails."""
    if number % 2:
        raise ValueError(number)


def keep_in_thread(number: int, value: Resource = Inject(tracked)) -> None:
    """Every other one fails."""
    if number % 2:
        raise ValueError(number)


async def test_500_runs_leak_nothing(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What was given is gone when the runs are, whether they failed or not."""
    made.clear()
    for func in (keep_on_loop, keep_in_thread):
        await queue.enqueue_many(functools.partial(func, number) for number in range(250))
    worker = Worker(backend)
    assert await worker.drain() == 500
    await queue.enqueue(plain)
    await worker.drain()  # so that no thread holds the last one
    gc.collect()
    assert len(made) == 500
    assert [each for each in made if each() is not None] == []
