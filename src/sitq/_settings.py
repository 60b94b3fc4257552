"""The numbers of a worker."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a worker, checked; times in seconds."""

    max_concurrency: int
    poll_interval: float
    batch_size: int
    lease: float
    shutdown_timeout: float | None
    log_exceptions: bool = False
