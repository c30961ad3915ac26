"""Which web pages may talk to a worker that is served for development. Not the trust model: that is `allowed_origins`, and the hooks.

Who serves on 127.0.0.1 believes to be alone. But every page that is open in the browser may open a WebSocket to it, and a page whose
name is made to point here (DNS rebinding) is even of the "same" origin. What the page cannot change is what the browser says in
`Origin`; so here only pages of this machine get in. What sends no `Origin` is no browser.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

__all__ = ["is_loopback", "loopback_only", "of_this_machine"]

log = logging.getLogger("dooers")

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


def is_loopback(address: str) -> bool:
    """Whether an IP address is of this machine only."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def of_this_machine(origin: str, also: str = "") -> bool:
    """Whether an `Origin` is that of a page which this machine served, on any port: `localhost`, `*.localhost`, an address of this
    machine only, or `also`, the name that it was asked to listen on."""
    try:
        parts = urlsplit(origin)
        host = (parts.hostname or "").lower().removesuffix(".")
        parts.port  # noqa: B018  # a ValueError if it is none
    except ValueError:
        return False
    if origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        return False  # no browser writes it like that
    return host in ("localhost", also.lower() or "localhost") or host.endswith(".localhost") or is_loopback(host)


def loopback_only(application: Application, also: str = "") -> Application:
    """The application, but WebSockets of pages that are not of this machine are refused before it hears of them."""

    async def guarded(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "websocket":
            headers = scope.get("headers", ())
            origins = [value.decode("latin-1") for name, value in headers if name.lower() == b"origin"]
            if not all(of_this_machine(origin, also) for origin in origins):
                log.warning(
                    "a page of %.100r was refused: this serves pages of this machine only; WorkerConfig.allowed_origins lets others in",
                    ", ".join(origins),
                )
                await send({"type": "websocket.close", "code": 1008})
                return
        await application(scope, receive, send)

    return guarded
