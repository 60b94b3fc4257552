"""How far tasks have come: what ``SQLiteBackend`` offers as ``Progressing``; made in a file when a task reports first."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from sitq.backends.progressing import Progress, Report
from sitq.backends.sqlite.abilities import Ability, abilities
from sitq.backends.sqlite.conditions import IS_HELD
from sitq.backends.sqlite.jobs import Job, ReadJob, Topic
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.statements import Notes, add_operation
from sitq.errors import BackendCorruptError
from sitq.models import from_micros

# A table, and no columns of tasks: a change of a row would write its payload anew. The claim tells of which run a report
# is, so that the next attempt does not begin where the one before it ended.
PROGRESS = Ability(
    "progress",
    (
        "CREATE TABLE progress (id INTEGER PRIMARY KEY, claim INTEGER NOT NULL, at INTEGER NOT NULL, done REAL NOT NULL,"
        " total REAL, note TEXT NOT NULL)",
        "CREATE TRIGGER progress_deleted AFTER DELETE ON tasks BEGIN DELETE FROM progress WHERE id = OLD.id; END",
    ),
)


class NoteProgress(NamedTuple):
    """Keeps what a run reports, in place of what it has reported before."""

    id: int | str
    claim: int | str
    done: float
    total: float | None
    note: str


NOTE_PROGRESS = f"""
    INSERT OR REPLACE INTO progress (id, claim, at, done, total, note)
    SELECT NEW.id, NEW.claim, NEW.now, NEW.done, NEW.total, NEW.note
        WHERE EXISTS (SELECT 1 FROM tasks WHERE {IS_HELD});
"""

_READ = """
    SELECT done, total, note, at FROM tasks JOIN progress USING (id, claim) WHERE task_id = ?
"""


class ReportJob(Job[None]):
    """Keeps reports; not synced, because the next one comes soon."""

    writes = True
    abilities = (PROGRESS,)

    def __init__(self, reports: Sequence[Report]) -> None:
        super().__init__()
        self._reports = reports

    def changes(self, now: int) -> Iterator[Any]:
        """Gives one for each report."""
        for task, done, total, note in self._reports:
            yield NoteProgress(task.key, task.claim, done, total, note)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> None:
        """Returns nothing."""

    def notifies(self, result: None) -> Iterable[Topic]:
        """Wakes those who watch one of the tasks; in other processes only those whose task has ended are woken."""
        return [report.task.task_id for report in self._reports]


class _Backend(Protocol):
    """What is needed of the backend."""

    @property
    def _path(self) -> str: ...

    def _connected(self) -> Connected: ...


class ProgressReports:
    """Mixed into ``SQLiteBackend``; see :class:`~sitq.backends.progressing.Progressing`."""

    async def report(self: _Backend, reports: Sequence[Report]) -> None:
        """Keeps reports of tasks that are held."""
        await self._connected().call(ReportJob(reports))

    async def progress(self: _Backend, task_id: str) -> Progress | None:
        """Returns the last report of the task's latest run; ``None`` if there is none.

        Raises:
            BackendCorruptError: The row holds what sitq did not write.
        """
        return await self._connected().call(ReadJob(lambda sqlite, _: _read(sqlite, self._path, task_id)))


def _read(sqlite: sqlite3.Connection, path: str, task_id: str) -> Progress | None:
    if PROGRESS.name not in abilities(sqlite):
        return None
    try:
        row = sqlite.execute(_READ, (task_id,)).fetchone()
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    if row is None:
        return None
    try:
        done, total, note, at = row
        return Progress(float(done), None if total is None else float(total), str(note), from_micros(at))
    except (TypeError, ValueError, OverflowError) as error:
        raise BackendCorruptError(f"{path}: the progress of task {task_id} holds what sitq did not write") from error
