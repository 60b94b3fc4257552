"""The protocol of what runs plain functions beside a worker's event loop."""

import asyncio
from typing import Any, Protocol, runtime_checkable

from sitq.models import ReservedTask
from sitq.serializers.calls import Call

type Returned = tuple[Any, BaseException | None]
"""What a function returned, or what it raised."""


class NoThreadError(RuntimeError):
    """The system has no thread left to run a function in; the function was not run."""


@runtime_checkable
class Pool(Protocol):
    """Runs the plain functions of one start of a worker."""

    def submit(self, task: ReservedTask, call: Call) -> asyncio.Future[Returned]:
        """Runs ``call`` and returns the future of what it returned or raised.

        The future itself raises nothing. Cancelling it does not end the call.

        Args:
            task: The task that the call is of.
            call: What to run; its function is no coroutine function.

        Raises:
            NoThreadError: The call cannot be begun, and will not be run.
        """
        ...

    def close(self) -> None:
        """Takes no more calls. Those under way go on, and what they return changes nothing."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Says where the plain functions of a worker run. May be given to several workers."""

    def start(self, slots: int) -> Pool:
        """Makes the pool for one start of a worker; called in that worker's event loop.

        Args:
            slots: How many tasks the worker runs at the same time.
        """
        ...
