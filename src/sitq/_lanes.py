"""Named queues, as ``TaskQueue`` and ``SyncTaskQueue`` show, pause and resume them, and a worker selects them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sitq._checks import check_known_queue, check_queues
from sitq._portal import Portal
from sitq.backends.base import Backend
from sitq.backends.lanes import Lane, Lanes
from sitq.errors import BackendError


class LaneOperations:
    """Mixed into ``TaskQueue``; the backend has to offer ``Lanes``."""

    _backend: Backend
    _connected: bool
    if TYPE_CHECKING:

        async def _connect(self) -> None: ...

    async def pause(self, queue: str) -> None:
        """Has no worker take tasks of a queue from now on, in any process, until it is resumed.

        It is kept with the tasks. What runs already goes on, and tasks can be enqueued. Pausing a queue twice
        changes nothing.

        Args:
            queue: The name of the queue; ``"default"`` for the tasks that were given none.

        Raises:
            TypeError: ``queue`` is not a ``str``.
            ValueError: ``queue`` is not a name of a queue.
            BackendError: The backend did not do it, or has no named queues.
        """
        name = check_known_queue(queue)
        await (await self._laned()).pause(name)

    async def resume(self, queue: str) -> None:
        """Lets workers take tasks of a queue again, and wakes them. Nothing to do if it is not paused.

        Args:
            queue: The name of the queue; ``"default"`` for the tasks that were given none.

        Raises:
            TypeError: ``queue`` is not a ``str``.
            ValueError: ``queue`` is not a name of a queue.
            BackendError: The backend did not do it, or has no named queues.
        """
        name = check_known_queue(queue)
        await (await self._laned()).resume(name)

    async def lanes(self) -> Sequence[Lane]:
        """Returns what waits and runs in each queue at each priority, and which queues are paused.

        By the name of the queue, which is empty for the default one, the higher priority first. The backend
        may have to read every unfinished task for it.

        Raises:
            BackendError: The backend could not be asked, or has no named queues.
        """
        return await (await self._laned()).lanes()

    async def _laned(self) -> Lanes:
        backend = laned(self._backend)
        if not self._connected:
            await self._connect()
        return backend


class SyncLaneOperations:
    """Mixed into ``SyncTaskQueue``."""

    _queue: LaneOperations
    _portal: Portal

    def pause(self, queue: str) -> None:
        """Has no worker take tasks of a queue from now on; see :meth:`TaskQueue.pause`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        self._portal.call(lambda: self._queue.pause(queue))

    def resume(self, queue: str) -> None:
        """Lets workers take tasks of a queue again; see :meth:`TaskQueue.resume`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        self._portal.call(lambda: self._queue.resume(queue))

    def lanes(self) -> Sequence[Lane]:
        """Returns what waits and runs in each queue at each priority; see :meth:`TaskQueue.lanes`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(self._queue.lanes)


def laned(backend: object) -> Lanes:
    """Returns ``backend`` if it has named queues.

    Raises:
        BackendError: It has none.
    """
    if not isinstance(backend, Lanes):
        raise BackendError(
            f"{type(backend).__name__} has no named queues: it does not offer what sitq.backends.lanes.Lanes "
            "describes; a worker of it serves all tasks, without queues="
        )
    return backend


def select_queues(backend: Backend, queues: Iterable[str] | None) -> Backend:
    """Returns ``backend``, or a view of it that gives out tasks of these queues only.

    Raises:
        TypeError: ``queues`` is no list of ``str``.
        ValueError: It is empty, or holds what is no name of a queue, or one twice.
        BackendError: It has no named queues.
    """
    if queues is None:
        return backend
    names = check_queues(queues)
    view: object = laned(backend).select(names)
    assert isinstance(view, Backend)
    return view
