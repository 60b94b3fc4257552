"""What users import, and the tree of errors."""

import importlib
import inspect
import re
import tomllib
from importlib.metadata import version
from importlib.resources import files

import pytest

import sitq
from tests.scripts import run_script
from tests.support import ROOT
from tests.test_rooms import MODULES, room

PUBLIC = {
    "Backend",
    "BackendCorruptError",
    "BackendError",
    "BackendReadOnlyError",
    "BackendUnavailableError",
    "BackendVersionError",
    "Backoff",
    "Carry",
    "CloudpickleSerializer",
    "DuplicateTaskError",
    "GiveUp",
    "Inject",
    "NewTask",
    "ReservedTask",
    "Result",
    "Retry",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SitqError",
    "SyncTaskQueue",
    "Task",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskId",
    "TaskQueue",
    "TaskTimeoutError",
    "Unique",
    "Worker",
    "WorkerDiedError",
    "current_task",
    "follow_up",
    "per_exception",
    "progress",
    "task",
}

ERRORS = {
    sitq.SitqError: Exception,
    sitq.SerializationError: sitq.SitqError,
    sitq.TaskFailedError: sitq.SitqError,
    sitq.TaskCancelledError: sitq.TaskFailedError,
    sitq.WorkerDiedError: sitq.TaskFailedError,
    sitq.DuplicateTaskError: sitq.SitqError,
    sitq.Retry: sitq.SitqError,
    sitq.GiveUp: sitq.SitqError,
    sitq.BackendError: sitq.SitqError,
    sitq.BackendUnavailableError: sitq.BackendError,
    sitq.BackendReadOnlyError: sitq.BackendError,
    sitq.BackendCorruptError: sitq.BackendError,
    sitq.BackendVersionError: sitq.BackendError,
    sitq.TaskTimeoutError: sitq.SitqError,
}

ALSO = {sitq.TaskTimeoutError: (TimeoutError,)}
"""The errors that are one of Python's as well."""


def test_the_list_is_pinned() -> None:
    """``__all__`` holds exactly the public names, once each."""
    assert set(sitq.__all__) == PUBLIC
    assert len(sitq.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_says_that_it_is_of_sitq(name: str) -> None:
    """It can be imported from ``sitq``, and does not show where it is defined."""
    member = getattr(sitq, name)
    assert member.__module__ == "sitq"
    assert member.__name__ == name
    assert inspect.getdoc(member)


def test_the_version_is_that_of_the_distribution() -> None:
    """``sitq.__version__`` is what is built, what is installed, and the newest release in the changelog."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    releases = re.findall(
        r"^## \[(\d\S+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert sitq.__version__ == project["version"] == version("sitq") == releases[0]


def test_nothing_else_looks_public() -> None:
    """What else the package has are its modules, and names with an underscore."""
    others = {name for name in vars(sitq) if not name.startswith("_")} - PUBLIC
    assert {f"sitq.{name}" for name in others} <= set(MODULES)


def test_an_error_shows_the_name_that_users_catch() -> None:
    """A traceback names ``sitq.SerializationError``, not the module that defines it."""
    script = "import sitq; raise sitq.SerializationError('no')"
    program = f"import traceback\ntry: exec({script!r})\nexcept Exception: print(traceback.format_exc())"
    assert "\nsitq.SerializationError: no" in run_script(program)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_tree_of_errors(error: type[Exception]) -> None:
    """Each error derives from exactly the one above it."""
    assert error.__bases__ == (ERRORS[error], *ALSO.get(error, ()))


def test_the_tree_of_errors_is_complete() -> None:
    """Every error class that the package defines stands in the tree and is public."""
    defined = {
        member
        for module in MODULES
        if room(module) not in {"sitq.cli", "sitq.testing", "sitq.__main__"}
        for member in vars(importlib.import_module(module)).values()
        if isinstance(member, type) and issubclass(member, sitq.SitqError)
    }
    assert defined == set(ERRORS)
    assert {error.__name__ for error in defined} <= PUBLIC


def test_types_ship_with_the_package() -> None:
    """The marker that tells type checkers to read the annotations stands beside the modules."""
    assert (files("sitq") / "py.typed").is_file()


def test_the_dependencies_are_aiosqlite_and_cloudpickle() -> None:
    """Installing sitq brings these two and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in project["dependencies"]]
    assert sorted(names) == ["aiosqlite", "cloudpickle"]


def test_importing_sitq_does_not_import_cloudpickle() -> None:
    """It is loaded at its first use, because it costs a good part of the time that the import takes."""
    printed = run_script("""
        import sys, sitq
        print("cloudpickle" in sys.modules)
        sitq.CloudpickleSerializer().dumps(lambda: 1)
        print("cloudpickle" in sys.modules)
        """)
    assert printed.split() == ["False", "True"]


def test_importing_sitq_does_not_import_ctypes() -> None:
    """It is loaded when somebody waits, because from Python 3.14 on its import opens a file and keeps it open."""
    assert run_script("import sys, sitq; print('ctypes' in sys.modules)").strip() == "False"


def test_importing_sitq_touches_nothing() -> None:
    """It starts no thread, opens no file, adds no log handler and configures no logger."""
    printed = run_script("""
        import logging, os, threading
        open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        import sitq
        open_after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
        touched = [logger.name for logger in loggers if logger.name.startswith("sitq") and logger.level]
        print(threading.active_count(), open_after - open_before, [h for l in loggers for h in l.handlers], touched)
        """)
    assert printed.strip() == "1 0 [] []"
