"""Test a worker without a server: a client that speaks the real frames to it, in this process and on this event loop.

```python
async with WorkerClient(worker, user_id="alice") as client:
    reply = await client.say("hi")
    assert reply.text == "hello"
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from attrs import Factory, frozen

from dooers.codec import dumps, loads
from dooers.protocol import ANSWERS
from dooers.server import WorkerServer

__all__ = ["Closed", "Reply", "WorkerClient"]

WITHIN = 10.0


class Closed(Exception):
    """The worker closed the connection; `code` is the WebSocket's close code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


@frozen
class Reply:
    """What a turn answered: its frames in order, and the message they answer."""

    thread_id: str
    event_id: str
    frames: list[dict[str, Any]] = Factory(list)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event of the answer."""
        return [
            event
            for frame in self.frames
            if frame["type"] == "event.append"
            for event in frame["payload"]["events"]
            if event["id"] != self.event_id
        ]

    @property
    def texts(self) -> list[str]:
        """The texts of the answer."""
        return [part["text"] for event in self.events for part in event["content"] if part["type"] == "text"]

    @property
    def text(self) -> str:
        """The texts of the answer, a line each."""
        return "\n".join(self.texts)


class _Socket:
    """The worker's side of the connection, as an accepted WebSocket."""

    def __init__(self, headers: Mapping[str, str], query: str) -> None:
        self.scope = {
            "type": "websocket",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "query_string": query.encode(),
            "client": ("testclient", 50000),
        }
        self.to_worker: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.to_client: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        # A reader that has gone to sleep: tests clear it to see what the worker does with one.
        self.reading = asyncio.Event()
        self.reading.set()

    async def receive(self) -> dict[str, Any]:
        return await self.to_worker.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        self.to_client.put_nowait(message)


class WorkerClient:
    """A client of a worker. Entering it connects; `claims` are the flat fields of `connect` (user_id, organization_id, ...)."""

    def __init__(
        self,
        worker: WorkerServer,
        *,
        handler: Any = None,
        connect: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        **claims: Any,
    ) -> None:
        self._worker = worker
        self._handler = handler
        self._connect: Mapping[str, Any] = (
            connect
            if connect is not None
            else {
                "worker_id": worker.config.worker_id,
                "organization_id": "org-1",
                "workspace_id": "ws-1",
                "user_id": "user-1",
                **claims,
            }
        )
        self.socket = _Socket(headers or {}, query)
        self._task: asyncio.Task[None] | None = None
        self._count = 0
        self._unread: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        await self.open()
        answer = await self.ask("connect", self._connect)
        if not answer["payload"]["ok"]:
            await self.drop()
            raise ConnectionRefusedError(answer["payload"]["error"])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drop()

    async def open(self) -> None:
        """Open the socket, without `connect`."""
        self._task = asyncio.create_task(self._worker.handle(self.socket, self._handler))

    async def drop(self) -> None:
        """Close the socket from this side, and wait until the worker has let go of it."""
        self.socket.reading.set()
        self.socket.to_worker.put_nowait({"type": "websocket.disconnect", "code": 1000})
        if self._task is not None:
            await asyncio.wait_for(asyncio.shield(self._task), WITHIN)

    # ------------------------------------------------------------ frames

    def post(self, frame_type: str, payload: Mapping[str, Any] | None = None, frame_id: str | None = None) -> str:
        """Send a frame and do not wait; its id."""
        self._count += 1
        frame_id = frame_id if frame_id is not None else f"f{self._count}"
        self.post_text(dumps({"id": frame_id, "type": frame_type, "payload": dict(payload or {})}))
        return frame_id

    def post_text(self, text: str) -> None:
        """Send any text."""
        self.socket.to_worker.put_nowait({"type": "websocket.receive", "text": text})

    async def receive(self, within: float = WITHIN) -> dict[str, Any]:
        """The next frame. TimeoutError if none comes, Closed when the worker has closed the connection."""
        if self._unread:
            return self._unread.pop(0)
        async with asyncio.timeout(within):
            message = await self._next()
        if message["type"] == "websocket.close":
            raise Closed(message["code"])
        frame: dict[str, Any] = loads(message["text"])
        return frame

    async def _next(self) -> dict[str, Any]:
        """The next message of the worker, or what `handle` raised instead."""
        getting = asyncio.ensure_future(self.socket.to_client.get())
        try:
            await asyncio.wait(
                {getting, *([self._task] if self._task is not None else [])}, return_when="FIRST_COMPLETED"
            )
            if getting.done():
                return getting.result()
            assert self._task is not None
            self._task.result()
            raise Closed(1006)
        finally:
            getting.cancel()

    async def expect(self, *types: str, within: float = WITHIN) -> dict[str, Any]:
        """The next frame of one of these types; frames of other types that come before it are passed over."""
        while True:
            frame = await self.receive(within)
            if frame["type"] in types:
                return frame

    async def ask(self, frame_type: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a frame and return the answer to it; what comes in between stays unread."""
        frame_id = self.post(frame_type, payload)
        passed: list[dict[str, Any]] = []
        while True:
            frame = await self.receive()
            answers = frame["type"] == ANSWERS.get(frame_type)
            if answers or (frame["type"] == "ack" and frame["payload"]["ack_id"] == frame_id):
                self._unread = passed + self._unread
                return frame
            passed.append(frame)

    async def say(self, text: str, thread_id: str | None = None, **more: Any) -> Reply:
        """Send a message and return the answer, complete: it ends when the thread's turn has."""
        payload = {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}, **more}
        if thread_id is not None:
            payload["thread_id"] = thread_id
        answer = await self.ask("event.create", payload)
        if not answer["payload"]["ok"]:
            raise AssertionError(f"the message was refused: {answer['payload']['error']}")
        mine = next(
            event
            for frame in reversed(self._unread)
            if frame["type"] == "event.append"
            for event in frame["payload"]["events"]
            if event["actor"] == "user"
        )
        self._unread.clear()
        while self._worker.is_answering(mine["thread_id"]):  # noqa: ASYNC110  a handler without a run has no frame at its end
            await asyncio.sleep(0.001)
        await self.ask("ping")  # whatever the turn has sent is in front of the pong
        frames, self._unread = self._unread, []
        return Reply(mine["thread_id"], mine["id"], frames)
