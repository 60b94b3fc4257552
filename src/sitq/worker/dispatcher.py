"""One run of a worker: reserve, run, record, give back."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.errors import SerializationError
from sitq.executors.threads import Returned, ThreadPool
from sitq.models import Reservation, ReservedTask
from sitq.serializers.base import Serializer
from sitq.worker import reports
from sitq.worker.admission import Footing, LastAttempts
from sitq.worker.execution import Home, caller, execute, failure
from sitq.worker.recorder import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Recorder, give_back
from sitq.worker.renewer import HeldTask, Renewer
from sitq.worker.settings import (
    CANCEL_GRACE_SECONDS,
    NO_THREAD_PAUSE_SECONDS,
    OVERLAP_FROM_SLOTS,
    STEP_SECONDS,
    Settings,
)
from sitq.worker.strays import end_if_forked, generation

logger = SafeLogger("sitq.worker")


class Dispatcher:
    """Runs due tasks until it is told to stop; made for each start of a worker anew.

    Outcomes are recorded while the next reservation is under way: a backend that merges what is
    queued together then does both in one commit.
    """

    def __init__(self, backend: Backend, serializer: Serializer, settings: Settings) -> None:
        self._backend = backend
        self._home = Home(backend, serializer)
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._generation = generation()
        slots = settings.max_concurrency
        self._batch = min(settings.batch_size, slots if slots < OVERLAP_FROM_SLOTS else slots // 2)
        self._threads = ThreadPool(slots, "sitq-worker")
        self._loader = ThreadPool(1, "sitq-loader")  # or the first batch of a name would start a thread for each task
        self._held: dict[HeldTask, float] = {}  # until the outcome is recorded; since when, the oldest first
        self._running = 0
        self._reservations: set[asyncio.Task[None]] = set()
        self._reserving = 0  # reservations under way
        self._asked_for = 0  # and how many tasks they may bring
        self._asked_alone = False  # and whether one of them may bring a last attempt
        self._given_back: list[ReservedTask] = []
        self._wakeup = asyncio.Event()
        self._recorder = Recorder(backend, self._recorded)
        self._look = True  # another look may find something
        self._taking = False  # tasks of a reservation are being started: _advance() follows
        self._advancing = False
        self._saturated = False  # the latest look brought all that it asked for
        self._look_at = self._loop.time() + settings.poll_interval
        self._watch = contextlib.ExitStack()
        self._watching = False
        self._until_empty = False
        self._error: Exception | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._lone: HeldTask | None = None  # a last attempt, which runs alone
        self._last_attempts = LastAttempts(slots)
        self._footing = Footing()
        self._paused_until = 0.0  # because there was no thread, or the backend failed
        self._is_closed = False  # takes nothing, whatever slots are free
        self._stopping = self._cut_short = self._cancelling = False
        self._asked = False  # to stop, by somebody who may; otherwise the end is a death
        self.finished = 0
        """How many tasks were run to their end."""
        self._renewer = Renewer(backend, settings.lease, self._held.copy)

    def stop(self) -> None:
        """Takes no new task from now on.

        What is not finished then is given back, unless the worker was ended before, by a task that
        ended the loop or cancelled everything: that is a death like any other, or the task would
        be run for ever.
        """
        self._asked |= not (self._stopping or self._was_cancelled())
        self._stopping = True
        self._wakeup.set()

    def cut_short(self) -> None:
        """Has :meth:`finish` wait no longer."""
        self._cut_short = True
        self._wakeup.set()

    def close(self) -> None:
        """Ends the threads: after :meth:`finish`, or when the event loop was closed and nothing can be awaited."""
        self._renewer.end()
        self._threads.close()
        self._loader.close()

    def running(self) -> list[HeldTask]:
        """Returns the tasks that have begun and have not ended."""
        return [held for held in self._held if held.aio and not held.aio.done()]

    def runs_caller(self) -> bool:
        """Whether a running task, or what it started, is what calls."""
        found = caller()
        return found is not None and any(held.task.task_id == found.task.task_id for held in self.running())

    async def serve(self, *, until_empty: bool = False) -> None:
        """Runs what becomes due until :meth:`stop` is called.

        Args:
            until_empty: Return as well when nothing is due and nothing is running.

        Raises:
            BackendError: A reservation failed; only where ``until_empty`` is set.
            SerializationError: Nothing could be loaded; only where ``until_empty`` is set.
        """
        self._until_empty = until_empty
        with self._watch:
            while not self._stopping and self._error is None:
                self._wakeup.clear()
                if self._given_back:
                    await give_back(self._backend, self._given_back)
                limit = self._advance()
                if until_empty and not (self._held or self._look or self._reserving):
                    return
                await self._sleep(limit)
        if self._error is not None:
            raise self._error

    async def finish(self, timeout: float | None) -> None:
        """Waits for the running tasks, then gives back what is left.

        Args:
            timeout: Seconds until what still runs is cancelled; ``None`` waits as long as it takes.
        """
        self._stopping = True
        await self._wait(lambda: self._cut_short or not (self._running or self._reserving), timeout)
        timeout = 0.0 if self._cut_short else timeout
        if self._running:
            await self._cancel_running()
        # Others may take what is not recorded once its lease is over: no use in trying longer.
        self._recorder.give_up_after(self._settings.lease if timeout is None else timeout)
        # A reservation that is under way ends within the backend's bounds, and is given back.
        await self._wait(lambda: self._recorder.idle and not self._reserving, None)
        await give_back(self._backend, self._given_back)
        await self._renewer.stop()

    def _advance(self) -> int:
        """Hands on what has finished and asks for more, as far as there is room; returns the room that is left."""
        end_if_forked(self._generation)  # the loop goes on in a child that a coroutine forked
        self._recorder.flush()
        if self._advancing or self._stopping or self._error is not None:
            return 0
        self._advancing = True  # a backend that answers without a wait would come back here, deeper and deeper
        while limit := self._free_slots():
            # A second reservation beside one that is under way, but not beside a last attempt.
            beside = self._saturated and not self._asked_alone
            if not (self._look or self._saturated) or self._reserving > beside:
                break
            self._look = False
            reservation = asyncio.Task(self._reserve(limit), loop=self._loop, eager_start=True)
            self._reservations.add(reservation)  # the loop itself keeps only a weak reference
            reservation.add_done_callback(self._reservations.discard)
        self._advancing = False
        return limit

    def _free_slots(self) -> int:
        """Returns how many tasks may be taken now."""
        self._is_closed = self._lone is not None or self._loop.time() < self._closed_until()
        if self._is_closed:
            return 0
        taken = self._running + self._asked_for + self._recorder.behind
        return max(0, min(self._settings.max_concurrency - taken, self._batch))

    def _closed_until(self) -> float:
        quiet_until = self._last_attempts.quiet_until if self._held else 0.0
        return max(self._paused_until, self._footing.paused_until, quiet_until)

    async def _reserve(self, limit: int) -> None:
        """Takes due tasks and starts them."""
        before = time.monotonic()  # a lease cannot have begun earlier
        alone = self._asked_alone = not (self._held or self._reserving)
        self._reserving += 1
        self._asked_for += limit
        try:
            try:
                reservation = await self._backend.reserve(limit, lease=self._settings.lease, alone=alone)
            finally:
                self._reserving -= 1
                self._asked_for -= limit
                self._asked_alone = False
            try:
                await self._take(reservation, limit, alone, before)
                # At once: a turn of the loop later, the backend would have been idle for as long.
                self._advance()
            except Exception as error:
                self._error = error  # a backend that breaks its contract: end, and say so
        except Exception as error:
            self._saturated = False
            if self._until_empty:
                self._error = error
            else:
                self._back_off(error)
        finally:
            if not self._reserving or self._error is not None:  # else the next one will come back here
                self._wakeup.set()

    async def _take(self, reservation: Reservation, limit: int, alone: bool, before: float) -> None:
        self._retry_seconds = FIRST_RETRY_SECONDS
        for task_id in reservation.buried:
            logger.error("task %s was failed: its workers died on every attempt", task_id)
        self._look |= bool(reservation.buried)  # there may be more of them than one look takes
        if reservation.tasks:
            logger.debug("reserved %d tasks", len(reservation.tasks))
        taken = [HeldTask(task, before) for task in reservation.tasks]
        # All of them before the first is started: that one may block the loop for many leases.
        self._held.update(dict.fromkeys(taken, self._loop.time()))
        self._running += len(taken)
        await self._start_all(taken)
        if not self._stopping:
            self._plan(reservation, limit, alone)

    async def _start_all(self, taken: Sequence[HeldTask]) -> None:
        lease, turn_at = self._settings.lease, time.monotonic() + STEP_SECONDS
        self._taking = True
        try:
            for held in taken:
                if (now := time.monotonic()) > turn_at:
                    await asyncio.sleep(0)
                    turn_at = (now := time.monotonic()) + STEP_SECONDS
                if self._stopping or self._error is not None:  # perhaps by one of them
                    break
                if held.lost or now - held.renewed >= lease:
                    continue  # another may hold it
                if held.task.is_last_attempt:
                    self._lone = held
                    self._look = True  # when it is done: others may be due as well
                    self._last_attempts.say()
                asyncio.Task(self._run(held), loop=self._loop, eager_start=True)
        finally:
            self._taking = False
            for held in taken:
                if held.aio is None:
                    self._let_go(held, give_back=True)

    def _plan(self, reservation: Reservation, limit: int, alone: bool) -> None:
        """Decides when to look again."""
        settings, now = self._settings, self._loop.time()
        self._saturated = len(reservation.tasks) >= limit
        if self._saturated:
            self._watch.close()
            self._watching = False
        elif not self._watching and not self._until_empty:
            # What came between the look and the watch is found by another look.
            self._watch.enter_context(self._backend.watch(self._on_change))
            self._watching = self._look = True
        due = reservation.next_due_in
        self._look_at = now + (settings.poll_interval if due is None else min(due, settings.poll_interval))
        self._last_attempts.seen(reservation.last_attempt_waiting, next(iter(self._held.values()), now), now)
        if self._last_attempts.since is not None and not (alone or self._held):
            self._look = True  # the worker has become empty while it asked

    async def _run(self, held: HeldTask) -> None:
        task = held.task
        held.aio = asyncio.current_task()
        logger.info("task %s (%s) started, attempt %d", task.task_id, task.name, task.attempt)
        try:
            load, run = partial(self._submit, held, self._loader), partial(self._run_in_thread, held)
            outcome, failed = await execute(task, self._home, load, run, self._backend.max_payload_bytes)
        except KeyboardInterrupt as interrupt:
            # Later, by the loop: here it would come out of whatever has started the task.
            self._loop.call_soon(_raise, interrupt)
            if held in self._held:
                reports.given_back(task, "was interrupted")
                self._let_go(held, give_back=True)
            return
        except BaseException as error:  # whatever happens here: a task that has begun ends, and its slot is free
            outcome, failed = failure(task, error)
        if held not in self._held:
            return  # it was given back: it ignored its cancellation, or got no thread
        if failed is None:
            self._footing.is_sure = True
        elif self._was_cancelled():
            self._leave(held)
            return
        elif self._footing.gives_back(failed.loaded, failed.missing, self._loop.time()):
            self._let_go(held, give_back=True)
            return
        self._running -= 1
        if not self._taking:
            self._wakeup.set()
        self._look |= self._until_empty  # it may have enqueued others
        self.finished += 1
        self._recorder.add(held, outcome)
        reports.ended(task, outcome.error, failed, log_exceptions=self._settings.log_exceptions)
        if self._until_empty and self._footing.advice and self._error is None:
            self.stop()  # what is under way is given back
            self._error = SerializationError(self._footing.advice)

    async def _run_in_thread(self, held: HeldTask, function: Callable[[], Any]) -> Returned:
        future = self._submit(held, self._threads, function)
        held.in_thread = True
        returned = await future
        held.in_thread = False
        return returned

    def _submit(self, held: HeldTask, threads: ThreadPool, function: Callable[[], Any]) -> asyncio.Future[Returned]:
        try:
            return threads.submit(function)
        except RuntimeError as error:
            self._paused_until = self._loop.time() + NO_THREAD_PAUSE_SECONDS
            if self._until_empty:
                self._error = error
            reports.given_back(held.task, f"got no thread to run in ({error})")
            self._let_go(held, give_back=True)
            raise

    def _was_cancelled(self) -> bool:
        # Not Task.cancelling() of the task's own: it counts what the task does to itself, too.
        return self._cancelling or bool(self._owner and self._owner.cancelling())

    def _recorded(self, recorded: Iterable[HeldTask]) -> None:
        for held in recorded:
            self._drop(held)
        if self._last_attempts.since is not None and not self._held:
            self._look = True
        # A reservation that is under way looks after the rest.
        if self._recorder.behind or not self._reserving:
            self._wakeup.set()

    def _drop(self, held: HeldTask) -> None:
        self._held.pop(held, None)
        if held is self._lone:
            self._lone = None

    def _let_go(self, held: HeldTask, *, give_back: bool) -> None:
        self._running -= 1
        self._drop(held)
        if give_back:
            self._given_back.append(held.task)
            self._look = True  # a drain has to see it again
        self._wakeup.set()

    def _leave(self, held: HeldTask) -> None:
        """Lets go of a task that did not finish: of its lease only, if nobody has asked the worker to stop."""
        self._let_go(held, give_back=self._asked)
        reports.left(held, is_given_back=self._asked)

    async def _cancel_running(self) -> None:
        self._cancelling = True
        for held in self.running():
            if held.aio is not None:
                held.aio.cancel()
        await self._wait(lambda: not self._running, CANCEL_GRACE_SECONDS)
        for held in self.running():
            self._leave(held)

    def _on_change(self) -> None:
        self._look = True
        self._wakeup.set()

    def _back_off(self, error: Exception) -> None:
        logger.warning("reserving failed, trying again in %.2f seconds: %s", self._retry_seconds, error)
        # A pause, because a failed write can wake the worker as well, where the file is polled for changes.
        self._paused_until = self._loop.time() + self._retry_seconds
        self._look = True
        self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)

    async def _sleep(self, limit: int) -> None:
        """Sleeps until something happens, or until there is a time to look again."""
        timer = None
        if limit and not self._reserving:
            timer = self._loop.call_at(self._look_at, self._on_change)
        elif self._is_closed and self._lone is None:
            timer = self._loop.call_at(self._closed_until(), self._on_change)
        try:
            await self._wakeup.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _wait(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Records what finishes until ``condition`` holds, at most ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    self._wakeup.clear()
                    self._recorder.flush()
                    if not condition():
                        await self._wakeup.wait()


def _raise(error: BaseException) -> None:
    raise error
