"""Tasks of which one is enough: what the file gets for them, and the SQL that decides which one stands.

Neither index is UNIQUE. A key is nobody's property, it is looked up when somebody asks: so no change of a
task's state can fail for it. There is one writer at a time, which makes looking and storing one step.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from sitq.backends.sqlite.abilities import Ability, abilities
from sitq.backends.sqlite.ability_changes import StoreUnique, StoreUniqueThen
from sitq.backends.sqlite.changes import Change
from sitq.backends.sqlite.conditions import IS_HELD
from sitq.backends.sqlite.lanes import lane_of
from sitq.errors import DuplicateTaskError
from sitq.models import NewTask, Outcome

REPLACED_MICROS = 3600 * 1_000_000
"""How long it is known at least which task a call has replaced: a repeat comes soon after its first try."""

ABILITY = Ability(
    "uniques",
    (
        "ALTER TABLE tasks ADD COLUMN unique_key TEXT",
        "CREATE INDEX tasks_unique_live ON tasks (unique_key, status) "
        "WHERE unique_key IS NOT NULL AND finished_at IS NULL",
        "CREATE INDEX tasks_unique ON tasks (unique_key, id) WHERE unique_key IS NOT NULL",
        "CREATE TABLE replaced (call TEXT NOT NULL UNIQUE, task_id TEXT NOT NULL, at INTEGER NOT NULL)",
    ),
)

_OF_KEY = "unique_key IS NOT NULL AND unique_key = NEW.unique_key"
_LIVE = f"tasks INDEXED BY tasks_unique_live WHERE finished_at IS NULL AND {_OF_KEY}"
_LATEST = f"tasks INDEXED BY tasks_unique WHERE {_OF_KEY} ORDER BY id DESC LIMIT 1"

# The conditions in the order in which they matter: what waits can be replaced, so it is found before what runs.
_STANDING = f"""coalesce(
    (SELECT id FROM {_LIVE} AND status = 'pending' ORDER BY id LIMIT 1),
    (SELECT id FROM {_LIVE} AND status = 'in_progress' AND {{counts}} LIMIT 1),
    (SELECT id FROM (SELECT id, enqueued_at FROM {_LATEST}) WHERE enqueued_at > NEW.now - NEW.period))"""

# The call was made before: its task is there, or has become that of the task that it has replaced.
_REPEATED = """coalesce(
    (SELECT id FROM tasks WHERE task_id = NEW.task_id AND payload = NEW.payload AND unique_key IS NEW.unique_key),
    (SELECT id FROM tasks
        WHERE task_id = (SELECT task_id FROM replaced WHERE call = NEW.task_id) AND unique_key IS NEW.unique_key))"""

_STORE = """
    INSERT INTO tasks (task_id, name, format, payload, max_attempts, available_at, queue, priority, unique_key,
            enqueued_at)
        SELECT NEW.task_id, NEW.name, NEW.format, NEW.payload, NEW.max_attempts, NEW.available_at, NEW.queue,
            NEW.priority, NEW.unique_key, NEW.now"""

# A claim that made it pending again is kept: by it, that outcome is recognised. Who waits in line with a task that
# is due keeps the place, or one that is replaced all the time would never be run.
_REPLACE = """
    UPDATE tasks SET payload = NEW.payload, name = NEW.name, format = NEW.format, max_attempts = NEW.max_attempts,
        available_at = CASE WHEN NEW.available_at > NEW.now THEN NEW.available_at ELSE min(available_at, NEW.now) END,
        queue = NEW.queue, priority = NEW.priority, attempt = 0, failures = 0, snoozes = 0, started_at = NULL,
        error = NULL, traceback = NULL"""

# First that the task has lost its own call, then which one it has now; neither changes what is known already. As many
# old ones go as new ones come.
_NOTE_REPLACED = f"""
    INSERT OR IGNORE INTO replaced
        SELECT task_id, task_id, NEW.now FROM tasks WHERE changes() = 1 AND id = {{standing}}
        UNION ALL SELECT NEW.task_id, task_id, NEW.now FROM tasks WHERE changes() = 1 AND id = {{standing}};
    DELETE FROM replaced WHERE changes() > 0 AND at < NEW.now - {REPLACED_MICROS}
        AND rowid IN (SELECT rowid FROM replaced ORDER BY rowid LIMIT 2);
"""

STANDING = _STANDING.format(counts="NEW.while_ = 'unfinished'")

# An id that is taken by another call is stored nevertheless, and so refused by the table.
STORE_UNIQUE = f"""
    {_STORE} WHERE CASE WHEN {_REPEATED} NOT NULL THEN 0
        WHEN EXISTS (SELECT 1 FROM tasks WHERE task_id = NEW.task_id) THEN 1
        ELSE {STANDING} IS NULL END;
    INSERT INTO note SELECT 'stands', task_id, NEW.call FROM tasks
        WHERE changes() = 0 AND id = coalesce({_REPEATED}, {STANDING});
    SELECT RAISE(ABORT, 'another task stands for its key')
        WHERE changes() = 1 AND NEW.otherwise = 'raise' AND {_REPEATED} IS NULL;
    {_REPLACE} WHERE changes() = 1 AND NEW.otherwise = 'replace' AND {_REPEATED} IS NULL
        AND status = 'pending' AND id = {STANDING};
    {_NOTE_REPLACED.format(standing=STANDING)}
"""

# As `StoreThen`: before the record of the outcome, and an id that is taken is no error. The task whose outcome it
# is runs still; it counts as what it is about to be.
_STANDING_THEN = _STANDING.format(counts="iif(id = NEW.id, NEW.again, NEW.while_ = 'unfinished')")
STORE_UNIQUE_THEN = f"""
    {_STORE} WHERE EXISTS (SELECT 1 FROM tasks WHERE {IS_HELD}) AND {_REPEATED} IS NULL AND {_STANDING_THEN} IS NULL
        ON CONFLICT (task_id) DO NOTHING;
    {_REPLACE} WHERE changes() = 0 AND NEW.otherwise = 'replace' AND status = 'pending' AND id = {_STANDING_THEN}
        AND EXISTS (SELECT 1 FROM tasks WHERE {IS_HELD})
        AND NOT EXISTS (SELECT 1 FROM tasks WHERE task_id = NEW.task_id);
    {_NOTE_REPLACED.format(standing=_STANDING_THEN)}
"""

OPERATIONS: dict[type[Change], str] = {StoreUnique: STORE_UNIQUE, StoreUniqueThen: STORE_UNIQUE_THEN}
"""What the triggers do, by the class of the record: see ``statements``."""

_FIND = f"""
    SELECT (SELECT task_id FROM tasks WHERE id = {STANDING}) FROM (
        SELECT ? AS unique_key, ? AS while_, ? AS period, ? AS now, ? AS task_id, ? AS payload) AS NEW
    WHERE {_REPEATED} IS NULL
"""


def is_unique(task: NewTask) -> bool:
    """Whether there is a key of which ``task`` is one."""
    return task.extras is not None and task.extras.unique is not None


def of_task(task: NewTask) -> tuple[str | None, str | None, int | None, str | None]:
    """Returns the key, what keeps the task out, for how long, and what becomes of it then."""
    unique = None if task.extras is None else task.extras.unique
    if unique is None:
        return None, None, None, None
    period = None if unique.period is None else int(unique.period.total_seconds() * 1_000_000)
    return unique.key, unique.while_, period, unique.otherwise


def store(task: NewTask, due: int, call: int) -> StoreUnique:
    """Returns the change that stores a task, unless another one stands for it.

    Args:
        task: It may be a plain one.
        due: When it becomes due, in microseconds.
        call: A token by which the note is found of what stands.
    """
    queue, priority = lane_of(task.extras) or (None, None)
    id_, payload, name, format_, _, max_attempts, *_ = task
    return StoreUnique(id_, name, format_, payload, max_attempts, due, queue, priority, *of_task(task), call)


def store_then(outcome: Outcome, task: NewTask, due: int) -> StoreUniqueThen:
    """Returns the change that does the same if the task is held of which ``outcome`` is."""
    fields = store(task, due, 0)[:-1]
    return StoreUniqueThen(outcome.task.key, outcome.task.claim, outcome.retry_in is not None, *fields)


def check_periods(tasks: Iterable[NewTask], kept: int | None) -> None:
    """Refuses a period in which the task that it counts from may be deleted.

    Args:
        tasks: What is to be stored.
        kept: How long finished tasks are kept, in microseconds; ``None`` for ever.

    Raises:
        ValueError: A period is longer.
    """
    if kept is None:
        return
    for task in tasks:
        period = of_task(task)[2]
        if period is not None and period > kept:
            raise ValueError(
                f"the period of the unique task {task.name}, {period / 1_000_000:g} seconds, is longer than finished "
                f"tasks are kept, {kept / 1_000_000:g} seconds: choose a shorter one, or a longer retention"
            )


def find_duplicate(connection: sqlite3.Connection, now: int, tasks: Sequence[NewTask]) -> DuplicateTaskError | None:
    """Returns the error of the first of some tasks that is to be refused, and would be if they were stored now."""
    if ABILITY.name not in abilities(connection):
        return None
    before: dict[str, str] = {}  # those of this call that would be stored, by their keys
    for task in tasks:
        key, while_, period, otherwise = of_task(task)
        if key is None:
            continue
        found = connection.execute(_FIND, (key, while_, period, now, task.task_id, task.payload)).fetchone()
        if found is None:
            continue  # it is stored already
        stands = found[0] or before.get(key)
        if stands and otherwise == "raise":
            return DuplicateTaskError(stands, key)
        if not stands:
            before[key] = task.task_id
    return None
