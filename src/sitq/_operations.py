"""Inspecting a queue and mending its tasks: what ``TaskQueue`` and ``SyncTaskQueue`` offer beside producing."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, get_args

from sitq._checks import check_count, check_known_queue, check_seconds, refuse_running_loop
from sitq._portal import Portal
from sitq.backends.base import Backend
from sitq.backends.cancelling import Cancelling, RunningTasks
from sitq.backends.inspect import Counts, Inspectable, TaskDetails, TaskInfo
from sitq.errors import BackendError
from sitq.models import Status

type Ids = str | Iterable[str]
type Age = timedelta | float | None
"""How long ago, in seconds or as a ``timedelta``."""


class Operations:
    """Mixed into ``TaskQueue``; the backend has to be ``Inspectable``."""

    _backend: Backend
    _connected: bool
    if TYPE_CHECKING:

        async def _connect(self) -> None: ...

    async def counts(self) -> Counts:
        """Counts the tasks by status, and says how long the oldest due one has been waiting.

        The backend may have to read every row for it, so it is not for a hot path.

        Raises:
            BackendError: The backend could not be asked, or cannot be inspected.
        """
        return await (await _inspectable(self)).counts()

    async def get(self, task_id: str) -> TaskDetails | None:
        """Returns the state of one task, finished or not; ``None`` if there is no such task.

        :meth:`get_result` with ``timeout=0`` is ``None`` both for an unknown task and for one that is
        not finished yet.

        Raises:
            TypeError: ``task_id`` is not a ``str``.
            BackendError: The backend could not be asked, or cannot be inspected.
        """
        check_ids([task_id])
        return await (await _inspectable(self)).show(task_id)

    async def retry(
        self,
        task_ids: Ids | None = None,
        *,
        failed: bool = False,
        name: str | None = None,
        error: str | None = None,
        since: Age = None,
    ) -> Sequence[str]:
        """Makes tasks pending again, due now, as if they had never been run.

        These are failed ones, cancelled ones, and abandoned ones: in progress, with a lease that is
        over. If there are more than 500, it is done in several transactions, between which others
        get their turn; if it is interrupted, calling it again does the rest.

        Args:
            task_ids: One id or several.
            failed: Retry every failed task instead, or those of them that fit what follows.
            name: Only tasks whose name contains this text; if it holds ``*``, ``?`` or ``[``, it is a
                pattern for the whole name.
            error: Only tasks whose error contains this text.
            since: Only tasks that failed within this time, in seconds or as a ``timedelta``.

        Returns:
            The ids of the tasks that are pending again, in the order given. The others do not
            exist or are none of the three, and are left as they are.

        Raises:
            TypeError: An argument is of the wrong type, not exactly one of the first two is given, or
                tasks that are given by their ids are to be narrowed.
            ValueError: A text is empty, or ``since`` is negative.
            BackendError: The backend did not do it, or cannot be inspected.
        """
        if bool(failed) == (task_ids is not None):
            raise TypeError("retry() takes either the ids of tasks or failed=True")
        narrowed = {"name": _check_text("name", name), "error": _check_text("error", error)}
        seconds = _check_age("since", since)
        if task_ids is not None:
            if any(given is not None for given in (name, error, since)):
                raise TypeError("retry() takes name, error and since together with failed=True only")
            checked = check_ids(task_ids)
            return await (await _inspectable(self)).retry(checked)
        return await (await _inspectable(self)).retry_failed(**narrowed, since=seconds)

    async def cancel(self, task_ids: Ids, *, running: RunningTasks = "leave") -> Sequence[str]:
        """Finishes pending and abandoned tasks without running them: ``get_result`` returns at once.

        What becomes of tasks that run is said by ``running``.

        Abandoned are tasks in progress whose lease is over. If there are more than 500, it is done in
        several transactions, between which others get their turn; if it is interrupted, calling it
        again does the rest.

        Args:
            task_ids: One id or several.
            running: What to do with tasks that run. ``"leave"``: nothing. ``"ask"``: they are asked to
                end, and stay in progress until their code has ended. One that returns a value all the
                same has succeeded; any other is cancelled, and not retried by a policy. ``"cut"``: they
                are cancelled at once, and what their code brings is thrown away; but it may go on.

        Returns:
            The ids of the tasks that are cancelled by this call, or asked to end by it or an earlier
            one, in the order given. The others do not exist, are finished, or are held by a worker
            and were to be left, and are as they were.

        Raises:
            TypeError: An id is not a ``str``.
            ValueError: ``running`` is none of the three.
            BackendError: The backend did not do it, cannot be inspected, or cannot end tasks that run.
        """
        checked = check_ids(task_ids)
        check_running(running)
        done = await cancel_tasks(await _inspectable(self), checked, running)
        found = {*done.waiting, *done.running}
        return [task_id for task_id in checked if task_id in found]

    # The last one: from here on, `list` is this method to a type checker.
    async def list(
        self,
        status: Status | None = None,
        *,
        limit: int = 100,
        name: str | None = None,
        error: str | None = None,
        since: Age = None,
        before: str | None = None,
        queue: str | None = None,
    ) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first: by when they were finished, or else by when they were stored.

        Args:
            status: Only tasks of this status; ``None`` means all, by when they were stored.
            limit: How many to list at most, at least 1.
            name: Only tasks whose name contains this text; if it holds ``*``, ``?`` or ``[``, it is a
                pattern for the whole name. Case matters.
            error: Only failed tasks whose error contains this text. Case matters.
            since: Only tasks that were finished, or else stored, within this time, in seconds or as a
                ``timedelta``.
            before: The id of the last task of one page, to get the next page. What is stored or
                finished meanwhile does not shift it.
            queue: Only tasks of this queue; ``"default"`` for those that were given none.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: There is no such status, a number is out of range, a text is empty, or
                ``before`` is not in this list: it is unknown, or was deleted or retried meanwhile.
            BackendError: The backend could not be asked, or cannot be inspected.
        """
        if status is not None and status not in get_args(Status.__value__):
            raise ValueError(f"status must be one of {', '.join(get_args(Status.__value__))}; got {status!r}")
        check_count("limit", limit)
        narrowed = {"name": _check_text("name", name), "error": _check_text("error", error)}
        seconds, before = _check_age("since", since), _check_text("before", before)
        of_queue = {} if queue is None else {"queue": check_known_queue(queue)}
        backend = await _inspectable(self)
        return await backend.list(status=status, limit=limit, **narrowed, since=seconds, before=before, **of_queue)


class SyncOperations:
    """Mixed into ``SyncTaskQueue``."""

    _queue: Operations
    _portal: Portal

    def counts(self) -> Counts:
        """Counts the tasks; see :meth:`TaskQueue.counts`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(self._queue.counts)

    def get(self, task_id: str) -> TaskDetails | None:
        """Returns the state of one task, finished or not; see :meth:`TaskQueue.get`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(lambda: self._queue.get(task_id))

    def retry(
        self,
        task_ids: Ids | None = None,
        *,
        failed: bool = False,
        name: str | None = None,
        error: str | None = None,
        since: Age = None,
    ) -> Sequence[str]:
        """Makes tasks pending again; see :meth:`TaskQueue.retry`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        ids = None if task_ids is None else check_ids(task_ids)  # here: a generator may depend on its thread
        return self._portal.call(lambda: self._queue.retry(ids, failed=failed, name=name, error=error, since=since))

    def cancel(self, task_ids: Ids, *, running: RunningTasks = "leave") -> Sequence[str]:
        """Finishes tasks without running them, or ends them while they run; see :meth:`TaskQueue.cancel`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        ids = check_ids(task_ids)
        return self._portal.call(lambda: self._queue.cancel(ids, running=running))

    # The last one: from here on, `list` is this method to a type checker.
    def list(
        self,
        status: Status | None = None,
        *,
        limit: int = 100,
        name: str | None = None,
        error: str | None = None,
        since: Age = None,
        before: str | None = None,
        queue: str | None = None,
    ) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first; see :meth:`TaskQueue.list`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(
            lambda: self._queue.list(
                status, limit=limit, name=name, error=error, since=since, before=before, queue=queue
            )
        )


async def _inspectable(queue: Operations) -> Inspectable:
    backend = queue._backend
    if not isinstance(backend, Inspectable):
        raise BackendError(
            f"{type(backend).__name__} cannot be inspected: it does not offer what "
            "sitq.backends.inspect.Inspectable describes"
        )
    if not queue._connected:
        await queue._connect()
    return backend


class Cancelled(NamedTuple):
    """What a cancellation did.

    Attributes:
        waiting: The tasks that are finished without being run; in the order given.
        running: The tasks that ran, and were asked to end or cut; in the order given.
    """

    waiting: Sequence[str]
    running: Sequence[str]


async def cancel_tasks(backend: Inspectable, task_ids: Sequence[str], running: RunningTasks) -> Cancelled:
    """Cancels pending and abandoned tasks, and asks those that run to end, or cuts them, if that is wanted.

    Raises:
        BackendError: The backend did not do it, or cannot end tasks that run.
    """
    if running == "leave":
        return Cancelled(await backend.cancel(task_ids), ())
    if not isinstance(backend, Cancelling):
        raise BackendError(
            f"{type(backend).__name__} cannot end tasks that run: it does not offer what "
            "sitq.backends.cancelling.Cancelling describes; nothing was cancelled"
        )
    waiting = set(await backend.cancel(task_ids))
    left = [task_id for task_id in task_ids if task_id not in waiting]
    ended = set(await (backend.ask(left) if running == "ask" else backend.cut(left)))
    # Of these, some may have been given back, or made due again by a policy, between the two calls.
    if left := [task_id for task_id in left if task_id not in ended]:
        waiting |= set(await backend.cancel(left))
    return Cancelled(
        [task_id for task_id in task_ids if task_id in waiting], [task_id for task_id in task_ids if task_id in ended]
    )


def check_running(running: str) -> None:
    """Checks what is to be done with tasks that run.

    Raises:
        ValueError: It is none of the three words.
    """
    words = get_args(RunningTasks.__value__)
    if running not in words:
        raise ValueError(f"running must be one of {', '.join(words)}; got {running!r}")


def check_ids(task_ids: Ids) -> Sequence[str]:
    """Returns ids of tasks, each one once.

    Raises:
        TypeError: It is neither an id nor several, or one of them is not a ``str``.
    """
    if not isinstance(task_ids, Iterable):
        raise TypeError(f"task_ids must be an id or several, not {type(task_ids).__name__}")
    ids = [task_ids] if isinstance(task_ids, str) else [*dict.fromkeys(task_ids)]
    for task_id in ids:
        if not isinstance(task_id, str):
            raise TypeError(f"a task id must be a str, not {type(task_id).__name__}")
    return ids


def _check_text(name: str, text: str | None) -> str | None:
    """Returns a checked text to search for.

    Raises:
        TypeError: It is not a ``str``.
        ValueError: It is empty, which every task would fit: an unset variable must not retry them all.
    """
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    if text == "":
        raise ValueError(f"{name} must not be empty: leave it out")
    return text


def _check_age(name: str, age: Age) -> float | None:
    """Returns an age in seconds.

    Raises:
        TypeError: It is neither a number nor a ``timedelta``.
        ValueError: It is negative, not finite, or longer than a hundred years.
    """
    if age is None:
        return None
    return check_seconds(name, age.total_seconds() if isinstance(age, timedelta) else age)
