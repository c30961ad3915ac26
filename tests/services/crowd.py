"""People who use a worker that keeps dying (`crashing.py`), what they were told, and whether it is true. Not tests.

`Lives` starts and kills it. A `Person` is a client over a real WebSocket who goes on in the next life where the last one broke off,
and a `Caller` one over HTTP. What they were told is kept in `Told`; `audit.py` holds it against the database.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import httpx
from attrs import Factory, define

from dooers.client import Client
from dooers.exceptions import DisconnectedError, NotFoundError, RateLimitedError, ThreadBusyError
from services.workers import ROOT, WITHIN, Frame, text_of

__all__ = ["LIFE", "Caller", "Death", "Lives", "Person", "Said", "Told", "WrongError", "a_client", "read_all"]

# The kind of a death, and when: seconds after the start, seconds after it serves, or the so-manieth time of something.
Death: TypeAlias = tuple[str, float]

# Seconds that the longest life has under load.
LIFE = 0.4


class WrongError(AssertionError):
    """A promise was broken."""


# ---------------------------------------------------------------- the worker


@define(eq=False, repr=False)
class Lives:
    """The process that makes processes, and the one of them that serves."""

    options: dict[str, Any]
    home: Path
    fault: str = ""
    number: int = 0
    died: dict[str, int] = Factory(dict)
    _process: asyncio.subprocess.Process | None = None
    _ready: asyncio.Event = Factory(asyncio.Event)
    _up: asyncio.Future[str] | None = None
    _over: asyncio.Future[int] | None = None

    @property
    def ran(self) -> Path:
        """Where handlers write down that they ran."""
        return self.home / "ran"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Lives]:
        path = [str(ROOT), str(ROOT / "contrib"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        self.ran.touch()
        with self.log.open("wb") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.crashing"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    "DOOERS_TEST_WORKER": json.dumps(self.options),
                    "DOOERS_TEST_RAN": str(self.ran),
                    "DOOERS_TEST_FAULT": self.fault,
                },
            )
        hearing = asyncio.create_task(self._hear(process))
        try:
            yield self
        finally:
            assert process.stdin is not None
            process.stdin.close()  # that ends it, and the one that serves
            await asyncio.wait_for(process.wait(), WITHIN)
            await hearing

    async def begin(self, death: Death | None = None) -> asyncio.Future[str]:
        """Start one, which dies by itself at the so-manieth time of something. Where it serves, when it does."""
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(self._ready.wait(), WITHIN)
        self.number += 1
        self._up, self._over = loop.create_future(), loop.create_future()
        self._up.add_done_callback(lambda up: up.cancelled() or up.exception())
        self._say({"life": self.number, "death": death})
        return self._up

    async def kill(self) -> int:
        """Kill it, if it is not dead by itself; the signal that it died of."""
        if not self.dead.done():
            self._say("kill")
        return await asyncio.wait_for(asyncio.shield(self.dead), WITHIN)

    @property
    def dead(self) -> asyncio.Future[int]:
        """Done when it is dead."""
        assert self._over is not None
        return self._over

    def _say(self, order: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set()
                continue
            assert self._up is not None
            assert self._over is not None
            if "up" in said and not self._up.done():
                self._up.set_result(f"127.0.0.1:{said['up']}")
            elif "ended" in said:
                if not self._up.done():
                    self._up.set_exception(ConnectionError("it died before it served"))
                self._over.set_result(said["ended"])


# ---------------------------------------------------------------- what was told


@define(eq=False)
class Said:
    """A message: who said it, and what came of it. `into` is the thread it was said in, None for a new one."""

    key: str
    text: str
    who: str
    into: str | None
    life: int
    detach: bool = False
    acknowledged: bool = False
    event_id: str | None = None
    thread_id: str | None = None


@define(eq=False, repr=False)
class Told:
    """What anybody was told. Nothing of this may ever be untrue again. With each the life in which it was told first."""

    lives: Lives
    said: dict[str, Said] = Factory(dict)
    events: dict[str, tuple[int, Frame]] = Factory(dict)
    ended: dict[str, tuple[int, Frame]] = Factory(dict)
    titles: dict[str, set[str]] = Factory(dict)
    deleted: dict[str, int] = Factory(dict)
    deleting: set[str] = Factory(set)
    # By field, the number that was acknowledged last and the one that was sent last.
    settings: dict[str, list[int]] = Factory(dict)
    # Events that a caller was given as the answer: the number, and the text.
    given: dict[str, tuple[int, int, str]] = Factory(dict)
    repeats: int = 0

    def frame(self, frame: Frame) -> None:
        payload = frame["payload"]
        match frame["type"]:
            case "event.append":
                for event in payload["events"]:
                    self.event(event)
            case "run.upsert":
                self.run(payload["run"])
            case "thread.upsert":
                self.thread(payload["thread"])
            case "thread.deleted":
                self.deleted.setdefault(payload["thread_id"], self.lives.number)

    def event(self, event: Frame) -> None:
        if event.get("streaming"):
            return
        life, before = self.events.setdefault(event["id"], (self.lives.number, event))
        if before != event:
            raise WrongError(f"an event is not what it was in life {life}: {before}, and now {event}")
        key = event.get("client_event_id")
        if key is not None:
            said = self.said[key]
            if said.event_id not in (None, event["id"]):
                raise WrongError(f"message {key} was event {said.event_id}, and now is {event['id']}")
            said.event_id, said.thread_id = event["id"], event["thread_id"]

    def run(self, run: Frame) -> None:
        if run["status"] == "running":
            # In this very life somebody else may have heard of its end before this one hears of its beginning.
            if self.ended.get(run["id"], (self.lives.number,))[0] < self.lives.number:
                raise WrongError(f"a run is running that had ended, in life and as {self.ended[run['id']]}: {run}")
            return
        life, before = self.ended.setdefault(run["id"], (self.lives.number, run))
        if before != run:
            raise WrongError(f"a run ended otherwise than it had in life {life}: {before}, and now {run}")

    def thread(self, thread: Frame) -> None:
        if thread.get("title"):
            self.titles.setdefault(thread["id"], set()).add(thread["title"])

    def answer(self, events: list[tuple[str, int, str]]) -> None:
        """What a caller was given."""
        for event_id, seq, text in events:
            self.given.setdefault(event_id, (self.lives.number, seq, text))

    def gone(self, thread_id: str | None) -> bool:
        """Whether a thread is deleted, or may be."""
        return thread_id in self.deleted or thread_id in self.deleting


# ---------------------------------------------------------------- people


def a_client(url: str, user_id: str) -> Client:
    """A connection of somebody, to be entered."""
    place = f"ws://{url}/ws"
    return Client(place, organization_id="org-1", workspace_id="ws-1", user_id=user_id, within=WITHIN, retry_for=0)


WORDS = [("echo", 1), ("bare", 1), ("steps", 4), ("tools", 2), ("stream", 25), ("title", 1), ("fail", 1)]
# Seconds between two things that somebody does, at most.
PAUSE = 0.02


@define(eq=False, repr=False)
class _View:
    """How far somebody has read a thread. `whole`: from here on nothing may be missing."""

    seq: int = 0
    event_id: str | None = None
    whole: bool = False


@define(eq=False, repr=False)
class Person:
    """Somebody with a browser that comes back by itself: reads on after the last event, says again what was not acknowledged."""

    name: str
    told: Told
    random: Random
    shared: list[str]
    field: str
    own: list[str] = Factory(list)
    _unsure: list[Said] = Factory(list)
    _views: dict[str, _View] = Factory(dict)
    _news: asyncio.Event = Factory(asyncio.Event)
    _said: int = 0
    _growing: str = ""

    async def live(self, url: str, last: bool = False) -> None:
        """Do this and that until the connection is lost; in the `last` life, until all is said and answered."""
        reading: asyncio.Task[None] | None = None
        try:
            async with a_client(url, self.name) as client:
                feed = client.frames()
                await self._come_back(client)
                reading = asyncio.create_task(self._read(feed))
                while self._unsure:
                    await self._post(client, self._unsure[0])
                while not last:
                    await self._act(client)
                    await asyncio.sleep(self.random.uniform(0, PAUSE))
                for thread_id in self.shared:
                    await self._is_answered(client, thread_id, reading)
        except DisconnectedError:
            if last:
                raise
        finally:
            if reading is not None:
                await reading  # to the end of what had arrived

    # ------------------------------------------------------------ reading

    async def _come_back(self, client: Client) -> None:
        await client.ask("thread.list")
        known = self.told.settings.setdefault(self.field, [0, 0])[0]
        feed = client.frames()
        await client.ask("settings.subscribe")
        async for frame in feed:
            if frame["type"] == "settings.snapshot":
                values = {one["id"]: one["value"] for one in frame["payload"]["fields"] if "value" in one}
                if int(values[self.field]) < known:
                    raise WrongError(f"{self.field} is {values[self.field]}, and {known} was acknowledged")
                break
        for thread_id in [*self.shared, *self.own]:
            view = self._views.setdefault(thread_id, _View())
            asked = {"thread_id": thread_id} | ({"after_event_id": view.event_id} if view.whole else {})
            try:
                snapshot = await client.ask("thread.subscribe", asked)
            except NotFoundError:
                self._is_gone(thread_id, view)
                continue
            if not view.whole:
                view.seq = snapshot["events"][0]["seq"] - 1 if snapshot["events"] else 0
            view.whole = True
            for event in snapshot["events"]:
                self._take(event)
            for run in snapshot["runs"]:
                self.told.run(run)
            self.told.thread(snapshot["thread"])

    def _is_gone(self, thread_id: str, view: _View) -> None:
        if view.event_id is not None and not self.told.gone(thread_id):
            raise WrongError(f"thread {thread_id} is not there, and had {view.seq} events")

    async def _read(self, feed: AsyncIterator[Frame]) -> None:
        with suppress(DisconnectedError):
            async for frame in feed:
                self.told.frame(frame)
                if frame["type"] == "event.delta" and frame["payload"]["thread_id"] in self.shared:
                    self._growing = frame["payload"]["thread_id"]
                if frame["type"] == "event.append":
                    for event in frame["payload"]["events"]:
                        self._take(event)
                self._news.set()

    def _take(self, event: Frame) -> None:
        if event.get("streaming"):
            return
        self.told.event(event)
        view = self._views.setdefault(event["thread_id"], _View())
        key = event.get("client_event_id")
        known = event["thread_id"] in self.shared or event["thread_id"] in self.own
        if key is not None and self.told.said[key].who == self.name and not known:
            self.own.append(event["thread_id"])
        if not view.whole or event["seq"] == view.seq + 1:
            view.seq, view.event_id = event["seq"], event["id"]
        elif event["seq"] > view.seq or key is None:
            # What one has may only come again as the answer to a message that one says again.
            raise WrongError(f"{self.name} has read up to {view.seq} in {event['thread_id']}, and now is told {event}")

    # ------------------------------------------------------------ doing

    async def _act(self, client: Client) -> None:
        chance = self.random.random()
        if chance < 0.06:
            await self._post(client, self._new(None))
        elif chance < 0.14:
            await self._cancel(client)
        elif chance < 0.24:
            await self._patch(client)
        elif chance < 0.28 and self.own:
            await self._delete(client, self.random.choice(self.own))
        elif chance < 0.34:
            await self._say_again(client)
        else:
            await self._post(client, self._new(self.random.choice(self.shared)))

    def _new(self, thread_id: str | None, word: str = "", number: int = 0) -> Said:
        if not word:
            word, most = self.random.choice(WORDS)
            number = self.random.randint(1, most)
        self._said += 1
        key = f"{self.name}-{self._said}"
        said = Said(key, f"{word} {number} {key}", self.name, thread_id, self.told.lives.number)
        self.told.said[key] = said
        self._unsure.append(said)
        return said

    async def _post(self, client: Client, said: Said) -> None:
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": said.text}]}
        payload: Frame = {"client_event_id": said.key, "event": event}
        if said.into is not None:
            payload["thread_id"] = said.into
        try:
            await client.ask("event.create", payload)
        except (ThreadBusyError, RateLimitedError):
            await asyncio.sleep(0.02)
            return
        said.acknowledged = True
        if said in self._unsure:
            self._unsure.remove(said)

    async def _say_again(self, client: Client) -> None:
        mine = [one for one in self.told.said.values() if one.who == self.name and one.acknowledged]
        mine = [one for one in mine[-50:] if not self.told.gone(one.thread_id)]
        if mine:
            self.told.repeats += 1
            await self._post(client, self.random.choice(mine))

    async def _cancel(self, client: Client) -> None:
        """Stop what is being written, of all things: what there is of it is then called a piece."""
        thread_id = self._growing or self.random.choice(self.shared)
        await client.ask("run.cancel", {"thread_id": thread_id})

    async def _patch(self, client: Client) -> None:
        known = self.told.settings[self.field]
        known[1] = number = known[1] + 1
        await client.ask("settings.patch", {"field_id": self.field, "value": str(number)})
        known[0] = number

    async def _delete(self, client: Client, thread_id: str) -> None:
        self.told.deleting.add(thread_id)
        with suppress(NotFoundError):  # by a delete of which the acknowledgement was lost
            await client.ask("thread.delete", {"thread_id": thread_id})
        self.own.remove(thread_id)
        self.told.deleted.setdefault(thread_id, self.told.lives.number)

    # ------------------------------------------------------------ the last life

    async def _is_answered(self, client: Client, thread_id: str, reading: asyncio.Task[None]) -> None:
        """The thread works: whoever says something there is answered."""
        said = self._new(thread_id, "echo", 1)
        await self._post(client, said)
        async with asyncio.timeout(WITHIN):
            while not any(text_of(event) == f"re: {said.text}" for _, event in self.told.events.values()):
                if reading.done():
                    reading.result()
                self._news.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.05)


async def read_all(url: str, thread_id: str) -> list[Frame]:
    """A thread as somebody finds it who was never here, page by page."""
    async with a_client(url, "late") as client:
        snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id})
        events: list[Frame] = snapshot["events"]
        more = snapshot["has_more"]
        while more:
            page = await client.ask("event.list", {"thread_id": thread_id, "before_event_id": events[0]["id"]})
            events, more = page["events"] + events, page["has_more"]
    return events


@define(eq=False, repr=False)
class Caller:
    """Somebody who uses the other door, over HTTP: the same key again until there is an answer."""

    name: str
    told: Told
    random: Random
    shared: list[str]
    http: httpx.AsyncClient
    _unsure: Said | None = None
    _said: int = 0

    async def live(self, url: str, last: bool = False) -> None:
        try:
            while self._unsure is not None or not last:
                await self._call(url)
                await asyncio.sleep(self.random.uniform(0, PAUSE))
        except httpx.TransportError:
            if last:
                raise

    async def _call(self, url: str) -> None:
        word, most = self.random.choice(WORDS)
        said = self._unsure = self._unsure or self.say(
            f"{word} {self.random.randint(1, most)}", self.random.choice(self.shared), self.random.random() < 0.3
        )
        await self.call(url, said)
        again = self.random.random() < 0.1
        self.told.repeats += again
        self._unsure = said if again or not said.acknowledged else None

    def say(self, what: str, thread_id: str, detach: bool = False) -> Said:
        """Something new to say."""
        self._said += 1
        key = f"{self.name}-{self._said}"
        said = Said(key, f"{what} {key}", self.name, thread_id, self.told.lives.number, detach)
        self.told.said[key] = said
        return said

    async def call(self, url: str, said: Said) -> None:
        """Say it, and take what comes of it."""
        asked: Frame = {"thread_id": said.into, "message": said.text, "idempotency_key": said.key, "user_id": self.name}
        asked["detach"] = said.detach
        answer = await self.http.post(f"http://{url}/dispatch", json=asked, timeout=WITHIN)
        told = answer.json()
        if answer.status_code == 503 and told["code"] in ("THREAD_BUSY", "RATE_LIMITED"):
            return
        if answer.status_code != 200:
            raise WrongError(f"{said.text} was answered by {answer.status_code} {told}")
        if said.event_id not in (None, told["event_id"]):
            raise WrongError(f"{said.text} was event {said.event_id}, and now is {told['event_id']}")
        said.event_id, said.thread_id, said.acknowledged = told["event_id"], told["thread_id"], True
        self.told.answer(told.get("events", []))
