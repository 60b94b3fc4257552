"""What a backend may offer beside the contract: to record more than that a task has ended."""

from typing import Literal, Protocol, runtime_checkable

type Ending = Literal["retry", "cancel", "then"]
"""``"retry"``: ``Outcome.retry_in`` and ``.counts``; ``"cancel"``: ``.cancelled``; ``"then"``: ``.then``."""


@runtime_checkable
class Endings(Protocol):
    """A backend whose ``mark_success`` and ``mark_failure`` carry out more of an ``Outcome`` than its first fields.

    The rules of :class:`~sitq.Backend` hold here too: what is asked for is part of the one atomic
    change, is fenced by the claim, and is recognised if the same outcome is recorded again.

    ``"retry"``: ``mark_failure`` makes the task pending, due in ``retry_in`` seconds by the store's clock.
    Error and traceback are kept and shown until the next outcome. The run keeps its number; because it
    harmed no worker, ``max_attempts`` rises by one, whether it ``counts`` or not: the next attempt is no
    nearer to being the last. ``failures`` rises by one if it ``counts``. Workers are woken, who waits for
    the result need not be. As long as the task waits, the same outcome is recognised; once it was given
    out again, it is not held. If the task is buried later, its traceback is cleared.

    ``"cancel"``: ``mark_failure`` ends the task as ``"cancelled"``, with the error text. Who waits for the
    result is woken.

    ``"then"``: both calls store the tasks as ``enqueue`` does, if and only if the claim holds, and only once.
    A task whose id is taken is not stored again, and is no error: it must not keep other outcomes from
    being recorded. One with a payload larger than ``max_payload_bytes`` is a ``ValueError``, one with extras
    that the backend does not have a ``BackendError``; then nothing of the call is recorded.
    """

    @property
    def endings(self) -> frozenset[Ending]:
        """What is carried out."""
        ...
