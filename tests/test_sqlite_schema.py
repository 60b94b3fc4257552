"""The versions of the schema: how a file gets the newest one, and what an older process sees of that."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite import schema
from sitq.backends.sqlite.reading import Reader
from sitq.errors import BackendReadOnlyError, BackendVersionError
from sitq.models import Extras, Outcome
from tests.faults import Clock, connected, new_task, outside
from tests.support import rows

NOW = int(Clock().now * 1_000_000)
LATER = NOW + 3600 * 1_000_000
OLD_COLUMNS = (
    "task_id, status, attempt, max_attempts, enqueued_at, available_at, started_at, finished_at, claim, payload, "
    "result, error, traceback"
)
OLD_ROWS: dict[str, tuple[Any, ...]] = {
    "due": ("pending", 0, 5, 1, 1, None, None, None, b"p", None, None, None),
    "scheduled": ("pending", 0, 5, 1, LATER, None, None, None, b"p", None, None, None),
    "last": ("pending", 0, 1, 1, 2, None, None, None, b"p", None, None, None),
    "held": ("in_progress", 1, 5, 1, LATER, 3, None, 77, b"p", None, None, None),
    "abandoned": ("in_progress", 1, 5, 1, 3, 3, None, 78, b"p", None, None, None),
    "spent": ("in_progress", 1, 1, 1, 4, 3, None, 79, b"p", None, None, None),
    "success": ("success", 1, 5, 1, 5, 3, NOW, 80, b"p", b"r", None, None),
    "failed": ("failed", 1, 5, 1, 5, 3, NOW, 81, b"p", None, "E: no", "Traceback"),
    "cancelled": ("cancelled", 0, 5, 1, 5, None, NOW, None, b"p", None, None, None),
}
"""A row of every status, as an older sitq left it."""


@dataclass
class OldFile:
    """A file of an older version."""

    path: Path
    version: int


@pytest.fixture(params=[1, 2])
def old(request: pytest.FixtureRequest, path: Path) -> OldFile:
    """A file of an older version, with a row of every status."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for migration in schema.MIGRATIONS[: request.param]:
            connection.executescript(migration)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {request.param}")
        for task_id, row in OLD_ROWS.items():
            marks = ", ".join("?" * (len(row) + 1))
            connection.execute(f"INSERT INTO tasks ({OLD_COLUMNS}) VALUES ({marks})", (task_id, *row))
    return OldFile(path, request.param)


def shape(path: Path) -> set[tuple[str, str]]:
    """Returns the tables and indexes of a file, as they were made."""
    return {(row["name"], row["sql"]) for row in rows(path, "SELECT name, sql FROM sqlite_schema")}


async def test_an_older_file_gets_the_shape_of_a_new_one(old: OldFile, path: Path) -> None:
    """Table and indexes are the same, to the letter, and each row is what it was."""
    before = rows(path)
    async with connected(SQLiteBackend(path)):
        pass
    async with connected(SQLiteBackend(path.with_name("new.db"))):
        pass
    assert shape(path) == shape(path.with_name("new.db"))
    assert rows(path) == [row | {"queue": None, "priority": None, "failures": 0, "snoozes": 0} for row in before]


async def test_the_tasks_of_an_older_file_go_on(old: OldFile, path: Path) -> None:
    """Each is run, buried, recorded, shown or left, by what its status is."""
    async with connected(SQLiteBackend(path, clock=Clock())) as backend:
        for task_id, row in OLD_ROWS.items():
            found = await backend.get_result(task_id)
            assert found is not None
            assert (found.status, found.attempt, found.value, found.error) == (row[0], row[1], row[9], row[10])
        first = await backend.reserve(9, lease=30, alone=True)
        assert ([task.task_id for task in first.tasks], first.buried) == (["due", "abandoned"], ["spent"])
        assert [task.failures for task in first.tasks] == [0, 0]
        assert await backend.mark_success([Outcome(task, b"") for task in first.tasks]) == []
        last = await backend.reserve(9, lease=30, alone=True)
        assert [task.task_id for task in last.tasks] == ["last"]
        assert {task.task_id for task in await backend.list(status="in_progress")} == {"held", "last"}
        assert {task.task_id for task in await backend.list(status="pending")} == {"scheduled"}
        assert await backend.retry(["failed", "cancelled", "success"]) == ["failed", "cancelled"]


@pytest.mark.parametrize("old", [2], indirect=True)
async def test_an_older_file_is_read_by_nobody_who_cannot_write_it(old: OldFile) -> None:
    """What such a user is told is what to do about it."""
    with pytest.raises(BackendReadOnlyError, match=r"schema version 2.*open it once"):
        await Reader(old.path).counts()


@pytest.fixture
def older_process(path: Path) -> Iterator[Callable[..., set[tuple[Any, ...]]]]:
    """A process of version 2 that has the file open while it is brought up to date: makes a change as that one does.

    All of its changes are inserted into one view, whose triggers carry them out. What it notes is returned.
    """
    with outside(path) as connection:
        connection.executescript((Path(__file__).parent / "older" / "version_2.sql").read_text())

        def change(*values: Any) -> set[tuple[Any, ...]]:
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO change ({OLD_CHANGE[len(values)]}) VALUES ({marks})", values)
            noted = set(connection.execute("SELECT kind, key, claim FROM note").fetchall())
            connection.execute("DELETE FROM note")
            return noted

        assert change("renew", NOW, "nobody's", 1, LATER) == {("refused", "nobody's", 1)}
        yield change


OLD_CHANGE = {5: "op, now, key, claim, at", 6: "op, now, key, claim, at, a", 9: "op, now, key, claim, at, a, b, c, d"}


@pytest.mark.parametrize("old", [2], indirect=True)
@pytest.mark.usefixtures("old")
async def test_an_older_process_goes_on_in_a_newer_file(
    path: Path, older_process: Callable[..., set[tuple[Any, ...]]]
) -> None:
    """It stores, reserves, renews, gives back and finishes, as it did before, and the newer one sees what it did."""
    (held,) = rows(path, "SELECT id FROM tasks WHERE task_id = 'held'")
    async with connected(SQLiteBackend(path, clock=Clock())) as backend:
        assert older_process("renew", NOW, held["id"], 77, LATER + 1) == set()
        assert older_process("finish", NOW, held["id"], 77, None, "success", b"\x01", None, None) == set()
        assert older_process("enqueue", NOW, "new", 5, 2, b"p", "", "", None) == set()
        assert older_process("reserve", NOW, 9, 99, LATER, False) == {("buried", "spent", 99)}
        taken = rows(path, "SELECT id, task_id FROM tasks WHERE claim = 99 AND status = 'in_progress' ORDER BY task_id")
        assert [row["task_id"] for row in taken] == ["abandoned", "due", "new"]
        assert older_process("release", NOW, taken[0]["id"], 99, None) == set()
        assert older_process("finish", NOW, taken[1]["id"], 99, None, "failed", None, "E: no", None) == set()
        ended = {name: await backend.get_result(name) for name in ("held", "due", "spent")}
        statuses = {name: result and (result.status, result.value, result.error) for name, result in ended.items()}
        assert statuses["held"] == ("success", b"\x01", None)
        assert statuses["due"] == ("failed", None, "E: no")
        assert [task.task_id for task in (await backend.reserve(9, lease=30, alone=False)).tasks] == ["abandoned"]


@pytest.mark.parametrize("old", [2], indirect=True)
@pytest.mark.usefixtures("old")
async def test_an_older_process_runs_what_is_to_be_tried_again(
    path: Path, older_process: Callable[..., set[tuple[Any, ...]]]
) -> None:
    """Its success leaves nothing of the failure before it."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.reserve(9, lease=30, alone=False)  # what is there already
        await backend.enqueue([new_task("again")])
        (task,) = (await backend.reserve(9, lease=30, alone=False)).tasks
        await backend.mark_failure([Outcome(task, error="E: no", traceback="Traceback", retry_in=0)])
        older_process("reserve", NOW, 9, 99, LATER, False)
        older_process("finish", NOW, task.key, 99, None, "success", b"\x01", None, None)
        found = await backend.get_result("again")
    assert found is not None
    assert (found.status, found.value, found.error, found.traceback) == ("success", b"\x01", None, None)


@pytest.mark.parametrize("old", [2], indirect=True)
@pytest.mark.usefixtures("old")
async def test_an_older_process_that_opens_a_newer_file_is_told_to_upgrade(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restart, it leaves the file alone."""
    async with connected(SQLiteBackend(path)):
        pass
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    with pytest.raises(BackendVersionError, match="upgrade sitq"):
        await SQLiteBackend(path).connect()


async def test_a_task_of_a_named_queue_is_not_given_out(path: Path) -> None:
    """Neither a waiting one nor one on its last attempt; the others do not notice them."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task("mail"), new_task("last mail", max_attempts=1), new_task("other")])
        with outside(path) as connection:
            connection.execute("UPDATE tasks SET queue = 'mail' WHERE task_id LIKE '%mail'")
        reservation = await backend.reserve(9, lease=30, alone=True)
        assert [task.task_id for task in reservation.tasks] == ["other"]
        assert not reservation.last_attempt_waiting
        assert (await backend.reserve(9, lease=30, alone=True)).tasks == []
        counts = await backend.counts()
        assert (counts.pending, counts.in_progress) == (2, 1)


async def test_extras_at_their_defaults_are_taken(path: Path) -> None:
    """They ask for nothing."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([new_task(extras=Extras())])
        (task,) = (await backend.reserve(9, lease=30, alone=True)).tasks
    assert task.task_id == "task"


async def test_a_reservation_says_when_it_was_made(path: Path) -> None:
    """By the clock of the store, and all of its tasks share the moment."""
    clock = Clock()
    async with connected(SQLiteBackend(path, clock=clock)) as backend:
        await backend.enqueue([new_task("one"), new_task("two")])
        clock.now += 10
        one, two = (await backend.reserve(9, lease=30, alone=True)).tasks
        found = await backend.get_result("one")
    assert found is not None
    assert one.started_at is two.started_at
    assert (one.started_at, one.failures) == (found.started_at, 0)
    assert one.started_at is not None
    assert one.started_at.timestamp() == clock.now
