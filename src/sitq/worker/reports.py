"""What a worker logs of its tasks."""

import logging

from sitq._logs import SafeLogger
from sitq.models import ReservedTask
from sitq.worker.execution import Failure
from sitq.worker.renewer import HeldTask

logger = SafeLogger("sitq.worker")


def ended(task: ReservedTask, error: str | None, failed: Failure | None, *, log_exceptions: bool) -> None:
    """Logs how a task ended; a failure at error and with its exception if ``log_exceptions`` is set."""
    if error is None or failed is None:
        logger.info("task %s (%s) finished", task.task_id, task.name)
        return
    level, raised = (logging.ERROR, failed.raised) if log_exceptions else (logging.WARNING, None)
    # The type only: messages of exceptions tend to quote the arguments. A module's name is none.
    kind = error.partition(":")[0]
    if failed.missing is not None:
        kind += f", for there is no module named {failed.missing!r}"
    logger.log(level, "task %s (%s) failed with %s", task.task_id, task.name, kind, exc_info=raised)


def given_back(task: ReservedTask, why: str) -> None:
    """Logs why a task is given back with its attempt unspent."""
    logger.warning("task %s (%s) %s and is given back", task.task_id, task.name, why)


def left(held: HeldTask, *, is_given_back: bool) -> None:
    """Logs that a task did not finish before its worker's end."""
    logger.warning(
        "task %s (%s) was not finished %s%s",
        held.task.task_id,
        held.task.name,
        "in time and is given back"
        if is_given_back
        else "when its worker was ended, which nobody had asked to stop: that counts as the worker's death, and "
        "others may take the task when its lease has ended",
        "; its thread goes on, and what it returns changes nothing" if held.in_thread else "",
    )
