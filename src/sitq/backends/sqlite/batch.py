"""The jobs that one turn of the connection's thread carries out and commits together."""

import asyncio
import itertools
import sqlite3
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Literal

from sitq.backends.sqlite.abilities import make
from sitq.backends.sqlite.file import QueueFile
from sitq.backends.sqlite.jobs import Job, Topic
from sitq.backends.sqlite.statements import Notes, apply
from sitq.backends.sqlite.translation import translate

type Durability = Literal["enqueue", "full", "normal"]


class Batch:
    """Some jobs, and the steps in which they are done: collect, carry out, answer, notify.

    Args:
        jobs: What to do, in this order.
        file: Where.
        durability: Which commits have to survive a power cut.
        clock: Gives the time in seconds since 1970 UTC.
    """

    def __init__(
        self, jobs: list[Job[Any]], file: QueueFile, durability: Durability, clock: Callable[[], float]
    ) -> None:
        self._jobs = jobs
        self._file = file
        self._durability = durability
        self._clock = clock

    @staticmethod
    def collect(waiting: deque[Job[Any]], *, all_of_them: bool) -> list[Job[Any]]:
        """Takes what the next batch is to do out of ``waiting``: all of it, up to the second reservation.

        While a worker runs what one reservation gave out, the thread can be at the next one.

        Args:
            waiting: The jobs that are queued.
            all_of_them: Whether nothing may be left.
        """
        jobs = list(waiting)
        reservations = [n for n, job in enumerate(jobs) if job.is_reservation]
        if len(reservations) > 1 and not all_of_them:
            del jobs[reservations[1] :]
        left = list(itertools.islice(waiting, len(jobs), None))
        waiting.clear()
        waiting.extend(left)
        return jobs

    def carry_out(self) -> None:
        """Makes all changes in one transaction, and reads for each job; each has a result or an error then."""
        try:
            self._commit()
        except BaseException as error:
            for job in self._jobs:
                job.error = self._translated(error)

    def answer(self) -> None:
        """Hands each job to the loop of the one who waits for it."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
        for job in self._jobs:
            if job.future is None or job.future.cancelled():
                job.abandon()
            else:
                by_loop.setdefault(job.future.get_loop(), []).append(job)
        for loop, jobs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_answer, jobs)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                for job in jobs:
                    job.abandon()

    def notify(self, notify: Callable[[Collection[Topic]], None]) -> None:
        """Calls ``notify`` with what may be found from now on, if there is anything."""
        topics = {topic for job in self._jobs if job.error is None for topic in job.notifies(job.result)}
        if topics:
            notify(topics)

    def _commit(self) -> None:
        now = int(self._clock() * 1_000_000)
        sqlite = self._file.open()
        synced = any(job.synced for job in self._jobs)
        # Set in the batch that needs it: the level belongs to the connection, and between two batches
        # another caller's write would slip in.
        sqlite.set_synchronous(
            "FULL" if self._durability == "full" or (synced and self._durability == "enqueue") else "NORMAL"
        )
        others_write = any(job.writes and not job.is_reservation for job in self._jobs)  # there is a commit anyhow
        writers: list[Job[Any]] = []
        try:
            writers += [
                job
                for job in self._jobs
                if job.writes and (not job.is_reservation or job.is_wanted(sqlite, now, anyhow=others_write))
            ]
            for job in writers:
                for ability in job.abilities:
                    make(sqlite, ability)
            notes = apply(sqlite, now, itertools.chain.from_iterable(job.changes(now) for job in writers))
        except Exception as error:
            self._try_one_by_one(writers, error)
            return
        if synced:
            self._file.check_commit()  # what is about to be acknowledged may have waited for the lock long enough
            sqlite = self._file.open()
        for job in self._jobs:
            self._read(job, sqlite, now, notes)

    def _try_one_by_one(self, writers: list[Job[Any]], error: Exception) -> None:
        """Finds out which job it was, after the changes of all of them together failed."""
        if len(self._jobs) == 1:
            (job,) = self._jobs
            if not isinstance(error, sqlite3.IntegrityError) or not job.was_carried_out(self._file.open()):
                raise error
            self._file.check_commit()  # it is about to be acknowledged
            return
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        for job in self._jobs:
            if busy and job in writers:
                job.error = self._translated(error)  # it waited for the lock once: enough
            else:
                # One is at fault: each gets a transaction, and an answer, of its own.
                Batch([job], self._file, self._durability, self._clock).carry_out()

    def _read(self, job: Job[Any], sqlite: sqlite3.Connection, now: int, notes: Notes) -> None:
        try:
            job.result = job.read(sqlite, now, notes)
        except Exception as error:
            job.error = self._translated(error)

    def _translated(self, error: BaseException) -> BaseException:
        return translate(error, self._file.path) if isinstance(error, (sqlite3.Error, OSError)) else error


def _answer(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.answer()
