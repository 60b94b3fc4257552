"""The options of a task: how they are said, checked, and put into its payload."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypedDict

from sitq._checks import check_count, check_positive_seconds, check_priority, check_queue, check_seconds
from sitq.extensions.retries import RetryPolicy, check_policy, policy_from_builtins, policy_to_builtins
from sitq.models import Extras, Unique
from sitq.serializers.calls import NO_OPTIONS, check_context, split_import_path
from sitq.serializers.signatures import check_call

type Eta = datetime | timedelta | None
type Context = Mapping[str, Any] | None
type UniqueKey = str | Unique | Callable[..., str | Unique]
"""A key, or a function of the task's arguments that returns one."""

type OnFailure = Callable[..., Any] | str
"""A task that is stored when another one fails for good: it is called with its id, its name and its error."""

FOR_THE_WORKER = ("retry", "timeout", "expires", "on_failure")
"""What travels in the payload, because only the worker needs to know it."""


class Declared(TypedDict, total=False):
    """Options that were said; what was not is not in it."""

    eta: datetime | timedelta
    context: dict[str, Any]
    max_attempts: int
    queue: str
    priority: int
    unique: UniqueKey
    retry: RetryPolicy
    timeout: float
    expires: datetime | timedelta
    on_failure: OnFailure


class TaskOptions(NamedTuple):
    """What is done with a task that is to be stored.

    Attributes:
        eta: When it becomes due (aware, UTC); ``None`` means now, or after ``delay``.
        delay: Seconds from when it is stored until it becomes due; ``None`` means none.
        context: The caller's own mapping; it must not be changed.
        max_attempts: How often it may be started.
        extras: What the store has to know; ``None`` means nothing.
        unique: A function of the arguments that gives the unique key, if there is one.
        stored: What the worker has to know, as builtins.
        needs: Which endings the backend has to know for this (see ``sitq.backends.endings``).
    """

    eta: datetime | None
    delay: float | None
    context: dict[str, Any]
    max_attempts: int
    extras: Extras | None = None
    unique: Callable[..., str | Unique] | None = None
    stored: Mapping[str, Any] = NO_OPTIONS
    needs: frozenset[str] = frozenset()


def check_options(given: Mapping[str, Any]) -> Declared:
    """Returns the options that are not ``None``, checked.

    Raises:
        TypeError: One of them is of the wrong type.
        ValueError: One of them is out of range, or they contradict each other.
    """
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            checked[name] = _CHECKS[name](value)
    declared: Declared = checked  # type: ignore[assignment]
    check_together(declared)
    return declared


def check_together(options: Declared) -> None:
    """Refuses options that contradict each other.

    A moment and a duration are not compared: only the store's clock can say, and the task is cancelled then.

    Raises:
        ValueError: The task would expire before it is due.
    """
    eta, expires = options.get("eta"), options.get("expires")
    if eta is not None and type(eta) is type(expires) and eta >= expires:  # type: ignore[operator]
        raise ValueError(f"expires ({expires}) must be later than eta ({eta}): the task would never be started")


def resolve(options: Declared, stored: Declared, max_attempts: int) -> TaskOptions:
    """Returns what is done with a task.

    Args:
        options: What holds for it.
        stored: The part of that which is stored with it, because it is not declared with its function.
        max_attempts: For a task that does not say it.
    """
    eta, delay = split_eta(options.get("eta"))
    queue, priority, unique = options.get("queue", ""), options.get("priority", 0), options.get("unique")
    by_call = unique if callable(unique) else None
    unique = None if by_call is not None else unique
    needs = {need for name, need in _NEEDS.items() if name in options}
    return TaskOptions(
        eta,
        delay,
        options.get("context", {}),
        options.get("max_attempts", max_attempts),
        Extras(queue, priority, unique) if queue or priority or unique else None,  # type: ignore[arg-type]
        by_call,
        to_payload(stored),
        frozenset(needs),
    )


_NEEDS = {"retry": "retry", "expires": "cancel", "on_failure": "then"}


def to_payload(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what the worker has to know of ``options``, as builtins and the user's own objects."""
    stored: dict[str, Any] = {name: options[name] for name in FOR_THE_WORKER if name in options}
    if not stored:
        return NO_OPTIONS
    if (policy := stored.get("retry")) is not None:
        stored["retry"] = policy_to_builtins(policy)
    if (expires := stored.get("expires")) is not None:
        # A number of seconds counts from when the task is stored; a text is a moment.
        stored["expires"] = expires.total_seconds() if isinstance(expires, timedelta) else expires.isoformat()
    return stored


def from_payload(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a payload; what this sitq does not know is left as it is.

    Raises:
        TypeError: One of them is not what was put into it.
        ValueError: As above.
    """
    options = dict(stored)
    if (policy := options.get("retry")) is not None:
        options["retry"] = policy_from_builtins(policy)
    if (expires := options.get("expires")) is not None:
        options["expires"] = datetime.fromisoformat(expires) if isinstance(expires, str) else timedelta(seconds=expires)
    return options


def to_builtins(options: Declared) -> dict[str, Any]:
    """Returns all options as builtins and the user's own objects, for a pickle of a declared task."""
    plain = {**options, **to_payload(options)}
    if isinstance(unique := plain.get("unique"), Unique):
        plain["unique"] = {each.name: getattr(unique, each.name) for each in fields(unique)}
    return plain


def from_builtins(plain: Mapping[str, Any]) -> Declared:
    """Returns the options that :func:`to_builtins` was given."""
    options = from_payload(plain)
    if isinstance(unique := options.get("unique"), dict):
        options["unique"] = Unique(**unique)
    return options  # type: ignore[return-value]


def split_eta(eta: Eta) -> tuple[datetime | None, float | None]:
    """Returns a checked ``eta`` as a moment, or as a delay in seconds, whichever it is."""
    if isinstance(eta, timedelta):
        return None, eta.total_seconds()
    return eta, None


def check_eta(eta: datetime | timedelta) -> datetime | timedelta:
    """Returns ``eta`` as a moment in UTC or as a delay that is not negative, whichever it is.

    Raises:
        TypeError: It is neither a datetime nor a timedelta.
        ValueError: It is naive, and the message shows the fix; or it has no counterpart in UTC; or
            it is a delay of more than a hundred years.
    """
    return _moment("eta", eta)


def _moment(name: str, moment: Any) -> datetime | timedelta:
    if isinstance(moment, timedelta):
        return timedelta(seconds=check_seconds(name, max(0.0, moment.total_seconds())))
    if not isinstance(moment, datetime):
        raise TypeError(f"{name} must be a datetime or a timedelta, not {type(moment).__name__}")
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError(
            f"{name} must be timezone-aware, and {moment!r} is naive: write "
            f"datetime.now(UTC) + timedelta(...), or {name}.replace(tzinfo=UTC) if it is in UTC"
        )
    try:
        # By its fields: a subclass, pendulum.DateTime for instance, gives classes of its own when it calculates.
        parts = moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, moment.microsecond
        return datetime(*parts, tzinfo=UTC) - offset
    except OverflowError as error:
        raise ValueError(f"{name} {moment!r} is out of the range of datetime in UTC") from error


def _expires(moment: Any) -> datetime | timedelta:
    if isinstance(moment, timedelta) and moment <= timedelta(0):
        raise ValueError(f"expires must be more than no time, or the task would never be started; got {moment}")
    return _moment("expires", moment)


def _unique(unique: Any) -> UniqueKey:
    if isinstance(unique, Unique):
        return unique
    if isinstance(unique, str):
        return Unique(unique)
    if isinstance(unique, type) or not callable(unique):
        raise TypeError(
            f"unique must be a key, Unique(...), or a function of the arguments, not {type(unique).__name__}"
        )
    found: UniqueKey = unique
    return found


def unique_of(function: Callable[..., str | Unique], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Unique:
    """Returns the unique key that a function of a call's arguments gives.

    Raises:
        TypeError: It gives something else, or does not take these arguments.
        ValueError: The key is empty or too long.
    """
    try:
        check_call(function, tuple(args), kwargs)
    except TypeError as error:
        raise TypeError(f"the function of unique= is called with the arguments of the task: {error}") from None
    found = function(*args, **kwargs)
    if isinstance(found, Unique):
        return found
    if not isinstance(found, str):
        raise TypeError(f"the function of unique= must return a str or Unique(...), not {type(found).__name__}")
    return Unique(found)


def _on_failure(target: Any) -> OnFailure:
    if isinstance(target, str):
        split_import_path(target)
    elif not callable(target):
        raise TypeError(f"on_failure must be a function or an import path, not {type(target).__name__}")
    else:
        try:
            check_call(target, ("", "", ""), {})
        except TypeError as error:
            raise TypeError(
                f"on_failure is called with the id, the name and the error text of the failed task: {error}"
            ) from None
    checked: OnFailure = target
    return checked


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "eta": check_eta,
    "context": check_context,
    "max_attempts": lambda value: check_count("max_attempts", value),
    "queue": check_queue,
    "priority": check_priority,
    "unique": _unique,
    "retry": check_policy,
    "timeout": lambda value: check_positive_seconds("timeout", value),
    "expires": _expires,
    "on_failure": _on_failure,
}
