"""Where the plain functions of tasks run: in threads, unless a worker is given another executor."""

from sitq.executors.base import Executor, NoThreadError, Pool
from sitq.executors.threads import ThreadExecutor

__all__ = ["Executor", "NoThreadError", "Pool", "ThreadExecutor"]
