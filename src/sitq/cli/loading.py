"""What a worker process imports before it takes a task."""

import importlib
from collections.abc import Iterable

from sitq.serializers.base import Serializer
from sitq.serializers.calls import split_import_path


class NotLoadedError(Exception):
    """Something cannot be loaded, and will not be by trying again."""


def import_modules(names: Iterable[str]) -> None:
    """Imports modules, in this order.

    Raises:
        NotLoadedError: One of them cannot be imported.
    """
    for name in names:
        _imported(name, f"--import {name}")


def load_serializer(path: str) -> Serializer:
    """Returns what ``"package.module:attribute"`` names; a class or a function is called for it.

    Raises:
        NotLoadedError: There is no such thing, or it is not a serializer.
    """
    option = f"--serializer {path}"
    module, qualname = split_import_path(path)
    found = _imported(module, option)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise NotLoadedError(f"{option}: {error}") from None
    if isinstance(found, type) or (callable(found) and not isinstance(found, Serializer)):
        try:
            found = found()
        except Exception as error:
            raise NotLoadedError(f"{option}: calling it raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Serializer):
        raise NotLoadedError(f"{option}: it is no serializer: it needs format, dumps, loads and check_format")
    return found


def _imported(module: str, option: str) -> object:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever stands in the module
        raise NotLoadedError(f"{option}: it cannot be imported: {type(error).__name__}: {error}") from error
