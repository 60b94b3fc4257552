"""One worker process of ``sitq worker``; the supervisor starts it, as ``python -m sitq.cli.child``."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from sitq import BackendError, SQLiteBackend, Worker

logger = logging.getLogger(__name__)

EXIT_GRACE_SECONDS = 1.0
"""How long the interpreter may take to exit after the worker has ended in time."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What a worker process is told, as JSON.

    Attributes:
        path: The queue file.
        concurrency: The tasks that it runs at the same time.
        shutdown_timeout: Seconds to wait for running tasks when it ends; ``None``: all they take.
        retention: Seconds that finished tasks are kept; ``None`` keeps them for ever.
        quiet: Whether it logs warnings only.
        label: What it is called in the log.
        lifeline: A descriptor that comes to its end when the supervisor ends or dies; ``None``
            where descriptors cannot be handed on.
    """

    path: str
    concurrency: int
    shutdown_timeout: float | None
    retention: float | None
    quiet: bool
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
    if folder not in sys.path:  # where PYTHONSAFEPATH is set
        sys.path.insert(0, folder)


def main() -> None:
    """Runs a worker until it is told to stop; the status is 1 where the file cannot be used."""
    settings = ChildSettings(**json.loads(sys.argv[1]))
    configure_logging(settings.label, quiet=settings.quiet)
    add_current_folder()
    try:
        asyncio.run(_serve(settings))
    except BackendError as error:
        logger.error("%s", error)
        sys.exit(1)


async def _serve(settings: ChildSettings) -> None:
    worker = Worker(
        SQLiteBackend(settings.path, retention=settings.retention),
        max_concurrency=settings.concurrency,
        shutdown_timeout=settings.shutdown_timeout,
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
