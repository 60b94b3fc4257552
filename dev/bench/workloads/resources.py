"""What sitq costs while it does nothing: an idle worker's processor time, and its import."""

import asyncio
import os
import subprocess
import sys
import time
from statistics import median

from dev.bench.case import Case, Metrics
from dev.bench.contestants.base import Contestant

SETTLE_SECONDS = 1.0

IMPORT_TIMER = """
import time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started)
"""


async def idle(contestant: Contestant, case: Case) -> Metrics:
    """User and system time of a worker process without work, in per cent of one core."""
    async with contestant.worker(case.concurrency):
        await asyncio.sleep(SETTLE_SECONDS)
        used, clock = time.process_time(), time.perf_counter()
        await asyncio.sleep(case.seconds)
        used, clock = time.process_time() - used, time.perf_counter() - clock
    return {"cpu_percent": 100 * used / clock}


async def import_time(contestant: Contestant, case: Case) -> Metrics:
    """What `import sitq` takes beyond `import asyncio`, each in `count` fresh interpreters.

    All modules come from byte code, as after an installation: a first import, which does not
    count, writes it.
    """
    # Whatever the environment says about byte code, and without writing any beside the sources.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(contestant.store.folder / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds: dict[str, list[float]] = {"asyncio": [], "sitq": []}
    for _ in range(case.count + 1):
        for module, values in seconds.items():
            values.append(await asyncio.to_thread(_import_seconds, module, environment))
    base, whole = (median(values[1:]) for values in seconds.values())
    return {"ms": 1_000 * (whole - base)}


def _import_seconds(module: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", IMPORT_TIMER.format(module=module)]
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(process.stdout)
