"""Turning calls and values into bytes and back."""

import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from sitq._refusals import culprit, unserializable
from sitq._signatures import check_call
from sitq.errors import SerializationError

ENVELOPE_VERSION = 1
PICKLE_PROTOCOL = 5
PLACEHOLDER = type(getattr(functools, "Placeholder", ...))  # Python 3.14: such a partial stays whole
BY_VALUE_MARK = b"\x8c\x17cloudpickle.cloudpickle"
"""How a pickle names the module that rebuilds what was carried by value (SHORT_BINUNICODE)."""

REFERENCE_FREE = frozenset({type(None), bool, int, float, str, bytes})
"""What names no module, so that pickle alone decides."""

LARGE_BYTES = 64 * 1024
"""From here on a payload is loaded in a thread: the densest ones take 2 ms for as much, and a hop to a thread 0.1."""

MAIN_MODULE = b"_main__"  # __main__, and __mp_main__ in a child of multiprocessing


@runtime_checkable
class Serializer(Protocol):
    """Turns objects into bytes and back, in the producer, the worker and the reader of results.

    Attributes:
        format: Names what writes the bytes, with every version that matters for loading them. It
            is stored beside each payload.
    """

    @property
    def format(self) -> str:
        """What writes the bytes, with its versions."""
        ...

    def dumps(self, value: Any) -> bytes:
        """Returns ``value`` as bytes. Raises any exception where that is not possible."""
        ...

    def loads(self, data: bytes) -> Any:
        """Returns the value that :meth:`dumps` was given. Raises any exception otherwise."""
        ...

    def check_format(self, data: bytes, format: str) -> None:  # noqa: A002 - the column's name
        """Refuses bytes that cannot be loaded here, without loading them.

        Args:
            data: What :meth:`dumps` returned, perhaps elsewhere.
            format: The ``format`` of the serializer that wrote ``data``.

        Raises:
            SerializationError: The bytes were written by something incompatible.
        """
        ...


@cache
def _pickler() -> Any:
    # Imported at the first use: it costs a third of the time that `import sitq` takes.
    cloudpickle = importlib.import_module("cloudpickle")
    # What __main__ is called in a child of multiprocessing, which no worker can import either.
    if (main := sys.modules.get("__mp_main__")) is not None:
        cloudpickle.register_pickle_by_value(main)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined]
        # cloudpickle itself makes a StringIO of an open file: a copy that is no file any more.
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({io.TextIOWrapper: _refuse_file})

    return Pickler


def _refuse_file(file: io.TextIOWrapper) -> Any:
    if file in (sys.stdout, sys.stderr):
        return getattr, (sys, "stdout" if file is sys.stdout else "stderr")
    raise pickle.PicklingError(f"an open file, {getattr(file, 'name', file)!r}, stays in its process: pass its path")


def _dump_by_value(value: Any) -> bytes:
    buffer = io.BytesIO()
    _pickler()(buffer, PICKLE_PROTOCOL).dump(value)
    return buffer.getvalue()


class CloudpickleSerializer:
    """Serializes with pickle, and with cloudpickle what pickle cannot carry.

    Lambdas, closures and anything defined in ``__main__`` are carried by value. cloudpickle
    promises nothing for such bytes across Python versions, so they are refused elsewhere.
    Loading runs code: whoever can write the store can run code in the worker.
    """

    def __init__(self) -> None:
        # Imports that would otherwise be made by the first call, in whatever thread: if another thread
        # forks meanwhile, the child waits for ever for that module's lock.
        _pickler()
        _format()

    @property
    def format(self) -> str:
        """The envelope's, Python's and cloudpickle's versions."""
        return _format()

    def dumps(self, value: Any) -> bytes:
        """Returns ``value`` pickled, by reference where possible, else by value."""
        if type(value) in REFERENCE_FREE:
            return pickle.dumps(value, PICKLE_PROTOCOL)
        cloudpickle = sys.modules.get("cloudpickle")
        if cloudpickle is None or not cloudpickle.list_registry_pickle_by_value():
            # pickle takes a tenth of cloudpickle's time, and gives up on what is not importable. The
            # one thing that it would carry wrongly is a reference to a script's own __main__.
            try:
                data = pickle.dumps(value, PICKLE_PROTOCOL)
            except Exception:
                pass  # cloudpickle decides, and its error is the one that is shown
            else:
                if MAIN_MODULE not in data:
                    return data
        try:
            return _dump_by_value(value)
        except Exception as error:
            if (found := culprit(_dump_by_value, value)) is None:
                raise
            raise pickle.PicklingError(found) from error

    def loads(self, data: bytes) -> Any:
        """Returns the value that was pickled."""
        return pickle.loads(data) if len(data) < LARGE_BYTES else _load_in_pieces(data)

    def check_format(self, data: bytes, format: str) -> None:  # noqa: A002 - the column's name
        """Refuses what was pickled by value under another Python version.

        By-value pickles hold byte code, which another version may crash on. They name cloudpickle's
        module in their bytes; pickles by reference load under any version and do not.

        Raises:
            SerializationError: The bytes were written by an incompatible version.
        """
        if format == _format():
            return
        envelope, python, *_ = [*format.split(), "", ""]
        mine, my_python, *_ = _format().split()
        if envelope != mine or (python != my_python and BY_VALUE_MARK in data):
            raise SerializationError(
                f"the payload was written by {format or 'an unknown version'}, and this worker "
                f"runs {_format()}: run a worker with the Python and sitq versions of the producer"
            )


@cache
def _format() -> str:
    from importlib.metadata import version

    python = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    return f"sitq-{ENVELOPE_VERSION} {python} cloudpickle-{version('cloudpickle')}"


def _load_in_pieces(data: bytes) -> Any:
    # pickle is written in C and keeps the interpreter lock to its end. A file that Python code
    # reads makes it let go after each frame (64 KiB), so that a thread that loads does not keep
    # the event loop's from running.
    file = io.BytesIO(data)
    return pickle.load(types.SimpleNamespace(read=lambda size: file.read(size), readline=file.readline))


class Call(NamedTuple):
    """What a payload holds: a function, or its import path, and what to call it with."""

    func: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's import path, or as near to one as it has."""
        func = self.func
        while isinstance(func, partial):
            func = func.func
        if isinstance(func, str):
            return func
        named = func if hasattr(func, "__qualname__") else type(func)
        module = getattr(named, "__module__", None) or "builtins"  # methods of builtins have none
        name = f"{module}:{named.__qualname__}"
        # A lone surrogate is no text for a store.
        return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_plain_partial(func: object) -> TypeGuard[partial[Any]]:
    """Whether ``func`` is a partial that is called as partials are: a subclass may do that in another way."""
    return isinstance(func, partial) and type(func).__call__ is partial.__call__


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


def dump_call(serializer: Serializer, call: Call) -> bytes:
    """Returns ``call`` as a payload: builtins around the user's objects, and no class of sitq's.

    Raises:
        SerializationError: Something in it cannot be serialized; the message names it.
    """
    envelope = {"func": call.func, "args": call.args, "kwargs": call.kwargs, "context": call.context}
    try:
        return serializer.dumps(envelope)
    except Exception as error:
        reason = unserializable(serializer.dumps, call.name, *call, error)
        raise SerializationError(reason) from error


def load_call(serializer: Serializer, payload: bytes, format: str) -> Call:  # noqa: A002
    """Returns the call that a payload holds, its import path resolved.

    Loading runs code of the payload's and may raise anything, ``SystemExit`` included.

    Raises:
        SerializationError: The payload is not a call, is of an incompatible format, or names an
            import path that does not resolve.
    """
    serializer.check_format(payload, format)
    envelope = serializer.loads(payload)
    try:
        func, args, kwargs = envelope["func"], envelope["args"], envelope["kwargs"]
        context = envelope["context"]
    except (TypeError, KeyError, IndexError) as error:
        raise SerializationError("the payload does not hold a call of sitq's") from error
    return Call(import_callable(func) if isinstance(func, str) else func, args, kwargs, context)
