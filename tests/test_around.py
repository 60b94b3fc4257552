"""What stands around a run is left in reverse, however the run ends; and is not there if nobody has asked for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker, task
from sitq.extensions import Extension, Run
from sitq.extensions.cancelling import Cancelling
from sitq.worker import execution
from tests.support import DEADLINE_SECONDS, add, multiply
from tests.worker_tasks import gate, wait_at


class Steps:
    """Writes down how it is entered and left."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name = name
        self.steps = steps

    @contextlib.asynccontextmanager
    async def around(self, run: Run) -> AsyncIterator[None]:
        """Writes it down."""
        self.steps.append(f"{self.name} enters")
        try:
            yield
        except BaseException as error:
            await asyncio.sleep(0)  # a clean-up may await
            self.steps.append(f"{self.name} sees {type(error).__name__}")
            raise
        self.steps.append(f"{self.name} leaves")


@task(timeout=0.05)
async def too_long() -> None:
    """Takes longer than it may."""
    await asyncio.Event().wait()


async def fail() -> None:
    """Raises."""
    raise ValueError("no")


async def run_to(end: str, backend: SQLiteBackend, queue: TaskQueue, *extensions: Extension) -> str:
    """Runs a task to such an end and returns its status."""
    worker = Worker(backend, shutdown_timeout=0, extensions=[*extensions, Cancelling(every=0.01)])
    func: Any = {"success": add, "failure": fail, "timeout": too_long}.get(end, wait_at)
    arguments: tuple[Any, ...] = (1, 2) if func is add else ("gate",) if func is wait_at else ()
    with gate() as here:
        async with worker:
            task_id = await queue.enqueue(func, *arguments)
            if func is wait_at:
                await here.arrived()
            if end == "cancellation":
                await queue.cancel(task_id, running="ask")
            if end != "stop":
                await queue.get_result(task_id, timeout=DEADLINE_SECONDS)
    found = await queue.get(task_id)
    assert found is not None
    return found.status


@pytest.mark.parametrize(
    ("end", "last", "status"),
    [
        ("success", "leaves", "success"),
        ("failure", "sees ValueError", "failed"),
        ("timeout", "sees CancelledError", "failed"),
        ("cancellation", "sees CancelledError", "cancelled"),
        ("stop", "sees CancelledError", "pending"),
    ],
)
async def test_clean_up_runs_in_reverse_however_a_run_ends(
    end: str, last: str, status: str, queue: TaskQueue, backend: SQLiteBackend
) -> None:
    """After success, failure, timeout, cancellation and stop; each sees what ended the run."""
    steps: list[str] = []
    assert await run_to(end, backend, queue, Steps("outer", steps), Steps("inner", steps)) == status
    assert steps == ["outer enters", "inner enters", f"inner {last}", f"outer {last}"]


@pytest.mark.parametrize("func", [add, multiply])
async def test_without_extensions_execute_makes_no_context_manager(
    func: Any, queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those that every worker has, none stands around a task that does not ask for it."""

    async def never(*_: Any) -> None:
        raise AssertionError("something was put around the run")

    monkeypatch.setattr(execution, "_call_within", never)
    task_id = await queue.enqueue(func, 2, 3)
    await Worker(backend).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.error is None
