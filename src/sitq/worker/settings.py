"""The numbers of a worker."""

from dataclasses import dataclass

CANCEL_GRACE_SECONDS = 2.0
"""How long a cancelled task may take to clean up before it is given back nevertheless."""

OVERLAP_FROM_SLOTS = 48
"""From how many slots on a reservation takes half of them, so that one half of the tasks runs while
the backend is busy with the other. With fewer, a reservation costs more than the overlap gains."""

NO_THREAD_PAUSE_SECONDS = 1.0
"""How long a worker takes nothing after the system gave it no thread."""

STEP_SECONDS = 0.005
"""For how long tasks are started one after the other before the host's loop gets a turn."""


FIRST_DELAY_SECONDS = 0.05
MAX_DELAY_SECONDS = 5.0
"""Between two tries of what the backend has not taken, doubled each time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of one run of a worker, checked; times in seconds.

    Attributes:
        until_empty: Whether the run ends when nothing is due and nothing is running.
    """

    max_concurrency: int
    poll_interval: float
    batch_size: int
    lease: float
    shutdown_timeout: float | None
    log_exceptions: bool = False
    until_empty: bool = False
