"""Whatever a task raises, carries or returns, it is at worst a failed task that ran once."""

import asyncio
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sitq import Result, SQLiteBackend, TaskQueue, Worker
from tests.support import Runs, add, rows
from tests.worker_tasks import execute


class TwoArgumentsError(Exception):
    """Is pickled, and then fails to load."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class MuteError(Exception):
    """Cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class HostileError(Exception):
    """Ends the program when it is turned into text."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class HostileNotesError(Exception):
    """Ends the program when a traceback asks for its notes."""

    @property
    def __notes__(self) -> NoReturn:
        raise SystemExit(3)


class OwnBaseError(BaseException):
    """Is not an Exception."""


def make(kind: type[BaseException], *args: Any) -> BaseException:
    """Returns an exception."""
    return kind(*args)


def helper(raised: Callable[[], BaseException]) -> NoReturn:
    """Raises, one frame below the task."""
    raise raised()


def raise_plain(runs: Runs, raised: Callable[[], BaseException]) -> NoReturn:
    """Logs that it ran, and raises."""
    runs.add("ran")
    helper(raised)


async def raise_at_once(runs: Runs, raised: Callable[[], BaseException]) -> NoReturn:
    """As :func:`raise_plain`, before the loop turns."""
    raise_plain(runs, raised)


async def raise_later(runs: Runs, raised: Callable[[], BaseException]) -> NoReturn:
    """As :func:`raise_plain`, after the loop turned."""
    await asyncio.sleep(0)
    raise_plain(runs, raised)


async def raise_from_loop_and_thread(runs: Runs, raised: Callable[[], BaseException]) -> NoReturn:
    """As :func:`raise_plain`, with another exception as the cause."""
    try:
        raise LookupError("the cause")
    except LookupError as cause:
        runs.add("ran")
        raise raised() from cause


async def cancel_itself(runs: Runs) -> None:
    """Cancels its own asyncio task."""
    runs.add("ran")
    own = asyncio.current_task()
    assert own is not None
    own.cancel()
    await asyncio.sleep(0)


async def cancel_all_but_itself(runs: Runs) -> str:
    """Cancels what it made itself, as a task group does, and goes on."""
    runs.add("ran")
    child = asyncio.create_task(asyncio.Event().wait())
    child.cancel()
    await asyncio.wait([child])
    return "went on"


async def exits_in_child(runs: Runs) -> None:
    """Awaits a thread that ends the program."""
    runs.add("ran")
    await asyncio.to_thread(sys.exit, 3)


async def finished(queue: TaskQueue, task_id: str) -> Result[Any]:
    """Returns the result of a task that will be finished."""
    result = await queue.get_result(task_id)
    assert result is not None
    return result


async def run_between_neighbours(queue: TaskQueue, call: Callable[[], Any], backend: SQLiteBackend) -> Result[Any]:
    """Runs ``call`` in one batch with two good tasks, and a task after them; gives its result."""
    async with Worker(backend):
        ids = await queue.enqueue_many([partial(add, 1, 2), call, partial(add, 3, 4)])
        results = [await finished(queue, id_) for id_ in ids]
        assert [results[0].value, results[2].value] == [3, 7]
        after = await finished(queue, await queue.enqueue(add, 5, 6))
        assert after.value == 11
    return results[1]


@pytest.mark.parametrize("task", [raise_plain, raise_at_once, raise_later])
@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (partial(make, ValueError, "no"), "ValueError: no"),
        (partial(make, KeyError, "key"), "KeyError: 'key'"),
        (partial(make, SystemExit, 3), "SystemExit: 3"),
        (partial(make, KeyboardInterrupt), "KeyboardInterrupt: "),
        (partial(make, GeneratorExit, "over"), "GeneratorExit: over"),
        (partial(make, asyncio.CancelledError, "mine"), "CancelledError: mine"),
        (partial(make, TimeoutError), "TimeoutError: "),
        (partial(make, OwnBaseError, "base"), "OwnBaseError: base"),
        (partial(make, TwoArgumentsError, 7, "seven"), "TwoArgumentsError: 7: seven"),
        (partial(make, MuteError), "MuteError: <str() of the exception raised RuntimeError>"),
        (partial(make, HostileError), "HostileError: <str() of the exception raised SystemExit>"),
        (partial(make, HostileNotesError, "no"), "HostileNotesError: no"),
        (partial(make, ValueError, "lone \ud800 surrogate"), "ValueError: lone \\ud800 surrogate"),
        (partial(make, ExceptionGroup, "group", [ValueError("a")]), "ExceptionGroup: group (1 sub-exception)"),
    ],
    ids=lambda value: value.args[0].__name__ if isinstance(value, partial) else "",
)
async def test_a_task_that_raises_anything_is_failed_after_one_attempt(
    task: Callable[..., Any],
    raised: Callable[[], BaseException],
    error: str,
    queue: TaskQueue,
    backend: SQLiteBackend,
    runs: Runs,
) -> None:
    """It ran once, its error is text that reads well, and the worker runs its neighbours and the next task."""
    result = await run_between_neighbours(queue, partial(task, runs, raised), backend)
    assert (result.status, result.error, result.attempt) == ("failed", error, 1)
    assert runs.lines() == ["ran"]


@pytest.mark.parametrize(
    ("task", "error"),
    [(raise_plain, "StopIteration: over"), (raise_at_once, "RuntimeError: coroutine raised StopIteration")],
)
async def test_a_stop_iteration_is_a_failed_task(
    task: Callable[..., Any], error: str, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """StopIteration, which no future takes, fails the task as Python has it."""
    result = await run_between_neighbours(queue, partial(task, runs, partial(make, StopIteration, "over")), backend)
    assert (result.status, result.error) == ("failed", error)


@pytest.mark.parametrize("task", [cancel_itself, exits_in_child])
async def test_a_task_that_ends_itself_from_outside_is_failed(
    task: Callable[..., Any], queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """A task that cancels itself, or awaits what raises SystemExit, is failed and not given back."""
    result = await run_between_neighbours(queue, partial(task, runs), backend)
    assert (result.status, result.attempt) == ("failed", 1)
    assert runs.lines() == ["ran"]


async def test_a_cancellation_inside_a_task_is_its_own_affair(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """A task that cancels a child of its own succeeds."""
    result = await run_between_neighbours(queue, partial(cancel_all_but_itself, runs), backend)
    assert result.unwrap() == "went on"


@pytest.mark.parametrize("task", [raise_plain, raise_at_once, raise_later])
async def test_the_traceback_shows_the_line_that_raised(
    task: Callable[..., Any], path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """The traceback ends in the helper that raised, can be read in the file, and sitq's frames are not the last."""
    result = await run_between_neighbours(queue, partial(task, runs, partial(make, ValueError, "no")), backend)
    assert result.traceback is not None
    last_frame, source, message = result.traceback.rstrip().splitlines()[-3:]
    assert f'"{__file__}"' in last_frame
    assert last_frame.endswith("in helper")
    assert source.strip() == "raise raised()"
    assert message == "ValueError: no"
    assert [row["traceback"] for row in rows(path) if row["error"]] == [result.traceback]


async def test_the_traceback_shows_the_cause(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """Of ``raise B from A`` both are in the traceback."""
    call = partial(raise_from_loop_and_thread, runs, partial(make, ValueError, "the effect"))
    traceback = (await run_between_neighbours(queue, call, backend)).traceback or ""
    assert traceback.index("LookupError: the cause") < traceback.index("ValueError: the effect")


async def test_a_very_long_message_is_cut(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """An error of a million characters keeps its beginning and its end, and says that it was cut; so its traceback."""
    call = partial(raise_plain, runs, partial(make, ValueError, "begin" + "x" * 1_000_000 + "end"))
    result = await run_between_neighbours(queue, call, backend)
    assert result.error is not None
    assert result.error.startswith("ValueError: begin")
    assert result.error.endswith("end")
    assert "left out" in result.error
    assert len(result.error) < 20_000
    assert "left out" in (result.traceback or "")
    assert len(result.traceback or "") < 200_000


class Explodes:
    """Raises while it is loaded."""

    def __init__(self, raised: Callable[[], BaseException]) -> None:
        self.raised = raised

    def __reduce__(self) -> tuple[Any, ...]:
        return helper, (self.raised,)


def endless(depth: int = 0) -> int:
    """Calls itself until Python gives up."""
    return endless(depth + 1)


class Recurses:
    """Recurses endlessly while it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return endless, ()


def payloads() -> Iterator[tuple[str, bytes, str]]:
    """Yields a name, the bytes of a payload that cannot be loaded, and a part of the error."""
    call = pickle.dumps({"func": add, "args": (1, 2), "kwargs": {}, "context": {}}, 5)
    yield "nested-too-deeply", pickle.dumps(Recurses()), "RecursionError: the payload cannot be loaded: "
    yield "empty", b"", "EOFError"
    yield "cut-off", call[:-5], "pickle data was truncated"
    yield "cut-in-half", call[: len(call) // 2], ""
    yield "noise", bytes(range(256)), "UnpicklingError"
    yield "other-object", pickle.dumps([1, 2, 3]), "does not hold a call"
    yield "incomplete", pickle.dumps({"func": add}), "does not hold a call"
    yield "not-callable", pickle.dumps({"func": 5, "args": (), "kwargs": {}, "context": {}}), "TypeError"
    yield "bad-arguments", pickle.dumps({"func": add, "args": 5, "kwargs": 6, "context": {}}), "TypeError"
    yield "no-module", call.replace(b"tests.support", b"tests.missing"), "ModuleNotFoundError"
    yield "no-function", call.replace(b"\x8c\x03add", b"\x8c\x03odd"), "AttributeError"
    for error in (ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, RecursionError):
        yield (
            error.__name__,
            pickle.dumps(Explodes(partial(make, error, "loading"))),
            f"{error.__name__}: the payload cannot be loaded: loading",
        )
    yield "import-path", pickle.dumps({"func": "tests.missing:f", "args": (), "kwargs": {}, "context": {}}), "resolve"


@pytest.mark.parametrize(
    ("payload", "error"), [pytest.param(payload, error, id=name) for name, payload, error in payloads()]
)
async def test_a_payload_that_cannot_be_loaded_is_a_failed_task(
    payload: bytes, error: str, path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """A row with such bytes is failed after one attempt with the reason, and its batch is run."""
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(3))
    execute(path, "UPDATE tasks SET payload = ? WHERE task_id = ?", payload, ids[1])
    assert await Worker(backend).drain() == 3
    results = [await finished(queue, id_) for id_ in ids]
    assert [results[0].value, results[2].value] == [0, 4]
    assert (results[1].status, results[1].attempt) == ("failed", 1)
    assert error in (results[1].error or "")


@pytest.mark.parametrize("format_", ["sitq-2 cpython-3.13 cloudpickle-3.1", "json", ""])
async def test_a_payload_of_another_format_is_refused_without_being_loaded(
    format_: str, path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs
) -> None:
    """By-value bytes of another format fail the task with a message that names both formats, and are not loaded."""
    value = 1
    task_id = await queue.enqueue(lambda: runs.add(value))
    execute(path, "UPDATE tasks SET format = ? WHERE task_id = ?", format_, task_id)
    assert await Worker(backend).drain() == 1
    result = await finished(queue, task_id)
    assert result.status == "failed"
    assert (result.error or "").startswith("SerializationError: ")
    assert format_ in (result.error or "")
    assert rows(path)[0]["format"] == format_
    assert runs.lines() == []


class EndsWhenPickled:
    """A value that ends the program when it is pickled."""

    def __reduce__(self) -> NoReturn:
        sys.exit(3)


def results_that_fail() -> Iterator[tuple[str, Callable[[], Any], str]]:
    """Yields a name, what makes a result that cannot be stored, and a part of the error."""
    yield "open-file", partial(open, os.devnull, "wb"), "BufferedWriter"
    yield "lock", threading.Lock, "lock"
    yield "generator", partial(iter_numbers), "generator"
    yield "exits", EndsWhenPickled, "SystemExit: the task ran"
    yield "recursive", deep_list, "recursion"
    yield "too-large", partial(bytes, 5000), "5"


def iter_numbers() -> Iterator[int]:
    """Yields a number."""
    yield 1


def deep_list() -> list[Any]:
    """Returns a list in a list, and so on."""
    outer: list[Any] = []
    for _ in range(100_000):
        outer = [outer]
    return outer


def return_made(runs: Runs, make_result: Callable[[], Any]) -> Any:
    """Logs that it ran and returns what ``make_result`` makes."""
    runs.add("ran")
    return make_result()


async def return_made_async(runs: Runs, make_result: Callable[[], Any]) -> Any:
    """As :func:`return_made`, in a coroutine."""
    return return_made(runs, make_result)


@pytest.mark.parametrize("task", [return_made, return_made_async])
@pytest.mark.parametrize(
    ("make_result", "error"), [pytest.param(make, error, id=name) for name, make, error in results_that_fail()]
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
async def test_a_result_that_cannot_be_stored_is_a_failed_task_that_ran_once(
    task: Callable[..., Any], make_result: Callable[[], Any], error: str, path: Path, runs: Runs
) -> None:
    """The error says that the task ran and why its result is not there; its neighbours are recorded."""
    backend = SQLiteBackend(path, max_payload_bytes=4000)
    async with TaskQueue(backend) as queue:
        result = await run_between_neighbours(queue, partial(task, runs, make_result), backend)
        assert await Worker(backend).drain() == 0
    assert (result.status, result.attempt, result.value) == ("failed", 1, None)
    assert "the task ran, but its result" in (result.error or "")
    assert error in (result.error or "")
    assert runs.lines() == ["ran"]


async def test_the_error_of_a_result_that_is_too_large_gives_both_sizes(path: Path, runs: Runs) -> None:
    """It says how large the result is and how large it may be."""
    backend = SQLiteBackend(path, max_payload_bytes=4000)
    async with TaskQueue(backend) as queue:
        result = await run_between_neighbours(queue, partial(return_made, runs, partial(bytes, 5000)), backend)
    sizes = [int(word) for word in (result.error or "").split() if word.isdigit()]
    assert len(sizes) == 2
    assert sizes[0] >= 5000
    assert sizes[1] == 4000
