"""A portal: threads without an event loop call coroutine functions in one that runs in another thread."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from sitq import _forks
from sitq._checks import refuse_running_loop
from sitq.errors import BackendError

type Function[T] = Callable[[], Coroutine[Any, Any, T]]


class Portal:
    """Calls coroutine functions in an event loop, for any number of threads, and waits for what they return.

    Args:
        loop: A loop that runs in another thread and that somebody else ends; :meth:`close` does
            nothing then. ``None`` means a loop of its own in a daemon thread, which the first call
            starts. The child of a fork has a loop of its own in both cases, because threads stay
            in the parent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._calls: dict[concurrent.futures.Future[Any], asyncio.Task[None]] = {}
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        _forks.begin_anew_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        # The parent's loop is kept: when it is freed, it would complain of not being closed.
        self._parents_loop = self._loop
        self._loop = self._thread = None
        self._calls = {}
        self._lock = threading.RLock()

    def call[T](self, function: Function[T]) -> T:
        """Runs ``function`` in the loop and returns what it returns, or raises what it raises.

        If the waiting thread is interrupted, what runs in the loop is cancelled.

        Raises:
            RuntimeError: An event loop runs in this thread.
            BackendError: The portal was closed meanwhile, or the interpreter is about to exit.
        """
        refuse_running_loop()
        _forks.check_process()
        if sys.is_finalizing():
            raise BackendError("the interpreter is about to exit: it runs no thread any more")
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            with self._lock:
                loop = self._loop or self._start()
                try:
                    loop.call_soon_threadsafe(self._begin, function, outcome)
                except RuntimeError:  # closed by a signal handler that came between
                    raise BackendError("the SyncTaskQueue was closed while this call began") from None
            return outcome.result()
        except concurrent.futures.CancelledError:
            raise BackendError("the SyncTaskQueue was closed while this call waited") from None
        except BaseException:
            # A KeyboardInterrupt, for example. The call may have begun, and nobody waits for it any more.
            if (running := self._loop) is not None:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    running.call_soon_threadsafe(self._cancel, outcome)
            raise

    def close(self, last: Function[None]) -> None:
        """Ends the calls that wait, runs ``last`` in the loop, and ends the loop and its thread.

        Safe to call at any time and from any thread. Does nothing if no call has started a loop, or
        if the loop is somebody else's. A call that comes later starts a new one.

        Raises:
            RuntimeError: An event loop runs in this thread.
            Exception: What ``last`` raised; the thread has ended all the same.
        """
        refuse_running_loop()
        if sys.is_finalizing():
            return  # the interpreter has stopped the thread
        _forks.check_process()
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            try:
                ended = asyncio.run_coroutine_threadsafe(self._end(last), loop)
            finally:
                self._loop = self._thread = None
            concurrent.futures.wait((ended,))
            thread.join()
            ended.result()

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        # A daemon: a portal that nobody closes must not keep the interpreter from exiting.
        thread = threading.Thread(target=_serve, args=(loop,), name="sitq-sync", daemon=True)
        try:
            thread.start()
        except BaseException:  # no more threads, or the interpreter is about to exit
            loop.close()
            raise
        if self._loop is not None:  # a signal handler has called meanwhile and started one
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            return self._loop
        self._loop, self._thread = loop, thread
        return loop

    # What follows runs in the loop.

    def _begin(self, function: Function[Any], outcome: concurrent.futures.Future[Any]) -> None:
        # run_coroutine_threadsafe() would do, but takes one more turn of the loop on the way back.
        call = asyncio.Task(_run(function, outcome), loop=asyncio.get_running_loop(), eager_start=True)
        self._calls[outcome] = call
        outcome.add_done_callback(self._calls.pop)

    def _cancel(self, outcome: concurrent.futures.Future[Any]) -> None:
        if outcome in self._calls:
            self._calls[outcome].cancel()

    async def _end(self, last: Function[None]) -> None:
        # Only the calls are cancelled: what the backend has under way ends by itself.
        calls = [*self._calls.values()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        try:
            await last()
        finally:
            # Here, and not in the thread that waits for this: that one may be interrupted.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.stop)


async def _run[T](function: Function[T], outcome: concurrent.futures.Future[T]) -> None:
    # Whatever is raised goes to the caller: a SystemExit of a payload, for example, must not end the loop.
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
