"""News of this process to people here and to the other processes, and theirs to people here. Who may see what is `broadcast.py`'s.

What was said and not heard is found out in three ways, and then read from the store: an event whose number is not the next one, a
"look" instead of a Change that was too large to send, and a connection to the broker that was away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Protocol

from attrs import Factory, define, evolve

from dooers.broadcast import Broadcast, Member
from dooers.brokers import Broker
from dooers.models import Change, EventQuery, RunQuery, Thread, ThreadEvent, ThreadQuery
from dooers.news import News, about, looks, read, write
from dooers.steps import Growing
from dooers.stores import GAP, Store, answered
from dooers.turn import Clock

__all__ = ["Listener", "Relay"]

log = logging.getLogger("dooers")

# How many threads are caught up with at once, how often one is tried, and how many of its runs are looked at.
CATCHING, TRIES, RUNS = 8, 5, 20
# After a time in which nobody could be heard: how many of a list's newest threads are looked at, and seconds by which clocks may differ.
NEWEST, SLACK = 50, 10
# How many messages that others write are kept, and how many that are whole, or runs that are over; what is older is forgotten.
GROWING, OVER = 1_000, 10_000
# Seconds after which one that gets no piece is not shown to whoever comes: its process died, and it had no run that somebody would close.
SILENT = 60.0


class Listener(Protocol):
    """Who else in this process is to hear what other processes say: the runner."""

    def heard_change(self, change: Change) -> None:
        """Another process stored this."""
        ...

    def heard_cancel(self, thread_id: str | None, run_id: str | None, before: int | None) -> None:
        """Somebody asked another process to stop these turns."""
        ...


class Form(Protocol):
    """The settings of a worker, as clients see them."""

    async def snapshot(self) -> dict[str, Any]:
        """The payload that tells of all of them."""
        ...

    async def patched(self, field_id: str) -> dict[str, Any] | None:
        """The payload that tells of one as it is now; None where nobody is to be told."""
        ...


@define(eq=False)
class _Reading:
    """A thread that is being read: what was told of it meanwhile, and whether it is to be read (once more)."""

    waiting: list[Change] = Factory(list)
    # What was told without the metadata of its thread: a hook may go by them, so nobody hears of it before they are read.
    bare: list[Change] = Factory(list)
    again: bool = True
    # Not only a gap in its events: whatever was told of it may have been missed.
    whole: bool = False


class Relay:
    """Tells, hears, and catches up. Belongs to one event loop."""

    def __init__(self, broadcast: Broadcast, broker: Broker, store: Store, clock: Clock, process_id: str) -> None:
        self._broadcast = broadcast
        self._clock = clock
        self._broker = broker
        self._store = store
        self._process_id = process_id
        # Whether the store tells of Changes itself.
        self._announced = broker.announce is not None
        self._listener: Listener | None = None
        self._forms: Callable[[str], Form] | None = None
        self._heard_at = clock.now()
        self._growing: dict[str, Growing] = {}
        self._catching: dict[str, _Reading] = {}
        # Runs that have ended, and messages that are whole: a set in the order of arrival.
        self._over: dict[str, None] = {}
        # Runs that were shown to be at work, and their threads: whoever was shown that is to be shown their end.
        self._begun: dict[str, str] = {}
        self._misheard = 0
        self._settings_told = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CATCHING)

    async def open(self, listener: Listener, forms: Callable[[str], Form]) -> None:
        """Begin to hear. `forms` gives the settings of a worker id."""
        self._listener, self._forms = listener, forms
        self._heard_at = self._clock.now()
        await self._broker.open(self._heard, self._missed)

    async def close(self) -> None:
        """Say what waits to be said, and hear no more."""
        for growing in self._growing.values():
            growing.end()
        self._growing.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._broker.close()

    # ------------------------------------------------------------ telling

    def publish(self, change: Change) -> None:
        """Tell of a Change that this process has stored."""
        if self._broker.alone and not self._catching and not self._broadcast.lacks(change):
            self._broadcast.publish(change)
            return
        self._show(change)  # alone too, where a write before this one was done and its answer lost
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
        self._settings_told += topic == "settings"
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
                self._catch_up(thread_id, whole=True)

    def _heard_change(self, news: News) -> None:
        change = news.change
        assert self._listener is not None
        self._listener.heard_change(change)
        self._end_growing(change)
        self._show(change)

    def _heard_look(self, news: News) -> None:
        if news.topic:
            if self._broadcast.is_followed(news.topic, news.worker_id):
                self._spawn(self._read_setting(news), "dooers-read-setting")
            return
        if news.thread_id is None:
            raise ValueError("news of something to look at without its thread")
        if news.thread is None:
            self._catch_up(news.thread_id, whole=True)
            return
        assert self._listener is not None
        self._listener.heard_change(evolve(news.change, events=()))
        # Of more threads than that in one moment, analytics are left out: nobody keeps up with reading them.
        followed = len(self._catching) < GROWING and self._broadcast.is_followed("analytics", news.thread.worker_id)
        if followed or self._broadcast.is_watched(news.thread_id):
            reading = self._catch_up(news.thread_id)
            if followed:
                reading.bare.append(evolve(news.change, runs=()))

    def _heard_delta(self, news: News) -> None:
        event_id, thread, event = news.event_id, news.thread, news.event
        if event_id is None:
            raise ValueError("news of a piece without its message")
        if event_id in self._over:
            return  # it is whole already: what the store says may overtake what is told otherwise
        growing = self._growing.get(event_id)
        if growing is None and thread is not None and event is not None:
            # Also where nobody watches: whoever comes while it is written gets what there is of it.
            growing = self._growing[event_id] = Growing(event, None, thread, self._broadcast)
            if len(self._growing) > GROWING:
                self._growing.pop(next(iter(self._growing))).end()
        if growing is None:
            return  # its beginning was not heard: people here get it whole, when it is done
        if growing.length == news.at:
            growing.add(news.text)
        elif news.at > growing.length:
            self._growing.pop(event_id).end()

    def _heard_topic(self, news: News) -> None:
        self._settings_told += news.topic == "settings"
        self._broadcast.tell(news.topic, news.worker_id, news.frame_type, news.payload, news.thread)

    def _heard_cancel(self, news: News) -> None:
        assert self._listener is not None
        self._listener.heard_cancel(news.thread_id, news.run_id, news.before)

    def growing(self, thread_id: str) -> list[ThreadEvent]:
        """The messages of a thread that other processes are writing, with their text so far."""
        for event_id, one in list(self._growing.items()):
            if one.silence > SILENT:
                self._growing.pop(event_id).end()
        here = (one for one in self._growing.values() if one.event.thread_id == thread_id)
        return [event for one in here if (event := one.so_far()) is not None]

    def _end_growing(self, change: Change) -> None:
        done = {event.id: event for event in change.events}
        self._note_over(done)
        over = {run.id for run in change.runs if run.status != "running"}
        for event_id, growing in list(self._growing.items()):
            event = growing.event
            gone = change.removes and event.thread_id == change.thread.id
            if event_id in done or event.run_id in over or gone:
                if event_id in done:  # what the store says may overtake the last pieces, and has them
                    growing.add_rest(done[event_id])
                self._growing.pop(event_id).end()

    # ------------------------------------------------------------ catching up

    def release(self, member: Member, thread_id: str, snapshot: Thread | None) -> None:
        """A session goes live, with a snapshot or without; what it lacks by then is read."""
        if self._broadcast.release(member, thread_id, snapshot):
            self._catch_up(thread_id)

    def _show(self, change: Change) -> None:
        reading = self._catching.get(change.thread.id)
        if reading is None and self._broadcast.lacks(change):
            reading = self._catch_up(change.thread.id)
        if reading is not None:
            reading.waiting.append(change)
        else:
            self._broadcast.publish(self._without_ended(change))

    def _without_ended(self, change: Change) -> Change:
        """The change without runs whose end was shown: one that has ended stays so, whatever comes late."""
        runs = tuple(run for run in change.runs if run.id not in self._over)
        for run in runs:
            if run.status == "running":
                self._begun[run.id] = run.thread_id
            else:
                self._begun.pop(run.id, None)
        _forget_oldest(self._begun)
        self._note_over(run.id for run in runs if run.status != "running")
        return change if len(runs) == len(change.runs) else evolve(change, runs=runs)

    def _note_over(self, ids: Iterable[str]) -> None:
        self._over.update(dict.fromkeys(ids))
        _forget_oldest(self._over)

    def _missed(self) -> None:
        """The broker was away. Whatever was told meanwhile is in the store, except for pieces of messages."""
        for growing in self._growing.values():
            growing.end()
        self._growing.clear()
        for thread_id in self._broadcast.watched():
            self._catch_up(thread_id, whole=True)
        since, self._heard_at = self._heard_at - timedelta(seconds=SLACK), self._clock.now()
        self._spawn(self._read_lists(since), "dooers-read-lists")
        self._spawn(self._read_forms(), "dooers-read-forms")

    async def _read_lists(self, since: datetime) -> None:
        """Show the threads that came or changed meanwhile to people who have them in their lists. One that was deleted they find out."""
        for worker_id, organization_id, workspace_id in self._broadcast.places():
            place = {"worker_id": worker_id, "organization_id": organization_id, "workspace_id": workspace_id}
            try:
                async with self._room:
                    threads = await self._store.threads(ThreadQuery(equal=place, limit=NEWEST))
            except Exception as error:
                log.warning("what is new in the lists could not be read (%r)", error)
                return
            for thread in reversed(threads):
                if thread.updated_at >= since and not self._broadcast.is_watched(thread.id):
                    self._show(Change(thread=thread, patch={"told": True}))

    async def _read_forms(self) -> None:
        for worker_id in self._broadcast.followed("settings"):
            await self._tell_form(worker_id, "settings.snapshot", lambda form: form.snapshot())

    async def _read_setting(self, news: News) -> None:
        """Tell of a setting that was too large to be told."""
        await self._tell_form(news.worker_id, news.frame_type, lambda form: form.patched(news.payload["field_id"]))

    async def _tell_form(
        self, worker_id: str, frame_type: str, read: Callable[[Form], Awaitable[dict[str, Any] | None]]
    ) -> None:
        """Tell of settings as they are in the store."""
        assert self._forms is not None
        async with self._room:
            try:
                told, payload = -1, None
                while told != self._settings_told:  # what was told meanwhile may be newer than what was read
                    told = self._settings_told
                    payload = await read(self._forms(worker_id))
            except Exception as error:
                log.warning("the settings of worker %s could not be read to be told (%r)", worker_id, error)
                return
        if payload is not None:
            self._broadcast.tell("settings", worker_id, frame_type, payload, None)

    def _catch_up(self, thread_id: str, *, whole: bool = False) -> _Reading:
        """Read a thread, or read it again if that is under way: what is to be seen may have come since."""
        reading = self._catching.get(thread_id)
        if reading is None:
            reading = self._catching[thread_id] = _Reading()
            self._spawn(self._read_up(thread_id, reading), "dooers-catch-up")
        reading.again = True
        reading.whole = reading.whole or whole
        return reading

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_up(self, thread_id: str, reading: _Reading) -> None:
        """Show what people here lack of a thread, and then what was told of it while that was read."""
        async with self._room:
            while reading.again:
                reading.again = False
                if not await self._shown(thread_id, reading):
                    self._broadcast.drop(thread_id)  # they come back, and get a snapshot as soon as there is one
        del self._catching[thread_id]
        for change in reading.waiting:
            self._show(change)

    async def _shown(self, thread_id: str, reading: _Reading) -> bool:
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(0.05 * 2**attempt)
            try:
                with answered():
                    await self._show_missed(thread_id, reading)
                return True
            except Exception as error:
                log.warning("catching up with thread %s failed (%r)", thread_id, error)
        return False

    async def _show_missed(self, thread_id: str, reading: _Reading) -> None:
        thread = await self._store.thread(thread_id)
        last = self._broadcast.last_known(thread_id)
        if thread is None:
            if last is not None:
                self._show_read(Change(thread=last, removes=True))
            return
        assert self._listener is not None
        while reading.bare:
            self._listener.heard_change(evolve(reading.bare.pop(0), thread=thread))
        after = self._broadcast.reached(thread_id)
        while after is not None and after < thread.last_seq:
            query = EventQuery(thread_id=thread_id, after_seq=after, limit=GAP, oldest_first=True)
            events = await self._store.events(query)
            # Whatever the newest number is: events may have been deleted, and the others are all there are.
            upto = events[-1].seq if len(events) == GAP else max([thread.last_seq, *(event.seq for event in events)])
            change = Change(thread=thread, events=tuple(events))
            self._end_growing(change)
            self._broadcast.fill(change, after, upto)
            after = upto
        runs = await self._store.runs(RunQuery(equal={"thread_id": thread_id}, limit=RUNS))
        read = {run.id for run in runs}
        for run_id in [one for one, its in self._begun.items() if its == thread_id and one not in read]:
            run = await self._store.run(run_id)
            if run is not None:
                runs.append(run)  # an older one
        renamed = last is None or (last.title, last.metadata) != (thread.title, thread.metadata)
        patch = {"told": True} if reading.whole or renamed else {}
        self._show_read(Change(thread=thread, patch=patch, runs=tuple(reversed(runs))))

    def _show_read(self, change: Change) -> None:
        self._end_growing(change)
        self._broadcast.publish(self._without_ended(change))


def _forget_oldest(kept: dict[str, Any]) -> None:
    while len(kept) > OVER:
        del kept[next(iter(kept))]


_HEARD: dict[str, Callable[[Relay, News], None]] = {
    "change": Relay._heard_change,
    "look": Relay._heard_look,
    "delta": Relay._heard_delta,
    "topic": Relay._heard_topic,
    "cancel": Relay._heard_cancel,
}
