"""Whether, why and how fast a worker ends."""

import asyncio


class Shutdown:
    """The end of one run of a worker; made in the task that runs it.

    Attributes:
        is_begun: Whether nothing new is taken any more.
        was_requested: Whether somebody asked for it who may. Otherwise the end is a death like any
            other: what is not finished is not given back, or a task that ends the loop or cancels
            everything would be run for ever.
        is_cut_short: Whether what runs is waited for no longer.
        is_cancelling: Whether what runs has been cancelled by the worker.
        error: What ends the worker; ``None`` as long as nothing has gone wrong.
    """

    def __init__(self) -> None:
        self._owner = asyncio.current_task()
        self.is_begun = False
        self.was_requested = False
        self.is_cut_short = False
        self.is_cancelling = False
        self.error: Exception | None = None

    @property
    def is_due(self) -> bool:
        """Whether the worker is to take nothing more."""
        return self.is_begun or self.error is not None

    def request(self) -> None:
        """Begins the end, on behalf of somebody who may ask for it."""
        # Not after the end has begun by itself: who follows that up with a stop() did not ask for it.
        self.was_requested |= not (self.is_begun or self.was_cancelled())
        self.is_begun = True

    def fail(self, error: Exception) -> None:
        """Ends the worker with ``error``, unless it ends with another one already."""
        self.error = self.error or error

    def was_cancelled(self) -> bool:
        """Whether a task that was cancelled was not cancelled by itself, but with its worker."""
        # Not Task.cancelling() of the task's own: it counts what the task does to itself, too.
        return self.is_cancelling or bool(self._owner and self._owner.cancelling())
