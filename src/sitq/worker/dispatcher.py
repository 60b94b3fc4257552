"""One run of a worker: reserve, run, record, give back."""

import asyncio
import math
import time
from collections.abc import Iterable, Sequence

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.errors import SerializationError
from sitq.executors.base import Executor
from sitq.extensions.base import Event, EventKind, Extension, FailedRun
from sitq.models import Outcome, Reservation
from sitq.serializers.base import Serializer
from sitq.worker.admission import Admission, Ask, SleepUntil
from sitq.worker.alarm import Alarm
from sitq.worker.execution import Ended, Failure, Home, caller, decided
from sitq.worker.extending import hooks_of
from sitq.worker.held import HeldTask, HeldTasks
from sitq.worker.recorder import Recorder, give_back
from sitq.worker.renewer import Renewer
from sitq.worker.reports import TaskLog
from sitq.worker.runner import Runner
from sitq.worker.settings import CANCEL_GRACE_SECONDS, NO_THREAD_PAUSE_SECONDS, Settings
from sitq.worker.shutdown import Shutdown

logger = SafeLogger("sitq.worker")


class Dispatcher:
    """Runs due tasks until it is asked to stop; made for each start of a worker anew.

    It decides nothing: :class:`~sitq.worker.admission.Admission` says when to reserve,
    :class:`~sitq.worker.shutdown.Shutdown` how to end, and this carries it out.

    Outcomes are recorded while the next reservation is under way: a backend that merges what is
    queued together then does both in one commit.

    Args:
        backend: Where the tasks are, open.
        serializer: Loads calls and dumps results.
        settings: The worker's numbers.
        executor: Where plain functions run.
        extensions: What is put around the runs, and who is notified of them.
        held: The book of what the worker holds, empty.
    """

    def __init__(
        self,
        backend: Backend,
        serializer: Serializer,
        settings: Settings,
        executor: Executor,
        extensions: Sequence[Extension],
        held: HeldTasks,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._held = held
        self._shutdown = Shutdown()
        self._admission = Admission(settings, self._loop.time())
        self._alarm = Alarm(backend, self._admission.changed)
        home = Home(backend, serializer, extensions)
        hooks = hooks_of(extensions, TaskLog(log_exceptions=settings.log_exceptions), backend)
        self._recorder = Recorder(backend, self._recorded, hooks.events)
        self._reservations: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._is_advancing = False
        self._renewer = Renewer(backend, settings.lease, self._held.all, hooks.events)
        try:
            self._runner = Runner(home, settings, executor, hooks, self._ended)
        except BaseException:
            self._renewer.end()
            raise

    @property
    def finished(self) -> int:
        """How many tasks were run to their end."""
        return self._recorder.added

    def stop(self) -> None:
        """Takes no new task from now on."""
        self._shutdown.request()
        self._alarm.ring()

    def cut_short(self) -> None:
        """Has :meth:`finish` wait no longer."""
        self._shutdown.is_cut_short = True
        self._alarm.ring()

    def close(self) -> None:
        """Ends the threads: after :meth:`finish`, or when the event loop was closed and nothing can be awaited."""
        self._renewer.end()
        self._runner.close()

    def running(self) -> list[HeldTask]:
        """Returns the tasks that have begun and have not ended."""
        return self._held.running()

    def runs_caller(self) -> bool:
        """Whether a running task, or what it started, is what calls."""
        found = caller()
        return found is not None and any(held.task.task_id == found.task.task_id for held in self.running())

    async def serve(self) -> None:
        """Runs what becomes due until :meth:`stop` is called, or until nothing is left if that is asked for.

        Raises:
            BackendError: A reservation failed; only if it runs until nothing is left.
            SerializationError: Nothing could be loaded; only if it runs until nothing is left.
        """
        with self._alarm:
            while not self._shutdown.is_due:
                self._alarm.clear()
                if self._held.given_back:
                    await give_back(self._backend, self._held.given_back)
                moment = self._advance()
                if self._settings.until_empty and self._admission.is_drained:
                    return
                await self._alarm.sleep_until(moment)
        if self._shutdown.error is not None:
            raise self._shutdown.error

    async def finish(self, timeout: float | None) -> None:
        """Waits for the running tasks, then gives back what is left.

        Args:
            timeout: Seconds until what still runs is cancelled; ``None`` waits as long as it takes.
        """
        shutdown, admission, recorder = self._shutdown, self._admission, self._recorder
        shutdown.is_begun = True

        def is_over() -> bool:
            return shutdown.is_cut_short or not (admission.running or admission.is_reserving)

        await self._alarm.wait_for(is_over, timeout, recorder.flush)
        if admission.running:
            await self._cancel_running()
        # Others may take what is not recorded once its lease is over: no use in trying longer.
        timeout = 0.0 if shutdown.is_cut_short else timeout
        recorder.give_up_after(self._settings.lease if timeout is None else timeout)
        # A reservation that is under way ends within the backend's bounds, and is given back.
        await self._alarm.wait_for(lambda: recorder.idle and not admission.is_reserving, None, recorder.flush)
        await give_back(self._backend, self._held.given_back)
        await self._renewer.stop()

    def _advance(self) -> float:
        """Hands on what has ended and reserves as far as there is room; returns until when there is nothing to do."""
        self._runner.check_process()
        self._recorder.flush()
        if self._is_advancing:  # a backend that answers without a wait would come back here, deeper and deeper
            return math.inf
        self._is_advancing = True
        try:
            while not self._shutdown.is_due:
                decision = self._admission.next(self._loop.time(), self._recorder.behind)
                if isinstance(decision, SleepUntil):
                    return decision.moment
                reservation = asyncio.Task(self._reserve(decision), loop=self._loop, eager_start=True)
                self._reservations.add(reservation)
                reservation.add_done_callback(self._reservations.discard)
            return math.inf
        finally:
            self._is_advancing = False

    async def _reserve(self, ask: Ask) -> None:
        """Takes due tasks and starts them."""
        asked_at = time.monotonic()  # the lease begins no earlier
        try:
            try:
                reservation = await self._backend.reserve(ask.limit, lease=self._settings.lease, alone=ask.alone)
            except Exception as error:
                self._not_reserved(ask, error)
                return
            except BaseException:
                self._admission.withdrawn(ask)
                raise
            try:
                await self._take(ask, reservation, asked_at)
                # At once: a turn of the loop later, the backend would have been idle for as long.
                self._advance()
            except Exception as error:
                self._shutdown.fail(error)  # a backend that breaks its contract: end, and say so
        finally:
            if not self._admission.is_reserving or self._shutdown.error:  # else the next one will come back here
                self._alarm.ring()

    def _not_reserved(self, ask: Ask, error: Exception) -> None:
        delay = self._admission.failed(ask, self._loop.time())
        if self._settings.until_empty:
            self._shutdown.fail(error)
        else:
            logger.warning("reserving failed, trying again in %.2f seconds: %s", delay, error)

    async def _take(self, ask: Ask, reservation: Reservation, asked_at: float) -> None:
        now = self._loop.time()
        self._admission.reserved(ask, reservation, self._held.oldest(), now)
        # All of them before the first is started: that one may block the loop for many leases.
        taken = self._held.add(reservation.tasks, renewed=asked_at, now=now)
        for task_id in reservation.buried:
            self._runner.hooks.events.send(Event("buried", task_id, "", 0))
        if taken:
            logger.debug("reserved %d tasks", len(taken))
        try:
            self._watch()
            await self._runner.start_all(taken, self._shutdown)
        finally:
            for held in taken:
                if held.aio is None:
                    self._give_back(held)

    def _watch(self) -> None:
        if self._admission.is_saturated:
            self._alarm.unwatch()
        elif not self._alarm.is_watching and not self._settings.until_empty and not self._shutdown.is_begun:
            self._alarm.watch()
            self._admission.changed()  # what came between the reservation and the watch

    def _ended(self, held: HeldTask, ended: Ended | None) -> None:
        """Decides what becomes of a task whose run has ended."""
        if held not in self._held:
            return  # it was given back: it ignored its cancellation
        if ended is None:
            self._give_back(held, "it was interrupted")
            return
        outcome, failed = ended
        if failed is None:
            self._admission.modules.has_loaded = True
        elif self._ends_without_outcome(held, failed):
            return
        self._admission.ended()
        if failed is not None:
            outcome = self._decide(held, outcome, failed)
        self._recorder.add(held, outcome)
        self._report(held, outcome, failed)
        if not self._runner.is_starting:  # else _advance() follows
            self._alarm.ring()

    def _decide(self, held: HeldTask, outcome: Outcome, failed: Failure) -> Outcome:
        """Returns what is recorded of a run that did not succeed."""
        seconds = self._loop.time() - held.began
        failure = FailedRun(held.task, held.run, failed.error, failed.kind, outcome.error or "", seconds)
        self._runner.hooks.decisions.make(failure)
        return decided(outcome, failure)

    def _report(self, held: HeldTask, outcome: Outcome, failed: Failure | None) -> None:
        """Tells how a run has ended."""
        events, seconds = self._runner.hooks.events, self._loop.time() - held.began
        if failed is None:
            events.emit("succeeded", held.task, seconds=seconds)
            return
        kind: EventKind = "failed" if outcome.retry_in is None else "retried"
        reason = _reason(outcome.error or "", failed.missing)
        events.emit("cancelled" if outcome.cancelled else kind, held.task, seconds, reason, failed.error)
        if self._settings.until_empty and self._admission.modules.advice:
            self.stop()  # so that what is under way is given back
            self._shutdown.fail(SerializationError(self._admission.modules.advice))

    def _ends_without_outcome(self, held: HeldTask, failed: Failure) -> bool:
        """Returns whether what ended a run is no failure of the task's, which is then not recorded."""
        now = self._loop.time()
        if failed.kind == "no thread":
            self._admission.pause(now + NO_THREAD_PAUSE_SECONDS)
            if self._settings.until_empty and isinstance(failed.error, RuntimeError):
                self._shutdown.fail(failed.error)
            self._give_back(held, f"it got no thread to run in ({failed.error})")
        elif self._shutdown.was_cancelled():
            self._leave(held)
        elif self._admission.modules.gives_back(failed.kind != "unloadable", failed.missing, now):
            self._give_back(held)
        else:
            return False
        return True

    def _recorded(self, recorded: Iterable[HeldTask]) -> None:
        tasks = [*recorded]
        self._held.remove(*tasks)
        self._admission.recorded([held.task for held in tasks])
        # A reservation that is under way rings at its end.
        if self._recorder.behind or not self._admission.is_reserving:
            self._alarm.ring()

    def _give_back(self, held: HeldTask, reason: str = "") -> None:
        """Gives back a task that did not end, with its attempt unspent."""
        self._remove(held)
        self._held.given_back.append(held.task)
        if reason:
            self._runner.hooks.events.emit("given_back", held.task, reason=reason)

    def _leave(self, held: HeldTask) -> None:
        """Lets go of a task that did not end: of its lease only, if nobody has asked the worker to stop."""
        in_thread = held.run is not None and held.run.in_thread
        its_thread = "; its thread goes on, and what it returns changes nothing" if in_thread else ""
        if self._shutdown.was_requested:
            self._give_back(held, f"it was not finished in time{its_thread}")
            return
        self._remove(held)
        reason = (
            "its worker was ended, which nobody had asked to stop; that counts as the worker's death, and others "
            f"may take the task when its lease has ended{its_thread}"
        )
        self._runner.hooks.events.emit("left", held.task, reason=reason)

    def _remove(self, held: HeldTask) -> None:
        self._held.remove(held)
        self._admission.let_go(held.task)
        self._alarm.ring()

    async def _cancel_running(self) -> None:
        self._shutdown.is_cancelling = True
        for held in self.running():
            if held.aio is not None:
                held.aio.cancel()
        await self._alarm.wait_for(lambda: not self._admission.running, CANCEL_GRACE_SECONDS, self._recorder.flush)
        for held in self.running():
            self._leave(held)


def _reason(error: str, missing: str | None) -> str:
    # The type only: messages of exceptions tend to quote the arguments. A module's name is none.
    kind = error.partition(":")[0]
    return kind if missing is None else f"{kind}, because there is no module named {missing!r}"
