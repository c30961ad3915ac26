"""A broker over Redis or Valkey: pub/sub for what is told, a key with a lease for each lock. `broker_url="redis://host:6379/0"`.

Not a store: pub/sub keeps nothing. Who was away is told that it missed something, and reads the database. So none of Redis's own
persistence needs to be on; restarted, it knows no locks, and whoever holds one takes it back. One server (with or without replicas), not
a cluster; two connections a process.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson

from dooers import StoreError, WorkerConfig
from dooers.brokers.keylocks import KeyLocks
from dooers_contrib.redis_connection import ConnectionPool, Ear, Mouth, RedisError, new_pool, read_url

__all__ = ["RedisBroker"]

log = logging.getLogger("dooers")

# Seconds that closing may take, at most.
CLOSING = 2.0
# How many processes are remembered by the number of what they said last.
SENDERS = 1_000

# Each of these may be run twice without harm, for an answer that was lost says nothing about whether it was done. KEYS: the lock, and
# the list of those who want it. ARGV: the token of who asks, and the lease.
#
# Takes the lock, or stands in line for it; then the answer is in how many milliseconds it is worth another look.
_TAKE = """
local holder = redis.call('get', KEYS[1])
if not holder or holder == ARGV[1] then
    redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
    redis.call('lrem', KEYS[2], 0, ARGV[1])
    return 0
end
if not redis.call('lpos', KEYS[2], ARGV[1]) then redis.call('rpush', KEYS[2], ARGV[1]) end
redis.call('pexpire', KEYS[2], 10 * ARGV[2])
local left = redis.call('pttl', KEYS[1])
return left > 0 and left or tonumber(ARGV[2])
"""
# Lets go of the lock, or of the place in line. The first in line whose process is there has it then, and is told so: who frees a lock
# that others want cannot be faster than they are.
_FREE = """
redis.call('lrem', KEYS[2], 0, ARGV[1])
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
while true do
    local heir = redis.call('lpop', KEYS[2])
    if not heir then return redis.call('del', KEYS[1]) end
    redis.call('set', KEYS[1], heir, 'PX', ARGV[2])
    if redis.call('publish', ARGV[3] .. string.sub(heir, 1, 32), heir .. ' ' .. ARGV[4]) > 0 then return 1 end
end
"""
# Holds the lock for another lease: 1, or 2 where Redis had forgotten it, or 0 where it is somebody else's by now.
_KEEP = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return holder and 1 or 2
"""


class RedisBroker:
    """An ordinary broker, over a Redis server. Its URL is what redis-py reads: `rediss://` for TLS, `unix:///path/to.sock?db=0`.

    Who shares a Redis hears each other if they share the database: its type, its name and the prefix of its tables. Not its host, which may
    have another name on another machine: databases of the same name on several servers need each their own Redis database (`/1`), or
    `?channel=staging`. A SQLite file is one machine's, and its path is resolved; a database in memory is nobody else's.

    All times follow from `run_timeout`, how long somebody gives no sign of life before he counts as dead: a lock is leased for so long and
    renewed three times as often, a third of it is how long Redis may take to answer, and a connection that is dead is found out in two.
    """

    alone = False
    # Redis cuts off who is 32 MiB behind, if nobody told it otherwise.
    limit: int | None = 8 * 1024 * 1024
    announce = None

    def __init__(self, config: WorkerConfig) -> None:
        self._url, db, channel = read_url(config.broker_url or "redis://localhost:6379/0")
        self._timeout = config.database_timeout
        self._lease = config.run_timeout
        self._patience = max(self._lease / 3, 0.1)
        self._name = f"dooers:{db}:{f'channel:{channel}' if channel else _database(config)}"
        self._mouth: Mouth | None = None
        self._me = ""
        self._tokens = count()
        self._keys = KeyLocks()
        self._held: dict[str, str] = {}  # and the token of each; "" once it was lost
        self._turns: dict[str, tuple[str, asyncio.Event]] = {}  # by the token of who waits: the key, and when to look
        self._renew = asyncio.Event()
        self._last: dict[str, int] = {}
        self._misheard = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._heard: Callable[[str], None] = lambda text: None
        self._missed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ the connections

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed
        self._me = token_hex(16)  # not earlier: there may have been a fork
        self._last, self._renew = {}, asyncio.Event()
        pool = new_pool(self._url, self._patience, f"dooers-{self._me}")
        mouth = Mouth(pool, f"{self._name}:news", self._me, self._patience)
        ear = Ear(pool, (f"{self._name}:news", f"{self._name}:to:{self._me}"), self._patience, self._hear, self._back)
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        works = (mouth.run(), ear.run(listening), self._keep(mouth))
        self._tasks = [asyncio.create_task(work, name="dooers-broker") for work in works]
        self._mouth = mouth
        try:
            async with asyncio.timeout(self._timeout):
                await listening
                await self._let_go(mouth, "", "nobody")  # and it lets us speak
        except BaseException as error:
            self._mouth = None
            await self._end(pool, mouth)
            if isinstance(error, RedisError | OSError | TimeoutError):
                raise StoreError(f"the broker cannot reach Redis ({type(error).__name__})") from error
            raise
        self._pool = pool

    async def close(self) -> None:
        mouth, self._mouth = self._mouth, None
        if mouth is None:
            return
        for key, token in self._held.items():
            self._let_go(mouth, key, token)
            self._keys.release(key)
        self._held.clear()
        for token, (key, turn) in self._turns.items():
            self._let_go(mouth, key, token)
            turn.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await mouth.drain()
        finally:
            await self._end(self._pool, mouth)

    async def _end(self, pool: ConnectionPool, mouth: Mouth) -> None:
        mouth.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        try:
            await asyncio.wait(tasks)
        finally:
            with suppress(RedisError, OSError):
                await pool.disconnect()

    def _back(self) -> None:
        """The connection was away. If Redis was, it may have forgotten the locks: who holds one goes first, then who wants one."""
        self._renew.set()
        asyncio.get_running_loop().call_later(self._lease / 6, self._look)
        self._missed()

    # ------------------------------------------------------------ speaking and hearing

    def tell(self, text: str) -> None:
        if self._mouth is not None:
            self._mouth.say(text)

    def _hear(self, channel: str, data: bytes) -> None:
        try:
            if channel.endswith(":news"):
                self._hear_news(*orjson.loads(data))
            else:
                self._hear_turn(*data.decode().split(" ", 1))
        except Exception as error:
            self._misheard += 1
            if self._misheard.bit_count() == 1:  # the first, the second, the fourth: whoever says it says it often
                log.error(
                    "what the broker heard on %s was not understood (%d times so far)",
                    channel,
                    self._misheard,
                    exc_info=error,
                )

    def _hear_news(self, sender: str, number: int, dropped: bool, texts: list[str]) -> None:
        if sender == self._me or number <= self._last.get(sender, 0):
            return
        self._last.pop(sender, None)
        self._last[sender] = number
        if len(self._last) > SENDERS:
            del self._last[next(iter(self._last))]
        if dropped:
            self._missed()
        for text in texts:
            self._heard(text)

    def _hear_turn(self, token: str, key: str) -> None:
        """A key was given to us, while we waited for it or no more."""
        if token in self._turns:
            self._turns[token][1].set()
        elif self._mouth is not None and self._held.get(key) != token:
            self._let_go(self._mouth, key, token)

    # ------------------------------------------------------------ locks

    async def lock(self, key: str) -> None:
        await self._keys.acquire(key)
        mouth, token = self._mouth, f"{self._me}:{next(self._tokens)}"
        try:
            if mouth is None:
                raise StoreError("this broker is not open")
            await self._take(mouth, key, token)
        except BaseException as error:
            # It may be given to us in this moment. What lets go of it comes after what asked for it.
            if mouth is not None:
                self._let_go(mouth, key, token)
            self._keys.release(key)
            if isinstance(error, TimeoutError):
                raise StoreError(f"Redis gave no answer in {self._timeout:g} seconds") from error
            raise
        self._held[key] = token

    def unlock(self, key: str) -> None:
        token = self._held.pop(key, None)
        if token is not None and self._mouth is not None:
            self._let_go(self._mouth, key, token)
            self._keys.release(key)

    async def _take(self, mouth: Mouth, key: str, token: str) -> None:
        turn = asyncio.Event()
        self._turns[token] = key, turn
        try:
            while True:
                async with asyncio.timeout(self._timeout):
                    left = await mouth.ask("EVAL", _TAKE, 2, *self._of(key), token, self._milliseconds)
                if self._mouth is not mouth:
                    raise StoreError("this broker is not open any more")
                if not left:
                    return
                # Whoever frees it says so. Whoever dies cannot: then its lease ends.
                with suppress(TimeoutError):
                    async with asyncio.timeout(left / 1000 + 0.005):
                        await turn.wait()
                turn.clear()
        finally:
            del self._turns[token]

    def _look(self) -> None:
        for _, turn in self._turns.values():
            turn.set()

    def _let_go(self, mouth: Mouth, key: str, token: str) -> Awaitable[Any]:
        # Later than a lease it is free anyhow.
        return mouth.ask(
            *("EVAL", _FREE, 2, *self._of(key), token, self._milliseconds, f"{self._name}:to:", key), within=self._lease
        )

    async def _keep(self, mouth: Mouth) -> None:
        """Renew what is held, in time."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease / 3):
                    await self._renew.wait()
            self._renew.clear()
            held = [(key, token) for key, token in self._held.items() if token]
            asked = [mouth.ask("EVAL", _KEEP, 2, *self._of(key), token, self._milliseconds) for key, token in held]
            for (key, token), answer in zip(held, asked, strict=True):
                try:
                    kept = await answer
                except StoreError as error:
                    log.warning("the lock of thread %s could not be renewed: %s", key, error)
                    continue
                if kept == 0 and self._held.get(key) == token:
                    self._held[key] = ""
                    log.warning(
                        "thread %s may be answered by two processes: this one, or Redis, was away too long", key
                    )

    @property
    def _milliseconds(self) -> int:
        return max(1, int(self._lease * 1000))

    def _of(self, key: str) -> tuple[str, str]:
        return f"{self._name}:lock:{key}", f"{self._name}:want:{key}"


def _database(config: WorkerConfig) -> str:
    name = config.database_name
    if config.database_type == "memory" or (config.database_type == "sqlite" and name == ":memory:"):
        name = token_hex(16)
    elif config.database_type == "sqlite":
        name = f"{platform.node()}:{Path(name).resolve()}"
    return f"{config.database_type}:{name}:{config.database_table_prefix}"
