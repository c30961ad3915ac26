"""A pool of PostgreSQL connections that survives cancelled callers and lost servers: TLS, taking and giving back, what may be tried again.

`databases` owns the pool and its lifecycle, statements run on the driver's connection. Which statements is the store's
business, in `postgres.py`. Nothing in here puts a password into a URL or into an error.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeVar

import anyio
import asyncpg
import databases
from databases.core import Connection

from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError, StoreError
from dooers.stores import store_error
from dooers.stores.rows import Row
from dooers.stores.sql import Statement

__all__ = ["Line", "Patience", "Pool", "address", "interrupted", "transient"]

T = TypeVar("T")

# The server, or the way to it, is gone. What was under way may have been written or not.
_LOST = (
    OSError,  # refused, reset, and every timeout: TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,  # what the driver says when the server's last word came between two statements
)
# Nothing was written, and the next try may go well.
_UNLUCKY = (
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
# The driver's word for a closed connection is InterfaceError, but so is its word for an argument it cannot encode.
_MISUSE = (asyncpg.DataError, ValueError, TypeError)

# Seconds that the server has to say that it gave up, before we do: from it we know that nothing was written.
GRACE = 1.0
# Seconds that a connection stays at hand for whoever needs one next: to take it from the driver's pool and to give it back costs as
# much as a small statement.
AT_HAND = 1.0

_NAME = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)")


def interrupted(error: BaseException) -> bool:
    """Whether after this error nobody knows if the statement was carried out."""
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, _MISUSE)
    return isinstance(error, (*_LOST, asyncio.CancelledError))


def transient(error: BaseException) -> bool:
    """Whether the same may go well a moment later."""
    return interrupted(error) or isinstance(error, _UNLUCKY)


@lru_cache(maxsize=1024)
def _numbered(text: str) -> tuple[str, tuple[str, ...]]:
    """A statement with `$1` in place of `:name`, and the names in order."""
    names = tuple(dict.fromkeys(_NAME.findall(text)))
    place = {name: f"${n}" for n, name in enumerate(names, 1)}
    return _NAME.sub(lambda found: place[found[1]], text), names


class Patience:
    """How long to go on trying, with growing pauses. What is tried at all is tried twice, so that a connection which was lost while
    the last answer was on its way is asked what became of it."""

    __slots__ = ("_pause", "_tries", "_until")

    def __init__(self, until: float) -> None:
        self._until, self._pause, self._tries = until, 0.0, 0

    @property
    def over(self) -> bool:
        return self._tries > 1 and asyncio.get_running_loop().time() + self._pause > self._until

    async def pause(self) -> None:
        """Wait before the next try; not before the first two, as a server that has closed a connection is often there at once."""
        self._tries += 1
        if self._pause:
            await asyncio.sleep(self._pause)
        if self._tries > 1:
            self._pause = min(max(self._pause * 2, 0.02), 0.5)


class Line:
    """A connection of the pool in the hands of one task: taken when it is needed, given back when it is lost or no longer needed."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Connection | None = None

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._connection is not None and self._pool.keep(self._connection):
            self._connection = None
        await self.drop()

    async def raw(self) -> Any:
        """The driver's connection."""
        if self._connection is None:
            self._connection = await self._pool.take()
        return self._connection.raw_connection

    async def refresh(self) -> None:
        """Let go of a connection that was lost while nothing was done with it."""
        if self._connection is not None and _gone(self._connection.raw_connection):
            await self.drop()

    async def drop(self) -> None:
        """Give the connection back to the driver's pool, which looks after one that is lost or in the middle of something."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._pool.give_back(connection)

    async def fetch(self, statement: Statement, timeout: float | None = None) -> list[Row]:
        """Run one statement, in a transaction of its own unless one is open."""
        text, values = statement
        text, names = _numbered(text)
        arguments = [values[name] for name in names]
        raw, alone = await self.raw(), False
        try:
            alone = not raw.is_in_transaction()
            if self._pool.prepares or not alone:
                return await raw.fetch(text, *arguments, timeout=timeout)  # type: ignore[no-any-return]
            # Preparing and running are two messages; behind pgbouncer only a transaction keeps them on one server.
            async with raw.transaction():
                return await raw.fetch(text, *arguments, timeout=timeout)  # type: ignore[no-any-return]
        except BaseException as error:
            if isinstance(error, asyncpg.InternalClientError) and not _gone(raw):
                raw.terminate()  # of no use any more, and the pool would not see it
            if _gone(raw) or (alone and interrupted(error)):
                await self.drop()
            raise


def _gone(raw: Any) -> bool:
    try:
        return raw.is_closed()  # type: ignore[no-any-return]
    except asyncpg.InterfaceError:
        return True  # the pool has seen it before us, and taken it back


class Pool:
    """The connections of one store. Closed at first, and may be opened again after it was closed."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._database: databases.Database | None = None
        # Those at hand, the latest last, each with the timer that ends this; and the tasks that give such a one back.
        self._at_hand: dict[Connection, asyncio.TimerHandle] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        # How many wait for the driver's pool. For them a connection goes back at once.
        self._waiting = 0
        self.timeout = config.database_timeout
        self.prepares = config.database_statement_cache > 0
        self.name = f"{config.database_name!r} at {config.database_host}:{config.database_port}"

    @property
    def is_open(self) -> bool:
        return self._database is not None

    async def open(self) -> None:
        database = databases.Database("postgresql://", **_options(self._config))
        await database.connect()
        self._database = database

    async def close(self) -> None:
        """Let go of every connection; one whose statement does not end is cut off after a while."""
        database, self._database = self._database, None
        if database is None:
            return
        with anyio.move_on_after(self.timeout, shield=True):
            while self._at_hand:
                await self.give_back(self._latest())
            await database.disconnect()

    def line(self) -> Line:
        return Line(self)

    async def take(self) -> Connection:
        """A connection, when one is free. This and what follows is for `Line` only."""
        if self._database is None:
            raise StoreError(f"the PostgreSQL store {self.name} is not open")
        while self._at_hand:
            latest = self._latest()
            if not _gone(latest.raw_connection):
                return latest
            await self.give_back(latest)
        # Not bound to a task, as `database.connection()` would be: one that was cancelled could never use it again.
        connection = Connection(self._database, self._database._backend)
        self._waiting += 1
        try:
            async with asyncio.timeout(self.timeout):
                await connection.__aenter__()
        finally:
            self._waiting -= 1
        return connection

    def keep(self, connection: Connection) -> bool:
        """Have a connection that all went well on at hand for a while; False if it is to be given back."""
        raw = connection.raw_connection
        if self._database is None or self._waiting or _gone(raw) or raw.is_in_transaction():
            return False
        loop = asyncio.get_running_loop()
        self._at_hand[connection] = loop.call_later(AT_HAND, self._not_needed, connection)
        return True

    def _latest(self) -> Connection:
        connection, late = self._at_hand.popitem()
        late.cancel()
        return connection

    def _not_needed(self, connection: Connection) -> None:
        if self._at_hand.pop(connection, None) is not None:
            task = asyncio.create_task(self.give_back(connection), name="dooers-postgres-give-back")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def give_back(self, connection: Connection) -> None:
        # `databases` does not get over a release that a scope cancels: the pool would have one connection less for ever.
        with anyio.move_on_after(self.timeout, shield=True), suppress(Exception):
            await connection.__aexit__(None, None, None)

    async def read(self, work: Callable[[Line], Awaitable[T]]) -> T:
        """Do what may be done twice, again where a connection is lost on the way."""
        patience = Patience(asyncio.get_running_loop().time() + self.timeout)
        while True:
            await patience.pause()
            try:
                async with self.line() as line:
                    return await work(line)
            except Exception as error:
                if not transient(error) or patience.over:
                    raise store_error(error) from error


async def _light_reset(raw: Any) -> None:
    """What asyncpg does when a connection comes back takes as long as a query. Ours are never changed, but for a transaction that
    somebody was cancelled in."""
    if raw.is_in_transaction():
        await raw.reset()


def _options(config: WorkerConfig) -> dict[str, Any]:
    server = {"application_name": "dooers"}
    if config.database_statement_cache:
        # The server, too, gives up on what nobody waits for any more. (pgbouncer refuses such settings.)
        server["statement_timeout"] = server["idle_in_transaction_session_timeout"] = str(
            max(1, int(config.database_timeout * 1000))
        )
    return {
        **address(config),
        "min_size": config.database_pool_min,
        "max_size": config.database_pool_max,
        "timeout": config.database_timeout,
        "command_timeout": config.database_timeout + GRACE,
        "statement_cache_size": config.database_statement_cache,
        "server_settings": server,
        "reset": _light_reset,
    }


def address(config: WorkerConfig) -> dict[str, Any]:
    """Where the server is, and how to get in, as the driver takes it."""
    return {
        "host": config.database_host,
        "port": config.database_port,
        "user": config.database_user,
        "password": config.database_password or None,
        "database": config.database_name,
        "ssl": _tls(config),
    }


def _tls(config: WorkerConfig) -> ssl.SSLContext | str | bool:
    mode = "verify-full" if config.database_ssl is True else config.database_ssl or "disable"
    if mode in ("disable", "prefer"):
        return "prefer" if mode == "prefer" else False
    try:
        context = ssl.create_default_context(cafile=config.database_ssl_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"WorkerConfig.database_ssl_ca: expected a PEM file of certificates, got {config.database_ssl_ca!r} ({error})"
        ) from error
    context.check_hostname = mode == "verify-full"
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context
