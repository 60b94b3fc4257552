"""Programs that fork while they use a queue: multiprocessing, a preforking server, a daemon.

Each of them appends the id of every task that was acknowledged to a file, in one write.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path

from sitq import SQLiteBackend, SyncTaskQueue, Worker
from tests.faults import assert_healthy
from tests.support import DEADLINE_SECONDS, ROOT, Runs, log_plain, rows, start_python

PROCESSES = 3
"""Worker processes of the server."""

WORKING_SECONDS = 0.2

APPLICATION = """
import os, threading
from pathlib import Path
from sitq import SQLiteBackend, SyncTaskQueue
from tests.storm.forks import enqueue
from tests.support import Runs

queue = SyncTaskQueue(SQLiteBackend(os.environ["QUEUE"]))
acknowledged, runs = Runs(Path(os.environ["ACKNOWLEDGED"])), Runs(Path(os.environ["RUNS"]))
enqueue(queue, acknowledged, runs)  # in the master, before it forks

def app(environ, start_response):
    enqueue(queue, acknowledged, runs)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def enqueue(queue: SyncTaskQueue, acknowledged: Runs, runs: Runs) -> None:
    """Enqueues a task that logs its run, and notes its id."""
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    acknowledged.add(f"{queue.enqueue(log_plain, runs, name)} {name}")


def look(path: Path) -> None:
    """Opens the file in another program and closes it, as the command line does."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM tasks').fetchone()"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def produce(path: Path, acknowledged: Runs, runs: Runs, inherited: SyncTaskQueue | None, count: int) -> None:
    """The child of a fork: enqueues with its parent's queue, or with one of its own."""
    queue = inherited or SyncTaskQueue(SQLiteBackend(path))
    for _ in range(count):
        enqueue(queue, acknowledged, runs)


def work(path: Path) -> None:
    """The child of a fork: runs what is due, for a while, because its parent goes on enqueueing."""

    async def serve() -> None:
        async with Worker(SQLiteBackend(path), lease=60, shutdown_timeout=5):
            await asyncio.sleep(WORKING_SECONDS)  # whatever comes meanwhile is work; none of it is waited for

    asyncio.run(serve())


def fork_and_enqueue(path: Path, acknowledged: Runs, runs: Runs, *, children: int) -> None:
    """A program whose threads enqueue while it forks; some of its children are killed, others work."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is the point
    queue = SyncTaskQueue(SQLiteBackend(path))
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            enqueue(queue, acknowledged, runs)

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        fork_children(path, acknowledged, runs, queue, children)
    finally:
        stop.set()  # or a failure would leave a program that never ends
        for thread in threads:
            thread.join()
    queue.close()


def fork_children(path: Path, acknowledged: Runs, runs: Runs, queue: SyncTaskQueue, children: int) -> None:
    """Forks one child after the other; each enqueues or works, and must end well unless it is killed."""
    chance = random.Random(children)
    context = multiprocessing.get_context("fork")
    for n in range(children):
        inherited = queue if n % 2 else None
        target: Callable[[], None] = partial(produce, path, acknowledged, runs, inherited, 20)
        if n % 5 == 4:
            target = partial(work, path)
        child = context.Process(target=target)
        child.start()
        if n % 3 == 2:
            child.join(chance.random() * 0.2)
            child.kill()
        look(path)
        child.join()
        assert child.exitcode == 0 or n % 3 == 2, (n, child.exitcode)


def daemonize(path: Path, acknowledged: Runs, runs: Runs) -> None:
    """A program that uses its queue, becomes a daemon as programs of old do, and goes on with the same queue."""
    warnings.simplefilter("ignore", DeprecationWarning)
    queue = SyncTaskQueue(SQLiteBackend(path))
    enqueue(queue, acknowledged, runs)
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        assert os.read(reading, 1) == b"."  # the daemon is done
        enqueue(queue, acknowledged, runs)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for _ in range(20):
        enqueue(queue, acknowledged, runs)
    os.write(writing, b".")
    os._exit(0)


@contextlib.contextmanager
def preforking_server(path: Path, acknowledged: Runs, runs: Runs) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Gunicorn with preload, whose master has the queue open; gives its process and its address."""
    (path.parent / "application.py").write_text(APPLICATION)
    environment = {"QUEUE": str(path), "ACKNOWLEDGED": str(acknowledged.path), "RUNS": str(runs.path)}
    # A process that is asked to end before it has handlers of its own does not hear of it: the master kills it later.
    options = ["--preload", f"--workers={PROCESSES}", "--graceful-timeout=5", "--bind=127.0.0.1:0"]
    options += [f"--chdir={path.parent}", "application:app"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--no-control-socket", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"},
    )
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if "Listening at: " in line:
                address = line.partition("Listening at: ")[2].split()[0]
                break
        else:
            raise AssertionError("the server did not start")
        drained = threading.Thread(target=server.stderr.read, daemon=True)  # or it stops when the pipe is full
        drained.start()
        yield server, address
    finally:
        server.terminate()
        server.wait(DEADLINE_SECONDS)
        drained.join()
        server.stderr.close()


def visit(server: "subprocess.Popen[str]", address: str, path: Path, requests: int) -> None:
    """Asks the server again and again, from threads, while its processes are killed and replaced."""

    def ask() -> None:
        for _ in range(requests):
            # A request whose process is killed has no answer, and acknowledges nothing.
            with (
                contextlib.suppress(OSError, HTTPException),
                urllib.request.urlopen(address, timeout=DEADLINE_SECONDS) as answer,
            ):
                answer.read()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for child in children_of(server.pid):
            look(path)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        server.send_signal(signal.SIGHUP)  # the master starts new processes
        threads[0].join(0.3)
    for thread in threads:
        thread.join()


def children_of(pid: int) -> Iterable[int]:
    """Returns the processes that ``pid`` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def check(path: Path, acknowledged: Runs, runs: Runs) -> int:
    """Runs what is left, and asserts that each acknowledged task is there and was run; returns how many these are."""
    assert_healthy(path)
    asyncio.run(_drain(path))
    pairs = dict(line.split() for line in acknowledged.lines())
    stored = {row["task_id"]: row["status"] for row in rows(path, "SELECT task_id, status FROM tasks")}
    assert {task_id for task_id in pairs if stored.get(task_id) != "success"} == set()
    assert set(pairs.values()) - set(runs.lines()) == set()
    assert_healthy(path)
    return len(pairs)


async def _drain(path: Path) -> None:
    await Worker(SQLiteBackend(path, clock=lambda: time.time() + 3600), max_concurrency=50).drain()  # leases are over


def run(role: str, path: Path, acknowledged: Runs, runs: Runs, **settings: int) -> None:
    """Runs one of the programs of this module to its end."""
    arguments = f"Path({str(path)!r}), Runs(Path({str(acknowledged.path)!r})), Runs(Path({str(runs.path)!r}))"
    code = f"from pathlib import Path\nfrom tests.support import Runs\nfrom tests.storm.forks import {role}\n"
    with start_python(f"{code}{role}({arguments}, **{settings})", start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=DEADLINE_SECONDS * 5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children as well
            raise
    assert (process.returncode, output, errors) == (0, "", "")
