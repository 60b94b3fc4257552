"""SQLiteBackend keeps the contract of what can be looked into, on a file and in memory."""

import subprocess
import sys
from pathlib import Path

from sitq.testing.inspect_contract import InspectContract
from tests.contract.stores import InMemory, OnAFile

FAULTY = '''
import pytest
from sitq import SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.inspect_contract import InspectContract


class Faulty:
    """Makes a suite of a faulty backend."""

    @pytest.fixture
    def backend(self, tmp_path):
        self.clock = ManualClock()
        return self.kind(tmp_path / "queue.db", clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestRetriesWhatSucceeded(Faulty, InspectContract):
    class kind(SQLiteBackend):
        async def retry(self, task_ids):
            done = list(await super().retry(task_ids))
            return [task_id for task_id in task_ids if await self.get_result(task_id)]


class TestCancelsAll(Faulty, InspectContract):
    class kind(SQLiteBackend):
        async def cancel(self, task_ids):
            await super().cancel(task_ids)
            return task_ids


class TestRepeatsPages(Faulty, InspectContract):
    class kind(SQLiteBackend):
        async def list(self, *, before=None, **filters):
            found = await super().list(before=before, **filters)
            return found or await super().list(**filters) if not before else found[1:]


class TestForgetsClaims(Faulty, InspectContract):
    class kind(SQLiteBackend):
        async def cancel(self, task_ids):
            found = await self.show(task_ids[0])
            return [] if found.status == "in_progress" else await super().cancel(task_ids)


class TestPrunesOnce(Faulty, InspectContract):
    class kind(SQLiteBackend):
        async def prune(self, *, older_than):
            return min(await super().prune(older_than=older_than), 500)
'''

FOUND_BY = {
    "TestRepeatsPages": "test_pages_neither_repeat_nor_leave_out_a_task",
    "TestForgetsClaims": "test_an_abandoned_task_can_be_cancelled",
    "TestRetriesWhatSucceeded": "test_other_tasks_cannot_be_retried",
    "TestCancelsAll": "test_only_waiting_tasks_can_be_cancelled",
    "TestPrunesOnce": "test_pruning_goes_on_to_the_end",
}


class TestOnAFile(OnAFile, InspectContract):
    """The suite on a fresh file."""


class TestInMemory(InMemory, InspectContract):
    """The suite in memory."""


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the tests that are about its fault fail."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
