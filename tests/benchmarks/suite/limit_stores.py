"""The least that keeps a conversation, on both databases: rows are written and durable when `write` returns. Not a Store: nothing is read,
checked, numbered or recognised. How far a hand-written program could go, which is what the worker is held against.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import asyncpg

__all__ = ["Keeper", "Nowhere", "Row", "keeper_of"]

# The table, and its values.
Row: TypeAlias = tuple[str, tuple[Any, ...]]

# What the rows of each table are, in PostgreSQL's words; SQLite takes them too.
TABLES = {
    "thread": "id text PRIMARY KEY, organization text, person text, title text, last_at text",
    "event": "id text PRIMARY KEY, thread text, run text, actor text, content text, at text",
    "run": "id text PRIMARY KEY, thread text, status text, at text",
}
INDEXES = (
    "CREATE INDEX recent ON thread (organization, last_at)",
    "CREATE INDEX said ON event (thread, at)",
    "CREATE INDEX done ON run (thread)",
)
# A row that is there is written over: a thread gets its title, a run its end.
OVER = {"thread": ("title", "last_at"), "event": (), "run": ("status",)}


class Keeper(Protocol):
    """Where rows are kept. `statements`: how many it has run to write them."""

    statements: int

    async def open(self) -> None: ...
    async def write(self, rows: list[Row]) -> None: ...
    async def close(self) -> None: ...


def keeper_of(options: Mapping[str, Any]) -> Keeper:
    """The one of a database that is told in words of WorkerConfig."""
    kinds: dict[str, type[SqliteKeeper] | type[PostgresKeeper]] = {"sqlite": SqliteKeeper, "postgres": PostgresKeeper}
    return kinds[options["database_type"]](options) if options.get("database_type") in kinds else Nowhere()


def _put(table: str, values: str) -> str:
    over = ", ".join(f"{name} = excluded.{name}" for name in OVER[table])
    return f"INSERT INTO {table} {values}" + (f" ON CONFLICT (id) DO UPDATE SET {over}" if over else "")


class Nowhere:
    """Keeps nothing."""

    statements = 0

    async def open(self) -> None: ...
    async def write(self, rows: list[Row]) -> None: ...
    async def close(self) -> None: ...


class SqliteKeeper:
    """One thread that writes: whatever waits goes into one transaction, WAL and synchronous=FULL."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._path, self.statements = options["database_name"], 0
        self._waiting: queue.SimpleQueue[tuple[list[Row], asyncio.Future[None]] | None] = queue.SimpleQueue()

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        await self.write([])

    async def close(self) -> None:
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    async def write(self, rows: list[Row]) -> None:
        written = self._loop.create_future()
        self._waiting.put((rows, written))
        await written

    def _work(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        for sql in (*(f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()), *INDEXES):
            connection.execute(sql)
        put = {name: _put(name, f"VALUES ({'?, ' * columns.count(',')}?)") for name, columns in TABLES.items()}
        while (first := self._waiting.get()) is not None:
            group = [first]
            while not self._waiting.empty():
                if (another := self._waiting.get()) is None:
                    self._waiting.put(None)
                    break
                group.append(another)
            connection.execute("BEGIN IMMEDIATE")
            for rows, _ in group:
                for table, values in rows:
                    connection.execute(put[table], values)
            connection.execute("COMMIT")
            self.statements += 2 + sum(len(rows) for rows, _ in group)
            self._loop.call_soon_threadsafe(_done, [written for _, written in group])
        connection.close()


class PostgresKeeper:
    """One connection, one statement for whatever waits: rows travel as arrays, a column each."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._waiting: list[tuple[list[Row], asyncio.Future[None]]] = []
        self._news, self.statements = asyncio.Event(), 0

    async def open(self) -> None:
        one = self._options
        self._connection = await asyncpg.connect(
            host=one["database_host"],
            port=one["database_port"],
            user=one["database_user"],
            password=one["database_password"] or None,
            database=one["database_name"],
            ssl=False,
        )
        tables = [f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()]
        await self._connection.execute(";".join((*tables, *INDEXES)))
        puts, position = [], 0
        for name, columns in TABLES.items():
            numbers = range(position + 1, position + columns.count(",") + 2)
            position = numbers[-1]
            arrays = ", ".join(f"${number}::text[]" for number in numbers)
            puts.append(_put(name, f"SELECT * FROM unnest({arrays})"))
        parts = ", ".join(f"p{number} AS ({put})" for number, put in enumerate(puts[:-1]))
        self._statement = await self._connection.prepare(f"WITH {parts} {puts[-1]}")
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._connection.close()

    async def write(self, rows: list[Row]) -> None:
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, written))
        self._news.set()
        await written

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            group, self._waiting = self._waiting, []
            # The last of what a statement says of one row counts: it may not touch a row twice.
            rows = {(table, values[0]): values for one, _ in group for table, values in one}
            columns: list[list[Any]] = []
            for name, told in TABLES.items():
                mine = [values for (table, _), values in rows.items() if table == name]
                columns += [list(column) for column in zip(*mine, strict=True)] or [
                    [] for _ in range(told.count(",") + 1)
                ]
            await self._statement.fetch(*columns)
            self.statements += 1
            _done([written for _, written in group])


def _done(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
