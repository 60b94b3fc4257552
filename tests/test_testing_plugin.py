"""sitq.testing and its pytest plugin: queues that are drained on request, a clock that is moved, and what both cost."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import _sitq_pytest
from sitq import SQLiteBackend, TaskFailedError, TaskQueue, Worker, WorkerDiedError, current_task
from sitq.testing import ManualClock, ManualQueue, ManualSyncQueue
from tests.scripts import run_script
from tests.support import add, multiply, rows

pytest_plugins = ["pytester"]

HOUR = timedelta(hours=1)
PYTEST_ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function", "-o")
ANYIO = ("-p", "anyio")

A_TEST = """
async def test_it(task_queue):
    task_id = await task_queue.enqueue("operator:add", 1, 2)
    assert await task_queue.drain() == 1
    assert (await task_queue.get_result(task_id)).value == 3
"""


async def fail(message: str) -> None:
    """A task that fails."""
    raise ValueError(message)


async def enqueue_again(path: Path) -> None:
    """A task that enqueues another one."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(add, 1, 1)


async def which_attempt() -> int:
    """A task that returns the number of its attempt."""
    return current_task().attempt


@pytest.fixture
def only_sitq(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A place for test files, where pytest finds no plugins by itself."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run_pytest(pytester: pytest.Pytester, code: str, *options: str, apart: bool = False) -> pytest.RunResult:
    """Runs ``code`` as a test file, where warnings are errors; in a process of its own if ``apart``."""
    pytester.makepyfile(code)
    options = ("-W", "error", *options)
    if apart:
        return pytester.runpytest_subprocess("-p", "sitq", *options)
    return pytester.runpytest_inprocess(*options, plugins=[_sitq_pytest])


# What it costs.


def test_loading_the_plugin_imports_nothing_of_sitq() -> None:
    """Plugins are loaded at each start of pytest, so this one imports sitq at the first use of a fixture."""
    loaded = run_script("import sys, _sitq_pytest; print(*sys.modules)").split()
    assert "_sitq_pytest" in loaded
    assert {"sitq", "sitq.backends", "sitq.testing", "aiosqlite", "cloudpickle"}.isdisjoint(loaded)


def test_a_run_without_the_fixtures_never_imports_sitq(pytester: pytest.Pytester) -> None:
    """Pytest finds the plugin by itself, and a whole run that does not use it ends without sitq."""
    pytester.makeconftest("""
        import sys
        def pytest_unconfigure(config):
            print("plugin:", config.pluginmanager.hasplugin("sitq"), "imported:", "sitq" in sys.modules)
    """)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["plugin: True imported: False"])


# Under every way to run async tests.


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        ("", (*PYTEST_ASYNCIO, "asyncio_mode=auto")),
        ("@pytest.mark.asyncio", (*PYTEST_ASYNCIO, "asyncio_mode=strict")),
        ("@pytest.mark.asyncio(loop_scope='module')", (*PYTEST_ASYNCIO, "asyncio_mode=strict")),
        ("@pytest.mark.anyio", ANYIO),
    ],
    ids=["pytest-asyncio auto", "pytest-asyncio strict", "pytest-asyncio module loop", "anyio"],
)
def test_async_tests_can_use_the_queue(only_sitq: pytest.Pytester, mark: str, options: tuple[str, ...]) -> None:
    """The fixtures belong to no plugin and to no mode of one."""
    code = f"import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n{mark}{A_TEST}"
    run_pytest(only_sitq, code, *options).assert_outcomes(passed=1)


def test_plain_tests_need_no_plugin(only_sitq: pytest.Pytester) -> None:
    """A plain function takes the sync queue, or asyncio.run, and pytest alone runs it."""
    code = """
        import asyncio

        def test_sync(sync_task_queue):
            task_id = sync_task_queue.enqueue("operator:add", 1, 2)
            assert sync_task_queue.drain() == 1
            assert sync_task_queue.get_result(task_id).value == 3

        def test_run(task_queue):
            task_id = asyncio.run(task_queue.enqueue("operator:add", 1, 2))
            assert asyncio.run(task_queue.drain()) == 1
            assert asyncio.run(task_queue.get_result(task_id)).value == 3
    """
    run_pytest(only_sitq, code).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ((), "install pytest-asyncio or anyio, or make it a plain function that uses sync_task_queue"),
        ((*PYTEST_ASYNCIO, "asyncio_mode=strict"), "mark it with @pytest.mark.asyncio"),
        (ANYIO, "mark it with @pytest.mark.anyio"),
    ],
    ids=["no plugin", "no mark for pytest-asyncio", "no mark for anyio"],
)
def test_an_async_test_that_nothing_runs_says_what_is_missing(
    only_sitq: pytest.Pytester, options: tuple[str, ...], advice: str
) -> None:
    """It fails, rather than pass without having run, and names the plugin or the mark."""
    result = run_pytest(only_sitq, A_TEST, *options, apart=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*test_it is an async test, and nothing here runs it: {advice}*"])


def test_other_async_tests_are_left_to_others(only_sitq: pytest.Pytester) -> None:
    """The plugin has nothing to say about a test that does not use its fixtures."""
    result = run_pytest(only_sitq, "async def test_it(): pass")
    assert "nothing here runs it" not in result.stdout.str()


def test_nothing_is_left_open(only_sitq: pytest.Pytester) -> None:
    """After its test, the queue's connection is closed and its thread ends."""
    only_sitq.makeconftest("""
        import threading
        def pytest_runtest_logfinish():
            threads = [t for t in threading.enumerate() if "connection" in t.name or "sync" in t.name]
            for thread in threads:
                thread.join(5)  # one that was told to end may still be on its way
            print("left:", [thread.name for thread in threads if thread.is_alive()])
    """)
    code = """
        import asyncio

        async def test_async(task_queue):
            await task_queue.enqueue("operator:add", 1, 2)

        def test_run(task_queue):
            asyncio.run(task_queue.enqueue("operator:add", 1, 2))

        def test_sync(sync_task_queue):
            sync_task_queue.enqueue("operator:add", 1, 2)
    """
    result = run_pytest(only_sitq, code, "-s", *PYTEST_ASYNCIO, "asyncio_mode=auto", apart=True)
    result.assert_outcomes(passed=3)
    assert result.stdout.str().count("left: []") == 3


def test_a_failed_task_is_shown_without_the_machinery(only_sitq: pytest.Pytester) -> None:
    """Pytest shows the line of the test that drained and the worker's traceback, and nothing of sitq in between."""
    code = """
        import asyncio

        def test_sync(sync_task_queue):
            sync_task_queue.enqueue(divmod, 7, 0)
            sync_task_queue.drain()

        def test_async(task_queue):
            async def test():
                await task_queue.enqueue(divmod, 7, 0)
                await task_queue.drain()
            asyncio.run(test())
    """
    result = run_pytest(only_sitq, code)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [">*sync_task_queue.drain()", "E*ZeroDivisionError*", "*await task_queue.drain()*", "E*ZeroDivisionError*"]
    )
    result.stdout.no_fnmatch_line("*queues.py:*")


# The fixtures.


async def test_each_test_has_a_fresh_file(task_queue: ManualQueue, task_queue_path: Path) -> None:
    """The queue is a real file in the test's own folder, and empty; what is enqueued waits there."""
    await task_queue.enqueue(add, 1, 2)
    assert [(row["name"], row["status"]) for row in rows(task_queue_path)] == [("tests.support:add", "pending")]


def test_a_test_may_choose_memory(only_sitq: pytest.Pytester) -> None:
    """Overriding one fixture keeps the queue in memory, and no file is made."""
    code = f"""
import pytest

@pytest.fixture
def task_queue_path():
    return ":memory:"
{A_TEST}
def test_sync(sync_task_queue, tmp_path):
    task_id = sync_task_queue.enqueue("operator:add", 1, 2)
    sync_task_queue.drain()
    assert sync_task_queue.drain() == 0
    assert sync_task_queue.get_result(task_id).value == 3
    assert not list(tmp_path.iterdir())
"""
    run_pytest(only_sitq, code, *PYTEST_ASYNCIO, "asyncio_mode=auto").assert_outcomes(passed=2)


async def test_a_worker_of_the_tests_own_shares_the_backend(
    task_queue: ManualQueue, task_backend: SQLiteBackend
) -> None:
    """What the code under test starts by itself works on the same tasks."""
    async with Worker(task_backend):
        result = await task_queue.get_result(await task_queue.enqueue(multiply, 6, 7))
    assert result is not None
    assert result.unwrap() == 42


def test_sync_and_async_queue_share_a_file(task_queue: ManualQueue, sync_task_queue: ManualSyncQueue) -> None:
    """A test may enqueue with one and drain with the other."""
    task_id = sync_task_queue.enqueue(add, 1, 2)
    assert asyncio.run(task_queue.drain()) == 1
    result = sync_task_queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == 3


# Draining.


async def test_drain_runs_what_tasks_enqueue_too(task_queue: ManualQueue, task_queue_path: Path) -> None:
    """It returns when nothing is due any more, and gives the number of tasks run."""
    await task_queue.enqueue(enqueue_again, task_queue_path)
    assert await task_queue.drain() == 2
    assert await task_queue.drain() == 0


async def test_a_failed_task_fails_the_test(task_queue: ManualQueue) -> None:
    """Nobody needs to look at a result to see that a task failed, and the others were run all the same."""
    failed = await task_queue.enqueue(fail, "no such address")
    await task_queue.enqueue(add, 1, 2)
    with pytest.raises(TaskFailedError, match="ValueError: no such address") as caught:
        await task_queue.drain()
    assert caught.value.task_id == failed
    assert caught.value.traceback is not None
    assert 'raise ValueError("no such address")' not in caught.value.error
    assert "raise ValueError(message)" in caught.value.traceback
    assert await task_queue.drain() == 0


async def test_several_failures_are_named(task_queue: ManualQueue) -> None:
    """The error shows the first one and has a note that names the others."""
    ids = [await task_queue.enqueue(fail, str(n)) for n in range(3)]
    with pytest.raises(TaskFailedError) as caught:
        await task_queue.drain(max_concurrency=1)
    assert caught.value.task_id == ids[0]
    assert caught.value.__notes__ == [f"2 more failed: {ids[1]}, {ids[2]}"]


async def test_a_failure_may_be_what_is_expected(task_queue: ManualQueue) -> None:
    """Unchecked, the failure is only in the result."""
    task_id = await task_queue.enqueue(fail, "expected")
    assert await task_queue.drain(check=False) == 1
    result = await task_queue.get_result(task_id)
    assert result is not None
    assert result.error == "ValueError: expected"


async def test_a_task_whose_workers_died_fails_the_test(task_backend: SQLiteBackend, task_clock: ManualClock) -> None:
    """A task that is buried while the queue is drained counts as failed."""
    queue = ManualQueue(task_backend, max_attempts=1)
    await queue.enqueue(add, 1, 2)
    await task_backend.reserve(1, lease=30, alone=True)  # by a worker that is never heard of again
    task_clock.advance(31)
    with pytest.raises(WorkerDiedError, match="its workers died on every attempt"):
        await queue.drain()
    await queue.close()


async def test_a_result_that_never_comes_does_not_hang_the_test() -> None:
    """Unlike TaskQueue, a queue for tests waits for a result for a limited time unless told otherwise."""
    queue = ManualQueue(default_result_timeout=0)
    assert await queue.get_result(await queue.enqueue(add, 1, 2)) is None
    await queue.close()
    assert ManualQueue()._default_result_timeout == ManualSyncQueue()._queue._default_result_timeout == 10


async def test_without_a_backend_it_is_in_memory() -> None:
    """Outside of pytest, a queue for tests needs no file, and keeps its results from one drain to the next."""
    async with ManualQueue() as queue:
        task_id = await queue.enqueue(add, 1, 2)
        assert await queue.drain() == 1
        assert await queue.drain() == 0
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.unwrap() == 3


# The clock.


async def test_an_eta_comes_when_the_clock_is_advanced(task_queue: ManualQueue, task_clock: ManualClock) -> None:
    """A delayed task is not run before, and is run after, with no waiting."""
    await task_queue.enqueue(add, 1, 2, eta=datetime.now(UTC) + HOUR)
    assert await task_queue.drain() == 0
    task_clock.advance(HOUR / 2)
    assert await task_queue.drain() == 0
    task_clock.advance(HOUR / 2)
    assert await task_queue.drain() == 1


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7))], ids=str)
async def test_the_clock_can_be_put_to_a_moment(
    task_queue: ManualQueue, task_clock: ManualClock, zone: timezone
) -> None:
    """What is due at exactly that moment is run."""
    for days in range(1, 20):
        eta = datetime.now(zone) + timedelta(days=days)
        await task_queue.enqueue(add, 1, days, eta=eta)
        assert await task_queue.drain() == 0
        task_clock.advance_to(eta)
        assert await task_queue.drain() == 1
        assert task_clock.now() >= eta


async def test_a_dead_workers_task_can_be_played(
    task_queue: ManualQueue, task_backend: SQLiteBackend, task_clock: ManualClock
) -> None:
    """Leases end by the same clock: a task that a dead worker held is run again, one attempt higher."""
    task_id = await task_queue.enqueue(which_attempt)
    await task_backend.reserve(1, lease=30, alone=True)
    assert await task_queue.drain() == 0
    task_clock.advance(31)
    assert await task_queue.drain() == 1
    result = await task_queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == 2


async def test_a_clock_far_ahead_keeps_the_results(task_queue: ManualQueue, task_clock: ManualClock) -> None:
    """The fixture's backend prunes nothing, however far a test puts its clock ahead."""
    task_id = await task_queue.enqueue(add, 1, 2)
    await task_queue.drain()
    task_clock.advance(timedelta(days=1000))
    await task_queue.enqueue(add, 1, 2)
    await task_queue.drain()
    assert await task_queue.get_result(task_id, timeout=0) is not None


def test_the_clock_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the host's clock, wherever that one is, and keeps its lead."""
    monkeypatch.setattr("sitq.testing.clock.now_seconds", lambda: 1_000.0)
    clock = ManualClock()
    clock.advance(500)
    monkeypatch.setattr("sitq.testing.clock.now_seconds", lambda: 2_000.0)
    assert clock() == 2_500.0
    assert clock.now() == datetime(1970, 1, 1, 0, 41, 40, tzinfo=UTC)
    assert repr(clock) == "ManualClock(1970-01-01T00:41:40+00:00)"


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("advance", -1, ValueError, "at least 0"),
        ("advance", float("nan"), ValueError, "finite"),
        ("advance", float("inf"), ValueError, "finite"),
        ("advance", timedelta(seconds=-1), ValueError, "at least 0"),
        ("advance", "1", TypeError, "seconds"),
        ("advance_to", datetime(2000, 1, 1, tzinfo=UTC), ValueError, "does not go back"),
        ("advance_to", datetime(2100, 1, 1), ValueError, "timezone-aware"),  # noqa: DTZ001
        ("advance_to", 4_000_000_000, TypeError, "datetime"),
    ],
)
def test_the_clock_refuses_what_it_cannot_do(
    method: str, argument: object, error: type[Exception], message: str
) -> None:
    """It goes ahead only, to a moment that everybody agrees on."""
    clock = ManualClock()
    with pytest.raises(error, match=message):
        getattr(clock, method)(argument)
    assert clock._ahead == 0


# Types.


def test_the_help_is_typed_and_named() -> None:
    """What is public of sitq.testing says so, and the fixtures' values are instances of it."""
    assert {cls.__module__ for cls in (ManualClock, ManualQueue, ManualSyncQueue)} == {"sitq.testing"}
    assert issubclass(ManualQueue, TaskQueue)
