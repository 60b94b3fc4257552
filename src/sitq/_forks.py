"""What happens to open files and locks when the process forks.

SQLite keeps its POSIX locks in a table of the process. The child of a fork inherits the table and
not the locks: it believes that it holds what it does not (sqlite.org/howtocorrupt.html, 2.6). So
whoever opens a file calls :func:`enter`. Before a fork all of them are asked to close their files, and
the fork waits for that. Parent and child then open anew, each for itself.

A thread that held one of our locks at the fork does not exist in the child: what has locks or
threads begins anew there.
"""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from typing import Protocol

CLOSING_SECONDS = 10.0
"""How long a fork waits for open files to be closed: longer than a statement waits for a lock."""

INTERRUPT_AGAIN_SECONDS = 0.05
"""How long after a fork a Ctrl-C comes again that came just before: by then the fork has returned."""

_turn = threading.Condition()
_pid = os.getpid()
_forks = 0  # under way now
_interrupted = False  # while a fork waited
_in_use: weakref.WeakKeyDictionary["Holder", Hashable] = weakref.WeakKeyDictionary()
_inherited: set[Hashable] = set()
_beginners: set[weakref.WeakMethod[Callable[[], None]]] = set()


class Holder(Protocol):
    """Who holds a file open, on a thread of its own."""

    def close_for_fork(self) -> None:
        """Asks the thread to close the file and to call :func:`leave`; returns at once."""


class InheritedError(Exception):
    """The file was open when this process was forked."""


def enter(holder: Holder, identity: Hashable) -> None:
    """Waits until no fork is under way, and notes that ``holder`` is about to open a file.

    Raises:
        InheritedError: A parent of this process had the file open at the fork.
    """
    check_process()
    with _turn:
        _turn.wait_for(lambda: not _forks)
        if identity in _inherited:
            raise InheritedError
        _in_use[holder] = identity


def leave(holder: Holder) -> None:
    """Notes that ``holder`` has closed its file."""
    with _turn:
        if _in_use.pop(holder, None) is not None:
            _turn.notify_all()


def holders() -> list["Holder"]:
    """Returns who holds a file open now."""
    with _turn:
        return list(_in_use)


def begin_anew_in_child(begin_anew: Callable[[], None]) -> None:
    """Has a bound method called in the child of every fork from now on, as long as its object lives."""
    _beginners.add(weakref.WeakMethod(begin_anew, _beginners.discard))


def check_process() -> None:
    """Begins anew if this process is a child that does not know it: a fork by C code runs no hooks."""
    if os.getpid() != _pid:
        _after_in_child()


def _before() -> None:
    global _forks
    with _turn:
        _forks += 1
        for holder in holders():
            holder.close_for_fork()
        _wait_until_closed()


def _wait_until_closed() -> None:
    global _interrupted
    give_up_at = time.monotonic() + CLOSING_SECONDS
    while True:
        try:
            _turn.wait_for(lambda: not _in_use, give_up_at - time.monotonic())
            return
        except KeyboardInterrupt:
            # Nothing that is raised before a fork stops it: it would be printed and forgotten. So the
            # wait goes on, for the sake of the files, and the interrupt comes again after the fork.
            _interrupted = True


def _after_in_parent() -> None:
    global _forks, _interrupted
    with _turn:
        _forks = max(0, _forks - 1)
        _turn.notify_all()
    if _interrupted:
        _interrupted = False
        # Not from here: it would be printed and forgotten as well, and so in the hooks of others.
        timer = threading.Timer(INTERRUPT_AGAIN_SECONDS, _interrupt_main_thread)
        timer.daemon = True
        timer.start()


def _interrupt_main_thread() -> None:
    ident = threading.main_thread().ident
    if ident is not None and callable(signal.getsignal(signal.SIGINT)):  # else it would end the process
        # A real signal: _thread.interrupt_main() does not wake a thread that waits in a system call.
        signal.pthread_kill(ident, signal.SIGINT)


def _after_in_child() -> None:
    global _turn, _pid, _forks, _interrupted
    _turn, _pid, _forks, _interrupted = threading.Condition(), os.getpid(), 0, False
    _inherited.update(_in_use.values())
    _in_use.clear()
    for beginner in list(_beginners):
        begin_anew = beginner()
        if begin_anew is not None:
            begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
