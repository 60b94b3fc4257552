"""The contract between sitq and a store."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from sitq.models import NewTask, Outcome, Reservation, ReservedTask, Result

MAX_ID_CHARACTERS = 1_000
"""Up to this length every backend keeps an id; it may refuse a longer one."""


@runtime_checkable
class Backend(Protocol):
    """Keeps tasks and their outcomes, and hands each task to one worker at a time.

    The rules that hold for every method:

    - Bytes in, bytes out: a backend never loads a payload or a result.
    - The store owns the clock. Callers give durations in seconds, and moments only as ``eta``. A
      store on another host compares with that host's clock, so that the hosts of the workers need
      not agree on the time.
    - One call is one atomic change: all of it is stored, or nothing.
    - A call may be repeated. After a :class:`~sitq.BackendUnavailableError` nobody knows whether it
      was carried out: the connection may have broken between the change and its answer. Made again
      with the same arguments, it is carried out once; each method says how a repeat is recognised.
    - No call names a held task twice. Callers see to that; what happens otherwise is undefined.
    - A call that is cancelled leaves no lock held and no task stranded beyond its lease.
    - A call may come from any event loop of the process, from several at once. A loop may end
      without :meth:`close`: the backend drops what belongs to that loop, connections for instance,
      and works in the others. See :class:`~sitq.backends.leaving.Leaving`.
    - What the store cannot do is a :class:`~sitq.BackendError`, or one of its leaves, within
      bounded time: :class:`~sitq.BackendUnavailableError` if trying again can help.

    A task is *held* from the reservation that gave it out until its outcome is recorded, it is
    released, or another reservation takes it over because its lease has ended. The claim that came
    with the reservation is the proof: a call with a claim that no longer holds changes nothing for
    that task and returns it. That is news, not an error.
    """

    @property
    def max_payload_bytes(self) -> int | None:
        """The largest payload or result that can be stored, in bytes; ``None`` if there is no limit.

        Final once :meth:`connect` has returned, because a server may have to be asked for it.
        """
        ...

    async def connect(self) -> None:
        """Opens the store, or counts one more user of it if it is open.

        Raises:
            BackendError: The store cannot be opened.
        """
        ...

    async def close(self) -> None:
        """Counts one user less, and closes the store after the last one; harmless when called too often."""
        ...

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[str] | None:
        """Stores all of ``tasks`` or none, in this order.

        Returns the ids of the tasks that stand for them, in this order, if one of them was not stored because
        another task stands for it (see ``sitq.backends.uniques``); else it may as well return ``None``.

        When it returns, they survive a crash of every process on the host.

        A repeat is recognised by its tasks: if all of them are stored already, with these payloads,
        nothing is stored and nothing raised, whatever has become of them since. If only some are,
        or if one has another payload, an id is taken. So a repeat may be an error if some of its
        tasks were pruned meanwhile, and stores them anew if all were. Those who wait for due tasks
        are notified by a repeat as well: the first call may have failed before it came to that.

        A task is due at its ``eta``, but no earlier than it is stored: a past one means now, and
        gives no precedence. If it has an ``eta``, its ``delay`` does not count.

        Raises:
            ValueError: A payload is larger than ``max_payload_bytes``, or an id is longer than the
                store keeps, which is 1,000 characters or more.
            BackendError: An id is taken, a task has ``extras`` that this backend does not know, or
                the store did not take the tasks.
        """
        ...

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out up to ``limit`` due tasks, the oldest first.

        Due are tasks that wait and whose ``eta`` has come, and tasks whose lease has ended: those
        come with an ``attempt`` one higher. ``Result.started_at`` is that of the latest run.

        A task whose lease ended in its last permitted attempt is failed here instead: it is buried. Its
        error begins with ``sitq.models.BURIED_ERROR_PREFIX`` and gives the number of attempts, and
        it has no traceback, not even that of an earlier run. By these two :meth:`sitq.Result.unwrap`
        knows that it has to raise :class:`~sitq.WorkerDiedError`. A store may bury a bounded number
        per call; the rest is buried by the next ones, and given to nobody meanwhile.

        A task that is about to start its last attempt comes alone, to a caller that says it is
        alone, so that no task is failed for what its neighbours did to their worker. It waits for the
        ordinary tasks that became due before it.

        Of several that reserve at the same time none gets what another gets, and none keeps the
        others from a task for good: what one passes over because another has it in hand is found
        by a later reservation.

        A repeat gives out other tasks. Those whose answer was lost come back when their lease ends.

        Args:
            limit: How many tasks to give out at most, at least 1.
            lease: Seconds for which they are held.
            alone: Whether the caller holds no other task.
        """
        ...

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Lets the leases of ``tasks`` end ``lease`` seconds from now; returns those not held.

        A repeat does the same again.
        """
        ...

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results; returns the tasks that were not held.

        A repeat is recognised by the claim, which a finished task keeps, and by the status: its tasks
        are not returned. Result and texts need not be compared. Another outcome under the same claim,
        a failure after a success for instance, changes nothing, and its task is returned.

        The worker compares a result with ``max_payload_bytes``; a backend need not.
        """
        ...

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors; returns the tasks that were not held. Otherwise as :meth:`mark_success`."""
        ...

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back, due at once and the attempt unspent; returns those not held.

        A released task keeps its place: it is due as of when it was stored, before all that was
        stored later. Released from its first run, it has no ``started_at`` in ``Result`` again; from a
        later one, it may keep it.

        A repeat changes nothing, and returns all of them.
        """
        ...

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Returns what is known of a task, the value serialized; ``None`` if there is no such task."""
        ...

    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> AbstractContextManager[None]:
        """Calls ``on_change`` whenever there may be something new to find, until the block is left.

        Once it is left there is no further call, not even for what changed before.

        Called inside an event loop, and ``on_change`` is called in that loop. What changed before
        the block was entered is found by a query after entering it. If watching takes time to
        begin, as a subscription at a server does, ``on_change`` is called when it has begun, and
        again after each interruption: whatever was missed is found by the query that follows.

        It may be called too often; that it comes too seldom, or late, is made good by a poll.

        Args:
            on_change: Called without arguments; must be quick.
            task_id: The task whose outcome is waited for; ``None`` waits for due tasks.
        """
        ...


def check_backend(backend: object) -> Backend:
    """Returns ``backend`` if it is one; a path above all, as other libraries take it, is none.

    Raises:
        TypeError: It lacks members of :class:`Backend`.
    """
    if not isinstance(backend, Backend):
        fix = f": write SQLiteBackend({os.fspath(backend)!r})" if isinstance(backend, (str, os.PathLike)) else ""
        raise TypeError(f"backend must be a Backend, not {type(backend).__name__}{fix}")
    return backend
