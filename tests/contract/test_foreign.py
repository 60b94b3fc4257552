"""A backend that derives from nothing of sitq's keeps the contract, and serves queues and workers."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from examples.memory_backend import MemoryBackend, MemoryStore
from sitq import Backend, SyncTaskQueue, TaskQueue, Worker
from sitq.models import Reservation
from sitq.testing import ManualClock
from sitq.testing.contract import BackendContract
from tests.contract.server_like import Server, ServerBackend, ServerClock
from tests.support import DEADLINE_SECONDS, add, multiply

runs: Counter[str] = Counter()


async def count(name: str) -> None:
    """A task whose executions are counted, in this process."""
    runs[name] += 1


class TestInADictionary(BackendContract):
    """In the form that suites had before there were more hooks than three."""

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend with a store of its own."""
        self.clock = ManualClock()
        return MemoryBackend(MemoryStore(self.clock), max_payload_bytes=1_000_000)

    def another(self, backend: Backend) -> Backend:
        """Another backend on the store."""
        assert isinstance(backend, MemoryBackend)
        return MemoryBackend(backend.store, max_payload_bytes=1_000_000)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves the clock of the store."""
        self.clock.advance(seconds)


class TestLikeAServer(BackendContract):
    """Every hook is used, and every freedom of the contract: see ``server_like``."""

    knows_next_due = False
    has_own_clock = True

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend on a server of its own."""
        self.clock = ServerClock()
        self.server = Server(self.clock)
        return ServerBackend(self.server)

    def another(self, backend: Backend) -> Backend:
        """Another backend on the server."""
        return ServerBackend(self.server)

    def seconds(self, n: float) -> float:
        """A hundred times as fast, as for a store whose clock cannot be moved."""
        return n / 100

    async def advance(self, backend: Backend, seconds: float) -> None:
        """Waits for the server's clock, or so it seems."""
        await asyncio.sleep(0)
        self.clock.now += seconds

    async def settle(self) -> None:
        """Waits until every task is shown."""
        self.server.lagging.clear()

    @contextlib.asynccontextmanager
    async def cut(self, backend: Backend) -> AsyncIterator[None]:
        """Loses an answer."""
        self.server.lose_answer = True
        try:
            yield
        finally:
            self.server.lose_answer = False

    async def restart(self, backend: Backend) -> None:
        """Breaks all connections; nothing that was stored is gone."""
        self.server.restart()


class Blind(MemoryBackend):
    """Does not know what comes, and counts how often it is asked."""

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Says nothing of it."""
        found = await super().reserve(limit, lease=lease, alone=alone)
        return replace(found, next_due_in=None, last_attempt_waiting=False)

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Tells nobody who waits for due tasks."""
        with super().watch(on_change if task_id else lambda: None, task_id=task_id):
            yield


async def test_a_worker_finds_by_its_polls_what_a_store_cannot_tell() -> None:
    """Last attempts, an eta that comes and a lease that ends, of which no reservation said a word: each runs once."""
    runs.clear()
    clock = ManualClock()
    backend = Blind(MemoryStore(clock))
    async with TaskQueue(backend) as queue, TaskQueue(backend, max_attempts=1) as last:
        abandoned = await queue.enqueue(count, "abandoned")
        assert len((await backend.reserve(1, lease=60, alone=True)).tasks) == 1
        async with Worker(backend, poll_interval=0.01):
            ids = [await queue.enqueue(count, f"ordinary {n}") for n in range(5)]
            ids += [await last.enqueue(count, f"last {n}") for n in range(3)]
            later = await queue.enqueue(count, "later", eta=timedelta(hours=1))
            for task_id in ids:
                assert await queue.get_result(task_id, DEADLINE_SECONDS) is not None
            assert "later" not in runs
            assert "abandoned" not in runs
            clock.advance(3601)
            for task_id in (later, abandoned):
                assert await queue.get_result(task_id, DEADLINE_SECONDS) is not None
    assert runs == Counter(
        [*(f"ordinary {n}" for n in range(5)), *(f"last {n}" for n in range(3)), "later", "abandoned"]
    )


async def test_queue_and_worker_need_nothing_but_the_contract() -> None:
    """Tasks of both kinds are run, results waited for, and tasks of a last attempt not forgotten."""
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue, TaskQueue(backend, max_attempts=1) as last:
        async with Worker(backend, poll_interval=3600):
            ids = await queue.enqueue_many(partial(add if n % 2 else multiply, n, n) for n in range(30))
            last_ids = [await last.enqueue(add, n, n) for n in range(3)]
            results = [await queue.get_result(task_id, DEADLINE_SECONDS) for task_id in [*ids, *last_ids]]
        await queue.enqueue(add, 1, 1)
        assert await Worker(backend).drain() == 1
    values = [result and result.unwrap() for result in results]
    assert values == [2 * n if n % 2 else n * n for n in range(30)] + [0, 2, 4]


async def test_a_sync_queue_and_a_worker_share_it_across_threads() -> None:
    """A queue in a thread of its own gets its results from a worker in this one."""
    backend = MemoryBackend()

    def produce() -> int:
        with SyncTaskQueue(backend) as queue:
            result = queue.get_result(queue.enqueue(add, 1, 2), timeout=DEADLINE_SECONDS)
            assert result is not None
            return result.unwrap()

    async with Worker(backend, poll_interval=3600):
        assert await asyncio.to_thread(produce) == 3
