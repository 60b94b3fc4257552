"""Starting the runs of tasks, and what they run in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from sitq import _forks
from sitq._logs import SafeLogger
from sitq.executors.base import Executor, Pool
from sitq.executors.forked import end_if_forked, generation
from sitq.executors.threads import ThreadPool
from sitq.worker.execution import Ended, Home, Surroundings, execute, failure
from sitq.worker.extending import Hooks
from sitq.worker.held import HeldTask
from sitq.worker.settings import STEP_SECONDS, Settings
from sitq.worker.shutdown import Shutdown

logger = SafeLogger("sitq.worker")

type OnEnd = Callable[[HeldTask, Ended | None], object]
"""Called with how a run ended; ``None``: the user interrupted it."""


class Runner:
    """Runs tasks, each as an asyncio task of its own.

    Args:
        home: Where the tasks come from.
        settings: The worker's numbers.
        executor: Where plain functions run.
        hooks: What the extensions have to do with the runs.
        on_end: Called at each end.

    Attributes:
        hooks: As given.
        is_starting: Whether the tasks of a reservation are being started just now.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        executor: Executor,
        hooks: Hooks,
        on_end: OnEnd,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._lease = settings.lease
        self.hooks = hooks
        self._on_end = on_end
        self._generation = generation()
        self.is_starting = False
        # A thread of its own: the first tasks of a module would take a thread each from the others otherwise.
        self._loader = ThreadPool(1, "sitq-loader")
        max_bytes = home.backend.max_payload_bytes
        self._pool = executor.start(settings.max_concurrency)  # last of what may raise: nobody would close it
        if not isinstance(self._pool, Pool):  # else each plain function would fail for it
            raise TypeError(
                f"start() of {type(executor).__name__} must return an object with submit() and close(), "
                f"not {type(self._pool).__name__}"
            )
        self._surroundings = Surroundings(home, self._loader.submit, self._pool, hooks.around, max_bytes)
        self._is_closed = False
        _forks.begin_anew_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        # From Python 3.14 on, no asyncio task moves in a child's copy of the loop, the dispatcher's among them: each
        # fails with an error that goes to the loop. Its plain callbacks are still called.
        if self._is_closed:
            return
        with contextlib.suppress(RuntimeError):  # it is closed or, in debug mode, of a thread that stayed in the parent
            self._loop.call_soon(self.check_process)
            self._loop.set_exception_handler(self._check_before_complaint)

    def _check_before_complaint(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.check_process()
        loop.default_exception_handler(context)  # forked by C code, of which nothing is known

    def check_process(self) -> None:
        """Ends the child of a fork in which the loop goes on, because a coroutine forked and came back."""
        end_if_forked(self._generation)

    def close(self) -> None:
        """Ends the threads."""
        self._is_closed = True
        try:
            self._pool.close()
        except Exception as error:  # of an executor of the user's
            logger.log(logging.ERROR, "the executor's pool could not be closed", exc_info=error)
        finally:
            self._loader.close()

    async def start_all(self, taken: Sequence[HeldTask], shutdown: Shutdown) -> None:
        """Starts tasks in turn; gives the host's loop a turn now and then.

        Args:
            taken: The tasks.
            shutdown: Says when no more are to be started.
        """
        turn_at = time.monotonic() + STEP_SECONDS
        self.is_starting = True
        try:
            for held in taken:
                if (now := time.monotonic()) > turn_at:
                    await asyncio.sleep(0)
                    turn_at = (now := time.monotonic()) + STEP_SECONDS
                if shutdown.is_due:  # perhaps by one of them
                    break
                if held.not_held or now - held.renewed >= self._lease:
                    continue  # another worker may hold it
                asyncio.Task(self._run(held), loop=self._loop, eager_start=True)
        finally:
            self.is_starting = False

    async def _run(self, held: HeldTask) -> None:
        held.aio, held.began = asyncio.current_task(), self._loop.time()
        self.hooks.events.emit("started", held.task)
        ended: Ended | None
        try:
            ended = await execute(held, self._surroundings)
        except KeyboardInterrupt as interrupt:
            # Later, by the loop: here it would come out of whatever has started the task.
            self._loop.call_soon(_raise, interrupt)
            ended = None
        except BaseException as error:  # whatever happens here: a task that has begun ends, and its slot is free
            ended = failure(held.task, error)
        if held.no_thread is not None and ended is not None:
            ended = failure(held.task, held.no_thread, kind="no thread")
        if asyncio._get_running_loop() is not None:  # else it was closed under the task
            self._on_end(held, ended)


def _raise(error: BaseException) -> Any:
    raise error
