"""A storm of all that may end a run: raises, timeouts, cancellations, stops and SIGKILL, together."""

import asyncio
import pickle
import random
import signal
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sitq import Backoff, GiveUp, Retry, SQLiteBackend, TaskQueue, follow_up, running
from tests.faults import assert_healthy
from tests.storm.fleet import fleet
from tests.storm.storms import LEASE_SECONDS, SLOTS, WORKERS, Figures, live
from tests.storm.tasks import Run, runs_of, say
from tests.support import Runs, rows, until

RETRIES = 3
POLICY = Backoff(retries=RETRIES, first=0.01, most=0.1)
TIMEOUT_SECONDS = 0.1
STOP_SECONDS = 0.05


def after_success(number: int) -> None:
    """Is stored with a success."""


def after_failure(task_id: str, name: str, error: str) -> None:
    """Is stored with a failure."""


def _raise() -> None:
    """Raises now and then, in any of the ways that a policy knows."""
    what = random.random()
    if what < 0.25:
        raise ValueError("now and then")
    if what < 0.3:
        raise Retry(timedelta(seconds=0.01), counts=False)
    if what < 0.35:
        raise Retry(0.02) from KeyError("why")
    if what < 0.4:
        raise GiveUp("enough")


async def work_async(runs: Runs, number: int) -> Run:
    """Has a task follow, takes longer than it may now and then, and may raise."""
    run = say(runs, number)
    follow_up(after_success, number)
    await asyncio.sleep(random.uniform(0, 1.3 * TIMEOUT_SECONDS))  # work of some length
    _raise()
    return run


def work_plain(runs: Runs, number: int) -> Run:
    """As above in a thread, and asks whether it may go on."""
    run = say(runs, number)
    follow_up(after_success, number)
    ends_at = time.monotonic() + random.uniform(0, 1.3 * TIMEOUT_SECONDS)
    while time.monotonic() < ends_at:
        running.check()
        time.sleep(0.002)  # work of some length
    _raise()
    return run


async def policy_storm(path: Path, runs: Runs, *, tasks: int, kills: int) -> Figures:
    """Four workers are killed and stopped at random while tasks raise, take too long, and are cancelled."""
    numbers: dict[str, int] = {}
    stops = 0
    async with TaskQueue(SQLiteBackend(path), max_attempts=1000) as queue:
        options = queue.options(retry=POLICY, timeout=TIMEOUT_SECONDS, on_failure=after_failure)
        settings = {"max_concurrency": SLOTS, "lease": LEASE_SECONDS, "shutdown_timeout": STOP_SECONDS}
        with fleet(path, "serve", **settings) as workers:
            workers.start(WORKERS)
            while len(numbers) < tasks or workers.kills < kills:
                if live(path) < tasks / 4:
                    wave = range(len(numbers), len(numbers) + tasks // 4)
                    calls = [partial(work_async if n % 2 else work_plain, runs, n) for n in wave]
                    numbers |= dict(zip(await options.enqueue_many(calls), wave, strict=True))
                if workers.kills * tasks <= kills * len(numbers):
                    workers.kill_one()
                    workers.start()
                    workers.signal(workers.pids.pop(0), signal.SIGTERM)
                    stops += 1
                    workers.start()
                unlucky = random.sample([*numbers], 3)
                await queue.cancel(unlucky, running=random.choice(("leave", "ask", "cut")))  # type: ignore[arg-type]
                await asyncio.sleep(random.uniform(0, 0.04))  # so that kills fall on any moment
            await until(lambda: not live(path))
            killed = workers.kills
    return check(path, runs, numbers, killed, stops)


def check(path: Path, runs: Runs, numbers: dict[str, int], kills: int, stops: int) -> Figures:
    """Asserts that every task has ended, after as many runs as it may have had, and had the right ones follow."""
    assert_healthy(path)
    found = {row["task_id"]: row for row in rows(path)}
    logged = runs_of(runs)
    followed = Counter(args_of(row)[0] for row in found.values() if row["name"].endswith(":after_success"))
    reported = Counter(args_of(row)[0] for row in found.values() if row["name"].endswith(":after_failure"))
    lost = 0
    for task_id, number in numbers.items():
        row = found[task_id]
        assert row["status"] in ("success", "failed", "cancelled"), row
        assert followed[number] == (row["status"] == "success"), row
        assert reported[task_id] == (row["status"] == "failed"), row
        assert row["failures"] <= RETRIES
        if row["status"] == "success":
            assert pickle.loads(row["result"]) in set(logged)
    ran = Counter(number for number, _, _ in logged)

    for task_id, number in numbers.items():
        row = found[task_id]
        # Each run that is not the last one was a failure that is counted, one that is not, a death, or was given back.
        lost += max(0, row["attempt"] - row["failures"] - 1)
        assert ran[number] <= row["attempt"] + kills + stops, row
    assert sum(ran.values()) <= sum(found[each]["attempt"] for each in numbers) + stops * SLOTS
    assert {found[each]["status"] for each in numbers} == {"success", "failed", "cancelled"}
    return Figures(len(numbers), kills, len(logged), lost)


def args_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the arguments of a task."""
    args: tuple[Any, ...] = pickle.loads(row["payload"])["args"]
    return args
