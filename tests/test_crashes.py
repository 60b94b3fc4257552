"""Deaths at chosen moments: what is left of the task, and how often it ran.

The process of the worker or the producer kills itself with SIGKILL in the middle of a call.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue
from tests.faults import assert_healthy, connected, new_task
from tests.storm.fleet import Fleet, fleet
from tests.storm.tasks import kill_worker, linger_async, linger_plain, runs_of, work_async, work_plain
from tests.support import Runs, rows, until

LEASE_SECONDS = 1.0


@pytest.fixture
def workers(path: Path) -> Iterator[Fleet]:
    """Workers' processes that live until the end of the test or longer than they should."""
    with fleet(path, "serve", lease=LEASE_SECONDS, max_concurrency=4) as some:
        yield some


@pytest.mark.parametrize(
    ("moment", "function", "count"),
    [
        ("before mark_success", work_async, 2),
        ("before mark_success", work_plain, 2),
        ("after mark_success", work_async, 1),
        ("after reserve", work_plain, 1),
    ],
)
async def test_a_death_at_any_moment_costs_at_most_one_more_run(
    path: Path, runs: Runs, workers: Fleet, moment: str, function: Callable[..., Any], count: int
) -> None:
    """Between run and record: exactly one more. If it was recorded, or not started yet: none."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(function, runs, 7, 0.0)
        with fleet(path, "serve", lease=LEASE_SECONDS, dies=moment) as doomed:
            doomed.start()
            await until(lambda: not doomed.running())
        workers.start()
        result = await queue.get_result(task_id)
    assert result is not None
    attempt = 1 if moment == "after mark_success" else 2
    assert (result.status, result.attempt) == ("success", attempt)
    assert len(runs_of(runs)) == count
    assert_healthy(path)


@pytest.mark.parametrize("victim", [0, 99, 249])
async def test_a_death_inside_enqueue_leaves_nothing_of_the_batch(path: Path, victim: int) -> None:
    """A process that dies with a batch half stored has stored none of it; the file needs no repair."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("before")])
        with fleet(path, "die_in_enqueue", size=250, victim=victim) as doomed:
            doomed.start()
            await until(lambda: not doomed.running())
        assert [row["task_id"] for row in rows(path)] == ["before"]
        await backend.enqueue([new_task("after")])
    assert [row["task_id"] for row in rows(path)] == ["before", "after"]
    assert_healthy(path)


@pytest.mark.parametrize("durability", ["normal", "enqueue"])
async def test_what_was_acknowledged_survives_the_process(path: Path, durability: str) -> None:
    """Also without a sync: the system has it, and only a power cut could take it."""
    with fleet(path, "die_after_enqueue", durability=durability) as doomed:
        doomed.start()
        await until(lambda: not doomed.running())
    assert [row["task_id"] for row in rows(path)] == ["acknowledged"]


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_killer_has_exactly_its_attempts_and_the_last_one_alone(
    path: Path, runs: Runs, workers: Fleet, max_attempts: int
) -> None:
    """It is started as often as permitted and then failed with the reason; its neighbours are served."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend, max_attempts=max_attempts) as few, TaskQueue(backend, max_attempts=2) as queue:
        killer = await few.enqueue(kill_worker, runs, -1)
        neighbours = [await queue.enqueue(work_async if n % 2 else work_plain, runs, n, 0.02) for n in range(10)]
        for _ in range(max_attempts):
            workers.start()
            await until(lambda: not workers.running())
        workers.start()
        result = await queue.get_result(killer)
        for task_id in neighbours:
            found = await queue.get_result(task_id)
            assert found is not None
            assert found.status == "success"
    assert result is not None
    assert (result.status, result.attempt, result.traceback) == ("failed", max_attempts, None)
    assert str(result.error).startswith(f"WorkerDiedError: each of {max_attempts} attempts")
    assert [attempt for number, attempt, _ in runs_of(runs) if number == -1] == list(range(1, max_attempts + 1))


@pytest.mark.parametrize(
    ("late", "function", "max_attempts"),
    [
        ("success", linger_async, 5),
        ("failure", linger_plain, 5),
        ("renewal", linger_plain, 5),
        ("success", linger_plain, 1),
        ("failure", linger_async, 1),
    ],
)
async def test_a_frozen_worker_changes_nothing_when_it_wakes_up(
    path: Path, runs: Runs, workers: Fleet, late: str, function: Callable[..., Any], max_attempts: int
) -> None:
    """Its late outcome and its late renewal are refused and logged; what the other recorded stays to the byte."""
    gate = path.with_suffix(".gate")
    async with TaskQueue(SQLiteBackend(path), max_attempts=max_attempts) as queue:
        with fleet(path, "serve", lease=LEASE_SECONDS) as frozen:
            task_id = await queue.enqueue(function, runs, 1, gate, late == "failure")
            frozen.start()
            await until(runs.lines)
            (pid,) = frozen.pids
            frozen.freeze(pid, path)
            workers.start()
            result = await queue.get_result(task_id)
            before = rows(path)
            frozen.signal(pid, signal.SIGCONT)
            if late == "renewal":
                await until(lambda: "lost its lease in attempt 1: it may be run elsewhere" in frozen.logged())
            gate.touch()
            refused = "lost its lease in attempt 1: what it returned changes nothing"
            await until(lambda: refused in frozen.logged())
            lost = [line for line in frozen.logged().splitlines() if refused in line]
            assert [task_id in line for line in lost] == [True]
            assert rows(path) == before
            # Both serve on.
            again = [await queue.enqueue(work_async, runs, n, 0.0) for n in range(20)]
            for each in again:
                assert await queue.get_result(each) is not None
            assert frozen.running() == [pid]
    assert result is not None
    if max_attempts == 1:
        assert str(result.error).startswith("WorkerDiedError")
    else:
        assert (result.value, result.attempt) == ("attempt 2", 2)
    assert_healthy(path)
