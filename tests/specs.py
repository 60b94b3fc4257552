"""Reads the specs: their scenarios, the tests that these name, and tables; and says what is wrong with them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support import ROOT

SPECS = ROOT / "openspec" / "specs"
CHANGES = ROOT / "openspec" / "changes"

_HEADING = re.compile(r"^(#{1,6}) (?:(Requirement|Scenario): )?(.*)$")
_TEST = "- **TEST**"


@dataclass
class Scenario:
    """A case of a promise, and the tests that check it."""

    name: str
    line: int
    tests: list[str] = field(default_factory=list)


def scenarios(text: str) -> Iterator[Scenario]:
    """Gives the scenarios of a spec.

    Below the WHEN and THEN of each stands one bullet with the tests that check it, in backticks and with commas
    between them; the bullet may go on in indented lines.
    """
    scenario: Scenario | None = None
    is_listing = False
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _HEADING.match(line):
            if scenario is not None:
                yield scenario
            scenario = Scenario(found[3], number) if found[2] == "Scenario" else None
        is_listing = line.startswith(_TEST) or (is_listing and line.startswith("  "))
        if scenario is not None and is_listing:
            scenario.tests += re.findall(r"`([^`]+)`", line)
    if scenario is not None:
        yield scenario


@cache
def _definitions(path: Path) -> dict[str, ast.AST]:
    """Returns the functions and classes of a module, and the functions of its classes, by their names."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}": each for each in node.body if hasattr(each, "name")}
    return found


def why_unresolved(test: str, root: Path = ROOT) -> str | None:
    """Returns what is wrong with the name of a test, as pytest has it; ``None`` if it names one.

    The name of a class is enough if it inherits its tests, as from the contract suite.
    """
    file, _, name = test.partition("::")
    path = root / file
    if not path.is_file():
        return f"{test}: there is no such file"
    node = _definitions(path).get(name)
    if isinstance(node, ast.ClassDef):
        return None if node.bases and name.startswith("Test") else f"{test}: the class inherits no tests"
    if node is None:
        return f"{test}: the file has no such test"
    return None if name.rpartition("::")[2].startswith("test_") else f"{test}: that is no test"


def problems(text: str, root: Path = ROOT, *, proposed: bool = False) -> list[str]:
    """Returns what is wrong with the scenarios of a spec, each with the number of its line.

    Args:
        text: The spec, in Markdown.
        root: The folder from which the files of tests are named.
        proposed: Whether its tests need not be there yet.
    """
    found = []
    lines: dict[str, int] = {}
    for scenario in scenarios(text):
        place = f"line {scenario.line}, {scenario.name}: "
        if scenario.name in lines:
            found.append(f"{place}the scenario on line {lines[scenario.name]} has the same name")
        lines.setdefault(scenario.name, scenario.line)
        if not scenario.tests and not proposed:
            found.append(f"{place}it names no test")
        found += [place + reason for test in scenario.tests if (reason := why_unresolved(test, root))]
    return found


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Returns the tables of a page by the heading above them, each as rows by the heads of their columns.

    What stands in one pair of backticks, and nothing else, is given without them.
    """
    found: dict[str, list[dict[str, str]]] = {}
    heading, heads = "", list[str]()
    for line in text.splitlines():
        if match := _HEADING.match(line):
            heading = match[3]
        if not line.startswith("|"):
            heads = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not heads:
            heads = cells
        elif not set(line) <= set("|-"):
            found.setdefault(heading, []).append(dict(zip(heads, (_plain(cell) for cell in cells), strict=True)))
    return found


def _plain(cell: str) -> str:
    return cell[1:-1] if re.fullmatch(r"`[^`]*`", cell) else cell
