"""What a running task may know and use: itself, and its queue."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sitq._portal import Portal
from sitq.queue import TaskQueue
from sitq.sync import SyncTaskQueue
from sitq.worker.execution import Home, Running, running


class CurrentTask(NamedTuple):
    """What a running task may know of itself.

    Attributes:
        task_id: The task's id.
        attempt: The number of this run, from 1.
        enqueued_at: When the task was stored (aware, UTC).
        context: What was passed to ``enqueue`` as ``context``.
    """

    task_id: str
    attempt: int
    enqueued_at: datetime
    context: Mapping[str, Any]

    @property
    def queue(self) -> TaskQueue:
        """A queue on the backend and the serializer of the task's worker, with the defaults otherwise.

        All tasks of a worker share it, and it is open for as long as the worker runs: closing it
        does nothing.

        Raises:
            RuntimeError: No task is running here.
        """
        home = _running().home
        made: TaskQueue | None = home.made.get("queue")
        return home.made.setdefault("queue", _WorkersQueue(home)) if made is None else made

    @property
    def sync_queue(self) -> SyncTaskQueue:
        """The same queue for plain functions, which run in a thread: it works in the worker's event loop.

        Raises:
            RuntimeError: No task is running here.
        """
        home, queue = _running().home, self.queue
        made: SyncTaskQueue | None = home.made.get("sync")
        if made is None:
            # In the worker's loop: the end of a loop of its own could come while another task uses it.
            made = home.made.setdefault("sync", SyncTaskQueue._around(queue, Portal(home.loop)))
        return made


def current_task() -> CurrentTask:
    """Returns what the running task may know of itself: ``task_id``, ``attempt``, ``enqueued_at`` and ``context``.

    Beside these it has ``queue``, a :class:`TaskQueue` on the backend and the serializer of the task's
    worker, with the defaults otherwise; and ``sync_queue``, the same as a :class:`SyncTaskQueue`, for
    plain functions.

    Raises:
        RuntimeError: No task is running here.
    """
    task, context, _ = _running()
    return CurrentTask(task.task_id, task.attempt, task.enqueued_at, context)


def _running() -> Running:
    if (found := running.get()) is None:
        raise RuntimeError("current_task() was called outside of a running sitq task")
    return found


class _WorkersQueue(TaskQueue):
    def __init__(self, home: Home) -> None:
        super().__init__(home.backend, home.serializer)
        self._connected = True  # by the worker, for as long as it runs

    async def close(self) -> None:
        """Does nothing: other tasks use it, and the worker closes the backend."""
