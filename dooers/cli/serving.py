"""What `dooers run` runs: uvicorn on a socket of ours, with our own word of welcome and an end that always comes."""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import time
import webbrowser
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from attrs import asdict, frozen
from uvicorn.supervisors import ChangeReload

from dooers.cli.guard import is_loopback, loopback_only
from dooers.cli.target import TargetError, load
from dooers.cli.terminal import fail, out, to_log
from dooers.lifecycle import longest
from dooers.server import WorkerServer

__all__ = ["listen", "reloaded", "serve"]

log = logging.getLogger("dooers")

# How the serving process of `--reload` learns what to serve, and how: it is a fresh process that only gets an import string.
TARGET, HOW = "DOOERS_RUN_TARGET", "DOOERS_RUN_HOW"
# Seconds that requests other than a worker's own, and their connections, have to end; and what the process may take beyond all bounds.
SHUTDOWN, LITTLE = 3, 2.0
# Seconds after which a peer that takes nothing of what was sent to it is gone.
DEAF = 30.0

# After how many new things the garbage collector looks for cycles, and how many times as many for older ones.
COLLECT = (10_000, 10, 10)

# The worker that this process serves by itself. (Of an application, nobody knows when it may do without its own.)
_serving: list[WorkerServer] = []


@frozen
class How:
    """How a worker is served. `near`: where it listens, if that is on this machine only."""

    playground: bool
    near: str | None


def serve(
    target: str,
    served: Any,
    host: str,
    listening: socket.socket,
    *,
    reload: bool,
    playground: bool,
    open_browser: bool,
) -> bool:
    """Serve until somebody ends it; whether it ever began."""
    how = How(playground, host if is_loopback(listening.getsockname()[0]) else None)
    os.environ |= {TARGET: target, HOW: json.dumps(asdict(how))}
    config = uvicorn.Config(
        "dooers.cli.serving:reloaded" if reload else _asgi(served, how),
        factory=reload,
        reload=reload,
        log_config=None,
        log_level="warning",
        # Deflating costs a tenth of a busy core.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    address = _address(host, listening)
    server = _Server(config, _welcome(target, served, address, playground=playground))
    if open_browser:
        # It listens already: a browser that is faster than the worker waits for it.
        Thread(target=_open, args=(f"http://{address}",), daemon=True).start()
    try:
        if reload:
            ChangeReload(config, target=server.run, sockets=[listening]).run()
        else:
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        return True
    return reload or server.started


def _open(url: str) -> None:
    if not webbrowser.open(url):
        log.warning("no browser was found here; open %s yourself", url)


class _Server(uvicorn.Server):
    """uvicorn's server with our own word of welcome, said when it is true, and an end that always comes: here the worker closes first and
    then the sockets, not the other way round, so that people see how their answers end."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self.welcome = welcome

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            Thread(target=_end_after, args=(longest() + SHUTDOWN + LITTLE,), daemon=True).start()
        elif sig == signal.SIGINT:
            _end_now("ended at once, as it was asked to a second time")
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for worker in _serving:
            await worker.close()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _spare_the_collector()
            out().print(self.welcome, markup=False, highlight=False, soft_wrap=True)


def _spare_the_collector() -> None:
    """What is there by now stays, so the garbage collector need not look at it again and again; and of the things that turns make, most
    are gone by themselves before it looks after more of them than usual. With 200 people at once that is a third of the work."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


def _end_after(seconds: float) -> None:
    """End the process if it still is there then: a handler that blocks the event loop, or a thread of its, cannot be ended otherwise."""
    time.sleep(seconds)
    with suppress(Exception):
        faulthandler.dump_traceback()
    _end_now(f"did not end within {seconds:g} seconds, for what stands above")


def _end_now(why: str) -> NoReturn:
    # Nothing that could wait: no lock of a logger, no buffer, no exit handler.
    with suppress(OSError):
        os.write(2, f"dooers: {why}\n".encode())
    os._exit(1)


def reloaded() -> Any:
    """What the serving process of `--reload` serves. A mistake is told, and the next change gives another chance."""
    to_log()
    try:
        return _asgi(load(os.environ[TARGET]), How(**json.loads(os.environ[HOW])))
    except TargetError as error:
        fail(str(error), 2)


def _asgi(served: Any, how: How) -> Any:
    if not isinstance(served, WorkerServer):
        return served
    _serving.append(served)
    application = served.asgi_app(playground=how.playground)
    if how.near is None or served.config.allowed_origins is not None:
        return application
    return loopback_only(application, how.near)


def listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
        # Connections inherit it. asyncio sets it by itself only on sockets it has made, and without it a turn of several
        # small frames waits 40 ms for the peer's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that takes nothing keeps its connection for ever otherwise, and a server that waits for its connections to end.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF * 1000))
        return listening
    except OSError as error:
        number = error.errno or 0  # below zero for a name that is not found
        why = os.strerror(number) if number > 0 else error.strerror
        hint = f"; try --port {port + 1}" if number == errno.EADDRINUSE and port < 65535 else ""
        raise TargetError(f"cannot listen on {host}:{port}: {why}{hint}") from None


def _address(host: str, listening: socket.socket) -> str:
    """What to connect to: an address to listen on is not always one."""
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{near}:{listening.getsockname()[1]}"


def _welcome(target: str, served: Any, address: str, *, playground: bool) -> str:
    chat = f"dooers chat ws://{address}/ws"
    if not isinstance(served, WorkerServer):
        return f"{target} listens on http://{address} (Ctrl-C stops it)\ntalk to it: {chat}"
    if served.config.worker_id != "worker":
        chat += f" --worker {served.config.worker_id}"
    first = f"open http://{address} in a browser" if playground else f"{target} listens on http://{address}"
    return f"{first} (Ctrl-C stops it)\ntalk to it: {chat}"
