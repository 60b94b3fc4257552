"""The producer's face: store tasks, wait for results."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self, overload

from sitq._checks import check_count, check_seconds
from sitq._enqueuer import Enqueuer, Said, TaskMaker
from sitq._following import Following
from sitq._lanes import LaneOperations
from sitq._operations import Operations
from sitq._options import Context, Eta, OnFailure, UniqueKey
from sitq._results import TURN_SECONDS, Completed, Results
from sitq.backends.base import Backend, check_backend
from sitq.backends.sqlite import SQLiteBackend
from sitq.extensions.base import Extension, check_extensions
from sitq.extensions.retries import RetryPolicy
from sitq.models import MAX_ATTEMPTS, NewTask, TaskId
from sitq.serializers import CloudpickleSerializer, Serializer
from sitq.serializers.base import check_serializer

__all__ = ["Completed", "Enqueuer", "TaskQueue"]

type AsyncCallable[T] = Callable[..., Awaitable[T]]
type AnyCallable[T] = Callable[..., T]


class TaskQueue(Results, Following, LaneOperations, Operations):
    """Stores tasks and gives their results, in async code.

    Usable with ``async with`` or without: the first call connects, and :meth:`close` closes.
    Several queues and workers may share one backend object.

    Args:
        backend: Where the tasks are; ``None`` means ``SQLiteBackend("sitq.db")``.
        serializer: Turns calls and results into bytes; the worker needs the same one.
        default_result_timeout: Seconds that :meth:`get_result`, :meth:`get_results` and
            :meth:`as_completed` wait if they are not given a timeout; ``None`` waits until the tasks are
            finished.
        max_attempts: How often a task may be started before it is failed for the death of its
            workers, at least 1. This is not a number of retries: a raise is no death. The last attempt
            runs alone in its worker: with 1, every task does, and the worker's other slots stay empty.
        extensions: See each task before it is enqueued; see ``sitq.extensions``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self._default_result_timeout = (
            None if default_result_timeout is None else check_seconds("default_result_timeout", default_result_timeout)
        )
        attempts = check_count("max_attempts", max_attempts)
        self._backend = check_backend(SQLiteBackend() if backend is None else backend)
        self._serializer = check_serializer(CloudpickleSerializer() if serializer is None else serializer)
        self._maker = TaskMaker(self._backend, self._serializer, attempts, check_extensions(extensions))
        self._connected = False

    async def __aenter__(self) -> Self:
        """Connects."""
        if not self._connected:
            await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes."""
        await self.close()

    async def close(self) -> None:
        """Lets go of the backend, which closes after its last user. Safe to call at any time.

        A call after it connects again.
        """
        if self._connected:
            self._connected = False
            await self._backend.close()

    async def _connect(self) -> None:
        await self._backend.connect()
        if self._connected:
            await self._backend.close()  # another call was faster: one of them counts as a user
        self._connected = True

    # A task's own arguments are checked only if neither eta nor context is given: no keyword of ours
    # may stand between P.args and P.kwargs (PEP 612).
    @overload
    async def enqueue[T](
        self, func: AsyncCallable[T], /, *args: Any, eta: Eta, context: Context = None, **kwargs: Any
    ) -> TaskId[T]: ...
    @overload
    async def enqueue[T](self, func: AsyncCallable[T], /, *args: Any, context: Context, **kwargs: Any) -> TaskId[T]: ...
    @overload
    async def enqueue[T](
        self, func: AnyCallable[T], /, *args: Any, eta: Eta, context: Context = None, **kwargs: Any
    ) -> TaskId[T]: ...
    @overload
    async def enqueue[T](self, func: AnyCallable[T], /, *args: Any, context: Context, **kwargs: Any) -> TaskId[T]: ...
    @overload
    async def enqueue(
        self, func: str, /, *args: Any, eta: Eta = None, context: Context = None, **kwargs: Any
    ) -> TaskId[Any]: ...
    @overload
    async def enqueue[**P, T](
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[T]: ...
    @overload
    async def enqueue[**P, T](self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    async def enqueue(  # type: ignore[misc]  # P.kwargs may hold an eta of another type
        self, func: Callable[..., Any] | str, /, *args: Any, eta: Eta = None, context: Context = None, **kwargs: Any
    ) -> TaskId[Any]:
        """Stores a call of ``func`` and returns its id.

        When it returns, the task survives a crash of every process and, by default, a power cut.

        Args:
            func: A callable that the serializer can carry, or an import path
                ``"package.module:qualname"``, of which only the form is checked here.
            *args: The arguments of the call.
            eta: When the task becomes due: a timezone-aware datetime, or a ``timedelta`` from now by
                the store's clock. A past one means now.
            context: A mapping of the caller's own, which the running task finds in
                ``current_task().context``.
            **kwargs: The keyword arguments of the call. For one that is named ``eta`` or ``context``
                use :meth:`options`.

        Raises:
            TypeError: ``func`` is not callable or does not take these arguments, or ``eta`` or
                ``context`` is of the wrong type.
            ValueError: ``eta`` is naive or out of range, an import path has the wrong form, or the
                call is larger than the backend allows.
            SerializationError: An argument cannot be serialized; the message names it.
            BackendError: The backend did not take the task.
        """
        return await self._enqueue(func, args, kwargs, self._said(eta, context))

    async def enqueue_many(
        self, calls: Iterable[Callable[[], Any]], *, eta: Eta = None, context: Context = None
    ) -> list[TaskId[Any]]:
        """Stores many calls in one transaction, all or none, and returns their ids in order.

        Args:
            calls: Callables that need no more arguments, usually ``functools.partial``s, which
                are stored as function and arguments.
            eta: When they become due; as in :meth:`enqueue`.
            context: The context of each of them; as in :meth:`enqueue`.

        Raises:
            TypeError: One of ``calls`` is not callable, or needs more arguments; otherwise as
                :meth:`enqueue`.
            ValueError: As :meth:`enqueue`.
            SerializationError: As :meth:`enqueue`.
            BackendError: The backend did not take the tasks.
        """
        return await self._enqueue_many(calls, self._said(eta, context))

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
    ) -> Enqueuer:
        """Returns an enqueuer: ``queue.options(eta=...).enqueue(func, 1, b=2)``.

        Its ``enqueue`` and ``enqueue_many`` take no options, so that a type checker checks the
        arguments of the task, and a task may have parameters of any name. It may be kept and used
        any number of times. The options are checked here, once. ``None`` says nothing: what is declared with
        the function by :func:`task` holds then, or else the default.

        Args:
            eta: When the tasks become due; as in :meth:`enqueue`. A ``timedelta`` counts from each
                enqueue.
            context: The context of each task; as in :meth:`enqueue`. It is copied here.
            max_attempts: How often a task may be started; as for the queue, whose own number holds otherwise.
            queue: The name of its queue, up to 100 printable characters.
            priority: From -100 to 100; higher is sooner.
            retry: The policy by which a task is tried again if it raises; see :class:`Backoff`.
            timeout: Seconds that one run may take.
            expires: A moment, or a ``timedelta`` after it was enqueued: a task that was not started by then
                is cancelled instead.
            unique: A key, ``Unique(…)``, or a function of the task's arguments that returns one.
            on_failure: A function or an import path, stored as a task when this one fails for good; called with
                this one's id, its name and its error text.

        Raises:
            TypeError: An option is of the wrong type, or there is no such option.
            ValueError: An option is out of range, a moment is naive, or the task would expire before it is due.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return Enqueuer(self, self._maker.said(**given))

    def _said(self, eta: Eta, context: Context) -> Said:
        if eta is None and context is None:
            return self._maker.nothing_said
        return self._maker.said(eta=eta, context=context)

    async def _enqueue(
        self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any], said: Said
    ) -> TaskId[Any]:
        task = self._maker.make(func, args, kwargs, said)
        if not self._connected:
            await self._connect()
        standing = await self._backend.enqueue((task,))
        return TaskId(standing[0] if standing else task.task_id)

    async def _enqueue_many(self, calls: Iterable[Callable[[], Any]], said: Said) -> list[TaskId[Any]]:
        tasks: list[NewTask] = []
        ids: list[TaskId[Any]] = []
        turn = time.monotonic() + TURN_SECONDS
        for call in calls:
            tasks.append(self._maker.make(call, (), {}, said))
            ids.append(TaskId(tasks[-1].task_id))  # here: those of 40,000 would hold the loop for some 7 ms
            if time.monotonic() > turn:  # by time: what one call takes depends on its arguments
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN_SECONDS
        if not tasks:
            return ids
        if not self._connected:
            await self._connect()
        standing = await self._backend.enqueue(tasks)
        return [*map(TaskId[Any], standing)] if standing else ids
