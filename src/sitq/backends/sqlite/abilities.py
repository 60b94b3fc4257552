"""What a file has beside its schema, because somebody has used it: columns, indexes, tables, triggers.

An ability is made at its first use in a file, and not before: idle indexes cost every task (eight of them
a fifth of SQLite's time), and a migration for each ability would cost those who never use it. The table
``features`` says which of them a file has. What is made is never taken away again.
"""

import sqlite3
from typing import NamedTuple

from sitq.backends.sqlite.patience import PatientConnection

_MAKE_FEATURES = "CREATE TABLE IF NOT EXISTS features (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"

SCHEMA_SIZE = "(SELECT count(*) FROM sqlite_schema)"
"""How many tables, indexes and triggers the file has: each ability adds some, and none is ever taken away. It can be
a column of any query, which ``PRAGMA schema_version`` cannot."""


class Ability(NamedTuple):
    """Something that a file can be given.

    Attributes:
        name: Its name in the table ``features``.
        statements: The SQL that makes it, carried out in one transaction. A running process of an older
            sitq has to be able to go on with the file, or its statements have to fail loudly.
    """

    name: str
    statements: tuple[str, ...]


def abilities(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the names of the abilities that the file has, whoever has made them."""
    notice(connection, connection.execute(f"SELECT {SCHEMA_SIZE}").fetchone()[0])
    return known_abilities(connection)


def known_abilities(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the names of those that the file had when :func:`notice` was called last; without a statement.

    For what every reservation asks: a statement more, short as it is, has to get the interpreter lock back from
    the event loop. With two of them a drain with 100 slots took a fifth longer.
    """
    return connection.abilities[1] if isinstance(connection, PatientConnection) else _read(connection)


def notice(connection: sqlite3.Connection, schema_size: int) -> None:
    """Takes what :data:`SCHEMA_SIZE` was in a query: if it is another one, what the file has is read anew."""
    if isinstance(connection, PatientConnection) and connection.abilities[0] != schema_size:
        connection.abilities = schema_size, _read(connection)


def make(connection: sqlite3.Connection, ability: Ability) -> None:
    """Gives the file an ability, in a transaction of its own, unless it has it."""
    if ability.name in known_abilities(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if ability.name not in _read(connection):  # again under the lock: another process may have been faster
            connection.execute(_MAKE_FEATURES)
            for statement in ability.statements:
                connection.execute(statement)
            connection.execute("INSERT INTO features VALUES (?, 1)", (ability.name,))
        connection.execute("COMMIT")
        abilities(connection)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _read(connection: sqlite3.Connection) -> frozenset[str]:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'features'").fetchone():
        return frozenset()
    return frozenset(name for (name,) in connection.execute("SELECT name FROM features"))
