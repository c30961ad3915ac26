"""Databases as others left them: made by the predecessor, or by an earlier version of this package. On a SQLite file and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from datetime import datetime
from typing import Any, TypeAlias

import pytest
from attrs import evolve, frozen
from services.postgres import Address

from dooers import WorkerConfig
from dooers.stores import Store, open_store
from dooers.stores.migrations import Dialect

__all__ = ["COLUMNS", "Database", "PostgresDatabase", "Rows", "SqliteDatabase", "empty", "opened", "predecessor"]

COLUMNS = {
    "threads": "id worker_id organization_id workspace_id user_id title created_at updated_at last_event_at",
    "events": "id thread_id run_id type actor author user_id user_name user_email content data created_at",
    "runs": "id thread_id agent_id status started_at ended_at error",
    "settings": "worker_id values created_at updated_at",
}
JSON = {"content", "data", "values"}
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@frozen
class SqliteDatabase:
    """A file, beside any store."""

    config: WorkerConfig
    dialect: Dialect = "sqlite"

    async def execute(self, *statements: str) -> None:
        """Run these, in one transaction."""

        def work() -> None:
            with closing(sqlite3.connect(self.config.database_name)) as connection:
                for statement in statements:
                    connection.execute(statement)
                connection.commit()

        await asyncio.to_thread(work)

    async def fetch(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with closing(sqlite3.connect(self.config.database_name)) as connection:
            return connection.execute(statement).fetchall()

    async def insert(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows into a table, as they are."""

        def work() -> None:
            with closing(sqlite3.connect(self.config.database_name)) as connection:
                for row in rows:
                    names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
                    connection.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', tuple(row.values()))
                connection.commit()

        await asyncio.to_thread(work)

    async def catalog(self) -> list[tuple[Any, ...]]:
        """Tables, columns, types, constraints, indexes: everything there is but rows."""
        rows = await self.fetch("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
        return [(*names, " ".join((sql or "").split())) for *names, sql in rows]

    def time(self, at: datetime | str | None) -> Any:
        """A time as the predecessor's driver would be given it."""
        return at.isoformat() if isinstance(at, datetime) else at

    def store(self, **options: Any) -> Store:
        """A store on it, not opened."""
        return open_store(evolve(self.config, **options))


@frozen
class PostgresDatabase:
    """A database of a server, beside any store."""

    config: WorkerConfig
    address: Address
    dialect: Dialect = "postgresql"

    async def execute(self, *statements: str) -> None:
        """Run these, in one transaction."""
        async with self.address.session(self.config.database_name) as session:
            await session.execute(";".join(statements))

    async def fetch(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        async with self.address.session(self.config.database_name) as session:
            return [tuple(row) for row in await session.fetch(statement)]

    async def insert(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows into a table, as they are."""
        async with self.address.session(self.config.database_name) as session:
            for row in rows:
                names, marks = (
                    ", ".join(f'"{name}"' for name in row),
                    ", ".join(f"${n}" for n in range(1, len(row) + 1)),
                )
                await session.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', *row.values())

    async def catalog(self) -> list[tuple[Any, ...]]:
        """Tables, columns, types, constraints, indexes: everything there is but rows."""
        return [
            row
            for query in (
                "SELECT c.relkind::text, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
                "o.collname, pg_get_expr(d.adbin, d.adrelid) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
                "LEFT JOIN pg_collation o ON o.oid = a.attcollation "
                "LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum "
                "WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 2, 3",
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint "
                "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
                "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
                "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
                "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1",
                "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
            )
            for row in await self.fetch(query)
        ]

    def time(self, at: datetime | str | None) -> Any:
        """A time as the predecessor's driver would be given it."""
        return datetime.fromisoformat(at) if isinstance(at, str) else at

    def store(self, **options: Any) -> Store:
        """A store on it, not opened."""
        return open_store(evolve(self.config, **options))


Database: TypeAlias = SqliteDatabase | PostgresDatabase


@asynccontextmanager
async def empty(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """An empty database that nobody else has, of the kind that the fixture is asked for."""
    if request.param == "sqlite":
        yield SqliteDatabase(request.getfixturevalue("worker_config"))
    else:
        address: Address = request.getfixturevalue("postgres")
        async with address.database() as name:
            yield PostgresDatabase(address.config(name), address)


@asynccontextmanager
async def opened(database: Database, **options: Any) -> AsyncIterator[Store]:
    """A store on a database."""
    store = database.store(**options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def tables(dialect: Dialect, prefix: str, related: bool) -> list[str]:
    """The predecessor's tables, with keys and indexes such as it may have had, and with names that ours have too."""

    def kind(name: str) -> str:
        if dialect == "sqlite":
            return "TEXT"
        return "JSONB" if name in JSON else "TIMESTAMPTZ" if name.endswith("_at") else "TEXT"

    made = []
    for table, columns in COLUMNS.items():
        names = columns.split()
        lines = [f'"{name}" {kind(name)}{" PRIMARY KEY NOT NULL" if name == names[0] else ""}' for name in names]
        if table in ("events", "runs") and related:
            lines.append(f'FOREIGN KEY (thread_id) REFERENCES "{prefix}threads" (id)')
        made.append(f'CREATE TABLE "{prefix}{table}" ({", ".join(lines)})')
    made.append(f'CREATE INDEX "{prefix}events_thread_id_idx" ON "{prefix}events" (thread_id, created_at)')
    if dialect == "postgresql":
        made.append(f'CREATE INDEX "{prefix}events_order" ON "{prefix}events" (created_at)')
    return made


async def predecessor(database: Database, rows: Rows, *, related: bool = False) -> None:
    """Make a database as the predecessor leaves it, with these rows; columns that a row does not name are NULL. `related`: with
    foreign keys."""
    prefix = database.config.database_table_prefix
    await database.execute(*tables(database.dialect, prefix, related))
    for table, given in rows.items():
        ready = [
            {name: database.time(value) if name.endswith("_at") else value for name, value in row.items()}
            for row in given
        ]
        await database.insert(f"{prefix}{table}", ready)
