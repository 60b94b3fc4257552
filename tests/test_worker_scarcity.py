"""A worker on a machine that is out of threads or of descriptors: nothing is failed or run twice for it."""

import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from sitq import ReservedTask, SQLiteBackend, TaskQueue, Worker
from tests.faults import Clock, open_files
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, Runs, log_async, log_plain, rows, until
from tests.worker_tasks import TellingBackend, block_at, gate, wait_at


@contextlib.contextmanager
def no_more_threads(
    monkeypatch: pytest.MonkeyPatch, prefix: str, error: type[Exception] = RuntimeError
) -> Iterator[list[str]]:
    """The system starts no thread whose name begins with ``prefix``; gives the names of those asked for."""
    asked: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not thread.name.startswith(prefix):
            return start(thread)
        asked.append(thread.name)
        raise error("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        yield asked


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open no file, socket or pipe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
async def test_functions_that_get_no_thread_are_given_back_and_run_later(
    queue: TaskQueue,
    path: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    """Each runs once, as attempt 1, when there are threads again; meanwhile it is pending, and the log says why."""
    monkeypatch.setattr("sitq.worker.dispatcher.NO_THREAD_PAUSE_SECONDS", 0.05)
    async with Worker(SQLiteBackend(path), poll_interval=3600):
        with no_more_threads(monkeypatch, "sitq-worker", error) as asked:
            ids = await queue.enqueue_many(partial(log_plain, runs, n) for n in range(5))
            await until(lambda: len(asked) >= 10 and {row["status"] for row in rows(path)} == {"pending"})
            assert {(row["status"], row["attempt"]) for row in rows(path)} == {("pending", 0)}
            coroutine = await queue.get_result(await queue.enqueue(log_async, runs, "async"), DEADLINE_SECONDS)
            assert coroutine is not None
            assert coroutine.status == "success"
        for task_id in ids:
            result = await queue.get_result(task_id, DEADLINE_SECONDS)
            assert result is not None
            assert (result.status, result.attempt) == ("success", 1)
    assert runs.count() == {**{str(n): 1 for n in range(5)}, "async": 1}
    said = [message for message in caplog.messages if "can't start new thread" in message]
    assert said
    assert all("given back" in message for message in said)


async def test_it_is_tried_again_after_a_pause_and_not_before(
    queue: TaskQueue, path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    """What it gave back, and what comes meanwhile, does not make it reserve again before an hour is over."""
    monkeypatch.setattr("sitq.worker.dispatcher.NO_THREAD_PAUSE_SECONDS", 3600.0)
    backend = TellingBackend(path)
    async with Worker(backend, poll_interval=0.01):
        await backend.looks(2)
        with no_more_threads(monkeypatch, "sitq-worker") as asked:
            first = await queue.enqueue(log_plain, runs, "first")
            await until(lambda: asked and rows(path)[0]["status"] == "pending")
            looks = len(backend.limits)
            second = await queue.enqueue(log_async, runs, "second")
            # A real pause of several poll intervals: a worker that reserves too early does it in this time.
            assert await queue.get_result(first, timeout=0.05) is None
            assert await queue.get_result(second, timeout=0) is None
            assert len(backend.limits) == looks
    assert runs.lines() == []


async def test_a_function_waits_for_a_thread_that_there_is(
    queue: TaskQueue, backend: SQLiteBackend, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread serves them all, one after the other."""
    async with Worker(backend):
        with gate() as here:
            blocking = await queue.enqueue(block_at, "gate", "first", runs)
            await here.arrived()
            with no_more_threads(monkeypatch, "sitq-worker") as asked:
                ids = await queue.enqueue_many(partial(log_plain, runs, n) for n in range(5))
                await until(lambda: asked)
                here.open()
                for task_id in [blocking, *ids]:
                    result = await queue.get_result(task_id, DEADLINE_SECONDS)
                    assert result is not None
                    assert (result.status, result.attempt) == ("success", 1)
    assert runs.count() == dict.fromkeys(("first", "0", "1", "2", "3", "4"), 1)


async def test_a_drain_without_a_thread_raises_and_gives_back(
    queue: TaskQueue, backend: SQLiteBackend, path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot do what it was asked for; nothing is failed, and a later drain does it."""
    await queue.enqueue_many(partial(log_plain, runs, n) for n in range(3))
    worker = Worker(backend)
    with no_more_threads(monkeypatch, "sitq-worker"), pytest.raises(RuntimeError, match="can't start new thread"):
        await worker.drain()
    assert {(row["status"], row["attempt"]) for row in rows(path)} == {("pending", 0)}
    assert await worker.drain() == 3
    assert runs.count() == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("begin", ["start", "run", "drain", "__aenter__"])
async def test_a_worker_that_cannot_renew_does_not_start(
    begin: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a thread for the renewals, the error says so, nothing is left behind, and it can start later."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        backend = SQLiteBackend(path)
        worker = Worker(backend)
        await worker.drain()
        threads, files = threading.active_count(), open_files()
        with no_more_threads(monkeypatch, "sitq-renewal"), pytest.raises(RuntimeError, match=r"renew.*new thread"):
            await getattr(worker, begin)()
        assert backend._users == 0
        await until(lambda: threading.active_count() <= threads and open_files() <= files)
        async with worker:
            assert await queue.get_result(await queue.enqueue(wait_for_nothing), DEADLINE_SECONDS) is not None


async def wait_for_nothing() -> None:
    """A task that ends at once."""


WITHOUT_DESCRIPTORS = """
import asyncio, sys
from sitq import SQLiteBackend, TaskQueue, Worker
from tests.test_worker_scarcity import no_more_descriptors, wait_for_nothing

async def main():
    backend = SQLiteBackend(sys.argv[1])
    async with TaskQueue(backend) as queue:
        worker = Worker(backend)
        await queue.enqueue(wait_for_nothing)
        try:
            with no_more_descriptors():
                await worker.start()
        except RuntimeError as error:
            print(error)
        print(backend._users, await worker.drain())

asyncio.run(main())
"""


def test_a_worker_without_descriptors_does_not_start(path: Path) -> None:
    """The error says what for, no user of the backend is left, and it can start later."""
    # A process of its own, for CPython complains about an event loop that it could not finish.
    said, after = run_script(WITHOUT_DESCRIPTORS, path, quiet=False).splitlines()
    assert "renew leases" in said
    assert "Too many open files" in said
    assert after == "1 1"


async def test_leases_are_renewed_without_a_free_descriptor(path: Path, runs: Runs) -> None:
    """However long a task runs while every descriptor is in use, its lease is renewed from the first time on."""
    backend, times = TellingBackend(path, clock=Clock()), itertools.count(1)
    async with TaskQueue(backend) as queue, Worker(backend, lease=0.4, max_concurrency=1) as worker:
        with gate() as here:
            task_id = await queue.enqueue(wait_at, "gate", 1, runs)
            await here.arrived()
            with no_more_descriptors():
                # Not with asyncio.to_thread(): it may want a descriptor of its own.
                await until(lambda: backend.renewed.acquire(blocking=False) and next(times) >= 8)
            here.open()
            result = await queue.get_result(task_id, DEADLINE_SECONDS)
        assert result is not None
        assert (result.status, result.attempt) == ("success", 1)
        await worker.stop()
    assert runs.lines() == ["1"]


class RefusesToRenew(TellingBackend):
    """Fails in a way of its own the first times that it is asked to renew."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, clock=Clock())
        self.refusals = [MemoryError("none left"), SystemExit(3)]

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Fails, or renews."""
        if self.refusals:
            raise self.refusals.pop()
        return await super().renew(tasks, lease=lease)


async def test_the_renewals_outlive_every_error(path: Path, runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    """Each one is logged, and the next renewal is made."""
    backend = RefusesToRenew(path)
    async with TaskQueue(backend) as queue, Worker(backend, lease=0.4):
        with gate() as here:
            task_id = await queue.enqueue(wait_at, "gate", 1, runs)
            await here.arrived()
            await until(lambda: backend.renewed.acquire(blocking=False))
            here.open()
            result = await queue.get_result(task_id, DEADLINE_SECONDS)
    assert result is not None
    assert (result.status, result.attempt) == ("success", 1)
    assert sum("renewing" in message and "failed" in message for message in caplog.messages) == 2
