"""One Cosmos DB container: point reads, queries, transactional batches; retries, timeouts, what a request cost. The only module that
knows the Azure SDK. What the documents mean is `cosmos_documents.py`'s business.

The SDK's own retries of writes are off: it takes a connection that broke after sending for one that never sent, and would write
twice without a word. A write whose answer was lost is a `Conflict` here, as is one that was refused because the documents had changed:
the writer looks again, and finds its own mark or does not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from io import BytesIO
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError, DooersError, StoreError

try:
    import aiohttp
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.cosmos import PartitionKey
    from azure.cosmos.aio import ContainerProxy, CosmosClient
except ImportError as error:
    raise ConfigError(
        "database_type 'cosmos' needs azure-cosmos and aiohttp, which are not installed; "
        "run: pip install 'dooers-workers-server[cosmos]'"
    ) from error

__all__ = ["BATCH", "Conflict", "Container", "Operation", "SpoiltError", "Tries", "priced"]

log = logging.getLogger("dooers")

T = TypeVar("T")
# What the SDK takes as one operation of a batch: its name, its arguments, its conditions.
Operation: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]

# The service's limit: operations in one transaction.
BATCH = 100
# Connections, and so requests at a time, to the service.
CONNECTIONS = 100
# How often a read is tried again when its connection broke, or the service said it was not well.
READ_AGAIN = 3
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# 429: over the provisioned throughput. 449: two writes met inside the service. Neither was done; both are worth another try.
_BUSY = (429, 449)
# The documents are not what the writer thought.
_CHANGED = (404, 409, 412)
# It was done, or it was not.
_UNSURE = (408, 500, 502, 503, 504)

# Where the request charges of what runs now are gathered, if somebody wants to know.
_charges: ContextVar[list[float] | None] = ContextVar("dooers_cosmos_charges", default=None)


@contextmanager
def priced(what: str, *values: object) -> Iterator[None]:
    """Log what the requests of this block cost, if there were any."""
    charged: list[float] = []
    outside = _charges.set(charged)
    try:
        yield
    finally:
        _charges.reset(outside)
        if charged:
            log.debug("%s cost %.2f request units in %d requests", what % values, sum(charged), len(charged))


class Conflict(Exception):
    """A write that was refused for what it found (404, 409, 412), at which operation; or nobody knows (status 0). Look again."""

    def __init__(self, status: int, index: int = 0) -> None:
        super().__init__(f"status {status} at operation {index}")
        self.status, self.index = status, index


class SpoiltError(StoreError):
    """It is what was to be written that cannot be stored, not the service that does not answer."""


class Tries:
    """Another try, a moment later, until the time is over."""

    def __init__(self, timeout: float) -> None:
        self._until = time.monotonic() + timeout
        self._count = 0

    async def again(self, conflict: Conflict) -> None:
        if time.monotonic() > self._until:
            what = "gave no answer" if conflict.status == 0 else "had changed each time"
            raise StoreError(f"Cosmos DB did not do it: {self._count + 1} tries, it {what}") from conflict
        self._count += 1
        await asyncio.sleep(random.uniform(0, min(0.01 * 2**self._count, 0.5)))


class _Transport(AioHttpTransport):  # type: ignore[misc]  # the SDK loads it in a way that hides its type
    """Certificates are checked for every request. The SDK itself would not check those of localhost."""

    async def send(self, request: Any, **options: Any) -> Any:
        options["connection_verify"] = True  # and by which authorities, the session's connector knows
        body = request.data
        if not isinstance(body, bytes) or len(body) < 2**20:
            return await super().send(request, **options)
        # aiohttp warns of large bodies that are not files. The SDK may send this request again, and then needs all of it.
        request.data = BytesIO(body)
        try:
            return await super().send(request, **options)
        finally:
            request.data = body


class Container:
    """The container `{prefix}conversations`. Raises StoreError, or Conflict where a write may be tried again."""

    def __init__(self, config: WorkerConfig) -> None:
        self._endpoint = _endpoint(config.database_host)
        self._key = config.database_key
        self._ca = config.database_ssl_ca
        self._timeout = config.database_timeout
        self._database_name = config.database_name
        self.name = f"{config.database_table_prefix}conversations"
        self._stack = AsyncExitStack()
        self._client: CosmosClient | None = None
        self._container: ContainerProxy | None = None

    # ------------------------------------------------------------ lifecycle

    async def open(self) -> None:
        """Connect; the container need not be there yet."""
        parts = urlsplit(self._endpoint)
        local = parts.hostname in LOOPBACK
        try:
            context = ssl.create_default_context(cafile=self._ca) if parts.scheme == "https" else True
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"WorkerConfig.database_ssl_ca: expected a PEM file of certificates, got {self._ca!r}"
            ) from error
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=not local,
        )
        self._stack.push_async_callback(session.close)
        client = CosmosClient(
            self._endpoint,
            self._key,
            transport=_Transport(session=session, session_owner=False),
            # An emulator names an address for itself that need not lead to it.
            enable_endpoint_discovery=not local,
            connection_timeout=self._timeout,
            read_timeout=self._timeout,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_throttle_total=9,
            retry_throttle_backoff_max=max(1, int(self._timeout)),
            # Else every letter that is not ASCII takes six bytes of the two megabytes of a transaction.
            enable_compact_utf8_item_writes=True,
        )
        await self._call(lambda: self._stack.enter_async_context(client), again=READ_AGAIN)
        self._client = client
        self._container = client.get_database_client(self._database_name).get_container_client(self.name)

    async def close(self) -> None:
        self._client = self._container = None
        await self._stack.aclose()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open while it lasts: what was open already stays open."""
        if self._client is not None:
            yield
            return
        try:
            await self.open()
            yield
        finally:
            await self.close()

    async def create(self, indexing: Mapping[str, Any]) -> None:
        """Create the database and the container where they are missing."""
        client = self._client
        if client is None:
            raise self._not_open()

        async def database() -> None:
            with _there_already():
                await client.create_database_if_not_exists(self._database_name)

        async def container() -> None:
            # Documents that are to go by themselves say so; the container only allows it.
            with _there_already():
                await client.get_database_client(self._database_name).create_container_if_not_exists(
                    self.name, PartitionKey(path="/pk"), indexing_policy=dict(indexing), default_ttl=-1
                )

        await self._call(database, again=READ_AGAIN)
        await self._call(container, again=READ_AGAIN)

    async def check(self) -> None:
        """StoreError where the container is missing, or is somebody else's."""
        found = await self._call(lambda: self._need().read(), again=READ_AGAIN)
        paths = found["partitionKey"]["paths"]
        if paths != ["/pk"]:
            raise StoreError(
                f"the container {self.name!r} is not one of dooers: it is partitioned by {paths}, not by /pk"
            )

    # ------------------------------------------------------------ reading

    async def read(self, document_id: str, partition: str) -> dict[str, Any] | None:
        """One document: one request unit for each kilobyte."""

        async def work() -> dict[str, Any] | None:
            try:
                found = await self._need().read_item(document_id, partition_key=partition, response_hook=_count)
            except HttpResponseError as error:
                # With a sub-status it is something else that is missing: the container, or the session's replica.
                if error.status_code == 404 and not getattr(error, "sub_status", None):
                    _count(getattr(error, "headers", None) or {})
                    return None
                raise
            return dict(found)

        return await self._call(work, again=READ_AGAIN)

    async def query(self, text: str, values: Mapping[str, Any], partition: str | None = None) -> list[Any]:
        """All rows of a query: of one partition, or, which costs more the larger the database is, of all."""
        parameters: list[dict[str, object]] = [{"name": f"@{name}", "value": value} for name, value in values.items()]
        options: dict[str, Any] = {"parameters": parameters, "max_item_count": 1000, "response_hook": _count}
        if partition is not None:
            options["partition_key"] = partition

        async def work() -> list[Any]:
            return [item async for item in self._need().query_items(text, **options)]

        return await self._call(work, again=READ_AGAIN)

    # ------------------------------------------------------------ writing

    async def commit(self, partition: str, operations: Sequence[Operation]) -> str | None:
        """All of it in one transaction, or Conflict, or StoreError. Returns the new ETag of the first operation's document."""
        # The SDK takes the conditions out of the dictionaries it is given, and a second try must have them too.
        results = await self._call(
            lambda: self._need().execute_item_batch(
                [(name, arguments, dict(conditions)) for name, arguments, conditions in operations],
                partition_key=partition,
                response_hook=_count,
            ),
            writes=True,
        )
        etag: str | None = results[0].get("eTag")
        return etag

    # ------------------------------------------------------------ one request

    async def _call(self, work: Callable[[], Awaitable[T]], *, again: int = 0, writes: bool = False) -> T:
        """Do it within the timeout. Throttled, it waits as long as the service says; with `again`, a broken connection is no end."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await work()
                    except AzureError as error:
                        status = _status(error)
                        _count(getattr(error, "headers", None) or {})
                        if status in _BUSY:
                            await asyncio.sleep(_hint(error))
                        elif writes and (status == 0 or status in _UNSURE):
                            raise Conflict(0) from error
                        elif writes and hasattr(error, "error_index") and status in _CHANGED:
                            raise Conflict(status, error.error_index) from error
                        elif again > 0 and (status == 0 or status in _UNSURE):
                            again -= 1
                            await asyncio.sleep(0.1 * 2 ** (READ_AGAIN - again))
                        else:
                            raise
        except TimeoutError as error:
            raise StoreError(f"Cosmos DB gave no answer within {self._timeout:g} seconds") from error
        except (Conflict, DooersError):
            raise
        except Exception as error:
            raise self._store_error(error) from error

    def _store_error(self, error: Exception) -> StoreError:
        # Of the SDK's text nothing is repeated: it quotes requests, and a wrong key may be in it.
        status = _status(error) if isinstance(error, AzureError) else None
        hint = {
            401: "; is database_key the key of this account?",
            403: "; may this key write, and is this address let in?",
            404: f"; is there a container {self.name!r} in a database {self._database_name!r}? "
            "database_auto_migrate or `dooers migrate` makes both",
            413: "; a transaction holds 2 MB at most",
        }.get(status or 0, "")
        what = type(error).__name__ if not status else f"status {status}"
        kind = SpoiltError if status in (400, 413) else StoreError
        return kind(f"Cosmos DB did not do it ({what}){hint}")

    def _need(self) -> ContainerProxy:
        if self._container is None:
            raise self._not_open()
        return self._container

    def _not_open(self) -> StoreError:
        return StoreError(f"the Cosmos DB store {self._database_name!r} is not open")


@contextmanager
def _there_already() -> Iterator[None]:
    """Somebody else may make it between the SDK's look and its own try: as good as having made it."""
    try:
        yield
    except HttpResponseError as error:
        if error.status_code != 409:
            raise


def _endpoint(host: str) -> str:
    """The account's URL. Plain http would show what is said to everybody on the way: to this very machine only."""
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "WorkerConfig.database_host: cosmos needs the account's URL, such as "
            f"'https://your-account.documents.azure.com:443/', got {host!r}"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ConfigError(
            f"WorkerConfig.database_host: expected https, got {host!r}; plain http is for an emulator on this machine. "
            "An emulator elsewhere: https, and its certificate as database_ssl_ca"
        )
    return host


def _count(headers: Mapping[str, Any], _: Any = None) -> None:
    gathered = _charges.get()
    charge = headers.get("x-ms-request-charge")
    if gathered is not None and charge is not None:
        gathered.append(float(charge))


def _status(error: AzureError) -> int:
    """The status the service answered with; 0 when it did not answer."""
    if not isinstance(error, HttpResponseError):
        return 0
    return int(error.status_code or 0)


def _hint(error: AzureError) -> float:
    """Seconds to wait before another try, by the service's own word. In a batch, the operation that was too much has it."""
    headers = getattr(error, "headers", None) or {}
    said = [headers.get("x-ms-retry-after-ms")]
    said += [result.get("retryAfterMilliseconds") for result in getattr(error, "operation_responses", None) or []]
    return max((float(one) / 1000 for one in said if one is not None), default=0.1) or 0.01
