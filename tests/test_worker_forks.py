"""A task that forks: the child does not become a second worker, and one that ends by itself works as ever."""

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from tests.faults import assert_healthy
from tests.scripts import run_script
from tests.support import Runs, rows

DRAIN = """
import asyncio, pathlib, sys
from sitq import SQLiteBackend, TaskQueue, Worker
from tests import test_worker_forks
from tests.support import Runs

async def main():
    backend = SQLiteBackend(sys.argv[1])
    async with TaskQueue(backend) as queue:
        await queue.enqueue(getattr(test_worker_forks, sys.argv[3]), Runs(pathlib.Path(sys.argv[2])))
        print(await Worker(backend).drain())

asyncio.run(main())
"""
"""In a process of its own: pytest's must not be forked, nor ended."""


def fork(runs: Runs) -> int:
    """Forks; the child gives back 0, and its parent the child's exit status."""
    child = os.fork()
    if child == 0:
        runs.add("child")
        return 0
    runs.add("parent")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_and_return(runs: Runs) -> int:
    """A plain function whose child returns from the task."""
    return fork(runs)


def fork_and_raise(runs: Runs) -> int:
    """A plain function whose child raises."""
    if status := fork(runs):
        return status
    raise ValueError("in the child")


async def fork_in_a_coroutine(runs: Runs) -> int:
    """A coroutine whose child returns from the task."""
    return fork(runs)


async def fork_and_go_on(runs: Runs) -> int:
    """A coroutine whose child goes on in the event loop and never returns."""
    if (child := os.fork()) == 0:
        runs.add("child")
        while True:  # noqa: ASYNC110 - it never ends by itself
            await asyncio.sleep(0)
    runs.add("parent")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222 - the loop must not turn here


def fork_and_exit(runs: Runs) -> int:
    """A plain function whose child ends as it should."""
    if (child := os.fork()) == 0:
        runs.add("child")
        os._exit(7)
    runs.add("parent")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_process(runs: Runs) -> int:
    """A plain function that works in a process of multiprocessing's, which has a worker of its own."""
    process = multiprocessing.get_context("fork").Process(target=run_a_worker, args=(runs,))
    process.start()
    process.join()
    runs.add("parent")
    return process.exitcode or 7


async def in_a_process_of_a_coroutine(runs: Runs) -> int:
    """The same in a coroutine."""
    return in_a_process(runs)


def run_a_worker(runs: Runs) -> None:
    """Runs a task of its own, on a file of its own."""

    async def main() -> int:
        backend = SQLiteBackend(runs.path.with_name("inner.db"))
        async with TaskQueue(backend) as queue:
            await queue.enqueue(runs.add, "child")
            return await Worker(backend).drain()

    assert asyncio.run(main()) == 1


def drain(task: Callable[..., Any], path: Path, runs: Runs) -> tuple[int, str]:
    """Drains a queue with one task; returns what that returned, and what was printed to stdout and stderr."""
    code = f"import os; os.dup2(1, 2)\n{DRAIN}"
    printed = run_script(code, path, runs.path, task.__name__)
    (row,) = rows(path)
    assert (row["status"], row["attempt"]) == ("success", 1), row
    assert_healthy(path)
    return row["result"][-2], printed  # the pickle of a small number ends with it and a full stop


@pytest.mark.parametrize("task", [fork_and_return, fork_and_raise, fork_in_a_coroutine, fork_and_go_on])
def test_a_forked_child_that_comes_back_from_its_task_is_ended(
    task: Callable[..., Any], path: Path, runs: Runs
) -> None:
    """It says why on stderr, records nothing, and the parent's run is the only one."""
    status, printed = drain(task, path, runs)
    assert status == 1
    complaint, count = printed.splitlines()
    assert count == "1"
    assert "os._exit()" in complaint
    assert "subprocess" in complaint
    assert (task is fork_and_go_on) or rows(path)[0]["task_id"] in complaint
    assert sorted(runs.lines()) == ["child", "parent"]


@pytest.mark.parametrize("task", [fork_and_exit, in_a_process, in_a_process_of_a_coroutine])
def test_a_child_that_ends_by_itself_works_as_ever(task: Callable[..., Any], path: Path, runs: Runs) -> None:
    """Nobody complains, and in a process of multiprocessing's a worker of its own runs."""
    assert drain(task, path, runs) == (7, "1\n")
    assert sorted(runs.lines()) == ["child", "parent"]


def test_a_fork_after_a_worker_is_not_its_concern(path: Path) -> None:
    """Once the worker has ended, the loop of a child is the application's own again."""
    run_script(
        """
        import asyncio, os, sys
        from sitq import SQLiteBackend, TaskQueue, Worker

        async def main():
            backend = SQLiteBackend(sys.argv[1])
            async with TaskQueue(backend) as queue:
                await queue.enqueue(len, "a")
                worker = Worker(backend)
                assert await worker.drain() == 1
            loop = asyncio.get_running_loop()
            if (child := os.fork()) == 0:
                loop.call_soon(os._exit, 7)
                await asyncio.sleep(60)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            return worker  # kept until here

        asyncio.run(main())
        """,
        path,
        quiet=False,  # Python warns of such a fork, and tasks of the child's loop fail since 3.14
    )
