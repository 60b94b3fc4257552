"""The producer's face: store tasks, wait for results."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Self, overload

from sitq._checks import check_count, check_seconds
from sitq._enqueuer import Context, Enqueuer, Eta, TaskOptions, check_options
from sitq._operations import Operations
from sitq.backends.base import Backend, check_backend
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import SerializationError
from sitq.models import FINISHED, NewTask, Result, TaskId, new_task_id
from sitq.serializers import CloudpickleSerializer, Serializer
from sitq.serializers.base import check_serializer
from sitq.serializers.calls import Call, make_call
from sitq.serializers.envelope import dump_call

__all__ = ["Enqueuer", "TaskQueue"]

TURN_SECONDS = 0.002
"""How long ``enqueue_many`` serializes calls before it lets the event loop turn."""

QUERY_AGAIN_SECONDS = 5.0
"""How often a waiting ``get_result`` asks the backend, in case that its watch fails. Usually it is
woken when the result is written."""

type AsyncCallable[T] = Callable[..., Awaitable[T]]
type AnyCallable[T] = Callable[..., T]


class TaskQueue(Operations):
    """Stores tasks and gives their results, in async code.

    Usable with ``async with`` or without: the first call connects, and :meth:`close` closes.
    Several queues and workers may share one backend object.

    Args:
        backend: Where the tasks are; ``None`` means ``SQLiteBackend("sitq.db")``.
        serializer: Turns calls and results into bytes; the worker needs the same one.
        default_result_timeout: Seconds that :meth:`get_result` waits if it is not given a
            timeout; ``None`` waits until the task is finished.
        max_attempts: How often a task may be started before it is failed for the death of its
            workers, at least 1. A task that raises is never tried again, so this is not a number of
            retries. The last attempt runs alone in its worker: with 1, every task does, and the
            worker's other slots stay empty.

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
        max_attempts: int = 5,
    ) -> None:
        self._default_result_timeout = (
            None if default_result_timeout is None else check_seconds("default_result_timeout", default_result_timeout)
        )
        self._defaults = TaskOptions(None, None, {}, check_count("max_attempts", max_attempts))
        self._backend = check_backend(SQLiteBackend() if backend is None else backend)
        self._serializer = check_serializer(CloudpickleSerializer() if serializer is None else serializer)
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
        return await self._enqueue(func, args, kwargs, self._options(eta, context))

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
        return await self._enqueue_many(calls, self._options(eta, context))

    def options(self, *, eta: Eta = None, context: Context = None, max_attempts: int | None = None) -> Enqueuer:
        """Returns an enqueuer: ``queue.options(eta=...).enqueue(func, 1, b=2)``.

        Its ``enqueue`` and ``enqueue_many`` take no options, so that a type checker checks the
        arguments of the task, and a task may have parameters of any name. It may be kept and used
        any number of times. The options are checked here, once.

        Args:
            eta: When the tasks become due; as in :meth:`enqueue`. A ``timedelta`` counts from each
                enqueue.
            context: The context of each task; as in :meth:`enqueue`. It is copied here.
            max_attempts: How often a task may be started; as for the queue. ``None`` means the
                queue's own number.

        Raises:
            TypeError: An option is of the wrong type, or there is no such option.
            ValueError: ``eta`` is naive or out of range, or ``max_attempts`` is less than 1.
        """
        return Enqueuer(self, self._options(eta, context, max_attempts))

    def _options(self, eta: Eta, context: Context, max_attempts: int | None = None) -> TaskOptions:
        if eta is None and context is None and max_attempts is None:
            return self._defaults
        return check_options(self._defaults, eta, context, max_attempts)

    async def _enqueue(
        self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskId[Any]:
        task = self._new_task(make_call(func, args, kwargs, options.context), options)
        if not self._connected:
            await self._connect()
        standing = await self._backend.enqueue((task,))
        return TaskId(standing[0] if standing else task.task_id)

    async def _enqueue_many(self, calls: Iterable[Callable[[], Any]], options: TaskOptions) -> list[TaskId[Any]]:
        tasks: list[NewTask] = []
        ids: list[TaskId[Any]] = []
        turn = time.monotonic() + TURN_SECONDS
        for call in calls:
            tasks.append(self._new_task(make_call(call, context=options.context), options))
            ids.append(TaskId(tasks[-1].task_id))  # here: those of 40,000 would hold the loop for some 7 ms
            if time.monotonic() > turn:  # by time: what one call takes depends on its arguments
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN_SECONDS
        if tasks:
            if not self._connected:
                await self._connect()
            if standing := await self._backend.enqueue(tasks):
                return [TaskId(task_id) for task_id in standing]
        return ids

    def _new_task(self, call: Call, options: TaskOptions) -> NewTask:
        serializer = self._serializer
        payload = dump_call(serializer, call)
        eta, delay, _, max_attempts = options
        return NewTask(new_task_id(), payload, call.name, serializer.format, eta, max_attempts, delay)

    @overload
    async def get_result[T](self, task_id: TaskId[T], timeout: float | None = None) -> Result[T] | None: ...
    @overload
    async def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None: ...
    async def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None:
        """Waits until a task is finished and returns its result.

        Args:
            task_id: What ``enqueue`` returned.
            timeout: Seconds to wait; ``0`` asks once. ``None`` takes ``default_result_timeout``; if that
                is ``None`` too, it waits until the task is finished.

        Returns:
            The result; ``None`` if it is not there in time, and at once if there is no such task.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: ``timeout`` is negative or not finite.
            SerializationError: The value cannot be loaded here.
            BackendError: The backend could not be asked.
        """
        if not isinstance(task_id, str):
            raise TypeError(f"task_id must be a str, not {type(task_id).__name__}")
        timeout = self._default_result_timeout if timeout is None else check_seconds("timeout", timeout)
        if not self._connected:
            await self._connect()
        found = await self._backend.get_result(task_id)
        if found is not None and found.status not in FINISHED:
            found = await self._wait(task_id, timeout) if timeout != 0 else None
        return None if found is None else self._loaded(found)

    async def _wait(self, task_id: str, timeout: float | None) -> Result[bytes] | None:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (math.inf if timeout is None else timeout)
        with self._backend.watch(changed.set, task_id=task_id):
            while True:
                changed.clear()
                found = await self._backend.get_result(task_id)
                if found is None or found.status in FINISHED:
                    return found
                left = min(QUERY_AGAIN_SECONDS, deadline - loop.time())
                if left <= 0:
                    return None
                timer = loop.call_later(left, changed.set)
                try:
                    await changed.wait()
                finally:
                    timer.cancel()

    def _loaded(self, found: Result[bytes]) -> Result[Any]:
        if found.value is None:
            return found
        try:
            return replace(found, value=self._serializer.loads(found.value))
        except Exception as error:
            raise SerializationError(
                f"the result of task {found.task_id} cannot be loaded here: {type(error).__name__}: {error}"
            ) from error
