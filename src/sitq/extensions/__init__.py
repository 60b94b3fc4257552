"""What can be put around and beside the runs of a worker without a change of sitq."""

from sitq.extensions.base import (
    AfterFailure,
    Around,
    Beside,
    Enqueuing,
    Event,
    EventKind,
    Extension,
    FailedRun,
    Listener,
    OnEnqueue,
    Run,
    Runs,
)
from sitq.extensions.cancelling import Cancelling
from sitq.extensions.retries import Failed, Retries, RetryPolicy
from sitq.extensions.timeouts import Timeouts

__all__ = [
    "AfterFailure",
    "Around",
    "Beside",
    "Cancelling",
    "Enqueuing",
    "Event",
    "EventKind",
    "Extension",
    "Failed",
    "FailedRun",
    "Listener",
    "OnEnqueue",
    "Retries",
    "RetryPolicy",
    "Run",
    "Runs",
    "Timeouts",
]
