"""How long to wait before the next try."""


class Delays:
    """Delays that double from one try to the next.

    Args:
        first: The first delay, in seconds.
        maximum: The longest one, in seconds.
    """

    def __init__(self, first: float, maximum: float) -> None:
        self._first = first
        self._maximum = maximum
        self._next = first

    def next(self) -> float:
        """Returns the delay before the next try, in seconds."""
        delay, self._next = self._next, min(2 * self._next, self._maximum)
        return delay

    def reset(self) -> None:
        """Begins with the first delay again, because a try has succeeded."""
        self._next = self._first
