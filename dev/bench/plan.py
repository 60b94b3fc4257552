"""Which measurements a run makes: the workloads, their sizes, and who takes part."""

from collections.abc import Iterator
from dataclasses import dataclass

from dev.bench.case import Case
from dev.bench.contestants.base import Contestant

CONCURRENCY = 32
DURABILITIES = ("enqueue", "full", "normal")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many tasks each workload handles, and for how long it looks.

    Attributes:
        drain_redis: As `drain`, for contestants over Redis.
        backlogs: How many more tasks the file holds than are run.
        idle_seconds: How long an idle worker is watched.
    """

    drain: int = 20_000
    drain_redis: int = 20_000
    enqueue: int = 2_000
    concurrent: int = 20_000
    many: int = 50_000
    latency: int = 200
    eta: int = 100
    idle_seconds: float = 10.0
    backlogs: tuple[int, ...] = (0, 1_000, 10_000, 100_000, 1_000_000)
    spin: int = 3_000
    shared: int = 40_000
    imports: int = 15


FULL = Sizes()
QUICK = Sizes(
    drain=3_000,
    drain_redis=300,
    enqueue=300,
    concurrent=2_000,
    many=5_000,
    latency=15,
    eta=10,
    idle_seconds=3.0,
    backlogs=(0, 50_000),
    spin=300,
    shared=5_000,
    imports=3,
)


def cases(sizes: Sizes, participants: dict[str, type[Contestant]]) -> list[list[Case]]:
    """The measurements, grouped by workload; the groups' members take turns in each round."""
    everything = [case for name, kind in participants.items() for case in _of(name, kind, sizes)]
    workloads = dict.fromkeys(case.workload for case in everything)
    return [[case for case in everything if case.workload == name] for name in workloads]


def _of(name: str, kind: type[Contestant], sizes: Sizes) -> Iterator[Case]:
    """All that one contestant takes part in."""
    drained = sizes.drain_redis if kind.needs_redis else sizes.drain
    usual = kind.usual_concurrency
    for concurrency in kind.concurrencies:
        yield Case(
            workload="drain",
            contestant=name,
            variant=str(concurrency),
            count=drained,
            concurrency=concurrency,
        )
    simple = {
        "enqueue": {"count": sizes.enqueue},
        "enqueue_concurrent": {"count": sizes.concurrent},
        "enqueue_many": {"count": sizes.many},
        "enqueue_sync": {"count": sizes.enqueue},
        "wake": {"count": sizes.latency, "concurrency": usual},
        "wake_same": {"count": sizes.latency, "concurrency": usual},
        "result": {"count": sizes.latency, "concurrency": usual},
        "eta": {"count": sizes.eta, "concurrency": usual},
        "import": {"count": sizes.imports},
    }
    for workload, fields in simple.items():
        if workload in kind.workloads:
            yield Case(workload=workload, contestant=name, **fields)
    if "drain_plain" in kind.workloads:
        yield Case(
            workload="drain_plain",
            contestant=name,
            count=drained,
            concurrency=CONCURRENCY,
            task="noop_plain",
        )
    if "idle" in kind.workloads:
        yield Case(
            workload="idle", contestant=name, seconds=sizes.idle_seconds, concurrency=usual
        )
    if "backlog" in kind.workloads:
        yield from _own(name, sizes)


def _own(name: str, sizes: Sizes) -> Iterator[Case]:
    """The measurements of sitq against itself."""
    for state in ("waiting", "finished"):
        for backlog in sizes.backlogs:
            yield Case(
                workload="backlog",
                contestant=name,
                variant=f"{state} {backlog}",
                count=sizes.drain,
                concurrency=CONCURRENCY,
                backlog=backlog,
                state=state,
            )
    for processes in (1, 2):
        yield Case(
            workload="processes",
            contestant=name,
            variant=f"spin {processes}",
            count=sizes.spin,
            concurrency=10,
            task="spin",
            processes=processes,
        )
        yield Case(
            workload="processes",
            contestant=name,
            variant=f"noop {processes}",
            count=sizes.shared,
            concurrency=CONCURRENCY,
            processes=processes,
        )
    for durability in DURABILITIES:
        yield Case(
            workload="durable_enqueue",
            contestant=name,
            variant=durability,
            count=sizes.enqueue,
            durability=durability,
        )
        yield Case(
            workload="durable_drain",
            contestant=name,
            variant=durability,
            count=sizes.drain,
            concurrency=CONCURRENCY,
            durability=durability,
        )
