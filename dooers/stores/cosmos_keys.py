"""Repeat keys in Cosmos DB: of the Changes with one key, in whichever threads and processes, one is written. The writer asks here first.

A key is a document in a partition of its own, so it cannot be in the transaction that writes the event. Hence two steps: the key's
document names the event that is going to be written (a claim), then the event is written. The first event with a key is the one that is
named *and* is there. A claim whose event does not come is dead; whoever wants the key then writes a void where that event would go: if
its writer lives after all, its transaction fails on that, and it comes back as a repeat. Time decides only when somebody gives up
waiting, never who is right.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from weakref import WeakValueDictionary

from attrs import evolve

from dooers.models import Change
from dooers.stores.cosmos_container import Conflict, Container, Operation, Tries
from dooers.stores.cosmos_documents import (
    KEY,
    THREAD,
    claim_document,
    event_name,
    key_partition,
    shown,
    thread_partition,
    void_document,
)
from dooers.stores.rows import event_of

__all__ = ["LEASE", "RepeatKeys"]

# Seconds that a claim or a stage may stand still before it is taken for one whose writer is gone. Being wrong costs that writer its try.
LEASE = 1.0


class RepeatKeys:
    """Who was first with a key."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def alone(self, repeat_key: str) -> asyncio.Lock:
        """Repeats in this process wait for the first one, in order, instead of finding its claim half done."""
        return self._locks.setdefault(repeat_key, asyncio.Lock())

    async def claim(self, change: Change, mark: str, tries: Tries) -> Change | None:
        """Make the key name this Change's first event. The first Change with the key, if that is another one."""
        key, event = change.repeat_key or "", change.events[0]
        claim, partition = claim_document(key, change.thread.id, event.id, mark), key_partition(key)
        operation: Operation = ("create", (claim,), {})
        while True:
            try:
                await self._container.commit(partition, [operation])
                return None
            except Conflict as conflict:
                held = await self._container.read(KEY, partition)
                if held is not None and held["mark"] == mark:
                    return None
                if held is not None:
                    first = await self._fate(change, held, tries)
                    if first is not None:
                        return first
                    operation = ("replace", (KEY, claim), {"if_match_etag": held["_etag"]})
                else:
                    operation = ("create", (claim,), {})
                if conflict.status == 0 or held is None:
                    await tries.again(conflict)

    async def _fate(self, change: Change, held: dict[str, Any], tries: Tries) -> Change | None:
        """What became of a claim: the Change that made it, or None if there is none and there never will be."""
        until = time.monotonic() + LEASE
        if held["event_id"] == change.events[0].id and held["thread_id"] == change.thread.id:
            return None  # this very Change, tried before: it can be written once only, and is not in its own way
        while True:
            pending, first = await self._named(change, held)
            if not pending:
                return first
            if time.monotonic() > until:
                void = void_document(held["thread_id"], held["event_id"])
                try:
                    await self._container.commit(void["pk"], [("create", (void,), {})])
                    return None
                except Conflict as conflict:
                    await tries.again(conflict)
            else:
                await asyncio.sleep(0.05)

    async def _named(self, change: Change, held: dict[str, Any]) -> tuple[bool, Change | None]:
        """Whether the event that a key names may still come, and if it is there, the Change it makes of this one."""
        partition = thread_partition(held["thread_id"])
        event = await self._container.read(event_name(held["event_id"]), partition)
        if event is None or event["kind"] != "event":
            return event is None, None
        document = await self._container.read(THREAD, partition)
        thread = shown(document)
        if thread is None:
            return document is not None and document["kind"] == "making", None
        if event["body"]["seq"] > thread.last_seq:
            return True, None
        return False, evolve(change, thread=thread, events=(event_of(event["body"]),), created=False, repeated=True)

    async def first(self, change: Change) -> Change | None:
        """The first Change with this one's key, if its event is there."""
        held = await self._container.read(KEY, key_partition(change.repeat_key or ""))
        return None if held is None else (await self._named(change, held))[1]

    async def forget(self, repeat_key: str | None, tries: Tries, **what: str) -> None:
        """Forget a key, if it still names that event, or has that mark."""
        partition = key_partition(repeat_key or "")
        while (held := await self._container.read(KEY, partition)) is not None:
            if any(held[name] != value for name, value in what.items()):
                return
            try:
                await self._container.commit(partition, [("delete", (KEY,), {"if_match_etag": held["_etag"]})])
            except Conflict as conflict:  # somebody else's by now, or the answer was lost: look again
                await tries.again(conflict)
