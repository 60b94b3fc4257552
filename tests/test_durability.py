"""Power: which commits are synced to the disk before they are acknowledged.

What SQLite is told is checked everywhere; what the system is told, if there is a C compiler: a
small library counts the calls of fsync and fdatasync.
"""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite.batch import Durability
from sitq.models import Outcome
from tests.faults import connected, new_task, on_connection
from tests.support import DEADLINE_SECONDS, rows, start_python

SYNCED: dict[Durability, tuple[bool, bool]] = {
    "enqueue": (True, False),
    "full": (True, True),
    "normal": (False, False),
}
"""Whether commits that store tasks, and all other commits, are synced."""

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>

static int count;

int fsync(int file) {
    count++;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}

int fdatasync(int file) {
    count++;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}

int sync_count(void) { return count; }
"""

COUNTED = """
import asyncio, ctypes, sys
from sitq import NewTask, SQLiteBackend
from sitq.models import Outcome

synced = ctypes.CDLL(None).sync_count
path, durability = sys.argv[1:]
N = 20

async def steps(backend):
    before = synced()
    for n in range(N):
        await backend.enqueue([NewTask(str(n), b"")])
        yield "enqueue", synced() - before
        before = synced()
    for n in range(N):
        (held,) = (await backend.reserve(1, lease=9, alone=True)).tasks
        yield "reserve", synced() - before
        before = synced()
        await backend.renew([held], lease=9)
        yield "renew", synced() - before
        before = synced()
        await backend.mark_success([Outcome(held, b"")])
        yield "mark_success", synced() - before
        before = synced()
    await asyncio.gather(*(backend.enqueue([NewTask(f"burst-{n}", b"")]) for n in range(10 * N)))
    yield "burst", synced() - before

async def main():
    backend = SQLiteBackend(path, durability=durability)
    await backend.connect()
    await backend.enqueue([NewTask("first", b"")])  # the first frame of a WAL syncs its header
    (first,) = (await backend.reserve(1, lease=9, alone=True)).tasks
    await backend.mark_success([Outcome(first, b"")])
    async for name, count in steps(backend):
        print(name, count)
    await backend.close()

asyncio.run(main())
"""


class Commits:
    """What a connection wrote: the statements of each transaction, and whether its commit was synced."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []
        self._level = ""
        self._open: list[str] | None = None

    def trace(self, sql: str) -> None:
        """Takes a statement with its values; passed to ``set_trace_callback``."""
        word, *others = sql.split()
        if word == "PRAGMA" and others[0] == "synchronous":
            self._level = others[-1]
        elif word == "BEGIN":
            self._open = []
        elif word == "COMMIT":
            assert self._open is not None
            self._add("; ".join(self._open))
            self._open = None
        elif word in ("INSERT", "UPDATE", "DELETE"):
            if self._open is None:
                self._add(sql)
            else:
                self._open.append(sql)

    def _add(self, statements: str) -> None:
        self.seen.append((statements, self._level == "FULL"))

    def take(self) -> set[bool]:
        """Returns how the commits since the last call were synced."""
        taken = {full for _, full in self.seen}
        self.seen.clear()
        return taken

    async def watch(self, backend: SQLiteBackend) -> None:
        """Begins to take what ``backend`` does."""
        (level,) = await on_connection(backend, lambda connection: connection.execute("PRAGMA synchronous").fetchone())
        self._level = {1: "NORMAL", 2: "FULL"}[level]
        await on_connection(backend, lambda connection: connection.set_trace_callback(self.trace))


@pytest.mark.parametrize("durability", SYNCED)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh file", "known file"])
async def test_each_commit_is_synced_as_durability_says(path: Path, durability: Durability, fresh: bool) -> None:
    """One call after the other: those that store tasks, and the others, each as documented."""
    stores, others = SYNCED[durability]
    commits = Commits()
    backend, producer = SQLiteBackend(path, durability=durability), SQLiteBackend(path)
    first, second = (backend, producer) if fresh else (producer, backend)
    async with connected(first), connected(second):
        await producer.enqueue([new_task("a")])
        await commits.watch(backend)
        # Before this connection has stored a task: that of a worker may never do so.
        (a,) = (await backend.reserve(1, lease=9, alone=True)).tasks
        assert commits.take() == {others}
        await backend.renew([a], lease=9)
        assert commits.take() == {others}
        await backend.mark_success([Outcome(a, b"")])
        assert commits.take() == {others}
        await backend.enqueue([new_task("b"), new_task("c")])
        assert commits.take() == {stores}
        (b, c) = (await backend.reserve(2, lease=9, alone=True)).tasks
        await backend.mark_failure([Outcome(b, error="E: no")])
        assert commits.take() == {others}
        await backend.enqueue([new_task("d")])
        assert commits.take() == {stores}
        await backend.release([c])
        assert commits.take() == {others}


@pytest.mark.parametrize("durability", SYNCED)
async def test_calls_side_by_side_do_not_share_the_wrong_level(path: Path, durability: Durability) -> None:
    """A completion that comes between two enqueues never lets one of them go unsynced."""
    stores, _ = SYNCED[durability]
    commits = Commits()
    async with connected(SQLiteBackend(path, durability=durability)) as backend:
        await backend.enqueue([new_task(f"old-{n}") for n in range(200)])
        held = (await backend.reserve(200, lease=99, alone=True)).tasks
        await commits.watch(backend)

        async def finish(n: int) -> None:
            for _ in range(n % 7):
                await asyncio.sleep(0)
            await backend.mark_success([Outcome(held[n], b"")])

        async def store(n: int) -> None:
            for _ in range(n % 5):
                await asyncio.sleep(0)
            await backend.enqueue([new_task(f"new-{n}")])

        await asyncio.gather(*(call(n) for n in range(200) for call in (finish, store)))
    storing = [(statements, full) for statements, full in commits.seen if "'new-" in statements]
    assert sum(statements.count("'new-") for statements, _ in storing) >= 200
    assert {full for _, full in storing} == {stores}
    assert rows(path, "SELECT status, count(*) AS n FROM tasks GROUP BY status ORDER BY status") == [
        {"status": "pending", "n": 200},
        {"status": "success", "n": 200},
    ]


async def test_a_burst_of_calls_shares_a_few_commits(path: Path) -> None:
    """A thousand concurrent enqueues are stored by far fewer transactions than calls."""
    commits = Commits()
    async with connected(SQLiteBackend(path)) as backend:
        await commits.watch(backend)
        await asyncio.gather(*(backend.enqueue([new_task(str(n))]) for n in range(1000)))
    assert len(rows(path)) == 1000
    assert 0 < len(commits.seen) < 100


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that counts syncs."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("counting system calls needs Linux and a C compiler; what SQLite is told is tested without")
    folder = tmp_path_factory.mktemp("counter")
    source, library = folder / "counter.c", folder / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("durability", SYNCED)
def test_the_system_is_asked_to_sync_before_a_call_returns(
    path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """Counted after each call: a synced one has made at least one sync, the others none at all."""
    monkeypatch.setenv("LD_PRELOAD", str(counter))
    process = start_python(COUNTED, path, durability)
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, errors) == (0, "")
    counts: dict[str, list[int]] = {}
    for line in output.splitlines():
        name, count = line.split()
        counts.setdefault(name, []).append(int(count))
    (burst,) = counts.pop("burst")
    synced = {name: {count > 0 for count in some} for name, some in counts.items()}
    stores, others = SYNCED[durability]
    assert synced == {"enqueue": {stores}, "reserve": {others}, "renew": {others}, "mark_success": {others}}
    assert (0 < burst < 100) if stores else burst == 0
