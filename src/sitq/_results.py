"""Results, as a queue offers them: of one task, of many together, and of many as they come."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, overload

from sitq._checks import check_seconds, refuse_running_loop
from sitq._portal import Portal
from sitq._waiting import Wait, until_ended
from sitq.backends.base import Backend
from sitq.errors import SerializationError
from sitq.models import FINISHED, Result, TaskId
from sitq.serializers.base import Serializer

TURN_SECONDS = 0.002
"""How long calls are serialized, or results loaded, before the event loop gets a turn."""


class Results:
    """Mixed into ``TaskQueue``."""

    _backend: Backend
    _serializer: Serializer
    _default_result_timeout: float | None
    _connected: bool
    if TYPE_CHECKING:

        async def _connect(self) -> None: ...

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
        timeout = self._timeout(timeout)
        if not self._connected:
            await self._connect()
        found = await self._backend.get_result(task_id)
        if found is not None and found.status not in FINISHED:
            found = await until_ended(self._backend, task_id, timeout) if timeout != 0 else None
        return None if found is None else self._loaded(found)

    @overload
    async def get_results[T](
        self, task_ids: Iterable[TaskId[T]], timeout: float | None = None
    ) -> list[Result[T] | None]: ...
    @overload
    async def get_results(self, task_ids: Iterable[str], timeout: float | None = None) -> list[Result[Any] | None]: ...
    async def get_results(self, task_ids: Iterable[str], timeout: float | None = None) -> list[Result[Any] | None]:
        """Waits until many tasks are finished and returns their results, in the order of the ids.

        It costs far less than as many calls of :meth:`get_result`: the tasks are looked at together, and
        watched together.

        Args:
            task_ids: What ``enqueue_many`` returned, or any other ids. One that is given twice has its
                result, the same object, in both places.
            timeout: Seconds to wait for all of them; ``0`` asks once. ``None`` takes
                ``default_result_timeout``; if that is ``None`` too, it waits until all are finished.

        Returns:
            A result for each id; ``None`` if it is not there in time, or if there is no such task, which
            is not waited for.

        Raises:
            TypeError: An argument is of the wrong type; a single id belongs to :meth:`get_result`.
            ValueError: ``timeout`` is negative or not finite.
            SerializationError: A value cannot be loaded here; the message names the task. It is raised
                at once; :meth:`as_completed` can go on with the others.
            BackendError: The backend could not be asked.
        """
        ids = check_many(task_ids)
        wait = Wait(self._backend, ids, self._timeout(timeout))
        if ids and not self._connected:
            await self._connect()
        found: dict[str, Result[Any]] = {}
        try:
            while results := await wait.ended():
                turn = time.monotonic() + TURN_SECONDS
                for result in results:
                    found[result.task_id] = self._loaded(result)
                    if time.monotonic() > turn:
                        await asyncio.sleep(0)
                        turn = time.monotonic() + TURN_SECONDS
        finally:
            wait.leave()
        return [found.get(task_id) for task_id in ids]

    @overload
    def as_completed[T](self, task_ids: Iterable[TaskId[T]], timeout: float | None = None) -> "Completed[T]": ...
    @overload
    def as_completed(self, task_ids: Iterable[str], timeout: float | None = None) -> "Completed[Any]": ...
    def as_completed(self, task_ids: Iterable[str], timeout: float | None = None) -> "Completed[Any]":
        """Returns an async iterator over the results of many tasks, each as soon as it is there.

        ``async for result in queue.as_completed(ids): ...``; ``result.task_id`` says whose it is. Which
        of those that are finished already comes first is not promised. The loop may be left at any time.

        Args:
            task_ids: What ``enqueue_many`` returned, or any other ids. One that is given twice has one
                result, and one that is unknown none: it is left out, and not waited for.
            timeout: Seconds from this call on; ``0`` gives what is finished by now. ``None`` takes
                ``default_result_timeout``; if that is ``None`` too, it waits until all are finished.

        Raises:
            TypeError: An argument is of the wrong type; a single id belongs to :meth:`get_result`.
            ValueError: ``timeout`` is negative or not finite.
            TimeoutError: By the iterator: a task is not finished in time. What is, comes before.
            SerializationError: By the iterator: a value cannot be loaded here. The iterator can be asked
                for the next one all the same.
            BackendError: By the iterator: the backend could not be asked. Asked again, it tries again.
        """
        return Completed(self, Wait(self._backend, check_many(task_ids), self._timeout(timeout)))

    def _timeout(self, timeout: float | None) -> float | None:
        return self._default_result_timeout if timeout is None else check_seconds("timeout", timeout)

    def _loaded(self, found: Result[bytes]) -> Result[Any]:
        if found.value is None:
            return found
        try:
            return replace(found, value=self._serializer.loads(found.value))
        except Exception as error:
            raise SerializationError(
                f"the result of task {found.task_id} cannot be loaded here: {type(error).__name__}: {error}"
            ) from error


class Completed[T]:
    """What :meth:`TaskQueue.as_completed` gives: an async iterator, of which several consumers may take.

    It watches the tasks until all have ended, it is closed or nobody has it any more, as when a loop over it is left.
    """

    def __init__(self, queue: Results, wait: Wait) -> None:
        self._queue = queue
        self._wait = wait
        self._ready: deque[Result[bytes]] = deque()
        self._lock = asyncio.Lock()
        self._is_connected = False
        self._turn = 0.0

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._wait.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result[T]:
        if self._ready and time.monotonic() > self._turn:
            await asyncio.sleep(0)
            self._turn = time.monotonic() + TURN_SECONDS
        while (result := self._take()) is None:
            if not await self._fill():
                raise StopAsyncIteration
        return self._queue._loaded(result)

    async def aclose(self) -> None:
        """Waits for nothing any more: the iterator is at its end."""
        self._ready.clear()
        self._wait.give_up()

    def _take(self) -> Result[bytes] | None:
        """Returns a result that is there already, its value not loaded yet; may be called in any thread."""
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    async def _fill(self) -> bool:
        """Waits until there is something to take; returns whether there will ever be.

        Raises:
            TimeoutError: The time is over.
            BackendError: The backend could not be asked.
        """
        async with self._lock:  # one looks, and several may wait for what is found
            if self._ready:
                return True
            if not self._is_connected:
                if not self._queue._connected:
                    await self._queue._connect()
                self._is_connected = True
            if (results := await self._wait.ended()) is None:
                raise TimeoutError(f"{self._wait.left} of the tasks were not finished in time")
            self._ready.extend(results)
            self._turn = time.monotonic() + TURN_SECONDS
            return bool(results)


class SyncResults:
    """Mixed into ``SyncTaskQueue``."""

    _queue: Results
    _portal: Portal

    @overload
    def get_result[T](self, task_id: TaskId[T], timeout: float | None = None) -> Result[T] | None: ...
    @overload
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None: ...
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None:
        """Waits for a task and returns its result; see :meth:`TaskQueue.get_result`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(lambda: self._queue.get_result(task_id, timeout))

    @overload
    def get_results[T](self, task_ids: Iterable[TaskId[T]], timeout: float | None = None) -> list[Result[T] | None]: ...
    @overload
    def get_results(self, task_ids: Iterable[str], timeout: float | None = None) -> list[Result[Any] | None]: ...
    def get_results(self, task_ids: Iterable[str], timeout: float | None = None) -> list[Result[Any] | None]:
        """Waits for many tasks and returns their results in order; see :meth:`TaskQueue.get_results`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        ids = check_many(task_ids)  # here: a generator may depend on its thread
        return self._portal.call(lambda: self._queue.get_results(ids, timeout))

    @overload
    def as_completed[T](self, task_ids: Iterable[TaskId[T]], timeout: float | None = None) -> "SyncCompleted[T]": ...
    @overload
    def as_completed(self, task_ids: Iterable[str], timeout: float | None = None) -> "SyncCompleted[Any]": ...
    def as_completed(self, task_ids: Iterable[str], timeout: float | None = None) -> "SyncCompleted[Any]":
        """Returns an iterator over the results of many tasks, each as soon as it is there.

        ``for result in queue.as_completed(ids): ...``; see :meth:`TaskQueue.as_completed`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        return SyncCompleted(self._portal, self._queue.as_completed(task_ids, timeout))


class SyncCompleted[T]:
    """What :meth:`SyncTaskQueue.as_completed` gives: an iterator, of which several threads may take."""

    def __init__(self, portal: Portal, completed: Completed[T]) -> None:
        self._portal = portal
        self._completed = completed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result[T]:
        refuse_running_loop()
        completed = self._completed
        # What is there already is taken without the loop, which would make each result eight times as dear.
        while (result := completed._take()) is None:
            if not self._portal.call(completed._fill):
                raise StopIteration
        return completed._queue._loaded(result)

    def close(self) -> None:
        """Waits for nothing any more: the iterator is at its end."""
        self._portal.call(self._completed.aclose)


def check_many(task_ids: Iterable[str]) -> Sequence[str]:
    """Returns ids of tasks.

    Raises:
        TypeError: There is only one, or one of them is not a ``str``.
    """
    if isinstance(task_ids, str):
        raise TypeError("task_ids must be several ids, not a str: write [task_id], or use get_result")
    ids = [*task_ids]
    for task_id in ids:
        if not isinstance(task_id, str):
            raise TypeError(f"a task id must be a str, not {type(task_id).__name__}")
    return ids
