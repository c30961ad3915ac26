"""What can be said to a worker and what comes back, typed. Over which connection is not known here: `web.py` has a WebSocket, the test
kit one in process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias
from uuid import uuid4
from weakref import WeakSet

from dooers.analytics import AnalyticsEventPayload
from dooers.client.connection import Frame
from dooers.client.feeds import Feed
from dooers.client.lifeline import Lifeline
from dooers.client.turns import Turn
from dooers.client.unfolding import Unfolding, reply_of
from dooers.client.updates import (
    Page,
    Reply,
    SettingChanged,
    Settings,
    Update,
    read_event,
    read_settings,
    read_thread,
    read_time,
)
from dooers.codec import parts, plain_parts
from dooers.exceptions import DisconnectedError, NoAnswerError, RateLimitedError
from dooers.models import ContentPart, TextPart, Thread, ThreadEvent

__all__ = ["Content", "Talk"]

# What a message may hold beside its text: parts, or mappings that are as parts on the wire.
Content: TypeAlias = Iterable[ContentPart | Mapping[str, Any] | str]


class Talk:
    """The operations of a client. `quiet` is how many seconds of silence end the turn of a handler that opens no run."""

    def __init__(self, line: Lifeline, quiet: float) -> None:
        self._line = line
        self._quiet = quiet
        self._turns: WeakSet[Turn] = WeakSet()

    @property
    def server(self) -> dict[str, Any]:
        """The worker's name, version and capabilities, as it said when it was connected to."""
        return self._line.server

    # ------------------------------------------------------------ saying something

    async def say(
        self,
        text: str = "",
        thread_id: str | None = None,
        *,
        content: Content = (),
        data: Mapping[str, Any] | None = None,
        client_event_id: str | None = None,
    ) -> Reply:
        """Say something, in a new thread without `thread_id`; the whole answer, when the turn is over.

        `content` is what goes with the text: images, documents. A turn that fails is a Reply too: see its `status` and `error`.
        Raises what `stream` raises.
        """
        turn, seen = await self._begin(text, thread_id, content, data, client_event_id)
        async with aclosing(self._follow(turn, seen)) as following:
            frames = [frame async for frame in following]
        mine = next((at for at, frame in enumerate(frames) if _own([frame], turn.event_id)), -1)
        return reply_of(turn, frames[mine + 1 :])

    async def stream(
        self,
        text: str = "",
        thread_id: str | None = None,
        *,
        content: Content = (),
        data: Mapping[str, Any] | None = None,
        client_event_id: str | None = None,
    ) -> AsyncGenerator[Update, None]:
        """Say something; what happens in the thread, as it happens, until the turn is over. The message itself comes first.

        A message that is repeated under the same `client_event_id` is answered once. Leaving early cancels nothing: the worker goes on.
        Raises the worker's refusal (ThreadBusyError, ForbiddenError, ...), NoAnswerError where the turn shows no sign in time, and
        DisconnectedError when the connection is lost for good.
        """
        turn, seen = await self._begin(text, thread_id, content, data, client_event_id)
        unfolding = Unfolding()
        async with aclosing(self._follow(turn, seen)) as following:
            async for frame in following:
                for update in unfolding.take(frame):
                    yield update

    async def send(self, text: str, thread_id: str | None = None) -> AsyncGenerator[Frame, None]:
        """`stream`, as the raw frames of the thread."""
        async with aclosing(self._follow(*await self._begin(text, thread_id))) as following:
            async for frame in following:
                yield frame

    async def watch(
        self, thread_id: str, *, after: str | None = None, live: bool = False
    ) -> AsyncGenerator[Update, None]:
        """Look into a thread: how it is (`Looked`), then what happens for as long as somebody is at work in it; `live`: for ever.

        `after` is the id of the last event that is known: then only what follows it is told. NotFoundError where there is no such thread.
        """
        unfolding = Unfolding(looks=True)
        turn, first = await self._look(thread_id, after)
        for update in unfolding.take(first):
            yield update
        if not (live or turn.busy):
            return
        async with aclosing(self._follow(turn, turn.feed.waiting(), live=live)) as following:
            async for frame in following:
                for update in unfolding.take(frame):
                    yield update

    async def cancel(self, *, thread_id: str | None = None, run_id: str | None = None) -> None:
        """Stop the answer of a run, or whatever is answered and waits in a thread. What was written so far is kept.

        Returns when the worker has taken it; a `stream` of this client that waits for the answer gets the end of it and ends.
        InvalidValueError unless one of the two is given, NotFoundError where there is no such thing.
        """
        await self._line.ask("run.cancel", _given(thread_id=thread_id, run_id=run_id))
        for turn in list(self._turns):
            turn.cancel(thread_id, run_id)

    # ------------------------------------------------------------ threads

    async def threads(
        self, query: str | None = None, *, cursor: str | None = None, limit: int | None = None
    ) -> Page[Thread]:
        """The threads that one may see, the most recently active first; `query` keeps those with that text in their title.

        A page of a search may be empty and have a cursor all the same: there is more to look at.
        """
        found = await self._line.ask("thread.list", _given(query=query, cursor=cursor, limit=limit))
        return Page([read_thread(one) for one in found["threads"]], found.get("cursor"), found.get("total_count"))

    async def history(
        self, thread_id: str, *, before: str | None = None, limit: int | None = None
    ) -> Page[ThreadEvent]:
        """The newest events of a thread, in order; the ones before them with `before=page.cursor`."""
        asked = _given(thread_id=thread_id, before_event_id=before, limit=limit)
        found = await self._line.ask("event.list", asked)
        return Page([read_event(one) for one in found["events"]], found.get("cursor"))

    async def rename(self, thread_id: str, title: str | None) -> None:
        """Give a thread another title, or none."""
        await self._line.ask("thread.update", {"thread_id": thread_id, "title": title})

    async def delete(self, thread_id: str) -> None:
        """Remove a thread, with everything in it."""
        await self._line.ask("thread.delete", {"thread_id": thread_id})

    async def feedback(
        self,
        target_id: str,
        feedback: Literal["like", "dislike"],
        *,
        target: Literal["event", "run", "thread"] = "event",
        reason: str | None = None,
        classification: str | None = None,
    ) -> None:
        """Say what one thinks of an event, a run or a thread."""
        asked = _given(reason=reason, classification=classification)
        await self._line.ask("feedback", {"target_type": target, "target_id": target_id, "feedback": feedback, **asked})

    # ------------------------------------------------------------ settings and analytics

    async def settings(self) -> Settings:
        """The settings form as it is."""
        async with aclosing(self.watch_settings()) as watching:
            async for found in watching:
                if isinstance(found, Settings):
                    return found
        raise DisconnectedError("this client was closed")

    async def watch_settings(self) -> AsyncGenerator[Settings | SettingChanged, None]:
        """The settings form as it is, and then each field that somebody changes. The form comes again when changes may have been missed."""
        async with self._topic("settings") as feed:
            async for frame in feed:
                if (found := read_settings(frame)) is not None:
                    yield found

    async def patch(self, field_id: str, value: Any) -> None:
        """Set a field of the settings; InvalidValueError and its like where it may not be."""
        await self._line.ask("settings.patch", {"field_id": field_id, "value": value})

    async def analytics(self) -> AsyncGenerator[AnalyticsEventPayload, None]:
        """What happens at the worker, for as long as somebody listens; what happens while the connection is lost is not told."""
        async with self._topic("analytics") as feed:
            async for frame in feed:
                if frame["type"] == "analytics.event":
                    told = {name: value for name, value in frame["payload"].items() if name != "agent_id"}
                    at = read_time(told.pop("timestamp"))
                    assert at is not None
                    yield AnalyticsEventPayload(timestamp=at, **told)

    @asynccontextmanager
    async def _topic(self, name: str) -> AsyncIterator[Feed]:
        feed, topic = self._line.feed(everything=True), f"{name}.subscribe"
        await self._line.ask(topic)
        try:
            yield feed
        finally:
            self._line.leave(topic)

    # ------------------------------------------------------------ frames

    def frames(self) -> AsyncIterator[Frame]:
        """The frames the worker pushes, from this call on: `{"id", "type", "payload"}` each. Answers are not among them.

        Two are the client's own: `client.lost` and `client.reconnected`. Ends when this side closes, raises DisconnectedError when
        the connection is lost for good. Whoever holds it has to read it: it keeps what it is not asked for.
        """
        return self._line.feed(everything=True)

    async def reconnect(self) -> None:
        """Leave the connection for a new one, as if it had been lost: with a new token, say. What is followed goes on."""
        await self._line.renew()

    # ------------------------------------------------------------ turns

    async def _begin(
        self,
        text: str,
        thread_id: str | None = None,
        content: Content = (),
        data: Mapping[str, Any] | None = None,
        client_event_id: str | None = None,
    ) -> tuple[Turn, list[Frame]]:
        """Send a message; its turn, and the frames of it that are there by then."""
        key = client_event_id if client_event_id is not None else uuid4().hex
        said: list[ContentPart] = [TextPart(text)] if text else []
        event = {"type": "message", "actor": "user", "content": plain_parts([*said, *parts(content)])}
        event |= _given(data=None if data is None else dict(data))
        message = {"client_event_id": key, "event": event, **_given(thread_id=thread_id)}
        feed = self._line.feed(key=key, near=thread_id)
        generation = self._line.generation
        await self._line.ask("event.create", message)
        seen = feed.waiting()
        while (mine := _own(seen, key)) is None:
            seen.append(await self._next(feed, self._line.within))
        turn = Turn(feed, mine["thread_id"], mine["id"])
        turn.message = message
        if self._line.generation != generation:
            # Another connection has taken it, or repeated it: what its turn has shown in between was not told to this one.
            asked = {"thread_id": turn.thread_id, "after_event_id": turn.event_id, "runs": [turn.event_id]}
            await self._line.ask("thread.subscribe", asked, feed.restart)
            seen = [_only(frame, mine) for frame in seen if _own([frame], turn.event_id)][:1]
        self._settle(turn)
        return turn, seen

    async def _look(self, thread_id: str, after: str | None) -> tuple[Turn, Frame]:
        """Subscribe to a thread; its turns, and its snapshot."""
        feed = self._line.feed(thread_id)
        asked = {"thread_id": thread_id, **_given(after_event_id=after)}
        await self._line.ask("thread.subscribe", asked, feed.restart)
        turn = Turn(feed, thread_id)
        while (frame := await self._next(feed, self._line.within))["type"] != "thread.snapshot":
            turn.take(frame)
        turn.snapshot(frame["payload"])
        return turn, frame

    def _settle(self, turn: Turn) -> None:
        """Where somebody knows for sure when a turn is over, this tells it. Over a socket nobody does."""

    async def _follow(self, turn: Turn, seen: list[Frame], *, live: bool = False) -> AsyncGenerator[Frame, None]:
        """The frames of a turn, those that are seen already first, until it is over."""
        self._turns.add(turn)
        while True:
            for frame in seen:
                if turn.take(frame):
                    yield frame
                if frame["type"] == "thread.snapshot" and turn.message is not None and turn.unseen:
                    # Its process may have died before it began. Then the repeat is answered, else nothing happens.
                    with suppress(RateLimitedError):
                        await self._line.ask("event.create", turn.message)
            if turn.ended and (not live or turn.deleted):
                # Whatever belongs to the same step (an error notice, the next run) is in front of the pong.
                await self._line.ask("ping")
                seen = [frame for frame in turn.feed.waiting() if turn.take(frame)]
                for frame in seen:
                    yield frame
                if turn.ended:
                    return
            try:
                seen = [await self._next(turn.feed, None if live else self._patience(turn))]
            except NoAnswerError:
                if turn.answered or turn.canceled:
                    return
                raise

    def _patience(self, turn: Turn) -> float | None:
        """How long silence may last: while something is going on, for ever; but a handler may take its time to obey a cancel."""
        if turn.away:
            return None
        if turn.busy:
            return self._line.within if turn.canceled else None
        return self._quiet if turn.answered or turn.canceled else self._line.within

    async def _next(self, feed: Feed, limit: float | None) -> Frame:
        try:
            async with asyncio.timeout(limit):
                return await anext(feed)
        except TimeoutError:
            raise NoAnswerError(f"the worker said nothing for {limit:g} s") from None
        except StopAsyncIteration:
            raise DisconnectedError("this client was closed") from None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _own(frames: list[Frame], key: str | None) -> Mapping[str, Any] | None:
    """The message with this `client_event_id`, or this id."""
    events = (event for frame in frames if frame["type"] == "event.append" for event in frame["payload"]["events"])
    return next((event for event in events if key in (event.get("client_event_id"), event["id"])), None)


def _only(frame: Frame, event: Mapping[str, Any]) -> Frame:
    return {**frame, "payload": {**frame["payload"], "events": [event]}}
