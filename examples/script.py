"""A plain script that hands work to a worker in another process, and no event loop in sight.

    python examples/script.py work &            # the worker; ends with the tasks in hand finished on SIGTERM
    python examples/script.py README.md LICENSE

The queue file is ``script.db``, or what the environment variable ``QUEUE_FILE`` says.
"""

import asyncio
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

from sitq import SQLiteBackend, SyncTaskQueue, Worker

QUEUE_FILE = os.environ.get("QUEUE_FILE", "script.db")


def digest(path: Path) -> str:
    """The work."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(paths: list[Path]) -> int:
    """Enqueues one task for each file and prints the results in order; returns how many failed."""
    failed = 0
    with SyncTaskQueue(SQLiteBackend(QUEUE_FILE), default_result_timeout=60) as queue:
        ids = queue.enqueue_many(partial(digest, path.resolve()) for path in paths)
        for path, task_id in zip(paths, ids, strict=True):
            result = queue.get_result(task_id)
            if result is None:
                print(f"{path}: no result within a minute; is a worker running?")
            elif result.status == "failed":
                print(f"{path}: {result.error}")
            else:
                print(f"{result.value}  {path}")
            failed += result is None or result.status == "failed"
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        asyncio.run(Worker(SQLiteBackend(QUEUE_FILE)).run())
    elif len(sys.argv) == 1:
        sys.exit(__doc__)
    else:
        sys.exit(min(main([Path(name) for name in sys.argv[1:]]), 1))
