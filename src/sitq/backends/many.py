"""What a backend may offer beside the contract: to look at many tasks at once, and to watch them together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from sitq.models import Result


class Ended(NamedTuple):
    """What :meth:`ManyResults.get_results` found.

    Attributes:
        results: The tasks that are finished, by their ids, and ``None`` for each id that is unknown. What is in
            neither of the two fields is not finished.
        left: The ids that were not looked at, because what was found is large enough: ask for them again.
    """

    results: Mapping[str, Result[bytes] | None]
    left: Sequence[str] = ()


@runtime_checkable
class ManyResults(Protocol):
    """A backend that can do for many tasks in one call what ``get_result`` and ``watch`` do for one.

    Who waits for the results of many tasks asks a backend without this for each of them, a few at a time, and
    watches each.
    """

    async def get_results(self, task_ids: Sequence[str]) -> Ended:
        """Returns which of some tasks have ended, with their results as ``get_result`` gives them.

        Args:
            task_ids: Up to some hundreds, each one once. At least one of them is looked at.
        """
        ...

    def watch_results(
        self, on_change: Callable[[str], object], task_ids: Collection[str]
    ) -> AbstractContextManager[None]:
        """Calls ``on_change`` with an id whenever that task may have ended, until the block is left.

        All that :meth:`sitq.Backend.watch` promises holds for each of the tasks.

        Args:
            on_change: Called with the id of one of the tasks; must be quick.
            task_ids: The tasks that are waited for. It may shrink while it is watched: ids that are not in it
                any more are not waited for. It is only read in the event loop in which the block was entered,
                except for ``in``, which may be asked in any thread.
        """
        ...
