"""What a backend may offer beside the contract: named queues and priorities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable


@dataclass(frozen=True, slots=True)
class Lane:
    """The unfinished tasks of one queue and one priority, at one moment of the backend's clock.

    Attributes:
        queue: The name of the queue; empty for the default one.
        priority: From -100 to 100; higher is sooner.
        waiting: Tasks that wait to be run, whether they are due or not.
        due: How many of them are due.
        running: Tasks that a worker holds.
        abandoned: Tasks whose worker is gone: their lease is over, and nobody has taken them over.
        oldest_due: For how many seconds the oldest of ``due`` has been due; ``None`` if none is.
        paused: Whether the queue is paused.
    """

    queue: str
    priority: int
    waiting: int
    due: int
    running: int
    abandoned: int
    oldest_due: float | None
    paused: bool


@runtime_checkable
class Lanes(Protocol):
    """A backend that keeps tasks of several queues and priorities apart.

    ``enqueue``, and ``Outcome.then`` if it is carried out, understand ``Extras.queue`` and
    ``Extras.priority``. The tasks of one queue and one priority are a lane. In a lane, ``reserve`` gives
    out the oldest first. Of several lanes it serves the one with the smallest *rank*: the time at which
    its first task became due, less its priority times a head start. So a task is overtaken by those only
    that became due within its disadvantage after it. With an infinite head start the higher priority
    always comes first.

    A task stays in its lane when it is abandoned, released, retried by a policy or by hand. A last attempt
    comes alone, as ever: it waits for the ordinary tasks of a smaller rank. What is not in a queue that is
    served and not paused, a reservation does not give out; nor do its ``next_due_in`` and
    ``last_attempt_waiting`` tell of it. A task whose attempts are spent is buried by any reservation.

    Names of queues are those of ``Extras``: the default queue has an empty one.
    """

    def select(self, queues: Sequence[str] | None, head_start: float | None = None) -> Self:
        """Returns a view of the same store whose ``reserve`` gives out tasks of these queues only.

        All else it does as this backend. It counts as the same user of the store: a ``connect`` of the view
        is undone by a ``close`` of the view or of this backend.

        Args:
            queues: Their names; ``None`` for all queues, also those that do not exist yet.
            head_start: Seconds for each step of priority, ``inf`` for a strict order; ``None`` as this
                backend has it.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Has no reservation of anybody give out tasks of ``queue`` from now on, until it is resumed.

        What is held already goes on. The queue need not have any task. A repeat changes nothing.
        """
        ...

    async def resume(self, queue: str) -> None:
        """Ends a pause; workers are woken. Nothing to do if the queue is not paused."""
        ...

    async def lanes(self) -> Sequence[Lane]:
        """Returns the lanes that hold unfinished tasks, and the queues that are paused, by name and priority.

        The higher priority first. May have to read every unfinished task.
        """
        ...
