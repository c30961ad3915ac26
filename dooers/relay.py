"""News of this process to people here and to the other processes, and theirs to people here. Who may see what is `broadcast.py`'s.

A table says what each kind of news does. What was said and not heard is `catchup.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from attrs import evolve

from dooers.broadcast import Broadcast, Member
from dooers.brokers import Broker
from dooers.catchup import CatchUp, Form
from dooers.elsewhere import Elsewhere
from dooers.models import Change, Thread, ThreadEvent
from dooers.news import News, about, looks, read, write
from dooers.stores import Store
from dooers.turn import Clock

__all__ = ["Listener", "Relay"]

log = logging.getLogger("dooers")

# Of more threads than that in one moment, analytics are left out where they have to be read: nobody keeps up.
READ = 1_000


class Listener(Protocol):
    """Who else in this process is to hear what other processes say: the runner."""

    def heard_change(self, change: Change) -> None:
        """Another process stored this."""
        ...

    def heard_cancel(self, thread_id: str | None, run_id: str | None, before: int | None) -> None:
        """Somebody asked another process to stop these turns."""
        ...


class Relay:
    """Tells, hears, and catches up. Belongs to one event loop."""

    def __init__(self, broadcast: Broadcast, broker: Broker, store: Store, clock: Clock, process_id: str) -> None:
        self._broadcast = broadcast
        self._clock = clock
        self._broker = broker
        self._elsewhere = Elsewhere(broadcast)
        self._catchup = CatchUp(broadcast, store, self._elsewhere)
        self._process_id = process_id
        # Whether the store tells of Changes itself.
        self._announced = broker.announce is not None
        self._listener: Listener | None = None
        self._heard_at = clock.now()
        self._misheard = 0

    @property
    def catching_up(self) -> int:
        """Of how many threads something was missed, and is being read."""
        return len(self._catchup)

    async def open(self, listener: Listener, forms: Callable[[str], Form]) -> None:
        """Begin to hear. `forms` gives the settings of a worker id."""
        self._listener = listener
        self._catchup.open(listener.heard_change, forms)
        self._heard_at = self._clock.now()
        await self._broker.open(self._heard, self._missed)

    async def close(self) -> None:
        """Say what waits to be said, and hear no more."""
        self._elsewhere.end_all()
        try:
            await self._catchup.close()
        finally:
            await self._broker.close()

    # ------------------------------------------------------------ telling

    def publish(self, change: Change) -> None:
        """Tell of a Change that this process has stored."""
        if self._broker.alone and not len(self._catchup) and not self._broadcast.lacks(change):
            self._broadcast.publish(change)
            return
        self._catchup.show(change)  # alone too, where a write before this one was done and its answer lost
        if not (self._broker.alone or self._announced or self._say(News.of(change, self._process_id))):
            self._tell_others(looks([change], self._process_id, self._broker.limit or 0))

    def tell_delta(self, thread: Thread, event: ThreadEvent, at: int, text: str) -> None:
        """A piece of a message that is being written, which stands at `at` of it."""
        self._broadcast.tell_delta(thread, event, at, text)
        if not self._broker.alone:
            news = News(kind="delta", sender=self._process_id, event_id=event.id, at=at, text=text)
            self._say(evolve(news, thread=thread, event=event) if at == 0 else news)

    def tell_growing(self, thread: Thread, so_far: Callable[[], ThreadEvent | None]) -> None:
        """A message that is being written, whole so far. Other processes put it together themselves."""
        self._broadcast.tell_growing(thread, so_far)

    def is_followed(self, topic: str, worker_id: str) -> bool:
        """Whether somebody in this process follows a topic."""
        return self._broadcast.is_followed(topic, worker_id)

    def tell(
        self,
        topic: str,
        worker_id: str,
        frame_type: str,
        payload: dict[str, Any],
        about: Thread | None,
        *,
        here: bool = False,
    ) -> None:
        """A frame to a topic's followers, `here` or everywhere; with `about`, only to those who may see that thread."""
        if topic == "settings":
            self._catchup.settings_were_told()
        self._broadcast.tell(topic, worker_id, frame_type, payload, about)
        if not here and not self._broker.alone:
            self._say(
                News(
                    kind="topic",
                    sender=self._process_id,
                    topic=topic,
                    worker_id=worker_id,
                    frame_type=frame_type,
                    payload=payload,
                    thread=about,
                )
            )

    def tell_cancel(self, thread_id: str | None, run_id: str | None, before: int | None) -> None:
        """Ask the other processes to stop turns."""
        if not self._broker.alone:
            self._say(News(kind="cancel", sender=self._process_id, thread_id=thread_id, run_id=run_id, before=before))

    def _say(self, news: News) -> bool:
        """Tell the others, unless it is too large for the broker; whether it was said."""
        text = write(news)
        limit = self._broker.limit
        if limit is None or len(text) * 4 <= limit or len(text.encode()) <= limit:
            self._tell_others(text)
            return True
        if news.kind == "delta" and len(news.text) > 1:
            half = len(news.text) // 2
            rest = evolve(news, text=news.text[half:], at=news.at + half, thread=None, event=None)
            return self._say(evolve(news, text=news.text[:half])) and self._say(rest)
        if news.topic == "settings" and news.payload.get("value") is not None:
            return self._say(evolve(news, kind="look", payload={**news.payload, "value": None}))
        if news.kind != "change":  # for a Change that cannot be told there is something to say
            log.warning("news of %r are too large for the broker and stay here", news.topic or news.kind)
        return False

    def _tell_others(self, text: str) -> None:
        try:
            self._broker.tell(text)
        except Exception as error:  # what is told may be lost, what it tells of goes on
            log.warning("the other processes could not be told: %r", error)

    # ------------------------------------------------------------ hearing

    def _heard(self, text: str) -> None:
        self._heard_at = self._clock.now()
        try:
            for news in read(text):
                if news.sender != self._process_id:
                    _HEARD[news.kind](self, news)
        except Exception as error:
            self._misheard += 1
            if self._misheard.bit_count() == 1:  # the first, the second, the fourth: whoever says it says it often
                log.error(
                    "what another process said was not understood (%d times so far)", self._misheard, exc_info=error
                )
            thread_id = about(text)
            if thread_id is not None and self._broadcast.is_watched(thread_id):
                self._catchup.read(thread_id, whole=True)

    def _heard_change(self, news: News) -> None:
        change = news.change
        assert self._listener is not None
        self._listener.heard_change(change)
        self._elsewhere.end(change)
        self._catchup.show(change)

    def _heard_look(self, news: News) -> None:
        if news.topic:
            if self._broadcast.is_followed(news.topic, news.worker_id):
                self._catchup.read_setting(news)
            return
        if news.thread_id is None:
            raise ValueError("news of something to look at without its thread")
        if news.thread is None:
            self._catchup.read(news.thread_id, whole=True)
            return
        assert self._listener is not None
        self._listener.heard_change(evolve(news.change, events=()))
        followed = len(self._catchup) < READ and self._broadcast.is_followed("analytics", news.thread.worker_id)
        if followed or self._broadcast.is_watched(news.thread_id):
            reading = self._catchup.read(news.thread_id)
            if followed:
                reading.bare.append(evolve(news.change, runs=()))

    def _heard_delta(self, news: News) -> None:
        self._elsewhere.piece(news)

    def _heard_topic(self, news: News) -> None:
        if news.topic == "settings":
            self._catchup.settings_were_told()
        self._broadcast.tell(news.topic, news.worker_id, news.frame_type, news.payload, news.thread)

    def _heard_cancel(self, news: News) -> None:
        assert self._listener is not None
        self._listener.heard_cancel(news.thread_id, news.run_id, news.before)

    def _missed(self) -> None:
        """The broker was away."""
        since, self._heard_at = self._heard_at, self._clock.now()
        self._catchup.read_all(since)

    # ------------------------------------------------------------ for people here

    def growing(self, thread_id: str) -> list[ThreadEvent]:
        """The messages of a thread that other processes are writing, with their text so far."""
        return self._elsewhere.growing(thread_id)

    def release(self, member: Member, thread_id: str, snapshot: Thread | None) -> None:
        """A session goes live, with a snapshot or without; what it lacks by then is read."""
        self._catchup.release(member, thread_id, snapshot)


_HEARD: dict[str, Callable[[Relay, News], None]] = {
    "change": Relay._heard_change,
    "look": Relay._heard_look,
    "delta": Relay._heard_delta,
    "topic": Relay._heard_topic,
    "cancel": Relay._heard_cancel,
}
