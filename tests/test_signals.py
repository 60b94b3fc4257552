"""What becomes of the signals that end a process: the first, the same one again, and a second one."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from sitq._signals import STOP_SIGNALS, stop_signals

HOUR = 3600.0
AT_ONCE = -1.0
"""No signal counts as the one before it."""


@pytest.fixture(autouse=True)
def handlers_put_back() -> Iterator[None]:
    """Puts back the handlers from before the test, whatever it does."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def seconds_of(*numbers: signal.Signals, same_seconds: float, same_number: bool) -> int:
    """Returns how often a second signal was seen when these came one after the other."""
    count = 0

    def on_second() -> bool:
        nonlocal count
        count += 1
        return False

    with stop_signals(lambda _: None, same_seconds=same_seconds, same_number=same_number, on_second=on_second):
        for number in numbers:
            signal.raise_signal(number)
    return count


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_the_first_signal_calls_back_on_the_loop(number: signal.Signals) -> None:
    """Once, and at a turn of the loop, however often it comes."""
    received: list[signal.Signals] = []
    with stop_signals(received.append, same_seconds=HOUR):
        for _ in range(3):
            signal.raise_signal(number)
        assert received == []
        await asyncio.sleep(0)
    assert received == [number]


@pytest.mark.parametrize(
    ("numbers", "same_seconds", "same_number", "count"),
    [
        ((signal.SIGTERM, signal.SIGTERM), HOUR, True, 0),
        ((signal.SIGTERM, signal.SIGTERM), AT_ONCE, True, 1),
        ((signal.SIGTERM, signal.SIGINT), HOUR, True, 1),
        ((signal.SIGTERM, signal.SIGINT), HOUR, False, 0),
        ((signal.SIGTERM, signal.SIGINT), AT_ONCE, False, 1),
        ((signal.SIGINT, signal.SIGTERM, signal.SIGINT), AT_ONCE, False, 2),
    ],
)
async def test_a_second_signal_is_told_from_the_same_one(
    numbers: tuple[signal.Signals, ...], same_seconds: float, same_number: bool, count: int
) -> None:
    """By its time and, if asked for, by its number."""
    assert await seconds_of(*numbers, same_seconds=same_seconds, same_number=same_number) == count


@pytest.mark.parametrize("came", [False, True])
@pytest.mark.parametrize("ignored_after", [False, True])
async def test_the_handlers_are_put_back_or_the_signals_ignored(ignored_after: bool, came: bool) -> None:
    """They are ignored only if that was asked for and one has come."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with stop_signals(lambda _: None, same_seconds=HOUR, ignored_after=ignored_after):
        if came:
            signal.raise_signal(signal.SIGTERM)
    after = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    assert after == (dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN) if ignored_after and came else before)
