"""The errors that sitq raises.

::

    SitqError
    ├── SerializationError            a call or a value cannot be turned into bytes, or back
    ├── TaskFailedError               raised by Result.unwrap() for a task that failed
    │   ├── TaskCancelledError        the task was cancelled: while it waited, or while it ran
    │   └── WorkerDiedError           its workers died on every attempt
    ├── TaskTimeoutError              a run took longer than its timeout
    ├── DuplicateTaskError            another task stands for the unique key of one that was enqueued
    ├── Retry, GiveUp                 raised by a task: try again later, or never
    └── BackendError                  the store did not do what was asked
        ├── BackendUnavailableError   busy, full or away: try again later
        ├── BackendReadOnlyError      cannot be written by this process
        ├── BackendCorruptError       damaged, or not a file of sitq's
        └── BackendVersionError       written by a newer sitq

Wrong arguments are plain ``ValueError`` and ``TypeError``.
"""

from datetime import timedelta

from sitq._checks import check_seconds


class SitqError(Exception):
    """The root of every error that sitq raises on its own account."""


class SerializationError(SitqError):
    """A call or a value cannot be serialized, or stored bytes cannot be loaded."""


class TaskFailedError(SitqError):
    """A task failed, and its result was asked for.

    Attributes:
        task_id: The id of the task that failed.
        error: ``"ExceptionType: message"`` as the worker saw it.
        traceback: The worker's traceback, formatted; ``None`` if no code of the task raised.
    """

    def __init__(self, task_id: str, error: str, traceback: str | None = None) -> None:
        super().__init__(task_id, error, traceback)
        self.task_id = task_id
        self.error = error
        self.traceback = traceback

    def __str__(self) -> str:
        message = f"task {self.task_id} failed: {self.error}"
        return f"{message}\n\nIn the worker:\n{self.traceback}" if self.traceback else message


WAITING = "cancelled while it waited to be run"
"""What is said of a task that was cancelled for no other reason."""

ASKED = "cancelled while it ran, because somebody asked for it"
"""The error of a task that was asked to end, and that a backend has ended because it was to run once more."""

CUT = "cut while it ran, because somebody asked for it"
"""The error of a task that was finished although it ran."""


class TaskCancelledError(TaskFailedError):
    """A task was cancelled, and its result was asked for.

    It is a :class:`TaskFailedError`, because the caller learns the same: there is no value, and none
    will come. Code that catches that one needs no second branch.
    """

    def __init__(self, task_id: str, error: str = WAITING, traceback: str | None = None) -> None:
        super().__init__(task_id, error, traceback)

    def __str__(self) -> str:
        if self.error in (WAITING, ASKED, CUT):
            return f"task {self.task_id} was {self.error}"
        return f"task {self.task_id} was cancelled: {self.error}"


class WorkerDiedError(TaskFailedError):
    """The workers of a task died on each of its attempts, and its result was asked for.

    Such a task may have run in part, and more than once. A worker dies with the task if the task ends
    the process or takes all of its memory; or the lease was not renewed, because the host stood still.

    :meth:`Result.unwrap` knows it by two things: the stored error begins with ``"WorkerDiedError: "``,
    which every backend writes when it fails a task for the death of its workers, and there is no
    traceback. The failure of a task that raised an exception of its own with that class name has a
    traceback, and is a plain :class:`TaskFailedError`.
    """


class TaskTimeoutError(SitqError, TimeoutError):
    """A run of a task took longer than the ``timeout`` of the task."""


class DuplicateTaskError(SitqError):
    """A task was not stored, because another one stands for its unique key; nothing of the call was stored.

    Attributes:
        task_id: The id of the task that stands.
    """

    def __init__(self, task_id: str, key: str) -> None:
        super().__init__(task_id, key)
        self.task_id = task_id
        self.key = key

    def __str__(self) -> str:
        return f"task {self.task_id} stands for the unique key {self.key!r}: nothing was stored"


class Retry(SitqError):  # noqa: N818 - an order, not an error
    """Raised by a task to be tried again: the policy is not asked for the delay, but its number of retries holds.

    Args:
        delay: Seconds, or a ``timedelta``, until the next attempt.
        counts: Whether this run counts as a failure; ``False`` for a task that only waits for something.

    Raises:
        TypeError: ``delay`` is neither a number nor a ``timedelta``.
        ValueError: ``delay`` is negative, not finite, or longer than a hundred years.
    """

    def __init__(self, delay: float | timedelta, *, counts: bool = True) -> None:
        self.delay = check_seconds("delay", delay.total_seconds() if isinstance(delay, timedelta) else delay)
        self.counts = counts
        super().__init__(self.delay)

    def __str__(self) -> str:
        return f"to be tried again in {self.delay:g} seconds"


class GiveUp(SitqError):  # noqa: N818 - as above
    """Raised by a task that must not be tried again, whatever its policy says: ``raise GiveUp(...) from error``."""


class BackendError(SitqError):
    """The backend could not do what was asked of it."""


class BackendUnavailableError(BackendError):
    """The store is busy, full or away; trying again later can succeed.

    The call may have been carried out all the same. Made again with the same arguments, it is
    carried out once.
    """


class BackendReadOnlyError(BackendError):
    """The store cannot be written. Trying again does not help before someone changes that."""


class BackendCorruptError(BackendError):
    """The store is damaged, or is not one of sitq's. Trying again does not help."""


class BackendVersionError(BackendError):
    """The store was written by a newer sitq and is left alone. Upgrade sitq."""
