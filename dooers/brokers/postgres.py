"""The broker that comes with PostgreSQL: LISTEN and NOTIFY, and advisory locks, on one connection of its own.

What is told of a Change is said by the store, in the transaction that stores it (`by_store`), so no crash can come between the two.
The connection must be to the server itself: behind a pooler that shares connections nobody hears anything. `broker_url` names the
server where the database's own address is such a pooler.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg

from dooers.brokers.keylocks import KeyLocks
from dooers.config import WorkerConfig
from dooers.exceptions import StoreError
from dooers.stores.postgres_connection import address

__all__ = ["PostgresBroker", "channel_of"]

log = logging.getLogger("dooers")

# A payload has less than 8,000 bytes, the last of them a zero.
LIMIT = 7900
# Texts that wait for the connection to come back, at most: pieces of messages are the most of it, and worth little by then.
WAITING = 10_000
# Seconds between two looks whether a key is free, at first and at last; whoever frees one that is wanted says so.
LOOK, LOOK_AT_MOST = 0.05, 1.0


def channel_of(config: WorkerConfig) -> str:
    """The channel of all processes that share these tables."""
    return f"dooers_{config.database_table_prefix}"


class PostgresBroker:
    """An ordinary broker, over a PostgreSQL server."""

    alone = False
    by_store = True
    limit: int | None = LIMIT

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._channel = channel_of(config)
        self._wants = f"{self._channel}_wants"
        self._connection: Any = None
        self._talk = asyncio.Lock()
        self._waiting: deque[str] = deque(maxlen=WAITING)
        self._something = asyncio.Event()
        self._lost = asyncio.Event()
        self._freed: dict[str, asyncio.Event] = {}
        self._held: set[str] = set()
        self._wanted: set[str] = set()
        self._locks = KeyLocks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: Callable[[str], None] = lambda text: None
        self._missed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ the connection

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed
        try:
            self._connection = await self._connect()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"the broker cannot reach PostgreSQL ({type(error).__name__})") from error
        for work in (self._speak, self._stay):
            self._spawn(work())

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.database_timeout):
                while self._waiting and self._connection is not None and not self._lost.is_set():
                    await asyncio.sleep(0.005)
                if any("free" in task.get_name() for task in self._tasks):
                    await asyncio.wait([task for task in self._tasks if "free" in task.get_name()])
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it ends either way
                await connection.close(timeout=1)

    async def _connect(self) -> Any:
        config, url = self._config, self._config.broker_url
        where = address(config)
        connection = await asyncpg.connect(
            **({"dsn": url, **({"ssl": where["ssl"]} if config.database_ssl else {})} if url else where),
            timeout=config.database_timeout,
            command_timeout=config.database_timeout,
            server_settings={"application_name": "dooers broker"},
        )
        connection.add_termination_listener(lambda _: self._lost.set())
        await connection.add_listener(self._channel, self._on_news)
        await connection.add_listener(self._wants, self._on_wants)
        return connection

    async def _stay(self) -> None:
        """Come back whenever the connection is lost, and say that something may have been missed."""
        while True:
            await self._lost.wait()
            log.warning("the broker has lost its connection to PostgreSQL")
            pause = 0.05
            while True:
                try:
                    self._connection = await self._connect()
                    break
                except Exception as error:
                    log.info("the broker is not back yet: %r", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 2.0)
            self._lost.clear()
            self._something.set()
            await self._take_back()
            self._missed()

    def _spawn(self, work: Any, name: str = "dooers-broker") -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, query: str, *values: Any) -> Any:
        async with self._talk:
            if self._connection is None or self._lost.is_set():
                raise StoreError("the broker's connection to PostgreSQL is lost")
            return await self._connection.fetchval(query, *values)

    # ------------------------------------------------------------ speaking and hearing

    def tell(self, text: str) -> None:
        self._waiting.append(text)
        self._something.set()

    async def _speak(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._waiting and not self._lost.is_set():
                texts = [self._waiting.popleft() for _ in range(min(len(self._waiting), 100))]
                try:
                    await self._run(
                        "SELECT count(pg_notify($1, said)) FROM unnest($2::text[]) AS said", self._channel, texts
                    )
                except Exception as error:
                    log.info("what the broker had to say waits: %r", error)
                    self._waiting.extendleft(reversed(texts))
                    await asyncio.sleep(LOOK)

    def _on_news(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        self._heard(payload)

    def _on_wants(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        word, _, key = payload.partition(" ")
        if word == "free":
            if (event := self._freed.get(key)) is not None:
                event.set()
        elif key in self._held:
            self._wanted.add(key)

    # ------------------------------------------------------------ locks

    async def lock(self, key: str) -> None:
        await self._locks.acquire(key)
        try:
            await self._take(key)
        except BaseException:
            self._locks.release(key)
            raise
        self._held.add(key)

    async def _take(self, key: str) -> None:
        """Not by waiting in the server: that would keep the one connection from everything else."""
        freed = self._freed.setdefault(key, asyncio.Event())
        pause = LOOK
        try:
            while not await self._try(key):
                if pause == LOOK:
                    await self._run("SELECT pg_notify($1, $2)", self._wants, f"want {key}")
                freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await freed.wait()
                pause = min(2 * pause, LOOK_AT_MOST)
        finally:
            self._freed.pop(key, None)

    async def _try(self, key: str) -> bool:
        taking = asyncio.ensure_future(
            self._run("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", self._name(key))
        )
        try:
            return bool(await asyncio.shield(taking))
        except asyncio.CancelledError:
            # Whoever was cancelled just as it was given the key gives it back.
            taking.add_done_callback(lambda done: self._give_back(key, done))
            raise

    def _give_back(self, key: str, taking: asyncio.Future[Any]) -> None:
        if not taking.cancelled() and taking.exception() is None and taking.result():
            self._spawn(self._free(key, wanted=True), "dooers-broker-free")

    def unlock(self, key: str) -> None:
        self._held.discard(key)
        wanted = key in self._wanted
        self._wanted.discard(key)
        self._spawn(self._free(key, wanted=wanted), "dooers-broker-free")
        self._locks.release(key)

    async def _free(self, key: str, *, wanted: bool) -> None:
        with suppress(
            StoreError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError
        ):  # lost: the server has freed it
            await self._run("SELECT pg_advisory_unlock(hashtextextended($1, 0))", self._name(key))
            if wanted:
                await self._run("SELECT pg_notify($1, $2)", self._wants, f"free {key}")

    async def _take_back(self) -> None:
        """The server let go of our keys as the connection ended. Take them again, before somebody else does."""
        for key in list(self._held):
            with suppress(Exception):
                if not await self._try(key):
                    log.warning("thread %s is being answered by two processes: the broker was away", key)

    def _name(self, key: str) -> str:
        return f"{self._channel} {key}"
