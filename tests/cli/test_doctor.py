"""``sitq doctor``: what it finds, what it advises, and its status."""

import json
import shlex
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sitq import CloudpickleSerializer
from sitq.backends.inspect import Finding, PayloadFormat
from sitq.backends.sqlite import examination
from sitq.cli.commands import root
from sitq.cli.doctor import payloads
from tests.cli.support import Filled, ask, ask_here, run
from tests.cli.test_trouble import change, damage
from tests.support import rows

MINE = "sitq-1 cpython-3.13 cloudpickle-3.1.2"

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 27 0:40 / /srv rw,relatime - nfs4 server:/export rw
32 31 254:1 / /srv/local rw,relatime - xfs /dev/vdb rw
33 27 0:41 / /mnt/my\040share rw - cifs //host/share rw
34 27 0:42 / /tmp rw - tmpfs tmpfs rw
35 27 0:43 / /data rw - ext4 /dev/vdc rw
36 35 0:44 / /data rw - fuse.sshfs host:/ rw
"""


def look(path: Path, *, healthy: bool) -> dict[str, dict[str, Any]]:
    """Runs ``sitq doctor`` and returns its findings by name; checks that its status fits."""
    ended = CliRunner().invoke(root, ["doctor", str(path), "--json"])
    assert (ended.exit_code, ended.stderr) == (0 if healthy else 1, "")
    found = json.loads(ended.stdout)
    assert found["healthy"] is healthy
    assert all(list(finding) == ["name", "level", "found", "advice"] for finding in found["findings"])
    assert healthy == all(finding["level"] != "wrong" for finding in found["findings"])
    return {finding["name"]: finding for finding in found["findings"]}


def test_a_healthy_file_is_status_0(filled: Filled) -> None:
    """Each thing that was examined is named, and nothing is wrong."""
    found = look(filled.path, healthy=True)
    assert list(found) == [
        "SQLite",
        "file system",
        "file mode",
        "folder mode",
        "journal mode",
        "integrity",
        "leases",
        "waiting tasks",
        "failures",
        "rows",
        "free pages",
        "payloads",
    ]
    assert found["journal mode"]["found"] == "wal"
    assert sqlite3.sqlite_version in found["SQLite"]["found"]
    lines = ask("doctor", filled.path).splitlines()
    assert [line[7:20].strip() for line in lines if line[0] != " "] == list(found)


def test_a_damaged_file_is_wrong(filled: Filled) -> None:
    """It says so of what cannot be read, shows the rest all the same, and what to do."""
    damage(filled.path)
    found = look(filled.path, healthy=False)
    assert found["integrity"]["level"] == "wrong"
    assert "restore a backup" in found["integrity"]["advice"]
    assert found["journal mode"]["level"] == "ok"


def test_a_page_that_does_not_fit_is_wrong(filled: Filled) -> None:
    """What SQLite's own check finds is shown: here an index that lacks a row."""
    connection = sqlite3.connect(filled.path, isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'IS NOT NULL', 'IS NULL') WHERE name LIKE '%finished'"
    )
    connection.close()
    found = look(filled.path, healthy=False)
    assert "missing from index tasks_finished" in found["integrity"]["found"]


def test_leases_that_are_long_over_are_wrong(filled: Filled) -> None:
    """Tasks whose workers died, and no worker took them over for more than a minute."""
    change(
        filled.path,
        "UPDATE tasks SET status = 'in_progress', claim = 1, attempt = 1, available_at = 1 WHERE status = 'pending'",
    )
    found = look(filled.path, healthy=False)["leases"]
    assert found["found"].startswith("2 over, the oldest for ")
    assert "see that one is running" in found["advice"]


def test_tasks_that_nobody_runs_are_noted(filled: Filled) -> None:
    """Due for more than a minute, and nothing is running: that may be meant so."""
    change(filled.path, "UPDATE tasks SET available_at = 1 WHERE status = 'pending'")
    found = look(filled.path, healthy=True)["waiting tasks"]
    assert found["level"] == "note"
    assert found["advice"] == "see that a worker is running"


def test_payloads_by_value_of_another_python_are_wrong(filled: Filled) -> None:
    """A worker of this Python would fail them; the payload is searched for a mark, not loaded."""
    change(filled.path, "UPDATE tasks SET format = 'sitq-1 cpython-3.9 cloudpickle-3.1.2' WHERE status = 'pending'")
    assert "by reference" in look(filled.path, healthy=True)["payloads"]["found"]
    by_value = CloudpickleSerializer().dumps(lambda: 1)
    change(filled.path, "UPDATE tasks SET payload = ? WHERE task_id = ?", by_value, filled.waiting)
    found = look(filled.path, healthy=False)["payloads"]
    assert found["found"].startswith("1 pickled by value by cpython-3.9: ")
    assert "with that Python" in found["advice"]


def test_a_file_that_everyone_may_write_is_wrong(filled: Filled) -> None:
    """For who can write it can run code in the workers."""
    filled.path.chmod(0o666)
    found = look(filled.path, healthy=False)["file mode"]
    assert found["found"] == "-rw-rw-rw-: every user can write it"
    assert "chmod 600" in found["advice"]


@pytest.mark.parametrize(
    ("mode", "level"),
    [(0o600, "ok"), (0o400, "ok"), (0o640, "note"), (0o660, "note"), (0o604, "note"), (0o602, "wrong")],
)
def test_a_mode_is_judged_by_who_else_can_use_the_file(mode: int, level: str) -> None:
    """Reading it is worth a word, writing it is wrong."""
    assert examination.file_mode(stat.S_IFREG | mode, writable=True).level == level


def test_a_file_that_this_user_cannot_write_is_wrong() -> None:
    """Whatever its mode says of others: here nothing can be enqueued and no task be run."""
    found = examination.file_mode(stat.S_IFREG | 0o644, writable=False)
    assert (found.level, found.found) == ("wrong", "-rw-r--r--: this user cannot write it")
    assert found.advice is not None


@pytest.mark.parametrize(
    ("mode", "level", "words"),
    [
        (0o700, "ok", "for its owner only to write in"),
        (0o755, "ok", "for its owner only to write in"),
        (0o775, "note", "its group can replace the file"),
        (0o777, "wrong", "every user can replace the file"),
        (0o1777, "wrong", "every user can put a -wal file beside the file"),
    ],
)
def test_a_folder_is_judged_by_who_else_can_write_in_it(filled: Filled, mode: int, level: str, words: str) -> None:
    """Who can put a file beside the queue file, or in its place, can run code in the workers."""
    filled.path.parent.chmod(mode)
    found = look(filled.path, healthy=level != "wrong")
    filled.path.parent.chmod(0o700)
    assert found["file mode"]["level"] == "ok"
    assert found["folder mode"]["level"] == level
    assert found["folder mode"]["found"].endswith(words)
    assert (found["folder mode"]["advice"] is None) == (level == "ok")


def test_a_folder_in_which_this_user_cannot_write_is_wrong() -> None:
    """For SQLite needs a file beside the queue file."""
    found = examination.folder_mode(stat.S_IFDIR | 0o755, writable=False)
    assert (found.level, "-wal file" in found.found) == ("wrong", True)


def fail_all(path: Path, error: str, count: int) -> None:
    """Stores tasks that failed just now."""
    for n in range(count):
        change(
            path,
            "INSERT INTO tasks (task_id, status, max_attempts, enqueued_at, available_at, finished_at, payload, error)"
            " VALUES (?, 'failed', 5, 0, 0, unixepoch() * 1000000, x'', ?)",
            f"{error}{n}",
            error,
        )


@pytest.mark.parametrize(
    "error",
    [
        "ModuleNotFoundError: the payload cannot be loaded: No module named 'myapp.tasks'",
        "SerializationError: the payload cannot be loaded: the import path 'myapp.tasks:f' does not resolve in this "
        "worker: No module named 'myapp.tasks'",
    ],
)
def test_a_worker_in_the_wrong_folder_is_told_by_its_failures(filled: Filled, error: str) -> None:
    """One is worth a word, many are wrong: it names the module, and what to do takes those failures and no others."""
    assert look(filled.path, healthy=True)["failures"]["level"] == "ok"
    fail_all(filled.path, error, 1)
    assert look(filled.path, healthy=True)["failures"]["level"] == "note"
    fail_all(filled.path, f"{error} again", 9)
    found = look(filled.path, healthy=False)["failures"]
    assert found["found"].startswith("10 of 12 in the last hour")
    assert "myapp.tasks (10)" in found["found"]
    assert "start the workers in the folder that holds myapp.tasks" in found["advice"]
    retry, *options = shlex.split(found["advice"].partition("run sitq ")[2])
    assert ask_here(retry, *[filled.path if word == "PATH" else word for word in options]) == "retried 10 tasks\n"


def test_failures_of_long_ago_say_nothing(filled: Filled) -> None:
    """What was mended yesterday is not wrong today."""
    fail_all(filled.path, "ModuleNotFoundError: No module named 'myapp'", 10)
    change(filled.path, "UPDATE tasks SET finished_at = 1 WHERE finished_at IS NOT NULL")
    assert look(filled.path, healthy=True)["failures"]["found"].startswith("0 in the last hour")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("available_at", "1.5", "available_at is real"),
        ("available_at", "'soon'", "available_at is text"),
        ("enqueued_at", "300000000000000000", "enqueued_at is no time"),
        ("attempt", "'many'", "attempt is text"),
        ("status", "'paused'", "status is 'paused'"),
        ("status", "'success'", "status is success, without finished_at"),
        ("payload", "'text'", "payload is text"),
        ("name", "x'00'", "name is blob"),
        ("name", "CAST(x'6361ff' AS TEXT)", "name is not UTF-8"),
        ("format", "CAST(x'c3' AS TEXT)", "format is not UTF-8"),
        ("error", "CAST(x'ff' AS TEXT)", "error is not UTF-8"),
    ],
)
def test_a_row_of_another_programs_making_is_named(filled: Filled, column: str, value: str, words: str) -> None:
    """By its id, and with what is wrong with it; the other findings are given all the same."""
    change(filled.path, f"UPDATE tasks SET {column} = {value} WHERE task_id = ?", filled.waiting)
    (row,) = rows(filled.path, "SELECT id FROM tasks WHERE task_id = ?", filled.waiting)
    found = look(filled.path, healthy=False)
    assert found["rows"]["found"] == (
        f"1 hold what sitq does not write: id {row['id']} (task {filled.waiting}): {words}"
    )
    assert found["free pages"]["level"] == "ok"


def test_of_many_malformed_rows_some_are_named(filled: Filled) -> None:
    """And counted; a name in another script is nothing wrong."""
    change(filled.path, "UPDATE tasks SET name = 'größe→'")
    assert look(filled.path, healthy=True)["rows"]["level"] == "ok"
    change(filled.path, "UPDATE tasks SET enqueued_at = 'then', task_id = task_id || char(10) || 'ok rows'")
    found = look(filled.path, healthy=False)["rows"]["found"]
    assert found.startswith("6 hold what sitq does not write: id 1 (task ")
    assert found.endswith("; and 1 more")
    assert not any(line.startswith("ok rows") for line in run("doctor", filled.path).output.splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_advice_is_written_with_what_the_terminal_has(filled: Filled, encoding: str) -> None:
    """If the encoding has no arrow, one is made."""
    filled.path.chmod(0o644)
    ended = run("doctor", filled.path, encoding=encoding)
    assert (ended.status, ended.errors) == (0, "")
    assert any(line.strip().startswith("-> chmod 600") for line in ended.output.splitlines())


@pytest.mark.parametrize(
    ("path", "kind", "level"),
    [
        ("/var/app/queue.db", "ext4", "ok"),
        ("/srv/queue.db", "nfs4", "wrong"),
        ("/srv/local/queue.db", "xfs", "ok"),
        ("/srv/locality/queue.db", "nfs4", "wrong"),
        ("/mnt/my share/queue.db", "cifs", "wrong"),
        ("/tmp/queue.db", "tmpfs", "note"),
        ("/data/queue.db", "fuse.sshfs", "wrong"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(path: str, kind: str, level: str) -> None:
    """Blanks in its name are read, what is hidden below it is not; network file systems are wrong."""
    found = examination.file_system(path, MOUNTS)
    assert found.found.startswith(kind)
    assert found.level == level


def test_an_unknown_file_system_is_not_wrong() -> None:
    """If the system does not say."""
    assert examination.file_system("/queue.db", "").level == "ok"


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 40, 1), "note"),
        ((3, 44, 5), "note"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "note"),
        ((3, 50, 6), "note"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "note"),
        ((3, 51, 3), "ok"),
        ((3, 52, 0), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_the_wal_reset_bug_is_noted_where_it_is(version: tuple[int, ...], level: str) -> None:
    """Fixed in 3.51.3, and in 3.50.7 and 3.44.6 of the older branches."""
    found = examination.sqlite_version(version)
    assert found.level == level
    assert (found.advice is not None) == (level == "note")


def test_free_pages_are_noted_where_they_are_many() -> None:
    """A quarter of the file, and 16 MiB at least."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (data)")
    connection.execute("INSERT INTO t VALUES (zeroblob(20 * 1024 * 1024))")
    assert examination.free_pages(connection).level == "ok"
    connection.execute("DELETE FROM t")
    found = examination.free_pages(connection)
    connection.close()
    assert found.level == "note"
    assert "VACUUM" in (found.advice or "")


@pytest.mark.parametrize(
    ("formats", "level"),
    [
        ([], "ok"),
        ([PayloadFormat(MINE, 3, 3)], "ok"),
        ([PayloadFormat("json", 3, 0), PayloadFormat("", 1, 0)], "ok"),
        ([PayloadFormat("sitq-1 cpython-3.14 cloudpickle-3.1.2", 3, 0)], "ok"),
        ([PayloadFormat("sitq-1 cpython-3.14 cloudpickle-3.1.2", 3, 1)], "wrong"),
        ([PayloadFormat("sitq-1 pypy-3.13 cloudpickle-3.1.2", 1, 1), PayloadFormat(MINE, 1, 1)], "wrong"),
    ],
)
def test_only_by_value_payloads_of_another_python_are_wrong(formats: list[PayloadFormat], level: str) -> None:
    """Those of this Python, by reference, and of a serializer that says nothing of Python, are not."""
    assert payloads(formats, MINE).level == level


def test_a_finding_without_advice_needs_none() -> None:
    """What is ok says nothing about what to do."""
    assert Finding("name", "ok", "found").advice is None


def test_advice_stands_below_what_was_found(filled: Filled) -> None:
    """In the text for people."""
    filled.path.chmod(0o644)
    lines = ask_here("doctor", filled.path).splitlines()
    (number,) = [n for n, line in enumerate(lines) if "every user can read it" in line]
    assert lines[number].startswith("note ")
    assert lines[number + 1].strip().startswith("→ chmod 600")
    assert json.loads(ask_here("doctor", filled.path, "--json"))["healthy"] is True
