"""The protocols of extensions.

An extension is any object that has at least one of the methods ``on_enqueue``, ``around``, ``beside``,
``after_failure`` and ``on_event``. A queue or a worker asks which of them it has when it is made.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sitq.backends.base import Backend
from sitq.models import NewTask, ReservedTask
from sitq.serializers.calls import NO_OPTIONS, Call

type EventKind = Literal[
    "started", "succeeded", "failed", "retried", "cancelled", "given_back", "left", "not_held", "buried"
]
"""``"started"``: a run has begun. ``"succeeded"``, ``"failed"``: it has ended, and its outcome is on the
way to the store. ``"retried"``: it raised, and the task is due again later. ``"cancelled"``: it was asked
to end, or was not to be started any more. ``"given_back"``: it did not end, and is due again with its attempt unspent.
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
        seconds: How long the run took; ``None`` for all kinds that are not the end of a run.
        reason: Why, in words that quote nothing of the task's: for ``"failed"`` and ``"retried"`` the type
            of the exception; empty if there is nothing to say.
        error: The exception of ``"failed"`` and ``"retried"``, if there is one. Its text tends to quote arguments:
            think of who may read it before you show it.
    """

    kind: EventKind
    task_id: str
    name: str
    attempt: int
    seconds: float | None = None
    reason: str = ""
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class Run:
    """One run of a task.

    Attributes:
        task: The task.
        call: Its function and arguments. ``call.kwargs`` may be changed before the function is called.
        options: What is declared with the function, and what was stored with the task, which wins.
        then: Tasks that are stored if the run succeeds, together with its outcome.
        asked: Why the run was asked to end, in words; ``None``: it was not.
        deadline: When its time is over, on the monotonic clock, in seconds; ``None``: it has no limit, or
            has not begun.
        threaded: What is called in a thread in place of ``call.func``, with the same arguments; ``None``:
            that itself. So the time of a plain function can be taken where it runs.
        in_thread: Whether a plain function of its own is under way.
        not_held: Whether its lease was found to have ended: another worker may run the task.
        aio: The asyncio task that it runs in; ``None`` when the run is over.
        home: What the rooms above know of the worker; see ``current_task``.
    """

    task: ReservedTask
    call: Call
    options: Mapping[str, Any] = NO_OPTIONS
    home: Any = None
    aio: "asyncio.Task[None] | None" = None
    then: list[NewTask] = field(default_factory=list)
    asked: str | None = None
    deadline: float | None = None
    threaded: Callable[..., Any] | None = None
    in_thread: bool = False
    not_held: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the function and all that was around it have ended."""
        return self.aio is None

    @property
    def headers(self) -> Mapping[str, Any]:
        """What extensions added when the task was enqueued."""
        headers: Mapping[str, Any] = self.options.get("headers", NO_OPTIONS)
        return headers


type Runs = Callable[[], Sequence[Run]]
"""Returns the runs of a worker that have begun and have not ended; may be called in any thread."""


type FailureKind = Literal["raised", "unloadable", "result", "no thread"]
"""``"raised"``: by the function, or by what was around it. ``"unloadable"``: the call could not be loaded.
``"result"``: the task ran, and its result cannot be stored. ``"no thread"``: the call was not begun,
because there was no thread for it."""


@dataclass(slots=True, eq=False)
class FailedRun:
    """A run that did not succeed, and what is to become of its task; extensions may change all but the first six.

    Attributes:
        task: The task.
        run: The run; ``None`` if the call could not be loaded.
        error: What was raised; ``None`` if nothing was.
        kind: What failed.
        text: What would be stored as the error: ``"ExceptionType: message"``.
        seconds: How long the run took.
        retry_in: Seconds until the task is due again; ``None``: this is its end.
        counts: Whether this run counts as a failure, if the task is due again.
        cancelled: Whether the task ends as cancelled instead of failed; then it is not tried again.
        then: Tasks that are stored together with the outcome.
        shown: What is stored as the error instead of ``error``: another exception, or a text, which keeps the
            traceback if the run raised an ``Exception``; ``None``: nothing.
    """

    task: ReservedTask
    run: Run | None
    error: BaseException | None
    kind: FailureKind
    text: str
    seconds: float = 0.0
    retry_in: float | None = None
    counts: bool = True
    cancelled: bool = False
    then: list[NewTask] = field(default_factory=list)
    shown: BaseException | str | None = None

    @property
    def is_decided(self) -> bool:
        """Whether an extension has decided that this is no plain failure."""
        return self.cancelled or self.retry_in is not None


@dataclass(slots=True, eq=False)
class Enqueuing:
    """A task that is about to be enqueued, for who has something to add to it.

    Attributes:
        call: Its function and arguments, as they will be stored.
        context: The caller's own mapping, a copy; may be changed.
        headers: What extensions add for their own use in the worker, by name; may be changed. It finds its
            way into ``Run.headers``, and what nobody knows there is passed over.
    """

    call: Call
    context: dict[str, Any]
    headers: dict[str, Any]


@runtime_checkable
class OnEnqueue(Protocol):
    """Something that sees each task before it is enqueued: by a queue, or by the tasks of a worker."""

    def on_enqueue(self, new: Enqueuing) -> None:
        """Adds to ``new``; called by whoever enqueues, must be quick. What it raises comes out of ``enqueue``."""
        ...


@runtime_checkable
class Around(Protocol):
    """Something that every run of a worker is wrapped in: a span, a session, a transaction.

    A time limit, too, but for coroutines only: a plain function goes on in its thread, and keeps it.
    """

    def around(self, run: Run) -> AbstractAsyncContextManager[object] | None:
        """Returns what is entered before the function is called, and left after it; ``None``: nothing for this run.

        It is entered and left in the worker's event loop, in the task's context: context variables
        that are set in it reach the function, in a thread too. What it raises is the task's failure,
        on its way in and on its way out; what the function raised passes through it. If it swallows
        that, the task succeeds with ``None``; a cancellation by the worker's own end is such a thing, too.
        """
        ...


@runtime_checkable
class Beside(Protocol):
    """Something that goes on for as long as a worker runs."""

    def beside(self, backend: Backend, runs: Runs) -> AbstractAsyncContextManager[object]:
        """Returns what is entered when a worker starts and left when it has stopped.

        It is entered before the first task is reserved, and left after the last one was recorded or
        given back. What it raises on its way in ends the worker's ``start()``. On its way out it has the
        worker's ``shutdown_timeout``, is cancelled then, and sees what ended the worker, which it cannot
        swallow. It must not await the worker's ``stop()``, which waits for it.

        Args:
            backend: The worker's, open.
            runs: Gives what runs.
        """
        ...


@runtime_checkable
class AfterFailure(Protocol):
    """Something that decides what becomes of a task whose run did not succeed."""

    def after_failure(self, failure: FailedRun) -> None:
        """Changes ``failure`` if it has something to say; called in the worker's event loop, must be quick.

        It is called before the outcome is recorded, for each extension in turn; a later one sees what
        an earlier one has decided. What it raises is logged, and decides nothing.
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


type Extension = Around | Beside | AfterFailure | Listener | OnEnqueue

_KINDS = (OnEnqueue, Around, Beside, AfterFailure, Listener)


def check_extensions(extensions: Sequence[Extension]) -> tuple[Extension, ...]:
    """Returns the extensions.

    Raises:
        TypeError: It is not a list of them; or one has none of the methods of an extension, or one that is
            ``async`` in the wrong way.
    """
    if not isinstance(extensions, Iterable):
        raise TypeError(f"extensions must be a list: write extensions=[...], not one {type(extensions).__name__}")
    for extension in extensions:
        if isinstance(extension, type) or not isinstance(extension, _KINDS):
            what = f"the class {extension.__name__}" if isinstance(extension, type) else type(extension).__name__
            raise TypeError(
                "an extension is an object with on_enqueue(), around(), beside(), after_failure() or on_event(), "
                f"not {what}"
            )
        # Found here and not in the first run: there it would be the failure of each task of the queue.
        for name in ("around", "beside"):
            method = getattr(extension, name, None)
            if inspect.isasyncgenfunction(method) or inspect.iscoroutinefunction(method):
                raise TypeError(
                    f"{name}() of {type(extension).__name__} must return an async context manager: "
                    "write @asynccontextmanager above a function that yields once"
                )
        for name in ("on_enqueue", "after_failure", "on_event"):
            if inspect.iscoroutinefunction(getattr(extension, name, None)):
                raise TypeError(f"{name}() of {type(extension).__name__} must not be async: nothing awaits it")
    return tuple(extensions)
