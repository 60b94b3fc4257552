"""What a backend may offer beside the contract: to keep how far the tasks that run have come."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from sitq.models import ReservedTask

MAX_NOTE_CHARACTERS = 500
"""What a store keeps of a note at least; it is never given a longer one."""


class Report(NamedTuple):
    """What a run reports of itself.

    Attributes:
        task: The task, as it was reserved.
        done: How much is done.
        total: How much there is to do; ``None``: that is not known.
        note: A text for people; may be empty.
    """

    task: ReservedTask
    done: float
    total: float | None = None
    note: str = ""


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        done: How much is done.
        total: How much there is to do; ``None``: that is not known.
        note: A text for people; may be empty.
        at: When the store was told (aware, UTC).
    """

    done: float
    total: float | None
    note: str
    at: datetime


@runtime_checkable
class Progressing(Protocol):
    """A backend that keeps the last report of each run.

    The rules of :class:`~sitq.Backend` hold here too. A report needs not survive a power cut.
    """

    async def report(self, reports: Sequence[Report]) -> None:
        """Keeps reports of tasks that are held, in place of the ones before; those of others change nothing.

        Who watches one of the tasks by this backend object is woken. It is called about once a second by each worker
        whose tasks report, for all of them together. No task is named twice. A repeat does the same again.
        """
        ...

    async def progress(self, task_id: str) -> Progress | None:
        """Returns the last report of the task's latest run, also after that has recorded its outcome.

        ``None`` if there is none: the task is unknown, was cut or buried, has a run that has not reported, or waits
        as if it had never been run.
        """
        ...
