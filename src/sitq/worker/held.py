"""The tasks that a worker holds."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sitq.executors.base import NoThreadError
from sitq.extensions.base import Run
from sitq.models import ReservedTask


@dataclass(slots=True, eq=False)
class HeldTask:
    """A task that a worker holds, and how long it may be sure of that.

    Attributes:
        task: The task.
        renewed: The monotonic time, in seconds, just before its current lease was asked for: the
            lease ends no earlier than its length after this.
        not_held: Whether another worker may hold it by now.
        aio: The asyncio task that runs it; ``None`` before it has begun.
        began: When that one began, by the loop's clock, in seconds.
        run: Its run, from when its call was loaded; ``None`` before that.
        no_thread: Why its call, or the loading of it, could not be begun; ``None``: it could.
    """

    task: ReservedTask
    renewed: float
    not_held: bool = False
    aio: asyncio.Task[None] | None = None
    began: float = 0.0
    run: Run | None = None
    no_thread: NoThreadError | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has begun and has not ended."""
        return self.aio is not None and not self.aio.done()


class HeldTasks:
    """What a worker holds, from the reservation until the outcome is recorded, the oldest first.

    Attributes:
        given_back: What is held no more, and is to be released.
    """

    def __init__(self) -> None:
        self._since: dict[HeldTask, float] = {}
        self.given_back: list[ReservedTask] = []

    def __contains__(self, held: HeldTask) -> bool:
        return held in self._since

    def add(self, tasks: Iterable[ReservedTask], *, renewed: float, now: float) -> list[HeldTask]:
        """Holds tasks of a reservation from ``now`` on, by the loop's clock, and returns them."""
        added = [HeldTask(task, renewed) for task in tasks]
        self._since.update(dict.fromkeys(added, now))
        return added

    def remove(self, *removed: HeldTask) -> None:
        """Holds tasks no longer."""
        for held in removed:
            del self._since[held]

    def oldest(self) -> float | None:
        """Returns since when the oldest of them is held; ``None`` if there is none."""
        return next(iter(self._since.values()), None)

    def all(self) -> list[HeldTask]:
        """Returns all of them; may be called in any thread."""
        return list(self._since.copy())

    def running(self) -> list[HeldTask]:
        """Returns those that have begun and have not ended."""
        return [held for held in self._since if held.is_running]

    def runs(self) -> list[Run]:
        """Returns the runs that have begun and have not ended; may be called in any thread."""
        return [held.run for held in self._since.copy() if held.run is not None and held.is_running]
