"""Starting and stopping, again and again, leaves nothing behind."""

import gc
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue, Worker
from tests.faults import open_files
from tests.support import DEADLINE_SECONDS, add, multiply

WARM_UP = 30
TIMES = 500
MAX_GROWTH_BYTES = 16 * 1024 * 1024


def objects() -> int:
    """Returns how many objects there are that could keep others alive."""
    gc.collect()
    return len(gc.get_objects())


class Footprint:
    """What this process had when it was made: threads, open files, objects."""

    def __init__(self) -> None:
        self.threads = threading.active_count()
        self.files = open_files()
        self.objects = objects()

    def is_left(self, times: int) -> None:
        """Asserts that it is the same again, after something was done ``times`` times.

        A thread that has been told to end may take a moment; an object or two may have been cached.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while threading.active_count() > self.threads or open_files() > self.files:
            assert time.monotonic() < deadline, "threads or files are left"
            time.sleep(0.01)  # the end of a thread sends no event
        assert objects() - self.objects < 3 * times


def largest_memory() -> int:
    """Returns the most memory that this process has ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("times", [60, pytest.param(TIMES, marks=pytest.mark.storm)])
async def test_starting_and_stopping_a_worker_leaves_nothing_behind(path: Path, times: int) -> None:
    """A worker and a file of its own each time, a task on the loop and one in a thread: nothing of it stays."""
    queue = TaskQueue(SQLiteBackend(path, durability="normal", retention=0))

    async def once() -> None:
        backend = SQLiteBackend(path, durability="normal", retention=0)
        async with Worker(backend):
            ids = [await queue.enqueue(add, 1, 2), await queue.enqueue(multiply, 3, 4)]
            for task_id in ids:
                await queue.get_result(task_id)

    async with queue:
        for _ in range(WARM_UP):
            await once()
        footprint, memory = Footprint(), largest_memory()
        for _ in range(times):
            await once()
        footprint.is_left(times)
    assert largest_memory() - memory < MAX_GROWTH_BYTES


async def test_one_worker_that_is_started_and_stopped_leaves_nothing_behind(backend: SQLiteBackend) -> None:
    """The same object five hundred times, while the file stays open."""
    async with TaskQueue(backend):
        worker = Worker(backend)
        for n in range(WARM_UP + TIMES):
            if n == WARM_UP:
                footprint = Footprint()
            await worker.start()
            await worker.stop()
        footprint.is_left(TIMES)


def test_opening_and_closing_a_queue_for_sync_code_leaves_nothing_behind(path: Path) -> None:
    """Its loop, its thread and its file go with it."""
    for n in range(100):
        if n == 20:
            footprint = Footprint()
        with SyncTaskQueue(SQLiteBackend(path, durability="normal")) as queue:
            queue.enqueue(add, 1, 2)
    footprint.is_left(80)
