"""``sitq worker``: processes that are kept running, and end as they are told."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sitq import Result, SQLiteBackend, TaskQueue
from tests.cli.support import (
    MODULE,
    SCRIPT,
    TASKS,
    RunningWorker,
    environment,
    is_running,
    kill_worker,
    leave_thread,
    never,
    ok,
    run,
    start,
    wait_for,
    working,
)
from tests.cli.test_trouble import change
from tests.support import DEADLINE_SECONDS, rows, until

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


@pytest.fixture
async def queue(path: Path) -> AsyncIterator[TaskQueue]:
    """A queue on the file that the workers are given."""
    async with TaskQueue(SQLiteBackend(path), default_result_timeout=DEADLINE_SECONDS) as queue:
        yield queue


async def result_of(queue: TaskQueue, task_id: str) -> Result[object]:
    """Returns the result of a task, which must come."""
    result = await queue.get_result(task_id)
    assert result is not None
    return result


@BOTH
async def test_a_signal_ends_it_with_status_0(path: Path, tmp_path: Path, queue: TaskQueue, number: int) -> None:
    """The running task is finished and recorded, no other one is started, and every process has ended."""
    marker = tmp_path / "marker"
    with working(tmp_path, path, "--processes", 2, "--concurrency", 1) as worker:
        await worker.ready(2)
        running = await queue.enqueue(wait_for, str(marker))
        await until(Path(f"{marker}.running").exists)
        worker.process.send_signal(number)
        await until(lambda: "received " in worker.log)
        await until(lambda: worker.log.count("ending with the supervisor") == 2)
        late = await queue.enqueue(ok)
        marker.touch()
        assert await worker.ended() == 0
        assert [pid for pid in worker.pids() if is_running(pid)] == []
    assert (await result_of(queue, running)).value == "waited"
    (row,) = rows(path, "SELECT * FROM tasks WHERE task_id = ?", late)
    assert (row["status"], row["attempt"]) == ("pending", 0)


async def test_each_process_takes_tasks(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """Three tasks that hold up a process run at the same time in three processes with one slot each."""
    markers = [tmp_path / f"marker{n}" for n in range(3)]
    with working(tmp_path, path, "--processes", 3, "--concurrency", 1) as worker:
        ids = [await queue.enqueue(wait_for, str(marker)) for marker in markers]
        await until(lambda: all(Path(f"{marker}.running").exists() for marker in markers))
        for marker in markers:
            marker.touch()
        assert [(await result_of(queue, task_id)).value for task_id in ids] == ["waited"] * 3
        assert len(worker.pids()) == 3
        assert worker.log.count(": worker started, 1 slots") == 3


async def test_a_process_that_is_killed_is_replaced(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """Another one runs what comes; the log says what happened; the end is as good as without it."""
    with working(tmp_path, path) as worker:
        await worker.ready()
        (first,) = worker.pids()
        os.kill(first, signal.SIGKILL)
        assert (await result_of(queue, await queue.enqueue(ok, 7))).value == 7
        assert len(worker.pids()) == 2
        assert f"worker-1, pid {first}, was killed by SIGKILL" in worker.log
        worker.process.terminate()
        assert await worker.ended() == 0


async def test_a_process_that_keeps_dying_is_given_longer_and_longer_pauses(path: Path, tmp_path: Path) -> None:
    """Each one is twice as long as the one before."""
    with working(tmp_path, path) as worker:
        for number in range(1, 4):
            await worker.logged(", started", number)
            os.kill(worker.pids()[-1], signal.SIGKILL)
            await worker.logged("is started again in", number)
        pauses = [line.rpartition(" in ")[2] for line in worker.log.splitlines() if "is started again" in line]
        assert pauses == ["0.1 s", "0.2 s", "0.4 s"]
        worker.process.terminate()
        assert await worker.ended() == 0


async def test_a_process_that_ends_by_itself_is_replaced(path: Path, tmp_path: Path) -> None:
    """Who sends SIGTERM to one process only gets a new one."""
    with working(tmp_path, path) as worker:
        await worker.ready()
        os.kill(worker.pids()[0], signal.SIGTERM)
        await worker.ready(2)
        assert "ended with status 0" in worker.log


async def test_a_task_that_kills_its_process_is_run_by_the_next(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """Once its lease, which this test does not wait for, has ended."""
    with working(tmp_path, path) as worker:
        task_id = await queue.enqueue(kill_worker, str(tmp_path / "marker"))
        await worker.ready(2)
        backend = SQLiteBackend(path, clock=lambda: 4_000_000_000)
        await backend.connect()
        found = await backend.reserve(1, lease=60, alone=True)
        assert [(task.task_id, task.attempt) for task in found.tasks] == [(task_id, 2)]
        await backend.release(found.tasks)
        await backend.close()
        result = await result_of(queue, task_id)
        assert (result.value, result.attempt) == ("survived", 2)


async def test_a_second_signal_ends_everything_at_once(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """A task that does not end does not keep it; the process dies by the signal."""
    with working(tmp_path, path) as worker:
        await queue.enqueue(wait_for, str(tmp_path / "marker"))
        await until((tmp_path / "marker.running").exists)

        def ended() -> bool:
            worker.process.send_signal(signal.SIGTERM)  # what follows the first one closely counts as the same
            return worker.process.poll() is not None

        await until(ended)
        assert worker.process.returncode == -signal.SIGTERM
        await until(lambda: not any(map(is_running, worker.pids())))


async def test_one_order_that_comes_as_two_signals_is_one(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """The way of ``timeout`` and of systemd: to the process and to its group, and to each child."""
    marker = tmp_path / "marker"
    with working(tmp_path, path) as worker:
        task_id = await queue.enqueue(wait_for, str(marker))
        await until(Path(f"{marker}.running").exists)
        worker.process.terminate()
        os.killpg(worker.process.pid, signal.SIGTERM)
        os.kill(worker.pids()[0], signal.SIGTERM)
        await until(lambda: "worker received SIGTERM" in worker.log)
        marker.touch()
        assert await worker.ended() == 0
    assert (await result_of(queue, task_id)).value == "waited"


@BOTH
async def test_an_idle_worker_that_is_told_again_and_again_ends_with_status_0(
    path: Path, tmp_path: Path, number: int
) -> None:
    """Also in the moments between its last line in the log and its end."""
    with working(tmp_path, path) as worker:
        await worker.ready()
        worker.process.send_signal(number)
        await worker.logged("ended with status 0")
        while worker.process.poll() is None:
            worker.process.send_signal(number)
            await asyncio.sleep(0)
        assert worker.process.returncode == 0
        assert worker.log.count("received ") == 1


async def test_processes_end_with_a_supervisor_that_was_killed(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """They finish what they have in hand, and nobody is left behind."""
    marker = tmp_path / "marker"
    with working(tmp_path, path) as worker:
        task_id = await queue.enqueue(wait_for, str(marker))
        await until(Path(f"{marker}.running").exists)
        worker.process.kill()
        await until(lambda: "ending with the supervisor" in worker.log)
        marker.touch()
        assert (await result_of(queue, task_id)).value == "waited"
        await until(lambda: not any(map(is_running, worker.pids())))


async def test_tasks_are_given_back_after_the_shutdown_timeout(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """One that does not end is pending again with its attempt unspent, and the status is 0."""
    with working(tmp_path, path, "--shutdown-timeout", "0") as worker:
        task_id = await queue.enqueue(never)
        await until(lambda: f"task {task_id} (tests.cli.support:never) started" in worker.log)
        worker.process.terminate()
        assert await worker.ended() == 0
    (row,) = rows(path)
    assert (row["status"], row["attempt"], row["claim"]) == ("pending", 0, None)


async def test_a_thread_that_goes_on_does_not_hold_up_the_end(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """Who gave a shutdown timeout is not kept waiting by what a task has left behind."""
    marker = tmp_path / "marker"
    with working(tmp_path, path, "--shutdown-timeout", "0s") as worker:
        await queue.enqueue(leave_thread, str(marker))
        await until(Path(f"{marker}.running").exists)
        worker.process.terminate()
        assert await worker.ended() == 0
    (row,) = rows(path)
    assert (row["status"], row["attempt"]) == ("pending", 0)


@pytest.mark.parametrize(("retention", "kept"), [(["0"], False), (["forever"], True), ([], False)])
async def test_finished_tasks_are_kept_as_long_as_it_is_told(
    path: Path, tmp_path: Path, queue: TaskQueue, retention: list[str], kept: bool
) -> None:
    """A task of the year 1970 is deleted, unless they are kept for ever."""
    old = await queue.enqueue(ok)
    await queue.cancel(old)
    change(path, "UPDATE tasks SET finished_at = 1")
    with working(tmp_path, path, *["--retention"][: len(retention)], *retention):
        await result_of(queue, await queue.enqueue(ok))
        if kept:
            assert await queue.get_result(old) is not None
        else:
            await until(lambda: not rows(path, "SELECT 1 FROM tasks WHERE task_id = ?", old))


async def test_finished_tasks_are_kept_as_the_application_chose(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """If the command is not given one: an application that keeps them for ever finds them again."""
    old = await queue.enqueue(ok)
    await queue.cancel(old)
    change(path, "UPDATE tasks SET finished_at = 1")
    async with TaskQueue(SQLiteBackend(path, retention=None)):
        pass
    with working(tmp_path, path) as worker:
        await result_of(queue, await queue.enqueue(ok))
        worker.process.terminate()
        assert await worker.ended() == 0
    assert await queue.get_result(old) is not None


async def test_modules_are_imported_before_a_task_is_taken(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """In the order given, and with the serializer that was named; a lease of its own holds."""
    (tmp_path / "first_of_the_test.py").write_text("loaded = ['first']\n")
    (tmp_path / "second_of_the_test.py").write_text("from first_of_the_test import loaded\nloaded.append('second')\n")
    (tmp_path / "tasks_of_the_test.py").write_text(
        "import sys\n"
        "from sitq import CloudpickleSerializer\n"
        "class Other(CloudpickleSerializer):\n"
        "    format = 'other'\n"
        "def seen():\n"
        "    return sys.modules['first_of_the_test'].loaded, format(__name__)\n"
    )
    options = ["--import", "first_of_the_test", "--import", "second_of_the_test", "--lease", "5000"]
    options += ["--serializer", "tasks_of_the_test:Other"]
    worker = RunningWorker(tmp_path / "worker.log", path, *options, command=MODULE, cwd=tmp_path, env=environment())
    try:
        task_id = await queue.enqueue("tasks_of_the_test:seen")
        assert (await result_of(queue, task_id)).value == (["first", "second"], "tasks_of_the_test")
        held = await queue.enqueue(wait_for, str(tmp_path / "marker"))
        await until((tmp_path / "marker.running").exists)
        found = await queue.get(held)
        assert found is not None
        assert found.lease_ends_at is not None
        assert found.started_at is not None
        assert (found.lease_ends_at - found.started_at).total_seconds() >= 5000
        (tmp_path / "marker").touch()
        worker.process.terminate()
        assert await worker.ended() == 0
    finally:
        worker.end()


def test_a_module_that_cannot_be_imported_ends_the_command(path: Path) -> None:
    """Another process would fail as the first one did: it says so, and is not started again."""
    ended = run("worker", path, "--import", "no_such_module.at_all", "--processes", 2)
    assert (ended.status, ended.output) == (1, "")
    assert "--import no_such_module.at_all: it cannot be imported: ModuleNotFoundError: No module named" in ended.errors
    assert "said why it cannot work: all of them end" in ended.errors
    assert "is started again" not in ended.errors
    assert "Traceback" not in ended.errors


def test_a_module_that_raises_shows_where(path: Path, tmp_path: Path) -> None:
    """For it is the application's own code that has to be mended."""
    (tmp_path / "raising_of_the_test.py").write_text("def fail():\n    raise RuntimeError('no settings')\nfail()\n")
    ended = run("worker", path, "--import", "raising_of_the_test", cwd=tmp_path)
    assert ended.status == 1
    assert "it cannot be imported: RuntimeError: no settings" in ended.errors
    assert 'raising_of_the_test.py", line 2, in fail' in ended.errors


@pytest.mark.parametrize(
    ("serializer", "words"),
    [
        ("no_such_module:x", "it cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("sitq:nothing", "--serializer sitq:nothing: module 'sitq' has no attribute 'nothing'"),
        ("json:decoder", "it is no serializer: it needs format, dumps, loads and check_format"),
    ],
)
def test_a_serializer_that_cannot_be_used_starts_nothing(path: Path, serializer: str, words: str) -> None:
    """It is said once, before the processes are started, and no file is made."""
    ended = run("worker", path, "--serializer", serializer, "--processes", 4)
    assert (ended.status, ended.output) == (1, "")
    assert ended.errors.count(words) == 1
    assert ", started" not in ended.errors
    assert not path.exists()


async def test_tasks_are_imported_from_the_current_folder(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """Also by the script, whose own folder is another one; the log names it."""
    (tmp_path / "jobs_of_the_test.py").write_text("def double(value):\n    return 2 * value\n")
    worker = RunningWorker(
        tmp_path / "worker.log", path, command=SCRIPT, cwd=tmp_path, env=environment(PYTHONSAFEPATH="1")
    )
    try:
        assert (await result_of(queue, await queue.enqueue("jobs_of_the_test:double", 21))).value == 42
        worker.process.terminate()
        assert await worker.ended() == 0
    finally:
        worker.end()
    assert f"working on {path}, tasks are imported from {tmp_path}" in worker.log


async def test_a_missing_file_is_made(path: Path, tmp_path: Path) -> None:
    """A worker may be there before its producer; the file is its owner's only, and the log says that it is new."""
    with working(tmp_path, path) as worker:
        await worker.ready()
        assert f"supervisor: made {path}" in worker.log
        assert os.stat(path).st_mode & 0o777 == 0o600
        async with TaskQueue(SQLiteBackend(path)) as queue:
            assert (await result_of(queue, await queue.enqueue(f"{TASKS}:ok", 3))).value == 3


async def test_the_log_has_a_line_for_each_event(path: Path, tmp_path: Path, queue: TaskQueue) -> None:
    """With the time, the level and who says it, on stderr; nothing goes to stdout, and no argument is logged."""
    process = start("worker", path)
    result = await result_of(queue, await queue.enqueue(ok, 271828))
    process.terminate()
    output, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE_SECONDS)
    assert (process.returncode, output, result.value) == (0, "", 271828)
    for line in errors.splitlines():
        day, time, level, who, _ = line.split(maxsplit=4)
        assert len(f"{day} {time}") == len("2027-01-01 00:00:00.000")
        assert level in ("INFO", "WARNING", "ERROR")
        assert who in ("supervisor:", "worker-1:")
    assert f"INFO    worker-1: task {result.task_id} (tests.cli.support:ok) finished" in errors
    assert "271828" not in errors


async def test_quiet_logs_only_what_is_wrong(path: Path, queue: TaskQueue) -> None:
    """A failed task and nothing else."""
    process = start("worker", path, "--quiet")
    result = await result_of(queue, await queue.enqueue(f"{TASKS}:refuse", "a secret"))
    await result_of(queue, await queue.enqueue(ok))
    process.terminate()
    _, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    (line,) = errors.splitlines()
    assert line.endswith(
        f"WARNING worker-1: task {result.task_id} (tests.cli.support:refuse) failed with ConnectionError"
    )


@pytest.mark.parametrize("options", [[], ["--log-exceptions"]], ids=["default", "log-exceptions"])
async def test_the_exception_of_a_failed_task_is_logged_if_asked_for(
    path: Path, queue: TaskQueue, options: list[str]
) -> None:
    """At error, with its message and the traceback from the task's frame on; else at warning, with its type only."""
    process = start("worker", path, "--quiet", *options)
    result = await result_of(queue, await queue.enqueue(f"{TASKS}:refuse", "the mail"))
    process.terminate()
    _, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    first, *others = errors.splitlines()
    level = "ERROR  " if options else "WARNING"
    assert first.endswith(
        f"{level} worker-1: task {result.task_id} (tests.cli.support:refuse) failed with ConnectionError"
    )
    assert ("ConnectionError: the mail was refused" in others) == bool(options)
    assert any("in refuse" in line for line in others) == bool(options)


def test_a_file_that_cannot_be_used_starts_nothing(path: Path) -> None:
    """It is said once, by the command itself, with status 1."""
    path.write_text("not a database, " * 100)
    ended = run("worker", path, "--processes", "4")
    assert (ended.status, ended.output) == (1, "")
    assert ended.errors.splitlines() == [
        f"Error: {path}: it is not a SQLite database; check the path (file is not a database)"
    ]
