"""The shape of the file, and how a file gets it."""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from sitq.errors import BackendCorruptError, BackendUnavailableError, BackendVersionError

APPLICATION_ID = 0x73697471  # "sitq", where the `file` command looks for it
MAX_WAL_BYTES = 16 * 1024 * 1024

# `available_at` is when a waiting task is due and, while a task runs, when its lease ends: so one
# index finds what can be taken, whether it waits or was abandoned. Live rows are kept in two
# indexes by whether their next attempt is an ordinary one: one kind never has to be scanned past to
# reach the other, and the statement of the hot path has no cases. A third one finds those whose next
# attempt is not permitted behind those that wait for their last. (They are in `tasks_last` as well,
# because a process of version 1 may have had the file open.) The form of the conditions matters: with the
# sum on the left, SQLite 3.40 does not see that a query implies them.
#
# Version 3 makes room for named queues and priorities: a task of the default queue at the default priority
# has neither. The indexes stay as they are, although no statement takes a row with a queue from them: a
# process of version 2 that has the file open meanwhile goes on with statements that name them, and SQLite
# would refuse all of them if an index no longer covered what they ask for. They are made anew, without the
# rows of other queues, when the first task of a named queue is stored: see ``lanes``.
#
# What an ability needs beside that (columns, indexes, triggers) is made at its first use: see ``abilities``.
MIGRATIONS = (
    """
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL DEFAULT 'pending',
        name TEXT NOT NULL DEFAULT '',
        attempt INTEGER NOT NULL DEFAULT 0,
        max_attempts INTEGER NOT NULL,
        enqueued_at INTEGER NOT NULL,
        available_at INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        claim INTEGER,
        format TEXT NOT NULL DEFAULT '',
        payload BLOB NOT NULL,
        result BLOB,
        error TEXT,
        traceback TEXT
    );
    CREATE INDEX tasks_due ON tasks (available_at, id)
        WHERE finished_at IS NULL AND max_attempts > attempt + 1;
    CREATE INDEX tasks_last ON tasks (available_at, id)
        WHERE finished_at IS NULL AND max_attempts <= attempt + 1;
    CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;
    """,
    """
    CREATE INDEX tasks_spent ON tasks (available_at, id)
        WHERE finished_at IS NULL AND max_attempts <= attempt;
    """,
    """
    ALTER TABLE tasks ADD COLUMN queue TEXT;
    ALTER TABLE tasks ADD COLUMN priority INTEGER;
    ALTER TABLE tasks ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN snoozes INTEGER NOT NULL DEFAULT 0;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)


def create_private_file(path: Path) -> None:
    """Creates an empty file for its owner only, unless there is one.

    SQLite gives the -wal and -shm files the mode of the database. The file is made without being
    opened if that is possible: closing a descriptor of a database drops every POSIX lock that
    this process holds on it (sqlite.org/howtocorrupt.html, 2.2).
    """
    if path.exists():
        return
    with contextlib.suppress(FileExistsError):
        if hasattr(os, "mknod") and os.uname().sysname == "Linux":
            os.mknod(path, 0o600 | stat.S_IFREG)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Brings a fresh connection and, if need be, its file to the current schema.

    Raises:
        BackendCorruptError: The file belongs to something else.
        BackendVersionError: The file was written by a newer sitq.
        sqlite3.Error: SQLite refused the file.
    """
    # What is refused is left as it is: SQLite would empty its -wal file on closing.
    connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
    # One snapshot: between two reads, another process may have made the file sitq's.
    connection.execute("BEGIN")
    try:
        version = _checked_version(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, False)
    if path != ":memory:":
        _switch_to_wal(connection, path)
    connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    if version < SCHEMA_VERSION:
        _migrate(connection, path)


def _checked_version(connection: sqlite3.Connection, path: str) -> int:
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    is_empty = connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
    if application != APPLICATION_ID and not is_empty:
        raise BackendCorruptError(
            f"{path} is a SQLite database, but not one of sitq's: give sitq a file of its own; "
            "this one was left as it is"
        )
    if application != APPLICATION_ID and version <= SCHEMA_VERSION:
        return 0
    if version > SCHEMA_VERSION:
        raise BackendVersionError(
            f"{path} has schema version {version}, and this sitq knows versions up to {SCHEMA_VERSION}: "
            "upgrade sitq; the file was left as it is"
        )
    return version


def _switch_to_wal(connection: sqlite3.Connection, path: str) -> None:
    # Asking for WAL needs an exclusive lock, and SQLite does not wait for it when several processes
    # open a fresh file together: PatientConnection does.
    for pragma in ("PRAGMA journal_mode", "PRAGMA journal_mode = WAL"):
        if connection.execute(pragma).fetchone()[0] == "wal":
            return
    raise BackendUnavailableError(
        f"{path} cannot be switched to write-ahead logging, which needs a local file system; move the file"
    )


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process may have been faster.
        for migration in MIGRATIONS[_checked_version(connection, path) :]:
            for statement in migration.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
