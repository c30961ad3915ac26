"""Fan-out: a stored Change becomes frames once, and goes into the outbox of every session of this process that may see it.

Never awaits: putting a text into an outbox is all that happens here, so a slow reader costs a publisher nothing. Who may see
what is asked of each session's `Access`, the same rule that decides what may be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, TypeAlias

from attrs import define

from dooers.models import Change, Scope, Thread, ThreadEvent, evolve
from dooers.protocol import Audience, Dialect, Frame, appended, frames_of, serialize
from dooers.turn import Clock

__all__ = ["TRY_AGAIN", "Broadcast", "Growth", "Member", "Teller"]

Place: TypeAlias = tuple[str, str, str]
# How a session sees a message that is being written: piece by piece, as one that grows, or when it is done.
Growth: TypeAlias = Literal["deltas", "growing", "done"]
# The close code for "try again later".
TRY_AGAIN = 1013


class Member(Protocol):
    """A connected session, as fan-out sees it. Compared by identity."""

    @property
    def scope(self) -> Scope: ...
    def sees(self, thread: Thread) -> bool: ...
    @property
    def dialect(self) -> Dialect: ...
    @property
    def grows(self) -> Growth: ...
    def put(self, text: str) -> None:
        """Queue a text for sending; never blocks, never raises."""
        ...

    def put_delta(self, text: str, event_id: str) -> None:
        """The same, for a piece of a message: may be left out, and then so is every later piece of that message."""
        ...

    def close(self, code: int) -> None:
        """End the session: it comes back and resumes."""
        ...


class Teller(Protocol):
    """Who brings news to people: this process's own fan-out, or the relay that tells other processes too."""

    def publish(self, change: Change) -> None: ...
    def is_followed(self, topic: str, worker_id: str) -> bool: ...
    def tell_delta(self, thread: Thread, event: ThreadEvent, at: int, text: str) -> None: ...
    def tell_growing(self, thread: Thread, so_far: Callable[[], ThreadEvent | None]) -> None: ...
    def tell(
        self,
        topic: str,
        worker_id: str,
        frame_type: str,
        payload: dict[str, Any],
        about: Thread | None,
        *,
        here: bool = False,
    ) -> None: ...


@define(eq=False)
class _Feed:
    """One session's subscription to one thread. While its snapshot is being read, changes are `held` back.

    `after` is the last event that it has, from its snapshot or live: what is stored is read at once, and may be published only
    after that. It is None for one that began without a snapshot and has heard nothing yet.
    """

    held: list[Change] | None = None
    after: int | None = None
    thread: Thread | None = None

    def lacks(self, change: Change) -> bool:
        """Whether this session has not been told of an event that came before these."""
        return bool(change.events) and self.after is not None and change.events[0].seq > self.after + 1

    def newer(self, change: Change) -> Change:
        """The change without what this session has already."""
        if not change.events or self.after is None or change.events[0].seq > self.after:
            return change
        after = self.after
        return evolve(change, events=tuple(event for event in change.events if event.seq > after))

    def take(self, change: Change) -> Change:
        """`newer`, of which this session has been told from here on."""
        self.thread = change.thread
        if not change.events:
            return change
        newer = self.newer(change)
        if newer.events:
            self.after = newer.events[-1].seq
        return newer


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
        self._subscribed[member].add(thread_id)
        feeds = self._threads.setdefault(thread_id, {})
        return feeds.setdefault(member, feed := _Feed()) is feed

    def hold(self, member: Member, thread_id: str) -> None:
        """Subscribe, but keep what is published back until `release`: the session is about to read a snapshot."""
        self._subscribed[member].add(thread_id)
        self._threads.setdefault(thread_id, {}).setdefault(member, _Feed()).held = []

    def release(self, member: Member, thread_id: str, snapshot: Thread | None) -> bool:
        """The snapshot of a thread is out, or there is none: send what was published meanwhile and is newer, then go on live.

        Says whether this session lacks events now, because other processes were heard too late or not at all.
        """
        feed = self._threads.get(thread_id, {}).get(member)
        if feed is None or feed.held is None:
            return False
        held, feed.held, lacking = feed.held, None, False
        if snapshot is not None:
            feed.thread, feed.after = snapshot, max(feed.after or 0, snapshot.last_seq)
        for change in held:
            newer = feed.newer(change)
            if feed.lacks(newer):
                lacking, newer = True, evolve(newer, events=())
            self._tell_late(member, feed.take(newer), "subscribers", "tenant")
            if change.removes:
                self.unsubscribe(member, thread_id)
        return lacking

    def unsubscribe(self, member: Member, thread_id: str) -> None:
        """This session no longer gets the thread's events."""
        self._subscribed.get(member, set()).discard(thread_id)
        feed = self._drop(member, thread_id)
        # One that asked for a snapshot and did not get it still hears what everybody hears.
        for change in (feed.held if feed is not None else None) or ():
            self._tell_late(member, change, "tenant")

    def is_here(self, member: Member) -> bool:
        """Whether the session is still connected."""
        return member in self._subscribed

    def is_subscribed(self, member: Member, thread_id: str) -> bool:
        """Whether this session gets the thread's events."""
        return thread_id in self._subscribed.get(member, ())

    def subscriptions(self, member: Member) -> int:
        """How many threads a session is subscribed to."""
        return len(self._subscribed.get(member, ()))

    def followers(self) -> tuple[int, int]:
        """How many subscriptions to threads there are, and to how many threads."""
        feeds = list(self._threads.values())
        return sum(map(len, feeds)), len(feeds)

    def members(self, worker_id: str) -> list[Member]:
        """Who is connected to a worker id, wherever they are."""
        return [member for place, members in self._places.items() if place[0] == worker_id for member in members]

    def audience(self, thread: Thread) -> tuple[int, int]:
        """How many sessions a change of this thread reaches: of those that follow it, and of those that have it in their list."""
        groups = (self._threads.get(thread.id, ()), self._places.get(_place(thread), ()))
        return tuple(sum(member.sees(thread) for member in group) for group in groups)  # type: ignore[return-value]

    # ------------------------------------------------------------ what they have

    def watched(self) -> list[str]:
        """The threads that somebody here is subscribed to."""
        return list(self._threads)

    def places(self) -> list[Place]:
        """The places, as (worker, organization, workspace), of which somebody here has the list of threads."""
        return list(self._places)

    def followed(self, topic: str) -> list[str]:
        """The workers whose "settings" or "analytics" somebody here follows."""
        return [worker_id for its, worker_id in self._topics if its == topic]

    def is_watched(self, thread_id: str) -> bool:
        """Whether somebody here is subscribed to a thread."""
        return thread_id in self._threads

    def lacks(self, change: Change) -> bool:
        """Whether somebody here has not been told of an event that came before these."""
        for feed in self._threads.get(change.thread.id, {}).values() if change.events else ():
            if feed.held is None and feed.lacks(change):
                return True
        return False

    def reached(self, thread_id: str) -> int | None:
        """The last event that everybody here has who follows a thread; None where nobody is known to have any."""
        feeds = self._threads.get(thread_id, {}).values()
        return min((feed.after for feed in feeds if feed.after is not None and feed.held is None), default=None)

    def last_known(self, thread_id: str) -> Thread | None:
        """A thread as it was when somebody here was last told of it."""
        feeds = self._threads.get(thread_id, {}).values()
        return next((feed.thread for feed in feeds if feed.thread is not None), None)

    def fill(self, change: Change, after: int, upto: int) -> None:
        """Tell of events that were read: all there are between two numbers, for those who had got as far as the first."""
        groups: dict[int, tuple[Change, list[Member]]] = {}
        for member, feed in self._threads.get(change.thread.id, {}).items():
            if feed.held is None and feed.after is not None and feed.after >= after:
                newer = feed.newer(change)
                feed.thread, feed.after = change.thread, max(feed.after, upto)
                if newer.events and member.sees(change.thread):
                    groups.setdefault(newer.events[0].seq, (newer, []))[1].append(member)
        for newer, members in groups.values():
            for frame in frames_of(newer):
                self._put(frame, members)

    def drop(self, thread_id: str) -> None:
        """Close the sessions that follow a thread of which they cannot be told what they missed."""
        live = [member for member, feed in self._threads.get(thread_id, {}).items() if feed.held is None]
        for member in live:
            self.unsubscribe(member, thread_id)  # what comes next would follow a gap
            member.close(TRY_AGAIN)

    def _drop(self, member: Member, thread_id: str) -> _Feed | None:
        feeds = self._threads.get(thread_id)
        if feeds is None:
            return None
        feed = feeds.pop(member, None)
        if not feeds:
            del self._threads[thread_id]
        return feed

    def _tell_late(self, member: Member, change: Change, *audiences: Audience) -> None:
        if member.sees(change.thread):
            for frame in frames_of(change):
                if frame.audience in audiences:
                    member.put(frame.text(self._clock.new_id(), member.dialect))

    # ------------------------------------------------------------ what they hear

    def publish(self, change: Change) -> None:
        """Tell of a stored Change everybody who may see it: each frame is made once, however many get it."""
        thread = change.thread
        feeds = self._threads.get(thread.id) or {}
        if not feeds and _place(thread) not in self._places:
            return  # nobody is there, which is how most background work goes: make no frames for it
        held: set[Member] = set()
        live: list[Member] = []
        for member, feed in feeds.items():
            if feed.held is not None:
                feed.held.append(change)
                held.add(member)
                continue
            newer = feed.take(change)
            if newer is not change:
                self._tell_late(member, newer, "subscribers")  # rare: its snapshot overtook this
            elif member.sees(thread):
                live.append(member)
        for frame in frames_of(change):
            if frame.audience == "tenant":
                place = self._places.get(_place(thread), ())
                # Who is reading a snapshot of this very thread hears of it afterwards: the snapshot may be the older news.
                self._put(frame, [member for member in place if member not in held and member.sees(thread)])
            else:
                self._put(frame, live)
        if change.removes:
            for member in list(feeds.keys() - held):  # a removal has no events, so nobody has it already
                self.unsubscribe(member, thread.id)

    def _put(self, frame: Frame, members: Iterable[Member]) -> None:
        texts: dict[Dialect | None, str] = {}
        frame_id = self._clock.new_id()
        for member in members:
            variant = member.dialect if frame.thread is not None else None
            text = texts.get(variant)
            if text is None:
                texts[variant] = text = frame.text(frame_id, member.dialect)
            member.put(text)

    def tell_delta(self, thread: Thread, event: ThreadEvent, at: int, text: str) -> None:
        """A piece of a message that is being written, to those who asked for pieces."""
        members = self._watchers(thread, "deltas")
        if members:
            payload = {"thread_id": thread.id, "event_id": event.id, "text": text}
            if event.run_id is not None:
                payload["run_id"] = event.run_id
            frame = serialize("event.delta", payload, self._clock.new_id())
            for member in members:
                member.put_delta(frame, event.id)

    def tell_growing(self, thread: Thread, so_far: Callable[[], ThreadEvent | None]) -> None:
        """A message that is being written, whole so far, to clients that know no pieces but take one event again and again."""
        members = self._watchers(thread, "growing")
        event = so_far() if members else None
        if event is not None:
            frame = serialize("event.append", appended(thread.id, [event]), self._clock.new_id())
            for member in members:
                member.put_delta(frame, "")  # each holds the whole text: a later one makes up for one that is left out

    def _watchers(self, thread: Thread, grows: Growth) -> list[Member]:
        # Who waits for a snapshot gets the text so far in it.
        # The thread as they were last told of it, for it may have been hidden from them since this message was begun.
        return [
            member
            for member, feed in self._threads.get(thread.id, {}).items()
            if feed.held is None and member.grows == grows and member.sees(feed.thread or thread)
        ]

    # ------------------------------------------------------------ settings and analytics, to their subscribers only

    def follow(self, member: Member, topic: str, worker_id: str) -> None:
        """Subscribe to "settings" or "analytics" of a worker."""
        self._topics.setdefault((topic, worker_id), set()).add(member)

    def is_followed(self, topic: str, worker_id: str) -> bool:
        """Whether somebody here follows a topic."""
        return (topic, worker_id) in self._topics

    def unfollow(self, member: Member, topic: str, worker_id: str) -> None:
        """Undo `follow`."""
        _discard(self._topics, (topic, worker_id), member)

    def tell(
        self,
        topic: str,
        worker_id: str,
        frame_type: str,
        payload: dict[str, Any],
        about: Thread | None,
        *,
        here: bool = True,
    ) -> None:
        """Send a frame to a topic's followers in this process; with `about`, only to those who may see that thread."""
        members = self._topics.get((topic, worker_id))
        if not members:
            return
        text = serialize(frame_type, payload, self._clock.new_id())
        for member in members:
            if about is None or member.sees(about):
                member.put(text)


def _place(of: Any) -> Place:
    return (of.worker_id, of.organization_id, of.workspace_id)


def _discard(index: dict[Any, set[Member]], key: Any, member: Member) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(member)
        if not members:
            del index[key]
