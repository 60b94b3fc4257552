"""SQLite, in a file and in memory, through the suite of endings; and faults that the suite must find."""

import subprocess
import sys
from pathlib import Path

import pytest

from sitq import Backend, SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.ending_contract import EndingContract

FAULTY = """
import pytest

from sitq import SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.ending_contract import EndingContract


class Faulty:
    kind: type[SQLiteBackend]

    @pytest.fixture
    def backend(self):
        self.clock = ManualClock()
        return self.kind(":memory:", retention=None, clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestRetriesAtOnce(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_failure(self, outcomes):
            return await super().mark_failure([each._replace(retry_in=each.retry_in and 0) for each in outcomes])


class TestCountsAll(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_failure(self, outcomes):
            return await super().mark_failure([each._replace(counts=True) for each in outcomes])


class TestForgetsToCancel(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_failure(self, outcomes):
            return await super().mark_failure([each._replace(cancelled=False) for each in outcomes])


class TestStoresFirst(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_success(self, outcomes):
            for each in outcomes:
                for task in each.then:
                    if await self.get_result(task.task_id) is None:
                        await self.enqueue([task])
            return await super().mark_success([each._replace(then=()) for each in outcomes])


class TestTellsOfRepeats(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_failure(self, outcomes):
            again = [each.task for each in outcomes if (await self.get_result(each.task.task_id)).status == "pending"]
            return [*await super().mark_failure(outcomes), *again]
"""

FOUND_BY = {
    "TestRetriesAtOnce": "test_a_task_is_tried_again_no_earlier_than_its_delay",
    "TestCountsAll": "test_failures_are_counted_if_they_are_to_be",
    "TestForgetsToCancel": "test_a_run_can_end_as_cancelled",
    "TestStoresFirst": "test_a_late_outcome_stores_nothing",
    "TestTellsOfRepeats": "test_a_retry_that_is_recorded_again_is_recognised",
}


class TestOnAFile(EndingContract):
    @pytest.fixture
    def backend(self, path: Path) -> Backend:
        """A backend on a fresh file."""
        self.path, self.clock = path, ManualClock()
        return SQLiteBackend(path, durability="normal", retention=None, clock=self.clock)

    def another(self, backend: Backend) -> Backend:
        """Another connection to the file."""
        return SQLiteBackend(self.path, durability="normal", retention=None, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Both look at one clock."""
        self.clock.advance(seconds)


class TestInMemory(EndingContract):
    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", retention=None, clock=self.clock)

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
    failed = {line.split()[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout


@pytest.mark.parametrize("listed", ["retry", "cancel", "then"])
def test_endings_that_a_backend_does_not_list_are_skipped(tmp_path: Path, listed: str) -> None:
    """One that lists a single ending is tested for that one, and the reasons name the other two."""
    one_only = f"""
class TestOneOnly(Faulty, EndingContract):
    class kind(SQLiteBackend):
        endings = frozenset({{{listed!r}}})
"""
    (tmp_path / "test_one_only.py").write_text(FAULTY.partition("class TestRetriesAtOnce")[0] + one_only)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rs", "--tb=short", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    skipped = {ending for ending in ("retry", "cancel", "then") if f"the backend has no {ending!r}" in done.stdout}
    assert skipped == {"retry", "cancel", "then"} - {listed}
