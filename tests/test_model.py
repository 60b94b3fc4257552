"""Random sequences of operations on a real file against a model of a few lines.

The model knows the contract and nothing of SQL. Two backends stand for two processes; their clock
is set by the machine, forward and back. After each step every row must be as the model has it.
"""

import asyncio
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sitq import ReservedTask, SQLiteBackend
from sitq.backends.sqlite import pruning
from sitq.models import Outcome
from tests.faults import assert_healthy, new_task

START = 2_000_000_000
SECOND = 1_000_000  # in microseconds, the unit of the file
RETENTION = 500

type Status = Literal["pending", "in_progress", "success", "failed"]

LEGAL: dict[str, set[str]] = {
    "pending": {"pending", "in_progress"},
    "in_progress": {"in_progress", "pending", "success", "failed"},
    "success": {"success"},
    "failed": {"failed"},
}
"""Where a task may be after a step that found it in a status; finished ones may also be gone."""


@dataclass
class Task:
    """What the contract says of one task; times in seconds, except ``due``."""

    number: int
    max_attempts: int
    enqueued_at: int
    due: int
    status: Status = "pending"
    attempt: int = 0
    holder: ReservedTask | None = None
    finished_at: int = 0
    failures: int = 0
    outcome: tuple[bytes | None, str | None] = (None, None)

    @property
    def is_live(self) -> bool:
        """Whether it is not finished."""
        return self.status in ("pending", "in_progress")

    @property
    def is_spent(self) -> bool:
        """Whether no attempt is left."""
        return self.attempt >= self.max_attempts

    @property
    def is_last(self) -> bool:
        """Whether the next attempt would be the last."""
        return self.attempt == self.max_attempts - 1


@dataclass
class Model:
    """All tasks, by id; and the time."""

    now: int = START
    tasks: dict[str, Task] = field(default_factory=dict)

    def due(self, wanted: Callable[[Task], bool]) -> list[str]:
        """Returns the ids of the live tasks that are due, the oldest first."""
        found = [(task.due, task.number, key) for key, task in self.tasks.items() if task.is_live and wanted(task)]
        return [key for due, _, key in sorted(found) if due <= self.now * SECOND]

    def holds(self, held: ReservedTask) -> bool:
        """Whether a claim still holds."""
        task = self.tasks.get(held.task_id)
        return task is not None and task.status == "in_progress" and task.holder == held


class Machine(RuleBasedStateMachine):
    """The operations of a backend in any order."""

    sides = st.integers(0, 1)
    picks = st.sets(st.integers(0, 15), min_size=1, max_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "queue.db")
        self.model = Model()
        self.before: dict[str, str] = {}
        self.numbers = itertools.count(1)
        self.claims: list[ReservedTask] = []
        self.runner = asyncio.Runner()
        self.backends = [self.backend() for _ in range(2)]

    def backend(self) -> SQLiteBackend:
        """Returns a backend on the file, as another process would have one."""
        return SQLiteBackend(self.path, durability="normal", retention=RETENTION, clock=lambda: float(self.model.now))

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a call to its end."""
        return self.runner.run(coroutine)

    @initialize()
    def connect(self) -> None:
        """Opens the file twice."""
        for backend in self.backends:
            self.run(backend.connect())
        self.reader = sqlite3.connect(self.path)
        self.reader.row_factory = sqlite3.Row

    def teardown(self) -> None:
        """Closes the file and checks it."""
        for backend in self.backends:
            self.run(backend.close())
        self.runner.close()
        self.reader.close()
        assert_healthy(self.path)
        self.folder.cleanup()

    def picked(self, picks: set[int]) -> list[ReservedTask]:
        """Returns some of the claims that were ever given out, the latest ones more often."""
        return list(dict.fromkeys(self.claims[-1 - pick % len(self.claims)] for pick in picks))

    @rule(side=sides, delays=st.lists(st.integers(-20, 60), min_size=1, max_size=4), max_attempts=st.integers(1, 3))
    def enqueue(self, side: int, delays: list[int], max_attempts: int) -> None:
        """Stores a batch: in order, some of it for later."""
        batch = []
        for delay in delays:
            number = next(self.numbers)
            eta = None if delay <= -10 else self.model.now + delay
            task = Task(number, max_attempts, self.model.now, max(self.model.now, eta or 0) * SECOND)
            self.model.tasks[f"task-{number}"] = task
            moment = None if eta is None else datetime.fromtimestamp(eta, UTC)
            batch.append(new_task(f"task-{number}", b"%d" % number, eta=moment, max_attempts=max_attempts))
        self.run(self.backends[side].enqueue(batch))

    @rule(side=sides, limit=st.integers(1, 4), lease=st.integers(1, 60), alone=st.booleans())
    def reserve(self, side: int, limit: int, lease: int, alone: bool) -> None:
        """Gives out the oldest; buries what is spent; keeps a last attempt for who is alone; prunes."""
        model, now = self.model, self.model.now * SECOND
        buried = model.due(lambda task: task.is_spent)
        last = model.due(lambda task: task.is_last)
        ordinary = model.due(lambda task: not task.is_spent and not task.is_last)
        later = [task.due for task in model.tasks.values() if task.is_live and task.due > now]

        found = self.run(self.backends[side].reserve(limit, lease=lease, alone=alone))

        given = [task.task_id for task in found.tasks]
        ages = [model.tasks[some[0]].due if some else now + 1 for some in (last, ordinary)]
        permitted = []
        if ages[0] > ages[1] or not alone or not last:
            permitted.append(ordinary[:limit])
        if last and alone and ages[0] <= ages[1]:
            permitted.append(last[:1])
        assert given in permitted
        assert sorted(found.buried) == sorted(buried)
        if last and given != last[:1] and ages[0] <= ages[1]:
            assert found.last_attempt_waiting
        if not last:
            assert not found.last_attempt_waiting
        if len(given) < limit and len(given) == len(ordinary) + len(last):
            ends = [lease] if given else []
            expected = [(due - now) / SECOND for due in later] + ends
            assert found.next_due_in == (pytest.approx(min(expected), abs=0.001) if expected else None)

        for key in buried:
            task = model.tasks[key]
            task.status, task.finished_at, task.holder = "failed", self.model.now, None
        for place, held in enumerate(found.tasks, 1):
            task = model.tasks[held.task_id]
            assert held.payload == b"%d" % task.number
            # A microsecond apart, so that they stay in order when their leases end together.
            apart = 0 if task.is_last else place
            task.status, task.due, task.holder = "in_progress", now + lease * SECOND + apart, held
            task.attempt += 1
            assert held.attempt == task.attempt <= task.max_attempts
            assert held.failures == task.failures
        for key, task in list(model.tasks.items()):
            if not task.is_live and task.finished_at < self.model.now - RETENTION:
                del model.tasks[key]
        self.claims += found.tasks

    @precondition(lambda self: self.claims)
    @rule(side=sides, picks=picks, lease=st.integers(1, 60))
    def renew(self, side: int, picks: set[int], lease: int) -> None:
        """Moves the end of the leases that hold, and names the others."""
        held = self.picked(picks)
        lost = self.run(self.backends[side].renew(held, lease=lease))
        assert list(lost) == [task for task in held if not self.model.holds(task)]
        for task in held:
            if self.model.holds(task):
                self.model.tasks[task.task_id].due = (self.model.now + lease) * SECOND

    @precondition(lambda self: self.claims)
    @rule(side=sides, picks=picks)
    def release(self, side: int, picks: set[int]) -> None:
        """Gives back what is held, the attempt unspent, and names the others."""
        held = self.picked(picks)
        lost = self.run(self.backends[side].release(held))
        assert list(lost) == [task for task in held if not self.model.holds(task)]
        for claim in held:
            if self.model.holds(claim):
                task = self.model.tasks[claim.task_id]
                task.status, task.holder = "pending", None
                task.due = min(task.enqueued_at, self.model.now) * SECOND
                task.attempt -= 1

    @precondition(lambda self: self.claims)
    @rule(side=sides, picks=picks, fails=st.booleans())
    def finish(self, side: int, picks: set[int], fails: bool) -> None:
        """Records outcomes for what is held, knows its own earlier ones, and names the others."""
        held, backend = self.picked(picks), self.backends[side]
        outcomes = [
            Outcome(task, error=f"E: {task.attempt}") if fails else Outcome(task, b"%d" % task.attempt) for task in held
        ]
        lost = self.run(backend.mark_failure(outcomes) if fails else backend.mark_success(outcomes))
        status: Status = "failed" if fails else "success"
        expected = []
        for outcome in outcomes:
            task = self.model.tasks.get(outcome.task.task_id)
            if task is not None and self.model.holds(outcome.task):
                task.status, task.finished_at = status, self.model.now
                task.outcome = outcome.result, outcome.error
            elif task is None or (task.holder, task.status) != (outcome.task, status):
                expected.append(outcome.task)
        assert list(lost) == expected

    @precondition(lambda self: self.claims)
    @rule(side=sides, picks=picks, delay=st.integers(0, 60))
    def retry(self, side: int, picks: set[int], delay: int) -> None:
        """Has what is held tried again, knows its own earlier retries, and names the others."""
        held = self.picked(picks)
        late = self.run(self.backends[side].mark_failure([Outcome(task, error="E", retry_in=delay) for task in held]))
        expected = []
        for claim in held:
            task = self.model.tasks.get(claim.task_id)
            if task is not None and self.model.holds(claim):
                task.status, task.due = "pending", (self.model.now + delay) * SECOND
                task.max_attempts += 1
                task.failures += 1
            elif task is None or (task.holder, task.status) != (claim, "pending"):
                expected.append(claim)
        assert list(late) == expected

    @rule(seconds=st.one_of(st.integers(1, 70), st.sampled_from([-3600, -30, 600, 3600])))
    def move_the_clock(self, seconds: int) -> None:
        """Time passes, or somebody sets the clock."""
        self.model.now += seconds

    @precondition(lambda self: self.model.tasks)
    @rule(side=sides, data=st.data())
    def query(self, side: int, data: st.DataObject) -> None:
        """Asking for any task gives what the model knows; for an unknown one, nothing."""
        key = data.draw(st.sampled_from(sorted(self.model.tasks)))
        found = self.run(self.backends[side].get_result(key))
        task = self.model.tasks[key]
        assert found is not None
        assert (found.status, found.attempt) == (task.status, task.attempt)
        assert (found.started_at is None) == (task.attempt == 0)
        assert (found.finished_at is None) == task.is_live
        assert self.run(self.backends[side].get_result("unknown")) is None

    @rule(side=sides)
    def restart(self, side: int) -> None:
        """One of the processes dies and another takes its place."""
        old, self.backends[side] = self.backends[side], self.backend()
        self.run(self.backends[side].connect())
        self.run(old.close())

    @invariant()
    def the_file_is_as_the_model_has_it(self) -> None:
        """Each row, and each change of status since the last step, is legal and as expected."""
        found = {row["task_id"]: row for row in self.reader.execute("SELECT * FROM tasks")}
        assert set(found) == set(self.model.tasks)
        for key, task in self.model.tasks.items():
            row = found[key]
            assert row["status"] in LEGAL[self.before.get(key, "pending")]
            assert (row["status"], row["attempt"]) == (task.status, task.attempt)
            assert (row["started_at"] is None) == (task.attempt == 0)
            assert 0 <= row["attempt"] <= row["max_attempts"] == task.max_attempts
            if task.is_live:
                assert row["available_at"] == task.due
                assert row["claim"] == (task.holder and task.holder.claim)
            elif task.outcome != (None, None):
                assert (row["result"], row["error"]) == task.outcome
            else:
                assert f"each of {task.attempt - task.failures} attempts" in row["error"]
        self.before = {key: task.status for key, task in self.model.tasks.items()}


@pytest.fixture(autouse=True)
def prune_at_every_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished tasks go as soon as they may, so that the model knows when."""
    monkeypatch.setattr(pruning, "PRUNE_PAUSE_SECONDS", 0.0)


@pytest.mark.timeout(400)  # a failure takes its time to find the shortest example
@pytest.mark.parametrize("examples", [50, pytest.param(200, marks=pytest.mark.storm)])
def test_any_sequence_of_operations_keeps_to_the_model(examples: int) -> None:
    """Legal transitions only, one live claim for a task, attempts counted, last attempts alone, the spent buried."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            database=None,
        ),
    )
