"""A process may fork while it uses a queue: nothing is lost, and parent and child go on."""

import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite import guard
from tests.faults import assert_healthy, connected
from tests.scripts import run_script
from tests.support import rows

PROLOGUE = """
import asyncio, itertools, os, sqlite3, subprocess, sys, threading, time, warnings
from functools import partial
from sitq import BackendError, NewTask, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is the point
path = sys.argv[1]

def wait(children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0

def fork(run):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run()
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)

def look(then="; mine.close()"):
    # Another program that opens the file and closes it again, as `sitq status` does.
    code = "import os, sqlite3, sys; mine = sqlite3.connect(sys.argv[1]); mine.execute('SELECT 1 FROM tasks LIMIT 1')"
    subprocess.run([sys.executable, "-c", code + then, path], check=True)
"""

needs_lost_locks = pytest.mark.skipif(
    sqlite3.sqlite_version_info >= (3, 51, 0),
    reason="since 3.51.0 SQLite does not lose its locks by a close() in its process (sqlite.org/changes.html)",
)


def names(path: Path) -> list[str]:
    """Returns the ids of the stored tasks, sorted."""
    return sorted(row["task_id"] for row in rows(path, "SELECT task_id FROM tasks"))


@pytest.mark.parametrize("made", ["inherited", "new"])
def test_what_parent_and_child_enqueue_is_stored(path: Path, made: str) -> None:
    """While the parent writes without a pause, children store tasks, and another program looks; all of it is kept."""
    printed = run_script(
        PROLOGUE
        + """
backend = SQLiteBackend(path)
acknowledged = []

async def store(backend, prefix, numbers, stored=None):
    await backend.connect()
    for n in numbers:
        await backend.enqueue([NewTask(f"{prefix}-{n}", b"")])
        os.write(1, f"{prefix}-{n}\\n".encode())  # in one piece, as print() would not
        if stored is not None:
            stored.set()
    await backend.close()

def child(number):
    own = backend if sys.argv[2] == "inherited" else SQLiteBackend(path)
    asyncio.run(store(own, f"child{number}", range(10)))

async def parent():
    await backend.connect()
    stored, told = asyncio.Event(), []
    numbers = itertools.takewhile(lambda _: not told, itertools.count())
    writing = asyncio.create_task(store(backend, "parent", numbers, stored))
    children = []
    for number in range(5):
        stored.clear()
        await stored.wait()
        children.append(await asyncio.to_thread(fork, partial(child, number)))
        await asyncio.to_thread(look)
    told.append("to end")
    await writing
    await asyncio.to_thread(wait, children)
    await backend.close()

asyncio.run(parent())
""",
        path,
        made,
    )
    acknowledged = sorted(printed.split())
    assert len([name for name in acknowledged if name.startswith("child")]) == 50
    assert len([name for name in acknowledged if name.startswith("parent")]) > 5
    assert names(path) == acknowledged
    assert_healthy(path)


def test_the_child_of_a_thread_goes_on_although_another_thread_held_every_lock(path: Path) -> None:
    """Threads enqueue while others fork; each child stores its task with the queue that it inherited."""
    run_script(
        PROLOGUE
        + """
queue = SyncTaskQueue(SQLiteBackend(path))
stop = threading.Event()

def enqueue():
    while not stop.is_set():
        queue.enqueue(abs, 1)

threads = [threading.Thread(target=enqueue) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    wait([fork(lambda: queue.enqueue(len, "child"))])
stop.set()
for thread in threads:
    thread.join()
queue.close()
""",
        path,
    )
    called = Counter(row["name"] for row in rows(path))
    assert called["builtins:len"] == 20
    assert called["builtins:abs"] > 0
    assert_healthy(path)


def test_a_worker_runs_in_each_process(path: Path, tmp_path: Path) -> None:
    """A worker in the parent and one in a child take every task once, although the parent was connected first."""
    log = tmp_path / "log"
    run_script(
        PROLOGUE
        + """
def note(number):
    handle = os.open(sys.argv[2], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(handle, f"{number}\\n".encode())
    os.close(handle)

async def drain(backend):
    await Worker(backend, max_concurrency=4, lease=60).drain()

async def begin(backend):
    queue = TaskQueue(backend)
    await queue.enqueue_many(partial(note, number) for number in range(400))
    return queue

backend = SQLiteBackend(path)
asyncio.run(begin(backend))
child = fork(lambda: asyncio.run(drain(backend)))
asyncio.run(drain(backend))
wait([child])
asyncio.run(drain(backend))
asyncio.run(backend.close())
""",
        path,
        log,
    )
    assert sorted(map(int, log.read_text().split())) == list(range(400))
    assert {row["status"] for row in rows(path)} == {"success"}
    assert_healthy(path)


def test_a_child_is_refused_what_could_not_be_closed_in_time(path: Path) -> None:
    """If a statement goes on for longer than the fork waits, the child gets a clear error, and the parent goes on."""
    printed = run_script(
        PROLOGUE
        + """
from sitq import _forks
_forks.CLOSING_SECONDS = 0.05
busy, go_on = threading.Event(), threading.Event()

def clock():
    if busy_now:
        busy.set()
        go_on.wait()
    return time.time()

async def store(backend, task_id):
    await backend.connect()
    await backend.enqueue([NewTask(task_id, b"")])

def child():
    global busy_now
    busy_now = False
    for backend_of_child in (backend, SQLiteBackend(path)):
        try:
            asyncio.run(store(backend_of_child, "child"))
        except BackendError as error:
            print(type(error).__name__, "subprocess" in str(error))

busy_now = False
backend = SQLiteBackend(path, clock=clock)
asyncio.run(store(backend, "first"))
busy_now = True
thread = threading.Thread(target=lambda: asyncio.run(store(backend, "second")))
thread.start()
busy.wait()
wait([fork(child)])
busy_now = False
go_on.set()
thread.join()
asyncio.run(store(backend, "third"))
""",
        path,
    )
    assert printed.splitlines() == ["BackendError True"] * 2
    assert names(path) == ["first", "second", "third"]
    assert_healthy(path)


def test_an_interrupt_that_comes_while_a_fork_waits_is_not_lost(path: Path) -> None:
    """The child has its queue all the same, and the parent gets the KeyboardInterrupt once it has forked."""
    printed = run_script(
        PROLOGUE
        + """
import signal
from sitq import _forks

class Interrupts(threading.Condition):
    # As if Ctrl-C were pressed when the fork has just begun to wait.
    interrupted = False

    def wait_for(self, *arguments):
        if not self.interrupted:
            self.interrupted = True
            signal.raise_signal(signal.SIGINT)
        return super().wait_for(*arguments)

queue = SyncTaskQueue(SQLiteBackend(path))
queue.enqueue(len, "a")
_forks._turn = Interrupts()
children = []
try:
    children.append(fork(lambda: queue.enqueue(len, "b")))
    print("forked")
    threading.Event().wait(20)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
wait(children)
queue.enqueue(len, "c")
queue.close()
""",
        path,
    )
    assert printed.split() == ["forked", "interrupted"]
    assert len(names(path)) == 3
    assert_healthy(path)


def test_a_queue_in_memory_stays_with_the_parent() -> None:
    """The child gets a clear error, and the parent keeps its tasks."""
    printed = run_script(
        PROLOGUE
        + """
backend = SQLiteBackend(":memory:")

async def store(task_id):
    await backend.connect()
    await backend.enqueue([NewTask(task_id, b"")])

def child():
    try:
        asyncio.run(store("child"))
    except BackendError as error:
        print("in memory" in str(error))

asyncio.run(store("first"))
wait([fork(child)])
asyncio.run(store("second"))
print([asyncio.run(backend.get_result(name)) is not None for name in ("first", "second", "child")])
""",
        ":memory:",
    )
    assert printed.splitlines() == ["True", "[True, True, False]"]


def test_a_fork_leaves_no_descriptor_open_in_the_child(path: Path) -> None:
    """The child of a process with an open queue holds neither the file nor its -wal file."""
    printed = run_script(
        PROLOGUE
        + """
queue = SyncTaskQueue(SQLiteBackend(path))
queue.enqueue(len, "a")

def links():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # of the listing itself
            pass

def child():
    print([link for link in links() if link.startswith(path)])

wait([fork(child)])
queue.close()
""",
        path,
    )
    assert printed.strip() == "[]"


SNIFFS = """
backend = SQLiteBackend(path)

async def main():
    await backend.connect()
    for n in range(30):
        await backend.enqueue([NewTask(f"task-{n}", b"")])
        if n % 10 == 5:
            with open(path, "rb") as file:  # drops every POSIX lock of this process on the file
                file.read(16)
            look()
        print(f"task-{n}", flush=True)  # it is killed

asyncio.run(main())
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks that belong to a descriptor")
def test_code_that_reads_the_file_in_our_process_does_not_lose_tasks(path: Path) -> None:
    """Another program that opens and closes the file meets a lock that survived, and leaves the -wal file."""
    process = subprocess.run(
        [sys.executable, "-c", PROLOGUE + SNIFFS, str(path)], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == -9, process.stderr
    assert names(path) == sorted(process.stdout.split())
    assert_healthy(path)


@pytest.mark.parametrize(
    "way",
    ["deleted", pytest.param("taken away by another program that closed the file", marks=needs_lost_locks)],
)
def test_what_is_in_a_deleted_wal_file_is_rescued(path: Path, way: str) -> None:
    """Without the surviving lock, or by hand: what was acknowledged is in the file, and the backend goes on."""
    printed = run_script(
        PROLOGUE
        + """
from sitq.backends.sqlite import guard
guard.hold = lambda *_: None  # as on a system without such locks
backend = SQLiteBackend(path)

async def main():
    await backend.connect()
    for n in range(30):
        await backend.enqueue([NewTask(f"task-{n}", b"")])
        if n % 10 == 5:
            if sys.argv[2] == "deleted":
                os.unlink(path + "-wal")
            else:
                with open(path, "rb") as file:
                    file.read(16)
                look()
            assert not os.path.exists(path + "-wal")
    await backend.close()

asyncio.run(main())
""",
        path,
        way,
    )
    assert printed == ""
    assert names(path) == sorted(f"task-{n}" for n in range(30))
    assert_healthy(path)


@needs_lost_locks
async def test_a_replaced_wal_file_is_an_error_for_the_call_that_was_written_into_it(path: Path) -> None:
    """What went into a file that nobody can find is not acknowledged, and the next call works."""
    run_script(
        PROLOGUE
        + """
from sitq import BackendUnavailableError
from sitq.backends.sqlite import guard
guard.hold = lambda *_: None
backend = SQLiteBackend(path, clock=lambda: clock())
clock = time.time

def replacing():
    # Asked at the beginning of a batch: after the check for the -wal file, before the commit.
    global clock
    clock = time.time
    open(path).close()
    look()  # takes the -wal file away
    look("; os._exit(0)")
    assert os.path.exists(path + "-wal")  # made anew by a program that did not close it
    return time.time()

async def main():
    global clock
    await backend.connect()
    await backend.enqueue([NewTask("before", b"")])
    clock = replacing
    try:
        await backend.enqueue([NewTask("lost", b"")])
    except BackendUnavailableError as error:
        assert "-wal" in str(error)
    else:
        raise AssertionError("acknowledged")
    await backend.enqueue([NewTask("after", b"")])
    await backend.close()

asyncio.run(main())
""",
        path,
    )
    assert names(path) == ["after", "before"]
    assert_healthy(path)


def test_a_look_of_our_own_process_keeps_its_locks_when_the_backend_closes(path: Path) -> None:
    """The descriptor of the lock is not closed while the application has the file open by itself."""
    run_script(
        PROLOGUE
        + """
queue = SyncTaskQueue(SQLiteBackend(path))
queue.enqueue(len, "a")
mine = sqlite3.connect(path, isolation_level=None)
mine.execute("SELECT count(*) FROM tasks").fetchone()
queue.close()
look()
assert os.path.exists(path + "-wal")  # my lock is still seen
mine.execute("UPDATE tasks SET name = 'mine'")
mine.close()
""",
        path,
    )
    assert [row["name"] for row in rows(path)] == ["mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks that belong to a descriptor")
def test_the_child_does_not_drop_the_lock_of_its_parent(path: Path) -> None:
    """A queue was closed before the fork, while other code had the file open: each side takes a lock of its own."""
    run_script(
        PROLOGUE
        + """
mine = open(path, "xb", 0)  # as code does that keeps the file open; sitq keeps its descriptor then
queue = SyncTaskQueue(SQLiteBackend(path))
queue.enqueue(len, "a")
queue.close()

def child():
    queue.enqueue(len, "b")
    queue.close()

queue.enqueue(len, "c")
queue.close()
child_pid = fork(child)
queue.enqueue(len, "d")
wait([child_pid])
mine.close()  # drops the POSIX locks of this process
look()
assert os.path.exists(path + "-wal")
queue.close()
""",
        path,
    )
    assert len(names(path)) == 4


async def test_a_backend_without_a_lock_leaves_that_of_another_one_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one got no descriptor for it; when it closes, the second one's lock stays."""
    first, second = SQLiteBackend(path), SQLiteBackend(path)
    with monkeypatch.context() as patch:
        patch.setattr(guard, "hold", lambda *_: False)
        await first.connect()
    async with connected(second):
        identity = guard.identity_of(str(path))
        assert guard._guards[identity].users == 1
        await first.close()
        assert guard._guards[identity].users == 1


def test_a_grandchild_is_refused_a_queue_in_memory_as_well() -> None:
    """However many forks lie between, the queue is that of the process that made it."""
    printed = run_script(
        PROLOGUE
        + """
backend = SQLiteBackend(":memory:")

async def store(task_id):
    await backend.connect()
    await backend.enqueue([NewTask(task_id, b"")])

def grandchild():
    try:
        asyncio.run(store("grandchild"))
    except BackendError as error:
        print("in memory" in str(error))

asyncio.run(store("first"))
wait([fork(lambda: wait([fork(grandchild)]))])
""",
        ":memory:",
    )
    assert printed.strip() == "True"
