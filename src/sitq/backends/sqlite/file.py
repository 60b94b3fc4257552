"""One queue file, open: SQLite's handle on it, and whether it is still the file that others see."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from sitq import _forks
from sitq.backends.sqlite import guard
from sitq.backends.sqlite.guard import Identity, identity_of
from sitq.backends.sqlite.patience import PatientConnection
from sitq.backends.sqlite.schema import create_private_file, prepare
from sitq.backends.sqlite.statements import install
from sitq.errors import BackendError, BackendUnavailableError

CHECK_SECONDS = 0.05
"""How often it is checked that the -wal file is there, beside each synced commit."""

_never_closed: list[sqlite3.Connection] = []
"""Handles that the child of a fork inherited: closing them would write into the parent's file."""


class QueueFile:
    """A handle that is opened when it is needed; used on one thread.

    If the -wal file has lost its name, what is committed is lost with the handle, and no other
    process sees it. SQLite does not notice. So a check finds out, and what is in it is rescued.

    Args:
        path: The file, or ``":memory:"``.
        patience: Seconds that a statement waits for a lock of another connection.
        connect: Opens a connection.
        holder: Who is asked to close before a fork.
    """

    def __init__(
        self, path: str, patience: float, connect: Callable[[], sqlite3.Connection], holder: _forks.Holder
    ) -> None:
        self.path = path
        self._patience = patience
        self._connect = connect
        self._holder = holder
        self._in_memory = path == ":memory:"
        self._handle: PatientConnection | None = None
        self._identity: Identity | None = None
        self._wal_identity: Identity | None = None
        self._is_guarded = False
        self._has_lost_its_wal = False
        self._check_at = 0.0  # on the monotonic clock

    @property
    def handle(self) -> PatientConnection | None:
        """The handle, if there is one."""
        return self._handle

    def open(self) -> PatientConnection:
        """Returns the handle, a new one if there is none, or if the -wal file was taken away.

        Raises:
            BackendError: The file is away, is not one of sitq's, or was open when the process was forked.
            sqlite3.Error: SQLite cannot open it.
            OSError: It cannot be made.
        """
        if self._has_lost_its_wal and self._handle is not None:
            self._rescue()
        if self._handle is None:
            self._open()
        assert self._handle is not None
        return self._handle

    def close(self, *, checkpoint: bool = True) -> None:
        """Closes the handle; may be called without one.

        Args:
            checkpoint: Whether SQLite may write the -wal file back and delete it, if nobody else uses the file.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if self._identity is not None and self._is_guarded:
                guard.release(self._identity)
            if not checkpoint:
                handle.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            handle.close()
            guard.tidy()
            self._is_guarded = False
        finally:
            _forks.leave(self._holder)

    def check(self, *, is_commit: bool = False) -> None:
        """Makes sure that the file still has its name: SQLite goes on writing into one that has none.

        Checks for the -wal file as well, now and then; if it is away, :meth:`open` sees to it. May be called in any
        thread: whoever queues the first job of a batch asks. On the connection's thread the system
        calls would hand the interpreter lock to the loop, just when SQLite could have started beside it.

        Raises:
            BackendUnavailableError: It was deleted, moved or replaced.
        """
        reason = None
        try:
            if self._identity is None or identity_of(self.path) == self._identity:
                if is_commit or time.monotonic() >= self._check_at:
                    self._check_at = time.monotonic() + CHECK_SECONDS
                    self._has_lost_its_wal = not self._has_its_wal()
                return
        except OSError as error:
            reason = error
        raise BackendUnavailableError(
            f"{self.path} is not there any more: it was deleted or moved, or replaced by another, while it was "
            "open; put it back, or restart what uses it"
        ) from reason

    def check_commit(self) -> None:
        """Makes sure that what was committed last is where others will find it.

        Raises:
            BackendUnavailableError: It is not.
        """
        self.check(is_commit=True)
        if self._has_lost_its_wal and not self._rescue():
            raise BackendUnavailableError(
                f"{self.path}-wal was replaced by another file while it was open, and what was written into it last "
                "is lost; nothing of this call is stored: try again, and see what deletes that file"
            )

    def forget(self) -> None:
        """Begins anew in the child of a fork, which must neither use nor close what the parent had open."""
        if self._handle is not None:
            _never_closed.append(self._handle)
        self._handle, self._is_guarded = None, False
        guard.begin_anew()

    def _open(self) -> None:
        if not self._in_memory:
            self.check()
            create_private_file(Path(self.path))
        try:
            _forks.enter(self._holder, id(self) if self._in_memory else identity_of(self.path))
        except _forks.InheritedError:
            raise BackendError(
                f"{self.path} was open when this process was forked, and could not be closed in time: in this "
                "process SQLite would take no locks on it. Start such processes with subprocess, or with "
                'multiprocessing.get_context("spawn")'
            ) from None
        try:
            handle = self._connect()
            assert isinstance(handle, PatientConnection)
            self._handle = handle
            handle.patience = self._patience
            self._prepare(handle)
        except BaseException:
            self.close()
            _forks.leave(self._holder)  # also if there is no handle yet
            raise

    def _prepare(self, handle: PatientConnection) -> None:
        prepare(handle, self.path)
        install(handle)
        if not self._in_memory:
            self._identity = identity_of(self.path)
            self._is_guarded = guard.hold(self.path, self._identity)
            handle.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()  # SQLite opens the -wal file
            with contextlib.suppress(FileNotFoundError):
                self._wal_identity = identity_of(f"{self.path}-wal")
            self._has_lost_its_wal = False

    def _has_its_wal(self) -> bool:
        try:
            return self._wal_identity is None or identity_of(f"{self.path}-wal") == self._wal_identity
        except FileNotFoundError:
            return False

    def _rescue(self) -> bool:
        """Closes the handle, because its -wal file has lost its name; returns whether its content is in the file.

        SQLite still has the deleted file open. As long as no other process has made a new one, what is in
        it and not yet in the database can be written there.
        """
        assert self._handle is not None
        written = False
        if not os.path.exists(f"{self.path}-wal"):
            busy, in_wal, in_file = self._handle.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            written = not busy and in_wal == in_file
        self.close(checkpoint=False)
        return written
