"""The extensions that every worker has unless it is told otherwise."""

from collections.abc import Sequence
from typing import Any

from sitq._logs import SafeLogger
from sitq.extensions.base import Extension, FailedRun
from sitq.extensions.cancelling import Cancelling
from sitq.extensions.inject import Injections
from sitq.extensions.reporting import Reporting
from sitq.extensions.retries import Retries
from sitq.extensions.timeouts import Timeouts
from sitq.models import Outcome
from sitq.worker.execution import decided

logger = SafeLogger("sitq.worker")


class OnFailure:
    """Stores the task that ``on_failure=`` names, together with the failure of the one that failed for good."""

    def after_failure(self, failure: FailedRun) -> None:
        """Adds that task, unless the one that failed is tried again or is cancelled.

        One whose call cannot be loaded, or whose workers died, has nobody who could read what it declares.
        """
        run = failure.run
        if run is None or failure.is_decided or (target := run.options.get("on_failure")) is None:
            return
        try:
            error = decided(Outcome(failure.task, error=failure.text), failure).error
            arguments: tuple[Any, ...] = (failure.task.task_id, failure.task.name, error)
            failure.then.append(run.home.make_task(target, arguments, {}))
        except Exception as error:
            logger.error(
                "what is to follow on the failure of task %s (%s) cannot be stored: %s",
                failure.task.task_id,
                failure.task.name,
                error,
            )


def with_standard(given: Sequence[Extension]) -> tuple[Extension, ...]:
    """Returns extensions together with the standard ones; one that is given takes the place of the standard one.

    Around a run, the limit of time is outermost, and what fills in parameters innermost. After a failure, it is
    asked first whether somebody ended the run, and last what else is to be stored.
    """

    def of(kind: type[Any]) -> Extension:
        found: Extension = next((each for each in given if isinstance(each, kind)), None) or kind()
        return found

    first, last = (of(Cancelling), of(Timeouts), of(Reporting)), (of(Retries), OnFailure(), Injections())
    return (*first, *(each for each in given if each not in first and each not in last), *last)
