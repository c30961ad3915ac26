"""What a handler yields: `send.text("...")` and its siblings, each a WorkerEvent. Constructors only; `turn.py` says what they do."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

from dooers.codec import clean, plain
from dooers.content import check_url
from dooers.exceptions import InvalidValueError, quoted
from dooers.models import ThreadEvent

__all__ = ["SendType", "WorkerEvent", "WorkerSend"]

SendType: TypeAlias = Literal[
    "text",
    "image",
    "document",
    "tool_call",
    "tool_result",
    "tool_transaction",
    "update_thread",
    "run_start",
    "run_end",
    "stream",
    "delta",
]

_ENDS = ("succeeded", "failed", "canceled")
_UNSET: Any = object()


@frozen
class WorkerEvent:
    """One thing a handler yielded. `send_type` says which constructor made it, `data` holds that constructor's arguments.

    A caller of `dispatch` gets it back once it is stored, with `event` (and its `seq`) where it became an entry of the thread.
    """

    send_type: SendType
    data: dict[str, Any]
    event: ThreadEvent | None = field(default=None, kw_only=True)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"send.{name}: expected a text, got {type(value).__name__} ({quoted(value)})")
    return clean(value)


def _url(name: str, value: Any, *, image: bool = False) -> str:
    # Also what a handler sends: the URL may come out of a model, and a browser will open it.
    url = _text(name, value)
    check_url(url, f"send.{name}", image=image)
    return url


def _maybe_text(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


class WorkerSend:
    """The `send` of a handler. Every method only makes an event: `yield` it, or nothing happens."""

    __slots__ = ()

    def text(self, text: str, author: str | None = None) -> WorkerEvent:
        """A message of text. `author` replaces the worker's `assistant_name` on this message."""
        return WorkerEvent("text", {"text": _text("text(text)", text), "author": _maybe_text("text(author)", author)})

    def stream(self, source: AsyncIterable[str | None], author: str | None = None) -> WorkerEvent:
        """A message that is written while people watch: an async iterator of pieces of text.

        It is read while the handler waits at this `yield`, shown live, and stored once, when it ends; cut off by a stop or an
        error, what there is of it is kept. The iterator is closed in any case. A dispatch caller gets it as one "text".
        """
        if not hasattr(source, "__aiter__"):
            hint = "; for a list use send.text" if isinstance(source, list | tuple | str) else ""
            raise InvalidValueError(
                f"send.stream(source): expected an async iterator of texts, got {quoted(source)}{hint}"
            )
        return WorkerEvent("stream", {"source": source, "author": _maybe_text("stream(author)", author)})

    def image(
        self, url: str, mime_type: str | None = None, alt: str | None = None, author: str | None = None
    ) -> WorkerEvent:
        """A message with one image, by URL (http, https or data)."""
        return WorkerEvent(
            "image",
            {
                "url": _url("image(url)", url, image=True),
                "mime_type": _maybe_text("image(mime_type)", mime_type),
                "alt": _maybe_text("image(alt)", alt),
                "author": _maybe_text("image(author)", author),
            },
        )

    def document(self, url: str, filename: str, mime_type: str, author: str | None = None) -> WorkerEvent:
        """A message with one file, by URL (http, https or data)."""
        return WorkerEvent(
            "document",
            {
                "url": _url("document(url)", url),
                "filename": _text("document(filename)", filename),
                "mime_type": _text("document(mime_type)", mime_type),
                "author": _maybe_text("document(author)", author),
            },
        )

    def tool_call(
        self, name: str, args: dict[str, Any] | None = None, display_name: str | None = None, id: str | None = None
    ) -> WorkerEvent:
        """A tool is being called. Give the same `id` to `tool_result`; without one a new id is made.

        `args` is kept as JSON: whatever has a JSON form is taken as it is at this moment.
        """
        return WorkerEvent(
            "tool_call",
            {
                "id": _maybe_text("tool_call(id)", id),
                "name": _text("tool_call(name)", name),
                "display_name": _maybe_text("tool_call(display_name)", display_name),
                "args": plain({} if args is None else args, "send.tool_call(args)"),
            },
        )

    def tool_result(
        self,
        name: str,
        result: Any,
        args: dict[str, Any] | None = None,
        display_name: str | None = None,
        id: str | None = None,
    ) -> WorkerEvent:
        """What a tool gave back. `result` may be anything with a JSON form."""
        return WorkerEvent(
            "tool_result",
            {
                "id": _maybe_text("tool_result(id)", id),
                "name": _text("tool_result(name)", name),
                "display_name": _maybe_text("tool_result(display_name)", display_name),
                "args": None if args is None else plain(args, "send.tool_result(args)"),
                "result": plain(result, "send.tool_result(result)"),
            },
        )

    def tool_transaction(
        self,
        name: str,
        args: dict[str, Any] | None = None,
        result: Any = None,
        display_name: str | None = None,
        id: str | None = None,
    ) -> WorkerEvent:
        """A tool call and its result as one event, for tools that are done before anybody need hear of them."""
        return WorkerEvent(
            "tool_transaction",
            {
                "id": _maybe_text("tool_transaction(id)", id),
                "name": _text("tool_transaction(name)", name),
                "display_name": _maybe_text("tool_transaction(display_name)", display_name),
                "args": plain({} if args is None else args, "send.tool_transaction(args)"),
                "result": plain(result, "send.tool_transaction(result)"),
            },
        )

    def update_thread(self, *, title: str | None = _UNSET, metadata: dict[str, Any] | None = _UNSET) -> WorkerEvent:
        """Set the thread's title, or your own metadata for it. What is not given stays; None clears."""
        data: dict[str, Any] = {}
        if title is not _UNSET:
            data["title"] = _maybe_text("update_thread(title)", title)
        if metadata is not _UNSET:
            if metadata is not None and not isinstance(metadata, dict):
                raise InvalidValueError(
                    f"send.update_thread(metadata): expected a dict or None, got {quoted(metadata)}"
                )
            data["metadata"] = None if metadata is None else plain(metadata, "send.update_thread(metadata)")
        return WorkerEvent("update_thread", data)

    def run_start(self, agent_id: str | None = None) -> WorkerEvent:
        """A run begins: clients show that somebody is at work. A run that is still open ends as succeeded."""
        return WorkerEvent("run_start", {"agent_id": _maybe_text("run_start(agent_id)", agent_id)})

    def run_end(
        self, status: Literal["succeeded", "failed", "canceled"] = "succeeded", error: str | None = None
    ) -> WorkerEvent:
        """The open run ends. `error` is shown to people. Without this the run ends with the turn."""
        if status not in _ENDS:
            raise InvalidValueError(f"send.run_end(status): expected one of {', '.join(_ENDS)}, got {quoted(status)}")
        return WorkerEvent("run_end", {"status": status, "error": _maybe_text("run_end(error)", error)})
