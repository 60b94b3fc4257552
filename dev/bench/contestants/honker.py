"""honker: jobs in a SQLite file through a Rust extension, run by its own asyncio workers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import honker

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import PAYLOAD, TASKS, Task

QUEUE = "bench"


class Honker(Contestant):
    """Decorated tasks, whose results are kept by default, under `run_workers`."""

    distributions = ("honker",)
    workloads = frozenset({"drain", "enqueue", "enqueue_many", "wake", "result", "idle"})
    note = "JSON instead of pickle; commits are not synced (`synchronous=NORMAL`)"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.database = honker.open(str(store.folder / "honker.db"))
        self.queue = self.database.queue(QUEUE)
        self.tasks = {task: self.queue.task()(task) for task in TASKS}

    async def close(self) -> None:
        self.database.close()

    async def enqueue(self, task: Task, argument: object) -> Any:
        return self.tasks[task](argument)

    async def enqueue_many(self, count: int) -> None:
        """Its documented bulk insert: one transaction shared by many enqueues."""
        with self.database.transaction() as transaction:
            for _ in range(count):
                self.queue.enqueue({"payload": PAYLOAD}, tx=transaction)

    async def result(self, handle: Any) -> Any:
        return await handle.aget(timeout=30)

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        stop = asyncio.Event()
        workers = asyncio.create_task(self.database.run_workers(queue=QUEUE, concurrency=concurrency, stop_event=stop))
        try:
            yield
        finally:
            stop.set()
            await workers

    async def recorded(self, count: int) -> bool:
        rows = self.database.query("SELECT count(*) AS live FROM _honker_live")
        return bool(rows[0]["live"] == 0)


CONTESTANT = Honker
