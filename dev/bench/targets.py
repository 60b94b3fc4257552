"""What sitq has set itself to reach, as ratios that hold from machine to machine."""

from dataclasses import dataclass
from statistics import median

from dev.bench.plan import Sizes
from dev.bench.runner import Results

HUEY_DRAIN = "drain/huey/4"
HUEY_BEST = ("drain/huey/1", "drain/huey/4")
HUEY_ENQUEUE = "enqueue/huey"
BARE_ENQUEUE = "enqueue/sqlite3"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of sitq, divided by another one or taken as it is, and the limit it should keep.

    Attributes:
        of: The key of the measurement, and the figure of it.
        per: The key whose same figure is the divisor; `minus` one that is subtracted instead.
        best: Keys of which the best one is the divisor, for a stricter look beside the target.
    """

    title: str
    of: tuple[str, str]
    at_least: float | None = None
    at_most: float | None = None
    per: str | None = None
    minus: str | None = None
    best: tuple[str, ...] = ()
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out for a target; the spread is that of the single rounds."""

    target: Target
    value: float | None
    low: float = 0.0
    high: float = 0.0
    against_best: float | None = None

    @property
    def word(self) -> str:
        """PASS, MISS, or a dash where something was not measured."""
        if self.value is None:
            return "-"
        kept = (self.target.at_least is None or self.value >= self.target.at_least) and (
            self.target.at_most is None or self.value <= self.target.at_most
        )
        return "PASS" if kept else "MISS"


def targets(sizes: Sizes) -> list[Target]:
    """The table of targets, for files as large as `sizes` makes them."""
    large = max(sizes.backlogs)
    speed = "per_second"
    some, many = sizes.waiting
    return [
        Target("drain, 32 slots ÷ huey", ("drain/sitq/32", speed), 15, per=HUEY_DRAIN,
               best=HUEY_BEST),
        Target("drain, 100 slots ÷ huey", ("drain/sitq/100", speed), 22, per=HUEY_DRAIN,
               best=HUEY_BEST),
        Target("drain, 1 slot ÷ bare sqlite3", ("drain/sitq/1", speed), 0.30,
               per="drain/sqlite3/1"),
        Target("enqueue ÷ bare synced insert", ("enqueue/sitq", speed), 0.50, per=BARE_ENQUEUE),
        Target("concurrent enqueue ÷ huey enqueue", ("enqueue_concurrent/sitq", speed), 10,
               per=HUEY_ENQUEUE),
        Target("enqueue_many ÷ huey enqueue", ("enqueue_many/sitq", speed), 18,
               per=HUEY_ENQUEUE),
        Target("SyncTaskQueue.enqueue ÷ bare synced insert", ("enqueue_sync/sitq", speed), 0.38,
               per=BARE_ENQUEUE),
        Target("plain functions, 32 slots ÷ huey", ("drain_plain/sitq", speed), 4.5,
               per=HUEY_DRAIN, best=HUEY_BEST),
        Target("wake in another process, p50", ("wake/sitq", "p50_ms"), at_most=1.0, unit="ms"),
        Target("wake in another process, p95", ("wake/sitq", "p95_ms"), at_most=5.0, unit="ms"),
        Target("wake in one process, p50", ("wake_same/sitq", "p50_ms"), at_most=0.6, unit="ms"),
        Target("result in another process, p50", ("result/sitq", "p50_ms"), at_most=2.0,
               unit="ms"),
        Target("lateness of eta, p95", ("eta/sitq", "p95_ms"), at_most=10.0, unit="ms"),
        Target("idle worker, share of a core", ("idle/sitq", "cpu_percent"), at_most=0.2,
               unit="%"),
        Target(f"drain beside {large:,} waiting ÷ small file",
               (f"backlog/sitq/waiting {large}", speed), 0.85, per="backlog/sitq/waiting 0"),
        Target(f"drain beside {large:,} finished ÷ small file",
               (f"backlog/sitq/finished {large}", speed), 0.85, per="backlog/sitq/finished 0"),
        Target(f"worker's memory, {large:,} waiting, beyond small file",
               (f"backlog/sitq/waiting {large}", "peak_mib"), at_most=30.0,
               minus="backlog/sitq/waiting 0", unit="MiB"),
        Target("2 processes ÷ 1, CPU-bound", ("processes/sitq/spin 2", speed), 1.8,
               per="processes/sitq/spin 1"),
        Target("2 processes ÷ 1, no-op", ("processes/sitq/noop 2", speed), 1.0,
               per="processes/sitq/noop 1"),
        Target(f"{some:,} waiting callers, share of a core", (f"waiting/sitq/{some}", "cpu_percent"),
               at_most=10.0, unit="%"),
        Target(f"{many:,} waiting callers, share of a core", (f"waiting/sitq/{many}", "cpu_percent"),
               at_most=20.0, unit="%"),
        Target(f"{sizes.awaited:,} results in the worker's process, 10 slots",
               ("awaited/sitq/10", "seconds"), at_most=1.5, unit="s"),
        Target("lateness of the loop beside enqueue_many, p99, beyond idle",
               ("lateness/sitq/enqueue_many", "p99_ms"), at_most=10.0, minus="lateness/sitq/idle",
               unit="ms"),
        Target("lateness of the loop beside a drain, p99, beyond idle",
               ("lateness/sitq/drain", "p99_ms"), at_most=10.0, minus="lateness/sitq/idle", unit="ms"),
        Target("import sitq, beyond asyncio", ("import/sitq", "ms"), at_most=60.0, unit="ms"),
    ]  # fmt: skip


def judge(target: Target, results: Results) -> Verdict:
    """Compare within each round, where the two stand close together, and take the median."""
    key, metric = target.of
    values = _rounds(results, key, metric)
    if target.per is not None:
        pairs = zip(values, _rounds(results, target.per, metric), strict=False)
        values = [a / b if a is not None and b else None for a, b in pairs]
    if target.minus is not None:
        pairs = zip(values, _rounds(results, target.minus, metric), strict=False)
        values = [None if a is None or b is None else a - b for a, b in pairs]
    known = [value for value in values if value is not None]
    if not known:
        return Verdict(target, None)
    return Verdict(target, median(known), min(known), max(known), _against_best(target, results))


def _against_best(target: Target, results: Results) -> float | None:
    """The ratio of the medians to the best of several divisors."""
    key, metric = target.of
    value = results.median(key, metric)
    divisors = [results.median(best, metric) or 0.0 for best in target.best]
    return value / max(divisors) if value and any(divisors) else None


def _rounds(results: Results, key: str, metric: str) -> list[float | None]:
    return [sample[metric] if sample else None for sample in results.samples.get(key, [])]
