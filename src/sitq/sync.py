"""The same queue for code that has no event loop."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self, overload

from sitq._checks import refuse_running_loop
from sitq._enqueuer import Enqueuer
from sitq._following import SyncFollowing
from sitq._lanes import SyncLaneOperations
from sitq._operations import SyncOperations
from sitq._options import Context, Eta, OnFailure, UniqueKey
from sitq._portal import Portal
from sitq._results import SyncCompleted, SyncResults
from sitq.backends.base import Backend
from sitq.extensions.base import Extension
from sitq.extensions.retries import RetryPolicy
from sitq.models import MAX_ATTEMPTS, TaskId
from sitq.queue import AnyCallable, AsyncCallable, TaskQueue
from sitq.serializers.base import Serializer

__all__ = ["SyncCompleted", "SyncEnqueuer", "SyncTaskQueue"]


class SyncEnqueuer:
    """Stores tasks with the options that :meth:`SyncTaskQueue.options` was given.

    It may be kept and used any number of times, also by several threads at once. An ``eta`` that is
    a ``timedelta`` counts from each call of :meth:`enqueue`.
    """

    __slots__ = ("_enqueuer", "_portal")

    def __init__(self, portal: Portal, enqueuer: Enqueuer) -> None:
        self._portal = portal
        self._enqueuer = enqueuer

    @overload
    def enqueue(self, func: str, /, *args: Any, **kwargs: Any) -> TaskId[Any]: ...
    @overload
    def enqueue[**P, T](self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    @overload
    def enqueue[**P, T](self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    def enqueue(self, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Stores a call of ``func`` and returns its id; see :meth:`TaskQueue.enqueue`.

        All keywords are the task's own: it may have a parameter named ``eta`` or ``context``.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(lambda: self._enqueuer.enqueue(func, *args, **kwargs))

    def enqueue_many(self, calls: Iterable[Callable[[], Any]]) -> list[TaskId[Any]]:
        """Stores many calls, all or none, and returns their ids in order; see :meth:`TaskQueue.enqueue_many`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        calls = list(calls)  # here: a generator may depend on its thread, and may take its time
        return self._portal.call(lambda: self._enqueuer.enqueue_many(calls))


class SyncTaskQueue(SyncResults, SyncFollowing, SyncLaneOperations, SyncOperations):
    """A :class:`TaskQueue` for scripts and other code without an event loop.

    It owns one private event loop in one background thread, which the first call starts, and may
    be shared by threads. Leaving it unclosed does not hold up the exit of the interpreter.

    Args:
        backend: As for :class:`TaskQueue`.
        serializer: As for :class:`TaskQueue`.
        default_result_timeout: As for :class:`TaskQueue`, in seconds.
        max_attempts: As for :class:`TaskQueue`.
        extensions: As for :class:`TaskQueue`.
    """

    _queue: TaskQueue
    _portal: Portal

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self._queue = TaskQueue(
            backend,
            serializer,
            default_result_timeout=default_result_timeout,
            max_attempts=max_attempts,
            extensions=extensions,
        )
        self._portal = Portal()

    @classmethod
    def _around(cls, queue: TaskQueue, portal: Portal) -> Self:
        """Returns a sync queue for a queue that is there already, and for the loop that it works in."""
        made = cls.__new__(cls)
        made._queue, made._portal = queue, portal
        return made

    def __enter__(self) -> Self:
        """Connects."""
        self._portal.call(self._queue._connect)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Lets go of the backend and ends the background thread. Safe to call at any time.

        A call that waits in another thread ends with a ``BackendError``. A call that comes later
        connects again.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        self._portal.close(self._queue.close)

    @overload
    def enqueue[T](
        self, func: AsyncCallable[T], /, *args: Any, eta: Eta, context: Context = None, **kwargs: Any
    ) -> TaskId[T]: ...
    @overload
    def enqueue[T](self, func: AsyncCallable[T], /, *args: Any, context: Context, **kwargs: Any) -> TaskId[T]: ...
    @overload
    def enqueue[T](
        self, func: AnyCallable[T], /, *args: Any, eta: Eta, context: Context = None, **kwargs: Any
    ) -> TaskId[T]: ...
    @overload
    def enqueue[T](self, func: AnyCallable[T], /, *args: Any, context: Context, **kwargs: Any) -> TaskId[T]: ...
    @overload
    def enqueue(
        self, func: str, /, *args: Any, eta: Eta = None, context: Context = None, **kwargs: Any
    ) -> TaskId[Any]: ...
    @overload
    def enqueue[**P, T](self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    @overload
    def enqueue[**P, T](self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    def enqueue(  # type: ignore[misc]  # P.kwargs may hold an eta of another type
        self, func: Callable[..., Any] | str, /, *args: Any, eta: Eta = None, context: Context = None, **kwargs: Any
    ) -> TaskId[Any]:
        """Stores a call of ``func`` and returns its id; see :meth:`TaskQueue.enqueue`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._plain(eta, context).enqueue(func, *args, **kwargs)

    def enqueue_many(
        self, calls: Iterable[Callable[[], Any]], *, eta: Eta = None, context: Context = None
    ) -> list[TaskId[Any]]:
        """Stores many calls, all or none; see :meth:`TaskQueue.enqueue_many`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._plain(eta, context).enqueue_many(calls)

    def _plain(self, eta: Eta, context: Context) -> SyncEnqueuer:
        return SyncEnqueuer(self._portal, Enqueuer(self._queue, self._queue._said(eta, context)))

    def options(
        self,
        *,
        eta: Eta = None,
        context: Context = None,
        max_attempts: int | None = None,
        queue: str | None = None,
        priority: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        expires: datetime | timedelta | None = None,
        unique: UniqueKey | None = None,
        on_failure: OnFailure | None = None,
    ) -> SyncEnqueuer:
        """Returns an enqueuer: ``queue.options(eta=...).enqueue(func, 1, b=2)``; see :meth:`TaskQueue.options`.

        Raises:
            TypeError: As :meth:`TaskQueue.options`.
            ValueError: As :meth:`TaskQueue.options`.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return SyncEnqueuer(self._portal, self._queue.options(**given))
