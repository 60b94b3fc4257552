"""How calls become bytes and come back: by reference or by value, across versions, by a serializer of one's own."""

import asyncio
import json
import operator
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cloudpickle
import pytest

from sitq import (
    CloudpickleSerializer,
    NewTask,
    Result,
    SerializationError,
    Serializer,
    SQLiteBackend,
    TaskQueue,
    Worker,
    current_task,
)
from sitq.models import Outcome
from sitq.serializers.calls import Call, make_call
from sitq.serializers.envelope import dump_call, load_call
from tests.support import Runs, add, log_plain, rows

SERIALIZER = CloudpickleSerializer()
ENVELOPE, PYTHON, CLOUDPICKLE = SERIALIZER.format.split()
STORED_BY_1_0 = bytes.fromhex(
    "80059544000000000000007d94288c0466756e63948c095f6f70657261746f72948c036164649493948c0461726773944b014b0286948c066b7761726773947d948c07636f6e74657874947d94752e"
)
"""A call of ``operator.add`` with 1 and 2."""

OTHER_PYTHONS = ["cpython-3.12", "cpython-3.99", "pypy-3.13"]


class JsonSerializer:
    """A user's own serializer: JSON, and functions by their import path only."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def format(self) -> str:
        """Names the format."""
        return "json-1"

    def dumps(self, value: Any) -> bytes:
        """Writes JSON."""
        self.calls.append("dumps")
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        """Reads JSON."""
        self.calls.append("loads")
        return json.loads(data)

    def check_format(self, data: bytes, format: str) -> None:  # noqa: A002 - the name of the protocol
        """Takes its own format only."""
        self.calls.append("check_format")
        if format != self.format:
            raise SerializationError(f"this worker reads {self.format}, not {format}")


@pytest.fixture
def own() -> JsonSerializer:
    """A serializer of the user's own, which derives from nothing of sitq's."""
    serializer = JsonSerializer()
    assert isinstance(serializer, Serializer)
    return serializer


class Marks:
    """Something whose loading leaves a trace, and whose pickle carries nothing by value."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def __reduce__(self) -> Any:
        """Makes a pickle that writes when it is loaded."""
        return log_plain, (self.runs, "loaded")


class Point:
    """A class of an importable module."""

    def __init__(self, x: int) -> None:
        self.x = x

    def method(self) -> int:
        """A method."""
        return self.x


def raises_system_exit() -> None:
    """Ends programs."""
    raise SystemExit("ended")


class EndsProgramOnLoading:
    """Something that raises ``SystemExit`` when it is loaded."""

    def __reduce__(self) -> Any:
        """Makes a pickle that raises."""
        return raises_system_exit, ()


def of_main(name: str, bases: tuple[type, ...] = ()) -> Any:
    """Makes a class as a script would: one that says that it is of ``__main__``."""
    return type(name, bases, {"__module__": "__main__", "n": 7})


def context_of_task() -> dict[str, Any]:
    """Gives the context of the running task."""
    return dict(current_task().context)


def envelope(func: Any, *args: Any) -> bytes:
    """Makes the payload of a call as the queue does."""
    return SERIALIZER.dumps({"func": func, "args": args, "kwargs": {}, "context": {}})


def globals_of(data: bytes) -> set[str]:
    """Returns the modules that a pickle imports from, found without loading it."""
    strings: list[str] = []
    memo: list[str | None] = []
    found = set()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"SHORT_BINUNICODE", "BINUNICODE"}:
            strings.append(str(argument))
        elif opcode.name == "MEMOIZE":
            memo.append(strings[-1] if strings else None)
        elif opcode.name in {"BINGET", "LONG_BINGET"}:
            strings.append(memo[int(str(argument))] or "")
        elif opcode.name == "STACK_GLOBAL":
            found.add(strings[-2])
    return found


async def run_stored(backend: SQLiteBackend, payload: bytes, format_: str) -> Result[Any]:
    """Has a worker run a task as it may stand in the file, between two good ones, and returns what became of it."""
    good = [NewTask(f"good {n}", envelope(add, n, n), "good", SERIALIZER.format) for n in range(2)]
    await backend.connect()
    try:
        await backend.enqueue([good[0], NewTask("the-task", payload, "stored", format_), good[1]])
        assert await Worker(backend).drain() == 3
        async with TaskQueue(backend) as queue:
            results = [await queue.get_result(task_id) for task_id in ("good 0", "good 1", "the-task")]
    finally:
        await backend.close()
    assert [result and result.value for result in results[:2]] == [0, 2]
    result = results[2]
    assert result is not None
    assert result.attempt == 1
    return result


@pytest.mark.parametrize(
    "value",
    [
        {"func": add, "args": (1, "two", b"three", [4.0, None]), "kwargs": {"five": {6, True}}, "context": {"a": (7,)}},
        7,
        Point(1),
        Point(1).method,
        Point,
        len,
        os.path.join,
        ValueError("no"),
        timedelta(1),
        threading.Thread,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_importable_goes_by_reference(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain pickle, loadable by pickle alone, that names functions and classes and holds nothing of cloudpickle's."""
    monkeypatch.setattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", set())  # of other tests of the process
    data = SERIALIZER.dumps(value)
    assert not any(module.startswith("cloudpickle") for module in globals_of(data))
    assert type(pickle.loads(data)) is type(value)


@pytest.mark.parametrize(
    ("value", "use", "expected"),
    [
        (lambda a: a + 1, lambda value: value(1), 2),
        ([{"deep": (lambda: 5,)}], lambda value: value[0]["deep"][0](), 5),
        (of_main("Main"), lambda value: value.n, 7),
        (of_main("Main")(), lambda value: value.n, 7),
        (of_main("MainError", (Exception,))("no"), str, "no"),
        (types.ModuleType("made_up"), lambda value: value.__name__, "made_up"),
        (json, lambda value: value.dumps([1]), "[1]"),
    ],
    ids=["lambda", "lambda inside", "class of main", "object of main", "exception of main", "made-up module", "module"],
)
def test_what_is_not_importable_goes_by_value(value: Any, use: Callable[[Any], Any], expected: object) -> None:
    """It is carried by cloudpickle, and what comes back works."""
    data = SERIALIZER.dumps(value)
    assert any(module.startswith("cloudpickle") for module in globals_of(data))
    assert use(SERIALIZER.loads(data)) == expected


def test_a_function_that_its_module_no_longer_names_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that now means another object would be the wrong reference."""
    original = log_plain
    monkeypatch.setattr("tests.support.log_plain", lambda *_: None)
    assert b"cloudpickle" in SERIALIZER.dumps(original)


def test_a_module_registered_for_by_value_is_carried_so() -> None:
    """The register that cloudpickle keeps of modules is heeded."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        assert b"cloudpickle" in SERIALIZER.dumps(context_of_task)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"cloudpickle" not in SERIALIZER.dumps(context_of_task)


async def test_a_stored_call_loads_without_sitq(queue: TaskQueue, path: Path) -> None:
    """In a program that cannot import sitq, the payload is a dictionary of four keys around the caller's objects."""
    await queue.enqueue(os.path.join, "a", "b", context={"tenant": "t"})
    (row,) = rows(path)
    program = """
import pickle, sys
try:
    import sitq
    sys.exit("sitq can be imported")
except ImportError:
    print(pickle.loads(sys.stdin.buffer.read()))
"""
    command = [sys.executable, "-I", "-S", "-c", program]
    done = await asyncio.to_thread(subprocess.run, command, input=row["payload"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"{'func': <function join at ")
    assert done.stdout.strip().endswith(b"'args': ('a', 'b'), 'kwargs': {}, 'context': {'tenant': 't'}}")


def test_a_call_without_options_is_stored_as_ever() -> None:
    """Byte for byte as in 1.0, so that workers of 1.0 and producers after it work on one file."""
    assert dump_call(SERIALIZER, make_call(operator.add, (1, 2))) == envelope(operator.add, 1, 2) == STORED_BY_1_0


def test_what_1_0_stored_is_a_call_without_options() -> None:
    """Read back, it has none: no missing key is an error."""
    call = load_call(SERIALIZER, STORED_BY_1_0, SERIALIZER.format)
    assert call == Call(operator.add, (1, 2), {}, {})
    assert call.options == {}


def test_options_are_one_key_more_in_the_envelope() -> None:
    """Whoever does not know that key finds all the others as they are without it."""
    plain = make_call(add, (1,), {"b": 2}, {"tenant": "t"})
    options = {"timeout": 5.0, "retry": {"on": [KeyError, Point]}}
    stored = SERIALIZER.loads(dump_call(SERIALIZER, plain._replace(options=MappingProxyType(options))))
    assert stored.pop("options") == options
    assert stored == SERIALIZER.loads(dump_call(SERIALIZER, plain))


@pytest.mark.parametrize("kind", ["cloudpickle", "own"])
def test_options_come_back_as_they_were_stored(own: JsonSerializer, kind: str) -> None:
    """By pickle and by a serializer of the user's own."""
    serializer: Serializer = SERIALIZER if kind == "cloudpickle" else own
    call = make_call("tests.support:add", (1, 2))._replace(options={"timeout": 5.0, "retry": {"retries": 3}})
    loaded = load_call(serializer, dump_call(serializer, call), serializer.format)
    assert loaded.func is add
    assert loaded.options == {"timeout": 5.0, "retry": {"retries": 3}}


def test_an_option_that_cannot_be_serialized_is_named() -> None:
    """As an argument is."""
    call = make_call(add, (1, 2))._replace(options={"timeout": 5.0, "lock": threading.Lock()})
    with pytest.raises(SerializationError, match=r"option 'lock' of .*, a lock, cannot be"):
        dump_call(SERIALIZER, call)


async def test_a_worker_passes_over_options_that_it_does_not_know(backend: SQLiteBackend) -> None:
    """The task is run without them."""
    payload = dump_call(SERIALIZER, make_call(add, (1, 2))._replace(options={"of-a-newer-sitq": [1]}))
    result = await run_stored(backend, payload, SERIALIZER.format)
    assert result.unwrap() == 3


@pytest.mark.parametrize("func", [add, lambda a, b: a + b], ids=["by reference", "by value"])
async def test_the_format_is_text_beside_the_payload(queue: TaskQueue, path: Path, func: Callable[..., Any]) -> None:
    """Any SQLite client can read what wrote it: the format, the version of Python and that of cloudpickle."""
    await queue.enqueue(func, 1, 2)
    (stored,) = (row["format"] for row in rows(path, "SELECT format FROM tasks WHERE typeof(format) = 'text'"))
    name = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    assert stored == SERIALIZER.format == f"sitq-1 {name} cloudpickle-{version('cloudpickle')}"


@pytest.mark.parametrize("python", OTHER_PYTHONS)
async def test_by_value_from_another_python_is_refused(backend: SQLiteBackend, runs: Runs, python: str) -> None:
    """It is never loaded, and the failure names both sides and which worker to run."""
    marks = Marks(runs)
    payload = envelope(lambda _: None, marks)
    written = f"{ENVELOPE} {python} {CLOUDPICKLE}"
    result = await run_stored(backend, payload, written)
    assert result.status == "failed"
    assert runs.lines() == []
    assert written in str(result.error)
    assert SERIALIZER.format in str(result.error)
    assert "run a worker with the Python" in str(result.error)


@pytest.mark.parametrize("python", OTHER_PYTHONS)
@pytest.mark.parametrize("mention", ["no", "cloudpickle", "by cloudpickle.cloudpickle or so"])
async def test_by_reference_from_another_python_runs(backend: SQLiteBackend, python: str, mention: str) -> None:
    """Whatever wrote it, also where its arguments speak of cloudpickle."""
    result = await run_stored(backend, envelope(str.upper, mention), f"{ENVELOPE} {python} cloudpickle-0.1")
    assert result.unwrap() == mention.upper()


async def test_by_value_from_this_python_runs_whatever_its_cloudpickle(backend: SQLiteBackend) -> None:
    """Another version of cloudpickle alone does not make a payload foreign."""
    result = await run_stored(backend, envelope(lambda: 5), f"{ENVELOPE} {PYTHON} cloudpickle-0.1")
    assert result.unwrap() == 5


@pytest.mark.parametrize("unknown", ["", "json-1", "sitq-2 cpython-3.13 cloudpickle-9", "sitq", "sitq-11"])
async def test_an_unknown_format_is_refused(backend: SQLiteBackend, runs: Runs, unknown: str) -> None:
    """It is named in the failure, and the payload is never loaded."""
    result = await run_stored(backend, envelope(len, Marks(runs)), unknown)
    assert result.status == "failed"
    assert (unknown or "an unknown version") in str(result.error)
    assert runs.lines() == []


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", "EOFError"),
        (b"not a pickle", "UnpicklingError"),
        (envelope(add, 1, 2)[:-5], "UnpicklingError|EOFError"),
        (pickle.dumps([1, 2]), "SerializationError: .*does not hold a call"),
        (pickle.dumps(None), "SerializationError: .*does not hold a call"),
        (pickle.dumps({"func": add}), "SerializationError: .*does not hold a call"),
        (b"cno_such_module\nname\n.", "ModuleNotFoundError: .*no_such_module"),
        (b"ctests.support\nno_such_name\n.", "AttributeError: .*no_such_name"),
        (envelope(add, EndsProgramOnLoading()), "SystemExit: .*ended"),
    ],
    ids=["empty", "damaged", "cut off", "list", "None", "incomplete", "missing module", "missing name", "SystemExit"],
)
async def test_what_cannot_be_loaded_is_a_failed_task(backend: SQLiteBackend, payload: bytes, error: str) -> None:
    """It fails at its first attempt with the reason, and the tasks around it run."""
    result = await run_stored(backend, payload, SERIALIZER.format)
    assert result.status == "failed"
    kind, _, message = str(result.error).partition(": ")
    expected_kind, _, expected_message = error.partition(": ")
    assert kind in expected_kind.split("|")
    assert message.startswith("the payload cannot be loaded: ")
    assert all(part in message for part in expected_message.split(".*"))


async def test_only_the_two_ends_load_pickles(path: Path, runs: Runs) -> None:
    """A payload or result that writes when it is loaded leaves no trace while it is stored, looked at and pruned."""
    clock = [1_700_000_000.0]
    backend = SQLiteBackend(path, clock=lambda: clock[0], retention=60)
    payload, value = envelope(len, Marks(runs)), SERIALIZER.dumps(Marks(runs))
    await backend.connect()
    names = ["a", "b", "c"]
    await backend.enqueue([NewTask(name, payload, name, SERIALIZER.format, max_attempts=2) for name in names])
    a, b, c = (await backend.reserve(3, lease=10, alone=True)).tasks
    await backend.renew([a, b, c], lease=10)
    await backend.release([c])
    await backend.mark_success([Outcome(a, value)])
    await backend.mark_failure([Outcome(b, error="ValueError: no")])
    for step in (5, 20, 20, 100, 100):  # c is taken, lost and buried; then all of them are pruned
        for name in names:
            await backend.get_result(name)
        await backend.reserve(10, lease=10, alone=True)
        clock[0] += step
    pruner = SQLiteBackend(path, clock=lambda: clock[0], retention=0)  # the first one pauses between prunings
    await pruner.connect()
    await pruner.reserve(10, lease=10, alone=True)
    await pruner.close()
    assert rows(path) == []
    assert runs.lines() == []
    await backend.enqueue([NewTask("d", payload, "d", SERIALIZER.format)])
    await Worker(backend).drain()
    assert runs.lines() == ["loaded"]
    await backend.close()


async def test_a_serializer_of_ones_own_carries_calls_results_and_contexts(
    backend: SQLiteBackend, path: Path, own: JsonSerializer
) -> None:
    """Each turn into bytes and back is one of its calls, and its format stands in the file."""
    async with TaskQueue(backend, own) as queue:
        one = await queue.enqueue("tests.support:add", 1, b=2)
        two = await queue.enqueue("tests.test_serialization:context_of_task", context={"tenant": "t"})
        assert own.calls == ["dumps"] * 2
        assert [json.loads(row["payload"])["args"] for row in rows(path)] == [[1], []]
        assert {row["format"] for row in rows(path)} == {"json-1"}
        own.calls.clear()
        await Worker(backend, own, max_concurrency=1).drain()
        assert own.calls == ["check_format", "loads", "dumps"] * 2
        assert [json.loads(row["result"]) for row in rows(path)] == [3, {"tenant": "t"}]
        own.calls.clear()
        results = [await queue.get_result(task_id) for task_id in (one, two)]
        assert own.calls == ["loads"] * 2
    assert [result and result.unwrap() for result in results] == [3, {"tenant": "t"}]


async def test_what_a_serializer_of_ones_own_cannot_carry_is_named(backend: SQLiteBackend, own: JsonSerializer) -> None:
    """Whatever it raises becomes the named error, with the argument that is the cause."""
    async with TaskQueue(backend, own) as queue:
        for func, args, kwargs, message in [
            ("os:getpid", (1, {2}), {}, "argument 1 of os:getpid, a set"),
            ("os:getpid", (), {"fd": b""}, "argument 'fd' of os:getpid, a bytes"),
            (os.getpid, (), {}, "the function"),
        ]:
            with pytest.raises(SerializationError, match=message) as caught:
                await queue.enqueue(func, *args, **kwargs)
            assert isinstance(caught.value.__cause__, TypeError)


async def test_a_worker_with_another_serializer_refuses(backend: SQLiteBackend, own: JsonSerializer) -> None:
    """The serializer of the worker decides by the format, before it loads anything."""
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        await Worker(backend, own).drain()
        result = await queue.get_result(task_id)
    assert result is not None
    assert f"reads json-1, not {SERIALIZER.format}" in str(result.error)
    assert own.calls == ["check_format"]
