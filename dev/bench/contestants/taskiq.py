"""taskiq over Redis streams, with results in Redis."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import TASKS, Task

STREAM = "taskiq"

NAMES = {task: task.__name__ for task in TASKS}
"""Taken before the first decoration, which renames the function itself."""


class Taskiq(Contestant):
    """The broker of its Redis package's first example: acknowledged tasks, results kept."""

    distributions = ("taskiq", "taskiq-redis", "redis")
    workloads = frozenset({"drain", "drain_plain", "enqueue", "enqueue_concurrent", "wake", "idle"})
    needs_redis = True
    note = "JSON instead of pickle"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.broker, self.tasks = self._broker()
        self.redis = Redis.from_url(store.redis_url)

    def _broker(self) -> tuple[Any, dict[Task, Any]]:
        results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(self.store.redis_url)
        broker = RedisStreamBroker(self.store.redis_url).with_result_backend(results)
        return broker, {task: broker.task(task_name=name)(task) for task, name in NAMES.items()}

    async def open(self) -> None:
        await self.broker.startup()

    async def close(self) -> None:
        await self.broker.shutdown()
        await self.redis.aclose()

    async def enqueue(self, task: Task, argument: object) -> Any:
        return await self.tasks[task].kiq(argument)

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        broker, _ = self._broker()
        running = asyncio.create_task(
            run_receiver_task(broker, max_async_tasks=concurrency, sync_workers=concurrency, run_startup=True)
        )
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await broker.shutdown()

    async def recorded(self, count: int) -> bool:
        groups = await self.redis.xinfo_groups(STREAM)
        return all(group["pending"] == 0 and not group["lag"] for group in groups)


CONTESTANT = Taskiq
