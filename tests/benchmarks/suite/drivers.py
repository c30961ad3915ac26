"""The very statements that a store sends, heard at the driver and sent again by the bare driver. Not the store's own knowledge: whatever it
says to `sqlite3` or `asyncpg` is heard, however it comes to say it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import aiosqlite
import asyncpg

__all__ = ["Said", "bare", "bare_awaited", "heard"]

# A statement, and its values.
Said: TypeAlias = tuple[str, tuple[Any, ...] | dict[str, Any]]


@contextmanager
def heard(tell: Callable[[Said], None]) -> Iterator[None]:
    """So long every connection that this process makes tells what it is asked to run."""
    plain_connect, plain_init = sqlite3.connect, asyncpg.Connection.__init__

    class Plain(sqlite3.Connection):
        pass

    def connect(*words: Any, factory: Any = Plain, **more: Any) -> Any:
        connection = plain_connect(*words, factory=factory, **more)
        base = type(connection)

        def execute(self: Any, sql: Any, values: Any = (), /) -> Any:
            if isinstance(sql, str):
                tell((sql, dict(values) if isinstance(values, Mapping) else tuple(values)))
            return base.execute(self, sql, values)

        # The factory may be any callable, so what it made is changed, not the factory.
        connection.__class__ = type("Heard", (base,), {"execute": execute})
        return connection

    def init(self: Any, *words: Any, **more: Any) -> None:
        plain_init(self, *words, **more)
        self.add_query_logger(lambda record: tell((record.query, tuple(record.args))))

    sqlite3.connect = connect
    asyncpg.Connection.__init__ = init
    try:
        yield
    finally:
        sqlite3.connect, asyncpg.Connection.__init__ = plain_connect, plain_init


Run: TypeAlias = Callable[[list[Said]], Any]


@asynccontextmanager
async def bare(options: Mapping[str, Any]) -> AsyncIterator[Run]:
    """A function that runs statements one after the other on a connection with nothing around it."""
    if options["database_type"] == "sqlite":
        connection = sqlite3.connect(options["database_name"], isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()

        async def run(statements: list[Said]) -> None:
            for sql, values in statements:
                connection.execute(sql, values).fetchall()

        yield run
        connection.close()
        return
    names = {"database_host": "host", "database_port": "port", "database_user": "user", "database_name": "database"}
    line = await asyncpg.connect(
        **{names[name]: value for name, value in options.items() if name in names},
        password=options["database_password"] or None,
        ssl=False,
    )

    async def run_there(statements: list[Said]) -> None:
        for sql, values in statements:
            await line.fetch(sql, *values)

    yield run_there
    await line.close()


@asynccontextmanager
async def bare_awaited(options: Mapping[str, Any]) -> AsyncIterator[Run]:
    """`bare`, by a driver that does not hold up the loop: in SQLite a statement goes to a thread, and what it gives comes back."""
    if options["database_type"] != "sqlite":
        async with bare(options) as run:
            yield run
        return
    async with aiosqlite.connect(options["database_name"], isolation_level=None) as connection:

        async def run_there(statements: list[Said]) -> None:
            for sql, values in statements:
                await connection.execute_fetchall(sql, values)

        yield run_there
