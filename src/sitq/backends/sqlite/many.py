"""Reading the results of many tasks in one query."""

import contextlib
import json
import sqlite3
from collections.abc import Sequence

from sitq.backends.many import Ended
from sitq.backends.sqlite import queries
from sitq.backends.sqlite.statements import MAX_PIECE_BYTES
from sitq.models import FINISHED, Result

# The left join keeps the ids in their order. No row comes for what is not finished: for each row the interpreter
# lock is let go of and asked for again.
_GET_MANY = """
    SELECT asked.key, task_id, status, result, error, traceback, attempt, enqueued_at, started_at, finished_at
    FROM json_each(?) AS asked LEFT JOIN tasks ON task_id = asked.value
    WHERE finished_at IS NOT NULL OR task_id IS NULL
"""


def get_results(connection: sqlite3.Connection, task_ids: Sequence[str]) -> Ended:
    """Returns which of some tasks are finished or unknown; not all at once if the values are large.

    Raises:
        BackendCorruptError: The row of one of them is malformed.
    """
    # SQLite's JSON ends a text at its first NUL, and would find another task.
    if not any("\0" in task_id for task_id in task_ids):
        try:
            return _together(connection, task_ids)
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):  # text that is not UTF-8, which some other program wrote
                raise
    return _one_by_one(connection, task_ids)


def _together(connection: sqlite3.Connection, task_ids: Sequence[str]) -> Ended:
    found: dict[str, Result[bytes] | None] = {}
    size = 0
    with contextlib.closing(connection.execute(_GET_MANY, (json.dumps(task_ids),))) as rows:
        for at, *row in rows:
            result = None if row[0] is None else queries.to_result(row)
            found[task_ids[at]] = result
            size += _size(result)
            if size > MAX_PIECE_BYTES:
                return Ended(found, task_ids[at + 1 :])
    return Ended(found)


def _one_by_one(connection: sqlite3.Connection, task_ids: Sequence[str]) -> Ended:
    found: dict[str, Result[bytes] | None] = {}
    size = 0
    for at, task_id in enumerate(task_ids):
        result = queries.get_result(connection, task_id)
        if result is None or result.status in FINISHED:
            found[task_id] = result
            size += _size(result)
            if size > MAX_PIECE_BYTES:
                return Ended(found, task_ids[at + 1 :])
    return Ended(found)


def _size(result: Result[bytes] | None) -> int:
    value = None if result is None else result.value
    return len(value) if isinstance(value, bytes) else 0
