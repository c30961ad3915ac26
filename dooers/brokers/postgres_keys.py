"""The keys of the broker over PostgreSQL: advisory locks of its one connection, asked for without waiting in the server.

Waiting there would keep the connection from everything else. So whoever does not get a key says that it is wanted, and whoever holds it
says that it has it, and that it is free when it is. A holder that says nothing stands still, or is gone without the server's knowing:
its connection is ended.

A key that nobody else wants is kept when its turn is over: the next turn of that thread in this process asks nobody. It is let go as
soon as somebody wants it, or when there are too many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

import asyncpg

from dooers.brokers.keylocks import KeyLocks
from dooers.exceptions import StoreError

__all__ = ["GONE", "AdvisoryKeys"]

log = logging.getLogger("dooers")

# What says that a connection was lost, or a statement with it.
GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# Seconds between two looks whether a key is free, at first and at most.
LOOK, LOOK_AT_MOST = 0.05, 1.0
# Keys kept at most: the server's table of locks is one for everybody, and it is finite.
KEPT = 500

# Lets go of some keys and tries to take others, in this order.
_ASK = (
    "SELECT array_agg(done ORDER BY n) FROM "
    "(SELECT n, CASE WHEN free THEN pg_advisory_unlock(hash) ELSE pg_try_advisory_lock(hash) END AS done FROM "
    "(SELECT n, free, hashtextextended(key, 0) AS hash FROM unnest($1::bool[], $2::text[]) "
    "WITH ORDINALITY AS t (free, key, n) ORDER BY n) AS asked) AS answered"
)
# Ends the connection that holds a key, and so lets go of it. A key is a number of 64 bits, and stands there in two halves.
_EVICT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid() "
    "AND classid::bigint << 32 | objid::bigint = hashtextextended($1, 0)"
)


class AdvisoryKeys:
    """The keys that this process holds or waits for.

    `run` runs a query and raises StoreError while there is no connection, `reach` does what needs one, again if it was lost, `say` tells
    all processes a word about a key, `spawn` runs what nobody waits for. `patience` is how many seconds a holder may be silent.
    """

    def __init__(
        self,
        name: str,
        patience: float,
        *,
        run: Callable[..., Awaitable[Any]],
        reach: Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]],
        say: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._prefix, self._patience = name, patience
        self._run, self._reach, self._say, self._spawn = run, reach, say, spawn
        self._freed: dict[str, asyncio.Event] = {}
        # How long somebody has waited for a key without a word from who holds it.
        self._silent: dict[str, float] = {}
        self._held: set[str] = set()
        self._wanted: set[str] = set()
        # Keys that are ours though no turn has them, the one that was not needed for the longest time first.
        self._kept: dict[str, None] = {}
        # When the last question was asked that was answered, in the time of the loop.
        self._asked_at = -inf
        self._locks = KeyLocks()
        # What is to be asked with the next query: many turns begin and end while one is on its way.
        self._asked: list[tuple[bool, str, asyncio.Future[bool]]] = []
        self._asking = False

    async def lock(self, key: str) -> None:
        await self._locks.acquire(key)
        try:
            if not await self._has_kept(key):
                await self._take(key)
        except BaseException:
            self._locks.release(key)
            raise
        self._held.add(key)

    async def _has_kept(self, key: str) -> bool:
        """Whether a key was kept, and is ours beyond doubt. It is not kept any more.

        Who wants a key says so, and takes it from us only after `patience` seconds. What was said before a question is heard before
        its answer. So if one was asked and answered since, nobody has taken the key from us while we stood still.
        """
        if key not in self._kept:
            return False
        del self._kept[key]
        if asyncio.get_running_loop().time() - self._asked_at < self._patience:
            return True
        await self._free(key, wanted=False)
        return False

    def answered(self, asked_at: float) -> None:
        """The server has answered what it was asked at this time."""
        self._asked_at = max(self._asked_at, asked_at)

    async def _take(self, key: str) -> None:
        freed, pause, unasked = self._freed.setdefault(key, asyncio.Event()), LOOK, inf
        self._silent[key], patience = 0.0, self._patience
        try:
            while not await self._try(key):
                if self._silent[key] > patience:
                    await self._evict(key)
                if unasked > patience / 3:
                    unasked = 0.0
                    self._say(f"want {key}")
                freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await freed.wait()
                unasked = inf if freed.is_set() else unasked + pause  # who has it next is to know of us, too
                self._silent[key] += pause
                pause = min(2 * pause, LOOK_AT_MOST)
        finally:
            del self._freed[key], self._silent[key]

    async def _evict(self, key: str) -> None:
        """Whoever holds this key does not say so: its process stands still, or its machine is gone and the server does not know."""
        self._silent[key] = 0.0
        with suppress(StoreError, *GONE):
            if await self._run(_EVICT, self._name(key)):
                log.warning("thread %s was held by a process that gave no sign of life", key)

    async def _try(self, key: str, *, at_once: bool = False) -> bool:
        asking = partial(self._ask, key, free=False)
        taking = asyncio.ensure_future(asking() if at_once else self._reach(asking))
        try:
            return bool(await asyncio.shield(taking))
        except asyncio.CancelledError:
            # Whoever was cancelled just as it was given the key gives it back.
            taking.add_done_callback(partial(self._give_back, key))
            raise

    def _give_back(self, key: str, taking: asyncio.Future[Any]) -> None:
        if not taking.cancelled() and taking.exception() is None and taking.result():
            self._spawn(self._free(key, wanted=True))

    def unlock(self, key: str) -> None:
        if key not in self._held:
            return
        self._held.discard(key)
        if key in self._wanted:
            self._wanted.discard(key)
            self._spawn(self._pass_on(key, wanted=True))
            return
        self._kept[key] = None
        self._locks.release(key)
        if len(self._kept) > KEPT:
            self._let_go(next(iter(self._kept)))

    def _let_go(self, key: str, *, wanted: bool = False) -> None:
        """Free a kept key; if a turn here is just taking it, that passes it on when it is over."""
        if self._locks.take(key):
            del self._kept[key]
            self._spawn(self._pass_on(key, wanted=wanted))
        elif wanted:
            self._wanted.add(key)

    async def _pass_on(self, key: str, *, wanted: bool) -> None:
        """Free a key for other processes, then for waiters in this one: those who asked from outside get their chance first."""
        try:
            await self._free(key, wanted=wanted)
            if wanted:
                await asyncio.sleep(LOOK)
        finally:
            self._locks.release(key)

    async def _free(self, key: str, *, wanted: bool) -> None:
        with suppress(StoreError, *GONE):  # with a connection that is lost, all its locks are
            await self._ask(key, free=True)
            if wanted:
                self._say(f"free {key}")

    async def _ask(self, key: str, *, free: bool) -> bool:
        """Let go of a key, or try to take it, together with what others ask at this moment."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.append((free, key, answer))
        if not self._asking:
            self._asking = True
            self._spawn(self._ask_all())
        return await answer

    async def _ask_all(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                try:
                    frees, keys = [free for free, *_ in asked], [self._name(key) for _, key, _ in asked]
                    for one, done in zip(asked, await self._run(_ASK, frees, keys), strict=True):
                        self._answer(*one, done)
                except BaseException as error:
                    for *_, answer in asked:
                        if not answer.done():
                            answer.set_exception(error if isinstance(error, Exception) else StoreError("closed"))
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._asking = False

    def _answer(self, free: bool, key: str, answer: asyncio.Future[bool], done: bool) -> None:
        if not answer.done():
            answer.set_result(done)
        elif done and not free:  # nobody waits for it any more
            self._spawn(self._free(key, wanted=True))

    def hear(self, word: str, key: str) -> None:
        """What a process said of a key."""
        if word == "free" and key in self._freed:
            self._freed[key].set()
        elif word == "have" and key in self._silent:
            self._silent[key] = 0.0
        elif word == "want" and key in self._held:
            self._wanted.add(key)
            self._say(f"have {key}")
        elif word == "want" and key in self._kept:
            self._let_go(key, wanted=True)

    def lose(self) -> None:
        """The connection is lost, and what is only kept is not worth to be taken again."""
        self._kept.clear()
        self._asked_at = -inf

    async def take_back(self) -> None:
        """The server let go of our keys as the connection ended. Take them again, before somebody else does."""
        self._wanted |= self._held  # who asked for them meanwhile was not heard
        for key in list(self._held):
            # Whoever reconnects waits here: lost again, there is nothing to wait for, and the next connection takes them back.
            with suppress(Exception):
                if not await self._try(key, at_once=True):
                    if key in self._held:
                        log.warning("thread %s is being answered by two processes: the broker was away", key)
                elif key not in self._held:  # let go of while it was asked for
                    await self._free(key, wanted=True)
        for freed in self._freed.values():  # who waits for a key looks, and asks for it, again
            freed.set()

    def forget(self) -> None:
        """The connection is closed, and all keys with it."""
        self._held.clear()
        self.lose()

    def _name(self, key: str) -> str:
        return f"{self._prefix} {key}"
