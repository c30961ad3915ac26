"""A webhook's receiving end for tests: a real HTTP server on this machine that keeps what it is sent and answers as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from attrs import Factory, define, frozen

__all__ = ["WITHIN", "Arrived", "Receiver", "Reply", "a_receiver", "answer", "eventually", "reset"]

WITHIN = 30.0

# A status, the whole answer as bytes, None to hang up without one, or something that does what it likes with the connection.
Reply: TypeAlias = int | bytes | Callable[[asyncio.StreamWriter], Awaitable[None]] | None


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """A whole answer. Of several headers each is a line."""
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection off with an RST, as a process that is killed does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def eventually(true: Callable[[], bool]) -> None:
    """Return once it is true; for what nobody can be told of."""
    async with asyncio.timeout(WITHIN):
        while not true():
            await asyncio.sleep(0.002)


@frozen
class Arrived:
    """A request."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def batch(self) -> dict[str, Any]:
        """Its JSON."""
        return dict(json.loads(self.body))

    @property
    def names(self) -> list[str]:
        """The events in it, by name."""
        return [event["event"] for event in self.batch["events"]]


@define
class Receiver:
    """Answers with `replies` in turn, then 200; while `open` is not set it reads, and answers nobody."""

    url: str = ""
    replies: list[Reply] = Factory(list)
    open: asyncio.Event = Factory(asyncio.Event)
    requests: list[Arrived] = Factory(list)
    taken: list[Arrived] = Factory(list)
    connections: int = 0
    _changed: asyncio.Event = Factory(asyncio.Event)

    async def until(self, requests: int) -> list[Arrived]:
        """All requests so far, once there are that many."""
        async with asyncio.timeout(WITHIN):
            while len(self.requests) < requests:
                self._changed.clear()
                await self._changed.wait()
        return self.requests

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The events of everything that arrived, once there are that many."""
        async with asyncio.timeout(WITHIN):
            while len(found := [event for request in self.requests for event in request.batch["events"]]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                assert line.startswith(b"POST /hook"), line
                headers = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                request = Arrived(headers, await reader.readexactly(int(headers["content-length"])), time.monotonic())
                self.requests.append(request)
                self._changed.set()
                await self.open.wait()
                reply: Reply = self.replies.pop(0) if self.replies else 200
                if reply == 200:
                    self.taken.append(request)
                if reply is None:
                    break
                if callable(reply):
                    await reply(writer)
                    break
                writer.write(reply if isinstance(reply, bytes) else answer(reply))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the sender went away, which some tests want
        finally:
            writer.close()


@asynccontextmanager
async def a_receiver(*replies: Reply, slow: bool = False, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a free port; `slow` answers nobody until its `open` is set."""
    receiver = Receiver(replies=list(replies))
    if not slow:
        receiver.open.set()
    serving = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await receiver.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=2**24)
    scheme = "http" if tls is None else "https"
    receiver.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        server.close()
        # Answers that a test left hanging.
        for task in (left := list(serving)):
            task.cancel()
        if left:
            await asyncio.wait(left)
        await server.wait_closed()
