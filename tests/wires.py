"""What model vendors put on the wire when they stream, as their API references have it, and a server that says it as it is told.

`Vendor` speaks plain HTTP over a socket, so that a stream can be cut into any pieces, wait, end too early, or break. Not a test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from attrs import Factory, define, frozen

__all__ = [
    "Asked",
    "Reply",
    "Vendor",
    "a_vendor",
    "anthropic",
    "chat",
    "gemini",
    "refused",
    "response",
    "sse",
    "tool_use",
]

Json = dict[str, Any]

# ---------------------------------------------------------------- a server that says what it is told to


@frozen
class Reply:
    """An answer. `cut`: so many bytes at a time. `breaks`: the connection is reset where the body ends. `until`: the rest
    waits for it after `first` bytes."""

    body: bytes
    status: int = 200
    kind: str = "text/event-stream"
    headers: tuple[str, ...] = ()
    cut: int = 1 << 20
    breaks: bool = False
    first: int = 0
    until: asyncio.Event | None = None


@frozen
class Asked:
    """A request."""

    path: str
    headers: dict[str, str]
    body: Any


@define(eq=False)
class Vendor:
    """Answers with `replies` in turn, whoever asks for what. `called`: somebody has asked; `left`: somebody has gone away
    in the middle of an answer."""

    url: str = ""
    replies: list[Reply] = Factory(list)
    asked: list[Asked] = Factory(list)
    called: asyncio.Event = Factory(asyncio.Event)
    left: asyncio.Event = Factory(asyncio.Event)
    token: bytes = b'{"access_token": "from-the-account", "expires_in": 3600, "token_type": "Bearer"}'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                path, headers = line.decode().split(" ")[1], dict[str, str]()
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if path == "/token":  # where Google's accounts get theirs
                    await say(writer, Reply(self.token, kind="application/json"))
                    continue
                self.asked.append(Asked(path, headers, json.loads(body)))
                self.called.set()
                reply = self.replies.pop(0)
                await say(writer, reply, reader)
                if reply.breaks:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


async def say(writer: asyncio.StreamWriter, reply: Reply, reader: asyncio.StreamReader | None = None) -> None:
    lines = [
        f"HTTP/1.1 {reply.status} Status",
        f"content-type: {reply.kind}",
        "transfer-encoding: chunked",
        *reply.headers,
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def body(data: bytes) -> None:
        for start in range(0, len(data), reply.cut):
            piece = data[start : start + reply.cut]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()

    if reply.until is None:
        await body(reply.body)
    else:
        await body(reply.body[: reply.first])
        await until(reply.until, reader)
        await body(reply.body[reply.first :])
    if reply.breaks:
        # What was written is on its way before the connection is reset.
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def until(event: asyncio.Event, reader: asyncio.StreamReader | None) -> None:
    """Wait for it, or find out that whoever asked is gone."""
    happened = asyncio.create_task(event.wait())
    gone = asyncio.create_task(asyncio.Event().wait() if reader is None else reader.read(1))
    try:
        await asyncio.wait([happened, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and gone.result() == b"":
            raise ConnectionResetError("whoever asked is gone")
    finally:
        happened.cancel()
        gone.cancel()
        await asyncio.wait([happened, gone])  # or the next request could not be read


@asynccontextmanager
async def a_vendor(*replies: Reply) -> AsyncIterator[Vendor]:
    """A vendor on a free port of this machine."""
    vendor = Vendor(replies=list(replies))
    serving = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await vendor.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    vendor.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield vendor
    finally:
        server.close()
        for task in (left := list(serving)):
            task.cancel()
        if left:
            await asyncio.wait(left)
        await server.wait_closed()


def refused(status: int, error: Json) -> Reply:
    """A request that is refused. OpenAI's and Anthropic's libraries try again, if so without waiting."""
    return Reply(json.dumps(error).encode(), status, "application/json", ("retry-after-ms: 1",))


def sse(events: Iterable[Json | str], *, named: bool = False) -> bytes:
    """Server-sent events; `named` puts the type of each in front of it."""
    texts = []
    for event in events:
        name = f"event: {event['type']}\n" if named and isinstance(event, dict) else ""
        data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        texts.append(f"{name}data: {data}\n\n")
    return "".join(texts).encode(errors="backslashreplace")  # half of an emoji can only be escaped


# ---------------------------------------------------------------- OpenAI, chat completions


def chat(
    *pieces: str,
    calls: Iterable[Json] = (),
    finish: str | None = "stop",
    usage: Json | None = None,
    refusal: Iterable[str] = (),
) -> bytes:
    """A stream of chunks: the role, the text, the pieces of `calls` as given, the reason, the figures in a chunk without a choice."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test"}

    def chunk(delta: Json, reason: str | None = None) -> Json:
        return {**common, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    chunks: list[Json | str] = [chunk({"role": "assistant", "content": "", "refusal": None})]
    chunks += [chunk({"content": piece}) for piece in pieces]
    chunks += [chunk({"refusal": piece}) for piece in refusal]
    chunks += [chunk({"tool_calls": [call]}) for call in calls]
    if finish is not None:
        chunks.append(chunk({}, finish))
    if usage is not None:
        chunks.append({**common, "choices": [], "usage": usage})
    return sse([*chunks, "[DONE]"])


# ---------------------------------------------------------------- OpenAI, responses


def response(
    *items: Json, status: str = "completed", reason: str | None = None, error: Json | None = None, end: bool = True
) -> bytes:
    """A stream of events around output items; the text of messages comes word by word."""
    number = iter(range(1_000_000))
    head: Json = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-test", "tools": []}
    head |= {"tool_choice": "auto", "parallel_tool_calls": True}

    def event(kind: str, **fields: Any) -> Json:
        return {"type": f"response.{kind}", "sequence_number": next(number), **fields}

    events: list[Json] = [event("created", response={**head, "status": "in_progress", "output": []})]
    for index, item in enumerate(items):
        events.append(event("output_item.added", output_index=index, item={**item, "status": "in_progress"}))
        place = {"item_id": item["id"], "output_index": index}
        for part in item.get("content", ()):
            text = part["text"] if part["type"] == "output_text" else part["refusal"]
            kind = part["type"]
            for word in text.split(" "):
                sep = "" if text.startswith(word) else " "
                events.append(event(f"{kind}.delta", **place, content_index=0, delta=f"{sep}{word}", logprobs=[]))
        if "arguments" in item:
            for letter in item["arguments"]:
                events.append(event("function_call_arguments.delta", **place, delta=letter))
        events.append(event("output_item.done", output_index=index, item=item))
    if end:
        details = {"input_tokens_details": {"cached_tokens": 2}, "output_tokens_details": {"reasoning_tokens": 0}}
        usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, **details}
        last = {**head, "status": status, "output": list(items), "usage": usage, "error": error}
        last["incomplete_details"] = {"reason": reason} if reason else None
        events.append(event(status, response=last))
    return sse(events, named=True)


# ---------------------------------------------------------------- Anthropic, messages


def tool_use(id: str, name: str, *pieces: str) -> Json:
    """A block that calls a tool, with its input in pieces."""
    return {"type": "tool_use", "id": id, "name": name, "input": {}, "pieces": pieces}


def anthropic(*blocks: str | Json, stop: str | None = "end_turn", end: bool = True) -> bytes:
    """A stream of events. A text block is a text, written word by word; other blocks come with the `pieces` of their deltas."""
    usage: Json = {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 2}
    message: Json = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    events: list[Json] = [{"type": "message_start", "message": message}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        if isinstance(block, str):
            start: Json = {"type": "text", "text": ""}
            words = block.split(" ")
            deltas: list[Json] = [
                {"type": "text_delta", "text": word if place == 0 else f" {word}"} for place, word in enumerate(words)
            ]
        else:
            start = {name: value for name, value in block.items() if name not in ("pieces", "deltas")}
            deltas = block.get("deltas") or [
                {"type": "input_json_delta", "partial_json": piece} for piece in block.get("pieces", ())
            ]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    if end:
        delta = {"stop_reason": stop, "stop_sequence": None}
        events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}})
        events.append({"type": "message_stop"})
    return sse(events, named=True)


# ---------------------------------------------------------------- Google, streamGenerateContent


def gemini(*parts: str | Json, finish: str | None = "STOP", more: Callable[[Json], Json] | None = None) -> bytes:
    """A stream of chunks with a part each, a text or any other; the figures and the reason are in the last."""
    chunks: list[Json] = []
    for place, part in enumerate(parts):
        content = {"role": "model", "parts": [{"text": part} if isinstance(part, str) else part]}
        candidate: Json = {"content": content, "index": 0}
        chunk: Json = {"candidates": [candidate], "modelVersion": "gemini-test"}
        if place == len(parts) - 1 and finish is not None:
            candidate["finishReason"] = finish
            chunk["usageMetadata"] = {"promptTokenCount": 6, "candidatesTokenCount": 4, "thoughtsTokenCount": 1}
        chunks.append(chunk)
    return sse(chunks if more is None else [more(chunk) for chunk in chunks])
