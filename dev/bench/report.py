"""The tables that a run prints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from dev.bench.runner import Results
from dev.bench.targets import Verdict

TITLES = {
    "drain": "Drain by one worker process, no-op tasks",
    "drain_plain": "Drain, plain functions, 32 at a time",
    "enqueue": "Enqueue, each awaited",
    "enqueue_concurrent": "Enqueue by 1,000 concurrent callers",
    "enqueue_many": "Enqueue many at once",
    "enqueue_sync": "Enqueue through SyncTaskQueue, one by one",
    "wake": "Enqueue acknowledged to task started, worker in another process",
    "wake_same": "Enqueue acknowledged to task started, worker in the same process",
    "result": "Task ended to result returned, worker in another process",
    "eta": "Lateness after eta, worker in another process",
    "idle": "Idle worker, processor time",
    "import": "Import, beyond asyncio's",
    "backlog": "Drain at 32 from a large file, beside so many others",
    "processes": "Worker processes on one file",
    "durable_enqueue": "Enqueue, each awaited, by durability",
    "durable_drain": "Drain at 32, by durability",
    "waiting": "Callers waiting beside 110 tasks a second of another process, processor time",
    "awaited": "Results awaited by as many callers in the worker's own process",
    "lateness": "Lateness of a timer of 2 ms in the loop that enqueues many at once, drains, or idles",
}

UNITS = {
    "per_second": "tasks/s",
    "p50_ms": "ms, p50",
    "p95_ms": "ms, p95",
    "p99_ms": "ms, p99",
    "max_ms": "ms, max",
    "cpu_percent": "% of a core",
    "peak_mib": "MiB, peak",
    "ms": "ms",
    "seconds": "s",
}


def results_tables(results: Results) -> Iterator[str]:
    """A table for each workload: median, lowest and highest of the rounds."""
    for workload in dict.fromkeys(case.workload for case in results.cases.values()):
        rows = [
            (case.contestant, case.variant, number(middle), spread(values), UNITS[metric])
            for key, case in results.cases.items()
            if case.workload == workload
            for metric in UNITS
            if (values := metric_values(results, key, metric)) and (middle := results.median(key, metric)) is not None
        ]
        failed = [
            (results.cases[key].contestant, results.cases[key].variant, "failed", reason, "")
            for key, reason in results.failures.items()
            if results.cases[key].workload == workload
        ]
        header = ("", "", "median", "lowest to highest", "")
        yield f"## {TITLES[workload]}\n\n{table([header, *rows, *failed])}"


def metric_values(results: Results, key: str, metric: str) -> list[float]:
    """The figures of all rounds, or none where the workload has no such figure."""
    return [sample[metric] for sample in results.samples[key] if sample and metric in sample]


def targets_table(verdicts: Iterable[Verdict]) -> str:
    """The targets with what came out, and the same against a peer's best setting."""
    rows = [("target", "limit", "reached", "lowest to highest", "", "")]
    for verdict in verdicts:
        target = verdict.target
        limit = f"≥ {target.at_least:g}" if target.at_least is not None else f"≤ {target.at_most:g}"
        reached = "-" if verdict.value is None else number(verdict.value)
        best = verdict.against_best
        rows.append(
            (
                target.title,
                f"{limit} {target.unit}",
                reached,
                "" if verdict.value is None else spread([verdict.low, verdict.high]),
                verdict.word,
                f"{number(best)}x huey's best of 1 and 4 threads" if best else "",
            )
        )
    return f"## Targets\n\n{table(rows)}"


def absent_table(absent: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """Who is missing and why, and what to know about the others."""
    rows = [(name, "absent", reason) for name, reason in absent.items()]
    rows += [(name, "", note) for name, note in notes.items() if note and name not in absent]
    return f"## Contestants\n\n{table(rows)}" if rows else ""


def number(value: float) -> str:
    """Three digits that matter, and no more."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def spread(values: Sequence[float]) -> str:
    """The lowest and the highest."""
    return f"{number(min(values))} to {number(max(values))}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
