"""Tasks that are declared with their function, and what wins if something else is said."""

import asyncio
import copy
import functools
import inspect
import os
import pickle
import pydoc
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

import sitq
from sitq import (
    Backoff,
    CloudpickleSerializer,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskQueue,
    Unique,
    Worker,
    current_task,
    follow_up,
    per_exception,
    task,
)
from sitq._options import Declared, from_builtins, to_builtins
from sitq.extensions.base import Run
from sitq.extensions.retries import Failed
from sitq.serializers.calls import Call
from sitq.serializers.envelope import dump_call, load_call
from sitq.testing import ManualQueue
from sitq.worker.execution import running
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, Runs, add, rows

NOON = datetime(2001, 2, 3, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SERIALIZER = CloudpickleSerializer()


class UnreachableError(Exception):
    """An exception of the user's own."""


POLICY = per_exception({UnreachableError: Backoff(retries=1)})


def twice(failed: Failed) -> float | None:
    """A policy of the user's own."""
    return 0.0 if failed.failures <= 2 else None


def key_of(to: str, subject: str = "") -> str:
    """A function of the arguments that gives a unique key."""
    return f"{to}:{subject}"


def told() -> dict[str, Any]:
    """Returns the options that hold for the running task."""
    run = running.get()
    assert isinstance(run, Run)
    return dict(run.options)


@task(timeout=30, retry=Backoff(retries=3, first=0.0, on=(UnreachableError,)), max_attempts=7)
async def send(to: str, subject: str = "none") -> list[Any]:
    """Sends something."""
    return [to, subject, told().get("timeout")]


@task
def plain(a: int, *, b: int = 2) -> int:
    """Is declared without options."""
    return a * b


@task(timeout=20)
def awkward(eta: str, context: int, queue: str, self: int, func: str, options: int = 0) -> list[object]:
    """Has parameters that are named as options are, and as what sitq's own functions take."""
    return [eta, context, queue, self, func, options]


@task(timeout=15)
async def hand_on(target: Task[..., Any], to: str) -> str:
    """Takes a task as its argument, and enqueues it."""
    return await current_task().queue.enqueue(target, to)


@task(timeout=12)
def follow(to: str) -> str:
    """Has another task follow it."""
    return follow_up(send.options(timeout=5), to)


@task
async def explain() -> dict[str, Any]:
    """Returns the options that hold for it."""
    return told()


@task(timeout=9, retry=Backoff(retries=1))
async def explain_declared() -> dict[str, Any]:
    """Returns the options that hold for it."""
    return told()


@task(timeout=16)
def take(function: Callable[[], Any]) -> list[Any]:
    """Calls what it is given."""
    return [function(), told().get("timeout")]


class Mailer:
    """A class with tasks of each kind."""

    def __init__(self, host: str) -> None:
        self.host = host

    @task(timeout=11)
    async def send(self, to: str) -> list[Any]:
        """A method."""
        return [self.host, to, told().get("timeout")]

    @staticmethod
    @task(timeout=12)
    def parse(text: str) -> list[Any]:
        """A static method."""
        return [text, told().get("timeout")]

    @classmethod
    @task(timeout=13, max_attempts=2)
    def make(cls, host: str) -> list[Any]:
        """A class method."""
        return [cls.__name__, host, told().get("timeout")]

    @task(timeout=14)
    @functools.lru_cache  # noqa: B019 - it is what it is called on that matters
    def cached(self, n: int) -> list[Any]:
        """A method that another decorator has made something else of."""
        return [self.host, n, told().get("timeout")]

    @task(timeout=17)
    def take(self, function: Callable[[], Any]) -> list[Any]:
        """Calls what it is given."""
        return [function(), told().get("timeout")]

    @classmethod
    @task(timeout=18)
    def take_too(cls, function: Callable[[], Any]) -> list[Any]:
        """Calls what it is given."""
        return [function(), told().get("timeout")]


class Loud(Mailer):
    """Inherits tasks, and has one of its own in the place of another."""

    @task(timeout=21)
    async def send(self, to: str) -> list[Any]:
        """Calls the one above as a function."""
        return [*(await super().send(to.upper())), "loud"]


DECLARE: Any = task
OPTIONS: Any = send.options
ADD: Any = add
CLASS_METHOD: Any = Mailer.make
"""For wrong uses, and for a class method: mypy binds none to its class if a decorator has made an object of it."""


def logged[**P, T](func: Callable[P, T]) -> Callable[P, T]:
    """A decorator as there are many."""

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    return wrapper


@task(timeout=8)
@logged
def decorated(n: int) -> list[Any]:
    """A task above another decorator."""
    return [n, told().get("timeout")]


around_a_task = logged(task(timeout=8)(lambda n: n))
triple = task(timeout=6)(partial(plain.func, b=3))
of_the_same = task(timeout=4)(explain_declared.func)
urgent = send.options(timeout=3)


async def run(queue: ManualQueue, task_id: str) -> Any:
    """Runs what waits, and returns what a task returned."""
    await queue.drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result.unwrap()


async def test_a_task_is_called_like_its_function() -> None:
    """Here and now, without a queue, with arguments of any name."""
    assert plain(4) == 8
    assert plain(4, b=3) == 12
    assert await task(add)(1, 2) == 3
    assert awkward(eta="noon", context=1, queue="q", self=2, func="f") == ["noon", 1, "q", 2, "f", 0]
    assert Mailer("h").cached.__name__ == "cached"


def test_a_task_looks_like_its_function() -> None:
    """Its name, module, docstring and signature are those of the function, and so is what frameworks ask about."""
    assert (send.__name__, send.__qualname__, send.__module__) == ("send", "send", __name__)
    assert send.__doc__ == "Sends something."
    assert inspect.signature(send) == inspect.signature(send.func)
    assert inspect.get_annotations(plain) == {"a": int, "b": int, "return": int}
    assert inspect.iscoroutinefunction(send)
    assert not inspect.iscoroutinefunction(plain)
    assert str(inspect.signature(Mailer("h").send)) == "(to: str) -> list[typing.Any]"
    assert "(to: str, subject: str = 'none')" in pydoc.render_doc(send)
    assert repr(send) == "<task tests.test_declaring:send>"
    assert repr(triple) == "<task tests.test_declaring:plain>"
    assert repr(Mailer("h").send) == "<task tests.test_declaring:Mailer.send>"


def test_what_a_function_is_marked_with_hides_nothing_of_its_task() -> None:
    """Attributes of the function are there, unless a task has them itself."""

    def function() -> int:
        return 1

    vars(function).update(route="/x", options=5, func=6)
    declared = task(function)
    assert declared.route == "/x"  # type: ignore[attr-defined]
    assert declared.func is function
    assert declared.options(timeout=5)() == 1


def test_a_task_that_is_copied_is_the_same_task() -> None:
    """By copy, deepcopy and pickle, in a structure as well; one with options keeps them."""
    assert copy.copy(send) is copy.deepcopy(send) is pickle.loads(pickle.dumps(send)) is send
    assert copy.deepcopy({"task": [send]})["task"][0] is send
    for copied in (copy.deepcopy(urgent), pickle.loads(pickle.dumps(urgent))):
        assert copied.func is send.func
        assert copied.declared is send.declared
        assert copied.changed == {"timeout": 3}
    bound = Mailer("h").send.options(timeout=5)
    copied = pickle.loads(pickle.dumps(bound))
    assert (copied.func.__self__.host, copied.changed) == ("h", {"timeout": 5})
    assert pickle.loads(pickle.dumps(Mailer("h").send)).declared is Mailer.send.declared


def test_options_survive_their_way_through_builtins() -> None:
    """Each one comes back as it was given, whatever it is made of."""
    options: Declared = {
        "eta": timedelta(seconds=5),
        "context": {"tenant": "t"},
        "max_attempts": 3,
        "queue": "mail",
        "priority": 5,
        "unique": Unique("k", "unfinished", MINUTE, "raise"),
        "retry": per_exception({UnreachableError: Backoff(retries=1), OSError: twice}, otherwise=Backoff(retries=2)),
        "timeout": 5.0,
        "expires": NOON,
        "on_failure": "package.module:name",
    }
    assert b"sitq" not in pickle.dumps(to_builtins(options))
    assert from_builtins(pickle.loads(pickle.dumps(to_builtins(options)))) == options


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (send, ("a",)),
        (urgent, ("a",)),
        (partial(send, "a"), ()),
        (hand_on, (urgent, "a")),
        (hand_on, (Mailer("h").send.options(retry=twice), "a")),
        (
            send.options(retry=per_exception({UnreachableError: Backoff(retries=1)}), on_failure=plain, expires=NOON),
            ("a",),
        ),
        (Mailer("h").send, ("a",)),
        (Mailer.parse, ("a",)),
        (Mailer.make, ("a",)),
    ],
    ids=repr,
)
async def test_a_payload_names_no_class_of_sitq(path: Path, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A declared task is stored by the name of its function, its options as builtins, as an argument too."""
    queue = TaskQueue(SQLiteBackend(path))
    stored = queue._maker.make(func, args, {}, queue._maker.nothing_said)
    assert b"sitq" not in stored.payload
    assert b"cloudpickle" not in stored.payload
    plain_task = queue._maker.make(add, (1, 2), {}, queue._maker.nothing_said)
    if func is send:
        assert len(stored.payload) < len(plain_task.payload) + 30


async def test_the_declared_options_hold(path: Path) -> None:
    """What the store has to know stands in the row, and the rest is read where the task runs."""
    queue = ManualQueue(SQLiteBackend(path))
    task_id = await queue.enqueue(send, "a")
    (row,) = rows(path)
    assert (row["max_attempts"], row["name"]) == (7, "tests.test_declaring:send")
    assert b"options" not in row["payload"]
    assert await run(queue, task_id) == ["a", "none", 30.0]
    await queue.close()


@pytest.mark.parametrize(
    ("option", "default", "first", "second", "third"),
    [
        ("max_attempts", 5, 6, 7, 8),
        ("timeout", None, 6.0, 7.0, 8.0),
        ("retry", None, Backoff(retries=6), Backoff(retries=7), twice),
        ("expires", None, MINUTE, 2 * MINUTE, 3 * MINUTE),
        ("on_failure", None, "a.b:c", "a.b:d", "a.b:e"),
        ("queue", "", "one", "two", "three"),
        ("priority", 0, -5, 6, 7),
        ("unique", None, Unique("one"), "two", Unique("three", "unfinished")),
    ],
)
async def test_what_is_said_last_wins(
    path: Path, option: str, default: object, first: object, second: object, third: object
) -> None:
    """``queue.options`` over ``task.options`` over ``@task`` over the defaults, for each option."""

    def work() -> None: ...

    declared: Task[[], None] = DECLARE(**{option: first})(work)
    varied = declared.options(**{option: second})  # type: ignore[arg-type]
    maker = TaskQueue(SQLiteBackend(path))._maker

    def made(func: Callable[..., Any], **said: Any) -> object:
        stored = maker.make(func, (), {}, maker.said(**said))
        extras = stored.extras
        call = load_call(SERIALIZER, stored.payload, stored.format)
        known = {"max_attempts": stored.max_attempts, "queue": "", "priority": 0, "unique": None}
        if extras is not None:
            known |= {"queue": extras.queue, "priority": extras.priority, "unique": extras.unique}
        return known.get(option, from_builtins(call.options).get(option))

    def meant(value: object) -> object:
        return Unique(value) if option == "unique" and isinstance(value, str) else value

    assert made(work) == default
    assert made(declared) == meant(first)
    assert made(varied) == meant(second)
    assert made(varied, **{option: third}) == made(declared, **{option: third}) == meant(third)
    assert made(work, **{option: third}) == meant(third)
    assert made(declared, **{option: None}) == meant(first)
    assert made(varied.options(**{option: third})) == meant(third)  # type: ignore[arg-type]


async def test_stored_options_win(task_queue: ManualQueue) -> None:
    """What was said when a task was enqueued holds for it, and beside it what is declared."""
    task_id = await task_queue.options(timeout=2).enqueue(explain_declared)
    assert await run(task_queue, task_id) == {"timeout": 2.0, "retry": Backoff(retries=1)}
    task_id = await task_queue.options(retry=twice).enqueue(explain_declared)
    assert await run(task_queue, task_id) == {"timeout": 9.0, "retry": twice}
    task_id = await task_queue.enqueue(explain_declared)
    assert await run(task_queue, task_id) == {"timeout": 9.0, "retry": Backoff(retries=1)}


async def test_an_option_for_a_function_that_declares_nothing(task_queue: ManualQueue) -> None:
    """It is stored, and holds; without any there are none."""
    task_id = await task_queue.options(timeout=2, expires=MINUTE).enqueue(explain.func)
    assert await run(task_queue, task_id) == {"timeout": 2.0, "expires": MINUTE}
    assert await run(task_queue, await task_queue.enqueue(explain.func)) == {}


async def test_a_task_has_a_moment_and_a_context_of_its_own(path: Path) -> None:
    """``send.options(eta=..., context=...)``, and what the queue says wins."""
    queue = ManualQueue(SQLiteBackend(path))
    later = explain.options(eta=datetime(2100, 1, 1, tzinfo=UTC), context={"tenant": "t"})
    await queue.enqueue(later)
    task_id = await queue.enqueue(later, eta=NOON)
    waits, due = rows(path)
    assert waits["available_at"] > due["available_at"]
    assert await run(queue, task_id) == {}
    await queue.close()


CORRECTED = """
import sys; sys.path.insert(0, sys.argv[1])
import asyncio
from sitq import SQLiteBackend, SyncTaskQueue, Worker
import mytasks
backend = SQLiteBackend(sys.argv[1] + "/queue.db")
if sys.argv[2] == "enqueue":
    with SyncTaskQueue(backend) as queue:
        queue.enqueue(mytasks.fetch, sys.argv[1] + "/runs.log")
        queue.options(retry=mytasks.Backoff(retries=1, first=0.0)).enqueue(mytasks.fetch, sys.argv[1] + "/said.log")
else:
    while asyncio.run(Worker(backend).drain()): pass
"""

TASKS = """
from sitq import Backoff, task

@task(retry=Backoff(retries={retries}, first=0.0))
def fetch(log):
    with open(log, "a") as file:
        file.write("x")
    raise OSError
"""


def test_a_corrected_policy_applies_to_what_waits(tmp_path: Path) -> None:
    """What is declared is read where the task runs; what was said when it was enqueued stays with it."""
    (tmp_path / "mytasks.py").write_text(TASKS.format(retries=0))
    run_script(CORRECTED, tmp_path, "enqueue")
    (tmp_path / "mytasks.py").write_text(TASKS.format(retries=10 - 6))
    run_script(CORRECTED, tmp_path, "work", quiet=False)
    assert (tmp_path / "runs.log").read_text() == "x" * 5
    assert (tmp_path / "said.log").read_text() == "x" * 2


MAIN = """
    import sys
    from sitq import Backoff, SQLiteBackend, SyncTaskQueue, current_task, task

    def run():
        from sitq.worker.execution import running
        return running.get()

    class Busy(Exception): pass

    @task(timeout=5, retry=Backoff(retries=2, first=0.0, on=(Busy,)), max_attempts=9)
    def flaky(n):
        failures = run().task.failures
        if failures < n:
            raise Busy
        return [failures, run().options["timeout"]]

    @task(timeout=6)
    def countdown(n):
        return countdown(n - 1) if n else [n, run().options["timeout"]]

    class Mailer:
        def __init__(self, host): self.host = host
        @task(timeout=7)
        def send(self, to): return [self.host, to, run().options["timeout"]]
        @classmethod
        @task(timeout=8)
        def make(cls, to): return [cls.__name__, to, run().options["timeout"]]
        @staticmethod
        @task(timeout=4)
        def parse(to): return [to, run().options["timeout"]]

    @task(timeout=9)
    def hand_on(target, n):
        return current_task().sync_queue.enqueue(target, n)

    def outer(base):
        @task(timeout=3)
        async def inner(n): return [base + n, run().options["timeout"]]
        return inner

    with SyncTaskQueue(SQLiteBackend(sys.argv[1])) as queue:
        for func, args in ((flaky, (2,)), (countdown, (3,)), (Mailer("h").send, ("a",)), (Mailer.make, ("a",)),
                           (Mailer.parse, ("a",)), (outer(40), (2,)), (hand_on, (flaky.options(timeout=1.5), 0))):
            print(queue.enqueue(func, *args))
    """


async def test_a_task_of_main_is_carried_by_value(path: Path) -> None:
    """With all that is declared, because no worker can import it; with its exception classes, methods and arguments."""
    ids = run_script(MAIN, path).split()
    assert {row["max_attempts"] for row in rows(path)} == {9, 5}
    async with ManualQueue(SQLiteBackend(path)) as queue:
        await queue.drain()
        values = [await run(queue, task_id) for task_id in ids]
        handed_on = await run(queue, values.pop())
    assert values == [[2, 5.0], [0, 6.0], ["h", "a", 7.0], ["Mailer", "a", 8.0], ["a", 4.0], [42, 3.0]]
    assert handed_on == [0, 1.5]


async def test_a_task_inside_a_function_is_carried_by_value(task_queue: ManualQueue) -> None:
    """With its options, as a closure is; also a lambda that is declared."""
    number = 40

    @task(timeout=2)
    async def inner(n: int) -> list[Any]:
        return [number + n, told()["timeout"]]

    assert await run(task_queue, await task_queue.enqueue(inner, 2)) == [42, 2.0]
    assert await run(task_queue, await task_queue.options(timeout=1).enqueue(inner, 2)) == [42, 1.0]
    anonymous = task(timeout=3)(lambda n: [n, told()["timeout"]])
    assert await run(task_queue, await task_queue.enqueue(anonymous, 2)) == [2, 3.0]


async def test_the_options_of_a_class_method_are_said_to_the_queue(queue: TaskQueue) -> None:
    """Python hands on ``options`` without the class: the error says what to write instead."""
    task_id = await queue.options(max_attempts=4).enqueue(CLASS_METHOD, "a")
    info = await queue.get(task_id)
    assert info is not None
    assert info.max_attempts == 4
    lost = CLASS_METHOD.options(max_attempts=4)
    with pytest.raises(TypeError, match=r"is a class method, which loses its class: use queue\.options\(\)"):
        await queue.enqueue(lost, Mailer, "a")


async def test_methods_are_tasks(task_queue: ManualQueue) -> None:
    """Bound to their object, static or of the class, inherited or overridden; the class has what is declared."""
    expected: list[tuple[Any, Any, list[Any]]] = [
        (Mailer("h").send, "a", ["h", "a", 11.0]),
        (Mailer("h").send.options(timeout=1), "a", ["h", "a", 1.0]),
        (Mailer.parse, "a", ["a", 12.0]),
        (Mailer("h").parse, "a", ["a", 12.0]),
        (Mailer.make, "a", ["Mailer", "a", 13.0]),
        (Loud.make, "a", ["Loud", "a", 13.0]),
        (Mailer("h").cached, 5, ["h", 5, 14.0]),
        (Loud("h").send, "a", ["h", "A", 21.0, "loud"]),
    ]
    for func, argument, value in expected:
        assert await run(task_queue, await task_queue.enqueue(func, argument)) == value
        assert await run(task_queue, await task_queue.enqueue(partial(func, argument))) == value
    task_id = await task_queue.enqueue(CLASS_METHOD, "a")
    info = await task_queue.get(task_id)
    assert info is not None
    assert info.max_attempts == 2
    assert await run(task_queue, await task_queue.enqueue(Mailer.send, Mailer("h"), "a")) == ["h", "a", 11.0]


async def test_a_task_beside_what_is_carried_by_value(task_queue: ManualQueue) -> None:
    """A closure among the arguments does not lose what is declared, nor is the task itself carried by value."""
    captured = [5]
    funcs: tuple[tuple[Any, float], ...] = ((take, 16.0), (Mailer("h").take, 17.0), (Mailer.take_too, 18.0))
    for func, timeout in funcs:
        assert await run(task_queue, await task_queue.enqueue(func, lambda: captured)) == [[5], timeout]


async def test_a_partial_of_a_task_is_that_task(task_queue: ManualQueue) -> None:
    """Its options hold, alone and in a batch; and a partial can be declared itself."""
    assert await run(task_queue, await task_queue.enqueue(partial(send, "a"), subject="s")) == ["a", "s", 30.0]
    (one, two) = await task_queue.enqueue_many([partial(send, "a"), partial(urgent, "b")])
    assert await run(task_queue, one) == ["a", "none", 30.0]
    assert await run(task_queue, two) == ["b", "none", 3.0]
    info = await task_queue.get(two)
    assert info is not None
    assert info.max_attempts == 7
    assert await run(task_queue, await task_queue.enqueue(triple, 5)) == 15


async def test_a_task_is_an_argument_of_a_task(task_queue: ManualQueue) -> None:
    """With the options that it was given, and those that are declared."""
    handed_on = await run(task_queue, await task_queue.enqueue(hand_on, send, "a"))
    assert await run(task_queue, handed_on) == ["a", "none", 30.0]
    handed_on = await run(task_queue, await task_queue.enqueue(hand_on, urgent, "a"))
    assert await run(task_queue, handed_on) == ["a", "none", 3.0]
    handed_on = await run(task_queue, await task_queue.enqueue(hand_on, Mailer("h").send.options(timeout=2), "a"))
    assert await run(task_queue, handed_on) == ["h", "a", 2.0]
    followed = await run(task_queue, await task_queue.enqueue(follow, "a"))
    assert await run(task_queue, followed) == ["a", "none", 5.0]


async def test_a_name_for_a_task_with_options_is_found_by_its_import_path(task_queue: ManualQueue) -> None:
    """What is declared there is read by the worker; what the store has to know is not known here."""
    path = "tests.test_declaring:"
    assert await run(task_queue, await task_queue.enqueue(f"{path}send", "a")) == ["a", "none", 30.0]
    assert await run(task_queue, await task_queue.enqueue(f"{path}urgent", "a")) == ["a", "none", 3.0]
    assert await run(task_queue, await task_queue.options(timeout=1).enqueue(f"{path}urgent", "a")) == [
        "a",
        "none",
        1.0,
    ]
    info = await task_queue.get(await task_queue.enqueue(f"{path}send", "a"))
    assert info is not None
    assert info.max_attempts == 5


async def test_two_tasks_of_one_function_have_options_of_their_own(task_queue: ManualQueue) -> None:
    """The one that is not found under the function's name is stored with all of its options."""
    assert await run(task_queue, await task_queue.enqueue(of_the_same)) == {"timeout": 4.0}
    assert pickle.loads(SERIALIZER.dumps(of_the_same)).declared == {"timeout": 4.0}


async def test_a_task_above_another_decorator(task_queue: ManualQueue) -> None:
    """It calls what that one made of the function."""
    assert await run(task_queue, await task_queue.enqueue(decorated, 5)) == [5, 8.0]


@pytest.mark.parametrize("func", [around_a_task, partial(around_a_task, 1)], ids=["function", "partial"])
async def test_a_decorator_above_a_task_is_refused(queue: TaskQueue, path: Path, func: Any) -> None:
    """It would hide what is declared: the error says in which order they go, and nothing is stored."""
    with pytest.raises(TypeError, match="write @task above its other decorators"):
        await queue.enqueue(func, 1)
    with pytest.raises(TypeError, match="write @task above its other decorators"):
        task(around_a_task)
    assert rows(path) == []


async def test_a_module_that_is_registered_by_value(path: Path) -> None:
    """As cloudpickle is told to carry its functions by value, the options go along, for workers without the module."""
    queue = TaskQueue(SQLiteBackend(path))
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        stored = queue._maker.make(awkward, ("a", 1, "q", 2, "f"), {}, queue._maker.nothing_said)
        argument = SERIALIZER.dumps(awkward)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    call = load_call(SERIALIZER, stored.payload, stored.format)
    assert call.options["timeout"] == 20.0
    assert call.func is not awkward.func
    assert pickle.loads(argument) is not awkward
    assert pickle.loads(argument).declared == awkward.declared


TWO_NAMES = """
    import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + "/package"]
    import package.jobs, jobs
    from sitq import CloudpickleSerializer
    serializer = CloudpickleSerializer()
    for func in (package.jobs.work, jobs.work):
        assert serializer.loads(serializer.dumps(func)) is func
        print(func.to_store()[0] is func)
    """


def test_a_module_that_is_imported_under_two_names(tmp_path: Path) -> None:
    """Each task is found under the name of its own module."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "jobs.py").write_text("from sitq import task\n@task(timeout=5)\ndef work(): ...\n")
    assert run_script(TWO_NAMES, tmp_path).split() == ["True", "True"]


async def test_a_task_of_a_module_that_nobody_can_import(task_queue: ManualQueue) -> None:
    """As the cells of a notebook or of an interpreter: by value."""
    names: dict[str, Any] = {"__name__": "no_such_module", "told": told}
    exec("from sitq import task\n@task(timeout=5)\ndef work(n): return [n, told()['timeout']]", names)
    assert await run(task_queue, await task_queue.enqueue(names["work"], 1)) == [1, 5.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DECLARE(staticmethod(ADD)), "write @task below @staticmethod"),
        (lambda: DECLARE(classmethod(ADD)), "write @task below @classmethod"),
        (lambda: DECLARE(send), "declared already: use its options()"),
        (lambda: DECLARE(Mailer.make), "declared already"),
        (lambda: DECLARE(Mailer), "not for the class Mailer"),
        (lambda: DECLARE("mail"), "@task is for functions, not for str; its options go by name"),
        (lambda: DECLARE()(property(ADD)), "@task is for functions, not for property"),
        (lambda: DECLARE(expires=NOON), "expires of @task must be a timedelta"),
        (lambda: DECLARE(timeout="5"), "timeout must be a number of seconds"),
        (lambda: DECLARE(retry=Backoff), "retry must be a policy"),
        (lambda: DECLARE(eta=MINUTE), "unexpected keyword argument 'eta'"),
        (lambda: DECLARE(context={}), "unexpected keyword argument 'context'"),
        (lambda: OPTIONS(delay=5), "unexpected keyword argument 'delay'"),
    ],
)
def test_a_wrong_declaration_is_refused(make: Callable[[], object], message: str) -> None:
    """When the module is imported, with a message that says what to write."""
    with pytest.raises(TypeError) as caught:
        make()
    assert message in str(caught.value)


async def numbers_async() -> Any:
    """An async generator."""
    yield 1


def numbers() -> Any:
    """A generator."""
    yield 1


@pytest.mark.parametrize("func", [numbers, numbers_async, partial(numbers)])
def test_a_generator_is_no_task(func: Any) -> None:
    """A task returns one value."""
    with pytest.raises(TypeError, match="is a generator function, and a task returns one value"):
        task(func)


async def test_a_call_is_checked_against_the_signature(queue: TaskQueue, path: Path) -> None:
    """Of the function, when it is enqueued: through partials, for methods, and behind each kind of options."""
    for func, args, kwargs in (
        (send, (), {}),
        (send, ("a", "b", "c"), {}),
        (send.options(timeout=5), (), {"t": "a"}),
        (partial(send, "a"), (), {"to": "b"}),
        (Mailer("h").send, (), {}),
        (Mailer.make, (), {}),
        (Mailer.parse, ("a", "b"), {}),
    ):
        with pytest.raises(TypeError):
            await queue.enqueue(func, *args, **kwargs)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await queue.options(priority=0).enqueue(func, *args, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes no argument 'priority'; .*queue\.options\(priority=5\)"):
        await queue.enqueue(send, "a", priority=5)  # type: ignore[call-arg]
    assert rows(path) == []


async def test_parameters_may_have_any_name(task_queue: ManualQueue) -> None:
    """Behind ``options`` every keyword is the task's own."""
    task_id = await task_queue.options().enqueue(awkward, eta="noon", context=1, queue="q", self=2, func="f", options=3)
    assert await run(task_queue, task_id) == ["noon", 1, "q", 2, "f", 3]


@pytest.mark.parametrize(
    ("declared", "said", "refused"),
    [
        ({"expires": MINUTE}, {"eta": 2 * MINUTE}, True),
        ({"expires": MINUTE}, {"eta": MINUTE}, True),
        ({}, {"eta": NOON + MINUTE, "expires": NOON}, True),
        ({"expires": MINUTE}, {"eta": 2 * MINUTE, "expires": 3 * MINUTE}, False),
        ({"expires": 2 * MINUTE}, {"eta": MINUTE}, False),
        ({"expires": MINUTE}, {"eta": NOON}, False),
        ({}, {"eta": MINUTE, "expires": NOON}, False),
    ],
)
async def test_what_would_expire_before_it_is_due_is_refused(
    path: Path, declared: dict[str, Any], said: dict[str, Any], *, refused: bool
) -> None:
    """If both are moments or both are durations, wherever they were said; else only the store's clock can tell."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        func = DECLARE(**declared)(explain.func)
        if refused:
            with pytest.raises(ValueError, match="would never be started"):
                await queue.options(**said).enqueue(func)
        else:
            await queue.options(**said).enqueue(func)
    assert len(rows(path)) == (not refused)


async def test_a_unique_key_is_made_of_the_arguments(path: Path) -> None:
    """The function of ``unique=`` gets those of the call, a partial's and a method's included."""
    maker = TaskQueue(SQLiteBackend(path))._maker
    unique = send.options(unique=key_of)

    def key(func: Any, *args: Any, **kwargs: Any) -> str:
        extras = maker.make(func, args, kwargs, maker.nothing_said).extras
        assert extras is not None
        assert extras.unique is not None
        return extras.unique.key

    assert key(unique, "a") == "a:"
    assert key(unique, "a", subject="s") == key(partial(unique, "a"), subject="s") == "a:s"
    assert key(Mailer("h").send.options(unique=lambda to: to), "a") == "a"
    with pytest.raises(TypeError, match="must return a str or Unique"):
        key(send.options(unique=lambda to: 5), "a")  # type: ignore[arg-type,return-value]


async def test_a_worker_passes_over_options_of_a_newer_sitq(backend: SQLiteBackend) -> None:
    """A declared task with a stored option that is not known runs by the others."""
    async with TaskQueue(backend) as queue:
        maker = queue._maker
        stored = maker.make(explain_declared, (), {}, maker.said(timeout=4))
        call = Call(explain_declared, (), {}, {}, {"timeout": 4.0, "weather": "fine"})
        await backend.enqueue([stored._replace(payload=dump_call(SERIALIZER, call))])
        await Worker(backend).drain()
        result = await queue.get_result(stored.task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == {"timeout": 4.0, "weather": "fine", "retry": Backoff(retries=1)}


async def fail_until(runs: Runs, count: int) -> int:
    """Raises an exception of the user's until it has been run so often."""
    runs.add("run")
    if len(runs.lines()) < count:
        raise UnreachableError
    return count


@pytest.mark.parametrize(
    "policy",
    [
        Backoff(retries=2, first=0.0, on=(UnreachableError,)),
        per_exception({UnreachableError: Backoff(retries=2, first=0.0)}),
        twice,
    ],
)
async def test_a_policy_is_stored_as_builtins_and_the_users_own(
    task_queue: ManualQueue, runs: Runs, policy: Any
) -> None:
    """Said when the task is enqueued, or declared with a function that is carried by value; and it is asked."""
    stored = task_queue._maker.make(fail_until, (runs, 3), {}, task_queue._maker.said(retry=policy))
    assert b"sitq" not in stored.payload
    task_id = await task_queue.options(retry=policy).enqueue(fail_until, runs, 3)
    assert await run(task_queue, task_id) == 3
    by_value = task(retry=policy)(lambda runs, count: fail_until(runs, count))
    task_id = await task_queue.enqueue(by_value, runs, 6)
    assert await run(task_queue, task_id) == 6


def test_sync_code_enqueues_declared_tasks(path: Path) -> None:
    """As async code does, with the same options."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        ids = [queue.enqueue(send, "a"), queue.options(timeout=1).enqueue(urgent, "a", subject="s")]
        ids += queue.enqueue_many([partial(send, "b")])
        assert {row["max_attempts"] for row in rows(path)} == {7}
        asyncio.run(Worker(SQLiteBackend(path)).drain())
        results = [queue.get_result(task_id, timeout=0) for task_id in ids]
    values = [["a", "none", 30.0], ["a", "s", 1.0], ["b", "none", 30.0]]
    assert [result and result.unwrap() for result in results] == values


COLLECTED = """
import sitq

@sitq.task(timeout=5)
def test_declared() -> None:
    assert test_declared.declared == {"timeout": 5.0}
"""


def test_pytest_takes_a_task_for_the_function_it_is(tmp_path: Path) -> None:
    """One whose name begins with ``test_`` is collected and run, without a warning."""
    (tmp_path / "test_it.py").write_text(COLLECTED)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_it.py"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


async def test_fastapi_takes_a_task_for_the_function_it_is() -> None:
    """As a route and as a dependency: parameters are read from the signature, and coroutines are awaited."""
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    application = fastapi.FastAPI()

    @task(timeout=5)
    def user(name: str) -> str:
        return name.title()

    @task(timeout=5)
    async def hello(greeting: str, name: str = fastapi.Depends(user)) -> str:
        return f"{greeting} {name}"

    application.get("/hello")(hello)
    client = testclient.TestClient(application)
    answer = await asyncio.to_thread(client.get, "/hello", params={"greeting": "Hi", "name": "ann"})
    assert answer.json() == "Hi Ann"


def test_the_names_of_declaring_are_public() -> None:
    """They are imported from ``sitq``."""
    names = {"task", "Task", "Backoff", "per_exception", "Unique", "follow_up"}
    assert names <= set(sitq.__all__)
    assert {getattr(sitq, name).__module__ for name in names} == {"sitq"}
