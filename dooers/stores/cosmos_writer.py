"""How a Change gets into Cosmos DB, and a thread out of it. Who waits for whom is `cosmos.py`'s business.

A Change is one transaction of the thread's partition. Its first operation replaces the thread's document, on condition that it is still
the one that was read (If-Match): so `seq` is given out once, and any other write to the thread in between makes this one look again.
Whoever looks again first asks whether it was written already, by the mark that it left: an answer may be lost on its way back.

What does not fit into one transaction is made safe by an order of steps, each of which may be the last one before a crash:

- **A repeat key** is in another partition: `cosmos_keys.py`.
- **Removing a thread** first turns its document into a tombstone: from then on nothing of the thread is seen. What is left
  is deleted, the tombstone last. A crash in between is made good by the next removal, the next thread of that id, or the next start.
- **More than a transaction holds** is staged: events above `last_seq`, which nobody sees, then one transaction that raises it. Others
  who find a stage wait, and if it does not move, they clear it; each stage holds the thread's ETag, so its writer fails then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from attrs import evolve, field, frozen

from dooers.access import visible
from dooers.codec import dumps
from dooers.exceptions import DooersError, NotFoundError, StoreError
from dooers.models import Change, Run, Thread
from dooers.stats import Tally
from dooers.stores import nowhere, store_error
from dooers.stores.cosmos_container import BATCH, Conflict, Container, Operation, SpoiltError, Tries
from dooers.stores.cosmos_documents import (
    THREAD,
    event_document,
    event_name,
    leftovers,
    run_document,
    run_name,
    shown,
    thread_document,
    thread_partition,
    tombstone_document,
)
from dooers.stores.cosmos_keys import LEASE, RepeatKeys
from dooers.stores.rows import run_of
from dooers.turn import as_stored, at_work, ends, has_ended

__all__ = ["Writer", "together"]

log = logging.getLogger("dooers")

# Threads whose document is remembered, so that the next Change need not read it. What is remembered wrongly costs one read more.
REMEMBERED = 1000
# Bytes of one transaction; the service takes two megabytes, with what the SDK wraps around.
BATCH_BYTES = 1_500_000


@frozen
class _Known:
    """A thread's document as it was last seen, and the runs that were open then; None for one that was not there."""

    document: dict[str, Any] | None
    runs: dict[str, dict[str, Any] | None] = field(factory=dict)


class Writer:
    """Writes Changes, one at a time for each thread."""

    def __init__(self, container: Container, timeout: float, tally: Tally) -> None:
        self._container = container
        self._timeout = timeout
        self._tally = tally
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._keys = RepeatKeys(container)

    async def write(self, changes: Sequence[Change]) -> list[Change | DooersError]:
        """Each Change as stored, or why nothing of it is seen. Several at once only if they are `together`: one transaction for all."""
        try:
            stored = await self._write(changes, uuid4().hex[:20])
            self._tally.count(len(changes))
            return [*stored]
        except (NotFoundError, StoreError) as error:
            each = isinstance(error, SpoiltError) or (
                isinstance(error, NotFoundError) and changes[0].during is not None
            )
            if len(changes) == 1 or not each:
                return [error for _ in changes]
        except Exception as error:
            if len(changes) == 1:
                return [store_error(error)]
        # One of them spoils it for the others: each for itself.
        return [(await self.write([change]))[0] for change in changes]

    async def _write(self, changes: Sequence[Change], mark: str) -> list[Change]:
        change = changes[0]
        if change.repeat_key is None:
            return [await self._remove(change, mark)] if change.removes else await self._append(changes, mark)
        async with self._keys.alone(change.repeat_key):
            if change.removes or not change.events:
                first = await self._keys.first(change)
                return [first] if first is not None else await self._write([evolve(change, repeat_key=None)], mark)
            return await self._append(changes, mark)

    # ------------------------------------------------------------ appending

    async def _append(self, changes: Sequence[Change], mark: str) -> list[Change]:
        change = changes[0]
        tries, claimed = Tries(self._timeout), False
        known = self._known.get(change.thread.id)
        fresh = known is None
        while True:
            if known is None:
                known = await self._look(change.thread.id)
                fresh = True
            try:
                known = await self._cleared(change.thread.id, known, mark)
                thread, created = _found(change, known.document)
                if not at_work(change, await self._run(change.during, known, change.thread.id)):
                    raise nowhere(change)
                if not created and not any(one.events or one.patch or one.runs for one in changes):
                    if fresh:
                        return [evolve(one, thread=thread) for one in changes]
                    known = None
                    continue
                if change.repeat_key is not None and not claimed:
                    first = await self._keys.claim(change, mark, tries)
                    if first is not None:
                        return [first]
                    claimed = True
                return await self._commit(changes, thread, created, known, mark)
            except NotFoundError:
                if fresh:
                    return [await self._refused(change, mark, claimed)]
                known = None
            except Conflict as conflict:
                self._known.pop(change.thread.id, None)
                known = await self._look(change.thread.id)
                fresh = True
                written = await self._written(changes, known, mark)
                if written is not None:
                    return written
                claimed = claimed and conflict.index == 0
                await tries.again(conflict)

    async def _run(self, run_id: str | None, known: _Known, thread_id: str) -> Run | None:
        """A run as it is. One that was open at the version of the thread that is known is so until that is another."""
        if run_id is None:
            return None
        if run_id not in known.runs:
            known.runs[run_id] = await self._container.read(run_name(run_id), thread_partition(thread_id))
        found = known.runs[run_id]
        return None if found is None else run_of(found["body"])

    async def _look(self, thread_id: str) -> _Known:
        return _Known(await self._container.read(THREAD, thread_partition(thread_id)))

    async def _commit(
        self, changes: Sequence[Change], thread: Thread, created: bool, known: _Known, mark: str
    ) -> list[Change]:
        stored = _applied(changes, thread, created)
        base = known.document
        version = 1 if base is None else base["version"] + 1
        runs = await self._runs([run for change in changes for run in change.runs], known, thread, version)
        documents = [
            event_document(event, mark, change.repeat_key if index == 0 else None)
            for change in stored
            for index, event in enumerate(change.events)
        ]
        batches = _batches([_create(document) for document in documents], [_put(run) for run in runs.values()])
        maker = mark if created or base is None else base["maker"]
        for count, batch in enumerate(batches[:-1], 1):
            if base is None or count > base.get("staging", {}).get("done", 0):
                # Still the version before: what a reader finds at this one is all of it.
                stage = {**thread_document(thread, version - 1, mark, maker), "staging": {"mark": mark, "done": count}}
                stage["kind"] = "making" if created else "thread"
                base = await self._transact(stage, base, batch)
        document = await self._transact(thread_document(stored[-1].thread, version, mark, maker), base, batches[-1])
        open_runs: dict[str, dict[str, Any] | None] = {
            name: run for name, run in {**known.runs, **runs}.items() if run and run["until"] is None
        }
        self._remember(thread.id, _Known(document, open_runs))
        return stored

    async def _transact(
        self, thread: dict[str, Any], base: dict[str, Any] | None, rest: Sequence[Operation]
    ) -> dict[str, Any]:
        """Put the thread's document in the place of the one it was made from, and the rest with it. The document, with its ETag."""
        first: Operation = (
            ("create", (thread,), {})
            if base is None
            else ("replace", (THREAD, thread), {"if_match_etag": base["_etag"]})
        )
        try:
            etag = await self._container.commit(thread["pk"], [first, *rest])
        except Conflict as conflict:
            if conflict.index == 0:
                raise
            # The thread was as expected, so it is the event: it is there already, or a void is.
            name, (document, *_), _ = rest[conflict.index - 1]
            if name != "create":
                raise
            found = await self._container.read(document["id"], thread["pk"])
            if found is None or found["kind"] == "void":
                raise
            raise SpoiltError(f"there is an event {document['body']['id']!r} already") from conflict
        return {**thread, "_etag": etag}

    async def _runs(
        self, runs: Sequence[Run], known: _Known, thread: Thread, version: int
    ) -> dict[str, dict[str, Any]]:
        """The documents of these runs as they are going to be. A run that has ended stays ended."""
        unknown = {run.id for run in runs if run.id not in known.runs} if known.document is not None else set()
        read = [self._container.read(run_name(run_id), thread_partition(thread.id)) for run_id in unknown]
        there = {**known.runs, **dict(zip(unknown, await asyncio.gather(*read), strict=True))}
        made: dict[str, dict[str, Any]] = {}
        for run in runs:
            begun, since = run, version
            if (document := made.get(run.id) or there.get(run.id)) is not None:
                begun, since = run_of(document["body"]), document["since"]
                if begun.status != "running":
                    continue
                begun = evolve(begun, status=run.status, ended_at=run.ended_at, error=run.error)
            made[run.id] = run_document(begun, thread.worker_id, since, None if begun.status == "running" else version)
        return made

    async def tidy(self, thread_id: str) -> bool:
        """Clear away what a dead process has left half done in a thread; whether there is a thread then."""
        tries, mark = Tries(self._timeout), uuid4().hex[:20]
        while True:
            try:
                return shown((await self._cleared(thread_id, await self._look(thread_id), mark)).document) is not None
            except Conflict as conflict:
                await tries.again(conflict)

    async def _written(self, changes: Sequence[Change], known: _Known, mark: str) -> list[Change] | None:
        """The Changes as stored, if it turns out that they were."""
        document = known.document
        thread = shown(document)
        if thread is None or document is None:
            return None
        created = document["maker"] == mark
        events = [event for change in changes for event in change.events]
        last_seq = 0
        if events:
            first = await self._container.read(event_name(events[0].id), document["pk"])
            if first is None or first.get("mark") != mark or first["body"]["seq"] > thread.last_seq:
                return None
            last_seq = first["body"]["seq"] - 1 - next(change.skips for change in changes if change.events)
        elif document["mark"] != mark and not has_ended(changes, await self._run(changes[0].during, known, thread.id)):
            return None
        numbered = _applied(changes, evolve(thread, last_seq=last_seq), created)
        return [evolve(change, thread=thread) for change in numbered]

    async def _cleared(self, thread_id: str, known: _Known, mark: str) -> _Known:
        """The thread without what another writer has left half done in it."""
        document = known.document
        while document is not None and document["kind"] != "removed":
            staging = document.get("staging")
            if staging is None or staging["mark"] == mark:
                return known
            await asyncio.sleep(LEASE)
            seen, known = document, await self._look(thread_id)
            document = known.document
            if document is None or document["_etag"] != seen["_etag"]:
                continue
            if document["kind"] == "making":
                document = await self._transact(tombstone_document(thread_id, mark), document, [])
                break
            document = await self._transact({**_own(document), "staging": {"mark": mark, "done": 0}}, document, [])
            return _Known(await self._swept(document, above=document["body"]["last_seq"]))
        if document is not None:
            await self.purge(thread_id)
            return await self._look(thread_id)
        return known

    async def _refused(self, change: Change, mark: str, claimed: bool) -> Change:
        if claimed:
            await self._keys.forget(change.repeat_key, Tries(self._timeout), mark=mark)
        elif change.repeat_key is not None and (first := await self._keys.first(change)) is not None:
            return first
        raise NotFoundError("there is no such thread")

    # ------------------------------------------------------------ removing

    async def _remove(self, change: Change, mark: str) -> Change:
        thread_id, tries, before = change.thread.id, Tries(self._timeout), None
        while True:
            self._known.pop(thread_id, None)
            document = (await self._look(thread_id)).document
            if document is not None and document["kind"] == "removed" and document["mark"] != mark:
                await self.purge(thread_id)
                document = None
            if before is not None and (document is None or document["kind"] == "removed"):
                break  # the answer was lost, the tombstone stands
            thread, _ = _found(change, document)
            try:
                await self._transact(tombstone_document(thread_id, mark), document, [])
            except Conflict as conflict:
                before = thread if conflict.status == 0 else before
                await tries.again(conflict)
                continue
            before = thread
            break
        try:
            await self.purge(thread_id)
        except DooersError:
            log.warning(
                "thread %s is removed, but not all of its documents; the next start goes on with that", thread_id
            )
        return evolve(change, thread=before)

    async def purge(self, thread_id: str) -> None:
        """Delete what a removed thread left behind, and then its tombstone. Several may do so at once."""
        tries = Tries(self._timeout)
        while True:
            document = await self._container.read(THREAD, thread_partition(thread_id))
            if document is None or document["kind"] != "removed":
                return
            try:
                document = await self._swept(document)
                last: Operation = ("delete", (THREAD,), {"if_match_etag": document["_etag"]})
                await self._container.commit(document["pk"], [last])
                return
            except Conflict as conflict:
                await tries.again(conflict)

    async def _swept(self, document: dict[str, Any], above: int | None = None) -> dict[str, Any]:
        """Delete the leftovers around a thread's document, as long as it is this very one: a new thread of the id has its own."""
        query = leftovers(document["pk"], BATCH - 1, above)
        while rest := await self._container.query(query.text, query.values, query.partition):
            for found in rest:
                if found.get("repeat_key") is not None:
                    await self._keys.forget(found["repeat_key"], Tries(self._timeout), event_id=found["event_id"])
            document = await self._transact(_own(document), document, [_delete(found["id"]) for found in rest])
        return document

    async def remove_event(self, document: dict[str, Any]) -> None:
        """Delete an event. The thread's document goes along, so that nobody counts on the event meanwhile."""
        tries, mark, thread_id = Tries(self._timeout), uuid4().hex[:20], document["body"]["thread_id"]
        while (found := (await self._look(thread_id)).document) is not None and shown(found) is not None:
            self._known.pop(thread_id, None)
            try:
                await self._transact({**_own(found), "mark": mark}, found, [_delete(document["id"])])
                break
            except Conflict as conflict:
                if await self._container.read(document["id"], found["pk"]) is None:
                    break
                await tries.again(conflict)
        if document.get("repeat_key") is not None:
            await self._keys.forget(document["repeat_key"], tries, event_id=document["body"]["id"])

    def _remember(self, thread_id: str, known: _Known) -> None:
        self._known[thread_id] = known
        self._known.move_to_end(thread_id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


# ---------------------------------------------------------------- pure parts


def _found(change: Change, document: dict[str, Any] | None) -> tuple[Thread, bool]:
    """The thread that a Change is about, and whether it is to be created. NotFoundError if neither may be."""
    known = shown(document)
    if known is not None and change.exact and not change.opens and known.created_at != change.thread.created_at:
        known = None  # another one, made again under the same id
    thread = known or (evolve(change.thread, last_seq=0) if change.opens and not change.removes else None)
    if thread is None or (change.guard is not None and not visible(thread, change.guard)):
        raise NotFoundError("there is no such thread")
    return thread, known is None


def together(first: Change, then: Change) -> bool:
    """Whether one transaction may hold both: what is found out about the thread and the run for one of them holds for the other."""
    alone = any(one.opens or one.removes or one.repeat_key is not None for one in (first, then)) or ends(first)
    return not alone and (
        (first.thread.id, first.thread.created_at, first.exact, first.guard, first.during)
        == (then.thread.id, then.thread.created_at, then.exact, then.guard, then.during)
    )


def _applied(changes: Sequence[Change], thread: Thread, created: bool) -> list[Change]:
    """The Changes as they are going to be stored, each with the thread as it leaves it."""
    return [evolve(change, created=created) for change in as_stored(thread, changes)]


def _own(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what the service adds to it."""
    return {name: value for name, value in document.items() if not name.startswith("_")}


def _create(document: dict[str, Any]) -> Operation:
    return ("create", (document,), {})


def _delete(name: str) -> Operation:
    return ("delete", (name,), {})


def _put(document: dict[str, Any]) -> Operation:
    # No condition of its own: the thread's ETag answers for the whole partition.
    return ("upsert", (document,), {})


def _batches(events: list[Operation], runs: list[Operation]) -> list[list[Operation]]:
    """As few transactions as hold these, with room for the thread's document; the runs in the last one, when it counts."""
    if len(runs) >= BATCH:
        raise SpoiltError(
            f"expected fewer than {BATCH} runs in a Change, got {len(runs)}: Cosmos DB writes no more at once"
        )
    batches: list[list[Operation]] = [[]]
    size = 0
    for operation in [*events, *runs]:
        weight = len(dumps(operation[1][0]).encode())
        if len(batches[-1]) == BATCH - 1 or (batches[-1] and size + weight > BATCH_BYTES):
            batches.append([])
            size = 0
        batches[-1].append(operation)
        size += weight
    if runs and len(batches) > 1 and len(batches[-1]) < len(runs):
        # The runs straddle: give them a transaction of their own, or they would show before the events do.
        flat = [operation for batch in batches for operation in batch]
        return [*_batches(flat[: -len(runs)], []), flat[-len(runs) :]]
    return batches
