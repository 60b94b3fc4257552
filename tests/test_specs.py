"""The specs can be trusted: each scenario names tests that are there, and the tables of SPEC_v1.md are the code's."""

import asyncio
import importlib
import inspect
import pkgutil
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import sitq
from sitq import (
    Backoff,
    CloudpickleSerializer,
    NewTask,
    ReservedTask,
    Result,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskQueue,
    Unique,
    Worker,
    task,
)
from sitq._options import FOR_THE_WORKER
from sitq.backends.sqlite.abilities import Ability
from sitq.extensions.retries import Failed
from sitq.models import Extras, Outcome, Reservation
from sitq.serializers.calls import make_call
from sitq.serializers.envelope import dump_call
from tests.specs import CHANGES, SPECS, problems, scenarios, tables
from tests.support import DEADLINE_SECONDS, ROOT, add, rows
from tests.test_rooms import ROOMS
from tests.worker_tasks import execute


@pytest.mark.parametrize("capability", sorted(path.name for path in SPECS.iterdir()))
def test_every_scenario_names_its_tests(capability: str) -> None:
    """Below each one stands a test that is there, and no two of a capability have the same name."""
    text = (SPECS / capability / "spec.md").read_text(encoding="utf-8")
    assert len(list(scenarios(text))) > 10
    assert problems(text) == []


def test_the_tests_that_a_proposal_names_are_there() -> None:
    """Before it is built it need not name any."""
    proposed = [path for path in CHANGES.glob("*/specs/*/spec.md") if "archive" not in path.parts]
    wrong = {str(path): problems(path.read_text(encoding="utf-8"), proposed=True) for path in proposed}
    assert {path: found for path, found in wrong.items() if found} == {}


BROKEN = """
### Requirement: One

#### Scenario: Good

- **WHEN** something happens
- **THEN** a test checks it
- **TEST** `tests/test_it.py::test_good`,
  `tests/test_it.py::TestOfAll::test_inside`, `tests/test_it.py::TestInherits`

#### Scenario: Without a test

- **THEN** nothing checks it, though it speaks of `tests/test_it.py::test_good`

### Requirement: Two

- **TEST** `tests/test_it.py::test_of_no_scenario`

#### Scenario: Good

- **TEST** `tests/test_it.py::test_gone`, `tests/test_gone.py::test_good`

And this is no part of the list: `test_of_the_text`.

#### Scenario: Not a test

- **TEST** `tests/test_it.py::helper`, `tests/test_it.py::TestOfAll`
- **THEN** `the_end`
"""

ITS_TESTS = """
def test_good(): ...
def helper(): ...
class TestOfAll:
    async def test_inside(self): ...
class TestInherits(Suite): ...
"""


def test_what_is_wrong_with_a_spec_is_found(tmp_path: Path) -> None:
    """A scenario without a test, tests that are not there or are none, and a name that is used twice."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(ITS_TESTS)
    assert [len(scenario.tests) for scenario in scenarios(BROKEN)] == [3, 0, 2, 2]
    assert problems(BROKEN, tmp_path) == [
        "line 11, Without a test: it names no test",
        "line 19, Good: the scenario on line 4 has the same name",
        "line 19, Good: tests/test_it.py::test_gone: the file has no such test",
        "line 19, Good: tests/test_gone.py::test_good: there is no such file",
        "line 25, Not a test: tests/test_it.py::helper: that is no test",
        "line 25, Not a test: tests/test_it.py::TestOfAll: the class inherits no tests",
    ]
    assert "it names no test" not in "".join(problems(BROKEN, tmp_path, proposed=True))


SPEC = (ROOT / "SPEC_v1.md").read_text(encoding="utf-8")
TABLES = tables(SPEC)

RECORDS = {
    record.__name__: record
    for record in (NewTask, ReservedTask, Outcome, Reservation, Result, Extras, Unique, Backoff, Failed)
}
UNITS = {"": 1, "s": 1, "ms": 0.001, "years": 365.25 * 24 * 3600, "KiB": 1024, "MiB": 1024**2}
"""What a number in the page is multiplied with; words that count something are as good as none."""


def bare(default: Any) -> str:
    """Returns a default as the page writes it."""
    return getattr(default, "__name__", None) or repr(default).removeprefix("datetime.")


def parameters(function: Any) -> inspect.Signature:
    """Returns the signature of a function without ``self`` and without types."""
    signature = inspect.signature(function)
    found = [each.replace(annotation=each.empty) for name, each in signature.parameters.items() if name != "self"]
    return signature.replace(parameters=found, return_annotation=inspect.Signature.empty)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("`TaskQueue` and `SyncTaskQueue`", TaskQueue),
        ("`TaskQueue` and `SyncTaskQueue`", SyncTaskQueue),
        ("`Worker`", Worker),
        ("`SQLiteBackend`", SQLiteBackend),
    ],
)
def test_the_spec_has_the_arguments_of_the_constructors(heading: str, kind: type) -> None:
    """Their names, their order and their defaults."""
    stated = [(row["argument"], row["default"]) for row in TABLES[heading]]
    assert stated == [(name, bare(each.default)) for name, each in parameters(kind).parameters.items()]


def test_the_spec_has_the_methods_of_queue_and_worker() -> None:
    """Each public one, with its arguments."""
    stated = {(row["of"], row["method"]) for row in TABLES["Methods"]}
    found = {
        (of, f"{name}{parameters(method)}")
        for of, kind in (("queue", TaskQueue), ("queue", SyncTaskQueue), ("worker", Worker))
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    assert stated == found


def test_the_spec_has_the_options_of_a_task() -> None:
    """Those that a queue and a task take, those that can be declared, and where each takes effect."""
    table = TABLES["Options of a task"]
    stated = [row["option"] for row in table]
    for options in (TaskQueue.options, SyncTaskQueue.options, Task.options):
        assert stated == list(parameters(options).parameters)
    assert [row["option"] for row in table if row["with `@task`"] == "yes"] == list(parameters(task).parameters)[1:]
    assert {row["option"] for row in table if row["takes effect"] == "read"} == set(FOR_THE_WORKER)


def test_the_spec_has_the_fields_of_the_records() -> None:
    """Their names, their order and their defaults."""
    stated = {row["record"]: row["fields"].strip("`").split("`, `") for row in TABLES["Records"]}
    found = {name: str(parameters(record))[1:-1].split(", ") for name, record in RECORDS.items()}
    assert stated == found


def test_the_spec_has_the_tree_of_errors() -> None:
    """Each one stands below the one that it derives from."""
    tree = SPEC.partition("## Errors\n\n```\n")[2].partition("```")[0]
    above: dict[int, str] = {}
    named = set()
    for line in tree.splitlines():
        found = re.match(r"[│├└─ ]*", line)
        assert found is not None
        depth, name = found.end(), line[found.end() :].split()[0]
        above[depth] = name
        base = getattr(sitq, above[depth - 4]) if depth else Exception
        assert getattr(sitq, name).__bases__[0] is base
        named.add(name)
    public = {name: getattr(sitq, name) for name in sitq.__all__}
    assert named == {name for name, found in public.items() if inspect.isclass(found) and issubclass(found, Exception)}


@pytest.fixture
async def file(backend: SQLiteBackend, path: Path) -> Path:
    """A fresh file."""
    await backend.connect()
    await backend.close()
    return path


async def test_the_spec_has_the_shape_of_the_file(file: Path) -> None:
    """What marks it, its columns with types and defaults, and its indexes with the rows that are in them."""
    for row in TABLES["The file"]:
        (found,) = rows(file, f"PRAGMA {row['pragma']}")
        (value,) = found.values()
        assert row["value"] in (str(value), hex(value) if isinstance(value, int) else value)
    columns = [
        (
            column["name"],
            column["type"] + (" NOT NULL" if column["notnull"] else "") + (" PRIMARY KEY" if column["pk"] else ""),
            column["dflt_value"] or "",
        )
        for column in rows(file, "PRAGMA table_info(tasks)")
    ]
    assert [(row["column"], row["type"], row["default"]) for row in TABLES["Columns of `tasks`"]] == columns
    found = {
        index["name"]: " ".join(index["sql"].split())
        for index in rows(file, "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql NOTNULL")
    }
    stated = {
        row["index"]: f"CREATE INDEX {row['index']} ON tasks ({row['columns']}) WHERE {row['rows']}"
        for row in TABLES["Indexes of `tasks`"]
    }
    assert stated == found
    assert {row["name"] for row in rows(file, "SELECT name FROM sqlite_schema WHERE sql NOTNULL")} == {"tasks", *found}


def test_the_spec_has_what_a_file_is_given_at_its_first_use() -> None:
    """Each ability, and the names of all that it makes."""
    modules = pkgutil.iter_modules(sitq.backends.sqlite.__path__, "sitq.backends.sqlite.")
    members = [member for module in modules for member in vars(importlib.import_module(module.name)).values()]
    abilities = {member.name: " ".join(member.statements) for member in members if isinstance(member, Ability)}
    stated = {row["ability"].strip("`"): row["what"] for row in TABLES["What a file is given at its first use"]}
    assert set(stated) == set(abilities)
    for name, sql in abilities.items():
        for made in re.findall(r"(?:CREATE (?:TABLE|INDEX|TRIGGER)|ADD COLUMN) (\w+)", sql):
            assert re.search(rf"`{made}\b", stated[name]), made


async def test_the_spec_has_the_formats(queue: TaskQueue, path: Path) -> None:
    """Of ids, payloads, import paths, and of what wrote a payload."""
    forms = {row["what"]: row["form"] for row in TABLES["Formats"]}
    serializer = CloudpickleSerializer()
    task_id = await queue.enqueue(lambda: 1)
    (row,) = rows(path)
    assert re.fullmatch(forms["a task's id"], task_id)
    keys = re.findall(r'"(\w+)": ', forms["a payload"])
    assert list(serializer.loads(row["payload"])) == keys[:-1]
    call = make_call(fail, ("no",))._replace(options={"retry": 3})
    assert list(serializer.loads(dump_call(serializer, call))) == keys
    written = forms["`format` of `CloudpickleSerializer`"]
    assert re.sub(r"[\d.]+", "N", row["format"]) == re.sub(r"[\d.]+", "N", written)
    mark = forms["the bytes in a payload by value"].encode().decode("unicode_escape").encode("latin-1")
    assert mark in row["payload"]
    with pytest.raises(ValueError, match=forms["an import path"]):
        await queue.enqueue(forms["an import path"].replace(":", "."))


def fail(message: str) -> None:
    """A task that raises."""
    raise ValueError(message)


async def test_the_spec_has_the_errors_of_failed_tasks(path: Path) -> None:
    """Each kind of failure begins as the page says, and has a traceback if the page says so."""
    backend = SQLiteBackend(path, max_payload_bytes=10_000)
    ids = {}
    async with TaskQueue(backend) as queue, TaskQueue(backend, max_attempts=1) as once:
        ids["buried"] = await once.enqueue(add, 1, 2)
        await backend.reserve(1, lease=0, alone=True)
        ids["the code raised"] = await queue.enqueue(fail, "no")
        ids["the payload cannot be loaded"] = await queue.enqueue(add, 3, 4)
        ids["the result cannot be serialized"] = await queue.enqueue(threading.Lock)
        ids["the result is too large"] = await queue.enqueue(bytes, 20_000)
        execute(path, "UPDATE tasks SET payload = x'ff' WHERE task_id = ?", ids["the payload cannot be loaded"])
        await Worker(backend).drain()
        results = {failure: await queue.get_result(task_id) for failure, task_id in ids.items()}
    stated = {row["failure"]: row for row in TABLES["Errors of tasks"]}
    assert set(stated) == set(results)
    for failure, result in results.items():
        assert result is not None
        assert str(result.error).startswith(stated[failure]["`error` begins with"])
        assert (result.traceback is not None) == (stated[failure]["traceback"] == "yes")


def test_the_spec_has_the_loggers() -> None:
    """Each one that the source names, and no other."""
    used = set()
    for path in (ROOT / "src" / "sitq").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for name in re.findall(r"(?:get|Safe)Logger\((__name__|\".*?\")\)", path.read_text(encoding="utf-8")):
            used.add(module if name == "__name__" else name.strip('"'))
    assert {row["logger"] for row in TABLES["Loggers"]} == used


async def test_the_spec_has_the_threads(path: Path) -> None:
    """What runs while a worker has a function in hand and a queue for sync code is open: all of them daemons."""
    backend = SQLiteBackend(path)
    before = set(threading.enumerate())
    async with TaskQueue(backend) as queue, Worker(backend):
        sync_queue = SyncTaskQueue(backend)
        await asyncio.to_thread(sync_queue.counts)
        result = await queue.get_result(await queue.enqueue(threading.get_ident), DEADLINE_SECONDS)
        assert result is not None
        others = [each for each in set(threading.enumerate()) - before if not each.name.startswith("asyncio_")]
        await asyncio.to_thread(sync_queue.close)
    assert all(thread.daemon for thread in others)
    stated = {row["thread"] for row in TABLES["Threads"]}
    assert stated <= {thread.name for thread in others}
    assert len(others) == len(stated) + 1


@pytest.mark.parametrize("row", TABLES["Numbers"], ids=lambda row: row["constant"])
def test_the_spec_has_the_numbers(row: dict[str, str]) -> None:
    """Each is that of the constant that it names."""
    module, _, name = row["constant"].partition(":")
    number, _, unit = row["value"].partition(" ")
    assert getattr(importlib.import_module(module), name) == float(number.replace(",", "")) * UNITS.get(unit, 1)


def test_the_page_of_the_project_names_every_room() -> None:
    """Whoever looks for the place of something finds each module and package that is a layer of imports."""
    named = {row["room"] for row in tables((ROOT / "openspec" / "project.md").read_text(encoding="utf-8"))["Rooms"]}
    for room in ROOMS:
        path = room.removeprefix("sitq.").replace(".", "/")
        assert named & {f"{path}.py", f"{path}/"}, f"{room} is not in openspec/project.md"


def test_no_table_of_the_spec_is_left_out() -> None:
    """What is stated in a table is compared with the code by one of these tests; the first one holds links."""
    source = Path(__file__).read_text(encoding="utf-8")
    compared = set(re.findall(r'TABLES\["([^"]+)"\]', source)) | set(
        re.findall(r'^        \("(`[^"]+)",', source, re.M)
    )
    assert set(TABLES) - compared == {"sitq v1: signatures, names, numbers and formats"}
