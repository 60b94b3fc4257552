"""Threads for plain functions: as few of them are woken as can be."""

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from sitq.executors.base import NoThreadError, Returned
from sitq.executors.forked import end_if_forked, generation
from sitq.models import ReservedTask
from sitq.serializers.calls import Call


class ThreadExecutor:
    """Runs plain functions in threads of the worker's process, one for each slot at most."""

    def start(self, slots: int) -> "CallPool":
        """Makes the pool for one start of a worker; its threads are started as they are needed."""
        return CallPool(ThreadPool(slots, "sitq-worker"))


class CallPool:
    """Runs the calls of tasks in the threads of a pool, each in a copy of its task's context."""

    def __init__(self, threads: "ThreadPool") -> None:
        self._threads = threads

    def submit(self, task: ReservedTask, call: Call) -> asyncio.Future[Returned]:
        """Runs ``call`` in a thread; see :class:`~sitq.executors.base.Pool`."""
        return self._threads.submit(partial(contextvars.copy_context().run, _run, task, call))

    def close(self) -> None:
        """Ends the threads: the idle ones now, the others when their function returns."""
        self._threads.close()


def _run(task: ReservedTask, call: Call) -> Any:
    before = generation()
    try:
        return call.func(*call.args, **call.kwargs)  # type: ignore[operator]  # import paths are resolved by now
    finally:
        end_if_forked(before, task)


class ThreadPool:
    """Runs functions in daemon threads and delivers what they return to one event loop.

    ``ThreadPoolExecutor`` wakes a thread for each function and the loop for each result, which
    costs half of the throughput of small functions. Here a thread that takes a function calls the
    next thread only when more are waiting, and results that come close together wake the loop
    once. The threads are daemons: a function that never returns must not hold up the exit.

    Args:
        size: The largest number of threads; they are started as they are needed.
        name: The prefix of their names.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.Future[Returned], Callable[[], Any]]] = deque()
        self._returned: deque[tuple[asyncio.Future[Returned], Returned]] = deque()
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._called = False  # a thread is on its way to the waiting functions
        self._delivering = False  # the loop is on its way to what returned
        self._closed = False

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Returned]:
        """Runs ``function`` in a thread; the future never raises what it raised.

        Raises:
            NoThreadError: There is no thread, and none can be started; ``function`` will not be run.
        """
        future: asyncio.Future[Returned] = self._loop.create_future()
        self._waiting.append((future, function))
        try:
            self._call_thread()
        except Exception as error:
            self._waiting.clear()  # without a thread there is nothing else in it
            raise NoThreadError(f"{type(error).__name__}: {error}") from error
        return future

    def close(self) -> None:
        """Ends the threads: the idle ones now, the others when their function returns."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._calls.put(None)
            self._idle = 0

    def _call_thread(self) -> None:
        with self._lock:
            if self._called:
                return
            if self._idle:
                self._idle -= 1
                self._called = True
                self._calls.put(None)
            elif self._threads < self._size:
                self._threads += 1
                self._called = True
                try:
                    threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
                except Exception:  # a MemoryError as well
                    self._called = False
                    self._threads -= 1
                    if not self._threads:  # else one of the others comes to what waits when it is free
                        raise

    def _work(self) -> None:
        while True:
            with self._lock:
                self._called = False
            while self._waiting and not self._closed:
                try:
                    future, function = self._waiting.popleft()
                except IndexError:  # another thread was faster
                    break
                if self._waiting:
                    self._call_thread()
                self._run(future, function)
                del future, function
            with self._lock:
                if self._closed:
                    return
                if self._waiting:
                    continue
                self._idle += 1
            self._calls.get()

    def _run(self, future: asyncio.Future[Returned], function: Callable[[], Any]) -> None:
        if future.cancelled():
            return
        try:
            returned: Returned = function(), None
        except BaseException as error:
            returned = None, error
        # In this order, and _deliver() in the other: what it does not find, it is called for again.
        self._returned.append((future, returned))
        if self._delivering:
            return
        self._delivering = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        while self._returned:
            future, returned = self._returned.popleft()
            if not future.done():
                future.set_result(returned)
