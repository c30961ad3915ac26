"""A server between a store and its service, for what the service does only on a bad day: throttle, keep quiet, lose an answer."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web
from attrs import define, field
from yarl import URL

__all__ = ["Asked", "Between", "between", "lose", "throttle", "unplug"]


@define
class Asked:
    """One request: what it is, and how to pass it on."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    go_on: Callable[[], Awaitable[web.Response]]

    @property
    def batch(self) -> list[dict[str, Any]]:
        """The operations of a transaction; empty for any other request."""
        found = json.loads(self.body) if self.headers.get("x-ms-cosmos-is-batch-request", "").lower() == "true" else []
        return found if isinstance(found, list) else []

    def writes(self, kind: str) -> bool:
        """Whether it is a transaction that writes such a document."""
        return any(operation.get("resourceBody", {}).get("kind") == kind for operation in self.batch)


Rule: TypeAlias = Callable[[Asked], Awaitable["web.Response | None"]]


async def pass_on(asked: Asked) -> web.Response | None:
    return await asked.go_on()


async def lose(asked: Asked) -> web.Response | None:
    """It is done, and nobody hears of it."""
    await asked.go_on()
    return None


async def unplug(asked: Asked) -> web.Response | None:
    """It never gets there."""
    return None


async def throttle(asked: Asked) -> web.Response | None:
    return web.json_response({"message": "too much"}, status=429, headers={"x-ms-retry-after-ms": "5"})


@define
class Between:
    """`rule` decides about each request; None as its answer closes the connection."""

    url: str = ""
    rule: Rule = pass_on
    asked: list[Asked] = field(factory=list)


@asynccontextmanager
async def between(target: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Between]:
    here = Between()
    async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            body = await request.read()
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOPS}

            async def go_on() -> web.Response:
                url = target.rstrip("/") + request.raw_path
                async with session.request(request.method, _encoded(url), data=body, headers=headers) as response:
                    passed = {n: v for n, v in response.headers.items() if n.lower() not in _HOPS}
                    return web.Response(body=await response.read(), status=response.status, headers=passed)

            asked = Asked(request.method, request.path, headers, body, go_on)
            here.asked.append(asked)
            response = await here.rule(asked)
            if response is None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return response

        server = web.Server(answer)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        listening: asyncio.Server = site._server  # type: ignore[assignment]
        here.url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        try:
            yield here
        finally:
            await runner.cleanup()


_HOPS = ("host", "connection", "content-length", "transfer-encoding", "keep-alive")


def _encoded(url: str) -> URL:
    return URL(url, encoded=True)
