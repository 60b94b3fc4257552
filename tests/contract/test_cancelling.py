"""SQLite, in a file and in memory, through the suite of ending tasks that run; and faults that it must find."""

import subprocess
import sys
from pathlib import Path

from sitq.testing.cancelling_contract import CancellingContract
from tests.contract.stores import InMemory, OnAFile

FAULTY = '''
import pytest
import sitq.testing._contract.base as base
from sitq import SQLiteBackend
from sitq.backends.sqlite import asking, jobs
from sitq.testing import ManualClock
from sitq.testing.cancelling_contract import CancellingContract


class Faulty:
    """Makes a suite of a faulty backend."""

    kind: type[SQLiteBackend]
    deadline = base.DEADLINE_SECONDS

    @pytest.fixture(autouse=True)
    def wait(self, monkeypatch):
        monkeypatch.setattr(base, "DEADLINE_SECONDS", self.deadline)

    @pytest.fixture
    def backend(self):
        self.clock = ManualClock()
        return self.kind(":memory:", retention=None, clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class Changed(Faulty):
    """Changes the statements that give the file what it needs."""

    kind = SQLiteBackend
    before = after = ""

    @pytest.fixture(autouse=True)
    def change(self, monkeypatch):
        statements = tuple(each.replace(self.before, self.after) for each in asking.ABILITY.statements)
        assert statements != asking.ABILITY.statements
        monkeypatch.setattr(asking, "ABILITY", asking.ABILITY._replace(statements=statements))


class TestTakesOver(Changed, CancellingContract):
    before, after = "NEW.claim IS NOT OLD.claim", "0"


class TestBuries(Changed, CancellingContract):
    before, after = "NEW.status = 'failed'", "0"


class TestRetries(Changed, CancellingContract):
    before, after = "                    NEW.status = 'pending'", "                    0"


class TestRemembers(Changed, CancellingContract):
    before, after = "OLD.finished_at IS NOT NULL", "0"


class TestComesBackWithNothing(Faulty, CancellingContract):
    class kind(SQLiteBackend):
        async def reserve(self, limit, *, lease, alone):
            job = jobs.ReserveJob(limit, lease, alone, self._reserve_state, self._give_back)
            return jobs.queries.to_reservation(await self._connected().call(job))


class TestTellsNobody(Faulty, CancellingContract):
    kind = SQLiteBackend
    deadline = 1.0

    @pytest.fixture(autouse=True)
    def change(self, monkeypatch):
        monkeypatch.setattr(jobs.ReserveJob, "notifies", lambda self, result: result.reservation.buried)


class TestAsksInsteadOfCutting(Faulty, CancellingContract):
    class kind(SQLiteBackend):
        async def cut(self, task_ids):
            return await self.ask(task_ids)


class TestAsksOnce(Faulty, CancellingContract):
    class kind(SQLiteBackend):
        async def ask(self, task_ids):
            before = {task.task_id for task in await self.list(limit=10_000) if task.asked_at}
            return [task_id for task_id in await super().ask(task_ids) if task_id not in before]
'''

FOUND_BY = {
    "TestTakesOver": "test_asking_wins_over_a_takeover",
    "TestBuries": "test_asking_wins_over_a_burial",
    "TestRetries": "test_a_task_that_was_asked_to_end_and_raised_is_not_retried",
    "TestRemembers": "test_a_retry_by_hand_forgets_the_request[cancelled]",
    "TestComesBackWithNothing": "test_what_waits_behind_a_task_that_was_to_end_is_given_out",
    "TestTellsNobody": "test_who_waits_for_a_task_is_woken_when_it_has_ended[takeover]",
    "TestAsksInsteadOfCutting": "test_a_cut_task_records_nothing",
    "TestAsksOnce": "test_asking_twice_is_asking_once",
}


class TestOnAFile(OnAFile, CancellingContract):
    """The suite on a fresh file."""


class TestInMemory(InMemory, CancellingContract):
    """The suite in memory."""


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the test that is about its fault fails."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=short", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
