"""Azure Cosmos DB: the queues that keep the order of Changes, the reads, the settings. What the documents are is `cosmos_documents.py`, how
a Change is written `cosmos_writer.py`, what a request is `cosmos_container.py`.

What it costs, in request units as Microsoft states them for documents of about a kilobyte: a point read is 1, a query of one partition
about 3, a write about 6 to 10 with the few paths that are indexed. So:

- A Change is one transaction, and in a thread that this process wrote last it is the only request: the thread's document is
  remembered, and its ETag says whether that was right. Changes that wait for it share the next one, and pay the thread's document once.
  A message with a repeat key pays one write more, for the key's own document.
- Reading a thread's events is one query and one point read side by side, both in the thread's partition.
- What comes with an event's or a run's id alone (`event`, `run`, `remove_event`) asks all partitions. A document that leads from the id to
  the thread would cost a write for each event, to save a few units in calls that are made for one event in thousands.
- The heartbeat of a process is one write, however many runs it has; looking for dead ones is `cosmos_beats.py`.
- Looking for titles reads the index of all titles there are, and then only the documents that have the text.
- Lists of threads and of runs ask all partitions too; there is no other way to sort what lies in many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import evolve

from dooers.codec import dumps, loads
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError, StoreError
from dooers.history import Said
from dooers.models import Change, EventQuery, Run, RunQuery, Snapshot, StoredSettings, Thread, ThreadEvent, ThreadQuery
from dooers.stats import Tally
from dooers.stores import COUNTED, Page, Schema, View, page_of, running_in, snapshot_of
from dooers.stores.cosmos_beats import Beats
from dooers.stores.cosmos_container import BATCH, READ_AGAIN, Conflict, Container, Operation, priced
from dooers.stores.cosmos_documents import (
    INDEXING,
    THREAD,
    Query,
    count_threads,
    event_name,
    field_document,
    field_name,
    list_events,
    list_runs,
    list_threads,
    run_name,
    settings_partition,
    shown,
    thread_partition,
)
from dooers.stores.cosmos_writer import Writer, together
from dooers.stores.rows import event_of, run_of, stamp, thread_of

__all__ = ["CosmosStore"]

log = logging.getLogger("dooers")

# Threads that are written at the same time. More would only wait for a connection.
WRITERS = 64

# Changes of one thread that wait are written in one transaction. Each of a turn is an event or a run or two; a transaction holds 100.
GROUP = 40

_Waiting = deque[tuple[Change, "asyncio.Future[Change]"]]


class CosmosStore:
    """Conversations in one container of a Cosmos DB account. `database_host` is the account's URL, `database_key` its key."""

    def __init__(self, config: WorkerConfig) -> None:
        self._auto_migrate = config.database_auto_migrate
        self._container = Container(config)
        self.tally = Tally()
        self._writer = Writer(self._container, config.database_timeout, self.tally)
        self._beats = Beats(self._container, self._writer, config.run_timeout)
        self._slots = asyncio.Semaphore(WRITERS)
        self._queues: dict[str, _Waiting] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # ------------------------------------------------------------ lifecycle

    async def open(self) -> None:
        try:
            await self._container.open()
            if self._auto_migrate:
                await self._container.create(INDEXING)
            await self._container.check()
            await self._finish_removals()
        except BaseException:
            await self._container.close()
            raise

    async def close(self) -> None:
        try:
            while self._tasks:
                await asyncio.wait(self._tasks.values())
        finally:
            await self._container.close()

    async def migrate(self) -> str:
        async with self._container.opened():
            await self._container.create(INDEXING)
            await self._container.check()
            return f"there is a container {self._container.name!r}"

    async def schema(self) -> Schema:
        name = self._container.name
        try:
            async with self._container.opened():
                await self._container.check()
        except StoreError as error:
            if getattr(error.__cause__, "status_code", 0) != 404:
                raise
            return Schema(False, f"no container {name!r}", f"a container {name!r}")
        return Schema(True, f"a container {name!r}", f"a container {name!r}")

    async def ping(self) -> None:
        await self._container.check()

    async def _finish_removals(self) -> None:
        """Go on where a process ended in the middle of removing a thread."""
        for thread_id in await self._gone():
            try:
                await self._writer.purge(thread_id)
            except DooersError:
                log.warning("what is left of the removed thread %s could not be deleted", thread_id, exc_info=True)

    async def _gone(self) -> list[str]:
        return await self._container.query("SELECT VALUE c.thread_id FROM c WHERE c.kind = 'removed'", {})

    # ------------------------------------------------------------ writing

    def apply(self, change: Change) -> asyncio.Future[Change]:
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._beats.begun(change.runs)
        self._queues.setdefault(change.thread.id, deque()).append((change, future))
        self._wake(change.thread.id)
        return future

    def _wake(self, thread_id: str) -> None:
        """See to it that somebody writes what waits in this thread's queue, and that an empty queue goes away."""
        if thread_id in self._tasks:
            return
        if not self._queues[thread_id]:
            del self._queues[thread_id]
            return
        task = asyncio.create_task(self._drain(self._queues[thread_id]), name=f"dooers-cosmos-{thread_id}")
        self._tasks[thread_id] = task
        task.add_done_callback(lambda _: self._drained(thread_id))

    def _drained(self, thread_id: str) -> None:
        del self._tasks[thread_id]
        self._wake(thread_id)  # a task that a loop which ends cancelled before it began has written nothing

    async def _drain(self, waiting: _Waiting) -> None:
        while waiting:
            async with self._slots:
                group = [waiting.popleft()]
                while waiting and len(group) < GROUP and together(group[-1][0], waiting[0][0]):
                    group.append(waiting.popleft())
                try:
                    results: list[Change | DooersError] = await self._write([change for change, _ in group])
                except BaseException as error:
                    results = [StoreError(f"the database did not do it ({type(error).__name__})") for _ in group]
                    raise
                finally:
                    for (_, future), result in zip(group, results, strict=True):
                        if not future.done():
                            _end(future, result)

    async def _write(self, changes: list[Change]) -> list[Change | DooersError]:
        with priced("thread %s: %d changes", changes[0].thread.id, len(changes)):
            return await self._writer.write(changes)

    async def beat(self, process_id: str, at: datetime) -> None:
        with priced("the heartbeat of process %s", process_id):
            await self._again(*self._beats.sign(process_id, at))

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        with priced("looking for dead processes"):
            return await self._beats.silent(before, at)

    async def remove_event(self, event_id: str) -> None:
        document = await self._by_name(event_name(event_id))
        if document is not None:
            await self._writer.remove_event(document)

    # ------------------------------------------------------------ reading

    async def _query(self, query: Query) -> list[Any]:
        return await self._container.query(query.text, query.values, query.partition)

    async def _by_name(self, name: str) -> dict[str, Any] | None:
        """An event or a run of any thread, if that thread is there and shows it."""
        found = await self._container.query("SELECT * FROM c WHERE c.id = @name AND c.kind != 'void'", {"name": name})
        for document in found:
            head = await self._container.read(THREAD, document["pk"])
            thread = shown(head)
            if thread is not None and document["body"].get("seq", 0) <= thread.last_seq:
                return dict(document)
        return None

    async def thread(self, thread_id: str) -> Thread | None:
        return shown(await self._container.read(THREAD, thread_partition(thread_id)))

    async def threads(self, query: ThreadQuery) -> list[Thread]:
        return [thread_of(row["body"]) for row in await self._query(list_threads(query))]

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        found: int = sum(await self._query(count_threads(equal, containing)))
        return min(found, at_most)

    async def reach(self, query: ThreadQuery, rows: int) -> tuple[datetime, str] | None:
        list_threads(query)  # a wrong filter is told here too
        return None  # the index has the titles, and to count up to a place would cost more than what it saves

    async def event(self, event_id: str) -> ThreadEvent | None:
        document = await self._by_name(event_name(event_id))
        return None if document is None else event_of(document["body"])

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        asked = list_events(query)
        thread, rows = await asyncio.gather(self.thread(query.thread_id), self._query(asked))
        if thread is None:
            return []
        if any(row["body"]["seq"] > thread.last_seq for row in rows):
            # Written since, or still being staged: the page that this thread has is another one.
            rows = await self._query(list_events(query, thread.last_seq))
        return _events(query, rows)

    async def said(self, query: EventQuery) -> list[Said]:
        return [Said.of(event) for event in await self.events(query)]

    async def page(self, thread_id: str, *, before_event_id: str | None = None, limit: int) -> Page:
        document = await self._container.read(THREAD, thread_partition(thread_id))
        thread = shown(document)
        if thread is None or document is None:
            return None, None
        reader = _Reader(self, document, thread)
        return await page_of(reader, thread_id, before_event_id=before_event_id, limit=limit)

    async def snapshot(
        self, thread_id: str, *, after_event_id: str | None = None, at_least_page: bool = False
    ) -> Snapshot | None:
        while True:
            document = await self._container.read(THREAD, thread_partition(thread_id))
            thread = shown(document)
            if thread is None or document is None:
                return None
            snapshot = await self._snapshot_at(document, thread, after_event_id, at_least_page)
            # What a thread holds at a version stays as it is, unless it is removed in the middle of reading.
            now = await self._container.read(THREAD, document["pk"])
            if now is not None and shown(now) is not None and now["maker"] == document["maker"]:
                return snapshot

    async def _snapshot_at(
        self, document: dict[str, Any], thread: Thread, after_event_id: str | None, at_least_page: bool
    ) -> Snapshot | None:
        reader = _Reader(self, document, thread)
        return await snapshot_of(reader, thread.id, after_event_id=after_event_id, at_least_page=at_least_page)

    async def run(self, run_id: str) -> Run | None:
        document = await self._by_name(run_name(run_id))
        return None if document is None else run_of(document["body"])

    async def runs(self, query: RunQuery) -> list[Run]:
        list_runs(query, [])  # a wrong filter is told before anything is asked
        if "thread_id" in query.equal and await self.thread(query.equal["thread_id"]) is None:
            return []
        gone = [] if "thread_id" in query.equal else await self._gone()
        return [run_of(row["body"]) for row in await self._query(list_runs(query, gone))]

    # ------------------------------------------------------------ settings

    async def settings(self, worker_id: str) -> StoredSettings:
        partition = settings_partition(worker_id)
        fields = await self._container.query("SELECT * FROM c WHERE c.pk = @pk", {"pk": partition}, partition)
        if not fields:
            return StoredSettings()
        newest = max(datetime.fromisoformat(one["updated_at"]) for one in fields)
        return StoredSettings({one["field_id"]: loads(one["value"]) for one in fields}, newest)

    async def set_settings(self, worker_id: str, values: Mapping[str, Any], at: datetime) -> None:
        if len(values) > BATCH:
            raise StoreError(
                f"expected at most {BATCH} fields at once, got {len(values)}: Cosmos DB writes no more in one transaction"
            )
        puts: list[Operation] = [
            ("upsert", (field_document(worker_id, name, value, stamp(at)),), {}) for name, value in values.items()
        ]
        # Each field has a document of its own, so nobody's write is in anybody's way; and to write it again is no harm.
        await self._again(settings_partition(worker_id), puts)

    async def _again(self, partition: str, operations: list[Operation]) -> None:
        for left in range(READ_AGAIN, -1, -1):
            try:
                if operations:
                    await self._container.commit(partition, operations)
                return
            except Conflict as conflict:
                if left == 0:
                    raise StoreError(f"Cosmos DB did not do it ({conflict})") from conflict
                await asyncio.sleep(0.1)

    async def configured(self) -> list[str]:
        """The worker ids that have settings, sorted."""
        found = await self._container.query("SELECT VALUE c.worker_id FROM c WHERE c.kind = 'setting'", {})
        return sorted(set(found))

    async def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> bool:
        """Replace a stored value while it is still `was`; when it was set stays. Whether it did."""
        partition, name = settings_partition(worker_id), field_name(field_id)
        after = field_document(worker_id, field_id, value, "")
        unsure = False
        for left in range(READ_AGAIN, -1, -1):
            found = await self._container.read(name, partition)
            if found is not None and unsure and found["value"] == after["value"]:
                return True  # only the answer was lost
            if found is None or found["value"] != dumps(was):  # as JSON, for 1 == True in Python
                return False
            after["updated_at"] = found["updated_at"]
            try:
                await self._container.commit(partition, [("replace", (name, after), {"if_match_etag": found["_etag"]})])
                return True
            except Conflict as conflict:
                unsure = unsure or conflict.status == 0
                if left == 0:
                    raise StoreError(f"Cosmos DB did not do it ({conflict})") from conflict
        return False


class _Reader:
    """Reads a thread as it was at one version of its document."""

    def __init__(self, store: CosmosStore, document: dict[str, Any], thread: Thread) -> None:
        self._store, self._document, self._thread = store, document, thread

    async def view(self, query: EventQuery, *, runs: bool = True) -> View:
        if not runs:
            return self._thread, await self.events(query), []
        events, running = await asyncio.gather(self.events(query), self.runs(running_in(query.thread_id)))
        return self._thread, events, running

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        return _events(query, await self._store._query(list_events(query, self._thread.last_seq)))

    async def runs(self, query: RunQuery) -> list[Run]:
        rows = await self._store._query(list_runs(query, [], self._document["version"]))
        return [evolve(run_of(row["body"]), status="running", ended_at=None, error=None) for row in rows]

    async def seq_of(self, thread_id: str, event_id: str) -> int | None:
        event = await self._store._container.read(event_name(event_id), self._document["pk"])
        seq = event["body"]["seq"] if event is not None and event["kind"] == "event" else None
        return seq if seq is not None and seq <= self._thread.last_seq else None


def _events(query: EventQuery, rows: list[Any]) -> list[ThreadEvent]:
    events = [event_of(row["body"]) for row in rows]
    return events if query.oldest_first else events[::-1]


def _end(future: asyncio.Future[Change], result: Change | DooersError) -> None:
    if isinstance(result, Change):
        future.set_result(result)
    else:
        future.set_exception(result)
