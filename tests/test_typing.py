"""What type checkers make of sitq: typed uses pass under mypy and pyright, wrong ones are errors."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

TYPING = Path(__file__).parent / "typing"
CHECK_SECONDS = 55

type Errors = dict[int, str]
"""The errors that a type checker finds in a file, by line."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a type checker of this environment; one that is not there is a failure, because it prints no findings."""
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS)


def mypy(path: Path) -> Errors:
    """Checks a file as ``mypy --strict`` does."""
    done = run("mypy", "--strict", "--cache-dir", os.devnull, "--output", "json", str(path))
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    errors = {each["line"]: each["message"] for each in found if each["severity"] == "error"}
    assert done.returncode == bool(errors), done.stdout + done.stderr
    return errors


def pyright(path: Path) -> Errors:
    """Checks a file with pyright, in the mode that the file names.

    The package brings pyright itself, and its extra ``nodejs`` the ``node`` that it runs on: nothing is
    downloaded when it is first used.
    """
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, str(path))
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    errors = {each["range"]["start"]["line"] + 1: each["message"] for each in found}
    assert report["summary"]["filesAnalyzed"] == 1, report
    assert done.returncode == bool(errors), done.stdout + done.stderr
    return errors


checkers = pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])


@checkers
def test_typed_uses_pass(check: Callable[[Path], Errors]) -> None:
    """Every use in the file is accepted, and every type is inferred as asserted."""
    assert check(TYPING / "api.py") == {}


@checkers
def test_wrong_uses_are_errors(check: Callable[[Path], Errors]) -> None:
    """The lines that are marked as errors are those that the checker reports."""
    path = TYPING / "errors.py"
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    marked = {number for number, line in lines if line.endswith("  # error")}
    assert len(marked) > 40
    errors = check(path)
    assert set(errors) - marked == set(), errors
    assert marked - set(errors) == set()
