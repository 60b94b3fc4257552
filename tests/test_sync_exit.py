"""A queue never keeps a program from ending, and works in the child of a fork: real programs, to their end."""

from pathlib import Path

import pytest

from tests.scripts import RUN_FILE, run_script
from tests.support import rows

PROLOGUE = """
import asyncio, atexit, multiprocessing, os, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is the point

def attempt(function, *args):
    try:
        return bool(function(*args))
    except Exception as error:
        return type(error).__name__

path = sys.argv[1]
queue = SyncTaskQueue(SQLiteBackend(path))
"""

ENDINGS = {
    "closed": "queue.enqueue(len, 'a'); queue.close()",
    "not closed": "queue.enqueue(len, 'a')",
    "left by its block": "with queue: queue.enqueue(len, 'a')",
    "sys.exit within its block": "with queue: queue.enqueue(len, 'a'); sys.exit(0)",
    "sys.exit without closing": "queue.enqueue(len, 'a'); sys.exit(0)",
    "forgotten": "queue.enqueue(len, 'a'); del queue",
    "held by a cycle": "queue.enqueue(len, 'a'); cycle = [queue]; cycle.append(cycle); del queue, cycle",
    "closed by atexit": "atexit.register(queue.close); queue.enqueue(len, 'a')",
    "used and closed by atexit": """
def at_exit():
    attempt(queue.enqueue, len, 'b'); attempt(queue.get_result, 'x'); queue.close(); queue.close()
atexit.register(at_exit)
queue.enqueue(len, 'a')
""",
    "first used by atexit": """
def at_exit():
    attempt(queue.enqueue, len, 'b'); attempt(queue.enqueue, len, 'b'); queue.close()
atexit.register(at_exit)
SyncTaskQueue(SQLiteBackend(path)).enqueue(len, 'a')
""",
    "closed by a finalizer": """
class Holder:
    def __del__(self, close=queue.close): close()
holder = Holder()
queue.enqueue(len, 'a')
""",
    "a daemon thread waits": """
task_id = queue.enqueue(len, 'a')
started = threading.Event()
def wait(): started.set(); queue.get_result(task_id)
threading.Thread(target=wait, daemon=True).start()
started.wait()
""",
    "many queues not closed": "[SyncTaskQueue(SQLiteBackend(path)).enqueue(len, 'a') for _ in range(5)]; rest = queue",
    "two queues on one backend": """
backend = SQLiteBackend(path)
one, two = SyncTaskQueue(backend), SyncTaskQueue(backend)
one.enqueue(len, 'a'); two.enqueue(len, 'b'); one.close()
""",
    "an async queue not closed": "asyncio.run(TaskQueue(SQLiteBackend(path)).enqueue(len, 'a'))",
    "an async queue beside it": """
queue.enqueue(len, 'a')
asyncio.run(TaskQueue(SQLiteBackend(path)).enqueue(len, 'a'))
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_queue_does_not_hold_up_the_exit(path: Path, ending: str) -> None:
    """The program ends by itself with status 0 and without a complaint, and what it enqueued is in the file."""
    assert run_script(PROLOGUE + ENDINGS[ending], path) == ""
    Path(f"{path}-wal").unlink(missing_ok=True)  # a copy of the file alone has it, too
    assert {row["status"] for row in rows(path)} == {"pending"}


@pytest.mark.parametrize(
    "ending",
    [
        "raise KeyError('end')",
        "with queue: raise KeyError('end')",
        "async_queue = TaskQueue(SQLiteBackend(path)); asyncio.run(async_queue.get_result('x')); raise KeyError('end')",
        "asyncio.run(TaskQueue(SQLiteBackend(path)).enqueue(len, 'a', eta='wrong'))",
    ],
)
def test_a_program_that_ends_by_an_exception_ends(path: Path, ending: str) -> None:
    """Its status is 1, with the queue open or in its block."""
    run_script(PROLOGUE + "queue.enqueue(len, 'a')\n" + ending, path, status=1)
    assert len(rows(path)) == 1


@pytest.mark.parametrize("first_use", [True, False])
def test_threads_that_outlive_the_main_thread_may_enqueue(path: Path, first_use: bool) -> None:
    """The interpreter waits for such threads, and the queue serves them until the last one has ended."""
    printed = run_script(
        PROLOGUE
        + ("" if first_use else "queue.enqueue(len, 'a')\n")
        + """
def late():
    threading.main_thread().join()
    for _ in range(20):
        queue.enqueue(len, 'b')
    sys.stdout.write("enqueued\\n")  # in one piece, as print() would not

for _ in range(3):
    threading.Thread(target=late).start()
""",
        path,
    )
    assert printed.split() == ["enqueued"] * 3
    assert len(rows(path)) == 60 + (not first_use)


def test_a_pool_that_outlives_the_main_thread_may_enqueue(path: Path) -> None:
    """What was submitted to a pool of threads is enqueued at the end of the program."""
    run_script(
        PROLOGUE + "pool = ThreadPoolExecutor(4); [pool.submit(queue.enqueue, len, 'a') for _ in range(50)]", path
    )
    assert len(rows(path)) == 50


FORKED = """
child = os.fork()
if child == 0:
    print(attempt(queue.enqueue, len, 'child'), attempt(queue.get_result, 'x'), flush=True)
    queue.close()
    sys.exit(0)
print(os.waitpid(child, 0)[1], attempt(queue.enqueue, len, 'parent'))
"""


@pytest.mark.parametrize(
    "before",
    ["", "queue.enqueue(len, 'before'); queue.close()", "queue.enqueue(len, 'before')"],
    ids=["unused", "closed", "open"],
)
def test_a_queue_may_be_used_after_a_fork(path: Path, before: str) -> None:
    """Parent and child each connect for themselves."""
    printed = run_script(f"{PROLOGUE}\n{before}\n{FORKED}", path)
    assert printed.splitlines() == ["True False", "0 True"]
    assert len(rows(path)) == 2 + bool(before)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_process_may_have_a_queue_of_its_own(path: Path, tmp_path: Path, method: str) -> None:
    """With an open queue in the parent, the child makes one, does not close it, and ends."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import multiprocessing, sys, warnings
from sitq import SQLiteBackend, SyncTaskQueue

def child(path):
    SyncTaskQueue(SQLiteBackend(path)).enqueue(len, "child")

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    queue = SyncTaskQueue(SQLiteBackend(sys.argv[1]))
    queue.enqueue(len, "parent")
    process = multiprocessing.get_context(sys.argv[2]).Process(target=child, args=(sys.argv[1],))
    process.start()
    process.join()
    print(process.exitcode)
"""
    )
    assert run_script(RUN_FILE, script, path, method).strip() == "0"
    assert len(rows(path)) == 2


def test_a_close_that_is_interrupted_leaves_no_thread_and_no_descriptor(path: Path) -> None:
    """Ctrl-C while close() waits: the thread ends by itself, and the queue can be used and closed again."""
    run_script(
        PROLOGUE
        + """
import signal
from sitq import SQLiteBackend

class SlowBackend(SQLiteBackend):
    async def close(self):
        closing.set()
        await asyncio.to_thread(go_on.wait)
        await super().close()

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def interrupt():
    closing.wait()
    # Another thread would not be woken by it, nor is this one by a signal that comes just before it waits: so again.
    while not go_on.wait(0.05):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

def once(number, frame):
    global is_due
    if is_due:
        is_due = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, once)

queue = SyncTaskQueue(SlowBackend(path))
before = descriptors()
for _ in range(3):
    is_due, closing, go_on = True, threading.Event(), threading.Event()
    queue.enqueue(len, "a")
    thread = queue._portal._thread
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        queue.close()
    except KeyboardInterrupt:
        go_on.set()
    else:
        raise AssertionError("not interrupted")
    thread.join()
    interrupter.join()
queue.enqueue(len, "b")
queue.close()
queue.close()
assert descriptors() == before, (descriptors(), before)
assert not [thread for thread in threading.enumerate() if thread.name == "sitq-sync"]
""",
        path,
    )
    assert len(rows(path)) == 4


def test_an_exit_with_closed_descriptors_ends(path: Path) -> None:
    """A program that closes all of its descriptors, as daemons do, and then exits is not held up by its queue."""
    # The loop of the queue's thread complains of its own descriptors.
    run_script(PROLOGUE + "queue.enqueue(len, 'a'); os.closerange(3, 1000); sys.exit(0)", path, quiet=False)
