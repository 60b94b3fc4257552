"""Failed tasks that are kept for another time than the rest: what the file gets for that, and the SQL.

One index more, by which a failed task is never read to find one that is not, or the other way round. The one that is
there, over all finished tasks, stays: statements of processes that have the file open name it, and SQLite
would refuse them without it.
"""

import sqlite3

from sitq.backends.sqlite.abilities import Ability, abilities
from sitq.backends.sqlite.ability_changes import PruneApart
from sitq.backends.sqlite.changes import Change

# By whether they failed, and not by their status: so rows with a status that sitq does not write go with the rest.
ABILITY = Ability(
    "failed_rows",
    ("CREATE INDEX tasks_finished_apart ON tasks ((status = 'failed'), finished_at) WHERE finished_at IS NOT NULL",),
)

_ROWS = "tasks INDEXED BY tasks_finished_apart WHERE finished_at IS NOT NULL AND (status = 'failed')"

PRUNE_APART = f"""
    DELETE FROM tasks WHERE id IN
        (SELECT id FROM {_ROWS} = 0 AND finished_at < NEW.finished_before LIMIT NEW.max_rows);
    DELETE FROM tasks WHERE id IN
        (SELECT id FROM {_ROWS} = 1 AND finished_at < NEW.failed_before LIMIT NEW.max_rows - changes());
"""

OPERATIONS: dict[type[Change], str] = {PruneApart: PRUNE_APART}
"""What the trigger does, by the class of the record: see ``statements``."""

_IS_PRUNABLE = " UNION ALL ".join(
    f"SELECT 1 FROM (SELECT 1 FROM {_ROWS} = {failed} AND finished_at < ?{failed + 1} LIMIT 1)" for failed in (0, 1)
)


def is_prunable(connection: sqlite3.Connection, finished_before: int | None, failed_before: int | None) -> bool:
    """Whether there is anything to prune; also as long as the file has no index by which that can be seen."""
    if ABILITY.name not in abilities(connection):
        return True
    return connection.execute(_IS_PRUNABLE, (finished_before, failed_before)).fetchone() is not None
