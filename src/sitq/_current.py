"""What a running task may know and use: itself, and its queue."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, overload

from sitq._portal import Portal
from sitq.extensions.base import Run
from sitq.models import TaskId
from sitq.queue import TaskQueue
from sitq.sync import SyncTaskQueue
from sitq.worker.execution import Home, running


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
    run = _running()
    task = run.task
    return CurrentTask(task.task_id, task.attempt, task.enqueued_at, run.call.context)


def _running(caller: str = "current_task") -> Run:
    if (found := running.get()) is None:
        raise RuntimeError(f"{caller}() was called outside of a running sitq task")
    return found


@overload
def follow_up[**P, T](func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
@overload
def follow_up[**P, T](func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
def follow_up(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
    """Has a task stored together with the success of the running one, and returns its id.

    It is stored if the run returns a value, in the same transaction that records that, and not otherwise: a run that
    raises, dies or loses its lease has enqueued nothing, and a second run does not enqueue twice. May be called
    any number of times, in a thread too.

    Args:
        func: A function, or a task with options: ``follow_up(send.options(priority=5), to)``.
        *args: The arguments of the call.
        **kwargs: The keyword arguments of the call.

    Raises:
        RuntimeError: No task is running here, or its run is over.
        TypeError: ``func`` is not callable, or does not take these arguments.
        ValueError: The call is larger than the backend allows.
        SerializationError: An argument cannot be serialized; the message names it.
        BackendError: The backend cannot store a task together with an outcome.
    """
    run = _running("follow_up")
    task = run.home.make_task(func, args, kwargs)
    if run.is_over:  # asked last: while the call was made in a thread, the run may have ended
        raise RuntimeError("follow_up() was called after the run of its task was over: call it before the task returns")
    run.then.append(task)
    return TaskId(task.task_id)


class _WorkersQueue(TaskQueue):
    def __init__(self, home: Home) -> None:
        super().__init__(home.backend, home.serializer, extensions=home.extensions)
        self._connected = True  # by the worker, for as long as it runs

    async def close(self) -> None:
        """Does nothing: other tasks use it, and the worker closes the backend."""
