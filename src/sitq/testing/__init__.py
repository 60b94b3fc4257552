"""Help for tests of code that enqueues tasks, and for authors of backends.

pytest finds the fixtures ``task_queue``, ``sync_task_queue``, ``task_backend``, ``task_clock`` and
``task_queue_path`` by itself. What they are made of is here, for other runners. The suite that any
backend can be run through is in ``sitq.testing.contract``, which needs pytest.
"""

from sitq.testing.clock import ManualClock
from sitq.testing.queues import ManualQueue, ManualSyncQueue

__all__ = ["ManualClock", "ManualQueue", "ManualSyncQueue"]

# Tracebacks and docs name the place that users import from.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
