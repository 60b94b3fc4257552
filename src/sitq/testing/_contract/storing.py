"""Tests of connecting, enqueueing, and of what is kept."""

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest

from sitq import Backend, BackendError, NewTask
from sitq.backends.base import MAX_ID_CHARACTERS
from sitq.models import Extras, Outcome, Unique, new_task_id
from sitq.testing._contract.base import (
    Contract,
    connected,
    failures,
    ids,
    in_loop,
    look,
    new,
    refuses,
    statuses,
    successes,
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


EXTRAS = {"queue": Extras(queue="another"), "priority": Extras(priority=1), "unique": Extras(unique=Unique("key"))}
"""For each field of ``Extras`` one that asks for something."""


class Storing(Contract):
    """What is stored is kept, whole and in order."""

    def test_it_is_a_backend(self, backend: Backend) -> None:
        """It has every member of the protocol, also before it is connected."""
        assert isinstance(backend, Backend)

    @in_loop
    async def test_its_limit_is_final_once_it_is_connected(self, backend: Backend) -> None:
        """The largest payload is a positive number, or None, and the same from the first connect to the last close."""
        await backend.connect()
        limit = backend.max_payload_bytes
        assert limit is None or limit > 0
        await backend.enqueue(new())
        await backend.mark_success(successes(await self.take(backend)))
        assert backend.max_payload_bytes == limit
        await backend.connect()
        await backend.close()
        assert backend.max_payload_bytes == limit
        await backend.close()

    @in_loop
    async def test_its_users_are_counted(self, backend: Backend) -> None:
        """It works until the last of its users has closed, and then says that it is not connected."""
        await asyncio.gather(*(backend.connect() for _ in range(10)))
        for _ in range(9):
            await backend.close()
        await backend.enqueue(new())
        assert len(await self.take(backend)) == 1
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
            assert len(await self.take(backend)) == 1
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
        assert ids(await self.take(other)) == ids(tasks)
        await other.close()

    @connected
    async def test_a_task_comes_back_as_it_was_stored(self, backend: Backend) -> None:
        """A reservation carries every field of the task, the number of the attempt, and aware times in UTC."""
        (task,) = new(max_attempts=7)
        await backend.enqueue([task])
        (held,) = await self.take(backend)
        assert held.task_id == task.task_id
        assert (held.payload, held.name, held.format) == (task.payload, task.name, task.format)
        assert (held.attempt, held.max_attempts, held.is_last_attempt) == (1, 7, False)
        assert held.enqueued_at.utcoffset() == timedelta(0)
        assert held.enqueued_at == (await look(backend, task)).enqueued_at
        assert held.started_at in (None, (await look(backend, task)).started_at)

    @connected
    async def test_a_task_that_was_never_retried_has_no_failures(self, backend: Backend) -> None:
        """However often its workers have died, or gave it back."""
        await backend.enqueue(new())
        for _ in range(3):
            (held,) = await self.take(backend)
            await backend.release([held])
            (held,) = await self.take(backend)
            assert held.failures == 0
            await self.end_leases(backend)

    @connected
    async def test_an_empty_batch_stores_nothing(self, backend: Backend) -> None:
        """Enqueueing no task is permitted and does nothing."""
        await backend.enqueue([])
        assert await self.take(backend) == []

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
        assert await self.take(backend) == []
        await backend.enqueue([NewTask(new_task_id(), bytes(limit))])
        assert [len(held.payload) for held in await self.take(backend)] == [limit]

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

    @pytest.mark.parametrize("status", ["pending", "in_progress", "success", "failed"])
    @connected
    async def test_a_batch_that_is_stored_already_is_recognised(self, backend: Backend, status: str) -> None:
        """Enqueued once more by whoever got no answer, by this backend or another, it stays as it is."""
        tasks = new(3)
        await backend.enqueue(tasks)
        held = [] if status == "pending" else await self.take(backend)
        if status == "success":
            await backend.mark_success(successes(held))
        elif status == "failed":
            await backend.mark_failure(failures(held))
        before = [await look(backend, task) for task in tasks]
        async with self.other(backend) as other:
            for by in (backend, other):
                await by.enqueue(tasks)
        assert [await look(backend, task) for task in tasks] == before
        assert ids(await self.take(backend)) == (ids(tasks) if status == "pending" else [])

    @connected
    async def test_an_id_that_has_another_payload_is_taken(self, backend: Backend) -> None:
        """A batch is not recognised by its ids alone: the other call would be lost without a word."""
        first, second = new(2)
        await backend.enqueue([first, second])
        for other in ([first._replace(payload=b"another")], [first, second._replace(payload=b"another")]):
            with pytest.raises(BackendError):
                await backend.enqueue(other)
        assert [held.payload for held in await self.take(backend)] == [first.payload, second.payload]

    @connected
    async def test_an_id_twice_in_a_batch_is_refused(self, backend: Backend) -> None:
        """And none of the batch is stored."""
        (task, other) = new(2)
        with pytest.raises(BackendError):
            await backend.enqueue([task, other, task])
        assert await statuses(backend, [task, other]) == [None, None]

    @connected
    async def test_an_id_of_a_thousand_characters_is_kept(self, backend: Backend) -> None:
        """And told from one that differs in its last character."""
        tasks = [NewTask("x" * (MAX_ID_CHARACTERS - 1) + last, last.encode()) for last in "ab"]
        await backend.enqueue(tasks)
        held = await self.take(backend)
        assert [(each.task_id, each.payload) for each in held] == [(task.task_id, task.payload) for task in tasks]
        await backend.mark_success(successes(held[:1]))
        assert await statuses(backend, tasks) == ["success", "in_progress"]

    @connected
    async def test_a_longer_id_is_kept_or_refused_but_never_a_part_of_it(self, backend: Backend) -> None:
        """Of 20,000 characters: refused with what is enqueued beside it, or found again by the whole id alone."""
        (beside,) = new()
        long, like_it = (NewTask("x" * 19_999 + last, b"payload") for last in "ab")
        try:
            await backend.enqueue([long, beside])
        except (ValueError, BackendError):
            assert await statuses(backend, [long, beside]) == [None, None]
            assert await self.take(backend) == []
        else:
            assert await statuses(backend, [long, like_it, beside]) == ["pending", None, "pending"]
            assert ids(await self.take(backend)) == ids([long, beside])
        assert await backend.get_result(long.task_id[:MAX_ID_CHARACTERS]) is None

    @pytest.mark.parametrize("field", EXTRAS)
    @connected
    async def test_an_extra_that_is_not_known_is_refused(self, backend: Backend, field: str) -> None:
        """What a backend does not carry out must not be lost in silence: the whole batch is refused."""
        if field in self.knows_extras:
            pytest.skip("this backend carries it out: `knows_extras`")
        plain, extra = new(2)
        with pytest.raises(BackendError):
            await backend.enqueue([plain, extra._replace(extras=EXTRAS[field])])
        assert await statuses(backend, [plain, extra]) == [None, None]
        await backend.enqueue([plain, extra._replace(extras=Extras())])
        assert ids(await self.take(backend)) == ids([plain, extra])

    @pytest.mark.parametrize("count", [1, 7, 1000])
    @connected
    async def test_tasks_keep_the_order_in_which_they_were_stored(self, backend: Backend, count: int) -> None:
        """However large the batches, the first stored is the first handed out."""
        first, second = new(count), new(count)
        await backend.enqueue(first)
        await backend.enqueue(second)
        held = [*await self.take(backend, count), *await self.take(backend, 2 * count)]
        assert ids(held) == ids([*first, *second])

    @pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
    @connected
    async def test_bytes_pass_through_untouched(self, backend: Backend, data: bytes) -> None:
        """Any payload and any result come back as they were, and nothing is ever loaded."""
        _traces.clear()
        task = NewTask(new_task_id(), data)
        async with self.other(backend) as other:
            await backend.enqueue([task])
            (held,) = await self.take(other)
            assert held.payload == data
            await backend.renew([held], lease=self.lease)
            await backend.release([held])
            (held,) = await self.take(other)
            assert held.payload == data
            await backend.mark_success([Outcome(held, data)])
            assert (await look(other, task)).value == data
        assert _traces == []

    @connected
    async def test_a_delay_counts_from_the_moment_of_storing(self, backend: Backend) -> None:
        """By the clock of the store: due no earlier than ``delay`` seconds after it was stored, and then."""
        delayed, *others = [*new(delay=self.seconds(10)), *new(delay=0.0), *new()]
        await backend.enqueue([delayed, *others])
        found = await self.reserve(backend)
        assert ids(found.tasks) == ids(others)
        await backend.mark_success(successes(found.tasks))
        due_in = (await self.reserve(backend)).next_due_in
        assert due_in is None or due_in <= self.seconds(10)
        await self.pass_time(backend, 10)
        assert ids(await self.take(backend)) == [delayed.task_id]

    @connected
    async def test_an_unknown_id_is_none(self, backend: Backend) -> None:
        """Asking for a task that is not there finds nothing, whatever the id."""
        await backend.enqueue(new())
        for task_id in (new_task_id(), "", "no id of ours", "'; --"):
            assert await backend.get_result(task_id) is None
