"""The one interface through which workloads talk to sitq, to its peers and to bare sqlite3."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from itertools import batched
from typing import Any, ClassVar, NamedTuple, Self

from dev.bench.case import Store
from dev.bench.tasks import Task, tally

WAVE = 1_000
"""How many enqueues are started together where callers are concurrent."""

RECORDED_POLL_SECONDS = 0.0005


class Span(NamedTuple):
    """Two readings of `time.perf_counter`, which processes share on Linux."""

    started: float
    finished: float

    @property
    def seconds(self) -> float:
        """The time between the two."""
        return self.finished - self.started


class Contestant:
    """A task queue. A synchronous one does its work inside the coroutine, without a thread.

    Attributes:
        distributions: The packages whose versions the report names.
        workloads: The names of the workloads that it can take part in.
        concurrencies: The numbers of tasks at a time with which it drains.
        usual_concurrency: The same where a workload does not vary it.
        needs_redis: Whether its tasks live in Redis instead of a file.
        note: What a reader of its figures has to know.
    """

    distributions: ClassVar[tuple[str, ...]]
    workloads: ClassVar[frozenset[str]]
    concurrencies: ClassVar[tuple[int, ...]] = (1, 10, 32, 100)
    usual_concurrency: ClassVar[int] = 10
    needs_redis: ClassVar[bool] = False
    note: ClassVar[str] = ""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect as a producer would."""

    async def close(self) -> None:
        """Give back what `open` took."""

    async def enqueue(self, task: Task, argument: object) -> Any:
        """Enqueue one task; return, with its handle, when the store has acknowledged it."""
        raise NotImplementedError

    async def enqueue_many(self, count: int) -> None:
        """Enqueue `count` no-op tasks in the contestant's own way for many."""
        raise NotImplementedError

    async def fill(self, task: Task, arguments: Iterable[object]) -> None:
        """Put tasks in the store before the clock starts, in whatever way is quick."""
        for wave in batched(arguments, WAVE, strict=False):
            await asyncio.gather(*(self.enqueue(task, argument) for argument in wave))

    async def result(self, handle: Any) -> Any:
        """Wait for the returned object of the task behind `handle`."""
        raise NotImplementedError

    def worker(self, concurrency: int) -> AbstractAsyncContextManager[object]:
        """A worker in this process: running inside the block, stopped after it."""
        raise NotImplementedError

    async def recorded(self, count: int) -> bool:
        """Whether the store holds the outcome of all `count` tasks."""
        raise NotImplementedError

    async def drain(self, concurrency: int, count: int) -> Span:
        """Run the `count` waiting tasks, from the worker's start until the last is recorded.

        The store is looked at only after the last task has run, so that looking costs nothing;
        stopping the worker is outside the span.
        """
        started = time.perf_counter()
        async with self.worker(concurrency):
            await tally.reached()
            while not await self.recorded(count):  # noqa: ASYNC110 (no store tells by itself)
                await asyncio.sleep(RECORDED_POLL_SECONDS)
            return Span(started, time.perf_counter())
