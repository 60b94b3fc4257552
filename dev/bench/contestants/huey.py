"""huey's SqliteHuey and its threaded consumer, with the settings of its documentation."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from huey import SqliteHuey

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant
from dev.bench.tasks import PLAIN, TASKS, Task


class Huey(Contestant):
    """Its tasks are plain functions; the no-op returns a number, so that huey keeps the result."""

    distributions = ("huey",)
    workloads = frozenset({"drain", "enqueue", "wake", "result", "idle"})
    concurrencies = (1, 4)
    usual_concurrency = 4
    note = "N worker threads, plain functions; a row is deleted before it runs (no lease)"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.huey = SqliteHuey(filename=str(store.folder / "huey.db"))
        self.tasks = {task: self.huey.task()(task) for task in TASKS if task not in PLAIN}

    async def close(self) -> None:
        self.huey.storage.close()

    async def enqueue(self, task: Task, argument: object) -> Any:
        return self.tasks[PLAIN.get(task, task)](argument)

    async def result(self, handle: Any) -> Any:
        return await asyncio.to_thread(handle.get, blocking=True, timeout=30)

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        consumer = self.huey.create_consumer(workers=concurrency)
        consumer.start()
        try:
            yield
        finally:
            await asyncio.to_thread(consumer.stop, graceful=True)

    async def recorded(self, count: int) -> bool:
        return bool(self.huey.result_count() >= count)


CONTESTANT = Huey
