"""The wall clock jumps in the middle of a lease: one accepted completion, nothing blocked beyond the jump."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sitq import BackendUnavailableError, SQLiteBackend, TaskQueue, Worker
from sitq.models import Outcome
from tests.faults import Clock, assert_healthy, connected, new_task, run_until, write_lock
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, rows, until
from tests.worker_tasks import TellingBackend

HOUR = 3600.0
LEASE = 30.0


@pytest.fixture
def clock() -> Clock:
    """The clock of both backends."""
    return Clock()


@pytest.fixture
async def two(path: Path, clock: Clock) -> AsyncIterator[tuple[SQLiteBackend, SQLiteBackend]]:
    """Two backends on one file, as of two processes on one host."""
    first, second = SQLiteBackend(path, clock=clock), SQLiteBackend(path, clock=clock)
    async with connected(first), connected(second):
        await first.enqueue([new_task()])
        yield first, second


async def test_an_hour_forward_ends_a_lease_and_fences_its_holder(
    two: tuple[SQLiteBackend, SQLiteBackend], clock: Clock, path: Path
) -> None:
    """Another takes the task; of the two completions only its one is accepted, whichever comes first."""
    first, second = two
    (mine,) = (await first.reserve(1, lease=LEASE, alone=True)).tasks
    clock.now += HOUR
    (theirs,) = (await second.reserve(1, lease=LEASE, alone=True)).tasks
    assert theirs.attempt == 2
    assert await first.renew([mine], lease=LEASE) == [mine]
    assert await first.mark_success([Outcome(mine, b"late")]) == [mine]
    assert await first.mark_failure([Outcome(mine, error="E: late")]) == [mine]
    assert await first.release([mine]) == [mine]
    assert await second.mark_success([Outcome(theirs, b"theirs")]) == []
    assert await first.mark_success([Outcome(mine, b"late")]) == [mine]
    (row,) = rows(path)
    assert (row["status"], row["result"], row["attempt"]) == ("success", b"theirs", 2)


async def test_an_hour_forward_does_not_cost_a_holder_its_task_that_renews_first(
    two: tuple[SQLiteBackend, SQLiteBackend], clock: Clock
) -> None:
    """A lease that has ended by the clock and was not taken is good again after a renewal."""
    first, second = two
    (mine,) = (await first.reserve(1, lease=LEASE, alone=True)).tasks
    clock.now += HOUR
    assert await first.renew([mine], lease=LEASE) == []
    assert (await second.reserve(1, lease=LEASE, alone=True)).tasks == []
    assert await first.mark_success([Outcome(mine, b"")]) == []


async def test_an_hour_back_blocks_an_abandoned_task_for_its_lease_and_the_hour(
    two: tuple[SQLiteBackend, SQLiteBackend], clock: Clock
) -> None:
    """Not shorter, because its holder may live; not longer."""
    first, second = two
    await first.reserve(1, lease=LEASE, alone=True)
    clock.now -= HOUR
    found = await second.reserve(1, lease=LEASE, alone=True)
    assert not found.tasks
    assert found.next_due_in == pytest.approx(HOUR + LEASE, abs=0.001)
    clock.now += HOUR + LEASE - 0.001
    assert not (await second.reserve(1, lease=LEASE, alone=True)).tasks
    clock.now += 0.002
    (theirs,) = (await second.reserve(1, lease=LEASE, alone=True)).tasks
    assert theirs.attempt == 2


async def test_an_hour_back_shortens_no_lease_that_is_renewed(
    two: tuple[SQLiteBackend, SQLiteBackend], clock: Clock
) -> None:
    """After the jump a renewal counts from the new time, and the holder keeps the task."""
    first, second = two
    (mine,) = (await first.reserve(1, lease=LEASE, alone=True)).tasks
    clock.now -= HOUR
    assert await first.renew([mine], lease=LEASE) == []
    clock.now += LEASE - 0.001
    assert not (await second.reserve(1, lease=LEASE, alone=True)).tasks
    assert await first.renew([mine], lease=LEASE) == []
    clock.now += LEASE - 0.001
    assert not (await second.reserve(1, lease=LEASE, alone=True)).tasks
    assert await first.mark_success([Outcome(mine, b"")]) == []


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_what_is_given_back_is_due_at_once_whatever_the_clock_did(
    two: tuple[SQLiteBackend, SQLiteBackend], clock: Clock, jump: float
) -> None:
    """A release counts by the new time."""
    first, second = two
    (mine,) = (await first.reserve(1, lease=LEASE, alone=True)).tasks
    clock.now += jump
    assert await first.release([mine]) == []
    (theirs,) = (await second.reserve(1, lease=LEASE, alone=True)).tasks
    assert theirs.attempt == 1


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_jump_under_two_live_workers_loses_nothing_and_accepts_one_completion(
    path: Path, clock: Clock, runs: Runs, jump: float
) -> None:
    """Each task ends once; it ran again only if its lease had ended, and what is stored is of the stored attempt."""
    gate = path.with_suffix(".gate")
    backends = [SQLiteBackend(path, clock=clock) for _ in range(2)]
    async with TaskQueue(backends[0]) as queue:
        ids = [await queue.enqueue(run_until, runs, str(n), gate) for n in range(4)]
        workers = [Worker(backend, max_concurrency=4, lease=0.8, poll_interval=0.05) for backend in backends]
        async with workers[0], workers[1]:
            await until(lambda: len(runs.count()) == 4)
            clock.now += jump
            # The renewals of at least one tick have been made by the new clock.
            await until(lambda: all(abs(row["available_at"] / 1e6 - clock.now) < LEASE for row in rows(path)))
            later = await queue.enqueue(log_async, runs, "later")
            gate.touch()
            for n, task_id in enumerate(ids):
                result = await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
                assert result is not None
                assert (result.status, result.value) == ("success", str(n))
            assert await queue.get_result(later, timeout=DEADLINE_SECONDS) is not None
    found = {row["task_id"]: row["attempt"] for row in rows(path)}
    assert runs.count()["later"] == 1
    assert all(runs.count()[str(n)] <= found[task_id] <= 2 for n, task_id in enumerate(ids))
    if jump < 0:
        assert set(found.values()) == {1}
    assert_healthy(path)


async def test_a_worker_finds_a_due_task_after_the_clock_was_set_forward(path: Path, clock: Clock, runs: Runs) -> None:
    """An ``eta`` that the jump has passed is found by the next poll, though the worker meant to sleep longer."""
    backend = TellingBackend(path, clock=clock)
    eta = datetime.fromtimestamp(clock.now, UTC) + timedelta(minutes=30)
    async with TaskQueue(backend) as queue, Worker(backend, poll_interval=0.05):
        await backend.looks(2)
        task_id = await queue.enqueue(log_async, runs, "later", eta=eta)
        await backend.looks(3)
        assert runs.lines() == []
        clock.now += HOUR
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await queue.get_result(task_id) is not None
    assert runs.lines() == ["later"]


async def test_an_hour_back_keeps_no_caller_waiting(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a call waits for a lock or a result is not measured by the wall clock."""
    async with TaskQueue(SQLiteBackend(path, clock=clock, busy_timeout=0.01)) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        hours = itertools.count()
        monkeypatch.setattr(time, "time", lambda: clock.now - next(hours) * HOUR)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await queue.get_result(task_id, timeout=0.01) is None
            with write_lock(path), pytest.raises(BackendUnavailableError):
                await asyncio.wait_for(queue.enqueue(add, 1, 2), DEADLINE_SECONDS / 2)
