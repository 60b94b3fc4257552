"""SIGTERM and SIGINT: the first one is the order to finish, a second one the order to die."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_signals(
    on_first: Callable[[signal.Signals], None],
    *,
    same_seconds: float,
    same_number: bool = True,
    on_second: Callable[[], bool] = lambda: True,
    ignored_after: bool = False,
) -> Iterator[None]:
    """Handles the signals that end a process, as long as the block runs.

    The handlers from before the block are put back at its end. Python permits handlers in the main
    thread only: elsewhere this does nothing.

    Args:
        on_first: Called in the event loop, with the first signal.
        same_seconds: Seconds after the first signal within which another one is the same order.
        same_number: Whether only the same signal can be the same order. If so, a SIGTERM just after
            a SIGINT is the second signal.
        on_second: Called at the second signal, in the signal handler; returns whether the process
            is to die by that signal's default action. If not, the signal changes nothing.
        ignored_after: Whether the signals are ignored after the block, if one came inside of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    first: tuple[int, float] | None = None

    # Not loop.add_signal_handler: code that blocks the loop would keep even the second signal from
    # being seen.
    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = number, now
            loop.call_soon_threadsafe(on_first, signal.Signals(number))
            return
        is_same = now - first[1] <= same_seconds and (number == first[0] or not same_number)
        if not is_same and on_second():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    previous = {each: signal.signal(each, on_signal) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in previous.items():
            if handler is not None:  # else C code had set it, and Python cannot put it back
                signal.signal(each, signal.SIG_IGN if ignored_after and first is not None else handler)
