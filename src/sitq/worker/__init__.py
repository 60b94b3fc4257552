"""The consumer: takes due tasks, runs them and records what came of them."""

from sitq.worker.worker import Worker

__all__ = ["Worker"]
