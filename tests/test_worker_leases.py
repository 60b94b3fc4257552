"""At least once: leases are renewed, taken over when their holder is gone, and completions are fenced."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import ReservedTask, Result, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows
from tests.worker_tasks import TellingBackend, block_at, connected, execute, far_ahead, gate, wait_at

SHORT_LEASE_SECONDS = 0.8
SEVERAL_LEASES = 8
"""How many renewals there are in the time of two leases."""


async def fail_at(name: str) -> None:
    """Waits at a gate, then raises."""
    await wait_at(name)
    raise ValueError("late")


async def finished(queue: TaskQueue, task_id: str) -> Result[Any]:
    """Returns the result of a task that will be finished."""
    result = await queue.get_result(task_id)
    assert result is not None
    return result


@pytest.fixture
def telling(path: Path) -> TellingBackend:
    """A backend that tells when leases are renewed."""
    return TellingBackend(path)


@pytest.fixture
async def rival(path: Path) -> AsyncIterator[Worker]:
    """A second worker on the same file, which tries to reserve all the time."""
    async with Worker(SQLiteBackend(path), poll_interval=0.02) as worker:
        yield worker


async def test_long_tasks_keep_their_leases(telling: TellingBackend, rival: Worker, runs: Runs) -> None:
    """A coroutine and a function that run for several leases run once, beside a worker that waits for them."""
    await rival.stop()
    async with TaskQueue(telling) as queue, Worker(telling, lease=SHORT_LEASE_SECONDS):
        with gate() as here:
            ids = [await queue.enqueue(task, "gate", "once", runs) for task in (wait_at, block_at)]
            await here.arrived(2)
            await rival.start()
            await asyncio.to_thread(telling.renewals, SEVERAL_LEASES)
        results = [await finished(queue, task_id) for task_id in ids]
    assert [(result.value, result.attempt) for result in results] == [("once", 1)] * 2
    assert runs.lines() == ["once", "once"]


async def test_a_renewal_moves_the_end_of_the_lease(path: Path, telling: TellingBackend) -> None:
    """Each renewal lets the lease end a lease's length from then, and nothing else changes in the row."""
    async with TaskQueue(telling) as queue, Worker(telling, lease=SHORT_LEASE_SECONDS):
        with gate() as here:
            await queue.enqueue(wait_at, "gate")
            await here.arrived()
            before = rows(path)[0]
            await asyncio.to_thread(telling.renewals, 2)
            after = rows(path)[0]
    assert after["available_at"] > before["available_at"]
    assert {**after, "available_at": None} == {**before, "available_at": None}


async def test_a_worker_that_is_stopping_keeps_its_leases(telling: TellingBackend, rival: Worker, runs: Runs) -> None:
    """What stop() waits for is renewed for as long as that takes, and no other worker runs it."""
    await rival.stop()
    async with TaskQueue(telling) as queue:
        worker = Worker(telling, lease=SHORT_LEASE_SECONDS)
        await worker.start()
        with gate() as here:
            task_id = await queue.enqueue(wait_at, "gate", "once", runs)
            await here.arrived()
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
            await rival.start()
            await asyncio.to_thread(telling.renewals, SEVERAL_LEASES)
        await stopping
        result = await finished(queue, task_id)
    assert (result.value, result.attempt) == ("once", 1)
    assert runs.lines() == ["once"]


class Blockade:
    """What :func:`block_loop` shares with its test: the renewals to wait for, and a rival in another thread."""

    def __init__(self, path: Path) -> None:
        self.telling = TellingBackend(path)
        self._path = path
        self._begun, self._ready, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._rival()), daemon=True)
        self._thread.start()

    async def _rival(self) -> None:
        await asyncio.to_thread(self._begun.wait)
        async with Worker(SQLiteBackend(self._path), poll_interval=0.02):
            self._ready.set()
            await asyncio.to_thread(self._ended.wait)

    def stand(self) -> None:
        """Starts the rival, and blocks for several leases."""
        self._begun.set()
        assert self._ready.wait(DEADLINE_SECONDS)
        self.telling.renewals(SEVERAL_LEASES)

    def end(self) -> None:
        """Ends the rival."""
        self._begun.set()
        self._ended.set()
        self._thread.join(DEADLINE_SECONDS)


blockades: list[Blockade] = []


async def block_loop(runs: Runs) -> None:
    """Keeps the loop's thread until leases have been renewed for as long as several of them last."""
    runs.add("blocks")
    blockades[-1].stand()


async def test_a_task_that_blocks_the_loop_runs_once_and_is_named(
    path: Path, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """It and its neighbour keep their leases although a rival tries to reserve them, and one warning names it."""
    blockade = Blockade(path)
    blockades[:] = [blockade]
    backend = blockade.telling
    try:
        async with TaskQueue(backend) as queue, Worker(backend, lease=SHORT_LEASE_SECONDS):
            with gate() as here:
                neighbour = await queue.enqueue(wait_at, "gate", "neighbour", runs)
                await here.arrived()
                blocking = await queue.enqueue(block_loop, runs)
                results = [await finished(queue, blocking)]
            results.append(await finished(queue, neighbour))
    finally:
        await asyncio.to_thread(blockade.end)
    assert [(result.status, result.attempt) for result in results] == [("success", 1)] * 2
    assert sorted(runs.lines()) == ["blocks", "neighbour"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if blocking in text and "block_loop" in text and "event loop" in text]) == 1
    assert not [text for text in warnings if neighbour in text]


async def test_an_outcome_that_cannot_be_recorded_yet_keeps_its_lease(
    path: Path, telling: TellingBackend, rival: Worker, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store refuses the outcome its lease is renewed; then it is recorded, and the task ran once."""
    await rival.stop()
    async with TaskQueue(telling) as queue, Worker(telling, lease=SHORT_LEASE_SECONDS, max_concurrency=1):
        execute(
            path,
            "CREATE TRIGGER refuse BEFORE UPDATE ON tasks WHEN NEW.status = 'success' "
            "BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        task_id = await queue.enqueue(log_async, runs, "once")
        await asyncio.to_thread(telling.renewals, 1)
        await rival.start()
        await asyncio.to_thread(telling.renewals, SEVERAL_LEASES)
        assert [row["status"] for row in rows(path)] == ["in_progress"]
        execute(path, "DROP TRIGGER refuse")
        result = await finished(queue, task_id)
    assert (result.status, result.attempt) == ("success", 1)
    assert runs.lines() == ["once"]
    assert any("not now" in record.getMessage() for record in caplog.records)


async def test_an_abandoned_task_is_taken_over_when_its_lease_has_ended(path: Path, runs: Runs) -> None:
    """By the backend's clock: not a microsecond before the lease's end, then at once, with ``attempt`` 2."""
    now = [1_900_000_000.0]
    backend = SQLiteBackend(path, clock=lambda: now[0])
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(log_async, runs, "ran")
        await backend.reserve(1, lease=30, alone=True)
        for ahead, count in ((29.999, 0), (30.001, 1)):
            now[0] = 1_900_000_000.0 + ahead
            assert await Worker(backend).drain() == count
        result = await finished(queue, task_id)
    assert (result.status, result.attempt) == ("success", 2)
    assert result.started_at is not None
    assert result.started_at.timestamp() == pytest.approx(now[0])


async def test_an_idle_worker_wakes_when_a_lease_of_another_ends(path: Path) -> None:
    """With an hour's poll_interval a worker sleeps no longer than the lease that a dead worker left behind."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        await backend.reserve(1, lease=SHORT_LEASE_SECONDS, alone=True)
        ends_at = rows(path)[0]["available_at"]
        async with Worker(backend, poll_interval=3600):
            result = await finished(queue, task_id)
        assert (result.value, result.attempt) == (3, 2)
        assert rows(path)[0]["started_at"] >= ends_at


@pytest.mark.parametrize("finish_first", [False, True], ids=["new-holder-runs", "new-holder-finished"])
@pytest.mark.parametrize("call", [partial(wait_at, "gate", "late"), partial(fail_at, "gate")], ids=["value", "error"])
async def test_a_late_completion_changes_nothing_and_is_logged(
    call: Callable[[], Any],
    finish_first: bool,
    path: Path,
    backend: SQLiteBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it comes while the new holder runs or after that one has finished, the row is the new holder's."""
    worker = Worker(backend)
    await worker.start()
    async with TaskQueue(backend) as queue, connected(far_ahead(path)) as ahead:
        with gate() as here:
            (task_id,) = await queue.enqueue_many([call])
            await here.arrived()
            (taken,) = (await ahead.reserve(1, lease=600, alone=True)).tasks
            assert taken.attempt == 2
            if finish_first:
                assert await ahead.mark_success([Outcome(taken, b"the new holder's")]) == []
            before = rows(path)
        await worker.stop()
        assert rows(path) == before
        if not finish_first:
            assert await ahead.mark_success([Outcome(taken, b"the new holder's")]) == []
    assert rows(path, "SELECT status, attempt, result FROM tasks") == [
        {"status": "success", "attempt": 2, "result": b"the new holder's"}
    ]
    said = [
        record
        for record in caplog.records
        if task_id in record.getMessage() and "lost its lease" in record.getMessage()
    ]
    assert [record.levelno for record in said] == [logging.WARNING]


async def test_a_renewal_that_finds_the_task_taken_over_is_logged_once(
    path: Path, telling: TellingBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that learns from a renewal that its task has another holder warns, and names the task, once."""
    async with TaskQueue(telling) as queue, Worker(telling, lease=SHORT_LEASE_SECONDS):
        with gate() as here:
            task_id = await queue.enqueue(wait_at, "gate", "value")
            await here.arrived()
            async with connected(far_ahead(path)) as ahead:
                (taken,) = (await ahead.reserve(1, lease=600, alone=True)).tasks
                held = rows(path)
                await asyncio.to_thread(telling.renewals, 3)
                assert rows(path) == held
                said = [record for record in caplog.records if task_id in record.getMessage()]
                assert [record.levelno for record in said] == [logging.WARNING]
                assert "wait_at" in said[0].getMessage()
                assert await ahead.release([taken]) == []


class AnswersLate(TellingBackend):
    """Says that a success is recorded only when leases have been renewed after it was."""

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records, and waits."""
        lost = await super().mark_success(outcomes)
        await asyncio.to_thread(self.renewals, 2)
        return lost


async def test_a_renewal_that_finds_the_task_finished_by_its_holder_says_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that finds the outcome recorded just before does not say that the task is not held."""
    backend = AnswersLate(path)
    async with TaskQueue(backend) as queue, Worker(backend, lease=SHORT_LEASE_SECONDS):
        result = await finished(queue, await queue.enqueue(add, 1, 2))
    assert result.value == 3
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class RaisesOnce(TellingBackend):
    """Raises upon the first renewal what no backend should."""

    raised = False

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Raises, the first time."""
        if not self.raised:
            self.raised = True
            raise RuntimeError("not in the contract")
        return await super().renew(tasks, lease=lease)


async def test_a_renewal_that_raises_whatever_it_likes_is_followed_by_the_next(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the backend is logged as an error, and leases are renewed as before."""
    backend = RaisesOnce(path)
    async with TaskQueue(backend) as queue, Worker(backend, lease=SHORT_LEASE_SECONDS):
        with gate() as here:
            task_id = await queue.enqueue(wait_at, "gate", "value")
            await here.arrived()
            await asyncio.to_thread(backend.renewals, 2)
        result = await finished(queue, task_id)
    assert (result.value, result.attempt) == ("value", 1)
    said = [record.levelno for record in caplog.records if "not in the contract" in record.getMessage()]
    assert said == [logging.ERROR]


async def test_neighbours_of_a_lost_task_keep_theirs(path: Path, telling: TellingBackend, runs: Runs) -> None:
    """Of three tasks one is taken over: the two others are renewed, and recorded when they finish."""
    async with TaskQueue(telling) as queue, Worker(telling, lease=SHORT_LEASE_SECONDS):
        with gate() as here:
            ids = await queue.enqueue_many(partial(wait_at, "gate", n) for n in range(3))
            await here.arrived(3)
            far = "available_at = available_at + 600000000"
            execute(path, f"UPDATE tasks SET claim = 1, {far} WHERE task_id = ?", ids[1])
            await asyncio.to_thread(telling.renewals, SEVERAL_LEASES)
        results = [await finished(queue, ids[0]), await finished(queue, ids[2])]
    assert [(result.value, result.attempt) for result in results] == [(0, 1), (2, 1)]
    assert [row["status"] for row in rows(path)] == ["success", "in_progress", "success"]
