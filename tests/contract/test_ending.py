"""SQLite, in a file, in memory and like a server, through the suite of endings; and faults that it must find."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sitq import Backend, NewTask, ReservedTask, SQLiteBackend
from sitq.models import Outcome, Reservation
from sitq.testing import ManualClock
from sitq.testing.ending_contract import EndingContract

FAULTY = """
import pytest
import sitq.testing._contract.base as base
from sitq import SQLiteBackend
from sitq.backends.sqlite import operations, statements
from sitq.backends.sqlite.changes import RetryLater
from sitq.testing import ManualClock
from sitq.testing.ending_contract import EndingContract


class Faulty:
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


class TestTellsNobodyOfAnEnd(Faulty, EndingContract):
    deadline = 0.5  # for what will never come

    class kind(SQLiteBackend):
        def watch(self, on_change, *, task_id=None):
            return super().watch(on_change if task_id is None else lambda: None, task_id=task_id)


class TestPermitsMoreOnlyIfItCounts(Faulty, EndingContract):
    kind = SQLiteBackend

    @pytest.fixture(autouse=True)
    def change(self, monkeypatch):
        changed = operations.RETRY_LATER.replace("max_attempts + 1", "max_attempts + NEW.counts")
        assert changed != operations.RETRY_LATER
        monkeypatch.setitem(statements._SQL, RetryLater, changed)


class TestIgnoresExtras(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_success(self, outcomes):
            return await super().mark_success(
                [each._replace(then=[task._replace(extras=None) for task in each.then]) for each in outcomes]
            )


class TestRefusesHalves(Faulty, EndingContract):
    class kind(SQLiteBackend):
        async def mark_success(self, outcomes):
            return [task for each in outcomes for task in await super(type(self), self).mark_success([each])]
"""

FOUND_BY = {
    "TestRetriesAtOnce": "test_a_task_is_tried_again_no_earlier_than_its_delay",
    "TestCountsAll": "test_failures_are_counted_if_they_are_to_be[False]",
    "TestForgetsToCancel": "test_a_run_can_end_as_cancelled",
    "TestStoresFirst": "test_a_late_outcome_stores_nothing[success]",
    "TestTellsOfRepeats": "test_a_retry_that_is_recorded_again_is_recognised",
    "TestTellsNobodyOfAnEnd": "test_who_waits_for_a_task_is_woken_by_its_cancellation",
    "TestPermitsMoreOnlyIfItCounts": "test_a_raise_does_not_bring_the_last_attempt_nearer[False]",
    "TestIgnoresExtras": (
        "test_a_task_with_an_extra_that_is_not_known_is_not_stored_with_an_outcome[priority-success]"
    ),
    "TestRefusesHalves": "test_a_task_that_is_too_large_is_not_stored_with_an_outcome[success]",
}


class TestOnAFile(EndingContract):
    knows_extras = frozenset({"queue", "priority", "unique"})

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
    knows_extras = frozenset({"queue", "priority", "unique"})

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        return SQLiteBackend(":memory:", retention=None, clock=self.clock)

    def advance(self, backend: Backend, seconds: float) -> None:
        """Moves its clock."""
        self.clock.advance(seconds)


class LateBackend(SQLiteBackend):
    """Waits before each call, and gives out nothing until a change was settled, as a server may."""

    is_settled = True

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Stores tasks that are given out later."""
        self.is_settled = False
        await super().enqueue(tasks)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Finds nothing, though it may be there."""
        await asyncio.sleep(0)
        if not self.is_settled:
            return Reservation()
        assert lease <= 1, "this suite runs a hundred times as fast"
        return await super().reserve(limit, lease=lease, alone=alone)

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """Gives back what is given out later."""
        self.is_settled = False
        return await super().release(tasks)

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Stores tasks that are given out later."""
        self.is_settled = False
        return await super().mark_success(outcomes)

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """As successes; and what is to be tried again is within the suite's seconds."""
        self.is_settled = False
        assert all(outcome.retry_in is None or outcome.retry_in <= 1 for outcome in outcomes)
        return await super().mark_failure(outcomes)


class TestLikeAServer(EndingContract):
    """The hooks that a store on a server overrides are used: its clock is waited for, and it settles late."""

    knows_extras = frozenset({"queue", "priority", "unique"})

    @pytest.fixture
    def backend(self) -> Backend:
        """A backend that keeps everything in itself."""
        self.clock = ManualClock()
        self.late = LateBackend(":memory:", retention=None, clock=self.clock)
        return self.late

    def seconds(self, n: float) -> float:
        """A hundred times as fast, as for a store whose clock cannot be moved."""
        return n / 100

    async def advance(self, backend: Backend, seconds: float) -> None:
        """Waits for the clock, or so it seems."""
        await asyncio.sleep(0)
        assert seconds <= 1.01, "this suite runs a hundred times as fast"
        self.clock.advance(seconds)

    async def settle(self) -> None:
        """Lets everything be given out."""
        self.late.is_settled = True


def test_the_suite_finds_faults(tmp_path: Path) -> None:
    """For each faulty backend the test that is about its fault fails."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    names = [f"test_faulty.py::{kind}::{name}" for kind, name in FOUND_BY.items()]
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rfE", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == set(names), done.stdout


@pytest.mark.parametrize("listed", ["retry", "cancel", "then"])
def test_endings_that_a_backend_does_not_list_are_skipped(tmp_path: Path, listed: str) -> None:
    """One that lists a single ending is tested for that one, and the reasons name the other two."""
    one_only = f"""
class TestOneOnly(Faulty, EndingContract):
    class kind(SQLiteBackend):
        endings = frozenset({{{listed!r}}})

    knows_extras = frozenset({{"queue", "priority", "unique"}})
"""
    (tmp_path / "test_one_only.py").write_text(FAULTY.partition("class TestRetriesAtOnce")[0] + one_only)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rs", "--tb=short", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    skipped = {ending for ending in ("retry", "cancel", "then") if f"the backend has no {ending!r}" in done.stdout}
    assert skipped == {"retry", "cancel", "then"} - {listed}
