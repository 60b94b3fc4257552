"""The serializer that carries nearly everything: pickle, and cloudpickle where pickle gives up."""

import importlib
import io
import pickle
import sys
import types
from functools import cache
from typing import Any

from sitq.errors import SerializationError
from sitq.serializers.base import LARGE_BYTES
from sitq.serializers.refusals import culprit

ENVELOPE_VERSION = 1
PICKLE_PROTOCOL = 5
BY_VALUE_MARK = b"\x8c\x17cloudpickle.cloudpickle"
"""How a pickle names the module that rebuilds what was carried by value (SHORT_BINUNICODE)."""

REFERENCE_FREE = frozenset({type(None), bool, int, float, str, bytes})
"""What names no module, so that pickle alone decides."""

MAIN_MODULE = b"_main__"  # __main__, and __mp_main__ in a child of multiprocessing


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


def is_carried_by_value(module: str) -> bool:
    """Whether what a module defines is carried by value: it is the program's own, or is registered with cloudpickle."""
    if module.endswith(MAIN_MODULE.decode()):
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    registered: set[str] = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else set()
    return bool(registered) and any(f"{module}.".startswith(f"{name}.") for name in registered)


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
        """Returns ``value`` pickled, by reference if possible, else by value."""
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
