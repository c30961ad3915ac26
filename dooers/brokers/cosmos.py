"""Order in a thread by leases in Cosmos DB, and nothing else: it carries no news. For workers that answer webhooks and background
dispatches; people who watch need a broker that tells, such as Redis.

A lease is a document that its holder writes anew while it lives. Whoever waits looks at it now and then, and takes over one that has not
changed for `run_timeout` seconds of its own monotonic clock: no two clocks need to agree. Each write names the ETag that it expects,
so of several that take over at once one does, and a holder that was only slow finds out.

What it costs: about 6 request units to take a lease, 6 to let go, 10 for each third of `run_timeout` in between, 1 for each look of
who waits. A lease of a process that died goes away by itself.

Who waits in the process that lets go comes before who waits elsewhere, for it does not have to look; but no longer than `run_timeout`
at a stretch, then the others have their chance.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from math import ceil
from typing import Any, TypeVar
from uuid import uuid4

from attrs import define

from dooers.brokers.keylocks import KeyLocks
from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError, StoreError
from dooers.stores.cosmos_container import Conflict, Container, Operation, Tries, priced
from dooers.stores.cosmos_documents import LEASE, lease_document, lease_partition

__all__ = ["CosmosBroker"]

log = logging.getLogger("dooers")

T = TypeVar("T")
# Seconds between two looks whether a key is free, at first and at last.
LOOK, LOOK_AT_MOST = 0.05, 1.0


@define(eq=False)
class _Lease:
    """A key that somebody here holds, or tries to."""

    key: str
    # Of the document as we wrote it last; None before that.
    etag: str | None = None
    # When that write was sent: nobody can take it for dead earlier than a lease after that.
    sent: float = 0.0
    # A document of ours is there, or may be: an answer was lost.
    left: bool = False
    # Whether there was a look at the document; the ETag of somebody else's, and since when it has been that.
    looked: bool = False
    seen: str | None = None
    since: float = 0.0
    # A try that is under way, later the renewals.
    work: asyncio.Task[Any] | None = None


class CosmosBroker:
    """Locks, in the container of the worker's own Cosmos DB store, which must have been opened once."""

    alone = True
    limit: int | None = None
    announce = None

    def __init__(self, config: WorkerConfig) -> None:
        if config.database_type != "cosmos":
            raise ConfigError(
                "WorkerConfig.broker_url: 'cosmos:' keeps locks in the worker's own database, so it expects database_type "
                f"'cosmos', got {config.database_type!r}; leave broker_url out, or give one that fits"
            )
        self._container = Container(config)
        self._timeout = config.database_timeout
        self._lease = config.run_timeout
        # Long enough that the service never takes away what others still hold to be alive.
        self._ttl = ceil(2 * config.run_timeout) + 1
        self._holder = uuid4().hex
        self._locks = KeyLocks()
        self._held: dict[str, _Lease] = {}
        # How many wait here for a key, and since when those here have had it one after the other.
        self._waiting: Counter[str] = Counter()
        self._stretch: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open = False

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        try:
            await self._container.open()
            await self._container.check()
        except BaseException:
            await self._container.close()
            raise
        self._open = True

    async def close(self) -> None:
        self._open = False
        for key in list(self._held):
            self.unlock(key)
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            await self._container.close()

    def tell(self, text: str) -> None:
        """Nobody hears it."""

    # ------------------------------------------------------------ taking

    async def lock(self, key: str) -> None:
        self._waiting[key] += 1
        try:
            await self._locks.acquire(key)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        lease = _Lease(key)
        try:
            with priced("taking the lock of %s", key):
                await self._take(lease)
        except BaseException:
            self._spawn(self._let_go(lease))  # which also ends our place in this process
            raise
        self._held[key] = lease
        self._stretch.setdefault(key, lease.sent)
        lease.work = self._spawn(self._keep(lease))

    async def _take(self, lease: _Lease) -> None:
        pause = LOOK
        while True:
            if not self._open:
                raise StoreError("this broker is not open")
            # A task of its own: being cancelled in the midst of a request, nobody would know what became of it.
            lease.work = trying = self._spawn(self._try(lease))
            if await asyncio.shield(trying):
                return
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, LOOK_AT_MOST)

    async def _try(self, lease: _Lease) -> bool:
        found = await self._read(lease.key) if lease.looked else None
        if found is not None and not self._may_take(lease, found):
            return False
        left, lease.looked, lease.left = lease.left, True, True
        sent = time.monotonic()
        try:
            lease.etag = await self._write(lease.key, None if found is None else found["_etag"])
        except Conflict as conflict:
            lease.left = left or conflict.status == 0
            return False
        lease.sent = sent
        if not self._open:
            await self._drop(lease)  # now, for it is in this broker's tasks that `close` waits for
            raise StoreError("this broker is not open")
        # An answer that took so long says nothing about now: others may have seen it stand still. The next try writes it anew.
        return time.monotonic() - sent < self._lease / 2

    def _may_take(self, lease: _Lease, found: dict[str, Any]) -> bool:
        """Whether it is ours, left from a try whose answer was lost, or of somebody who is dead."""
        now = time.monotonic()
        if found["holder"] == self._holder:
            return True
        if found["_etag"] != lease.seen:
            lease.seen, lease.since = found["_etag"], now
        return now - lease.since >= self._lease

    # ------------------------------------------------------------ keeping

    async def _keep(self, lease: _Lease) -> None:
        """Write it anew, again and again. Ends when it is lost."""
        with priced("keeping the lock of %s", lease.key):
            while True:
                await asyncio.sleep(max(LOOK, lease.sent + self._lease / 3 - time.monotonic()))
                try:
                    async with asyncio.timeout(self._lease / 3):  # an answer that does not come must not cost the lease
                        if await self._renewed(lease):
                            continue
                    log.warning("thread %s may be answered by two processes: its lock could not be kept", lease.key)
                    lease.left = False
                    return
                except (StoreError, TimeoutError) as error:
                    log.info("the lock of thread %s is not renewed yet: %r", lease.key, error)
                    await asyncio.sleep(self._lease / 10)

    async def _renewed(self, lease: _Lease) -> bool:
        """Whether it is still ours, as far as anybody can know."""
        sent = time.monotonic()
        try:
            lease.etag = await self._write(lease.key, lease.etag)
            lease.sent = sent
        except Conflict:
            found = await self._read(lease.key)
            if found is None:
                log.warning("the lock of thread %s was gone, and is taken again", lease.key)
            elif found["holder"] != self._holder:
                return False
            lease.etag = None if found is None else found["_etag"]
        return True

    # ------------------------------------------------------------ letting go

    def unlock(self, key: str) -> None:
        lease = self._held.pop(key, None)
        if lease is not None:
            if lease.work is not None:
                lease.work.cancel()  # a renewal that arrives late finds another ETag, or nothing
            self._spawn(self._let_go(lease))

    async def _let_go(self, lease: _Lease) -> None:
        try:
            if lease.work is not None:
                await asyncio.wait([lease.work])
            if lease.left:
                with priced("letting go of the lock of %s", lease.key):
                    await self._drop(lease)
            await self._yield(lease.key)
        finally:
            self._locks.release(lease.key)

    async def _yield(self, key: str) -> None:
        """Before it goes on to the next one here: have others waited long enough?"""
        began = self._stretch.get(key)
        if began is None or (key in self._waiting and time.monotonic() - began < self._lease):
            return
        del self._stretch[key]
        if key in self._waiting and self._open:
            await asyncio.sleep(1.5 * LOOK_AT_MOST)  # all of them look meanwhile

    async def _drop(self, lease: _Lease) -> None:
        """Delete the document, if it is still ours."""
        tries, etag = Tries(self._timeout), lease.etag
        try:
            while True:
                if etag is None:
                    found = await self._read(lease.key)
                    if found is None or found["holder"] != self._holder:
                        break
                    etag = found["_etag"]
                gone: Operation = ("delete", (LEASE,), {"if_match_etag": etag})
                try:
                    await self._container.commit(lease_partition(lease.key), [gone])
                    break
                except Conflict as conflict:
                    etag = None
                    await tries.again(conflict)
            lease.left = False
        except StoreError as error:
            log.info("the lock of thread %s is left to go by itself: %r", lease.key, error)

    # ------------------------------------------------------------ the document

    async def _read(self, key: str) -> dict[str, Any] | None:
        return await self._container.read(LEASE, lease_partition(key))

    async def _write(self, key: str, etag: str | None) -> str | None:
        """Make it, or put it in the place of the one with this ETag. Its own ETag."""
        document = lease_document(key, self._holder, self._ttl)
        operation: Operation = (
            ("create", (document,), {}) if etag is None else ("replace", (LEASE, document), {"if_match_etag": etag})
        )
        return await self._container.commit(document["pk"], [operation])

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name="dooers-cosmos-lock")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
