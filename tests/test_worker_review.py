"""What a worker still does when something fails beside the runs: a write, an extension, a thread that is late."""

import asyncio
import contextvars
import threading
from pathlib import Path
from typing import Any

import pytest

from sitq import BackendUnavailableError, Backoff, SQLiteBackend, TaskQueue, Worker, follow_up, progress
from sitq.backends.progressing import Report
from sitq.extensions import FailedRun
from sitq.extensions.reporting import Reporting
from sitq.models import EPOCH, ReservedTask
from sitq.serializers.calls import Call
from sitq.worker.execution import _run_of
from sitq.worker.held import HeldTask
from tests.support import DEADLINE_SECONDS, Runs, log_plain, until

written = threading.Event()
may_go_on = threading.Event()
late: list[threading.Thread] = []
raised: list[BaseException] = []


async def raise_once(runs: Runs) -> None:
    """Raises in its first run."""
    runs.add("run")
    if len(runs.lines()) == 1:
        raise ValueError


async def followed(runs: Runs) -> None:
    """Has another task follow."""
    runs.add("run")
    follow_up(log_plain, runs, "run")


async def raise_always(runs: Runs) -> None:
    """Raises."""
    runs.add("run")
    raise ValueError


async def report_twice() -> None:
    """Reports, and reports again when the first report was tried to be written."""
    progress(1)
    await asyncio.to_thread(written.wait, DEADLINE_SECONDS)
    written.clear()
    progress(2)
    await asyncio.to_thread(written.wait, DEADLINE_SECONDS)


class Slow:
    """Is serialized only when somebody permits it."""

    def __reduce__(self) -> Any:
        """Waits."""
        may_go_on.wait(DEADLINE_SECONDS)
        return Slow, ()


async def leave_a_thread() -> None:
    """Returns while a thread of its own is about to have a task follow."""

    def follow() -> None:
        try:
            follow_up(print, Slow())
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(follow,))
    late.append(thread)
    thread.start()


@pytest.mark.parametrize(("func", "method"), [(raise_once, "mark_failure"), (followed, "mark_success")])
async def test_a_drain_runs_what_an_outcome_brings_that_the_backend_took_late(
    func: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation that came before it has found nothing, which is not the last word."""
    runs, backend = Runs(tmp_path / "runs"), SQLiteBackend(tmp_path / "queue.db")
    real, tries = getattr(backend, method), 0

    async def fails_first(outcomes: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BackendUnavailableError("not now")
        return await real(outcomes)

    monkeypatch.setattr(backend, method, fails_first)
    async with TaskQueue(backend) as queue:
        await queue.options(retry=Backoff(retries=1, first=0.0)).enqueue(func, runs)
        assert await Worker(backend).drain() == 2
    assert runs.lines() == ["run", "run"]


async def test_an_extension_that_raises_takes_no_decision_of_another_one_back(tmp_path: Path) -> None:
    """Neither a retry that one before it has decided, nor does what it did itself count."""

    class Again:
        def after_failure(self, failure: FailedRun) -> None:
            failure.retry_in = 0.0 if failure.task.attempt < 3 else None

    class Bad:
        def after_failure(self, failure: FailedRun) -> None:
            failure.shown, failure.cancelled = "nonsense", True
            raise ValueError("no")

    runs, backend = Runs(tmp_path / "runs"), SQLiteBackend(tmp_path / "queue.db")
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(raise_always, runs)
        assert await Worker(backend, extensions=[Again(), Bad()]).drain() == 3
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.error, len(runs.lines())) == ("failed", "ValueError: ", 3)


async def test_reports_are_written_again_after_an_error_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is no BackendError, too: what is reported would pile up for as long as the worker runs."""
    backend, seen = SQLiteBackend(tmp_path / "queue.db"), []

    async def fails_first(reports: list[Report]) -> None:
        seen.append([report.done for report in reports])
        written.set()
        if len(seen) == 1:
            raise ValueError("no")

    monkeypatch.setattr(backend, "report", fails_first)
    written.clear()
    async with TaskQueue(backend) as queue, Worker(backend, extensions=[Reporting(every=0.01)]):
        task_id = await queue.enqueue(report_twice)
        result = await queue.get_result(task_id, timeout=2 * DEADLINE_SECONDS)
    assert result is not None
    assert result.status == "success"
    assert seen[0] == [1.0]
    assert seen[1:]


async def test_a_follow_up_that_is_made_while_its_run_ends_is_refused(tmp_path: Path) -> None:
    """An id that is returned is one of a task that is stored."""
    late.clear()
    raised.clear()
    may_go_on.clear()
    backend = SQLiteBackend(tmp_path / "queue.db")
    async with TaskQueue(backend) as queue, Worker(backend):
        await queue.get_result(await queue.enqueue(leave_a_thread), timeout=DEADLINE_SECONDS)
        may_go_on.set()
        await until(lambda: not late[0].is_alive())
    assert [str(error) for error in raised] == [
        "follow_up() was called after the run of its task was over: call it before the task returns"
    ]


def test_a_run_knows_that_its_lease_ended_while_its_call_was_loaded() -> None:
    """Otherwise a task that was cut then would go on to its end."""
    held = HeldTask(ReservedTask(1, 1, "id", b"", "name", "", 1, 5, EPOCH), 0.0, not_held=True)
    assert _run_of(held, Call(print, (), {}, {}), None).not_held  # type: ignore[arg-type]
