"""What a backend may offer beside the contract: to record more than that a task has ended."""

from typing import Literal, Protocol, runtime_checkable

type Ending = Literal["retry", "cancel", "then"]
"""``"retry"``: ``Outcome.retry_in`` and ``.counts``; ``"cancel"``: ``.cancelled``; ``"then"``: ``.then``."""


@runtime_checkable
class Endings(Protocol):
    """A backend whose ``mark_success`` and ``mark_failure`` carry out more of an ``Outcome`` than its first fields.

    The rules of :class:`~sitq.Backend` hold here too: what is asked for is part of the one atomic
    change, is fenced by the claim, and is recognised if the same outcome is recorded again.
    """

    @property
    def endings(self) -> frozenset[Ending]:
        """What is carried out."""
        ...
