"""When a worker takes nothing although it has free slots: room for a last attempt, and a wrong place.

Plain objects without a loop or a clock: times are what the caller's loop calls ``time()``.
"""

import sys

from sitq._logs import SafeLogger

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
MOST_PAUSES = 12  # in one, a minute


class LastAttempts:
    """Decides when a worker makes room for a task on its last attempt, which runs alone.

    Args:
        slots: How many tasks the worker could run otherwise.

    Attributes:
        since: Since when such a task waits for the worker to be empty; ``None``: there is none.
        quiet_until: Until when a worker that holds other tasks takes no more of them.
    """

    def __init__(self, slots: int) -> None:
        self.since: float | None = None
        self.quiet_until = 0.0
        self._has_said = slots == 1

    def seen(self, waiting: bool, oldest: float, now: float) -> None:
        """Takes what a reservation has told.

        Args:
            waiting: Whether a last attempt was left.
            oldest: Since when the oldest of the worker's tasks is held.
            now: The present time.
        """
        self.since, self.quiet_until = None if not waiting else now if self.since is None else self.since, now
        if self.since is not None:
            self.quiet_until = oldest + max(MAKING_ROOM_SECONDS, MAKING_ROOM_SHARE * (now - self.since))
            self.say()

    def say(self) -> None:
        """Warns, once, that most slots stay empty."""
        if not self._has_said:
            self._has_said = True
            logger.warning(
                "a task on its last permitted attempt runs alone: the other slots of this worker stay empty "
                "meanwhile. With max_attempts=1 that is so for each task. A task that raises is not tried again "
                "in any case: permit more attempts, unless the death of a worker must not start the task twice"
            )


class Footing:
    """Decides whether a worker stands where its tasks can be imported.

    The first few tasks that miss a module are failed like any other. If nothing could be loaded by
    then, the worker is taken to be in the wrong folder or environment. It pauses again and again,
    and one task is failed for each pause, so that a queue gets past tasks whose code is gone.

    Attributes:
        is_sure: Whether it does: something could be loaded.
        paused_until: Until when nothing is taken.
        advice: What is wrong and what to do; empty as long as nothing seems to be.
    """

    def __init__(self) -> None:
        self.is_sure = False
        self.paused_until = 0.0
        self.advice = ""
        self._missed = 0

    def gives_back(self, loaded: bool, missing: str | None, now: float) -> bool:
        """Returns whether a task that ended so is given back instead of being failed; may begin a pause.

        Args:
            loaded: Whether its call could be loaded.
            missing: The module that was missing. One inside of a package that is there says
                nothing against the worker's place, only against the task.
            now: The present time.
        """
        self.is_sure |= loaded or "." in (missing or "")
        if self.is_sure or missing is None or now < self.paused_until:
            return not self.is_sure and missing is not None
        self._missed += 1
        if self._missed >= TRIES_TO_LOAD:
            pause = PAUSE_SECONDS * min(self._missed + 1 - TRIES_TO_LOAD, MOST_PAUSES)
            self.paused_until = now + pause
            self.advice = (
                f"nothing that this worker tried could be loaded: there is no module named {missing!r}. "
                f"{self._missed} tasks were failed for it, and the others are left waiting. Modules are looked for "
                f"in {sys.path[:1]} first: start the worker in the folder and the environment of the tasks' code"
            )
            logger.error("%s; the next try is in %.0f seconds", self.advice, pause)
        return False
