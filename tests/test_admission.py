"""A message that comes again: answered once, and if its turn left no trace, because its process died, then now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import evolve
from dependency_injector import providers

from dooers import Identity, WorkerConfig, WorkerServer
from dooers.access import scope_of
from dooers.brokers.memory import Hub, MemoryBroker
from dooers.models import TextPart
from dooers.stores.memory import MemoryStore
from dooers.testing import WorkerClient
from dooers.turn import opening, repeat_key

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
FRAME = {"client_event_id": "k", "event": {"content": [{"type": "text", "text": "hi"}]}}


class Bot:
    """A worker that counts how often its handler is run."""

    def __init__(self, config: WorkerConfig) -> None:
        self.worker = WorkerServer(config)
        self.ran = 0
        self.go = asyncio.Event()
        self.go.set()
        self.worker.handler(self.answer)

    async def answer(self, incoming: Any, send: Any) -> AsyncIterator[Any]:
        self.ran += 1
        await self.go.wait()
        if str(incoming.message) != "silent":
            yield send.text(f"re: {incoming.message}")

    async def leave_unanswered(self, door: Any, text: str = "hi") -> str:
        """What a process leaves that died in the moment in which it had stored a message; the message's id."""
        identity = Identity(**WHO)
        change = opening(
            identity,
            scope_of(identity, "worker", private=False),
            [TextPart(text)],
            self.worker._parts.clock(),
            thread_id="t",
            create=True,
            client_event_id="k",
            repeat_key=repeat_key(door, "worker", identity, "k"),
        )
        return (await self.worker._parts.store().apply(change)).events[0].id

    async def again(self, text: str = "hi") -> Any:
        return await self.worker.dispatch(**WHO, message=text, idempotency_key="k", thread_id="t")


@pytest.fixture
def bot(worker_config: WorkerConfig) -> Bot:
    return Bot(worker_config)


async def test_a_message_whose_process_died_before_its_turn_is_answered_when_it_is_sent_again(bot: Bot) -> None:
    async with bot.worker.lifespan():
        event_id = await bot.leave_unanswered("client")
        async with WorkerClient(bot.worker) as client:
            assert (await client.ask("event.create", FRAME))["payload"]["ok"]
            seen = [(await client.expect("event.append"))["payload"]["events"][0] for _ in range(2)]
            assert [(event["id"] == event_id, event["actor"], event["seq"]) for event in seen] == [
                (True, "user", 1),
                (False, "assistant", 2),
            ]
            assert (await client.ask("event.create", FRAME))["payload"]["ok"]
    assert bot.ran == 1


async def test_a_dispatch_that_was_stored_and_never_run_is_run_when_it_comes_again(bot: Bot) -> None:
    async with bot.worker.lifespan():
        event_id = await bot.leave_unanswered("dispatch")
        stream = await bot.again()
        assert (stream.is_repeat, stream.event_id, stream.status) == (False, event_id, "waiting")
        assert [event.data["text"] for event in await stream.collect()] == ["re: hi"]
        stream = await bot.again()
        assert (stream.is_repeat, stream.status) == (True, "succeeded")
        assert [event.data["text"] for event in await stream.collect()] == ["re: hi"]
    assert bot.ran == 1


async def test_any_number_of_repeats_at_once_are_one_turn(bot: Bot) -> None:
    async with bot.worker.lifespan():
        await bot.leave_unanswered("dispatch")
        streams = await asyncio.gather(*(bot.again() for _ in range(10)))
        assert sum(not stream.is_repeat for stream in streams) == 1
        await asyncio.gather(*(stream.collect() for stream in streams))
    assert bot.ran == 1


async def test_a_repeat_of_what_is_being_answered_says_so_and_runs_nothing(bot: Bot) -> None:
    bot.go.clear()
    async with bot.worker.lifespan():
        first = await bot.again()
        first.detach()
        while not bot.ran:
            await asyncio.sleep(0)
        repeat = await bot.again()
        assert (repeat.is_repeat, repeat.status) == (True, "running")
        bot.go.set()
        await first.collect()
    assert bot.ran == 1


async def test_a_turn_that_shows_nothing_is_not_run_again(bot: Bot) -> None:
    async with bot.worker.lifespan():
        await (await bot.again("silent")).collect()
        stream = await bot.again("silent")
        assert (stream.is_repeat, stream.status) == (True, "succeeded")
        assert await stream.collect() == []
    assert bot.ran == 1


async def test_a_message_that_is_deleted_while_it_comes_again_is_not_answered(bot: Bot) -> None:
    async with bot.worker.lifespan():
        event_id = await bot.leave_unanswered("dispatch")
        store: Any = bot.worker._parts.store()
        read = store.run

        async def deleted_meanwhile(run_id: str) -> Any:
            await store.remove_event(event_id)
            return await read(run_id)

        store.run = deleted_meanwhile
        stream = await bot.again()
        assert (stream.is_repeat, stream.status) == (True, "canceled")
    assert bot.ran == 0


@pytest.mark.parametrize("order", ["queue", "reject", "replace", "parallel"])
async def test_whatever_the_order_a_repeat_without_a_trace_is_answered(worker_config: WorkerConfig, order: Any) -> None:
    bot = Bot(evolve(worker_config, turn_order=order))
    async with bot.worker.lifespan():
        await bot.leave_unanswered("dispatch")
        assert [event.data["text"] for event in await (await bot.again()).collect()] == ["re: hi"]
    assert bot.ran == 1


async def test_the_status_of_a_repeat_is_how_the_first_one_ended(bot: Bot) -> None:
    async def fails() -> str:
        raise ValueError("no")

    async with bot.worker.lifespan():
        first = await bot.worker.dispatch(fails, **WHO, message="hi", idempotency_key="k", thread_id="t")
        first.detach()
        await bot.worker._parts.runner().ended(first._opened)
        assert (await bot.again()).status == "failed"
    assert bot.ran == 0


# ---------------------------------------------------------------- two processes


class Two:
    """Two workers on one store and one broker, as two processes would be."""

    def __init__(self) -> None:
        hub, store = Hub(), MemoryStore()
        self.bots = [Bot(WorkerConfig(database_type="memory")) for _ in range(2)]
        for bot in self.bots:
            bot.worker._parts.broker.override(providers.Object(MemoryBroker(hub=hub)))
            bot.worker._parts.store.override(providers.Object(store))


async def test_what_another_process_is_answering_is_not_answered_here_as_well() -> None:
    two = Two()
    one, other = two.bots
    one.go.clear()
    async with one.worker.lifespan(), other.worker.lifespan():
        first = await one.again()
        first.detach()
        while not one.ran:
            await asyncio.sleep(0)
        repeat = await other.again()  # no trace of it yet, so this one waits for the thread
        assert repeat.status == "waiting"
        answering = asyncio.ensure_future(repeat.collect())
        await asyncio.sleep(0.05)
        one.go.set()
        await first.collect()
        await answering
        assert (repeat.is_repeat, repeat.status) == (True, "succeeded")
    assert (one.ran, other.ran) == (1, 0)


async def test_what_waits_in_another_process_is_answered_by_one_of_them() -> None:
    two = Two()
    one, other = two.bots
    one.go.clear()
    async with one.worker.lifespan(), other.worker.lifespan():
        blocker = await one.worker.dispatch(**WHO, message="first", thread_id="t")
        blocker.detach()
        queued = await one.again()
        queued.detach()
        await asyncio.sleep(0.2)
        repeat = await other.again()
        repeat.detach()
        await asyncio.sleep(0.05)
        one.go.set()
        for stream in (blocker, queued, repeat):
            await stream.collect()
        events = await (await one.worker.repository()).list_events({"thread_id": "t"}, {"direction": "asc"})
    assert sorted(event.text for event in events if event.actor == "assistant") == ["re: first", "re: hi"]
    assert one.ran + other.ran == 2
