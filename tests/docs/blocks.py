"""Code blocks of Markdown pages: finding them, and running them as their reader would.

A block is run as it stands, in a folder that the blocks of a page share, in their order. A comment
right above a block says where that is not the way::

    <!-- code: until SIGTERM -->            a worker: it has to run a task, and to end well on SIGTERM
    <!-- code: asgi -->                     an application: it is served, and has to run a task for a request
    <!-- code: lifespan -->                 defines `lifespan`: a task has to be run inside of it
    <!-- code: fragment -->                 statements that find a `queue`, with a worker at work
    <!-- code: typed -->                    mypy has to find the errors that its comments announce, and no others
    <!-- code: compiled, the reason -->     is compiled only
    <!-- code: not run, the reason -->      is not run at all

Blocks with a title are written to a file of that name, for the blocks that follow. If the title
begins with ``test_``, pytest runs them, at the end of the page. A ``text`` block is what the block
before it prints; ``…`` in it stands for anything.
"""

import ast
import configparser
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sitq import SQLiteBackend, SyncTaskQueue
from tests.support import DEADLINE_SECONDS, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- code: (?P<way>[^,]*?)(?:, (?P<reason>.*?))? -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
INCLUDE = re.compile(r'^--8<-- "(.+)"\n', re.MULTILINE)
SKIPPED = {"backends.md": 10}
"""How many tests of a page may be skipped: memory has no connection to cut, and the host's clock."""

SURROUNDING = Path(__file__).parent / "surrounding.py"


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The name of its page.
        line: Where it begins there.
        language: What stands behind the fence.
        way: How to treat it, if that is not the usual way of its language.
        reason: Why it is not run.
        title: The name of the file that it is; empty if it has none.
        code: What stands in it, includes carried out.
    """

    page: str
    line: int
    language: str
    way: str
    reason: str
    title: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns the code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page=page.name,
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            way=match["way"] or "",
            reason=match["reason"] or "",
            title=match["title"] or "",
            code=INCLUDE.sub(lambda name: (ROOT / name[1]).read_text(encoding="utf-8"), match["code"]),
        )
        for match in FENCE.finditer(text)
    ]
    # An indented fence, or one that a marker above it does not fit, must not slip through.
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), (
        f"{page.name} has a block that is not found"
    )
    assert text.count("<!-- code:") == sum(bool(block.way) for block in found), (
        f"{page.name} has a marker without a block"
    )
    return found


@dataclass
class Reader:
    """Someone who follows a page from top to bottom, in a folder of their own.

    Attributes:
        folder: Where they work.
        patience: Seconds that they wait for a task to be run.
        printed: What the block before printed; ``None`` if it does not print.
        titled: The blocks so far that are files, by their names.
    """

    folder: Path
    patience: float = DEADLINE_SECONDS
    printed: str | None = None
    titled: dict[str, Block] = field(default_factory=dict)

    def follow(self, block: Block) -> None:
        """Does with a block what its page asks for; an AssertionError says what did not work."""
        ways: dict[tuple[str, str], Callable[[Block], str | None]] = {
            ("python", ""): self._run_python,
            ("python", "fragment"): functools.partial(self._run_surrounded, "fragment"),
            ("python", "lifespan"): functools.partial(self._run_surrounded, "lifespan"),
            ("python", "asgi"): functools.partial(self._run_surrounded, "asgi"),
            ("python", "until SIGTERM"): self._run_worker,
            ("python", "typed"): self._check_types,
            ("python", "compiled"): self._compile,
            ("console", ""): self._run_console,
            ("text", ""): self._compare,
            ("sql", ""): self._query,
            ("toml", ""): self._parse_toml,
            ("ini", ""): self._check_unit,
            ("dockerfile", ""): self._check_dockerfile,
        }
        if block.title:
            (self.folder / block.title).write_text(block.code, encoding="utf-8")
            self.titled[block.title] = block
        if block.way != "not run":
            way = ways.get((block.language, block.way))
            assert way is not None, f"{block}: no way to check a block of {block.language!r}, {block.way!r}"
            self.printed = way(block)

    def close(self) -> None:
        """Runs the tests of the page, all in one process: starting pytest takes longer than they do."""
        files = [block for title, block in self.titled.items() if title.startswith("test_")]
        if files:
            # What pytest-asyncio tells a page that does not configure it is not an error.
            warnings = ("-W", "error", "-W", "ignore::pytest.PytestDeprecationWarning")
            plugins = ("-p", "sitq", "-p", "pytest_asyncio.plugin")  # the others take a second to load
            names = [block.title for block in files]
            printed = self._finish(files[0], sys.executable, "-m", "pytest", "-v", *plugins, *warnings, *names)
            for block in files:
                assert f"{block.title}::" in printed, f"{block}: there are no tests in it\n{printed}"
            skipped = printed.count(" SKIPPED ")
            assert skipped == SKIPPED.get(files[0].page, 0), f"{files[0]}: {skipped} tests are skipped\n{printed}"

    def _finish(self, block: Block, *command: str | Path) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "NO_COLOR": "1",
        }
        process = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert process.returncode == 0, f"{block}: status {process.returncode}\n{process.stdout}{process.stderr}"
        return process.stdout

    def _file(self, block: Block) -> Path:
        path = self.folder / (block.title or f"block_{block.line}.py")
        path.write_text(block.code, encoding="utf-8")
        return path

    def _run_python(self, block: Block) -> str | None:
        if block.title.startswith("test_"):
            return self.printed  # with the others, in close()
        return self._finish(block, sys.executable, "-W", "error", self._file(block))

    def _run_surrounded(self, surrounding: str, block: Block) -> str:
        return self._finish(
            block, sys.executable, "-W", "error", SURROUNDING, surrounding, self._file(block), str(self.patience)
        )

    def _run_console(self, block: Block) -> str:
        return self._finish(block, "bash", "-euc", block.code)

    def _run_worker(self, block: Block) -> None:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", self._file(block)],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                with SyncTaskQueue(SQLiteBackend(self.folder / "app.db")) as queue:
                    # When it has run this one, it is beyond the start, and handles signals.
                    result = queue.get_result(queue.enqueue("operator:add", 1, 2), timeout=self.patience)
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=DEADLINE_SECONDS)
            finally:
                process.kill()
        assert result is not None, f"{block}: the worker does not work\n{log}"
        assert result.value == 3
        assert process.returncode == 0, f"{block}: status {process.returncode} after SIGTERM\n{log}"

    def _check_types(self, block: Block) -> None:
        path = self._file(block)
        command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(path)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = set(map(int, re.findall(r":(\d+): error: ", process.stdout)))
        expected = {number for number, line in enumerate(block.code.splitlines(), 1) if "# an error" in line}
        assert expected, f"{block}: nothing shows that the types are checked"
        assert found == expected, (
            f"{block}: errors in {found}, announced in {expected}\n{process.stdout}{process.stderr}"
        )

    def _compile(self, block: Block) -> None:
        ast.parse(block.code)

    def _compare(self, block: Block) -> None:
        assert self.printed is not None, f"{block}: nothing before it has printed anything"
        pattern = ".*?".join(map(re.escape, block.code.strip().split("…")))
        assert re.fullmatch(pattern, self.printed.strip(), re.DOTALL), f"{block}: what was printed is\n{self.printed}"

    def _query(self, block: Block) -> str:
        connection = sqlite3.connect(self.folder / "app.db")
        try:
            found = connection.execute(block.code).fetchall()
        finally:
            connection.close()
        assert found, f"{block}: the query finds nothing"
        return "\n".join("|".join(map(str, row)) for row in found)

    def _parse_toml(self, block: Block) -> None:
        # What comes after it, pytest for instance, is held to what it says.
        assert tomllib.loads(block.code)

    def _check_unit(self, block: Block) -> None:
        unit = configparser.ConfigParser(delimiters="=", strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]  # names of directives have capitals
        unit.read_string(block.code)
        service = unit["Service"]
        program, script = service["ExecStart"].split()
        assert Path(program).is_absolute(), f"{block}: systemd wants an absolute path"
        assert service["KillSignal"] == "SIGTERM", f"{block}: the worker waits for SIGTERM"
        assert service["KillMode"] in {"mixed", "process"}, f"{block}: KillMode would end what tasks have started"
        time = float(service["TimeoutStopSec"])
        assert time > self._shutdown_timeout(script) + 2, f"{block}: TimeoutStopSec is too short for {script}"

    def _check_dockerfile(self, block: Block) -> None:
        code = block.code.replace("\\\n", " ")
        steps = [line.split(maxsplit=1) for line in code.splitlines() if line and not line.startswith("#")]
        assert steps[0][0] == "FROM", f"{block}: an image is made from another"
        program = json.loads(steps[-1][1])  # the bracketed form is JSON
        assert (steps[-1][0], program[0]) == ("CMD", "python"), f"{block}: the last step starts Python"
        copied = " ".join(rest for step, rest in steps if step == "COPY").split()
        assert program[1] in copied, f"{block}: {program[1]} is not in the image"
        missing = {name for name in copied if name.endswith(".py")} - self.titled.keys()
        assert not missing, f"{block}: the page has no {missing}"

    def _shutdown_timeout(self, script: str) -> float:
        found = re.search(r"shutdown_timeout=([\d.]+)", self.titled[script].code)
        assert found, f"{script} has no shutdown_timeout"
        return float(found[1])
