"""The contract between sitq and a store."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from sitq.models import NewTask, Outcome, Reservation, ReservedTask, Result


@runtime_checkable
class Backend(Protocol):
    """Keeps tasks and their outcomes, and hands each task to one worker at a time.

    The rules that hold for every method:

    - Bytes in, bytes out: a backend never loads a payload or a result.
    - The backend owns the clock. Callers pass durations in seconds, and moments only as ``eta``.
    - One call is one atomic change: all of it is stored, or nothing.
    - A call that is cancelled leaves no lock held and no task stranded beyond its lease.
    - A call may come from any event loop of the process, from several at once.
    - What the store cannot do is a :class:`~sitq.BackendError`, or one of its leaves, within
      bounded time.

    A task is *held* from the reservation that gave it out until its outcome is recorded, it is
    released, or its lease ends. The claim that came with the reservation is the proof: a call with
    a claim that no longer holds changes nothing for that task and returns it.
    """

    @property
    def max_payload_bytes(self) -> int | None:
        """The largest payload or result that can be stored; ``None`` where there is no limit."""
        ...

    async def connect(self) -> None:
        """Opens the store, or counts one more user of it where it is open.

        Raises:
            BackendError: The store cannot be opened.
        """
        ...

    async def close(self) -> None:
        """Counts one user less, and closes the store after the last one."""
        ...

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Stores all of ``tasks`` or none, in this order.

        When it returns, they survive a crash of every process on the host.

        Raises:
            ValueError: A payload is larger than ``max_payload_bytes``.
            BackendError: The store did not take them.
        """
        ...

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Gives out up to ``limit`` due tasks, the oldest first.

        Due are tasks that wait and whose ``eta`` has come, and tasks whose lease has ended: those
        come with an ``attempt`` one higher. A task whose last permitted attempt lost its lease is
        failed here instead, with an error that says so.

        A task that is about to start its last attempt comes alone, to a caller that says it is
        alone, so that no task is failed for what its neighbours did to their worker.

        Args:
            limit: How many tasks to give out at most, at least 1.
            lease: Seconds for which they are held.
            alone: Whether the caller holds no other task.
        """
        ...

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """Lets the leases of ``tasks`` end ``lease`` seconds from now; returns those not held."""
        ...

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records results; returns the tasks that were not held.

        Called again with the same outcome, it recognises that one as recorded.
        """
        ...

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Records errors; returns the tasks that were not held. Otherwise as mark_success."""
        ...

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives tasks back, due at once and the attempt unspent; returns those not held."""
        ...

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Looks once for a task; ``None`` where there is no such task.

        The value is the serialized one.
        """
        ...

    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> AbstractContextManager[None]:
        """Calls ``on_change`` whenever another look may find something new.

        Called inside an event loop, and ``on_change`` is called in that loop. What changed before
        the block was entered is found by a look after entering it. It may be called too often;
        that it comes too seldom, or late, is made good by a poll.

        Args:
            on_change: Called without arguments; must be quick.
            task_id: The task whose outcome is waited for; ``None`` waits for due tasks.
        """
        ...
