"""Running one task: its call, its context, its outcome."""

import asyncio
import contextvars
import inspect
import opcode
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from sitq._enqueuer import TaskMaker
from sitq._logs import SafeLogger
from sitq._options import from_payload
from sitq.backends.base import Backend
from sitq.executors.base import NoThreadError, Pool, Returned
from sitq.executors.forked import end_if_forked, generation
from sitq.extensions.base import Extension, FailedRun, FailureKind, Run
from sitq.models import MAX_ATTEMPTS, NewTask, Outcome, ReservedTask
from sitq.serializers.base import LARGE_BYTES, Serializer
from sitq.serializers.calls import NO_OPTIONS, Call, is_async
from sitq.serializers.envelope import load_call
from sitq.tasks import as_task
from sitq.worker.extending import AroundRun
from sitq.worker.held import HeldTask

logger = SafeLogger("sitq.worker")

SLOW_LOAD_SECONDS = 0.5
"""What a payload may take to load on the loop before it is warned of: it imports what its arguments need."""

MAX_ERROR_CHARACTERS = 10_000
MAX_TRACEBACK_CHARACTERS = 100_000
INDESCRIBABLE = "Exception: what the task raised cannot be described: its class or its text raises as well"

type Load = Callable[[Callable[[], Any]], Awaitable[Returned]]
"""Runs a function in a thread that loads payloads."""


class Home:
    """Where the tasks of a worker come from, for those that ask for their queue; made in the worker's loop."""

    def __init__(self, backend: Backend, serializer: Serializer, extensions: Sequence[Extension] = ()) -> None:
        self.backend = backend
        self.serializer = serializer
        self.extensions = extensions
        self._maker = TaskMaker(backend, serializer, MAX_ATTEMPTS, extensions, with_outcome=True)
        self.loop = asyncio.get_running_loop()
        self.made: dict[str, Any] = {}
        """What was made of it; by rooms above this one (see _current.py)."""

    def make_task(self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewTask:
        """Returns a task that is to be stored with the outcome of another one.

        Raises:
            TypeError: ``func`` is not callable, or does not take these arguments.
            ValueError: The call is larger than the backend allows.
            SerializationError: Something in it cannot be serialized.
            BackendError: The backend cannot store it together with an outcome.
        """
        task = self._maker.make(func, args, kwargs, self._maker.nothing_said)
        max_bytes = self.backend.max_payload_bytes
        if max_bytes is not None and len(task.payload) > max_bytes:
            raise ValueError(
                f"the call of {task.name} takes {len(task.payload)} bytes, more than the {max_bytes} that the "
                "backend allows: store the data elsewhere and pass a reference, or raise the limit"
            )
        return task


running: ContextVar[Run | None] = ContextVar("sitq_running", default=None)
caller = running.get


class Failure(NamedTuple):
    """What is known of a failure beside its text.

    Attributes:
        kind: What failed.
        error: What was raised, its traceback from the task's own frame on; ``None`` if nothing was.
        missing: The module that was missing, if the call could not be loaded for that.
    """

    kind: FailureKind
    error: BaseException | None = None
    missing: str | None = None


type Ended = tuple[Outcome, Failure | None]


class Surroundings(NamedTuple):
    """What runs the tasks of a worker.

    Attributes:
        home: Has the serializer, which loads the call and dumps the result.
        load: Loads, in a thread, what may hold the loop up: a large payload, and one whose module
            is not imported yet. Only such ones: tasks of one reservation that begin at different
            moments end so, and the next reservations would take half of the slots each.
        pool: Runs plain functions.
        around: Gives what is put around a run.
        max_bytes: The largest result that can be stored; ``None``: there is no limit.
    """

    home: Home
    load: Load
    pool: Pool
    around: AroundRun
    max_bytes: int | None


async def execute(held: HeldTask, surroundings: Surroundings) -> Ended:
    """Runs a task and returns how it ended: on the loop what is async, in the pool the rest.

    Whatever the task raises is its failure: ``SystemExit`` and a ``CancelledError`` of its own
    included. The caller has to tell a cancellation from outside by itself.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C while the task ran on the loop; it is no failure
            of the task's.
    """
    task, (home, load, pool, around, max_bytes) = held.task, surroundings
    before = generation()
    try:
        if len(task.payload) < LARGE_BYTES and _is_imported(task.name.partition(":")[0]):
            call = _load(task, home.serializer)
        else:
            call = await _load_in_thread(held, home.serializer, load)
        run = _run_of(held, call, home)
    except BaseException as error:
        return failure(task, error, "the payload cannot be loaded: ", kind="unloadable")
    held.run = run
    running.set(run)
    try:
        if (manager := around(run)) is not None:
            value = await _call_within(manager, held, pool, run)
        elif is_async(func := run.call.func):  # type: ignore[arg-type]  # its import path was resolved
            value = await func(*run.call.args, **run.call.kwargs)  # type: ignore[operator]
        else:
            value, raised = await _call_in_pool(held, pool, run)
            if raised is not None:
                raise raised
    except BaseException as error:
        return failure(task, error)
    finally:
        end_if_forked(before, task)
        run.aio = None  # it has the context in which the run is: neither would be freed without the collector
    return _success(run, value, home.serializer, max_bytes)


def _run_of(held: HeldTask, call: Call, home: Home) -> Run:
    options = from_payload(call.options) if call.options else NO_OPTIONS
    if type(call.func) is not FunctionType and (declared := as_task(call.func)) is not None:
        call = Call(
            declared.func, call.args, call.kwargs, call.context, call.options
        )  # _replace() takes thrice as long
        if declared.changed or options:
            options = {**declared.declared, **declared.changed, **options}
        else:
            options = declared.declared
    return Run(held.task, call, options, home, held.aio)


async def _call_within(manager: AbstractAsyncContextManager[object], held: HeldTask, pool: Pool, run: Run) -> Any:
    async with manager:
        func: Any = run.call.func
        if is_async(func):
            return await func(*run.call.args, **run.call.kwargs)
        value, error = await _call_in_pool(held, pool, run)
        if error is not None:
            raise error
        return value


async def _call_in_pool(held: HeldTask, pool: Pool, run: Run) -> Returned:
    call = run.call if run.threaded is None else run.call._replace(func=run.threaded)
    future = _submitted(held, partial(pool.submit, held.task, call))
    run.in_thread = True
    # Returned and not raised, because a StopIteration cannot come out of a coroutine: with something around
    # the call, where it has to, Python makes a RuntimeError of it.
    value, error = await future
    run.in_thread = False
    if not inspect.isawaitable(value):
        return value, error
    if run.asked is not None and run.aio is not None:
        run.aio.cancel()  # what could not be done while it was in its thread
    return await value, None


def _submitted[T](held: HeldTask, submit: Callable[[], T]) -> T:
    try:
        return submit()
    except NoThreadError as error:
        held.no_thread = error  # by this it is known, whatever those who are around the call make of the error
        raise


async def _load_in_thread(held: HeldTask, serializer: Serializer, load: Load) -> Call:
    function = partial(load_call, serializer, held.task.payload, held.task.format)
    # In a copy of the context: what the payload's own code sets is not for the task.
    call, error = await _submitted(held, partial(load, partial(contextvars.copy_context().run, function)))
    if error is not None:
        raise error
    loaded: Call = call
    return loaded


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    # One that another thread is importing just now is there already: asking for it would wait for that one.
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _load(task: ReservedTask, serializer: Serializer) -> Call:
    began = time.monotonic()
    call = load_call(serializer, task.payload, task.format)
    if (seconds := time.monotonic() - began) > SLOW_LOAD_SECONDS:
        logger.warning(
            "loading task %s (%s) held the event loop for %.2f seconds: import the modules of its arguments before the "
            "worker starts",
            task.task_id,
            task.name,
            seconds,
        )
    return call


def _missing(error: BaseException | None) -> str | None:
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__  # of an import path that does not resolve
    return None if error is None else error.name


def _success(run: Run, value: Any, serializer: Serializer, max_bytes: int | None) -> Ended:
    task = run.task
    # The task has run: what is wrong with its result must not make it run again.
    try:
        result = serializer.dumps(value)
    except BaseException as error:
        return failure(task, error, "the task ran, but its result cannot be serialized: ", kind="result")
    if max_bytes is not None and len(result) > max_bytes:
        too_large = (
            f"ValueError: the task ran, but its result takes {len(result)} bytes, more than "
            f"the {max_bytes} that the backend allows: store the data elsewhere and return a "
            "reference, or raise the limit"
        )
        return Outcome(task, error=too_large), Failure("result")
    return (Outcome(task, result) if run.then is None else Outcome(task, result, then=tuple(run.then))), None


def failure(task: ReservedTask, error: BaseException, prefix: str = "", *, kind: FailureKind = "raised") -> Ended:
    """Returns the failure of ``task`` as text, because an exception may not survive a pickle.

    Args:
        task: The task.
        error: What was raised.
        prefix: Said before the text of ``error``.
        kind: As in :class:`Failure`.

    Raises:
        KeyboardInterrupt: That is what ``error`` is, and the task did not raise it. Nothing else ever.
    """
    if isinstance(error, KeyboardInterrupt) and _is_of_user(error):
        raise error
    missing = _missing(error) if kind == "unloadable" else None
    try:
        return _described(task, error, prefix), Failure(kind, error, missing)
    except BaseException:  # no memory, or a class whose name raises
        return Outcome(task, error=INDESCRIBABLE), Failure(kind, error, missing)


def decided(outcome: Outcome, failed: FailedRun) -> Outcome:
    """Returns the outcome of a run that did not succeed, with what was decided about it."""
    if isinstance(failed.shown, str):
        # Where a run was interrupted, or not even begun, explains nothing.
        kept = outcome.traceback if isinstance(failed.error, Exception) else None
        outcome = outcome._replace(error=_text(failed.shown, MAX_ERROR_CHARACTERS), traceback=kept)
    elif failed.shown is not None:
        outcome, _ = failure(failed.task, failed.shown)
    if not (failed.is_decided or failed.then):
        return outcome
    return outcome._replace(
        retry_in=failed.retry_in, counts=failed.counts, cancelled=failed.cancelled, then=tuple(failed.then)
    )


def _described(task: ReservedTask, error: BaseException, prefix: str) -> Outcome:
    try:
        message = str(error)
    except BaseException as reason:
        message = f"<str() of the exception raised {type(reason).__name__}>"
    # From the task's own frame on: the reader is not interested in ours.
    where = error.__traceback__
    while where is not None and where.tb_next and where.tb_frame.f_globals.get("__name__", "").startswith("sitq."):
        where = where.tb_next
    error.__traceback__ = where
    try:
        formatted = "".join(traceback.format_exception(error))
    except BaseException:
        formatted = None
    return Outcome(
        task,
        error=_text(f"{type(error).__qualname__}: {prefix}{message}", MAX_ERROR_CHARACTERS),
        traceback=formatted and _text(formatted, MAX_TRACEBACK_CHARACTERS),
    )


def _is_of_user(interrupt: KeyboardInterrupt) -> bool:
    """Whether Python's own handler of Ctrl-C raised it, in the middle of what the main thread did, and no ``raise``."""
    last = interrupt.__traceback__
    while last is not None and last.tb_next:
        last = last.tb_next
    by_statement = last is None or last.tb_frame.f_code.co_code[last.tb_lasti] == opcode.opmap["RAISE_VARARGS"]
    # asyncio.run(), Worker.run() and servers have another handler, which ends the program by other ways.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return is_default and not by_statement and threading.current_thread() is threading.main_thread()


def _text(text: str, limit: int) -> str:
    """Returns text that every store takes: no lone surrogates, and of limited size."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n[… {len(text) - limit} characters left out …]\n{text[-limit // 2 :]}"
    return text
