"""The suite of the contract finds out who does not keep it, and asks nothing of a project but pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, start_python

BROKEN = '''
import asyncio, pickle, sqlite3
import pytest
import sitq.testing._contract.base as base
from sitq import SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.contract import BackendContract


class Faulty:
    """Makes a suite of a faulty backend."""

    deadline = base.DEADLINE_SECONDS

    @pytest.fixture(autouse=True)
    def wait(self, monkeypatch):
        monkeypatch.setattr(base, "DEADLINE_SECONDS", self.deadline)

    @pytest.fixture
    def backend(self, tmp_path):
        self.path, self.clock = tmp_path / "queue.db", ManualClock()
        return self.make()

    def make(self):
        return self.kind(self.path, clock=self.clock, busy_timeout=0.1)

    def another(self, backend):
        return self.make()

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestAcceptsLateOutcomes(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def mark_success(self, outcomes):
            lost = await super().mark_success(outcomes)
            connection = sqlite3.connect(self._path)
            with connection:
                for task, result, *_ in outcomes:
                    if task in lost:
                        connection.execute(
                            "UPDATE tasks SET status = 'success', result = ?, error = NULL, finished_at = 1 "
                            "WHERE task_id = ?",
                            (result, task.task_id),
                        )
            connection.close()
            return []


class TestHandsOutAgain(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def reserve(self, limit, *, lease, alone):
            return await super().reserve(limit, lease=lease / 10, alone=alone)


class TestForgetsOrder(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def reserve(self, limit, *, lease, alone):
            found = await super().reserve(limit, lease=lease, alone=alone)
            found.tasks.reverse()
            return found


class TestStoresHalves(Faulty, BackendContract):
    deadline = 0.5  # for halves that never become whole

    class kind(SQLiteBackend):
        async def enqueue(self, tasks):
            for task in tasks:
                await super().enqueue([task])


class TestLoads(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def enqueue(self, tasks):
            for task in tasks:
                try:
                    pickle.loads(task.payload)
                except BaseException:
                    pass
            await super().enqueue(tasks)


class TestTellsNobody(Faulty, BackendContract):
    deadline = 0.5  # for what will never come

    class kind(SQLiteBackend):
        def watch(self, on_change, *, task_id=None):
            return super().watch(lambda: None, task_id=task_id)


class TestKeepsTheLock(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def release(self, tasks):
            connection = sqlite3.connect(self._path, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(0)
            connection.execute("ROLLBACK")
            connection.close()
            return await super().release(tasks)


class TestNeverBuries(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def enqueue(self, tasks):
            await super().enqueue(tasks)
            connection = sqlite3.connect(self._path)
            with connection:
                connection.execute("UPDATE tasks SET max_attempts = 100")
            connection.close()


class TestSpendsReleasedAttempts(Faulty, BackendContract):
    class kind(SQLiteBackend):
        async def release(self, tasks):
            lost = await super().release(tasks)
            connection = sqlite3.connect(self._path)
            with connection:
                for task in tasks:
                    if task not in lost:
                        connection.execute("UPDATE tasks SET attempt = attempt + 1 WHERE task_id = ?", (task.task_id,))
            connection.close()
            return lost
'''

FOUND_BY = {
    "TestAcceptsLateOutcomes": {
        "test_a_lost_claim_is_returned_and_the_others_are_served[mark_success]",
        "test_a_finished_task_is_left_as_it_is[success-mark_success]",
        "test_a_finished_task_is_left_as_it_is[failed-mark_success]",
        "test_a_finished_task_is_left_as_it_is[buried-mark_success]",
        "test_a_released_task_is_not_held[mark_success]",
    },
    "TestHandsOutAgain": {"test_a_task_is_held_until_its_lease_ends"},
    "TestForgetsOrder": {"test_tasks_keep_the_order_in_which_they_were_stored[7]"},
    "TestStoresHalves": {
        "test_a_batch_with_a_payload_that_is_too_large_is_refused_as_a_whole",
        "test_a_batch_with_an_id_that_is_taken_is_refused_as_a_whole",
        "test_a_cancelled_call_is_made_whole_or_not_at_all[enqueue]",
    },
    "TestLoads": {"test_bytes_pass_through_untouched[pickle]"},
    "TestTellsNobody": {"test_a_change_is_told_and_found_by_the_next_look[itself-enqueue]"},
    "TestKeepsTheLock": {"test_a_cancelled_call_is_made_whole_or_not_at_all[release]"},
    "TestNeverBuries": {"test_a_task_whose_last_lease_ended_is_buried[3-True]"},
    "TestSpendsReleasedAttempts": {
        "test_a_released_task_is_due_at_once_with_its_attempt_unspent",
        "test_a_released_last_attempt_can_be_taken_again",
    },
}
"""Tests that have to fail for each faulty backend."""


def run_pytest(folder: Path, *names: str) -> tuple[set[str], set[str]]:
    """Runs tests of ``folder`` in a project of its own, without plugins; returns which failed and which passed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rA", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    words = [line.split(maxsplit=1) for line in done.stdout.splitlines() if " test_faulty.py::" in line]
    assert words, done.stdout + done.stderr
    found = {kind: {name.split(" - ")[0] for k, name in words if k == kind} for kind in ("PASSED", "FAILED")}
    return found["FAILED"], found["PASSED"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the suites of faulty backends, that knows nothing of this project's settings."""
    (tmp_path / "test_faulty.py").write_text(BROKEN)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_a_backend_that_accepts_late_outcomes_fails(project: Path) -> None:
    """Of the whole suite what is about late outcomes fails, and nothing else."""
    failed, passed = run_pytest(project, "test_faulty.py::TestAcceptsLateOutcomes")
    assert failed == {
        f"test_faulty.py::TestAcceptsLateOutcomes::{name}" for name in FOUND_BY["TestAcceptsLateOutcomes"]
    }
    assert len(passed) > 50


def test_each_fault_is_found(project: Path) -> None:
    """For each faulty backend the tests that are about its fault fail."""
    names = {f"test_faulty.py::{kind}::{name}" for kind, found in FOUND_BY.items() for name in found}
    failed, passed = run_pytest(project, *sorted(names))
    assert (failed, passed) == (names, set())


def test_importing_sitq_does_not_import_pytest() -> None:
    """Only the suite needs pytest: neither sitq nor sitq.testing do."""
    process = start_python("import sys, sitq, sitq.testing; print('pytest' in sys.modules)")
    assert process.communicate(timeout=30) == ("False\n", "")
    assert (ROOT / "src/sitq/testing/contract.py").exists()
