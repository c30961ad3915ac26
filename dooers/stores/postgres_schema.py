"""The schema in PostgreSQL: what it is, and if it is not what this code needs, make it so. The scripts themselves are `migrations/`.

They are run as the text that Alembic makes of them, on a connection of the pool: one transaction, under a lock that the ten
processes which start at once wait for. So no second driver is needed, and what is run is what can be read beforehand.
"""

from __future__ import annotations

import logging

import asyncpg

from dooers.stores.migrations import TABLES, Found, done, upgrade_statements
from dooers.stores.postgres_connection import Line
from dooers.stores.rows import Row
from dooers.stores.sql import Statement
from dooers.stores.sql_postgres import PostgresStatements

__all__ = ["look_into", "prepare"]

log = logging.getLogger("dooers")

# Seconds that a step of a migration may take, and the wait for another process that does it.
MIGRATING = 3600.0


async def prepare(line: Line, prefix: str, *, migrate: bool) -> str:
    """Bring the schema up to date, or with `migrate` off raise StoreError where it is not. What was done, in a sentence."""
    sql = PostgresStatements(prefix)
    # Of nearly every start this is all: one statement.
    try:
        found = Found(prefix, _version(await line.fetch(sql.version_if_there())))
    except asyncpg.UndefinedTableError:
        found = Found(prefix)
    if found.current:
        return done(found, {})
    if not migrate:
        found = await look_into(line, prefix)
        if found.current:
            return done(found, {})
        raise found.outdated()
    raw = await line.raw()
    async with raw.transaction():
        await line.fetch(sql.take_your_time())
        await line.fetch(sql.lock_schema(), timeout=MIGRATING)
        found, counted = await look_into(line, prefix), {}
        if not found.current:
            await raw.execute("\n".join(upgrade_statements("postgresql", found)), timeout=MIGRATING)
        if found.adopts:
            counted = dict((await line.fetch(_count_rows(prefix), timeout=MIGRATING))[0])
    said = done(found, counted)
    if not found.current:
        log.info("%s", said)
    return said


async def look_into(line: Line, prefix: str) -> Found:
    """What the database holds. StoreError for what no migration may touch."""
    sql = PostgresStatements(prefix)
    # The version last: what somebody makes or adopts meanwhile has one, and so is not taken for a stranger's.
    columns: dict[str, set[str]] = {}
    for row in await line.fetch(_columns(prefix)):
        columns.setdefault(row["name"], set()).add(row["attname"])
    there = await line.fetch(sql.version_is_there())
    version = _version(await line.fetch(sql.version_if_there())) if there[0]["there"] else None
    found = Found(prefix, version, columns)
    found.check()
    return found


def _version(rows: list[Row]) -> str | None:
    return str(rows[0]["version_num"]) if rows else None


def _columns(prefix: str) -> Statement:
    return (
        "SELECT t.name, a.attname FROM unnest(CAST(:names AS TEXT[]), CAST(:tables AS TEXT[])) AS t (name, quoted) "
        "JOIN pg_attribute AS a ON a.attrelid = to_regclass(t.quoted) AND a.attnum > 0 AND NOT a.attisdropped"
    ), {"names": list(TABLES), "tables": [f'"{prefix}{table}"' for table in TABLES]}


def _count_rows(prefix: str) -> Statement:
    return "SELECT " + ", ".join(f'(SELECT count(*) FROM "{prefix}{table}") AS "{table}"' for table in TABLES), {}
