"""How far tasks have come: what ``SQLiteBackend`` offers as ``Progressing``.

Beside the hot path. What the file is given for it stands in ``reports``.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from sitq.backends.progressing import Progress, Report
from sitq.backends.sqlite import reports
from sitq.backends.sqlite.changes import NoteProgress
from sitq.backends.sqlite.jobs import Job, ReadJob, Topic
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.statements import Notes


class ReportJob(Job[None]):
    """Keeps reports; not synced, because the next one comes soon."""

    writes = True
    abilities = (reports.ABILITY,)

    def __init__(self, reports: Sequence[Report]) -> None:
        super().__init__()
        self._reports = reports

    def changes(self, now: int) -> Iterator[NoteProgress]:
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
        return await self._connected().call(ReadJob(lambda sqlite, _: reports.read(sqlite, self._path, task_id)))
