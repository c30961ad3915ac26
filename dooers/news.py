"""What one process tells the others, as text: a Change that was stored, a piece of a message, a patch, a stop.

Trusted, for it never leaves the worker's own processes; still, what cannot be read raises ValueError and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import cattrs
from attrs import Factory, evolve, field, frozen

from dooers.codec import dumps, loads
from dooers.models import Change, ContentPart, DocumentPart, ImagePart, Run, TextPart, Thread, ThreadEvent
from dooers.turn import as_stored, numbered

__all__ = ["Kind", "News", "about", "is_of", "looks", "read", "write", "written"]

# "look": something in this thread changed that was too large to send along, so read it. Where it has a thread and events, they are
# without their content, and only there. With a topic: a frame to its followers that was too large, without its value.
Kind: TypeAlias = Literal["change", "look", "delta", "topic", "cancel"]

# What of a thread may be patched and is no JSON.
_TIMES = {"updated_at", "last_event_at"}


@frozen(kw_only=True)
class News:
    """One piece of news. Which fields are set depends on the kind."""

    kind: Kind
    sender: str
    thread_id: str | None = None
    thread: Thread | None = None
    # "change"
    created: bool = False
    patch: dict[str, Any] = field(factory=dict, repr=False)
    removes: bool = False
    events: list[ThreadEvent] = Factory(list)
    skips: int = 0
    runs: list[Run] = Factory(list)
    # "delta": `text` stands at position `at` of the message, of which the first piece brings all that is known
    event_id: str | None = None
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
            patch=change.patch,
            removes=change.removes,
            events=list(change.events),
            skips=change.skips,
            runs=list(change.runs),
        )

    @property
    def change(self) -> Change:
        """The Change that this is the news of."""
        if self.thread is None:
            raise ValueError("news of a change without its thread")
        return self.change_of(self.thread)

    def change_of(self, thread: Thread) -> Change:
        """The same, of a thread that the news themselves do not bring along."""
        return Change(
            thread=thread,
            created=self.created,
            patch=self.patch,
            removes=self.removes,
            events=tuple(self.events),
            skips=self.skips,
            runs=tuple(self.runs),
        )


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(omit_if_default=True)
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value).astimezone(UTC))
    converter.register_unstructure_hook(datetime, lambda value: value)  # orjson writes it
    parts: dict[str, type] = {"text": TextPart, "image": ImagePart, "document": DocumentPart}
    converter.register_structure_hook(ContentPart, lambda value, _: converter.structure(value, parts[value["type"]]))
    for part in parts.values():  # with their type, default or not
        converter.register_unstructure_hook(part, cattrs.gen.make_dict_unstructure_fn(part, converter))
    return converter


_converter = _make_converter()


def write(news: News) -> str:
    """The text of a piece of news: one line."""
    return dumps(_converter.unstructure(news))


def written(changes: Sequence[Change], sender: str) -> str:
    """What is to be told of Changes that are about to be written in one statement, as a line each.

    Before it goes a line that only the database can write: the thread's row as JSON, as it was before them; with `created` in it, as
    it is after.
    """
    return "\n".join(write(evolve(News.of(change, sender), thread=None)) for change in changes)


def looks(changes: Sequence[Change], sender: str, limit: int) -> str:
    """What to say in at most `limit` bytes instead of what was too large: that the thread is to be read, and what goes without."""
    first = changes[0]
    if first.removes:  # there will be nothing to read
        return write(evolve(News.of(first, sender), thread=evolve(first.thread, metadata=None)))
    text = write(News(kind="look", sender=sender, thread_id=first.thread.id))
    if any(change.opens or change.patch for change in changes):
        return text  # what the thread is like, the store knows best
    told = [evolve(event, content=[], data=None) for change in changes for event in change.events]
    runs = [run for change in changes for run in change.runs]
    thread = evolve(first.thread, metadata=None)
    more = write(News(kind="look", sender=sender, thread_id=thread.id, thread=thread, events=told, runs=runs))
    return more if len(more.encode()) <= limit else text


def read(text: str | bytes) -> list[News]:
    """The news in a text; ValueError where there are none."""
    try:
        lines = (text.encode() if isinstance(text, str) else text).split(b"\n")
        if len(lines) == 1:
            return [_one(lines[0])]
        row = loads(lines[0])
        return _counted(_converter.structure(row, Thread), row.get("created"), [_one(line) for line in lines[1:]])
    except Exception as error:
        raise ValueError(f"cannot be read ({type(error).__name__})") from error


def is_of(text: str, sender: str) -> bool:
    """Whether this sender said a text that the store told for it, found out without reading it; False where that is not clear."""
    begin = text.find("\n") + 1
    return text.startswith((f'{{"kind":"change","sender":"{sender}"', f'{{"kind":"look","sender":"{sender}"'), begin)


def about(text: str) -> str | None:
    """Which thread a text is about that cannot be read, as one of a newer version: None where not even that is clear."""
    try:
        said = loads(text.partition("\n")[0])
        thread = said.get("thread") or {"id": said.get("thread_id") or said.get("id")}
        return thread["id"] if isinstance(thread["id"], str) else None
    except Exception:
        return None


def _one(line: bytes) -> News:
    news = _converter.structure(loads(line), News)
    times = {name: datetime.fromisoformat(news.patch[name]) for name in _TIMES & news.patch.keys()}
    return evolve(news, patch={**news.patch, **times}) if times else news


def _counted(thread: Thread, created: bool | None, told: list[News]) -> list[News]:
    """News of Changes as the database wrote them, from its row of the thread: what the sender did not know when it put them into words."""
    if created is not None:  # the row as it is after its one Change
        (news,) = told
        change = news.change_of(thread)
        events = numbered(change, thread.last_seq - change.takes)
        return [evolve(news, thread=thread, created=created, events=list(events))]
    stored = as_stored(thread, [news.change_of(thread) for news in told])
    return [
        evolve(news, thread=change.thread, events=list(change.events))
        for news, change in zip(told, stored, strict=True)
    ]
