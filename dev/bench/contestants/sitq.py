"""sitq as its documentation starts it: `Worker(SQLiteBackend(path), max_concurrency=N)`."""

import time
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from itertools import repeat
from typing import Literal, cast

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant, Span
from dev.bench.tasks import PAYLOAD, Task, noop
from sitq import SQLiteBackend, TaskId, TaskQueue, Worker

type Durability = Literal["enqueue", "full", "normal"]


class Sitq(Contestant):
    """The queue and the worker have a backend each, as they have in two processes."""

    distributions = ("sitq", "aiosqlite", "cloudpickle")
    workloads = frozenset(
        {
            "drain", "drain_plain", "enqueue", "enqueue_concurrent", "enqueue_many",
            "enqueue_sync", "wake", "wake_same", "result", "eta", "idle", "backlog",
            "processes", "import", "durable_enqueue", "durable_drain",
            "waiting", "awaited", "lateness",
        }
    )  # fmt: skip

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.path = store.folder / "sitq.db"
        self.queue = TaskQueue(self.backend())

    def backend(self) -> SQLiteBackend:
        """A backend of its own on the measurement's file."""
        return SQLiteBackend(self.path, durability=cast("Durability", self.store.durability))

    async def open(self) -> None:
        await self.queue.__aenter__()

    async def close(self) -> None:
        await self.queue.close()

    async def enqueue(self, task: Task, argument: object) -> TaskId[object]:
        return await self.queue.enqueue(task, argument)

    async def enqueue_at(self, task: Task, argument: object, eta: datetime) -> None:
        """Enqueue one task that is due at `eta`."""
        await self.queue.enqueue(task, argument, eta=eta)

    async def enqueue_many(self, count: int) -> None:
        await self.fill(noop, repeat(PAYLOAD, count))

    async def fill(self, task: Task, arguments: Iterable[object]) -> None:
        await self.queue.enqueue_many(partial(task, argument) for argument in arguments)

    async def result(self, handle: TaskId[object]) -> object:
        result = await self.queue.get_result(handle, timeout=30)
        if result is None:
            raise TimeoutError(f"no result of {handle} within 30 s")
        return result.value

    def worker(self, concurrency: int) -> Worker:
        return Worker(self.backend(), max_concurrency=concurrency)

    async def drain(self, concurrency: int, count: int) -> Span:
        """The time of `await worker.drain()`, which returns when everything is recorded."""
        worker = self.worker(concurrency)
        started = time.perf_counter()
        await worker.drain()
        span = Span(started, time.perf_counter())
        await worker.stop()
        return span


CONTESTANT = Sitq
