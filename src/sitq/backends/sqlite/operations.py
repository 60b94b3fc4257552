"""The SQL of the operations of every file: what the triggers of the view ``change`` do (see ``statements``).

What an ability adds (see ``abilities``) stands in a module of its own, and is listed in ``statements``.
"""

from sitq.backends.sqlite.changes import (
    Cancel,
    Change,
    Fail,
    Prune,
    Release,
    Renew,
    Reserve,
    Retry,
    RetryLater,
    StoreTask,
    StoreThen,
    Succeed,
)
from sitq.backends.sqlite.conditions import (
    CAN_CANCEL,
    CAN_RETRY,
    DUE_ROWS,
    IS_HELD,
    LAST_ROWS,
    MAX_BURIED_PER_RESERVATION,
    NOTE_NOT_HELD,
    NOTE_UNCHANGED,
    OLD_ROWS,
    OLDEST_FIRST,
    SPENT_ROWS,
    START,
)

STORE_TASK = """
    INSERT INTO tasks (task_id, name, format, payload, max_attempts, available_at, enqueued_at)
    VALUES (NEW.task_id, NEW.name, NEW.format, NEW.payload, NEW.max_attempts, NEW.available_at, NEW.now);
"""

# What nobody may try again.
BURY = f"""
    INSERT INTO note SELECT 'buried', task_id, NEW.claim
        FROM {SPENT_ROWS} AND available_at <= NEW.now
        {OLDEST_FIRST} LIMIT {MAX_BURIED_PER_RESERVATION};
    UPDATE tasks SET status = 'failed', finished_at = NEW.now, claim = NULL,
        error = 'WorkerDiedError: each of ' || (attempt - failures - snoozes) || ' attempts'
            || iif(failures + snoozes, ', beside ' || (failures + snoozes) || ' that were tried again,', '')
            || ' ended with the death of its worker, or with a lease that was not renewed; the last one ran alone',
        traceback = NULL
        WHERE task_id IN (SELECT subject FROM note WHERE kind = 'buried' AND token = NEW.claim);
"""

# First what is spent is buried. Then a last attempt is started, if it is the oldest and its
# worker is empty, and only if there was none the others. Leases end a microsecond apart, in the order
# in which the tasks were due: that is how the order is read back.
RESERVE = f"""
    {BURY}
    UPDATE tasks SET {START}, available_at = NEW.available_at
        WHERE NEW.alone AND available_at <= ifnull((SELECT min(available_at) FROM {DUE_ROWS}), available_at)
        AND id = (SELECT id FROM {LAST_ROWS} AND available_at <= NEW.now {OLDEST_FIRST} LIMIT 1);
    UPDATE tasks SET {START}, available_at = NEW.available_at + oldest.n
        FROM (SELECT id AS key, row_number() OVER ({OLDEST_FIRST}) AS n FROM (
            SELECT id, available_at FROM {DUE_ROWS} AND available_at <= NEW.now
            {OLDEST_FIRST} LIMIT NEW.max_rows)) AS oldest
        WHERE tasks.id = oldest.key AND changes() = 0;
"""

RENEW = f"""
    UPDATE tasks SET available_at = NEW.available_at WHERE {IS_HELD};
    {NOTE_NOT_HELD}
"""

# A finished row keeps its claim, and so does one that waits to be retried: so an outcome that was recorded
# although its commit seemed to fail is told from one that came too late. No such row is held, by its status.
SUCCEED = f"""
    UPDATE tasks SET status = 'success', finished_at = NEW.now, result = NEW.result, error = NULL, traceback = NULL
        WHERE {IS_HELD};
    {NOTE_NOT_HELD}
"""

FAIL = f"""
    UPDATE tasks SET status = NEW.status, finished_at = NEW.now, error = NEW.error, traceback = NEW.traceback
        WHERE {IS_HELD};
    {NOTE_NOT_HELD}
"""

# The run has ended without harm to its worker. So one more is permitted, and the number of deaths that the
# task may still suffer, max_attempts - attempt, is what it was.
RETRY_LATER = f"""
    UPDATE tasks SET status = 'pending', available_at = NEW.available_at, max_attempts = max_attempts + 1,
        failures = failures + NEW.counts, snoozes = snoozes + 1 - NEW.counts,
        error = NEW.error, traceback = NEW.traceback
        WHERE {IS_HELD};
    {NOTE_NOT_HELD}
"""

# Before the record of the outcome, which ends the claim: recorded again, the outcome stores nothing. An id
# that is taken must not keep the outcomes of other tasks from being recorded.
STORE_THEN = f"""
    INSERT INTO tasks
        (task_id, name, format, payload, max_attempts, available_at, enqueued_at, queue, priority)
    SELECT NEW.task_id, NEW.name, NEW.format, NEW.payload, NEW.max_attempts, NEW.available_at, NEW.now,
        NEW.queue, NEW.priority
        WHERE EXISTS (SELECT 1 FROM tasks WHERE {IS_HELD})
        ON CONFLICT (task_id) DO NOTHING;
"""

RELEASE = f"""
    UPDATE tasks SET status = 'pending', claim = NULL, attempt = attempt - 1,
        available_at = min(enqueued_at, NEW.now), started_at = CASE attempt WHEN 1 THEN NULL ELSE started_at END
        WHERE {IS_HELD};
    {NOTE_NOT_HELD}
"""

PRUNE = f"""
    DELETE FROM tasks WHERE id IN (SELECT id FROM {OLD_ROWS} AND finished_at < NEW.finished_before LIMIT NEW.max_rows);
    INSERT INTO note SELECT 'pruned', changes(), NEW.call WHERE NEW.call IS NOT NULL;
"""

RETRY = f"""
    UPDATE tasks SET status = 'pending', attempt = 0, max_attempts = max(1, max_attempts - failures - snoozes),
        failures = 0, snoozes = 0, available_at = NEW.now, started_at = NULL, finished_at = NULL, claim = NULL,
        result = NULL, error = NULL, traceback = NULL
        WHERE task_id = NEW.task_id AND {CAN_RETRY.format(now="NEW.now")};
    {NOTE_UNCHANGED}
"""

CANCEL = f"""
    UPDATE tasks SET status = 'cancelled', finished_at = NEW.now, claim = NULL, error = NULL, traceback = NULL
        WHERE task_id = NEW.task_id AND {CAN_CANCEL.format(now="NEW.now")};
    {NOTE_UNCHANGED}
"""

OFTEN: dict[type[Change], str] = {
    Succeed: SUCCEED,
    StoreTask: STORE_TASK,
    Renew: RENEW,
    Reserve: RESERVE,
    Prune: PRUNE,
}
"""By the class of the record. The fields of outcomes come first, of which there are most: see ``_Layout``."""

SELDOM: dict[type[Change], str] = {
    Fail: FAIL,
    RetryLater: RETRY_LATER,
    StoreThen: STORE_THEN,
    Release: RELEASE,
    Retry: RETRY,
    Cancel: CANCEL,
}
"""Those whose trigger is made when such a change is made for the first time: each trigger of the view is
called for each row, if only to check its condition."""
