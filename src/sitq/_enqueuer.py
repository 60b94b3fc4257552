"""Options of tasks that are to be stored, and the enqueuer that keeps them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, overload

from sitq._checks import check_count, check_seconds
from sitq.models import TaskId
from sitq.serializers.calls import check_context

type Eta = datetime | timedelta | None
type Context = Mapping[str, Any] | None


class TaskOptions(NamedTuple):
    """Checked options of tasks that are to be stored.

    Attributes:
        eta: When they become due (aware, UTC); ``None`` means now, or after ``delay``.
        delay: Seconds from when each one is stored until it becomes due; ``None`` means none.
        context: The caller's own mapping for each; it must not be changed.
        max_attempts: How often each one may be started.
    """

    eta: datetime | None
    delay: float | None
    context: dict[str, Any]
    max_attempts: int


def check_options(defaults: TaskOptions, eta: Eta, context: Context, max_attempts: int | None) -> TaskOptions:
    """Returns checked options; a ``max_attempts`` of ``None`` means that of ``defaults``.

    Raises:
        TypeError: One of them is of the wrong type.
        ValueError: ``eta`` or ``max_attempts`` is out of range, or ``eta`` is naive.
    """
    attempts = defaults.max_attempts if max_attempts is None else check_count("max_attempts", max_attempts)
    return TaskOptions(*check_eta(eta), check_context(context), attempts)


class Producer(Protocol):
    """What an enqueuer hands its calls to: a ``TaskQueue``."""

    async def _enqueue(
        self, func: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskId[Any]: ...

    async def _enqueue_many(self, calls: Iterable[Callable[[], Any]], options: TaskOptions) -> list[TaskId[Any]]: ...


class Enqueuer:
    """Stores tasks with the options that :meth:`TaskQueue.options` was given.

    It may be kept and used any number of times, also by several coroutines at once. An ``eta`` that
    is a ``timedelta`` counts from each call of :meth:`enqueue`.
    """

    __slots__ = ("_options", "_queue")

    def __init__(self, queue: Producer, options: TaskOptions) -> None:
        self._queue = queue
        self._options = options

    @overload
    async def enqueue(self, func: str, /, *args: Any, **kwargs: Any) -> TaskId[Any]: ...
    @overload
    async def enqueue[**P, T](
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[T]: ...
    @overload
    async def enqueue[**P, T](self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[T]: ...
    async def enqueue(self, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Stores a call of ``func`` and returns its id; see :meth:`TaskQueue.enqueue`.

        All keywords are the task's own: it may have a parameter named ``eta`` or ``context``.

        Raises:
            TypeError: ``func`` is not callable or does not take these arguments.
            ValueError: An import path has the wrong form, or the call is larger than the backend
                allows.
            SerializationError: An argument cannot be serialized; the message names it.
            BackendError: The backend did not take the task.
        """
        return await self._queue._enqueue(func, args, kwargs, self._options)

    async def enqueue_many(self, calls: Iterable[Callable[[], Any]]) -> list[TaskId[Any]]:
        """Stores many calls, all or none, and returns their ids in order; see :meth:`TaskQueue.enqueue_many`.

        Raises:
            TypeError: One of ``calls`` is not callable, or needs more arguments.
            ValueError: As :meth:`enqueue`.
            SerializationError: As :meth:`enqueue`.
            BackendError: The backend did not take the tasks.
        """
        return await self._queue._enqueue_many(calls, self._options)


def check_eta(eta: Eta) -> tuple[datetime | None, float | None]:
    """Returns ``eta`` as a moment in UTC or as a delay in seconds, whichever it is.

    Raises:
        TypeError: It is neither a datetime nor a timedelta.
        ValueError: It is naive, and the message shows the fix; or it has no counterpart in UTC; or
            it is a delay of more than a hundred years.
    """
    if eta is None:
        return None, None
    if isinstance(eta, timedelta):
        return None, check_seconds("eta", max(0.0, eta.total_seconds()))
    if not isinstance(eta, datetime):
        raise TypeError(f"eta must be a datetime or a timedelta, not {type(eta).__name__}")
    offset = eta.utcoffset()
    if offset is None:
        raise ValueError(
            f"eta must be timezone-aware, and {eta!r} is naive: write "
            f"datetime.now(UTC) + timedelta(...), or eta.replace(tzinfo=UTC) if it is in UTC"
        )
    try:
        # By its fields: a subclass, pendulum.DateTime for instance, gives classes of its own when it calculates.
        fields = eta.year, eta.month, eta.day, eta.hour, eta.minute, eta.second, eta.microsecond
        return datetime(*fields, tzinfo=UTC) - offset, None
    except OverflowError as error:
        raise ValueError(f"eta {eta!r} is out of the range of datetime in UTC") from error
