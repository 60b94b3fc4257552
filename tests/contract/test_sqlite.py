"""SQLiteBackend keeps the contract, on a file and in memory, and leaves less behind than it has to."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sitq import Backend, BackendUnavailableError, SQLiteBackend
from sitq.backends.sqlite import statements
from sitq.backends.sqlite.changes import StoreTask
from sitq.backends.sqlite.jobs import ReadJob
from sitq.backends.sqlite.patience import PatientConnection
from sitq.models import Outcome, Reservation
from sitq.testing import ManualClock
from sitq.testing._contract.base import LEASE_SECONDS, ids, new, successes, take, until
from sitq.testing._contract.calling import cancel, turns
from sitq.testing.contract import BackendContract
from tests.faults import Clock, new_task, write_lock
from tests.support import DEADLINE_SECONDS, rows
from tests.worker_tasks import connected


@contextlib.asynccontextmanager
async def one_commit_unanswered() -> AsyncIterator[None]:
    """Inside, the first commit of any connection is made, and then reported as an error of the disk."""
    execute, left = PatientConnection.execute, [True]

    def execute_and_fail(connection: PatientConnection, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        changes = connection.total_changes
        cursor = execute(connection, sql, parameters)
        # A statement outside of a transaction is one of its own.
        if left and (sql == "COMMIT" or connection.total_changes > changes) and not connection.in_transaction:
            left.clear()
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return cursor

    with mock.patch.object(PatientConnection, "execute", execute_and_fail):
        yield


class TestOnAFile(BackendContract):
    knows_extras = frozenset({"queue", "priority", "unique"})

    @pytest.fixture
    def backend(self, path: Path) -> Backend:
        """A backend on a fresh file."""
        self.path, self.clock = path, ManualClock()
        return SQLiteBackend(path, clock=self.clock)

    def another(self, backend: Backend) -> Backend:
        """Another connection to the file."""
        return SQLiteBackend(self.path, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves the clock of both."""
        self.clock.advance(seconds)

    def cut(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """A file has no connection that could break, but a disk that fails after the commit."""
        return one_commit_unanswered()


class TestInMemory(BackendContract):
    knows_extras = frozenset({"queue", "priority", "unique"})

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)

    def cut(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """As on a file."""
        return one_commit_unanswered()


async def test_a_commit_that_is_reported_as_failed_was_made(path: Path) -> None:
    """What the contract's suite takes for a broken connection: the caller gets an error, and the file has the task."""
    async with connected(SQLiteBackend(path)) as backend:
        with pytest.raises(BackendUnavailableError):
            async with one_commit_unanswered():
                await backend.enqueue(new())
        assert [row["status"] for row in rows(path)] == ["pending"]


async def test_reservations_at_one_instant_get_each_their_own(path: Path) -> None:
    """Two backends whose clocks show the same microsecond, so that leases end together, share no task."""
    clock = Clock()
    async with (
        connected(SQLiteBackend(path, clock=clock)) as one,
        connected(SQLiteBackend(path, clock=clock)) as other,
    ):
        tasks = new(4)
        await one.enqueue(tasks)
        found = [await take(by, 1, alone=False) for by in (one, other, one, other)]
    assert [[task.task_id for task in some] for some in found] == [[task.task_id] for task in tasks]


async def test_a_last_attempt_is_said_to_wait_beside_others_that_became_due_with_it() -> None:
    """At the same microsecond: none of them became due before it."""
    (last,), ordinary = new(max_attempts=1), new(2)
    async with connected(SQLiteBackend(":memory:", clock=Clock())) as backend:
        await backend.enqueue([*ordinary, last])
        reservation = await backend.reserve(1, lease=LEASE_SECONDS, alone=False)
        assert (ids(reservation.tasks), reservation.last_attempt_waiting) == (ids(ordinary[:1]), True)


async def test_a_limit_leaves_what_became_due_later() -> None:
    """Not what was stored later: of two tasks that are due, one caller gets the older one by its eta."""
    clock = ManualClock()
    async with connected(SQLiteBackend(":memory:", clock=clock)) as backend:
        now = clock()
        late, early = (new(eta=datetime.fromtimestamp(now + after, UTC))[0] for after in (20, 10))
        await backend.enqueue([late, early])
        clock.advance(30)
        assert [ids(await take(backend, 1)) for _ in range(2)] == [ids([early]), ids([late])]


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_a_cancelled_reservation_gives_its_tasks_back(where: str, path: Path) -> None:
    """Whenever it is cancelled, its tasks are pending again without an end of any lease, and no attempt is spent."""
    async with connected(SQLiteBackend(path if where == "file" else ":memory:")) as backend:
        for after in turns():
            tasks = new(3)
            await backend.enqueue(tasks)
            cancelled = await cancel(backend.reserve(3, lease=3600, alone=False), after)
            if not cancelled:
                break
            held = await until(lambda: take(backend))
            assert [(task.task_id, task.attempt) for task in held] == [(task.task_id, 1) for task in tasks]
            await backend.mark_success(successes(held))


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_reservation_cancelled_around_its_delivery_gives_its_tasks_back(delivered: bool, path: Path) -> None:
    """Also if it was committed, and its caller is cancelled just before or just after it gets the outcome."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue(new(3))
        reserving = asyncio.ensure_future(backend.reserve(3, lease=3600, alone=False))
        await asyncio.sleep(0)
        # The loop stands still while the connection's thread hands the outcome over, and takes another job.
        deadline = time.monotonic() + DEADLINE_SECONDS
        while rows(path)[0]["status"] == "pending":
            assert time.monotonic() < deadline
        passed = threading.Event()
        backend._connected().post(ReadJob(lambda *_: passed.set()))
        assert passed.wait(DEADLINE_SECONDS)
        if delivered:
            asyncio.get_running_loop().call_soon(reserving.cancel)
        else:
            reserving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reserving
        held = await until(lambda: take(backend))
        assert [task.attempt for task in held] == [1] * 3


async def test_a_last_attempt_leaves_what_is_due_behind_it(path: Path) -> None:
    """A reservation that brings a last attempt brings nothing else, though there is room and more is due."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        for tasks in ([new_task("last", max_attempts=1)], new(2)):
            await backend.enqueue(tasks)
            clock.now += 1
        assert [task.task_id for task in await take(backend, 10)] == ["last"]


async def test_a_reservation_whose_loop_has_ended_gives_its_tasks_back(path: Path) -> None:
    """Where asyncio.run() in another thread ends in the middle of a reservation, the tasks can be taken."""
    async with connected(SQLiteBackend(path)) as backend:
        for after in range(12):
            tasks = new(3)
            await backend.enqueue(tasks)

            async def leave(turns: int = after) -> asyncio.Future[Reservation]:
                reserving = asyncio.ensure_future(backend.reserve(3, lease=3600, alone=False))
                for _ in range(turns):
                    await asyncio.sleep(0)
                return reserving

            reserving = await asyncio.to_thread(lambda: asyncio.run(leave()))
            if not reserving.cancelled():  # it was in time, and what it brought belongs to its caller
                await backend.release(reserving.result().tasks)
            held = await until(lambda: take(backend))
            assert [(task.task_id, task.attempt) for task in held] == [(task.task_id, 1) for task in tasks]
            await backend.mark_success(successes(held))


async def test_a_reservation_whose_loop_was_closed_under_it_gives_its_tasks_back(path: Path) -> None:
    """If a loop is closed without cancelling what waits in it, the tasks can be taken all the same."""
    async with connected(SQLiteBackend(path)) as backend:
        tasks = new(3)
        await backend.enqueue(tasks)
        loop = asyncio.new_event_loop()
        with write_lock(path):
            reserving = loop.create_task(backend.reserve(3, lease=3600, alone=False))
            await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0))
            loop.close()
        held = await until(lambda: take(backend))
        assert [(task.task_id, task.attempt) for task in held] == [(task.task_id, 1) for task in tasks]
        assert not reserving.done()


async def test_a_task_that_is_given_back_keeps_its_place(path: Path) -> None:
    """It is the oldest again, and does not stand behind what came after it."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        for task_id in ("first", "second"):
            await backend.enqueue([new_task(task_id)])
            clock.now += 1
        held = (await backend.reserve(1, lease=3600, alone=True)).tasks
        await backend.release(held)
        (again,) = (await backend.reserve(1, lease=3600, alone=True)).tasks
    assert (again.task_id, again.attempt) == ("first", 1)


async def test_a_close_behind_several_reservations_answers_all_of_them(path: Path) -> None:
    """A batch takes one reservation, but nothing is queued behind the close."""
    backend = SQLiteBackend(path)
    await backend.connect()
    await backend.enqueue([new_task(str(n)) for n in range(9)])
    calls = [asyncio.ensure_future(backend.reserve(2, lease=30, alone=False)) for _ in range(4)]
    await asyncio.sleep(0)
    await backend.close()
    assert [len((await call).tasks) for call in calls] == [2, 2, 2, 2]


async def test_large_payloads_are_not_kept_by_a_cached_statement(path: Path) -> None:
    """What is stored or recorded together takes several statements if it is large, in one transaction."""
    payload = b"x" * (statements.MAX_PIECE_BYTES // 4)
    records = [StoreTask(str(n), "", "", payload, 5, 0) for n in range(10)]
    assert [len(piece) for piece in statements._pieces(records)] == [4, 4, 2]
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(str(n), payload) for n in range(10)])
        taken = (await backend.reserve(10, lease=30, alone=False)).tasks
        await backend.mark_success([Outcome(task, payload) for task in taken])
    assert {len(row["result"]) for row in rows(path)} == {len(payload)}
