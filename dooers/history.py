"""A thread as a model wants to read it: stored messages to the message shape of each vendor. Pure; `context.py` does the fetching.

A new vendor is one function and one row of `FORMATS`. Sources for the shapes: the vendors' own API references
(OpenAI chat completions, Anthropic messages, Gemini contents, Cohere v1 chat_history as the classic API promises).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

from attrs import frozen

from dooers.exceptions import InvalidValueError, meant, quoted
from dooers.models import Actor, ContentPart, DocumentPart, ImagePart, TextPart, ThreadEvent

__all__ = ["FORMATS", "HistoryFormat", "Said", "format_history"]

HistoryFormat: TypeAlias = Literal["openai", "anthropic", "google", "cohere", "voyage"]
Message: TypeAlias = dict[str, Any]


@frozen(slots=False)
class Said:
    """What a model reads of a message, and its place in the thread. A store that keeps more of it need not read the rest."""

    actor: Actor
    content: list[ContentPart]
    seq: int
    turn_seq: int

    @classmethod
    def of(cls, event: ThreadEvent) -> Said:
        """What there is of it in a whole event."""
        return cls(event.actor, event.content, event.seq, event.turn_seq)


_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),(.*)", re.DOTALL | re.IGNORECASE)
_TEXT = {TextPart}
_PDF = "application/pdf"
_UNKNOWN = "application/octet-stream"


def format_history(events: Sequence[Said], format: str) -> list[Message]:
    """Messages, oldest first, in a vendor's shape. InvalidValueError for a vendor that is not known."""
    vendor = FORMATS.get(format) if isinstance(format, str) else None
    if vendor is None:
        hint = meant(quoted(format).strip("'").lower(), FORMATS)
        raise InvalidValueError(f"format: expected one of {', '.join(FORMATS)}, got {quoted(format)}{hint}")
    return vendor(events)


def _inline(part: ImagePart | DocumentPart) -> tuple[str, str] | None:
    """MIME type and base64 text of what a data URL holds; None for any other URL."""
    found = _DATA_URL.match(part.url)
    if found is None:
        return None
    mime, parameters, data = found.groups()
    if not parameters.lower().endswith(";base64"):
        data = b64encode(unquote_to_bytes(data)).decode()
    return mime or part.mime_type or _UNKNOWN, data


def _named(part: ImagePart | DocumentPart) -> str:
    """A part in words, for vendors and roles that take text only."""
    if isinstance(part, ImagePart):
        return f"[image: {part.alt or ('inline' if part.url[:5].lower() == 'data:' else part.url[:200])}]"
    return f"[document: {part.filename}]"


def _in_words(content: Sequence[ContentPart]) -> str:
    return "\n".join([part.text if isinstance(part, TextPart) else _named(part) for part in content])


def _said(event: Said) -> list[ContentPart]:
    """The content without blank texts, which some vendors refuse."""
    return [part for part in event.content if not (isinstance(part, TextPart) and not part.text.strip())]


def _plain_text(content: Sequence[ContentPart]) -> bool:
    return _TEXT.issuperset(map(type, content))


# ---------------------------------------------------------------- openai (and voyage, which speaks the same)


def _openai(events: Sequence[Said]) -> list[Message]:
    return [_openai_message(event) for event in events]


def _openai_message(event: Said) -> Message:
    role = event.actor if event.actor in ("user", "assistant", "system") else "assistant"
    # Only a user's message may carry parts that are not text.
    if role != "user" or _plain_text(event.content):
        return {"role": role, "content": _in_words(event.content)}
    return {"role": role, "content": [_openai_part(part) for part in event.content]}


def _openai_part(part: ContentPart) -> Message:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.url}}
    if _inline(part):
        return {"type": "file", "file": {"filename": part.filename, "file_data": part.url}}
    return {"type": "text", "text": _named(part)}


def _voyage(events: Sequence[Said]) -> list[Message]:
    return [{"role": _two_sided(event), "content": _in_words(event.content)} for event in events]


# ---------------------------------------------------------------- anthropic: roles alternate, the user begins


def _two_sided(event: Said) -> str:
    return "user" if event.actor == "user" else "assistant"


def _alternating(events: Sequence[Said], role_of: Callable[[Said], str]) -> list[tuple[str, list[ContentPart]]]:
    """Neighbours of one side joined, whatever stands before the first user message left out, empty ones too."""
    joined: list[tuple[str, list[ContentPart]]] = []
    for event in events:
        role = role_of(event)
        content = _said(event)
        if not content or (not joined and role != "user"):
            continue
        if joined and joined[-1][0] == role:
            joined[-1][1].extend(content)
        else:
            joined.append((role, content))
    return joined


def _anthropic(events: Sequence[Said]) -> list[Message]:
    messages: list[Message] = []
    for role, content in _alternating(events, _two_sided):
        if role == "assistant" or _plain_text(content):
            messages.append({"role": role, "content": _in_words(content)})
        else:
            messages.append({"role": role, "content": [_anthropic_part(part) for part in content]})
    return messages


def _anthropic_part(part: ContentPart) -> Message:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    inline = _inline(part)
    source = (
        {"type": "base64", "media_type": inline[0], "data": inline[1]} if inline else {"type": "url", "url": part.url}
    )
    if isinstance(part, ImagePart):
        return {"type": "image", "source": source}
    mime = inline[0] if inline else part.mime_type
    if mime == _PDF:  # the one kind of file that its document blocks take by URL or base64
        return {"type": "document", "source": source, "title": part.filename}
    return {"type": "text", "text": _named(part)}


# ---------------------------------------------------------------- google: user and model, parts


def _google(events: Sequence[Said]) -> list[Message]:
    # A message without parts, or a part without text, is refused.
    return [
        {"role": "user" if event.actor == "user" else "model", "parts": [_google_part(part) for part in content]}
        for event in events
        if (content := _said(event))
    ]


def _google_part(part: ContentPart) -> Message:
    if isinstance(part, TextPart):
        return {"text": part.text}
    inline = _inline(part)
    if inline:
        return {"inline_data": {"mime_type": inline[0], "data": inline[1]}}
    mime = part.mime_type or ("image/*" if isinstance(part, ImagePart) else _UNKNOWN)
    return {"file_data": {"mime_type": mime, "file_uri": part.url}}


# ---------------------------------------------------------------- cohere: text only


def _cohere(events: Sequence[Said]) -> list[Message]:
    # A message without a word is refused.
    return [
        {"role": _COHERE.get(event.actor, "CHATBOT"), "message": _in_words(content)}
        for event in events
        if (content := _said(event))
    ]


_COHERE = {"user": "USER", "assistant": "CHATBOT", "system": "SYSTEM"}

FORMATS: dict[str, Callable[[Sequence[Said]], list[Message]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "google": _google,
    "cohere": _cohere,
    "voyage": _voyage,
}
