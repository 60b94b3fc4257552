"""The one way in which the rooms of the package import each other."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCE = ROOT / "src"

LAYERS = (
    {"sitq._checks"},
    {"sitq.errors", "sitq._delays", "sitq._forks", "sitq._logs", "sitq._signals"},
    {"sitq.models", "sitq._portal"},
    {
        "sitq.serializers",
        "sitq.backends.base",
        "sitq.backends.cancelling",
        "sitq.backends.endings",
        "sitq.backends.inspect",
        "sitq.backends.lanes",
        "sitq.backends.leaving",
        "sitq.backends.uniques",
        "sitq.backends.progressing",
        "sitq.backends.many",
    },
    {"sitq.extensions", "sitq.backends.sqlite", "sitq._following", "sitq._lanes", "sitq._operations", "sitq._waiting"},
    {"sitq.executors", "sitq._options", "sitq._results"},
    {"sitq.tasks"},
    {"sitq._enqueuer"},
    {"sitq.queue", "sitq.worker"},
    {"sitq.sync"},
    {"sitq._current", "sitq.running"},
    {"sitq"},
    {"sitq.cli", "sitq.testing"},
    {"sitq.__main__"},
)
"""The rooms from the bottom up: a module imports from lower layers only, or from its own room."""

OF_OTHERS = {
    "sitq.backends.sqlite": {"aiosqlite"},
    "sitq.serializers": {"cloudpickle"},
    "sitq.cli": {"click", "rich"},
    "sitq.testing": {"pytest"},
}
"""What a room imports beside the standard library and sitq; the others nothing."""

CONCRETE = {"sitq", "sitq.queue", "sitq.worker", "sitq.cli"}
"""The rooms that may name a backend: two build the default one, one reads a read-only file, one exports it."""


def modules() -> dict[str, Path]:
    """Returns the modules of the package by name."""
    found = {}
    for path in sorted(SOURCE.glob("sitq/**/*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
ROOMS = set().union(*LAYERS) - {"sitq"}


def room(module: str) -> str:
    """Returns the room that a module is in: itself, or the package that holds it."""
    return next((name for name in ROOMS if module == name or module.startswith(f"{name}.")), module)


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


def test_every_module_is_in_a_room() -> None:
    """The layers name every room that there is, and none that there is not."""
    packages = {"sitq.backends"}  # it holds rooms, and nothing else
    assert {room(module) for module in MODULES} - packages == set().union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """A module imports from lower layers only, inside functions and for types as well."""
    for imported in inner_imports(module):
        assert imported in MODULES, f"{module} imports {imported}, which is not a module of the package"
        assert room(imported) == room(module) or layer(imported) < layer(module), f"{module} imports {imported}"


def test_there_is_no_circle() -> None:
    """Not inside of a room either: every module can be read after those that it imports."""
    graph = {module: inner_imports(module) - {module} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize(("one", "other"), [("sitq.queue", "sitq.worker"), ("sitq.worker", "sitq.queue")])
def test_queue_and_worker_never_import_each_other(one: str, other: str) -> None:
    """Neither is reached from the other, over any number of modules."""
    reached, todo = set(), [module for module in MODULES if room(module) == one]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += inner_imports(module)
    assert other not in map(room, reached)


def test_few_rooms_name_a_backend() -> None:
    """All the others know the protocol only."""
    protocols = layer("sitq.backends.base")
    backends = {name for name in ROOMS if name.startswith("sitq.backends.") and layer(name) > protocols}
    assert backends
    for backend in backends:
        users = {room(module) for module in MODULES if backend in map(room, inner_imports(module))}
        assert users - {backend} <= CONCRETE


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("sitq.backends")])
def test_a_backend_never_loads_a_pickle(module: str) -> None:
    """Nothing below ``sitq.backends`` imports pickle, cloudpickle, marshal or the serializers."""
    assert not {"pickle", "_pickle", "cloudpickle", "marshal", "sitq.serializers"} & set(map(room, imports(module)))


@pytest.mark.parametrize("module", MODULES)
def test_a_dependency_is_used_in_one_room(module: str) -> None:
    """Beside the standard library, a module imports what its room is for; the core itself has two dependencies."""
    outside = {imported.partition(".")[0] for imported in imports(module)} - sys.stdlib_module_names - {"sitq"}
    assert outside <= OF_OTHERS.get(room(module), set())


@pytest.mark.parametrize("dependency", ["aiosqlite", "cloudpickle"])
def test_one_module_drives_a_dependency(dependency: str) -> None:
    """What its next version breaks is looked for in one place."""
    assert len([module for module in MODULES if dependency in imports(module)]) == 1
