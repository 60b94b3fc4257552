"""Reports of how far tasks have come: what a file is given for them, and what is read of them."""

import sqlite3

from sitq.backends.progressing import Progress
from sitq.backends.sqlite.abilities import Ability, abilities
from sitq.backends.sqlite.changes import Change, NoteProgress
from sitq.backends.sqlite.conditions import IS_HELD
from sitq.errors import BackendCorruptError
from sitq.models import from_micros

# A table, and no columns of tasks: a change of a row would write its payload anew. The claim tells of which run a
# report is, so that the next attempt does not begin where the one before it ended.
ABILITY = Ability(
    "progress",
    (
        "CREATE TABLE progress (id INTEGER PRIMARY KEY, claim INTEGER NOT NULL, at INTEGER NOT NULL, "
        "done REAL NOT NULL, total REAL, note TEXT NOT NULL)",
        "CREATE TRIGGER progress_deleted AFTER DELETE ON tasks BEGIN DELETE FROM progress WHERE id = OLD.id; END",
    ),
)

OPERATIONS: dict[type[Change], str] = {
    NoteProgress: f"""
        INSERT OR REPLACE INTO progress (id, claim, at, done, total, note)
        SELECT NEW.id, NEW.claim, NEW.now, NEW.done, NEW.total, NEW.note
            WHERE EXISTS (SELECT 1 FROM tasks WHERE {IS_HELD});
    """,
}

# A call that replaces one that is to be tried again keeps the claim of that one's run, and has no attempt yet.
_READ = "SELECT done, total, note, at FROM tasks JOIN progress USING (id, claim) WHERE task_id = ? AND attempt > 0"


def read(sqlite: sqlite3.Connection, path: str, task_id: str) -> Progress | None:
    """Returns the last report of the task's latest run; ``None`` if there is none.

    Raises:
        BackendCorruptError: The row holds what sitq did not write.
    """
    if ABILITY.name not in abilities(sqlite):
        return None
    try:
        row = sqlite.execute(_READ, (task_id,)).fetchone()
    except UnicodeEncodeError:  # a lone surrogate: no task has such an id
        return None
    if row is None:
        return None
    try:
        done, total, note, at = row
        return Progress(float(done), None if total is None else float(total), str(note), from_micros(at))
    except (TypeError, ValueError, OverflowError) as error:
        raise BackendCorruptError(f"{path}: the progress of task {task_id} holds what sitq did not write") from error
