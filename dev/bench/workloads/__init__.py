"""The workloads: each takes an open contestant and a case, and gives the figures of one round."""

import importlib
from collections.abc import Awaitable, Callable

from dev.bench.case import Case, Metrics
from dev.bench.contestants.base import Contestant

type Workload = Callable[[Contestant, Case], Awaitable[Metrics]]

WORKLOADS = {
    "drain": "throughput.drain",
    "drain_plain": "throughput.drain",
    "enqueue": "throughput.enqueue",
    "enqueue_concurrent": "throughput.enqueue_concurrent",
    "enqueue_many": "throughput.enqueue_many",
    "enqueue_sync": "sitq_only.enqueue_sync",
    "durable_enqueue": "throughput.enqueue",
    "durable_drain": "throughput.drain",
    "wake": "latency.wake",
    "wake_same": "latency.wake_same",
    "result": "latency.result",
    "eta": "sitq_only.eta",
    "idle": "resources.idle",
    "import": "resources.import_time",
    "backlog": "scale.backlog",
    "processes": "scale.processes",
    "waiting": "host.waiting",
    "awaited": "host.awaited",
    "lateness": "host.lateness",
}
"""Where each workload lives. The modules are imported by need: some import sitq."""


def load(name: str) -> Workload:
    """The function of the workload `name`."""
    module, function = WORKLOADS[name].split(".")
    workload: Workload = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return workload
