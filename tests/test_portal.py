"""A portal into an event loop: its own one in a thread, or one that somebody else runs."""

import asyncio
import threading
from typing import Any

import pytest

from sitq import BackendError
from sitq._portal import Portal
from tests.scripts import run_script


async def where() -> tuple[asyncio.AbstractEventLoop, str]:
    """Gives the loop and the thread in which it runs."""
    return asyncio.get_running_loop(), threading.current_thread().name


async def fail() -> None:
    """Raises."""
    raise KeyError("inside")


async def nothing() -> None:
    """Is run at the end of a portal for which nothing is to do there."""


def test_the_first_call_starts_one_thread_for_all() -> None:
    """A portal that is not used has none, and the calls of a used one run in the same loop."""
    portal = Portal()
    assert portal._thread is None
    (one, name), (two, _) = portal.call(where), portal.call(where)
    assert one is two
    assert name == "sitq-sync"
    portal.close(nothing)
    assert one.is_closed()


def test_what_is_raised_inside_reaches_the_caller() -> None:
    """As the same exception; the portal can be used again."""
    portal = Portal()
    with pytest.raises(KeyError, match="inside"):
        portal.call(fail)
    assert portal.call(where)
    portal.close(nothing)


def test_the_last_function_runs_in_the_loop_even_if_it_raises() -> None:
    """Its error reaches whoever closes, and the thread is gone all the same."""
    portal = Portal()
    loop, _ = portal.call(where)
    with pytest.raises(KeyError, match="inside"):
        portal.close(fail)
    assert loop.is_closed()
    assert portal._thread is None


async def test_a_portal_into_a_loop_of_others_leaves_it_running() -> None:
    """Calls run in that loop and in its thread; closing the portal runs nothing and ends nothing."""
    portal = Portal(asyncio.get_running_loop())
    loop, name = await asyncio.to_thread(portal.call, where)
    assert loop is asyncio.get_running_loop()
    assert name == threading.current_thread().name
    await asyncio.to_thread(portal.close, fail)
    assert await asyncio.to_thread(portal.call, where) == (loop, name)


def test_a_portal_into_a_loop_that_has_ended_says_so() -> None:
    """The call is an error instead of one that waits for ever."""
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(BackendError, match="closed"):
        Portal(loop).call(nothing)


def test_a_signal_handler_may_call_and_close_in_the_middle_of_a_call() -> None:
    """It interrupts the thread that waits, works with the same portal, and the call that waited ends."""
    printed = run_script(
        """
        import asyncio, signal, threading
        from sitq import BackendError
        from sitq._portal import Portal

        portal = Portal()

        async def answer():
            return "answered"

        async def wait():
            # From the loop's thread: Python runs the handler in the main thread, which waits for this.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            await asyncio.Event().wait()

        async def nothing():
            pass

        def handle(*_):
            print(portal.call(answer))
            portal.close(nothing)

        signal.signal(signal.SIGUSR1, handle)
        try:
            portal.call(wait)
        except BackendError as error:
            print(error)
        print(portal.call(answer))
        portal.close(nothing)
        """
    )
    assert printed.splitlines() == ["answered", "the SyncTaskQueue was closed while this call waited", "answered"]


def test_a_signal_handler_may_call_while_a_call_is_handed_over() -> None:
    """The lock is held then, by the same thread: both calls get their answer."""
    portal = Portal()
    loop, _ = portal.call(where)
    hand_over = loop.call_soon_threadsafe
    inner: list[object] = []

    def interrupted(*args: Any) -> None:
        loop.call_soon_threadsafe = hand_over  # type: ignore[method-assign]
        inner.append(portal.call(where)[0])
        hand_over(*args)

    loop.call_soon_threadsafe = interrupted  # type: ignore[assignment]
    assert portal.call(where)[0] is loop
    assert inner == [loop]
    portal.close(nothing)
