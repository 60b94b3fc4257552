"""When a worker takes nothing although it has room: told by numbers, without a loop or a clock."""

import logging

import pytest

from sitq.worker.admission import MAKING_ROOM_SECONDS, PAUSE_SECONDS, TRIES_TO_LOAD, Footing, LastAttempts

SLOTS = 10
TURN_SECONDS = 0.25


def wait_beside(seconds: float, *, most: float) -> tuple[float | None, float]:
    """Serves ordinary tasks that each take ``seconds`` and that never run out, beside a last attempt that waits.

    Returns when the worker became empty, ``None`` if that was not in ``most`` seconds, and for how
    long it took nothing at the longest, as a share of the time for which the last attempt had been
    waiting then.
    """
    last_attempts, running = LastAttempts(SLOTS), [0.0]
    now = quiet_from = longest = 0.0
    while now < most:
        running = [began for began in running if began + seconds > now]
        if not running:
            return now, longest
        if now >= last_attempts.quiet_until:
            if len(running) < SLOTS:
                running.append(now)
            last_attempts.seen(True, running[0], now)
            quiet_from = now
        elif now > 10 * MAKING_ROOM_SECONDS:
            longest = max(longest, (now - quiet_from) / now)
        now += TURN_SECONDS
    return None, longest


def test_room_is_made_at_once_beside_short_tasks() -> None:
    """If all tasks are short, the worker takes nothing more until it is empty."""
    assert wait_beside(0.5, most=MAKING_ROOM_SECONDS)[0] is not None


@pytest.mark.parametrize("seconds", [2.0, 10.0, 60.0, 600.0])
def test_a_last_attempt_beside_long_tasks_is_not_starved(seconds: float) -> None:
    """However long tasks take, and however many come, the worker becomes empty, and keeps none of them waiting long."""
    empty_at, longest = wait_beside(seconds, most=20 * seconds)
    assert empty_at is not None
    assert 0 < longest <= 0.11


def test_a_task_that_never_ends_keeps_the_others_waiting_for_a_moment_only() -> None:
    """An hour beside a task that began before: the worker takes nothing for the first second, and serves ever after."""
    assert wait_beside(1e9, most=3600.0) == (None, 0.0)


def test_nothing_is_kept_waiting_where_no_last_attempt_waits() -> None:
    """A reservation that left none ends the making of room."""
    last_attempts = LastAttempts(SLOTS)
    last_attempts.seen(True, 5.0, 5.0)
    assert last_attempts.quiet_until > 5.1
    last_attempts.seen(False, 5.0, 5.1)
    assert (last_attempts.since, last_attempts.quiet_until <= 5.1) == (None, True)


@pytest.mark.parametrize(("slots", "count"), [(1, 0), (2, 1), (100, 1)])
def test_it_is_said_once_that_slots_stay_empty(slots: int, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """By a worker that has several; one with a single slot has nothing to say."""
    last_attempts = LastAttempts(slots)
    for now in range(5):
        last_attempts.seen(True, now, now)
        last_attempts.say()
    said = [record for record in caplog.records if "max_attempts=1" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * count


def test_a_few_missing_modules_are_failures_and_more_are_a_pause() -> None:
    """Up to the limit tasks are failed; from then on they are given back, but for one in each pause."""
    footing, now = Footing(), 0.0
    assert [footing.gives_back(False, "app", now) for _ in range(TRIES_TO_LOAD)] == [False] * TRIES_TO_LOAD
    pauses = []
    for _ in range(2000):
        assert [footing.gives_back(False, "app", now) for _ in range(3)] == [True] * 3
        pauses.append(footing.paused_until - now)
        now = footing.paused_until
        assert not footing.gives_back(False, "app", now)
    assert pauses[:3] == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 3 * PAUSE_SECONDS]
    assert max(pauses) == 60.0


@pytest.mark.parametrize(
    ("loaded", "missing"), [(True, None), (False, "app.old")], ids=["another was loaded", "its package is there"]
)
def test_a_worker_that_stands_well_fails_what_cannot_be_loaded(loaded: bool, missing: str | None) -> None:
    """Once anything could be loaded, or a package was found of which a module is missing, nothing is given back."""
    footing = Footing()
    assert not footing.gives_back(loaded, missing, 0.0)
    assert not any(footing.gives_back(False, "gone", 0.0) for _ in range(10 * TRIES_TO_LOAD))


def test_what_fails_for_another_reason_says_nothing_of_the_place() -> None:
    """A damaged payload is failed, also in the wrong place, and is no proof of the right one."""
    footing = Footing()
    for _ in range(TRIES_TO_LOAD):
        footing.gives_back(False, "app", 0.0)
    assert not footing.gives_back(False, None, 0.0)
    assert footing.gives_back(False, "app", 0.0)
    assert "'app'" in footing.advice
