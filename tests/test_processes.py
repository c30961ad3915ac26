"""Several processes of one worker: two workers on one SQLite file whose brokers meet. Clients of either must not see a difference."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from dependency_injector import providers
from receiver import a_receiver

from dooers import AnalyticsEvent, WorkerConfig, WorkerServer
from dooers.brokers.memory import Hub, MemoryBroker
from dooers.catchup import RUNS
from dooers.codec import dumps
from dooers.exceptions import StoreError
from dooers.models import Change, Identity, RunQuery
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema
from dooers.stores.sqlite import SqliteStore
from dooers.testing import Closed, WorkerClient

Frame = dict[str, Any]
WITHIN = 30.0
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
SCHEMA = SettingsSchema(fields=[SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small")])


@define
class Pair:
    """Two processes, and what their handlers wait for."""

    one: WorkerServer
    two: WorkerServer
    hub: Hub

    def broker(self, worker: WorkerServer) -> MemoryBroker:
        broker = worker._parts.broker()
        assert isinstance(broker, MemoryBroker)
        return broker

    @asynccontextmanager
    async def clients(self, **claims: Any) -> AsyncIterator[tuple[WorkerClient, WorkerClient]]:
        """A client of each."""
        async with client(self.one, **claims) as one, client(self.two, **claims) as two:
            yield one, two


def client(worker: WorkerServer, *, deltas: bool = False, **claims: Any) -> WorkerClient:
    connect = {"worker_id": "worker", **WHO, **claims}
    if deltas:
        connect["client"] = {"capabilities": ["deltas"]}
    return WorkerClient(worker, connect=connect)


@asynccontextmanager
async def pair(config: WorkerConfig, handler: Callable[..., Any], **changes: Any) -> AsyncIterator[Pair]:
    hub = Hub()
    config = evolve(config, **{"teardown_timeout": 0.1, "shutdown_grace": 0, "settings_schema": SCHEMA, **changes})
    workers = [WorkerServer(config) for _ in range(2)]
    for worker in workers:
        worker.handler(handler)
        worker._parts.broker.override(providers.Object(MemoryBroker(hub=hub)))
    async with workers[0].lifespan(), workers[1].lifespan():
        yield Pair(workers[0], workers[1], hub)


async def echo(incoming: Any, send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text(f"re: {incoming.message}")


class Gate:
    """A handler that goes on when it is let, and knows who is inside."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.log: list[str] = []
        self.inside: set[str] = set()

    async def handler(self, incoming: Any, send: Any) -> AsyncIterator[Any]:
        said = incoming.message
        self.inside.add(said)
        try:
            yield send.run_start()
            self.reached.set()
            await self.go.wait()
            yield send.text(f"re: {said}")
            self.log.append(f"done {said}")
        except asyncio.CancelledError:
            self.log.append(f"stopped {said}")
            raise
        finally:
            self.inside.discard(said)


class Model:
    """A model that says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[str | None] = asyncio.Queue()

    async def handler(self, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.stream(self._pieces())

    async def _pieces(self) -> AsyncIterator[str]:
        while (piece := await self.said.get()) is not None:
            yield piece

    def say(self, *pieces: str | None) -> None:
        for piece in pieces:
            self.said.put_nowait(piece)


async def post(asking: WorkerClient, text: str, thread_id: str | None = None, **more: Any) -> str:
    """Post a message; the thread it is in."""
    payload: Frame = {
        "event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]},
        **more,
    }
    if thread_id is not None:
        payload["thread_id"] = thread_id
    answer = await asking.ask("event.create", payload)
    assert answer["payload"]["ok"], answer
    if thread_id is not None:
        return thread_id
    return str(next(event["thread_id"] for event in events(asking.unread) if text_of(event) == text))


async def watch(asking: WorkerClient, thread_id: str, **more: Any) -> Frame:
    """Subscribe; the snapshot."""
    return dict((await asking.ask("thread.subscribe", {"thread_id": thread_id, **more}))["payload"])


async def until(reading: WorkerClient, wanted: Callable[[Frame], Any]) -> list[Frame]:
    """The frames up to one that is wanted."""
    frames = [await reading.receive()]
    while not wanted(frames[-1]):
        frames.append(await reading.receive())
    return frames


def is_over(frame: Frame) -> bool:
    return bool(frame["type"] == "run.upsert" and frame["payload"]["run"]["status"] != "running")


def says(text: str) -> Callable[[Frame], bool]:
    return lambda frame: text in texts([frame])


def events(frames: list[Frame]) -> list[Frame]:
    return [event for frame in frames if frame["type"] == "event.append" for event in frame["payload"]["events"]]


def text_of(event: Frame) -> str:
    return "".join(part["text"] for part in event["content"])


def texts(frames: list[Frame]) -> list[str]:
    return [text_of(event) for event in events(frames)]


def statuses(frames: list[Frame]) -> list[str]:
    return [frame["payload"]["run"]["status"] for frame in frames if frame["type"] == "run.upsert"]


def types(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames]


async def quiet(reading: WorkerClient) -> list[Frame]:
    """Everything that has come by the time that what was told is heard, and answered."""
    for _ in range(5):
        await asyncio.sleep(0)
    await reading.ask("ping")
    frames, reading.unread = reading.unread, []
    return frames


async def settle(*workers: WorkerServer) -> None:
    """Return when nobody runs anything or reads anything up."""
    async with asyncio.timeout(WITHIN):
        while any(worker._parts.runner().running or worker._parts.relay()._catchup._tasks for worker in workers):
            await asyncio.sleep(0.002)
        for _ in range(5):
            await asyncio.sleep(0)


# ---------------------------------------------------------------- what is seen


async def test_a_turn_is_seen_live_and_alike_through_either_process(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "hello")
        new = await two.expect("thread.upsert")
        assert new["payload"]["thread"]["id"] == thread_id
        await until(one, is_over)
        snapshot = await watch(two, thread_id)
        assert [event["seq"] for event in snapshot["events"]] == [1, 2]
        for asking in (one, two, one):
            await post(asking, "again", thread_id)
            seen = [await until(reading, is_over) for reading in (one, two)]
            for frames in seen:
                assert [kind for kind in types(frames) if kind != "ack"] == [
                    "event.append",
                    "run.upsert",
                    "event.append",
                    "run.upsert",
                ]
                assert texts(frames) == ["again", "re: again"]
                assert statuses(frames) == ["running", "succeeded"]
            assert events(seen[0]) == events(seen[1])


async def test_pieces_of_a_message_reach_the_people_of_the_other_process(worker_config: WorkerConfig) -> None:
    model = Model()
    async with pair(worker_config, model.handler) as workers:
        async with client(workers.one) as asking, client(workers.two, deltas=True) as reading:
            thread_id = await post(asking, "go")
            await watch(reading, thread_id)
            pieces = ["Hel", "lo ", "🎈", "wörld", "!" * 300]
            got = ""
            for piece in pieces:
                model.say(piece)
                while not got.endswith(piece):
                    got += (await reading.expect("event.delta"))["payload"]["text"]
            model.say(None)
            (whole,) = events(await until(reading, lambda frame: frame["type"] == "event.append"))
            assert whole["content"][0]["text"] == got == "".join(pieces)
            assert "streaming" not in whole or not whole["streaming"]


async def test_a_message_grows_for_clients_that_know_no_pieces(worker_config: WorkerConfig) -> None:
    model = Model()
    agents = {"agent_id": "worker", "organization_id": "org-1", "workspace_id": "ws-1", "user": {"user_id": "user-1"}}
    async with pair(worker_config, model.handler) as workers:
        async with client(workers.one) as asking, WorkerClient(workers.two, connect=agents) as reading:
            thread_id = await post(asking, "go")
            await watch(reading, thread_id)
            model.say("Hel")
            (first,) = events([await reading.expect("event.append")])
            assert (first["streaming"], first["content"][0]["text"]) == (True, "Hel")
            model.say("lo", None)
            frames = await until(reading, is_over)
            assert {event["id"] for event in events(frames)} == {first["id"]}
            assert (texts(frames)[-1], events(frames)[-1]["finalized"]) == ("Hello", True)


async def test_a_snapshot_has_what_the_other_process_is_writing_and_the_rest_follows(
    worker_config: WorkerConfig,
) -> None:
    model = Model()
    async with pair(worker_config, model.handler) as workers:
        async with client(workers.one, deltas=True) as asking, client(workers.two, deltas=True) as reading:
            thread_id = await post(asking, "go")  # nobody of the other process follows this thread yet
            model.say("Once ", "upon ")
            got = ""
            while got != "Once upon ":
                got += (await asking.expect("event.delta"))["payload"]["text"]
            relay = workers.two._parts.relay()
            async with asyncio.timeout(WITHIN):  # what it has heard, it tells within DELTA_EVERY
                while "".join(event.text for event in relay.growing(thread_id)) != "Once upon ":
                    await asyncio.sleep(0.002)
            growing = (await watch(reading, thread_id))["events"][-1]
            assert (growing["streaming"], growing["content"][0]["text"]) == (True, "Once upon ")
            model.say("a time", None)
            frames = await until(reading, is_over)
            rest = "".join(frame["payload"]["text"] for frame in frames if frame["type"] == "event.delta")
            assert (rest, texts(frames)) == ("a time", ["Once upon a time"])
            await settle(workers.one, workers.two)
            assert relay._elsewhere._growing == {}


async def test_a_message_whose_process_died_without_a_run_does_not_grow_for_ever(
    worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()

    async def no_run(send: Any) -> AsyncIterator[Any]:
        yield send.stream(model._pieces())

    async with pair(worker_config, no_run) as workers:
        async with client(workers.one) as one, client(workers.two, deltas=True) as two:
            thread_id = await post(one, "go")
            await watch(two, thread_id)
            model.say("half of")
            await until(two, lambda frame: frame["type"] == "event.delta")
            workers.broker(workers.one).cut()  # nobody hears of it any more
            assert "half of" in [text_of(event) for event in (await watch(two, thread_id))["events"]]
            monkeypatch.setattr("dooers.elsewhere.SILENT", 0.0)
            assert [text_of(event) for event in (await watch(two, thread_id))["events"]] == ["go"]
            assert not workers.two._parts.relay()._elsewhere._growing


async def test_threads_are_renamed_and_deleted_for_everybody(worker_config: WorkerConfig) -> None:
    async def rename(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.update_thread(title=incoming.message)

    async with pair(worker_config, rename) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "A title")
        titles = [(await two.expect("thread.upsert"))["payload"]["thread"].get("title") for _ in range(2)]
        assert titles == [None, "A title"]
        assert (await two.ask("thread.update", {"thread_id": thread_id, "title": "Another"}))["payload"]["ok"]
        while (await one.expect("thread.upsert"))["payload"]["thread"].get("title") != "Another":
            pass
        assert (await two.ask("thread.delete", {"thread_id": thread_id}))["payload"]["ok"]
        assert (await one.expect("thread.deleted"))["payload"]["thread_id"] == thread_id
        assert workers.one._parts.broadcast().watched() == []


async def test_a_thread_deleted_here_stops_its_turn_there(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "go")
        await gate.reached.wait()
        assert (await two.ask("thread.delete", {"thread_id": thread_id}))["payload"]["ok"]
        await settle(workers.one)
        assert gate.log == ["stopped go"]
        assert await workers.two._parts.store().thread(thread_id) is None


async def test_settings_set_here_are_patched_there_once(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        for reading in (one, two):
            await reading.ask("settings.subscribe", {"worker_id": "worker"})
            await quiet(reading)
        await one.ask("settings.patch", {"field_id": "model", "value": "large"})
        for reading in (one, two):
            patches = [frame for frame in await quiet(reading) if frame["type"] == "settings.patch"]
            assert [patch["payload"]["value"] for patch in patches] == ["large"]


async def test_a_setting_that_is_too_large_to_tell_is_read_by_the_others(worker_config: WorkerConfig) -> None:
    fields = [
        SettingsField(id="prompt", type=SettingsFieldType.TEXT, label="Prompt"),
        SettingsField(id="key", type=SettingsFieldType.PASSWORD, label="Key"),
    ]
    async with pair(worker_config, echo, settings_schema=SettingsSchema(fields=fields)) as workers:
        for worker in (workers.one, workers.two):
            workers.broker(worker).limit = 4_000
        async with workers.clients() as (one, two):
            await two.ask("settings.subscribe", {"worker_id": "worker"})
            told = list[str]()
            broker = workers.broker(workers.two)
            heard, broker._heard = broker._heard, told.append
            assert heard is not None
            for field_id, value, shown in (("prompt", "p" * 9_000, "p" * 9_000), ("key", "SECRET" * 2_000, None)):
                answer = await one.ask("settings.patch", {"field_id": field_id, "value": value})
                assert answer["payload"]["ok"]
                await asyncio.sleep(0)
                assert told
                for text in told:
                    assert len(text) <= 4_000
                    assert "SECRET" not in text
                    heard(text)
                told.clear()
                patch = (await two.expect("settings.patch"))["payload"]
                assert patch["field_id"] == field_id
                assert patch["value"] == shown if shown else "SECRET" not in patch["value"]
            await settle(workers.one, workers.two)
            assert "settings.patch" not in types(await quiet(two))


async def test_live_analytics_come_once_to_subscribers_of_either_process(worker_config: WorkerConfig) -> None:
    async def answer(analytics: Any, send: Any) -> AsyncIterator[Any]:
        await analytics.track("my.event", data={"n": 1})
        yield send.run_start()
        yield send.text("hi")

    async with pair(worker_config, answer) as workers, workers.clients() as (one, two):
        for reading in (one, two):
            assert (await reading.ask("analytics.subscribe", {"worker_id": "worker"}))["payload"]["ok"]
        thread_id = await post(one, "go")
        await post(two, "go", thread_id)
        await settle(workers.one, workers.two)
        for reading in (one, two):
            told = [f["payload"]["event"] for f in await quiet(reading) if f["type"] == "analytics.event"]
            assert sorted(told) == sorted(
                [AnalyticsEvent.THREAD_CREATED.value]
                + 2 * [AnalyticsEvent.MESSAGE_C2S.value, AnalyticsEvent.MESSAGE_S2C.value, "my.event"]
            )


async def test_the_webhook_gets_each_event_from_the_process_that_made_it(worker_config: WorkerConfig) -> None:
    async with a_receiver() as receiver:
        async with pair(worker_config, echo, analytics_webhook_url=receiver.url) as workers:
            async with client(workers.one) as one:
                await post(one, "go")
                await settle(workers.one, workers.two)
                assert [worker._parts.collector().waiting for worker in (workers.one, workers.two)] == [3, 0]
        assert [request.names for request in receiver.requests] == [["thread.created", "message.c2s", "message.s2c"]]


async def test_private_threads_stay_private_across_processes(worker_config: WorkerConfig) -> None:
    model = Model()
    async with pair(worker_config, model.handler, private_threads=True) as workers:
        async with (
            client(workers.one) as ann,
            client(workers.two, deltas=True) as herself,
            client(workers.two, deltas=True, user_id="user-2") as bob,
        ):
            for reading in (herself, bob):
                await reading.ask("analytics.subscribe", {"worker_id": "worker"})
            thread_id = await post(ann, "secret")
            refused = await bob.ask("thread.subscribe", {"thread_id": thread_id})
            assert refused["payload"]["error"]["code"] == "NOT_FOUND"
            await watch(herself, thread_id)
            model.say("whisper", None)
            await until(herself, is_over)
            await ann.ask("thread.delete", {"thread_id": thread_id})
            await until(herself, lambda frame: frame["type"] == "thread.deleted")
            assert set(types(await quiet(bob))) <= {"ack"}


async def test_a_hook_that_asks_for_metadata_is_asked_with_them_also_of_what_is_too_large_to_tell(
    worker_config: WorkerConfig,
) -> None:
    def cleared(identity: Identity, operation: str, thread: Any) -> bool:
        secret = thread is not None and (thread.metadata or {}).get("secret", False)
        return not secret or identity.user_id == "user-1"

    async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text(incoming.message)

    async with pair(worker_config, answer) as workers:
        for worker in (workers.one, workers.two):
            worker.authorize(cleared)
            workers.broker(worker).limit = 4_000
        async with (
            client(workers.one) as ann,
            client(workers.two) as herself,
            client(workers.two, user_id="user-2") as bob,
        ):
            thread_id = await post(ann, "go")
            repository = await workers.one.repository()
            await settle(workers.one, workers.two)
            for size in (10, 10_000):  # by themselves they can be told, or cannot
                await repository.update_thread(thread_id, metadata={"secret": True, "note": "x" * size})
                await settle(workers.one, workers.two)
                for reading in (herself, bob):
                    await reading.ask("analytics.subscribe", {"worker_id": "worker"})
                    await quiet(reading)
                await post(ann, "x" * 5_000, thread_id)
                await settle(workers.one, workers.two)
                assert set(types(await quiet(bob))) <= {"ack"}
                assert types(await quiet(herself)).count("analytics.event") == 2


async def test_a_thread_that_is_hidden_while_a_message_is_written_shows_no_more_of_it(
    worker_config: WorkerConfig,
) -> None:
    def cleared(identity: Identity, operation: str, thread: Any) -> bool:
        return thread is None or thread.metadata is None or identity.user_id == "user-1"

    model = Model()
    async with pair(worker_config, model.handler) as workers:
        for worker in (workers.one, workers.two):
            worker.authorize(cleared)
        async with (
            client(workers.one) as ann,
            client(workers.two, deltas=True) as herself,
            client(workers.two, deltas=True, user_id="user-2") as bob,
            client(workers.one, deltas=True, user_id="user-3") as eve,
        ):
            thread_id = await post(ann, "go")
            for reading in (herself, bob, eve):
                await watch(reading, thread_id)
            model.say("harmless")
            for reading in (herself, bob, eve):
                await until(reading, lambda frame: frame["type"] == "event.delta")
            await (await workers.one.repository()).update_thread(thread_id, metadata={"secret": True})
            for reading in (herself, bob, eve):
                await quiet(reading)
            model.say("secret", None)
            await until(herself, is_over)
            for reading in (bob, eve):
                assert set(types(await quiet(reading))) <= {"ack"}


# ---------------------------------------------------------------- stopping, and the order of turns


@pytest.mark.parametrize("way", ["run", "thread", "worker", "worker-run"])
async def test_a_turn_is_stopped_through_the_other_process(worker_config: WorkerConfig, way: str) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "go")
        await gate.reached.wait()
        run = (await one.expect("run.upsert"))["payload"]["run"]
        (snapshot_run,) = (await watch(two, thread_id))["runs"]
        assert snapshot_run["id"] == run["id"]
        if way == "worker":
            await workers.two.cancel(thread_id=thread_id)
        elif way == "worker-run":
            await workers.two.cancel(run_id=run["id"])
        else:
            named = {"run_id": run["id"]} if way == "run" else {"thread_id": thread_id}
            assert (await two.ask("run.cancel", named))["payload"]["ok"]
        for reading in (one, two):
            assert statuses(await until(reading, is_over)) == ["canceled"]
        assert gate.log == ["stopped go"]


async def test_a_newer_message_replaces_the_turn_of_the_other_process(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler, turn_order="replace") as workers, workers.clients() as (one, two):
        thread_id = await post(one, "old")
        await gate.reached.wait()
        await post(two, "new", thread_id)
        await until(one, is_over)
        gate.go.set()
        await until(two, says("re: new"))
        await settle(workers.one, workers.two)
        assert gate.log == ["stopped old", "done new"]


async def test_turns_of_one_thread_never_overlap_whoever_gets_the_messages(worker_config: WorkerConfig) -> None:
    inside, most, answered = 0, 0, list[str]()

    async def alone(incoming: Any, send: Any) -> AsyncIterator[Any]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        yield send.run_start()
        await asyncio.sleep(0.002)
        answered.append(incoming.message)
        yield send.text(f"re: {incoming.message}")
        await asyncio.sleep(0.002)
        inside -= 1

    async with pair(worker_config, alone) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "m0")
        await watch(two, thread_id)
        await asyncio.gather(
            *(post_unasked(workers.one if n % 2 else workers.two, f"m{n}", thread_id) for n in range(1, 21))
        )
        await settle(workers.one, workers.two)
        assert most == 1
        assert sorted(answered) == sorted(f"m{n}" for n in range(21))
        assert [event["seq"] for event in events(await quiet(one))] == list(range(1, 43))
        last = [event["seq"] for event in events(await quiet(two))]
        assert last == list(range(43 - len(last), 43))
        # Those of one process keep their order.
        for parity in (0, 1):
            mine = [int(text[1:]) for text in answered if int(text[1:]) % 2 == parity]
            assert mine == sorted(mine)


async def post_unasked(worker: WorkerServer, text: str, thread_id: str) -> None:
    """A message that nobody waits for."""
    (await worker.dispatch(**WHO, message=text, thread_id=thread_id)).detach()


async def test_a_turn_that_waits_for_the_other_process_can_be_stopped(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler) as workers:
        first = await workers.one.dispatch(**WHO, message="first", thread_id="t")
        first.detach()
        await gate.reached.wait()
        second = await workers.two.dispatch(**WHO, message="second", thread_id="t")
        second.detach()
        third = await workers.two.dispatch(**WHO, message="third", thread_id="t")
        third.detach()
        await asyncio.sleep(0)
        assert await workers.two.cancel(thread_id="t") == 2
        await settle(workers.one, workers.two)
        assert gate.log == ["stopped first"]
        assert not workers.hub.keys
        gate.go.set()
        last = await workers.two.dispatch(**WHO, message="last", thread_id="t")
        assert [event.data["text"] for event in await last.collect() if event.send_type == "text"] == ["re: last"]


# ---------------------------------------------------------------- coming back, and the same again


async def test_a_client_comes_back_through_the_other_process_and_misses_nothing(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers:
        async with client(workers.one) as one:
            thread_id = await post(one, "one")
            last = events(await until(one, is_over))[-1]["id"]
        for text in ("two", "three"):
            await (await workers.one.dispatch(**WHO, message=text, thread_id=thread_id)).collect()
        async with client(workers.two) as two:
            snapshot = await watch(two, thread_id, after_event_id=last)
            assert [event["seq"] for event in snapshot["events"]] == [3, 4, 5, 6]
            await (await workers.one.dispatch(**WHO, message="four", thread_id=thread_id)).collect()
            assert [event["seq"] for event in events(await until(two, is_over))] == [7, 8]


async def test_a_message_sent_again_through_the_other_process_is_answered_once(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "once", client_event_id="c-1")
        await until(one, is_over)
        assert await post(two, "once", client_event_id="c-1") == thread_id
        keyed = [
            await worker.dispatch(**WHO, message="key", idempotency_key="k")
            for worker in (workers.one, workers.two, workers.one)
        ]
        assert len({stream.event_id for stream in keyed}) == 1
        for stream in keyed:
            await stream.collect()
        together = await asyncio.gather(
            *(
                worker.dispatch(**WHO, message="at once", idempotency_key="together")
                for worker in (workers.one, workers.two) * 5
            )
        )
        assert len({(stream.thread_id, stream.event_id) for stream in together}) == 1
        for stream in together:
            stream.detach()
        await settle(workers.one, workers.two)
        for stream, count in ((keyed[0], 2), (together[0], 2)):
            thread = await workers.one._parts.store().thread(stream.thread_id)
            assert thread is not None
            assert thread.last_seq == count


# ---------------------------------------------------------------- what is not heard


async def test_what_was_lost_is_read_when_the_next_is_heard(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "first")
        await until(one, is_over)
        await watch(two, thread_id)
        await quiet(two)
        workers.hub.members.remove(workers.broker(workers.two))  # and nobody tells it so
        await post(one, "lost", thread_id)
        await until(one, is_over)
        assert types(await quiet(two)) == []
        workers.hub.members.append(workers.broker(workers.two))
        await post(one, "heard", thread_id)
        frames = await until(two, says("re: heard"))
        assert texts(frames) == ["lost", "re: lost", "heard", "re: heard"]
        assert [event["seq"] for event in events(frames)] == [3, 4, 5, 6]
        # The run whose end was lost ends here too, once, and none goes back to running.
        while statuses(frames).count("succeeded") < 2:
            frames.append(await two.receive())
        runs = [frame["payload"]["run"] for frame in frames + await quiet(two) if frame["type"] == "run.upsert"]
        by_run = {run["id"]: [one["status"] for one in runs if one["id"] == run["id"]] for run in runs}
        assert len(by_run) >= 2
        assert all(told[-1] == "succeeded" and told.count("succeeded") == 1 for told in by_run.values())


async def test_a_connection_that_was_away_is_made_up_for_in_every_thread(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        threads = [await post(one, f"m{n}") for n in range(12)]
        await settle(workers.one, workers.two)
        for thread_id in threads:
            await watch(two, thread_id)
        await quiet(two)
        workers.broker(workers.two).cut()
        for thread_id in threads[:10]:
            await post(one, "meanwhile", thread_id)
        await settle(workers.one)
        repository = await workers.one.repository()
        await repository.update_thread(threads[10], "renamed")
        await repository.remove_thread(threads[11])
        assert types(await quiet(two)) == []
        workers.broker(workers.two).mend()
        await settle(workers.two)
        frames = await quiet(two)
        for thread_id in threads[:10]:
            mine = [frame for frame in frames if frame["payload"].get("thread_id") == thread_id]
            assert [event["seq"] for event in events(mine)] == [3, 4]
        titles = {
            f["payload"]["thread"]["id"]: f["payload"]["thread"].get("title")
            for f in frames
            if "thread" in f["payload"]
        }
        assert titles[threads[10]] == "renamed"
        assert [f["payload"]["thread_id"] for f in frames if f["type"] == "thread.deleted"] == [threads[11]]
        await post(one, "after", threads[0])
        assert texts(await until(two, says("re: after"))) == ["after", "re: after"]


async def test_a_connection_that_was_away_is_made_up_for_in_lists_and_forms(worker_config: WorkerConfig) -> None:
    async with (
        pair(worker_config, echo, private_threads=True) as workers,
        workers.clients() as (one, two),
        client(workers.two, user_id="user-2") as stranger,
    ):
        await post(one, "before")
        await two.ask("settings.subscribe", {"worker_id": "worker"})
        await settle(workers.one, workers.two)
        await quiet(two)
        workers.broker(workers.two).cut()
        fresh = await post(one, "meanwhile")
        await one.ask("settings.patch", {"worker_id": "worker", "field_id": "model", "value": "large"})
        await settle(workers.one)
        assert types(await quiet(two)) == []
        workers.broker(workers.two).mend()
        await settle(workers.two)
        frames = await quiet(two)
        assert fresh in [f["payload"]["thread"]["id"] for f in frames if f["type"] == "thread.upsert"]
        (form,) = [f["payload"] for f in frames if f["type"] == "settings.snapshot"]
        assert [field["value"] for field in form["fields"] if field["id"] == "model"] == ["large"]
        assert types(await quiet(stranger)) == []


async def test_a_form_that_is_read_again_is_not_older_than_what_was_told_meanwhile(worker_config: WorkerConfig) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        await two.ask("settings.subscribe", {"worker_id": "worker"})
        await quiet(two)
        store, reached, go_on = workers.two._parts.store(), asyncio.Event(), asyncio.Event()
        settings = store.settings

        async def held(worker_id: str) -> Any:
            found = await settings(worker_id)
            reached.set()
            await go_on.wait()
            return found

        store.settings = held  # type: ignore[method-assign]
        workers.broker(workers.two).cut()
        workers.broker(workers.two).mend()
        await reached.wait()
        await one.ask("settings.patch", {"worker_id": "worker", "field_id": "model", "value": "large"})
        await until(two, lambda frame: frame["type"] == "settings.patch")
        go_on.set()
        (form,) = (await until(two, lambda frame: frame["type"] == "settings.snapshot"))[-1:]
        assert [f["value"] for f in form["payload"]["fields"] if f["id"] == "model"] == ["large"]


async def test_pieces_that_were_lost_are_not_made_up_but_the_whole_message_comes(worker_config: WorkerConfig) -> None:
    model = Model()
    async with pair(worker_config, model.handler) as workers:
        async with client(workers.one, deltas=True) as asking, client(workers.two, deltas=True) as reading:
            thread_id = await post(asking, "go")
            await watch(reading, thread_id)
            model.say("one ")
            await reading.expect("event.delta")
            workers.hub.members.remove(workers.broker(workers.two))
            model.say("two ")
            await until(asking, lambda f: f["type"] == "event.delta" and f["payload"]["text"].endswith("two "))
            workers.hub.members.append(workers.broker(workers.two))
            model.say("three")
            await until(asking, lambda f: f["type"] == "event.delta" and f["payload"]["text"].endswith("three"))
            model.say(None)
            frames = await until(reading, is_over)
            assert [kind for kind in types(frames) if kind != "run.upsert"] == ["event.append"]
            assert texts(frames) == ["one two three"]


@pytest.mark.parametrize("odd", ["part", "kind", "row"])
async def test_what_a_newer_process_says_in_words_unknown_here_is_read_from_the_store(
    worker_config: WorkerConfig, caplog: pytest.LogCaptureFixture, odd: str
) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "go")
        await watch(two, thread_id)
        await settle(workers.one, workers.two)
        await quiet(two)
        workers.broker(workers.two).cut()
        await post(one, "again", thread_id)
        await settle(workers.one)
        workers.hub.members.append(workers.broker(workers.two))
        thread, event = {"id": thread_id}, {"content": [{"type": "hologram"}]}
        said = {
            "part": dumps({"kind": "change", "sender": "newer", "thread": thread, "events": [event]}),
            "kind": dumps({"kind": "novelty", "sender": "newer", "thread_id": thread_id}),
            "row": dumps(thread) + "\n" + dumps({"kind": "change", "sender": "newer", "events": [event]}),
        }[odd]
        caplog.clear()
        for text in (said, "[1]", "\x00\n\n", *(f"garbage {n}" for n in range(1_000))):
            workers.broker(workers.one).tell(text)
        frames = await until(two, says("re: again"))
        assert texts(frames)[-2:] == ["again", "re: again"]
        assert 1 <= sum("not understood" in record.message for record in caplog.records) <= 10


async def test_the_end_of_a_run_is_made_up_for_however_many_came_after_it(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "go")
        await one.expect("run.upsert")
        (first,) = (await watch(two, thread_id))["runs"]
        workers.broker(workers.two).cut()
        gate.go.set()
        for _ in range(RUNS + 1):
            await post(one, "more", thread_id)
        await settle(workers.one)
        workers.broker(workers.two).mend()
        await until(two, lambda f: is_over(f) and f["payload"]["run"]["id"] == first["id"])
        await settle(workers.two)
        assert first["status"] == "running"
        assert "running" not in statuses(await quiet(two))


async def test_a_run_whose_beginning_is_heard_late_and_its_end_never_is_not_shown_to_be_at_work(
    worker_config: WorkerConfig,
) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "go")
        await watch(two, thread_id)
        await until(two, is_over)
        workers.broker(workers.two).cut()
        for _ in range(RUNS + 2):
            await post(one, "more", thread_id)
        await settle(workers.one)
        store = workers.one._parts.store()
        runs = await store.runs(RunQuery(equal={"thread_id": thread_id}, oldest_first=True, limit=2))
        thread = await store.thread(thread_id)
        assert thread is not None
        catchup = workers.two._parts.relay()._catchup
        catchup.read(thread_id)
        catchup.show(Change(thread=thread, runs=(evolve(runs[1], status="running", ended_at=None),)))
        await settle(workers.two)
        assert {run.status for run in runs} == {"succeeded"}
        assert "running" not in statuses(await quiet(two))


async def test_the_last_piece_that_the_whole_message_has_overtaken_is_taken_from_it(
    worker_config: WorkerConfig,
) -> None:
    model = Model()
    async with pair(worker_config, model.handler) as workers:
        async with client(workers.one, deltas=True) as asking, client(workers.two, deltas=True) as reading:
            thread_id = await post(asking, "go")
            await watch(reading, thread_id)
            model.say("one ")
            await reading.expect("event.delta")
            workers.hub.members.remove(workers.broker(workers.two))
            model.say("two")
            await until(asking, lambda f: f["type"] == "event.delta" and f["payload"]["text"].endswith("two"))
            workers.hub.members.append(workers.broker(workers.two))
            model.say(None)
            frames = await until(reading, is_over)
            assert [kind for kind in types(frames) if kind != "run.upsert"] == ["event.delta", "event.append"]
            assert (frames[0]["payload"]["text"], texts(frames)) == ("two", ["one two"])


async def test_people_who_cannot_be_told_what_they_missed_are_sent_away_to_come_back(
    worker_config: WorkerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(worker_config, echo) as workers, workers.clients() as (one, two):
        thread_id = await post(one, "first")
        await until(one, is_over)
        last = (await watch(two, thread_id))["events"][-1]["id"]
        workers.broker(workers.two).cut()
        await post(one, "lost", thread_id)
        await until(one, is_over)
        store = workers.two._parts.store()
        reads, store.thread = store.thread, broken  # type: ignore[method-assign]
        workers.broker(workers.two).mend()
        with caplog.at_level(logging.CRITICAL):
            with pytest.raises(Closed) as closed:
                await until(two, says("lost"))
        assert closed.value.code == 1013
        store.thread = reads  # type: ignore[method-assign]
        await settle(workers.two)
        async with client(workers.two) as again:
            snapshot = await watch(again, thread_id, after_event_id=last)
            assert [event["seq"] for event in snapshot["events"]] == [3, 4]


async def broken(*_: Any, **__: Any) -> Any:
    raise StoreError("the database is away")


class Weather(MemoryBroker):
    """A broker whose news come late, each sender's in order, and sometimes not at all."""

    def __init__(self, hub: Hub, seed: int, losing: float) -> None:
        super().__init__(hub=hub)
        self.random = random.Random(seed)
        self.losing = losing
        self.waiting: list[str] = []

    def _hear(self, text: str) -> None:
        if self.random.random() < self.losing:
            return
        self.waiting.append(text)
        if len(self.waiting) == 1:
            asyncio.get_running_loop().call_later(self.random.random() * 0.01, self._pass)

    def _pass(self) -> None:
        waiting, self.waiting = self.waiting, []
        for text in waiting:
            super()._hear(text)


@pytest.mark.parametrize("losing", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
async def test_in_any_weather_everybody_sees_every_event_once_and_in_order(
    worker_config: WorkerConfig, seed: int, losing: float
) -> None:
    chance = random.Random(seed)
    hub = Hub()
    workers = [WorkerServer(evolve(worker_config, teardown_timeout=0.1, turn_order="parallel")) for _ in range(2)]
    brokers = [Weather(hub, seed * 10 + n, losing) for n in range(2)]
    for worker, broker in zip(workers, brokers, strict=True):
        worker.handler(echo)
        worker._parts.broker.override(providers.Object(broker))
    thread_id = "thread-1"
    seen: list[list[int]] = []

    async def read(worker: WorkerServer, delay: float, over: asyncio.Event) -> None:
        await asyncio.sleep(delay)
        async with client(worker) as reading:
            snapshot = await watch(reading, thread_id)
            got = [event["seq"] for event in snapshot["events"]]
            await over.wait()
            got += [event["seq"] for event in events(await quiet(reading))]
            seen.append(got)

    async with workers[0].lifespan(), workers[1].lifespan():
        await (await workers[0].dispatch(**WHO, message="first", thread_id=thread_id)).collect()
        over = asyncio.Event()
        readers = [asyncio.create_task(read(workers[n % 2], chance.random() * 0.1, over)) for n in range(8)]
        for n in range(20):
            await post_unasked(workers[chance.randrange(2)], f"m{n}", thread_id)
            await asyncio.sleep(chance.random() * 0.01)
        await settle(*workers)
        await asyncio.sleep(0.02)
        for broker in brokers:  # fair weather again: the next that is heard makes up for everything
            broker.losing = 0.0
        for worker in workers:
            await (await worker.dispatch(**WHO, message="last", thread_id=thread_id)).collect()
        async with asyncio.timeout(WITHIN):
            while any(broker.waiting for broker in brokers):
                await asyncio.sleep(0.002)
        await settle(*workers)
        over.set()
        await asyncio.gather(*readers)
        for got in seen:
            assert got == list(range(1, 47))


# ---------------------------------------------------------------- processes that die, or seem to

LEFT = """
import asyncio, sys
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=sys.argv[1]))

@worker.handler
async def answer(send):
    yield send.run_start()
    yield send.text("half of it")
    await asyncio.Event().wait()

async def main():
    stream = await worker.dispatch(organization_id="org-1", workspace_id="ws-1", user_id="user-1", message="go", thread_id="t")
    async for event in stream:
        if event.send_type == "text":
            print("written", flush=True)

asyncio.run(main())
"""


async def test_the_runs_of_a_process_that_was_killed_are_closed_by_another(worker_config: WorkerConfig) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LEFT,
        worker_config.database_name,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 3 * WITHIN) == b"written\n"
    finally:
        process.kill()
        await process.communicate()
    async with (
        pair(worker_config, echo, run_heartbeat=0.1, run_timeout=1.0) as workers,
        workers.clients() as (one, two),
    ):
        (run,) = (await watch(one, "t"))["runs"] or [None]
        began = asyncio.get_running_loop().time()
        if run is not None:
            frames = await until(one, is_over)
            assert asyncio.get_running_loop().time() - began < 3
            assert statuses(frames) == ["failed"]
        notices = [event for event in (await watch(two, "t"))["events"] if event["actor"] == "system"]
        assert len(notices) == 1
        assert notices[0]["content"][0]["text"].startswith("The answer broke off.")
        assert (await one.say("again", "t")).text == "re: again"


async def test_a_process_that_was_only_slow_stops_what_was_taken_for_dead(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with workers.clients() as (one, two):
            thread_id = await post(one, "go")
            await gate.reached.wait()
            await watch(two, thread_id)
            await workers.one._parts.pulse().stop()
            for reading in (one, two):
                frames = await until(reading, is_over)
                assert statuses(frames)[-1] == "failed"
            await settle(workers.one, workers.two)
            assert gate.log == ["stopped go"]
            for reading in (one, two):
                rest = await quiet(reading)
                assert statuses(rest) == []  # it has one end
                assert all(text.startswith("The answer broke off.") for text in texts(rest))
            runs = await (await workers.one.repository()).list_runs({"thread_id": thread_id})
            assert [run.status for run in runs] == ["failed"]
            gate.go.set()
            await post(two, "again", thread_id)
            await until(one, says("re: again"))


async def test_a_slow_process_that_does_not_hear_of_it_finds_out_with_its_next_beat(
    worker_config: WorkerConfig,
) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with client(workers.one) as one:
            thread_id = await post(one, "go")
            await gate.reached.wait()
            workers.broker(workers.one).cut()
            store = workers.one._parts.store()
            beats, store.beat = store.beat, broken  # type: ignore[method-assign]
            async with asyncio.timeout(WITHIN):
                while not await ended(workers.two, thread_id):
                    await asyncio.sleep(0.01)
            assert gate.log == []
            store.beat = beats  # type: ignore[method-assign]
            await settle(workers.one)
            assert gate.log == ["stopped go"]
            assert await ended(workers.two, thread_id) == ["failed"]


@pytest.mark.parametrize("word", ["steps", "stream", "end"])
async def test_a_process_that_stood_still_finds_out_before_it_goes_on(worker_config: WorkerConfig, word: str) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[str]:
        yield "one "
        reached.set()
        await go.wait()
        yield "two"

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if word == "stream":
            yield send.stream(pieces())
        reached.set()
        await go.wait()
        if word == "steps":
            yield send.text("too late")

    async with pair(worker_config, handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with client(workers.one) as one:
            thread_id = await post(one, "go")
            await reached.wait()
            workers.broker(workers.one).cut()
            store = workers.one._parts.store()
            beats, store.beat = store.beat, broken  # type: ignore[method-assign]
            async with asyncio.timeout(WITHIN):
                while not await ended(workers.two, thread_id):
                    await asyncio.sleep(0.01)
            go.set()  # the handler is the first to wake up
            for _ in range(20):
                await asyncio.sleep(0)
            store.beat = beats  # type: ignore[method-assign]
            await settle(workers.one)
            assert await ended(workers.two, thread_id) == ["failed"]
            said = (await watch(one, thread_id))["events"]
            assert [text_of(event)[:22] for event in said] == ["go", "The answer broke off. "]
            assert "succeeded" not in statuses(await quiet(one))


@pytest.mark.parametrize("word", ["steps", "stream", "patch", "fails", "ends", "next run"])
async def test_what_a_process_that_stood_still_had_handed_to_the_database_is_not_written(
    worker_config: WorkerConfig, word: str
) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[str]:
        yield "too late"

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        if incoming.message != "go":
            yield send.text(f"re: {incoming.message}")
            return
        yield send.run_start()
        reached.set()
        await go.wait()
        if word == "steps":
            yield send.text("too late")
            yield send.text("and so is this")
        elif word == "stream":
            yield send.stream(pieces())
        elif word == "patch":
            yield send.update_thread(title="too late")
        elif word == "next run":
            yield send.run_start()
            yield send.text("too late")
        elif word == "fails":
            raise RuntimeError("too late")

    async with pair(worker_config, handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with client(workers.one) as one:
            thread_id = await post(one, "go")
            await reached.wait()
            await quiet(one)
            workers.broker(workers.one).cut()
            store = workers.one._parts.store()
            assert isinstance(store, SqliteStore)
            handed, again = asyncio.Event(), asyncio.Event()
            beats, flush = store.beat, store._flush
            if store._flusher is not None:  # else it may take what comes now along
                await asyncio.wait([store._flusher])

            async def late() -> None:
                handed.set()
                await again.wait()
                await flush()

            store._flush = late  # type: ignore[method-assign]
            go.set()
            await handed.wait()
            store.beat = broken  # type: ignore[method-assign]
            async with asyncio.timeout(WITHIN):
                while not await ended(workers.two, thread_id):
                    await asyncio.sleep(0.01)
            again.set()
            store.beat = beats  # type: ignore[method-assign]
            await settle(workers.one)
            assert await ended(workers.two, thread_id) == ["failed"]
            kept = await watch(one, thread_id)
            assert [text_of(event)[:22] for event in kept["events"]] == ["go", "The answer broke off. "]
            assert kept["thread"].get("title") != "too late"
            assert "succeeded" not in statuses(await quiet(one))
            assert (await one.say("again", thread_id)).text == "re: again"


async def test_an_end_that_could_not_be_stored_is_stored_later_though_the_process_lives_on(
    worker_config: WorkerConfig,
) -> None:
    gate = Gate()

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        if incoming.message == "first":
            yield send.run_start()
            gate.reached.set()
            await gate.go.wait()
        else:
            async for event in Gate().handler(incoming, send):  # it keeps the process at work, and its heart beating
                yield event

    async with pair(worker_config, handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with client(workers.one) as one:
            await post(one, "second")
            thread_id = await post(one, "first")
            await gate.reached.wait()
            store = workers.one._parts.store()
            apply, tried = store.apply, asyncio.Event()

            def away(change: Change) -> asyncio.Future[Change]:
                failed: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
                failed.set_exception(StoreError("the database is away"))
                tried.set()
                return failed

            store.apply = away  # type: ignore[method-assign]
            gate.go.set()
            await tried.wait()
            store.apply = apply  # type: ignore[method-assign]
            assert statuses(await until(one, is_over))[-1] == "succeeded"
            assert await ended(workers.two, thread_id) == ["succeeded"]


@pytest.mark.parametrize("fails", ["thread", "apply"])
async def test_the_end_of_a_dead_process_s_run_is_told_though_the_database_was_away_in_that_moment(
    worker_config: WorkerConfig, fails: str
) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler, run_heartbeat=0.1, run_timeout=0.5) as workers:
        async with client(workers.one) as one, client(workers.two) as two:
            thread_id = await post(one, "go")
            await gate.reached.wait()
            await watch(two, thread_id)
            workers.broker(workers.one).cut()
            store = workers.two._parts.store()
            works = getattr(store, fails)

            def away(*_: Any) -> asyncio.Future[Any]:
                setattr(store, fails, works)
                failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                failed.set_exception(StoreError("the database is away"))
                return failed

            setattr(store, fails, away)
            await workers.one._parts.pulse().stop()
            frames = await until(two, lambda frame: any("broke off" in text for text in texts([frame])))
            frames += await quiet(two)
            assert [status for status in statuses(frames) if status != "running"] == ["failed"]
            assert len(texts(frames)) == 1
            gate.go.set()


async def ended(worker: WorkerServer, thread_id: str) -> list[str]:
    runs = await (await worker.repository()).list_runs({"thread_id": thread_id})
    return [run.status for run in runs if run.status != "running"]


async def test_the_runs_of_a_process_that_lives_are_left_alone(worker_config: WorkerConfig) -> None:
    gate = Gate()
    async with pair(worker_config, gate.handler, run_heartbeat=0.05, run_timeout=1.0) as workers:
        async with workers.clients() as (one, two):
            thread_id = await post(one, "go")
            await gate.reached.wait()
            await watch(two, thread_id)
            await asyncio.sleep(1.5)  # the time itself is what is tested
            assert await ended(workers.one, thread_id) == []
            gate.go.set()
            assert statuses(await until(two, is_over))[-1] == "succeeded"
