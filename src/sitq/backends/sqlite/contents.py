"""What may be wrong with the rows of a queue file: tasks that fail for one cause, and malformed rows."""

import re
import sqlite3
from collections import Counter
from datetime import UTC, datetime

from sitq.backends.inspect import Finding
from sitq.backends.sqlite.listing import decoded
from sitq.models import FINISHED, STATUSES, to_micros

_EARLIEST = to_micros(datetime.min.replace(tzinfo=UTC))
_LATEST = to_micros(datetime.max.replace(tzinfo=UTC))

RECENT_MICROS = 3600 * 1_000_000
RECENT_FAILURES = 1_000
MANY_FAILURES = 10
"""So many recent failures for want of a module are no accident of one task."""

NOT_FOUND = ("No module named ", "does not resolve in this worker")
SHOWN = 5

_RECENT_FAILURES = """
    SELECT CAST(ifnull(error, '') AS TEXT) FROM tasks INDEXED BY tasks_finished
    WHERE finished_at > ? AND status = 'failed' ORDER BY finished_at DESC LIMIT ?
"""

UNSERVED_MICROS = 60 * 1_000_000

# For each queue how many tasks are due and since when, if nobody seems to take them; and the paused ones.
_QUEUES = """
    SELECT queue, due, oldest, EXISTS (SELECT 1 FROM paused WHERE paused.queue = found.queue) FROM (
        SELECT ifnull(queue, '') AS queue,
            count(*) FILTER (WHERE status = 'pending' AND available_at <= ?1) AS due,
            min(available_at) FILTER (WHERE status = 'pending') AS oldest,
            max(started_at) AS started, count(*) FILTER (WHERE status = 'in_progress' AND available_at > ?1) AS running
        FROM tasks GROUP BY 1) AS found
    WHERE (due AND oldest <= ?2 AND NOT running AND ifnull(started, 0) <= ?2)
        OR EXISTS (SELECT 1 FROM paused WHERE paused.queue = found.queue)
    UNION ALL SELECT queue, 0, NULL, 1 FROM paused
        WHERE queue NOT IN (SELECT ifnull(queue, '') FROM tasks)
    ORDER BY queue
"""

_TYPES = {
    "task_id": "text",
    "status": "text",
    "name": "text",
    "attempt": "integer",
    "max_attempts": "integer",
    "enqueued_at": "integer",
    "available_at": "integer",
    "started_at": "integer or null",
    "finished_at": "integer or null",
    "claim": "integer or null",
    "format": "text",
    "payload": "blob",
    "result": "blob or null",
    "error": "text or null",
    "traceback": "text or null",
    "queue": "text or null",
    "priority": "integer or null",
    "failures": "integer",
    "snoozes": "integer",
}
_TIMES = ("enqueued_at", "available_at", "started_at", "finished_at")
_KNOWN = ", ".join(f"'{status}'" for status in STATUSES)
_FINISHED = ", ".join(f"'{status}'" for status in STATUSES if status in FINISHED)

# What is wrong, as SQL has it, by how to say it.
_WRONG: dict[str, str] = {}
for _column, _types in _TYPES.items():
    _WRONG[f"'{_column} is ' || typeof({_column})"] = f"instr('{_types}', typeof({_column})) = 0"
for _column in _TIMES:
    _WRONG[f"'{_column} is no time'"] = (
        f"typeof({_column}) = 'integer' AND {_column} NOT BETWEEN {_EARLIEST} AND {_LATEST}"
    )
_WRONG["'status is ' || quote(status)"] = f"typeof(status) = 'text' AND status NOT IN ({_KNOWN})"
_WRONG["'status is ' || status || ', without finished_at'"] = f"status IN ({_FINISHED}) AND finished_at IS NULL"
_WRONG["'status is ' || status || ', with finished_at'"] = (
    "status IN ('pending', 'in_progress') AND finished_at IS NOT NULL"
)

_TEXTS = [column for column, types in _TYPES.items() if types.startswith("text") and column != "status"]
# Only a text with a character beyond ASCII may be something else than UTF-8, which SQLite cannot tell.
_BEYOND_ASCII = " OR ".join(f"{column} GLOB '*[^' || char(1) || '-' || char(127) || ']*'" for column in _TEXTS)
_SUSPICIOUS_ROWS = f"""
    SELECT id, {", ".join(f"iif({wrong}, {what}, NULL)" for what, wrong in _WRONG.items())},
        {", ".join(f"CAST({column} AS BLOB)" for column in _TEXTS)}
    FROM tasks WHERE {" OR ".join(f"({wrong})" for wrong in _WRONG.values())} OR {_BEYOND_ASCII}
"""


def failures(connection: sqlite3.Connection, now: int) -> Finding:
    """Says whether tasks fail because a worker does not find their code: it runs in the wrong folder."""
    with decoded(connection):
        recent = connection.execute(_RECENT_FAILURES, (now - RECENT_MICROS, RECENT_FAILURES)).fetchall()
    unfound = [text for (text,) in recent if any(sign in text for sign in NOT_FOUND)]
    if not unfound:
        return Finding("failures", "ok", f"{len(recent)} in the last hour, none for want of a module")
    missing = Counter(found[1] for text in unfound if (found := re.search(r"No module named '([\w.]+)'", text)))
    named = ", ".join(f"{module} ({count})" for module, count in missing.most_common(SHOWN)) or unfound[0][:200]
    folder, text = "the code", NOT_FOUND[-1]
    if missing:
        folder = missing.most_common(1)[0][0]
        text = f"No module named '{folder}'"
    return Finding(
        "failures",
        "wrong" if len(unfound) >= MANY_FAILURES else "note",
        f"{len(unfound)} of {len(recent)} in the last hour, because the worker does not find the code: {named}",
        f"start the workers in the folder that holds {folder}, or set PYTHONPATH there; then run "
        f'sitq retry PATH --failed --error "{text}"',
    )


def queues(connection: sqlite3.Connection, now: int) -> Finding:
    """Says which queues are paused, and which seem to be served by nobody.

    Who serves what is known to the workers only. So a queue is named if the oldest of its tasks has been due for
    long, none of them runs, and none was started lately.
    """
    with decoded(connection):
        found = connection.execute(_QUEUES, (now, now - UNSERVED_MICROS)).fetchall()
    paused = [f"{_named(queue)} ({due} due)" for queue, due, _, is_paused in found if is_paused]
    unserved = [
        f"{_named(queue)} ({due} due, the oldest for {(now - oldest) // 1_000_000} seconds)"
        for queue, due, oldest, is_paused in found
        if due and not is_paused
    ]
    if not paused and not unserved:
        return Finding("queues", "ok", "none waits for a worker that serves it, and none is paused")
    said = [f"paused: {', '.join(paused)}"] if paused else []
    said += [f"nobody seems to serve {', '.join(unserved)}: none was started in the last minute"] if unserved else []
    advice = ["sitq resume PATH QUEUE ends a pause"] if paused else []
    if unserved:
        advice.append("see that a worker is running whose queues name it, or one that serves all, and has free slots")
    return Finding("queues", "note", "; ".join(said), "; ".join(advice))


def _named(queue: str) -> str:
    return queue or "default"


def rows(connection: sqlite3.Connection) -> Finding:
    """Says which rows are malformed, and in what."""
    count, shown = 0, []
    with decoded(connection):
        for key, *found in connection.execute(_SUSPICIOUS_ROWS):
            texts = dict(zip(_TEXTS, found[len(_WRONG) :], strict=True))
            wrong = [what for what in found[: len(_WRONG)] if what]
            wrong += [f"{column} is not UTF-8" for column, data in texts.items() if not _is_utf8(data)]
            count += bool(wrong)
            if wrong and count <= SHOWN:
                shown.append(f"id {key} (task {_text(texts['task_id'])}): {', '.join(wrong)}")
    if not count:
        return Finding("rows", "ok", "each holds what sitq writes")
    more = f"; and {count - SHOWN} more" if count > SHOWN else ""
    return Finding(
        "rows",
        "wrong",
        f"{count} hold what sitq does not write: {'; '.join(shown)}{more}",
        "another program wrote them: correct them by their id in the table tasks, times are whole microseconds since "
        "1970, or delete them",
    )


def _is_utf8(data: bytes | None) -> bool:
    try:
        return data is None or data.decode() is not None
    except UnicodeDecodeError:
        return False


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="backslashreplace")
