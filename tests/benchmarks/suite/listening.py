"""How every measured server is served: uvicorn on a free port of this machine, which is printed when it listens. Not what is served."""

from __future__ import annotations

import gc
import socket
from typing import Any

import uvicorn

__all__ = ["listen", "spare_the_collector"]


def listen(app: Any) -> None:
    """Serve an ASGI application until the process is ended."""
    listening = socket.socket()
    # As asyncio does for sockets it makes itself; without it small frames wait for delayed acknowledgements.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws_per_message_deflate=False, backlog=4096)
    _Announced(config).run(sockets=[listening])


def spare_the_collector() -> None:
    """As `dooers run` does; for all sides alike."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


class _Announced(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        spare_the_collector()
        print(sockets[0].getsockname()[1], flush=True)
