"""An async-first task queue that lives in one SQLite file."""

from sitq._current import current_task
from sitq.backends.base import Backend
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import (
    BackendCorruptError,
    BackendError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendVersionError,
    SerializationError,
    SitqError,
    TaskCancelledError,
    TaskFailedError,
    WorkerDiedError,
)
from sitq.models import NewTask, ReservedTask, Result, TaskId
from sitq.queue import TaskQueue
from sitq.serializers import CloudpickleSerializer, Serializer
from sitq.sync import SyncTaskQueue
from sitq.worker import Worker

__all__ = [
    "Backend",
    "BackendCorruptError",
    "BackendError",
    "BackendReadOnlyError",
    "BackendUnavailableError",
    "BackendVersionError",
    "CloudpickleSerializer",
    "NewTask",
    "ReservedTask",
    "Result",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SitqError",
    "SyncTaskQueue",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskId",
    "TaskQueue",
    "Worker",
    "WorkerDiedError",
    "current_task",
]

__version__ = "1.0.0"

# Tracebacks, pickles and docs name the place that users import from.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
