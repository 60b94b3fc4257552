"""``sitq queues``, ``pause``, ``resume``, and ``--queue``: what they say and do to a file with lanes."""

import asyncio
import json
from pathlib import Path

import pytest

from sitq import NewTask, SQLiteBackend, TaskQueue
from sitq.models import Extras, new_task_id
from sitq.serializers import CloudpickleSerializer
from sitq.serializers.calls import make_call
from sitq.serializers.envelope import dump_call
from tests.cli.support import ask, ask_here, ok, run, working
from tests.cli.test_doctor import look
from tests.cli.test_trouble import change
from tests.faults import connected
from tests.support import DEADLINE_SECONDS, rows

LANE_KEYS = ["queue", "priority", "waiting", "due", "running", "abandoned", "oldest_due", "paused"]


def task(queue: str = "", priority: int = 0) -> NewTask:
    """Returns a task of a queue."""
    serializer = CloudpickleSerializer()
    payload = dump_call(serializer, make_call(ok))
    return NewTask(new_task_id(), payload, queue, serializer.format, extras=Extras(queue=queue, priority=priority))


async def store(path: Path, *tasks: NewTask) -> None:
    """Stores tasks."""
    async with connected(SQLiteBackend(path)) as backend:
        await backend.enqueue(tasks)


@pytest.fixture
def laned(path: Path) -> Path:
    """A file with tasks in several lanes."""
    asyncio.run(store(path, task("mail", 5), task("mail"), task("mail"), task("bulk", -3), task()))
    return path


def test_queues_shows_each_queue_and_priority(laned: Path) -> None:
    """A line for each lane, and a remark if it is paused; the default queue by its name."""
    ask("pause", laned, "mail")
    ask("pause", laned, "later")
    words = [line.split() for line in ask("queues", laned).splitlines()]
    assert words[0] == ["QUEUE", "PRIORITY", "WAITING", "DUE", "RUNNING", "OLDEST"]
    assert [line[:5] for line in words[1:]] == [
        ["default", "0", "1", "1", "0"],
        ["bulk", "-3", "1", "1", "0"],
        ["later", "0", "0", "0", "0"],
        ["mail", "5", "1", "1", "0"],
        ["mail", "0", "2", "2", "0"],
    ]
    assert [line[-1] == "paused" for line in words[1:]] == [False, False, True, True, True]


def test_queues_in_json(laned: Path) -> None:
    """The keys are the documented ones, and its names can be given to the other commands."""
    found = json.loads(ask_here("queues", laned, "--json"))
    assert [list(lane) for lane in found] == [LANE_KEYS] * 4
    assert [(lane["queue"], lane["priority"]) for lane in found] == [
        ("default", 0),
        ("bulk", -3),
        ("mail", 5),
        ("mail", 0),
    ]


def test_queues_of_a_file_without_any(path: Path) -> None:
    """It says so, also of one that may only be read and that has no tasks left."""
    asyncio.run(store(path))
    assert ask_here("queues", path) == "no unfinished tasks\n"


def test_a_queue_is_paused_and_resumed(laned: Path) -> None:
    """What was done is said, to people and to programs; doing it again is no error."""
    for _ in range(2):
        assert ask_here("pause", laned, "mail") == "paused mail\n"
    assert json.loads(ask_here("pause", laned, "default", "--json")) == {"paused": "default"}
    assert rows(laned, "SELECT queue FROM paused ORDER BY queue") == [{"queue": ""}, {"queue": "mail"}]
    for _ in range(2):
        assert json.loads(ask_here("resume", laned, "mail", "--json")) == {"resumed": "mail"}
    assert ask_here("resume", laned, "default") == "resumed default\n"
    assert rows(laned, "SELECT queue FROM paused") == []


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 101], ids=["empty", "two lines", "too long"])
@pytest.mark.parametrize("command", ["pause", "resume", "list", "worker"])
def test_a_name_that_is_none_is_a_usage_error(laned: Path, command: str, name: str) -> None:
    """Above all an empty one, which an unset variable would be."""
    before = rows(laned)
    ended = run(command, laned, *(["--queue"] if command in ("list", "worker") else []), name)
    assert (ended.status, ended.output) == (2, "")
    assert "queue must " in " ".join(ended.errors.split())
    assert rows(laned) == before


def test_a_queue_is_given_once(laned: Path) -> None:
    """Twice the same is a mistake."""
    ended = run("worker", laned, "--queue", "a", "--queue", "a")
    assert (ended.status, "twice" in ended.errors) == (2, True)


def test_list_shows_queues_if_there_are_any(laned: Path, tmp_path: Path) -> None:
    """And the tasks of one queue only if it is told to; without queues it looks as ever."""
    lines = ask("list", laned).splitlines()
    assert lines[0].split() == ["TASK", "STATUS", "ATTEMPT", "AGE", "QUEUE", "NAME"]
    assert sum("mail +5" in line for line in lines) == 1
    found = json.loads(ask_here("list", laned, "--queue", "mail", "--json"))
    assert [(each["queue"], each["priority"]) for each in found] == [("mail", 0), ("mail", 0), ("mail", 5)]
    (default,) = json.loads(ask_here("list", laned, "--queue", "default", "--json"))
    assert default["queue"] == "default"
    assert "bulk, priority -3" in ask_here("show", laned, rows(laned, "SELECT * FROM tasks")[3]["task_id"])
    asyncio.run(store(tmp_path / "plain.db", task()))
    assert "QUEUE" not in ask_here("list", tmp_path / "plain.db")


async def test_a_worker_serves_the_queues_that_it_is_told(laned: Path, tmp_path: Path) -> None:
    """Through the supervisor, in each of its processes; the rest is left."""
    async with TaskQueue(SQLiteBackend(laned), default_result_timeout=DEADLINE_SECONDS) as queue:
        served = [found.task_id for name in ("bulk", "default") for found in await queue.list(queue=name)]
        with working(tmp_path, laned, "--queue", "bulk", "--queue", "default", "--processes", 2):
            for task_id in served:
                result = await queue.get_result(task_id)
                assert result is not None
                assert result.value == 1
        assert [found.status for found in await queue.list(queue="mail")] == ["pending"] * 3


def test_doctor_names_a_queue_that_nobody_serves(laned: Path) -> None:
    """Its tasks have been due for long, none of them runs, and none was started lately, while others are served."""
    assert look(laned, healthy=True)["queues"]["level"] == "ok"
    change(laned, "UPDATE tasks SET available_at = 1 WHERE queue = 'mail' OR queue IS NULL")
    change(laned, "UPDATE tasks SET started_at = 32503680000000000 WHERE queue IS NULL")
    found = look(laned, healthy=True)["queues"]
    assert found["level"] == "note"
    assert "nobody seems to serve mail (3 due" in found["found"]
    assert "default" not in found["found"]
    assert "bulk" not in found["found"]
    assert "a worker is running whose queues name it" in found["advice"]
    change(laned, "UPDATE tasks SET status = 'in_progress', available_at = 32503680000000000 WHERE priority = 5")
    assert look(laned, healthy=True)["queues"]["level"] == "ok"


def test_doctor_names_a_queue_that_is_paused(laned: Path) -> None:
    """Somebody may have forgotten it; of a paused queue it does not say that nobody serves it."""
    ask_here("pause", laned, "mail")
    ask_here("pause", laned, "default")
    ask_here("pause", laned, "empty")
    change(laned, "UPDATE tasks SET available_at = 1 WHERE queue = 'mail'")
    found = look(laned, healthy=True)["queues"]
    assert (found["level"], found["found"]) == ("note", "paused: default (1 due), empty (0 due), mail (3 due)")
    assert found["advice"] == "sitq resume PATH QUEUE ends a pause"
