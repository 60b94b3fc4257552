"""Which measurements a run makes: the workloads, their sizes, and who takes part."""

from collections.abc import Iterator
from dataclasses import dataclass

from dev.bench.case import Case
from dev.bench.contestants.base import Contestant

OWN = ("sitq", "sqlite3")
CONCURRENCY = 32

SPIN_CONCURRENCY = 10
"""sitq's default, for tasks that keep a core busy."""

HOST_CONCURRENCY = 100
"""So many slots make the largest steps in the event loop."""

QUICK_WORKLOADS = frozenset({"enqueue", "enqueue_concurrent", "enqueue_many"})
DURABILITIES = ("enqueue", "full", "normal")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many tasks each workload handles, and for how long it looks.

    Attributes:
        drain_redis: As `drain`, for contestants over Redis, which do about a thousand a second.
        backlogs: How many more tasks the file holds than are run.
        idle_seconds: How long an idle worker is watched.
        waiting: How many callers wait for results that do not come.
        awaited: How many wait for results that come.
        late_many, late_drain: How many tasks are stored at once, or drained, beside the timer.
        thorough: Whether peers take part in all that they can, or only at one concurrency and in
            what is measured in tasks a second.
    """

    drain: int = 20_000
    drain_redis: int = 5_000
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
    waiting: tuple[int, int] = (100, 2_000)
    waiting_seconds: float = 10.0
    awaited: int = 3_000
    late_many: int = 40_000
    late_drain: int = 20_000
    late_idle_seconds: float = 3.0
    thorough: bool = True


FULL = Sizes()
QUICK = Sizes(
    drain=3_000,
    drain_redis=200,
    enqueue=300,
    concurrent=1_000,
    many=5_000,
    latency=20,
    eta=20,
    idle_seconds=3.0,
    backlogs=(0, 50_000),
    spin=300,
    shared=5_000,
    imports=3,
    waiting=(20, 200),
    waiting_seconds=3.0,
    awaited=500,
    late_many=5_000,
    late_drain=3_000,
    late_idle_seconds=1.0,
    thorough=False,
)


def cases(sizes: Sizes, participants: dict[str, type[Contestant]]) -> list[list[Case]]:
    """The measurements, grouped by workload; the groups' members take turns in each round."""
    everything = [case for name, kind in participants.items() for case in _of(name, kind, sizes)]
    workloads = dict.fromkeys(case.workload for case in everything)
    return [[case for case in everything if case.workload == name] for name in workloads]


def _of(name: str, kind: type[Contestant], sizes: Sizes) -> Iterator[Case]:
    """All that one contestant takes part in."""
    workloads, concurrencies = kind.workloads, kind.concurrencies
    if not sizes.thorough and name not in OWN:
        workloads &= QUICK_WORKLOADS
        concurrencies = (CONCURRENCY,) if CONCURRENCY in concurrencies else concurrencies[-1:]
    drained = sizes.drain_redis if kind.needs_redis else sizes.drain
    for concurrency in concurrencies:
        yield Case("drain", name, str(concurrency), count=drained, concurrency=concurrency)
    usual = kind.usual_concurrency
    others = (
        Case("enqueue", name, count=sizes.enqueue),
        Case("enqueue_concurrent", name, count=sizes.concurrent),
        Case("enqueue_many", name, count=sizes.many),
        Case("enqueue_sync", name, count=sizes.enqueue),
        Case("drain_plain", name, count=drained, concurrency=CONCURRENCY, task="noop_plain"),
        Case("wake", name, count=sizes.latency, concurrency=usual),
        Case("wake_same", name, count=sizes.latency, concurrency=usual),
        Case("result", name, count=sizes.latency, concurrency=usual),
        Case("eta", name, count=sizes.eta, concurrency=usual),
        Case("idle", name, seconds=sizes.idle_seconds, concurrency=usual),
        Case("import", name, count=sizes.imports),
        *_large(name, sizes),
        *_side_by_side(name, sizes),
        *_durable(name, sizes),
        *_host(name, sizes, usual),
    )
    yield from (case for case in others if case.workload in workloads)


def _large(name: str, sizes: Sizes) -> Iterator[Case]:
    """A drain from a file that holds many other tasks."""
    for state in ("waiting", "finished"):
        for backlog in sizes.backlogs:
            yield Case(
                "backlog",
                name,
                f"{state} {backlog}",
                count=sizes.drain,
                concurrency=CONCURRENCY,
                backlog=backlog,
                state=state,
            )


def _side_by_side(name: str, sizes: Sizes) -> Iterator[Case]:
    """One worker process and two, on the same work."""
    for processes in (1, 2):
        yield Case(
            "processes",
            name,
            f"spin {processes}",
            count=sizes.spin,
            concurrency=SPIN_CONCURRENCY,
            task="spin",
            processes=processes,
        )
        yield Case(
            "processes",
            name,
            f"noop {processes}",
            count=sizes.shared,
            concurrency=CONCURRENCY,
            processes=processes,
        )


def _host(name: str, sizes: Sizes, usual: int) -> Iterator[Case]:
    """What a program feels of the queue inside it."""
    for callers in sizes.waiting:
        yield Case("waiting", name, str(callers), count=callers, seconds=sizes.waiting_seconds, concurrency=usual)
    for slots in (usual, HOST_CONCURRENCY):
        yield Case("awaited", name, str(slots), count=sizes.awaited, concurrency=slots)
    yield Case("lateness", name, "idle", seconds=sizes.late_idle_seconds)
    yield Case("lateness", name, "enqueue_many", count=sizes.late_many)
    yield Case("lateness", name, "drain", count=sizes.late_drain, concurrency=HOST_CONCURRENCY)


def _durable(name: str, sizes: Sizes) -> Iterator[Case]:
    """What each level of durability costs."""
    for level in DURABILITIES:
        yield Case("durable_enqueue", name, level, count=sizes.enqueue, durability=level)
        yield Case("durable_drain", name, level, count=sizes.drain, concurrency=CONCURRENCY, durability=level)
