"""SQLite, in a file and in memory, through the suite of lanes; and faults that it must find."""

import subprocess
import sys
from pathlib import Path

from sitq.testing.lanes_contract import LanesContract
from tests.contract.stores import InMemory, OnAFile

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


class TestOnAFile(OnAFile, LanesContract):
    """The suite on a fresh file."""


class TestInMemory(InMemory, LanesContract):
    """The suite in memory."""


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the test that is about its fault fails."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
