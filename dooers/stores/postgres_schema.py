"""The schema in PostgreSQL: is it the version this code needs, and if not, make it so. The scripts themselves are `migrations/`.

They are run as the text that Alembic makes of them, on a connection of the pool: one transaction, under a lock that the ten
processes which start at once wait for. So no second driver is needed, and what is run is what can be read beforehand.
"""

from __future__ import annotations

import asyncpg

from dooers.exceptions import StoreError
from dooers.stores.migrations import HEAD, outdated, upgrade_script
from dooers.stores.postgres_connection import Line
from dooers.stores.sql_postgres import PostgresStatements

__all__ = ["prepare"]

# Seconds that a step of a migration may take, and the wait for another process that does it.
MIGRATING = 3600.0


async def prepare(line: Line, prefix: str, *, migrate: bool) -> None:
    """Bring the schema up to date, or with `migrate` off raise StoreError where it is not."""
    sql = PostgresStatements(prefix)
    try:
        found = _version(await line.fetch(sql.version_if_there()))
    except asyncpg.UndefinedTableError:
        found = None
    if found == HEAD:
        return
    if not migrate:
        raise StoreError(outdated(found))
    raw = await line.raw()
    async with raw.transaction():
        await line.fetch(sql.take_your_time())
        await line.fetch(sql.lock_schema(), timeout=MIGRATING)
        there = await line.fetch(sql.version_is_there())
        found = _version(await line.fetch(sql.version_if_there())) if there[0]["there"] else None
        if found != HEAD:
            await raw.execute(upgrade_script(prefix, found), timeout=MIGRATING)


def _version(rows: list[asyncpg.Record]) -> str | None:
    return str(rows[0]["version_num"]) if rows else None
