"""A call: a function, or its import path, and what to call it with."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from sitq.errors import SerializationError
from sitq.serializers.signatures import check_call

PLACEHOLDER = type(getattr(functools, "Placeholder", ...))  # Python 3.14: such a partial stays whole

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Call(NamedTuple):
    """What a payload holds: a function, or its import path, and what to call it with.

    Attributes:
        func: The function, or its import path.
        args: The arguments by position.
        kwargs: The arguments by name.
        context: The caller's own mapping.
        options: What only the worker needs to know: builtins by name, and classes of the user's by
            reference. A worker passes over the ones that it does not know.
    """

    func: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: dict[str, Any]
    options: Mapping[str, Any] = NO_OPTIONS

    @property
    def name(self) -> str:
        """The function's import path, or as near to one as it has."""
        return name_of(self.func)


def name_of(func: Callable[..., Any] | str) -> str:
    """Returns the import path of a function, or what is as near to one as it has."""
    while isinstance(func, partial):
        func = func.func
    if isinstance(func, str):
        return func
    named = func if hasattr(func, "__qualname__") else type(func)
    module = getattr(named, "__module__", None) or "builtins"  # methods of builtins have none
    name = f"{module}:{named.__qualname__}"
    # A store takes no surrogates: they are not text.
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_plain_partial(func: object) -> TypeGuard[partial[Any]]:
    """Whether ``func`` is a partial that is called as partials are: a subclass may do that in another way."""
    return isinstance(func, partial) and type(func).__call__ is partial.__call__


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


def make_call(
    func: Callable[..., Any] | str,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> Call:
    """Returns a checked call.

    A partial is taken apart, so that it costs no more to carry than its function does.

    Raises:
        TypeError: ``func`` is not callable, or is seen not to take these arguments.
        ValueError: ``func`` is a string and not of the form ``"package.module:qualname"``.
    """
    kwargs = kwargs or {}
    if is_plain_partial(func) and PLACEHOLDER not in map(type, func.args):
        whole: partial[Any] = func
        func, args, kwargs = whole.func, whole.args + args, {**whole.keywords, **kwargs}
    if isinstance(func, str):
        split_import_path(func)
    elif not callable(func):
        raise TypeError(
            f"a task must be a callable or an import path 'package.module:qualname', not {type(func).__name__}"
        )
    else:
        check_call(func, args, kwargs)
    return Call(func, args, kwargs, {} if context is None else context)


def check_context(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a copy of ``context``.

    Raises:
        TypeError: It is not a mapping.
    """
    if context is None:
        return {}
    if not isinstance(context, Mapping):
        raise TypeError(f"context must be a mapping, not {type(context).__name__}")
    return dict(context)


def split_import_path(path: str) -> tuple[str, str]:
    """Returns the module and the qualified name of ``"package.module:qualname"``.

    Only the form is checked: the producer may not have the worker's code installed.

    Raises:
        ValueError: ``path`` is not of that form.
    """
    module, colon, qualname = path.partition(":")
    parts = [*module.split("."), *qualname.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"an import path has the form 'package.module:qualname', for example 'myapp.tasks:send_email'; got {path!r}"
        )
    return module, qualname


def import_callable(path: str) -> Callable[..., Any]:
    """Imports what an import path names.

    Raises:
        SerializationError: It cannot be imported, or is not callable.
    """
    module, qualname = split_import_path(path)
    try:
        found = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SerializationError(f"the import path {path!r} does not resolve in this worker: {error}") from error
    if not callable(found):
        raise SerializationError(f"{path!r} is a {type(found).__name__}, which is not callable")
    return found
