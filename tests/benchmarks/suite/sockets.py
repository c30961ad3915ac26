"""A client that costs less than what it measures: a WebSocket that knows what these servers send, whole text frames without extensions, and
a person who waits for answers. For people who want a client there is `dooers.client`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from base64 import b64encode
from collections.abc import Callable
from os import urandom
from typing import Any
from uuid import uuid4

from attrs import Factory, define

__all__ = ["GoneError", "Person", "Socket"]


class GoneError(Exception):
    """The server closed the connection, or said no."""


class Socket(asyncio.Protocol):
    """One connection. `heard` is called with each text as it comes, before any task runs."""

    def __init__(self) -> None:
        self.heard: Callable[[bytes], None] = lambda text: None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.texts = 0
        self._rest = b""

    @classmethod
    async def connected(cls, port: int) -> Socket:
        _, socket = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        key = b64encode(urandom(16)).decode()
        socket._transport.write(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await socket.opened
        return socket

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(GoneError("the connection was closed before it was one"))
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        data, self._rest = self._rest + data, b""
        if not self.opened.done():
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            if b" 101 " not in head[:16]:
                self.opened.set_exception(GoneError(head.decode()))
                return
            self.opened.set_result(None)
        at, end = 0, len(data)
        while end - at >= 2:
            start, size = at + 2, data[at + 1]
            if size > 125:
                more = 2 if size == 126 else 8
                if end - start < more:
                    break
                size, start = int.from_bytes(data[start : start + more], "big"), start + more
            if start + size > end:
                break
            kind, at, text = data[at] & 15, start + size, data[start : start + size]
            if kind == 1:
                self.texts += 1
                self.heard(text)
            elif kind == 9:
                self._put(0x8A, text)
            elif kind == 8:
                self.close()
        self._rest = data[at:]

    def send(self, text: bytes) -> None:
        self._put(0x81, text)

    def _put(self, kind: int, text: bytes) -> None:
        size = len(text)
        head = bytes((kind, 0x80 | size)) if size < 126 else struct.pack("!BBH", kind, 0xFE, size)
        self._transport.write(head + b"\0\0\0\0" + text)  # a mask of zeros: nothing has to be turned over here

    def close(self) -> None:
        self._transport.close()


@define(eq=False)
class Person:
    """Somebody who is connected, as a tenant of their own unless `claims` say whose they are."""

    socket: Socket
    thread_id: str | None = None
    said: float = 0.0
    appended: int = 0
    _name: str = Factory(lambda: uuid4().hex)
    _count: int = 0
    _ends: tuple[bytes, ...] = ()
    _waiter: asyncio.Future[bytes] | None = None

    @classmethod
    async def connected(cls, port: int, who: int = 0, *, deltas: bool = False, **claims: str) -> Person:
        person = cls(await Socket.connected(port))
        person.socket.heard = person._hear
        person.socket.closed.add_done_callback(person._miss)
        ids = {"worker_id": "worker-1", "organization_id": f"org-{who}", "workspace_id": "ws-1", "user_id": "user-1"}
        more = {"client": {"capabilities": ["deltas"]}} if deltas else {}
        await person.ask("connect", {**ids, **claims, **more}, b'"ack"')
        return person

    async def ask(self, kind: str, payload: Any, *ends: bytes) -> bytes:
        """Send a frame; the first text that has all of `ends` in it."""
        self._ends = ends
        self._waiter = asyncio.get_running_loop().create_future()
        self.said = time.perf_counter()
        if self.socket.closed.done():
            self._miss()
        else:
            self.socket.send(json.dumps({"id": self._new_id(), "type": kind, "payload": payload}).encode())
        return await self._waiter

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _miss(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(GoneError("the server went away while something was waited for"))

    async def say(self, message: str, *ends: bytes) -> float:
        """A message, until its run has succeeded; how long that took. A first one opens the thread that the others go into."""
        payload: dict[str, Any] = {
            "event": {"content": [{"type": "text", "text": message}]},
            "client_event_id": self._new_id(),
        }
        if self.thread_id is not None:
            payload["thread_id"] = self.thread_id
        await self.ask("event.create", payload, *(ends or (b'"run.upsert"', b'"succeeded"')))
        return time.perf_counter() - self.said

    def _hear(self, text: bytes) -> None:
        if b'"event.append"' in text:
            self.appended += 1
            if self.thread_id is None:
                self.thread_id = json.loads(text)["payload"]["thread_id"]
        if self._waiter is None or self._waiter.done():
            return
        if all(end in text for end in self._ends):
            self._waiter.set_result(text)
        elif b'"ok":false' in text or b'"status":"failed"' in text:
            self._waiter.set_exception(GoneError(text.decode()))
