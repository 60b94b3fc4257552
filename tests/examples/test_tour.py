"""The notebook, run as a script; it needs the optional group ``tour``."""

import re
import subprocess
import sys

import pytest

from tests.support import ROOT


def test_the_tour_runs_as_a_script() -> None:
    """Every cell runs: all tasks are finished, one is retried, one is overtaken, and both latencies are measured."""
    pytest.importorskip(
        "marimo", reason="marimo is not installed: uv run --group tour pytest tests/examples/test_tour.py"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "dev" / "tour.py"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(
        r"enqueued 60 tasks\n"
        r"in the end: \{'pending': 0, 'in_progress': 0, 'success': (\d+), 'failed': (\d+)\}\n"
        r"task 61 opened at attempt 3\n"
        r"after ConnectionError and TaskTimeoutError\n"
        r"order: password mail, thumbnail, sync, report\n"
        r"three calls with one key: 1 task\n"
        r"worker in this process: median [\d.]+ ms, slowest [\d.]+ ms\n"
        r"worker in another process: median [\d.]+ ms, slowest [\d.]+ ms\n",
        done.stdout,
    )
    assert found, done.stdout
    assert int(found[1]) + int(found[2]) == 60
    log = done.stderr.splitlines()
    assert len(log) == int(found[2])
    assert all(line.endswith("(__main__:nap) failed with TimeoutError") for line in log)
