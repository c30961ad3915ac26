"""PostgreSQL: a pool of connections, and whatever waits for many threads in one statement.

A statement is a transaction here, so nothing can be half written and many Changes cost one round trip. When a connection is lost
while one is on its way, nobody knows whether it was written; ids are made by us, so the next try looks first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import asyncpg

from dooers.codec import loads
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError, NotFoundError, StoreError
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
    evolve,
)
from dooers.stats import Tally
from dooers.stores import COUNTED, Page, Schema, View, nowhere, page_of, running_in, snapshot_of, store_error
from dooers.stores.postgres_connection import Line, Patience, Pool, interrupted, transient
from dooers.stores.postgres_schema import look_into, prepare
from dooers.stores.postgres_writers import Group, Outcomes, Writers
from dooers.stores.rows import Row, event_of, run_of, said_of, thread_of
from dooers.stores.sql import Statement
from dooers.stores.sql_postgres import Aside, Beside, PostgresStatements, creates, mergeable
from dooers.turn import as_stored, has_ended, numbered

__all__ = ["PostgresStore"]

T = TypeVar("T")


class PostgresStore:
    """Conversations in a PostgreSQL database. `beside` may add to the statement that writes Changes, and so to their transaction."""

    def __init__(self, config: WorkerConfig, *, beside: Beside | None = None) -> None:
        self._prefix = config.database_table_prefix
        self._auto_migrate = config.database_auto_migrate
        self._sql = PostgresStatements(self._prefix)
        self._beside: Beside = beside or (lambda groups: nullcontext())
        self.tally = Tally()
        self._pool = Pool(config)
        # A quarter of the pool, one connection at least, is left to readers.
        most = config.database_pool_max - max(1, config.database_pool_max // 4)
        self._writers = Writers(self._pool, self._write, self._write_apart, mergeable, most)

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

    async def _write(self, line: Line, groups: list[Group]) -> Sequence[Outcomes | None]:
        """Write groups of different threads in one statement. Of one that it refuses, or where one spoils it for all, more is found out
        apart."""
        chosen = [group for group in groups if not group.changes[0].removes]
        answers: Sequence[Outcomes | None] = []
        try:
            if chosen:
                with self._beside([group.changes for group in chosen]) as beside:
                    answers = await self._tried(line, chosen, partial(self._write_all, line, chosen, beside))
        except (Exception, asyncio.CancelledError) as error:
            if transient(error) or isinstance(error, asyncpg.QueryCanceledError):  # they have waited long enough
                answers = [[store_error(error) for _ in group.changes] for group in chosen]
        answer_of = dict(zip(chosen, answers, strict=False))
        return [answer_of.get(group) for group in groups]

    async def _write_apart(self, line: Line, group: Group) -> Outcomes:
        """Write a group by itself; where it cannot be written as one, each of its Changes by itself."""
        failed: BaseException
        try:
            with self._beside([group.changes]) as beside:
                return await self._tried(line, [group], partial(self._write_one, line, group, beside))
        except (Exception, asyncio.CancelledError) as error:
            failed = error
        if len(group.changes) == 1 or transient(failed):
            return [store_error(failed) for _ in group.changes]
        if isinstance(failed, NotFoundError) and group.changes[0].during is None:
            return [store_error(failed) for _ in group.changes]  # they find their thread in the same way
        # One of them spoils it for the others, as by having no words, or begins or ends a run, so that it may be written where another may
        # not.
        return [(await self._write_apart(line, alone))[0] for alone in group.split()]

    async def _tried(self, line: Line, groups: Sequence[Group], work: Callable[[], Awaitable[T]]) -> T:
        """Do this until the connection lasts, or there is no time left. Being cancelled does not end it: what was asked for is written."""
        patience = Patience(max(group.given for group in groups) + self._pool.timeout)
        while True:
            try:
                await patience.pause()
                await line.refresh()
                return await work()
            except (Exception, asyncio.CancelledError) as error:
                if not transient(error) or patience.over:
                    raise
                for group in groups:
                    group.unsure = group.unsure or interrupted(error)

    async def _write_all(self, line: Line, groups: list[Group], beside: Aside | None) -> list[Outcomes | None]:
        stored = await self._found(line, groups)
        left = [n for n in range(len(groups)) if n not in stored]
        if left:
            changes = [groups[n].changes for n in left]
            said = beside and (beside[0], [beside[1][n] for n in left])
            rows = await line.fetch(self._sql.write(changes, said))
            stored |= {left[row["n"]]: _as_written(groups[left[row["n"]]], row) for row in rows}
        if stored:
            self.tally.count(sum(len(groups[n].changes) for n in stored))
        return [stored.get(n) for n in range(len(groups))]

    async def _write_one(self, line: Line, group: Group, beside: Aside | None) -> Outcomes:
        first = group.changes[0]
        # Most of what was refused among others is a repeat.
        stored = (await self._found(line, [group])).get(0) or await self._repeated(line, first)
        if stored is None and first.removes:
            stored = await self._remove(line, group, beside)
        elif stored is None:
            try:
                stored = await self._append(line, group, beside) or await self._repeated(line, first)
            except asyncpg.UniqueViolationError:
                # What was thought lost has been written meanwhile, or somebody else has stored the same message in the same moment.
                stored = (await self._found(line, [group])).get(0) or await self._repeated(line, first)
                if stored is None:
                    raise
        if stored is None:
            raise nowhere(first)
        self.tally.count(len(group.changes))
        return stored

    async def _append(self, line: Line, group: Group, beside: Aside | None) -> Outcomes | None:
        statement = self._sql.write([group.changes], beside, waits=True)
        rows = await line.fetch(statement)
        if not rows and creates(group.changes[0]):
            # Somebody else may have made the thread after the statement began. Now it would be seen.
            rows = await line.fetch(statement)
        return _as_written(group, rows[0]) if rows else None

    async def _remove(self, line: Line, group: Group, beside: Aside | None) -> Outcomes | None:
        (change,) = group.changes
        for row in await line.fetch(self._sql.remove(change, beside)):
            return [evolve(change, thread=thread_of(row))]
        if group.unsure and not await line.fetch(self._sql.thread(change.thread.id)):
            return [change]  # it was we who removed it, when the connection was lost
        return None

    async def _repeated(self, line: Line, change: Change) -> Outcomes | None:
        if change.repeat_key is None:
            return None
        for row in await line.fetch(self._sql.event_by_key(change.repeat_key)):
            event = event_of(row)
            for thread in await line.fetch(self._sql.thread(event.thread_id)):
                return [evolve(change, thread=thread_of(thread), events=(event,), repeated=True)]
        return None

    async def _found(self, line: Line, groups: list[Group]) -> dict[int, Outcomes]:
        """Those of the unsure groups that were stored by a try whose answer was lost, by their place. What has no event nor the end of
        a run to know it by is not found: then it may be written, as to set a title twice is to do it once."""
        unsure = {n: group.changes for n, group in enumerate(groups) if group.unsure}
        if not unsure:
            return {}
        ids = [event.id for changes in unsure.values() for change in changes for event in change.events]
        during = {n: changes[0].during for n, changes in unsure.items() if changes[0].during is not None}
        kept = {row["id"]: event_of(row) for row in (await line.fetch(self._sql.events_by_id(ids)) if ids else [])}
        runs = [run_of(row) for row in (await line.fetch(self._sql.runs_by_id([*during.values()])) if during else [])]
        ended = {run.id: run for run in runs}
        found = dict[int, Outcomes]()
        for row in await line.fetch(self._sql.threads_by_id([changes[0].thread.id for changes in unsure.values()])):
            thread = thread_of(row)
            for n, changes in unsure.items():
                if changes[0].thread.id == thread.id:
                    stored = _as_kept(thread, changes, kept, ended.get(during.get(n, "")))
                    if stored is not None:
                        found[n] = stored
        return found

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

    async def said(self, query: EventQuery) -> list[Said]:
        said = [said_of(row) for row in await self._fetch(self._sql.list_said(query))]
        return said if query.oldest_first else said[::-1]

    async def page(self, thread_id: str, *, before_event_id: str | None = None, limit: int) -> Page:
        async def work(line: Line) -> Page:
            reader = _Reader(line, self._sql)
            return await page_of(reader, thread_id, before_event_id=before_event_id, limit=limit)

        return await self._pool.read(work)

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


def _as_written(group: Group, row: Row) -> Outcomes:
    """Changes as they are stored, from the row that their statement gave."""
    thread, changes = thread_of(row), group.changes
    if not row["created"]:
        stored = as_stored(thread, changes)
        # A try whose answer was lost may have made the thread of a Change that nothing else tells of.
        made = group.unsure and creates(changes[0]) and thread.created_at == changes[0].thread.created_at
        return [evolve(stored[0], created=True)] if made else [*stored]
    (change,) = changes
    return [evolve(change, thread=thread, events=numbered(change, thread.last_seq - change.takes), created=True)]


def _as_kept(
    thread: Thread, changes: list[Change], kept: Mapping[str, ThreadEvent], run: Run | None
) -> Outcomes | None:
    """Changes that were stored, by what there is of them now; None if they were not, or if that cannot be known."""
    ids = [event.id for change in changes for event in change.events]
    if not ids:
        return [*as_stored(thread, changes)] if has_ended(changes, run) else None
    if any(event_id not in kept or kept[event_id].thread_id != thread.id for event_id in ids):
        return None
    return [
        evolve(
            change,
            thread=thread,
            events=tuple(kept[event.id] for event in change.events),
            created=creates(change) and kept[change.events[0].id].seq == 1 + change.skips,
        )
        for change in changes
    ]


class _Reader:
    def __init__(self, line: Line, sql: PostgresStatements) -> None:
        self._line, self._sql = line, sql

    async def view(self, query: EventQuery, *, runs: bool = True) -> View | None:
        rows = await self._line.fetch(self._sql.view(query, running_in(query.thread_id) if runs else None))
        heads = [row for row in rows if row["thread"] is not None]
        if not heads:
            return None
        events = sorted([event_of(row) for row in rows if row["thread"] is None], key=lambda event: event.seq)
        return thread_of(heads[0]["thread"]), events, [run_of(run) for run in heads[0]["runs"] or ()]

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        rows = [event_of(row) for row in await self._line.fetch(self._sql.list_events(query))]
        return rows if query.oldest_first else rows[::-1]

    async def runs(self, query: RunQuery) -> list[Run]:
        return [run_of(row) for row in await self._line.fetch(self._sql.list_runs(query))]

    async def seq_of(self, thread_id: str, event_id: str) -> int | None:
        rows = await self._line.fetch(self._sql.seq_of(thread_id, event_id))
        return int(rows[0]["seq"]) if rows else None
