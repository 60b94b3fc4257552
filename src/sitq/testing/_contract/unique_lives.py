"""Tests of what becomes of unique tasks: nothing can fail for a key."""

from datetime import timedelta

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.endings import Ending, Endings
from sitq.backends.inspect import Inspectable
from sitq.models import Otherwise, Outcome, While
from sitq.testing._contract.base import Contract, connected, failures, ids, look, new, statuses, successes
from sitq.testing._contract.ending import MARKS
from sitq.testing._contract.unique import OTHERWISES, WHILES, stands, unique


class UniqueLives(Contract):
    """Two tasks of one key may stand side by side, and one that is stored with an outcome is one like any other."""

    def has(self, backend: Backend, ending: Ending) -> None:
        """Skips the test unless the backend carries out ``ending``."""
        if not isinstance(backend, Endings) or ending not in backend.endings:
            pytest.skip(f"the backend has no {ending!r}")

    @connected
    async def test_a_release_beside_a_newer_one_does_not_disturb_the_batch(self, backend: Backend) -> None:
        """Two tasks of one key wait then; the other tasks of the call are given back, and another one is kept out."""
        first, second, (plain,) = unique(), unique(), new()
        await backend.enqueue([first, plain])
        held = await self.take(backend)
        await backend.enqueue([second])
        assert list(await backend.release(held)) == []
        assert (await stands(backend, unique()))[0] in ids([first, second])
        assert sorted(ids(await self.take(backend))) == sorted(ids([first, plain, second]))

    @connected
    async def test_a_takeover_beside_a_newer_one_does_not_disturb_the_batch(self, backend: Backend) -> None:
        """An abandoned task is given out again beside another one of its key."""
        first, second = unique(), unique()
        await backend.enqueue([first])
        await self.take(backend)
        await backend.enqueue([second])
        await self.end_leases(backend)
        held = await self.take(backend)
        assert sorted(ids(held)) == sorted(ids([first, second]))
        assert list(await backend.mark_success(successes(held))) == []

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_task_that_is_to_be_tried_again_waits(self, backend: Backend, while_: While) -> None:
        """It keeps others out, and can be replaced: then as if it had never been run."""
        self.has(backend, "retry")
        first = unique(max_attempts=2)
        await backend.enqueue([first])
        (held,) = await self.take(backend)
        await backend.mark_failure([Outcome(held, error="E: no", traceback="T", retry_in=self.seconds(10))])
        assert await stands(backend, unique(while_=while_)) == [first.task_id]
        second = unique(while_=while_, otherwise="replace", max_attempts=3)
        assert await stands(backend, second) == [first.task_id]
        found = await look(backend, first)
        assert (found.status, found.attempt, found.error, found.traceback) == ("pending", 0, None, None)
        (held,) = await self.take(backend)
        assert (held.payload, held.attempt, held.max_attempts, held.failures) == (second.payload, 1, 3, 0)

    @connected
    async def test_a_retry_by_hand_beside_a_newer_one_does_not_fail(self, backend: Backend) -> None:
        """Two tasks of one key wait then, and each is run; the next one is kept out by one of them."""
        if not isinstance(backend, Inspectable):
            pytest.skip("the backend is not Inspectable")
        first, second, third = (unique() for _ in range(3))
        await backend.enqueue([first])
        await backend.mark_failure(failures(await self.take(backend)))
        await backend.enqueue([second])
        assert list(await backend.retry([first.task_id])) == [first.task_id]
        assert (await stands(backend, third))[0] in ids([first, second])
        assert sorted(ids(await self.take(backend))) == sorted(ids([first, second]))

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_key_is_free_when_its_task_was_cancelled(self, backend: Backend, while_: While) -> None:
        """By hand, while it waited."""
        if not isinstance(backend, Inspectable):
            pytest.skip("the backend is not Inspectable")
        first, second = unique(), unique(while_=while_)
        await backend.enqueue([first])
        await backend.cancel([first.task_id])
        assert await stands(backend, second) == [second.task_id]

    async def hold(self, backend: Backend, task: NewTask) -> ReservedTask:
        """Stores a task and takes it; nothing else may be due."""
        await backend.enqueue([task])
        (held,) = await self.take(backend)
        return held

    @pytest.mark.parametrize("mark", MARKS)
    @pytest.mark.parametrize("otherwise", OTHERWISES)
    @connected
    async def test_a_key_keeps_no_outcome_from_being_recorded(
        self, backend: Backend, otherwise: Otherwise, mark: str
    ) -> None:
        """A task that is to be stored with one is kept out, replaces or, though it is to raise, is kept out."""
        self.has(backend, "then")
        held = await self.hold(backend, unique("another"))
        standing, then, plain = unique(), unique(otherwise=otherwise), *new()
        await backend.enqueue([standing])
        assert list(await MARKS[mark](backend, [Outcome(held, error="E: no", then=[then, plain])])) == []
        assert (await look(backend, held)).finished_at is not None
        assert await statuses(backend, [then]) == [None]
        expected = then if otherwise == "replace" else standing
        found = [(task.task_id, task.payload) for task in await self.take(backend)]
        assert found == [(standing.task_id, expected.payload), (plain.task_id, plain.payload)]

    @connected
    async def test_unique_tasks_of_an_outcome_are_stored_once(self, backend: Backend) -> None:
        """They see each other, keep others out, and are not stored again if the outcome is recorded again."""
        self.has(backend, "then")
        held = await self.hold(backend, unique("another"))
        first, second = unique(), unique()
        for _ in range(2):
            assert list(await backend.mark_success([Outcome(held, b"", then=[first, second])])) == []
        assert await stands(backend, unique()) == [first.task_id]
        assert ids(await self.take(backend)) == [first.task_id]
        assert list(await backend.mark_success([Outcome(held, b"", then=[first, second])])) == []
        assert await statuses(backend, [first, second]) == ["in_progress", None]

    @pytest.mark.parametrize("otherwise", OTHERWISES)
    @connected
    async def test_a_late_outcome_stores_and_replaces_nothing(self, backend: Backend, otherwise: Otherwise) -> None:
        """Of a run that is not held any more."""
        self.has(backend, "then")
        late = await self.hold(backend, unique("another"))
        await self.end_leases(backend)
        await self.take(backend)
        standing, free = unique(), unique("free", otherwise=otherwise)
        await backend.enqueue([standing])
        outcome = Outcome(late, b"", then=[unique(otherwise=otherwise), free])
        assert list(await backend.mark_success([outcome])) == [late]
        assert await statuses(backend, [free]) == [None]
        assert [task.payload for task in await self.take(backend)] == [standing.payload]

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_task_does_not_keep_out_the_one_that_follows_it(self, backend: Backend, while_: While) -> None:
        """With the same key: its outcome ends it, and the chain goes on."""
        self.has(backend, "then")
        held = await self.hold(backend, unique())
        for _ in range(3):
            then = unique(while_=while_)
            assert list(await backend.mark_success([Outcome(held, b"", then=[then])])) == []
            (held,) = await self.take(backend)
            assert held.task_id == then.task_id

    @pytest.mark.parametrize("while_", WHILES)
    @connected
    async def test_a_task_that_is_tried_again_keeps_out_the_one_that_follows_it(
        self, backend: Backend, while_: While
    ) -> None:
        """It waits after its outcome, and is not replaced by it."""
        self.has(backend, "then")
        self.has(backend, "retry")
        first, then = unique(), unique(while_=while_, otherwise="replace")
        held = await self.hold(backend, first)
        assert list(await backend.mark_failure([Outcome(held, error="E: no", retry_in=0.0, then=[then])])) == []
        await self.pass_time(backend, 1)
        assert [(task.task_id, task.payload) for task in await self.take(backend)] == [(first.task_id, first.payload)]

    @connected
    async def test_an_id_that_is_taken_keeps_no_outcome_with_unique_tasks_from_being_recorded(
        self, backend: Backend
    ) -> None:
        """The task that has it stays as it is, and replaces nothing."""
        self.has(backend, "then")
        held = await self.hold(backend, unique("another"))
        standing, (plain,) = unique(), new()
        await backend.enqueue([standing, plain])
        taken = [plain._replace(extras=unique(otherwise="replace").extras), standing._replace(payload=b"other")]
        assert list(await backend.mark_success([Outcome(held, b"", then=taken)])) == []
        found = [(task.task_id, task.payload) for task in await self.take(backend)]
        assert found == [(standing.task_id, standing.payload), (plain.task_id, plain.payload)]

    @connected
    async def test_a_period_that_is_too_long_keeps_no_outcome_from_being_recorded(self, backend: Backend) -> None:
        """A store that keeps finished tasks for less sees as far as it can."""
        self.has(backend, "then")
        held = await self.hold(backend, unique("another"))
        then = unique(period=timedelta(days=36_500))
        assert list(await backend.mark_success([Outcome(held, b"", then=[then])])) == []
        assert await statuses(backend, [held, then]) == ["success", "pending"]
