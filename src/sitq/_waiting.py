"""Waiting until tasks have ended: one of them, or many with one look and one watch for all."""

import asyncio
import functools
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from sitq.backends.base import Backend
from sitq.backends.many import Ended, ManyResults
from sitq.errors import BackendError
from sitq.models import FINISHED, Result

QUERY_AGAIN_SECONDS = 5.0
"""How often a caller that waits for a result asks the backend, in case that its watch fails. Usually it is
woken when the result is written."""

QUERIED_AGAIN = 1_000
"""How many tasks are asked for in that time; if there are more, it takes as much longer."""

MAX_PIECE = 500
"""How many tasks are looked at in one call, so that the results of few are in memory at a time, and neither
the event loop nor other callers of the backend have to wait for long."""

MAX_CONCURRENT = 20
"""How many tasks are asked for at the same time if the backend has no call for many."""


async def until_ended(backend: Backend, task_id: str, timeout: float | None) -> Result[bytes] | None:
    """Waits until a task is finished or gone and returns what is known of it; ``None`` if it takes longer."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (math.inf if timeout is None else timeout)
    with backend.watch(changed.set, task_id=task_id):
        while True:
            changed.clear()
            found = await backend.get_result(task_id)
            if found is None or found.status in FINISHED:
                return found
            left = min(QUERY_AGAIN_SECONDS, deadline - loop.time())
            if left <= 0:
                return None
            timer = loop.call_later(left, changed.set)
            try:
                await changed.wait()
            finally:
                timer.cancel()


class Wait:
    """Gives the results of many tasks as they end.

    All of them are looked at once, under a watch; from then on those only of which something was heard. A call
    that fails or is cancelled loses nothing: the next one goes on from there.

    Args:
        backend: Where the tasks are.
        task_ids: Their ids.
        timeout: Seconds from now on; ``0`` looks at each task once and ``None`` waits until all have ended.
    """

    def __init__(self, backend: Backend, task_ids: Iterable[str], timeout: float | None) -> None:
        self._backend = backend
        self._many = backend if isinstance(backend, ManyResults) else None
        self._left: dict[str, None] = dict.fromkeys(task_ids)
        self._to_look_at = self._left.copy()
        self._changed = asyncio.Event()
        self._deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        self._is_last_look = timeout == 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watches: dict[str | None, AbstractContextManager[None]] = {}  # that for all of them under None

    @property
    def left(self) -> int:
        """How many of the tasks are not known to have ended."""
        return len(self._left)

    async def ended(self) -> Sequence[Result[bytes]] | None:
        """Waits until a task ends, and returns the results of those that have.

        Returns:
            Nothing if none is left, because all are finished or unknown; ``None`` if the time is over.

        Raises:
            BackendError: The backend could not be asked, or this is another event loop.
        """
        if self._loop not in (None, loop := asyncio.get_running_loop()):
            self.leave()
            raise BackendError("the queue was closed while these results were waited for")
        self._loop = loop
        while self._left:
            if not self._to_look_at:
                if self._is_last_look:
                    self.leave()
                    return None
                await self._change(loop)
            if results := await self._look():
                return results
        self.leave()
        return ()

    def leave(self) -> None:
        """Ends the watch; from any thread, and as often as one likes."""
        watches, self._watches = [*self._watches.values()], {}
        if self._loop is None or not watches:
            return
        if asyncio._get_running_loop() is not self._loop:
            try:
                self._loop.call_soon_threadsafe(_leave, watches)
                return
            except RuntimeError:  # it is closed, and so nobody is in the way
                pass
        _leave(watches)

    def give_up(self) -> None:
        """Waits for none of the tasks any more."""
        self._left.clear()
        self._to_look_at.clear()
        self._changed.set()
        self.leave()

    def _on_change(self, task_id: str) -> None:
        if task_id in self._left:
            self._to_look_at[task_id] = None
            self._changed.set()

    async def _change(self, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when there is something to look at."""
        self._changed.clear()
        pause = QUERY_AGAIN_SECONDS * max(1.0, len(self._left) / QUERIED_AGAIN)
        seconds = min(pause, self._deadline - time.monotonic())
        if seconds > 0:
            timer = loop.call_later(seconds, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()
        if not self._to_look_at:
            self._is_last_look = time.monotonic() >= self._deadline
            self._to_look_at = self._left.copy()

    async def _look(self) -> Sequence[Result[bytes]]:
        """Looks at some of the tasks and returns the results of those that are finished."""
        piece = [*itertools.islice(self._to_look_at, MAX_CONCURRENT if self._many is None else MAX_PIECE)]
        if not self._is_last_look:
            self._watch(piece)
        for task_id in piece:  # before the query: what is heard of it meanwhile counts
            del self._to_look_at[task_id]
        try:
            ended = await self._read(piece)
        except BaseException:
            self._look_again(piece)
            raise
        self._look_again(ended.left)
        for task_id in ended.results:
            self._left.pop(task_id, None)
            self._to_look_at.pop(task_id, None)
            if (watch := self._watches.pop(task_id, None)) is not None:
                _leave((watch,))
        return [result for result in ended.results.values() if result is not None]

    def _look_again(self, task_ids: Iterable[str]) -> None:
        self._to_look_at.update((task_id, None) for task_id in task_ids if task_id in self._left)

    async def _read(self, task_ids: Sequence[str]) -> Ended:
        if self._many is not None:
            return await self._many.get_results(task_ids)
        asked = (self._backend.get_result(task_id) for task_id in task_ids)
        answers = await asyncio.gather(*asked, return_exceptions=True)  # so that none is under way after an error
        found: dict[str, Result[bytes] | None] = {}
        for task_id, answer in zip(task_ids, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if answer is None or answer.status in FINISHED:
                found[task_id] = answer
        return Ended(found)

    def _watch(self, task_ids: Sequence[str]) -> None:
        if self._many is not None:
            if None not in self._watches:
                self._enter(None, self._many.watch_results(self._on_change, self._left))
            return
        for task_id in task_ids:
            if task_id not in self._watches:
                on_change = functools.partial(self._on_change, task_id)
                self._enter(task_id, self._backend.watch(on_change, task_id=task_id))

    def _enter(self, task_id: str | None, watch: AbstractContextManager[None]) -> None:
        watch.__enter__()
        self._watches[task_id] = watch


def _leave(watches: Iterable[AbstractContextManager[None]]) -> None:
    for watch in watches:
        watch.__exit__(None, None, None)
