"""litequeue: a message queue in SQLite. It has no worker: the loop here pops, calls and marks."""

import time
from collections.abc import Iterable
from itertools import repeat

from litequeue import LiteQueue

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant, Span
from dev.bench.tasks import PAYLOAD, Task, noop, noop_plain


class Litequeue(Contestant):
    """Messages are texts, and the function that is called with them is known beforehand."""

    distributions = ("litequeue",)
    workloads = frozenset({"drain", "enqueue", "enqueue_many"})
    concurrencies = (1,)
    note = "texts only, no results kept, no worker; commits are not synced (`synchronous=NORMAL`)"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.queue = LiteQueue(store.folder / "litequeue.db")

    async def close(self) -> None:
        self.queue.close()

    async def enqueue(self, task: Task, argument: object) -> object:
        return self.queue.put(str(argument))

    async def enqueue_many(self, count: int) -> None:
        """Puts inside its `transaction`."""
        await self.fill(noop, repeat(PAYLOAD, count))

    async def fill(self, task: Task, arguments: Iterable[object]) -> None:
        with self.queue.transaction():
            for argument in arguments:
                self.queue.put(str(argument))

    async def drain(self, concurrency: int, count: int) -> Span:
        started = time.perf_counter()
        while (message := self.queue.pop()) is not None:
            noop_plain(message.data)
            self.queue.done(message.message_id, claim_id=message.claim_id)
        return Span(started, time.perf_counter())


CONTESTANT = Litequeue
