"""Bad input: refused with the named error before anything is stored, by both queues alike."""

import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pytest

from sitq import SerializationError, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker
from tests.support import add, rows

LIMIT_BYTES = 10_000
LOCK = threading.Lock()
NAIVE = datetime(2027, 1, 1)  # noqa: DTZ001 - what is refused


class NoOffset(tzinfo):
    """A time zone that does not know its offset, which makes a datetime naive."""

    def utcoffset(self, moment: datetime | None) -> None:
        """Does not know."""


class IterableError(Exception):
    """What an iterable of calls raises."""


def failing_iterable() -> Iterator[Callable[[], Any]]:
    """Gives some calls and then raises."""
    yield from [partial(add, 1, 2)] * 600
    raise IterableError("halfway")


def closure_over_a_lock() -> Callable[[], bool]:
    """A function that cannot be pickled, for what it carries cannot."""
    lock = threading.Lock()
    return lambda: lock.locked()


def closure_over(value: Any) -> Callable[[], Any]:
    """A function that carries a value."""
    return lambda: value


def one_bad_among(bad: Any) -> list[Callable[[], Any]]:
    """A hundred calls, of which the last one is bad."""
    return [*[partial(add, 1, 2)] * 99, bad]


class Case(NamedTuple):
    """A call of a queue, and how it is refused."""

    name: str
    call: Callable[[Any], Any]
    error: type[Exception]
    message: str


CASES = [
    Case("an int", lambda queue: queue.enqueue(42), TypeError, "callable"),
    Case("None", lambda queue: queue.enqueue(None), TypeError, "callable"),
    Case("bytes for a path", lambda queue: queue.enqueue(b"os:getpid"), TypeError, "callable"),
    Case("a call instead of a callable", lambda queue: queue.enqueue(len("x"), 1), TypeError, "callable"),
    Case("a path without a name", lambda queue: queue.enqueue("package.module"), ValueError, "package.module:qualname"),
    Case("a path without a module", lambda queue: queue.enqueue(":name"), ValueError, "package.module:qualname"),
    Case("a path with no name", lambda queue: queue.enqueue("module:"), ValueError, "package.module:qualname"),
    Case("a path with spaces", lambda queue: queue.enqueue("not a module:f"), ValueError, "package.module:qualname"),
    Case("a path with two colons", lambda queue: queue.enqueue("a:b:c"), ValueError, "package.module:qualname"),
    Case("a path that is relative", lambda queue: queue.enqueue(".tasks:f"), ValueError, "package.module:qualname"),
    Case("a path with a call", lambda queue: queue.enqueue("tasks:f()"), ValueError, "package.module:qualname"),
    Case("a path to a local", lambda queue: queue.enqueue("t:f.<locals>.g"), ValueError, "package.module:qualname"),
    Case("an empty path", lambda queue: queue.enqueue(""), ValueError, "package.module:qualname"),
    Case("a naive eta", lambda queue: queue.enqueue(add, 1, 2, eta=NAIVE), ValueError, r"datetime\.now\(UTC\)"),
    Case(
        "an eta without an offset",
        lambda queue: queue.enqueue(add, 1, 2, eta=NAIVE.replace(tzinfo=NoOffset())),
        ValueError,
        r"tzinfo=UTC",
    ),
    Case("an eta in seconds", lambda queue: queue.enqueue(add, 1, 2, eta=5), TypeError, "eta must be a datetime"),
    Case("an eta of zero", lambda queue: queue.enqueue(add, 1, 2, eta=0), TypeError, "eta must be a datetime"),
    Case("a text as eta", lambda queue: queue.enqueue(add, 1, 2, eta="2027-01-01"), TypeError, "eta must be"),
    Case("a date as eta", lambda queue: queue.enqueue(add, 1, 2, eta=date(2027, 1, 1)), TypeError, "eta must be"),
    Case(
        "a delay of more than a century",
        lambda queue: queue.enqueue(add, 1, 2, eta=timedelta(days=36_600)),
        ValueError,
        "eta must be at most a hundred years",
    ),
    Case("the longest delay", lambda queue: queue.enqueue_many([], eta=timedelta.max), ValueError, "a hundred years"),
    Case(
        "an eta after the end of time",
        lambda queue: queue.enqueue(add, 1, 2, eta=datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))),
        ValueError,
        "eta",
    ),
    Case("a list as context", lambda queue: queue.enqueue(add, 1, 2, context=["a"]), TypeError, "context must be"),
    Case("a text as context", lambda queue: queue.enqueue(add, 1, 2, context=""), TypeError, "context must be"),
    Case("pairs as context", lambda queue: queue.enqueue(add, 1, context=[("a", 1)]), TypeError, "context must be"),
    Case("a keyword", lambda queue: queue.enqueue(dict, lock=LOCK), SerializationError, "'lock'.*a lock,"),
    Case("a position", lambda queue: queue.enqueue(add, 1, LOCK), SerializationError, r"argument 1\b.*a lock,"),
    Case("inside an argument", lambda queue: queue.enqueue(add, 1, [{"a": LOCK}]), SerializationError, "argument 1 "),
    Case("in a partial", lambda queue: queue.enqueue(partial(add, 1, b=LOCK)), SerializationError, "'b' of tests"),
    Case("the function", lambda queue: queue.enqueue(closure_over_a_lock()), SerializationError, "the function"),
    Case("a method", lambda queue: queue.enqueue(LOCK.acquire), SerializationError, "the function"),
    Case("a context", lambda queue: queue.enqueue(dict, context={"a": LOCK}), SerializationError, r"context\['a'\]"),
    Case("a context's key", lambda queue: queue.enqueue(dict, context={LOCK: 1}), SerializationError, "context"),
    Case("an open file", lambda queue: queue.enqueue(len, open_file()), SerializationError, f"argument 0 .*{__file__}"),
    Case(
        "an open file inside",
        lambda queue: queue.enqueue(len, [{"log": open_file()}]),
        SerializationError,
        "argument 0 .*an open file, .*pass its path",
    ),
    Case(
        "an open file by name",
        lambda queue: queue.enqueue(dict, log=open_file()),
        SerializationError,
        "argument 'log' .*an open file",
    ),
    Case(
        "an open file of a closure",
        lambda queue: queue.enqueue(closure_over(open_file())),
        SerializationError,
        "closure_over.*outer variable 'value', a TextIOWrapper.*an open file",
    ),
    Case(
        "a payload over the limit",
        lambda queue: queue.enqueue(len, bytes(2 * LIMIT_BYTES)),
        ValueError,
        r"\b200\d\d\b.*\b10000\b",
    ),
    Case("one that is no callable", lambda queue: queue.enqueue_many(one_bad_among(42)), TypeError, "callable"),
    Case("one that does not fit", lambda queue: queue.enqueue_many(one_bad_among(add)), TypeError, "needs 'a' and 'b'"),
    Case("one bad path", lambda queue: queue.enqueue_many(one_bad_among("bad")), ValueError, "package.module:qualname"),
    Case(
        "one that cannot be pickled",
        lambda queue: queue.enqueue_many(one_bad_among(partial(add, 1, LOCK))),
        SerializationError,
        "argument 1 of tests.support:add",
    ),
    Case(
        "one over the limit",
        lambda queue: queue.enqueue_many(one_bad_among(partial(len, bytes(2 * LIMIT_BYTES)))),
        ValueError,
        r"\b200\d\d\b.*\b10000\b",
    ),
    Case("an iterable that fails", lambda queue: queue.enqueue_many(failing_iterable()), IterableError, "halfway"),
    Case("no iterable", lambda queue: queue.enqueue_many(42), TypeError, "iterable"),
    Case("a callable for calls", lambda queue: queue.enqueue_many(partial(add, 1, 2)), TypeError, "iterable"),
    Case("a naive eta for many", lambda queue: queue.enqueue_many([len], eta=NAIVE), ValueError, "naive"),
    Case("a naive eta for none", lambda queue: queue.enqueue_many([], eta=NAIVE), ValueError, "naive"),
    Case("a bad context for many", lambda queue: queue.enqueue_many([len], context=[1]), TypeError, "context must be"),
    Case("a bad context for none", lambda queue: queue.enqueue_many([], context=[1]), TypeError, "context must be"),
    Case(
        "a context for many", lambda queue: queue.enqueue_many([dict], context={"a": LOCK}), SerializationError, "'a'"
    ),
    Case("a negative timeout", lambda queue: queue.get_result("x", timeout=-1), ValueError, "timeout"),
    Case("a timeout just below 0", lambda queue: queue.get_result("x", -1e-9), ValueError, "timeout"),
    Case("a timeout without end", lambda queue: queue.get_result("x", math.inf), ValueError, "timeout"),
    Case("a timeout that is no number", lambda queue: queue.get_result("x", math.nan), ValueError, "timeout"),
    Case("a timeout as text", lambda queue: queue.get_result("x", "5"), TypeError, "timeout"),
    Case("a timeout as bool", lambda queue: queue.get_result("x", True), TypeError, "timeout"),
    Case("a timeout as timedelta", lambda queue: queue.get_result("x", timedelta(1)), TypeError, "timeout"),
    Case("no id", lambda queue: queue.get_result(None), TypeError, "task_id"),
    Case("an id of bytes", lambda queue: queue.get_result(b"x", timeout=0), TypeError, "task_id"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@cache
def open_file() -> TextIO:
    """A file that some of the cases pass."""
    return Path(__file__).open()


@pytest.fixture(autouse=True, scope="module")
def closes_it() -> Iterator[None]:
    """Opens the file and closes it."""
    with open_file():
        yield


def check(caught: pytest.ExceptionInfo[Exception], case: Case, path: Path) -> None:
    """Holds a refusal to what all of them promise."""
    assert type(caught.value) is case.error
    assert rows(path) == []
    if case.error is SerializationError:
        assert isinstance(caught.value.__cause__, Exception)
        assert not isinstance(caught.value.__cause__, SerializationError)


@every_case
async def test_bad_input_is_refused_and_nothing_is_stored(path: Path, case: Case) -> None:
    """The error is the named one, says what was wrong, and leaves the file without a row; the queue goes on."""
    async with TaskQueue(SQLiteBackend(path, max_payload_bytes=LIMIT_BYTES)) as queue:
        with pytest.raises(case.error, match=case.message) as caught:
            await case.call(queue)
        check(caught, case, path)
        await queue.enqueue(add, 1, 2)
    assert len(rows(path)) == 1


@every_case
def test_sync_code_gets_the_same_refusals(path: Path, case: Case) -> None:
    """A ``SyncTaskQueue`` raises what ``TaskQueue`` raises, stores nothing, and goes on."""
    with SyncTaskQueue(SQLiteBackend(path, max_payload_bytes=LIMIT_BYTES)) as queue:
        with pytest.raises(case.error, match=case.message) as caught:
            case.call(queue)
        check(caught, case, path)
        queue.enqueue(add, 1, 2)
    assert len(rows(path)) == 1


@pytest.mark.parametrize("make", [TaskQueue, SyncTaskQueue])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_attempts": 0}, ValueError),
        ({"max_attempts": -1}, ValueError),
        ({"max_attempts": 10**20}, ValueError),
        ({"max_attempts": 1.5}, TypeError),
        ({"max_attempts": True}, TypeError),
        ({"max_attempts": None}, TypeError),
        ({"default_result_timeout": -1}, ValueError),
        ({"default_result_timeout": math.inf}, ValueError),
        ({"default_result_timeout": math.nan}, ValueError),
        ({"default_result_timeout": "1"}, TypeError),
        ({"default_result_timeout": False}, TypeError),
    ],
    ids=str,
)
def test_a_bad_number_is_refused_by_the_constructor(make: Any, arguments: dict[str, Any], error: type) -> None:
    """The error names the argument."""
    with pytest.raises(error, match=next(iter(arguments))):
        make(**arguments)


@pytest.mark.parametrize("eta", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)], ids=str)
async def test_the_ends_of_time_are_an_eta(queue: TaskQueue, path: Path, eta: datetime) -> None:
    """The first and the last moment that a datetime can hold in UTC are taken."""
    await queue.enqueue(add, 1, 2, eta=eta)
    assert len(rows(path)) == 1


async def test_a_payload_at_the_limit_is_stored(path: Path) -> None:
    """The limit is the largest size that is taken: one byte more is refused."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(len, bytes(1000))
    (size,) = (len(row["payload"]) for row in rows(path))
    async with TaskQueue(SQLiteBackend(path, max_payload_bytes=size)) as queue:
        await queue.enqueue(len, bytes(1000))
        with pytest.raises(ValueError, match=rf"\b{size + 1}\b.*\b{size}\b"):
            await queue.enqueue(len, bytes(1001))
    assert len(rows(path)) == 2


@pytest.mark.parametrize("make", [TaskQueue, SyncTaskQueue, Worker])
@pytest.mark.parametrize("path", ["jobs.db", Path("jobs.db")], ids=["str", "path"])
def test_a_path_is_no_backend(make: Callable[..., Any], path: str | Path) -> None:
    """Other libraries take one; the error shows what to write here."""
    with pytest.raises(TypeError, match=r"write SQLiteBackend\('jobs\.db'\)"):
        make(path)


@pytest.mark.parametrize("make", [TaskQueue, SyncTaskQueue, Worker])
def test_what_is_no_backend_or_no_serializer_is_refused(make: Callable[..., Any]) -> None:
    """When it is given, and not by each task later."""
    with pytest.raises(TypeError, match="backend must be a Backend, not object"):
        make(object())
    with pytest.raises(TypeError, match="serializer must be a Serializer, not object"):
        make(serializer=object())
