"""What passes between queue, worker and backend: frozen, slotted, and with ids that sort by time."""

import contextlib
import copy
import dataclasses
import json
import pickle
import sqlite3
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
import yaml

from sitq import (
    NewTask,
    ReservedTask,
    Result,
    SQLiteBackend,
    TaskCancelledError,
    TaskFailedError,
    TaskId,
    TaskQueue,
    Worker,
    WorkerDiedError,
    models,
)
from sitq.models import BURIED_ERROR_PREFIX, EPOCH, Outcome, Reservation, from_micros, new_task_id, to_micros
from tests.scripts import run_script
from tests.support import add

NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)
RESERVED = ReservedTask(1, 2, "id", b"payload", "name", "format", 1, 5, NOW)
MODELS = [
    NewTask("id", b"payload"),
    RESERVED,
    Outcome(RESERVED, b"result"),
    Reservation([RESERVED]),
    Result("id", "success", 3, None, None, 1, NOW, NOW, NOW),
]


def kind(model: object) -> str:
    """Names the case of a parametrized test."""
    return type(model).__name__


def result(status: models.Status, value: Any = None, error: str | None = None, traceback: str | None = None) -> Any:
    """Makes a result of the given status."""
    return Result("the-id", status, value, error, traceback, 1, NOW, NOW, NOW)


@pytest.mark.parametrize("model", MODELS, ids=kind)
def test_a_model_is_frozen(model: Any) -> None:
    """No attribute of it can be assigned or deleted, and it is unchanged by the attempt."""
    before = copy.copy(model)
    for name in model.__match_args__:
        with pytest.raises(AttributeError):
            setattr(model, name, None)
        with pytest.raises(AttributeError):
            delattr(model, name)
    assert model == before


@pytest.mark.parametrize("model", MODELS, ids=kind)
def test_a_model_has_slots_and_no_dict(model: Any) -> None:
    """It takes no attribute that it does not declare, and carries no dictionary."""
    assert not hasattr(model, "__dict__")
    with pytest.raises((AttributeError, TypeError)):
        model.undeclared = 1


@pytest.mark.parametrize("model", MODELS, ids=kind)
def test_a_model_survives_pickle_and_copy(model: Any) -> None:
    """A copy, or one that went through another process, equals it."""
    assert pickle.loads(pickle.dumps(model)) == model
    assert copy.deepcopy(model) == model


def test_a_result_has_the_fields_of_the_contract() -> None:
    """Their names and their order are what users unpack and match on."""
    assert Result.__match_args__ == (
        "task_id",
        "status",
        "value",
        "error",
        "traceback",
        "attempt",
        "enqueued_at",
        "started_at",
        "finished_at",
    )


@pytest.mark.parametrize(("attempt", "last"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_last_attempt_is_the_one_after_which_none_is_permitted(attempt: int, last: bool) -> None:
    """It is reached when the attempt is no less than the number of permitted ones."""
    assert ReservedTask(1, 2, "id", b"", "", "", attempt, 3, NOW).is_last_attempt is last


@pytest.mark.parametrize("value", [3, None, "", [1, {"a": 2}]])
def test_unwrap_gives_the_value_of_a_success(value: object) -> None:
    """Whatever the task returned comes out, ``None`` and empty values included."""
    assert result("success", value).unwrap() == value


@pytest.mark.parametrize("traceback", ["Traceback: line 7", None])
def test_unwrap_raises_the_failure_with_its_remote_text(traceback: str | None) -> None:
    """The error carries id, error text and remote traceback, and its message shows them."""
    with pytest.raises(TaskFailedError) as caught:
        result("failed", error="ValueError: no", traceback=traceback).unwrap()
    failure = caught.value
    assert (failure.task_id, failure.error, failure.traceback) == ("the-id", "ValueError: no", traceback)
    assert "the-id" in str(failure)
    assert "ValueError: no" in str(failure)
    assert traceback is None or traceback in str(failure)


def test_unwrap_tells_the_death_of_all_workers_from_other_failures() -> None:
    """The text that every backend writes then, and no traceback: an error of its own, which is a failure, too."""
    error = f"{BURIED_ERROR_PREFIX}each of 5 attempts ended with the death of its worker"
    with pytest.raises(TaskFailedError) as caught:
        result("failed", error=error).unwrap()
    assert type(caught.value) is WorkerDiedError
    assert (caught.value.task_id, caught.value.error, caught.value.traceback) == ("the-id", error, None)
    assert str(caught.value) == f"task the-id failed: {error}"


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        ("WorkerDiedError: mine", "Traceback: line 7"),
        ("WorkerDiedErrors: mine", None),
        ("ValueError: WorkerDiedError: mine", None),
    ],
)
def test_a_tasks_own_exception_is_not_taken_for_the_death_of_its_workers(error: str, traceback: str | None) -> None:
    """A task may raise what has that name: then there is a traceback."""
    with pytest.raises(TaskFailedError) as caught:
        result("failed", error=error, traceback=traceback).unwrap()
    assert type(caught.value) is TaskFailedError


@pytest.mark.parametrize("status", ["pending", "in_progress"])
def test_unwrap_of_an_unfinished_task_is_a_wrong_use(status: models.Status) -> None:
    """There is no value yet, which is not a failure of the task."""
    with pytest.raises(RuntimeError, match=status):
        result(status).unwrap()


@pytest.mark.parametrize("error", [TaskFailedError, WorkerDiedError])
def test_a_failure_survives_pickle(error: type[TaskFailedError]) -> None:
    """It can be raised across processes, as a pool of processes does, with all that it carries."""
    failure = error("id", "ValueError: no", "Traceback")
    copied = pickle.loads(pickle.dumps(failure))
    assert (type(copied), str(copied), vars(copied)) == (error, str(failure), vars(failure))


class Array:
    """What compares each of its elements, as the arrays of numpy do."""

    def __eq__(self, other: object) -> Any:
        """Gives something that is neither true nor false."""
        return Array()

    def __bool__(self) -> bool:
        """Cannot be told."""
        raise ValueError("The truth value of an array with more than one element is ambiguous")

    __hash__ = None  # type: ignore[assignment]


async def test_results_that_hold_arrays_can_be_compared(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Two results of one run are equal and hash alike, whatever it returned; another run is not."""
    ids = [await queue.enqueue(Array), await queue.enqueue(Array)]
    await Worker(backend).drain()
    one, again, other = [await queue.get_result(task_id) for task_id in (ids[0], ids[0], ids[1])]
    assert isinstance(one, Result)
    assert one == again
    assert hash(one) == hash(again)
    assert one != other
    assert one != dataclasses.replace(one, attempt=2)
    assert one != dataclasses.replace(one, status="failed")


def test_a_task_id_is_a_str() -> None:
    """It is a plain one, which compares, hashes, formats, pickles and keys like the text that it is."""
    text = new_task_id()
    task_id: TaskId[int] = TaskId(text)
    assert type(task_id) is str
    assert task_id == text
    assert {text: 1}[task_id] == 1
    assert f"{task_id}" == text
    assert pickle.loads(pickle.dumps(task_id)) == text
    assert json.loads(json.dumps({task_id: task_id})) == {text: text}
    assert msgspec.json.decode(msgspec.json.encode({"id": task_id})) == {"id": text}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([task_id])) == [text]
    assert yaml.safe_load(yaml.safe_dump({"id": task_id})) == {"id": text}
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT ?", (task_id,)).fetchone() == (text,)


def test_a_task_id_that_was_pickled_as_another_class_still_loads() -> None:
    """Payloads of earlier versions hold it as a class of its own; they give the same text."""
    loaded = pickle.loads(b"\x80\x05\x8c\x04sitq\x8c\x06TaskId\x93\x8c\x07some-id\x85\x81.")
    assert (type(loaded), loaded) == (str, "some-id")


async def test_enqueue_gives_task_ids(queue: TaskQueue) -> None:
    """Both ways to enqueue return plain text, that of a UUID."""
    ids = [await queue.enqueue(add, 1, 2), *await queue.enqueue_many([lambda: 1, lambda: 2])]
    assert [type(task_id) for task_id in ids] == [str, str, str]
    assert [uuid.UUID(task_id).version for task_id in ids] == [7, 7, 7]


def test_an_id_is_a_uuid_of_version_7() -> None:
    """Version and variant are those of RFC 9562, and its text is lower-case digits without dashes."""
    for _ in range(1000):
        text = new_task_id()
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, parsed.hex) == (7, uuid.RFC_4122, text)


def test_an_id_holds_the_time_at_which_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first 48 bits are milliseconds since 1970 UTC."""
    monkeypatch.setattr("sitq.models.time.time_ns", lambda: 1_700_000_000_123_999_999)
    assert uuid.UUID(new_task_id()).int >> 80 == 1_700_000_000_123


@pytest.mark.parametrize("step_ns", [1_000, 1_000_000, 1_000_000_000, 31_536_000_000_000_000])
def test_ids_sort_by_the_time_at_which_they_were_made(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    """An id of a later microsecond, millisecond, second or year sorts after an earlier one."""
    times = iter(range(1_700_000_000_000_000_000, 1_700_000_000_000_000_000 + 50 * step_ns, step_ns))
    monkeypatch.setattr("sitq.models.time.time_ns", lambda: next(times))
    ids = [new_task_id() for _ in range(50)]
    assert ids == sorted(ids)


def test_a_clock_before_1970_gives_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock was never set, or a test that plays in the past, can enqueue."""
    monkeypatch.setattr("sitq.models.time.time_ns", lambda: -1_700_000_000_123_999_999)
    assert uuid.UUID(new_task_id()).version == 7


def test_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand ids of the same nanosecond are ten thousand ids."""
    monkeypatch.setattr("sitq.models.time.time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({new_task_id() for _ in range(10_000)}) == 10_000


def test_a_seeded_host_does_not_repeat_ids() -> None:
    """Two programs that seed the global generator alike, at one moment, draw different ids."""
    code = """
        import random, time
        time.time_ns = lambda: 1_700_000_000_000_000_000
        random.seed(7)
        from sitq.models import new_task_id
        random.seed(7)
        print(new_task_id())
        """
    assert run_script(code) != run_script(code)


def test_a_fork_does_not_repeat_ids() -> None:
    """The child of a fork draws other ids than its parent and its siblings at the same moment."""
    printed = run_script("""
        import os, time
        time.time_ns = lambda: 1_700_000_000_000_000_000
        from sitq.models import new_task_id
        new_task_id()
        for _ in range(3):
            if os.fork() == 0:
                os.write(1, f"{new_task_id()}\\n".encode())
                os._exit(0)
            os.wait()
        print(new_task_id())
        """)
    ids = printed.split()
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        NOW.astimezone(timezone(timedelta(hours=5, minutes=45))),
    ],
    ids=str,
)
def test_moments_survive_as_microseconds(moment: datetime) -> None:
    """An aware datetime comes back as the same instant in UTC, to the microsecond."""
    back = from_micros(to_micros(moment))
    assert back == moment
    assert back.tzinfo is UTC


def test_unwrap_tells_why_a_run_was_cancelled() -> None:
    """If there is a reason; a task that was cancelled by hand has none but that."""
    moments = {"enqueued_at": EPOCH, "started_at": None, "finished_at": EPOCH}
    for error, text in (
        (None, "task x was cancelled while it waited to be run"),
        ("Expired: too late", "task x was cancelled: Expired: too late"),
    ):
        with pytest.raises(TaskCancelledError) as raised:
            Result("x", "cancelled", None, error, None, 0, **moments).unwrap()  # type: ignore[arg-type]
        assert str(raised.value) == text
