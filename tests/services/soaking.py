"""A crowd that comes and goes, and does in a worker what people do: for what only shows after a while. Not tests.

The worker is a process of its own (`vital.py`), everybody talks to it over real sockets.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx
from attrs import Factory, define, frozen

from dooers.client import Client
from dooers.exceptions import DisconnectedError, NotFoundError
from services.workers import WITHIN, Cluster, Node

__all__ = ["Crowd", "Served", "Vitals", "served", "slope"]

# What the log of a process may hold, beside what uvicorn says of every connection.
ORDINARY = re.compile(r"^(INFO|.*clients are believed who they say they are)")


@frozen
class Vitals:
    """How the process was at a time."""

    at: float
    resident: int
    files: int
    threads: int
    tasks: int
    stats: dict[str, int]
    objects: dict[str, int]


@define(eq=False)
class Served:
    """A worker's process."""

    node: Node

    @property
    def address(self) -> str:
        """Its host and port."""
        return self.node.url.removeprefix("ws://").removesuffix("/ws")

    async def vitals(self, *, look: bool = False) -> Vitals:
        async with httpx.AsyncClient(trust_env=False, timeout=WITHIN) as http:
            answer = await http.get(f"http://{self.address}/vitals{'?look' if look else ''}")
        assert answer.is_success, self.complaints
        return Vitals(at=time.monotonic(), **answer.json())

    async def at_rest(self, *, look: bool = False) -> Vitals:
        """How it is when everybody has gone."""
        async with asyncio.timeout(WITHIN):
            while True:
                vitals = await self.vitals(look=look)
                if not (vitals.stats["sessions"] or vitals.stats["turns_running"] or vitals.stats["turns_waiting"]):
                    return vitals
                await asyncio.sleep(0.1)

    @property
    def complaints(self) -> list[str]:
        """What the log holds that it should not."""
        return [line for line in self.node.said.splitlines() if line and not ORDINARY.match(line)]


@contextmanager
def served(home: Path, **options: Any) -> Iterator[Served]:
    """Serve the worker with these options of its config, until the block ends."""
    with Cluster(options, home, 1, app="services.vital:app").running() as cluster:
        yield Served(cluster.nodes[0])


# ---------------------------------------------------------------- the people


Deed: TypeAlias = Callable[["Person"], Awaitable[None]]


@define(eq=False)
class Person:
    """Somebody with a connection, and the thread that they are in."""

    client: Client
    chance: random.Random
    thread_id: str | None = None
    last: str | None = None
    turns: int = 0

    async def say(self, text: str) -> None:
        """Say something, and follow the answer to its end."""
        self.turns += 1
        async for frame in self.client.send(text, self.thread_id):
            self.note(frame)

    def note(self, frame: dict[str, Any]) -> None:
        payload = frame["payload"]
        self.thread_id = payload.get("thread_id", self.thread_id)
        if frame["type"] == "event.append":
            self.last = payload["events"][-1]["id"]

    async def need_thread(self) -> str:
        if self.thread_id is None:
            await self.say("steps 0")
        assert self.thread_id is not None
        return self.thread_id


async def streams(person: Person) -> None:
    await person.say("stream 15")


async def steps(person: Person) -> None:
    await person.say("steps 0")


async def says_much(person: Person) -> None:
    await person.say("big 20000")


async def stops(person: Person) -> None:
    """Stop an answer that would never end."""
    thread_id, stopped = await person.need_thread(), False
    person.turns += 1
    async for frame in person.client.send("wait 0", thread_id):
        person.note(frame)
        if frame["type"] == "event.append" and frame["payload"]["events"][-1]["actor"] == "assistant" and not stopped:
            stopped = True
            await person.client.cancel(thread_id=thread_id)


async def leaves_it_running(person: Person) -> None:
    """Say something and go away while it is answered."""
    person.turns += 1
    answer = person.client.send("stream 30", person.thread_id)
    person.note(await anext(answer))
    raise DisconnectedError("went away")


async def looks_around(person: Person) -> None:
    thread_id = await person.need_thread()
    await person.client.ask("thread.list", {})
    await person.client.ask("event.list", {"thread_id": thread_id, "limit": 20})
    await person.client.ask("thread.subscribe", {"thread_id": thread_id, "after_event_id": person.last})


async def sets_something(person: Person) -> None:
    await person.client.ask("settings.subscribe", {})
    await person.client.ask("settings.patch", {"field_id": "model", "value": f"m{person.chance.random()}"})


async def follows_analytics(person: Person) -> None:
    await person.client.ask("analytics.subscribe", {})
    await person.say("track 1")
    await person.client.ask("analytics.unsubscribe", {})


async def throws_away(person: Person) -> None:
    await person.client.ask("thread.delete", {"thread_id": await person.need_thread()})
    person.thread_id = person.last = None


# What people do, and how often.
DEEDS: Sequence[tuple[Deed, int]] = (
    (streams, 30),
    (steps, 30),
    (says_much, 5),
    (stops, 10),
    (leaves_it_running, 2),
    (looks_around, 5),
    (sets_something, 5),
    (follows_analytics, 3),
    (throws_away, 2),
)


@define(eq=False)
class Crowd:
    """`people` connections at a time, each of which comes, does something every `pause` seconds or so, and is replaced by another."""

    address: str
    people: int
    pause: float
    seed: int = 0
    stay: float = 10.0
    done: Counter[str] = Factory(Counter)
    failures: list[str] = Factory(list)

    async def during(self, seconds: float) -> None:
        """Let them come and go for so long, then wait until all have left."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self.people):
                group.create_task(self._place(number, until))

    async def _place(self, number: int, until: float) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        await asyncio.sleep(chance.random() * min(self.pause, 5))
        while time.monotonic() < until:
            try:
                await self._visit(chance, f"user-{chance.randrange(self.people)}", until)
            except DisconnectedError as error:
                if error.close_code not in (None, 1000, 1005, 1006):
                    self.failures.append(f"closed with {error.close_code}")
            except Exception as error:
                self.failures.append(repr(error))

    async def _visit(self, chance: random.Random, user_id: str, until: float) -> None:
        leave = min(until, time.monotonic() + chance.expovariate(1 / self.stay))
        client = Client(
            f"ws://{self.address}/ws", user_id=user_id, deltas=chance.random() < 0.8, within=WITHIN, retry_for=0
        )
        async with client:
            self.done["visits"] += 1
            person = Person(client, chance)
            try:
                while time.monotonic() < leave:
                    deed = chance.choices([deed for deed, _ in DEEDS], [weight for _, weight in DEEDS])[0]
                    self.done[deed.__name__] += 1
                    with suppress(NotFoundError):  # a thread that its owner has just thrown away, in another window
                        await deed(person)
                    await asyncio.sleep(chance.expovariate(1 / self.pause))
            finally:
                self.done["turns"] += person.turns
                if chance.random() < 0.3:  # no good-bye: the network is gone
                    client._line.abort()


async def watched(server: Served, crowd: Crowd, seconds: float, every: float) -> AsyncIterator[Vitals]:
    """Let a crowd be there for so long, and say every so often how the process is."""
    being = asyncio.create_task(crowd.during(seconds))
    try:
        while not being.done():
            yield await server.vitals()
            await asyncio.wait([being], timeout=every)
        await being
    finally:
        being.cancel()


def slope(samples: Sequence[Vitals], of: Callable[[Vitals], float]) -> float:
    """How much something grows in a minute: the line with the least squares through what was seen."""
    xs, ys = [(sample.at - samples[0].at) / 60 for sample in samples], [of(sample) for sample in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
