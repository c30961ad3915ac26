"""Fan-out: a stored Change becomes frames once, and goes into the outbox of every session of this process that may see it.

Never awaits: putting a text into an outbox is all that happens here, so a slow reader costs a publisher nothing. Who may see what
is asked of `access.py`, the same rule that decides what may be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

from attrs import define, evolve

from dooers.access import visible
from dooers.models import Change, Scope, Thread
from dooers.protocol import Dialect, Frame, frames_of, serialize
from dooers.turn import Clock

__all__ = ["Broadcast", "Member"]

Place: TypeAlias = tuple[str, str, str]


class Member(Protocol):
    """A connected session, as fan-out sees it. Compared by identity."""

    @property
    def scope(self) -> Scope: ...
    @property
    def dialect(self) -> Dialect: ...
    def put(self, text: str) -> None:
        """Queue a text for sending; never blocks, never raises."""
        ...


@define(eq=False)
class _Feed:
    """One session's subscription to one thread. While its snapshot is being read, changes are `held` back."""

    held: list[Change] | None = None


class Broadcast:
    """Who is connected to this process, and what each has subscribed to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._places: dict[Place, set[Member]] = {}
        self._threads: dict[str, dict[Member, _Feed]] = {}
        self._subscribed: dict[Member, set[str]] = {}
        self._topics: dict[tuple[str, str], set[Member]] = {}

    # ------------------------------------------------------------ who is there

    def join(self, member: Member) -> None:
        """A session is connected: it hears of threads it may see."""
        self._places.setdefault(_place(member.scope), set()).add(member)
        self._subscribed[member] = set()

    def leave(self, member: Member) -> None:
        """A session is gone: nothing of it stays."""
        _discard(self._places, _place(member.scope), member)
        for thread_id in self._subscribed.pop(member, set()).copy():
            self._drop(member, thread_id)
        for topic in [topic for topic, members in self._topics.items() if member in members]:
            _discard(self._topics, topic, member)

    def subscribe(self, member: Member, thread_id: str) -> bool:
        """From now on this session gets the thread's events and runs. Says whether that is new."""
        feeds = self._threads.setdefault(thread_id, {})
        self._subscribed[member].add(thread_id)
        return feeds.setdefault(member, feed := _Feed()) is feed

    def hold(self, member: Member, thread_id: str) -> None:
        """Subscribe, but keep what is published back until `release`: the session is about to read a snapshot."""
        self._threads.setdefault(thread_id, {})[member] = _Feed(held=[])
        self._subscribed[member].add(thread_id)

    def release(self, member: Member, thread_id: str, after_seq: int) -> None:
        """The snapshot is out and ends with `after_seq`: send what was published meanwhile and is newer, then go on live."""
        feed = self._threads.get(thread_id, {}).get(member)
        if feed is None or feed.held is None:
            return
        held, feed.held = feed.held, None
        for change in held:
            newer = tuple(event for event in change.events if event.seq > after_seq)
            for frame in _of_subscribers(evolve(change, events=newer)):
                member.put(frame.text(self._clock.new_id(), member.dialect))

    def unsubscribe(self, member: Member, thread_id: str) -> None:
        """This session no longer gets the thread's events."""
        self._subscribed.get(member, set()).discard(thread_id)
        self._drop(member, thread_id)

    def subscriptions(self, member: Member) -> int:
        """How many threads a session is subscribed to."""
        return len(self._subscribed.get(member, ()))

    def _drop(self, member: Member, thread_id: str) -> None:
        feeds = self._threads.get(thread_id)
        if feeds is not None:
            feeds.pop(member, None)
            if not feeds:
                del self._threads[thread_id]

    # ------------------------------------------------------------ what they hear

    def publish(self, change: Change) -> None:
        """Tell of a stored Change everybody who may see it: each frame is made once, however many get it."""
        for frame in frames_of(change):
            if frame.audience == "tenant":
                self._put(frame, self._places.get((_place(change.thread)), ()), change)
            else:
                self._put(frame, self._live(change), change)
        feeds = self._threads.get(change.thread.id)
        if feeds is None:
            return
        for feed in feeds.values():
            if feed.held is not None:
                feed.held.append(change)
        if change.removes:
            for member in list(feeds):
                self.unsubscribe(member, change.thread.id)

    def _live(self, change: Change) -> list[Member]:
        feeds = self._threads.get(change.thread.id)
        return [] if feeds is None else [member for member, feed in feeds.items() if feed.held is None]

    def _put(self, frame: Frame, members: Iterable[Member], change: Change) -> None:
        texts: dict[Dialect | None, str] = {}
        frame_id = self._clock.new_id()
        for member in members:
            if not visible(change.thread, member.scope):
                continue
            variant = member.dialect if frame.thread is not None else None
            text = texts.get(variant)
            if text is None:
                texts[variant] = text = frame.text(frame_id, member.dialect)
            member.put(text)

    # ------------------------------------------------------------ settings and analytics, to their subscribers only

    def follow(self, member: Member, topic: str, worker_id: str) -> None:
        """Subscribe to "settings" or "analytics" of a worker."""
        self._topics.setdefault((topic, worker_id), set()).add(member)

    def unfollow(self, member: Member, topic: str, worker_id: str) -> None:
        """Undo `follow`."""
        _discard(self._topics, (topic, worker_id), member)

    def tell(self, topic: str, worker_id: str, frame_type: str, payload: dict[str, Any], about: Thread | None) -> None:
        """Send a frame to a topic's followers; with `about`, only to those who may see that thread."""
        members = self._topics.get((topic, worker_id))
        if not members:
            return
        text = serialize(frame_type, payload, self._clock.new_id())
        for member in members:
            if about is None or visible(about, member.scope):
                member.put(text)


def _of_subscribers(change: Change) -> Iterable[Frame]:
    return (frame for frame in frames_of(change) if frame.audience == "subscribers")


def _place(of: Any) -> Place:
    return (of.worker_id, of.organization_id, of.workspace_id)


def _discard(index: dict[Any, set[Member]], key: Any, member: Member) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(member)
        if not members:
            del index[key]
