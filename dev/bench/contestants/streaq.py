"""streaQ over Redis streams."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from typing import Any

from streaq import Worker

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import PAYLOAD, TASKS, Task, noop


class Streaq(Contestant):
    """Its `Worker` object is both the producer's handle and the worker."""

    distributions = ("streaq", "coredis")
    workloads = frozenset(
        {
            "drain", "drain_plain", "enqueue", "enqueue_concurrent", "enqueue_many",
            "wake", "result", "idle",
        }
    )  # fmt: skip
    needs_redis = True

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.producer, self.tasks = self._worker(self.usual_concurrency)

    def _worker(self, concurrency: int) -> tuple[Worker[Any], dict[Task, Any]]:
        worker: Worker[Any] = Worker(redis_url=self.store.redis_url, concurrency=concurrency, handle_signals=False)
        return worker, {task: worker.task(task) for task in TASKS}

    async def open(self) -> None:
        await self.producer.__aenter__()

    async def close(self) -> None:
        await self.producer.__aexit__(None, None, None)

    async def enqueue(self, task: Task, argument: object) -> Any:
        return await self.tasks[task].enqueue(argument)

    async def enqueue_many(self, count: int) -> None:
        """Its documented pipeline of many tasks."""
        await self.fill(noop, repeat(PAYLOAD, count))

    async def fill(self, task: Task, arguments: Iterable[object]) -> None:
        await self.producer.enqueue_many([self.tasks[task].enqueue(argument) for argument in arguments])

    async def result(self, handle: Any) -> Any:
        return (await handle.result(timeout=30)).result

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        worker, _ = self._worker(concurrency)
        running = asyncio.create_task(worker.run_async())
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def recorded(self, count: int) -> bool:
        return await self.producer.queue_size() == 0


CONTESTANT = Streaq
