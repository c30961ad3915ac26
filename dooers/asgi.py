"""The ASGI application: routes to the worker's doors, and nothing else. The only module that knows Starlette."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from dooers.exceptions import ClosingError

__all__ = ["make_app"]

log = logging.getLogger("dooers")
READY_WITHIN = 5.0


def make_app(
    handle: Callable[[Any], Awaitable[None]],
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
    ready: Callable[[], Awaitable[None]],
) -> ASGIApp:
    """An application with the WebSocket at `/ws`, `/health` and `/ready`. The two say yes or no, never why."""

    async def serve(websocket: WebSocket) -> None:
        await handle(websocket)

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

    routes = [WebSocketRoute("/ws", serve), Route("/health", health), Route("/ready", is_ready)]
    return Starlette(routes=routes, lifespan=lifespan)
