"""SQLite, in a file and in memory, through the suite of lanes; and faults that it must find."""

import subprocess
import sys
from pathlib import Path

import pytest

from sitq import Backend, SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.lanes_contract import LanesContract

FAULTY = """
import pytest
from sitq import SQLiteBackend
from sitq.testing import ManualClock
from sitq.testing.lanes_contract import LanesContract


class Faulty:
    kind: type[SQLiteBackend]

    @pytest.fixture
    def backend(self):
        self.clock = ManualClock()
        return self.kind(":memory:", retention=None, clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestServesAll(Faulty, LanesContract):
    class kind(SQLiteBackend):
        def select(self, queues, head_start=None):
            return super().select(None, head_start)


class TestForgetsPriorities(Faulty, LanesContract):
    class kind(SQLiteBackend):
        def select(self, queues, head_start=None):
            return super().select(queues, 0)


class TestAlwaysStrict(Faulty, LanesContract):
    class kind(SQLiteBackend):
        def select(self, queues, head_start=None):
            return super().select(queues, float("inf"))


class TestPausesNothing(Faulty, LanesContract):
    class kind(SQLiteBackend):
        async def pause(self, queue):
            pass


class TestShowsNoPause(Faulty, LanesContract):
    class kind(SQLiteBackend):
        async def lanes(self):
            return [lane for lane in await super().lanes() if lane.waiting or lane.running or lane.abandoned]


class TestForgetsQueuesOfOutcomes(Faulty, LanesContract):
    class kind(SQLiteBackend):
        async def mark_failure(self, outcomes):
            return await super().mark_failure(
                [each._replace(then=[task._replace(extras=None) for task in each.then]) for each in outcomes]
            )
"""

FOUND_BY = {
    "TestServesAll": "test_no_worker_takes_a_queue_that_it_does_not_serve[mail-0-released]",
    "TestForgetsPriorities": "test_a_priority_is_a_head_start",
    "TestAlwaysStrict": "test_a_priority_is_a_head_start",
    "TestPausesNothing": "test_a_paused_queue_is_left_alone",
    "TestShowsNoPause": "test_lanes_say_what_waits_and_runs",
    "TestForgetsQueuesOfOutcomes": "test_tasks_stored_with_an_outcome_have_their_lane",
}


class TestOnAFile(LanesContract):
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


class TestInMemory(LanesContract):
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
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
