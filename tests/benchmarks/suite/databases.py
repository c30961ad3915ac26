"""A new, empty database for every run, and large ones that are filled once: SQLite files, and PostgreSQL on a server of our own that is as
durable as it comes. Not the servers of the tests, which do not flush.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import Factory, define, frozen

sys.path.append(str(Path(__file__).parents[2] / "stores"))

from plenty import POSTGRES, SQLITE, Plenty
from services.postgres import Address, OwnPostgres

from dooers import WorkerConfig, WorkerServer

__all__ = ["Database", "Databases"]

# What `OwnPostgres` switches off, as nobody waits for it there.
DURABLE = "fsync = on\nfull_page_writes = on\n"


@frozen
class Database:
    """One database: its kind, what WorkerConfig is told of it, and the process that serves it."""

    kind: str
    options: dict[str, Any]
    pid: int | None = None

    async def count(self, sql: str) -> int:
        """The one number that a query gives."""
        one = self.options
        if self.kind == "sqlite":
            with closing(sqlite3.connect(one["database_name"])) as connection:
                return int(connection.execute(sql).fetchone()[0])
        address = Address(one["database_host"], one["database_port"], one["database_user"], one["database_password"])
        async with address.session(one["database_name"]) as session:
            return int(await session.fetchval(sql))


@define(eq=False)
class Databases:
    """Where databases come from."""

    home: Path
    address: Address
    pid: int | None
    _stack: AsyncExitStack
    _filled: dict[tuple[str, int], Database] = Factory(dict)
    _files: int = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, where: str | Address | None = None) -> AsyncIterator[Databases]:
        """`where` is that of a PostgreSQL server on this machine; without one there is a server of our own for so long."""
        async with AsyncExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dooers-suite-")))
            if where is None:
                server = OwnPostgres()
                stack.callback(server.remove)
                with (server.data / "postgresql.conf").open("a") as conf:
                    conf.write(DURABLE)
                server.start()
                address = server.address
            elif isinstance(where, Address):
                address = where
            else:
                parts = urlsplit(where)
                user, password = unquote(parts.username or "postgres"), unquote(parts.password or "")
                address = Address(parts.hostname or "localhost", parts.port or 5432, user, password)
            async with address.session() as session:
                pid = int((await session.fetchval("SELECT pg_read_file('postmaster.pid')")).split()[0])
            inner = await stack.enter_async_context(AsyncExitStack())  # its databases go before the server does
            yield cls(home, address, pid, inner)

    @asynccontextmanager
    async def new(self, kind: str) -> AsyncIterator[Database]:
        """An empty one, gone afterwards."""
        if kind == "sqlite":
            self._files += 1
            path = self.home / f"{self._files}.db"
            yield Database(kind, {"database_type": "sqlite", "database_name": str(path)})
            for left in self.home.glob(f"{path.name}*"):
                left.unlink()
        elif kind == "postgres":
            async with self.address.database() as name:
                one = self.address
                where = {"database_host": one.host, "database_port": one.port, "database_user": one.user}
                options = {"database_type": kind, **where, "database_password": one.password, "database_name": name}
                yield Database(kind, options, self.pid)
        else:
            yield Database("memory", {"database_type": "memory"})

    async def filled(self, kind: str, events: int) -> Database:
        """One with so many events in all, three of five of them in one thread; the same for whoever asks."""
        if (kind, events) not in self._filled:
            database = await self._stack.enter_async_context(self.new(kind))
            worker = WorkerServer(WorkerConfig(**database.options))
            await worker.ensure_initialized()
            await worker.close()
            plenty = Plenty(
                SQLITE if kind == "sqlite" else POSTGRES, threads=max(60, events // 5), events=events * 3 // 5
            )
            await self._fill(database, plenty)
            self._filled[kind, events] = database
        return self._filled[kind, events]

    async def _fill(self, database: Database, plenty: Plenty) -> None:
        if database.kind == "sqlite":
            with closing(sqlite3.connect(database.options["database_name"], isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                for statement in plenty.statements():
                    connection.execute(statement)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            os.sync()
            return
        async with self.address.session(database.options["database_name"]) as session:
            await session.execute("SET session_replication_role = replica")  # nobody checks the foreign keys of ours
            for statement in plenty.statements():
                await session.execute(statement)
            await session.execute("VACUUM ANALYZE")
            await session.execute("CHECKPOINT")
