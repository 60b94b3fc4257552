"""Reminders: tasks with an ``eta``, enqueued in one process and delivered by another one.

    python examples/reminders.py deliver &      # a worker; ends on SIGTERM or Ctrl-C
    python examples/reminders.py remind 5 "the tea is ready"
    python examples/reminders.py remind 2.5 "take the tea out"

A reminder is on the disk: stop the worker, start it again, and what became due meanwhile comes at once.
The queue file is ``reminders.db``, or what the environment variable ``QUEUE_FILE`` says.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

from sitq import SQLiteBackend, SyncTaskQueue, Worker, current_task

QUEUE_FILE = os.environ.get("QUEUE_FILE", "reminders.db")


async def deliver(text: str, due: datetime) -> str:
    """The task: delivers a reminder, by printing it."""
    late = datetime.now(UTC) - due
    author = current_task().context["author"]
    print(f"{text} (from {author}, {'on time' if late >= timedelta(0) else 'too early'})", flush=True)
    return text


def remind(seconds: float, text: str) -> None:
    """Enqueues a reminder and prints its id."""
    due = datetime.now(UTC) + timedelta(seconds=seconds)
    with SyncTaskQueue(SQLiteBackend(QUEUE_FILE)) as queue:
        print(queue.enqueue(deliver, text, due, eta=due, context={"author": f"process {os.getpid()}"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["remind"]:
        remind(float(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:] == ["deliver"]:
        asyncio.run(Worker(SQLiteBackend(QUEUE_FILE)).run())
    else:
        sys.exit(__doc__)
