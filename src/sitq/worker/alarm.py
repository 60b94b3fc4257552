"""What wakes a worker that has nothing to do."""

import asyncio
import contextlib
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sitq.backends.base import Backend


class Alarm:
    """Sleeps until a moment, until something happens in the worker, or until the backend has changed.

    Args:
        backend: What is watched, from :meth:`watch` on.
        on_change: Called, before the sleep ends, when another reservation may find something.
    """

    def __init__(self, backend: Backend, on_change: Callable[[], object]) -> None:
        self._backend = backend
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._watch = contextlib.ExitStack()
        self.is_watching = False
        """Whether the backend is watched."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.unwatch()

    def ring(self) -> None:
        """Ends the sleep, or the next one."""
        self._rung.set()

    def watch(self) -> None:
        """Rings when the backend has changed from now on."""
        self._watch.enter_context(self._backend.watch(self._changed))
        self.is_watching = True

    def unwatch(self) -> None:
        """Does not ring for the backend any more: a worker that has enough to do costs the others no wake-up."""
        self._watch.close()
        self.is_watching = False

    def clear(self) -> None:
        """Takes what rang so far as heard; called before it is decided what to do."""
        self._rung.clear()

    async def sleep_until(self, moment: float) -> None:
        """Sleeps until it rings; at ``moment`` of the loop's clock it rings by itself, as for a change."""
        timer = None if moment == math.inf else self._loop.call_at(moment, self._changed)
        try:
            await self._rung.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def wait_for(self, condition: Callable[[], bool], timeout: float | None, step: Callable[[], object]) -> None:
        """Waits until ``condition`` holds, at most ``timeout`` seconds; calls ``step`` each time that it rings."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    self._rung.clear()
                    step()
                    if not condition():
                        await self._rung.wait()

    def _changed(self) -> None:
        self._on_change()
        self._rung.set()
