"""SQLiteBackend keeps the contract, on a file and in memory, and leaves less behind than it has to."""

import asyncio
from pathlib import Path

import pytest

from sitq import Backend, SQLiteBackend
from sitq.models import Reservation
from sitq.testing import ManualClock
from sitq.testing._contract.base import new, successes, take, until
from sitq.testing._contract.calling import cancel, turns
from sitq.testing.contract import BackendContract
from tests.worker_tasks import connected


class TestOnAFile(BackendContract):
    @pytest.fixture
    def backend(self, path: Path) -> Backend:
        """A backend on a fresh file."""
        self.path, self.clock = path, ManualClock()
        return SQLiteBackend(path, clock=self.clock)

    def another(self, backend: Backend) -> Backend:
        """Another connection to the file."""
        return SQLiteBackend(self.path, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Both look at one clock."""
        self.clock.advance(seconds)


class TestInMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_a_cancelled_reservation_gives_its_tasks_back(where: str, path: Path) -> None:
    """Whenever it is cancelled, its tasks are pending again without an end of any lease, and no attempt is spent."""
    async with connected(SQLiteBackend(path if where == "file" else ":memory:")) as backend:
        for after in turns():
            tasks = new(3)
            await backend.enqueue(tasks)
            cancelled = await cancel(backend.reserve(3, lease=3600, alone=False), after)
            if not cancelled:
                break
            held = await until(lambda: take(backend))
            assert [(task.task_id, task.attempt) for task in held] == [(task.task_id, 1) for task in tasks]
            await backend.mark_success(successes(held))


async def test_a_reservation_whose_loop_has_ended_gives_its_tasks_back(path: Path) -> None:
    """Where asyncio.run() in another thread ends in the middle of a reservation, the tasks can be taken."""
    async with connected(SQLiteBackend(path)) as backend:
        for after in range(12):
            tasks = new(3)
            await backend.enqueue(tasks)

            async def leave(turns: int = after) -> asyncio.Future[Reservation]:
                reserving = asyncio.ensure_future(backend.reserve(3, lease=3600, alone=False))
                for _ in range(turns):
                    await asyncio.sleep(0)
                return reserving

            reserving = await asyncio.to_thread(lambda: asyncio.run(leave()))
            if not reserving.cancelled():  # it was in time, and what it brought belongs to its caller
                await backend.release(reserving.result().tasks)
            held = await until(lambda: take(backend))
            assert [(task.task_id, task.attempt) for task in held] == [(task.task_id, 1) for task in tasks]
            await backend.mark_success(successes(held))
