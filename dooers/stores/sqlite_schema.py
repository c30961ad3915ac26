"""The schema in a SQLite file: what it is, and if it is not what this code needs, make it so. The scripts themselves are `migrations/`.

Everything here is blocking: it is called in a thread.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from dooers.exceptions import StoreError
from dooers.stores.migrations import TABLES, Found, done, unreadable_times, upgrade_statements
from dooers.stores.sqlite_connection import tuned, use_wal

__all__ = ["look_into", "prepare", "prepare_file"]

log = logging.getLogger("dooers")

# Seconds to wait for another process that is migrating.
MIGRATING = 600.0
# KiB of memory a migration may take: with the usual 2 MB, an index of a million random ids is read from the disk over and over.
CACHE = 256 * 1024


def prepare_file(path: str, prefix: str, *, migrate: bool, patience: float = 10.0) -> str:
    """Make a file ready: it opens, it is in WAL, its schema is current. What was done, in a sentence."""
    with closing(sqlite3.connect(path, isolation_level=None, factory=tuned(patience))) as connection:
        use_wal(connection, patience)
        return prepare(connection, prefix, migrate=migrate)


def prepare(connection: sqlite3.Connection, prefix: str, *, migrate: bool) -> str:
    """Bring the schema up to date, or with `migrate` off raise StoreError where it is not. What was done, in a sentence."""
    found = _look(connection, prefix)
    if found.current:
        return done(found, {})
    found.check()
    if not migrate:
        raise found.outdated()
    connection.execute(f"PRAGMA busy_timeout={int(MIGRATING * 1000)}").fetchall()
    connection.execute(f"PRAGMA cache_size=-{CACHE}").fetchall()
    # IMMEDIATE takes the write lock before the look that counts: of ten processes starting at once one migrates, nine wait
    # and then find nothing to do.
    connection.execute("BEGIN IMMEDIATE")
    try:
        said = _upgrade(connection, prefix)
        connection.execute("COMMIT")
        return said
    except BaseException:
        with suppress(sqlite3.Error):  # where the error has ended the transaction already
            connection.execute("ROLLBACK")
        raise


def look_into(path: str, prefix: str) -> Found:
    """What a file holds. Nothing is made of one that is not there, and nothing changed in one that is."""
    if not Path(path).exists():
        return Found(prefix)
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        found = _look(connection, prefix)
        _check(connection, found)
    return found


def _look(connection: sqlite3.Connection, prefix: str) -> Found:
    # The version last: what somebody makes or adopts meanwhile has one, and so is not taken for a stranger's.
    columns = {
        table: {
            str(row[0]) for row in connection.execute("SELECT name FROM pragma_table_info(?)", (f"{prefix}{table}",))
        }
        for table in TABLES
    }
    row, version = None, f"{prefix}schema_version"
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (version,)).fetchone():
        row = connection.execute(f'SELECT version_num FROM "{version}"').fetchone()
    there = {table: names for table, names in columns.items() if names}
    return Found(prefix, None if row is None else str(row[0]), there)


def _check(connection: sqlite3.Connection, found: Found) -> None:
    """Raise StoreError for what cannot be migrated."""
    found.check()
    if not found.adopts:
        return
    for place, row_id, column, value in connection.execute(unreadable_times(found.prefix)):
        raise StoreError(
            f"the tables of the predecessor cannot be adopted: expected a time such as 2026-01-31T12:30:00+00:00 in "
            f"{place}.{column} of {row_id!r}, got {value!r}. Nothing was touched; mend the row, or delete it"
        )


def _upgrade(connection: sqlite3.Connection, prefix: str) -> str:
    found = _look(connection, prefix)
    _check(connection, found)
    if found.current:
        return done(found, {})
    for statement in upgrade_statements("sqlite", found):
        connection.execute(statement).close()
    counted = {}
    if found.adopts:
        for table in TABLES:
            counted[table] = connection.execute(f'SELECT count(*) FROM "{prefix}{table}"').fetchone()[0]
    said = done(found, counted)
    log.info("%s", said)
    return said
