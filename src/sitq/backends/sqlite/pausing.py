"""Views of some queues, pausing, and the lanes of a file: what ``SQLiteBackend`` offers as ``Lanes``."""

import math
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

from sitq._checks import check_seconds
from sitq.backends.lanes import Lane
from sitq.backends.sqlite.abilities import abilities
from sitq.backends.sqlite.changes import Change
from sitq.backends.sqlite.choosing import STRICT_MICROS, Selection
from sitq.backends.sqlite.jobs import DUE, Job, ReadJob, ReserveState, Topic, micros
from sitq.backends.sqlite.lanes import LANES, Pause, Resume, live_rows
from sitq.backends.sqlite.listing import Connected
from sitq.backends.sqlite.statements import Notes, fetch_all

_COLUMNS = "ifnull(queue, '') AS queue, ifnull(priority, 0) AS priority, status, available_at"
_WAITS, _IS_DUE = "status = 'pending'", "available_at <= ?1"
_COUNTS = f"""
    SELECT queue, priority,
        count(*) FILTER (WHERE {_WAITS}),
        count(*) FILTER (WHERE {_WAITS} AND {_IS_DUE}),
        count(*) FILTER (WHERE NOT {_WAITS} AND NOT {_IS_DUE}),
        count(*) FILTER (WHERE NOT {_WAITS} AND {_IS_DUE}),
        min(available_at) FILTER (WHERE {_WAITS} AND {_IS_DUE})
    FROM ({{rows}}) GROUP BY queue, priority ORDER BY queue, priority DESC
"""
_SELECT, _SELECT_IN_LANES = (
    _COUNTS.format(rows=" UNION ALL ".join(f"SELECT {_COLUMNS} FROM {each}" for each in live_rows(has_lanes=has_lanes)))
    for has_lanes in (False, True)
)


class _SetJob(Job[None]):
    """Pauses or resumes a queue."""

    writes = True
    synced = True  # like an enqueue: what an operator was told must not be undone by a power cut
    abilities = (LANES,)

    def __init__(self, change: Pause | Resume) -> None:
        super().__init__()
        self._change = change

    def changes(self, now: int) -> Iterable[Change]:
        """Gives it."""
        return (self._change,)

    def read(self, sqlite: sqlite3.Connection, now: int, notes: Notes) -> None:
        """Returns nothing."""

    def notifies(self, result: None) -> Iterable[Topic]:
        """Wakes workers if they may find something."""
        return (DUE,) if isinstance(self._change, Resume) else ()


class _Backend(Protocol):
    """What is needed of the backend."""

    def _connected(self) -> Connected: ...


class ShownLanes:
    """What can be asked of a file that may only be read."""

    async def lanes(self: _Backend) -> Sequence[Lane]:
        """Returns the lanes that hold unfinished tasks, and the paused queues. Reads every unfinished task."""
        return await self._connected().call(ReadJob(_lanes))


class LaneOperations(ShownLanes):
    """Mixed into ``SQLiteBackend``; see :class:`~sitq.backends.lanes.Lanes`."""

    _reserve_state: ReserveState

    def select(self, queues: Sequence[str] | None, head_start: float | None = None) -> Self:
        """Returns a view of the same file whose ``reserve`` gives out tasks of these queues only.

        Args:
            queues: Their names, the default queue's is empty; ``None`` for all of them.
            head_start: Seconds for each step of priority, ``inf`` for a strict order; ``None`` as this
                backend has it.

        Raises:
            TypeError: ``head_start`` is not a number.
            ValueError: ``head_start`` is negative, not a number, or longer than a hundred years.
        """
        state = self._reserve_state
        step = state.selection.head_start if head_start is None else check_head_start(head_start)
        # Of a class of the same kind: what a backend offers is asked for by isinstance(), and a subclass of
        # a user's own keeps what it overrides.
        whole: Any = self._whole if isinstance(self, _View) else self
        kind: Any = type(type(whole).__name__, (_View, type(whole)), {})
        view: Any = kind.__new__(kind)
        vars(view).update(vars(whole))
        view._whole = whole
        view._reserve_state = ReserveState(state.pruning, Selection(None if queues is None else tuple(queues), step))
        found: Self = view
        return found

    async def pause(self: _Backend, queue: str) -> None:
        """Has nobody take tasks of ``queue`` from now on, in any process; it is stored in the file.

        Raises:
            BackendError: The file did not take it.
        """
        await self._connected().call(_SetJob(Pause(queue)))

    async def resume(self: _Backend, queue: str) -> None:
        """Ends a pause, and wakes workers.

        Raises:
            BackendError: The file did not take it.
        """
        if await self._connected().call(ReadJob(lambda sqlite, _: queue in _paused(sqlite))):
            await self._connected().call(_SetJob(Resume(queue)))


class _View:
    """What a view does not do by itself: it has no file of its own, and counts no users."""

    _whole: Any

    async def connect(self) -> None:
        await self._whole.connect()

    async def close(self) -> None:
        await self._whole.close()

    def _connected(self) -> Connected:
        found: Connected = self._whole._connected()
        return found


def check_head_start(seconds: float) -> int:
    """Returns a head start in microseconds.

    Raises:
        TypeError: ``seconds`` is not a number.
        ValueError: ``seconds`` is negative, not a number, or finite and longer than a hundred years.
    """
    return STRICT_MICROS if seconds == math.inf else micros(check_seconds("head_start", seconds))


def _paused(sqlite: sqlite3.Connection) -> set[str]:
    if LANES.name not in abilities(sqlite):
        return set()
    return {queue for (queue,) in fetch_all(sqlite, "SELECT queue FROM paused")}


def _lanes(sqlite: sqlite3.Connection, now: int) -> Sequence[Lane]:
    paused, found = _paused(sqlite), []
    for row in fetch_all(sqlite, _SELECT_IN_LANES if LANES.name in abilities(sqlite) else _SELECT, (now,)):
        queue, priority, waiting, due, running, abandoned, oldest = row
        seconds = None if oldest is None else (now - oldest) / 1_000_000
        found.append(Lane(queue, priority, waiting, due, running, abandoned, seconds, queue in paused))
    empty = paused - {lane.queue for lane in found}
    found += [Lane(queue, 0, 0, 0, 0, 0, None, paused=True) for queue in empty]
    return sorted(found, key=lambda lane: (lane.queue, -lane.priority))
