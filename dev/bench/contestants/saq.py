"""SAQ over Redis."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from typing import Any

from saq import Job, Queue, Worker

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import TASKS, Task


def _saq_function(task: Task) -> tuple[str, Callable[..., Any]]:
    """SAQ hands its context to every function, and arguments by keyword only."""
    if iscoroutinefunction(task):

        async def call(ctx: object, *, argument: object) -> Any:
            return await task(argument)

        return task.__name__, call

    def call_plain(ctx: object, *, argument: object) -> Any:
        return task(argument)

    return task.__name__, call_plain


class Saq(Contestant):
    """One queue object produces, another belongs to the worker."""

    distributions = ("saq", "redis")
    workloads = frozenset({"drain", "drain_plain", "enqueue", "enqueue_concurrent", "wake", "result", "idle"})
    needs_redis = True
    note = "JSON instead of pickle"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.queue = Queue.from_url(store.redis_url)

    async def open(self) -> None:
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def enqueue(self, task: Task, argument: object) -> Job | None:
        return await self.queue.enqueue(task.__name__, argument=argument)

    async def result(self, handle: Job) -> Any:
        await handle.refresh(until_complete=30)
        return handle.result

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        queue = Queue.from_url(self.store.redis_url)
        await queue.connect()
        worker: Worker[Any] = Worker(queue, [_saq_function(task) for task in TASKS], concurrency=concurrency)
        running = asyncio.create_task(worker.start())
        try:
            yield
        finally:
            worker.event.set()
            await running
            await queue.disconnect()

    async def recorded(self, count: int) -> bool:
        return await self.queue.count("incomplete") == 0


CONTESTANT = Saq
