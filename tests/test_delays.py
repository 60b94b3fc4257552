"""The delays between two tries of the same thing."""

import math

from sitq._delays import Delays


def test_each_delay_is_twice_the_one_before_up_to_a_maximum() -> None:
    """The longest one is given again and again."""
    delays = Delays(0.1, 0.5)
    assert [delays.next() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_after_a_reset_the_delays_begin_anew() -> None:
    """Whatever had come before it."""
    delays = Delays(1.0, math.inf)
    assert [delays.next() for _ in range(3)] == [1.0, 2.0, 4.0]
    delays.reset()
    assert [delays.next() for _ in range(2)] == [1.0, 2.0]
