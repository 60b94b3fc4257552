"""Looking into a file that this user may read but not write.

SQLite needs the -wal and -shm files to read in WAL mode. While somebody works on the queue they are
there, and reading them is enough. When nobody does, they are gone, and a reader would have to make
them: it may not, or they would be its own and keep the owner out. Then the file alone is all there
is, and it is read as one that nobody changes (``immutable``). What was read is thrown away, and read
again, if somebody did change it meanwhile.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from urllib.parse import quote

from sitq.backends.sqlite.inspection import Inspection
from sitq.backends.sqlite.jobs import Job
from sitq.backends.sqlite.pausing import ShownLanes
from sitq.backends.sqlite.schema import SCHEMA_VERSION, _checked_version
from sitq.backends.sqlite.statements import install
from sitq.backends.sqlite.translation import translate
from sitq.errors import BackendReadOnlyError, BackendUnavailableError

MAX_TRIES = 10
"""How often in a row the file may be changed while it is read, before reading is given up."""


class Reader(Inspection, ShownLanes):
    """Answers what ``Inspectable`` asks, and shows lanes; what would change something is refused.

    Each call opens the file anew. It blocks the event loop, so it is for programs that do nothing else.

    Args:
        path: The file.
        clock: Gives the time in seconds since 1970 UTC; for tests.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self._path = os.path.realpath(os.fsdecode(path))
        self._clock = clock

    def _connected(self) -> "Reader":
        return self

    async def call[T](self, job: Job[T]) -> T:
        """Runs ``job`` on a connection of its own.

        Raises:
            BackendReadOnlyError: ``job`` would change something.
            BackendUnavailableError: The file cannot be read, or was changed under each of several tries.
            BackendCorruptError: The file is damaged, not a database, or not one of sitq's.
            BackendVersionError: The file was written by a newer sitq.
        """
        if job.writes:
            raise BackendReadOnlyError(f"{self._path}: this user cannot write it")
        for _ in range(MAX_TRIES):
            state, failure, found = self._state(), None, None
            try:
                found = self._read(job, alone=state is not None)
            except sqlite3.Error as error:
                failure = error
            if failure is None and state is None:  # SQLite's own locks have kept it from changing
                return found  # type: ignore[return-value]  # a T if there was no failure
            if state == self._state():
                if failure:
                    raise translate(failure, self._path) from failure
                return found  # type: ignore[return-value]
        raise BackendUnavailableError(
            f"{self._path}: others changed it under each of {MAX_TRIES} reads; try again later"
        )

    def _state(self) -> tuple[int, int, int] | None:
        """What a change of the file would change; ``None`` while somebody works on it."""
        if os.path.exists(f"{self._path}-wal"):
            return None
        status = os.stat(self._path)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read[T](self, job: Job[T], *, alone: bool) -> T:
        # Without `readonly_shm`, a -shm that is missing would be made, and be this user's.
        how = "immutable=1" if alone else "readonly_shm=1"
        uri = f"file:{quote(os.fsencode(self._path))}?mode=ro&{how}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            version = _checked_version(connection, self._path)
            if 0 < version < SCHEMA_VERSION:
                raise BackendReadOnlyError(
                    f"{self._path} has schema version {version}, this sitq reads version {SCHEMA_VERSION}, and this "
                    "user cannot write the file: have a user open it once who can"
                )
            install(connection)  # in memory: what would change something finds its view, and is refused above
            return job.read(connection, int(self._clock() * 1_000_000), frozenset())
        finally:
            connection.close()
