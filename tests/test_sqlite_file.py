"""The file itself: how it is made, what is in it, what costs what."""

import itertools
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendError, SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import schema
from sitq.models import Outcome, to_micros
from tests.faults import connected, new_task, on_connection, outside, run_python
from tests.support import add, rows
from tests.worker_tasks import gate, wait_at

COLUMNS = [
    "id", "task_id", "status", "name", "attempt", "max_attempts", "enqueued_at", "available_at",
    "started_at", "finished_at", "claim", "format", "payload", "result", "error", "traceback",
    "queue", "priority", "failures", "snoozes",
]  # fmt: skip
HOUR = 3600.0


@pytest.fixture(params=[0o022, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """The usual umask, and one that takes nothing away."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_new_backend_touches_nothing(path: Path) -> None:
    """Constructing makes no file and starts no thread."""
    threads = threading.enumerate()
    SQLiteBackend(path)
    assert not path.exists()
    assert threading.enumerate() == threads


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("durability", "sometimes", ValueError),
        ("retention", timedelta(seconds=-1), ValueError),
        ("retention", float("nan"), ValueError),
        ("retention", timedelta.max, ValueError),
        ("retention", "a week", TypeError),
        ("busy_timeout", -0.1, ValueError),
        ("busy_timeout", float("inf"), ValueError),
        ("max_payload_bytes", -1, ValueError),
        ("max_payload_bytes", 1.5, TypeError),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(path: Path, argument: str, value: Any, error: type[Exception]) -> None:
    """The error names the argument."""
    options: dict[str, Any] = {argument: value}
    with pytest.raises(error, match=argument):
        SQLiteBackend(path, **options)


@pytest.mark.usefixtures("umask")
async def test_all_three_files_are_for_their_owner_only(queue: TaskQueue, path: Path) -> None:
    """The database, the WAL and its index have mode 0600, whatever the umask leaves."""
    await queue.enqueue(add, 1, 2)
    modes = {name: stat.S_IMODE(os.stat(f"{path}{name}").st_mode) for name in ("", "-wal", "-shm")}
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600}


async def test_a_file_that_was_there_keeps_its_mode(backend: SQLiteBackend, path: Path) -> None:
    """A group that was let in on purpose stays in."""
    sqlite3.connect(path).close()
    os.chmod(path, 0o660)
    async with connected(backend):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


async def test_the_file_is_marked_as_sitqs(backend: SQLiteBackend, path: Path) -> None:
    """Any client sees WAL mode, the application's mark and the version of the shape."""
    async with connected(backend):
        pass
    with outside(path) as connection:
        answers = [
            connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            for pragma in ("journal_mode", "application_id", "user_version")
        ]
    assert answers == ["wal", int.from_bytes(b"sitq"), schema.SCHEMA_VERSION]


async def test_the_table_has_the_columns_of_the_contract(backend: SQLiteBackend, path: Path) -> None:
    """Exactly the documented columns, for whoever reads the file with another client."""
    async with connected(backend):
        assert [column["name"] for column in rows(path, "PRAGMA table_info(tasks)")] == COLUMNS


async def test_a_row_follows_the_life_of_its_task(path: Path) -> None:
    """Each status shows the times and fields that belong to it, in microseconds UTC."""
    start = to_micros(datetime(2030, 1, 1, tzinfo=UTC))
    now = start
    backend = SQLiteBackend(path, clock=lambda: now / 1_000_000)
    due = start + 60_000_000
    async with connected(backend):
        await backend.enqueue([new_task(name="app:f", format="f1", eta=datetime(2030, 1, 1, 0, 1, tzinfo=UTC))])
        pending = {
            "id": 1, "task_id": "task", "status": "pending", "name": "app:f", "attempt": 0, "max_attempts": 5,
            "enqueued_at": start, "available_at": due, "started_at": None, "finished_at": None, "claim": None,
            "format": "f1", "payload": b"payload", "result": None, "error": None, "traceback": None,
            "queue": None, "priority": None, "failures": 0, "snoozes": 0,
        }  # fmt: skip
        assert rows(path) == [pending]

        now = due
        (held,) = (await backend.reserve(1, lease=30, alone=True)).tasks
        running = pending | {
            "status": "in_progress", "attempt": 1, "started_at": due, "available_at": due + 30_000_001,
            "claim": held.claim,
        }  # fmt: skip
        assert rows(path) == [running]

        now += 1_000_000
        await backend.mark_success([Outcome(held, b"value")])
        assert rows(path) == [running | {"status": "success", "finished_at": now, "result": b"value"}]


async def test_a_failed_row_holds_error_and_traceback(backend: SQLiteBackend, path: Path) -> None:
    """They can be read without sitq, and there is no result."""
    async with connected(backend):
        await backend.enqueue([new_task()])
        (held,) = (await backend.reserve(1, lease=30, alone=True)).tasks
        await backend.mark_failure([Outcome(held, error="E: no", traceback="Traceback …")])
    (row,) = rows(path)
    assert (row["status"], row["result"], row["error"], row["traceback"]) == ("failed", None, "E: no", "Traceback …")


async def test_a_cancelled_row_has_an_end_and_nothing_of_a_run(backend: SQLiteBackend, path: Path) -> None:
    """It was never run, so nobody has a claim to it, and there is neither a result nor an error."""
    async with connected(backend):
        await backend.enqueue([new_task()])
        await backend.cancel(["task"])
    (row,) = rows(path)
    assert row["status"] == "cancelled"
    assert row["finished_at"] >= row["enqueued_at"]
    assert [row[column] for column in ("claim", "started_at", "result", "error", "traceback")] == [None] * 5


async def test_a_database_in_memory_lives_as_long_as_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue and worker of one object share it, another object sees nothing of it, and no file is made."""
    monkeypatch.chdir(tmp_path)
    backend, other = SQLiteBackend(":memory:"), SQLiteBackend(":memory:")
    async with TaskQueue(backend) as queue, TaskQueue(other) as stranger, Worker(backend):
        task_id = await queue.enqueue(add, 1, 2)
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.value == 3
        assert await stranger.get_result(task_id) is None
    assert os.listdir(tmp_path) == []


async def test_the_largest_payload_is_stored_and_one_byte_more_is_not(path: Path) -> None:
    """The limit is the last size that is taken, and the error gives both sizes."""
    async with connected(SQLiteBackend(path, max_payload_bytes=1000)) as backend:
        await backend.enqueue([new_task("fits", b"x" * 1000)])
        with pytest.raises(ValueError, match=r"1001.*1000"):
            await backend.enqueue([new_task("small"), new_task("large", b"x" * 1001)])
        assert [row["task_id"] for row in rows(path)] == ["fits"]


async def steps_of_a_reservation(backend: SQLiteBackend) -> int:
    """Returns how many instructions SQLite's machine takes to give out ten tasks of twenty."""
    await backend.enqueue([new_task(f"due-{n}") for n in range(20)])
    steps = itertools.count()
    await on_connection(backend, lambda connection: connection.set_progress_handler(lambda: next(steps) and 0, 1))
    reservation = await backend.reserve(10, lease=1, alone=True)
    await on_connection(backend, lambda connection: connection.set_progress_handler(None, 1))
    assert len(reservation.tasks) == 10
    return next(steps)


@pytest.mark.parametrize("history", ["finished", "failed", "on their last attempt", "due later"])
async def test_the_cost_of_a_reservation_does_not_grow_with_history(tmp_path: Path, history: str) -> None:
    """Thousands of rows that are not due, of whatever kind, cost it not one step more for each."""
    many = range(3000)
    async with connected(SQLiteBackend(tmp_path / "empty.db")) as empty:
        fewest = await steps_of_a_reservation(empty)
    async with connected(SQLiteBackend(tmp_path / "full.db")) as full:
        later = datetime.now(UTC) + timedelta(days=1)
        if history == "due later":
            await full.enqueue([new_task(str(n), eta=later) for n in many])
        else:
            await full.enqueue([new_task(str(n), max_attempts=2) for n in many])
            held = (await full.reserve(len(many), lease=HOUR, alone=True)).tasks
            if history == "finished":
                await full.mark_success([Outcome(task, b"") for task in held])
            elif history == "failed":
                await full.mark_failure([Outcome(task, error="E: no") for task in held])
        assert len(rows(tmp_path / "full.db")) == len(many)
        assert await steps_of_a_reservation(full) < fewest + len(many) / 2


async def test_the_cost_of_a_last_attempt_does_not_grow_with_the_others_that_wait(tmp_path: Path) -> None:
    """Nothing is scanned past to find it, nor to find what is to be buried."""
    steps = []
    for many in (10, 3000):
        async with connected(SQLiteBackend(tmp_path / f"{many}.db")) as backend:
            await backend.enqueue([new_task(str(n), max_attempts=1) for n in range(many)])
            count = itertools.count()
            await on_connection(backend, lambda it, count=count: it.set_progress_handler(lambda: next(count) and 0, 1))
            assert len((await backend.reserve(10, lease=HOUR, alone=True)).tasks) == 1
            await on_connection(backend, lambda it: it.set_progress_handler(None, 1))
            steps.append(next(count))
    assert steps[1] < steps[0] + 1000


async def test_a_reservation_goes_along_its_indexes(backend: SQLiteBackend) -> None:
    """No statement of it, nor of the triggers that carry it out, scans the table or sorts."""
    async with connected(backend):
        await backend.enqueue([new_task(f"due-{n}") for n in range(5)])
        await backend.enqueue([new_task("last", max_attempts=1)])
        statements: list[str] = []
        await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
        assert len((await backend.reserve(3, lease=HOUR, alone=True)).tasks) == 3

        def plans(connection: sqlite3.Connection) -> list[str]:
            connection.set_trace_callback(None)
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_TRIGGER_EQP, True)
            asked = [sql for sql in statements if sql.split()[0] in ("SELECT", "INSERT") and "FROM note" not in sql]
            return [row[3] for sql in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

        steps = await on_connection(backend, plans)
    assert all(any(index in step for step in steps) for index in ("tasks_due", "tasks_last", "tasks_spent"))
    assert [step for step in steps if step.startswith(("SCAN tasks", "USE TEMP")) and "INDEX tasks_" not in step] == []


def test_a_backend_that_was_never_closed_lets_the_process_exit(path: Path) -> None:
    """A script that forgets to close exits with status 0, and its task is in the file, not only in the -wal file."""
    code = """
import asyncio, sys
from sitq import SQLiteBackend, TaskQueue
from tests.support import add
asyncio.run(TaskQueue(SQLiteBackend(sys.argv[1])).enqueue(add, 1, 2))
"""
    run_python(code, path)
    Path(f"{path}-wal").unlink(missing_ok=True)
    assert len(rows(path)) == 1


async def test_a_path_means_the_same_file_wherever_the_program_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made absolute, and a link is followed, when the backend is made."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "real" / "queue.db")
    monkeypatch.chdir(tmp_path)
    backend = SQLiteBackend("link.db")
    monkeypatch.chdir("/")
    async with connected(backend):
        await backend.enqueue([new_task()])
    assert [row["task_id"] for row in rows(tmp_path / "real" / "queue.db")] == ["task"]


BY_HAND = """
    UPDATE tasks SET status = 'pending', attempt = 0, max_attempts = max_attempts - failures - snoozes,
        failures = 0, snoozes = 0, available_at = enqueued_at, started_at = NULL, finished_at = NULL, claim = NULL,
        error = NULL, traceback = NULL
    WHERE status = 'failed'
"""
"""What SPEC_v1.md permits another client to do with a task that has failed."""


async def test_a_failed_task_may_be_retried_by_hand(backend: SQLiteBackend, path: Path) -> None:
    """And a row like it may be inserted: both are run like any other, as their first attempt."""
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(divmod, 1, 0)
        await Worker(backend).drain()
        with outside(path) as connection:
            payload = connection.execute("SELECT payload FROM tasks").fetchone()
            connection.execute(BY_HAND)
            connection.execute(
                "INSERT INTO tasks (task_id, max_attempts, enqueued_at, available_at, format, payload)"
                " SELECT 'by hand', max_attempts, enqueued_at, available_at, format, ? FROM tasks",
                payload,
            )
        assert await Worker(backend).drain() == 2
        results = [await queue.get_result(each, timeout=0) for each in (task_id, "by hand")]
    assert [(result and result.status, result and result.attempt) for result in results] == [("failed", 1)] * 2


async def test_what_another_client_deletes_is_gone(
    backend: SQLiteBackend, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A waiting task is unknown and not run; the outcome of a running one is discarded, and its worker says so."""
    async with TaskQueue(backend) as queue:
        waiting = await queue.enqueue(add, 1, 2, eta=timedelta(hours=1))
        async with Worker(backend) as worker:
            with gate() as here:
                running = await queue.enqueue(wait_at, "gate")
                await here.arrived()
                with outside(path) as connection:
                    connection.execute("DELETE FROM tasks")
            await worker.stop()
        assert [await queue.get_result(task_id, timeout=0) for task_id in (waiting, running)] == [None, None]
    assert any(running in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


@pytest.mark.parametrize("field", ["task_id", "payload", "max_attempts"])
async def test_a_task_that_lacks_something_is_not_acknowledged(field: str, backend: SQLiteBackend, path: Path) -> None:
    """By a caller that is no queue: the call fails, and nothing of its batch is stored."""
    tasks = [new_task("good"), new_task("bad")._replace(**{field: None})]
    async with connected(backend):
        with pytest.raises((BackendError, TypeError)):
            await backend.enqueue(tasks)
    assert rows(path) == []


async def test_a_task_that_is_cancelled_by_hand_keeps_nothing_of_a_run(backend: SQLiteBackend, path: Path) -> None:
    """Not the error of the run after which it was to be tried again."""
    async with connected(backend):
        await backend.enqueue([new_task()])
        (held,) = (await backend.reserve(1, lease=60, alone=True)).tasks
        await backend.mark_failure([Outcome(held, error="E: no", traceback="Traceback", retry_in=60)])
        assert await backend.cancel(["task"]) == ["task"]
    (row,) = rows(path)
    assert (row["status"], row["error"], row["traceback"]) == ("cancelled", None, None)


async def test_a_delay_beyond_the_calendar_is_its_end(backend: SQLiteBackend) -> None:
    """The task can be listed all the same."""
    async with connected(backend):
        await backend.enqueue([new_task(delay=1e15)])
        (listed,) = await backend.list()
    assert listed.due_at is not None
    assert listed.due_at.year == 9999
