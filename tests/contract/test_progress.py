"""SQLite and the memory backend of the examples through the suite of reports; and faults that it must find."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.memory_backend import MemoryBackend, MemoryStore
from sitq import Backend
from sitq.testing import ManualClock
from sitq.testing.progress_contract import ProgressContract
from tests.contract.stores import InMemory, OnAFile

FAULTY = """
import pytest
import sitq.testing._contract.base as base
from sitq import SQLiteBackend
from sitq.backends.sqlite import reports, statements
from sitq.backends.sqlite.changes import NoteProgress
from sitq.backends.sqlite.progressing import ReportJob
from sitq.testing import ManualClock
from sitq.testing.progress_contract import ProgressContract


class Faulty(ProgressContract):
    change = ("", "")
    read = ("", "")

    @pytest.fixture
    def backend(self, monkeypatch):
        monkeypatch.setattr(base, "DEADLINE_SECONDS", 0.5)  # for what will never come
        changed = reports.OPERATIONS[NoteProgress].replace(*self.change)
        monkeypatch.setitem(statements._SQL, NoteProgress, changed)
        monkeypatch.setattr(reports, "_READ", reports._READ.replace(*self.read))
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", retention=None, clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestTakesLateReports(Faulty):
    change = ("AND claim = NEW.claim", "")


class TestTakesReportsOfTheFinished(Faulty):
    change = ("AND status = 'in_progress'", "")


class TestKeepsTheFirst(Faulty):
    change = ("OR REPLACE", "OR IGNORE")


class TestRemembersTheRunBefore(Faulty):
    read = ("(id, claim) WHERE task_id = ? AND attempt > 0", "(id) WHERE task_id = ?")


class TestWakesNobody(Faulty):
    @pytest.fixture(autouse=True)
    def notify(self, monkeypatch):
        monkeypatch.setattr(ReportJob, "notifies", lambda self, result: ())
"""

FOUND_BY = {
    "TestTakesLateReports": "test_a_late_report_changes_nothing",
    "TestTakesReportsOfTheFinished": "test_a_report_after_the_end_changes_nothing",
    "TestKeepsTheFirst": "test_the_last_report_is_kept",
    "TestRemembersTheRunBefore": "test_a_task_that_was_given_back_begins_anew",
    "TestWakesNobody": "test_a_watcher_is_woken_by_a_report",
}


class TestOnAFile(OnAFile, ProgressContract):
    """The suite on a fresh file."""


class TestInMemory(InMemory, ProgressContract):
    """The suite in memory."""


class TestTheExample(ProgressContract):
    @pytest.fixture
    def backend(self) -> Backend:
        """The backend of the examples."""
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        return MemoryBackend(self.store)

    def another(self, backend: Backend) -> Backend:
        """Another one on its store."""
        return MemoryBackend(self.store)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the test that is about its fault fails."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
