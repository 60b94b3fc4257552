"""Named queues as queues and workers offer them: serving, pausing, looking, and names that are refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from examples.memory_backend import MemoryBackend
from sitq import BackendError, SQLiteBackend, SyncTaskQueue, TaskQueue, Worker
from sitq._checks import check_priority, check_queue, check_queues
from sitq.backends.lanes import Lane
from sitq.extensions.base import Event
from sitq.models import Extras, NewTask, Reservation, new_task_id
from sitq.serializers import CloudpickleSerializer
from sitq.serializers.calls import make_call
from sitq.serializers.envelope import dump_call
from tests.faults import connected
from tests.support import Runs, log_async, log_plain, until

HOUR = 3600.0


def call(runs: Runs, line: str, queue: str = "", priority: int = 0, **fields: Any) -> NewTask:
    """Returns a task of a queue that logs that it ran."""
    payload = dump_call(CloudpickleSerializer(), make_call(log_async, (runs, line)))
    extras = Extras(queue=queue, priority=priority)
    return NewTask(new_task_id(), payload, line, CloudpickleSerializer().format, extras=extras, **fields)


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SQLiteBackend]:
    """A backend that is open."""
    async with connected(SQLiteBackend(path)) as backend:
        yield backend


async def test_a_worker_runs_tasks_of_its_queues_and_of_no_others(backend: SQLiteBackend, runs: Runs) -> None:
    """Two workers with queues of their own, and what is served by neither is left."""
    await backend.enqueue([call(runs, queue, queue) for queue in ("mail", "media", "bulk", "")])
    assert await Worker(backend, queues=["mail", "default"]).drain() == 2
    assert sorted(runs.lines()) == ["", "mail"]
    assert await Worker(backend, queues=["bulk"]).drain() == 1
    assert runs.lines()[2:] == ["bulk"]


async def test_a_worker_without_queues_serves_them_all(backend: SQLiteBackend, runs: Runs) -> None:
    """Also a queue of which it has never heard, and the higher priority first."""
    await backend.enqueue([call(runs, "low", "a", -1), call(runs, "plain"), call(runs, "high", "b", 3)])
    assert await Worker(backend, max_concurrency=1).drain() == 3
    assert runs.lines() == ["high", "plain", "low"]


async def test_an_idle_worker_is_woken_by_its_queues(backend: SQLiteBackend, runs: Runs) -> None:
    """A task of one of them is run at once, although the next poll is an hour away; also the first one of the file."""
    async with Worker(backend, queues=["mail"], poll_interval=HOUR), Worker(backend, queues=["a"], poll_interval=HOUR):
        await backend.enqueue([call(runs, "first", "mail")])
        await until(lambda: runs.lines() == ["first"])
        await backend.enqueue([call(runs, "foreign", "other"), call(runs, "second", "a", 5)])
        await until(lambda: runs.lines() == ["first", "second"])


async def test_an_idle_worker_is_woken_when_its_queue_is_resumed(backend: SQLiteBackend, runs: Runs) -> None:
    """By another process or the same one; until then it runs nothing of that queue."""
    async with TaskQueue(backend) as queue:
        await queue.pause("mail")
        await backend.enqueue([call(runs, "mail", "mail"), call(runs, "other", "other")])
        async with Worker(backend, poll_interval=HOUR):
            await until(lambda: runs.lines() == ["other"])
            await queue.resume("mail")
            await until(lambda: runs.lines() == ["other", "mail"])


class Counted(SQLiteBackend):
    """Counts reservations, those of its views included: a subclass keeps what it overrides."""

    asked: ClassVar[list[int]] = []

    async def reserve(self, limit: int, *, lease: float, alone: bool) -> Reservation:
        """Counts, and reserves."""
        self.asked.append(limit)
        return await super().reserve(limit, lease=lease, alone=alone)


async def test_a_worker_does_not_spin_for_what_it_may_not_take(path: Path, runs: Runs) -> None:
    """Due tasks of a paused and of a foreign queue: an idle worker asks once for each change, and sleeps."""
    async with connected(Counted(path)) as backend:
        await backend.pause("mail")
        await backend.enqueue([call(runs, "mail", "mail"), call(runs, "last", "mail", max_attempts=1)])
        await backend.enqueue([call(runs, "foreign", "other", 100)])
        Counted.asked.clear()
        async with Worker(backend, queues=["mail", "mine"], poll_interval=HOUR):
            for n in range(3):
                await backend.enqueue([call(runs, f"mine {n}", "mine")])
                await until(lambda n=n: runs.lines()[-1:] == [f"mine {n}"])  # type: ignore[misc]
            for _ in range(1000):
                await asyncio.sleep(0)
        assert runs.lines() == ["mine 0", "mine 1", "mine 2"]
        assert 3 <= len(Counted.asked) < 30


async def test_a_last_attempt_of_a_queue_runs_alone(backend: SQLiteBackend, runs: Runs) -> None:
    """In the worker that serves it; the neighbours of its lane come before and after it."""
    running = 0
    most: dict[str, int] = {}

    class Watch:
        def on_event(self, event: Event) -> None:
            nonlocal running
            running += {"started": 1, "succeeded": -1}.get(event.kind, 0)
            most[event.name] = max(most.get(event.name, 0), running)

    tasks = [call(runs, f"{n}", "mail") for n in range(8)]
    tasks.insert(4, call(runs, "last", "mail", max_attempts=1))
    await backend.enqueue(tasks)
    assert await Worker(backend, queues=["mail"], extensions=[Watch()]).drain() == 9
    assert most["last"] == 1


async def test_lanes_tell_of_queues(backend: SQLiteBackend, runs: Runs) -> None:
    """What a queue shows is what its backend knows; in async code and without it."""
    async with TaskQueue(backend) as queue:
        assert list(await queue.lanes()) == []
        await backend.enqueue([call(runs, "1", "mail", 3)])
        await queue.pause("media")
        (mail, media) = await queue.lanes()
        assert (mail.queue, mail.priority, mail.waiting, mail.due, mail.paused) == ("mail", 3, 1, 1, False)
        assert media == Lane("media", 0, 0, 0, 0, 0, None, paused=True)
        assert [task.queue for task in await queue.list(queue="mail")] == ["mail"]
        assert list(await queue.list(queue="default")) == []


def test_a_sync_queue_pauses_resumes_and_shows(path: Path) -> None:
    """As the other one."""
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        queue.enqueue(log_plain, None, None)
        queue.pause("default")
        (lane,) = queue.lanes()
        assert (lane.queue, lane.waiting, lane.paused) == ("", 1, True)
        queue.resume(lane.queue)
        assert [lane.paused for lane in queue.lanes()] == [False]
        assert len(queue.list(queue="default")) == 1


@pytest.mark.parametrize("name", ["default", ""])
async def test_the_default_queue_is_named_default_or_as_a_lane_has_it(
    backend: SQLiteBackend, runs: Runs, name: str
) -> None:
    """So what ``lanes`` shows can be given back to ``pause``, and a worker of "default" waits for no other queue."""
    async with TaskQueue(backend) as queue:
        await backend.enqueue([call(runs, "plain"), call(runs, "mail", "mail")])
        await queue.pause(name)
        assert await Worker(backend, queues=[name]).drain() == 0
        await queue.resume(name)
        assert await Worker(backend, queues=[name]).drain() == 1
        assert runs.lines() == ["plain"]


@pytest.mark.parametrize("name", ["x" * 101, "a\nb", "\0", "\x1b[31m", "\ud800"])
async def test_a_name_that_is_none_is_refused(backend: SQLiteBackend, name: str) -> None:
    """Before anything is stored: a text that is too long, or holds what cannot be printed."""
    async with TaskQueue(backend) as queue:
        for refuse in (lambda: queue.pause(name), lambda: queue.resume(name), lambda: queue.list(queue=name)):
            with pytest.raises(ValueError, match="printable characters"):
                await refuse()
    with pytest.raises(ValueError, match="printable characters"):
        Worker(backend, queues=[name])
    with pytest.raises(ValueError, match="printable characters"):
        check_queue(name)


async def test_names_of_queues_are_texts(backend: SQLiteBackend) -> None:
    """Anything else is a TypeError that says so."""
    for wrong in (None, 1, b"mail", ["mail"]):
        with pytest.raises(TypeError, match="a str"):
            await TaskQueue(backend).pause(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a str"):
            check_queue(wrong)  # type: ignore[arg-type]
    assert check_queue("x" * 100) == "x" * 100
    assert check_queue("Grüße, 世界 1") == "Grüße, 世界 1"
    assert check_queue("default") == ""
    with pytest.raises(ValueError, match="default"):
        check_queue("")


@pytest.mark.parametrize(
    ("queues", "error", "says"),
    [
        ("mail", TypeError, r"queues=\['mail'\]"),
        ([], ValueError, "leave it out"),
        ((), ValueError, "leave it out"),
        (["a", "a"], ValueError, "twice"),
        (["default", ""], ValueError, "twice"),
        ([1], TypeError, "a str"),
        ([None], TypeError, "a str"),
        (1, TypeError, "queues must be a list of names, not int"),
    ],
)
def test_queues_of_a_worker_are_a_list_of_different_names(
    path: Path, queues: Any, error: type[Exception], says: str
) -> None:
    """What is meant otherwise is refused when the worker is made, and the message says the fix."""
    with pytest.raises(error, match=says):
        Worker(SQLiteBackend(path), queues=queues)


def test_queues_keep_their_order() -> None:
    """And the default one is named as the store has it."""
    assert check_queues(["b", "default", "a"]) == ("b", "", "a")
    assert check_queues(name for name in "ab") == ("a", "b")


@pytest.mark.parametrize("priority", [101, -101, 10**30])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    """They are from -100 to 100."""
    assert (check_priority(-100), check_priority(100)) == (-100, 100)
    with pytest.raises(ValueError, match="-100 to 100"):
        check_priority(priority)


@pytest.mark.parametrize("priority", [1.0, True, "5", None])
def test_a_priority_is_a_whole_number(priority: Any) -> None:
    """Nothing else is, and no truth value either."""
    with pytest.raises(TypeError, match="must be an int"):
        check_priority(priority)


async def test_a_backend_without_queues_says_so() -> None:
    """When the worker is made, and at each call of a queue; without queues it is served as ever."""
    backend = MemoryBackend()
    with pytest.raises(BackendError, match="MemoryBackend has no named queues"):
        Worker(backend, queues=["mail"])
    async with TaskQueue(backend) as queue:
        for refuse in (lambda: queue.pause("mail"), lambda: queue.resume("mail"), queue.lanes):
            with pytest.raises(BackendError, match="MemoryBackend has no named queues"):
                await refuse()
    assert await Worker(backend).drain() == 0


async def test_a_worker_of_some_queues_is_no_further_user_of_its_backend(path: Path, runs: Runs) -> None:
    """Its view connects and closes the backend itself: a queue in memory lives as long as one of them uses it."""
    backend = SQLiteBackend(":memory:")
    async with connected(backend):
        await backend.enqueue([call(runs, "mail", "mail")])
        assert await Worker(backend, queues=["mail"]).drain() == 1
        assert backend._users == 1
    assert backend._users == 0
    assert repr(backend.select(["mail"])) == repr(backend)
