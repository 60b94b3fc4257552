"""Tests of outcomes that say more than that a task has ended."""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from sitq import Backend, BackendError, NewTask, ReservedTask, WorkerDiedError
from sitq.backends.endings import Ending, Endings
from sitq.models import BURIED_ERROR_PREFIX, FINISHED, Outcome, new_task_id
from sitq.testing._contract.base import (
    Contract,
    connected,
    failures,
    ids,
    look,
    new,
    statuses,
    successes,
)
from sitq.testing._contract.storing import EXTRAS
from sitq.testing._contract.watching import watching

DELAY_SECONDS = 100.0
ERROR, TRACEBACK = "ValueError: not yet", "Traceback: ..."

type _Test = Callable[..., Coroutine[Any, Any, None]]
type Mark = Callable[[Backend, Sequence[Outcome]], Awaitable[Sequence[ReservedTask]]]

MARKS: dict[str, Mark] = {
    "success": lambda backend, outcomes: backend.mark_success(outcomes),
    "failure": lambda backend, outcomes: backend.mark_failure(outcomes),
}


def needs(ending: Ending) -> Callable[[_Test], Callable[..., None]]:
    """Runs a test with a connected backend, unless that one does not carry out ``ending``."""

    def decorate(test: _Test) -> Callable[..., None]:
        @functools.wraps(test)
        async def run(self: Contract, backend: Backend, **parameters: Any) -> None:
            assert isinstance(backend, Endings)
            if ending not in backend.endings:
                pytest.skip(f"the backend has no {ending!r}")
            await test(self, backend, **parameters)

        return connected(run)

    return decorate


def cancellations(tasks: Sequence[ReservedTask]) -> list[Outcome]:
    """Returns outcomes of tasks whose run was cancelled."""
    return [Outcome(task, error="Cancelled: by hand", cancelled=True) for task in tasks]


class EndingTests(Contract):
    """What an outcome asks for beside the end of a task is done with it, or not at all."""

    async def hold(self, backend: Backend, **options: Any) -> tuple[NewTask, ReservedTask]:
        """Returns a new task, and it as it is held; nothing else may be due."""
        (task,) = new(**options)
        await backend.enqueue([task])
        (held,) = await self.take(backend)
        return task, held

    def retries(
        self, tasks: Sequence[ReservedTask], *, counts: bool = True, delay: float = DELAY_SECONDS
    ) -> list[Outcome]:
        """Returns outcomes of tasks that raised and are to be tried again after so many of the suite's seconds."""
        retry_in = self.seconds(delay)
        return [Outcome(task, error=ERROR, traceback=TRACEBACK, retry_in=retry_in, counts=counts) for task in tasks]

    def test_a_backend_says_which_endings_it_has(self, backend: Backend) -> None:
        """Some of the three, and at least one."""
        assert isinstance(backend, Endings)
        assert backend.endings
        assert backend.endings <= {"retry", "cancel", "then"}

    @needs("retry")
    async def test_a_task_is_tried_again_no_earlier_than_its_delay(self, backend: Backend) -> None:
        """Until then it is pending, with the error of its run; then it is given out like any other."""
        task, held = await self.hold(backend)
        assert list(await backend.mark_failure(self.retries([held]))) == []
        found = await look(backend, task)
        assert (found.status, found.attempt, found.finished_at) == ("pending", 1, None)
        assert (found.error, found.traceback) == (ERROR, TRACEBACK)
        await self.pass_time(backend, DELAY_SECONDS / 2)
        reservation = await self.reserve(backend)
        assert list(reservation.tasks) == []
        assert reservation.next_due_in is None or 0 < reservation.next_due_in <= self.seconds(DELAY_SECONDS / 2)
        await self.pass_time(backend, DELAY_SECONDS / 2 + 1)
        (again,) = await self.take(backend)
        assert (again.task_id, again.payload, again.attempt) == (task.task_id, task.payload, 2)
        assert again.enqueued_at == held.enqueued_at

    @pytest.mark.parametrize("counts", [True, False])
    @needs("retry")
    async def test_failures_are_counted_if_they_are_to_be(self, backend: Backend, counts: bool) -> None:
        """Whether they count or not, the number of the run rises."""
        _, held = await self.hold(backend)
        assert held.failures == 0
        for attempt in (2, 3):
            await backend.mark_failure(self.retries([held], counts=counts, delay=0))
            await self.pass_time(backend, 1)
            (held,) = await self.take(backend)
            assert (held.attempt, held.failures) == (attempt, attempt - 1 if counts else 0)

    @pytest.mark.parametrize("counts", [True, False])
    @needs("retry")
    async def test_a_raise_does_not_bring_the_last_attempt_nearer(self, backend: Backend, counts: bool) -> None:
        """A task that may still lose one worker is given out beside others, however often it is tried again."""
        _, held = await self.hold(backend, max_attempts=2)
        for _ in range(8):
            assert not held.is_last_attempt
            await backend.mark_failure(self.retries([held], counts=counts, delay=0))
            await self.pass_time(backend, 1)
            (held,) = await self.take(backend, alone=False)

    @pytest.mark.parametrize("counts", [True, False])
    @needs("retry")
    async def test_a_death_counts_among_raises(self, backend: Backend, counts: bool) -> None:
        """A task that is tried again before each death is buried after as many deaths as it was permitted."""
        task, held = await self.hold(backend, max_attempts=2)
        for is_last in (False, True):
            await backend.mark_failure(self.retries([held], counts=counts, delay=0))
            await self.pass_time(backend, 1)
            (held,) = await self.take(backend)
            assert (held.task_id, held.is_last_attempt) == (task.task_id, is_last)
            await self.end_leases(backend)
            found = await self.reserve(backend)
            assert list(found.buried) == ([task.task_id] if is_last else [])
            held = next(iter(found.tasks), held)
        buried = await look(backend, task)
        assert (buried.status, buried.traceback) == ("failed", None)
        assert (buried.error or "").startswith(BURIED_ERROR_PREFIX)
        with pytest.raises(WorkerDiedError):
            buried.unwrap()

    @needs("retry")
    async def test_a_late_retry_changes_nothing(self, backend: Backend) -> None:
        """Of two holders only the second one can have the task tried again."""
        task, late = await self.hold(backend)
        await self.end_leases(backend)
        (held,) = await self.take(backend)
        assert list(await backend.mark_failure(self.retries([late]))) == [late]
        assert (await look(backend, task)).status == "in_progress"
        assert list(await backend.mark_failure(self.retries([held]))) == []

    @needs("retry")
    async def test_a_retry_that_is_recorded_again_is_recognised(self, backend: Backend) -> None:
        """It counts once, and the task is due when it was to be at first."""
        _, held = await self.hold(backend)
        await backend.mark_failure(self.retries([held]))
        await self.pass_time(backend, DELAY_SECONDS / 2)
        assert list(await backend.mark_failure(self.retries([held]))) == []
        await self.pass_time(backend, DELAY_SECONDS / 2 + 1)
        (again,) = await self.take(backend)
        assert (again.failures, again.max_attempts) == (1, held.max_attempts + 1)

    @needs("retry")
    async def test_a_task_that_waits_to_be_retried_is_held_by_nobody(self, backend: Backend) -> None:
        """Who held it can neither renew nor release it, nor record another outcome, before and after it is taken."""
        task, held = await self.hold(backend)
        await backend.mark_failure(self.retries([held], delay=0))
        for status in ("pending", "in_progress"):
            assert list(await backend.renew([held], lease=self.lease)) == [held]
            assert list(await backend.release([held])) == [held]
            assert list(await backend.mark_success(successes([held]))) == [held]
            assert list(await backend.mark_failure(failures([held]))) == [held]
            assert await statuses(backend, [task]) == [status]
            await self.pass_time(backend, 1)
            await self.take(backend)

    @needs("retry")
    async def test_the_opposite_of_a_retry_is_not_taken_for_it(self, backend: Backend) -> None:
        """A task that has ended is not tried again by who ended it."""
        for mark, outcomes in ((backend.mark_success, successes), (backend.mark_failure, failures)):
            task, held = await self.hold(backend)
            await mark(outcomes([held]))
            before = await look(backend, task)
            assert list(await backend.mark_failure(self.retries([held], delay=0))) == [held]
            assert await look(backend, task) == before

    @needs("retry")
    async def test_a_success_forgets_the_failures_before_it(self, backend: Backend) -> None:
        """Of a task that succeeded there is no error."""
        task, held = await self.hold(backend)
        await backend.mark_failure(self.retries([held], delay=0))
        await self.pass_time(backend, 1)
        await backend.mark_success(successes(await self.take(backend), b"value"))
        found = await look(backend, task)
        assert (found.status, found.value, found.error, found.traceback) == ("success", b"value", None, None)

    @needs("retry")
    async def test_a_retried_task_can_be_given_back(self, backend: Backend) -> None:
        """The attempt is unspent, the failures stay counted."""
        _, held = await self.hold(backend)
        await backend.mark_failure(self.retries([held], delay=0))
        await self.pass_time(backend, 1)
        await backend.release(await self.take(backend))
        (again,) = await self.take(backend)
        assert (again.attempt, again.failures) == (2, 1)

    @needs("retry")
    async def test_a_worker_is_woken_for_a_retry(self, backend: Backend) -> None:
        """Also one of another backend: the time for which it sleeps may be too long now."""
        task, held = await self.hold(backend)

        async def found() -> bool:
            return await statuses(backend, [task]) == ["pending"]

        async with self.other(backend) as other:
            with watching(backend, None) as seen:
                await other.mark_failure(self.retries([held]))
                await seen.until(found)

    @needs("cancel")
    async def test_a_run_can_end_as_cancelled(self, backend: Backend) -> None:
        """With its error text; it is finished, and not given out again."""
        task, held = await self.hold(backend)
        assert list(await backend.mark_failure(cancellations([held]))) == []
        found = await look(backend, task)
        assert (found.status, found.error, found.value) == ("cancelled", "Cancelled: by hand", None)
        assert found.finished_at is not None
        assert list(await backend.mark_failure(cancellations([held]))) == []
        assert list(await backend.mark_failure(failures([held]))) == [held]
        await self.end_leases(backend)
        assert await self.take(backend) == []

    @needs("cancel")
    async def test_who_waits_for_a_task_is_woken_by_its_cancellation(self, backend: Backend) -> None:
        """As by any other end of it; also if another backend records it."""
        task, held = await self.hold(backend)

        async def found() -> bool:
            return (await look(backend, task)).status in FINISHED

        async with self.other(backend) as other:
            with watching(backend, task) as seen:
                await other.mark_failure(cancellations([held]))
                await seen.until(found)

    @needs("cancel")
    async def test_a_late_cancellation_changes_nothing(self, backend: Backend) -> None:
        """The task is another holder's."""
        task, late = await self.hold(backend)
        await self.end_leases(backend)
        await self.take(backend)
        assert list(await backend.mark_failure(cancellations([late]))) == [late]
        assert await statuses(backend, [task]) == ["in_progress"]

    @pytest.mark.parametrize("mark", MARKS)
    @needs("then")
    async def test_tasks_are_stored_with_an_outcome(self, backend: Backend, mark: str) -> None:
        """In order, with all that was given, and due when they are to be."""
        _, held = await self.hold(backend)
        now, later = new(2), new(delay=self.seconds(DELAY_SECONDS))
        outcome = Outcome(held, b"result" if mark == "success" else None, error=ERROR if mark == "failure" else None)
        assert list(await MARKS[mark](backend, [outcome._replace(then=[*now, *later])])) == []
        found = await self.take(backend)
        fields = [(task.task_id, task.payload, task.name, task.format, task.max_attempts) for task in found]
        assert fields == [(task.task_id, task.payload, task.name, task.format, task.max_attempts) for task in now]
        await self.pass_time(backend, DELAY_SECONDS + 1)
        assert set(ids(later)) <= set(ids(await self.take(backend)))

    @pytest.mark.parametrize("mark", MARKS)
    @needs("then")
    async def test_a_late_outcome_stores_nothing(self, backend: Backend, mark: str) -> None:
        """Neither of a run that is not held any more, nor of one beside it in the same call that did not."""
        _, late = await self.hold(backend)
        await self.end_leases(backend)
        await self.take(backend)
        _, held = await self.hold(backend)
        (lost,), (kept,) = new(), new()
        outcomes = [Outcome(late, error=ERROR, then=[lost]), Outcome(held, error=ERROR, then=[kept])]
        assert list(await MARKS[mark](backend, outcomes)) == [late]
        assert await statuses(backend, [lost, kept]) == [None, "pending"]

    @pytest.mark.parametrize("mark", MARKS)
    @needs("then")
    async def test_an_outcome_that_is_recorded_again_stores_nothing_more(self, backend: Backend, mark: str) -> None:
        """Not even if the tasks were run meanwhile."""
        _, held = await self.hold(backend)
        (task,) = new()
        outcomes = [Outcome(held, error=ERROR, then=[task])]
        for status in ("pending", "success", "success"):
            assert list(await MARKS[mark](backend, outcomes)) == []
            assert await statuses(backend, [task]) == [status if status == "pending" else "success"]
            await backend.mark_success(successes(await self.take(backend)))

    @needs("then")
    async def test_an_id_that_is_taken_keeps_no_outcome_from_being_recorded(self, backend: Backend) -> None:
        """The task that has it stays as it is, and the others are stored."""
        tasks, more = new(2), new()
        await backend.enqueue(tasks)
        held = await self.take(backend)
        outcomes = [Outcome(held[0], b"", then=[tasks[1], *more]), Outcome(held[1], b"")]
        assert list(await backend.mark_success(outcomes)) == []
        assert await statuses(backend, [*tasks, *more]) == ["success", "success", "pending"]

    @pytest.mark.parametrize("mark", MARKS)
    @pytest.mark.parametrize("field", EXTRAS)
    @needs("then")
    async def test_a_task_with_an_extra_that_is_not_known_is_not_stored_with_an_outcome(
        self, backend: Backend, field: str, mark: str
    ) -> None:
        """Nor anything else of the call recorded: each of its tasks is held as before."""
        if field in self.knows_extras:
            pytest.skip("this backend carries it out: `knows_extras`")
        plain, extra = new(2)
        with pytest.raises(BackendError):
            await self.refuse(backend, mark, [plain, extra._replace(extras=EXTRAS[field])])

    @pytest.mark.parametrize("mark", MARKS)
    @needs("then")
    async def test_a_task_that_is_too_large_is_not_stored_with_an_outcome(self, backend: Backend, mark: str) -> None:
        """Nor anything else of the call recorded."""
        limit = backend.max_payload_bytes
        if limit is None:
            pytest.skip("this backend has no limit")
        with pytest.raises(ValueError, match=str(limit)):
            await self.refuse(backend, mark, [*new(), NewTask(new_task_id(), bytes(limit + 1))])

    async def refuse(self, backend: Backend, mark: str, then: Sequence[NewTask]) -> None:
        """Records three outcomes, the second with tasks that are refused; checks that nothing was changed."""
        tasks = new(3)
        await backend.enqueue(tasks)
        held = await self.take(backend)
        outcomes = [Outcome(task, error=ERROR) for task in held]
        outcomes[1] = outcomes[1]._replace(then=then)
        try:
            await MARKS[mark](backend, outcomes)
        finally:
            assert await statuses(backend, [*tasks, *then]) == ["in_progress"] * 3 + [None] * len(then)
            assert list(await backend.renew(held, lease=self.lease)) == []

    @needs("then")
    async def test_a_worker_is_woken_for_tasks_that_are_stored_with_an_outcome(self, backend: Backend) -> None:
        """Also one of another backend."""
        _, held = await self.hold(backend)
        async with self.other(backend) as other:
            with watching(backend, None) as seen:
                await other.mark_success([Outcome(held, b"", then=new())])
                await seen.until(lambda: self.take(backend))

    @connected
    async def test_outcomes_of_every_kind_share_a_call(self, backend: Backend) -> None:
        """Each task gets its own, and those that are not held are the ones that come back."""
        assert isinstance(backend, Endings)
        tasks = new(8)
        await backend.enqueue(tasks)
        held = await self.take(backend)
        await backend.release(held[6:])
        outcomes = failures(held[:2])
        expected: list[str | None] = ["failed", "failed"]
        if "retry" in backend.endings:
            outcomes += self.retries([held[2], held[6]])
            expected += ["pending"]
        if "cancel" in backend.endings:
            outcomes += cancellations([held[3], held[7]])
            expected += ["cancelled"]
        late = [outcome.task for outcome in outcomes if outcome.task in held[6:]]
        assert sorted(ids(await backend.mark_failure(outcomes))) == sorted(ids(late))
        ended = [outcome.task for outcome in outcomes if outcome.task not in late]
        assert await statuses(backend, ended) == expected
