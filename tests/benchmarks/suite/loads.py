"""What people do to a server from outside, and the figures of it. Each load knows a port and nothing of who serves there."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from attrs import define

from benchmarks.suite.databases import Database
from benchmarks.suite.processes import Meter, Served
from benchmarks.suite.sockets import GoneError, Person, Socket

__all__ = ["connections", "deltas", "echoes", "fanned", "killed", "listed", "looped", "running", "stream", "turns"]

MESSAGE = "What is there to say about it? It is a question of ordinary length."
CLAIMS: dict[str, Any] = {"organization_id": "org-big", "workspace_id": "ws-1", "user_id": "user-1"}


def late(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, and what one in a hundred exceeds."""
    ordered = sorted(times)
    return {"p50": statistics.median(ordered) * 1e3, "p99": ordered[int(len(ordered) * 0.99)] * 1e3}


def per(use: dict[str, float], count: int) -> dict[str, float]:
    """Microseconds of CPU for each, of the server, of the database, and of us who ask."""
    return {name: use[name] / count * 1e6 for name in ("cpu", "db", "client")}


def metered(server: Served, database: Database) -> Meter:
    gc.collect()
    return Meter({"cpu": server.process.pid, "db": database.pid})


async def turns(server: Served, database: Database, seconds: float, people: int) -> dict[str, float]:
    """So many people, each in a thread of their own, who say the next thing when they were answered."""
    crowd = [await Person.connected(server.port, who) for who in range(people)]
    for _ in range(2):  # a title is given, statements are prepared
        await asyncio.gather(*(person.say(MESSAGE) for person in crowd))
    times: list[float] = []

    async def talk(person: Person) -> None:
        while time.perf_counter() < until:
            times.append(await person.say(MESSAGE))

    meter, until = metered(server, database), time.perf_counter() + seconds
    await asyncio.gather(*map(talk, crowd))
    use = meter.read()
    return {"rate": len(times) / use["wall"], **late(times), **per(use, len(times))}


async def echoes(server: Served, database: Database, seconds: float, people: int) -> dict[str, float]:
    """So many connections, each of which sends the next text when the last one came back."""
    times: list[float] = []

    async def talk() -> None:
        socket, came = await Socket.connected(server.port), asyncio.Event()
        socket.heard = lambda text: came.set()
        text = MESSAGE.encode() * 3
        while time.perf_counter() < until:
            said = time.perf_counter()
            came.clear()
            socket.send(text)
            await came.wait()
            times.append(time.perf_counter() - said)

    meter, until = metered(server, database), time.perf_counter() + seconds
    await asyncio.gather(*(talk() for _ in range(people)))
    use = meter.read()
    return {"rate": len(times) / use["wall"], **late(times), **per(use, len(times))}


async def stream(server: Served, database: Database, seconds: float, events: int) -> dict[str, float]:
    """One person, turns of so many texts; then a turn in the middle of which the server is killed: is there what was shown?"""
    person = await Person.connected(server.port)
    await person.say(f"stream:{events}")
    times: list[float] = []
    meter, until = metered(server, database), time.perf_counter() + seconds
    while time.perf_counter() < until:
        times.append(await person.say(f"stream:{events}"))
    use = meter.read()
    lost = await killed(server, database, person, events)
    return {"rate": events * len(times) / use["wall"], **late(times), **per(use, events * len(times)), "lost": lost}


async def killed(server: Served, database: Database, person: Person, events: int) -> float:
    """Events that were shown and are not there after SIGKILL."""
    loop = asyncio.get_running_loop()
    shown, hear = person.appended, person.socket.heard

    def until_half(text: bytes) -> None:
        hear(text)
        if person.appended == shown + events // 2:
            server.process.kill()

    person.socket.heard = until_half
    saying = loop.create_task(person.say(f"stream:{events}"))
    await server.process.wait()
    await person.socket.closed
    await asyncio.gather(saying, return_exceptions=True)
    table = "worker_events" if await database.count(_HAS[database.kind]) else "event"
    stored = await database.count(f"SELECT count(*) FROM {table}")
    return float(max(0, person.appended - stored))


_HAS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'worker_events'",
    "postgres": "SELECT count(*) FROM pg_tables WHERE tablename = 'worker_events'",
}


async def deltas(server: Served, database: Database, seconds: float, pieces: int) -> dict[str, float]:
    """One person, answers that are streamed in so many pieces."""
    person = await Person.connected(server.port, deltas=True)
    await person.say(f"deltas:{pieces}")
    count, texts = 0, person.socket.texts
    meter, until = metered(server, database), time.perf_counter() + seconds
    while time.perf_counter() < until:
        await person.say(f"deltas:{pieces}")
        count += 1
    use = meter.read()
    frames = (person.socket.texts - texts) / count
    return {"rate": pieces * count / use["wall"], "frames": frames, **per(use, pieces * count)}


@define(eq=False)
class _All:
    """When so many texts with these words have come."""

    words: tuple[bytes, ...]
    left: int
    came: asyncio.Event

    def hear(self, text: bytes) -> None:
        if all(word in text for word in self.words):
            self.left -= 1
            if self.left == 0:
                self.came.set()


async def fanned(server: Served, database: Database, seconds: float, readers: int) -> dict[str, float]:
    """One who talks in a thread that so many read: until every one of them has seen the end of the answer."""
    speaker = await Person.connected(server.port, **CLAIMS)
    await speaker.say(MESSAGE)
    everybody = []
    for _ in range(readers):
        reader = await Person.connected(server.port, **CLAIMS)
        await reader.ask("thread.subscribe", {"thread_id": speaker.thread_id}, b'"thread.snapshot"')
        everybody.append(reader.socket)
    times: list[float] = []
    before, meter = sum(one.texts for one in everybody), metered(server, database)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not times:
        ended = _All((b'"run.upsert"', b'"succeeded"'), readers, asyncio.Event())
        for one in everybody:
            one.heard = ended.hear
        await speaker.say(MESSAGE)
        await ended.came.wait()
        times.append(time.perf_counter() - speaker.said)
    use, frames = meter.read(), sum(one.texts for one in everybody) - before
    return {"rate": frames / use["wall"], **late(times), **per(use, frames)}


async def looped(server: Served, database: Database, seconds: float, readers: int) -> dict[str, float]:
    """The same number of frames a round, of the size of an event, sent to everybody by a bare loop."""
    everybody = [await Socket.connected(server.port) for _ in range(readers)]
    times: list[float] = []
    text, frames = b"x" * 900, 4
    before, meter = sum(one.texts for one in everybody), metered(server, database)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began, all_of_it = time.perf_counter(), _All((), readers * frames, asyncio.Event())
        for one in everybody:
            one.heard = all_of_it.hear
        for _ in range(frames):
            everybody[0].send(text)
        await all_of_it.came.wait()
        times.append(time.perf_counter() - began)
    use, count = meter.read(), sum(one.texts for one in everybody) - before
    return {"rate": count / use["wall"], **late(times), **per(use, count)}


async def connections(
    server: Served, database: Database, seconds: float, people: int, connect: bool
) -> dict[str, float]:
    """So many who are there and say nothing. `connect`: as somebody; else no more than a socket."""

    async def crowd(start: int, count: int) -> list[Any]:
        if connect:
            return [await Person.connected(server.port, who) for who in range(start, start + count)]
        return [await Socket.connected(server.port) for _ in range(count)]

    kept, before = await crowd(0, people // 10), server.memory()
    kept += await crowd(people, people)
    await asyncio.sleep(0.5)  # what a process has done with a moment ago it still has
    return {"size": (server.memory() - before) / people / 1024}


async def running(server: Served, database: Database, seconds: float, turns: int) -> dict[str, float]:
    """So many turns of one person, each in a thread of its own, whose handlers wait."""
    person = await Person.connected(server.port)

    async def begin(count: int) -> None:
        for _ in range(count):
            person.thread_id = None
            await person.say("wait", b'"run.upsert"', b'"running"')

    await begin(turns // 10)
    before = server.memory()
    await begin(turns)
    return {"size": (server.memory() - before) / turns / 1024}


async def listed(
    server: Served, database: Database, seconds: float, kind: str, payload: dict[str, Any]
) -> dict[str, float]:
    """One who asks for the same page again and again."""
    person = await Person.connected(server.port, **CLAIMS)
    answer = b"thread.snapshot" if kind == "thread.subscribe" else f"{kind}.result".encode()
    times: list[float] = []
    rows = 0
    meter, until = metered(server, database), time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        text = await person.ask(kind, payload, answer)
        times.append(time.perf_counter() - person.said)
        if not rows and not (rows := max(len(v) for v in json.loads(text)["payload"].values() if isinstance(v, list))):
            raise GoneError(f"{kind}: expected some rows, got none; is the database filled?")
    use = meter.read()
    return {"micros": statistics.median(times) * 1e6, **per(use, len(times))}
