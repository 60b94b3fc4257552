"""A busy or sick file, call by call: which error comes, that nothing changed, and that the next try works."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sitq import BackendError, ReservedTask, Result, SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import patience
from sitq.errors import BackendCorruptError, BackendReadOnlyError, BackendUnavailableError
from sitq.models import Outcome
from tests.faults import (
    Waits,
    assert_healthy,
    assert_unlocked,
    connected,
    damaged,
    full_disk,
    lasting,
    moved_away,
    new_task,
    no_free_page,
    outside,
    read_only,
    write_lock,
)
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, log_plain, rows

BUSY_SECONDS = 0.05
LEASE = 600.0
LARGE = bytes(100_000)

type Call = Callable[[SQLiteBackend, ReservedTask], Awaitable[Any]]
type Fault = Callable[[SQLiteBackend, Path], AbstractAsyncContextManager[None]]

WRITES: dict[str, Call] = {
    "enqueue": lambda backend, held: backend.enqueue([new_task("new", LARGE)]),
    "reserve": lambda backend, held: backend.reserve(9, lease=LEASE, alone=False),
    "renew": lambda backend, held: backend.renew([held], lease=2 * LEASE),
    "mark_success": lambda backend, held: backend.mark_success([Outcome(held, LARGE)]),
    "mark_failure": lambda backend, held: backend.mark_failure([Outcome(held, error="E: no", traceback="x" * 100_000)]),
    "release": lambda backend, held: backend.release([held]),
}


FAULTS: dict[str, tuple[Fault, type[BackendError]]] = {
    "locked": (lasting(write_lock), BackendUnavailableError),
    "disk full": (lasting(full_disk), BackendUnavailableError),
    "moved away": (lasting(moved_away), BackendUnavailableError),
    "read-only": (lambda backend, path: read_only(backend), BackendReadOnlyError),
    "damaged header": (lasting(lambda path: damaged(path, page_of=None)), BackendCorruptError),
    "damaged page": (lasting(lambda path: damaged(path, page_of="tasks")), BackendCorruptError),
}


@pytest.fixture
async def held(path: Path) -> AsyncIterator[tuple[SQLiteBackend, ReservedTask]]:
    """A backend that gives up soon, a task that it holds, and some tasks that are due."""
    async with connected(SQLiteBackend(path, busy_timeout=BUSY_SECONDS)) as backend:
        await backend.enqueue([new_task("held"), *(new_task(f"due-{n}", bytes(500)) for n in range(5))])
        (task,) = (await backend.reserve(1, lease=LEASE, alone=True)).tasks
        yield backend, task


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_write_into_a_sick_file_fails_whole_and_works_afterwards(
    held: tuple[SQLiteBackend, ReservedTask], path: Path, call: str, fault: str
) -> None:
    """The error is the leaf that says what to do, names the file, and chains SQLite's own; no row has changed."""
    backend, task = held
    before = rows(path)
    make, error = FAULTS[fault]
    async with make(backend, path), asyncio.timeout(DEADLINE_SECONDS):
        for _ in range(2):
            with pytest.raises(error) as caught:
                await WRITES[call](backend, task)
            assert type(caught.value) is error
            assert str(path) in str(caught.value)
            assert isinstance(caught.value.__cause__, (sqlite3.Error, OSError))
    assert rows(path) == before
    answer = await WRITES[call](backend, task)
    assert not answer or call == "reserve"
    assert rows(path) != before
    assert_healthy(path)


@pytest.mark.parametrize("call", ["enqueue", "reserve", "mark_success", "mark_failure"])
async def test_a_database_without_a_free_page_refuses_and_recovers(
    held: tuple[SQLiteBackend, ReservedTask], path: Path, call: str
) -> None:
    """SQLite's own "database or disk is full" comes as what may be tried again, and nothing of the call is stored."""
    backend, task = held
    if call == "reserve":
        await backend.enqueue([new_task(f"many-{n}") for n in range(300)])
        limit = 300  # so many rows grow a little that their pages have to be split
    before = rows(path)
    async with no_free_page(backend):
        with pytest.raises(BackendUnavailableError, match="disk is full"):
            await (
                backend.reserve(limit, lease=LEASE, alone=False) if call == "reserve" else WRITES[call](backend, task)
            )
    assert rows(path) == before
    await WRITES[call](backend, task)
    assert rows(path) != before
    assert_healthy(path)


@pytest.mark.parametrize("fault", ["moved away", "damaged header", "damaged page"])
async def test_a_read_of_a_sick_file_is_an_error_too(
    held: tuple[SQLiteBackend, ReservedTask], path: Path, fault: str
) -> None:
    """A result that cannot be looked up is never reported as missing."""
    backend, _ = held
    make, error = FAULTS[fault]
    async with make(backend, path):
        with pytest.raises(error):
            await backend.get_result("held")
    assert await backend.get_result("held") is not None


@pytest.mark.parametrize("fault", ["locked", "disk full", "read-only"])
async def test_a_file_that_cannot_be_written_can_still_be_read(
    held: tuple[SQLiteBackend, ReservedTask], path: Path, fault: str
) -> None:
    """Looking for a result needs nothing that these faults take away."""
    backend, _ = held
    make, _ = FAULTS[fault]
    async with make(backend, path):
        found = await backend.get_result("held")
    assert found is not None
    assert found.status == "in_progress"


async def test_a_queue_gets_the_named_error_and_nothing_of_a_batch_is_stored(path: Path) -> None:
    """``enqueue`` and ``enqueue_many`` raise what the contract names, within bounded time, and work afterwards."""
    async with TaskQueue(SQLiteBackend(path, busy_timeout=BUSY_SECONDS)) as queue:
        await queue.enqueue(add, 1, 2)
        for fault, error in [(write_lock, BackendUnavailableError), (moved_away, BackendUnavailableError)]:
            with fault(path), pytest.raises(error):
                await queue.enqueue(add, 3, 4)
            with fault(path), pytest.raises(error):
                await queue.enqueue_many([lambda: 1, lambda: 2])
        assert len(rows(path)) == 1
        assert len(await queue.enqueue_many([lambda: 1, lambda: 2])) == 2
    assert len(rows(path)) == 3


async def test_a_lock_that_is_held_for_less_than_the_busy_timeout_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call succeeds once the other program is done, however often it found the lock taken."""
    waits = Waits()
    monkeypatch.setattr(patience, "time", waits)
    async with connected(SQLiteBackend(path, busy_timeout=DEADLINE_SECONDS)) as backend:
        with write_lock(path):
            waiting = asyncio.ensure_future(backend.enqueue([new_task()]))
            await asyncio.to_thread(waits.several)
            assert not waiting.done()
        await waiting
    assert len(rows(path)) == 1


async def test_a_reader_is_answered_although_its_neighbours_wait_for_the_lock(path: Path) -> None:
    """What shares a turn of the thread with refused writes and needs no lock is not refused."""
    async with connected(SQLiteBackend(path, busy_timeout=BUSY_SECONDS)) as backend:
        await backend.enqueue([new_task("there")])
        with write_lock(path):
            calls = [backend.enqueue([new_task()]) if n % 2 else backend.get_result("there") for n in range(20)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, Result) for answer in answers] == [n % 2 == 0 for n in range(20)]


async def test_a_lock_is_waited_for_in_short_sleeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: a batch holds the lock for less than SQLite's own busy handler would sleep."""
    sleeps: list[float] = []
    enough = threading.Event()

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) >= 20:
            enough.set()
        time.sleep(0.001)  # in the place of one that was asked for; it keeps the loop from spinning

    async with connected(SQLiteBackend(path, busy_timeout=DEADLINE_SECONDS)) as backend:
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        with write_lock(path):
            waiting = asyncio.ensure_future(backend.enqueue([new_task()]))
            assert await asyncio.to_thread(enough.wait, DEADLINE_SECONDS / 2)
        await waiting
    assert 0 < min(sleeps) <= max(sleeps) <= patience.MAX_WAIT_SECONDS


class Recovering(sqlite3.Connection):
    """Finds, the first two times, that another connection repairs the WAL after a crash."""

    tries = 0

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Raises what SQLite raises then."""
        self.tries += 1
        if self.tries <= 2:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
            raise error
        return super().execute(sql, parameters)


class PatientRecovering(patience.PatientConnection, Recovering):
    """The same, patiently."""

    patience = DEADLINE_SECONDS


def test_each_kind_of_busy_is_waited_for() -> None:
    """SQLite tells them apart by extended codes, the recovery of a WAL among them."""
    with contextlib.closing(sqlite3.connect(":memory:", factory=PatientRecovering)) as patient:
        assert patient.execute("SELECT 1").fetchone() == (1,)
        assert patient.tries == 3


async def test_calls_that_share_a_commit_wait_for_the_lock_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty calls into a locked file get their errors after two busy timeouts, not after twenty."""
    queued = threading.Event()
    waited = 0.0

    def sleep(seconds: float) -> None:
        nonlocal waited
        assert queued.wait(DEADLINE_SECONDS)
        waited += seconds

    async with connected(SQLiteBackend(path, busy_timeout=BUSY_SECONDS)) as backend:
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: waited))
        with write_lock(path):
            calls = [asyncio.ensure_future(backend.enqueue([new_task(str(n))])) for n in range(20)]
            await asyncio.sleep(0)
            queued.set()  # one batch may have begun with the first of them, and the next one takes the rest
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {BackendUnavailableError}
        assert BUSY_SECONDS < waited < 3 * BUSY_SECONDS
    assert rows(path) == []


async def test_connecting_to_a_locked_fresh_file_fails_within_bounded_time(path: Path) -> None:
    """If the table cannot be made, the error says that the file is busy; later it can."""
    sqlite3.connect(path).close()
    with outside(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    backend = SQLiteBackend(path, busy_timeout=BUSY_SECONDS)
    with write_lock(path), pytest.raises(BackendUnavailableError):
        await backend.connect()
    async with connected(backend):
        await backend.enqueue([new_task()])


async def test_a_refused_batch_of_several_statements_leaves_no_transaction_open(path: Path) -> None:
    """Nothing of it is stored, the lock is free, and the next call of any size is committed."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("1999")])
        with pytest.raises(BackendError):
            await backend.enqueue([new_task(str(n)) for n in range(2000)])
        assert [row["task_id"] for row in rows(path)] == ["1999"]
        assert_unlocked(path)
        await backend.enqueue([new_task("small")])
        await backend.enqueue([new_task(f"large-{n}") for n in range(2000)])
        assert len(rows(path)) == 2002


async def test_a_batch_of_several_statements_that_fills_the_disk_gets_the_named_error(path: Path) -> None:
    """SQLite has ended the transaction by itself then, and that is no other error."""
    async with connected(SQLiteBackend(path)) as backend:
        async with no_free_page(backend):
            with pytest.raises(BackendUnavailableError, match="disk is full"):
                await backend.enqueue([new_task(str(n), bytes(1000)) for n in range(2000)])
        assert rows(path) == []
        assert_unlocked(path)
        await backend.enqueue([new_task()])


async def test_one_bad_neighbour_of_a_shared_commit_fails_alone(path: Path) -> None:
    """Of many calls that share a commit, only the one that the database refuses gets the error."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("7", b"another")])
        answers = await asyncio.gather(
            *(backend.enqueue([new_task(str(n))]) for n in range(20)), return_exceptions=True
        )
    refused = {n: answer for n, answer in enumerate(answers) if answer is not None}
    assert list(refused) == [7]
    assert isinstance(refused[7], BackendError)
    assert isinstance(refused[7].__cause__, sqlite3.IntegrityError)
    assert len(rows(path)) == 20


async def test_a_deleted_file_takes_no_more_tasks(path: Path) -> None:
    """SQLite would go on writing into a file that nobody can find; sitq says so instead."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("kept")])
        os.unlink(path)
        for call in (backend.enqueue([new_task("lost")]), backend.reserve(1, lease=1, alone=True)):
            with pytest.raises(BackendUnavailableError, match="deleted or moved") as caught:
                await call
            assert str(path) in str(caught.value)
        with pytest.raises(BackendUnavailableError):
            await backend.get_result("kept")
        assert not os.path.exists(path)  # noqa: ASYNC240


async def test_a_file_that_was_replaced_is_left_alone(path: Path) -> None:
    """The file that stands in its place belongs to somebody else."""
    other = path.with_suffix(".other")
    async with connected(SQLiteBackend(other)) as backend:
        await backend.enqueue([new_task("others")])
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("mine")])
        os.rename(path, path.with_suffix(".aside"))
        os.rename(other, path)
        with pytest.raises(BackendUnavailableError, match="replaced by another"):
            await backend.enqueue([new_task("lost")])
        os.rename(path, other)
        os.rename(path.with_suffix(".aside"), path)
        await backend.enqueue([new_task("mine too")])
    assert [row["task_id"] for row in rows(other)] == ["others"]
    assert [row["task_id"] for row in rows(path)] == ["mine", "mine too"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "paused"),
        ("status", ""),
        ("status", "success"),
        ("enqueued_at", "yesterday"),
        ("enqueued_at", 2**62),
        ("started_at", "never"),
        ("finished_at", 2**62),
        ("max_attempts", "many"),
        ("attempt", "first"),
        ("available_at", "soon"),
        ("payload", "text"),
        ("format", b"\xff"),
        ("name", b"\xff"),
    ],
)
async def test_a_malformed_row_does_not_stop_its_neighbours(path: Path, runs: Runs, column: str, value: Any) -> None:
    """Whatever stands in one row, the worker lives, the other tasks are run once, and asking for it ends."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        strange = await queue.enqueue(log_plain, runs, "strange")
        others = [await queue.enqueue(log_async, runs, n) for n in range(5)]
        with outside(path) as connection:
            connection.execute(f"UPDATE tasks SET {column} = ? WHERE task_id = ?", (value, strange))
        async with Worker(backend, max_concurrency=3):
            for task_id in others:
                result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
                assert result is not None
                assert result.status == "success"
            with contextlib.suppress(BackendError):
                await queue.get_result(strange, timeout=1)
    assert {line: count for line, count in runs.count().items() if line != "strange"} == dict.fromkeys("01234", 1)


@pytest.mark.parametrize(("column", "value"), [("status", "'paused'"), ("status", "NULL"), ("enqueued_at", "NULL")])
async def test_a_malformed_row_is_named_to_who_asks_for_it(path: Path, column: str, value: str) -> None:
    """Before any worker has taken it, it is an error that names the task, and never a result."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("strange")])
    with outside(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'tasks'")
    with outside(path) as connection:
        connection.execute(f"UPDATE tasks SET {column} = {value}")
    async with connected(SQLiteBackend(path)) as backend:
        with pytest.raises(BackendCorruptError, match="strange"):
            await backend.get_result("strange")


async def test_a_file_that_is_deleted_while_an_enqueue_waits_for_its_lock_takes_no_acknowledgement(path: Path) -> None:
    """The commit goes into a file without a name, and the caller learns that it is away."""
    begun = threading.Event()

    def clock() -> float:
        begun.set()  # asked at the beginning of each batch, before the lock is
        return time.time()

    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        with write_lock(path):
            begun.clear()
            storing = asyncio.ensure_future(backend.enqueue([new_task()]))
            assert await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
            os.unlink(path)
        with pytest.raises(BackendUnavailableError, match="not there any more"):
            await storing


@pytest.mark.parametrize("last", [False, True], ids=["ordinary", "last attempt"])
async def test_a_number_that_is_no_integer_is_when_a_task_is_due(path: Path, runs: Runs, last: bool) -> None:
    """A retry by hand with julianday() makes the task due, and does not hide the others behind it."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend, max_attempts=1 if last else 5) as queue:
        strange = await queue.enqueue(log_plain, runs, "strange")
        other = await queue.enqueue(log_plain, runs, "other")
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET available_at = julianday('now') WHERE task_id = ?", (strange,))
        async with Worker(backend, poll_interval=3600):
            for task_id in (strange, other):
                assert (await queue.get_result(task_id, timeout=DEADLINE_SECONDS)) is not None
    assert runs.count() == {"strange": 1, "other": 1}


@pytest.mark.parametrize("column", ["name", "format", "task_id", "payload"])
async def test_text_that_is_no_utf8_costs_its_neighbours_nothing(path: Path, runs: Runs, column: str) -> None:
    """All of one reservation; the neighbours are run in their first attempt."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        strange = await queue.enqueue(log_plain, runs, "strange")
        others = [await queue.enqueue(log_plain, runs, n) for n in range(9)]
        with outside(path) as connection:
            connection.execute(f"UPDATE tasks SET {column} = CAST(x'ff41' AS TEXT) WHERE task_id = ?", (strange,))
        async with Worker(backend, poll_interval=3600):
            for task_id in others:
                result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
                assert result is not None
                assert (result.status, result.attempt) == ("success", 1)
    assert {line: count for line, count in runs.count().items() if line != "strange"} == dict.fromkeys("012345678", 1)


async def test_a_spent_task_whose_id_is_no_utf8_is_buried_and_nothing_else_fails(path: Path) -> None:
    """The connection goes on, and what is stored in the same change is stored once."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("spent", max_attempts=1)])
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET task_id = CAST(x'ff41' AS TEXT), attempt = 1, status = 'in_progress'")
        reserving = asyncio.gather(
            backend.reserve(1, lease=60, alone=True), backend.enqueue([new_task("stored")]), return_exceptions=True
        )
        reservation, stored = await reserving
        assert stored is None
        assert not isinstance(reservation, BaseException)
        assert len(reservation.buried) == 1
        for n in range(3):
            await backend.enqueue([new_task(f"later-{n}")])
            assert (await backend.reserve(1, lease=60, alone=True)).buried == []
    stored = rows(path, "SELECT status FROM tasks")
    assert [row["status"] for row in stored] == ["failed", *["in_progress"] * 3, "pending"]
