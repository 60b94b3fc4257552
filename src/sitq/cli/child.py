"""One worker process of ``sitq worker``; the supervisor starts it, as ``python -m sitq.cli.child``."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sitq import (
    BackendCorruptError,
    BackendError,
    BackendReadOnlyError,
    BackendVersionError,
    Serializer,
    SQLiteBackend,
    Worker,
)
from sitq.cli.loading import NotLoadedError, import_modules, load_serializer

logger = logging.getLogger("sitq.cli.child")  # not __name__, which is __main__ in the process itself

EXIT_GRACE_SECONDS = 1.0
"""How long the interpreter may take to exit after the worker has ended in time."""

UNUSABLE_STATUS = 78
"""EX_CONFIG of sysexits.h: another process would end as this one did."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What a worker process is told, as JSON.

    Attributes:
        path: The queue file.
        concurrency: The tasks that it runs at the same time.
        shutdown_timeout: Seconds to wait for running tasks when it ends; ``None``: all they take.
        lease: Seconds after which others may take what it no longer renews.
        retention: Seconds that finished tasks are kept, or ``"forever"``; ``None`` as was chosen for
            the file.
        retention_failed: The same for failed tasks.
        modules: What it imports before it takes a task.
        serializer: The import path of the serializer; ``None`` for the default one.
        quiet: Whether it logs warnings only.
        log_exceptions: Whether it logs a failed task with its exception and the traceback.
        queues: The names of the queues that it serves, the default one's is empty; none for all.
        check: Whether it only sees if the serializer can be loaded.
        label: What it is called in the log.
        lifeline: A descriptor that comes to its end when the supervisor ends or dies; ``None``
            if descriptors cannot be handed on.
    """

    path: str
    concurrency: int
    shutdown_timeout: float | None
    lease: float
    retention: float | str | None
    retention_failed: float | str | None = None
    modules: Sequence[str] = ()
    serializer: str | None = None
    quiet: bool = False
    log_exceptions: bool = False
    queues: Sequence[str] = ()
    check: bool = False
    label: str = "worker"
    lifeline: int | None = None

    def command(self) -> list[str]:
        """Returns the command that starts the process."""
        return [sys.executable, "-m", "sitq.cli.child", json.dumps(asdict(self))]


def configure_logging(label: str, *, quiet: bool) -> None:
    """Sends log records to the standard error stream, one in a line."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter(f"%(asctime)s %(levelname)-7s {label}: %(message)s")
    formatter.default_msec_format = "%s.%03d"
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING if quiet else logging.INFO)


def add_current_folder() -> None:
    """Lets tasks be imported from the current folder, as if Python had been started there."""
    folder = os.getcwd()
    if folder not in sys.path:  # if PYTHONSAFEPATH is set
        sys.path.insert(0, folder)


def main() -> None:
    """Runs a worker until it is told to stop; the status is 1 if the file cannot be used.

    It is 78 if that will not change by trying again.
    """
    settings = ChildSettings(**json.loads(sys.argv[1]))
    configure_logging(settings.label, quiet=settings.quiet)
    add_current_folder()
    try:
        if not settings.check:
            import_modules(settings.modules)
        serializer = None if settings.serializer is None else load_serializer(settings.serializer)
        if not settings.check:
            asyncio.run(_serve(settings, serializer))
    except (NotLoadedError, BackendReadOnlyError, BackendCorruptError, BackendVersionError) as error:
        reason = error.__cause__ if isinstance(error, NotLoadedError) else None
        if isinstance(reason, ModuleNotFoundError | SystemExit):  # which say it all
            reason = None
        logger.error("%s", error, exc_info=reason)  # else it is the application's own code that is to be mended
        sys.exit(UNUSABLE_STATUS)
    except BackendError as error:
        logger.error("%s", error)
        sys.exit(1)


async def _serve(settings: ChildSettings, serializer: Serializer | None) -> None:
    kept: dict[str, Any] = {}
    for name in ("retention", "retention_failed"):
        age = getattr(settings, name)
        if age is not None:
            kept[name] = None if age == "forever" else age
    worker = Worker(
        SQLiteBackend(settings.path, **kept),
        serializer,
        max_concurrency=settings.concurrency,
        lease=settings.lease,
        shutdown_timeout=settings.shutdown_timeout,
        log_exceptions=settings.log_exceptions,
        queues=settings.queues or None,
    )
    with _stopped_with_supervisor(worker, settings.lifeline):
        await worker.run()
    if settings.shutdown_timeout is not None:
        # A thread that a task has left behind would hold up the exit for as long as it likes, and
        # whoever asked for a timeout would then kill the process.
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def _stopped_with_supervisor(worker: Worker, lifeline: int | None) -> Iterator[None]:
    if lifeline is None:
        yield
        return
    loop = asyncio.get_running_loop()
    os.set_inheritable(lifeline, False)
    stopping: list[asyncio.Task[None]] = []

    def on_end() -> None:
        loop.remove_reader(lifeline)
        logger.info("ending with the supervisor")
        stopping.append(loop.create_task(worker.stop()))

    loop.add_reader(lifeline, on_end)
    try:
        yield
    finally:
        loop.remove_reader(lifeline)


if __name__ == "__main__":
    main()
