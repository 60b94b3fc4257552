"""Loading: off the loop if it may take long, and not at the cost of the queue if the worker stands in a wrong place."""

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sitq import CloudpickleSerializer, SerializationError, SQLiteBackend, TaskQueue, Worker
from sitq.serializers.base import LARGE_BYTES
from sitq.worker.admission import TRIES_TO_LOAD
from tests.support import DEADLINE_SECONDS, Runs, add, rows, until

NEVER_SECONDS = 3600.0
TELLS_ITS_THREAD = "import threading\nTHREAD = threading.get_ident()\ndef thread(*_): return THREAD\n"
MODULE = "async def log(runs): runs.add('ran')\n"


class LoadedBy:
    """Becomes the number of the thread that loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return threading.get_ident, ()


async def echo(value: Any, ballast: bytes = b"") -> Any:
    """Returns what it is given."""
    return value


async def value_of(queue: TaskQueue, task_id: str) -> Any:
    """Returns the value of a task that succeeds."""
    result = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert result is not None
    return result.unwrap()


async def test_a_module_that_a_payload_needs_is_not_imported_on_the_loop(
    tmp_path: Path, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose module is not imported yet is loaded in a thread; what it imports there holds up nobody."""
    (tmp_path / "imported_by_a_payload.py").write_text(TELLS_ITS_THREAD)
    monkeypatch.syspath_prepend(tmp_path)
    async with TaskQueue(backend) as queue, Worker(backend):
        thread = await value_of(queue, await queue.enqueue("imported_by_a_payload:thread"))
    assert thread != threading.get_ident()


async def test_a_slow_load_on_the_loop_is_warned_of(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What took longer than is allowed is named, and what did not is not."""
    monkeypatch.setattr("sitq.worker.execution.SLOW_LOAD_SECONDS", 3600.0)
    async with TaskQueue(backend) as queue, Worker(backend):
        await value_of(queue, await queue.enqueue(echo, 1))
        assert "held the event loop" not in caplog.text
        monkeypatch.setattr("sitq.worker.execution.SLOW_LOAD_SECONDS", -1.0)
        task_id = await queue.enqueue(echo, 2)
        await value_of(queue, task_id)
    (said,) = [message for message in caplog.messages if "held the event loop" in message]
    assert task_id in said


async def test_a_large_payload_is_not_loaded_on_the_loop(backend: SQLiteBackend) -> None:
    """A small one of a known name is loaded on the loop, a large one in a thread."""
    async with TaskQueue(backend) as queue, Worker(backend):
        await value_of(queue, await queue.enqueue(echo, 1))
        small = await value_of(queue, await queue.enqueue(echo, LoadedBy()))
        large = await value_of(queue, await queue.enqueue(echo, LoadedBy(), bytes(LARGE_BYTES)))
    assert small == threading.get_ident()
    assert large != threading.get_ident()


@pytest.mark.parametrize(
    "value",
    [
        bytes(5 * LARGE_BYTES),
        list(range(LARGE_BYTES)),
        [{"n": str(n)} for n in range(LARGE_BYTES // 8)],
        "é" * LARGE_BYTES,
    ],
    ids=["bytes", "numbers", "dicts", "text"],
)
def test_what_is_loaded_in_pieces_is_whole(value: Any) -> None:
    """Large values of every shape are the same after dumps() and loads()."""
    serializer = CloudpickleSerializer()
    data = serializer.dumps(value)
    assert len(data) > LARGE_BYTES
    assert serializer.loads(data) == value


async def test_another_thread_runs_while_a_large_payload_is_loaded() -> None:
    """Between two pieces the interpreter lock is free: code that waits for it comes first, sooner or later."""
    data = CloudpickleSerializer().dumps([{"n": str(n)} for n in range(200_000)])
    loaded = asyncio.create_task(asyncio.to_thread(CloudpickleSerializer().loads, data))
    turns = 0
    while not loaded.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(await loaded) == 200_000
    assert turns > 10


async def test_a_lone_task_without_its_module_is_failed_at_once(
    path: Path, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """The error and the log name the module; nothing is retried."""
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue("module_that_is_gone:f")
        assert await Worker(backend).drain() == 1
        result = await queue.get_result(task_id)
    assert result is not None
    assert "module_that_is_gone" in (result.error or "")
    said = [record.getMessage() for record in caplog.records if task_id in record.getMessage()]
    assert "'module_that_is_gone'" in said[-1]


@pytest.mark.parametrize("slots", [1, 10, 100])
async def test_a_drain_in_the_wrong_folder_leaves_the_queue_alone(
    slots: int, path: Path, backend: SQLiteBackend
) -> None:
    """It fails a few tasks, gives the others back unspent, and raises what names the module and says what to do."""
    async with TaskQueue(backend) as queue:
        for _ in range(60):
            await queue.enqueue("module_that_is_elsewhere:f")
        with pytest.raises(SerializationError, match=r"module_that_is_elsewhere.*start the worker in") as caught:
            await Worker(backend, max_concurrency=slots).drain()
        assert repr(sys.path[0]) in str(caught.value)
    found = [(row["status"], row["attempt"]) for row in rows(path)]
    assert sorted(set(found)) == [("failed", 1), ("pending", 0)]
    assert found.count(("failed", 1)) == TRIES_TO_LOAD


async def test_a_worker_in_the_wrong_place_waits_until_its_modules_are_there(
    path: Path,
    tmp_path: Path,
    backend: SQLiteBackend,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says at error what is missing, gives back, tries again, and runs everything once it can."""
    monkeypatch.setattr("sitq.worker.admission.PAUSE_SECONDS", 0.05)
    async with TaskQueue(backend) as queue:
        for _ in range(100):
            await queue.enqueue("module_that_comes_late:log", runs)
        async with Worker(backend, poll_interval=NEVER_SECONDS):
            await until(lambda: any("the next try is in" in record.getMessage() for record in caplog.records))
            (tmp_path / "module_that_comes_late.py").write_text(MODULE)
            monkeypatch.syspath_prepend(tmp_path)
            await until(lambda: not {row["status"] for row in rows(path)} & {"pending", "in_progress"})
    failed = [row for row in rows(path) if row["status"] == "failed"]
    assert len(failed) < 50
    assert len(runs.lines()) == 100 - len(failed)
    assert {record.levelno for record in caplog.records if "the next try" in record.getMessage()} == {logging.ERROR}


async def test_a_bad_task_in_a_good_worker_is_failed(path: Path, backend: SQLiteBackend) -> None:
    """Where something could be loaded, every task that cannot be is failed at once, however many there are."""
    async with TaskQueue(backend) as queue:
        await queue.enqueue(add, 1, 2)
        for _ in range(3 * TRIES_TO_LOAD):
            await queue.enqueue("module_that_is_gone:f")
        assert await Worker(backend).drain() == 3 * TRIES_TO_LOAD + 1
    assert [row["status"] for row in rows(path)] == ["success"] + ["failed"] * 3 * TRIES_TO_LOAD
