"""A backend in memory that uses every freedom that the contract leaves, as one on a server has to."""

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from examples.memory_backend import MemoryBackend, MemoryStore, Row
from sitq import BackendUnavailableError, NewTask, ReservedTask, Result
from sitq.backends.base import MAX_ID_CHARACTERS
from sitq.models import Outcome, Reservation

START_SECONDS = 2_000_000_000.0
"""What the server's clock shows at first; no host's clock does."""

LAGGING_RESERVATIONS = 2
"""How many reservations may pass by a task that was stored just now."""


class ServerClock:
    """A clock that goes on by a microsecond with each reading, and else when it is told to."""

    def __init__(self) -> None:
        self.now = START_SECONDS

    def __call__(self) -> float:
        """Returns the time in seconds since 1970."""
        self.now += 0.000_001
        return self.now


@dataclass
class Server(MemoryStore):
    """A store that can be restarted, breaks connections, and shows new tasks late.

    Attributes:
        started: How often it was started anew.
        lose_answer: Whether the next call is carried out without an answer.
        lagging: How many reservations will pass by a task yet.
        subscriptions: Who has to subscribe again after a restart.
    """

    started: int = 0
    lose_answer: bool = False
    lagging: dict[str, int] = field(default_factory=dict)
    subscriptions: dict[object, Callable[[], object]] = field(default_factory=dict)

    def restart(self) -> None:
        """Breaks every connection and every subscription."""
        self.started += 1
        with self.lock:
            self.watchers.clear()
        for subscribe in list(self.subscriptions.values()):
            subscribe()


@dataclass
class Link:
    """A connection, which belongs to one event loop."""

    loop: weakref.ref[asyncio.AbstractEventLoop]
    started: int


class ServerBackend(MemoryBackend):
    """Keeps tasks in a :class:`Server`."""

    store: Server

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.links: list[Link] = []

    async def connect(self) -> None:
        """Learns from the server how much a payload may have."""
        await super().connect()
        self.max_payload_bytes = 1_000_000

    async def leave(self) -> None:
        """Closes the connection of this loop."""
        here = asyncio.get_running_loop()
        self.links = [link for link in self.links if link.loop() is not here]

    async def _ask[T](self, call: Callable[[], Awaitable[T]]) -> T:
        """Carries out a call over the connection of this loop."""
        here = asyncio.get_running_loop()
        # A loop that has ended without leaving is noticed by the next call of any other.
        self.links = [link for link in self.links if (loop := link.loop()) is not None and not loop.is_closed()]
        link = next((link for link in self.links if link.loop() is here), None)
        if link is None:
            self.links.append(Link(weakref.ref(here), self.store.started))
        elif link.started != self.store.started:
            self.links.remove(link)
            raise BackendUnavailableError("the server was restarted")
        await asyncio.sleep(0)
        answer = await call()
        if self.store.lose_answer:
            self.store.lose_answer = False
            await self.leave()
            raise BackendUnavailableError("the connection broke; what was asked for may have been done")
        return answer

    async def enqueue(self, tasks: Sequence[NewTask]) -> None:
        """Refuses long ids, and keeps names without NUL."""
        for task in tasks:
            if len(task.task_id) > MAX_ID_CHARACTERS:
                raise ValueError(f"an id has at most {MAX_ID_CHARACTERS} characters")
        cleaned = [task._replace(name=_cleaned(task.name) or "") for task in tasks]
        await self._ask(lambda: super(ServerBackend, self).enqueue(cleaned))
        self._lag(tasks)

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Knows nothing of what comes."""
        found = await self._ask(lambda: super(ServerBackend, self).reserve(limit, lease=lease, alone=alone))
        self.store.lagging = {task_id: left - 1 for task_id, left in self.store.lagging.items() if left > 1}
        return replace(found, next_due_in=None, last_attempt_waiting=False)

    async def renew(self, tasks: Sequence[ReservedTask], *, lease: float) -> Sequence[ReservedTask]:
        """As in memory."""
        return await self._ask(lambda: super(ServerBackend, self).renew(tasks, lease=lease))

    async def release(self, tasks: Sequence[ReservedTask]) -> Sequence[ReservedTask]:
        """As in memory, but later."""
        not_held = await self._ask(lambda: super(ServerBackend, self).release(tasks))
        self._lag([task for task in tasks if task not in not_held])
        return not_held

    async def mark_success(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """As in memory."""
        return await self._ask(lambda: super(ServerBackend, self).mark_success(outcomes))

    async def mark_failure(self, outcomes: Sequence[Outcome]) -> Sequence[ReservedTask]:
        """Keeps texts without NUL."""
        cleaned = [
            outcome._replace(error=_cleaned(outcome.error), traceback=_cleaned(outcome.traceback))
            for outcome in outcomes
        ]
        return await self._ask(lambda: super(ServerBackend, self).mark_failure(cleaned))

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """As in memory."""
        return await self._ask(lambda: super(ServerBackend, self).get_result(task_id))

    def _lag(self, tasks: Sequence[NewTask | ReservedTask]) -> None:
        self.store.lagging |= {task.task_id: LAGGING_RESERVATIONS for task in tasks}

    def _due(self, now: float) -> list[Row]:
        return [row for row in super()._due(now) if row.task.task_id not in self.store.lagging]

    @contextlib.contextmanager
    def watch(self, on_change: Callable[[], object], *, task_id: str | None = None) -> Iterator[None]:
        """Begins some turns of the loop later, and calls then."""
        key, loop = object(), asyncio.get_running_loop()

        def subscribe(turns: int = 3) -> None:
            if key not in self.store.subscriptions:
                return
            if turns:
                loop.call_soon(subscribe, turns - 1)
                return
            with self.store.lock:
                self.store.watchers[key] = task_id, loop, self._while_inside(key, on_change)
            on_change()

        self.store.subscriptions[key] = lambda: loop.call_soon_threadsafe(subscribe)
        subscribe()
        try:
            yield
        finally:
            del self.store.subscriptions[key]
            with self.store.lock:
                self.store.watchers.pop(key, None)


def _cleaned(text: str | None) -> str | None:
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")
