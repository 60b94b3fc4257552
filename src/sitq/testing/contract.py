"""The suite that any backend can be run through; needs pytest.

A project that has a backend of its own subclasses :class:`BackendContract` in a test module::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            self.clock = ManualClock()
            return MyBackend(tmp_path / "store", clock=self.clock)

        def another(self, backend):
            return MyBackend(backend.path, clock=self.clock)

        def advance(self, backend, seconds):
            self.clock.advance(seconds)

The tests are plain functions with an event loop of their own: no plugin of pytest's is needed.
"""

import asyncio
import contextlib
import functools
import itertools
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Concatenate

import pytest

from sitq import Backend, BackendError, NewTask, ReservedTask, Result
from sitq.models import Outcome, new_task_id

DEADLINE_SECONDS = 30.0
"""How long a test waits for what has to happen; never a measure of speed."""

LEASE_SECONDS = 60.0
LAST_TURNS = 2000
"""After how many turns of the loop a call is not cancelled any more, however long it takes."""


def _new(count: int = 1, *, eta: datetime | None = None, max_attempts: int = 5) -> list[NewTask]:
    return [
        NewTask(new_task_id(), b"payload %d" % n, f"module:name{n}", "format", eta, max_attempts) for n in range(count)
    ]


def _ids(tasks: Iterable[NewTask | ReservedTask]) -> list[str]:
    return [task.task_id for task in tasks]


def _successes(tasks: Iterable[ReservedTask]) -> list[Outcome]:
    return [Outcome(task, b"result of " + task.task_id.encode()) for task in tasks]


async def _take(backend: Backend, limit: int = 100, *, alone: bool = True) -> list[ReservedTask]:
    return list((await backend.reserve(limit, lease=LEASE_SECONDS, alone=alone)).tasks)


async def _look(backend: Backend, task_id: str) -> Result[bytes]:
    found = await backend.get_result(task_id)
    assert found is not None
    return found


async def _statuses(backend: Backend, tasks: Iterable[NewTask | ReservedTask]) -> list[str | None]:
    found = [await backend.get_result(task_id) for task_id in _ids(tasks)]
    return [result and result.status for result in found]


async def _until[T](look: Callable[[], Awaitable[T]]) -> T:
    """Looks until there is something to see."""
    while not (seen := await look()):
        await asyncio.sleep(0.005)
    return seen


class _Loaded:
    """A value whose pickle leaves a trace when it is loaded, and then raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_trace, ()


def _leave_trace() -> None:
    _traces.append("loaded")
    raise SystemExit("a backend must not load what it stores")


_traces: list[str] = []

BYTES = [b"", b"\0", b"\0\0text\0", bytes(range(256)), b"\xff" * 100_000, pickle.dumps(_Loaded())]


type _Test[S, **P] = Callable[Concatenate[S, Backend, P], Coroutine[Any, Any, None]]


def _in_loop[S, **P](test: _Test[S, P]) -> Callable[Concatenate[S, Backend, P], None]:
    """Runs a test in an event loop, with its backend as it is."""

    @functools.wraps(test)
    def run(self: S, backend: Backend, *args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await test(self, backend, *args, **kwargs)

        asyncio.run(limited())

    return run


def _connected[S, **P](test: _Test[S, P]) -> Callable[Concatenate[S, Backend, P], None]:
    """Runs a test in an event loop, with its backend connected."""

    @functools.wraps(test)
    async def connected(self: S, backend: Backend, *args: P.args, **kwargs: P.kwargs) -> None:
        await backend.connect()
        try:
            await test(self, backend, *args, **kwargs)
        finally:
            await backend.close()

    return _in_loop(connected)


class BackendContract:
    """The tests; subclass it, give the fixture ``backend`` and the hooks."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Gives a backend on an empty store of its own, not connected. Every subclass overrides it."""
        raise NotImplementedError("override the fixture `backend`")

    def another(self, backend: Backend) -> Backend | None:
        """Returns a second, independent backend on the same store, not connected.

        Returns:
            ``None`` where there is no such thing; then one backend stands for two.
        """
        return None

    def advance(self, backend: Backend, seconds: float) -> None:
        """Puts the clock of ``backend``, and of every other on its store, ahead."""
        raise NotImplementedError("override `advance`")

    @contextlib.asynccontextmanager
    async def _other(self, backend: Backend) -> AsyncIterator[Backend]:
        other = self.another(backend) or backend
        await other.connect()
        try:
            yield other
        finally:
            await other.close()

    # connect, close

    def test_it_is_a_backend(self, backend: Backend) -> None:
        """It has every method of the protocol, and says its limit."""
        assert isinstance(backend, Backend)
        assert backend.max_payload_bytes is None or backend.max_payload_bytes > 0

    @_in_loop
    async def test_users_are_counted(self, backend: Backend) -> None:
        """It works until the last of its users has closed, and then says that it is not connected."""
        await asyncio.gather(*(backend.connect() for _ in range(10)))
        for _ in range(9):
            await backend.close()
        await backend.enqueue(_new())
        assert len(await _take(backend)) == 1
        await backend.close()
        await self._refuses(backend)

    @_in_loop
    async def test_it_refuses_to_work_before_it_is_connected(self, backend: Backend) -> None:
        """Each call is a BackendError, and connecting helps."""
        await self._refuses(backend)
        await backend.connect()
        await backend.enqueue(_new())
        await backend.close()

    async def _refuses(self, backend: Backend) -> None:
        calls: list[Coroutine[Any, Any, Any]] = [
            backend.enqueue(_new()),
            backend.reserve(1, lease=LEASE_SECONDS, alone=True),
            backend.get_result(new_task_id()),
        ]
        for call in calls:
            with pytest.raises(BackendError):
                await call

    @_in_loop
    async def test_it_may_be_closed_too_often_and_opened_again(self, backend: Backend) -> None:
        """More calls of close than of connect do no harm, and the next connect opens the store."""
        await backend.close()
        for _ in range(3):
            await backend.connect()
            await backend.enqueue(_new())
            assert len(await _take(backend)) == 1
            await asyncio.gather(*(backend.close() for _ in range(3)))

    # enqueue

    @_connected
    async def test_a_task_comes_back_as_it_was_stored(self, backend: Backend) -> None:
        """A reservation carries every field of the task, the number of the attempt and an aware time in UTC."""
        (task,) = _new(max_attempts=7)
        await backend.enqueue([task])
        (held,) = await _take(backend)
        assert (held.task_id, held.payload, held.name, held.format) == (
            task.task_id,
            task.payload,
            task.name,
            task.format,
        )
        assert (held.attempt, held.max_attempts, held.is_last_attempt) == (1, 7, False)
        assert held.enqueued_at.utcoffset() == timedelta(0)
        assert held.enqueued_at == (await _look(backend, task.task_id)).enqueued_at

    @_connected
    async def test_nothing_is_stored_of_an_empty_batch(self, backend: Backend) -> None:
        """Enqueueing no task does nothing."""
        await backend.enqueue([])
        assert await _take(backend) == []

    @_connected
    async def test_a_batch_that_is_too_large_is_refused_as_a_whole(self, backend: Backend) -> None:
        """One payload above the limit is a ValueError and leaves nothing; one of exactly the limit is taken."""
        limit = backend.max_payload_bytes
        if limit is None:
            pytest.skip("this backend has no limit")
        tasks = _new(3)
        with pytest.raises(ValueError, match=str(limit)):
            await backend.enqueue([tasks[0], NewTask(new_task_id(), bytes(limit + 1)), tasks[1]])
        assert await _take(backend) == []
        await backend.enqueue([NewTask(tasks[2].task_id, bytes(limit))])
        assert [len(held.payload) for held in await _take(backend)] == [limit]

    @_connected
    async def test_a_batch_with_an_id_that_is_taken_is_refused_as_a_whole(self, backend: Backend) -> None:
        """None of the batch is stored, and batches of other callers at the same time are."""
        tasks = _new(6)
        await backend.enqueue(tasks[:1])
        refused, *stored = await asyncio.gather(
            backend.enqueue([tasks[1], tasks[0], tasks[2]]),
            *(backend.enqueue([task]) for task in tasks[3:]),
            return_exceptions=True,
        )
        assert isinstance(refused, BackendError)
        assert stored == [None] * 3
        assert await _statuses(backend, tasks) == ["pending", None, None, *["pending"] * 3]

    @pytest.mark.parametrize("count", [1, 7, 1000])
    @_connected
    async def test_tasks_are_handed_out_in_the_order_in_which_they_were_stored(
        self, backend: Backend, count: int
    ) -> None:
        """However large the batch, and across batches, the first stored comes first."""
        first, second = _new(count), _new(count)
        await backend.enqueue(first)
        await backend.enqueue(second)
        held = [*await _take(backend, count), *await _take(backend, 2 * count)]
        assert _ids(held) == _ids([*first, *second])

    @_in_loop
    async def test_what_is_stored_outlives_its_connection(self, backend: Backend) -> None:
        """Another backend finds the tasks after the first one has closed."""
        other = self.another(backend)
        if other is None:
            pytest.skip("there is no other backend on this store")
        tasks = _new(2)
        await backend.connect()
        await backend.enqueue(tasks)
        await backend.close()
        await other.connect()
        assert _ids(await _take(other)) == _ids(tasks)
        await other.close()

    @pytest.mark.parametrize("data", BYTES, ids=lambda data: f"{len(data)}-bytes")
    @_connected
    async def test_bytes_pass_through_untouched(self, backend: Backend, data: bytes) -> None:
        """Any payload and any result come back as they were, and none is ever loaded."""
        _traces.clear()
        task = NewTask(new_task_id(), data)
        async with self._other(backend) as other:
            await backend.enqueue([task])
            (held,) = await _take(other)
            assert held.payload == data
            await backend.renew([held], lease=LEASE_SECONDS)
            await backend.release([held])
            (held,) = await _take(other)
            assert held.payload == data
            await backend.mark_success([Outcome(held, data)])
            assert (await _look(other, task.task_id)).value == data
        assert _traces == []

    # reserve

    @_connected
    async def test_no_more_than_the_limit_are_handed_out(self, backend: Backend) -> None:
        """Five tasks and a limit of two: two, two, one, none."""
        tasks = _new(5)
        await backend.enqueue(tasks)
        assert [_ids(await _take(backend, 2)) for _ in range(4)] == [
            _ids(tasks[:2]),
            _ids(tasks[2:4]),
            _ids(tasks[4:]),
            [],
        ]

    @_connected
    async def test_an_eta_is_waited_for(self, backend: Backend) -> None:
        """A task is handed out once its eta has come by the backend's clock; a past eta means now."""
        (now,) = _new()
        await backend.enqueue([now])
        start = (await _look(backend, now.task_id)).enqueued_at
        (later,) = _new(eta=start + timedelta(seconds=100))
        (past,) = _new(eta=start - timedelta(days=1000))
        await backend.enqueue([later, past])
        assert _ids(await _take(backend)) == _ids([now, past])
        self.advance(backend, 50)
        assert await _take(backend, alone=False) == []
        self.advance(backend, 51)
        (held,) = await _take(backend, alone=False)
        assert (held.task_id, held.attempt, held.enqueued_at) == (later.task_id, 1, held.enqueued_at)

    @_connected
    async def test_the_oldest_due_task_comes_first(self, backend: Backend) -> None:
        """Tasks are handed out by the time at which they became due, whatever order they were stored in."""
        (now,) = _new()
        await backend.enqueue([now])
        start = (await _look(backend, now.task_id)).enqueued_at
        later = [_new(eta=start + timedelta(seconds=seconds))[0] for seconds in (30, 10, 20)]
        await backend.enqueue(later)
        self.advance(backend, 40)
        (last,) = _new()
        await backend.enqueue([last])
        assert _ids(await _take(backend)) == _ids([now, later[1], later[2], later[0], last])

    @_connected
    async def test_a_task_is_held_until_its_lease_ends(self, backend: Backend) -> None:
        """Nobody else gets it before, anyone after, with another claim and ``attempt`` one higher, again and again."""
        await backend.enqueue(_new())
        claims = set()
        async with self._other(backend) as other:
            for attempt, by in zip(range(1, 5), itertools.cycle((backend, other)), strict=False):
                (held,) = await _take(by)
                assert held.attempt == attempt
                claims.add(held.claim)
                for seconds in (0, LEASE_SECONDS - 10):
                    self.advance(backend, seconds)
                    assert await _take(backend) == await _take(other) == []
                self.advance(backend, 11)
        assert len(claims) == 4

    @_connected
    async def test_each_task_has_one_holder_among_many_who_reserve(self, backend: Backend) -> None:
        """Forty concurrent reservations of two backends hand out each of a hundred tasks once."""
        tasks = _new(100)
        async with self._other(backend) as other:
            await backend.enqueue(tasks)
            found = await asyncio.gather(*(_take(by, 3, alone=False) for _ in range(20) for by in (backend, other)))
        assert sorted(itertools.chain(*map(_ids, found))) == sorted(_ids(tasks))

    @_connected
    async def test_next_due_in_says_when_to_look_again(self, backend: Backend) -> None:
        """It is None, or the seconds until the next eta or the end of the next lease, whichever comes first."""
        assert (await backend.reserve(5, lease=1000, alone=True)).next_due_in is None
        await backend.enqueue(_new())
        await backend.reserve(5, lease=1000, alone=True)
        due = (await backend.reserve(5, lease=1000, alone=True)).next_due_in
        assert due is not None
        assert 1000 - DEADLINE_SECONDS < due <= 1000
        (probe,) = _new()
        await backend.enqueue([probe])
        now = (await _look(backend, probe.task_id)).enqueued_at
        await backend.enqueue(_new(eta=now + timedelta(seconds=500)))
        await backend.reserve(5, lease=2000, alone=False)
        due = (await backend.reserve(5, lease=1000, alone=False)).next_due_in
        assert due is not None
        assert 500 - DEADLINE_SECONDS < due <= 500
        self.advance(backend, 300)
        due = (await backend.reserve(5, lease=1000, alone=False)).next_due_in
        assert due is not None
        assert 200 - DEADLINE_SECONDS < due <= 200

    # last attempts

    @_connected
    async def test_a_last_attempt_comes_alone(self, backend: Backend) -> None:
        """In its turn by due time it is the only task of its reservation, and no other is waiting then."""
        tasks = [_new(max_attempts=attempts)[0] for attempts in (5, 1, 5, 5, 1)]
        for task in tasks:
            await backend.enqueue([task])
            self.advance(backend, 1)
        found = [await backend.reserve(10, lease=LEASE_SECONDS, alone=True) for _ in range(5)]
        assert sorted(itertools.chain(*(_ids(each.tasks) for each in found))) == sorted(_ids(tasks))
        for each in found:
            assert len(each.tasks) == 1 or not any(task.is_last_attempt for task in each.tasks)
            assert not each.last_attempt_waiting
        order = list(itertools.chain(*(_ids(each.tasks) for each in found)))
        assert order.index(tasks[1].task_id) < order.index(tasks[4].task_id)
        assert order[0] == tasks[0].task_id

    @_connected
    async def test_a_last_attempt_is_not_handed_to_a_busy_caller(self, backend: Backend) -> None:
        """A caller that holds other tasks gets ordinary ones, and is told that a last attempt waits."""
        (last,), ordinary = _new(max_attempts=1), _new(3)
        await backend.enqueue([last])
        self.advance(backend, 1)
        await backend.enqueue(ordinary)
        found = await backend.reserve(10, lease=LEASE_SECONDS, alone=False)
        assert (_ids(found.tasks), found.last_attempt_waiting) == (_ids(ordinary), True)
        found = await backend.reserve(10, lease=LEASE_SECONDS, alone=False)
        assert (found.tasks, found.last_attempt_waiting) == ([], True) or (list(found.tasks), True) == ([], True)
        (held,) = await _take(backend)
        assert (held.task_id, held.is_last_attempt) == (last.task_id, True)
        found = await backend.reserve(10, lease=LEASE_SECONDS, alone=False)
        assert not found.last_attempt_waiting

    @_connected
    async def test_a_second_attempt_may_be_the_last(self, backend: Backend) -> None:
        """A task whose first of two leases ended is handed out alone."""
        tasks = _new(3, max_attempts=2)
        await backend.enqueue(tasks)
        assert len(await _take(backend)) == 3
        self.advance(backend, LEASE_SECONDS + 1)
        assert await _take(backend, alone=False) == []
        found = [await _take(backend) for _ in range(4)]
        assert [len(held) for held in found] == [1, 1, 1, 0]
        assert sorted(itertools.chain(*map(_ids, found))) == sorted(_ids(tasks))
        assert {held.attempt for (held,) in found[:3]} == {2}

    @pytest.mark.parametrize("alone", [True, False])
    @pytest.mark.parametrize("attempts", [1, 3])
    @_connected
    async def test_a_task_whose_last_lease_ended_is_buried(
        self, backend: Backend, attempts: int, alone: bool
    ) -> None:
        """A reservation, whoever asks, names it in ``buried`` once; it is failed, with an error that gives the number."""
        tasks = _new(2, max_attempts=attempts)
        await backend.enqueue(tasks)
        for _ in range(2 * attempts):
            await _take(backend)
            if attempts == 1 or len(await _take(backend)) <= 1:
                continue
        for _ in range(attempts):
            self.advance(backend, LEASE_SECONDS + 1)
            while len(await _take(backend)) > 0:
                pass
        self.advance(backend, LEASE_SECONDS + 1)
        await backend.reserve(10, lease=LEASE_SECONDS, alone=alone)
        for task in tasks:
            found = await _look(backend, task.task_id)
            assert (found.status, found.attempt, found.value, found.traceback) == ("failed", attempts, None, None)
            assert str(attempts) in (found.error or "")
