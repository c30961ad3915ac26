"""Random Changes over a bad line: the Cosmos DB store ends up as the store in memory does, Change by Change."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from contract import OTHERS, SCOPE, a_run, a_thread, an_event, bury, later
from services.between import Asked, Rule, between, lose, throttle, unplug
from services.cosmos import database, running, service

from dooers.exceptions import NotFoundError
from dooers.models import Change, EventQuery, Run, RunQuery, ThreadEvent, ThreadQuery
from dooers.stores import Store
from dooers.stores.memory import MemoryStore

THREADS = ("t1", "t2", "t3")
STEPS = 40


def bad_line(chance: random.Random) -> Rule:
    """One transaction in eight goes wrong, and one other request in sixty."""

    async def rule(asked: Asked) -> web.Response | None:
        fate = chance.random() if asked.batch else chance.random() * 8
        for limit, way in ((0.05, lose), (0.10, unplug), (0.13, throttle)):
            if fate < limit:
                return await way(asked)
        return await asked.go_on()

    return rule


class Author:
    """Thinks of Changes; knows what the threads are by the store in memory."""

    def __init__(self, chance: random.Random, memory: MemoryStore) -> None:
        self.chance, self.memory, self.now = chance, memory, 0
        self.events: list[ThreadEvent] = []
        self.runs: list[Run] = []

    async def changes(self) -> list[Change]:
        """A few of one thread, so that their order is one."""
        thread_id = self.chance.choice(THREADS)
        return [await self.change(thread_id) for _ in range(self.chance.choice((1, 1, 2, 5)))]

    async def change(self, thread_id: str) -> Change:
        self.now += 1
        maybe = self.chance.random
        new = a_thread(thread_id, at=later(self.now))
        thread = await self.memory.thread(thread_id) if maybe() < 0.9 else None
        more: dict[str, Any] = {"exact": maybe() < 0.8}
        if maybe() < 0.3:
            more["guard"] = self.chance.choice((SCOPE, SCOPE, OTHERS["user"], OTHERS["nobody"]))
        if maybe() < 0.08:
            return Change(thread=thread or new, removes=True, **more)
        more["opens"] = maybe() < 0.4
        thread = new if thread is None or more["opens"] else thread
        count = 120 if maybe() < 0.02 else self.chance.choice((0, 1, 1, 1, 2, 3))
        events = [an_event(thread, f"e{self.now}-{n}", at=later(self.now + n / 1000)) for n in range(count)]
        process_id = self.chance.choice(("p", "q", None))
        runs = [a_run(thread, at=later(self.now), process_id=process_id)] if maybe() < 0.3 else []
        old = [run for run in self.runs if run.thread_id == thread_id]
        if old and maybe() < 0.5:
            runs.append(evolve(self.chance.choice(old), status="succeeded", ended_at=later(self.now)))
        there = [event for event in self.events if event.thread_id == thread_id]
        self.events += events[:1]
        self.runs += runs[:1]
        if events and there and maybe() < 0.05:
            events.append(self.chance.choice(there))  # a Change that spoils its transaction
        return Change(
            thread=thread,
            events=tuple(events),
            runs=tuple(runs),
            patch={"title": f"T{self.now}"} if maybe() < 0.2 else {},
            repeat_key=self.chance.choice(("a", "b", "c", None, None, None)),
            **more,
        )


async def contents(store: Store) -> list[Any]:
    return [
        [await store.thread(one) for one in THREADS],
        [await store.events(EventQuery(thread_id=one)) for one in THREADS],
        [await store.snapshot(one) for one in THREADS],
        await store.runs(RunQuery(limit=1000)),
        await store.threads(ThreadQuery()),
    ]


def told(result: Change | BaseException) -> Any:
    """What two stores must agree on; the thread itself may have moved on already where a store is far away."""
    if isinstance(result, Change):
        return result.thread.id, result.events, result.created, result.repeated
    return isinstance(result, NotFoundError)


@pytest.mark.parametrize("seed", [1, 2])
async def test_over_a_bad_line_it_ends_up_as_the_store_in_memory(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cosmos_keys", "cosmos_writer"):
        monkeypatch.setattr(f"dooers.stores.{module}.LEASE", 0.1)
    chance, memory = random.Random(seed), MemoryStore()
    author = Author(chance, memory)
    await memory.open()
    with service() as cosmos:
        async with (
            database(cosmos) as config,
            between(cosmos.url) as line,
            running(config, database_host=line.url) as store,
            running(config) as near,
        ):
            line.rule = bad_line(chance)
            for step in range(STEPS):
                changes = await author.changes()
                wanted, got = [
                    await asyncio.gather(*(one.apply(change) for change in changes), return_exceptions=True)
                    for one in (memory, store)
                ]
                for change, want, have in zip(changes, wanted, got, strict=True):
                    assert told(have) == told(want), (step, change)
                if author.events and chance.random() < 0.2:
                    event = chance.choice(author.events)
                    await memory.remove_event(event.id)
                    await store.remove_event(event.id)
                if chance.random() < 0.3:
                    process_id, at = chance.choice("pq"), later(author.now)
                    await memory.beat(process_id, at)
                    await store.beat(process_id, at)
                if chance.random() < 0.3:
                    when = later(author.now - 4), later(author.now), f"lost at {author.now}"
                    dead, buried = await bury(memory, *when), await bury(store, *when)
                    assert {run.id for run in buried} == {run.id for run in dead}, step
                assert await contents(near) == await contents(memory), step
