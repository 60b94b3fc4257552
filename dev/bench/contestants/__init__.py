"""The contestants, one module each behind `base.Contestant`."""

import importlib

from dev.bench.contestants.base import Contestant

NAMES = ("sitq", "sqlite3", "huey", "honker", "litequeue", "saq", "streaq", "arq", "taskiq")


def load(name: str) -> type[Contestant]:
    """The class of the contestant `name`.

    Raises:
        ImportError: when its package is not installed or does not run on this machine.
    """
    contestant: type[Contestant] = importlib.import_module(f"{__name__}.{name}").CONTESTANT
    return contestant
