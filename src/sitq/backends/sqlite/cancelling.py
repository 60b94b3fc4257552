"""Ending tasks that run: what ``SQLiteBackend`` offers as ``Cancelling``.

Beside the hot path. What the file is given for it stands in ``asking``, how tasks are changed by hand in ``mending``.
"""

from collections.abc import Sequence
from typing import Protocol

from sitq.backends.sqlite import asking, mending
from sitq.backends.sqlite.jobs import ReadJob
from sitq.backends.sqlite.listing import Connected


class _Backend(Protocol):
    """What is needed of the backend."""

    def _connected(self) -> Connected: ...


class Cancellation:
    """Mixed into ``SQLiteBackend``; see :class:`~sitq.backends.cancelling.Cancelling`."""

    async def ask(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Asks tasks in progress to end; returns the ids of those that are asked. 500 in a transaction."""
        return await mending.change(self._connected(), "ask", task_ids)

    async def asked(self: _Backend) -> Sequence[tuple[int | str, int | str]]:
        """Returns key and claim of every task in progress that was asked to end."""
        return await self._connected().call(ReadJob(lambda sqlite, _: asking.asked(sqlite)))

    async def cut(self: _Backend, task_ids: Sequence[str]) -> Sequence[str]:
        """Finishes tasks in progress as cancelled; returns the ids of those. 500 in a transaction."""
        return await mending.change(self._connected(), "cut", task_ids)
