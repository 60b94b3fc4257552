"""What users import, the tree of errors, and the one way in which the modules import each other."""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import sitq
from tests.scripts import run_script
from tests.support import ROOT

PUBLIC = {
    "Backend",
    "BackendCorruptError",
    "BackendError",
    "BackendReadOnlyError",
    "BackendUnavailableError",
    "BackendVersionError",
    "CloudpickleSerializer",
    "NewTask",
    "ReservedTask",
    "Result",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SitqError",
    "SyncTaskQueue",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskId",
    "TaskQueue",
    "Worker",
    "current_task",
}

ERRORS = {
    sitq.SitqError: Exception,
    sitq.SerializationError: sitq.SitqError,
    sitq.TaskFailedError: sitq.SitqError,
    sitq.TaskCancelledError: sitq.TaskFailedError,
    sitq.BackendError: sitq.SitqError,
    sitq.BackendUnavailableError: sitq.BackendError,
    sitq.BackendReadOnlyError: sitq.BackendError,
    sitq.BackendCorruptError: sitq.BackendError,
    sitq.BackendVersionError: sitq.BackendError,
}

LAYERS = (
    {"sitq.errors", "sitq._checks", "sitq._forks", "sitq._logs", "sitq._refusals", "sitq._settings", "sitq._threads"},
    {"sitq._signatures"},
    {"sitq.models", "sitq._admission"},
    {"sitq.serialization", "sitq._strays", "sitq.backends", "sitq.backends.base", "sitq.backends.inspect"},
    {"sitq.backends.sqlite", "sitq._execution", "sitq._operations", "sitq._renewal"},
    {"sitq._recording", "sitq._reports"},
    {"sitq._dispatch"},
    {"sitq.queue", "sitq.worker"},
    {"sitq.sync"},
    {"sitq._current"},
    {"sitq"},
    {"sitq.cli", "sitq.testing"},
    {"sitq.__main__"},
)
"""The rooms from the bottom up: a module imports from lower layers only, or from its own package."""

PACKAGES = ("sitq.backends.sqlite", "sitq.cli", "sitq.testing")
"""The rooms that have several modules."""

OF_OTHERS = {
    "sitq.backends.sqlite": {"aiosqlite"},
    "sitq.serialization": {"cloudpickle"},
    "sitq.cli": {"click", "rich"},
    "sitq.testing": {"pytest"},
}
"""What a room imports beside the standard library and sitq; the others nothing."""

SOURCE = ROOT / "src"


def modules() -> dict[str, Path]:
    """Returns the modules of the package by name."""
    found = {}
    for path in sorted(SOURCE.glob("sitq/**/*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """Returns the name under which ``module`` stands in LAYERS: its own, or that of its package."""
    return next((package for package in PACKAGES if module.startswith(f"{package}.")), module)


def imports(module: str) -> Iterator[str]:
    """Gives the name of every module that ``module`` imports, anywhere in it."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in MODULES else origin
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def inner_imports(module: str) -> set[str]:
    """Returns what ``module`` imports of the package."""
    return {name for name in imports(module) if name.partition(".")[0] == "sitq"}


def layer(module: str) -> int:
    """Returns the number of the layer in which ``module`` stands; one without a place stands above all."""
    return next((number for number, names in enumerate(LAYERS) if room(module) in names), len(LAYERS))


CORE = [module for module in MODULES if layer(module) <= layer("sitq")]


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
    assert error.__bases__ == (ERRORS[error],)


def test_the_tree_of_errors_is_complete() -> None:
    """Every error class that the package defines stands in the tree and is public."""
    defined = {
        member
        for module in CORE
        for member in vars(importlib.import_module(module)).values()
        if isinstance(member, type) and issubclass(member, sitq.SitqError)
    }
    assert defined == set(ERRORS)
    assert {error.__name__ for error in defined} <= PUBLIC


def test_types_ship_with_the_package() -> None:
    """The marker that tells type checkers to read the annotations stands beside the modules."""
    assert (files("sitq") / "py.typed").is_file()


def test_every_module_has_its_place() -> None:
    """The layers name every module that there is, and none that there is not."""
    assert {room(module) for module in MODULES} == set().union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """A module imports from lower layers only, inside functions and for types as well."""
    for imported in inner_imports(module):
        assert imported in MODULES, f"{module} imports {imported}, which is not a module of the package"
        assert room(imported) == room(module) or layer(imported) < layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize(("one", "other"), [("sitq.queue", "sitq.worker"), ("sitq.worker", "sitq.queue")])
def test_queue_and_worker_never_import_each_other(one: str, other: str) -> None:
    """Neither is reached from the other, over any number of modules."""
    reached, todo = set(), [one]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += inner_imports(module)
    assert other not in reached


def test_only_queue_and_worker_import_a_concrete_backend() -> None:
    """They build the default one; the command line reads a file that it may not write; the package exports it."""
    users = {
        module
        for module in MODULES
        if room(module) != "sitq.backends.sqlite"
        and any(room(imported) == "sitq.backends.sqlite" for imported in inner_imports(module))
    }
    assert users == {"sitq", "sitq.queue", "sitq.worker", "sitq.cli.opening"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("sitq.backends")])
def test_a_backend_never_loads_a_pickle(module: str) -> None:
    """Nothing below ``sitq.backends`` imports pickle, cloudpickle, marshal or the serializers."""
    assert not {"pickle", "_pickle", "cloudpickle", "marshal", "sitq.serialization"} & set(imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_a_dependency_is_used_in_one_room(module: str) -> None:
    """Beside the standard library, a module imports what its room is for; the core itself has two dependencies."""
    outside = {imported.partition(".")[0] for imported in imports(module)} - sys.stdlib_module_names - {"sitq"}
    assert outside <= OF_OTHERS.get(room(module), set())


def test_what_a_dependency_is_for() -> None:
    """One module of the core drives aiosqlite, and one imports cloudpickle."""
    found = {(module, name) for module in CORE for name in imports(module) if name in {"aiosqlite", "cloudpickle"}}
    assert found == {("sitq.backends.sqlite.connection", "aiosqlite"), ("sitq.serialization", "cloudpickle")}


def test_the_dependencies_are_aiosqlite_and_cloudpickle() -> None:
    """Installing sitq brings these two and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in project["dependencies"]]
    assert sorted(names) == ["aiosqlite", "cloudpickle"]


def test_importing_sitq_does_not_import_cloudpickle() -> None:
    """It is loaded at its first use, for it costs a good part of the time that the import takes."""
    printed = run_script("""
        import sys, sitq
        print("cloudpickle" in sys.modules)
        sitq.CloudpickleSerializer().dumps(lambda: 1)
        print("cloudpickle" in sys.modules)
        """)
    assert printed.split() == ["False", "True"]


def test_importing_sitq_does_not_import_ctypes() -> None:
    """It is loaded when somebody waits, for from Python 3.14 on its import opens a file and keeps it open."""
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
