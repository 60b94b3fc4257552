"""Looking into a queue from Python, and mending it: list, counts, retry, cancel, and what it costs others."""

import asyncio
import inspect
import pickle
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    Backend,
    BackendCorruptError,
    BackendError,
    Result,
    SQLiteBackend,
    SyncTaskQueue,
    TaskCancelledError,
    TaskFailedError,
    TaskQueue,
    Worker,
)
from sitq.backends.inspect import Inspectable, TaskInfo
from sitq.backends.sqlite import listing, mending
from sitq.testing import ManualClock
from tests.faults import on_connection, run_python, write_lock
from tests.support import Runs, add, log_async, start_python


async def fail(message: str) -> None:
    """A task that fails."""
    raise ValueError(message)


class Plain:
    """A backend that offers what the contract asks for and nothing else."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.max_payload_bytes = backend.max_payload_bytes
        self.connect, self.close = backend.connect, backend.close
        self.enqueue, self.reserve, self.renew = backend.enqueue, backend.reserve, backend.renew
        self.mark_success, self.mark_failure = backend.mark_success, backend.mark_failure
        self.release, self.get_result, self.watch = backend.release, backend.get_result, backend.watch


@pytest.fixture
async def failed(queue: TaskQueue, backend: SQLiteBackend) -> list[str]:
    """Two tasks that have failed."""
    ids = [await queue.enqueue(fail, f"no {n}") for n in range(2)]
    await Worker(backend).drain()
    return list(ids)


async def test_a_queue_lists_its_tasks(queue: TaskQueue, failed: list[str]) -> None:
    """The newest first, by status and up to a limit, without loading a payload."""
    waiting = await queue.enqueue(add, 1, 2)
    assert [task.task_id for task in await queue.list()] == [waiting, *reversed(failed)]
    assert [task.task_id for task in await queue.list(limit=1)] == [waiting]
    found = await queue.list("failed")
    assert {task.task_id for task in found} == set(failed)
    assert {task.error for task in found} == {"ValueError: no 0", "ValueError: no 1"}
    assert {task.name for task in found} == {"tests.test_inspection:fail"}


async def test_a_list_can_be_narrowed_and_paged(queue: TaskQueue, failed: list[str]) -> None:
    """As the backend does it; an age may be a timedelta."""
    await queue.enqueue(add, 1, 2)
    newest, oldest = await queue.list("failed", name="fail", error="no ", since=timedelta(hours=1))
    assert {newest.task_id, oldest.task_id} == set(failed)
    assert list(await queue.list("failed", before=newest.task_id)) == [oldest]
    assert list(await queue.list(name="no such name")) == []
    with pytest.raises(ValueError, match="before: there is no task 'unknown' in this list"):
        await queue.list(before="unknown")


async def test_one_task_can_be_looked_at(queue: TaskQueue, backend: SQLiteBackend, failed: list[str]) -> None:
    """Whether it is unknown or not finished yet is told apart."""
    waiting = await queue.enqueue(add, 1, 2)
    found = await queue.get(waiting)
    assert isinstance(found, TaskInfo)
    assert (found.task_id, found.status, found.finished_at) == (waiting, "pending", None)
    ended = await queue.get(failed[0])
    assert ended is not None
    assert (ended.status, ended.error) == ("failed", "ValueError: no 0")
    assert await queue.get("unknown") is None
    other = SyncTaskQueue(SQLiteBackend(backend._path))
    assert await asyncio.to_thread(other.get, waiting) == found
    await asyncio.to_thread(other.close)
    with pytest.raises(TypeError, match="task id must be a str"):
        await queue.get(7)  # type: ignore[arg-type]


async def test_what_failed_of_one_cause_is_retried(queue: TaskQueue, failed: list[str]) -> None:
    """And nothing else; ids cannot be narrowed, and an empty text is not meant."""
    assert list(await queue.retry(failed=True, error="no 1", since=timedelta(hours=1))) == failed[1:]
    for wrong in ({"error": "x"}, {"name": "x"}, {"since": 1}):
        with pytest.raises(TypeError, match="failed=True only"):
            await queue.retry(failed[0], **wrong)  # type: ignore[arg-type]
    for call in (queue.retry(failed=True, error=""), queue.list(name=""), queue.list(before="")):
        with pytest.raises(ValueError, match="must not be empty: leave it out"):
            await call
    with pytest.raises(TypeError, match="error must be a str, not int"):
        await queue.list(error=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="since must be a finite number of seconds"):
        await queue.list(since=-1)
    assert (await queue.counts()).failed == 1


async def test_a_queue_counts_its_tasks(queue: TaskQueue, failed: list[str]) -> None:
    """By status, with what waits."""
    await queue.enqueue(add, 1, 2)
    counts = await queue.counts()
    assert (counts.pending, counts.in_progress, counts.success, counts.failed, counts.cancelled) == (1, 0, 0, 2, 0)
    assert counts.oldest_waiting is not None


async def test_a_retried_task_is_run_again(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """``retry`` takes one id, several, or all that failed; what it returns are the ids of those that are pending."""
    async with Worker(backend, poll_interval=3600):
        task_id = await queue.enqueue("tests.test_inspection:missing_at_first")
        first = await queue.get_result(task_id)
        globals()["missing_at_first"] = lambda: "here"
        try:
            assert list(await queue.retry(task_id)) == [task_id]
            second = await queue.get_result(task_id)
        finally:
            del globals()["missing_at_first"]
    assert first is not None
    assert first.status == "failed"
    assert second is not None
    assert (second.value, second.attempt, second.error) == ("here", 1, None)


async def test_all_that_failed_can_be_retried(queue: TaskQueue, failed: list[str]) -> None:
    """By one word; without it, the ids have to be given."""
    assert list(await queue.retry(failed[:1])) == failed[:1]
    assert list(await queue.retry(failed=True)) == failed[1:]
    assert (await queue.counts()).pending == 2
    assert list(await queue.retry([])) == []


async def test_a_cancelled_task_is_never_run(queue: TaskQueue, backend: SQLiteBackend, runs: Runs) -> None:
    """``get_result`` returns at once, and the worker does not see it."""
    first, second = [await queue.enqueue(log_async, runs, name) for name in ("first", "second")]
    assert list(await queue.cancel(first)) == [first]
    result = await queue.get_result(first)
    assert result is not None
    assert (result.status, result.value, result.error, result.attempt) == ("cancelled", None, None, 0)
    assert await Worker(backend).drain() == 1
    assert runs.lines() == ["second"]
    assert list(await queue.cancel([first, second])) == []


async def test_a_cancelled_task_can_be_retried(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Who cancelled too much has lost nothing."""
    task_id = await queue.enqueue(add, 1, 2)
    await queue.cancel(task_id)
    await queue.retry(task_id)
    await Worker(backend).drain()
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.value == 3


async def test_a_waiter_learns_of_the_cancellation(queue: TaskQueue) -> None:
    """``get_result`` without a timeout ends, and ``unwrap`` raises an error of its own kind."""
    task_id = await queue.enqueue(add, 1, 2)
    waiting = asyncio.create_task(queue.get_result(task_id))
    await asyncio.sleep(0)
    await queue.cancel(task_id)
    result = await waiting
    assert result is not None
    with pytest.raises(TaskCancelledError, match=f"^task {task_id} was cancelled while it waited to be run$") as caught:
        result.unwrap()
    assert caught.value.task_id == task_id
    assert caught.value.traceback is None


def test_a_cancellation_is_a_failure_to_who_asks_for_the_value() -> None:
    """Code that handles failed tasks handles it too, and the error survives a pickle."""
    error = TaskCancelledError("some-id")
    assert isinstance(error, TaskFailedError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.task_id, str(copy)) == (TaskCancelledError, "some-id", str(error))


async def test_a_waiter_in_another_process_is_woken(path: Path, queue: TaskQueue) -> None:
    """By a cancellation that is made here."""
    task_id = await queue.enqueue(add, 1, 2)
    process = start_python(
        """
        import asyncio, sys
        from sitq import SQLiteBackend, TaskQueue

        async def main():
            async with TaskQueue(SQLiteBackend(sys.argv[1])) as queue:
                print("waits", flush=True)
                print((await queue.get_result(sys.argv[2])).status)

        asyncio.run(main())
        """.replace("\n        ", "\n"),
        path,
        task_id,
    )
    assert process.stdout is not None
    with process:
        await asyncio.to_thread(process.stdout.readline)
        await queue.cancel(task_id)
        output, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert (output, errors) == ("cancelled\n", "")


@pytest.mark.parametrize("status", ["done", "PENDING", "", 1])
async def test_an_unknown_status_is_refused(queue: TaskQueue, status: Any) -> None:
    """With the statuses that there are."""
    with pytest.raises(ValueError, match="pending, in_progress, success, failed, cancelled"):
        await queue.list(status)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
async def test_a_limit_that_makes_no_sense_is_refused(queue: TaskQueue, limit: Any, error: type[Exception]) -> None:
    """Before the file is asked."""
    with pytest.raises(error, match="limit"):
        await queue.list(limit=limit)


async def test_ids_have_to_be_strings(queue: TaskQueue, failed: list[str]) -> None:
    """Nothing is changed if one of them is not."""
    for call in (queue.retry, queue.cancel):
        with pytest.raises(TypeError, match="a task id must be a str, not int"):
            await call([failed[0], 1])  # type: ignore[list-item]
    assert (await queue.counts()).failed == 2


@pytest.mark.parametrize(("arguments", "named"), [((), {}), (("id",), {"failed": True}), ((None,), {})])
async def test_retry_takes_ids_or_all(queue: TaskQueue, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Neither both nor none: an id that is missing by mistake must not mean every task."""
    with pytest.raises(TypeError, match="either the ids of tasks or failed=True"):
        await queue.retry(*arguments, **named)


async def test_a_backend_without_it_says_so(backend: SQLiteBackend) -> None:
    """Everything else works with it, and these four raise a clear error and do not connect."""
    plain = Plain(backend)
    assert isinstance(plain, Backend)
    assert not isinstance(plain, Inspectable)
    queue = TaskQueue(plain)
    for call in (queue.counts(), queue.list(), queue.retry(failed=True), queue.cancel("id")):
        with pytest.raises(BackendError, match=r"Plain cannot be inspected: .*Inspectable"):
            await call
    task_id = await queue.enqueue(add, 1, 2)
    await Worker(plain).drain()
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.value == 3
    await queue.close()


async def test_the_first_call_connects(path: Path) -> None:
    """As with every other method."""
    queue = TaskQueue(SQLiteBackend(path))
    assert (await queue.counts()).pending == 0
    await queue.close()


def test_code_without_a_loop_can_do_the_same(path: Path) -> None:
    """``SyncTaskQueue`` has the four methods, with the same parameters."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        task_id = queue.enqueue(add, 1, 2)
        assert queue.counts().pending == 1
        assert [task.task_id for task in queue.list("pending", limit=5)] == [task_id]
        assert list(queue.cancel(task_id)) == [task_id]
        assert list(queue.retry(iter([task_id]))) == [task_id]
        with pytest.raises(TypeError):
            queue.cancel([1])  # type: ignore[list-item]
    for name in ("list", "counts", "get", "retry", "cancel"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (SyncTaskQueue, TaskQueue))
        assert ours == theirs


async def test_they_are_refused_in_an_event_loop(path: Path) -> None:
    """As every call that blocks."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    for name, arguments in (("list", ()), ("counts", ()), ("get", ("id",)), ("retry", ("id",)), ("cancel", ("id",))):
        with pytest.raises(RuntimeError, match="TaskQueue"):
            getattr(queue, name)(*arguments)


async def test_cancelled_tasks_are_pruned_like_finished_ones(path: Path) -> None:
    """By a worker, after the retention; then their id is unknown."""
    clock = ManualClock()
    async with TaskQueue(SQLiteBackend(path, clock=clock)) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        await queue.cancel(task_id)
        await Worker(SQLiteBackend(path, clock=clock, retention=3600)).drain()
        assert len(await queue.list("cancelled")) == 1
        clock.advance(3601)
        await Worker(SQLiteBackend(path, clock=clock, retention=3600)).drain()
        assert await queue.get_result(task_id) is None


async def test_looking_and_finding_nothing_take_no_lock(path: Path) -> None:
    """Another connection holds the write lock, and only what would change something has to wait for it."""
    backend = SQLiteBackend(path, busy_timeout=0)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        with write_lock(path):
            await queue.list()
            await queue.counts()
            assert list(await queue.retry([task_id, "nothing"])) == []
            assert list(await queue.retry(failed=True)) == []
            assert list(await queue.cancel("nothing")) == []
            assert await backend.prune(older_than=0) == 0
            with pytest.raises(BackendError, match="try again later"):
                await queue.cancel(task_id)
        assert (await queue.counts()).cancelled == 0
        assert list(await queue.cancel(task_id)) == [task_id]


async def test_what_was_mended_survives_a_power_cut(path: Path) -> None:
    """A retry and a cancellation are committed as an enqueue is, under ``synchronous=FULL``."""
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        for call in (queue.cancel, queue.retry):
            await backend.renew([], lease=1)
            assert backend._connected()._file.open()._synchronous == "NORMAL"
            await call(task_id)
            assert backend._connected()._file.open()._synchronous == "FULL"


async def test_a_backend_that_nobody_looks_into_pays_nothing(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The triggers of these operations are made at the first one, and only then."""
    task_id = await queue.enqueue(add, 1, 2)

    async def triggers() -> set[str]:
        sql = "SELECT name FROM sqlite_temp_schema WHERE type = 'trigger'"
        return {name for (name,) in await on_connection(backend, lambda connection: connection.execute(sql).fetchall())}

    assert "change_Cancel" not in await triggers()
    await queue.cancel(task_id)
    assert "change_Cancel" in await triggers()
    assert "change_Retry" not in await triggers()


async def test_many_calls_at_once_do_not_mix(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """They share transactions, and each one gets the ids of its own."""
    ids = await queue.enqueue_many([lambda: None] * 60)
    done = await asyncio.gather(*(queue.cancel([task_id, "nothing"]) for task_id in ids))
    assert [list(each) for each in done] == [[task_id] for task_id in ids]
    again, _ = await asyncio.gather(
        asyncio.gather(*(queue.retry(task_id) for task_id in ids)),
        asyncio.gather(*(backend.reserve(5, lease=60, alone=False) for _ in range(3))),
    )
    assert [list(each) for each in again] == [[task_id] for task_id in ids]


ENQUEUE_AND_LOOK = """
import asyncio, sys
from sitq import SQLiteBackend, TaskQueue

async def main():
    async with TaskQueue(SQLiteBackend(sys.argv[1], busy_timeout=0)) as queue:
        await queue.enqueue("operator:add", 1, 2)
        print((await queue.counts()).cancelled)

asyncio.run(main())
"""


@pytest.mark.parametrize("call", ["cancel", "retry_failed"])
async def test_many_changes_leave_others_their_turn(
    path: Path, queue: TaskQueue, backend: SQLiteBackend, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction changes more than so many tasks, and between two another process enqueues without waiting."""
    assert mending.CHANGED_PER_TRANSACTION == 500
    monkeypatch.setattr(mending, "CHANGED_PER_TRANSACTION", 50)  # the statements of 500 are long to trace
    count = 2 * mending.CHANGED_PER_TRANSACTION + 1
    ids = list(await queue.enqueue_many([lambda: None] * count))
    if call == "retry_failed":
        sql = "UPDATE tasks SET status = 'failed', finished_at = enqueued_at"
        await on_connection(backend, lambda connection: connection.execute(sql))
    transactions: list[str] = []
    seen: list[str] = []

    def on_statement(sql: str) -> None:
        # Called as a statement begins, before it takes the lock, and again for each step of its triggers.
        if sql.startswith(("BEGIN", "INSERT INTO change")) and sql not in transactions:
            transactions.append(sql)
            if len(transactions) == 2:
                seen.append(run_python(ENQUEUE_AND_LOOK, path).strip())

    await on_connection(backend, lambda connection: connection.set_trace_callback(on_statement))
    done = await (backend.cancel(ids) if call == "cancel" else backend.retry_failed())
    await on_connection(backend, lambda connection: connection.set_trace_callback(None))
    assert set(done) == set(ids)
    operation = "Cancel" if call == "cancel" else "Retry"
    assert [sql.count(f"'{operation}'") for sql in transactions] == [50, 50, 1]
    assert seen == ["50" if call == "cancel" else "0"]
    assert len(await queue.list(limit=count + 1)) == count + 1


async def test_a_race_for_a_task_has_one_winner(path: Path) -> None:
    """A task is either cancelled or given out, by whatever process comes first, and never both."""
    one, other = SQLiteBackend(path), SQLiteBackend(path)
    async with TaskQueue(one) as queue:
        await other.connect()
        for _ in range(30):
            task_id = await queue.enqueue(add, 1, 2)
            cancelled, reserved = await asyncio.gather(queue.cancel(task_id), other.reserve(1, lease=60, alone=True))
            assert len(cancelled) + len(reserved.tasks) == 1
        await other.close()


async def test_a_row_of_another_programs_making_is_named(path: Path, queue: TaskQueue) -> None:
    """Where its status or its times make no sense, the error says which task and what to do."""
    task_id = await queue.enqueue(add, 1, 2)
    await queue.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE tasks SET status = 'paused'")
    connection.close()
    for call in (queue.list(), queue._backend.show(task_id)):  # type: ignore[attr-defined]
        with pytest.raises(BackendCorruptError, match=f"the row of task {task_id} was not written by sitq.*'paused'"):
            await call


async def fill(backend: SQLiteBackend, count: int) -> None:
    """Stores tasks of every status in turn, without a commit for each."""
    sql = f"""
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
        INSERT INTO tasks (task_id, status, name, max_attempts, enqueued_at, available_at, finished_at, payload, error)
        SELECT printf('task-%06d', n), iif(n % 2, 'pending', 'failed'), 'm:' || n, 5, n, n, iif(n % 2, NULL, n), x'',
            iif(n % 2, NULL, 'E: ' || n) FROM n
    """
    await on_connection(backend, lambda connection: connection.execute(sql))


@pytest.mark.parametrize(
    "filters",
    [{}, {"before": "task-000003"}, {"status": "pending"}, {"status": "failed", "name": "m:"}, {"status": "success"}],
    ids=repr,
)
async def test_a_look_into_a_large_queue_sorts_and_scans_nothing(
    queue: TaskQueue, backend: SQLiteBackend, filters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement goes along an index or the key, from a place in it, and none of them sorts."""
    monkeypatch.setattr(listing, "_MANY_LIVE", listing._MANY_LIVE.replace("OFFSET 10000", "OFFSET 1"))
    await fill(backend, 10)
    statements: list[str] = []
    await on_connection(backend, lambda connection: connection.set_trace_callback(statements.append))
    await queue.list(**filters)

    def plans(connection: sqlite3.Connection) -> list[str]:
        connection.set_trace_callback(None)
        looks = [sql for sql in statements if "FROM tasks" in sql and sql[-8:] != "OFFSET 1"]
        return [row[3] for sql in looks for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]

    steps = [step for step in await on_connection(backend, plans) if "LIVE" not in step]
    assert steps
    for step in steps:
        assert "TEMP B-TREE" not in step
        assert (
            step.startswith("SEARCH tasks USING")
            or "INDEX tasks_due" in step
            or "INDEX tasks_last" in step
            or (
                step in ("COMPOUND QUERY", "LEFT-MOST SUBQUERY", "UNION ALL")
                or step.startswith(("CO-ROUTINE", "SCAN ("))
            )
        )


@pytest.mark.parametrize("status", [None, "pending", "failed"])
async def test_a_search_through_many_tasks_goes_on_to_the_end(
    queue: TaskQueue, backend: SQLiteBackend, status: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of so many rows, between which other calls get their turn; the oldest task is found as well."""
    monkeypatch.setattr(listing, "ROWS_PER_PIECE", 100)
    monkeypatch.setattr(listing, "_MANY_LIVE", listing._MANY_LIVE.replace("OFFSET 10000", "OFFSET 100"))
    await fill(backend, 2000)
    name = "m:[2]" if status == "failed" else "m:[1]"  # the oldest one alone
    search = asyncio.create_task(queue.list(status, name=name))
    between = 0
    while not search.done():
        await queue.get("unknown")
        between += 1
    assert between > 1
    assert [task.name for task in await search] == [name.replace("[", "").replace("]", "")]
    assert list(await queue.list(status, name="m:[^0-9]")) == []


async def test_text_that_is_not_utf8_is_listed(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """What another program wrote is shown with its bytes written out, and hides no other task."""
    task_id = await queue.enqueue(add, 1, 2)
    sql = "UPDATE tasks SET name = CAST(x'6361ff' AS TEXT)"
    await on_connection(backend, lambda connection: connection.execute(sql))
    assert [task.name for task in await queue.list()] == ["ca\\xff"]
    found = await queue.get(task_id)
    assert found is not None
    assert found.name == "ca\\xff"


@pytest.mark.parametrize("name", ["counts", "list", "show", "retry", "retry_failed", "cancel", "prune", "examine"])
async def test_a_backend_that_is_not_connected_says_so(path: Path, name: str) -> None:
    """As with every other method of a backend."""
    arguments: dict[str, Any] = {"show": {"task_id": "x"}, "prune": {"older_than": 1}}
    if name in ("retry", "cancel"):
        arguments[name] = {"task_ids": ["x"]}
    with pytest.raises(BackendError, match=r"call connect\(\) first"):
        await getattr(SQLiteBackend(path), name)(**arguments.get(name, {}))


def test_a_result_says_that_it_was_cancelled() -> None:
    """It is as final as the other two."""
    moment = ManualClock().now()
    result: Result[int] = Result("id", "cancelled", None, None, None, 0, moment, None, moment)
    with pytest.raises(TaskCancelledError):
        result.unwrap()
