"""Looking into a queue and mending it: what ``TaskQueue`` and ``SyncTaskQueue`` offer beside producing."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from sitq._checks import check_count, refuse_running_loop
from sitq.backends.base import Backend
from sitq.backends.inspect import Counts, Inspectable, TaskInfo
from sitq.errors import BackendError
from sitq.models import Status

type Ids = str | Iterable[str]


class Operations:
    """Mixed into ``TaskQueue``; the backend has to be ``Inspectable``."""

    _backend: Backend
    _connected: bool
    if TYPE_CHECKING:

        async def _connect(self) -> None: ...

    async def counts(self) -> Counts:
        """Counts the tasks by status, and says how long the oldest due one has been waiting.

        The backend may have to read every row for it: not for a hot path.

        Raises:
            BackendError: The backend could not be asked, or cannot be looked into.
        """
        return await (await _inspectable(self)).counts()

    async def retry(self, task_ids: Ids | None = None, *, failed: bool = False) -> Sequence[str]:
        """Makes failed and cancelled tasks pending again, due now, as if they had never been run.

        Args:
            task_ids: One id or several.
            failed: Retry every failed task instead.

        Returns:
            The ids of the tasks that are pending again, in the order given. The others do not
            exist or are neither failed nor cancelled, and are left as they are.

        Raises:
            TypeError: An id is not a ``str``, or not exactly one of the two arguments is given.
            BackendError: The backend did not do it, or cannot be looked into.
        """
        if bool(failed) == (task_ids is not None):
            raise TypeError("retry() takes either the ids of tasks or failed=True")
        checked = None if task_ids is None else check_ids(task_ids)
        backend = await _inspectable(self)
        return await (backend.retry_failed() if checked is None else backend.retry(checked))

    async def cancel(self, task_ids: Ids) -> Sequence[str]:
        """Finishes pending tasks without running them: ``get_result`` returns at once.

        Args:
            task_ids: One id or several.

        Returns:
            The ids of the tasks that are cancelled by this call, in the order given. The others do
            not exist, are in progress or finished, and are left as they are.

        Raises:
            TypeError: An id is not a ``str``.
            BackendError: The backend did not do it, or cannot be looked into.
        """
        checked = check_ids(task_ids)
        return await (await _inspectable(self)).cancel(checked)

    # The last one: from here on, `list` is this method to a type checker.
    async def list(self, status: Status | None = None, *, limit: int = 100) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first: by when they were finished, or else by when they were stored.

        Args:
            status: Only tasks of this status; ``None`` means all, by when they were stored.
            limit: How many to list at most, at least 1.

        Raises:
            TypeError: ``limit`` is not an ``int``.
            ValueError: There is no such status, or ``limit`` is out of range.
            BackendError: The backend could not be asked, or cannot be looked into.
        """
        if status is not None and status not in get_args(Status.__value__):
            raise ValueError(f"status must be one of {', '.join(get_args(Status.__value__))}; got {status!r}")
        check_count("limit", limit)
        return await (await _inspectable(self)).list(status=status, limit=limit)


class SyncOperations:
    """Mixed into ``SyncTaskQueue``."""

    _queue: Operations
    if TYPE_CHECKING:

        def _call[T](self, function: Callable[[], Coroutine[Any, Any, T]]) -> T: ...

    def counts(self) -> Counts:
        """Counts the tasks; see :meth:`TaskQueue.counts`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._call(self._queue.counts)

    def retry(self, task_ids: Ids | None = None, *, failed: bool = False) -> Sequence[str]:
        """Makes failed and cancelled tasks pending again; see :meth:`TaskQueue.retry`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        ids = None if task_ids is None else check_ids(task_ids)  # here: a generator may depend on its thread
        return self._call(lambda: self._queue.retry(ids, failed=failed))

    def cancel(self, task_ids: Ids) -> Sequence[str]:
        """Finishes pending tasks without running them; see :meth:`TaskQueue.cancel`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        ids = check_ids(task_ids)
        return self._call(lambda: self._queue.cancel(ids))

    # The last one: from here on, `list` is this method to a type checker.
    def list(self, status: Status | None = None, *, limit: int = 100) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first; see :meth:`TaskQueue.list`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._call(lambda: self._queue.list(status, limit=limit))


async def _inspectable(queue: Operations) -> Inspectable:
    backend = queue._backend
    if not isinstance(backend, Inspectable):
        raise BackendError(
            f"{type(backend).__name__} cannot be looked into: it does not offer what "
            "sitq.backends.inspect.Inspectable describes"
        )
    if not queue._connected:
        await queue._connect()
    return backend


def check_ids(task_ids: Ids) -> Sequence[str]:
    """Returns ids of tasks, each one once.

    Raises:
        TypeError: One of them is not a ``str``.
    """
    ids = [task_ids] if isinstance(task_ids, str) else [*dict.fromkeys(task_ids)]
    for task_id in ids:
        if not isinstance(task_id, str):
            raise TypeError(f"a task id must be a str, not {type(task_id).__name__}")
    return ids
