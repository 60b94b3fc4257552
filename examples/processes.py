"""A producer and several worker processes on one file, for work that keeps a processor busy.

    python examples/processes.py

Threads share the interpreter lock, so pure Python that computes gains nothing from more slots: it wants
more worker processes, with a slot for each.
"""

import asyncio
import multiprocessing
import os
import tempfile
from collections import Counter
from functools import partial
from math import isqrt
from pathlib import Path

from sitq import SQLiteBackend, TaskQueue, Worker

WORKERS = 3
RANGE = 2_000
TASKS = 30


def count_primes(first: int, after: int) -> tuple[int, int]:
    """The work: returns how many primes there are in a range, and the process that counted them."""
    numbers = range(max(first, 2), after)
    primes = sum(all(number % n for n in range(2, isqrt(number) + 1)) for number in numbers)
    return primes, os.getpid()


def work(queue_file: Path) -> None:
    """A worker process: runs until SIGTERM, and then finishes the task in hand."""
    asyncio.run(Worker(SQLiteBackend(queue_file), max_concurrency=1).run())


async def main(queue_file: Path) -> None:
    """Starts the workers, enqueues, waits for the results, stops the workers."""
    # Not "fork", which would copy the threads' locks and none of the threads.
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(queue_file,)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        async with TaskQueue(SQLiteBackend(queue_file)) as queue:
            starts = range(0, TASKS * RANGE, RANGE)
            ids = await queue.enqueue_many(partial(count_primes, start, start + RANGE) for start in starts)
            results = [await queue.get_result(task_id) for task_id in ids]
    finally:
        for worker in workers:
            worker.terminate()  # one that is still starting just dies of it: -15
        for worker in workers:
            worker.join()
    counted = [result.unwrap() for result in results if result is not None]
    print(f"{sum(primes for primes, _ in counted):,} primes below {TASKS * RANGE:,}")
    for pid, tasks in Counter(pid for _, pid in counted).items():
        print(f"process {pid} ran {tasks} tasks")
    print(f"the workers exited with {[worker.exitcode for worker in workers]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "primes.db"))
