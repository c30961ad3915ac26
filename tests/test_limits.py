"""Every limit of WorkerConfig, run into: what is over it is refused with its code, what is under it is not, and nobody else notices.

`HITS` has a test for each numeric option; one that is new and has none fails here.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import pytest

from dooers import ConfigError, DispatchError, Identity, WorkerConfig, WorkerServer
from dooers.exceptions import ProtocolError
from dooers.models import MAX_ID, MAX_NAME
from dooers.protocol import CLIENT, parse
from dooers.routes import threads
from dooers.testing import Closed, WorkerClient

Hit = Callable[[Path], Awaitable[None]]
HITS: dict[str, Hit] = {}
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


def hits(*names: str) -> Callable[[Hit], Hit]:
    def register(test: Hit) -> Hit:
        HITS.update(dict.fromkeys(names, test))
        return test

    return register


# What is no limit on a client: the database's own, the heartbeat, and how batches go to the webhook.
OTHERS = ("database_", "run_", "analytics_")
NUMBERS = ("int", "float", "float | None")
OPTIONS = [
    option.name
    for option in attrs.fields(WorkerConfig)
    if str(option.type) in NUMBERS and not option.name.startswith(OTHERS)
]


@pytest.mark.parametrize("name", OPTIONS)
async def test_every_limit_holds(name: str, tmp_path: Path) -> None:
    assert name in HITS, f"{name} is a limit without a test: write one with @hits({name!r})"
    await HITS[name](tmp_path)


def test_there_is_no_test_for_a_limit_that_is_gone() -> None:
    assert set(HITS) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [float("nan"), -1, "5", True])
def test_a_limit_is_a_number_and_not_below_nothing(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        WorkerConfig(database_type="memory", **{name: value})


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[WorkerServer, asyncio.Event]]:
    """A worker that knows its users, and answers "wait" when the event is set."""
    worker = WorkerServer(WorkerConfig(**{"database_type": "memory", **limits}))
    go_on = asyncio.Event()

    @worker.settings
    @dataclass
    class Settings:
        model: str = "small"

    @worker.authenticate
    def authenticate(request: Any) -> Identity:
        claims: Identity = request.claims
        return claims

    @worker.handler
    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == "wait":
            await go_on.wait()
        yield send.text(incoming.message)

    try:
        yield worker, go_on
    finally:
        go_on.set()
        await worker.close()


def posted(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event": {"type": "message", "actor": "user", "content": list(content)}, **more}


def said(text: str, **more: Any) -> dict[str, Any]:
    return posted({"type": "text", "text": text}, **more)


async def code_of(client: WorkerClient, kind: str, payload: dict[str, Any] | None = None) -> str:
    answer = await client.ask(kind, payload)
    if answer["type"] != "ack" or answer["payload"]["ok"]:
        return "ok"
    return str(answer["payload"]["error"]["code"])


async def threads_of(worker: WorkerServer) -> int:
    return len(await (await worker.repository()).list_threads())


# ---------------------------------------------------------------- the size of things


@hits("max_frame_bytes")
async def a_frame(path: Path) -> None:
    async with serving(max_frame_bytes=1024) as (worker, _), WorkerClient(worker) as client:
        frame = '{"id": "p", "type": "ping", "payload": {"x": "%s"}}'
        most = 1024 - len(frame) + 2
        for filling, fits in [("x" * most, True), ("x" * (most + 1), False), ("é" * (most // 2 + 1), False)]:
            client.post_text(frame % filling)
            answer = await client.receive()
            assert (answer["type"] == "pong") is fits
            assert fits or answer["payload"]["error"]["code"] == "TOO_LARGE"


@pytest.mark.parametrize("odd", ['"\\ud800"', "NaN", "1" * 30], ids=["half an emoji", "not a number", "a huge integer"])
def test_a_frame_is_read_without_walking_through_it_whatever_is_in_it(odd: str) -> None:
    """What the quick parser refuses must not cost the event loop seconds: four megabytes of it come in one frame, from anybody."""
    text = f'{{"id": "x", "type": "ping", "payload": {{"x": [{"{}," * 10_000}{odd}]}}}}'
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        parse(text)
    except ProtocolError:
        pass
    finally:
        sys.setprofile(None)
    assert calls < 1000


URL = "data:image/png;base64,"
CONTENT: dict[str, tuple[int, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "max_content_parts": (2, [{"type": "text", "text": "x"}] * 2, [{"type": "text", "text": "x"}] * 3),
    "max_text_length": (5, [{"type": "text", "text": "xxxxx"}], [{"type": "text", "text": "xxx"}] * 2),
    "max_data_url_bytes": (40, [{"type": "image", "url": URL + "x" * 18}], [{"type": "image", "url": URL + "x" * 19}]),
}


@hits(*CONTENT)
async def content(path: Path) -> None:
    for name, (most, fits, over) in CONTENT.items():
        async with serving(**{name: most}) as (worker, _), WorkerClient(worker) as client:
            assert await code_of(client, "event.create", posted(*over)) == "TOO_LARGE", name
            assert await threads_of(worker) == 0
            assert await code_of(client, "event.create", posted(*fits)) == "ok", name


async def test_a_reason_for_feedback_is_as_long_as_a_message_may_be() -> None:
    async with serving(max_text_length=5) as (worker, _), WorkerClient(worker) as client:
        about = {"target_type": "thread", "target_id": (await client.say("hi")).thread_id, "feedback": "like"}
        for name in ("reason", "classification"):
            assert await code_of(client, "feedback", {**about, name: "x" * 6}) == "TOO_LARGE"
            assert await code_of(client, "feedback", {**about, name: "x" * 5}) == "ok"


@hits("max_setting_bytes")
async def a_setting(path: Path) -> None:
    async with serving(max_setting_bytes=10) as (worker, _), WorkerClient(worker) as client:
        for value, code in [("x" * 8, "ok"), ("x" * 9, "TOO_LARGE"), ("é" * 5, "TOO_LARGE"), ("y" * 8, "ok")]:
            assert await code_of(client, "settings.patch", {"field_id": "model", "value": value}) == code
        assert await (await worker.settings()).get("model") == "y" * 8


@hits("max_page_size")
async def a_page(path: Path) -> None:
    async with serving(max_page_size=2) as (worker, _), WorkerClient(worker) as client:
        reply = [await client.say("hi") for _ in range(3)][-1]
        for asked in ({}, {"limit": 100}, {"limit": 2}):
            assert len((await client.ask("thread.list", asked))["payload"]["threads"]) == 2
            page = (await client.ask("event.list", {"thread_id": reply.thread_id, **asked}))["payload"]
            assert len(page["events"]) == 2
        assert len((await client.ask("thread.list", {"limit": 1}))["payload"]["threads"]) == 1


LONG, NAME = "i" * (MAX_ID + 1), "n" * (MAX_NAME + 1)


@pytest.mark.parametrize("name", ["worker_id", "organization_id", "workspace_id", "user_id", "user_name", "user_role"])
async def test_an_id_or_a_name_that_is_too_long_is_nobodys(name: str) -> None:
    most = MAX_ID if name.endswith("_id") else MAX_NAME
    async with serving() as (worker, _):
        fits: dict[str, Any] = {name: "x" * most}
        async with WorkerClient(worker, **fits) as client:
            assert await code_of(client, "ping") == "ok"
        over = WorkerClient(worker)
        await over.open()
        assert await code_of(over, "connect", {"worker_id": "worker", **WHO, name: "x" * (most + 1)}) == "INVALID_FRAME"
        assert await code_of(over, "connect", {"worker_id": "worker", **WHO}) == "ok"  # the socket stays
        await over.drop()


async def test_an_id_that_is_too_long_is_stored_by_neither_door() -> None:
    async with serving() as (worker, _), WorkerClient(worker) as client:
        assert await code_of(client, "event.create", said("hi", client_event_id=LONG)) == "INVALID_VALUE"
        assert await code_of(client, "event.create", said("hi", thread_id=LONG)) == "NOT_FOUND"
        wrong: list[dict[str, Any]] = [
            {"thread_id": LONG}, {"idempotency_key": LONG}, {"user_id": LONG}, {"worker_id": LONG}, {"user_name": NAME},
        ]  # fmt: skip
        for one in wrong:
            with pytest.raises(DispatchError, match="at most"):
                await worker.dispatch(**{**WHO, "message": "hi", **one})
        assert await threads_of(worker) == 0


# ---------------------------------------------------------------- how many at once


@hits("max_connections")
async def connections(path: Path) -> None:
    async with serving(max_connections=2) as (worker, _), WorkerClient(worker):
        async with WorkerClient(worker, user_id="other") as last:
            assert await refused(worker) == 1013
            assert await code_of(last, "ping") == "ok"
        async with WorkerClient(worker) as again:
            assert await code_of(again, "ping") == "ok"


async def refused(worker: WorkerServer, **claims: Any) -> int:
    client = WorkerClient(worker, **claims)
    await client.open()
    with pytest.raises(Closed) as closed:
        await client.receive()
    return closed.value.code


async def test_connections_that_come_while_the_worker_opens_are_counted_too(worker_config: WorkerConfig) -> None:
    async with serving(database_type="sqlite", database_name=worker_config.database_name, max_connections=2) as (w, _):
        clients = [WorkerClient(w, user_id=str(number)) for number in range(5)]
        for client in clients:
            await client.open()
            client.post("ping")
        answers = await asyncio.gather(*(client.receive() for client in clients), return_exceptions=True)
        assert sum(isinstance(answer, Closed) for answer in answers) == 3
        for client in clients:
            await client.drop()


@hits("max_connections_per_identity")
async def connections_of_one(path: Path) -> None:
    async with serving(max_connections_per_identity=2) as (worker, _), WorkerClient(worker) as first:
        async with WorkerClient(worker, worker_id="another"):  # whichever worker they are to
            over = WorkerClient(worker)
            await over.open()
            answer = await over.ask("connect", {"worker_id": "worker", **WHO})
            assert answer["payload"]["error"]["code"] == "RATE_LIMITED"
            assert answer["payload"]["error"]["retry_after"] > 0
            with pytest.raises(Closed) as closed:
                await over.receive()
            assert closed.value.code == 1013
            others: list[dict[str, Any]] = [{"user_id": "u2"}, {"organization_id": "o2"}, {"workspace_id": "w2"}]
            for other in others:
                async with WorkerClient(worker, **other) as somebody:
                    assert await code_of(somebody, "ping") == "ok"
        async with WorkerClient(worker):
            assert await code_of(first, "ping") == "ok"


@pytest.mark.parametrize("hooked", [True, False])
async def test_who_is_nobody_or_not_proved_counts_alone(hooked: bool) -> None:
    limits = {"max_connections_per_identity": 1, "max_subscriptions": 1, "frames_burst": 3, "frames_per_second": 0.01}
    worker = WorkerServer(WorkerConfig(database_type="memory", **limits))  # type: ignore[arg-type]
    if hooked:
        worker.authenticate(lambda request: request.claims)
    clients = [WorkerClient(worker, user_id="" if hooked else "user-1") for _ in range(3)]
    for client in clients:
        await client.__aenter__()
        assert [await code_of(client, "ping") for _ in range(2)] == ["ok", "ok"]
    for client in clients:
        await client.drop()
    await worker.close()


@hits("max_subscriptions")
async def subscriptions(path: Path) -> None:
    async with serving(max_subscriptions=3) as (worker, _), WorkerClient(worker) as one, WorkerClient(worker) as two:
        repository = await worker.repository()
        ids = [(await repository.create_thread("worker", "org-1", "ws-1", "u")).id for _ in range(5)]

        async def subscribe(client: WorkerClient, number: int) -> str:
            return await code_of(client, "thread.subscribe", {"thread_id": ids[number]})

        assert [await subscribe(one, 0), await subscribe(two, 1), await subscribe(two, 2)] == ["ok"] * 3
        assert [await subscribe(one, 3), await subscribe(two, 3)] == ["TOO_LARGE"] * 2
        assert [await subscribe(one, 0), await subscribe(two, 1)] == ["ok"] * 2  # again is not one more
        for text in (said("hi"), said("hi", thread_id=ids[3])):
            assert await code_of(one, "event.create", text) == "TOO_LARGE"
        assert await threads_of(worker) == 5
        async with WorkerClient(worker, user_id="other") as other:
            assert [await subscribe(other, number) for number in range(3)] == ["ok"] * 3
        await two.drop()
        assert [await subscribe(one, 3), await subscribe(one, 4), await subscribe(one, 1)] == ["ok", "ok", "TOO_LARGE"]
        assert await code_of(one, "thread.unsubscribe", {"thread_id": ids[0]}) == "ok"
        assert await subscribe(one, 1) == "ok"


@hits("max_turns_per_identity")
async def turns(path: Path) -> None:
    async with serving(max_turns_per_identity=2) as (worker, go_on), WorkerClient(worker) as one:
        async with WorkerClient(worker) as two, WorkerClient(worker, user_id="other") as other:
            assert await code_of(one, "event.create", said("wait")) == "ok"
            assert await code_of(two, "event.create", said("wait")) == "ok"
            for client in (one, two):
                assert await code_of(client, "event.create", said("hi")) == "RATE_LIMITED"
            assert await threads_of(worker) == 2
            assert (await other.say("hi")).text == "hi"
        async with WorkerClient(worker) as back:  # who leaves and comes back has not got rid of them
            assert await code_of(back, "event.create", said("hi")) == "RATE_LIMITED"
        go_on.set()
        while worker._parts.runner().running:
            await asyncio.sleep(0)
        assert (await one.say("hi")).text == "hi"


async def test_messages_of_many_connections_at_once_are_counted_before_they_are_stored(
    worker_config: WorkerConfig,
) -> None:
    limits = {"database_type": "sqlite", "database_name": worker_config.database_name, "max_turns_per_identity": 2}
    async with serving(**limits) as (worker, _):
        clients = [WorkerClient(worker) for _ in range(6)]
        for client in clients:
            await client.__aenter__()
        codes = await asyncio.gather(*(code_of(client, "event.create", said("wait")) for client in clients))
        assert sorted(codes) == ["RATE_LIMITED"] * 4 + ["ok"] * 2
        for client in clients:
            await client.drop()


@hits("thread_queue_limit")
async def a_queue(path: Path) -> None:
    async with serving(thread_queue_limit=2) as (worker, go_on), WorkerClient(worker) as client:
        thread_id = (await client.say("hi")).thread_id
        codes = [await code_of(client, "event.create", said("wait", thread_id=thread_id)) for _ in range(4)]
        assert codes == ["ok", "ok", "THREAD_BUSY", "THREAD_BUSY"]  # the one that is answered counts
        go_on.set()


# ---------------------------------------------------------------- how fast


async def vanish(client: WorkerClient) -> None:
    """End a connection whose reader pauses for longer than a test would wait."""
    assert client._task is not None
    client._task.cancel()
    await asyncio.wait([client._task])


@hits("frames_per_second", "frames_burst")
async def frames(path: Path) -> None:
    async with serving(frames_burst=3, frames_per_second=2) as (worker, _), WorkerClient(worker) as client:
        for kind in ("ping", "ping", "ping", "settings.patch"):
            client.post(kind, {"field_id": "model", "value": "new"})
        began = asyncio.get_running_loop().time()
        assert [(await client.receive())["type"] for _ in range(3)] == ["pong"] * 3
        error = (await client.receive())["payload"]["error"]
        assert error["code"] == "RATE_LIMITED"
        assert 0 < error["retry_after"] <= 0.501
        assert await (await worker.settings()).get("model") == "small"  # it was not done
        assert await code_of(client, "settings.patch", {"field_id": "model", "value": "new"}) == "ok"
        assert (
            asyncio.get_running_loop().time() - began >= error["retry_after"] - 0.01
        )  # not read before there was room


@pytest.mark.parametrize("kind", sorted(CLIENT))
async def test_no_kind_of_frame_goes_round_the_limit(kind: str) -> None:
    async with serving(frames_burst=1, frames_per_second=0.01) as (worker, _):
        client = await WorkerClient(worker).__aenter__()
        assert await code_of(client, "ping") == "ok"
        client.post_text(f'{{"id": "f", "type": "{kind}", "payload": {{"thread_id": "t", "worker_id": "worker"}}}}')
        answer = await client.receive()
        assert answer["payload"]["error"]["code"] in ("RATE_LIMITED", "INVALID_FRAME")
        client.post("ping")
        for _ in range(20):
            await asyncio.sleep(0)
        assert client.socket.to_worker.qsize() == 1  # it is not read from either way
        await vanish(client)


async def test_a_flood_is_not_read_and_slows_nobody_else() -> None:
    async with serving(frames_burst=10, frames_per_second=0.01) as (worker, _), WorkerClient(worker) as other:
        flood = await WorkerClient(worker, user_id="flood").__aenter__()
        for _ in range(500):
            flood.post("ping")
        assert [(await flood.receive())["type"] for _ in range(11)] == ["pong"] * 10 + ["ack"]
        assert [await code_of(other, "ping") for _ in range(10)] == ["ok"] * 10
        assert flood.socket.to_worker.qsize() == 500 - 11
        assert flood.socket.to_client.empty()  # told once, not for each
        await vanish(flood)


async def test_all_connections_of_an_identity_draw_from_one_bucket_that_outlives_them() -> None:
    async with serving(frames_burst=4, frames_per_second=0.01) as (worker, _):
        async with WorkerClient(worker) as one, WorkerClient(worker, worker_id="another") as two:
            assert [await code_of(client, "ping") for client in (one, two, one, two)] == ["ok"] * 4
        async with WorkerClient(worker, user_id="other") as other:
            assert await code_of(other, "ping") == "ok"
        back = await WorkerClient(worker).__aenter__()
        assert await code_of(back, "ping") == "RATE_LIMITED"
        await vanish(back)


@pytest.mark.parametrize(("walk", "code"), [(8, "RATE_LIMITED"), (10, "ok")])
async def test_a_search_that_walks_far_counts_for_many(walk: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WALK", walk)
    monkeypatch.setattr(threads, "WALKED", 1)  # one more frame for each thread
    async with serving(frames_burst=6, frames_per_second=0.01) as (worker, _):
        repository = await worker.repository()
        for _ in range(9):
            await repository.create_thread("worker", "org-1", "ws-1", "user-1", "a title")
        client = await WorkerClient(worker).__aenter__()
        assert await code_of(client, "thread.list", {"query": "nowhere", "limit": 1}) == "ok"
        assert await code_of(client, "ping") == code
        await vanish(client)


@pytest.mark.parametrize("message", [{"text": "x" * 2**21}, {"bytes": b"x" * 2**21}], ids=["text", "bytes"])
async def test_a_large_frame_counts_for_many_also_one_that_is_no_text(message: dict[str, Any]) -> None:
    async with serving(frames_burst=20, frames_per_second=0.01) as (worker, _):
        client = await WorkerClient(worker).__aenter__()
        client.socket.to_worker.put_nowait({"type": "websocket.receive", **message})
        assert (await client.receive())["payload"]["error"]["code"] == "INVALID_FRAME"
        assert await code_of(client, "ping") == "RATE_LIMITED"
        await vanish(client)


# ---------------------------------------------------------------- how long, and how much unread


@hits("connect_timeout")
async def a_connect(path: Path) -> None:
    async with serving(connect_timeout=0.05) as (worker, _):
        assert await refused(worker) == 4408
        busy = WorkerClient(worker)  # pings are no connect
        await busy.open()
        with pytest.raises(Closed) as closed:
            while True:
                await busy.ask("ping")
        assert closed.value.code == 4408


@hits("idle_timeout")
async def a_silence(path: Path) -> None:
    async with serving(idle_timeout=0.3) as (worker, _), WorkerClient(worker) as pings, WorkerClient(worker) as silent:
        closing = asyncio.ensure_future(silent.receive())
        while not closing.done():
            await pings.ask("ping")
            await asyncio.sleep(0.02)
        with pytest.raises(Closed) as closed:
            await closing
        assert closed.value.code == 1013
        await pings.ask("ping")


@hits("outbox_frames", "outbox_bytes")
async def an_outbox(path: Path) -> None:
    limits: list[tuple[dict[str, int], str]] = [({"outbox_frames": 16}, "x"), ({"outbox_bytes": 65536}, "x" * 5000)]
    for limit, text in limits:
        async with serving(**limit) as (worker, _), WorkerClient(worker) as reads, WorkerClient(worker) as asleep:
            thread_id = (await reads.say("hi")).thread_id
            await asleep.ask("thread.subscribe", {"thread_id": thread_id})
            asleep.socket.reading.clear()
            for _ in range(10):
                await reads.say(text, thread_id)
            asleep.socket.reading.set()
            with pytest.raises(Closed) as closed:
                while True:
                    await asleep.receive()
            assert closed.value.code == 1013


@hits("handler_timeout")
async def a_handler(path: Path) -> None:
    async with serving(handler_timeout=0.05) as (worker, _), WorkerClient(worker) as client:
        reply = await client.say("wait")
        assert reply.frames[-2]["payload"]["run"]["status"] == "failed"
        assert (await client.say("hi")).text == "hi"


@hits("teardown_timeout")
async def a_teardown(path: Path) -> None:
    async with serving(teardown_timeout=0.05) as (worker, _):

        @worker.provide
        async def thing() -> AsyncIterator[str]:
            yield "thing"
            await asyncio.sleep(60)

        @worker.handler("slow")
        async def slow(thing: str, send: Any) -> AsyncIterator[Any]:
            yield send.text(thing)

        async with WorkerClient(worker, handler="slow") as client:
            assert (await client.say("hi")).texts[0] == "thing"


@hits("shutdown_grace")
async def a_shutdown(path: Path) -> None:
    limits = {"database_type": "sqlite", "database_name": str(path / "w.db"), "shutdown_grace": 0.05}
    async with serving(**limits) as (worker, _):
        async with WorkerClient(worker) as client:
            await code_of(client, "event.create", said("wait"))
            await client.expect("run.upsert")
        began = asyncio.get_running_loop().time()
        await worker.close()
        assert 0.04 <= asyncio.get_running_loop().time() - began < 5
        assert [run.status for run in await (await worker.repository()).list_runs()] == ["canceled"]


@hits("shutdown_timeout")
async def a_shutdown_that_hangs(path: Path) -> None:
    async with serving(shutdown_grace=0, shutdown_timeout=0.2) as (worker, _):

        @worker.handler("deaf")
        async def deaf() -> str:
            while not over.is_set():
                with suppress(asyncio.CancelledError):
                    await over.wait()
            return "at last"

        over = asyncio.Event()
        (await worker.dispatch("deaf", **WHO, message="hi")).detach()
        began = asyncio.get_running_loop().time()
        await worker.close()
        assert asyncio.get_running_loop().time() - began < 5
        over.set()


@hits("pipeline_depth")
async def a_pipeline(path: Path) -> None:
    database = str(path / "w.db")
    async with serving(database_type="sqlite", database_name=database, pipeline_depth=4) as (worker, _):
        taken, enough = 0, asyncio.Event()

        @worker.handler("many")
        async def many(send: Any) -> AsyncIterator[Any]:
            nonlocal taken
            for taken in range(1, 31):
                if taken == 5:
                    enough.set()
                yield send.text(str(taken))

        stream = await worker.dispatch("many", **WHO, message="hi")
        locked = sqlite3.connect(database, isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")  # nothing gets to the disk
        stream.detach()
        async with asyncio.timeout(10):
            await enough.wait()
        for _again in range(100):
            await asyncio.sleep(0)
        assert taken == 5  # four on their way, and the one that waits
        locked.close()
        while worker.is_answering(stream.thread_id):
            await asyncio.sleep(0.001)
        assert taken == 30
