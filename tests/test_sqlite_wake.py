"""A commit of another process wakes who waits for it, after it can be seen; with inotify and without."""

import asyncio
import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue
from sitq.backends.sqlite import queries, wake
from sitq.backends.sqlite.wake import Watchers, touch
from sitq.models import Outcome
from tests.faults import connected, new_task, shared_folder
from tests.support import DEADLINE_SECONDS, start_python, until

NOBODY = 65534

PRODUCE = """
import asyncio, os, sys
from sitq import NewTask, SQLiteBackend

async def main():
    backend = SQLiteBackend(sys.argv[1])
    if os.geteuid() == 0 and len(sys.argv) > 2:
        os.setuid(int(sys.argv[2]))
    await backend.connect()
    for line in sys.stdin:
        await backend.enqueue([NewTask(line.strip(), b"")])
    await backend.close()

asyncio.run(main())
"""

FINISH = """
import asyncio, sys
from sitq import SQLiteBackend
from sitq.models import Outcome

async def main():
    backend = SQLiteBackend(sys.argv[1])
    await backend.connect()
    sys.stdin.readline()
    held = (await backend.reserve(1, lease=60, alone=True)).tasks
    await backend.mark_success([Outcome(task, b"value") for task in held])
    await backend.close()

asyncio.run(main())
"""


class NoReaders(asyncio.SelectorEventLoop):
    """An event loop that cannot watch descriptors, as Windows' usual one and some of other projects."""

    def add_reader[*Ts](self, fd: Any, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Cannot."""
        raise NotImplementedError


@pytest.fixture(params=["inotify", "no inotify", "no readers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the file is watched."""
    if request.param == "no inotify":
        monkeypatch.setattr(wake, "_libc", object)  # a C library without it
    elif request.param == "inotify" and sys.platform == "linux":
        assert wake._libc().inotify_init1
    return str(request.param)


def find_nothing(task_ids: Sequence[str], seen: object) -> asyncio.Future[tuple[object, Sequence[str]]]:
    """Stands for a query of the file, which nobody needs who waits for due tasks."""
    raise AssertionError("nobody waits for a result")


def run(way: str, main: Coroutine[Any, Any, None]) -> None:
    """Runs ``main`` in a loop that fits."""
    with asyncio.Runner(loop_factory=NoReaders if way == "no readers" else None) as runner:
        runner.run(main)


async def seen(changed: asyncio.Event, is_there: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Looks once for each time that it is woken, until what it waits for is there; never on its own account."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            await changed.wait()
            changed.clear()
            if await is_there():
                return


def test_each_task_of_another_process_wakes_a_watcher(path: Path, way: str) -> None:
    """One after the other, each is found by a check that was asked for after the wake-up."""

    async def main() -> None:
        changed = asyncio.Event()
        async with connected(SQLiteBackend(path)) as backend:
            process = start_python(PRODUCE, path, stdin=-1)
            assert process.stdin is not None
            with backend.watch(changed.set):
                for n in range(30):
                    process.stdin.write(f"task-{n}\n")
                    process.stdin.flush()

                    async def is_there(n: int = n) -> bool:
                        return await backend.get_result(f"task-{n}") is not None

                    await seen(changed, is_there)
            process.communicate()

    run(way, main())


def test_an_outcome_of_another_process_wakes_a_waiter(path: Path, way: str) -> None:
    """Whoever watches a task is told when it was finished elsewhere."""

    async def main() -> None:
        changed = asyncio.Event()
        async with connected(SQLiteBackend(path)) as backend:
            await backend.enqueue([new_task()])
            process = start_python(FINISH, path, stdin=-1)
            assert process.stdin is not None

            async def is_there() -> bool:
                found = await backend.get_result("task")
                return found is not None and found.value == b"value"

            with backend.watch(changed.set, task_id="task"):
                process.stdin.write("\n")
                process.stdin.flush()
                await seen(changed, is_there)
            process.communicate()

    run(way, main())


def test_a_wal_file_that_is_made_anew_is_still_watched(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted, missing for a while, made again: the next commit after that wakes."""
    wal = f"{path}-wal"
    missed = asyncio.Event()
    state = wake._PollWatch._state

    def told(watch: wake._PollWatch) -> tuple[int, int, int] | None:
        found = state(watch)
        if found is None:
            missed.set()
        return found

    monkeypatch.setattr(wake._PollWatch, "_state", told)

    async def main() -> None:
        changed = asyncio.Event()
        with Watchers(wal, find_nothing).watching(changed.set, None):
            for _ in range(3):
                with open(wal, "xb") as file:  # noqa: ASYNC230
                    file.write(b"a commit")
                touch(wal)
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await changed.wait()
                missed.clear()
                os.unlink(wal)
                if way != "inotify":  # who polls has seen that it is missing
                    async with asyncio.timeout(DEADLINE_SECONDS):
                        await missed.wait()
                changed.clear()

    run(way, main())


async def test_a_folder_that_cannot_be_watched_is_looked_at_instead(tmp_path: Path) -> None:
    """If the system has no watch to give, a wake-up comes all the same."""
    wal = tmp_path / "not there yet" / "queue.db-wal"
    changed = asyncio.Event()
    with Watchers(str(wal), find_nothing).watching(changed.set, None):
        os.mkdir(os.path.dirname(wal))
        os.close(os.open(wal, os.O_CREAT | os.O_WRONLY))
        touch(str(wal))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await changed.wait()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A file's place where other users may write."""
    with shared_folder(0o777) as folder:
        yield folder / "queue.db"


@pytest.fixture
async def open_to_all(shared: Path) -> AsyncIterator[SQLiteBackend]:
    """A backend on a file that its owner has opened to everybody."""
    async with connected(SQLiteBackend(shared)):
        pass
    os.chmod(shared, 0o666)
    async with connected(SQLiteBackend(shared)) as backend:
        await backend.enqueue([new_task("mine")])
        yield backend


async def test_a_task_of_another_user_wakes_a_watcher(shared: Path, open_to_all: SQLiteBackend) -> None:
    """Who may write the file but does not own it cannot set its times, and is heard all the same."""
    changed = asyncio.Event()
    process = start_python(PRODUCE, shared, NOBODY, stdin=-1)
    assert process.stdin is not None

    async def is_there() -> bool:
        return await open_to_all.get_result("theirs") is not None

    with open_to_all.watch(changed.set):
        process.stdin.write("theirs\n")
        process.stdin.flush()
        await seen(changed, is_there)
    _, errors = process.communicate()
    assert errors == ""


async def test_a_commit_elsewhere_is_one_query_for_all_who_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred callers wait; another connection finishes tasks, then one of theirs: one query for each change."""
    asked: list[int] = []
    look = queries.ended

    def counted(connection: Any, task_ids: Sequence[str], seen: object) -> tuple[object, Sequence[str]]:
        asked.append(len(task_ids))
        return look(connection, task_ids, seen)

    backend, other = SQLiteBackend(path), SQLiteBackend(path)
    async with TaskQueue(backend) as queue, connected(other):
        waited_for = await queue.enqueue_many(partial(str, n) for n in range(100))
        waiting = [asyncio.create_task(queue.get_result(task_id)) for task_id in waited_for]
        loop = asyncio.get_running_loop()
        await until(lambda: loop in backend._watchers._loops and len(backend._watchers._loops[loop]._callbacks) == 100)
        await asyncio.gather(*(backend.get_result(task_id) for task_id in waited_for))  # after the queries of their own
        monkeypatch.setattr("sitq.backends.sqlite.queries.ended", counted)
        single = 0
        look_at_one = queries.get_result

        def counted_single(connection: Any, task_id: str) -> Any:
            nonlocal single
            single += 1
            return look_at_one(connection, task_id)

        monkeypatch.setattr("sitq.backends.sqlite.queries.get_result", counted_single)
        (first,) = (await other.reserve(1, lease=60, alone=True)).tasks
        await other.mark_success([Outcome(first, pickle.dumps("done"))])
        result = await waiting[0]
        assert result is not None
        assert result.value == "done"
        assert single == 1
        assert 1 <= len(asked) <= 3  # the enqueue's touch may still be under way, and a check each second
        for task in waiting[1:]:
            assert not task.done()
            task.cancel()
        await asyncio.wait(waiting)
