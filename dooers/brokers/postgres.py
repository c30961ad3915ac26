"""The broker that comes with PostgreSQL: LISTEN and NOTIFY, and advisory locks, on one connection of its own.

What is told of a Change is said by the store, in the transaction that stores it (`announce`), so no crash can come between the two.
Where nobody else is there, nothing is said: `company.py`.

The connection must lead to the server itself: behind a pooler that shares connections nobody hears anything. `broker_url` names the
server where the database's own address is such a pooler.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from secrets import token_hex
from typing import Any

import asyncpg

from dooers.brokers import Announce
from dooers.brokers.company import Company
from dooers.brokers.postgres_keys import GONE, LOOK, AdvisoryKeys
from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError, DooersError, StoreError
from dooers.models import Change
from dooers.news import is_of, looks, written
from dooers.stores.postgres_connection import address
from dooers.stores.sql_postgres import Aside

__all__ = ["PostgresBroker"]

log = logging.getLogger("dooers")

# A payload has less than 8,000 bytes, the last of them a zero.
LIMIT = 7900
# Texts that wait for the connection, at most; pieces of messages are the most of it, and worth little when it is back.
WAITING = 10_000
# Texts that are told in one statement, at most.
BATCH = 100
# Seconds without a word after which the connection is asked whether it is still there, and that it has for an answer.
QUIET = 5.0
# Seconds that others have to say that they are there, and between two times that they are asked.
ANSWER, ROUND = 2.0, 60.0
# Seconds between two attempts to come back, at first and at most.
AGAIN, AGAIN_AT_MOST = 0.05, 1.0

# The row of the thread is put into words by the server: only there it is known as it is.
_ANNOUNCE = (
    "(SELECT pg_notify(CAST(:news_channel AS TEXT), CASE WHEN octet_length(said) <= CAST(:news_limit AS INT) THEN said "
    "ELSE CAST(:news_look AS TEXT) END) FROM (SELECT row_to_json(thread)::text || E'\\n' || CAST(:news AS TEXT) AS said) AS n)"
)
_SAY = "SELECT count(pg_notify($1, said)) FROM unnest($2::text[]) AS said"
# Which server and which database this is, whatever way leads there.
_WHERE = (
    "SELECT pg_postmaster_start_time()::text || ' ' || (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_NAME = "dooers broker"
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    f"AND application_name = '{_NAME}'"
)


class PostgresBroker:
    """An ordinary broker, over a PostgreSQL server."""

    alone = False
    limit: int | None = LIMIT

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self.announce: Announce | None = self._announce if config.database_type == "postgres" else None
        prefix = config.database_table_prefix
        # All processes that share these tables. A name that the server would find too long is told apart by its hash.
        self._channel = f"dooers_{prefix if len(prefix) < 40 else sha256(prefix.encode()).hexdigest()[:32]}"
        self._words_channel = f"{self._channel}_keys"
        self._connection: Any = None
        self._talk = asyncio.Lock()
        self._waiting: deque[str] = deque()
        self._something = asyncio.Event()
        # What is said of keys and of who is there, until somebody passes it on.
        self._words: list[str] = []
        self._passes_words = False
        self._here = asyncio.Event()
        self._lost = asyncio.Event()
        self._lasting: set[asyncio.Task[None]] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._heard: Callable[[str], None] = lambda text: None
        self._missed: Callable[[], None] = lambda: None
        # In whose name the store says what it says by connections of its own.
        self._sender: str | None = None
        self._company = Company(token_hex(8), self._say_word, lambda: self._missed())
        self._keys = AdvisoryKeys(
            self._channel,
            config.run_timeout,
            run=self._run,
            reach=self._reach,
            say=self._say_word,
            spawn=partial(_spawn, self._passing),
        )

    @contextmanager
    def _announce(self, groups: Sequence[Sequence[Change]], sender: str) -> Iterator[Aside | None]:
        self._sender = sender
        with self._company.writing() as told:
            yield (_ANNOUNCE, [self._news(changes, sender) for changes in groups]) if told else None

    def _news(self, changes: Sequence[Change], sender: str) -> dict[str, Any]:
        return {
            "news_channel": self._channel,
            "news_limit": LIMIT,
            "news": written(changes, sender),
            "news_look": looks(changes, sender, LIMIT),
        }

    # ------------------------------------------------------------ the connection

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed
        try:
            connection = await self._connect()
            if self._config.broker_url and self._config.database_type == "postgres":
                await self._check_place(connection)
        except DooersError:
            raise
        except (ValueError, asyncpg.ClientConfigurationError):  # with the URL in it
            raise ConfigError(
                "WorkerConfig.broker_url: expected postgresql://user:password@host:5432/database"
            ) from None
        except GONE as error:
            raise StoreError(f"the broker cannot reach PostgreSQL ({type(error).__name__})") from error
        self._connection = connection
        self._here.set()
        for work in (self._speak, self._stay, self._watch, self._look_round):
            _spawn(self._lasting, work())

    async def close(self) -> None:
        if self._connection is None:
            return
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._config.database_timeout, 5.0)):
                    # Not by who speaks: a loop that ends has cancelled that first.
                    while self._waiting and self._here.is_set():
                        await self._say_some()
                    self._company.leave()
                    while self._passing:
                        await asyncio.wait(self._passing)
        finally:
            await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = self._lasting | self._passing
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._here.clear()
        self._keys.forget()
        connection, self._connection = self._connection, None
        with suppress(Exception):  # it ends either way, and with it the locks
            await connection.close(timeout=1)

    async def _connect(self) -> Any:
        """A connection that listens, and was seen to hear."""
        timeout, url = self._config.database_timeout, self._config.broker_url
        where = address(self._config)
        if url:
            where = {"dsn": url} | ({"ssl": where["ssl"]} if self._config.database_ssl else {})
        connection = await asyncpg.connect(
            **where,
            timeout=timeout,
            command_timeout=timeout,
            statement_cache_size=self._config.database_statement_cache,
            server_settings={"application_name": _NAME},
        )
        try:
            await connection.add_listener(self._channel, self._on_news)
            await connection.add_listener(self._words_channel, self._on_word)
            await self._check_hearing(connection)
        except BaseException:
            connection.terminate()
            raise
        self._lost.clear()
        connection.add_termination_listener(self._on_lost)
        return connection

    async def _check_hearing(self, connection: Any) -> None:
        heard, probe = asyncio.Event(), f"{self._channel}_probe"

        def hear(*_: Any) -> None:
            heard.set()

        await connection.add_listener(probe, hear)
        await connection.execute(f'NOTIFY "{probe}"')
        try:
            async with asyncio.timeout(min(self._config.database_timeout, 5.0)):
                await heard.wait()
            await connection.remove_listener(probe, hear)
        except TimeoutError:
            raise StoreError(
                "the broker does not hear what it says itself, as behind pgbouncer: let WorkerConfig.broker_url lead "
                "to the PostgreSQL server directly"
            ) from None

    async def _check_place(self, connection: Any) -> None:
        """NOTIFY does not leave its database."""
        timeout = self._config.database_timeout
        try:
            store = await asyncpg.connect(
                **address(self._config), timeout=timeout, command_timeout=timeout, statement_cache_size=0
            )
            try:
                if await store.fetchval(_WHERE) == await connection.fetchval(_WHERE):
                    return
            finally:
                store.terminate()
            raise ConfigError(
                "WorkerConfig.broker_url: expected the very database that database_host and database_name lead to"
            )
        except BaseException:
            connection.terminate()
            raise

    def _on_lost(self, connection: Any) -> None:
        if connection is self._connection:
            self._here.clear()
            self._keys.lose()
            self._lost.set()

    async def _stay(self) -> None:
        """Come back whenever the connection is lost, and say that something may have been missed."""
        while True:
            await self._lost.wait()
            log.warning("the broker has lost its connection to PostgreSQL")
            await self._come_back()
            log.info("the broker is back")
            self._here.set()
            self._something.set()
            self._company.ask(anew=True)
            await self._keys.take_back()
            self._missed()

    async def _come_back(self) -> None:
        pause = AGAIN
        while True:
            try:
                self._connection = await self._connect()
                return
            except Exception as error:
                log.info("the broker is not back yet: %r", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_AT_MOST)

    async def _watch(self) -> None:
        """A connection whose other end is gone without a word is found out, as it is never left quiet for long."""
        while True:
            await asyncio.sleep(QUIET)
            try:
                async with asyncio.timeout(QUIET):
                    await self._run("SELECT 1")
            except StoreError:
                pass  # it is lost already
            except (*GONE, TimeoutError):
                self._connection.terminate()

    async def _run(self, query: str, *values: Any) -> Any:
        async with self._talk:
            if not self._here.is_set():
                raise StoreError("the broker has no connection to PostgreSQL")
            connection, asked_at = self._connection, asyncio.get_running_loop().time()
            try:
                answer = await connection.fetchval(query, *values)
                self._keys.answered(asked_at)
                return answer
            finally:
                if connection.is_closed():  # the driver does not always tell, where it was lost in the middle of this
                    self._on_lost(connection)

    # ------------------------------------------------------------ speaking and hearing

    def tell(self, text: str) -> None:
        self._waiting.append(text)
        self._make_room()
        self._something.set()

    def _make_room(self) -> None:
        while len(self._waiting) > WAITING:
            self._waiting.popleft()
            self._company.owe()  # others read for themselves, once the rest is said

    async def _speak(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._waiting and self._here.is_set():
                await self._say_some()
            if self._here.is_set():
                self._company.own_up()

    async def _say_some(self) -> None:
        texts = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
        # Notifications of one transaction come in its order. Equal ones would come once, but no text is said twice.
        try:
            await self._run(_SAY, self._channel, texts)
        except (asyncpg.DataError, asyncpg.InvalidParameterValueError) as error:
            log.error("the broker could not say something: %r", error)
            self._company.owe()
        except (StoreError, *GONE, asyncio.CancelledError) as error:
            # If it was heard after all, it will be heard twice: pieces know their place, the rest says how things are.
            self._waiting.extendleft(reversed(texts))
            self._make_room()
            if isinstance(error, asyncio.CancelledError):
                raise
            log.info("what the broker had to say waits: %r", error)
            if self._here.is_set():
                await asyncio.sleep(LOOK)

    def _on_news(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        if pid == connection.get_server_pid() or (self._sender is not None and is_of(payload, self._sender)):
            return  # we said so ourselves
        self._heard(payload)

    # ------------------------------------------------------------ keys, and who is there

    async def lock(self, key: str) -> float:
        return await self._keys.lock(key)

    def unlock(self, key: str) -> None:
        self._keys.unlock(key)

    async def _reach(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do something once there is a connection; StoreError where there is none for too long."""
        until = asyncio.get_running_loop().time() + self._config.database_timeout
        while True:
            if self._connection is None:
                raise StoreError("this broker is not open")
            try:
                async with asyncio.timeout_at(until):
                    await self._here.wait()
                    return await work()
            except (StoreError, TimeoutError, *GONE) as error:  # or it was lost while one waited for one's turn to talk
                if asyncio.get_running_loop().time() >= until:
                    raise StoreError(f"the broker does not reach PostgreSQL ({type(error).__name__})") from error
                await asyncio.sleep(LOOK)

    def _on_word(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        word, _, what = payload.partition(" ")
        if word in ("free", "want", "have"):
            self._keys.hear(word, what)
        else:
            self._company.hear(word, what)

    def _say_word(self, word: str) -> None:
        self._words.append(word)
        if not self._passes_words:
            self._passes_words = True
            _spawn(self._passing, self._pass_words())

    async def _pass_words(self) -> None:
        try:
            while self._words:
                words, self._words = self._words, []
                with suppress(StoreError, *GONE):  # who comes back asks again
                    await self._run(_SAY, self._words_channel, words)
        finally:
            self._passes_words = False

    async def _look_round(self) -> None:
        """Know who is there, also when somebody goes without a word."""
        anew = True
        while True:
            self._company.ask(anew=anew)
            # Whoever comes after that says so himself.
            if not await self._is_by_itself():
                await asyncio.sleep(ANSWER)
            if self._here.is_set():
                self._company.settle()
            anew = False
            await asyncio.sleep(ROUND)

    async def _is_by_itself(self) -> bool:
        """Whether the server has no other broker in this database, for any tables: then there is nobody to wait for."""
        try:
            return not await self._run(_OTHERS)
        except (StoreError, *GONE):
            return False


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work, name="dooers-broker")
    tasks.add(task)
    task.add_done_callback(tasks.discard)
