"""Every kind of callable, and import paths: enqueued in one process, run in another."""

import asyncio
import importlib.util
import json
import operator
import textwrap
import threading
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

import pytest

from sitq import Result, SQLiteBackend, TaskQueue, Worker
from tests.scripts import RUN_FILE, run_script
from tests.support import add, multiply, rows

DRAIN = """
    import asyncio, sys
    sys.path[:0] = sys.argv[2:]
    from sitq import SQLiteBackend, Worker
    print(asyncio.run(Worker(SQLiteBackend(sys.argv[1])).drain()))
    """
"""A worker in a process of its own, which can import what lies in the folders that it is given."""


class Doubler:
    """Something with methods and a call."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, n: int) -> int:
        """Can be called."""
        return self.start + 2 * n

    def method(self, n: int) -> int:
        """Is bound to an instance."""
        return self.start + 2 * n

    async def coroutine_method(self, n: int) -> int:
        """Is bound, and a coroutine function."""
        return self.start + 2 * n

    @classmethod
    def of_class(cls, n: int) -> str:
        """Is bound to the class."""
        return f"{cls.__name__} {n}"

    @staticmethod
    def of_nobody(n: int) -> int:
        """Is bound to nothing."""
        return 2 * n


class AsyncCall:
    """Something with an async call."""

    async def __call__(self, n: int) -> int:
        """Can be called, and gives a coroutine."""
        return 3 * n


def returns_awaitable(a: int, b: int) -> Awaitable[int]:
    """A plain function that gives a coroutine."""
    return add(a, b)


def make_closure(start: int) -> Callable[[int], int]:
    """A function that carries a variable of its maker."""

    def closure(n: int) -> int:
        return start + n

    return closure


def make_async_closure(start: int) -> Callable[[int], Awaitable[int]]:
    """A coroutine function that carries a variable of its maker."""

    async def closure(n: int) -> int:
        return start + n

    return closure


def decorated_with(factor: int) -> Callable[[Callable[[int], int]], Callable[[int], int]]:
    """A decorator that wraps what it decorates."""

    def decorate(function: Callable[[int], int]) -> Callable[[int], int]:
        @wraps(function)
        def wrapper(n: int) -> int:
            return factor * function(n)

        return wrapper

    return decorate


@decorated_with(10)
def decorated(n: int) -> int:
    """Stands in its module as the wrapper."""
    return n


@lru_cache
def cached(n: int) -> int:
    """Is an object of functools, not a function."""
    return n + 1


class Total(partial[Any]):
    """A partial that is called in a way of its own."""

    def __call__(self, /, *numbers: int) -> int:
        """Adds up, and does not call its function."""
        return sum(numbers)


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], list[tuple[str, Any]]]:
    """Gives back its arguments, and the order in which they came."""
    return args, list(kwargs.items())


KINDS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "coroutine function": (add, (1, 2), 3),
    "plain function": (multiply, (2, 3), 6),
    "decorated function": (decorated, (4,), 40),
    "cached function": (cached, (4,), 5),
    "lambda": (lambda a, b: a - b, (5, 3), 2),
    "lambda that gives a coroutine": (lambda a: add(a, 1), (5,), 6),
    "function that gives an awaitable": (returns_awaitable, (5, 3), 8),
    "closure": (make_closure(10), (1,), 11),
    "coroutine closure": (make_async_closure(20), (1,), 21),
    "bound method": (Doubler(1).method, (4,), 9),
    "bound coroutine method": (Doubler(2).coroutine_method, (4,), 10),
    "class method": (Doubler.of_class, (4,), "Doubler 4"),
    "static method": (Doubler.of_nobody, (4,), 8),
    "unbound method": (Doubler.method, (Doubler(3), 4), 11),
    "callable object": (Doubler(5), (1,), 7),
    "async callable object": (AsyncCall(), (4,), 12),
    "partial": (partial(multiply, 3), (4,), 12),
    "partial of a coroutine function": (partial(add, b=3), (4,), 7),
    "partial of a partial": (partial(partial(echo, 1, x=1), 2, x=2, y=3), (3,), ((1, 2, 3), [("x", 2), ("y", 3)])),
    "partial of a lambda": (partial(lambda a, b: a**b, 2), (5,), 32),
    "partial that calls in its own way": (Total(multiply, 7), (1, 2, 3), 6),
    "partial that calls in its own way, of a coroutine function": (Total(add), (1, 2, 3), 6),
    "partial of a method": (partial(Doubler(1).method, 4), (), 9),
    "class": (int, ("17",), 17),
    "builtin function": (len, ("four",), 4),
    "builtin method": ("four".upper, (), "FOUR"),
    "method of a builtin class": (str.upper, ("four",), "FOUR"),
    "special method": ((4).__add__, (3,), 7),
    "class method of a builtin class": (dict.fromkeys, ("ab",), {"a": None, "b": None}),
    "object of the standard library": (operator.itemgetter(1), ("abc",), "b"),
}

MAIN = """
    import asyncio, dataclasses, enum, json, math, sys
    from functools import partial
    from sitq import SQLiteBackend, TaskQueue, current_task
    from tests.test_callables import echo

    FACTOR = 3

    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 1
        def scaled(self, by): return Point(self.x * by, self.y * by)
        def __call__(self, z): return self.x + self.y + z

    class Color(enum.Enum):
        RED = "red"

    def helper(n): return n * FACTOR
    def function(n): return helper(n) + math.floor(1.5)
    async def coroutine(n):
        await asyncio.sleep(0)
        return function(n)
    def recursive(n): return 1 if n == 0 else n * recursive(n - 1)
    def attribute(point): return point.x
    def points(n): return sum(point.x for point in map(Point, range(n)))
    def knows_itself(): return current_task().task_id

    KINDS = {
        "function": (function, 5),
        "coroutine function": (coroutine, 5),
        "recursive function": (recursive, 5),
        "function that uses a class": (points, 5),
        "function that takes an object": (attribute, Point(7)),
        "lambda": (lambda n: helper(n), 5),
        "bound method": (Point(3).scaled(2).__call__, 5),
        "callable object": (Point(1), 5),
        "partial": (partial(function), 5),
        "object for a function of a module": (echo, Color.RED),
        "function that asks for its task": (knows_itself,),
    }

    async def main():
        async with TaskQueue(SQLiteBackend(sys.argv[1])) as queue:
            print(json.dumps({kind: await queue.enqueue(*call) for kind, call in KINDS.items()}))

    asyncio.run(main())
    """

OF_MAIN: dict[str, Callable[[Any, str], bool]] = {
    "function": lambda value, _: value == 16,
    "coroutine function": lambda value, _: value == 16,
    "recursive function": lambda value, _: value == 120,
    "function that uses a class": lambda value, _: value == 10,
    "function that takes an object": lambda value, _: value == 7,
    "lambda": lambda value, _: value == 15,
    "bound method": lambda value, _: value == 13,
    "callable object": lambda value, _: value == 7,
    "partial": lambda value, _: value == 16,
    "object for a function of a module": lambda value, _: value[0][0].value == "red",
    "function that asks for its task": lambda value, task_id: value == task_id,
}

ONLY_THERE = """
    def top(n): return n + 1
    async def coroutine(n): return n + 1
    class Outer:
        class Inner:
            @staticmethod
            def method(n): return 2 * n
        def __call__(self): return "called"
    instance = Outer()
    constant = 7
    """

IMPORT_PATHS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "only_there:top": ((1,), 2),
    "only_there.inner:nested": ((), "nested"),
    "only_there:Outer.Inner.method": ((3,), 6),
    "only_there:coroutine": ((4,), 5),
    "only_there:instance": ((), "called"),
    "os.path:basename": (("a/b",), "b"),
}

DEAD_PATHS = {
    "not_there_at_all:task": "not_there_at_all",
    "only_there.missing:task": "only_there.missing",
    "only_there:missing": "missing",
    "only_there:Outer.missing.method": "missing",
    "only_there:constant": "not callable",
}

type Outcomes = dict[str, Result[Any] | Exception | None]


async def outcomes(path: Path, ids: dict[str, str]) -> Outcomes:
    """Reads the results of tasks that have been run."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        return {kind: await queue.get_result(task_id, timeout=0) for kind, task_id in ids.items()}


@pytest.fixture(scope="module")
def run_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of each kind, enqueued here and run by a worker in a process of its own."""
    path = tmp_path_factory.mktemp("kinds") / "queue.db"
    refused: Outcomes = {}
    ids: dict[str, str] = {}

    async def enqueue() -> None:
        async with TaskQueue(SQLiteBackend(path)) as queue:
            for kind, (func, args, _) in KINDS.items():
                try:
                    ids[kind] = await queue.enqueue(func, *args)
                except Exception as error:
                    refused[kind] = error

    asyncio.run(enqueue())
    run_script(DRAIN, path)
    return asyncio.run(outcomes(path, ids)) | refused


@pytest.fixture(scope="module")
def of_main(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Outcomes]:
    """What became of the functions of a script that has ended, in a worker that does not have it."""
    path = tmp_path_factory.mktemp("main") / "queue.db"
    ids = json.loads(run_script(MAIN, path))
    run_script(DRAIN, path)
    return ids, asyncio.run(outcomes(path, ids))


@pytest.fixture(scope="module")
def imported_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of import paths of a package that only the worker's process can import."""
    folder = tmp_path_factory.mktemp("paths")
    package = folder / "packages" / "only_there"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(ONLY_THERE))
    (package / "inner.py").write_text("def nested(): return 'nested'")
    path = folder / "queue.db"

    async def enqueue() -> dict[str, str]:
        calls = {path: args for path, (args, _) in IMPORT_PATHS.items()} | dict.fromkeys(DEAD_PATHS, ())
        async with TaskQueue(SQLiteBackend(path)) as queue:
            return {path: await queue.enqueue(path, *args) for path, args in calls.items()}

    ids = asyncio.run(enqueue())
    run_script(DRAIN, path, package.parent, quiet=False)
    return asyncio.run(outcomes(path, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_callable_runs_in_another_process(run_elsewhere: Outcomes, kind: str) -> None:
    """The result is the value that the call would have returned here."""
    outcome = run_elsewhere[kind]
    assert isinstance(outcome, Result), outcome
    assert outcome.unwrap() == KINDS[kind][2]


class Own(partial[Any]):
    """A partial whose call tells the thread in which it is made."""

    def __call__(self, /) -> int:
        """Does not call its function."""
        return threading.get_ident()


class OwnCoroutine(partial[Any]):
    """The same, as a coroutine."""

    async def __call__(self, /) -> int:
        """Does not call its function."""
        return threading.get_ident()


async def test_a_partial_that_calls_in_its_own_way_blocks_no_loop(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Its call is made in a thread, unless it is a coroutine function, whatever its function is."""
    threads = []
    async with Worker(backend):
        for func in (Own(add), OwnCoroutine(multiply)):
            result = await queue.get_result(await queue.enqueue(func))
            assert result is not None
            threads.append(result.unwrap())
    assert [thread == threading.get_ident() for thread in threads] == [False, True]


@pytest.mark.parametrize("kind", OF_MAIN)
def test_what_a_script_defines_runs_without_the_script(of_main: tuple[dict[str, str], Outcomes], kind: str) -> None:
    """What is defined in ``__main__``, with helpers, globals and imports, runs if that is another program."""
    ids, results = of_main
    outcome = results[kind]
    assert isinstance(outcome, Result), outcome
    assert OF_MAIN[kind](outcome.unwrap(), ids[kind]), outcome


async def test_arguments_arrive_as_given(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Positional and keyword arguments are equal to what was passed, and in the same order."""
    task_id = await queue.enqueue(echo, 1, [2, {"three": None}], zebra=b"4", alpha=(5, {6}))
    assert await Worker(backend).drain() == 1
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == ((1, [2, {"three": None}]), [("zebra", b"4"), ("alpha", (5, {6}))])


async def test_only_eta_and_context_are_reserved(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Every other keyword reaches the task, those that sitq uses elsewhere included."""
    given = {"func": 1, "self": 2, "timeout": 3, "max_attempts": 4, "args": 5, "kwargs": 6, "task_id": 7, "name": 8}
    task_id = await queue.enqueue(echo, **given)
    await Worker(backend).drain()
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == ((), list(given.items()))


async def test_a_task_may_have_an_eta_and_a_context_of_its_own(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """A partial carries keywords of these names to the task, beside those of ``enqueue``."""
    task_id = await queue.enqueue(partial(echo, eta="noon", context="mine"), 1, context={"tenant": "t"})
    await Worker(backend).drain()
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == ((1,), [("eta", "noon"), ("context", "mine")])


@pytest.mark.parametrize("import_path", IMPORT_PATHS)
def test_an_import_path_needs_the_code_in_the_worker_only(imported_elsewhere: Outcomes, import_path: str) -> None:
    """The producer stores the path of code that it cannot import, and the worker's process runs it."""
    assert importlib.util.find_spec("only_there") is None
    outcome = imported_elsewhere[import_path]
    assert isinstance(outcome, Result)
    assert outcome.unwrap() == IMPORT_PATHS[import_path][1]


@pytest.mark.parametrize("import_path", DEAD_PATHS)
def test_an_import_path_that_does_not_resolve_is_a_failed_task(imported_elsewhere: Outcomes, import_path: str) -> None:
    """The task fails at its first attempt, and its error says what could not be found or called."""
    outcome = imported_elsewhere[import_path]
    assert isinstance(outcome, Result)
    assert (outcome.status, outcome.attempt) == ("failed", 1)
    assert import_path in str(outcome.error)
    assert DEAD_PATHS[import_path] in str(outcome.error)


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (partial(add, 1, 2), "tests.support:add"),
        (partial(partial(add, 1), 2), "tests.support:add"),
        ("tests.support:add", "tests.support:add"),
        (partial(Doubler(1).method, 1), "tests.test_callables:Doubler.method"),
        (partial(Doubler(1), 1), "tests.test_callables:Doubler"),
        (partial(len, ""), "builtins:len"),
        (str.upper, "builtins:str.upper"),
        (lambda: 1, "tests.test_callables:<lambda>"),
        (partial(make_closure(1), 2), "tests.test_callables:make_closure.<locals>.closure"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_a_task_is_named_after_its_function(queue: TaskQueue, path: Path, func: Any, name: str) -> None:
    """The row shows the import path of the function, or as near to one as it has."""
    await queue.enqueue(func)
    await queue.enqueue_many([func])
    assert [row["name"] for row in rows(path)] == [name, name]


ONE_FILE = """
    import sys, threading
    from sitq import SQLiteBackend, SyncTaskQueue, SerializationError

    queue = SyncTaskQueue(SQLiteBackend(sys.argv[1]))
    lock = threading.Lock()
    log = open(sys.argv[0] if sys.argv[0] != "-c" else sys.executable, encoding="latin-1")
    fine = 7

    def direct(): return fine, queue.enqueue(direct)
    def helper(n): return [lock for _ in range(n)]
    def indirect(): return fine + len(helper(1))
    def inner():
        def inside(): return log.name
        return inside()
    async def coroutine(): return lock
    def attribute(thing): return thing.lock, fine
    def carries_itself(n): return n and carries_itself(n - 1) and lock
    def make():
        mine = threading.Lock()
        return lambda: mine

    for task in (direct, indirect, inner, coroutine, carries_itself, make()):
        try:
            queue.enqueue(task, *([1] if task is carries_itself else []))
        except SerializationError as error:
            print(error)
    queue.enqueue(attribute, 5)
    queue.close()
    """
"""A script that has its queue and its tasks in one module."""


def test_what_a_function_of_a_script_drags_along_is_named(path: Path) -> None:
    """The error says which global of which function cannot be carried, and what to do."""
    direct, indirect, inner, coroutine, itself, closure = run_script(ONE_FILE, path).splitlines()
    assert "the function __main__:direct, " in direct
    assert "__main__:direct uses the global 'queue', a SyncTaskQueue: " in direct
    assert "make it inside the function, or put the function into a module" in direct
    assert "the function __main__:indirect, " in indirect
    assert "__main__:helper uses the global 'lock', a lock: " in indirect
    assert "__main__:inner uses the global 'log', a TextIOWrapper: " in inner
    assert "__main__:coroutine uses the global 'lock', a lock: " in coroutine
    assert "__main__:carries_itself uses the global 'lock', a lock: " in itself
    assert "<lambda> uses the outer variable 'mine', a lock: " in closure
    assert [row["name"] for row in rows(path)] == ["__main__:attribute"]


async def test_a_name_that_is_no_text_is_stored_as_text(queue: TaskQueue, backend: SQLiteBackend, path: Path) -> None:
    """A lone surrogate in the name of a function or its module is written out, and the task runs."""
    odd = make_closure(1)
    odd.__qualname__ = "caf\u00e9\udce9"
    task_id = await queue.enqueue(odd, 1)
    await queue.enqueue_many([partial(odd, 2)])
    assert {row["name"] for row in rows(path)} == {"tests.test_callables:caf\u00e9\\udce9"}
    assert await Worker(backend).drain() == 2
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == 2


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_function_of_the_script_may_be_enqueued_by_its_child_process(tmp_path: Path, path: Path, method: str) -> None:
    """Where multiprocessing has loaded the script under another name, it is carried by value as well."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, sys
            from sitq import SQLiteBackend, SyncTaskQueue

            def task(n): return n + 1

            def child(path):
                with SyncTaskQueue(SQLiteBackend(path)) as queue:
                    queue.enqueue(task, 1)

            if __name__ == "__main__":
                process = multiprocessing.get_context(sys.argv[1]).Process(target=child, args=(sys.argv[2],))
                process.start()
                process.join()
            """)
    )
    run_script(RUN_FILE, script, method, path)
    (row,) = rows(path)
    assert asyncio.run(Worker(SQLiteBackend(path)).drain()) == 1
    (outcome,) = asyncio.run(outcomes(path, {"task": row["task_id"]})).values()
    assert isinstance(outcome, Result)
    assert outcome.unwrap() == 2
