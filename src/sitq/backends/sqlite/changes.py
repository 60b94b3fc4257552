"""The changes of state, as records: what each operation has to know, and nothing else.

The fields of all of them together are the columns of the temporary view ``change`` (see
``statements``). So a name means the same in each record that has it:

================  ==================================================================================
field             what it holds
================  ==================================================================================
id                the key of the task's row
claim             the token of a reservation: the new one's, or the one under which the task is held
available_at      when the task is due, or when its lease ends (the column of the same name)
task_id           the task's id
name              what the call is named
format            what wrote the payload
payload           the serialized call
max_attempts      how often the task may be started
status            how the task ended
result            the serialized return value
error             ``"ExceptionType: message"``
traceback         the formatted traceback
counts            whether a run that is retried counts as one of the task's failures
ran_on            where the run was, for people
max_rows          how many tasks to reserve or to delete at most
alone             whether the caller holds no other task
finished_before   tasks that finished before this moment are deleted
failed_before     the same for failed tasks, if there is another moment for them
queue             the name of the task's queue, ``''`` for the default one; ``None`` in the default lane
priority          the task's priority; ``None`` in the default lane
unique_key        the key of which one task is enough; ``None`` for a task that has none
while_            what keeps another one out: ``"waiting"`` or ``"unfinished"``
period            for how long the latest one keeps another one out, in microseconds; or ``None``
otherwise         what becomes of one that is kept out: ``"keep"``, ``"replace"`` or ``"raise"``
again             whether the task that is held is tried again after the outcome
done              how much of a task is done
total             how much there is to do; ``None``: that is not known
note              a text for people
call              a token of the call, by which it finds its notes; ``None`` if it does not ask
================  ==================================================================================

Moments are microseconds since 1970 UTC. When the changes are made is the same for all changes of a
batch, and no field.
"""

from typing import Literal, NamedTuple

from sitq.backends.sqlite.ability_changes import AbilityChange
from sitq.backends.sqlite.lanes import LaneChange


class StoreTask(NamedTuple):
    """Stores a task."""

    task_id: str
    name: str
    format: str
    payload: bytes
    max_attempts: int
    available_at: int


class Reserve(NamedTuple):
    """Gives out due tasks, and fails those whose attempts are spent."""

    claim: int
    available_at: int
    max_rows: int
    alone: bool


class Renew(NamedTuple):
    """Moves the end of a lease."""

    id: int | str
    claim: int | str
    available_at: int


class Succeed(NamedTuple):
    """Records a result."""

    id: int | str
    claim: int | str
    result: bytes | None


class Fail(NamedTuple):
    """Records that a task ended without a result."""

    id: int | str
    claim: int | str
    status: Literal["failed", "cancelled"]
    error: str | None
    traceback: str | None


class RetryLater(NamedTuple):
    """Makes a task that raised pending again, by a policy: a raise is not the death of a worker."""

    id: int | str
    claim: int | str
    available_at: int
    error: str | None
    traceback: str | None
    counts: bool


class KeepAndFail(NamedTuple):
    """As :class:`Fail`, and keeps the failed attempt."""

    id: int | str
    claim: int | str
    status: Literal["failed"]
    error: str | None
    traceback: str | None
    ran_on: str


class KeepAndRetry(NamedTuple):
    """As :class:`RetryLater`, and keeps the failed attempt."""

    id: int | str
    claim: int | str
    available_at: int
    error: str | None
    traceback: str | None
    counts: bool
    ran_on: str


class StoreThen(NamedTuple):
    """Stores a task if another one, of which ``id`` and ``claim`` are, is held."""

    id: int | str
    claim: int | str
    task_id: str
    name: str
    format: str
    payload: bytes
    max_attempts: int
    available_at: int
    queue: str | None = None
    priority: int | None = None


class Release(NamedTuple):
    """Gives a task back, due at once and the attempt unspent."""

    id: int | str
    claim: int | str


class Prune(NamedTuple):
    """Deletes some tasks that finished long ago."""

    finished_before: int
    max_rows: int
    call: int | None


class Retry(NamedTuple):
    """Makes a failed, cancelled or abandoned task pending again, as if it had never been run; by hand."""

    task_id: str
    call: int


class Cancel(NamedTuple):
    """Finishes a pending or abandoned task without running it; by hand."""

    task_id: str
    call: int


class Ask(NamedTuple):
    """Asks a task in progress to end; by hand."""

    task_id: str
    call: int


class Cut(NamedTuple):
    """Finishes a task in progress, whose run goes on for nobody; by hand."""

    task_id: str
    call: int


class Unask(NamedTuple):
    """Forgets that an abandoned task was asked to end; by hand."""

    task_id: str


class NoteProgress(NamedTuple):
    """Keeps what a run reports, in place of what it has reported before."""

    id: int | str
    claim: int | str
    done: float
    total: float | None
    note: str


type Change = (
    StoreTask
    | Reserve
    | Renew
    | Succeed
    | Fail
    | RetryLater
    | KeepAndFail
    | KeepAndRetry
    | StoreThen
    | Release
    | Prune
    | Retry
    | Cancel
    | Ask
    | Cut
    | Unask
    | LaneChange
    | AbilityChange
    | NoteProgress
)
