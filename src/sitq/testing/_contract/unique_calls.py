"""Tests of calls that store unique tasks: whole or not at all, several at once, and made again."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import pytest

from sitq import Backend, BackendError
from sitq.errors import DuplicateTaskError
from sitq.models import MAX_KEY_CHARACTERS, Extras, Otherwise, Unique
from sitq.testing._contract.base import Contract, connected, ids, look, new, statuses, successes
from sitq.testing._contract.unique import OTHERWISES, stands, unique


class UniqueCalls(Contract):
    """A call with unique tasks is one change, and carried out once."""

    @connected
    async def test_a_duplicate_raises_if_it_is_to(self, backend: Backend) -> None:
        """The error names the task that stands; nothing of the call is stored, and others of the moment are."""
        first = unique()
        await backend.enqueue([first])
        tasks = [*new(), unique("another"), unique(otherwise="raise"), *new()]
        beside = new(3)
        refused, *stored = await asyncio.gather(
            backend.enqueue(tasks), *(backend.enqueue([task]) for task in beside), return_exceptions=True
        )
        assert isinstance(refused, DuplicateTaskError)
        assert (refused.task_id, refused.key) == (first.task_id, "key")
        assert stored == [None] * 3
        assert await statuses(backend, [*tasks, *beside]) == [None] * 4 + ["pending"] * 3

    @connected
    async def test_a_call_that_raises_replaces_nothing(self, backend: Backend) -> None:
        """Not even what was replaced before the one that raised."""
        first, second = unique(), unique("another")
        await backend.enqueue([first, second])
        with pytest.raises(DuplicateTaskError):
            await backend.enqueue([unique(otherwise="replace"), unique("another", otherwise="raise")])
        assert [task.payload for task in await self.take(backend)] == [first.payload, second.payload]

    @connected
    async def test_many_at_one_moment_raise_for_each_other(self, backend: Backend) -> None:
        """One of them is stored, and all the others name it."""
        tasks = [unique(otherwise="raise") for _ in range(20)]
        async with self.other(backend) as other:
            calls = [by.enqueue([task]) for task, by in zip(tasks, [backend, other] * 10, strict=True)]
            found = await asyncio.gather(*calls, return_exceptions=True)
        (held,) = await self.take(backend)
        refused = [each for each in found if isinstance(each, DuplicateTaskError)]
        assert [each.task_id for each in refused] == [held.task_id] * 19

    @connected
    async def test_of_many_at_one_moment_one_is_stored(self, backend: Backend) -> None:
        """And all get its id, in one backend and in two."""
        tasks = [unique(while_="unfinished") for _ in range(20)]
        async with self.other(backend) as other:
            calls = [stands(by, task) for task, by in zip(tasks, [backend, other] * 10, strict=True)]
            found = await asyncio.gather(*calls)
        (held,) = await self.take(backend)
        assert found == [[held.task_id]] * 20

    @connected
    async def test_tasks_of_one_call_see_each_other(self, backend: Backend) -> None:
        """The first stands for those behind it, or has become the last that replaced it."""
        tasks = [unique("a"), *new(), unique("b"), unique("a"), unique("b", otherwise="replace")]
        assert await stands(backend, *tasks) == [tasks[n].task_id for n in (0, 1, 2, 0, 2)]
        held = await self.take(backend)
        assert [(task.task_id, task.payload) for task in held] == [
            (tasks[0].task_id, tasks[0].payload),
            (tasks[1].task_id, tasks[1].payload),
            (tasks[2].task_id, tasks[4].payload),
        ]

    @connected
    async def test_a_call_that_is_a_duplicate_of_itself_raises(self, backend: Backend) -> None:
        """Nothing of it is stored."""
        tasks = [unique(), unique(otherwise="raise")]
        with pytest.raises(DuplicateTaskError):
            await backend.enqueue(tasks)
        assert await statuses(backend, tasks) == [None, None]

    @connected
    async def test_many_of_one_call_are_told_apart(self, backend: Backend) -> None:
        """However large it is: of each key the first is stored."""
        tasks = [unique(f"key {n % 700}") for n in range(2000)]
        assert await stands(backend, *tasks) == [tasks[n % 700].task_id for n in range(2000)]
        assert ids(await self.take(backend, 2000)) == ids(tasks[:700])

    @pytest.mark.parametrize("otherwise", OTHERWISES)
    @pytest.mark.parametrize("then", ["waits", "runs", "has ended"])
    @connected
    async def test_a_call_that_is_made_again_stores_nothing_more(
        self, backend: Backend, otherwise: Otherwise, then: Literal["waits", "runs", "has ended"]
    ) -> None:
        """It gets the same ids, and is no duplicate of itself, whatever has become of its tasks."""
        tasks = [unique("a", otherwise=otherwise), *new(), unique("b", otherwise=otherwise)]
        await backend.enqueue(tasks)
        if then != "waits":
            held = await self.take(backend)
            if then == "has ended":
                await backend.mark_success(successes(held))
        before = [await look(backend, task) for task in tasks]
        async with self.other(backend) as other:
            for by in (backend, other):
                assert await stands(by, *tasks) == ids(tasks)
        assert [await look(backend, task) for task in tasks] == before
        assert ids(await self.take(backend)) == (ids(tasks) if then == "waits" else [])

    @pytest.mark.parametrize("then", ["waits", "runs", "has ended"])
    @connected
    async def test_a_replacement_that_is_made_again_replaces_nothing(
        self, backend: Backend, then: Literal["waits", "runs", "has ended"]
    ) -> None:
        """Neither is it stored, if what it has replaced was started; nor is a later call undone."""
        first, second, third = unique(), unique(otherwise="replace"), unique(otherwise="replace")
        await backend.enqueue([first])
        assert await stands(backend, second) == [first.task_id]
        assert await stands(backend, third) == [first.task_id]
        held = [] if then == "waits" else await self.take(backend)
        if then == "has ended":
            await backend.mark_success(successes(held))
        async with self.other(backend) as other:
            for task in (second, first, third):
                assert await stands(other, task) == [first.task_id]
        assert await statuses(backend, [second, third]) == [None, None]
        found = held or await self.take(backend)
        assert [task.payload for task in found] == [third.payload]
        assert await self.take(backend) == []

    @connected
    async def test_a_call_whose_answer_was_lost_is_carried_out_once(self, backend: Backend) -> None:
        """Made again, it gets the id that it would have got, of what it has stored, replaced or left."""
        standing = unique("c")
        await backend.enqueue([standing])
        for task, expected in (
            (first := unique("a"), first),
            (unique("a", otherwise="replace"), first),
            (unique("b", otherwise="raise"), None),
            (unique("c"), standing),
        ):
            async with self.cut(backend):
                found = await self.repeat(lambda task=task: stands(backend, task))  # type: ignore[misc]
            assert found == [(expected or task).task_id]
        assert len(await self.take(backend)) == 3

    async def repeat[T](self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Makes a call once more if its answer is lost."""
        try:
            return await call()
        except BackendError:
            return await call()

    @connected
    async def test_an_id_that_is_taken_is_refused_beside_keys_as_well(self, backend: Backend) -> None:
        """By another payload, by another key, by a plain task, and twice in one call."""
        taken, (plain,), replaced = unique(), new(), unique("replaced")
        await backend.enqueue([taken, plain, replaced])
        last = unique("replaced", otherwise="replace")
        await backend.enqueue([last])
        others = [
            taken._replace(payload=b"another"),
            taken._replace(extras=Extras(unique=Unique("another"))),
            plain._replace(extras=taken.extras),
            plain._replace(payload=b"another"),
            replaced._replace(extras=None),
        ]
        for other in others:
            beside = unique("beside")
            with pytest.raises(BackendError):
                await backend.enqueue([beside, other])
            assert await statuses(backend, [beside]) == [None]
        twice = unique("twice")
        with pytest.raises(BackendError):
            await backend.enqueue([twice, twice])
        assert ids(await self.take(backend)) == ids([taken, plain, replaced])

    @connected
    async def test_keys_are_told_apart_by_every_character(self, backend: Backend) -> None:
        """Long ones, and such that differ in case, in spaces or in how a character is made."""
        keys = [
            "a",
            "A",
            "a ",
            " a",
            "ä",
            "a\u0308",
            "%",
            "_",
            "'",
            "",
            *(f"{'x' * (MAX_KEY_CHARACTERS - 1)}{n}" for n in "01"),
        ]
        tasks = [unique(key) for key in keys if key]
        assert await stands(backend, *tasks) == ids(tasks)
        assert await stands(backend, *(unique(key) for key in keys if key)) == ids(tasks)

    @connected
    async def test_a_task_too_large_for_the_store_is_refused_whether_it_would_be_stored_or_not(
        self, backend: Backend
    ) -> None:
        """Also beside one that stands for its key."""
        limit = backend.max_payload_bytes
        if limit is None:
            pytest.skip("this backend has no limit")
        await backend.enqueue([unique()])
        with pytest.raises(ValueError, match=str(limit)):
            await backend.enqueue([unique(payload=bytes(limit + 1))])

    @connected
    async def test_a_task_that_is_kept_out_stands_for_none_behind_it(self, backend: Backend) -> None:
        """It is not stored: the next one of the call has to do with what is there alone."""
        first, second, third = unique(), unique(while_="unfinished"), unique(otherwise="raise")
        await backend.enqueue([first])
        await self.take(backend)
        assert await stands(backend, second, third) == [first.task_id, third.task_id]
