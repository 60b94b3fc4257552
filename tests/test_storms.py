"""Storms: small ones in every run of the suite, the same ones larger under the marker ``storm``.

``python -m pytest -m storm -s`` shows what they did and found.
"""

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.storm import forks, policies, storms
from tests.support import Runs

LARGE = (pytest.mark.storm, pytest.mark.timeout(180))

type Storm = Callable[..., Awaitable[storms.Figures]]


def sizes(small: dict[str, Any], large: dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrizes a storm by its two sizes."""
    return pytest.mark.parametrize(
        "size", [pytest.param(small, id="small"), pytest.param(large, id="large", marks=LARGE)]
    )


async def show(storm: Awaitable[storms.Figures]) -> None:
    """Runs a storm and prints its figures."""
    began = time.monotonic()
    print(f"{await storm}, in {time.monotonic() - began:.1f} s")


@sizes({"tasks": 1500, "kills": 20}, {"tasks": 20_000, "kills": 250})
async def test_workers_that_are_killed_again_and_again_lose_nothing(
    path: Path, runs: Runs, size: dict[str, Any]
) -> None:
    """Every task ends, and runs beyond the first are at most the tasks that were held at a kill."""
    await show(storms.kill_storm(path, runs, **size))


@sizes({"tasks": 2000}, {"tasks": 20_000})
async def test_eight_processes_run_each_task_once(path: Path, runs: Runs, size: dict[str, Any]) -> None:
    """Nothing is handed out twice where nobody dies."""
    await show(storms.reservation_storm(path, runs, **size))


@sizes({"killers": 3, "neighbours": 60}, {"killers": 12, "neighbours": 2000})
async def test_killers_are_failed_and_their_neighbours_succeed(path: Path, runs: Runs, size: dict[str, Any]) -> None:
    """A task whose worker dies each time has exactly its attempts; none of the others pays for it."""
    await show(storms.killer_storm(path, runs, **size))


@sizes({"kills": 10}, {"kills": 100})
async def test_producers_that_are_killed_store_all_they_acknowledged(
    path: Path, runs: Runs, size: dict[str, Any]
) -> None:
    """Every id that was returned exists, and of each batch all or nothing."""
    await show(storms.producer_storm(path, runs, **size))


@sizes({"rounds": 9}, {"rounds": 60})
async def test_a_file_that_is_sick_again_and_again_loses_nothing(path: Path, runs: Runs, size: dict[str, Any]) -> None:
    """Locks, moves and frozen workers: every task that was acknowledged is a success, and no other is there."""
    await show(storms.sick_file_storm(path, runs, **size))


@sizes({"tasks": 400, "kills": 5}, {"tasks": 5_000, "kills": 80})
async def test_whatever_ends_a_run_each_task_ends_once(path: Path, runs: Runs, size: dict[str, Any]) -> None:
    """Raises, timeouts, cancellations, stops and kills: nothing is lost, run too often, or followed twice."""
    await show(policies.policy_storm(path, runs, **size))


@sizes({"children": 6}, {"children": 150})
def test_a_program_that_forks_while_it_enqueues_loses_nothing(path: Path, runs: Runs, size: dict[str, int]) -> None:
    """Children of multiprocessing enqueue, work and are killed, with the parent's queue and with their own."""
    acknowledged = Runs(path.parent / "acknowledged")
    forks.run("fork_and_enqueue", path, acknowledged, runs, **size)
    print(f"{forks.check(path, acknowledged, runs)} tasks acknowledged, {size['children']} forks")


def test_a_daemon_goes_on_with_the_queue_of_the_program_that_it_was(path: Path, runs: Runs) -> None:
    """It forks twice, as daemons do, and neither it nor its parent loses a task."""
    acknowledged = Runs(path.parent / "acknowledged")
    forks.run("daemonize", path, acknowledged, runs)
    assert forks.check(path, acknowledged, runs) == 22


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of the server in /proc")
@sizes({"requests": 15}, {"requests": 300})
def test_a_preforking_server_that_opened_the_queue_before_it_forked_loses_nothing(
    path: Path, runs: Runs, size: dict[str, int]
) -> None:
    """Gunicorn with preload: its processes are killed and replaced while they enqueue, and every answer holds."""
    acknowledged = Runs(path.parent / "acknowledged")
    with forks.preforking_server(path, acknowledged, runs) as (server, address):
        forks.visit(server, address, path, size["requests"])
    found = forks.check(path, acknowledged, runs)
    assert found >= size["requests"]
    print(f"{found} tasks acknowledged")
