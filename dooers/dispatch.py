"""The second door: what `await worker.dispatch(...)` returns. The same turn as a WebSocket message, followed from inside the process.

Iterating is what runs the handler, one step for each event asked for. The stream remembers what it gave out, so a second
iteration or `collect()` reads that again and runs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from attrs import asdict, fields

from dooers.codec import clean, parts, plain
from dooers.exceptions import DispatchError, HandlerError, InvalidValueError, meant, quoted
from dooers.models import ContentPart, EventQuery, Identity, TextPart, ThreadEvent, check_id, text_of
from dooers.openturn import Handler, Message, OpenTurn, TurnStatus
from dooers.runner import Runner, waited_threads
from dooers.send import WorkerEvent
from dooers.stores import Store, answered
from dooers.turn import repeat_key

__all__ = ["DispatchStream", "identity_of", "message_of"]

log = logging.getLogger("dooers")
EVERYTHING = 1 << 62
_IDS = ("organization_id", "workspace_id", "user_id")
_KNOWN = [attribute.name for attribute in fields(Identity)]


def identity_of(metadata: Identity | Mapping[str, Any] | None, **given: Any) -> Identity:
    """Who a dispatch acts for: `metadata` and what is given beside it (None is nothing). InvalidValueError names what is wrong."""
    who: dict[str, Any] = _together(metadata)
    for name, value in given.items():
        if value is None:
            continue
        if who.get(name) and who[name] != value:
            raise InvalidValueError(f"{name}: given twice, as {quoted(value)} and in metadata as {quoted(who[name])}")
        who[name] = value
    if missing := [name for name in _IDS if name not in who]:
        raise InvalidValueError(
            f"{', '.join(missing)}: expected a text, got none; say whom it is for, one by one or in metadata"
        )
    texts: dict[str, Any] = {name: _text(name, value) for name, value in who.items() if name in given or name in _IDS}
    if spoiled := [name for name in _IDS if texts[name] != who[name]]:  # mended, they might be somebody else's
        raise InvalidValueError(f"{', '.join(spoiled)}: holds characters that no id can have")
    return Identity(**(who | texts))


def _together(metadata: Any) -> dict[str, Any]:
    """What is known of somebody from `metadata`; what is left out there is empty."""
    if metadata is None:
        return {}
    if isinstance(metadata, Identity):
        return asdict(metadata, recurse=False)
    if not isinstance(metadata, Mapping):
        raise InvalidValueError(f"metadata: expected a Metadata, an Identity or a mapping, got {quoted(metadata)}")
    for name in metadata:
        if name not in _KNOWN:
            hint = meant(name, _KNOWN, f"; known are {', '.join(_KNOWN)}")
            raise InvalidValueError(
                f"metadata: nobody is told by {name!r}{hint}. For what is not about the sender there is `data`"
            )
    return dict.fromkeys(_IDS, "") | {name: value for name, value in metadata.items() if value is not None}


def message_of(
    handler: Handler,
    worker_id: Any,
    identity: Identity,
    message: Any,
    content: Any,
    *,
    thread_id: Any,
    thread_title: Any,
    data: Any,
    idempotency_key: Any,
) -> Message:
    """The message of a dispatch; InvalidValueError names what is wrong."""
    worker = check_id(_text("worker_id", worker_id), "worker_id")
    key = None if idempotency_key is None else _id("idempotency_key", idempotency_key)
    return Message(
        worker_id=worker,
        identity=identity,
        content=_content(message, content),
        handler=handler,
        thread_id=None if thread_id is None else _id("thread_id", thread_id),
        create=True,
        thread_title=None if thread_title is None else clean(_text("thread_title", thread_title)),
        data=None if data is None else plain(data, "data"),
        repeat_key=None if key is None else repeat_key("dispatch", worker, identity, key),
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"{name}: expected a text, got {quoted(value)}")
    return clean(value)


def _id(name: str, value: Any) -> str:
    if not _text(name, value):
        raise InvalidValueError(f"{name}: expected a text that is not empty, or None")
    return check_id(clean(value), name)


def _content(message: Any, content: Iterable[Any] | None) -> list[ContentPart]:
    """The parts of a message: those given, with the text before them if they have none of their own."""
    text = _text("message", message)
    if content is None:
        return [TextPart(text)]
    given = parts(content)
    return [TextPart(text), *given] if text and not text_of(given) else given


class _Follower:
    """The runner's side of a stream (`runner.Sink`): what was stored so far, how much is wanted, and whether that is all."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.ended = False
        self.error: HandlerError | None = None
        self.wants = 0
        self.deltas = False
        self._hurried = False
        self._asked = asyncio.Event()
        self._moved = asyncio.Event()

    async def wanted(self, count: int) -> None:
        while self.wants <= count and not self._hurried:
            self._asked.clear()
            await self._asked.wait()

    def hurry(self) -> None:
        self._hurried = True
        self._asked.set()

    def put(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self._moved.set()

    def delta(self, event: WorkerEvent) -> None:
        if self.deltas:
            self.put(event)

    def end(self, error: HandlerError | None) -> None:
        self.ended, self.error = True, error
        self._moved.set()

    def want(self, count: int) -> None:
        if count > self.wants:
            self.wants = count
            self._asked.set()

    async def move(self) -> None:
        """Return when something came, or at once when nothing more will."""
        self._moved.clear()
        if not self.ended:
            await self._moved.wait()


class DispatchStream:
    """A turn that is stored and waits to be run: by iterating, `collect()` or `detach()`.

    Leaving the iteration early cancels the turn. Raises HandlerError where the handler raised; by then the turn is over and
    recorded. A stream that nobody runs holds its place in the thread's queue until it is cancelled, closed or forgotten.
    """

    def __init__(self, runner: Runner, store: Store, opened: OpenTurn) -> None:
        self._runner = runner
        self._store = store
        self._opened = opened
        self._follower = _Follower()
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------ known at once

    @property
    def thread_id(self) -> str:
        """The thread the message is in."""
        return self._opened.thread.id

    @property
    def event_id(self) -> str:
        """The message itself."""
        return self._opened.event.id

    @property
    def is_new_thread(self) -> bool:
        """Whether this message opened its thread."""
        return self._opened.created

    @property
    def is_repeat(self) -> bool:
        """Whether the same `idempotency_key` came before: nothing runs, the stream gives what was stored then.

        Not where the first one left no trace of a turn, because its process died before: then this one is answered.
        """
        return self._opened.repeated

    @property
    def status(self) -> TurnStatus:
        """How far the turn is: waiting, running, succeeded, failed or canceled. Of a repeat: how far the first one was when it came."""
        return self._opened.status

    # ------------------------------------------------------------ running it

    def __aiter__(self) -> AsyncIterator[WorkerEvent]:
        return self._iterate()

    def events(self, *, deltas: bool = False) -> AsyncIterator[WorkerEvent]:
        """The same as iterating the stream. With `deltas`, asked for before the turn runs, the pieces of a `send.stream` come as
        they are written, as events of `send_type` "delta" with `data["text"]`, in front of the "text" that has it whole."""
        self._follower.deltas = self._follower.deltas or deltas
        return self._iterate(deltas)

    async def _iterate(self, deltas: bool = False) -> AsyncIterator[WorkerEvent]:
        await self._begin()
        follower = self._follower
        position = steps = 0
        try:
            while True:
                if position < len(follower.events):
                    event = follower.events[position]
                    position += 1
                    steps += event.send_type != "delta"
                    if deltas or event.send_type != "delta":
                        yield event
                elif follower.ended:
                    break
                else:
                    follower.want(steps + 1)
                    await follower.move()
        finally:
            # Left early, by break, error or cancel: the turn goes too, unless somebody wants all of it.
            if not follower.ended and follower.wants < EVERYTHING:
                await self.cancel()
        if follower.error is not None:
            raise follower.error

    async def collect(self) -> list[WorkerEvent]:
        """Run the turn to its end and return all its events; again, without running it again, each further time."""
        await self._begin()
        detached = self._follower.wants == EVERYTHING
        self._follower.want(EVERYTHING)
        try:
            while not self._follower.ended:
                await self._follower.move()
        except asyncio.CancelledError:
            if not detached:
                await self.cancel()
            raise
        if self._follower.error is not None:
            raise self._follower.error
        return [event for event in self._follower.events if event.send_type != "delta"]

    def detach(self) -> None:
        """Let the turn run to its end in the background; the worker sees to it. Its errors are logged and recorded."""
        self._follower.want(EVERYTHING)
        self._start(detached=True)

    async def cancel(self) -> None:
        """Stop the turn, wherever it is, and return when it has been closed. No harm after its end."""
        task = self._opened.task
        if self._follower.ended or self._opened.repeated:
            return
        self._runner.stop(self._opened)
        if task is None:
            self._follower.end(None)
        elif task is not asyncio.current_task():
            await self._runner.ended(self._opened)

    async def aclose(self) -> None:
        """The same as `cancel`, by the name that generators have for it."""
        await self.cancel()

    async def _begin(self) -> None:
        if self._opened.repeated:
            await self._replay()
        elif not self._follower.ended and self.thread_id in waited_threads.get():
            raise DispatchError(
                f"thread {self.thread_id} is being answered by the handler that waits here: it would wait for itself. "
                "Use stream.detach()",
                code="THREAD_BUSY",
            )
        else:
            self._start(detached=False)

    def _start(self, *, detached: bool) -> None:
        if self._opened.task is None and self._opened.canceled:
            self._follower.end(None)  # stopped before anybody ran it: by `worker.cancel`, a deleted thread, "replace"
        if self._opened.task is None and not self._follower.ended and not self._opened.repeated:
            self._runner.start(self._opened, self._follower, detached=detached)

    async def _replay(self) -> None:
        """Give what the first delivery stored."""
        if self._follower.ended:
            return
        try:
            with answered():
                stored = await self._store.events(
                    EventQuery(thread_id=self.thread_id, turn=self._opened.event.turn_seq)
                )
        except Exception as error:
            raise DispatchError(f"what the first delivery stored could not be read: {error!r}") from error
        if not self._follower.ended:
            answers = [event for event in stored if event.id != self.event_id and not event.notice]
            self._follower.events = [_replayed(event) for event in answers]
            self._follower.end(None)

    def __del__(self) -> None:
        opened = getattr(self, "_opened", None)
        if opened is None or opened.task is not None or opened.repeated or opened.canceled:
            return
        log.warning(
            "the dispatch stream of thread %s was dropped without being run: its message is stored and stays unanswered; "
            "iterate it, collect() it or detach() it",
            opened.thread.id,
        )
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._runner.stop, opened)


def _replayed(event: ThreadEvent) -> WorkerEvent:
    kind, data = _REPLAY.get(event.type, _message_of)(event)
    return WorkerEvent(kind, data, event=event)


def _message_of(event: ThreadEvent) -> Any:
    part = event.content[0] if event.content else None
    if part is None or part.type == "text":
        return "text", {"text": event.text, "author": event.author}
    names = ("url", "mime_type", "alt") if part.type == "image" else ("url", "filename", "mime_type")
    return part.type, {**{name: getattr(part, name) for name in names}, "author": event.author}


def _tool_of(kind: str) -> Callable[[ThreadEvent], Any]:
    return lambda event: (kind, dict(event.data or {}))


_REPLAY: dict[str, Callable[[ThreadEvent], Any]] = {
    "tool.call": _tool_of("tool_call"),
    "tool.result": _tool_of("tool_result"),
    "tool.transaction": _tool_of("tool_transaction"),
}
