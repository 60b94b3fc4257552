"""When a worker asks for tasks, and for how many: told by numbers, without a loop, a clock or a backend."""

import logging
import math
from collections.abc import Sequence

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sitq.models import EPOCH, Reservation, ReservedTask
from sitq.worker.admission import (
    MAKING_ROOM_SECONDS,
    PAUSE_SECONDS,
    TRIES_TO_LOAD,
    Admission,
    Ask,
    LastAttempts,
    ModuleCheck,
    SleepUntil,
)
from sitq.worker.settings import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, OVERLAP_FROM_SLOTS, Settings

SLOTS = 10
POLL_SECONDS = 7.0
TURN_SECONDS = 0.25


def wait_beside(seconds: float, *, maximum: float) -> tuple[float | None, float]:
    """Serves ordinary tasks that each take ``seconds`` and that never run out, beside a last attempt that waits.

    Returns when the worker became empty, ``None`` if that was not in ``maximum`` seconds, and for how
    long it took nothing at the longest, as a share of the time for which the last attempt had been
    waiting then.
    """
    last_attempts, running = LastAttempts(SLOTS), [0.0]
    now = room_from = longest = 0.0
    while now < maximum:
        running = [began for began in running if began + seconds > now]
        if not running:
            return now, longest
        if now >= last_attempts.making_room_until:
            if len(running) < SLOTS:
                running.append(now)
            last_attempts.seen(True, running[0], now)
            room_from = now
        elif now > 10 * MAKING_ROOM_SECONDS:
            longest = max(longest, (now - room_from) / now)
        now += TURN_SECONDS
    return None, longest


def test_room_is_made_at_once_beside_short_tasks() -> None:
    """If all tasks are short, the worker takes nothing more until it is empty."""
    assert wait_beside(0.5, maximum=MAKING_ROOM_SECONDS)[0] is not None


@pytest.mark.parametrize("seconds", [2.0, 10.0, 60.0, 600.0])
def test_a_last_attempt_beside_long_tasks_is_not_starved(seconds: float) -> None:
    """However long tasks take, and however many come, the worker becomes empty, and keeps none of them waiting long."""
    empty_at, longest = wait_beside(seconds, maximum=20 * seconds)
    assert empty_at is not None
    assert 0 < longest <= 0.11


def test_a_task_that_never_ends_keeps_the_others_waiting_for_a_moment_only() -> None:
    """An hour beside a task that began before: the worker takes nothing for the first second, and serves ever after."""
    assert wait_beside(1e9, maximum=3600.0) == (None, 0.0)


def test_nothing_is_kept_waiting_where_no_last_attempt_waits() -> None:
    """A reservation that left none ends the making of room."""
    last_attempts = LastAttempts(SLOTS)
    last_attempts.seen(True, 5.0, 5.0)
    assert last_attempts.making_room_until > 5.1
    last_attempts.seen(False, 5.0, 5.1)
    assert (last_attempts.waiting_since, last_attempts.making_room_until <= 5.1) == (None, True)


@pytest.mark.parametrize(("slots", "count"), [(1, 0), (2, 1), (100, 1)])
def test_it_is_said_once_that_slots_stay_empty(slots: int, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """By a worker that has several; one with a single slot has nothing to say."""
    last_attempts = LastAttempts(slots)
    for now in range(5):
        last_attempts.seen(True, now, now)
        last_attempts.reserved([task(last=True)])
    said = [record for record in caplog.records if "max_attempts=1" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * count


def test_a_few_missing_modules_are_failures_and_more_are_a_pause() -> None:
    """Up to the limit tasks are failed; from then on they are given back, but for one in each pause."""
    modules, now = ModuleCheck(), 0.0
    assert [modules.gives_back(False, "app", now) for _ in range(TRIES_TO_LOAD)] == [False] * TRIES_TO_LOAD
    pauses = []
    for _ in range(2000):
        assert [modules.gives_back(False, "app", now) for _ in range(3)] == [True] * 3
        pauses.append(modules.paused_until - now)
        now = modules.paused_until
        assert not modules.gives_back(False, "app", now)
    assert pauses[:3] == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 3 * PAUSE_SECONDS]
    assert max(pauses) == 60.0


@pytest.mark.parametrize(
    ("loaded", "missing"), [(True, None), (False, "app.old")], ids=["another was loaded", "its package is there"]
)
def test_a_worker_that_stands_well_fails_what_cannot_be_loaded(loaded: bool, missing: str | None) -> None:
    """Once anything could be loaded, or a package was found of which a module is missing, nothing is given back."""
    modules = ModuleCheck()
    assert not modules.gives_back(loaded, missing, 0.0)
    assert not any(modules.gives_back(False, "gone", 0.0) for _ in range(10 * TRIES_TO_LOAD))


def test_what_fails_for_another_reason_says_nothing_of_the_place() -> None:
    """A damaged payload is failed, also in the wrong place, and is no proof of the right one."""
    modules = ModuleCheck()
    for _ in range(TRIES_TO_LOAD):
        modules.gives_back(False, "app", 0.0)
    assert not modules.gives_back(False, None, 0.0)
    assert modules.gives_back(False, "app", 0.0)
    assert "'app'" in modules.advice


def task(*, last: bool = False) -> ReservedTask:
    """A reserved task."""
    return ReservedTask(1, 1, "id", b"", "name", "format", 5 if last else 1, 5, EPOCH)


def admission(slots: int = SLOTS, *, batch_size: int | None = None, until_empty: bool = False) -> Admission:
    """The admission of a worker that has just started, at the time 0."""
    largest = slots if batch_size is None else batch_size
    return Admission(Settings(slots, POLL_SECONDS, largest, 30.0, None, until_empty=until_empty), 0.0)


def found(count: int = 0, *, last: bool = False, waiting: bool = False, due: float | None = None) -> Reservation:
    """A reservation of ``count`` tasks, or of a last attempt."""
    tasks = [task(last=last) for _ in range(count)]
    return Reservation(tasks, next_due_in=due, last_attempt_waiting=waiting)


def ask(mind: Admission, now: float = 0.0) -> Ask:
    """What is asked for; something must be."""
    decision = mind.next(now, 0)
    assert isinstance(decision, Ask)
    return decision


@pytest.mark.parametrize(
    ("slots", "batch_size", "limits"),
    [
        (1, None, [1]),
        (10, None, [10]),
        (10, 3, [3]),
        (OVERLAP_FROM_SLOTS - 1, None, [OVERLAP_FROM_SLOTS - 1]),
        (OVERLAP_FROM_SLOTS, None, [OVERLAP_FROM_SLOTS // 2]),
        (100, 1000, [50]),
    ],
)
def test_the_first_reservation_asks_for_the_free_slots(slots: int, batch_size: int | None, limits: list[int]) -> None:
    """All of them, or half of many, or what one reservation may take; the worker is alone, and waits for the answer."""
    mind = admission(slots, batch_size=batch_size)
    assert [ask(mind)] == [Ask(limit, alone=True) for limit in limits]
    assert mind.next(0.0, 0) == SleepUntil(math.inf)


def test_nothing_found_means_to_sleep_for_the_poll_interval() -> None:
    """From the answer on; a change in between, or the end of the sleep, asks again."""
    mind = admission()
    mind.reserved(ask(mind), found(), None, 1.0)
    assert mind.next(1.0, 0) == SleepUntil(1.0 + POLL_SECONDS)
    mind.changed()
    assert mind.next(1.0, 0) == Ask(SLOTS, alone=True)


@pytest.mark.parametrize(("due", "seconds"), [(0.5, 0.5), (POLL_SECONDS + 1, POLL_SECONDS), (None, POLL_SECONDS)])
def test_a_sleep_ends_when_the_next_task_is_due(due: float | None, seconds: float) -> None:
    """If that is sooner than the poll interval, and if the backend tells."""
    mind = admission()
    mind.reserved(ask(mind), found(due=due), None, 0.0)
    assert mind.next(0.0, 0) == SleepUntil(seconds)


def test_a_full_reservation_is_followed_by_another_beside_it() -> None:
    """There is more than one brought: as soon as there are slots, one is under way while another is answered."""
    mind = admission(100)
    first = ask(mind)
    assert mind.next(0.0, 0) == SleepUntil(math.inf), "not beside one that may bring a last attempt"
    mind.reserved(first, found(50), None, 0.0)
    assert ask(mind) == Ask(50, alone=False)
    for _ in range(10):
        mind.ended()
    assert ask(mind) == Ask(10, alone=False)
    assert mind.next(0.0, 0) == SleepUntil(math.inf)


def test_an_outcome_that_the_backend_has_not_taken_keeps_its_slot() -> None:
    """What has ended and is not handed on takes room like what runs."""
    mind = admission(2)
    mind.reserved(ask(mind), found(2), None, 0.0)
    mind.ended()
    assert mind.next(0.0, 1) == SleepUntil(math.inf)
    assert mind.next(0.0, 0) == Ask(1, alone=False)


def test_nothing_is_taken_beside_a_last_attempt() -> None:
    """However many slots are free; when it is recorded, the others are asked for."""
    mind = admission()
    mind.reserved(ask(mind), found(1, last=True), None, 0.0)
    mind.changed()
    assert mind.next(0.0, 0) == SleepUntil(math.inf)
    mind.ended()
    assert mind.next(0.0, 0) == SleepUntil(math.inf)
    mind.recorded([task(last=True)])
    assert mind.next(0.0, 0) == Ask(SLOTS, alone=True)


def test_a_last_attempt_that_is_over_at_once_does_not_hide_the_others() -> None:
    """By a backend that answers at once it is recorded before anything is decided: the others are asked for."""
    mind = admission()
    mind.reserved(ask(mind), found(1, last=True), None, 0.0)
    mind.ended()
    mind.recorded([task(last=True)])
    assert mind.next(0.0, 0) == Ask(SLOTS, alone=True)


def test_a_reservation_that_was_cancelled_is_made_again() -> None:
    """It has found nothing, and has said nothing of what there is."""
    mind = admission()
    mind.withdrawn(ask(mind))
    assert mind.next(0.0, 0) == Ask(SLOTS, alone=True)


def test_a_worker_that_is_empty_asks_again_for_a_last_attempt_that_was_left() -> None:
    """It was left because the worker held another task; when that one is recorded, the worker is alone."""
    mind = admission()
    mind.reserved(ask(mind), found(1), None, 0.0)
    mind.changed()
    mind.reserved(ask(mind), found(waiting=True), 0.0, 0.1)
    assert mind.next(0.1, 0) == SleepUntil(MAKING_ROOM_SECONDS), "it makes room"
    mind.ended()
    mind.recorded([task()])
    assert mind.next(0.1, 0) == Ask(SLOTS, alone=True)


def test_a_backend_that_fails_is_tried_again_later_and_later() -> None:
    """Each delay is twice the one before, up to a limit; an answer begins with the first one again."""
    mind, now, delays = admission(), 0.0, []
    for _ in range(10):
        delay = mind.failed(ask(mind, now), now)
        assert mind.next(now, 0) == SleepUntil(now + delay)
        delays.append(delay)
        now += delay
    assert delays[:3] == [FIRST_DELAY_SECONDS, 2 * FIRST_DELAY_SECONDS, 4 * FIRST_DELAY_SECONDS]
    assert max(delays) == delays[-1] == MAX_DELAY_SECONDS
    mind.reserved(ask(mind, now), found(), None, now)
    mind.changed()
    assert mind.failed(ask(mind, now), now) == FIRST_DELAY_SECONDS


def test_a_drain_is_over_when_nothing_is_held_and_nothing_was_found() -> None:
    """A task that ends may have enqueued others: it is asked for them once more."""
    mind = admission(until_empty=True)
    mind.reserved(ask(mind), found(1, due=0.000_001), None, 0.0)
    assert not mind.is_drained
    mind.ended()
    mind.recorded([task()])
    assert not mind.is_drained
    mind.reserved(ask(mind), found(due=0.000_001), None, 0.0)
    assert mind.is_drained


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in whatever order, an admission keeps to its rules."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = 5
        self.mind = admission(self.slots)
        self.now = 0.0
        self.asks: list[Ask] = []
        self.running: list[ReservedTask] = []
        self.behind: list[ReservedTask] = []
        self.recording: list[ReservedTask] = []

    def held(self) -> Sequence[ReservedTask]:
        """All that it holds."""
        return [*self.running, *self.behind, *self.recording]

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        """The clock moves."""
        self.now += seconds

    @rule()
    def what_is_decided_is_carried_out(self) -> None:
        """It asks for no more than is free, and knows whether it is alone."""
        decision = self.mind.next(self.now, len(self.behind))
        if isinstance(decision, SleepUntil):
            return
        taken = len(self.running) + len(self.behind) + sum(ask.limit for ask in self.asks)
        assert 1 <= decision.limit <= self.slots - taken
        assert decision.alone == (not self.held() and not self.asks)
        assert len(self.asks) <= 1
        assert not any(ask.alone for ask in self.asks)
        self.asks.append(decision)

    @precondition(lambda self: self.asks)
    @rule(data=st.data(), waiting=st.booleans(), due=st.sampled_from([None, 0.0, 3.0]))
    def it_is_answered(self, data: st.DataObject, waiting: bool, due: float | None) -> None:
        """With some tasks, or with one last attempt if the worker was alone."""
        ask = self.asks.pop(data.draw(st.integers(0, len(self.asks) - 1)))
        oldest = self.now if self.held() else None
        if ask.alone and data.draw(st.booleans()):
            reservation = found(1, last=True, waiting=waiting, due=due)
        else:
            reservation = found(data.draw(st.integers(0, ask.limit)), waiting=waiting, due=due)
        self.mind.reserved(ask, reservation, oldest, self.now)
        self.running += reservation.tasks

    @precondition(lambda self: self.asks)
    @rule()
    def it_fails(self) -> None:
        """The backend is away."""
        assert 0 < self.mind.failed(self.asks.pop(), self.now) <= MAX_DELAY_SECONDS

    @precondition(lambda self: self.running)
    @rule()
    def a_run_ends(self) -> None:
        """Its outcome waits to be handed on."""
        self.behind.append(self.running.pop())
        self.mind.ended()

    @precondition(lambda self: self.running)
    @rule()
    def a_task_is_given_back(self) -> None:
        """It did not end."""
        self.mind.let_go(self.running.pop())

    @rule()
    def outcomes_are_handed_on(self) -> None:
        """The backend is busy with them."""
        self.recording += self.behind
        self.behind = []

    @rule()
    def outcomes_are_recorded(self) -> None:
        """They are held no more."""
        self.mind.recorded(self.recording)
        self.recording = []

    @rule()
    def something_changes(self) -> None:
        """The backend has told so."""
        self.mind.changed()

    @invariant()
    def it_asks_for_nothing_beside_a_last_attempt(self) -> None:
        """Which runs alone."""
        if any(task.is_last_attempt for task in self.held()):
            assert isinstance(self.mind.next(self.now, len(self.behind)), SleepUntil)

    @invariant()
    def it_counts_what_is_there(self) -> None:
        """Its books are those of the one that carries out."""
        assert self.mind.running == len(self.running)
        assert self.mind.is_reserving == bool(self.asks)

    def teardown(self) -> None:
        """When all has ended and the backend tells of a change, it asks for all slots: nothing is lost for ever."""
        for _ in range(len(self.asks)):
            self.mind.reserved(self.asks.pop(), found(), None, self.now)
        while self.running:
            self.a_run_ends()
        self.outcomes_are_handed_on()
        self.outcomes_are_recorded()
        self.mind.changed()
        assert self.mind.next(self.now + 3600.0, 0) == Ask(self.slots, alone=True)


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
