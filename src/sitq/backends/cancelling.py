"""What a backend may offer beside the contract: to end tasks that run."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

type RunningTasks = Literal["leave", "ask", "cut"]
"""What to do with tasks that run: leave them, ask them to end, or end them for everybody but their own code."""


@runtime_checkable
class Cancelling(Protocol):
    """A backend whose tasks in progress can be asked to end, or cut.

    The rules of :class:`~sitq.Backend` hold here too; a call of many tasks may be made of several changes,
    as for :class:`~sitq.backends.inspect.Inspectable`.

    A task that was asked to end stays in progress and held. Its worker learns of it by :meth:`asked`, ends
    the run and records an outcome, which is recorded like any other: a task that has returned a value all
    the same has succeeded. But it is not given out again. Who puts it back, by a release or because it is to
    be tried again, has ended it as ``"cancelled"``, with the error ``sitq.errors.ASKED`` and without a
    traceback; it was held, and such an outcome is recognised if it is recorded again. So does a reservation
    that finds its lease over, and returns it neither among ``tasks`` nor among ``buried``. Who waits for the
    result is woken. A reservation that has found nothing but such tasks looks for others.

    ``Inspectable.retry`` forgets that a task was asked to end.
    """

    async def ask(self, task_ids: Sequence[str]) -> Sequence[str]:
        """Asks tasks in progress to end. Who watches one of them by this backend object is woken.

        A repeat does the same again: the first time at which a task was asked is kept.

        Returns:
            The ids of those that are asked, by this call or an earlier one, in the order given. The
            others do not exist or are not in progress, and are left as they are.
        """
        ...

    async def asked(self) -> Sequence[tuple[int | str, int | str]]:
        """Returns ``ReservedTask.key`` and ``.claim`` of every task in progress that was asked to end.

        Workers call it every second or so while they run something: it is cheap, and takes no lock that
        others wait for.
        """
        ...

    async def cut(self, task_ids: Sequence[str]) -> Sequence[str]:
        """Finishes tasks in progress as ``"cancelled"`` at once, with the error ``sitq.errors.CUT``.

        Who waits for the result is woken. Their claims do not hold any more: their runs can record nothing.

        Returns:
            The ids of those that are cut by this call, in the order given. The others do not exist
            or are not in progress, and are left as they are.
        """
        ...
