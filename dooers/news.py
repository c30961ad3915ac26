"""What one process tells the others, as text: a Change that was stored, a piece of a message, a patch, a stop.

Trusted, for it never leaves the worker's own processes; still, what cannot be read raises ValueError and nothing else.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias

import cattrs
from attrs import Factory, field, frozen

from dooers.codec import dumps, loads
from dooers.models import Change, ContentPart, DocumentPart, ImagePart, Run, TextPart, Thread, ThreadEvent

__all__ = ["Kind", "News", "read", "write"]

# "look": something in this thread changed that was too large to send along, so read it.
Kind: TypeAlias = Literal["change", "look", "delta", "topic", "cancel"]


@frozen(kw_only=True)
class News:
    """One piece of news. Which fields are set depends on the kind."""

    kind: Kind
    sender: str
    thread_id: str | None = None
    thread: Thread | None = None
    # "change"
    created: bool = False
    patched: bool = False
    removes: bool = False
    events: list[ThreadEvent] = Factory(list)
    runs: list[Run] = Factory(list)
    # "delta": `text` stands at position `at` of the message
    event: ThreadEvent | None = None
    at: int = 0
    text: str = ""
    # "topic": a frame for the followers of "settings" or "analytics"
    topic: str = ""
    worker_id: str = ""
    frame_type: str = ""
    payload: dict[str, Any] = field(factory=dict, repr=False)
    # "cancel"
    run_id: str | None = None
    before: int | None = None

    @classmethod
    def of(cls, change: Change, sender: str) -> News:
        """The news of a stored Change."""
        return cls(
            kind="change",
            sender=sender,
            thread=change.thread,
            created=change.created,
            patched=bool(change.patch),
            removes=change.removes,
            events=list(change.events),
            runs=list(change.runs),
        )

    @property
    def change(self) -> Change:
        """The Change that this is the news of."""
        if self.thread is None:
            raise ValueError("news of a change without its thread")
        return Change(
            thread=self.thread,
            created=self.created,
            patch={"told": True} if self.patched else {},
            removes=self.removes,
            events=tuple(self.events),
            runs=tuple(self.runs),
        )


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(omit_if_default=True)
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))
    converter.register_unstructure_hook(datetime, lambda value: value)  # orjson writes it
    parts: dict[str, type] = {"text": TextPart, "image": ImagePart, "document": DocumentPart}
    converter.register_structure_hook(ContentPart, lambda value, _: converter.structure(value, parts[value["type"]]))
    for part in parts.values():  # with their type, default or not
        converter.register_unstructure_hook(part, cattrs.gen.make_dict_unstructure_fn(part, converter))
    return converter


_converter = _make_converter()


def write(news: News) -> str:
    """The text of a piece of news."""
    return dumps(_converter.unstructure(news))


def read(text: str | bytes) -> News:
    """The news in a text; ValueError where there is none."""
    try:
        return _converter.structure(loads(text), News)
    except Exception as error:
        raise ValueError(f"cannot be read ({type(error).__name__})") from error
