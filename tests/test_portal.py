"""A portal into an event loop: its own one in a thread, or one that somebody else runs."""

import asyncio
import threading

import pytest

from sitq import BackendError
from sitq._portal import Portal


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
