"""The specs can be trusted: each scenario names the tests that check it, and they are there."""

from pathlib import Path

import pytest

from tests.specs import CHANGES, SPECS, problems, scenarios


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
