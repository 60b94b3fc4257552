"""The suite and the two commands of the README on machines of other kinds than the author's."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import DEADLINE_SECONDS, ROOT

UV = os.environ.get("UV", "")
"""What ``uv run`` was called as."""


def finish(*command: str | Path, cwd: Path = ROOT) -> str:
    """Runs a command that must end with status 0, and returns what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_suite_runs_in_a_shell_that_ignores_interrupts() -> None:
    """A test that ends a process with Ctrl-C passes in the background job of a script, where SIGINT is ignored."""
    pytest_command = f"{sys.executable} -m pytest -n 0 -p no:cacheprovider"
    test = "tests/cli/test_watch.py::test_a_pipe_gets_a_line_for_each_look"
    assert "1 passed" in finish("sh", "-c", f"trap '' INT; exec {pytest_command} {test}")


needs_uv = pytest.mark.skipif(not UV, reason="the suite was not started by uv run")


@needs_uv
def test_the_pin_for_pyenv_does_not_make_uv_download_a_python(tmp_path: Path) -> None:
    """If the pinned version is not there, uv takes any Python that the project can run on, and fetches none."""
    pin = (ROOT / ".python-version").read_text().replace("3.13", "3.99")
    (tmp_path / ".python-version").write_text(pin)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.13"\n')
    found = finish(
        UV, "python", "find", "--no-python-downloads", "--offline", "--python-preference", "system", cwd=tmp_path
    )
    assert Path(found.strip()).exists()


@needs_uv
def test_the_source_distribution_holds_what_the_suite_needs(tmp_path: Path) -> None:
    """Whoever packages sitq can run the tests, the pages' and the examples' too, from what is published."""
    finish(UV, "build", "--sdist", "--offline", "--out-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    needed = [path for folder in ("tests", "docs", "examples") for path in (ROOT / folder).rglob("*.??*")]
    needed += [
        ROOT / name for name in (".python-version", "playground.py", "mkdocs.yml", "README.md", "pyproject.toml")
    ]
    names = {
        path.relative_to(ROOT).as_posix() for path in needed if path.suffix in {".py", ".md", ".png", ".svg", ".toml"}
    }
    assert len(names) > 80
    assert names <= held
    assert not [name for name in held if name.endswith((".pyc", ".db"))]
