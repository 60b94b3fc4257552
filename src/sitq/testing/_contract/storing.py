"""Tests of connecting, enqueueing, and of what is kept."""

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest

from sitq import Backend, BackendError, NewTask
from sitq.models import Outcome, new_task_id
from sitq.testing._contract.base import (
    LEASE_SECONDS,
    Contract,
    connected,
    ids,
    in_loop,
    look,
    new,
    refuses,
    statuses,
    successes,
    take,
)


class _Loaded:
    """A value whose pickle leaves a trace when it is loaded, and then ends the program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_trace, ()


def _leave_trace() -> None:
    _traces.append("loaded")
    raise SystemExit("a backend must not load what it stores")


_traces: list[str] = []

BYTES = {
    "none": b"",
    "zero": b"\0",
    "zeros": b"\0\0text\0",
    "all": bytes(range(256)),
    "many": b"\xff" * 100_000,
    "pickle": pickle.dumps(_Loaded()),
}


class Storing(Contract):
    """What is stored is kept, whole and in order."""

    def test_it_is_a_backend(self, backend: Backend) -> None:
        """It has every method of the protocol, and says its limit."""
        assert isinstance(backend, Backend)
        assert backend.max_payload_bytes is None or backend.max_payload_bytes > 0

    @in_loop
    async def test_its_users_are_counted(self, backend: Backend) -> None:
        """It works until the last of its users has closed, and then says that it is not connected."""
        await asyncio.gather(*(backend.connect() for _ in range(10)))
        for _ in range(9):
            await backend.close()
        await backend.enqueue(new())
        assert len(await take(backend)) == 1
        await backend.close()
        await refuses(backend)

    @in_loop
    async def test_it_refuses_to_work_before_it_is_connected(self, backend: Backend) -> None:
        """Each call is a BackendError, and connecting helps."""
        await refuses(backend)
        await backend.connect()
        await backend.enqueue(new())
        await backend.close()

    @in_loop
    async def test_it_may_be_closed_too_often_and_opened_again(self, backend: Backend) -> None:
        """More calls of close than of connect do no harm, and the next connect opens the store."""
        await backend.close()
        for _ in range(3):
            await backend.connect()
            await backend.enqueue(new())
            assert len(await take(backend)) == 1
            await asyncio.gather(*(backend.close() for _ in range(3)))
        await refuses(backend)

    @in_loop
    async def test_what_is_stored_outlives_its_connection(self, backend: Backend) -> None:
        """Another backend finds the tasks after the first one has closed."""
        other = self.another(backend)
        if other is None:
            pytest.skip("there is no other backend on this store")
        tasks = new(2)
        await backend.connect()
        await backend.enqueue(tasks)
        await backend.close()
        await other.connect()
        assert ids(await take(other)) == ids(tasks)
        await other.close()

    @connected
    async def test_a_task_comes_back_as_it_was_stored(self, backend: Backend) -> None:
        """A reservation carries every field of the task, the number of the attempt, and an aware time in UTC."""
        (task,) = new(max_attempts=7)
        await backend.enqueue([task])
        (held,) = await take(backend)
        assert held.task_id == task.task_id
        assert (held.payload, held.name, held.format) == (task.payload, task.name, task.format)
        assert (held.attempt, held.max_attempts, held.is_last_attempt) == (1, 7, False)
        assert held.enqueued_at.utcoffset() == timedelta(0)
        assert held.enqueued_at == (await look(backend, task)).enqueued_at

    @connected
    async def test_an_empty_batch_stores_nothing(self, backend: Backend) -> None:
        """Enqueueing no task is permitted and does nothing."""
        await backend.enqueue([])
        assert await take(backend) == []

    @connected
    async def test_a_batch_with_a_payload_that_is_too_large_is_refused_as_a_whole(self, backend: Backend) -> None:
        """One payload above the limit is a ValueError and leaves nothing; one of exactly the limit is taken."""
        limit = backend.max_payload_bytes
        if limit is None:
            pytest.skip("this backend has no limit")
        small, other = new(2)
        with pytest.raises(ValueError, match=str(limit)):
            await backend.enqueue([small, NewTask(new_task_id(), bytes(limit + 1)), other])
        assert await statuses(backend, [small, other]) == [None, None]
        assert await take(backend) == []
        await backend.enqueue([NewTask(new_task_id(), bytes(limit))])
        assert [len(held.payload) for held in await take(backend)] == [limit]

    @connected
    async def test_a_batch_with_an_id_that_is_taken_is_refused_as_a_whole(self, backend: Backend) -> None:
        """None of it is stored, and what others enqueue at the same moment is."""
        tasks = new(6)
        await backend.enqueue(tasks[:1])
        refused, *stored = await asyncio.gather(
            backend.enqueue([tasks[1], tasks[0], tasks[2]]),
            *(backend.enqueue([task]) for task in tasks[3:]),
            return_exceptions=True,
        )
        assert isinstance(refused, BackendError)
        assert stored == [None] * 3
        assert await statuses(backend, tasks) == ["pending", None, None, "pending", "pending", "pending"]

    @pytest.mark.parametrize("count", [1, 7, 1000])
    @connected
    async def test_tasks_keep_the_order_in_which_they_were_stored(self, backend: Backend, count: int) -> None:
        """However large the batches, the first stored is the first handed out."""
        first, second = new(count), new(count)
        await backend.enqueue(first)
        await backend.enqueue(second)
        held = [*await take(backend, count), *await take(backend, 2 * count)]
        assert ids(held) == ids([*first, *second])

    @pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
    @connected
    async def test_bytes_pass_through_untouched(self, backend: Backend, data: bytes) -> None:
        """Any payload and any result come back as they were, and nothing is ever loaded."""
        _traces.clear()
        task = NewTask(new_task_id(), data)
        async with self.other(backend) as other:
            await backend.enqueue([task])
            (held,) = await take(other)
            assert held.payload == data
            await backend.renew([held], lease=LEASE_SECONDS)
            await backend.release([held])
            (held,) = await take(other)
            assert held.payload == data
            await backend.mark_success([Outcome(held, data)])
            assert (await look(other, task)).value == data
        assert _traces == []

    @connected
    async def test_a_delay_counts_from_the_moment_of_storing(self, backend: Backend) -> None:
        """By the clock of the store: due no earlier than ``delay`` seconds after it was stored, and then."""
        delayed, *others = [*new(delay=10.0), *new(delay=0.0), *new()]
        await backend.enqueue([delayed, *others])
        found = await backend.reserve(100, lease=LEASE_SECONDS, alone=True)
        assert ids(found.tasks) == ids(others)
        await backend.mark_success(successes(found.tasks))
        due_in = (await backend.reserve(100, lease=LEASE_SECONDS, alone=True)).next_due_in
        assert due_in is None or due_in <= 10.0
        self.advance(backend, 10.0)
        assert ids(await take(backend)) == [delayed.task_id]

    @connected
    async def test_an_unknown_id_is_none(self, backend: Backend) -> None:
        """Looking for a task that is not there finds nothing, whatever the id."""
        await backend.enqueue(new())
        for task_id in (new_task_id(), "", "no id of ours", "'; --"):
            assert await backend.get_result(task_id) is None
