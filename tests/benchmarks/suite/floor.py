"""What the stages of a turn cannot do without: each by itself, with nothing in it, for as many people at once. Not the worker.

Microseconds of CPU a turn: of the main thread, and where there are others, of those.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

from attrs import Factory, define

from benchmarks.suite.inside import timed
from benchmarks.suite.limit_stores import Keeper, Row, keeper_of

__all__ = ["frames", "keeping", "skeleton", "used"]

# What a turn stores and tells after its message: the start of a run, a text and the end.
STEPS = 3


async def used(turn: Callable[[int], Awaitable[Any]], people: int, seconds: float) -> tuple[float, float]:
    """Microseconds of a turn, of this thread and of the others, while so many have one after the other."""
    found = await timed(turn, people, seconds)
    return found["main"], max(0.0, found["cpu"] - found["main"])


@define(eq=False)
class _Store:
    """Has stored everything that was given to it when the loop comes round."""

    waiting: list[asyncio.Future[None]] = Factory(list)

    def apply(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self.write)
        self.waiting.append(future := loop.create_future())
        return future

    def write(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            future.set_result(None)


async def skeleton(people: int, seconds: float) -> float:
    """The way of a message: a future for it, a task for its turn, a generator that is driven, a future and a callback for each step."""
    store = _Store()

    async def handler() -> AsyncIterator[int]:
        for number in range(STEPS):
            yield number

    async def answer(over: asyncio.Future[None]) -> None:
        left, moved = STEPS, asyncio.Event()

        def stored(_: object) -> None:
            nonlocal left
            left -= 1
            moved.set()

        async for _ in handler():
            store.apply().add_done_callback(stored)
        while left:
            moved.clear()
            await moved.wait()
        over.set_result(None)

    async def turn(_: int) -> None:
        loop = asyncio.get_running_loop()
        over, came = loop.create_future(), loop.create_future()
        running = set[asyncio.Task[None]]()

        def accept(_: object) -> None:
            running.add(asyncio.create_task(answer(over)))
            came.set_result(None)

        store.apply().add_done_callback(accept)
        await came
        await over

    return (await used(turn, people, seconds))[0]


async def frames(people: int, seconds: float) -> float:
    """A queue for each and a task that empties it, woken twice a turn: for the message and its receipt, and for the answer."""
    sent = 0

    async def send(message: Mapping[str, str]) -> None:
        nonlocal sent
        sent += 1

    class Outbox:
        def __init__(self) -> None:
            self.texts, self.asleep = deque[str](), asyncio.Event()
            self.task = asyncio.create_task(self.write())

        def put(self, count: int) -> None:
            self.texts.extend([""] * count)
            self.asleep.set()

        async def write(self) -> None:
            while True:
                while self.texts:
                    await send({"type": "websocket.send", "text": self.texts.popleft()})
                self.asleep.clear()
                await self.asleep.wait()

    outboxes = [Outbox() for _ in range(people)]

    async def turn(person: int) -> None:
        for count in (2, STEPS):
            outboxes[person].put(count)
            await asyncio.sleep(0)

    main, _ = await used(turn, people, seconds)
    for outbox in outboxes:
        outbox.task.cancel()
    return main


async def keeping(options: Mapping[str, Any], people: int, seconds: float) -> tuple[float, float]:
    """Its rows, by the ceiling's own store: each of them durable before the next is written."""
    keeper: Keeper = keeper_of(options)
    await keeper.open()

    async def turn(person: int) -> None:
        thread, run, at = f"thread-{person}", uuid4().hex, "2026-01-01T00:00:00.000000+00:00"

        def event(actor: str) -> Row:
            return "event", (uuid4().hex, thread, run, actor, '[{"type":"text","text":"What there is to say."}]', at)

        for row in (
            event("user"),
            ("run", (run, thread, "running", at)),
            event("assistant"),
            ("run", (run, thread, "succeeded", at)),
        ):
            await keeper.write([row])

    try:
        return await used(turn, people, seconds)
    finally:
        await keeper.close()
