"""The store in memory: the test double of the others, and a worker that forgets. An ordinary implementation, same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from attrs import evolve

from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.exceptions import StoreError
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
from dooers.stores import COUNTED, IN_MEMORY, Page, Schema, View, page_of, running_in, snapshot_of
from dooers.stores.ledger import Ledger
from dooers.stores.sql import check_filter
from dooers.stores.titles import is_in, pattern_of

__all__ = ["MemoryStore"]

T = TypeVar("T", Thread, ThreadEvent, Run)


def _equal(table: str, rows: Iterable[T], equal: Mapping[str, str]) -> list[T]:
    check_filter(table, equal)
    return [row for row in rows if all(getattr(row, name) == value for name, value in equal.items())]


def _newest(rows: list[T], limit: int | None, oldest_first: bool, key: Callable[[T], Any]) -> list[T]:
    ordered = sorted(rows, key=key, reverse=not oldest_first)
    return ordered if limit is None else ordered[:limit]


def _place(thread: Thread) -> tuple[datetime, str]:
    return thread.last_event_at, thread.id


def _containing(threads: list[Thread], text: str | None) -> list[Thread]:
    if not text:
        return threads
    pattern = pattern_of(text)
    return [thread for thread in threads if is_in(pattern, thread.title)]


class MemoryStore:
    """Everything in dictionaries. One event loop, one process; `close()` forgets nothing, so a test may reopen it."""

    def __init__(self, config: WorkerConfig | None = None) -> None:
        self._opened = False
        self.tally = Tally()
        self._ledger = Ledger()
        self._threads, self._runs, self._keys = self._ledger.threads, self._ledger.runs, self._ledger.keys
        self._events: dict[str, dict[str, ThreadEvent]] = {}
        self._thread_of_event: dict[str, str] = {}
        self._beats: dict[str, datetime] = {}
        self._settings: dict[str, StoredSettings] = {}

    async def open(self) -> None:
        self._opened = True

    async def close(self) -> None:
        self._opened = False

    async def migrate(self) -> str:
        return IN_MEMORY.found

    async def schema(self) -> Schema:
        return IN_MEMORY

    async def ping(self) -> None:
        if not self._opened:
            raise StoreError("the memory store is closed")

    # ------------------------------------------------------------ writing

    def apply(self, change: Change) -> asyncio.Future[Change]:
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        try:
            if not self._opened:
                raise StoreError("the memory store is closed")
            future.set_result(self._write(change))
            self.tally.count(1)
        except Exception as error:
            future.set_exception(error)
        return future

    def _write(self, change: Change) -> Change:
        stored = self._ledger.decide(change)
        if stored.repeated:
            return stored
        if stored.removes:
            self._forget(stored.thread.id)
            return stored
        events = {event.id: event for event in stored.events}
        taken = [event_id for event_id in events if event_id in self._thread_of_event]
        if taken or len(events) < len(stored.events):
            raise StoreError(f"there is an event {taken or [event.id for event in stored.events]} already")
        self._ledger.enter(stored)
        self._events.setdefault(stored.thread.id, {}).update(events)
        self._thread_of_event.update(dict.fromkeys(events, stored.thread.id))
        for run in stored.runs:
            self._beats.setdefault(run.id, run.started_at)
        return stored

    def _forget(self, thread_id: str) -> None:
        del self._threads[thread_id]
        for event_id in self._events.pop(thread_id, {}):
            del self._thread_of_event[event_id]
        for run_id in [run.id for run in self._runs.values() if run.thread_id == thread_id]:
            del self._runs[run_id], self._beats[run_id]
        self._forget_keys([key for key, event in self._keys.items() if event.thread_id == thread_id])

    def _forget_keys(self, keys: Iterable[str]) -> None:
        for key in keys:
            del self._keys[key]

    async def beat(self, process_id: str, at: datetime) -> None:
        for run in self._runs.values():
            if run.status == "running" and run.process_id == process_id:
                self._beats[run.id] = at

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        return [run for run in self._runs.values() if run.status == "running" and self._beats[run.id] < before]

    async def remove_event(self, event_id: str) -> None:
        thread_id = self._thread_of_event.pop(event_id, None)
        if thread_id is not None:
            del self._events[thread_id][event_id]
            self._forget_keys([key for key, event in self._keys.items() if event.id == event_id])

    async def set_settings(self, worker_id: str, values: Mapping[str, Any], at: datetime) -> None:
        stored = self._settings.get(worker_id, StoredSettings())
        if not values:
            return
        at = at if stored.updated_at is None else max(at, stored.updated_at)
        self._settings[worker_id] = StoredSettings({**stored.values, **values}, at)

    async def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> bool:
        stored = self._settings.get(worker_id, StoredSettings())
        # As JSON, for 1 == True in Python.
        if field_id not in stored.values or dumps(stored.values[field_id]) != dumps(was):
            return False
        self._settings[worker_id] = StoredSettings({**stored.values, field_id: value}, stored.updated_at)
        return True

    # ------------------------------------------------------------ reading

    async def thread(self, thread_id: str) -> Thread | None:
        return self._threads.get(thread_id)

    async def threads(self, query: ThreadQuery) -> list[Thread]:
        rows = _equal("threads", self._threads.values(), query.equal)
        if query.before is not None:
            rows = [row for row in rows if _place(row) < query.before]
        if query.until is not None:
            rows = [row for row in rows if _place(row) >= query.until]
        return _newest(_containing(rows, query.containing), query.limit, query.oldest_first, _place)

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        rows = _equal("threads", self._threads.values(), equal)
        if containing:
            rows = _containing(_newest(rows, at_most, False, _place), containing)
        return min(len(rows), at_most)

    async def reach(self, query: ThreadQuery, rows: int) -> tuple[datetime, str] | None:
        walked = await self.threads(evolve(query, containing=None, limit=rows))
        return None if len(walked) < rows else _place(walked[-1])

    async def event(self, event_id: str) -> ThreadEvent | None:
        thread_id = self._thread_of_event.get(event_id)
        return None if thread_id is None else self._events[thread_id].get(event_id)

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        return await _Reader(self).events(query)

    async def said(self, query: EventQuery) -> list[Said]:
        return [Said.of(event) for event in await self.events(query)]

    async def page(self, thread_id: str, *, before_event_id: str | None = None, limit: int) -> Page:
        return await page_of(_Reader(self), thread_id, before_event_id=before_event_id, limit=limit)

    async def snapshot(
        self, thread_id: str, *, after_event_id: str | None = None, at_least_page: bool = False
    ) -> Snapshot | None:
        return await snapshot_of(_Reader(self), thread_id, after_event_id=after_event_id, at_least_page=at_least_page)

    async def run(self, run_id: str) -> Run | None:
        return self._runs.get(run_id)

    async def runs(self, query: RunQuery) -> list[Run]:
        return await _Reader(self).runs(query)

    async def settings(self, worker_id: str) -> StoredSettings:
        return self._settings.get(worker_id, StoredSettings())

    async def configured(self) -> list[str]:
        return sorted(self._settings)


class _Reader:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def thread(self, thread_id: str) -> Thread | None:
        return self._store._threads.get(thread_id)

    async def view(self, query: EventQuery, *, runs: bool = True) -> View | None:
        thread = await self.thread(query.thread_id)
        if thread is None:
            return None
        events = await self.events(query)
        return thread, events, await self.runs(running_in(thread.id)) if runs else []

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        rows = _equal("events", self._store._events.get(query.thread_id, {}).values(), query.equal)
        keep = [
            row
            for row in rows
            if (query.after_seq is None or row.seq > query.after_seq)
            and (query.before_seq is None or row.seq < query.before_seq)
            and (query.until_turn is None or row.turn_seq <= query.until_turn)
            and (query.turn is None or row.turn_seq == query.turn)
            and (not query.for_model or (row.type == "message" and not row.notice))
        ]
        return sorted(_newest(keep, query.limit, query.oldest_first, lambda row: row.seq), key=lambda row: row.seq)

    async def runs(self, query: RunQuery) -> list[Run]:
        check_filter("runs", query.equal)
        equal = dict(query.equal)
        worker_id = equal.pop("worker_id", None)
        rows = _equal("runs", self._store._runs.values(), equal)
        if worker_id is not None:
            rows = [row for row in rows if self._store._threads[row.thread_id].worker_id == worker_id]
        if query.before is not None:
            rows = [row for row in rows if (row.started_at, row.id) < query.before]
        return _newest(rows, query.limit, query.oldest_first, lambda row: (row.started_at, row.id))

    async def seq_of(self, thread_id: str, event_id: str) -> int | None:
        event = self._store._events.get(thread_id, {}).get(event_id)
        return None if event is None else event.seq
