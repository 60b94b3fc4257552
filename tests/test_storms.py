"""Storms: small ones in every run of the suite, the same ones larger under the marker ``storm``.

``python -m pytest -m storm -s`` shows what they did and found.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.storm import storms
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
