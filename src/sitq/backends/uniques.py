"""What a backend may offer beside the contract: tasks of which one is enough."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Uniques(Protocol):
    """A backend whose ``enqueue`` understands ``extras.unique``, a :class:`~sitq.models.Unique`.

    Whether a task is stored is decided when it is enqueued, by the tasks that are there, as part of the one
    atomic change: of many callers with one key, in many processes, one stores its task and the others get
    its id. Nothing holds a key afterwards. So no task can fail to be started, released, retried or ended for
    the key of another one; after a retry two tasks of one key may stand side by side, and the next ``enqueue``
    finds one of them.

    *Waiting* is a task that is ``"pending"``, one that is to be tried again included. *Running* is one that is
    ``"in_progress"``, also if it is abandoned. A finished one counts for ``period`` only, and only as long as
    the store has it. ``while_="waiting"`` is kept out by a waiting task, ``"unfinished"`` by a waiting or a
    running one; either also by the latest task of the key that was stored, if that was less than ``period`` ago.

    - ``otherwise="keep"``: the task is not stored; the one that keeps it out stands for it.
    - ``"replace"``: if what keeps it out waits, that one becomes the new call: payload, name, format, due time,
      ``max_attempts``, queue and priority, as if it had never been run. Its id stays, and when it was enqueued. One
      that is due stays as long due if the new one is due at once. What runs is never touched: then as ``"keep"``.
    - ``"raise"``: :class:`~sitq.DuplicateTaskError`, and nothing of the call is stored.

    The tasks of one call see those before them. ``enqueue`` returns the ids of the tasks that stand, one for
    each task of the call, in this order; ``None`` if each stands for itself.

    A repeat is recognised: a task that is stored stands for itself; one that has replaced another is still that one's
    call, for an hour at least, whatever has become of it and whoever has replaced it since. Nothing is replaced by
    a repeat, or refused. One that was kept out is decided anew, because nothing of it is stored. A plain task
    in such a call is recognised by itself as well, whatever becomes of the others. An id twice in a call, or one
    that is taken, is a ``BackendError`` as ever.

    In ``Outcome.then`` a key never keeps an outcome from being recorded: ``"raise"`` is ``"keep"`` there, and a
    period that is too long is as long as the store can see. The task whose outcome it is counts as what it is
    afterwards: as finished, or as waiting if it is tried again.
    """

    @property
    def has_uniques(self) -> bool:
        """Whether it does all this."""
        ...
