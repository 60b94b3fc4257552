"""SQLite, in a file and in memory, through the suite of many results; and faults that it must find."""

import subprocess
import sys
from pathlib import Path

from sitq.testing.many_contract import ManyResultsContract
from tests.contract.stores import InMemory, OnAFile

FAULTY = '''
import contextlib
import pytest
import sitq.testing._contract.base as base
from sitq import SQLiteBackend
from sitq.backends.many import Ended
from sitq.testing import ManualClock
from sitq.testing.many_contract import ManyResultsContract


class Faulty:
    """Makes a suite of a faulty backend."""

    deadline = base.DEADLINE_SECONDS

    @pytest.fixture(autouse=True)
    def wait(self, monkeypatch):
        monkeypatch.setattr(base, "DEADLINE_SECONDS", self.deadline)

    @pytest.fixture
    def backend(self, tmp_path):
        self.path, self.clock = tmp_path / "queue.db", ManualClock()
        return self.kind(self.path, clock=self.clock)

    def another(self, backend):
        return self.kind(self.path, clock=self.clock)

    def advance(self, backend, seconds):
        self.clock.advance(seconds)


class TestTellsOfAll(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        async def get_results(self, task_ids):
            return Ended({task_id: await self.get_result(task_id) for task_id in task_ids})


class TestTellsOfStoredOnes(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        async def get_results(self, task_ids):
            ended = await super().get_results(task_ids)
            return ended._replace(results={key: value for key, value in ended.results.items() if value})


class TestEndsTextsEarly(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        async def get_results(self, task_ids):
            ended = await super().get_results([task_id.partition("\\0")[0] for task_id in task_ids])
            return ended._replace(results={each: ended.results.get(each.partition("\\0")[0]) for each in task_ids})


class TestForgetsTheRest(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        async def get_results(self, task_ids):
            return (await super().get_results(task_ids))._replace(left=())


class TestTakesOneAtATime(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        async def get_results(self, task_ids):
            return Ended((await super().get_results(task_ids[:1])).results, task_ids[1:])


class TestTellsNobody(Faulty, ManyResultsContract):
    deadline = 0.5  # for what will never come

    class kind(SQLiteBackend):
        def watch_results(self, on_change, task_ids):
            return super().watch_results(lambda task_id: None, task_ids)


class TestKeepsTheIds(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        def watch_results(self, on_change, task_ids):
            return super().watch_results(on_change, dict.fromkeys(task_ids))


class TestNeverLeaves(Faulty, ManyResultsContract):
    class kind(SQLiteBackend):
        def watch_results(self, on_change, task_ids):
            self.kept = [*getattr(self, "kept", ()), super().watch_results(on_change, task_ids)]
            self.kept[-1].__enter__()
            return contextlib.nullcontext()
'''

FOUND_BY = {
    "TestTellsOfAll": "test_what_has_ended_is_told_and_nothing_else",
    "TestTellsOfStoredOnes": "test_some_hundreds_are_told_in_one_call_if_they_are_small",
    "TestEndsTextsEarly": "test_an_id_is_that_of_its_own_task_only",
    "TestForgetsTheRest": "test_large_results_are_told_in_any_number_of_calls",
    "TestTakesOneAtATime": "test_some_hundreds_are_told_in_one_call_if_they_are_small",
    "TestTellsNobody": "test_the_end_of_each_task_is_told",
    "TestKeepsTheIds": "test_what_is_taken_out_is_not_waited_for",
    "TestNeverLeaves": "test_nobody_is_told_after_leaving",
}


class TestOnAFile(OnAFile, ManyResultsContract):
    """The suite on a fresh file."""


class TestInMemory(InMemory, ManyResultsContract):
    """The suite in memory."""


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the test that is about its fault fails."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout
