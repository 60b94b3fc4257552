"""The suite of the contract finds out who does not keep it, and asks nothing of a project but pytest."""

import shutil
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
    knows_extras = frozenset({"queue", "priority", "unique"})

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

BROKEN_IN_MEMORY = '''
import asyncio, contextlib, dataclasses, time
import pytest
import sitq.testing._contract.base as base
from memory_backend import MemoryBackend, MemoryStore
from sitq import BackendError, BackendUnavailableError
from sitq.testing.contract import BackendContract
from test_faulty import Faulty

CALLS = ["enqueue", "reserve", "renew", "release", "mark_success", "mark_failure", "get_result"]


class InMemory(Faulty):
    """Makes a suite of a faulty backend whose store has a clock of its own."""

    has_own_clock = True

    @pytest.fixture
    def backend(self):
        self.ahead, began = 0.0, time.monotonic()
        self.store = MemoryStore(lambda start=time.time(): start + time.monotonic() - began + self.ahead)
        return self.make()

    def make(self):
        return self.kind(self.store)

    def advance(self, backend, seconds):
        self.ahead += seconds

    @contextlib.asynccontextmanager
    async def cut(self, backend):
        left = [True]

        def losing(call):
            async def lose(*arguments, **options):
                answer = await call(*arguments, **options)
                if left:
                    left.clear()
                    raise BackendUnavailableError("lost")
                return answer

            return lose

        for name in CALLS:
            setattr(backend, name, losing(getattr(backend, name)))
        try:
            yield
        finally:
            for name in CALLS:
                delattr(backend, name)


class TestKeepsAll(InMemory, BackendContract):
    kind = MemoryBackend


class TestRefusesRepeats(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            if any(task.task_id in self.store.rows for task in tasks):
                raise BackendError("taken")
            await super().enqueue(tasks)


class TestKnowsByIdsAlone(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            if not all(task.task_id in self.store.rows for task in tasks):
                await super().enqueue(tasks)


class TestStoresAgain(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            for task in tasks:
                self.store.rows.pop(task.task_id, None)
            await super().enqueue(tasks)


class TestTakesAnIdTwice(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            await super().enqueue(list({task.task_id: task for task in tasks}.values()))


class TestForgetsWhoFinished(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _is_recorded(self, outcome, status):
            return False


class TestReleasesTwice(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def release(self, tasks):
            not_held = await super().release(tasks)
            for task in not_held:
                self.store.rows[task.task_id].attempt -= 1
            return not_held


class TestRenewsOnce(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def renew(self, tasks, *, lease):
            self.renewed = getattr(self, "renewed", [])
            again = [task for task in tasks if task in self.renewed]
            self.renewed += tasks
            return [*await super().renew(tasks, lease=lease), *again]


class TestEndsLeasesNever(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            return await super().reserve(limit, lease=1e9, alone=alone)


class TestOwesAnswers(InMemory, BackendContract):
    class kind(MemoryBackend):
        lost = False

        async def get_result(self, task_id):
            self.owed = [*getattr(self, "owed", []), await super().get_result(task_id)]
            if self.lost:
                self.lost = False
                raise BackendUnavailableError("lost")
            return self.owed.pop(0)

    @contextlib.asynccontextmanager
    async def cut(self, backend):
        backend.lost = True
        yield


class TestForgetsClaims(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def connect(self):
            await super().connect()
            for row in self.store.rows.values():
                row.claim = None


class TestForgetsWhoWaits(InMemory, BackendContract):
    deadline = 0.5

    class kind(MemoryBackend):
        async def connect(self):
            await super().connect()
            for key, (topic, loop, _) in list(self.store.watchers.items()):
                self.store.watchers[key] = topic, loop, lambda: None


class TestBeginsLate(InMemory, BackendContract):
    deadline = 0.5

    class kind(MemoryBackend):
        @contextlib.contextmanager
        def watch(self, on_change, *, task_id=None):
            with contextlib.ExitStack() as stack:
                watching = super().watch(on_change, task_id=task_id)
                begun = asyncio.get_running_loop().call_later(0.05, stack.enter_context, watching)
                yield
                begun.cancel()


class TestBelongsToALoop(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            self.loop = getattr(self, "loop", asyncio.get_running_loop())
            if self.loop.is_closed():
                raise RuntimeError("Event loop is closed")
            await super().enqueue(tasks)


class TestForgetsWhoLeft(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def connect(self):
            await super().connect()
            self.loops = [*getattr(self, "loops", []), asyncio.get_running_loop()]

        async def mark_success(self, outcomes):
            for loop in self.loops:
                if loop.is_closed():
                    self.loops.remove(loop)
                    await self.close()
            return await super().mark_success(outcomes)


class TestLeavesForAll(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def leave(self):
            await self.close()


class TestLearnsItsLimit(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            await super().enqueue(tasks)
            self.max_payload_bytes = 1_000_000


class TestCutsTexts(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def mark_failure(self, outcomes):
            return await super().mark_failure(
                [outcome._replace(error=outcome.error.partition("\\0")[0]) for outcome in outcomes]
            )


class TestCutsIds(InMemory, BackendContract):
    class kind(MemoryBackend):
        size = 1000

        async def enqueue(self, tasks):
            await super().enqueue([task._replace(task_id=task.task_id[: self.size]) for task in tasks])

        async def get_result(self, task_id):
            return await super().get_result(task_id[: self.size])


class TestCutsIdsSooner(TestCutsIds):
    class kind(TestCutsIds.kind):
        size = 999


class TestShowsTheHostsClock(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def renew(self, tasks, *, lease):
            return await super().renew(tasks, lease=lease + time.time() - self.store.clock())


class TestStarves(InMemory, BackendContract):
    deadline = 0.5

    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            self.store.busy = getattr(self.store, "busy", 0) + 1
            found = await super().reserve(limit, lease=lease, alone=alone)
            self.store.busy -= 1
            return found if not self.store.busy else type(found)(found.tasks[1:])


class TestGivesTwice(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _choose(self, now, limit, alone):
            chosen = super()._choose(now, limit, alone)
            running = [row for row in self.store.rows.values() if row.status == "in_progress"]
            return chosen or running[:1]


class TestIgnoresExtras(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            await super().enqueue([task._replace(extras=None) for task in tasks])


class TestCountsDeaths(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            found = await super().reserve(limit, lease=lease, alone=alone)
            return type(found)([task._replace(failures=task.attempt - 1) for task in found.tasks])


class TestStartsEarly(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            found = await super().reserve(limit, lease=lease, alone=alone)
            return type(found)([task._replace(started_at=task.enqueued_at) for task in found.tasks])


class TestSaysThatAnyLastAttemptWaits(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            found = await super().reserve(limit, lease=lease, alone=alone)
            waits = any(row.attempts_left == 1 for row in self._due(self.store.clock()))
            return dataclasses.replace(found, last_attempt_waiting=waits)


class TestKeepsTheFirstStart(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def reserve(self, limit, *, lease, alone):
            before = {row.key: row.started_at for row in self.store.rows.values()}
            found = await super().reserve(limit, lease=lease, alone=alone)
            for row in self.store.rows.values():
                row.started_at = before[row.key] or row.started_at
            return found


class TestKeepsTheStartOfWhatIsReleased(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def release(self, tasks):
            before = {task.task_id: self.store.rows[task.task_id].started_at for task in tasks}
            not_held = await super().release(tasks)
            for task_id, started_at in before.items():
                self.store.rows[task_id].started_at = started_at
            return not_held


class TestReleasesToTheEnd(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def release(self, tasks):
            not_held = await super().release(tasks)
            for task in tasks:
                if task not in not_held:
                    self.store.rows[task.task_id].available_at = self.store.clock()
            return not_held


class TestKeepsPastEtas(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            await super().enqueue(tasks)
            for task in tasks:
                if task.eta is not None:
                    self.store.rows[task.task_id].available_at = task.eta.timestamp()


class TestPrefersDelays(InMemory, BackendContract):
    class kind(MemoryBackend):
        async def enqueue(self, tasks):
            await super().enqueue([task if task.delay is None else task._replace(eta=None) for task in tasks])


class TestKnowsByClaimsAlone(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _is_recorded(self, outcome, status):
            row = self.store.rows[outcome.task.task_id]
            return row.claim == outcome.task.claim and row.finished_at is not None


class TestTellsWhoHasLeft(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _while_inside(self, key, on_change):
            return on_change


class TestBuriesInItsOwnWords(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _bury(self, now):
            buried = super()._bury(now)
            for task_id in buried:
                row = self.store.rows[task_id]
                row.error = f"all of {row.attempt} attempts were lost"
            return buried


class TestBuriesWithATraceback(InMemory, BackendContract):
    class kind(MemoryBackend):
        def _bury(self, now):
            buried = super()._bury(now)
            for task_id in buried:
                self.store.rows[task_id].traceback = "Traceback: of nobody"
            return buried
'''

FOUND_BY = {
    "TestAcceptsLateOutcomes": {
        "test_a_lost_claim_is_returned_and_the_others_are_served[mark_success]",
        "test_a_finished_task_is_left_as_it_is[success-mark_success]",
        "test_a_finished_task_is_left_as_it_is[failed-mark_success]",
        "test_a_finished_task_is_left_as_it_is[buried-mark_success]",
        "test_a_released_task_is_not_held[mark_success]",
        "test_the_opposite_of_a_recorded_outcome_is_not_held",
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
IN_MEMORY_FOUND_BY = {
    "TestRefusesRepeats": {
        "test_a_batch_that_is_stored_already_is_recognised[pending]",
        "test_an_enqueue_whose_answer_was_lost_can_be_repeated",
    },
    "TestKnowsByIdsAlone": {"test_an_id_that_has_another_payload_is_taken"},
    "TestStoresAgain": {
        "test_a_batch_that_is_stored_already_is_recognised[in_progress]",
        "test_a_batch_that_is_stored_already_is_recognised[success]",
        "test_a_batch_that_is_stored_already_is_recognised[failed]",
    },
    "TestTakesAnIdTwice": {"test_an_id_twice_in_a_batch_is_refused"},
    "TestForgetsWhoFinished": {
        "test_an_outcome_whose_answer_was_lost_is_recognised[success]",
        "test_an_outcome_whose_answer_was_lost_is_recognised[failed]",
    },
    "TestReleasesTwice": {"test_a_lease_is_moved_or_ended_once[release]"},
    "TestRenewsOnce": {"test_a_lease_is_moved_or_ended_once[renew]"},
    "TestEndsLeasesNever": {"test_a_reservation_whose_answer_was_lost_comes_back"},
    "TestOwesAnswers": {"test_a_question_whose_answer_was_lost_can_be_asked_again"},
    "TestForgetsClaims": {"test_a_restart_between_two_calls_changes_nothing"},
    "TestForgetsWhoWaits": {"test_who_waits_is_told_after_a_restart"},
    "TestBeginsLate": {"test_a_change_in_the_moment_of_entering_is_told[enqueue]"},
    "TestBelongsToALoop": {"test_a_loop_that_ends_without_closing_leaves_the_backend_to_others"},
    "TestForgetsWhoLeft": {"test_a_loop_that_ends_without_closing_leaves_the_backend_to_others"},
    "TestLeavesForAll": {"test_a_loop_can_be_left"},
    "TestLearnsItsLimit": {"test_its_limit_is_final_once_it_is_connected"},
    "TestCutsTexts": {"test_a_character_that_a_store_cannot_hold_does_not_take_the_rest_along"},
    "TestCutsIds": {"test_a_longer_id_is_kept_or_refused_but_never_a_part_of_it"},
    "TestCutsIdsSooner": {"test_an_id_of_a_thousand_characters_is_kept"},
    "TestShowsTheHostsClock": {
        "test_the_clock_of_the_host_does_not_matter[slow]",
        "test_the_clock_of_the_host_does_not_matter[fast]",
    },
    "TestStarves": {"test_reservations_of_two_backends_keep_each_other_from_no_task"},
    "TestGivesTwice": {"test_reservations_of_two_backends_keep_each_other_from_no_task"},
    "TestIgnoresExtras": {
        "test_an_extra_that_is_not_known_is_refused[queue]",
        "test_an_extra_that_is_not_known_is_refused[priority]",
    },
    "TestCountsDeaths": {"test_a_task_that_was_never_retried_has_no_failures"},
    "TestStartsEarly": {"test_a_task_comes_back_as_it_was_stored"},
    "TestSaysThatAnyLastAttemptWaits": {"test_a_last_attempt_waits_for_the_ordinary_tasks_before_it"},
    "TestKeepsTheFirstStart": {"test_a_task_shows_when_its_latest_run_was_started"},
    "TestKeepsTheStartOfWhatIsReleased": {"test_a_first_run_that_was_given_back_was_never_started"},
    "TestReleasesToTheEnd": {"test_a_task_that_is_given_back_keeps_its_place"},
    "TestKeepsPastEtas": {"test_a_past_eta_gives_no_task_precedence"},
    "TestPrefersDelays": {"test_an_eta_wins_over_a_delay"},
    "TestKnowsByClaimsAlone": {"test_the_opposite_of_a_recorded_outcome_is_not_held"},
    "TestTellsWhoHasLeft": {"test_nobody_is_told_after_leaving_of_what_changed_before[1]"},
    "TestBuriesInItsOwnWords": {"test_a_task_whose_last_lease_ended_is_buried[3-True]"},
    "TestBuriesWithATraceback": {"test_a_task_whose_last_lease_ended_is_buried[3-True]"},
}
"""Tests that have to fail for each faulty backend."""


def run_pytest(folder: Path, *names: str) -> tuple[set[str], set[str]]:
    """Runs tests of ``folder`` in a project of its own, without plugins; returns which failed and which passed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rA", "--tb=no", "-q"]
    done = subprocess.run([*command, *names], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    words = [line.split(maxsplit=1) for line in done.stdout.splitlines() if " test_faulty" in line]
    assert words, done.stdout + done.stderr
    found = {kind: {name.split(" - ")[0] for k, name in words if k == kind} for kind in ("PASSED", "FAILED")}
    return found["FAILED"], found["PASSED"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the suites of faulty backends, that knows nothing of this project's settings."""
    (tmp_path / "test_faulty.py").write_text(BROKEN)
    (tmp_path / "test_faulty_in_memory.py").write_text(BROKEN_IN_MEMORY)
    shutil.copy(ROOT / "examples" / "memory_backend.py", tmp_path)
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


def test_each_fault_around_a_backend_is_found(project: Path) -> None:
    """The same for what breaks around it; and without a fault, each of these tests passes."""
    names = {f"{kind}::{name}" for kind, found in IN_MEMORY_FOUND_BY.items() for name in found}
    of_all = set().union(*IN_MEMORY_FOUND_BY.values()) - {"test_a_loop_can_be_left"}  # it has nothing to leave
    sound = {f"TestKeepsAll::{name}" for name in of_all}
    failed, passed = run_pytest(project, *(f"test_faulty_in_memory.py::{name}" for name in sorted(names | sound)))
    assert failed == {f"test_faulty_in_memory.py::{name}" for name in names}
    assert passed == {f"test_faulty_in_memory.py::{name}" for name in sound}


def test_importing_sitq_does_not_import_pytest() -> None:
    """Only the suite needs pytest: neither sitq nor sitq.testing do."""
    process = start_python("import sys, sitq, sitq.testing; print('pytest' in sys.modules)")
    assert process.communicate(timeout=30) == ("False\n", "")
    assert (ROOT / "src/sitq/testing/contract.py").exists()
