"""What a backend may offer beside the contract: to be looked into, and to have its tasks mended.

An optional protocol: queue and worker do without it. The methods ``list``, ``counts``, ``retry``
and ``cancel`` of a queue and all of the command line stand on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from sitq.models import Status

type Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What a listing says of a task; no payload was loaded for it.

    Attributes:
        task_id: The task's id.
        name: What its call is named.
        status: One of the five statuses.
        attempt: How many times it was started.
        max_attempts: How many times it may be started, not counting runs that raised and were retried
            by a policy.
        enqueued_at: When it was stored.
        due_at: When it is or was due; ``None`` unless it is pending.
        lease_ends_at: When its lease ends or ended; ``None`` unless it is in progress.
        started_at: When its latest run was started; ``None`` if it never was.
        finished_at: When it was finished or cancelled; ``None`` if it is neither.
        error: ``"ExceptionType: message"`` of a task that failed, of a run that was cancelled, or of the
            latest run that raised if the task was retried after it; else ``None``.
        failures: How many of its runs raised and were retried by a policy, since it was stored or retried by hand.
        asked_at: When it was asked to end while it ran; ``None`` if it was not, or was retried by hand since.
        queue: The name of its queue; empty for the default one.
        priority: From -100 to 100; higher is sooner.
    """

    task_id: str
    name: str
    status: Status
    attempt: int
    max_attempts: int
    enqueued_at: datetime
    due_at: datetime | None
    lease_ends_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    failures: int = field(default=0, kw_only=True)
    asked_at: datetime | None = field(default=None, kw_only=True)
    queue: str = field(default="", kw_only=True)
    priority: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A run of a task that failed, whether or not it was the last one.

    A run that ended with the death of its worker, one that was cancelled, and one that only asked to be
    tried again later, are none.

    Attributes:
        attempt: The number of the run. After a retry by hand, numbers come again.
        started_at: When it was reserved.
        ended_at: When its outcome was recorded.
        error: ``"ExceptionType: message"``.
        traceback: The worker's traceback, formatted, if there is one.
        ran_on: Where it ran, for people: host and process; empty if nobody said so.
    """

    attempt: int
    started_at: datetime | None
    ended_at: datetime
    error: str
    traceback: str | None
    ran_on: str


@dataclass(frozen=True, slots=True)
class TaskDetails(TaskInfo):
    """All that is known of a task without loading its payload or its result.

    Attributes:
        traceback: The worker's traceback that belongs to ``error``, formatted, if there is one.
        format: What wrote the payload.
        payload_bytes: The size of the payload.
        result_bytes: The size of the result; ``None`` if there is none.
        failed_attempts: Its failed runs, the oldest first, those before a retry by hand among them. A
            backend may keep the latest ones only, or none.
    """

    traceback: str | None
    format: str
    payload_bytes: int
    result_bytes: int | None
    failed_attempts: Sequence[FailedAttempt] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks there are, at one moment of the backend's clock.

    Attributes:
        pending: Tasks that wait to be run.
        in_progress: Tasks that were reserved and have no outcome yet.
        success: Tasks that returned a value.
        failed: Tasks that raised, or whose attempts are spent.
        cancelled: Tasks that were cancelled, while they waited or while they ran.
        scheduled: How many of ``pending`` are not due yet.
        abandoned: How many of ``in_progress`` have a lease that has ended, and were not taken over.
        oldest_waiting: For how many seconds the oldest due task of ``pending`` has been due;
            ``None`` if none is due.
        enqueued_last_minute: Tasks that were stored in the last 60 seconds.
        succeeded_last_minute: Tasks that succeeded in the last 60 seconds.
        failed_last_minute: Tasks that failed in the last 60 seconds.
    """

    pending: int
    in_progress: int
    success: int
    failed: int
    cancelled: int
    scheduled: int
    abandoned: int
    oldest_waiting: float | None
    enqueued_last_minute: int
    succeeded_last_minute: int
    failed_last_minute: int


@dataclass(frozen=True, slots=True)
class PayloadFormat:
    """How many unfinished tasks have payloads of one format.

    Attributes:
        format: What wrote them.
        tasks: How many they are.
        marked: How many of them hold the bytes that were asked for.
    """

    format: str
    tasks: int
    marked: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined.

    Attributes:
        name: What was examined, in a word or two.
        level: ``"ok"``; ``"note"`` for what is good to know; ``"wrong"`` for what wants a person.
        found: What is the case.
        advice: What to do about it; ``None`` if there is nothing to do.
    """

    name: str
    level: Level
    found: str
    advice: str | None = None


@runtime_checkable
class Inspectable(Protocol):
    """A backend that can be looked into, and whose tasks can be mended.

    The rules of :class:`~sitq.Backend` hold here too. Above all, no payload and no result is ever
    loaded. One call is one atomic change if it changes at most 500 tasks. What changes more is made of
    several, in which other callers get their turn: if it is interrupted, the tasks that were changed
    stay changed, and calling it again does the rest.
    """

    async def counts(self) -> Counts:
        """Counts the tasks. May have to read every row."""
        ...

    async def show(self, task_id: str) -> TaskDetails | None:
        """Returns all that is known of one task; ``None`` if there is no such task."""
        ...

    async def find_ids(self, prefix: str, *, limit: int) -> Sequence[str]:
        """Returns the ids that begin with ``prefix``, in their order, up to ``limit`` of them."""
        ...

    async def retry(self, task_ids: Sequence[str]) -> Sequence[str]:
        """Makes failed, cancelled and abandoned tasks pending again, as if they had never been run.

        They are due now. Attempt, error, traceback and the times of the run are forgotten. Abandoned
        is a task in progress whose lease is over. A run that was thought dead cannot record an
        outcome any more. Workers are woken.

        Returns:
            The ids of those that are pending again, in the order given. The others do not exist or
            are none of the three, and are left as they are.
        """
        ...

    async def retry_failed(
        self, *, name: str | None = None, error: str | None = None, since: float | None = None
    ) -> Sequence[str]:
        """Retries every task that is failed and fits; returns their ids, the first to fail first.

        None that is cancelled, and none that fails meanwhile.

        Args:
            name: As for :meth:`list`.
            error: As for :meth:`list`.
            since: As for :meth:`list`.
        """
        ...

    async def cancel(self, task_ids: Sequence[str]) -> Sequence[str]:
        """Finishes pending and abandoned tasks without running them; who waits for them is woken.

        A run that was thought dead cannot record an outcome any more.

        Returns:
            The ids of those that are cancelled by this call, in the order given. The others do not
            exist, are held by a worker or are finished, and are left as they are.
        """
        ...

    async def prune(self, *, older_than: float) -> int:
        """Deletes the tasks that finished more than ``older_than`` seconds ago; returns how many."""
        ...

    async def payload_formats(self, mark: bytes) -> Sequence[PayloadFormat]:
        """Counts the unfinished tasks by the format of their payload.

        Args:
            mark: Bytes to search the payloads for.
        """
        ...

    async def examine(self) -> Sequence[Finding]:
        """Examines the store: what it stands on, whether it is whole, whether anyone works on it."""
        ...

    # The last one: from here on, `list` is this method to a type checker.
    async def list(
        self,
        *,
        status: Status | None = None,
        limit: int = 100,
        name: str | None = None,
        error: str | None = None,
        since: float | None = None,
        before: str | None = None,
        queue: str | None = None,
    ) -> Sequence[TaskInfo]:
        """Lists tasks, the newest first: by when they were finished, or else by when they were stored.

        Args:
            status: Only tasks of this status; ``None`` means all, by when they were stored.
            limit: How many to list at most, at least 1.
            name: Only tasks whose name contains this text; if it holds ``*``, ``?`` or ``[``, it is a
                pattern for the whole name: any text, any character, or one of ``[abc]`` or not of
                ``[^abc]``. Case matters.
            error: Only tasks whose error contains this text. Case matters.
            since: Only tasks that were finished, or else stored, within so many seconds.
            before: The id of the last task of one page, to list the next one: the tasks that come
                after it. What is stored or finished meanwhile does not shift them.
            queue: Only tasks of this queue; an empty name means the default one.

        Raises:
            ValueError: ``before`` is not in this list: it is unknown, or was deleted or retried.
        """
        ...
