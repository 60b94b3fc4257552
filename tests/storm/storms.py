"""The storms: each does its worst for a while, then checks that nothing is lost, stuck or overwritten."""

import asyncio
import itertools
import pickle
import random
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sitq import BackendError, SQLiteBackend, TaskQueue
from tests.faults import assert_healthy, moved_away, write_lock
from tests.storm.fleet import Fleet, fleet
from tests.storm.tasks import kill_worker, runs_of, work_async, work_plain
from tests.support import DEADLINE_SECONDS, Runs, rows, until

WORKERS = 4
SLOTS = 10
LEASE_SECONDS = 1.0
BUSY_SECONDS = 0.1


@dataclass(frozen=True)
class Figures:
    """What a storm did and what it found.

    Attributes:
        tasks: How many tasks there were, those that kill their worker not counted.
        kills: How many processes were killed.
        runs: How often those tasks were run.
        lost: How many of their attempts ended with a lease that was not renewed.
    """

    tasks: int
    kills: int = 0
    runs: int = 0
    lost: int = 0

    def __str__(self) -> str:
        runs = f", {self.runs} runs, {self.runs - self.tasks} of them extra" if self.runs else ""
        return f"{self.tasks} tasks, {self.kills} kills{runs}, {self.lost} leases lost"


def live(path: Path) -> int:
    """Returns how many tasks are not finished."""
    return int(rows(path, "SELECT count(*) AS n FROM tasks WHERE finished_at IS NULL")[0]["n"])


async def enqueue_work(queue: TaskQueue, runs: Runs, numbers: range, seconds: float) -> dict[str, int]:
    """Enqueues async and plain tasks in turn, in one batch; returns their numbers by id."""
    calls = [partial(work_async if n % 2 else work_plain, runs, n, seconds) for n in numbers]
    return dict(zip(await queue.enqueue_many(calls), numbers, strict=True))


def check(path: Path, runs: Runs, numbers: dict[str, int], kills: int) -> Figures:
    """Asserts that every task is there, is a success, and has the result of the attempt that is stored."""
    assert_healthy(path)
    found = {row["task_id"]: row for row in rows(path)}
    logged = runs_of(runs)
    returned = set(logged)
    assert set(numbers) <= set(found)
    for task_id, number in numbers.items():
        row = found[task_id]
        assert row["status"] == "success", row
        result = pickle.loads(row["result"])
        assert result[:2] == (number, row["attempt"])
        assert result in returned
    # An attempt is one reservation: it never runs twice, and it never runs after a later one was stored.
    assert set(Counter((number, attempt) for number, attempt, _ in logged).values()) == {1}
    lost = sum(found[task_id]["attempt"] - 1 for task_id in numbers)
    figures = Figures(len(numbers), kills, len(logged), lost)
    assert len(numbers) <= len(logged) <= len(numbers) + lost
    return figures


async def kill_storm(path: Path, runs: Runs, *, tasks: int, kills: int) -> Figures:
    """Four workers drain thousands of tasks and are killed at random, again and again."""
    numbers: dict[str, int] = {}
    async with TaskQueue(SQLiteBackend(path), max_attempts=1000) as queue:
        with fleet(path, "serve", max_concurrency=SLOTS, lease=LEASE_SECONDS) as workers:
            workers.start(WORKERS)
            while len(numbers) < tasks or workers.kills < kills:
                if live(path) < tasks / 4:
                    wave = range(len(numbers), len(numbers) + tasks // 4)
                    numbers |= await enqueue_work(queue, runs, wave, 0.02)
                if workers.kills * tasks <= kills * len(numbers):
                    workers.kill_one()
                    workers.start()
                await asyncio.sleep(random.uniform(0, 0.04))  # so that kills fall on any moment
            await until(lambda: not live(path))
            killed = workers.kills
    figures = check(path, runs, numbers, killed)
    assert figures.lost <= killed * SLOTS
    return figures


async def reservation_storm(path: Path, runs: Runs, *, tasks: int, processes: int = 8) -> Figures:
    """Many processes drain one file at the same time, and nobody dies."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        numbers = await enqueue_work(queue, runs, range(tasks), 0.001)
        with fleet(path, "drain", max_concurrency=32, lease=60.0) as workers:
            workers.start(processes)
            await until(lambda: not workers.running())
    figures = check(path, runs, numbers, 0)
    assert figures.runs == tasks
    assert len({pid for _, _, pid in runs_of(runs)}) > 1
    return figures


async def keep(workers: Fleet, count: int, path: Path) -> None:
    """Replaces workers that have died until all tasks are finished."""
    async with asyncio.timeout(4 * DEADLINE_SECONDS):
        while live(path):
            workers.start(count - len(workers.running()))
            await asyncio.sleep(0.02)  # a process that dies sends no event


async def killer_storm(path: Path, runs: Runs, *, killers: int, neighbours: int) -> Figures:
    """Tasks that kill their worker run among harmless ones, which have no more than two attempts."""
    deaths: dict[str, tuple[int, int]] = {}
    backend = SQLiteBackend(path)
    async with TaskQueue(backend, max_attempts=2) as queue:
        numbers = await enqueue_work(queue, runs, range(neighbours // 2), 0.05)
        for number in range(neighbours, neighbours + killers):
            attempts = 1 + number % 3
            async with TaskQueue(backend, max_attempts=attempts) as few:
                deaths[await few.enqueue(kill_worker, runs, number)] = (number, attempts)
        numbers |= await enqueue_work(queue, runs, range(neighbours // 2, neighbours), 0.05)
        with fleet(path, "serve", max_concurrency=SLOTS, lease=LEASE_SECONDS) as workers:
            await keep(workers, 3, path)
    logged = Counter(number for number, _, _ in runs_of(runs))
    found = {row["task_id"]: row for row in rows(path)}
    for task_id, (number, attempts) in deaths.items():
        row = found[task_id]
        # An attempt may be spent before it began: another killer of the same worker was faster. The
        # last one runs alone, so it does begin.
        assert 1 <= logged[number] <= attempts == row["attempt"]
        assert row["status"] == "failed"
        assert row["error"].startswith(f"WorkerDiedError: each of {attempts} attempts")
    assert [row for task_id, row in found.items() if task_id in numbers and row["status"] != "success"] == []
    assert_healthy(path)
    died = sum(logged[number] for number, _ in deaths.values())
    lost = sum(found[task_id]["attempt"] - 1 for task_id in numbers)
    return Figures(len(numbers), died, logged.total() - died, lost)


async def producer_storm(path: Path, runs: Runs, *, kills: int) -> Figures:
    """Producers are killed inside ``enqueue`` and ``enqueue_many``."""
    acknowledged = Runs(path.with_suffix(".ids"))
    with fleet(path, "produce", acknowledged=str(acknowledged.path), runs=str(runs.path)) as producers:
        for _ in range(kills):
            before = len(acknowledged.lines())
            producers.start(2)
            await until(lambda: len(acknowledged.lines()) > before)  # noqa: B023
            await asyncio.sleep(random.uniform(0, 0.05))  # so that kills fall on any moment
            producers.kill_one()
            producers.kill_one()
        killed = producers.kills
    found = {row["task_id"]: row for row in rows(path)}
    assert set(acknowledged.lines()) <= set(found)
    batches: Counter[tuple[str, int]] = Counter()
    for row in found.values():
        assert (row["status"], row["attempt"], row["claim"]) == ("pending", 0, None)
        call = pickle.loads(row["payload"])
        if row["name"].endswith(":in_a_batch"):
            batches[call["args"]] += 1
    assert batches
    assert [key for key, count in batches.items() if key[1] != count] == []
    assert_healthy(path)
    return Figures(len(found), killed)


def have_run(runs: Runs, pids: Iterable[int]) -> bool:
    """Whether each of the processes has run a task."""
    return {line.split()[2] for line in runs.lines()} >= {str(pid) for pid in pids}


async def sick_file_storm(path: Path, runs: Runs, *, rounds: int) -> Figures:
    """The file is locked, or known by another name, for longer than anyone waits, and workers are frozen."""
    numbers: dict[str, int] = {}
    refused = itertools.count()
    async with TaskQueue(SQLiteBackend(path, busy_timeout=BUSY_SECONDS), max_attempts=1000) as queue:
        settings = {"max_concurrency": SLOTS, "lease": LEASE_SECONDS, "busy_timeout": BUSY_SECONDS}
        with fleet(path, "serve", **settings) as workers:
            numbers |= await enqueue_work(queue, runs, range(200), 0.02)
            workers.start(2)
            # Both, before anything happens to the file: a worker that cannot open it ends with an error.
            while not have_run(runs, workers.pids):
                numbers |= await enqueue_work(queue, runs, range(len(numbers), len(numbers) + 100), 0.02)
                await until(lambda: have_run(runs, workers.pids) or not live(path))
            for n in range(rounds):
                if live(path) < 200:
                    numbers |= await enqueue_work(queue, runs, range(len(numbers), len(numbers) + 100), 0.02)
                seconds = random.uniform(0, 3 * BUSY_SECONDS)
                if n % 3 == 2:
                    pid = random.choice(workers.pids)
                    workers.signal(pid, signal.SIGSTOP)
                    await asyncio.sleep(5 * seconds)  # the fault itself: it lasts for so long
                    workers.signal(pid, signal.SIGCONT)
                else:
                    with write_lock(path) if n % 3 else moved_away(path):
                        try:
                            number = len(numbers)
                            numbers[await queue.enqueue(work_async, runs, number, 0.0)] = number
                        except BackendError:
                            next(refused)
                        await asyncio.sleep(seconds)  # the fault itself
            await until(lambda: not live(path))
            assert len(workers.running()) == 2
    assert {row["task_id"] for row in rows(path)} == set(numbers)  # what was refused is not there
    assert next(refused) > 0
    return check(path, runs, numbers, 0)
