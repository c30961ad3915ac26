"""One signed request to a URL that nobody may read: its client, its signature, and as much of its answer as is of use.

When to send, what, and how often is `webhook.py`'s business.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

from dooers.config import signing_key
from dooers.exceptions import ConfigError

__all__ = ["Courier", "kinds", "retry_after", "signatures"]

# Enough of an answer to keep its connection for the next batch. Of a longer one nobody needs the rest.
_ANSWER_BYTES = 64 * 1024
_ANSWER_TIME = 1.0


class Courier:
    """Brings texts to a URL. Neither the URL nor what httpx says of the way there is ever shown."""

    def __init__(self, url: str, secrets: Iterable[str]) -> None:
        self._url = url
        self._keys = [signing_key(secret) for secret in secrets]
        self._new_client = _clients(url)

    def client(self) -> AbstractAsyncContextManager[Any]:
        """A client for `post`, which keeps its connection. To be used in the task that asks for it, and in no other."""
        _be_unheard()
        made: AbstractAsyncContextManager[Any] = self._new_client()
        return made

    async def post(
        self, client: Any, message_id: str, timestamp: int, body: bytes, timeout: float
    ) -> tuple[int, str | None]:
        """One attempt, over with the timeout, up to the answer's headers: the status, and the Retry-After."""
        headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(timestamp)}
        if self._keys:
            headers["webhook-signature"] = signatures(self._keys, message_id, timestamp, body)
        async with _connection_closed_on_failure() as trace:
            request = client.build_request("POST", self._url, content=body, headers=headers, extensions=trace)
            # One bound around all of it: httpx's own start anew with every byte that a slow server sends.
            async with asyncio.timeout(timeout):
                answer = await client.send(request, stream=True)
        with suppress(Exception):
            await _read_up(answer)
        return answer.status_code, answer.headers.get("retry-after")


def signatures(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of the Standard Webhooks scheme: one of each key, so that a receiver may know the old or the new one."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join("v1," + b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)


def retry_after(header: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` asks for, as a number or as a date; None where there is none that can be read."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def kinds(error: BaseException) -> str:
    """What went wrong, by the names of the errors only: their texts may have the URL in them, or what the server says."""
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < 10:
        text = type(cause).__name__
        names += [text] if text not in names else []
        cause = cause.__cause__ or cause.__context__
    return "no answer (" + ", ".join(names) + ")"


@asynccontextmanager
async def _connection_closed_on_failure() -> AsyncIterator[dict[str, Any]]:
    """Extensions for a request. If it fails, or is cut off, its connection is closed, which httpcore forgets in a TLS handshake."""
    made: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            made.append(info["return_value"])

    try:
        yield {"trace": trace}
    except BaseException:
        for connection in made:
            await connection.aclose()
        raise


async def _read_up(answer: Any) -> None:
    """Read a short answer to its end, so that its connection can be used again. The status is known, whatever happens here."""
    try:
        async with asyncio.timeout(_ANSWER_TIME):
            size = 0
            async for piece in answer.aiter_raw():
                size += len(piece)
                if size > _ANSWER_BYTES:
                    break
    finally:
        await answer.aclose()


def _clients(url: str) -> Callable[[], Any]:
    """Makes HTTP clients for a URL. Whatever stands against that is told here, when the worker starts."""
    try:
        import httpx
    except ImportError:
        raise ConfigError("WorkerConfig.analytics_webhook_url: this needs httpx; pip install httpx") from None

    def client() -> Any:
        # Cookies are never kept: each answer could bring more of them, and all would be sent along with each batch.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        return httpx.AsyncClient(verify=trust, timeout=None, cookies=cookies, follow_redirects=False)

    try:
        # Once, since reading the authorities takes milliseconds.
        trust = httpx.create_ssl_context()
        # The standard library is stricter about what stands around the host than httpx is.
        fits = (
            bool(urlsplit(url).hostname)
            and urlsplit(url).port != 0
            and bool(client().build_request("POST", url).url.host)
        )
        why = ""
    except Exception as error:
        fits, why = False, f" ({type(error).__name__})"
    if not fits:
        raise ConfigError(
            "WorkerConfig.analytics_webhook_url: expected an http(s) URL that httpx can send to, got one that is not shown"
            f"{why}; look at it, and at HTTP_PROXY and such in the environment"
        )
    return client


_DELIVERING: ContextVar[bool] = ContextVar("dooers_delivering", default=False)
_TALKERS = ("httpx", *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))


def _not_ours(record: logging.LogRecord) -> bool:
    return not _DELIVERING.get()


def _be_unheard() -> None:
    """Keep what httpx says of this task's requests out of the log: the URL may hold a token, and so may a redirect's."""
    _DELIVERING.set(True)
    for name in _TALKERS:
        logging.getLogger(name).addFilter(_not_ours)
