"""What a worker logs of its tasks, as a listener to its events."""

import logging

from sitq._logs import SafeLogger
from sitq.extensions.base import Event, EventKind

logger = SafeLogger("sitq.worker")


AT_INFO = frozenset({"started", "succeeded", "retried", "cancelled"})


class TaskLog:
    """Logs what happens to the tasks of a worker, without any text of theirs but names and types.

    Args:
        log_exceptions: Whether a failure is logged at error with its exception and traceback, instead
            of at warning with the exception's type.
    """

    def __init__(self, *, log_exceptions: bool) -> None:
        self._log_exceptions = log_exceptions

    def is_heard(self, kind: EventKind) -> bool:
        """Returns whether an event of this kind would be logged."""
        return kind not in AT_INFO or logger.is_enabled(logging.INFO)

    def on_event(self, event: Event) -> None:
        """Logs an event as one line."""
        match event.kind:
            case "started":
                logger.info("task %s (%s) started, attempt %d", event.task_id, event.name, event.attempt)
            case "succeeded":
                logger.info("task %s (%s) finished", event.task_id, event.name)
            case "failed":
                self._failed(event)
            case "retried":
                message = "task %s (%s) raised %s in attempt %d and is tried again"
                logger.info(message, event.task_id, event.name, event.reason, event.attempt)
            case "cancelled":
                logger.info("task %s (%s) is cancelled: %s", event.task_id, event.name, event.reason)
            case "given_back":
                logger.warning("task %s (%s) is given back: %s", event.task_id, event.name, event.reason)
            case "left":
                logger.warning("task %s (%s) is left: %s", event.task_id, event.name, event.reason)
            case "not_held":
                message = "task %s (%s) lost its lease in attempt %d: %s"
                logger.warning(message, event.task_id, event.name, event.attempt, event.reason)
            case "buried":
                logger.error("task %s was failed: its workers died on every attempt", event.task_id)

    def _failed(self, event: Event) -> None:
        level, error = (logging.ERROR, event.error) if self._log_exceptions else (logging.WARNING, None)
        logger.log(level, "task %s (%s) failed with %s", event.task_id, event.name, event.reason, exc_info=error)
