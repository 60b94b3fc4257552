"""What can be seen of a task and of a worker: from inside, in the result, in the file and in the log."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import Result, SQLiteBackend, TaskQueue, Worker, current_task
from sitq._logs import printable
from sitq.models import Outcome
from tests.support import DEADLINE_SECONDS, Runs, add, multiply, rows, start_python, until
from tests.worker_tasks import connected, execute, far_ahead, gate, log_attempt, wait_at

MARKER = "s3cr3t-m4rk3r"

type Seen = tuple[str, int, datetime, Mapping[str, Any]]


def see() -> Seen:
    """Returns what a task knows of itself."""
    task = current_task()
    return task.task_id, task.attempt, task.enqueued_at, task.context


async def see_async() -> Seen:
    """As :func:`see`, in a coroutine."""
    return see()


async def see_in_thread() -> Seen:
    """As :func:`see`, in a thread that the coroutine asks for."""
    return await asyncio.to_thread(see)


async def see_in_child() -> Seen:
    """As :func:`see`, in an asyncio task that the coroutine starts."""
    return await asyncio.create_task(see_async())


def see_in_awaitable() -> Any:
    """As :func:`see`, in the coroutine that a plain function returns."""
    return see_async()


async def see_twice(name: str) -> tuple[str, str]:
    """Returns the id of the current task before and after it waited beside the others."""
    before = current_task().task_id
    await wait_at(name)
    return before, current_task().task_id


async def finished(queue: TaskQueue, task_id: str) -> Result[Any]:
    """Returns the result of a task that will be finished."""
    result = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert result is not None
    return result


@pytest.mark.parametrize("task", [see, see_async, see_in_thread, see_in_child, see_in_awaitable])
async def test_a_running_task_knows_itself(
    task: Callable[[], Any], path: Path, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """Coroutines, functions and what they call see the id, the attempt, the time of enqueue and the context."""
    context = {"request": "r-1", "tenant": 7}
    async with Worker(backend):
        task_id = await queue.enqueue(task, context=context)
        seen = (await finished(queue, task_id)).unwrap()
    enqueued_at = datetime.fromtimestamp(0, UTC).timestamp() + rows(path)[0]["enqueued_at"] / 1e6
    assert seen == (task_id, 1, datetime.fromtimestamp(enqueued_at, UTC), context)
    assert seen[2].tzinfo is UTC


async def test_tasks_side_by_side_see_themselves(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Ten tasks that wait for each other each see their own id, before and after."""
    async with Worker(backend, max_concurrency=10):
        with gate() as here:
            ids = await queue.enqueue_many(partial(see_twice, "gate") for _ in range(10))
            await here.arrived(10)
        assert [(await finished(queue, id_)).unwrap() for id_ in ids] == [(id_, id_) for id_ in ids]


async def test_a_task_without_context_sees_an_empty_one(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """``current_task().context`` is an empty mapping if none was given."""
    async with Worker(backend):
        assert (await finished(queue, await queue.enqueue(see))).unwrap()[3] == {}


async def test_the_second_attempt_is_seen(path: Path, queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """A task that is taken over from a dead worker sees attempt 2."""
    await queue.enqueue(log_attempt, runs)
    await backend.reserve(1, lease=30, alone=True)
    await Worker(far_ahead(path)).drain()
    assert runs.lines() == ["2"]


async def test_current_task_outside_of_a_task_raises(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Neither before a worker runs, nor beside it, nor after a task ran, is there a current task."""
    async with Worker(backend):
        await finished(queue, await queue.enqueue(see))
        for look in (current_task, see):
            with pytest.raises(RuntimeError, match="outside"):
                await asyncio.to_thread(look)
            with pytest.raises(RuntimeError, match="outside"):
                look()
    with pytest.raises(RuntimeError, match="outside"):
        current_task()


async def test_status_and_times_are_set_step_by_step(path: Path) -> None:
    """pending, in_progress, success: each moment is the backend's clock's, an aware datetime in UTC."""
    now = [1_900_000_000.0]
    backend = SQLiteBackend(path, clock=lambda: now[0])
    moments = [datetime.fromtimestamp(1_900_000_000.0 + n, UTC) for n in range(4)]
    async with connected(backend), TaskQueue(backend) as queue:
        task_id = await queue.enqueue(add, 1, 2)

        async def look() -> tuple[Any, ...]:
            found = await backend.get_result(task_id)
            assert found is not None
            return found.status, found.attempt, found.enqueued_at, found.started_at, found.finished_at

        assert await look() == ("pending", 0, moments[0], None, None)
        now[0] += 1
        (held,) = (await backend.reserve(1, lease=30, alone=True)).tasks
        assert await look() == ("in_progress", 1, moments[0], moments[1], None)
        now[0] += 1
        await backend.release([held])
        assert await look() == ("pending", 0, moments[0], None, None)
        (held,) = (await backend.reserve(1, lease=30, alone=True)).tasks
        assert await look() == ("in_progress", 1, moments[0], moments[2], None)
        now[0] += 1
        await backend.mark_success([Outcome(held, b"value")])
        assert await look() == ("success", 1, moments[0], moments[2], moments[3])


async def test_the_latest_attempt_has_the_time_of_start(path: Path, queue: TaskQueue, backend: SQLiteBackend) -> None:
    """``started_at`` of a task that succeeded on its second attempt is that of the second one."""
    task_id = await queue.enqueue(add, 1, 2)
    await backend.reserve(1, lease=30, alone=True)
    first = rows(path)[0]["started_at"]
    ahead = far_ahead(path)
    await Worker(ahead).drain()
    result = await finished(queue, task_id)
    assert result.started_at is not None
    assert result.finished_at is not None
    assert first < result.started_at.timestamp() * 1e6
    assert result.enqueued_at < result.started_at <= result.finished_at


async def test_tasks_are_named_after_their_functions(path: Path, queue: TaskQueue) -> None:
    """The row has an import path's form for a function, a partial of it and an import path, and <lambda> for one."""
    await queue.enqueue(multiply, 1, 2)
    await queue.enqueue_many([partial(multiply, 1, 2)])
    await queue.enqueue("tests.support:multiply", 1, 2)
    await queue.enqueue(lambda: None)
    *same, other = [row["name"] for row in rows(path)]
    assert same == ["tests.support:multiply"] * 3
    assert "<lambda>" in other


async def test_a_worker_logs_its_start_and_its_end(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """One info record for each, by a logger below ``sitq``."""
    caplog.set_level(logging.DEBUG)
    async with Worker(backend):
        await finished(queue, await queue.enqueue(add, 1, 2))
    ours = [record for record in caplog.records if record.name.startswith("sitq.")]
    for word in ("worker started", "worker stopped"):
        assert [record.levelno for record in ours if word in record.getMessage()] == [logging.INFO]


async def test_a_worker_logs_what_becomes_of_a_task(
    queue: TaskQueue, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A reservation is said at debug; start and finish of each task with its id and name, a failure as a warning."""
    caplog.set_level(logging.DEBUG, "sitq")
    good, bad = await queue.enqueue(multiply, 6, 7), await queue.enqueue("tests.support:multiply", 6)
    await Worker(backend).drain()
    text = {word: [r for r in caplog.records if word in r.getMessage()] for word in ("reserved", good, bad)}
    assert {record.levelno for record in text["reserved"]} == {logging.DEBUG}
    for task_id, end, level in ((good, "finished", logging.INFO), (bad, "failed", logging.WARNING)):
        messages = [record.getMessage() for record in text[task_id]]
        assert ["started" in messages[0], end in messages[-1]] == [True, True]
        assert all("tests.support:multiply" in message for message in messages)
        assert text[task_id][-1].levelno == level
    assert "TypeError" in text[bad][-1].getMessage()


class Keeper:
    """A value whose text holds the marker."""

    def __repr__(self) -> str:
        return MARKER


async def pass_on(*arguments: object) -> object:
    """Calls another function with whatever it was given."""
    return echo(*arguments)  # type: ignore[call-arg]


def echo(value: Any) -> Any:
    """Returns its argument."""
    return value


def raise_marker(value: Any) -> None:
    """Raises with its argument in the message."""
    raise ValueError(f"cannot handle {value!r}")


@pytest.mark.parametrize(
    "call",
    [
        partial(echo, MARKER),
        partial(echo, value=MARKER),
        partial(echo, Keeper()),
        partial(raise_marker, MARKER),
        partial(int, MARKER),
        partial(pass_on, MARKER, MARKER),
        partial(open, MARKER),
    ],
    ids=["argument", "keyword", "object", "raised", "int", "too-many", "os-error"],
)
@pytest.mark.parametrize("end", ["finished", "abandoned", "given-back", "not-loaded", "not-recorded"])
async def test_no_log_record_holds_a_payload_an_argument_or_a_result(
    end: str, call: Callable[[], Any], path: Path, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever becomes of a task, no record of any logger at debug holds what the task carries."""
    caplog.set_level(logging.DEBUG)
    async with TaskQueue(backend) as queue:
        (task_id,) = await queue.enqueue_many([call], context={"token": MARKER})
        if end == "abandoned":
            await backend.reserve(1, lease=30, alone=True)
            await Worker(far_ahead(path)).drain()
        elif end == "given-back":
            await backend.release((await backend.reserve(1, lease=30, alone=True)).tasks)
            await Worker(backend).drain()
        elif end == "not-loaded":
            execute(path, "UPDATE tasks SET payload = substr(payload, 1, length(payload) - 3)")
            await Worker(backend).drain()
        elif end == "not-recorded":
            execute(
                path, "CREATE TRIGGER no BEFORE UPDATE ON tasks WHEN NEW.finished_at BEGIN SELECT RAISE(ABORT, ''); END"
            )
            async with Worker(backend, shutdown_timeout=0):
                await until(lambda: "recording" in caplog.text)
        else:
            await Worker(backend).drain()
        await queue.get_result(task_id, timeout=0)
    messages = [logging.Formatter().format(record) for record in caplog.records]
    assert messages
    assert [message for message in messages if MARKER in message] == []


@pytest.mark.parametrize("call", [partial(raise_marker, MARKER), partial(int, MARKER)], ids=["function", "type"])
@pytest.mark.parametrize(("log_exceptions", "level"), [(False, logging.WARNING), (True, logging.ERROR)])
async def test_the_record_of_a_failure_carries_the_exception_if_asked_for(
    log_exceptions: bool, level: int, call: Callable[[], Any], backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``log_exceptions`` it is at error and has ``exc_info``, from the task's frame on; else it is at warning."""
    async with TaskQueue(backend) as queue:
        (task_id,) = await queue.enqueue_many([call])
        await Worker(backend, log_exceptions=log_exceptions).drain()
    (record,) = [record for record in caplog.records if "failed with" in record.getMessage()]
    assert task_id in record.getMessage()
    assert record.levelno == level
    assert (MARKER in logging.Formatter().format(record)) == log_exceptions
    if log_exceptions:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)
        where = record.exc_info[2]
        while where is not None and where.tb_next is not None:
            assert "sitq" not in str(where.tb_frame.f_globals.get("__name__"))
            where = where.tb_next


FORGED = "gone\n2026-01-01 ERROR all is lost\x1b[2J"


async def raise_forged() -> None:
    """Raises what has a name that looks like lines of a log."""
    raise type(FORGED, (Exception,), {})


async def test_names_forge_no_lines_of_the_log(
    path: Path, backend: SQLiteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Newlines and escapes in the names of tasks, of modules and of exceptions are written out."""
    caplog.set_level(logging.DEBUG)
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([raise_forged, partial(add, 1, 2), partial(missing, FORGED)])
        execute(path, "UPDATE tasks SET name = ?", FORGED)
        await Worker(backend).drain()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("sitq")]
    assert len([message for message in messages if "all is lost" in message]) >= 6
    assert [message for message in messages if not message.isprintable()] == []


async def missing(name: str) -> None:
    """Raises as an import does."""
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("text", ["", "plain", "größer 漢字", "a\nb", "\x1b[2J", "\ud800", "a\u2028b", "\x00"])
def test_printable_text_has_one_line_and_no_orders(text: str) -> None:
    """What is printable stays as it is, anything else is written out in ASCII."""
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    shown.encode("utf-8")


def test_sitq_configures_no_logging(path: Path, runs: Runs) -> None:
    """In a program that configured nothing, a worker that ran tasks has added no handler and set no level."""
    code = """
import asyncio, logging, sys
from pathlib import Path
from sitq import SQLiteBackend, TaskQueue, Worker
from tests.support import Runs, log_async

async def main():
    backend = SQLiteBackend(sys.argv[1])
    async with TaskQueue(backend) as queue, Worker(backend):
        await queue.get_result(await queue.enqueue(log_async, Runs(Path(sys.argv[2])), "ran"))

asyncio.run(main())
loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
print([(l.name, l.level, l.handlers) for l in loggers if l.handlers or (l.level and l is not logging.root)])
print(logging.root.level == logging.WARNING)
"""
    process = start_python(code, path, runs.path)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (out.split("\n")[:2], err, process.returncode) == (["[]", "True"], "", 0)
    assert runs.lines() == ["ran"]


def test_the_loggers_are_below_sitq() -> None:
    """Every logger that is made by an import of any module of sitq's has a name below its own."""
    code = """
import importlib, logging, pkgutil
import aiosqlite, click, cloudpickle, pytest, rich.console, rich.live
others = set(logging.root.manager.loggerDict)
import sitq
for module in pkgutil.walk_packages(sitq.__path__, "sitq."):
    if module.name != "sitq.__main__":  # which runs the command line
        importlib.import_module(module.name)
print(*sorted(set(logging.root.manager.loggerDict) - others))
"""
    process = start_python(code)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (err, process.returncode) == ("", 0)
    names = out.split()
    assert {"sitq.worker", "sitq.cli.supervisor"} <= set(names)
    assert [name for name in names if name != "sitq" and not name.startswith("sitq.")] == []
