"""Running one task: its call, its context, its outcome."""

import asyncio
import contextvars
import functools
import inspect
import opcode
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import FunctionType
from typing import Any, NamedTuple

from sitq._logs import SafeLogger
from sitq.backends.base import Backend
from sitq.executors.threads import Returned
from sitq.models import Outcome, ReservedTask
from sitq.serializers.base import LARGE_BYTES, Serializer
from sitq.serializers.calls import Call, is_plain_partial
from sitq.serializers.envelope import load_call
from sitq.worker.strays import end_if_forked, generation

logger = SafeLogger("sitq.worker")

SLOW_LOAD_SECONDS = 0.5
"""What a payload may take to load on the loop before it is warned of: it imports what its arguments need."""

ERROR_LIMIT_CHARACTERS = 10_000
TRACEBACK_LIMIT_CHARACTERS = 100_000
INDESCRIBABLE = "Exception: what the task raised cannot be described: its class or its text raises as well"

type Run = Callable[[Callable[[], Any]], Awaitable[Returned]]
"""Runs a function in a thread."""


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
    if isinstance(func, functools.partial):  # of a class that is called in a way of its own
        func = func.__call__
    if isinstance(func, FunctionType) and func.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # nearly always, and ten times as fast as asking inspect
    if inspect.iscoroutinefunction(func):
        return True
    if isinstance(func, (FunctionType, type)):
        return False
    return inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


class Failure(NamedTuple):
    """What is known of a failure beside its text.

    Attributes:
        raised: What was raised, its traceback from the task's own frame on; ``None`` if nothing was.
        loaded: Whether the call could be loaded.
        missing: The module that was missing when it could not.
    """

    raised: BaseException | None = None
    loaded: bool = True
    missing: str | None = None


type Ended = tuple[Outcome, Failure | None]


async def execute(task: ReservedTask, home: Home, load: Run, run: Run, max_bytes: int | None) -> Ended:
    """Runs ``task`` and returns how it ended: on the loop what is async, in a thread the rest.

    Whatever the task raises is its failure: ``SystemExit`` and a ``CancelledError`` of its own
    included. The caller has to tell a cancellation from outside by itself.

    Args:
        task: What to run.
        home: Has the serializer, which loads the call and dumps the result.
        load: Loads, in a thread, what may hold the loop up: a large payload, and one whose module
            is not imported yet. Only such ones: tasks of one reservation that begin at different
            moments end so, and the next reservations would take half of the slots each.
        run: Runs a plain function in a thread.
        max_bytes: The largest result that can be stored.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C while the task ran on the loop; it is no failure
            of the task's.
    """
    before = generation()
    serializer = home.serializer
    try:
        if len(task.payload) >= LARGE_BYTES or not _is_imported(task.name.partition(":")[0]):
            call, raised = await load(_in_context(load_call, serializer, task.payload, task.format))
            if raised is not None:
                raise raised
        else:
            call = _load(task, serializer)
    except BaseException as error:
        outcome, _ = failure(task, error, "the payload cannot be loaded: ")
        return outcome, Failure(error, False, _missing(error))
    try:
        running.set(Running(task, call.context, home))
        func: Any = call.func
        if is_async(func):
            value = await func(*call.args, **call.kwargs)
        else:
            value, raised = await run(_in_context(_call, task, func, *call.args, **call.kwargs))
            if raised is not None:
                raise raised
            if inspect.isawaitable(value):
                value = await value
    except BaseException as error:
        return failure(task, error)
    finally:
        end_if_forked(before, task)
    return _success(task, value, serializer, max_bytes)


def _call(task: ReservedTask, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    before = generation()
    try:
        return func(*args, **kwargs)
    finally:
        end_if_forked(before, task)


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


def _in_context(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return functools.partial(contextvars.copy_context().run, func, *args, **kwargs)


def _missing(error: BaseException | None) -> str | None:
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__  # of an import path that does not resolve
    return None if error is None else error.name


def _success(task: ReservedTask, value: Any, serializer: Serializer, max_bytes: int | None) -> Ended:
    # The task has run: what is wrong with its result must not make it run again.
    try:
        result = serializer.dumps(value)
    except BaseException as error:
        return failure(task, error, "the task ran, but its result cannot be serialized: ")
    if max_bytes is not None and len(result) > max_bytes:
        too_large = (
            f"ValueError: the task ran, but its result takes {len(result)} bytes, more than "
            f"the {max_bytes} that the backend allows: store the data elsewhere and return a "
            "reference, or raise the limit"
        )
        return Outcome(task, error=too_large), Failure()
    return Outcome(task, result), None


def failure(task: ReservedTask, error: BaseException, prefix: str = "") -> Ended:
    """Returns the failure of ``task`` as text, for an exception may not survive a pickle.

    Raises:
        KeyboardInterrupt: That is what ``error`` is, and the task did not raise it. Nothing else ever.
    """
    if isinstance(error, KeyboardInterrupt) and _is_of_user(error):
        raise error
    try:
        return _described(task, error, prefix)
    except BaseException:  # no memory, or a class whose name raises
        return Outcome(task, error=INDESCRIBABLE), Failure(error)


def _described(task: ReservedTask, error: BaseException, prefix: str) -> Ended:
    try:
        message = str(error)
    except BaseException as reason:
        message = f"<str() of the exception raised {type(reason).__name__}>"
    # From the task's own frame on: the reader is not interested in ours.
    where = error.__traceback__
    while where is not None and where.tb_next and where.tb_frame.f_globals.get("__name__", "").startswith("sitq."):
        where = where.tb_next
    try:
        formatted = "".join(traceback.format_exception(type(error), error, where))
    except BaseException:
        formatted = None
    outcome = Outcome(
        task,
        error=_text(f"{type(error).__qualname__}: {prefix}{message}", ERROR_LIMIT_CHARACTERS),
        traceback=formatted and _text(formatted, TRACEBACK_LIMIT_CHARACTERS),
    )
    return outcome, Failure(error.with_traceback(where))


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
