"""``sitq doctor``: what it finds, what it advises, and its status."""

import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from sitq import CloudpickleSerializer
from sitq.backends.inspect import Finding, PayloadFormat
from sitq.backends.sqlite import examination
from sitq.cli.doctor import payloads
from tests.cli.support import Filled, ask, ask_here, run
from tests.cli.test_trouble import change, damage

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
    ended = run("doctor", path, "--json")
    assert (ended.status, ended.errors) == (0 if healthy else 1, "")
    assert ended.json["healthy"] is healthy
    assert all(list(finding) == ["name", "level", "found", "advice"] for finding in ended.json["findings"])
    assert healthy == all(finding["level"] != "wrong" for finding in ended.json["findings"])
    return {finding["name"]: finding for finding in ended.json["findings"]}


def test_a_healthy_file_is_status_0(filled: Filled) -> None:
    """Each thing that was examined is named, and nothing is wrong."""
    found = look(filled.path, healthy=True)
    assert list(found) == [
        "SQLite",
        "file system",
        "file mode",
        "journal mode",
        "integrity",
        "leases",
        "waiting tasks",
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
    """Where the system does not say."""
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
