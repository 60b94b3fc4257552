"""A backend that derives from nothing of sitq's keeps the contract, and serves queues and workers."""

import asyncio
from functools import partial

import pytest

from examples.memory_backend import MemoryBackend, MemoryStore
from sitq import Backend, SyncTaskQueue, TaskQueue, Worker
from sitq.testing import ManualClock
from sitq.testing.contract import BackendContract
from tests.support import DEADLINE_SECONDS, add, multiply


class TestInMemory(BackendContract):
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
