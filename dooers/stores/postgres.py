"""PostgreSQL: a pool of connections, threads written side by side, whatever waits for one thread in one statement.

A statement is a transaction here, so nothing can be half written and a Change costs one round trip. When a connection is lost
while one is on its way, nobody knows whether it was written; ids are made by us, so the next try looks first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from typing import Any

import asyncpg
from attrs import evolve

from dooers.codec import loads
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError, NotFoundError, StoreError
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
from dooers.stores import COUNTED, Schema, View, nowhere, running_in, snapshot_of, store_error
from dooers.stores.postgres_connection import Line, Patience, Pool, interrupted, transient
from dooers.stores.postgres_schema import look_into, prepare
from dooers.stores.postgres_writers import Outcome, Writers
from dooers.stores.rows import Row, event_of, run_of, thread_of
from dooers.stores.sql import Statement
from dooers.stores.sql_postgres import Beside, PostgresStatements, creates, mergeable
from dooers.turn import as_stored, has_ended, numbered

__all__ = ["PostgresStore"]


class PostgresStore:
    """Conversations in a PostgreSQL database. `beside` may add to the statement that writes Changes, and so to their transaction."""

    def __init__(self, config: WorkerConfig, *, beside: Beside | None = None) -> None:
        self._prefix = config.database_table_prefix
        self._auto_migrate = config.database_auto_migrate
        self._sql = PostgresStatements(self._prefix)
        self._beside: Beside = beside or (lambda changes: nullcontext())
        self.tally = Tally()
        self._pool = Pool(config)
        # A quarter of the pool, one connection at least, is left to readers.
        most = config.database_pool_max - max(1, config.database_pool_max // 4)
        self._writers = Writers(self._pool, self._write, mergeable, most)

    # ------------------------------------------------------------ lifecycle

    async def open(self) -> None:
        try:
            await self._pool.open()
            await self._prepare(self._auto_migrate)
        except BaseException as error:
            await self._pool.close()
            if isinstance(error, Exception) and not isinstance(error, DooersError):
                why = str(error) or type(error).__name__
                raise StoreError(f"cannot open the PostgreSQL database {self._pool.name}: {why}") from error
            raise

    async def close(self) -> None:
        try:
            await self._writers.drain()
        finally:
            await self._pool.close()

    async def migrate(self) -> str:
        async with self._opened("migrate"):
            return await self._prepare(True)

    async def schema(self) -> Schema:
        async with self._opened("look into"), self._pool.line() as line:
            return (await look_into(line, self._prefix)).schema("postgresql")

    @asynccontextmanager
    async def _opened(self, purpose: str) -> AsyncIterator[None]:
        """With a pool while it lasts: one that was open already stays open."""
        opened = self._pool.is_open
        try:
            if not opened:
                await self._pool.open()
            yield
        except DooersError:
            raise
        except Exception as error:
            why = str(error) or type(error).__name__
            raise StoreError(f"cannot {purpose} the PostgreSQL database {self._pool.name}: {why}") from error
        finally:
            if not opened:
                await self._pool.close()

    async def _prepare(self, migrate: bool) -> str:
        async with self._pool.line() as line:
            return await prepare(line, self._prefix, migrate=migrate)

    async def ping(self) -> None:
        try:
            async with self._pool.line() as line:
                await line.fetch(("SELECT 1", {}))
        except Exception as error:
            raise store_error(error) from error

    # ------------------------------------------------------------ writing

    def apply(self, change: Change) -> asyncio.Future[Change]:
        return self._writers.add(change)

    async def _write(self, line: Line, changes: list[Change], given: float, unsure: bool = False) -> list[Outcome]:
        """Write Changes of one thread, in order, and answer for each. Whatever happens, being cancelled too, does not end this
        before the answers are there. `unsure`: a try before this one may have written them."""
        try:
            with self._beside(changes) as beside:
                return await self._write_patiently(line, changes, beside, given, unsure)
        except Exception as error:  # there are no words for one of them
            if len(changes) > 1:
                return [(await self._write(line, [change], given, unsure))[0] for change in changes]
            return [store_error(error)]

    async def _write_patiently(
        self, line: Line, changes: list[Change], beside: Statement | None, given: float, unsure: bool
    ) -> list[Outcome]:
        patience = Patience(given + self._pool.timeout)
        while True:
            try:
                await patience.pause()
                await line.refresh()
                stored = await self._found(line, changes) if unsure else None
                stored = stored or await self._write_all(line, changes, beside, unsure)
                self.tally.count(len(changes))
                return list(stored)
            except NotFoundError as error:
                if len(changes) > 1 and changes[0].during is not None:
                    # One that begins or ends a run may be written where another of that run may not.
                    return [(await self._write(line, [change], given, unsure))[0] for change in changes]
                return [store_error(error) for _ in changes]
            except (Exception, asyncio.CancelledError) as error:
                if transient(error) and not patience.over:
                    unsure = unsure or interrupted(error)
                elif len(changes) > 1 and not transient(error):
                    # One of them spoils it for the others: each alone, then.
                    return [(await self._write(line, [change], given, unsure))[0] for change in changes]
                else:
                    return [store_error(error) for _ in changes]

    async def _write_all(
        self, line: Line, changes: list[Change], beside: Statement | None, unsure: bool
    ) -> list[Change]:
        first = changes[0]
        try:
            rows = await line.fetch(self._sql.write(changes, beside))
        except asyncpg.UniqueViolationError:
            # What was thought lost has been written meanwhile, or somebody else has stored the same message in the same moment.
            if unsure and (stored := await self._found(line, changes)) is not None:
                return stored
            if (again := await self._repeated(line, first)) is None:
                raise
            return [again]
        if not rows:
            return [await self._refused(line, first, unsure)]
        row = dict(rows[0])
        created = row.pop("created", False)
        row.pop("beside", None)
        thread = thread_of(row)
        if first.removes:
            return [evolve(first, thread=thread)]
        if creates(first):
            created = created or (unsure and thread.created_at == first.thread.created_at)
            events = numbered(first, thread.last_seq - first.takes)
            return [evolve(first, thread=thread, events=events, created=created)]
        return as_stored(thread, changes)

    async def _refused(self, line: Line, change: Change, unsure: bool) -> Change:
        """The Change where its statement found no thread to write to: a repeat, a thread that is gone already, or an error."""
        again = await self._repeated(line, change)
        if again is not None:
            return again
        if change.removes and unsure and not await line.fetch(self._sql.thread(change.thread.id)):
            return change  # it was we who removed it, when the connection was lost
        raise nowhere(change)

    async def _repeated(self, line: Line, change: Change) -> Change | None:
        if change.repeat_key is None:
            return None
        for row in await line.fetch(self._sql.event_by_key(change.repeat_key)):
            event = event_of(row)
            for thread in await line.fetch(self._sql.thread(event.thread_id)):
                return evolve(change, thread=thread_of(thread), events=(event,), repeated=True)
        return None

    async def _found(self, line: Line, changes: list[Change]) -> list[Change] | None:
        """The Changes as stored by a try whose answer was lost. None if they are not stored, or have no event nor the end of
        their run to know them by: then they may be written, as to set a title twice is to do it once."""
        ids = [event.id for change in changes for event in change.events]
        if not ids:
            return await self._found_ended(line, changes)
        kept = {row["id"]: event_of(row) for row in await line.fetch(self._sql.events_by_id(ids))}
        rows = await line.fetch(self._sql.thread(changes[0].thread.id)) if len(kept) == len(ids) else []
        if not rows or any(event.thread_id != changes[0].thread.id for event in kept.values()):
            return None
        thread = thread_of(rows[0])
        return [
            evolve(
                change,
                thread=thread,
                events=tuple(kept[event.id] for event in change.events),
                created=creates(change) and kept[change.events[0].id].seq == 1 + change.skips,
            )
            for change in changes
        ]

    async def _found_ended(self, line: Line, changes: list[Change]) -> list[Change] | None:
        if changes[0].during is None:
            return None
        runs = await line.fetch(self._sql.run(changes[0].during))
        if not runs or not has_ended(changes, run_of(runs[0])):
            return None
        rows = await line.fetch(self._sql.thread(changes[0].thread.id))
        return as_stored(thread_of(rows[0]), changes) if rows else None

    async def remove_event(self, event_id: str) -> None:
        await self._fetch(self._sql.remove_event(event_id))

    async def beat(self, process_id: str, at: datetime) -> None:
        await self._fetch(self._sql.beat(process_id, at))

    async def set_settings(self, worker_id: str, values: Mapping[str, Any], at: datetime) -> None:
        if values:
            await self._fetch(self._sql.put_settings(worker_id, values.items(), at))

    async def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> bool:
        return bool(await self._fetch(self._sql.swap_setting(worker_id, field_id, was, value)))

    # ------------------------------------------------------------ reading

    async def _fetch(self, statement: Statement) -> list[Row]:
        return await self._pool.read(lambda line: line.fetch(statement))

    async def thread(self, thread_id: str) -> Thread | None:
        rows = await self._fetch(self._sql.thread(thread_id))
        return thread_of(rows[0]) if rows else None

    async def threads(self, query: ThreadQuery) -> list[Thread]:
        return [thread_of(row) for row in await self._fetch(self._sql.list_threads(query))]

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        return int((await self._fetch(self._sql.count_threads(equal, at_most, containing)))[0]["total"])

    async def reach(self, query: ThreadQuery, rows: int) -> tuple[datetime, str] | None:
        found = await self._fetch(self._sql.reach(query, rows))
        return (found[0]["last_event_at"], found[0]["id"]) if found else None

    async def event(self, event_id: str) -> ThreadEvent | None:
        rows = await self._fetch(self._sql.event(event_id))
        return event_of(rows[0]) if rows else None

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        return await self._pool.read(lambda line: _Reader(line, self._sql).events(query))

    async def snapshot(
        self, thread_id: str, *, after_event_id: str | None = None, at_least_page: bool = False
    ) -> Snapshot | None:
        async def work(line: Line) -> Snapshot | None:
            reader = _Reader(line, self._sql)
            return await snapshot_of(reader, thread_id, after_event_id=after_event_id, at_least_page=at_least_page)

        return await self._pool.read(work)

    async def run(self, run_id: str) -> Run | None:
        rows = await self._fetch(self._sql.run(run_id))
        return run_of(rows[0]) if rows else None

    async def runs(self, query: RunQuery) -> list[Run]:
        return await self._pool.read(lambda line: _Reader(line, self._sql).runs(query))

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        return [run_of(row) for row in await self._fetch(self._sql.silent(before))]

    async def settings(self, worker_id: str) -> StoredSettings:
        rows = await self._fetch(self._sql.list_settings(worker_id))
        if not rows:
            return StoredSettings()
        values = {row["field_id"]: loads(row["value"]) for row in rows}
        return StoredSettings(values, max(row["updated_at"] for row in rows))

    async def configured(self) -> list[str]:
        return sorted(row["worker_id"] for row in await self._fetch(self._sql.configured()))


class _Reader:
    def __init__(self, line: Line, sql: PostgresStatements) -> None:
        self._line, self._sql = line, sql

    async def view(self, query: EventQuery) -> View | None:
        rows = await self._line.fetch(self._sql.view(query, running_in(query.thread_id)))
        heads = [row for row in rows if row["thread"] is not None]
        if not heads:
            return None
        events = sorted([event_of(row) for row in rows if row["thread"] is None], key=lambda event: event.seq)
        return thread_of(heads[0]["thread"]), events, [run_of(run) for run in heads[0]["runs"]]

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        rows = [event_of(row) for row in await self._line.fetch(self._sql.list_events(query))]
        return rows if query.oldest_first else rows[::-1]

    async def runs(self, query: RunQuery) -> list[Run]:
        return [run_of(row) for row in await self._line.fetch(self._sql.list_runs(query))]

    async def seq_of(self, thread_id: str, event_id: str) -> int | None:
        rows = await self._line.fetch(self._sql.seq_of(thread_id, event_id))
        return int(rows[0]["seq"]) if rows else None
