"""Delays, datetimes of other libraries, frozen time, and what enqueueing many leaves to the event loop."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import freezegun
import pendulum
import pytest

from sitq import BackendError, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker
from sitq.backends.sqlite import statements
from sitq.backends.sqlite.changes import StoreTask
from sitq.backends.sqlite.jobs import ReadJob, ReserveJob
from sitq.backends.sqlite.schema import prepare
from sitq.models import Outcome, new_task_id, to_micros
from sitq.testing import ManualQueue
from tests.faults import connected, new_task
from tests.support import DEADLINE_SECONDS, add, multiply, rows

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


class Moment(datetime):
    """A datetime that calculates with classes of its own, as those of several libraries do."""

    def astimezone(self, tz: Any = None) -> Any:
        """Gives one of its own class."""
        return Moment(2000, 1, 1, tzinfo=tz)

    def __sub__(self, other: Any) -> Any:
        """Gives what is no timedelta."""
        return "an interval"


class Ticks:
    """A monotonic clock that goes on by a second whenever something is pickled."""

    def __init__(self) -> None:
        self.now = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Takes a second."""
        self.now += 1
        return int, ()


def two_ways(queue: TaskQueue) -> list[Callable[..., Any]]:
    """The ways to enqueue a call of ``add``."""
    return [
        lambda eta: queue.enqueue(add, 1, 2, eta=eta),
        lambda eta: queue.enqueue_many([partial(add, 1, 2)] * 2, eta=eta),
    ]


async def test_a_delay_is_counted_by_the_clock_of_the_store(path: Path) -> None:
    """A ``timedelta`` is added to the time of the backend, whatever that of the producer is."""
    clock = [LONG_AGO.timestamp()]
    backend = SQLiteBackend(path, clock=lambda: clock[0])
    async with TaskQueue(backend) as queue:
        for way in two_ways(queue):
            await way(HOUR + timedelta(microseconds=7))
        assert {row["available_at"] - row["enqueued_at"] for row in rows(path)} == {3_600_000_007}
        clock[0] += 3_600
        assert await Worker(backend).drain() == 0
        clock[0] += 0.000_008
        assert await Worker(backend).drain() == 3


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(seconds=-1), timedelta.min], ids=str)
async def test_a_delay_that_is_none_means_now(queue: TaskQueue, path: Path, delay: timedelta) -> None:
    """A negative one, too, as an ``eta`` that is over."""
    for way in two_ways(queue):
        await way(delay)
    assert {row["available_at"] - row["enqueued_at"] for row in rows(path)} == {0}


def test_sync_code_delays_as_well(path: Path) -> None:
    """``SyncTaskQueue`` takes the same delays."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        queue.enqueue(multiply, 1, 2, eta=HOUR)
        queue.enqueue_many([partial(multiply, 1, 2)], eta=HOUR)
    assert [row["available_at"] - row["enqueued_at"] for row in rows(path)] == [3_600_000_000] * 2


@pytest.mark.parametrize(
    ("eta", "instant"),
    [
        (pendulum.datetime(2100, 7, 1, 8, 30, 0, 5, tz="Europe/Vienna"), datetime(2100, 7, 1, 6, 30, 0, 5, tzinfo=UTC)),
        (Moment(2100, 7, 1, 8, 30, tzinfo=UTC), datetime(2100, 7, 1, 8, 30, tzinfo=UTC)),
    ],
    ids=["pendulum", "another"],
)
async def test_a_datetime_of_another_library_is_an_eta(
    queue: TaskQueue, path: Path, eta: datetime, instant: datetime
) -> None:
    """What it makes of itself when it calculates does not matter: the same instant is stored."""
    for way in two_ways(queue):
        await way(eta)
    assert {row["available_at"] for row in rows(path)} == {to_micros(instant)}


async def test_a_duration_of_another_library_is_a_delay(queue: TaskQueue, path: Path) -> None:
    """``pendulum.duration`` is a timedelta."""
    await queue.enqueue(add, 1, 2, eta=pendulum.duration(hours=1))
    assert [row["available_at"] - row["enqueued_at"] for row in rows(path)] == [3_600_000_000]


@pytest.mark.parametrize("start", ["1969-07-20 20:17:40", "2031-05-05 12:00:00"])
async def test_time_that_a_test_has_frozen_is_the_time_of_a_store(path: Path, start: str) -> None:
    """With freezegun, tasks are run, an ``eta`` and a delay come when time is put ahead, and waiting ends."""
    with freezegun.freeze_time(start, real_asyncio=True) as frozen:
        async with asyncio.timeout(DEADLINE_SECONDS), ManualQueue(SQLiteBackend(path)) as queue:
            now = await queue.enqueue(multiply, 2, 3)
            later = [
                await queue.enqueue(add, 1, 2, eta=datetime.now(UTC) + HOUR),
                await queue.enqueue(add, 1, 2, eta=HOUR),
            ]
            assert await queue.drain() == 1
            result = await queue.get_result(now)
            assert result is not None
            assert (result.value, result.finished_at) == (6, datetime.now(UTC))
            assert await queue.get_result(later[0], timeout=0.01) is None
            frozen.tick(timedelta(minutes=59))
            assert await queue.drain() == 0
            frozen.tick(timedelta(minutes=1))
            assert await queue.drain() == 2


async def test_enqueueing_many_lets_the_loop_turn_by_time(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that each take a second to pickle hold the loop for one of them, not for a number of them."""
    ticks = Ticks()
    turns: list[int] = []

    def calls() -> Iterator[Callable[[], Any]]:
        for _ in range(100):
            seen.append(len(turns))
            yield partial(str, ticks)

    async def turn() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    seen: list[int] = []
    monkeypatch.setattr("sitq.queue.time.monotonic", lambda: ticks.now)
    turning = asyncio.create_task(turn())
    await queue.enqueue_many(calls())
    turning.cancel()
    assert seen == sorted(set(seen))


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection as a backend has it."""
    connection = sqlite3.connect(path, isolation_level=None)
    prepare(connection, str(path))
    statements.install(connection)
    yield connection
    connection.close()


def new_records(count: int) -> Iterator[StoreTask]:
    """Gives the records of as many new tasks."""
    return (StoreTask(new_task_id(), "", "", b"", 5, 0) for _ in range(count))


def test_rows_are_made_while_others_are_written(connection: sqlite3.Connection) -> None:
    """A large batch is not turned into rows all at once, which would keep the interpreter lock from the loop."""
    written = []

    def records_of_a_batch() -> Iterator[StoreTask]:
        for record in new_records(10_000):
            written.append(connection.total_changes)
            yield record

    before = connection.total_changes
    statements.apply(connection, 0, records_of_a_batch())
    assert written[0] == before
    assert before + 10_000 > written[-1] > before + 5_000
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (10_000,)


def test_a_batch_that_fails_halfway_is_not_stored(connection: sqlite3.Connection) -> None:
    """What was written of it before its rows could no longer be made is rolled back."""

    def records_of_a_batch() -> Iterator[StoreTask]:
        yield from new_records(5_000)
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        statements.apply(connection, 0, records_of_a_batch())
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (0,)


def test_a_statement_has_no_more_variables_than_stock_sqlite_allows() -> None:
    """Also if a batch has changes of every kind; Debian's allows more, and would not show it."""
    assert len(statements._COLUMNS) * statements.ROW_COUNTS[-1] < 32_766


async def test_a_batch_that_is_stored_already_is_done(path: Path) -> None:
    """After an answer that was lost, the same call made again stores nothing, whatever became of the tasks."""
    tasks = [new_task(str(n), b"%d" % n) for n in range(3)]
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue(tasks)
        (held, *_) = (await backend.reserve(9, lease=30, alone=True)).tasks
        await backend.mark_success([Outcome(held, b"")])
        before = rows(path)
        await asyncio.gather(backend.enqueue(tasks), backend.enqueue(tasks), backend.enqueue([new_task("other")]))
        assert rows(path)[:3] == before
        assert [row["task_id"] for row in rows(path)] == ["0", "1", "2", "other"]


@pytest.mark.parametrize(
    "tasks",
    [
        [new_task("0", b"0"), new_task("1", b"changed")],
        [new_task("0", b"0"), new_task("new")],
        [new_task("new"), new_task("0", b"0")],
        [new_task("0", b"0"), new_task("0", b"0")],
        [new_task("new"), new_task("new")],
    ],
    ids=["another payload", "one is new", "the first is new", "twice", "new twice"],
)
async def test_any_other_id_that_is_taken_refuses_the_batch(path: Path, tasks: list[Any]) -> None:
    """It is not the same call, and nothing of it is stored."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("0", b"0"), new_task("1", b"1")])
        before = rows(path)
        with pytest.raises(BackendError, match="UNIQUE"):
            await backend.enqueue(tasks)
        assert rows(path) == before


async def test_a_reservation_that_cannot_look_keeps_no_enqueue(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the jobs that share a batch, the one at fault fails alone, whatever it raises."""

    def fail(*_: object, **__: object) -> bool:
        raise LookupError("the look failed")

    async with connected(backend):
        gate = threading.Event()
        waiting = backend._connected().submit(ReadJob(lambda *_: gate.wait(DEADLINE_SECONDS)))
        with monkeypatch.context() as patch:
            patch.setattr(ReserveJob, "is_wanted", fail)
            calls = [backend.reserve(1, lease=30, alone=True), backend.enqueue([new_task()])]
            both = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)  # they are queued, and share the next batch
            gate.set()
            assert await waiting
            failed, stored = await both
        assert (type(failed), stored) == (LookupError, None)
        assert [task.task_id for task in (await backend.reserve(1, lease=30, alone=True)).tasks] == ["task"]
