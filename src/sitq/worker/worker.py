"""The worker's face: start it, stop it, run it as a process, drain a queue with it."""

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from sitq._checks import check_count, check_positive_seconds, check_seconds
from sitq._delays import Delays
from sitq._lanes import select_queues
from sitq._logs import SafeLogger
from sitq._signals import stop_signals
from sitq.backends.base import Backend, check_backend
from sitq.backends.sqlite import SQLiteBackend
from sitq.executors import Executor, ThreadExecutor
from sitq.extensions.base import Extension, check_extensions
from sitq.serializers import CloudpickleSerializer, Serializer
from sitq.serializers.base import check_serializer
from sitq.worker.dispatcher import Dispatcher
from sitq.worker.extending import EnteredBeside
from sitq.worker.held import HeldTasks
from sitq.worker.settings import Settings
from sitq.worker.standard import with_standard

logger = SafeLogger("sitq.worker")

SAME_SIGNAL_SECONDS = 0.02
"""Within this, a signal that comes twice is one: Ctrl-C reaches a whole process group, and whoever
started the worker may hand it on; timeout(1) signals both the process and its group."""

FIRST_REPORT_SECONDS = 5.0
"""How long stop() waits before it says for what."""

REPORT_CHARACTERS = 400
"""How much of the ids and names one such line holds."""


class Worker:
    """Runs the tasks of a backend.

    Embedded, it is an async context manager and leaves the host's signal handlers alone; as a
    process of its own, :meth:`run` returns after SIGTERM or SIGINT with the work in hand finished.

    Args:
        backend: Where the tasks are; ``None`` means ``SQLiteBackend("sitq.db")``.
        serializer: Must be able to load what the queue's one writes.
        max_concurrency: How many tasks are run at the same time, and how many threads plain
            functions get.
        poll_interval: Seconds until the worker tries to reserve again if nothing has woken it: the
            safety net only.
        batch_size: The most tasks that one reservation takes; ``None`` means as many as there are
            free slots, which a worker with many slots takes in two halves.
        lease: Seconds after which another worker may take a task that this one no longer renews.
        shutdown_timeout: Seconds that :meth:`stop` waits for running tasks before it cancels them
            and gives them back; ``None`` waits for as long as they take.
        log_exceptions: Whether a task that raised is logged at error, with its exception and the
            traceback (``exc_info``), instead of at warning with the exception's type only. Off
            unless asked for, because messages tend to quote arguments.
        executor: Where plain functions run; ``None`` means in threads of this process.
        extensions: What is put around the runs of tasks and goes on beside them, the first outermost;
            see ``sitq.extensions``. ``Retries``, ``Timeouts`` or ``Cancelling`` take the place of the ones that
            every worker has.
        standard_extensions: Whether the worker has those that every one has. Without them, what tasks declare
            (retries, timeouts, expiry, ``on_failure``) is not observed.
        queues: The names of the queues whose tasks are run, these and no others; the tasks that were
            given none are in the queue ``"default"``. ``None`` means all queues. If one queue is to have
            slots of its own, make a worker for it.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, or ``queues`` is empty or holds what is no name of a queue.
        BackendError: ``queues`` is given, and the backend has no named queues.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        max_concurrency: int = 10,
        poll_interval: float = 1.0,
        batch_size: int | None = None,
        lease: float = 30.0,
        shutdown_timeout: float | None = None,
        log_exceptions: bool = False,
        executor: Executor | None = None,
        extensions: Sequence[Extension] = (),
        standard_extensions: bool = True,
        queues: Sequence[str] | None = None,
    ) -> None:
        slots = check_count("max_concurrency", max_concurrency)
        self._settings = Settings(
            max_concurrency=slots,
            poll_interval=check_positive_seconds("poll_interval", poll_interval),
            batch_size=slots if batch_size is None else check_count("batch_size", batch_size),
            lease=check_positive_seconds("lease", lease),
            shutdown_timeout=(
                None if shutdown_timeout is None else check_seconds("shutdown_timeout", shutdown_timeout)
            ),
            log_exceptions=log_exceptions,
        )
        self._executor = _checked(executor)
        checked = check_extensions(extensions)
        self._extensions = with_standard(checked) if standard_extensions else checked
        self._backend = select_queues(check_backend(SQLiteBackend() if backend is None else backend), queues)
        self._serializer = check_serializer(CloudpickleSerializer() if serializer is None else serializer)
        self._main: asyncio.Task[int] | None = None
        self._started: asyncio.Future[None] | None = None
        self._dispatcher: Dispatcher | None = None
        self._beside: EnteredBeside | None = None
        self._blocks = 0
        self._stopping = False

    async def __aenter__(self) -> Self:
        """Starts the worker."""
        await self.start()
        self._blocks += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops the worker, unless another block still uses it."""
        self._blocks -= 1
        if self._blocks <= 0:
            await self.stop()

    async def start(self) -> None:
        """Returns once the worker is running. Does nothing if it runs already.

        Raises:
            BackendError: The backend cannot be opened; the worker is not running then.
            RuntimeError: The system has no thread or no descriptors for it, or the worker runs in
                another event loop.
        """
        if self._stopping and (main := self._here("start")) is not None:
            await asyncio.wait([main])
        if self._here() is None:
            self._begin(drain=False)
        assert self._started is not None
        try:
            await asyncio.shield(self._started)
        except asyncio.CancelledError:
            # Whoever was starting it will not stop it: __aexit__ does not follow on this.
            self._request_stop()
            if self._main is not None and self._dispatcher is None:
                self._cut_short(self._main)
            raise

    async def stop(self) -> None:
        """Takes no new task, waits for the running ones, and gives back what does not finish.

        Past ``shutdown_timeout``, async tasks are cancelled, and what did not finish is given back
        with its attempt unspent. A plain function cannot be cancelled: its thread goes on, and
        what it returns changes nothing. Does nothing if the worker does not run.

        Being cancelled is a second order: the time of the running tasks is over then.

        Raises:
            RuntimeError: A task of this worker called, for which it would wait for ever; or the
                worker runs in another event loop.
        """
        if self._here("stop") is None:
            await asyncio.sleep(0)  # a run() that was scheduled just before gets its first turn
        if (main := self._main) is not None:
            self._request_stop()
            try:
                await asyncio.wait([main])
            except asyncio.CancelledError:
                if main is self._main:
                    self._cut_short(main)
                raise

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT, or :meth:`stop`; then finishes the work in hand.

        A second signal ends the process at once, by its default action; the same one within 0.02 s
        is the first. If it is not called in the main thread, signals are left alone.

        Raises:
            BackendError: The backend cannot be opened.
            RuntimeError: As for :meth:`start` and :meth:`stop`.
        """
        self._here("run")
        with stop_signals(self._on_signal, same_seconds=SAME_SIGNAL_SECONDS):
            try:
                await self.start()
                if (main := self._main) is not None:
                    await asyncio.wait([main])
                    main.result()  # what ended it, if that was not stop()
            finally:
                await self.stop()

    async def drain(self) -> int:
        """Runs what is due and returns, when nothing is left, the number of tasks run.

        Tasks that become due meanwhile are run too, the ones that tasks enqueue included.

        Raises:
            BackendError: The backend failed; what was run is recorded as far as possible.
            SerializationError: Nothing that was tried could be loaded, because modules are missing
                here: the rest of the queue is left as it is.
            RuntimeError: The worker is running already, or there is no thread for a plain function.
        """
        if self._here("drain") is not None:
            raise RuntimeError("the worker is running: stop() it before you drain() with it")
        main = self._begin(drain=True)
        try:
            return await asyncio.shield(main)
        except asyncio.CancelledError:
            self._request_stop()  # so that what runs is given back
            main.cancel()
            await asyncio.wait([main])
            raise

    def _here(self, waiting: str | None = None) -> asyncio.Task[int] | None:
        """Returns what runs in this event loop.

        Args:
            waiting: The method that is about to wait for its end.

        Raises:
            RuntimeError: It runs in another loop, or waits itself for the task that calls.
        """
        main, dispatcher = self._main, self._dispatcher
        if waiting and dispatcher is not None and dispatcher.runs_caller():
            raise RuntimeError(
                f"{waiting}() was called by a task of the worker itself: it would wait for that task, which waits "
                "for it; leave it to the code that started the worker"
            )
        if main is not None and (loop := main.get_loop()) is not asyncio.get_running_loop():
            if not loop.is_closed():
                raise RuntimeError("the worker runs in another event loop: ask for this in that one")
            self._main = self._dispatcher = None
            self._blocks = 0
            with contextlib.suppress(RuntimeError):  # it wants to wait, and what for goes on without it
                main.get_coro().close()  # type: ignore[union-attr]  # a coroutine, no other awaitable
        return self._main

    def _begin(self, *, drain: bool) -> asyncio.Task[int]:
        self._stopping = False
        self._started = asyncio.get_running_loop().create_future()
        self._main = asyncio.create_task(self._live(self._started, drain=drain))
        self._main.add_done_callback(self._ended)
        return self._main

    def _ended(self, main: asyncio.Task[int]) -> None:
        # Here and not at the end of the task: one that is cancelled before its first turn has none.
        dispatcher, self._dispatcher, self._main = self._dispatcher, None, None
        started = self._started
        assert started is not None
        if dispatcher is not None:
            logger.info("worker stopped, %d tasks run", dispatcher.finished)
        error = None if main.cancelled() else main.exception()
        if started.done():
            if error is not None:
                logger.error("the worker ended with %s", type(error).__name__, exc_info=error)
        elif error is None:
            started.cancel()
        else:
            started.set_exception(error)
            started.exception()  # drain() asks for it elsewhere, and a cancelled start() nowhere

    async def _live(self, started: asyncio.Future[None], *, drain: bool) -> int:
        """The worker's life from start to stop, as one task that nobody's cancellation splits."""
        await self._backend.connect()
        beside = self._beside = EnteredBeside(self._extensions)
        try:
            held = HeldTasks()
            await beside.enter(self._backend, held.runs)
            dispatcher = self._dispatcher = Dispatcher(
                self._backend,
                self._serializer,
                replace(self._settings, until_empty=drain),
                self._executor,
                self._extensions,
                held,
            )
            await self._work(dispatcher, started)
        except GeneratorExit:  # the loop was closed, and this collected as garbage: nothing can be awaited any more
            raise
        except BaseException as error:
            await self._leave(beside, error)
            raise
        else:
            await self._leave(beside, None)
        finally:
            if asyncio._get_running_loop() is not None:
                await self._backend.close()
        return dispatcher.finished

    async def _leave(self, beside: EnteredBeside, error: BaseException | None) -> None:
        reporting = asyncio.create_task(self._report(lambda: "what goes on beside it (shutdown_timeout)"))
        try:
            await beside.leave(error, self._settings.shutdown_timeout)
        finally:
            reporting.cancel()

    async def _work(self, dispatcher: Dispatcher, started: asyncio.Future[None]) -> None:
        timeout = self._settings.shutdown_timeout
        try:
            logger.info("worker started, %d slots", self._settings.max_concurrency)
            if self._stopping:
                dispatcher.stop()
            started.set_result(None)
            await dispatcher.serve()
        except GeneratorExit:  # the loop was closed: nothing can be awaited any more
            raise
        except BaseException:
            await self._finish(dispatcher, 0.0)  # cancelled, or the backend is gone: keep nobody waiting
            raise
        else:
            await self._finish(dispatcher, timeout)
        finally:
            dispatcher.close()

    async def _finish(self, dispatcher: Dispatcher, timeout: float | None) -> None:
        self._stopping = True
        reporting = asyncio.create_task(self._report(lambda: self._unfinished(dispatcher)))
        try:
            await dispatcher.finish(timeout)
        except asyncio.CancelledError:  # the loop ends while it waits: no more time for anybody
            await dispatcher.finish(0.0)
            raise
        finally:
            reporting.cancel()

    async def _report(self, what: Callable[[], str]) -> None:
        """Says what the end waits for, now and then."""
        delays = Delays(FIRST_REPORT_SECONDS, math.inf)
        while True:
            await asyncio.sleep(delays.next())
            logger.warning("stopping: waiting for %s", what())

    def _unfinished(self, dispatcher: Dispatcher) -> str:
        timeout = self._settings.shutdown_timeout
        limit = "as long as they take" if timeout is None else f"{timeout} s at most"
        running = [f"{held.task.task_id} ({held.task.name})" for held in dispatcher.running()]
        names = f"{', '.join(running):.{REPORT_CHARACTERS}}"
        return f"{len(running)} tasks, {limit} (shutdown_timeout): {names}" if running else "the backend"

    def _cut_short(self, main: asyncio.Task[int]) -> None:
        if self._beside is not None:
            self._beside.cut_short()
            if self._beside.is_entering:
                main.cancel()
        if self._dispatcher is not None:
            self._dispatcher.cut_short()

    def _request_stop(self) -> None:
        self._stopping = True
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def _on_signal(self, received: signal.Signals) -> None:
        logger.info("worker received %s", received.name)
        self._request_stop()


def _checked(executor: Executor | None) -> Executor:
    if isinstance(executor, type):
        raise TypeError(f"executor must be an object, not the class {executor.__name__}")
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor must have start(), which {type(executor).__name__} does not")
    return ThreadExecutor() if executor is None else executor
