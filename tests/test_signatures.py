"""Calls that do not fit their function: refused when they are enqueued, and only if Python would refuse them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue
from sitq.serializers.calls import make_call
from sitq.serializers.refusals import MEANT
from sitq.serializers.signatures import check_call
from tests.support import add, multiply, rows

NAMES = ("a", "b", "c", "d")


def task() -> None:
    """Takes nothing."""


def takes_anything(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Takes everything."""
    return args, kwargs


@functools.wraps(task)
def wrapper(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Says that it takes nothing, and takes everything."""
    return args, kwargs


@functools.wraps(takes_anything)
def narrow_wrapper() -> None:
    """Says that it takes everything, and takes nothing."""


class Box:
    """Has methods, and is called."""

    def __call__(self, a: int, /, *, b: int = 1) -> int:
        """Can be called."""
        return a + b

    def method(self, a: int) -> int:
        """Is bound to an instance."""
        return a

    @classmethod
    def of_class(cls, a: int) -> int:
        """Is bound to the class."""
        return a

    @staticmethod
    def of_nobody(a: int) -> int:
        """Is bound to nothing."""
        return a


class ComesBackAsAFunction:
    """Takes nothing where it is made; what a worker loads takes two numbers."""

    def __call__(self) -> None:
        """Can be called."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Is the function, in a pickle."""
        return partial, (add,)


@functools.lru_cache
def cached(a: int, b: int) -> int:
    """Is an object of functools."""
    return a + b


class MakesOthers:
    """A class whose constructor gives something else, so that __init__ is not called."""

    def __new__(cls, *args: Any) -> Any:
        """Gives the arguments back."""
        return args

    def __init__(self) -> None:
        """Takes nothing."""


@dataclass
class Point:
    """A class with a constructor that was generated."""

    x: int
    y: int = 0


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., None]:
    """A function with any signature over a few names, and defaults or not."""
    kinds = draw(st.lists(st.sampled_from(["/", "", "*"]), max_size=len(NAMES)))
    optional = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    parameters = sorted(zip(kinds, optional, strict=True), key=lambda each: ("/", "", "*").index(each[0]))
    text, had_default, group = [], False, "/"
    for name, (kind, has_default) in zip(NAMES, parameters, strict=False):
        if group == "/" != kind and text:
            text.append("/")
        if kind == "*" != group:
            text.append(draw(st.sampled_from(["*", "*args"])))
        group = kind
        had_default = has_default or (had_default and kind != "*")
        text.append(f"{name}=0" if had_default else name)
    if group == "/" and text:
        text.append("/")
    if group != "*" and draw(st.booleans()):
        text.append("*args")
    if draw(st.booleans()):
        text.append("**kwargs")
    namespace: dict[str, Any] = {}
    exec(f"def function({', '.join(text)}): pass", namespace)
    function: Callable[..., None] = namespace["function"]
    return function


@settings(max_examples=600, deadline=None)
@given(
    function=functions(),
    args=st.lists(st.integers(), max_size=5).map(tuple),
    kwargs=st.dictionaries(st.sampled_from([*NAMES, "delay", "kwargs"]), st.integers(), max_size=4),
    kind=st.sampled_from(["function", "method", "object", "class", "partial"]),
)
def test_what_is_refused_is_what_python_refuses(
    function: Callable[..., None], args: tuple[int, ...], kwargs: dict[str, int], kind: str
) -> None:
    """Over random signatures and arguments, a call is let through if and only if making it raises no ``TypeError``."""
    func: Callable[..., Any] = function
    if kind in ("method", "object", "class"):

        def self_first(names: str) -> Any:
            return type("Made", (), {names: function})

        try:
            made = self_first({"method": "task", "object": "__call__", "class": "__init__"}[kind])
            func = made if kind == "class" else made().task if kind == "method" else made()
        except TypeError:
            return
    call, pieces = (lambda: func(*args, **kwargs)), (func, args, kwargs)
    if kind == "partial":
        pieces = (partial(func, *args[:2], **kwargs), args[2:], {})
    try:
        call()
        fits = True
    except TypeError:
        fits = False
    try:
        make_call(*pieces)
        let_through = True
    except TypeError:
        let_through = False
    assert let_through == fits


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "message"),
    [
        (task, (), {"delay": 60}, r"task\(\) takes no argument 'delay'; a delay is eta=timedelta\(seconds=60\)"),
        (task, (), {"countdown": 2.5}, r"'countdown'; a delay is eta=timedelta\(seconds=2.5\)"),
        (task, (), {"defer_by": timedelta(1)}, r"'defer_by'; a delay is eta=timedelta\(seconds=...\)"),
        (task, (), {"run_at": 5}, "'run_at'; the time to start at is eta="),
        (task, (), {"priority": 5}, "'priority'; that is an option: queue\\.options\\(priority=5\\)"),
        (task, (), {"max_retries": 5}, "'max_retries'; trying again is an option: .*Backoff\\(retries=5\\)"),
        (task, (), {"timeout": 5}, r"'timeout'; that is an option: queue\.options\(timeout=5\), in seconds"),
        (task, (), {"job_id": "x"}, r"'job_id'; the id is what enqueue\(\) returns"),
        (task, (), {"color": "red"}, r"task\(\) takes no argument 'color'$"),
        (task, (1,), {}, "takes at most 0 positional arguments, and was given 1"),
        (multiply, (1,), {}, "needs 'b'"),
        (multiply, (1, 2), {"a": 3}, "was given 'a' twice"),
        (add, (1,), {"priority": 1}, "'priority'"),
        (Box().method, (), {}, r"Box\.method\(\) needs 'a'"),
        (Box().method, (1, 2), {}, "takes at most 1 positional arguments, and was given 2"),
        (Box(), (1,), {"a": 1}, r"Box\(\) takes no argument 'a'"),
        (Box.of_class, (), {}, "needs 'a'"),
        (Box.of_nobody, (), {}, "needs 'a'"),
        (Point, (), {}, r"Point\(\) needs 'x'"),
        (narrow_wrapper, (1,), {}, "takes at most 0"),
        (print, (1,), {"delay": 60}, r"print\(\) .*'delay'; a delay is eta=timedelta\(seconds=60\)"),
        (len, (), {}, r"len\(\) missing a required argument"),
        (partial(multiply, 1), (), {"delay": 1}, "'delay'"),
        (partial(multiply, 1, 2), (3,), {}, "takes at most 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_misfit_says_what_is_wrong_and_what_was_meant(
    path: Path, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """The error names the function and the argument, and for the options of other queues what there is here."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        with pytest.raises(TypeError, match=message):
            queue.enqueue(func, *args, **kwargs)
        with pytest.raises(TypeError, match=message):
            queue.enqueue_many([partial(task), partial(func, *args, **kwargs)])
    assert rows(path) == []


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (takes_anything, (1, 2), {"delay": 60, "priority": 1}),
        (wrapper, (1, 2), {"delay": 60}),
        (ComesBackAsAFunction(), (1, 2), {}),
        (MakesOthers, (1, 2), {}),
        (cached, (1, 2), {}),
        (Box().method, (), {"a": 1}),
        (Point, (1,), {"y": 2}),
        (dict, (), {"delay": 60}),
        (max, (1, 2), {}),
        ("four".upper, (), {}),
        (print, (), {"end": ""}),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_what_can_be_called_is_let_through(
    queue: TaskQueue, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """What Python would call is never refused: a declared signature, or one that is not known, does not count."""
    assert await queue.enqueue(func, *args, **kwargs)
    assert await queue.enqueue_many([partial(func, *args, **kwargs)])


async def test_an_import_path_is_not_bound(queue: TaskQueue) -> None:
    """The producer may not have the code: what it names is not inspected."""
    assert await queue.enqueue("tests.test_signatures:task", 1, 2, delay=60)


def test_a_closure_is_not_kept_alive() -> None:
    """What was checked is remembered nowhere."""

    class Large:
        """What a closure holds."""

        gone = False

        def __del__(self) -> None:
            Large.gone = True

    def make() -> Callable[[int], Any]:
        large = Large()
        return lambda n: (large, n)

    check_call(make(), (1,), {})
    assert Large.gone


def test_what_other_queues_call_things_is_known_once() -> None:
    """Each word has one meaning; those of sitq itself are among them, for calls behind ``options``."""
    assert {"delay", "countdown", "schedule", "defer_by", "run_at", "priority", "queue", "retries", "retry"} <= {*MEANT}
    assert {"timeout", "expires", "job_id"} <= {*MEANT}
    assert {"eta", "context", "max_attempts"} <= {*MEANT}
