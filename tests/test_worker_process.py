"""A worker as a process of its own: signals, sudden death, and several processes on one file."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.models import from_micros
from tests.support import DEADLINE_SECONDS, Runs, add, log_async, log_plain, rows, start_python, until
from tests.worker_tasks import (
    TellingBackend,
    block_for_file,
    block_loop_for_file,
    far_ahead,
    kill_worker,
    wait_for_file,
)

NEVER_SECONDS = 3600.0

PREAMBLE = """
import asyncio, json, logging, signal, sys, time
from sitq import SQLiteBackend, TaskQueue, Worker
path, log, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
logging.basicConfig(filename=log, level=logging.INFO)
ahead, lines, runs = (options.pop(name, None) for name in ("ahead", "lines", "runs"))
backend = SQLiteBackend(path, clock=lambda: time.time() + (ahead or 0))
worker = Worker(backend, **options)
"""

SERVE = """
before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
async def main():
    inside = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    await worker.run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == inside
asyncio.run(main())
assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
"""

SERVE_TWICE = f"""
import sitq.worker.worker
sitq.worker.worker.SAME_SIGNAL_SECONDS = 60  # however slow the machine is
def twice(number, frame):
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
signal.signal(signal.SIGUSR1, twice)
{SERVE}
"""

DRAIN = "print(asyncio.run(worker.drain()))"

HOST = """
async def main():
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with worker:
        await asked.wait()
        logging.info("host received the signal")
asyncio.run(main())
"""

CARELESS_HOST = """
async def main():
    await worker.start()
    while "task" not in open(log).read():
        await asyncio.sleep(0.01)  # a file sends no event
asyncio.run(main())
"""


class Start(Protocol):
    """Starts a process that works on the test's file."""

    def __call__(self, code: str, **options: Any) -> "Process": ...


class Process:
    """A process with a worker, and what it logs."""

    def __init__(self, code: str, path: Path, log: Path, options: dict[str, Any]) -> None:
        log.touch()
        self.log = log
        self.popen = start_python(PREAMBLE + code, path, log, json.dumps(options))

    async def logged(self, text: str) -> None:
        """Returns when ``text`` is in the log."""
        await until(lambda: text in self.log.read_text() or self.popen.poll() is not None)
        assert text in self.log.read_text(), self.popen.communicate()

    async def ended(self) -> tuple[int, str, str]:
        """Waits for the end; returns the status and what was printed."""
        out, err = await asyncio.to_thread(self.popen.communicate, timeout=DEADLINE_SECONDS)
        return self.popen.returncode, out, err


@pytest.fixture
async def start(path: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts processes, and kills those that are left at the end."""
    started: list[Process] = []

    def start_one(code: str, **options: Any) -> Process:
        started.append(Process(code, path, tmp_path / f"process-{len(started)}.log", options))
        return started[-1]

    yield start_one
    for process in started:
        process.popen.kill()
        process.popen.communicate()


async def line(runs: Runs, text: object) -> None:
    """Returns when a task has logged ``text``."""
    await until(lambda: str(text) in runs.lines())


@pytest.mark.parametrize("task", [wait_for_file, block_for_file])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_its_work_finished(
    number: signal.Signals,
    task: Callable[..., Any],
    path: Path,
    tmp_path: Path,
    queue: TaskQueue,
    runs: Runs,
    start: Start,
) -> None:
    """The running task finishes and is recorded, no other is started, the status is 0, and nothing is printed."""
    may_end = tmp_path / "may-end"
    await queue.enqueue_many([partial(task, may_end, runs), *[partial(log_plain, runs, "next")] * 2])
    process = start(SERVE, max_concurrency=1)
    await line(runs, "started")
    process.popen.send_signal(number)
    await process.logged(f"received {number.name}")
    may_end.touch()
    assert await process.ended() == (0, "", "")
    assert runs.lines() == ["started", "ended"]
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 1), ("pending", 0), ("pending", 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_process(number: signal.Signals, start: Start) -> None:
    """A worker that has nothing to do and an hour until its next poll exits with status 0."""
    process = start(SERVE, poll_interval=NEVER_SECONDS)
    await process.logged("worker started")
    process.popen.send_signal(number)
    assert await process.ended() == (0, "", "")


async def test_a_signal_that_comes_twice_at_once_is_one(
    path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """Sent by the terminal and handed on by a parent, it does not cut the work short."""
    may_end = tmp_path / "may-end"
    await queue.enqueue(wait_for_file, may_end, runs)
    process = start(SERVE_TWICE)
    await line(runs, "started")
    process.popen.send_signal(signal.SIGUSR1)
    await process.logged("received SIGTERM")
    may_end.touch()
    assert await process.ended() == (0, "", "")
    assert runs.lines() == ["started", "ended"]


@pytest.mark.parametrize("task", [wait_for_file, block_for_file, block_loop_for_file])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_process_at_once(
    number: signal.Signals,
    task: Callable[..., Any],
    path: Path,
    tmp_path: Path,
    queue: TaskQueue,
    runs: Runs,
    start: Start,
) -> None:
    """It dies of the signal, even if a task blocks the loop, and the task is taken over after its lease."""
    may_end = tmp_path / "may-end"
    await queue.enqueue(task, may_end, runs)
    process = start(SERVE)
    await line(runs, "started")

    def dead() -> bool:
        process.popen.send_signal(number)  # one that comes before the first was seen is the same as that one
        return process.popen.poll() is not None

    await until(dead)
    assert process.popen.returncode == -number
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("in_progress", 1)]
    may_end.touch()
    assert await Worker(far_ahead(path)).drain() == 1
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 2)]
    assert runs.count()["started"] == 2


async def test_the_second_signal_may_be_the_other_one(
    tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """Ctrl-C ends a process at once that SIGTERM has told to finish its work."""
    await queue.enqueue(wait_for_file, tmp_path / "never", runs)
    process = start(SERVE)
    await line(runs, "started")
    process.popen.send_signal(signal.SIGTERM)
    await process.logged("received SIGTERM")
    process.popen.send_signal(signal.SIGINT)
    assert (await process.ended())[0] == -signal.SIGINT


async def test_a_function_that_never_ends_does_not_keep_the_process(
    path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """Past shutdown_timeout the process exits with status 0, and the function's task is pending, unspent."""
    await queue.enqueue(block_for_file, tmp_path / "never", runs)
    process = start(SERVE, shutdown_timeout=0)
    await line(runs, "started")
    process.popen.send_signal(signal.SIGTERM)
    assert await process.ended() == (0, "", "")
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("pending", 0)]


async def test_the_hosts_signal_handler_is_the_one_that_is_called(
    path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """With an embedded worker a signal reaches the host alone, and the worker finishes when its block is left."""
    may_end = tmp_path / "may-end"
    await queue.enqueue(wait_for_file, may_end, runs)
    process = start(HOST)
    await line(runs, "started")
    process.popen.send_signal(signal.SIGTERM)
    await process.logged("host received the signal")
    may_end.touch()
    assert await process.ended() == (0, "", "")
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("success", 1)]


@pytest.mark.parametrize("task", [wait_for_file, block_for_file])
async def test_a_host_that_forgets_to_stop_exits_nevertheless(
    task: Callable[..., Any], path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """A process whose main ends while its worker runs a task exits, and the task waits until its lease ends."""
    await queue.enqueue(task, tmp_path / "never", runs)
    assert await start(CARELESS_HOST).ended() == (0, "", "")
    assert [(row["status"], row["attempt"]) for row in rows(path)] == [("in_progress", 1)]


async def test_a_task_of_another_process_wakes_an_idle_worker(path: Path, queue: TaskQueue, start: Start) -> None:
    """With an hour until its next poll this process's worker runs what another process enqueues."""
    backend = TellingBackend(path)
    async with Worker(backend, poll_interval=NEVER_SECONDS):
        await backend.looks(2)
        enqueue = start(
            "from tests.support import add\n"
            "async def main():\n"
            "    async with TaskQueue(backend) as queue:\n"
            "        print((await queue.get_result(await queue.enqueue(add, 1, 2))).value)\n"
            "asyncio.run(main())"
        )
        assert await enqueue.ended() == (0, "3\n", "")


async def test_an_idle_worker_of_another_process_is_woken(queue: TaskQueue, start: Start) -> None:
    """One task after the other is run by a process whose next poll is an hour away."""
    process = start(SERVE, poll_interval=NEVER_SECONDS)
    await process.logged("worker started")
    for n in range(5):
        result = await queue.get_result(await queue.enqueue(add, n, n), DEADLINE_SECONDS)
        assert result is not None
        assert result.value == 2 * n


async def test_a_killed_workers_task_is_taken_over_after_its_lease_and_not_before(
    path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """By the clock: nothing until the lease of the dead process ends, then attempt 2."""
    may_end = tmp_path / "may-end"
    task_id = await queue.enqueue(wait_for_file, may_end, runs)
    process = start(SERVE)
    await line(runs, "started")
    process.popen.kill()
    await process.ended()
    may_end.touch()
    ends_at: int = rows(path)[0]["available_at"]
    assert from_micros(ends_at) > datetime.now(UTC)
    for at, count in ((ends_at - 1, 0), (ends_at, 1)):
        now = (at + 0.5) / 1_000_000
        assert await Worker(SQLiteBackend(path, clock=partial(float, now))).drain() == count
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.value, result.attempt) == ("done", 2)


async def die_until_nothing_is_left(start: Start) -> list[int]:
    """Drains by one process after another, each by a clock for which its predecessor's leases have ended."""
    statuses: list[int] = []
    while statuses[-1:] != [0]:
        status, _, error = await start(DRAIN, ahead=100 * len(statuses)).ended()
        assert error == ""
        statuses.append(status)
    return statuses


async def test_a_task_that_kills_every_worker_is_failed(path: Path, runs: Runs, start: Start) -> None:
    """It is started max_attempts times, and then failed with an error that gives their number, without a traceback."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=3) as queue:
        task_id = await queue.enqueue(kill_worker, runs)
        assert await die_until_nothing_is_left(start) == [-signal.SIGKILL] * 3 + [0]
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.attempt, result.traceback) == ("failed", 3, None)
    assert "3 attempts" in (result.error or "")
    assert runs.lines() == ["killer"] * 3


async def wait_for_two_deaths(runs: Runs, line: int) -> None:
    """Logs that it ran, and returns when two workers have been killed."""
    runs.add(line)
    await until(lambda: runs.count()["killer"] >= 2)


async def test_neighbours_of_a_killer_are_not_failed(path: Path, runs: Runs, start: Start) -> None:
    """Tasks that died twice with the one that kills its workers run alone the third time, and succeed."""
    async with TaskQueue(SQLiteBackend(path), max_attempts=3) as queue:
        harmless = [partial(wait_for_two_deaths, runs, n) for n in range(4)]
        await queue.enqueue_many([*harmless[:2], partial(kill_worker, runs), *harmless[2:]])
        assert await die_until_nothing_is_left(start) == [-signal.SIGKILL] * 3 + [0]
    assert Counter(row["status"] for row in rows(path)) == {"failed": 1, "success": 4}
    assert min(row["attempt"] for row in rows(path)) >= 2
    assert runs.count()["killer"] == 3


async def test_processes_that_drain_one_file_run_each_task_once(
    path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """Three processes share a few hundred tasks of both kinds, and none is run twice."""
    await queue.enqueue_many(partial(log_plain if n % 2 else log_async, runs, n) for n in range(300))
    ended = await asyncio.gather(*(start(DRAIN, max_concurrency=5).ended() for _ in range(3)))
    assert [(status, error) for status, _, error in ended] == [(0, "")] * 3
    assert sum(int(out) for _, out, _ in ended) == 300
    assert runs.count() == {str(n): 1 for n in range(300)}
    assert {(row["status"], row["attempt"]) for row in rows(path)} == {("success", 1)}


PRODUCE = """
from pathlib import Path
from tests.support import Runs, log_async
async def main():
    async with TaskQueue(backend) as queue:
        for line in lines:
            await queue.enqueue(log_async, Runs(Path(runs)), line)
asyncio.run(main())
"""


async def test_processes_that_enqueue_and_processes_that_work_share_one_file(
    path: Path, runs: Runs, start: Start
) -> None:
    """Three enqueue while three others reserve and complete: no call fails, and each task is run once."""
    workers = [start(SERVE, max_concurrency=3) for _ in range(3)]
    for worker in workers:
        await worker.logged("worker started")
    producers = [start(PRODUCE, runs=str(runs.path), lines=list(range(n, 150, 3))) for n in range(3)]
    assert [await producer.ended() for producer in producers] == [(0, "", "")] * 3
    await until(lambda: [row["status"] for row in rows(path)] == ["success"] * 150)
    for worker in workers:
        worker.popen.terminate()
        assert await worker.ended() == (0, "", "")
        assert "WARNING" not in worker.log.read_text()
    assert runs.count() == {str(n): 1 for n in range(150)}
    assert {row["attempt"] for row in rows(path)} == {1}


BY_HAND = """
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(worker.start())
    loop.run_forever()
finally:
    loop.run_until_complete(worker.stop())
    loop.close()
"""


def interrupt(runs: Runs) -> None:
    """A task that raises what Ctrl-C raises."""
    runs.add("raising")
    raise KeyboardInterrupt


async def interrupt_on_the_loop(runs: Runs) -> None:
    """The same on the loop."""
    interrupt(runs)


async def test_ctrl_c_in_the_middle_of_a_task_ends_a_program_without_a_handler_of_its_own(
    path: Path, tmp_path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """The program dies of its KeyboardInterrupt, and the task is no failure: it is given back, its attempt unspent."""
    task_id = await queue.enqueue(block_loop_for_file, tmp_path / "never", runs)
    process = start(BY_HAND)
    await line(runs, "started")
    process.popen.send_signal(signal.SIGINT)
    status, _, error = await process.ended()
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in error
    assert [(row["status"], row["attempt"], row["error"]) for row in rows(path)] == [("pending", 0, None)]
    assert (
        f"task {task_id} (tests.worker_tasks:block_loop_for_file) is given back: it was interrupted"
        in process.log.read_text()
    )


@pytest.mark.parametrize("task", [interrupt, interrupt_on_the_loop])
async def test_a_task_that_raises_what_ctrl_c_raises_is_a_failed_task(
    task: Callable[..., Any], path: Path, queue: TaskQueue, runs: Runs, start: Start
) -> None:
    """Also in a program in which Ctrl-C raises it: the worker runs the next task."""
    task_id = await queue.enqueue(task, runs)
    start(BY_HAND)
    result = await queue.get_result(await queue.enqueue(add, 1, 2), DEADLINE_SECONDS)
    assert result is not None
    assert result.value == 3
    failed = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert failed is not None
    assert (failed.status, failed.error, failed.attempt) == ("failed", "KeyboardInterrupt: ", 1)
    assert runs.lines() == ["raising"]
