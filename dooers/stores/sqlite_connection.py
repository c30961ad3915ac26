"""A SQLite connection on a thread of its own: our pragmas, whole functions run there in one hop.

Which statements run is the store's business, in `sqlite.py`; how a file is made ready before is in `sqlite_schema.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import databases
from databases.core import Connection

from dooers.stores.titles import is_in

__all__ = ["begin", "connect", "hop", "hop_to_end", "in_time", "ready_to_write", "tuned", "use_wal"]

T = TypeVar("T")

# Seconds after which who waits to write looks whether it still is to.
LOOK = 0.1
PRAGMAS = (
    "synchronous=FULL",
    "foreign_keys=ON",
    # What is deleted or replaced, a password that is sealed at last for one, is overwritten where that costs no further write.
    "secure_delete=FAST",
)


def tuned(patience: float) -> Any:
    """What `sqlite3.connect` takes as its factory."""
    return partial(TunedConnection, patience=patience)


class _Unit:
    """A function to be run on the connection's own thread, in one hop: what `TunedConnection.execute` looks for."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[sqlite3.Connection], Any]) -> None:
        self.run = run


class _Result:
    """What `execute_fetchall` asks its cursor for."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def fetchall(self) -> Any:
        return self._value


class TunedConnection(sqlite3.Connection):
    """A connection with our pragmas, which also runs units. FULL: what was acknowledged survives a power cut, not only a crash.

    `patience` is for how many seconds another process may hold the file before we give up on it.
    """

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
            self.row_factory = sqlite3.Row
            self.create_function("REGEXP", 2, is_in, deterministic=True)  # its own LIKE and lower() know ASCII only
            for pragma in (f"busy_timeout={int(patience * 1000)}", *PRAGMAS):
                super().execute(f"PRAGMA {pragma}").fetchall()
        except sqlite3.Error:
            with suppress(
                sqlite3.Error
            ):  # half made, as some versions leave it, it would warn of not having been closed
                self.close()
            raise

    def execute(self, sql: Any, parameters: Any = (), /) -> Any:
        return _Result(sql.run(self)) if type(sql) is _Unit else super().execute(sql, parameters)


async def hop(connection: Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function on the connection's thread. Being cancelled meanwhile does not stop it."""
    result: Any = await connection.raw_connection.execute_fetchall(_Unit(work))
    return result  # type: ignore[no-any-return]


def in_time(work: Callable[[sqlite3.Connection], T], patience: float) -> Callable[[sqlite3.Connection], T]:
    """A function that is not begun any more when its place in the thread's queue comes too late: those before it all waited for a lock."""
    until = time.monotonic() + patience

    def work_in_time(connection: sqlite3.Connection) -> T:
        if time.monotonic() > until:
            raise sqlite3.OperationalError("database is locked: others before this one have waited for it too long")
        return work(connection)

    return work_in_time


async def hop_to_end(connection: Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """`hop`, but being cancelled does not lose the outcome: what was begun on the thread is waited for.

    An event loop that ends cancels every task, those of the store too, while turns still want their last words stored.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def boxed(raw: sqlite3.Connection) -> None:
        try:
            outcome.append((work(raw), None))
        except BaseException as error:
            outcome.append((None, error))

    unit: Callable[[sqlite3.Connection], None] = boxed
    while not outcome:
        try:
            await hop(connection, unit)
        except asyncio.CancelledError:
            unit = _nothing  # answered by the same thread, so only after what is under way there
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _nothing(_: sqlite3.Connection) -> None:
    """Only a place in the thread's queue."""


def begin(connection: sqlite3.Connection, given_up: threading.Event, patience: float) -> None:
    """Begin to write, once nobody else does: for so long the thread waits, and with it the end of the process. SQLite, when it waits by
    itself, cannot be told to give up."""
    give_up = time.monotonic() + patience
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE").close()
            return
        except sqlite3.OperationalError as error:
            locked = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not locked or given_up.is_set() or time.monotonic() > give_up:
                raise


def ready_to_write(connection: sqlite3.Connection) -> None:
    """For the one connection that writes."""
    connection.execute(f"PRAGMA busy_timeout={int(LOOK * 1000)}").fetchall()  # as `begin` looks by itself
    # A statement of many rows may need copies of pages until it is done: not a file for each.
    connection.execute("PRAGMA temp_store=MEMORY").fetchall()


async def connect(path: str, stack: AsyncExitStack, patience: float) -> Connection:
    """A connection whose thread lives until the stack is closed. Prepare the file first: a driver that cannot open one leaves a
    thread behind that nobody waits for."""
    database = databases.Database(f"sqlite:///{quote(path)}", factory=tuned(patience))
    await stack.enter_async_context(database)
    # Not bound to a task, as `database.connection()` would be: this one is shared by all of them.
    connection = Connection(database, database._backend)
    await connection.__aenter__()
    stack.push_async_callback(connection.__aexit__, None, None, None)
    return connection


def use_wal(connection: sqlite3.Connection, patience: float) -> None:
    """Change a file to WAL, if it is not."""
    # In WAL, readers and the writer do not wait for each other. SQLite does not wait for the lock that the first change to it
    # needs: of several processes starting on a new file, all but one are told "locked" at once. Later it is no change.
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.05)
    raise sqlite3.OperationalError("database is locked: cannot change it to WAL")
