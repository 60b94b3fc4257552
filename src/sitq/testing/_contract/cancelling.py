"""Tests of ending tasks that run."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sitq import Backend, NewTask, ReservedTask
from sitq.backends.cancelling import Cancelling
from sitq.backends.endings import Endings
from sitq.backends.inspect import Inspectable
from sitq.errors import ASKED, CUT
from sitq.models import FINISHED, Outcome
from sitq.testing._contract.base import Contract, connected, failures, ids, look, new, statuses, successes
from sitq.testing._contract.watching import watching

type Call = Callable[[Backend], Awaitable[object]]


def cancelling(backend: Backend) -> Cancelling:
    """Returns ``backend`` as what it has to be."""
    assert isinstance(backend, Cancelling)
    return backend


def inspectable(backend: Backend) -> Inspectable:
    """Returns ``backend`` if it is more than it has to be."""
    if not isinstance(backend, Inspectable):
        pytest.skip("the backend is not Inspectable")
    return backend


def needs_retries(backend: Backend) -> None:
    """Skips the test of a backend that does not carry out retries by a policy."""
    if not (isinstance(backend, Endings) and "retry" in backend.endings):
        pytest.skip("the backend has no 'retry'")


async def asked(backend: Backend) -> set[tuple[int | str, int | str]]:
    """Returns what the backend says of tasks that were asked to end, each once."""
    found = list(await cancelling(backend).asked())
    assert len(found) == len(set(found))
    return set(found)


async def is_cancelled(backend: Backend, task: NewTask, error: str) -> None:
    """Checks that a task has ended for that reason."""
    found = await look(backend, task)
    assert (found.status, found.error, found.value, found.traceback) == ("cancelled", error, None, None)
    assert found.finished_at is not None


class CancellingTests(Contract):
    """A task that runs can be asked to end, or cut, and never does anybody get it afterwards."""

    async def hold(self, backend: Backend, count: int = 1, *, max_attempts: int = 5) -> list[NewTask]:
        """Returns new tasks that are held; nothing else may be due."""
        tasks = new(count, max_attempts=max_attempts)
        await backend.enqueue(tasks)
        self.held = await self.take(backend, count)
        assert ids(self.held) == ids(tasks)
        return tasks

    async def hold_asked(self, backend: Backend, *, max_attempts: int = 5) -> tuple[NewTask, ReservedTask]:
        """Returns a new task that was asked to end, and it as it is held."""
        (task,) = await self.hold(backend, max_attempts=max_attempts)
        (held,) = self.held
        assert list(await cancelling(backend).ask([task.task_id])) == [task.task_id]
        return task, held

    def retry(self, held: ReservedTask) -> list[Outcome]:
        """Returns an outcome that has a task tried again."""
        return [Outcome(held, error="ValueError: no", traceback="Traceback", retry_in=self.seconds(10))]

    @connected
    async def test_a_task_that_was_asked_is_its_workers_all_the_same(self, backend: Backend) -> None:
        """It is in progress and can be renewed; who asks which tasks are to end gets its key and claim."""
        task, other = await self.hold(backend, 2)
        held = self.held[0]
        assert await asked(backend) == set()
        assert list(await cancelling(backend).ask([task.task_id])) == [task.task_id]
        assert await asked(backend) == {(held.key, held.claim)}
        assert await statuses(backend, [task, other]) == ["in_progress", "in_progress"]
        assert list(await backend.renew(self.held, lease=self.lease)) == []
        assert await self.take(backend) == []

    @connected
    async def test_who_is_asked_may_be_another_backend(self, backend: Backend) -> None:
        """The request stands in the store."""
        (task,) = await self.hold(backend)
        async with self.other(backend) as other:
            await cancelling(other).ask([task.task_id])
        assert await asked(backend) == {(self.held[0].key, self.held[0].claim)}

    @connected
    async def test_a_task_that_was_asked_to_end_and_returned_is_a_success(self, backend: Backend) -> None:
        """Whatever its worker records holds, and is recognised if it is recorded again."""
        task, held = await self.hold_asked(backend)
        for _ in range(2):
            assert list(await backend.mark_success(successes([held], b"value"))) == []
        found = await look(backend, task)
        assert (found.status, found.value, found.error) == ("success", b"value", None)
        assert await asked(backend) == set()

    @connected
    async def test_a_task_that_was_asked_to_end_can_fail(self, backend: Backend) -> None:
        """What it raised is kept."""
        task, held = await self.hold_asked(backend)
        assert list(await backend.mark_failure(failures([held], "ValueError: no"))) == []
        assert ((found := await look(backend, task)).status, found.error) == ("failed", "ValueError: no")

    @connected
    async def test_asking_twice_is_asking_once(self, backend: Backend) -> None:
        """The task is named each time; it has ended once."""
        task, held = await self.hold_asked(backend)
        await self.pass_time(backend, 1)
        assert list(await cancelling(backend).ask([task.task_id])) == [task.task_id]
        assert await asked(backend) == {(held.key, held.claim)}
        await backend.mark_success(successes([held]))
        assert list(await cancelling(backend).ask([task.task_id])) == []

    @connected
    async def test_asking_wins_over_a_takeover(self, backend: Backend) -> None:
        """If its worker has died, the task has ended as soon as anybody would get it, and nobody does."""
        task, held = await self.hold_asked(backend)
        await self.end_leases(backend)
        found = await self.reserve(backend)
        assert (list(found.tasks), list(found.buried)) == ([], [])
        await is_cancelled(backend, task, ASKED)
        assert list(await backend.mark_success(successes([held]))) == [held]
        assert list(await backend.renew([held], lease=self.lease)) == [held]
        assert await asked(backend) == set()
        await self.end_leases(backend)
        assert await self.take(backend) == []

    @connected
    async def test_asking_wins_over_a_burial(self, backend: Backend) -> None:
        """Also if the attempt was its last one: it was to end, and its worker's death is not its failure."""
        task, _ = await self.hold_asked(backend, max_attempts=1)
        await self.end_leases(backend)
        found = await self.reserve(backend)
        assert (list(found.tasks), list(found.buried)) == ([], [])
        await is_cancelled(backend, task, ASKED)

    @connected
    async def test_what_waits_behind_a_task_that_was_to_end_is_given_out(self, backend: Backend) -> None:
        """A reservation does not come back with nothing because all that it would have taken over has ended."""
        tasks = await self.hold(backend, 3)
        await cancelling(backend).ask(ids(tasks))
        await self.end_leases(backend)
        (waiting,) = new()
        await backend.enqueue([waiting])
        assert ids(await self.take(backend, 1)) == [waiting.task_id]
        assert await statuses(backend, tasks) == ["cancelled"] * 3

    @connected
    async def test_a_task_that_was_asked_to_end_and_is_given_back_has_ended(self, backend: Backend) -> None:
        """Its worker held it, and learns nothing else."""
        task, held = await self.hold_asked(backend)
        assert list(await backend.release([held])) == []
        await is_cancelled(backend, task, ASKED)
        assert await self.take(backend) == []
        assert list(await backend.release([held])) == [held]

    @connected
    async def test_a_task_that_was_asked_to_end_and_raised_is_not_retried(self, backend: Backend) -> None:
        """It has ended as cancelled; the outcome is recognised if it is recorded again."""
        needs_retries(backend)
        task, held = await self.hold_asked(backend)
        for _ in range(2):
            assert list(await backend.mark_failure(self.retry(held))) == []
        await is_cancelled(backend, task, ASKED)
        await self.pass_time(backend, 11)
        assert await self.take(backend) == []
        assert list(await backend.mark_success(successes([held]))) == [held]

    @connected
    async def test_a_cut_task_records_nothing(self, backend: Backend) -> None:
        """It is cancelled at once, and its claim does not hold any more, whatever it was held for."""
        task, other = await self.hold(backend, 2)
        held, kept = self.held
        assert list(await cancelling(backend).cut([task.task_id])) == [task.task_id]
        await is_cancelled(backend, task, CUT)
        assert list(await backend.mark_success(successes([held]))) == [held]
        assert list(await backend.mark_failure(failures([held]))) == [held]
        assert list(await backend.mark_failure([Outcome(held, error="Cancelled: late", cancelled=True)])) == [held]
        assert list(await backend.renew([held, kept], lease=self.lease)) == [held]
        assert list(await backend.release([held])) == [held]
        await is_cancelled(backend, task, CUT)
        assert await statuses(backend, [other]) == ["in_progress"]

    @connected
    async def test_a_task_that_was_asked_can_be_cut(self, backend: Backend) -> None:
        """Who has waited long enough."""
        task, held = await self.hold_asked(backend)
        assert list(await cancelling(backend).cut([task.task_id])) == [task.task_id]
        await is_cancelled(backend, task, CUT)
        assert await asked(backend) == set()
        assert list(await backend.mark_success(successes([held]))) == [held]

    @pytest.mark.parametrize("call", ["ask", "cut"])
    @connected
    async def test_a_finished_task_cannot_be_cancelled(self, backend: Backend, call: str) -> None:
        """Who finished first has won: the outcome stays what it was. And what waits does not run."""
        tasks = await self.hold(backend, 3)
        await backend.mark_success(successes(self.held[:1]))
        await backend.mark_failure(failures(self.held[1:2]))
        await backend.release(self.held[2:])
        before = [await look(backend, task) for task in tasks]
        wanted = [*ids(tasks), "no-such-task", "\udcff"]
        assert list(await getattr(cancelling(backend), call)(wanted)) == []
        assert [await look(backend, task) for task in tasks] == before
        assert await asked(backend) == set()

    @pytest.mark.parametrize("call", ["ask", "cut"])
    @connected
    async def test_the_rest_is_ended_if_one_of_several_is_not_held(self, backend: Backend, call: str) -> None:
        """Each one by itself; the ids come back in order, and once."""
        tasks = await self.hold(backend, 4)
        await backend.mark_success(successes(self.held[1:2]))
        one, _, three, four = ids(tasks)
        wanted = [four, tasks[1].task_id, one, "no-such-task", four, three]
        assert list(await getattr(cancelling(backend), call)(wanted)) == [four, one, three]
        expected = "in_progress" if call == "ask" else "cancelled"
        assert await statuses(backend, tasks) == [expected, "success", expected, expected]

    @pytest.mark.parametrize("call", ["ask", "cut"])
    @connected
    async def test_of_an_end_and_a_request_at_once_the_first_holds(self, backend: Backend, call: str) -> None:
        """A task that has succeeded stays so, and one that was cut stays cancelled; nothing is in between."""
        async with self.other(backend) as other:
            for _ in range(20):
                (task,) = await self.hold(backend)
                done, not_held = await asyncio.gather(
                    getattr(cancelling(other), call)([task.task_id]), backend.mark_success(successes(self.held))
                )
                is_cut = call == "cut" and list(done) == [task.task_id]
                assert list(not_held) == (self.held if is_cut else [])
                assert await statuses(backend, [task]) == ["cancelled" if is_cut else "success"]
        assert await asked(backend) == set()

    @pytest.mark.parametrize("how", ["cancelled", "abandoned"])
    @connected
    async def test_a_retry_by_hand_forgets_the_request(self, backend: Backend, how: str) -> None:
        """Of a task that has ended by it, and of one that nobody has taken over yet: it runs as if it were new."""
        mend = inspectable(backend)
        task, held = await self.hold_asked(backend)
        if how == "cancelled":
            await backend.release([held])
        else:
            await self.end_leases(backend)
        assert list(await mend.retry([task.task_id])) == [task.task_id]
        (again,) = await self.take(backend)
        assert (again.task_id, again.attempt) == (task.task_id, 1)
        assert await asked(backend) == set()
        await self.end_leases(backend)
        (again,) = await self.take(backend)
        assert list(await backend.mark_success(successes([again]))) == []

    @connected
    async def test_it_is_shown_that_a_task_was_asked(self, backend: Backend) -> None:
        """When it was asked first, in a list and by itself."""
        look_into = inspectable(backend)
        task, _ = await self.hold_asked(backend)
        shown = await look_into.show(task.task_id)
        assert shown is not None
        if shown.asked_at is None:
            pytest.skip("the backend does not show it")
        await self.pass_time(backend, 1)
        await cancelling(backend).ask([task.task_id])
        (listed,) = await look_into.list()
        assert listed.asked_at == shown.asked_at
        assert shown.started_at is not None
        assert shown.asked_at >= shown.started_at

    @connected
    async def test_who_watches_a_task_is_woken_by_a_request(self, backend: Backend) -> None:
        """So its worker can learn of it at once, if the same backend was asked."""
        (task,) = await self.hold(backend)

        async def found() -> bool:
            return bool(await asked(backend))

        with watching(backend, task) as seen:
            await cancelling(backend).ask([task.task_id])
            await seen.until(found)

    @pytest.mark.parametrize("how", ["cut", "release", "retry", "takeover"])
    @connected
    async def test_who_waits_for_a_task_is_woken_when_it_has_ended(self, backend: Backend, how: str) -> None:
        """Whoever has ended it, and whatever he was about to do with it; also another backend."""
        if how == "retry":
            needs_retries(backend)
        task, held = await self.hold_asked(backend)
        calls: dict[str, Call] = {
            "cut": lambda by: cancelling(by).cut([task.task_id]),
            "release": lambda by: by.release([held]),
            "retry": lambda by: by.mark_failure(self.retry(held)),
            "takeover": self.take,
        }

        async def found() -> bool:
            return (await look(backend, task)).status in FINISHED

        if how == "takeover":
            await self.end_leases(backend)
        async with self.other(backend) as other:
            with watching(backend, task) as seen:
                await calls[how](other)
                await seen.until(found)

    @connected
    async def test_many_tasks_are_ended_in_one_call(self, backend: Backend) -> None:
        """However many there are."""
        tasks = await self.hold(backend, 1201)
        assert list(await cancelling(backend).ask(ids(tasks))) == ids(tasks)
        assert await asked(backend) == {(held.key, held.claim) for held in self.held}
        assert list(await cancelling(backend).cut(ids(tasks))) == ids(tasks)
        assert await asked(backend) == set()
