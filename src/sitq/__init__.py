"""An async-first task queue that lives in one SQLite file."""

from sitq._current import current_task, follow_up
from sitq.backends.base import Backend
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import (
    BackendCorruptError,
    BackendError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendVersionError,
    DuplicateTaskError,
    GiveUp,
    Retry,
    SerializationError,
    SitqError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
    WorkerDiedError,
)
from sitq.extensions.carry import Carry
from sitq.extensions.inject import Inject
from sitq.extensions.retries import Backoff, per_exception
from sitq.models import NewTask, ReservedTask, Result, TaskId, Unique
from sitq.queue import TaskQueue
from sitq.running import progress
from sitq.serializers import CloudpickleSerializer, Serializer
from sitq.sync import SyncTaskQueue
from sitq.tasks import Task, task
from sitq.worker import Worker

__all__ = [
    "Backend",
    "BackendCorruptError",
    "BackendError",
    "BackendReadOnlyError",
    "BackendUnavailableError",
    "BackendVersionError",
    "Backoff",
    "Carry",
    "CloudpickleSerializer",
    "DuplicateTaskError",
    "GiveUp",
    "Inject",
    "NewTask",
    "ReservedTask",
    "Result",
    "Retry",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SitqError",
    "SyncTaskQueue",
    "Task",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskId",
    "TaskQueue",
    "TaskTimeoutError",
    "Unique",
    "Worker",
    "WorkerDiedError",
    "current_task",
    "follow_up",
    "per_exception",
    "progress",
    "task",
]

__version__ = "1.0.0"

# Tracebacks, pickles and docs name the place that users import from.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
