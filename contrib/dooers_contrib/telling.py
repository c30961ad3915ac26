"""An answer on its way to a front end: a turn's events as steps, files as parts of a message, and the event stream that is the response.
For `door`, and like it without any front end's format.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from mimetypes import guess_type
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from attrs import define, field, frozen
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dooers import ContentPart, DocumentPart, ImagePart, WorkerEvent

__all__ = ["EventStream", "Telling", "Told", "Voice", "file_part", "link", "mime_type_of", "sse", "unless_left"]

log = logging.getLogger("dooers")
MAX_NAME = 255
T = TypeVar("T")


@frozen
class Told:
    """A step of an answer, as front ends want it. `id` is a message's or a tool call's.

    `kind` is a `send_type`, but for texts, which are `text_start`, `text_delta` and `text_end`, and `over`, the last one: its data has the
    `status` and, where it failed, the `error`. A tool's result has always a call before it, of the same id.
    """

    kind: str
    id: str = ""
    data: Mapping[str, Any] = field(factory=dict)


class Voice(Protocol):
    """How a protocol says it: frames of its stream."""

    def begin(self) -> Iterable[str]:
        """What comes before everything."""
        ...

    def say(self, told: Told) -> Iterable[str]:
        """A step."""
        ...


# ---------------------------------------------------------------- events to steps


@define
class Telling:
    """Makes steps of events: texts with a beginning and an end, tool results that have their call."""

    text: str = ""
    length: int = 0
    calls: dict[str, str] = field(factory=dict)

    def take(self, event: WorkerEvent) -> Iterable[Told]:
        data, entry = event.data, "" if event.event is None else event.event.id
        match event.send_type:
            case "delta":
                yield from self._write(data["event_id"], data["text"])
            case "text":
                yield from self._write(entry, data["text"][self.length if self.text == entry else 0 :])
                yield from self.close()
            case "tool_call":
                yield self._call(data)
            case "tool_result" | "tool_transaction":
                yield from self._result(data)
            case kind:
                yield Told(kind, entry, data)

    def _write(self, id: str, text: str) -> Iterable[Told]:
        if self.text != id:
            yield from self.close()
            self.text, self.length = id, 0
            yield Told("text_start", id)
        if text:
            self.length += len(text)
            yield Told("text_delta", id, {"text": text})

    def close(self) -> Iterable[Told]:
        """The end of a text that has none yet."""
        if self.text:
            yield Told("text_end", self.text)
        self.text, self.length = "", 0

    def _call(self, data: Mapping[str, Any]) -> Told:
        self.calls[data["id"]] = data["name"]
        return Told("tool_call", data["id"], data)

    def _result(self, data: Mapping[str, Any]) -> Iterable[Told]:
        id = data["id"]
        if id not in self.calls:
            # A handler need not give ids: then it is the oldest open call of that name, if there is one.
            id = next((one for one, name in self.calls.items() if name == data["name"]), id)
        if id not in self.calls:
            yield self._call(data)
        del self.calls[id]
        yield Told("tool_result", id, data)


def sse(data: Any) -> str:
    """A frame of an event stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def link(told: Told) -> str:
    """An image or a document as Markdown, for front ends that have nothing but text."""
    image = told.kind == "image"
    title = (told.data.get("alt") if image else told.data["filename"]) or ("image" if image else "file")
    for mark in "\\[]":
        title = title.replace(mark, f"\\{mark}")
    url = told.data["url"].replace("<", "%3C").replace(">", "%3E")
    return f"{'!' if image else ''}[{' '.join(title.split())}](<{url}>)"


class EventStream(Response):
    """An event stream that says it lives while there is nothing to say, and whose reader may leave, or may not read at all."""

    def __init__(
        self,
        frames: AsyncGenerator[str, None],
        keep_alive: float,
        patience: float,
        left: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # Proxies are not to gather what is to be seen at once.
        super().__init__(
            headers={"cache-control": "no-cache, no-transform", "x-accel-buffering": "no", **named},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._frames, self._keep_alive, self._patience, self._left = frames, keep_alive, patience, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            written = await unless_left(receive, self._write(send))
        finally:
            await self._frames.aclose()
        failed = OSError() if written is None else written.exception()
        if isinstance(failed, TimeoutError):
            log.warning("an answer was not read for %g seconds; its stream is given up", self._patience)
        if isinstance(failed, OSError):  # a TimeoutError is one
            await self._left()
        elif failed is not None:
            raise failed
        if self.background is not None:
            await self.background()

    async def _write(self, send: Send) -> None:
        async def put(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._patience):
                await send(message)

        await put({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        frame: asyncio.Future[str] | None = None
        try:
            while True:
                frame = frame or asyncio.ensure_future(anext(self._frames))
                done, _ = await asyncio.wait([frame], timeout=self._keep_alive)
                try:
                    text = frame.result() if done else ":\n\n"
                except StopAsyncIteration:
                    break
                frame = None if done else frame
                await put({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})
            await put({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if frame is not None and not frame.done():
                frame.cancel()
                await asyncio.gather(frame, return_exceptions=True)


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> asyncio.Future[T] | None:
    """Do something as long as the client is there; None where it has left before that was done."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait([doing, leaving], return_when=asyncio.FIRST_COMPLETED)
        return doing if doing.done() else None
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


# ---------------------------------------------------------------- files


def mime_type_of(url: str) -> str | None:
    """What kind of file a URL says that it is, by its data or by its name."""
    if url[:5].lower() == "data:":
        return url[5:].partition(",")[0].partition(";")[0].lower() or None
    return guess_type(_path(url))[0]


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def file_part(url: str, mime_type: str | None, name: Any = None, *, image: bool | None = None) -> ContentPart:
    """A file that somebody sends along. Where its URL may point is asked later, with everything else of the content."""
    kind = (mime_type or mime_type_of(url) or "application/octet-stream")[:MAX_NAME]
    name = name[:MAX_NAME] if isinstance(name, str) else ""
    if image or (image is None and kind.startswith("image/")):
        return ImagePart(url, mime_type=kind if kind.startswith("image/") else None, alt=name or None)
    if not name:
        name = "file" if url[:5].lower() == "data:" else PurePosixPath(_path(url)).name[:MAX_NAME] or "file"
    return DocumentPart(url, name, kind)
