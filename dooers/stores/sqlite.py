"""SQLite: one connection that writes, one that reads, and waiting Changes of all turns written in one transaction.

`databases` owns the connections and their lifecycle; statements run on the driver's connection, whole units of work in one hop
to its thread. Measured against one awaited call a statement that is several times faster, and no half-open transaction can
exist, whatever is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread
from databases.core import Connection

from dooers.codec import loads
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError, StoreError
from dooers.history import Said
from dooers.models import (
    Change,
    EventQuery,
    Run,
    RunQuery,
    Snapshot,
    StoredSettings,
    Thread,
    ThreadEvent,
    ThreadQuery,
)
from dooers.stats import Tally
from dooers.stores import COUNTED, IN_MEMORY, Page, Schema, View, at_once, page_of, running_in, snapshot_of, store_error
from dooers.stores.rows import event_of, moment, run_of, said_of, thread_of
from dooers.stores.sql import Statement
from dooers.stores.sql_sqlite import SqliteStatements
from dooers.stores.sqlite_connection import begin, connect, hop, hop_to_end, in_time, ready_to_write
from dooers.stores.sqlite_schema import look_into, prepare, prepare_file
from dooers.stores.sqlite_writers import GroupWriter

__all__ = ["SqliteStore"]

log = logging.getLogger("dooers")
T = TypeVar("T")
# A Change that is to be written, and who waits for it.
Waiting: TypeAlias = tuple[Change, asyncio.Future[Change]]

# Waiting Changes written in one transaction at most. Enough to share a disk flush among hundreds of turns, and
# few enough that the first of them does not wait for the last.
GROUP = 512

# Seconds after which the thread that writes looks who else wants it.
STINT = 0.02

MEMORY = ":memory:"


class SqliteStore:
    """Conversations in one file. `database_name` is its path."""

    def __init__(self, config: WorkerConfig) -> None:
        self._path = config.database_name
        self._prefix = config.database_table_prefix
        self._auto_migrate = config.database_auto_migrate
        self._patience = config.database_timeout
        self._file: tuple[int, int] | None = None
        self._sql = SqliteStatements(self._prefix)
        self._groups = GroupWriter(self._sql)
        self.tally = Tally()
        self._stack = AsyncExitStack()
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._waiting: deque[Waiting] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._given_up = threading.Event()

    # ------------------------------------------------------------ lifecycle

    async def open(self) -> None:
        try:
            await self._open()
        except BaseException as error:
            # A connection left open has a thread that keeps the process alive for ever.
            await self._let_go()
            if isinstance(error, Exception) and not isinstance(error, DooersError):
                raise StoreError(f"cannot open the SQLite database {self._path!r}: {error}") from error
            raise

    async def _open(self) -> None:
        in_memory = self._path == MEMORY
        self._given_up.clear()
        self._groups = GroupWriter(self._sql)  # what it knows is of one connection
        if not in_memory:
            await self._prepare(self._auto_migrate)
        self._writer = await connect(self._path, self._stack, self._patience)
        await hop(self._writer, ready_to_write)
        if in_memory:
            await self._prepare(self._auto_migrate)
        # A database in memory exists for its connection only: there the writer reads too.
        self._reader = self._writer if in_memory else await connect(self._path, self._stack, self._patience)
        self._file = self._which()

    async def _prepare(self, migrate: bool) -> str:
        if self._path != MEMORY:
            ready = partial(prepare_file, self._path, self._prefix, migrate=migrate, patience=self._patience)
            return await anyio.to_thread.run_sync(ready)
        if self._writer is None:
            return IN_MEMORY.found
        return await hop(self._writer, lambda connection: prepare(connection, self._prefix, migrate=migrate))

    async def close(self) -> None:
        try:
            self._wake()
            while self._flusher is not None and not self._flusher.done():
                await asyncio.wait([self._flusher])
                self._wake()
        except asyncio.CancelledError:
            self._given_up.set()
            raise
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        self._writer = self._reader = None
        # Another one for who opens again, also where this one cannot be closed in time.
        stack, self._stack = self._stack, AsyncExitStack()
        with anyio.CancelScope(shield=True):
            await stack.aclose()

    async def migrate(self) -> str:
        try:
            return await self._prepare(True)
        except DooersError:
            raise
        except Exception as error:
            raise StoreError(f"cannot bring the SQLite database {self._path!r} up to date: {error}") from error

    async def schema(self) -> Schema:
        if self._path == MEMORY:
            return IN_MEMORY
        try:
            return (await anyio.to_thread.run_sync(look_into, self._path, self._prefix)).schema("sqlite")
        except DooersError:
            raise
        except Exception as error:
            raise StoreError(f"cannot look into the SQLite database {self._path!r}: {error}") from error

    async def ping(self) -> None:
        def work(connection: sqlite3.Connection) -> tuple[int, int] | None:
            connection.execute("SELECT 1").fetchone()
            return self._which()

        if (
            await self._read(work) != self._file
        ):  # SQLite goes on with the one it has, and what it writes is gone with the process
            raise StoreError(
                f"the SQLite database {self._path!r} was removed or replaced under this worker; restart it"
            )

    def _which(self) -> tuple[int, int] | None:
        """Which file has our name."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    # ------------------------------------------------------------ writing

    def apply(self, change: Change) -> asyncio.Future[Change]:
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future))
        self._wake()
        return future

    def _wake(self, _: object = None) -> None:
        """See to it that somebody writes what waits. Also called when a flusher is done: one that a loop which ends cancelled
        before it began has written nothing."""
        if self._waiting and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.create_task(self._flush(), name="dooers-sqlite-flush")
            self._flusher.add_done_callback(self._wake)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            try:
                await hop_to_end(self._need(self._writer), partial(self._write_waiting, loop))
            except Exception as error:
                # There is no such thread. Whoever waits gets this, and the next Change gets its chance.
                group = self._group()
                _settle(group, [store_error(error) for _ in group])

    def _write_waiting(self, loop: asyncio.AbstractEventLoop, connection: sqlite3.Connection) -> None:
        """Write what waits, on the driver's thread, and what comes meanwhile: the event loop, busy with what was written, is not asked
        first. But not for long at a time, as others wait for this thread too."""
        until = time.monotonic() + STINT
        while group := self._group():
            results = self._write_group(connection, [change for change, _ in group])
            loop.call_soon_threadsafe(_settle, group, results)
            if time.monotonic() > until:
                return

    def _group(self) -> list[Waiting]:
        # One by one, as the event loop adds to it at the same time.
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP))]

    def _write_group(self, connection: sqlite3.Connection, changes: list[Change]) -> list[Change | DooersError]:
        """Every Change as stored, or why it was not."""
        try:
            return self._transaction(connection, changes)
        except Exception as error:
            return [store_error(error) for _ in changes]

    def _transaction(self, connection: sqlite3.Connection, changes: list[Change]) -> list[Change | DooersError]:
        """First all in one transaction; if one of them spoils it, one transaction each."""
        try:
            begin(connection, self._given_up, self._patience)
        except sqlite3.Error as error:
            # Locked, unreadable, gone: so it is for each of them, and each would wait as long again to hear it.
            return [store_error(error) for _ in changes]
        try:
            stored = self._groups.commit(connection, changes)
            self.tally.count(len(changes))
            return [*stored]
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(changes) == 1:
                return [store_error(error)]
        return [self._transaction(connection, [change])[0] for change in changes]

    async def remove_event(self, event_id: str) -> None:
        await self._change_alone([self._sql.remove_event(event_id)])

    async def beat(self, process_id: str, at: datetime) -> None:
        await self._change_alone([self._sql.beat(process_id, at)])

    async def set_settings(self, worker_id: str, values: Mapping[str, Any], at: datetime) -> None:
        await self._change_alone([self._sql.put_setting(worker_id, name, value, at) for name, value in values.items()])

    async def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> bool:
        return bool(await self._change_alone([self._sql.swap_setting(worker_id, field_id, was, value)]))

    async def _change_alone(self, statements: list[Statement]) -> list[sqlite3.Row]:
        """Run these in one transaction. They may alter nothing that `GroupWriter` knows of threads and runs: it would not notice."""

        def work(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            begin(connection, self._given_up, self._patience)
            try:
                rows = [row for statement in statements for row in _all(connection, statement)]
                connection.execute("COMMIT")
                return rows
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        try:
            return await hop(self._need(self._writer), in_time(work, self._patience))
        except sqlite3.Error as error:
            raise store_error(error) from error

    # ------------------------------------------------------------ reading

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await hop(self._need(self._reader), work)
        except sqlite3.Error as error:
            raise store_error(error) from error

    async def thread(self, thread_id: str) -> Thread | None:
        return await self._read(lambda connection: at_once(_Reader(connection, self._sql).thread(thread_id)))

    async def threads(self, query: ThreadQuery) -> list[Thread]:
        return [thread_of(row) for row in await self._read(lambda c: _all(c, self._sql.list_threads(query)))]

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        row = await self._read(lambda connection: _one(connection, self._sql.count_threads(equal, at_most, containing)))
        return 0 if row is None else int(row["total"])

    async def reach(self, query: ThreadQuery, rows: int) -> tuple[datetime, str] | None:
        row = await self._read(lambda connection: _one(connection, self._sql.reach(query, rows)))
        return None if row is None else (moment(row["last_event_at"]), row["id"])

    async def event(self, event_id: str) -> ThreadEvent | None:
        row = await self._read(lambda connection: _one(connection, self._sql.event(event_id)))
        return None if row is None else event_of(row)

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        return await self._read(lambda connection: at_once(_Reader(connection, self._sql).events(query)))

    async def said(self, query: EventQuery) -> list[Said]:
        said = [said_of(row) for row in await self._read(lambda c: _all(c, self._sql.list_said(query)))]
        return said if query.oldest_first else said[::-1]

    async def page(self, thread_id: str, *, before_event_id: str | None = None, limit: int) -> Page:
        def work(connection: sqlite3.Connection) -> Page:
            reader = _Reader(connection, self._sql)
            return at_once(page_of(reader, thread_id, before_event_id=before_event_id, limit=limit))

        return await self._read(work)

    async def snapshot(
        self, thread_id: str, *, after_event_id: str | None = None, at_least_page: bool = False
    ) -> Snapshot | None:
        def work(connection: sqlite3.Connection) -> Snapshot | None:
            connection.execute("BEGIN")  # all reads of one instant
            try:
                reader = _Reader(connection, self._sql)
                return at_once(
                    snapshot_of(reader, thread_id, after_event_id=after_event_id, at_least_page=at_least_page)
                )
            finally:
                connection.execute("COMMIT")

        return await self._read(work)

    async def run(self, run_id: str) -> Run | None:
        row = await self._read(lambda connection: _one(connection, self._sql.run(run_id)))
        return None if row is None else run_of(row)

    async def runs(self, query: RunQuery) -> list[Run]:
        return await self._read(lambda connection: at_once(_Reader(connection, self._sql).runs(query)))

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        return [run_of(row) for row in await self._read(lambda connection: _all(connection, self._sql.silent(before)))]

    async def settings(self, worker_id: str) -> StoredSettings:
        rows = await self._read(lambda connection: _all(connection, self._sql.list_settings(worker_id)))
        if not rows:
            return StoredSettings()
        newest = max(moment(row["updated_at"]) for row in rows)
        return StoredSettings({row["field_id"]: loads(row["value"]) for row in rows}, newest)

    async def configured(self) -> list[str]:
        # Sorted here: a database sorts texts by its own rules.
        return sorted(row["worker_id"] for row in await self._read(lambda c: _all(c, self._sql.configured())))

    def _need(self, connection: Connection | None) -> Connection:
        if connection is None:
            raise StoreError(f"the SQLite store {self._path!r} is not open")
        return connection


def _settle(group: list[Waiting], results: Sequence[Change | DooersError]) -> None:
    for (_, future), result in zip(group, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Change):
            future.set_result(result)
        else:
            future.set_exception(result)


class _Reader:
    def __init__(self, connection: sqlite3.Connection, sql: SqliteStatements) -> None:
        self._connection, self._sql = connection, sql

    async def thread(self, thread_id: str) -> Thread | None:
        row = _one(self._connection, self._sql.thread(thread_id))
        return None if row is None else thread_of(row)

    async def view(self, query: EventQuery, *, runs: bool = True) -> View | None:
        thread = await self.thread(query.thread_id)
        if thread is None:
            return None
        events = await self.events(query)
        return thread, events, await self.runs(running_in(thread.id)) if runs else []

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        rows = [event_of(row) for row in _all(self._connection, self._sql.list_events(query))]
        return rows if query.oldest_first else rows[::-1]

    async def runs(self, query: RunQuery) -> list[Run]:
        return [run_of(row) for row in _all(self._connection, self._sql.list_runs(query))]

    async def seq_of(self, thread_id: str, event_id: str) -> int | None:
        row = _one(self._connection, self._sql.seq_of(thread_id, event_id))
        return None if row is None else int(row["seq"])


def _all(connection: sqlite3.Connection, statement: Statement) -> list[sqlite3.Row]:
    return connection.execute(*statement).fetchall()


def _one(connection: sqlite3.Connection, statement: Statement) -> sqlite3.Row | None:
    # fetchall, not fetchone: a statement with RETURNING is done only when its rows have all been fetched.
    rows = _all(connection, statement)
    return rows[0] if rows else None
