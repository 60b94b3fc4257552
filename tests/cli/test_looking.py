"""``sitq status``, ``list``, ``show``: what they say to people and to programs."""

import json
import os
from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.backends.inspect import Counts, TaskDetails, TaskInfo
from tests.cli.support import Filled, ask, ask_here, run, run_in_terminal
from tests.cli.test_trouble import change
from tests.faults import outside
from tests.support import rows

COUNTS = {"pending": 2, "in_progress": 0, "success": 1, "failed": 2, "cancelled": 1}
LIST_KEYS = [
    "task_id",
    "name",
    "status",
    "attempt",
    "max_attempts",
    "enqueued_at",
    "due_at",
    "lease_ends_at",
    "started_at",
    "finished_at",
    "error",
    "failures",
    "asked_at",
    "queue",
    "priority",
]
SHOW_KEYS = [*LIST_KEYS, "traceback", "format", "payload_bytes", "result_bytes", "failed_attempts"]
COUNT_KEYS = [
    *COUNTS,
    "scheduled",
    "abandoned",
    "oldest_waiting",
    "enqueued_last_minute",
    "succeeded_last_minute",
    "failed_last_minute",
]


def test_status_counts_the_tasks(filled: Filled) -> None:
    """Each status has a line with its number, and the waiting ones are explained."""
    words = [line.split() for line in ask("status", filled.path).splitlines()]
    for status, number in COUNTS.items():
        assert [status, str(number)] in [line[:2] for line in words]
    (pending,) = [line for line in words if line[:1] == ["pending"]]
    assert " ".join(pending[2:]).startswith("1 due, the oldest for ")
    assert " ".join(pending).endswith("1 not due yet")
    assert ["last", "minute:", "6", "enqueued,", "1", "succeeded,", "2", "failed"] in words


def test_status_in_json(filled: Filled) -> None:
    """The keys are the documented ones, and the numbers those of the file."""
    found = json.loads(ask_here("status", filled.path, "--json"))
    assert list(found) == ["path", "file_bytes", "wal_bytes", *COUNT_KEYS]
    assert found["path"] == str(filled.path)
    assert (found["file_bytes"], found["wal_bytes"]) == (filled.path.stat().st_size, 0)
    assert {key: found[key] for key in COUNTS} == COUNTS
    assert (found["scheduled"], found["abandoned"]) == (1, 0)


def test_list_shows_the_newest_first(filled: Filled) -> None:
    """A line for each task, with the type and the first line of an error below the name of a failed one."""
    lines = ask("list", filled.path).splitlines()
    assert lines[0].split() == ["TASK", "STATUS", "ATTEMPT", "AGE", "NAME"]
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == filled.ids
    assert [line.split()[1] for line in lines[1:] if line[0] != " "] == [
        "cancelled",
        "pending",
        "pending",
        "failed",
        "failed",
        "success",
    ]
    assert "ConnectionError: the mail was refused" in [line.strip() for line in lines]
    assert " in 5h " in lines[2]


def test_list_takes_a_status_and_a_limit(filled: Filled) -> None:
    """Only tasks of that status, and no more than that."""
    failed = json.loads(ask_here("list", filled.path, "--status", "failed", "--json"))
    assert {task["task_id"] for task in failed} == {filled.failed, filled.coloured}
    assert [
        task["task_id"] for task in json.loads(ask_here("list", filled.path, "--limit", 2, "--json"))
    ] == filled.ids[:2]
    assert ask_here("list", filled.path, "--status", "in_progress") == "no tasks\n"


def test_list_in_json(filled: Filled) -> None:
    """The keys are the documented ones, moments are ISO 8601 in UTC, what there is not is null."""
    tasks = json.loads(ask_here("list", filled.path, "--json"))
    assert all(list(task) == LIST_KEYS for task in tasks)
    (failed,) = [task for task in tasks if task["task_id"] == filled.failed]
    assert failed["error"] == "ConnectionError: the mail was refused"
    assert failed["finished_at"].endswith("+00:00")
    assert (failed["due_at"], failed["lease_ends_at"]) == (None, None)
    assert (failed["attempt"], failed["max_attempts"]) == (1, 5)


def test_show_tells_everything_about_a_failure(filled: Filled) -> None:
    """Name, attempts, times, error and the remote traceback."""
    shown = ask("show", filled.path, filled.failed)
    facts = {line[:9].strip(): line[11:] for line in shown.partition("\n\n")[0].splitlines()}
    assert facts["task"] == filled.failed
    assert facts["name"] == "tests.cli.support:refuse"
    assert (facts["status"], facts["attempt"]) == ("failed", "1 of 5")
    assert facts["error"] == "ConnectionError: the mail was refused"
    assert {"enqueued", "started", "finished", "payload"} <= set(facts)
    assert 'raise ConnectionError(f"{what} was refused")' in shown
    assert shown.endswith("ConnectionError: the mail was refused\n")


def test_show_in_json(filled: Filled) -> None:
    """The keys are the documented ones; a task that is not due yet has neither run nor failed."""
    found = json.loads(ask_here("show", filled.path, filled.scheduled, "--json"))
    assert list(found) == SHOW_KEYS
    assert (found["status"], found["attempt"], found["started_at"], found["traceback"]) == ("pending", 0, None, None)
    (row,) = rows(filled.path, "SELECT length(payload) AS size, format FROM tasks WHERE task_id = ?", filled.scheduled)
    assert (found["payload_bytes"], found["format"]) == (row["size"], row["format"])


def test_show_says_that_there_is_no_such_task(filled: Filled) -> None:
    """In one line on stderr, with status 1."""
    ended = run("show", filled.path, "no-such-task")
    assert (ended.status, ended.output) == (1, "")
    assert ended.errors == f"Error: {filled.path}: there is no task no-such-task\n"


@pytest.mark.parametrize("command", ["status", "list", "show", "doctor"])
def test_nothing_but_text_is_written_to_a_pipe(filled: Filled, command: str) -> None:
    """No colour codes, not even a task's own, and no blanks at the ends of lines."""
    output = ask(command, filled.path, *([filled.coloured] if command == "show" else []))
    assert "\x1b" not in output
    assert all(line == line.rstrip() for line in output.splitlines())
    if command in ("list", "show"):
        assert r"ValueError: \x1b[31mred" in output


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_narrow_terminal_cuts_no_id_and_leaves_errors_their_room(filled: Filled, columns: int) -> None:
    """Each line fits, every id and every column is there, and an error has the width of the terminal."""
    error = "ValueError: " + " ".join(f"word{n}" for n in range(12))
    change(filled.path, "UPDATE tasks SET error = ? WHERE task_id = ?", error, filled.failed)
    status, output = run_in_terminal("list", filled.path, columns=columns)
    assert status == 0
    lines = output.splitlines()
    assert all(len(line) <= columns for line in lines)
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == filled.ids
    if columns >= 80:
        assert " ".join(lines[:2]).split()[:5] == ["TASK", "STATUS", "ATTEMPT", "AGE", "NAME"]
        assert "tests.cli.support:refuse" in output
        assert error in " ".join(output.split())
        assert sum("word" in line for line in lines) <= 2


def test_a_long_error_is_cut_in_a_terminal_and_whole_in_a_pipe(filled: Filled) -> None:
    """Three lines of it in a list; what another program reads is one line, of any length."""
    error = "ValueError: " + "x" * 20_000
    change(filled.path, "UPDATE tasks SET error = ? WHERE task_id = ?", error, filled.failed)
    shown = run_in_terminal("list", filled.path)[1].splitlines()
    (last,) = [n for n, line in enumerate(shown) if line.endswith("x…")]
    assert [set(line.strip()) for line in shown[last - 1 : last + 1]] == [{"x"}, {"x", "…"}]
    assert error in [line.strip() for line in ask_here("list", filled.path).splitlines()]
    assert f"error      {error}" in ask_here("show", filled.path, filled.failed).splitlines()


FORGED = "x\n0000  success\n\nstatus     success"


@pytest.mark.parametrize("column", ["name", "error", "traceback", "format", "task_id"])
def test_a_tasks_text_cannot_pass_for_a_line_of_sitqs(filled: Filled, column: str) -> None:
    """Whatever stands in it: in a list it is one line, and what is shown of a task stands to the right."""
    task_id = FORGED if column == "task_id" else filled.failed
    change(filled.path, f"UPDATE tasks SET {column} = ? WHERE task_id = ?", FORGED, filled.failed)
    lines = ask_here("list", filled.path).splitlines()
    assert len(lines) == 1 + 6 + 2
    assert not any(line.startswith("0000") for line in lines)
    shown = ask_here("show", filled.path, task_id).splitlines()
    assert [line for line in shown if line.startswith("status ")] == ["status     failed"]
    assert not any(line.startswith("0000") for line in shown)
    if column != "traceback":
        assert "0000  success" in "\n".join(shown)


@pytest.mark.parametrize(("encoding", "command"), [("ascii", "list"), ("latin-1", "show"), ("utf-8", "list")])
def test_what_the_output_cannot_encode_is_replaced(filled: Filled, encoding: str, command: str) -> None:
    """Never a traceback: the letters that there are stay, the others are written out."""
    change(filled.path, "UPDATE tasks SET name = 'größe→', error = 'Fehler: größer →' WHERE task_id = ?", filled.failed)
    ended = run(command, filled.path, *([filled.failed] if command == "show" else []), encoding=encoding)
    assert (ended.status, ended.errors) == (0, "")
    assert {"ascii": r"gr\xf6\xdfe\u2192", "latin-1": r"größe\u2192", "utf-8": "größe→"}[encoding] in ended.output


def test_a_terminal_that_cannot_encode_shows_one_sign_for_one(filled: Filled) -> None:
    """So that its columns stay straight, also when something is cut."""
    change(
        filled.path, "UPDATE tasks SET name = ?, error = ? WHERE task_id = ?", "größe" * 40, "ä" * 900, filled.failed
    )
    status, output = run_in_terminal("list", filled.path, PYTHONIOENCODING="ascii")
    assert status == 0
    assert "gr??e" in output
    assert all(len(line) <= 80 for line in output.splitlines())


def test_list_can_be_narrowed_and_paged(filled: Filled) -> None:
    """By name, error and age; the next page begins after the last task of the one before."""

    def found(*options: object) -> list[str]:
        return [task["task_id"] for task in json.loads(ask_here("list", filled.path, "--json", *options))]

    assert found("--error", "was refused") == [filled.failed]
    assert found("--name", "*:colour") == [filled.coloured]
    assert found("--name", "support:ok", "--status", "success") == [filled.success]
    assert found("--since", "1h", "--limit", 4) == filled.ids[:4]
    assert found("--limit", 4, "--before", filled.ids[3]) == filled.ids[4:]
    change(filled.path, "UPDATE tasks SET enqueued_at = 1")
    assert found("--since", "1h") == []
    ended = run("list", filled.path, "--status", "failed", "--before", filled.success + "0")
    assert (ended.status, ended.output, ended.errors.count("\n")) == (1, "", 1)
    assert "begin again without it" in ended.errors


def test_show_takes_the_beginning_of_an_id(filled: Filled) -> None:
    """If there is one task only whose id begins so; else the error names some of them."""
    for n, task_id in enumerate(filled.ids):
        change(filled.path, "UPDATE tasks SET task_id = ? WHERE task_id = ?", f"{'ab'[n > 4]}{n}-{task_id}", task_id)
    assert ask_here("show", filled.path, "b").splitlines()[0] == f"task       b5-{filled.success}"
    assert ask_here("show", filled.path, f"a0-{filled.cancelled}").startswith(f"task       a0-{filled.cancelled}")
    ended = run("show", filled.path, "a")
    assert (ended.status, ended.output, ended.errors.count("\n")) == (1, "", 1)
    assert f"several ids begin with a: a0-{filled.cancelled}, a1-" in ended.errors
    assert run("show", filled.path, "").errors.endswith("there is no task \n")


def test_status_counts_what_stands_beside_the_file(filled: Filled) -> None:
    """Who looks how large a queue is has to see the -wal file as well."""
    with outside(filled.path) as connection:
        connection.execute(
            "INSERT INTO tasks (task_id, max_attempts, enqueued_at, available_at, payload) "
            "VALUES ('x', 5, 0, 0, zeroblob(2000000))"
        )
        size = os.stat(f"{filled.path}-wal").st_size
        assert size > 2_000_000
        assert json.loads(ask_here("status", filled.path, "--json"))["wal_bytes"] == size
        assert "MiB in its -wal file" in ask_here("status", filled.path).splitlines()[0]


def test_the_keys_are_those_of_the_protocol() -> None:
    """What programs read has the names that Python code reads."""
    assert list(Counts.__dataclass_fields__) == COUNT_KEYS
    assert list(TaskInfo.__dataclass_fields__) == LIST_KEYS
    assert list(TaskDetails.__dataclass_fields__) == SHOW_KEYS


def test_looking_leaves_the_file_as_it_is(filled: Filled, path: Path) -> None:
    """Not a byte is changed, and the file's neighbours are gone again."""
    before = path.read_bytes()
    for command in ("status", "list", "doctor"):
        ask(command, path)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


async def test_a_queue_at_work_can_be_looked_into(filled: Filled, path: Path) -> None:
    """Another process has the file open, and holds a task under a lease."""
    backend = SQLiteBackend(path)
    await backend.connect()
    try:
        (task,) = (await backend.reserve(1, lease=60, alone=True)).tasks
        assert f"{task.task_id}  in_progress" in ask("list", path)
        shown = json.loads(ask("show", path, task.task_id, "--json"))
        assert (shown["status"], shown["attempt"]) == ("in_progress", 1)
        assert shown["lease_ends_at"] > shown["started_at"]
    finally:
        await backend.close()
