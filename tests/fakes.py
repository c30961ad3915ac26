"""What tests talk to instead of the world: any ASGI application on a local port, a browser, and the model vendors' HTTP interfaces.

The vendors' own libraries are real in these tests; only what they reach is not. `Vendors.requests` is what arrived.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
import wires
from attrs import Factory, define, frozen
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from websockets.asyncio.client import connect

__all__ = ["Arrived", "Chat", "Vendors", "chat", "serving", "vendors"]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application on 127.0.0.1, on a free port and this event loop; gives its address, as `127.0.0.1:port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=2)
    server = _Server(config)
    # Not `serve()`, which takes over the process's signal handlers; pytest's own stay.
    task = asyncio.create_task(server._serve([listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.002)
        if task.done():
            task.result()
            raise RuntimeError("the application did not start")
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.end.set()
        await task
        listener.close()


class _Server(uvicorn.Server):
    """A uvicorn that ends when it is told to. The real one looks ten times a second, and rests a tenth of a second before it looks whether
    everybody is gone: two hundred milliseconds that hundreds of tests would wait."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        patience = self.config.timeout_graceful_shutdown
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.server_state.connections or self.server_state.tasks:
                    await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


# ---------------------------------------------------------------- a browser


class Chat:
    """A browser's side: JSON over a real WebSocket. `frames` are those of the turn so far."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []

    async def send(self, frame_type: str, **payload: Any) -> None:
        await self.socket.send(json.dumps({"id": frame_type, "type": frame_type, "payload": payload}))

    async def until(self, frame_type: str, **payload: Any) -> dict[str, Any]:
        while True:
            frame: dict[str, Any] = json.loads(await self.socket.recv())
            self.frames.append(frame)
            got = frame["payload"].get("run", frame["payload"])
            if frame["type"] == frame_type and payload.items() <= got.items():
                return dict(frame["payload"])

    async def say(self, text: str, thread_id: str | None = None) -> list[dict[str, Any]]:
        """The frames of the whole turn."""
        self.frames.clear()
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
        await self.send("event.create", event=event, **({"thread_id": thread_id} if thread_id else {}))
        await self.until("run.upsert", status="succeeded")
        return list(self.frames)


@asynccontextmanager
async def chat(url: str, **who: str) -> AsyncIterator[Chat]:
    """A connection to a served worker, acknowledged."""
    async with connect(url, proxy=None) as socket:
        chat = Chat(socket)
        await chat.send("connect", **who)
        await chat.until("ack", ack_id="connect", ok=True)
        yield chat


# ---------------------------------------------------------------- model vendors


@frozen
class Arrived:
    """One request as the vendor would have got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@define
class Vendors:
    """OpenAI, Anthropic, Google and Cohere at one address. Every model answers with `reply`."""

    reply: str = "Hello from the model."
    requests: list[Arrived] = Factory(list)

    @property
    def last(self) -> Arrived:
        """The newest request."""
        return self.requests[-1]

    def app(self) -> ASGIApp:
        """The vendors' HTTP interfaces, as far as a chat needs them."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._answers(self._openai), methods=["POST"]),
                Route("/v1/messages", self._answers(self._anthropic), methods=["POST"]),
                Route("/v1/responses", self._answers(self._openai), methods=["POST"]),
                Route("/{version}/models/{model}:generateContent", self._answers(self._google), methods=["POST"]),
                Route("/{version}/models/{model}:streamGenerateContent", self._answers(self._google), methods=["POST"]),
                Route("/v1/chat", self._answers(self._cohere), methods=["POST"]),
            ]
        )

    def _answers(self, answer: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = await request.json()
            self.requests.append(Arrived(request.url.path, dict(request.headers), body))
            if body.get("stream") or request.url.path.endswith(":streamGenerateContent"):
                return Response(self._stream(request.url.path, body), media_type="text/event-stream")
            return JSONResponse(answer(body))

        return endpoint

    def _openai(self, body: dict[str, Any]) -> Any:
        message = {"role": "assistant", "content": self.reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}

    def _stream(self, path: str, body: dict[str, Any]) -> bytes:
        words = [f"{word} " for word in self.reply.split(" ")]
        match path.rpartition("/")[2]:
            case "completions" if body.get("tools") and body["messages"][-1]["role"] == "user":
                function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Lisbon"}'}
                return wires.chat(calls=[{"index": 0, "id": "call_1", "function": function}], finish="tool_calls")
            case "completions":
                return wires.chat(*words)
            case "responses":
                part = {"type": "output_text", "text": self.reply, "annotations": []}
                return wires.response({"type": "message", "id": "m1", "role": "assistant", "content": [part]})
            case "messages":
                return wires.anthropic(self.reply)
            case _:
                return wires.gemini(*words)

    def _anthropic(self, body: dict[str, Any]) -> Any:
        return {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": self.reply}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }

    def _google(self, body: dict[str, Any]) -> Any:
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": self.reply}]}, "finishReason": "STOP"}]}

    def _cohere(self, body: dict[str, Any]) -> Any:
        return {"text": self.reply, "generation_id": "g1", "finish_reason": "COMPLETE"}


@asynccontextmanager
async def vendors(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendors]:
    """The fake vendors, served, and the environment set so that the vendors' libraries find them without being told."""
    fake = Vendors()
    async with serving(fake.app()) as address:
        url = f"http://{address}"
        environment = {
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": f"{url}/v1",
            "ANTHROPIC_API_KEY": "sk-test",
            "ANTHROPIC_BASE_URL": url,
            "GEMINI_API_KEY": "key-test",
            "GOOGLE_GEMINI_BASE_URL": url,
            "CO_API_KEY": "key-test",
            "CO_API_URL": url,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # A proxy of this machine must not come between a library and 127.0.0.1.
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        yield fake
