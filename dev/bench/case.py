"""What one measurement is, and where its store lives: the data that cross between processes."""

import json
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

type Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement. Which of the fields count is for the workload to say."""

    workload: str
    contestant: str
    variant: str = ""
    _: KW_ONLY
    count: int = 0
    concurrency: int = 0
    seconds: float = 0.0
    backlog: int = 0
    state: str = "waiting"
    task: str = "noop"
    processes: int = 1
    durability: str = "enqueue"

    @property
    def key(self) -> str:
        """The name of the measurement: the same in every round."""
        return "/".join(part for part in (self.workload, self.contestant, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Store:
    """Where a contestant keeps its tasks.

    Attributes:
        folder: A folder for this measurement alone.
        shared: A folder for all measurements of a run, for files that are costly to make.
        redis_url: The Redis that the contestants which need one may use.
        durability: `SQLiteBackend(durability=…)`, for sitq.
    """

    folder: Path
    shared: Path
    redis_url: str
    durability: str = "enqueue"


@dataclass(frozen=True, slots=True)
class Job:
    """A case and its store, as handed to a process."""

    case: Case
    store: Store

    def dump(self) -> str:
        """The job as JSON, for a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def load(cls, text: str) -> "Job":
        """Read what `dump` wrote."""
        fields: dict[str, Any] = json.loads(text)
        store = fields["store"]
        return cls(
            Case(**fields["case"]),
            Store(
                Path(store["folder"]),
                Path(store["shared"]),
                store["redis_url"],
                store["durability"],
            ),
        )
