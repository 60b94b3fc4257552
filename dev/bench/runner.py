"""Running the plan: round after round, each measurement in a process of its own."""

import asyncio
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from dev.bench.case import Case, Job, Metrics, Store
from dev.bench.redis_server import EmptyRedis
from dev.bench.serve import ChildError, run

CASE_SECONDS = 900.0


@dataclass(slots=True)
class Results:
    """The figures of every round, by the key of their case."""

    samples: dict[str, list[Metrics | None]] = field(default_factory=dict)
    """One entry a round; `None` where the measurement failed."""

    failures: dict[str, str] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)

    def values(self, key: str, metric: str) -> list[float]:
        """The figures of all rounds that have one."""
        return [sample[metric] for sample in self.samples.get(key, []) if sample]

    def median(self, key: str, metric: str) -> float | None:
        """The median over the rounds, or `None` when there is no figure."""
        values = self.values(key, metric)
        return median(values) if values else None

    def dump(self) -> dict[str, object]:
        """The results as JSON-able builtins."""
        return {
            key: {
                "case": asdict(case),
                "rounds": self.samples.get(key, []),
                "failure": self.failures.get(key),
            }
            for key, case in self.cases.items()
        }

    @classmethod
    def load(cls, stored: dict[str, dict[str, object]]) -> "Results":
        """Read what `dump` gave."""
        results = cls()
        for key, entry in stored.items():
            results.cases[key] = Case(**entry["case"])  # type: ignore[arg-type]
            results.samples[key] = entry["rounds"]  # type: ignore[assignment]
            if entry["failure"]:
                results.failures[key] = str(entry["failure"])
        return results


async def measure(
    groups: list[list[Case]],
    rounds: int,
    folder: Path,
    redis: EmptyRedis | None,
) -> Results:
    """Measure every case once a round. Within a group another case begins each round."""
    results = Results()
    shared = folder / "shared"
    shared.mkdir()
    redis_url = redis.url if redis else ""
    total = rounds * sum(len(group) for group in groups)
    done = 0
    for number in range(rounds):
        for group in groups:
            turn = number % len(group)
            for case in group[turn:] + group[:turn]:
                done += 1
                _progress(f"[{done}/{total}] {case.key}")
                results.cases[case.key] = case
                sample = await _one(case, folder, shared, redis_url, results)
                results.samples.setdefault(case.key, []).append(sample)
                if redis is not None:
                    redis.empty()
    _progress("")
    return results


async def _one(case: Case, folder: Path, shared: Path, redis_url: str, results: Results) -> Metrics | None:
    """One measurement in a folder of its own, after the disk has settled."""
    await asyncio.to_thread(os.sync)
    with TemporaryDirectory(dir=folder) as place:
        store = Store(Path(place), shared, redis_url, case.durability)
        try:
            metrics: Metrics = await run("measure", Job(case, store), CASE_SECONDS)
        except ChildError as error:
            results.failures[case.key] = str(error)
            return None
    return metrics


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="\r", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
