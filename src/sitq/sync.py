"""The same queue for code that has no event loop."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Self, overload

from sitq import _forks
from sitq._checks import refuse_running_loop
from sitq._operations import SyncOperations
from sitq.backends.base import Backend
from sitq.errors import BackendError
from sitq.models import Result, TaskId
from sitq.queue import AnyCallable, AsyncCallable, Context, Eta, TaskQueue
from sitq.serializers.base import Serializer


class SyncTaskQueue(SyncOperations):
    """A :class:`TaskQueue` for scripts and other code without an event loop.

    It owns one private event loop in one background thread, which the first call starts, and may
    be shared by threads. Leaving it unclosed does not hold up the exit of the interpreter.

    Args:
        backend: As for :class:`TaskQueue`.
        serializer: As for :class:`TaskQueue`.
        default_result_timeout: As for :class:`TaskQueue`, in seconds.
        max_attempts: As for :class:`TaskQueue`.
    """

    _queue: TaskQueue

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | None = None,
        max_attempts: int = 5,
    ) -> None:
        self._queue = TaskQueue(
            backend, serializer, default_result_timeout=default_result_timeout, max_attempts=max_attempts
        )
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        self._calls: dict[concurrent.futures.Future[Any], asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _forks.begin_anew_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        # The thread stayed in the parent. Its loop is kept, or its end would complain of not being closed.
        self._parents_loop = self._loop
        self._loop = self._thread = None
        self._calls = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        """Connects."""
        self._call(self._queue._connect)
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
        refuse_running_loop()
        if sys.is_finalizing():
            return  # the thread runs no more, and so does the connection's
        _forks.check_process()
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            try:
                ended = asyncio.run_coroutine_threadsafe(self._end(), loop)
            finally:
                self._loop = self._thread = None
            ended.result()
            thread.join()

    async def _end(self) -> None:
        # The calls only: what the backend has under way ends by itself.
        calls = [*self._calls.values()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        try:
            await self._queue.close()
        finally:
            # Not by whoever waits for this: that one may be interrupted.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.stop)

    def _call[T](self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        refuse_running_loop()
        _forks.check_process()
        if sys.is_finalizing():
            raise BackendError("the interpreter is about to exit: it runs no thread any more")
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            with self._lock:
                loop = self._loop or self._start_loop()
                try:
                    loop.call_soon_threadsafe(self._begin, function, outcome)
                except RuntimeError:  # closed by a signal handler that came between
                    raise BackendError("the SyncTaskQueue was closed while this call began") from None
            return outcome.result()
        except concurrent.futures.CancelledError:
            raise BackendError("the SyncTaskQueue was closed while this call waited") from None
        except BaseException:  # a KeyboardInterrupt, as soon as the call may have begun: nobody waits for it any more
            if (portal := self._loop) is not None:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    portal.call_soon_threadsafe(self._cancel, outcome)
            raise

    def _begin(self, function: Callable[[], Coroutine[Any, Any, Any]], outcome: concurrent.futures.Future[Any]) -> None:
        # run_coroutine_threadsafe() would do, and takes a turn of the loop more on the way back.
        call = asyncio.Task(_run(function, outcome), loop=asyncio.get_running_loop(), eager_start=True)
        self._calls[outcome] = call
        outcome.add_done_callback(self._calls.pop)

    def _cancel(self, outcome: concurrent.futures.Future[Any]) -> None:
        if outcome in self._calls:
            self._calls[outcome].cancel()

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        # A daemon: an unclosed queue must not keep the interpreter from exiting.
        thread = threading.Thread(target=_serve, args=(loop,), name="sitq-sync", daemon=True)
        try:
            thread.start()
        except BaseException:  # no more threads, or the interpreter is about to exit
            loop.close()
            raise
        if self._loop is not None:  # a signal handler was faster
            _stop_loop(loop, thread)
            return self._loop
        self._loop, self._thread = loop, thread
        return loop

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
        return self._call(lambda: self._queue.enqueue(func, *args, eta=eta, context=context, **kwargs))

    def enqueue_many(
        self, calls: Iterable[Callable[[], Any]], *, eta: Eta = None, context: Context = None
    ) -> list[TaskId[Any]]:
        """Stores many calls, all or none; see :meth:`TaskQueue.enqueue_many`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        calls = list(calls)  # here: a generator may depend on its thread, and may take its time
        return self._call(lambda: self._queue.enqueue_many(calls, eta=eta, context=context))

    @overload
    def get_result[T](self, task_id: TaskId[T], timeout: float | None = None) -> Result[T] | None: ...
    @overload
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None: ...
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None:
        """Waits for a task and returns its result; see :meth:`TaskQueue.get_result`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._call(lambda: self._queue.get_result(task_id, timeout))


async def _run[T](function: Callable[[], Coroutine[Any, Any, T]], outcome: concurrent.futures.Future[T]) -> None:
    # What a payload raises, a SystemExit for instance, must not end the loop.
    try:
        outcome.set_result(await function())
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except BaseException as error:
        outcome.set_exception(error)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop_loop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
