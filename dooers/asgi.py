"""The ASGI application: routes to the worker's doors, and nothing else. The only module that knows Starlette."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketState

from dooers.exceptions import ClosingError
from dooers.playground import HEADERS, INDEX, Asset, assets

__all__ = ["make_app"]

log = logging.getLogger("dooers")
READY_WITHIN = 5.0


def make_app(
    handle: Callable[[Any], Awaitable[None]],
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
    ready: Callable[[], Awaitable[None]],
    about: Callable[[], Asset] | None = None,
) -> ASGIApp:
    """An application with the WebSocket at `/ws`, `/health` and `/ready`. The two say yes or no, never why.

    With `about`, what the playground is told of its worker, the playground is at `/`.
    """

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def is_ready(request: Request) -> JSONResponse:
        try:
            with anyio.fail_after(READY_WITHIN):
                await ready()
        except ClosingError:
            return JSONResponse({"status": "closing"}, status_code=503)
        except Exception:
            log.exception("not ready")
            return JSONResponse({"status": "unavailable"}, status_code=503)
        return JSONResponse({"status": "ok"})

    routes: list[BaseRoute] = [
        WebSocketRoute("/ws", _Door(handle)),
        Route("/health", health),
        Route("/ready", is_ready),
    ]
    if about is not None:
        routes += _playground(about)
    return _Application(routes=routes, lifespan=lifespan)


class _Application(Starlette):
    """Starlette, which turns what a route raises into a page: of no use to a WebSocket, and a step more for each of its frames."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self.user_middleware:
            scope["app"] = self
            await self.router(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _Door:
    """Where WebSockets come in. An application of its own, so that nothing stands between the server and the session."""

    def __init__(self, handle: Callable[[Any], Awaitable[None]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(_Socket(scope, receive, send))


class _Socket:
    """As much of Starlette's WebSocket as a worker needs: without a look at each message, as the session knows what it may send."""

    __slots__ = ("application_state", "receive", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.application_state = WebSocketState.CONNECTING

    async def accept(self) -> None:
        """Let the client in, which has said until now only that it is there."""
        await self.receive()
        await self.send({"type": "websocket.accept"})
        self.application_state = WebSocketState.CONNECTED


def _playground(about: Callable[[], Asset]) -> list[Route]:
    """The page at `/`, what it is made of below `/playground`. All URLs in it are relative: it may be mounted anywhere."""
    files = assets()
    page = files.pop(INDEX)

    async def index(request: Request) -> Response:
        return _answer(request, page)

    async def config(request: Request) -> Response:
        return _answer(request, about())

    async def file(request: Request) -> Response:
        return _answer(request, files.get(request.path_params["path"]))

    return [
        Route("/", index),
        Route("/playground/config.json", config),
        Route("/playground/{path:path}", file),
    ]


def _answer(request: Request, asset: Asset | None) -> Response:
    if asset is None:
        return Response("not found", 404, HEADERS, "text/plain")
    headers = {**HEADERS, "ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(len(asset.body))
    return Response(b"" if request.method == "HEAD" else asset.body, headers=headers, media_type=asset.media_type)
