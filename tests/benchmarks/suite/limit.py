"""What the worker is held against, in a process of its own, which prints its port: `python -m benchmarks.suite.limit KIND OPTIONS`.

`turns` shows the frames of a turn and keeps its rows, every one committed before it is shown; `echo` sends back what comes; `loop` sends
what comes to everybody. None of them is a chat server: who comes is believed, nothing is checked, limited, counted or read again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import uuid4

import orjson
from attrs import Factory, define
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks.suite.handler import PIECE, REPLY, TEXT, asked
from benchmarks.suite.limit_stores import Keeper, keeper_of
from benchmarks.suite.listening import listen

__all__ = ["Ceiling", "Send"]

Send: TypeAlias = Callable[[str], Awaitable[None]]


@define(eq=False)
class Ceiling:
    """Conversations, as little of them as can be."""

    keeper: Keeper
    threads: dict[str, dict[str, Any]] = Factory(dict)
    readers: dict[str, list[Send]] = Factory(dict)
    waiting: set[asyncio.Task[None]] = Factory(set)

    async def serve(self, socket: WebSocket) -> None:
        """One connection, one frame after the other."""
        await socket.accept()
        send, who = socket.send_text, dict[str, Any]()
        try:
            while True:
                frame = orjson.loads(await socket.receive_text())
                kind, payload = frame["type"], frame["payload"]
                if kind == "event.create":
                    await self.message(send, who, frame)
                elif kind == "thread.subscribe":
                    self.readers.setdefault(payload["thread_id"], []).append(send)
                    await send(_text("thread.snapshot", {"thread": self.threads[payload["thread_id"]], "events": []}))
                else:
                    who = payload
                    await send(_text("ack", {"ack_id": frame["id"], "ok": True}))
        except WebSocketDisconnect:
            for readers in self.readers.values():
                if send in readers:
                    readers.remove(send)

    async def message(self, send: Send, who: Mapping[str, Any], frame: Mapping[str, Any]) -> str:
        """A message, and the answers to it; the id of its thread."""
        payload, at = frame["payload"], _now()
        thread_id = payload.get("thread_id")
        rows, new = [], thread_id is None
        if new:
            thread_id = str(uuid4())
            self.threads[thread_id] = {
                "id": thread_id,
                "title": None,
                "owner": who,
                "created_at": at,
                "last_event_at": at,
            }
            self.readers[thread_id] = [send]
            rows.append(("thread", (thread_id, who["organization_id"], who["user_id"], None, at)))
        content = payload["event"]["content"]
        event = _event(thread_id, None, "user", content, at, client_event_id=payload.get("client_event_id"))
        await self.keeper.write([*rows, _row(event)])
        if new:
            await send(_text("thread.upsert", {"thread": self.threads[thread_id]}))
        await self._tell(thread_id, "event.append", {"thread_id": thread_id, "events": [event]})
        await send(_text("ack", {"ack_id": frame["id"], "ok": True}))
        turn = self._turn(thread_id, who, content[0]["text"])
        if content[0]["text"] == "wait":
            self.waiting.add(asyncio.create_task(turn))
        else:
            await turn
        return str(thread_id)

    async def _turn(self, thread_id: str, who: Mapping[str, Any], message: str) -> None:
        thread, run_id = self.threads[thread_id], str(uuid4())
        await self._run(thread_id, run_id, "running")
        word, number = asked(message)
        if word == "wait":
            await asyncio.Event().wait()
        texts = [TEXT] * number if word == "stream" else [PIECE * number] if word == "deltas" else [REPLY]
        if word == "deltas":
            for _ in range(number):
                await self._tell(thread_id, "event.delta", {"thread_id": thread_id, "run_id": run_id, "text": PIECE})
        for text in texts:
            event = _event(thread_id, run_id, "assistant", [{"type": "text", "text": text}], _now(), author="Assistant")
            await self.keeper.write([_row(event)])
            await self._tell(thread_id, "event.append", {"thread_id": thread_id, "events": [event]})
        if word == "four" or thread["title"] is None:
            thread["title"], at = message[:60], _now()
            await self.keeper.write(
                [("thread", (thread_id, who["organization_id"], who["user_id"], thread["title"], at))]
            )
            await self._tell(thread_id, "thread.upsert", {"thread": thread})
        await self._run(thread_id, run_id, "succeeded")

    async def _run(self, thread_id: str, run_id: str, status: str) -> None:
        at = _now()
        await self.keeper.write([("run", (run_id, thread_id, status, at))])
        run = {"id": run_id, "thread_id": thread_id, "status": status, "started_at": at}
        await self._tell(thread_id, "run.upsert", {"run": run})

    async def _tell(self, thread_id: str, kind: str, payload: dict[str, Any]) -> None:
        text = _text(kind, payload)
        for send in self.readers[thread_id]:
            await send(text)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _event(thread_id: str, run_id: str | None, actor: str, content: Any, at: str, **more: Any) -> dict[str, Any]:
    one = {"id": str(uuid4()), "thread_id": thread_id, "type": "message", "actor": actor, "content": content}
    return {**one, "run_id": run_id, "created_at": at, **more}


def _row(event: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
    content = orjson.dumps(event["content"]).decode()
    return "event", (event["id"], event["thread_id"], event["run_id"], event["actor"], content, event["created_at"])


def _text(kind: str, payload: Mapping[str, Any]) -> str:
    return orjson.dumps({"id": str(uuid4()), "type": kind, "payload": payload}).decode()


# ---------------------------------------------------------------- no turns at all


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Bare ASGI: back goes what comes."""
    async for text in _texts(scope, receive, send):
        await send({"type": "websocket.send", "text": text})


_everybody: list[Any] = []


async def loop(scope: Any, receive: Any, send: Any) -> None:
    """Bare ASGI: what one sends goes to all."""
    if scope["type"] == "websocket":
        _everybody.append(send)
    async for text in _texts(scope, receive, send):
        message = {"type": "websocket.send", "text": text}
        for one in _everybody:
            await one(message)
    if scope["type"] == "websocket":
        _everybody.remove(send)


async def _texts(scope: Any, receive: Any, send: Any) -> AsyncIterator[str]:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        yield message["text"]


def turns(options: Mapping[str, Any]) -> Starlette:
    """The ceiling as an application."""
    ceiling = Ceiling(keeper_of(options))

    @asynccontextmanager
    async def open_while(app: Starlette) -> AsyncIterator[None]:
        await ceiling.keeper.open()
        yield
        await ceiling.keeper.close()

    return Starlette(routes=[WebSocketRoute("/ws", ceiling.serve)], lifespan=open_while)


if __name__ == "__main__":
    _, kind, told = sys.argv
    listen({"echo": echo, "loop": loop}.get(kind) or turns(json.loads(told)))
