"""What people here have missed of what other processes said: read from the store, and shown in its place, before what came after it.

That something was missed is found out in three ways: an event whose number is not the next one, a "look" instead of a Change that was too
large to send, and a connection to the broker that was away. Who may see what is `broadcast.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, Protocol

from attrs import Factory, define

from dooers.broadcast import Broadcast, Member
from dooers.elsewhere import Elsewhere
from dooers.models import Change, EventQuery, RunQuery, Thread, ThreadQuery, evolve
from dooers.news import News
from dooers.stores import GAP, Store, answered

__all__ = ["CatchUp", "Form", "Reading"]

log = logging.getLogger("dooers")

# How many threads are caught up with at once, how often one is tried, and how many of its runs are looked at.
CATCHING, TRIES, RUNS = 8, 5, 20
# After a time in which nobody could be heard: how many of a list's newest threads are looked at, and seconds by which clocks may differ.
NEWEST, SLACK = 50, 10


class Form(Protocol):
    """The settings of a worker, as clients see them."""

    async def snapshot(self) -> dict[str, Any]:
        """The payload that tells of all of them."""
        ...

    async def patched(self, field_id: str) -> dict[str, Any] | None:
        """The payload that tells of one as it is now; None where nobody is to be told."""
        ...


@define(eq=False)
class Reading:
    """A thread that is being read: what was told of it meanwhile, and whether it is to be read (once more)."""

    waiting: list[Change] = Factory(list)
    # What was told without the metadata of its thread: a hook may go by them, so nobody hears of it before they are read.
    bare: list[Change] = Factory(list)
    again: bool = True
    # Not only a gap in its events: whatever was told of it may have been missed.
    whole: bool = False


class CatchUp:
    """Reads what was missed. `heard` is told of a Change whose thread had to be read first."""

    def __init__(self, broadcast: Broadcast, store: Store, elsewhere: Elsewhere) -> None:
        self._broadcast = broadcast
        self._store = store
        self._elsewhere = elsewhere
        self._heard: Callable[[Change], None] = lambda change: None
        self._forms: Callable[[str], Form] | None = None
        self._catching: dict[str, Reading] = {}
        self._settings_told = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CATCHING)

    def __len__(self) -> int:
        """How many threads are being read."""
        return len(self._catching)

    def open(self, heard: Callable[[Change], None], forms: Callable[[str], Form]) -> None:
        """Begin; `forms` gives the settings of a worker id."""
        self._heard, self._forms = heard, forms

    async def close(self) -> None:
        """Read no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------ what was said

    def show(self, change: Change) -> None:
        """Show a Change to people here: at once, or after what they lack."""
        reading = self._catching.get(change.thread.id)
        if reading is None and self._broadcast.lacks(change):
            reading = self.read(change.thread.id)
        if reading is not None:
            reading.waiting.append(change)
        else:
            self._broadcast.publish(self._elsewhere.without_ended(change))

    def settings_were_told(self) -> None:
        """Settings were told to people here: what is being read of them may be older."""
        self._settings_told += 1

    # ------------------------------------------------------------ what was missed

    def release(self, member: Member, thread_id: str, snapshot: Thread | None) -> None:
        """A session goes live, with a snapshot or without; what it lacks by then is read."""
        if self._broadcast.release(member, thread_id, snapshot):
            self.read(thread_id)

    def read(self, thread_id: str, *, whole: bool = False) -> Reading:
        """Read a thread, or read it again if that is under way: what is to be seen may have come since."""
        reading = self._catching.get(thread_id)
        if reading is None:
            reading = self._catching[thread_id] = Reading()
            self._spawn(self._read_up(thread_id, reading), "dooers-catch-up")
        reading.again = True
        reading.whole = reading.whole or whole
        return reading

    def read_all(self, since: datetime) -> None:
        """Nobody could be heard since then. Whatever was told meanwhile is in the store, except for pieces of messages."""
        self._elsewhere.end_all()
        for thread_id in self._broadcast.watched():
            self.read(thread_id, whole=True)
        self._spawn(self._read_lists(since - timedelta(seconds=SLACK)), "dooers-read-lists")
        self._spawn(self._read_forms(), "dooers-read-forms")

    def read_setting(self, news: News) -> None:
        """A setting was too large to be told."""
        self._spawn(self._read_setting(news), "dooers-read-setting")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
                    self.show(Change(thread=thread, patch={"told": True}))

    async def _read_forms(self) -> None:
        for worker_id in self._broadcast.followed("settings"):
            await self._tell_form(worker_id, "settings.snapshot", lambda form: form.snapshot())

    async def _read_setting(self, news: News) -> None:
        field_id = news.payload["field_id"]
        await self._tell_form(news.worker_id, news.frame_type, lambda form: form.patched(field_id))

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

    async def _read_up(self, thread_id: str, reading: Reading) -> None:
        """Show what people here lack of a thread, and then what was told of it while that was read."""
        async with self._room:
            while reading.again:
                reading.again = False
                if not await self._shown(thread_id, reading):
                    self._broadcast.drop(thread_id)  # they come back, and get a snapshot as soon as there is one
        del self._catching[thread_id]
        for change in reading.waiting:
            self.show(change)

    async def _shown(self, thread_id: str, reading: Reading) -> bool:
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

    async def _show_missed(self, thread_id: str, reading: Reading) -> None:
        thread = await self._store.thread(thread_id)
        last = self._broadcast.last_known(thread_id)
        if thread is None:
            if last is not None:
                self._show_read(Change(thread=last, removes=True))
            return
        while reading.bare:
            self._heard(evolve(reading.bare.pop(0), thread=thread))
        after = self._broadcast.reached(thread_id)
        while after is not None and after < thread.last_seq:
            query = EventQuery(thread_id=thread_id, after_seq=after, limit=GAP, oldest_first=True)
            events = await self._store.events(query)
            # Whatever the newest number is: events may have been deleted, and the others are all there are.
            upto = events[-1].seq if len(events) == GAP else max([thread.last_seq, *(event.seq for event in events)])
            change = Change(thread=thread, events=tuple(events))
            self._elsewhere.end(change)
            self._broadcast.fill(change, after, upto)
            after = upto
        runs = await self._store.runs(RunQuery(equal={"thread_id": thread_id}, limit=RUNS))
        # Older ones, of which people here know the beginning, or hear of it late: their end may be what was missed.
        late = {run.id for change in reading.waiting for run in change.runs if run.status == "running"}
        for run_id in late.union(self._elsewhere.begun_in(thread_id)) - {run.id for run in runs}:
            run = await self._store.run(run_id)
            if run is not None:
                runs.append(run)
        renamed = last is None or (last.title, last.metadata) != (thread.title, thread.metadata)
        patch = {"told": True} if reading.whole or renamed else {}
        self._show_read(Change(thread=thread, patch=patch, runs=tuple(reversed(runs))))

    def _show_read(self, change: Change) -> None:
        self._elsewhere.end(change)
        self._broadcast.publish(self._elsewhere.without_ended(change))
