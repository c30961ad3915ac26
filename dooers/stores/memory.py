"""The store in memory: the test double of the others, and a worker that forgets. An ordinary implementation, same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from attrs import evolve

from dooers.access import visible
from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.exceptions import NotFoundError, StoreError
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
from dooers.stores import COUNTED, IN_MEMORY, Schema, View, nowhere, running_in, snapshot_of
from dooers.stores.sql import check_filter
from dooers.stores.titles import is_in, pattern_of
from dooers.turn import at_work

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
        self._threads: dict[str, Thread] = {}
        self._events: dict[str, dict[str, ThreadEvent]] = {}
        self._thread_of_event: dict[str, str] = {}
        self._runs: dict[str, Run] = {}
        self._beats: dict[str, datetime] = {}
        self._keys: dict[str, tuple[str, str]] = {}
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
        if change.repeat_key is not None and change.repeat_key in self._keys:
            thread_id, event_id = self._keys[change.repeat_key]
            first = self._events[thread_id][event_id]
            return evolve(change, thread=self._threads[thread_id], events=(first,), created=False, repeated=True)
        known = self._threads.get(change.thread.id)
        if known is not None and change.exact and not change.opens and known.created_at != change.thread.created_at:
            known = None  # another one, made again under the same id
        if known is None and not change.opens:
            raise NotFoundError("there is no such thread")
        if change.guard is not None and not visible(known or change.thread, change.guard):
            raise NotFoundError("there is no such thread")
        if change.during is not None and not at_work(change, self._runs.get(change.during)):
            raise nowhere(change)
        thread = known or change.thread
        if change.removes:
            self._forget(thread.id)
            return evolve(change, thread=thread)
        events: list[ThreadEvent] = []
        thread = evolve(thread, last_seq=thread.last_seq + change.takes - len(change.events))
        for event in change.events:
            if event.id in self._thread_of_event:
                raise StoreError(f"there is an event {event.id!r} already")
            seq = thread.last_seq + 1
            at = event.created_at
            thread = evolve(thread, last_seq=seq, last_event_at=at, updated_at=at)
            events.append(evolve(event, seq=seq, turn_seq=event.turn_seq or seq))
        thread = evolve(thread, **change.patch)
        self._threads[thread.id] = thread
        self._events.setdefault(thread.id, {}).update({event.id: event for event in events})
        self._thread_of_event.update({event.id: thread.id for event in events})
        for run in change.runs:
            begun = self._runs.get(run.id)
            if begun is None:
                self._runs[run.id] = run
                self._beats[run.id] = run.started_at
            elif begun.status == "running":
                self._runs[run.id] = evolve(begun, status=run.status, ended_at=run.ended_at, error=run.error)
        if change.repeat_key is not None and events:
            self._keys[change.repeat_key] = (thread.id, events[0].id)
        return evolve(change, thread=thread, events=tuple(events), created=known is None)

    def _forget(self, thread_id: str) -> None:
        del self._threads[thread_id]
        for event_id in self._events.pop(thread_id, {}):
            del self._thread_of_event[event_id]
        self._runs = {run.id: run for run in self._runs.values() if run.thread_id != thread_id}
        self._beats = {run_id: at for run_id, at in self._beats.items() if run_id in self._runs}
        self._keys = {key: where for key, where in self._keys.items() if where[0] != thread_id}

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
            self._keys = {key: where for key, where in self._keys.items() if where[1] != event_id}

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

    async def view(self, query: EventQuery) -> View | None:
        thread = await self.thread(query.thread_id)
        if thread is None:
            return None
        return thread, await self.events(query), await self.runs(running_in(thread.id))

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
