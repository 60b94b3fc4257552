"""Random sequences of calls with unique tasks, on a real store, against a dict."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sitq import NewTask, ReservedTask, SQLiteBackend
from sitq.errors import DuplicateTaskError
from sitq.models import Extras, Otherwise, Outcome, Status, Unique, While
from tests.faults import Clock, connected

LEASE_SECONDS = 30


@dataclass
class Task:
    """What is known of a task that was stored; times in seconds."""

    key: str | None
    payload: bytes
    due: float
    enqueued_at: float
    calls: set[str]
    status: Status = "pending"
    holder: ReservedTask | None = None


@dataclass
class Model:
    """The tasks in the order in which they were stored, by their ids."""

    tasks: dict[str, Task] = field(default_factory=dict)

    def standing(self, unique: Unique, now: float, but: str = "", again: bool = False) -> str | None:
        """Returns which task keeps another one out; the one with the id ``but`` is about to end or to wait."""
        of_key = {key: task for key, task in self.tasks.items() if task.key == unique.key}
        for status in ("pending", "in_progress"):
            for key, task in of_key.items():
                counts = again if key == but else status == "pending" or unique.while_ == "unfinished"
                if task.status == status and counts:
                    return key
        period = unique.period
        if of_key and period and now - list(of_key.values())[-1].enqueued_at < period.total_seconds():
            return list(of_key)[-1]
        return None

    def store(self, new: NewTask, now: float, but: str = "", again: bool = False) -> str:
        """Stores a task or not; returns the id of the one that stands."""
        for key, task in self.tasks.items():
            if new.task_id in task.calls:
                return key
        assert new.extras is not None
        unique = new.extras.unique
        due = now + (new.delay or 0)
        found = None if unique is None else self.standing(unique, now, but, again)
        if found is None:
            key = None if unique is None else unique.key
            self.tasks[new.task_id] = Task(key, new.payload, due, now, {new.task_id})
            return new.task_id
        task = self.tasks[found]
        assert unique is not None
        if unique.otherwise == "raise" and not but:
            raise DuplicateTaskError(found, unique.key)
        if unique.otherwise == "replace" and task.status == "pending":
            task.payload, task.calls = new.payload, task.calls | {new.task_id}
            task.due = due if new.delay else min(task.due, now)
        return found


UNIQUES = st.builds(
    Unique,
    key=st.sampled_from("ab"),
    while_=st.sampled_from(While.__value__.__args__),
    period=st.sampled_from([None, None, timedelta(seconds=20)]),
    otherwise=st.sampled_from(Otherwise.__value__.__args__),
)
NEW = st.lists(
    st.tuples(st.one_of(UNIQUES, UNIQUES, UNIQUES, st.none()), st.sampled_from([None, 15.0])), min_size=1, max_size=4
)
type Step = tuple[Literal["enqueue", "repeat", "reserve", "end", "release", "by hand", "pass"], Any]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enqueue"), NEW),
        st.tuples(st.just("enqueue"), NEW),
        st.tuples(st.just("repeat"), st.integers(0, 5)),
        st.tuples(st.just("reserve"), st.integers(1, 3)),
        st.tuples(st.just("end"), st.tuples(st.sampled_from(["success", "failed", "again"]), NEW | st.just([]))),
        st.tuples(st.just("release"), st.just(None)),
        st.tuples(st.just("by hand"), st.sampled_from(["retry", "cancel"])),
        st.tuples(st.just("pass"), st.sampled_from([1, 10, 25, LEASE_SECONDS + 1])),
    ),
    max_size=25,
)


class Play:
    """Does the same to a backend and to the model, and compares."""

    def __init__(self, backend: SQLiteBackend, clock: Clock) -> None:
        self.backend, self.clock, self.model = backend, clock, Model()
        self.calls: list[list[NewTask]] = []
        self.number = 0

    def new(self, wanted: list[tuple[Unique | None, float | None]]) -> list[NewTask]:
        """Returns tasks that differ from all others."""
        tasks = []
        for unique, delay in wanted:
            self.number += 1
            extras = Extras(unique=unique)
            tasks.append(NewTask(f"{self.number}", b"%d" % self.number, max_attempts=99, delay=delay, extras=extras))
        return tasks

    async def enqueue(self, wanted: list[tuple[Unique | None, float | None]]) -> None:
        """Stores new tasks."""
        await self.call(self.new(wanted))

    async def call(self, tasks: list[NewTask]) -> None:
        """Makes a call; what is refused changes nothing."""
        model = Model({key: Task(**vars(task)) for key, task in self.model.tasks.items()})
        expected: list[str] = []
        refused: DuplicateTaskError | None = None
        try:
            expected += [model.store(task, self.clock.now) for task in tasks]
        except DuplicateTaskError as error:
            refused = error
        if refused is not None:
            with pytest.raises(DuplicateTaskError) as caught:
                await self.backend.enqueue(tasks)
            # Rather one that is there than one of this call, which is not stored.
            there = {key for key, task in self.model.tasks.items() if task.key == refused.key}
            assert caught.value.key == refused.key
            assert caught.value.task_id in there | {refused.task_id}
            return
        found = await self.backend.enqueue(tasks)
        assert list(found or [task.task_id for task in tasks]) == expected
        self.model = model
        self.calls.append(tasks)

    async def repeat(self, back: int) -> None:
        """Makes an earlier call again: what is left of it is decided anew, the rest is as it was."""
        if self.calls:
            await self.call(self.calls[-1 - back % len(self.calls)])

    async def reserve(self, limit: int) -> None:
        """Takes some that are due."""
        found = await self.backend.reserve(limit, lease=LEASE_SECONDS, alone=False)
        for held in found.tasks:
            task = self.model.tasks[held.task_id]
            assert held.payload == task.payload
            assert task.due <= self.clock.now
            task.status, task.holder, task.due = "in_progress", held, self.clock.now + LEASE_SECONDS
        if len(found.tasks) < limit:
            live = [task for task in self.model.tasks.values() if task.status in ("pending", "in_progress")]
            assert [task for task in live if task.due <= self.clock.now] == []

    def held(self) -> tuple[str, Task] | None:
        """Returns the first task that is held."""
        return next(((key, task) for key, task in self.model.tasks.items() if task.status == "in_progress"), None)

    async def end(self, how: tuple[Literal["success", "failed", "again"], Any]) -> None:
        """Records an outcome, with tasks that are stored with it, unless the key of one keeps it out."""
        if (found := self.held()) is None:
            return
        key, task = found
        assert task.holder is not None
        then = self.new(how[1])
        for new in then:
            self.model.store(new, self.clock.now, key, how[0] == "again")
        outcome = Outcome(task.holder, then=then, retry_in=5.0 if how[0] == "again" else None)
        mark = self.backend.mark_success if how[0] == "success" else self.backend.mark_failure
        assert list(await mark([outcome])) == []
        if how[0] == "again":
            task.status, task.due = "pending", self.clock.now + 5
        else:
            task.status = how[0]

    async def release(self, _: object) -> None:
        """Gives a task back."""
        if found := self.held():
            task = found[1]
            assert task.holder is not None
            assert list(await self.backend.release([task.holder])) == []
            task.status, task.due = "pending", task.enqueued_at

    async def by_hand(self, what: Literal["retry", "cancel"]) -> None:
        """Retries what has ended, or cancels what waits."""
        for key, task in self.model.tasks.items():
            if what == "retry" and task.status in ("failed", "cancelled"):
                assert list(await self.backend.retry([key])) == [key]
                task.status, task.due = "pending", self.clock.now
            elif what == "cancel" and task.status == "pending":
                assert list(await self.backend.cancel([key])) == [key]
                task.status = "cancelled"
                break

    async def step(self, step: Step) -> None:
        """Does one thing, and compares all tasks."""
        what, how = step
        if what == "pass":
            self.clock.now += how
        else:
            await getattr(self, what.replace(" ", "_"))(how)
        for number in range(1, self.number + 1):
            found = await self.backend.get_result(f"{number}")
            task = self.model.tasks.get(f"{number}")
            assert (found and found.status) == (task and task.status)


async def play(steps: list[Step]) -> None:
    """Does everything in a row."""
    clock = Clock()
    async with connected(SQLiteBackend(":memory:", clock=clock)) as backend:
        game = Play(backend, clock)
        for step in steps:
            await game.step(step)


@pytest.mark.timeout(400)  # a failure takes its time to find the shortest example
@pytest.mark.parametrize("examples", [150, pytest.param(2000, marks=pytest.mark.storm)])
def test_any_sequence_of_calls_keeps_to_the_model(examples: int) -> None:
    """What is stored, what is kept out, replaced or refused, and by whom; and nothing that happens later fails."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(STEPS)
    def run(steps: list[Step]) -> None:
        asyncio.run(play(steps))

    run()
