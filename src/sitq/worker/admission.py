"""When a worker asks its backend for tasks, and for how many.

Objects without a loop, a clock or a backend: they are given what happened, with the time, and answer
what to do next. Times are in seconds, on the clock of the caller's loop.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sitq._delays import Delays
from sitq._logs import SafeLogger
from sitq.models import Reservation, ReservedTask
from sitq.worker.settings import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, OVERLAP_FROM_SLOTS, Settings

logger = SafeLogger("sitq.worker")

MAKING_ROOM_SECONDS = 1.0
"""How long the tasks that a worker runs may take, from their start, for it to make room for a last
attempt: it takes nothing then, and is empty soon. While a longer one runs, the others are served
instead of being kept waiting for nothing."""

MAKING_ROOM_SHARE = 0.1
"""By how much that grows with each second for which the last attempt has been waiting: so one beside
long tasks is not starved for ever, it waits some fifteen times as long as they take, and no other
task is kept waiting for longer than a tenth of the time for which the last attempt has been."""

TRIES_TO_LOAD = 5
"""How many tasks are failed for a missing module before a worker that could load none doubts its place."""

PAUSE_SECONDS = 5.0
MAX_PAUSES = 12  # in one, a minute


class Ask(NamedTuple):
    """A decision: reserve now.

    Attributes:
        limit: How many tasks to ask for at most.
        alone: Whether the worker holds no task, so that it may be given a last attempt.
    """

    limit: int
    alone: bool


class SleepUntil(NamedTuple):
    """A decision: nothing is to be done before this moment, unless something happens.

    When it has come, another reservation may find something: see :meth:`Admission.changed`.

    Attributes:
        moment: In seconds; infinite if only an event can change anything.
    """

    moment: float


NOTHING_TO_DO = SleepUntil(math.inf)


class LastAttempts:
    """Decides when a worker makes room for a task on its last attempt, which runs alone.

    Args:
        slots: How many tasks the worker could run otherwise.

    Attributes:
        waiting_since: Since when such a task waits for the worker to be empty; ``None``: there is none.
        making_room_until: Until when a worker that holds other tasks takes no more of them.
        held: How many such tasks the worker holds: one at most, from a backend that keeps to its contract.
    """

    def __init__(self, slots: int) -> None:
        self.waiting_since: float | None = None
        self.making_room_until = -math.inf
        self.held = 0
        self._has_warned = slots == 1

    def reserved(self, tasks: Sequence[ReservedTask]) -> None:
        """Takes what a reservation brought."""
        found = sum(task.is_last_attempt for task in tasks)
        if found:
            self.held += found
            self._warn()

    def removed(self, tasks: Sequence[ReservedTask]) -> None:
        """Takes that tasks are not held any more."""
        if self.held:
            self.held -= sum(task.is_last_attempt for task in tasks)

    def seen(self, is_waiting: bool, oldest: float, now: float) -> None:
        """Takes what a reservation has left.

        Args:
            is_waiting: Whether a last attempt was left.
            oldest: Since when the oldest of the worker's tasks is held.
            now: The present time.
        """
        if not is_waiting:
            self.waiting_since, self.making_room_until = None, now
            return
        self.waiting_since = now if self.waiting_since is None else self.waiting_since
        self.making_room_until = oldest + max(MAKING_ROOM_SECONDS, MAKING_ROOM_SHARE * (now - self.waiting_since))
        self._warn()

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a task on its last permitted attempt runs alone: the other slots of this worker stay empty "
                "meanwhile. With max_attempts=1 that is so for each task. A task that raises is tried again by its "
                "retry policy only: permit more attempts, unless the death of a worker must not start the task twice"
            )


class ModuleCheck:
    """Decides whether a worker is in a place from which the modules of its tasks cannot be imported.

    The first few tasks that miss a module are failed like any other. If nothing could be loaded by
    then, the worker is taken to be in the wrong folder or environment. It pauses again and again,
    and one task is failed for each pause, so that a queue gets past tasks whose code is gone.

    Attributes:
        has_loaded: Whether something could be loaded: then the place is right.
        paused_until: Until when nothing is taken.
        advice: What is wrong and what to do; empty as long as nothing seems to be.
    """

    def __init__(self) -> None:
        self.has_loaded = False
        self.paused_until = -math.inf
        self.advice = ""
        self._missed = 0

    def gives_back(self, loaded: bool, missing: str | None, now: float) -> bool:
        """Returns whether a task that failed is given back instead of being failed; may begin a pause.

        Args:
            loaded: Whether its call could be loaded.
            missing: The module that was missing. One inside of a package that is there says
                nothing against the worker's place, only against the task.
            now: The present time.
        """
        self.has_loaded |= loaded or "." in (missing or "")
        if self.has_loaded or missing is None:
            return False
        if now < self.paused_until:
            return True
        self._missed += 1
        if self._missed >= TRIES_TO_LOAD:
            pause = PAUSE_SECONDS * min(self._missed + 1 - TRIES_TO_LOAD, MAX_PAUSES)
            self.paused_until = now + pause
            self.advice = (
                f"nothing that this worker tried could be loaded: there is no module named {missing!r}. "
                f"{self._missed} tasks were failed for it, and the others are left waiting. Modules are searched for "
                f"in {sys.path[:1]} first: start the worker in the folder and the environment of the tasks' code"
            )
            logger.error("%s; the next try is in %.0f seconds", self.advice, pause)
        return False


class Admission:
    """Decides when a worker reserves tasks.

    Args:
        settings: The numbers of the worker.
        now: The present time.

    Attributes:
        last_attempts: Decides about room for a last attempt.
        modules: Decides whether the worker is in the right place.
        is_saturated: Whether the latest reservation brought all that it asked for: there is more.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        slots = settings.max_concurrency
        self._settings = settings
        self._max_limit = min(settings.batch_size, slots if slots < OVERLAP_FROM_SLOTS else slots // 2)
        self._asks: list[Ask] = []  # the reservations that are under way
        self._held = 0  # tasks, from their reservation until their outcome is recorded
        self._running = 0  # tasks whose run has not ended
        self._is_wanted = True  # another reservation may find something
        self._check_at = now + settings.poll_interval
        self._paused_until = -math.inf  # because there was no thread, or the backend failed
        self._delays = Delays(FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS)
        self.last_attempts = LastAttempts(slots)
        self.modules = ModuleCheck()
        self.is_saturated = False

    @property
    def is_reserving(self) -> bool:
        """Whether a reservation is under way."""
        return bool(self._asks)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return self._running

    @property
    def is_drained(self) -> bool:
        """Whether nothing is held or under way, and the latest reservation has found nothing."""
        return not (self._held or self._asks or self._is_wanted)

    def next(self, now: float, behind: int) -> Ask | SleepUntil:
        """Returns what to do next; an :class:`Ask` is taken to be under way from then on.

        Args:
            now: The present time.
            behind: How many tasks that have ended still take a slot, because the backend is not
                busy with their outcomes yet.
        """
        closed_until = self._closed_until()
        if now < closed_until:
            return SleepUntil(closed_until)
        if not self._may_ask():
            return NOTHING_TO_DO
        asked_for = self._asks[0].limit if self._asks else 0
        room = min(self._settings.max_concurrency - self._running - asked_for - behind, self._max_limit)
        if room <= 0:
            return NOTHING_TO_DO
        if self._is_wanted or self.is_saturated:
            self._is_wanted = False
            ask = Ask(room, alone=not (self._held or self._asks))
            self._asks.append(ask)
            return ask
        return SleepUntil(self._check_at)

    def _closed_until(self) -> float:
        if self.last_attempts.held:
            return math.inf
        making_room_until = self.last_attempts.making_room_until if self._held else -math.inf
        return max(self._paused_until, self.modules.paused_until, making_room_until)

    def _may_ask(self) -> bool:
        # One reservation beside another that is under way, if there is more than that one takes. But
        # not beside one that may bring a last attempt, which runs alone.
        return not self._asks or (self.is_saturated and len(self._asks) == 1 and not self._asks[0].alone)

    def changed(self) -> None:
        """Takes that another reservation may find something."""
        self._is_wanted = True

    def reserved(self, ask: Ask, reservation: Reservation, oldest: float | None, now: float) -> None:
        """Takes what a reservation brought, and what it says of the rest.

        Args:
            ask: What was asked for.
            reservation: The answer.
            oldest: Since when the oldest of the tasks from before is held; ``None`` if there is none.
            now: The present time.
        """
        self._asks.remove(ask)
        self._delays.reset()
        tasks = reservation.tasks
        self._held += len(tasks)
        self._running += len(tasks)
        self.last_attempts.reserved(tasks)
        self.is_saturated = len(tasks) >= ask.limit
        self._is_wanted |= bool(reservation.buried)  # there may be more of them than one reservation takes
        due = reservation.next_due_in
        interval = self._settings.poll_interval
        self._check_at = now + (interval if due is None else min(due, interval))
        self.last_attempts.seen(reservation.last_attempt_waiting, now if oldest is None else oldest, now)
        # What a worker that takes nothing has left is asked for when it takes something again.
        self._is_wanted |= bool(self.last_attempts.held) or self.last_attempts.making_room_until > now
        if not ask.alone:
            self._want_if_empty()

    def withdrawn(self, ask: Ask) -> None:
        """Takes that a reservation has ended without an answer: another one may find something."""
        self._asks.remove(ask)
        self._is_wanted = True

    def failed(self, ask: Ask, now: float) -> float:
        """Takes that a reservation has failed; returns the seconds until the next one."""
        self.withdrawn(ask)
        self.is_saturated = False
        # A pause, because a failed write can wake the worker as well, if the file is polled for changes.
        delay = self._delays.next()
        self.pause(now + delay)
        return delay

    def pause(self, until: float) -> None:
        """Takes nothing until a moment, and asks again then."""
        self._paused_until = max(self._paused_until, until)
        self._is_wanted = True

    def ended(self) -> None:
        """Takes that a run has ended; the task is held until its outcome is recorded."""
        self._running -= 1
        self._is_wanted |= self._settings.until_empty  # it may have enqueued others

    def recorded(self, tasks: Sequence[ReservedTask]) -> None:
        """Takes that tasks that have ended are not held any more."""
        self._held -= len(tasks)
        self.last_attempts.removed(tasks)
        # What was stored together with the outcomes, or is due again by them, was not there to be found before.
        self._is_wanted |= self._settings.until_empty
        self._want_if_empty()

    def let_go(self, task: ReservedTask) -> None:
        """Takes that a task that has not ended is not held any more; it may be due again."""
        self._running -= 1
        self.recorded((task,))
        self._is_wanted = True

    def _want_if_empty(self) -> None:
        if not self._held and self.last_attempts.waiting_since is not None:
            self._is_wanted = True
