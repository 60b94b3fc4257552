"""Whether a call fits its function, found out before the call is stored."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from sitq.serializers.refusals import instead


def check_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses a call that would be a ``TypeError`` in the worker.

    Looks at what Python itself looks at when it makes the call, not at a signature that was declared
    beside it (``__wrapped__``, ``__signature__``). Whatever that does not settle is let through.

    Raises:
        TypeError: ``func`` does not take these arguments; for a keyword that is an option of other
            queues, the message says what there is in its place.
    """
    plain: object = func
    given = len(args)
    if type(func) is not FunctionType:
        plain = _function(func)
        given += 1  # itself, or what it is bound to
    reason = None
    if isinstance(plain, FunctionType):
        code, defaults = plain.__code__, plain.__defaults__
        required = code.co_argcount - len(defaults) if defaults else code.co_argcount
        if kwargs or code.co_kwonlyargcount or not required <= given <= code.co_argcount:
            reason = _misfit(plain, given - len(args), given, required, kwargs)
    elif type(func) is BuiltinFunctionType and (signature := _declared(func)) is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            reason = str(error)
    if reason is not None:
        name = getattr(func, "__qualname__", None) or type(func).__qualname__
        raise TypeError(f"{name}() {reason}{instead(reason, kwargs)}")


def _function(func: Callable[..., Any]) -> object:
    """Returns the function that a call of ``func`` hands its arguments to, behind one more argument."""
    kind: Any = type(func)
    new: object = getattr(func, "__new__", None)
    if isinstance(func, MethodType):
        return func.__func__
    if isinstance(func, type):
        # With a __new__ of its own, __init__ is not always called.
        return func.__init__ if kind.__call__ is type.__call__ and new is object.__new__ else None  # type: ignore[misc]
    # What makes its own pickle may come back as something else.
    return kind.__call__ if (kind.__reduce_ex__, kind.__reduce__) == (object.__reduce_ex__, object.__reduce__) else None


@lru_cache(maxsize=64)
def _declared(func: Callable[..., Any]) -> inspect.Signature | None:
    # Of the standard library, whose signatures are made from what the code does.
    if (func.__module__ or "").partition(".")[0] not in sys.stdlib_module_names:
        return None
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):
        return None


def _misfit(func: FunctionType, bound: int, given: int, required: int, kwargs: Mapping[str, Any]) -> str | None:
    code = func.__code__
    count, names = code.co_argcount, code.co_varnames
    by_name = names[code.co_posonlyargcount : count + code.co_kwonlyargcount]
    for key in kwargs:
        if key not in by_name:
            if not code.co_flags & inspect.CO_VARKEYWORDS:
                return f"takes no argument {key!r}"
        elif key in names[: min(given, count)]:
            return f"was given {key!r} twice, by its position and by its name"
    if given > count and not code.co_flags & inspect.CO_VARARGS:
        return f"takes at most {count - bound} positional arguments, and was given {given - bound}"
    missing = [
        repr(name)
        for name in names[given : max(required, 0)] + names[count : count + code.co_kwonlyargcount]
        if not (name in kwargs and name in by_name) and name not in (func.__kwdefaults__ or ())
    ]
    return f"needs {' and '.join(missing)}" if missing else None
