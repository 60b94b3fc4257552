"""Looking at what runs, every now and then."""

import asyncio
from collections.abc import Callable


class Looking:
    """Calls a function again and again, from the entry to the exit.

    By a timer and not by a task: nothing has to be awaited at the exit, and nothing is left pending if the
    loop is closed under it.

    Args:
        seconds: Between two calls.
        look: Is called in the event loop; must be quick and must not raise.
    """

    def __init__(self, seconds: float, look: Callable[[], object]) -> None:
        self._seconds = seconds
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._wait()

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._turn)

    def _turn(self) -> None:
        self._wait()
        self._look()
