"""Files that cannot be used, wrong usage, missing packages: one clear line, and nothing is touched."""

import contextlib
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sitq.cli.commands import root
from tests.cli.support import MODULE, Filled, environment, run
from tests.scripts import run_script
from tests.support import DEADLINE_SECONDS, start_python

COMMANDS: dict[str, list[str]] = {
    "status": [],
    "list": ["--json"],
    "show": ["some-id"],
    "retry": ["--failed"],
    "cancel": ["some-id"],
    "prune": ["--older-than", "0"],
    "watch": [],
    "doctor": [],
    "worker": [],
}
LOOKS = [name for name in COMMANDS if name != "worker"]


def change(path: Path, sql: str, *parameters: object) -> None:
    """Changes a database with a connection of its own."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, parameters)


def foreign(path: Path) -> None:
    """Makes a database of another program."""
    path.unlink()
    change(path, "CREATE TABLE accounts (name)")


def damage(path: Path) -> None:
    """Overwrites the pages of the tables, so that the header still looks well."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


TROUBLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text file": (lambda path: path.write_text("not a database, " * 100), "it is not a SQLite database"),
    "foreign": (foreign, "is a SQLite database, but not one of sitq's"),
    "newer": (lambda path: change(path, "PRAGMA user_version = 99"), "upgrade sitq"),
}
"""What is done to a queue file, and what is said about it; each leaves a file that nobody may change."""


def invoke(command: str, path: Path) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(root, [command, str(path), *COMMANDS[command]])


def assert_one_line(result: Result, *words: str) -> None:
    """Asserts that a command ended with status 1 and said these words in one line on stderr, and nothing else."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in ("Error: ", *words)), result.stderr


@pytest.mark.parametrize("command", LOOKS)
def test_a_missing_file_is_not_made(path: Path, command: str) -> None:
    """It is said in one line, with status 1, and there is no file afterwards, nor a folder."""
    assert_one_line(invoke(command, path), str(path), "there is no such file")
    assert_one_line(invoke(command, path / "deeper" / "queue.db"), "there is no such file")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("command", LOOKS)
def test_an_empty_file_stays_empty(path: Path, command: str) -> None:
    """A queue would take it for its own; a command that only reads does not."""
    path.touch()
    assert_one_line(invoke(command, path), str(path), "the file is empty")
    assert path.read_bytes() == b""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_not_sitqs_is_refused_and_left_alone(filled: Filled, trouble: str, command: str) -> None:
    """No command, a worker included, opens such a file, and no byte of it is changed."""
    prepare, words = TROUBLES[trouble]
    prepare(filled.path)
    before = filled.path.read_bytes()
    assert_one_line(invoke(command, filled.path), str(filled.path), words)
    assert filled.path.read_bytes() == before


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_a_damaged_file_is_one_line(filled: Filled, command: str) -> None:
    """It says what to do; ``doctor`` has more to say about it."""
    damage(filled.path)
    assert_one_line(invoke(command, filled.path), str(filled.path), "it is damaged", "restore a backup")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_is_no_file(tmp_path: Path, command: str) -> None:
    """A worker cannot open it, and the others say what it is."""
    assert_one_line(invoke(command, tmp_path), str(tmp_path))


@pytest.mark.parametrize("trouble", ["missing", *TROUBLES])
def test_a_process_ends_with_one_line(filled: Filled, trouble: str) -> None:
    """The same of a real process: status 1, nothing on stdout, one line on stderr, no traceback."""
    prepare, words = TROUBLES.get(trouble, (lambda path: path.unlink(), "there is no such file"))
    prepare(filled.path)
    ended = run("status", filled.path)
    assert (ended.status, ended.output) == (1, "")
    assert ended.errors.startswith("Error: ")
    assert ended.errors.count("\n") == 1
    assert words in ended.errors


def test_a_worker_makes_a_missing_file_only_in_a_folder_that_is_there(tmp_path: Path) -> None:
    """A wrong folder is one line, and no process is started."""
    result = invoke("worker", tmp_path / "missing" / "queue.db")
    assert_one_line(result, "check that its folder exists")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command"),
        (["status"], "Missing argument 'PATH'"),
        (["show", "queue.db"], "Missing argument 'ID'"),
        (["retry", "queue.db"], "give the ids of tasks, or --failed"),
        (["retry", "queue.db", "--failed", "id"], "give the ids of tasks, or --failed"),
        (["cancel", "queue.db"], "Missing argument"),
        (["list", "queue.db", "--status", "done"], "is not one of"),
        (["list", "queue.db", "--limit", "0"], "--limit"),
        (["list", "queue.db", "--limit", "99999999999999999999"], "at most 2,147,483,647"),
        (["list", "queue.db", "--since", "30"], "is not a duration: write 90s, 15m, 2h, 7d or 1w"),
        (["retry", "queue.db", "--failed", "--error", ""], "must not be empty"),
        (["retry", "queue.db", "id", "--error", "x"], "--name, --error and --since go with --failed"),
        (["prune", "queue.db"], "Missing option '--older-than'"),
        (["prune", "queue.db", "--older-than", "yesterday"], "is not a duration: write 90s, 15m, 2h, 7d or 1w"),
        (["prune", "queue.db", "--older-than", "9999999d"], "a hundred years"),
        (["prune", "queue.db", "--older-than", "30"], "is not a duration: write 90s, 15m, 2h, 7d or 1w"),
        (["worker", "queue.db", "--retention", "30"], "is not a duration: write 90s, 15m, 2h, 7d or 1w"),
        (["watch", "queue.db", "--interval", "0"], "at least 0.05 seconds"),
        (["worker", "queue.db", "--processes", "0"], "--processes"),
        (["worker", "queue.db", "--concurrency", "99999999999999999999"], "at most 2,147,483,647"),
        (["worker", "queue.db", "--lease", "0"], "more than 0 seconds"),
        (["worker", "queue.db", "--import", "my-module"], "is not the name of a module"),
        (["worker", "queue.db", "--serializer", "myapp"], "is not of the form package.module:attribute"),
        (["worker", "queue.db", "--shutdown-timeout", "soon"], "is not a duration"),
        (["worker", "queue.db", "--retention", "never"], "is not a duration"),
        (["worker", ":memory:"], "cannot be shared with worker processes"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], words: str) -> None:
    """It says what is wrong, before anything is opened."""
    result = CliRunner().invoke(root, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert not Path("queue.db").exists()


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_80_columns(command: str | None) -> None:
    """And says what a command is for, in its own words, and none of them is cut."""
    arguments = ["--help"] if command is None else [command, "--help"]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(root, arguments)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "..." not in result.stdout.replace("ID...", "").replace("[ARGS]...", "")


def test_the_commands_are_listed_in_the_order_of_use() -> None:
    """Running a worker first, then looking, then mending."""
    shown = CliRunner().invoke(root, ["--help"]).stdout.partition("Commands:\n")[2]
    assert [line.split()[0] for line in shown.splitlines()] == [
        "worker",
        "status",
        "list",
        "show",
        "queues",
        "retry",
        "cancel",
        "pause",
        "resume",
        "prune",
        "watch",
        "doctor",
    ]


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_package_is_one_line(tmp_path: Path, missing: str) -> None:
    """Without the extra, ``sitq`` says how to install it, and shows no traceback."""
    process = start_python(
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['sitq', 'status', 'q.db']; "
        "from sitq.cli import main; main()"
    )
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")
    assert errors.count("\n") == 1
    assert "pip install './sitq[cli]'" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_the_output_is_one_line(filled: Filled, unbuffered: str, options: list[str]) -> None:
    """What was asked for could not be written: status 1, and no traceback, at the exit neither."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*MODULE, "list", str(filled.path), *options],
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left" in ended.stderr


@pytest.mark.parametrize(("command", "closed"), [("status", ">&-"), ("retry", "<&- >&-"), ("retry", ">&- 2>&-")])
def test_a_closed_output_is_one_line(filled: Filled, command: str, closed: str) -> None:
    """Nothing could be said: the status is 1, nothing is done, and nothing is written into the queue file."""
    words = [*MODULE, command, str(filled.path), *COMMANDS[command]]
    before = filled.path.read_bytes()
    ended = subprocess.run(
        ["sh", "-c", f"{shlex.join(map(str, words))} {closed}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    if "2>&-" not in closed:
        assert ended.stderr == "Error: the standard output is closed: there is nowhere to write to\n"
    assert filled.path.read_bytes() == before


def test_a_reader_that_goes_away_is_no_trouble(filled: Filled) -> None:
    """``head`` has read enough: no traceback, whatever is still to be written."""
    sql = """
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 400)
        INSERT INTO tasks (task_id, max_attempts, enqueued_at, available_at, payload, name)
        SELECT n, 5, 1, 1, x'', hex(zeroblob(500)) FROM n
    """
    change(filled.path, sql)  # more than a pipe takes
    command = shlex.join([*map(str, MODULE), "list", str(filled.path), "--limit", "1000"])
    ended = subprocess.run(
        ["sh", "-c", f"{command} | head -n 1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert len(ended.stdout.splitlines()) == 1
    assert "Traceback" not in ended.stderr


def test_a_missing_module_of_another_kind_is_not_hidden() -> None:
    """Only what belongs to the extra is explained away."""
    process = start_python("import sys; sys.modules['json'] = None; from sitq.cli import main; main()")
    assert "import of json halted" in process.communicate(timeout=30)[1]


def test_importing_sitq_does_not_import_the_command_line() -> None:
    """Neither its modules nor its packages."""
    printed = run_script("""
        import sys, sitq
        print([name for name in sys.modules if name.startswith(("sitq.cli", "click", "rich"))])
        """)
    assert printed == "[]\n"


def test_the_script_and_the_module_are_the_same_command() -> None:
    """``sitq`` and ``python -m sitq`` give the same help."""
    script = Path(sys.executable).parent / "sitq"
    ended = subprocess.run([script, "--help"], env=environment(), capture_output=True, text=True, check=True)
    assert ended.stdout == run("--help").output
