"""How long to wait before something is tried again."""


class Delays:
    """Delays that double, from the first to the longest one.

    Args:
        first: Seconds of the first delay.
        maximum: Seconds that no delay exceeds; ``math.inf`` if they may grow for ever.
    """

    __slots__ = ("_first", "_maximum", "_next")

    def __init__(self, first: float, maximum: float) -> None:
        self._first = first
        self._maximum = maximum
        self._next = first

    def next(self) -> float:
        """Returns the seconds to wait now; the call after this one returns twice as many."""
        delay = self._next
        self._next = min(2 * delay, self._maximum)
        return delay

    def reset(self) -> None:
        """Begins with the first delay again."""
        self._next = self._first
