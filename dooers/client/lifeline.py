"""A connection that is made again when it is lost, and what it takes to go on as if nothing had happened. No words, no turns: frames.

What was followed is asked for again from the last event that came, so a reader's frames have no gap and no repeat beyond what a
`thread.snapshot` has twice. What was asked and not answered is asked again, where asking twice does what asking once does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from dooers.client.connection import NOT_OURS, Connection, Frame, Gone, Link
from dooers.client.feeds import BACK, LOST, Feed, of_client, thread_of
from dooers.exceptions import (
    ClosingError,
    DisconnectedError,
    DooersError,
    ForbiddenError,
    NoAnswerError,
    NotFoundError,
    RateLimitedError,
    UnauthenticatedError,
)

__all__ = ["Lifeline"]

log = logging.getLogger("dooers")

# Seconds between two attempts: at most FIRST before the first, twice that before the next, LONGEST from then on; all of it with jitter,
# so that those who were closed together do not come back together.
FIRST, LONGEST = 0.5, 8.0
# Seconds that one attempt may take, and after which a connection is one that holds.
ATTEMPT, HOLDS = 15.0, 5.0
# Threads that stay subscribed though nobody here follows them any more.
KEPT = 50

WHO_ARE_YOU, NOT_YOU = 4401, 4403
# Refusals of a connection that may be none a moment later.
PASSING = {"RATE_LIMITED", "CLOSING", "SERVER_ERROR", "DISCONNECTED", "NO_ANSWER"}
TOPICS = {"settings.subscribe": "settings.unsubscribe", "analytics.subscribe": "analytics.unsubscribe"}
# What may be asked twice without being done twice; `event.create` may with a `client_event_id`.
AGAIN = {
    "ping",
    "thread.list",
    "thread.subscribe",
    "thread.unsubscribe",
    "thread.delete",
    "thread.update",
    "event.list",
    "run.cancel",
    "settings.subscribe",
    "settings.unsubscribe",
    "settings.patch",
    "settings.public_schema",
    "analytics.subscribe",
    "analytics.unsubscribe",
}


class Lifeline:
    """`dial` makes a link, `claims` gives the payload of `connect`, and both are asked for each connection.

    `retry_for` seconds without a connection that holds end it for good; 0 ends it with the first loss. `renews` says that `claims`
    may have a new proof when the old one has expired. `beat` is how many seconds pass between two signs of life. `overhear` gets
    every frame that nobody waits for, and `ended` the end of each connection; `tell` gets the frames of the client's own.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Link]],
        claims: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        within: float,
        retry_for: float = 0.0,
        renews: bool = False,
        beat: float | None = None,
        overhear: Callable[[Frame], None] | None = None,
        ended: Callable[[Link, Gone], None] | None = None,
        tell: Callable[[Frame], None] | None = None,
    ) -> None:
        self._dial = dial
        self._claims = claims
        self.within = within
        self._retry_for = retry_for
        self._renews = renews
        self._beat = beat
        self._overhear = overhear
        self._ended = ended
        self._tell_user = tell
        self.server: dict[str, Any] = {}
        # Counts the connections: whoever finds another number than before may have missed something.
        self.generation = 0
        # Each thread that this connection hears of, with number and id of the last stored event that has come; the latest last.
        self.followed: dict[str, tuple[int, str] | None] = {}
        # How many here want to hear of each topic.
        self.topics: dict[str, int] = {}
        # Weak, so that an iterator nobody holds any more stops collecting.
        self._feeds: WeakSet[Feed] = WeakSet()
        self._connection: Connection | None = None
        self._turned = asyncio.Event()
        self._lost: DooersError | None = DisconnectedError("not connected; use `async with`")
        self._mending: asyncio.Task[None] | None = None
        # Since when there was no connection that held, and how many were tried.
        self._since: float | None = None
        self._attempt = 0
        self._made_at = 0.0

    # ------------------------------------------------------------ its two ends

    async def open(self) -> None:
        """Connect; a first connection that cannot be made is told at once."""
        self._settle(await self._make())

    async def bare(self) -> None:
        """Open the link alone, without `connect`."""
        self._settle(Connection(await self._dial(), self._heard, self._gone))

    def _settle(self, connection: Connection) -> None:
        self._connection, self._lost = connection, None
        self._made_at = asyncio.get_running_loop().time()
        self._turned.set()
        self._turned = asyncio.Event()
        if connection.gone is not None:  # as soon as it was there
            self._gone(connection, connection.gone)
        elif self._beat is not None:
            connection.beat(self._beat, self.within)

    async def close(self) -> None:
        """End it from this side: whoever reads comes to the end, whoever waits is told."""
        self._end(None)
        mending, connection = self._mending, self._connection
        self._connection = None
        if mending is not None and not mending.done():
            mending.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([mending])
        if connection is not None:
            await connection.close()

    async def renew(self) -> None:
        """Leave this connection for a new one, with what was followed. Raises as `open` where that fails."""
        old = self._connection
        if old is not None:
            self._connection = None
            self._say(LOST, code=None, reason="another connection was asked for")
            # Before the other is told: it ends, and nobody takes that for a loss.
            self._begin_mending(at_once=True)
            old.link.abort()
            await old.close()
        await self.connected()

    def abort(self) -> None:
        """Cut the connection, as a network that fails would."""
        if self._connection is not None:
            self._connection.link.abort()

    # ------------------------------------------------------------ asking and hearing

    async def ask(
        self, frame_type: str, payload: Mapping[str, Any] | None = None, into: Callable[[Frame], None] | None = None
    ) -> dict[str, Any]:
        """Send a frame; the payload of the answer to it. Over as many connections as it takes, `within` seconds on each."""
        payload = payload or {}
        repeated = False
        began = asyncio.get_running_loop().time()
        while True:
            connection = await self.connected()
            try:
                answer = await connection.ask(frame_type, payload, self.within, into)
            except Gone as gone:
                again = frame_type in AGAIN or (frame_type == "event.create" and payload.get("client_event_id"))
                if self._lost is None and not again:
                    text = f"{gone.error}, and nobody knows whether {frame_type} was done"
                    raise DisconnectedError(text, gone.code) from None
                repeated = True
            except NotFoundError:
                if repeated and frame_type == "thread.delete":
                    return {}  # the first time has done it
                raise
            except (ClosingError, RateLimitedError) as error:
                # A worker that closes is there again in a moment. And that of a message's own turn there are too many is no refusal of it.
                passing = frame_type == "event.create" and (repeated or isinstance(error, ClosingError))
                wait = error.retry_after if isinstance(error, RateLimitedError) else random.uniform(0.1, FIRST)
                if not passing or asyncio.get_running_loop().time() + wait - began > self._retry_for:
                    raise
                await asyncio.sleep(wait)
            else:
                self._subscribed(frame_type, payload)
                return answer

    def post(self, frame_type: str, payload: Mapping[str, Any], frame_id: str) -> None:
        """Send a frame on the connection that there is, and do not wait."""
        if self._connection is not None:
            self._connection.post(frame_type, payload, frame_id)

    def leave(self, topic: str) -> None:
        """One less wants to hear of a topic; after the last the worker is told."""
        left = self.topics.pop(topic, 0) - 1
        if left > 0:
            self.topics[topic] = left
        elif left == 0:
            self.post(TOPICS[topic], {}, "")

    def feed(
        self, thread_id: str | None = None, *, key: str | None = None, near: str | None = None, everything: bool = False
    ) -> Feed:
        """The frames that come from now on, those of the client itself among them."""
        feed = Feed(thread_id, key=key, near=near, everything=everything)
        self._feeds.add(feed)
        if self._lost is not None:
            feed.put(self._lost)
        return feed

    async def connected(self) -> Connection:
        """The connection, as soon as there is one."""
        while self._connection is None:
            if self._lost is not None:
                raise self._lost
            await self._turned.wait()
        return self._connection

    def _heard(self, frame: Frame, waited_for: bool) -> None:
        if self._overhear is not None and not waited_for:
            self._overhear(frame)
        thread_id = thread_of(frame)
        if thread_id is not None:
            self._note(frame["type"], frame["payload"], thread_id)
        if not waited_for and frame["type"] != "ack":
            self._show(frame, thread_id)

    def _note(self, kind: str, payload: Mapping[str, Any], thread_id: str) -> None:
        """Where to go on from, if the connection is lost now."""
        if kind in ("event.append", "thread.snapshot"):
            known = self.followed.pop(thread_id, None)
            stored = [(event.get("seq", 0), event["id"]) for event in payload["events"] if not event.get("streaming")]
            # A message that is repeated comes again with the number it had.
            last = stored[-1] if stored and (known is None or stored[-1][0] >= known[0]) else known
            self.followed[thread_id] = last
        elif kind == "thread.deleted":
            self.followed.pop(thread_id, None)

    def _show(self, frame: Frame, thread_id: str | None) -> None:
        for feed in list(self._feeds):
            feed.claim(frame)
            if feed.wants(thread_id):
                feed.put(frame)

    def _subscribed(self, frame_type: str, payload: Mapping[str, Any]) -> None:
        """What an answer says about what this connection hears of."""
        if frame_type in TOPICS:
            self.topics[frame_type] = self.topics.get(frame_type, 0) + 1
        elif frame_type in TOPICS.values():
            self.topics = {topic: count for topic, count in self.topics.items() if TOPICS[topic] != frame_type}
        elif frame_type == "thread.unsubscribe":
            self.followed.pop(payload["thread_id"], None)
        elif frame_type in ("event.create", "thread.subscribe") and len(self.followed) > KEPT:
            self._let_go()

    def _let_go(self) -> None:
        """Whoever speaks in ever more threads would come to the worker's bound on subscriptions. None of these has a reader here."""
        wanted = self._wanted()
        for thread_id in [one for one in self.followed if one not in wanted][:-KEPT]:
            del self.followed[thread_id]
            self.post("thread.unsubscribe", {"thread_id": thread_id}, "")

    def _wanted(self) -> dict[str, None]:
        """The threads that somebody here follows."""
        feeds = list(self._feeds)
        if self._overhear is not None or any(feed.everything for feed in feeds):
            return dict.fromkeys(self.followed)
        return {one: None for feed in feeds if (one := feed.thread_id or feed.near) is not None}

    # ------------------------------------------------------------ a connection is lost

    def _gone(self, connection: Connection, gone: Gone) -> None:
        if self._ended is not None:
            self._ended(connection.link, gone)
        if connection is not self._connection or self._lost is not None:
            return
        self._connection = None
        final = self._final(gone)
        if final is not None:
            self._end(final)
            return
        self._say(LOST, code=gone.code, reason=gone.reason)
        self._begin_mending(gone)

    def _final(self, gone: Gone) -> DooersError | None:
        """What is raised where another connection would be no better, or is not wanted."""
        if gone.code == WHO_ARE_YOU and (not self._renews or self._retry_for <= 0):
            return UnauthenticatedError(gone.reason or "what proved your identity has expired")
        if gone.code == NOT_YOU:
            return ForbiddenError(gone.reason or "this connection is not allowed")
        return gone.error if self._retry_for <= 0 or gone.final else None

    def _begin_mending(self, gone: Gone | None = None, *, at_once: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        # One that is lost as soon as it is made is no end of the trouble.
        if self._since is None or now - self._made_at >= HOLDS or at_once:
            self._since, self._attempt = now, 0
        self._mending = asyncio.create_task(self._mend(self._since, gone), name="client-lifeline")

    async def _mend(self, since: float, gone: Gone | None) -> None:
        """Try until there is a connection, it is refused, or the time is over. Without `gone` this side has left the other one."""
        loop = asyncio.get_running_loop()
        why: DooersError | None = None
        while True:
            wait = (
                random.uniform(0, min(LONGEST, FIRST * 2**self._attempt)) if gone is not None or why is not None else 0
            )
            if isinstance(why, RateLimitedError):
                wait += why.retry_after
            if loop.time() + wait - since > self._retry_for and (gone is not None or why is not None):
                self._end(_given_up(gone, why, self._retry_for))
                return
            await asyncio.sleep(wait)
            self._attempt += 1
            try:
                connection = await self._make()
                await self._resume(connection, loop.time() - since)
                self._settle(connection)
                return
            except DooersError as error:
                why = error
            except Gone as lost:
                why = lost.error
            except Exception as error:  # of the application: its way to a token, say
                log.debug("an attempt to connect failed", exc_info=error)
                why = DisconnectedError(repr(error))
                why.__cause__ = error
            if why.code not in PASSING or getattr(why, "close_code", None) in (WHO_ARE_YOU, NOT_YOU, NOT_OURS):
                self._end(_as_refusal(why))
                return

    async def _make(self) -> Connection:
        try:
            async with asyncio.timeout(min(self.within, ATTEMPT)):
                claims = await self._claims()
                connection = Connection(await self._dial(), self._heard, self._gone)
                try:
                    self.server = (await connection.ask("connect", claims, self.within)).get("server", {})
                except BaseException:
                    await connection.close()
                    raise
        except TimeoutError as error:
            if isinstance(error, DooersError):
                raise
            raise NoAnswerError("the worker does not answer to `connect`") from None
        except Gone as gone:
            raise gone.error from None
        self.generation += 1
        return connection

    async def _resume(self, connection: Connection, seconds: float) -> None:
        """Ask for all that was followed, from where it was left. The answers come to their readers in their place."""
        try:
            self._say(BACK, attempts=self._attempt, seconds=seconds)
            wanted = self._wanted()
            for thread_id in wanted:
                await self._follow_again(connection, thread_id)
            self.followed = {one: last for one, last in self.followed.items() if one in wanted}
            for topic in list(self.topics):
                await connection.ask(topic, {}, self.within)
        except BaseException:
            await connection.close()
            raise

    async def _follow_again(self, connection: Connection, thread_id: str) -> None:
        readers = [feed for feed in list(self._feeds) if feed.wants(thread_id)]
        asked: dict[str, Any] = {"thread_id": thread_id, "runs": sorted({run for feed in readers for run in feed.runs})}
        if (last := self.followed.get(thread_id)) is not None:
            asked["after_event_id"] = last[1]
        while True:
            try:
                await connection.ask("thread.subscribe", asked, self.within, self._resumed)
                return
            except RateLimitedError as error:
                await asyncio.sleep(error.retry_after)
            except NotFoundError:
                self.followed.pop(thread_id, None)
                self._show(of_client("thread.deleted", thread_id=thread_id), thread_id)
                return

    def _resumed(self, frame: Frame) -> None:
        self._show(frame, thread_of(frame))
        if self._overhear is not None:
            self._overhear(frame)

    # ------------------------------------------------------------ what readers are told

    def _say(self, kind: str, **payload: Any) -> None:
        frame = of_client(kind, **payload)
        for feed in list(self._feeds):
            feed.put(frame)
        if self._tell_user is not None:
            try:
                self._tell_user(frame)
            except Exception:
                log.exception("what a client was to call when its connection changed has failed")

    def _end(self, lost: DooersError | None) -> None:
        """There is no more: tell whoever waits. Only the first reason counts; none means that this side closed."""
        if self._lost is not None:
            return
        self._lost = lost if lost is not None else DisconnectedError("this client was closed")
        for feed in list(self._feeds):
            feed.put(lost)
        self._turned.set()


def _as_refusal(error: DooersError) -> DooersError:
    """A close code without a word in front of it, as the refusal that it is."""
    code = getattr(error, "close_code", None)
    if code == WHO_ARE_YOU:
        return UnauthenticatedError("this connection is not allowed")
    return ForbiddenError("this connection is not allowed") if code == NOT_YOU else error


def _given_up(gone: Gone | None, why: DooersError | None, seconds: float) -> DooersError:
    if gone is None:
        return why if why is not None else DisconnectedError("there is no connection")
    again = f": {why}" if why is not None else ""
    error = DisconnectedError(f"{gone.error}, and none that holds could be made within {seconds:g} s{again}", gone.code)
    error.__cause__ = why
    return error
