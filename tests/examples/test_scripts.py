"""The examples that are scripts, each run as its docstring says, in processes of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import DEADLINE_SECONDS, ROOT, rows

TASK_ID = re.compile(r"[0-9a-f]{32}\n")


@contextmanager
def started(name: str, *arguments: object, queue_file: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Starts an example in a process of its own, with warnings as errors, and leaves none behind."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", ROOT / "examples" / name, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"QUEUE_FILE": str(queue_file), "PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def run(name: str, *arguments: object, queue_file: Path | None = None, status: int = 0) -> str:
    """Runs an example to its end and returns what it printed."""
    with started(name, *arguments, queue_file=queue_file) as process:
        printed, complaints = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, complaints) == (status, "")
    return printed


@contextmanager
def worker(name: str, argument: str, queue_file: Path, log: str = "") -> Iterator[subprocess.Popen[str]]:
    """Runs an example's worker for as long as the block takes; then SIGTERM ends it well, and it has logged ``log``."""
    with started(name, argument, queue_file=queue_file) as process:
        yield process
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert re.fullmatch(log, complaints), complaints


def test_a_script_gets_its_results_from_a_worker_in_another_process(path: Path, tmp_path: Path) -> None:
    """The digests are printed in the order of the files, each one right."""
    files = [tmp_path / f"file {n}" for n in range(5)]
    for n, file in enumerate(files):
        file.write_text("sitq" * n)
    with worker("script.py", "work", path):
        printed = run("script.py", *files, queue_file=path)
    expected = subprocess.run(["sha256sum", *files], capture_output=True, text=True, check=True).stdout
    assert printed == expected


def test_a_script_says_which_task_failed(path: Path, tmp_path: Path) -> None:
    """A file that is not there is named with the worker's error, and the script's status says so."""
    log = r"task [0-9a-f]{32} \(__main__:digest\) failed with FileNotFoundError\n"
    with worker("script.py", "work", path, log):
        printed = run("script.py", tmp_path / "missing", queue_file=path, status=1)
    assert printed.startswith(f"{tmp_path / 'missing'}: FileNotFoundError: ")


@pytest.mark.parametrize("name", ["script.py", "reminders.py"])
def test_an_example_that_needs_arguments_says_which(name: str, path: Path) -> None:
    """Called without any, it prints how it is used, does nothing, and ends with status 1."""
    with started(name, queue_file=path) as process:
        printed, complaints = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, printed) == (1, "")
    assert f"python examples/{name} " in complaints
    assert not path.exists()


def test_several_worker_processes_share_the_work() -> None:
    """Every prime is counted once, each task by one of the three processes, and who has begun ends well."""
    printed = run("processes.py")
    assert printed.startswith("6,057 primes below 60,000\n")
    assert sum(map(int, re.findall(r"ran (\d+) tasks", printed))) == 30
    found = re.search(r"\nthe workers exited with \[(.*)\]\n$", printed)
    assert found, printed
    codes = found[1].split(", ")
    # One that is still starting when the others have done everything dies of the signal that ends them.
    assert set(codes) <= {"0", "-15"}
    assert 1 <= len(re.findall(r"process \d+ ran", printed)) <= codes.count("0") <= len(codes) == 3


def test_reminders_come_in_the_order_of_their_etas(path: Path) -> None:
    """What is due first comes first, whenever it was enqueued, and nothing comes too early."""
    texts = {}
    for seconds in (0.6, 0.3, -60):
        task_id = run("reminders.py", "remind", seconds, f"in {seconds}", queue_file=path)
        assert TASK_ID.fullmatch(task_id)
        texts[task_id.strip()] = f"in {seconds}"
    # How long it takes to start a process decides which of them is due first.
    expected = [texts[row["task_id"]] for row in rows(path, "SELECT task_id FROM tasks ORDER BY available_at, id")]
    with worker("reminders.py", "deliver", path) as process:
        assert process.stdout is not None
        delivered = [process.stdout.readline() for _ in range(3)]
    assert [line.partition(" (")[0] for line in delivered] == expected
    assert all(re.search(r"\(from process \d+, on time\)", line) for line in delivered)


def test_the_scraper_fetches_each_page_once_and_respects_its_limit() -> None:
    """The server, which counts, never sees more than four requests under way, and does see some side by side."""
    printed = run("scraper.py")
    found = re.fullmatch(
        r"30 pages, the last one is called 'Page 29'\n30 requests, never more than (\d) at a time\n", printed
    )
    assert found, printed
    assert 1 < int(found[1]) <= 4
