"""Queues whose tasks run when a test says so."""

from collections.abc import Sequence
from typing import Any, cast

from sitq import (
    Backend,
    ReservedTask,
    Serializer,
    SQLiteBackend,
    SyncTaskQueue,
    TaskFailedError,
    TaskQueue,
    Worker,
    WorkerDiedError,
)
from sitq.models import BURIED_ERROR_PREFIX, Outcome, Reservation

RESULT_TIMEOUT_SECONDS = 10.0
"""How long ``get_result`` waits unless it is told otherwise: a test that forgot to drain fails, and does not hang."""

DRAIN_POLL_SECONDS = 0.02
"""How soon a drain finds what a task enqueues and waits for: it is not woken, as a worker that serves is."""


class ManualQueue(TaskQueue):
    """A :class:`~sitq.TaskQueue` with a worker that works on request.

    Args:
        backend: Where the tasks are; ``None`` means in memory.
        serializer: As for ``TaskQueue``.
        default_result_timeout: As for ``TaskQueue``, in seconds, but 10 unless told otherwise.
        max_attempts: As for ``TaskQueue``.

    Attributes:
        backend: Where the tasks are, for other queues and workers to share.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | None = RESULT_TIMEOUT_SECONDS,
        max_attempts: int = 5,
    ) -> None:
        self.backend: Backend = SQLiteBackend(":memory:") if backend is None else backend
        super().__init__(
            self.backend, serializer, default_result_timeout=default_result_timeout, max_attempts=max_attempts
        )

    async def drain(self, *, check: bool = True, max_concurrency: int = 10) -> int:
        """Runs what is due, what that enqueues included, and returns the number of tasks run.

        Args:
            check: Whether the failure of a task is raised here; otherwise it is only in its result.
            max_concurrency: As for :class:`~sitq.Worker`.

        Raises:
            TaskFailedError: A task failed, and ``check`` is true. All the others were run too. It is a
                ``WorkerDiedError`` if the task was failed for the death of its workers.
        """
        __tracebackhide__ = True  # pytest shows the line of the test, and the worker's traceback
        finished, failure = await self._drain(max_concurrency)
        if check and failure is not None:
            raise failure
        return finished

    async def _drain(self, max_concurrency: int) -> tuple[int, TaskFailedError | None]:
        await self.__aenter__()  # stays connected: the worker's going must not empty a queue in memory
        backend = _FailureLog(self.backend)
        worker = Worker(
            cast("Backend", backend),
            self._serializer,
            max_concurrency=max_concurrency,
            poll_interval=DRAIN_POLL_SECONDS,
        )
        finished = await worker.drain()
        if not backend.failures:
            return finished, None
        first, *others = backend.failures.values()
        if others:
            first.add_note(f"{len(others)} more failed: {', '.join(error.task_id for error in others)}")
        return finished, first


class ManualSyncQueue(SyncTaskQueue):
    """A :class:`~sitq.SyncTaskQueue` with a worker that works on request.

    Args:
        backend: Where the tasks are; ``None`` means in memory.
        serializer: As for ``SyncTaskQueue``.
        default_result_timeout: As for ``SyncTaskQueue``, in seconds, but 10 unless told otherwise.
        max_attempts: As for ``SyncTaskQueue``.

    Attributes:
        backend: Where the tasks are, for other queues and workers to share.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | None = RESULT_TIMEOUT_SECONDS,
        max_attempts: int = 5,
    ) -> None:
        self.backend: Backend = SQLiteBackend(":memory:") if backend is None else backend
        super().__init__(self.backend, serializer)
        self._manual = ManualQueue(
            self.backend, serializer, default_result_timeout=default_result_timeout, max_attempts=max_attempts
        )
        self._queue = self._manual

    def drain(self, *, check: bool = True, max_concurrency: int = 10) -> int:
        """Runs what is due and returns the number of tasks run; see :meth:`ManualQueue.drain`.

        Raises:
            TaskFailedError: A task failed, and ``check`` is true.
            RuntimeError: An event loop runs in this thread.
        """
        __tracebackhide__ = True
        finished, failure = self._portal.call(lambda: self._manual._drain(max_concurrency))
        if check and failure is not None:
            raise failure
        return finished


class _FailureLog:
    """A backend that hands everything on to another one and keeps what failed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.failures: dict[str, TaskFailedError] = {}  # by id: an outcome may be recorded twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # What the backend offers beside the protocol is asked for by isinstance().
        return type(self._backend)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        reservation = await self._backend.reserve(limit, lease=lease, alone=alone)
        for task_id in reservation.buried:
            error = f"{BURIED_ERROR_PREFIX}its workers died on every attempt"
            self.failures[task_id] = WorkerDiedError(task_id, error)
        return reservation

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        not_held = await self._backend.mark_failure(outcomes)
        for outcome in outcomes:
            task_id = outcome.task.task_id
            if outcome.task not in not_held and outcome.retry_in is None and not outcome.cancelled:
                self.failures[task_id] = TaskFailedError(task_id, outcome.error or "", outcome.traceback)
        return not_held
