"""A clock that a test can move."""

from datetime import UTC, datetime, timedelta

from sitq._checks import check_seconds
from sitq.models import now_seconds


class ManualClock:
    """The host's time, put ahead by as much as a test says: a ``clock`` for ``SQLiteBackend``.

    It goes on by itself like the host's. So an ``eta`` that the code under test worked out from
    ``datetime.now(UTC)`` is due once the clock was advanced as far, however long the test took.
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        """Returns the time in seconds since 1970 UTC."""
        return now_seconds() + self._ahead

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.now().isoformat()})"

    def now(self) -> datetime:
        """Returns the time (aware, UTC)."""
        return datetime.fromtimestamp(self(), UTC)

    def advance(self, by: timedelta | float) -> None:
        """Puts the clock ahead.

        Args:
            by: How far, as a ``timedelta`` or in seconds.

        Raises:
            TypeError: ``by`` is neither.
            ValueError: ``by`` is negative or not finite.
        """
        if isinstance(by, timedelta):
            by = by.total_seconds()
        self._ahead += check_seconds("by", by)

    def advance_to(self, moment: datetime) -> None:
        """Puts the clock ahead to ``moment``, which is then over.

        Raises:
            TypeError: ``moment`` is not a datetime.
            ValueError: ``moment`` is naive, or earlier than the clock.
        """
        if not isinstance(moment, datetime):
            raise TypeError(f"moment must be a datetime, not {type(moment).__name__}")
        if moment.utcoffset() is None:
            raise ValueError(f"moment must be timezone-aware, and {moment!r} is naive: write datetime(..., tzinfo=UTC)")
        by = moment.timestamp() - self()
        if by < 0:
            raise ValueError(f"moment is {-by:.6f} seconds earlier than the clock, which does not go back")
        # A float of this size has steps of a quarter of a microsecond: one more, or it may fall short.
        self._ahead += by + 0.000_001
