"""Tests of tasks of which one is enough."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, get_args

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.uniques import Uniques
from sitq.errors import DuplicateTaskError
from sitq.models import Extras, Otherwise, Unique, While, new_task_id
from sitq.testing._contract.base import Contract, connected, failures, ids, look, new, statuses, successes
from sitq.testing._contract.watching import watching

PERIOD_SECONDS = 100.0
WHILES: tuple[While, ...] = get_args(While.__value__)
OTHERWISES: tuple[Otherwise, ...] = get_args(Otherwise.__value__)
ENDS: dict[str, Callable[[Backend, Sequence[ReservedTask]], Awaitable[object]]] = {
    "success": lambda backend, held: backend.mark_success(successes(held)),
    "failure": lambda backend, held: backend.mark_failure(failures(held)),
}


async def stands(backend: Backend, *tasks: NewTask) -> list[str]:
    """Stores tasks, and returns the ids of those that stand for them."""
    standing = await backend.enqueue(tasks)
    return ids(tasks) if standing is None else list(standing)


def unique(
    key: str = "key",
    *,
    payload: bytes | None = None,
    while_: While = "waiting",
    period: timedelta | None = None,
    otherwise: Otherwise = "keep",
    **fields: Any,
) -> NewTask:
    """Returns a task that differs from all others but for its key."""
    task_id = new_task_id()
    extras = Extras(unique=Unique(key, while_, period, otherwise))
    return NewTask(task_id, task_id.encode() if payload is None else payload, **fields, extras=extras)


class UniqueTests(Contract):
    """Of the tasks with one key, those are stored that are needed, and the others know which one stands."""

    knows_extras = frozenset({"unique"})

    def test_a_backend_says_that_it_has_them(self, backend: Backend) -> None:
        """Before it is connected as well: a queue looks at it before it stores anything."""
        assert isinstance(backend, Uniques)
        assert backend.has_uniques

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_waiting_task_stands_for_its_key(self, backend: Backend, while_: While) -> None:
        """Another one is not stored, and whoever wanted it gets the id of the first; other keys do not matter."""
        first, second, other = unique(while_=while_), unique(while_=while_), unique("another key", while_=while_)
        assert await stands(backend, first) == [first.task_id]
        async with self.other(backend) as another:
            assert await stands(another, second) == [first.task_id]
        assert await stands(backend, other) == [other.task_id]
        assert await statuses(backend, [first, second, other]) == ["pending", None, "pending"]
        held = await self.take(backend)
        assert [(task.task_id, task.payload) for task in held] == [
            (first.task_id, first.payload),
            (other.task_id, other.payload),
        ]

    @connected
    async def test_a_plain_task_has_no_key(self, backend: Backend) -> None:
        """It stands for no other one, and nothing for it."""
        tasks = [*new(), unique(), *new(), unique("another"), *new()]
        assert await stands(backend, *tasks) == ids(tasks)
        assert ids(await self.take(backend)) == ids(tasks)

    @connected
    async def test_news_during_a_run_are_not_lost(self, backend: Backend) -> None:
        """By default: a task that is enqueued while another one runs is stored, and one more of it is not."""
        first, second, third = (unique() for _ in range(3))
        await backend.enqueue([first])
        (held,) = await self.take(backend)
        assert await stands(backend, second) == [second.task_id]
        assert await stands(backend, third) == [second.task_id]
        await backend.mark_success(successes([held]))
        assert ids(await self.take(backend)) == [second.task_id]

    @connected
    async def test_a_running_task_stands_if_it_is_to(self, backend: Backend) -> None:
        """While it is unfinished; the one that asks decides, not the one that runs."""
        first, second, third = unique(), unique(while_="unfinished"), unique()
        await backend.enqueue([first])
        await self.take(backend)
        assert await stands(backend, second) == [first.task_id]
        assert await stands(backend, third) == [third.task_id]
        assert await stands(backend, unique(while_="unfinished")) == [third.task_id]

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_key_is_free_when_its_task_has_ended(self, backend: Backend, while_: While, end: str) -> None:
        """However it did."""
        await backend.enqueue([unique()])
        await ENDS[end](backend, await self.take(backend))
        task = unique(while_=while_)
        assert await stands(backend, task) == [task.task_id]

    @connected
    async def test_a_key_is_free_when_its_worker_has_died(self, backend: Backend) -> None:
        """For good: an abandoned task runs still, and stands until it is buried; nobody has to let the key go."""
        first = unique(max_attempts=1)
        await backend.enqueue([first])
        await self.take(backend)
        await self.end_leases(backend)
        assert await stands(backend, unique(while_="unfinished")) == [first.task_id]
        assert list((await self.reserve(backend)).buried) == [first.task_id]
        task = unique(while_="unfinished")
        assert await stands(backend, task) == [task.task_id]

    @pytest.mark.parametrize("otherwise", OTHERWISES)
    @connected
    async def test_a_task_is_not_stored_again_within_its_period(self, backend: Backend, otherwise: Otherwise) -> None:
        """Whatever has become of the latest one, counted from when that was stored."""
        period = timedelta(seconds=self.seconds(PERIOD_SECONDS))
        first = unique(payload=b"first")
        await backend.enqueue([first])
        await self.pass_time(backend, PERIOD_SECONDS / 2)
        await backend.mark_success(successes(await self.take(backend)))
        early = unique(period=period, otherwise=otherwise)
        if otherwise == "raise":
            with pytest.raises(DuplicateTaskError):
                await backend.enqueue([early])
        else:
            assert await stands(backend, early) == [first.task_id]
        assert await statuses(backend, [first, early]) == ["success", None]
        await self.pass_time(backend, PERIOD_SECONDS / 2 + 1)
        late = unique(period=period, otherwise=otherwise)
        assert await stands(backend, late) == [late.task_id]

    @connected
    async def test_a_task_that_is_kept_out_does_not_begin_its_period_anew(self, backend: Backend) -> None:
        """So one that is enqueued all the time is stored again when the period of the stored one is over."""
        period = timedelta(seconds=self.seconds(PERIOD_SECONDS))
        first = unique(period=period)
        await backend.enqueue([first])
        await backend.mark_success(successes(await self.take(backend)))
        for _ in range(3):
            await self.pass_time(backend, PERIOD_SECONDS / 4)
            assert await stands(backend, unique(period=period)) == [first.task_id]
        await self.pass_time(backend, PERIOD_SECONDS / 4 + 1)
        again = unique(period=period)
        assert await stands(backend, again) == [again.task_id]

    @connected
    async def test_a_waiting_task_is_replaced(self, backend: Backend) -> None:
        """It keeps its id, and when it was stored; the call, its due time and its attempts are the new one's."""
        first = unique(name="first:name", format="first", max_attempts=2)
        second = unique(
            name="second:name", format="second", max_attempts=7, otherwise="replace", delay=self.seconds(100)
        )
        await backend.enqueue([first])
        before = await look(backend, first)
        await self.pass_time(backend, 10)
        assert await stands(backend, second) == [first.task_id]
        assert await look(backend, first) == before
        assert await statuses(backend, [second]) == [None]
        assert await self.take(backend) == []
        await self.pass_time(backend, 101)
        (held,) = await self.take(backend)
        assert (held.task_id, held.payload, held.name, held.format) == (
            first.task_id,
            second.payload,
            "second:name",
            "second",
        )
        assert (held.attempt, held.max_attempts, held.enqueued_at) == (1, 7, before.enqueued_at)

    @connected
    async def test_a_task_that_is_replaced_again_and_again_waits_for_the_last_one(self, backend: Backend) -> None:
        """Each one puts it off: it is run once, with the latest call, when there was no other for long enough."""
        tasks = [unique(otherwise="replace", delay=self.seconds(100)) for _ in range(4)]
        for task in tasks:
            assert await stands(backend, task) == [tasks[0].task_id]
            await self.pass_time(backend, 60)
            assert await self.take(backend) == []
        await self.pass_time(backend, 41)
        assert [task.payload for task in await self.take(backend)] == [tasks[-1].payload]

    @connected
    async def test_a_task_that_is_due_keeps_its_place_if_it_is_replaced(self, backend: Backend) -> None:
        """By one that is due at once: else one that is replaced all the time would never be run."""
        first = unique()
        await backend.enqueue([first])
        await self.pass_time(backend, 1)
        (later,) = new()
        await backend.enqueue([later])
        await self.pass_time(backend, 1)
        await backend.enqueue([unique(otherwise="replace")])
        assert ids(await self.take(backend)) == [first.task_id, later.task_id]

    @connected
    async def test_a_task_that_is_not_due_is_replaced_by_one_that_is(self, backend: Backend) -> None:
        """And a worker that sleeps is woken for it."""
        first, second = unique(delay=self.seconds(1000)), unique(otherwise="replace")
        await backend.enqueue([first])
        async with self.other(backend) as other:
            with watching(backend, None) as seen:
                await other.enqueue([second])
                await seen.until(lambda: self.is_given_out(backend, first, second.payload))

    async def is_given_out(self, backend: Backend, task: NewTask, payload: bytes) -> bool:
        """Whether a task is due, with a payload."""
        return [(held.task_id, held.payload) for held in await self.take(backend)] == [(task.task_id, payload)]

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_replace_never_touches_what_runs(self, backend: Backend, while_: While) -> None:
        """Beside a run the news are stored as a task of their own, or the one that runs stands; also if abandoned."""
        first = unique(payload=b"first")
        await backend.enqueue([first])
        (held,) = await self.take(backend)
        before = await look(backend, first)
        task = unique(while_=while_, otherwise="replace", delay=self.seconds(1000))
        assert await stands(backend, task) == [task.task_id if while_ == "waiting" else first.task_id]
        assert await look(backend, first) == before
        assert list(await backend.renew([held], lease=self.lease)) == []
        await self.end_leases(backend)
        again = unique(while_=while_, otherwise="replace", delay=self.seconds(1000))
        assert await stands(backend, again) == [task.task_id if while_ == "waiting" else first.task_id]
        (held,) = await self.take(backend)
        assert (held.task_id, held.payload, held.attempt) == (first.task_id, b"first", 2)
        await backend.mark_success(successes([held], b"value"))
        assert (await look(backend, first)).value == b"value"

    @connected
    async def test_a_waiting_task_is_replaced_beside_one_that_runs(self, backend: Backend) -> None:
        """Of the two, the one that waits gets the call, also for who asks for unfinished ones."""
        first, second, third = unique(), unique(), unique(while_="unfinished", otherwise="replace")
        await backend.enqueue([first])
        await self.take(backend)
        await backend.enqueue([second])
        assert await stands(backend, third) == [second.task_id]
        assert [task.payload for task in await self.take(backend)] == [third.payload]
