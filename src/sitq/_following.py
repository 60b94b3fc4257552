"""How far a task has come, as ``TaskQueue`` and ``SyncTaskQueue`` tell it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING

from sitq._checks import refuse_running_loop
from sitq._portal import Portal
from sitq.backends.base import Backend
from sitq.backends.progressing import Progress, Progressing
from sitq.errors import BackendError
from sitq.models import FINISHED

LOOK_SECONDS = 1.0
"""How often who follows a task asks the backend: reports of other processes are announced to nobody."""


class Following:
    """Mixed into ``TaskQueue``; the backend has to be ``Progressing``."""

    _backend: Backend
    _connected: bool
    if TYPE_CHECKING:

        async def _connect(self) -> None: ...

    async def progress(self, task_id: str) -> Progress | None:
        """Returns the last report of a task's latest run, see :func:`sitq.progress`.

        ``None``: it has reported nothing, or there is no such task.

        Raises:
            TypeError: ``task_id`` is not a ``str``.
            BackendError: The backend could not be asked, or does not keep reports.
        """
        backend = _progressing(self._backend, task_id)
        if not self._connected:
            await self._connect()
        return await backend.progress(task_id)

    def follow(self, task_id: str) -> AsyncIterator[Progress]:
        """Gives the latest report of a task, and each one that differs from it, until the task is finished.

        If the task is tried again, it goes on with the reports of the next run. For an unknown task there are none.

        Raises:
            TypeError: ``task_id`` is not a ``str``.
            BackendError: The backend could not be asked, or does not keep reports.
        """
        return self._follow(_progressing(self._backend, task_id), task_id)

    async def _follow(self, backend: Progressing, task_id: str) -> AsyncGenerator[Progress]:
        if not self._connected:
            await self._connect()
        changed = asyncio.Event()
        last = None
        with self._backend.watch(changed.set, task_id=task_id):
            while True:
                changed.clear()
                found = await self._backend.get_result(task_id)
                progress = await backend.progress(task_id)  # after it: what the task has reported last is given, too
                if progress is not None and progress != last:
                    last = progress
                    yield progress
                if found is None or found.status in FINISHED:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await changed.wait()


class SyncFollowing:
    """Mixed into ``SyncTaskQueue``."""

    _queue: Following
    _portal: Portal

    def progress(self, task_id: str) -> Progress | None:
        """Returns the last report of a task's latest run; see :meth:`TaskQueue.progress`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        return self._portal.call(lambda: self._queue.progress(task_id))

    def follow(self, task_id: str) -> Iterator[Progress]:
        """Gives the reports of a task until it is finished; see :meth:`TaskQueue.follow`.

        Raises:
            RuntimeError: An event loop runs in this thread.
        """
        refuse_running_loop()
        return self._follow(self._queue._follow(_progressing(self._queue._backend, task_id), task_id))

    def _follow(self, reports: AsyncGenerator[Progress]) -> Iterator[Progress]:
        async def following() -> Progress | None:
            return await anext(reports, None)

        try:
            while (progress := self._portal.call(following)) is not None:
                yield progress
        finally:
            # Not if an event loop runs here, in which this is collected as garbage, or if the queue was closed.
            with contextlib.suppress(RuntimeError, BackendError):
                self._portal.call(reports.aclose)


def _progressing(backend: Backend, task_id: str) -> Progressing:
    if not isinstance(task_id, str):
        raise TypeError(f"task_id must be a str, not {type(task_id).__name__}")
    if not isinstance(backend, Progressing):
        raise BackendError(
            f"{type(backend).__name__} does not keep how far tasks have come: it does not offer what "
            "sitq.backends.progressing.Progressing describes"
        )
    return backend
