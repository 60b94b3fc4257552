"""Waiting for the results of many tasks: one look and one watch for all, in order or as they come."""

import asyncio
import contextlib
import gc
import pickle
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.memory_backend import MemoryBackend
from sitq import (
    BackendCorruptError,
    BackendError,
    BackendUnavailableError,
    Result,
    SerializationError,
    SQLiteBackend,
    TaskQueue,
    Worker,
    WorkerDiedError,
)
from sitq._waiting import MAX_CONCURRENT, MAX_PIECE
from sitq.backends.many import Ended
from sitq.backends.sqlite.statements import MAX_PIECE_BYTES
from sitq.models import Outcome
from tests.faults import Clock, connected, new_task
from tests.support import DEADLINE_SECONDS, add, multiply, start_python
from tests.test_results import FOR_EVER_SECONDS, WORKER, FailsToLoad, give, raises

ODD_IDS = ["no-such-task", "", "0" * 32, "\0", "%", "\ud800", "x" * 100_000]


class Counted(SQLiteBackend):
    """A backend that notes what is looked at, and tells when somebody waits."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.looks: list[Sequence[str]] = []
        self.answers: list[Ended] = []
        self.single = 0
        self.watches = 0
        self.looked = asyncio.Condition()
        self.fails = False

    async def get_results(self, task_ids: Sequence[str]) -> Ended:
        """Notes the ids, after the query."""
        if self.fails:
            self.fails = False
            raise BackendUnavailableError("away for a moment")
        answer = await super().get_results(task_ids)
        async with self.looked:
            self.looks.append(task_ids)
            self.answers.append(answer)
            self.looked.notify_all()
        return answer

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Counts."""
        self.single += 1
        return await super().get_result(task_id)

    @contextlib.contextmanager
    def watch_results(self, on_change: Callable[[str], object], task_ids: Collection[str]) -> Iterator[None]:
        """Counts."""
        self.watches += 1
        with super().watch_results(on_change, task_ids):
            yield

    async def waited_for(self, looks: int = 1) -> None:
        """Returns when so many looks have been made; who makes them watches by then."""
        async with asyncio.timeout(DEADLINE_SECONDS), self.looked:
            await self.looked.wait_for(lambda: len(self.looks) >= looks)

    @property
    def is_watched(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(self._watchers._loops)


@pytest.fixture
def counted(path: Path) -> Counted:
    """A backend on the file that notes what is looked at."""
    return Counted(path)


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away the safety net of a wait: it ends when it is woken, or not at all."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", FOR_EVER_SECONDS)


async def finish(backend: SQLiteBackend | MemoryBackend, count: int = 1) -> list[str]:
    """Finishes the oldest tasks with their places among these as values, and returns their ids."""
    held = (await backend.reserve(count, lease=60, alone=False)).tasks
    await backend.mark_success([Outcome(task, pickle.dumps(n)) for n, task in enumerate(held)])
    return [task.task_id for task in held]


def values(results: Sequence[Result[Any] | None]) -> list[Any]:
    """Returns the values of results, ``None`` for what is missing."""
    return [result and result.unwrap() for result in results]


async def collect(results: AsyncIterator[Result[Any]]) -> list[Result[Any]]:
    """Returns all that an iterator gives."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [result async for result in results]


async def test_results_come_in_the_order_of_the_ids(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """Also backwards, from a generator, and twice if the id is given twice; loaded once then."""
    ids = await queue.enqueue_many(partial(give, [n]) for n in range(20))
    await Worker(backend).drain()
    backwards = await queue.get_results(task_id for task_id in reversed(ids))
    assert values(backwards) == [[n] for n in reversed(range(20))]
    first, other, again = await queue.get_results([ids[0], ids[1], ids[0]])
    assert values([first, other]) == [[0], [1]]
    assert first is again


async def test_ids_that_are_unknown_are_not_waited_for(counted: Counted) -> None:
    """Whatever text they are: ``None`` in the list, nothing from the iterator, and no wait without a limit."""
    async with TaskQueue(counted) as queue, asyncio.timeout(DEADLINE_SECONDS):
        await counted.enqueue([new_task("a", pickle.dumps(None))])
        done = await finish(counted)
        odd = [*ODD_IDS, "a\0b"]
        assert [result and result.task_id for result in await queue.get_results([*odd, *done])] == [None] * 8 + ["a"]
        assert [result.task_id for result in await collect(queue.as_completed([*odd, *done]))] == ["a"]
        assert await queue.get_results(odd) == [None] * 8
        assert await collect(queue.as_completed(odd)) == []
    assert not counted.is_watched


async def test_no_ids_are_no_results(counted: Counted) -> None:
    """Nothing is asked, nor waited for."""
    queue = TaskQueue(counted)
    assert await queue.get_results([]) == []
    assert await queue.get_results(iter(())) == []
    assert counted._connection is None
    assert await collect(queue.as_completed([])) == []
    assert (counted.looks, counted.watches) == ([], 0)
    await queue.close()


@pytest.mark.parametrize(
    ("task_ids", "timeout", "error", "says"),
    [
        ("0" * 32, None, TypeError, "get_result"),
        (["a", 1], None, TypeError, "a task id must be a str, not int"),
        (None, None, TypeError, "iterable"),
        (["a"], -1, ValueError, "timeout"),
        (["a"], float("nan"), ValueError, "timeout"),
        (["a"], "1", TypeError, "timeout"),
    ],
)
async def test_bad_input_is_refused_at_the_call(
    counted: Counted, task_ids: Any, timeout: Any, error: type[Exception], says: str
) -> None:
    """By the iterator's call as well, not when it is asked for the first result; the file is not opened for it."""
    queue = TaskQueue(counted)
    with pytest.raises(error, match=says):
        await queue.get_results(task_ids, timeout)
    with pytest.raises(error, match=says):
        queue.as_completed(task_ids, timeout)
    assert counted._connection is None


@pytest.mark.parametrize("timeout", [None, 0, FOR_EVER_SECONDS])
async def test_finished_tasks_take_one_look(counted: Counted, timeout: float | None) -> None:
    """A query for some hundreds of them, and each once; none of them is asked for alone."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(2 * MAX_PIECE))
        while await finish(counted, 1000):
            pass
        assert len(await queue.get_results(ids, timeout)) == len(ids)
        assert len(await collect(queue.as_completed(ids, timeout))) == len(ids)
    assert [*map(list, counted.looks)] == [ids[:MAX_PIECE], ids[MAX_PIECE:]] * 2
    assert (counted.single, counted.watches) == (0, 0 if timeout == 0 else 2)
    assert not counted.is_watched


@pytest.mark.usefixtures("never_polls")
@pytest.mark.parametrize("by", ["itself", "another"])
async def test_only_what_has_ended_is_looked_at_again(counted: Counted, path: Path, by: str) -> None:
    """Hundreds wait under one watch; each that is finished, here or elsewhere, is looked at once more, alone."""
    async with TaskQueue(counted) as queue, connected(SQLiteBackend(path)) as other:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(300))
        results = queue.as_completed(ids)
        waiting = asyncio.ensure_future(anext(results))
        await counted.waited_for()
        for n in range(5):
            done = await finish(counted if by == "itself" else other)
            async with asyncio.timeout(DEADLINE_SECONDS):
                result = await waiting
            assert [result.task_id] == done == [ids[n]]
            waiting = asyncio.ensure_future(anext(results))
        assert [*map(list, counted.looks)] == [ids, *([task_id] for task_id in ids[:5])]
        assert (counted.watches, counted.single) == (1, 0)
        waiting.cancel()


@pytest.mark.usefixtures("never_polls")
async def test_results_are_given_as_they_come(counted: Counted) -> None:
    """Whichever task is finished first is given first, whatever its place among the ids."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(9))
        given = queue.as_completed(reversed(ids))
        for task_id in ids:
            assert [task_id] == await finish(counted)
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert (await anext(given)).task_id == task_id
        with pytest.raises(StopAsyncIteration):
            await anext(given)
        with pytest.raises(StopAsyncIteration):
            await anext(given)


@pytest.mark.usefixtures("never_polls")
async def test_all_who_wait_are_woken_by_another_process(counted: Counted, path: Path) -> None:
    """For the same tasks, in different ways; a worker in a process of its own finishes them."""
    async with TaskQueue(counted) as queue:
        ids = [await queue.enqueue(multiply, n, n) for n in range(5)]
        with start_python(WORKER, path, stdin=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            await asyncio.to_thread(worker.stdout.readline)
            together = [asyncio.create_task(queue.get_results(ids[n:])) for n in range(5)]
            coming = [asyncio.create_task(collect(queue.as_completed(ids[n:]))) for n in range(5)]
            alone = asyncio.create_task(queue.get_result(ids[0]))
            await counted.waited_for(10)
            await asyncio.to_thread(worker.communicate, "go\n", DEADLINE_SECONDS)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert [values(await task) for task in together] == [[n * n for n in range(m, 5)] for m in range(5)]
            assert [{*values(await task)} for task in coming] == [{n * n for n in range(m, 5)} for m in range(5)]
            assert values([await alone]) == [0]


@pytest.mark.usefixtures("never_polls")
async def test_many_tasks_are_checked_for_in_pieces(
    counted: Counted, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one query can take wait for a commit of another process: the first and the last are found."""
    monkeypatch.setattr("sitq.backends.sqlite.wake.MAX_PIECE", 3)
    async with TaskQueue(counted) as queue, connected(SQLiteBackend(path)) as other:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(10))
        given = queue.as_completed(ids)
        waiting = asyncio.ensure_future(anext(given))
        await counted.waited_for()
        held = {task.task_id: task for task in (await other.reserve(10, lease=60, alone=False)).tasks}
        for task_id in (ids[9], ids[0], ids[5]):
            await other.mark_success([Outcome(held[task_id], pickle.dumps("done"))])
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert (await waiting).task_id == task_id
            waiting = asyncio.ensure_future(anext(given))
        waiting.cancel()


@pytest.mark.parametrize(("default", "timeout"), [(None, 0), (0, None), (FOR_EVER_SECONDS, 0)])
async def test_a_timeout_of_zero_looks_once(path: Path, default: float | None, timeout: float | None) -> None:
    """What is finished by now is there, what is not is ``None``, or the end of the iterator; nothing is watched."""
    counted = Counted(path)
    async with TaskQueue(counted, default_result_timeout=default) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(5))
        done = await finish(counted, 2)
        results = await queue.get_results(ids, timeout)
        assert [result and result.task_id for result in results] == [*done, None, None, None]
        given = queue.as_completed(ids, timeout)
        assert {(await anext(given)).task_id, (await anext(given)).task_id} == {*done}
        for _ in range(2):
            with pytest.raises(TimeoutError, match="3 of the tasks were not finished in time"):
                await anext(given)
    assert [*map(list, counted.looks)] == [ids, ids]
    assert counted.watches == 0


@pytest.mark.parametrize(("default", "timeout"), [(None, 0.05), (0.05, None), (FOR_EVER_SECONDS, 0.05)])
async def test_a_wait_that_is_too_short_gives_what_is_there(
    path: Path, default: float | None, timeout: float | None
) -> None:
    """The list is filled up with ``None``; the iterator ends with a ``TimeoutError``. No watch stays."""
    counted = Counted(path)
    async with TaskQueue(counted, default_result_timeout=default) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(5))
        await finish(counted, 2)
        assert values(await queue.get_results(ids, timeout)) == [0, 1, None, None, None]
        given = []
        with pytest.raises(TimeoutError, match="3 of the tasks"):  # noqa: PT012 - up to the error
            async for result in queue.as_completed(ids, timeout):
                given.append(result.task_id)
        assert {*given} == {*ids[:2]}
    assert counted.watches == 2
    assert not counted.is_watched


async def test_what_is_finished_when_the_time_is_over_is_still_given(counted: Counted) -> None:
    """Although nobody was there to take it: a last look is made before the iterator says that it is too late."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(3))
        given = queue.as_completed(ids, timeout=FOR_EVER_SECONDS)
        await finish(counted)
        assert (await anext(given)).task_id == ids[0]
        await finish(counted)
        given._wait._deadline = 0.0
        assert (await anext(given)).task_id == ids[1]
        with pytest.raises(TimeoutError, match="1 of the tasks"):
            await anext(given)
    assert not counted.is_watched


@pytest.mark.usefixtures("never_polls")
async def test_every_kind_of_end_is_waited_for(path: Path) -> None:
    """A success, a failure, a cancellation and a burial, before or while they are waited for."""
    clock = Clock()
    counted = Counted(path, clock=clock)
    async with TaskQueue(counted) as queue, TaskQueue(counted, max_attempts=1) as last:
        buried = await last.enqueue(add, 1, 2)
        await counted.reserve(1, lease=10, alone=True)
        good, bad = await queue.enqueue(add, 1, 2), await queue.enqueue(raises, ValueError, "no")
        cancelled = await queue.enqueue(add, 1, 2)
        ids = [good, bad, cancelled, buried]
        together = asyncio.create_task(queue.get_results(ids))
        coming = asyncio.create_task(collect(queue.as_completed(ids)))
        await counted.waited_for(2)
        assert await queue.cancel(cancelled) == [cancelled]
        clock.now += 11
        await Worker(counted).drain()
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await together
            given = await coming
    statuses = [result and (result.task_id, result.status) for result in results]
    assert statuses == [*zip(ids, ["success", "failed", "cancelled", "failed"], strict=True)]
    assert {(result.task_id, result.status) for result in given} == {*statuses}
    assert results[3] is not None
    with pytest.raises(WorkerDiedError):
        results[3].unwrap()


async def test_a_value_that_cannot_be_loaded_does_not_hide_the_others(queue: TaskQueue, backend: SQLiteBackend) -> None:
    """The list is refused with an error that names the task; the iterator raises it and goes on if it is asked."""
    ids = await queue.enqueue_many([partial(add, 1, 2), FailsToLoad, partial(add, 3, 4)])
    held = (await backend.reserve(3, lease=60, alone=False)).tasks
    stored = [pickle.dumps(3), pickle.dumps(FailsToLoad()), pickle.dumps(7)]
    await backend.mark_success([Outcome(task, value) for task, value in zip(held, stored, strict=True)])
    with pytest.raises(SerializationError, match=ids[1]):
        await queue.get_results(ids)
    given = queue.as_completed(ids)
    seen: list[Any] = []
    while True:
        try:
            seen.append((await anext(given)).unwrap())
        except SerializationError as error:
            seen.append(ids[1] in str(error))
        except StopAsyncIteration:
            break
    assert sorted(seen) == [True, 3, 7]
    assert not backend._watchers._loops


@pytest.mark.usefixtures("never_polls")
async def test_a_loop_that_is_left_leaves_no_watch(counted: Counted) -> None:
    """By ``break``, by an exception, by a cancellation, and if the iterator is closed or thrown away."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(5))
        await finish(counted, 3)
        async for result in queue.as_completed(ids):
            assert result.task_id in ids
            assert counted.is_watched
            break
        gc.collect()
        assert not counted.is_watched
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the loop is what is left
            async for _ in queue.as_completed(ids):
                raise ZeroDivisionError
        gc.collect()
        assert not counted.is_watched
        given = queue.as_completed(ids)
        await anext(given)
        await given.aclose()
        assert not counted.is_watched
        assert await collect(given) == []
        for wait in (lambda: collect(queue.as_completed(ids)), lambda: queue.get_results(ids)):
            looks = len(counted.looks)
            task = asyncio.ensure_future(wait())
            await counted.waited_for(looks + 1)
            assert counted.is_watched
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await asyncio.sleep(0)  # the loop holds the task, and so its frames, until its next turn
            gc.collect()
            assert not counted.is_watched


@pytest.mark.usefixtures("never_polls")
async def test_an_iterator_that_is_closed_ends_for_who_waits_in_it(counted: Counted) -> None:
    """Another coroutine's wait ends as if all tasks had."""
    async with TaskQueue(counted) as queue:
        given = queue.as_completed([await queue.enqueue(add, 1, 2)])
        waiting = asyncio.create_task(collect(given))
        await counted.waited_for()
        await given.aclose()
        assert await waiting == []


@pytest.mark.usefixtures("never_polls")
async def test_a_cancelled_wait_loses_no_result(counted: Counted) -> None:
    """Who gives up waiting for the next one can wait for it again, whenever the cancellation came."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(30))
        given = queue.as_completed(ids)
        seen = []
        for turns in range(30):
            waiting = asyncio.ensure_future(anext(given))
            finishing = asyncio.ensure_future(finish(counted))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await finishing
            with contextlib.suppress(asyncio.CancelledError):
                seen.append((await waiting).task_id)
        seen += [result.task_id for result in await collect(given)]
    assert sorted(seen) == sorted(ids)


@pytest.mark.usefixtures("never_polls")
async def test_several_consumers_share_one_iterator(counted: Counted) -> None:
    """Each result is given to one of them, and all of them come to an end."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(40))
        given = queue.as_completed(ids)
        consumers = [asyncio.create_task(collect(given)) for _ in range(5)]
        await counted.waited_for()
        async with Worker(counted), asyncio.timeout(DEADLINE_SECONDS):
            taken = await asyncio.gather(*consumers)
    assert sorted(result.task_id for some in taken for result in some) == sorted(ids)


async def test_a_failed_look_can_be_made_again(counted: Counted) -> None:
    """The backend was away for a moment: the iterator raises, and has lost nothing when it is asked again."""
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(5))
        await finish(counted, 5)
        given = queue.as_completed(ids)
        counted.fails = True
        with pytest.raises(BackendUnavailableError):
            await anext(given)
        assert {result.task_id for result in await collect(given)} == {*ids}
        counted.fails = True
        with pytest.raises(BackendUnavailableError):
            await queue.get_results(ids)
    assert not counted.is_watched


@pytest.mark.usefixtures("never_polls")
async def test_a_queue_that_is_closed_ends_the_waits(counted: Counted) -> None:
    """They raise what any call of a closed backend does, and leave no watch."""
    queue = TaskQueue(counted)
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(5))
    waits = [asyncio.ensure_future(queue.get_results(ids)), asyncio.ensure_future(collect(queue.as_completed(ids)))]
    await counted.waited_for(2)
    await queue.close()
    for wait in waits:
        with pytest.raises(BackendError, match="not open"):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await wait
    del wait, waits
    await asyncio.sleep(0)
    gc.collect()
    assert not counted.is_watched


async def test_a_task_that_is_deleted_while_it_is_waited_for_is_left_out(
    counted: Counted, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that somebody took away ends the wait for it, and for it alone."""
    monkeypatch.setattr("sitq._waiting.QUERY_AGAIN_SECONDS", 0.01)
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(3))
        await finish(counted)
        together = asyncio.create_task(queue.get_results(ids))
        coming = asyncio.create_task(collect(queue.as_completed(ids)))
        await counted.waited_for(4)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM tasks WHERE finished_at IS NULL")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert [result and result.task_id for result in await together] == [ids[0], None, None]
            assert [result.task_id for result in await coming] == [ids[0]]


@pytest.mark.usefixtures("never_polls")
async def test_large_values_are_read_a_few_at_a_time(counted: Counted) -> None:
    """The backend stops when it has found enough, and the rest is asked for again."""
    size = MAX_PIECE_BYTES // 3
    async with TaskQueue(counted) as queue:
        ids = await queue.enqueue_many(partial(give, n) for n in range(20))
        held = (await counted.reserve(20, lease=60, alone=False)).tasks
        await counted.mark_success([Outcome(task, pickle.dumps(bytes([n]) * size)) for n, task in enumerate(held)])
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await queue.get_results(ids)
        assert values(results) == [bytes([n]) * size for n in range(20)]
    assert [len(answer.results) for answer in counted.answers] == [3, 3, 3, 3, 3, 3, 2]


@pytest.mark.parametrize("alone", [False, True])
async def test_text_that_is_not_utf_8_hides_no_result(queue: TaskQueue, path: Path, alone: bool) -> None:
    """Some other program wrote it into the error of one task; what of it is text is shown."""
    backend = queue._backend
    assert isinstance(backend, SQLiteBackend)
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(3))
    await finish(backend, 3)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE tasks SET error = CAST(x'41ff42' AS TEXT) WHERE task_id = ?", (ids[1],))
    results = await queue.get_results(ids[1:2] if alone else ids)
    assert [result and result.error for result in results] == (["A\ufffdB"] if alone else [None, "A\ufffdB", None])


async def test_a_malformed_row_is_named(queue: TaskQueue, path: Path) -> None:
    """It is an error of the call that asks for it, and of no other."""
    backend = queue._backend
    assert isinstance(backend, SQLiteBackend)
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(3))
    await finish(backend, 3)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE tasks SET enqueued_at = 'soon' WHERE task_id = ?", (ids[1],))
    with pytest.raises(BackendCorruptError, match=ids[1]):
        await queue.get_results(ids)
    assert values(await queue.get_results([ids[0], ids[2]])) == [0, 2]


async def test_the_loop_has_its_turns_while_results_are_loaded(
    queue: TaskQueue, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are there already: other coroutines go on in between."""
    monkeypatch.setattr("sitq._results.TURN_SECONDS", 0)
    ids = await queue.enqueue_many(partial(add, n, n) for n in range(100))
    await finish(backend, 100)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert len(await queue.get_results(ids)) == 100
    assert turns > 90
    turns = 0
    assert len(await collect(queue.as_completed(ids))) == 100
    assert turns > 90
    counting.cancel()


class Alone(MemoryBackend):
    """A backend without a call for many; notes how many queries are made at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.under_way = self.most = 0
        self.fails: str | None = None

    async def get_result(self, task_id: str) -> Result[bytes] | None:
        """Takes a turn of the loop."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            if task_id == self.fails:
                self.fails = None
                raise BackendUnavailableError("away for a moment")
            self.asked.append(task_id)
            return await super().get_result(task_id)
        finally:
            self.under_way -= 1

    @property
    def is_watched(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(self.store.watchers)


@pytest.mark.usefixtures("never_polls")
async def test_a_backend_without_a_call_for_many_is_asked_for_each() -> None:
    """A few at a time, each once at first; then those that have ended. The same results, and no watch stays."""
    backend = Alone()
    async with TaskQueue(backend) as queue, asyncio.timeout(DEADLINE_SECONDS):
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(100))
        done = await finish(backend, 10)
        given = queue.as_completed([*ids, "unknown"])
        seen = [(await anext(given)).task_id for _ in range(10)]
        assert {*seen} == {*done}
        waiting = asyncio.ensure_future(anext(given))
        while len(backend.asked) < 101 or len(backend.store.watchers) > 90:  # noqa: ASYNC110 - a few turns
            await asyncio.sleep(0)
        assert sorted(backend.asked) == sorted([*ids, "unknown"])
        assert 1 < backend.most <= MAX_CONCURRENT
        assert [ids[10]] == await finish(backend)
        assert (await waiting).task_id == ids[10]
        assert backend.asked[101:] == [ids[10]]
        together = asyncio.create_task(queue.get_results(reversed(ids)))
        rest = await finish(backend, 100)
        assert {result.task_id for result in await collect(given)} == {*rest}
        assert [result and result.task_id for result in await together] == [*reversed(ids)]
        assert not backend.is_watched
        more = await queue.enqueue_many(partial(add, n, n) for n in range(50))
        given = queue.as_completed([*more, *ids])
        await anext(given)
        assert backend.is_watched
        await given.aclose()
        assert not backend.is_watched
        assert values(await queue.get_results([*more, ids[0]], timeout=0)) == [None] * 50 + [0]
        with pytest.raises(TimeoutError, match="50 of the tasks"):
            await collect(queue.as_completed(more, timeout=0.01))
        assert not backend.is_watched


async def test_an_error_of_one_of_many_queries_loses_none_of_the_others() -> None:
    """Without a call for many: no query is under way when the error is raised, and the iterator can go on."""
    backend = Alone()
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many(partial(add, n, n) for n in range(30))
        await finish(backend, 30)
        backend.fails = ids[7]
        given = queue.as_completed(ids)
        with pytest.raises(BackendUnavailableError):
            await anext(given)
        assert backend.under_way == 0
        assert {result.task_id for result in await collect(given)} == {*ids}
    assert not backend.is_watched
