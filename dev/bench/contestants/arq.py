"""arq over Redis."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import Worker

from dev.bench.case import Store
from dev.bench.contestants.base import Contestant, Span
from dev.bench.tasks import Task, noop, stamp

POLL_SECONDS = 0.5
"""arq's default: how often its worker looks for new jobs."""

DRAIN_POLL_SECONDS = 0.001
"""The same where jobs are waiting: with the default, one slot would run two jobs a second."""


async def _noop(ctx: object, payload: str) -> int:
    return await noop(payload)


async def _stamp(ctx: object, number: int) -> int:
    return await stamp(number)


class Arq(Contestant):
    """Its tasks are coroutine functions with a context as their first argument."""

    distributions = ("arq", "redis")
    workloads = frozenset({"drain", "enqueue", "enqueue_concurrent", "wake", "idle"})
    needs_redis = True
    note = f"poll_delay={DRAIN_POLL_SECONDS:g} in drains, in its favour; its default elsewhere"

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.settings = RedisSettings.from_dsn(store.redis_url)
        self.pool: ArqRedis | None = None
        self.poll_delay = POLL_SECONDS

    async def open(self) -> None:
        self.pool = await create_pool(self.settings)

    async def close(self) -> None:
        if self.pool is not None:
            await self.pool.aclose()

    async def enqueue(self, task: Task, argument: object) -> Job | None:
        return await self._connected().enqueue_job(task.__name__, argument)

    @asynccontextmanager
    async def worker(self, concurrency: int) -> AsyncGenerator[None]:
        worker = Worker(
            [func(_noop, name="noop"), func(_stamp, name="stamp")],
            redis_settings=self.settings,
            max_jobs=concurrency,
            handle_signals=False,
            poll_delay=self.poll_delay,
        )
        running = asyncio.create_task(worker.async_run())
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await worker.close()

    async def drain(self, concurrency: int, count: int) -> Span:
        self.poll_delay = DRAIN_POLL_SECONDS
        return await super().drain(concurrency, count)

    async def recorded(self, count: int) -> bool:
        return bool(await self._connected().zcard("arq:queue") == 0)

    def _connected(self) -> ArqRedis:
        if self.pool is None:
            raise RuntimeError("open the contestant first")
        return self.pool


CONTESTANT = Arq
