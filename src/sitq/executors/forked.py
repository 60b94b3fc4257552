"""Ending the children that a task forked and that came back from it, as if they were the worker."""

import contextlib
import os

from sitq.models import ReservedTask

_generation = 0  # how many forks lie between this process and the one that imported this module


def generation() -> int:
    """Returns a number that is another one in a child that is forked from now on."""
    return _generation


def end_if_forked(before: int, task: ReservedTask | None = None) -> None:
    """Ends this process, and says why, if it was forked since :func:`generation` returned ``before``.

    It would go on as a second worker with the same claims. A child that ends by itself, as those
    of ``multiprocessing`` do, never comes here.
    """
    if before == _generation:
        return
    who = f"task {task.task_id} ({task.name!a})" if task else "a task"
    # Not by the log: a handler may wait for a lock that some thread of the parent held at the fork.
    with contextlib.suppress(OSError):
        os.write(
            2,
            f"sitq: process {os.getpid()} was forked by {who}, came back from it and is ended; "
            "end such a child by os._exit(), or use subprocess or multiprocessing\n".encode(),
        )
    os._exit(1)


def _count() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)
