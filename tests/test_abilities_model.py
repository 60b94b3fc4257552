"""Random sequences of calls that use the abilities of a store together, on a real file, against a model of a few lines.

Each ability has tests of its own. Here lanes, unique tasks, retries, requests to end, kept failures and reports of
progress meet in one file, of which two backends stand for two processes.
"""

import asyncio
import contextlib
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sitq import NewTask, ReservedTask, SQLiteBackend
from sitq.backends.progressing import Report
from sitq.backends.sqlite import choosing
from sitq.backends.sqlite.choosing import Heads
from sitq.models import Extras, Outcome, Status, Unique
from tests.faults import Clock, assert_healthy, connected

SECOND = 1_000_000
HEAD_START = 10
QUEUES = ["", "a", "b"]
LEASE = 30


@dataclass
class Task:
    """What is known of a task that was stored; moments in microseconds."""

    number: int
    queue: str
    priority: int
    key: str | None
    max_attempts: int
    due: int
    enqueued_at: int
    status: Status = "pending"
    attempt: int = 0
    raised: int = 0
    failures: int = 0
    kept: int = 0
    asked: bool = False
    holder: ReservedTask | None = None
    done: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether it is not finished."""
        return self.status in ("pending", "in_progress")

    @property
    def rank(self) -> int:
        """When it is served: the smallest first."""
        return self.due - self.priority * HEAD_START * SECOND

    def is_held_by(self, held: ReservedTask) -> bool:
        """Whether a claim holds it."""
        return self.status == "in_progress" and self.holder == held


TASK = st.tuples(
    st.sampled_from(QUEUES),
    st.sampled_from([0, 0, 1, -2]),
    st.sampled_from([None, None, "k", "l"]),
    st.sampled_from(["waiting", "unfinished"]),
    st.sampled_from(["keep", "replace"]),
    st.integers(1, 3),
    st.sampled_from([0, 0, 15]),
)
TASKS = st.lists(TASK, min_size=1, max_size=4)
PICK = st.integers(0, 20)
STEP = st.one_of(
    st.tuples(st.just("enqueue"), TASKS),
    st.tuples(st.just("enqueue"), TASKS),
    st.tuples(
        st.just("reserve"),
        st.tuples(
            st.integers(1, 4), st.booleans(), st.none() | st.sets(st.sampled_from(QUEUES), min_size=1, max_size=2)
        ),
    ),
    st.tuples(st.just("reserve"), st.tuples(st.integers(1, 4), st.booleans(), st.none())),
    st.tuples(
        st.just("end"),
        st.tuples(PICK, st.sampled_from(["success", "failed", "cancelled", "again", "later"]), TASKS | st.just([])),
    ),
    st.tuples(st.just("release"), PICK),
    st.tuples(st.just("renew"), PICK),
    st.tuples(st.just("report"), PICK),
    st.tuples(st.just("by_hand"), st.tuples(PICK, st.sampled_from(["retry", "cancel", "ask", "cut"]))),
    st.tuples(st.just("pause"), st.tuples(st.sampled_from(QUEUES), st.booleans())),
    st.tuples(st.just("prune"), st.just(40)),
    st.tuples(st.just("wait"), st.sampled_from([1, 10, LEASE + 1])),
)
STEPS = st.lists(st.tuples(st.integers(0, 1), STEP), max_size=40)


class Play:
    """Does the same to a file and to the model, and compares."""

    def __init__(self, backends: list[SQLiteBackend], clock: Clock) -> None:
        self.backends, self.clock = backends, clock
        self.tasks: dict[str, Task] = {}
        self.finished_at: dict[str, int] = {}
        self.claims: list[ReservedTask] = []
        self.paused: set[str] = set()
        self.number = 0
        self._ranks: dict[str, int] = {}  # as they were before this step

    @property
    def now(self) -> int:
        """The time in microseconds."""
        return int(self.clock.now * SECOND)

    def finish(self, task_id: str, status: Status) -> None:
        """Ends a task."""
        task = self.tasks[task_id]
        task.status, self.finished_at[task_id] = status, self.now

    def new(self, wanted: list[Any]) -> list[tuple[NewTask, Any]]:
        """Returns tasks that differ from all others."""
        found = []
        for queue, priority, key, while_, otherwise, max_attempts, delay in wanted:
            self.number += 1
            unique = None if key is None else Unique(key, while_=while_, otherwise=otherwise)
            new = NewTask(
                f"t{self.number}",
                b"%d" % self.number,
                max_attempts=max_attempts,
                delay=float(delay) or None,
                extras=Extras(queue=queue, priority=priority, unique=unique),
            )
            found.append((new, (queue, priority, key, while_, otherwise, max_attempts, delay)))
        return found

    def store(self, new: NewTask, wanted: Any, ending: str = "", again: bool = False) -> str:
        """Stores a task in the model, unless another one stands for it; returns which stands."""
        queue, priority, key, while_, otherwise, max_attempts, delay = wanted
        due = self.now + delay * SECOND
        rivals = [] if key is None else [(name, task) for name, task in self.tasks.items() if task.key == key]
        waiting = [name for name, task in rivals if task.status == "pending"]
        running = [
            name
            for name, task in rivals
            if task.status == "in_progress" and (again if name == ending else while_ == "unfinished")
        ]
        if not waiting and not running:
            number = int(new.task_id[1:])
            self.tasks[new.task_id] = Task(number, queue, priority, key, max_attempts, due, self.now)
            return new.task_id
        stands = (waiting + running)[0]
        task = self.tasks[stands]
        if waiting and otherwise == "replace":
            task.number, task.queue, task.priority, task.max_attempts = (
                int(new.task_id[1:]),
                queue,
                priority,
                max_attempts,
            )
            task.due = due if delay else min(task.due, self.now)
            task.attempt = task.raised = task.failures = 0
            task.done = None
        return stands

    async def enqueue(self, side: int, wanted: list[Any]) -> None:
        """Stores tasks, in one call."""
        batch = self.new(wanted)
        found = await self.backends[side].enqueue([new for new, _ in batch])
        stand = [self.store(*each) for each in batch]
        assert list(found or [new.task_id for new, _ in batch]) == stand

    def take(self, limit: int, alone: bool, served: Any) -> tuple[list[set[str]], list[str], bool]:
        """Returns what may be given out, what is ended instead, and whether a last attempt is left."""
        place = {name: n for n, name in enumerate(self.tasks)}
        due = sorted(
            (name for name, task in self.tasks.items() if task.is_live and task.due <= self.now),
            key=lambda name: (self.tasks[name].rank, place[name]),
        )
        spent = [name for name in due if self.tasks[name].attempt >= self.tasks[name].max_attempts]
        open_ = [
            name
            for name in due
            if name not in spent
            and self.tasks[name].queue not in self.paused
            and (served is None or self.tasks[name].queue in served)
        ]
        last = [name for name in open_ if self.tasks[name].attempt == self.tasks[name].max_attempts - 1]
        ordinary = [name for name in open_ if name not in last]
        first = [name for name in last if self.tasks[name].rank == self.tasks[last[0]].rank]
        comes = bool(last) and (not ordinary or self.tasks[first[0]].rank <= self.tasks[ordinary[0]].rank)
        if comes and alone:
            return [{name} for name in first], spent, False
        return [set(ordinary[:limit])], spent, comes

    async def reserve(self, side: int, how: Any) -> None:
        """Takes some that are due, of some queues."""
        limit, alone, served = how
        backend = self.backends[side]
        view = backend if served is None else backend.select(sorted(served))
        before = {name: task.number for name, task in self.tasks.items()}
        found = await view.reserve(limit, lease=LEASE, alone=alone)
        given, buried = {held.task_id: held for held in found.tasks}, set()
        while True:
            choices, spent, _ = self.take(limit, alone, served)
            chosen = next((each for each in choices if each & given.keys()), choices[0])
            for name in spent:
                if self.tasks[name].asked:
                    self.finish(name, "cancelled")
                else:
                    self.finish(name, "failed")
                    buried.add(name)
                self.tasks[name].done = None
            for name in chosen:
                task = self.tasks[name]
                if task.asked:
                    self.finish(name, "cancelled")
                    task.attempt, task.done = task.attempt + 1, None
            taken = {name for name in chosen if self.tasks[name].is_live}
            if taken or buried or not (chosen or spent):
                break
        assert set(given) == taken
        assert set(found.buried) == buried
        for name, held in given.items():
            task = self.tasks[name]
            assert held.payload == b"%d" % before[name]
            task.status, task.holder, task.done = "in_progress", held, None
            task.attempt += 1
            task.due = self.now + LEASE * SECOND  # and a microsecond apart, see compare
            assert (held.attempt, held.failures) == (task.attempt, task.failures)
        ranks = [self._ranks[name] for name in given]
        assert ranks == sorted(ranks)
        self.claims += found.tasks

    def picked(self, pick: int) -> ReservedTask | None:
        """Returns a claim that was ever given out, a late one more often."""
        return self.claims[-1 - pick % len(self.claims)] if self.claims else None

    def held(self, claim: ReservedTask) -> Task | None:
        """Returns the task if the claim holds."""
        task = self.tasks.get(claim.task_id)
        return task if task is not None and task.is_held_by(claim) else None

    async def end(self, side: int, how: Any) -> None:
        """Records an outcome, with tasks that are stored with it."""
        pick, what, wanted = how
        if (claim := self.picked(pick)) is None:
            return
        then, again, task = self.new(wanted), what in ("again", "later"), self.held(claim)
        outcome = Outcome(
            claim,
            error=None if what == "success" else "E",
            retry_in=5.0 if again else None,
            counts=what != "later",
            cancelled=what == "cancelled",
            then=[new for new, _ in then],
        )
        backend = self.backends[side]
        late = list(await (backend.mark_success if what == "success" else backend.mark_failure)([outcome]))
        if task is None:
            return
        assert late == []
        for new, each in then:
            self.store(new, each, claim.task_id, again)
        task.kept += what in ("again", "failed")
        if not again:
            self.finish(claim.task_id, what)
            return
        task.max_attempts, task.raised = task.max_attempts + 1, task.raised + 1
        task.failures += what == "again"
        if task.asked:
            self.finish(claim.task_id, "cancelled")
        else:
            task.status, task.due = "pending", self.now + 5 * SECOND

    async def release(self, side: int, pick: int) -> None:
        """Gives a task back."""
        if (claim := self.picked(pick)) is None:
            return
        late, task = list(await self.backends[side].release([claim])), self.held(claim)
        assert late == ([] if task else [claim])
        if task is not None:
            task.attempt, task.done = task.attempt - 1, None
            task.status, task.due = "pending", task.enqueued_at
            if task.asked:
                self.finish(claim.task_id, "cancelled")

    async def renew(self, side: int, pick: int) -> None:
        """Moves the end of a lease."""
        if (claim := self.picked(pick)) is not None:
            late, task = list(await self.backends[side].renew([claim], lease=LEASE)), self.held(claim)
            assert late == ([] if task else [claim])
            if task is not None:
                task.due = self.now + LEASE * SECOND

    async def report(self, side: int, pick: int) -> None:
        """Keeps a report if the claim holds."""
        if (claim := self.picked(pick)) is not None:
            await self.backends[side].report([Report(claim, float(self.number))])
            if task := self.held(claim):
                task.done = float(self.number)

    async def by_hand(self, side: int, how: Any) -> None:
        """Retries, cancels, asks or cuts a task."""
        pick, what = how
        if not self.tasks:
            return
        name = list(self.tasks)[-1 - pick % len(self.tasks)]
        task = self.tasks[name]
        abandoned = task.status == "in_progress" and task.due <= self.now
        can = {
            "retry": task.status in ("failed", "cancelled") or abandoned,
            "cancel": task.status == "pending" or abandoned,
            "ask": task.status == "in_progress",
            "cut": task.status == "in_progress",
        }[what]
        found = await getattr(self.backends[side], what)([name])
        assert list(found) == [name] * can
        if not can:
            return
        if what == "ask":
            task.asked = True
        elif what == "retry":
            task.max_attempts = max(1, task.max_attempts - task.raised)
            task.attempt = task.raised = task.failures = 0
            task.status, task.due, task.asked, task.done = "pending", self.now, False, None
        else:
            self.finish(name, "cancelled")
            task.done = None

    async def pause(self, side: int, how: Any) -> None:
        """Pauses or resumes a queue."""
        queue, pauses = how
        await (self.backends[side].pause if pauses else self.backends[side].resume)(queue)
        self.paused = self.paused | {queue} if pauses else self.paused - {queue}

    async def prune(self, side: int, seconds: int) -> None:
        """Deletes what has ended long ago, and all that belongs to it."""
        await self.backends[side].prune(older_than=seconds)
        for name, task in list(self.tasks.items()):
            if not task.is_live and self.finished_at[name] < self.now - seconds * SECOND:
                del self.tasks[name]

    async def wait(self, _: int, seconds: int) -> None:
        """Lets time pass."""
        self.clock.now += seconds

    async def step(self, side: int, what: str, how: Any) -> None:
        """Does one thing, and compares everything."""
        self._ranks = {name: task.rank for name, task in self.tasks.items()}
        await getattr(self, what)(side, how)
        await self.compare(self.backends[1 - side])

    async def compare(self, backend: SQLiteBackend) -> None:
        """Compares all tasks as the other process sees them."""
        shown = {info.task_id: info for info in await backend.list(limit=10_000)}
        assert list(shown) == list(self.tasks)[::-1]
        for name, task in self.tasks.items():
            info = shown[name]
            assert (name, info.status, info.attempt) == (name, task.status, task.attempt)
            assert (info.queue, info.priority) == (task.queue, task.priority)
            assert (info.failures, info.max_attempts) == (task.failures, task.max_attempts - task.raised)
            ends = info.due_at if task.status == "pending" else info.lease_ends_at
            if ends is not None:
                assert 0 <= ends.timestamp() - task.due / SECOND < 0.001
                task.due += round((ends.timestamp() - task.due / SECOND) * SECOND)
            assert (info.asked_at is not None) == task.asked
            details = await backend.show(name)
            assert details is not None
            assert len(details.failed_attempts) == task.kept
            progress = await backend.progress(name)
            assert (name, progress and progress.done) == (name, task.done)
        live = [task for task in self.tasks.values() if task.is_live]
        lanes = {(lane.queue, lane.priority): lane for lane in await backend.lanes()}
        assert sum(lane.waiting + lane.running + lane.abandoned for lane in lanes.values()) == len(live)
        assert {(task.queue, task.priority) for task in live} <= lanes.keys()
        assert {lane.queue for lane in lanes.values() if lane.paused} == self.paused
        for status in ("pending", "in_progress"):
            listed = [info.task_id for info in await backend.list(status=status, limit=10_000)]
            assert listed == [name for name, task in self.tasks.items() if task.status == status][::-1]


async def play(steps: list[Any]) -> None:
    """Does everything in a row."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "queue.db")
        one, two = (
            SQLiteBackend(path, durability="normal", retention=None, head_start=HEAD_START, clock=clock)
            for _ in range(2)
        )
        async with connected(one), connected(two):
            game = Play([one, two], clock)
            for side, (what, how) in steps:
                await game.step(side, what, how)
        assert_healthy(path)
        with sqlite3.connect(path) as file:
            tables = {name for (name,) in file.execute("SELECT name FROM sqlite_schema")}
            for table, column in (("task_failures", "task"), ("progress", "id")):
                if table in tables:
                    left = f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT id FROM tasks)"
                    assert file.execute(left).fetchone() == (0,)
        file.close()


@pytest.mark.timeout(400)  # a failure takes its time to find the shortest example
@pytest.mark.parametrize("examples", [60, pytest.param(500, marks=pytest.mark.storm)])
def test_abilities_that_meet_in_one_file_keep_to_the_model(examples: int) -> None:
    """Each row is as the model has it after each call, and nothing is left of a task that was deleted."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(STEPS)
    def run(steps: list[Any]) -> None:
        asyncio.run(play(steps))

    run()


async def test_a_call_that_replaces_a_task_shows_no_progress_of_that_tasks_run() -> None:
    """It waits as if it had never been run, although the claim is kept by which the outcome is recognised."""
    unique = Extras(unique=Unique("key", while_="waiting", otherwise="replace"))
    async with connected(SQLiteBackend(":memory:")) as backend:
        await backend.enqueue([NewTask("first", b"1", extras=unique)])
        (held,) = (await backend.reserve(1, lease=LEASE, alone=True)).tasks
        await backend.report([Report(held, 5.0)])
        await backend.mark_failure([Outcome(held, error="E", retry_in=0.0)])
        assert await backend.progress("first") is not None
        assert await backend.enqueue([NewTask("second", b"2", extras=unique)]) == ["first"]
        assert await backend.progress("first") is None


async def test_lanes_that_others_empty_while_they_are_looked_at_give_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is a snapshot of its own: what the first has seen, another process may have taken before the next."""
    path = tmp_path / "queue.db"
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue([NewTask(queue, b"1", extras=Extras(queue=queue)) for queue in ("a", "b")])
        find_heads = choosing.find_heads

        def find_and_lose(*args: Any, **kwargs: Any) -> Heads:
            heads = find_heads(*args, **kwargs)
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("UPDATE tasks SET status = 'cancelled', finished_at = 1")
            monkeypatch.setattr(choosing, "find_heads", find_heads)
            return heads

        monkeypatch.setattr(choosing, "find_heads", find_and_lose)
        assert (await backend.reserve(2, lease=LEASE, alone=False)).tasks == []
