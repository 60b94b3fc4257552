"""What passes between the queue, the worker and a backend."""

import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, Self, get_args

from sitq._checks import MAX_SECONDS
from sitq.errors import WAITING, TaskCancelledError, TaskFailedError, WorkerDiedError

MAX_ATTEMPTS = 5
"""How often a task may be started unless somebody says otherwise."""

type Status = Literal["pending", "in_progress", "success", "failed", "cancelled"]

STATUSES: tuple[Status, ...] = get_args(Status.__value__)
"""Every status, in the order of a task's life."""

FINISHED: frozenset[Status] = frozenset({"success", "failed", "cancelled"})
"""The statuses that a task does not leave by itself."""

BURIED_ERROR_PREFIX = "WorkerDiedError: "
"""How the error of a task begins that a backend has failed for the death of its workers. Such a task has
no traceback."""

type While = Literal["waiting", "unfinished"]
type Otherwise = Literal["keep", "replace", "raise"]

MAX_KEY_CHARACTERS = 1_000
"""Up to this length every backend keeps the key of a unique task."""

_NOT_IN_A_KEY = re.compile("[\0\ud800-\udfff]")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# An instance of its own: a host that seeds the global generator, as tests do, must not make two
# processes draw the same ids. The child of a fork must not repeat its parent's either.
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


class TaskId[T](str):
    """The id of a task: a plain ``str`` at run time, that tells a type checker what the task returns."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Returns a plain ``str``: what encodes data, msgspec and PyYAML for instance, takes no subclass of one."""
        return str(text)  # type: ignore[return-value]


def new_task_id() -> str:
    """Returns a UUIDv7 (RFC 9562) as 32 hexadecimal digits, so that ids sort by the time they were made.

    Time-ordered keys keep insertion at one end of a backend's index; random ones touch all of it.
    The bits below the millisecond hold its fraction (method 3 of section 6.2).
    """
    milliseconds, fraction = divmod(time.time_ns(), 1_000_000)
    high = milliseconds % (1 << 48) << 16 | 0x7000 | fraction * 4096 // 1_000_000
    # By way of bytes: formatting a long integer takes twice as long.
    return (high << 64 | 1 << 63 | _random.getrandbits(62)).to_bytes(16).hex()


def new_claim() -> int:
    """Returns a token that no other reservation has: 63 random bits, so that SQLite can keep it."""
    # Not from `secrets`: its system call lets go of the interpreter lock, and the thread of the
    # connection would start on what is queued so far instead of taking it all together.
    return _random.getrandbits(63)


def now_seconds() -> float:
    """Returns the host's time in seconds since 1970 UTC.

    By way of ``datetime``: what freezes time in tests, freezegun for instance, freezes that for every
    caller, but gives the real ``time.time()`` to a thread such as a connection's.
    """
    return datetime.now(UTC).timestamp()


def to_micros(moment: datetime) -> int:
    """Returns an aware datetime as integer microseconds since 1970 UTC."""
    return (moment - EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    """Returns integer microseconds since 1970 UTC as an aware datetime."""
    return EPOCH + micros * MICROSECOND


@dataclass(frozen=True, slots=True)
class Unique:
    """A key of which one task is enough for now: looked up when a task with it is enqueued.

    Nothing holds the key afterwards: no change of a task's state can fail for it, and after a retry by
    hand two tasks with one key may stand side by side.

    Attributes:
        key: The key, 1 to 1,000 characters; shared by all tasks of the store, whatever they call.
        while_: What keeps another one out: a task that waits to be run (``"waiting"``), which loses no
            news, or also one that runs (``"unfinished"``).
        period: The time after the latest task with this key was stored in which no other one is stored,
            whatever has become of that one; ``None`` for none.
        otherwise: What becomes of a task that is kept out: ``"keep"``: it is not stored, and the id of the
            one that stands is returned. ``"replace"``: one that waits gets its call, due time and options,
            and keeps its id; one that runs is never touched. ``"raise"``: ``DuplicateTaskError``.

    Raises:
        TypeError: The key is no ``str``, or the period no ``timedelta``.
        ValueError: The key is empty or too long, or has a character that not every store keeps: NUL, or a lone
            surrogate. The period is not more than 0, or more than a hundred years. A word is none of those above.
    """

    key: str
    while_: While = "waiting"
    period: timedelta | None = None
    otherwise: Otherwise = "keep"

    def __post_init__(self) -> None:
        """Refuses what no store could take."""
        if not isinstance(self.key, str):
            raise TypeError(f"the key of a unique task must be a str, not {type(self.key).__name__}")
        if not 1 <= len(self.key) <= MAX_KEY_CHARACTERS:
            raise ValueError(
                f"the key of a unique task must have 1 to {MAX_KEY_CHARACTERS:,} characters, and this one has "
                f"{len(self.key):,}: use a hash of what is longer"
            )
        if _NOT_IN_A_KEY.search(self.key):
            raise ValueError(f"the key {self.key!r} has a NUL or a lone surrogate: leave it out")
        for name, value, words in (("while_", self.while_, While), ("otherwise", self.otherwise, Otherwise)):
            if value not in get_args(words.__value__):
                raise ValueError(f"{name} must be one of {get_args(words.__value__)}, not {value!r}")
        if self.period is None:
            return
        if not isinstance(self.period, timedelta):
            raise TypeError(f"period must be a timedelta, not {type(self.period).__name__}")
        if not 0 < self.period.total_seconds() <= MAX_SECONDS:
            raise ValueError(f"period must be more than 0, and at most a hundred years; got {self.period!r}")


@dataclass(frozen=True, slots=True)
class Extras:
    """What a store has to know of a task beyond when it is due, because it must find the task by it.

    Each field belongs to an optional ability of a backend. A backend without that ability refuses the
    task with a ``BackendError`` if the field is not at its default.

    Attributes:
        queue: The name of the task's queue; empty for the default one.
        priority: From -100 to 100; of two due tasks the one with the higher priority is sooner.
        unique: The key of which one task is enough; ``None`` for none.
    """

    queue: str = ""
    priority: int = 0
    unique: Unique | None = None


class NewTask(NamedTuple):
    """A task to be stored.

    Attributes:
        task_id: Unique among all tasks.
        payload: The serialized call.
        name: What the call is named in logs and listings; never read back as code.
        format: What wrote the payload, so that a mismatch is seen without loading it.
        eta: When the task becomes due (aware, UTC); ``None`` means now.
        max_attempts: How often the task may be started before it is failed, at least 1.
        delay: Seconds from when it is stored, by the store's clock, until it becomes due: in place
            of ``eta``; ``None`` means none.
        extras: What optional abilities of the store need to know; ``None`` means nothing.
    """

    task_id: str
    payload: bytes
    name: str = ""
    format: str = ""
    eta: datetime | None = None
    max_attempts: int = MAX_ATTEMPTS
    delay: float | None = None
    extras: Extras | None = None


class ReservedTask(NamedTuple):
    """A task that a worker holds, under a lease.

    Attributes:
        key: The backend's own handle of the task.
        claim: The backend's token of this reservation; only its holder may record an outcome.
        task_id: The task's id.
        payload: The serialized call.
        name: What the call is named in logs.
        format: What wrote the payload.
        attempt: The number of this run, from 1.
        max_attempts: The number of the last permitted run.
        enqueued_at: When the task was stored (aware, UTC).
        failures: How many runs of this task have raised and were made due again by a policy.
        started_at: When this run was reserved, by the store's clock (aware, UTC); ``None`` from a
            backend that does not know it.
    """

    key: int | str
    claim: int | str
    task_id: str
    payload: bytes
    name: str
    format: str
    attempt: int
    max_attempts: int
    enqueued_at: datetime
    failures: int = 0
    started_at: datetime | None = None

    @property
    def is_last_attempt(self) -> bool:
        """Whether no further attempt is permitted after this one."""
        return self.attempt >= self.max_attempts


class Outcome(NamedTuple):
    """How a run ended: with ``result``, or with ``error`` and perhaps ``traceback``.

    A store that cannot hold some character, NUL for instance, may put another in its place in
    ``error`` and ``traceback``, and in a task's ``name``. Of lone surrogates sitq itself clears them.

    The fields behind these are for backends that list them in ``endings`` (see
    ``sitq.backends.endings``); no other one is ever given it.

    Attributes:
        task: The task that was run.
        result: The serialized return value; ``None`` for a failure.
        error: ``"ExceptionType: message"``; ``None`` for a success.
        traceback: The formatted traceback, if there is one.
        retry_in: Seconds after which the task is due again; error and traceback are kept until then.
            ``None``: this is the end of the task.
        counts: Whether a run that is retried counts as one of the task's ``failures``.
        cancelled: Whether the task ends as ``"cancelled"`` instead of ``"failed"``.
        then: Tasks that are stored together with this outcome, or not at all if the claim does not hold.
        ran_on: Where the run was, for people: host and process. Any backend may be given it, and may ignore it.
    """

    task: ReservedTask
    result: bytes | None = None
    error: str | None = None
    traceback: str | None = None
    retry_in: float | None = None
    counts: bool = True
    cancelled: bool = False
    then: Sequence[NewTask] = ()
    ran_on: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call of ``Backend.reserve`` found.

    Attributes:
        tasks: The tasks now held by the caller, oldest first.
        buried: The tasks that were failed by this call, because their workers died too often.
        next_due_in: Seconds until the next waiting task is due or the next lease ends; ``None``
            if there is neither, or if the store cannot know. Meaningful only when fewer tasks came
            back than were asked for.
        last_attempt_waiting: A task on its last attempt is due and was left, for a caller that is
            alone, and no other task became due before it. ``False`` as well if the store cannot know:
            then it is found when a worker that holds nothing asks.
    """

    tasks: Sequence[ReservedTask] = ()
    buried: Sequence[str] = ()
    next_due_in: float | None = None
    last_attempt_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Result[T]:
    """What is known of a task.

    Two results are equal if they tell of the same run: the value is not compared, because it is
    loaded anew for each, and not all that a task may return can say whether it is equal.

    Attributes:
        task_id: The task's id.
        status: ``"success"``, ``"failed"`` or ``"cancelled"``; from a backend also ``"pending"``
            and ``"in_progress"``.
        value: What the task returned; ``None`` unless ``status`` is ``"success"``.
        error: ``"ExceptionType: message"`` of a task that failed or of a run that was cancelled, else
            ``None``; from a backend also that of the latest run, if the task is to be retried after it.
        traceback: The worker's traceback that belongs to ``error``, formatted, if there is one.
        attempt: How many times the task was started.
        enqueued_at: When the task was stored.
        started_at: When its latest run was started; ``None`` if it never was.
        finished_at: When its outcome was stored; ``None`` if it is not finished.
    """

    task_id: str
    status: Status
    value: T | None = field(compare=False)
    error: str | None
    traceback: str | None
    attempt: int
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    def unwrap(self) -> T:
        """Returns the value of a task that succeeded.

        Raises:
            TaskFailedError: The task failed; the error carries the remote traceback.
            TaskCancelledError: The task was cancelled.
            WorkerDiedError: Its workers died on every attempt. This and the one before are
                ``TaskFailedError``s, too.
            RuntimeError: The task is not finished.
        """
        if self.status == "success":
            return self.value  # type: ignore[return-value]  # T may itself include None
        if self.status == "failed":
            error = self.error or "unknown error"
            buried = self.traceback is None and error.startswith(BURIED_ERROR_PREFIX)
            raise (WorkerDiedError if buried else TaskFailedError)(self.task_id, error, self.traceback)
        if self.status == "cancelled":
            raise TaskCancelledError(self.task_id, self.error or WAITING, self.traceback)
        raise RuntimeError(f"task {self.task_id} is {self.status}: it has no result yet")
