"""A place to try sitq by hand, and its main job on real input.

One task for each ``.py`` file of the running Python's standard library: hash it, count its lines and
functions, find its longest line. Two worker processes on one queue file do the work while this
process shows how far they are; then every result is checked against a direct computation.

Run it with ``uv run playground.py``. It leaves nothing behind.
"""

import ast
import asyncio
import hashlib
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sitq import Result, SQLiteBackend, TaskQueue, Worker

WORKERS = 2
SLOTS = 4
SHOW_EVERY_SECONDS = 1.0
NOT_OURS = {"site-packages", "__pycache__"}


@dataclass(frozen=True)
class Summary:
    """What a task finds out about a file."""

    sha256: str
    lines: int
    functions: int
    longest_line: int


def summarize(path: Path) -> Summary:
    """The task: a plain function, so the worker runs it in a thread."""
    data = path.read_bytes()
    lines = data.splitlines()
    try:
        with warnings.catch_warnings(action="ignore"):  # the library's tests have odd escapes
            tree = ast.parse(data)
    except (SyntaxError, ValueError):  # some of the library's test data is broken on purpose
        functions = 0
    else:
        functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))
    return Summary(
        sha256=hashlib.sha256(data).hexdigest(),
        lines=len(lines),
        functions=functions,
        longest_line=max(map(len, lines), default=0),
    )


def library_files() -> list[Path]:
    """Every source file of the standard library, without what was installed into it."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if not NOT_OURS & set(path.parts))


async def work(queue_file: str) -> None:
    """One worker process: runs until SIGTERM."""
    await Worker(SQLiteBackend(queue_file), max_concurrency=SLOTS).run()


async def show_progress(queue: TaskQueue, ids: list[str]) -> None:
    """Shows how many tasks are finished, until all are."""
    started = time.monotonic()
    finished = 0
    while finished < len(ids):
        deadline = time.monotonic() + SHOW_EVERY_SECONDS
        # Tasks are taken oldest first: wait for the first one that is missing, and look on from there.
        while finished < len(ids) and (left := deadline - time.monotonic()) > 0:
            if await queue.get_result(ids[finished], timeout=left) is not None:
                finished += 1
        print(f"  {finished:5,} of {len(ids):,} finished after {time.monotonic() - started:4.1f} s", flush=True)


async def main(folder: Path) -> int:
    """Enqueues, watches, checks; returns the exit code."""
    files = library_files()
    queue_file = folder / "playground.db"
    print(f"The standard library of Python {sys.version.split()[0]} has {len(files):,} source files.")
    async with TaskQueue(SQLiteBackend(queue_file)) as queue:
        started = time.perf_counter()
        ids = await queue.enqueue_many(partial(summarize, path) for path in files)
        print(f"Enqueued one task for each in {time.perf_counter() - started:.2f} s, in one transaction.")
        workers = [subprocess.Popen([sys.executable, __file__, "work", queue_file]) for _ in range(WORKERS)]
        print(f"Started {WORKERS} worker processes with {SLOTS} slots each on the same file.")
        try:
            started = time.perf_counter()
            await show_progress(queue, list(ids))
            elapsed = time.perf_counter() - started
        finally:
            for worker in workers:
                worker.terminate()
            codes = [worker.wait() for worker in workers]
        print(f"Stopped the workers with SIGTERM; they exited with {codes}.")
        results = [await queue.get_result(task_id, timeout=0) for task_id in ids]
        size = queue_file.stat().st_size
    print("Checking every result against a direct computation …", flush=True)
    return report(files, results, elapsed, size, codes)


def report(
    files: list[Path], results: list[Result[Summary] | None], elapsed: float, size: int, codes: list[int]
) -> int:
    """Prints the table and what does not agree; returns the exit code."""
    wrong = [
        path
        for path, result in zip(files, results, strict=True)
        if result is None or result.status != "success" or result.value != summarize(path)
    ]
    values = [result.value for result in results if result is not None and result.value is not None]
    longest = max(values, key=lambda value: value.longest_line)
    table = {
        "files": f"{len(files):,}",
        "lines": f"{sum(value.lines for value in values):,}",
        "functions": f"{sum(value.functions for value in values):,}",
        "longest line": f"{longest.longest_line:,} bytes",
        "different contents": f"{len({value.sha256 for value in values}):,}",
        "tasks per second": f"{len(files) / elapsed:,.0f}",
        "started more than once": f"{sum(result is not None and result.attempt > 1 for result in results):,}",
        "queue file": f"{size / 1_000_000:.1f} MB",
    }
    print()
    for name, value in table.items():
        print(f"  {name:<24}{value:>16}")
    print()
    for path in wrong:
        print(f"  wrong: {path}")
    # A worker that is still starting when the others have done everything dies of the signal, and of nothing else.
    if wrong or not set(codes) <= {0, -signal.SIGTERM}:
        print(f"FAILED: {len(wrong)} of {len(files):,} results are wrong; the workers exited with {codes}.")
        return 1
    print(f"All {len(files):,} results agree with a direct computation. The queue file is deleted.")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        asyncio.run(work(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory(prefix="sitq-playground-") as temporary:
            sys.exit(asyncio.run(main(Path(temporary))))
