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
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.executors.base import NoThreadError, Pool, Returned
from sitq.executors.forked import end_if_forked, generation
from sitq.extensions.base import Run
from sitq.models import Outcome, ReservedTask
from sitq.serializers.base import LARGE_BYTES, Serializer
from sitq.serializers.calls import Call, is_plain_partial
from sitq.serializers.envelope import load_call
from sitq.worker.extending import CallAround
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

    def __init__(self, backend: Backend, serializer: Serializer) -> None:
        self.backend = backend
        self.serializer = serializer
        self.loop = asyncio.get_running_loop()
        self.made: dict[str, Any] = {}
        """What was made of it; by rooms above this one (see _current.py)."""


class Running(NamedTuple):
    """A task that is running, and what it may ask for."""

    task: ReservedTask
    context: Mapping[str, Any]
    home: Home


running: ContextVar[Running | None] = ContextVar("sitq_running", default=None)
caller = running.get


def is_async(func: Callable[..., Any]) -> bool:
    """Whether calling ``func`` only makes a coroutine, so that it may be called on the loop.

    Sees through partials, and sees callable objects whose ``__call__`` is ``async def``.
    """
    while is_plain_partial(func):
        func = func.func
    if isinstance(func, partial):  # of a class that is called in a way of its own
        func = func.__call__
    if isinstance(func, FunctionType) and func.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # nearly always, and ten times as fast as asking inspect
    if inspect.iscoroutinefunction(func):
        return True
    if isinstance(func, (FunctionType, type)):
        return False
    return inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


type Kind = Literal["raised", "unloadable", "result", "no thread"]


class Failure(NamedTuple):
    """What is known of a failure beside its text.

    Attributes:
        kind: ``"raised"``: by the function, or by what was around it. ``"unloadable"``: the call could
            not be loaded. ``"result"``: the result cannot be stored. ``"no thread"``: the call was not
            begun, because there was no thread for it.
        error: What was raised, its traceback from the task's own frame on; ``None`` if nothing was.
        missing: The module that was missing, if the call could not be loaded for that.
    """

    kind: Kind
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
        around: Calls the function with everything around it; ``None``: there is nothing.
        max_bytes: The largest result that can be stored; ``None``: there is no limit.
    """

    home: Home
    load: Load
    pool: Pool
    around: CallAround | None
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
    except BaseException as error:
        return failure(task, error, "the payload cannot be loaded: ", kind="unloadable")
    try:
        running.set(Running(task, call.context, home))
        if around is not None:
            value = await around(Run(task, call), partial(_call, held, pool))
        elif is_async(func := call.func):  # type: ignore[arg-type]  # its import path was resolved
            value = await func(*call.args, **call.kwargs)  # type: ignore[operator]
        else:
            value, raised = await _call_in_pool(held, pool, call)
            if raised is not None:
                raise raised
    except BaseException as error:
        return failure(task, error)
    finally:
        end_if_forked(before, task)
    return _success(task, value, home.serializer, max_bytes)


async def _call(held: HeldTask, pool: Pool, run: Run) -> Any:
    func: Any = run.call.func
    if is_async(func):
        return await func(*run.call.args, **run.call.kwargs)
    value, error = await _call_in_pool(held, pool, run.call)
    if error is not None:
        raise error
    return value


async def _call_in_pool(held: HeldTask, pool: Pool, call: Call) -> Returned:
    future = _submitted(held, partial(pool.submit, held.task, call))
    held.in_thread = True
    # Returned and not raised, because a StopIteration cannot come out of a coroutine: with something around
    # the call, where it has to, Python makes a RuntimeError of it.
    value, error = await future
    held.in_thread = False
    return await value if inspect.isawaitable(value) else value, error


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


def _success(task: ReservedTask, value: Any, serializer: Serializer, max_bytes: int | None) -> Ended:
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
    return Outcome(task, result), None


def failure(task: ReservedTask, error: BaseException, prefix: str = "", *, kind: Kind = "raised") -> Ended:
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
