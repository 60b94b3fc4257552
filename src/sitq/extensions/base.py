"""The protocols of extensions.

An extension is any object that has at least one of the methods ``around``, ``beside`` and
``on_event``. A worker asks which of them it has when it is made.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from sitq.backends.base import Backend
from sitq.models import ReservedTask
from sitq.serializers.calls import Call

type EventKind = Literal["started", "succeeded", "failed", "given_back", "left", "not_held", "buried"]
"""``"started"``: a run has begun. ``"succeeded"``, ``"failed"``: it has ended, and its outcome is on the
way to the store. ``"given_back"``: it did not end, and is due again with its attempt unspent.
``"left"``: it did not end, because its worker was ended without having been asked to stop; its attempt
counts. ``"not_held"``: its lease has ended and another worker may run it; what this run returns changes
nothing. ``"buried"``: it was failed because its workers died on every attempt."""


class Event(NamedTuple):
    """Something that happened to a task in a worker.

    Attributes:
        kind: What happened.
        task_id: The task's id.
        name: What its call is named; empty for ``"buried"``.
        attempt: The number of the run, from 1; 0 for ``"buried"``.
        seconds: How long the run took; ``None`` for all but ``"succeeded"`` and ``"failed"``.
        reason: Why, in words that quote nothing of the task's: for ``"failed"`` the type of the
            exception; empty if there is nothing to say.
        error: The exception of ``"failed"``, if there is one. Its text tends to quote arguments:
            think of who may read it before you show it.
    """

    kind: EventKind
    task_id: str
    name: str
    attempt: int
    seconds: float | None = None
    reason: str = ""
    error: BaseException | None = None


@dataclass(slots=True)
class Run:
    """One run of a task, for what is put around it.

    Attributes:
        task: The task.
        call: Its function and arguments. ``call.kwargs`` may be changed before the function is called.
    """

    task: ReservedTask
    call: Call


@runtime_checkable
class Around(Protocol):
    """Something that every run of a worker is wrapped in: a span, a session, a transaction.

    A time limit, too, but for coroutines only: a plain function goes on in its thread, and keeps it.
    """

    def around(self, run: Run) -> AbstractAsyncContextManager[object]:
        """Returns what is entered before the function is called, and left after it.

        It is entered and left in the worker's event loop, in the task's context: context variables
        that are set in it reach the function, in a thread too. What it raises is the task's failure,
        on its way in and on its way out; what the function raised passes through it. If it swallows
        that, the task succeeds with ``None``; a cancellation by the worker's own end is such a thing, too.
        """
        ...


@runtime_checkable
class Beside(Protocol):
    """Something that goes on for as long as a worker runs."""

    def beside(self, backend: Backend) -> AbstractAsyncContextManager[object]:
        """Returns what is entered when a worker starts and left when it has stopped.

        It is entered before the first task is reserved, and left after the last one was recorded or
        given back. What it raises on its way in ends the worker's ``start()``. On its way out it has the
        worker's ``shutdown_timeout``, is cancelled then, and sees what ended the worker, which it cannot
        swallow. It must not await the worker's ``stop()``, which waits for it.

        Args:
            backend: The worker's, open.
        """
        ...


@runtime_checkable
class Listener(Protocol):
    """Something that is notified of what happens to a worker's tasks, and cannot change it."""

    def on_event(self, event: Event) -> None:
        """Takes an event.

        Must be quick. Called in the worker's event loop, and for ``"not_held"`` perhaps in the thread
        that renews leases. What it raises is logged once for each listener, and harms no task.
        """
        ...


type Extension = Around | Beside | Listener
