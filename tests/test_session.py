"""One connection: bad frames keep it, slow readers lose only their own, and its end stops nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import define, evolve
from dependency_injector import providers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import T0

from dooers import Identity, WorkerConfig, WorkerServer
from dooers.broadcast import Broadcast
from dooers.clock import SystemClock
from dooers.protocol import CLIENT
from dooers.quota import Quotas
from dooers.session import REASONS, WITHOUT, Session
from dooers.stats import Counts
from dooers.testing import Closed, WorkerClient

KEYS = [
    "thread_id",
    "event",
    "content",
    "type",
    "text",
    "worker_id",
    "user",
    "metadata",
    "limit",
    "cursor",
    "field_id",
    "value",
]
TYPES = sorted(CLIENT)
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


async def echo(incoming: Any, send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text(incoming.message)
    yield send.run_end()


def small(config: WorkerConfig, **limits: Any) -> WorkerServer:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=config.database_name, **limits))
    worker.handler(echo)
    return worker


async def test_every_kind_of_bad_frame_is_answered_and_the_socket_stays(worker_config: WorkerConfig) -> None:
    worker = small(worker_config, max_frame_bytes=2048)
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="neighbour") as neighbour:
        for text, code, told in [
            ("", "INVALID_FRAME", "is not JSON"),
            ("nonsense", "INVALID_FRAME", "is not JSON"),
            ("[]", "INVALID_FRAME", "expected an object"),
            ("null", "INVALID_FRAME", "expected an object"),
            ('{"type": "ping"}', "INVALID_FRAME", "id: is required"),
            ('{"id": 5, "type": "ping"}', "INVALID_FRAME", "id: expected string"),
            ('{"id": "a"}', "INVALID_FRAME", "type: is required"),
            ('{"id": "a", "type": "dance"}', "INVALID_FRAME", "type: 'dance' is none of connect"),
            ('{"id": "a", "type": ["ping"]}', "INVALID_FRAME", "type:"),
            (
                '{"id": "a", "type": "event.list", "payload": []}',
                "INVALID_FRAME",
                "payload: expected object, got array",
            ),
            ('{"id": "a", "type": "event.list", "payload": {}}', "INVALID_FRAME", "payload.thread_id: is required"),
            (
                '{"id": "a", "type": "event.list", "payload": {"thread_id": "t", "limit": "5"}}',
                "INVALID_FRAME",
                "payload.limit: expected integer, got string",
            ),
            (
                '{"id": "a", "type": "event.create", "payload": {"event": {"content": [{"type": "video"}]}}}',
                "INVALID_FRAME",
                "payload.event.content[0].type",
            ),
            ('{"id": "a", "type": "ping", "payload": "' + "x" * 2048 + '"}', "TOO_LARGE", "over 2048 bytes"),
            ("é" * 1500, "TOO_LARGE", "over 2048 bytes"),
            ("[" * 2000, "INVALID_FRAME", "is not JSON"),
        ]:
            client.post_text(text)
            answer = (await client.receive())["payload"]
            assert answer["ok"] is False
            assert answer["error"]["code"] == code, text[:60]
            assert told in answer["error"]["message"], answer
        client.socket.to_worker.put_nowait({"type": "websocket.receive", "bytes": b"\x00\x01"})
        assert "binary" in (await client.receive())["payload"]["error"]["message"]
        assert (await client.say("still here")).text == "still here"
        await neighbour.ask("ping")
        assert [frame["type"] for frame in neighbour.unread] == ["thread.upsert"]
    await worker.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.text(max_size=200),
            st.tuples(
                st.sampled_from(TYPES),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: (
                        st.lists(inner, max_size=4)
                        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner)
                    ),
                    max_leaves=15,
                ),
            ).map(lambda frame: json.dumps({"id": "f", "type": frame[0], "payload": frame[1]})),
        ),
        max_size=8,
    )
)
def test_no_sequence_of_frames_ends_a_session_or_logs_an_error(texts: list[str]) -> None:
    caught: list[logging.LogRecord] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            caught.append(record)

    async def run() -> None:
        worker = WorkerServer(WorkerConfig(database_type="memory"))
        worker.handler(echo)
        async with WorkerClient(worker) as client:
            for text in texts:
                client.post_text(text)
            client.post("ping")
            await client.expect("pong")
        await worker.close()

    handler = Catch(logging.ERROR)
    logging.getLogger("dooers").addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger("dooers").removeHandler(handler)
    assert caught == []


async def test_a_client_that_does_not_connect_is_closed_in_time(worker_config: WorkerConfig) -> None:
    worker = small(worker_config, connect_timeout=0.05)
    client = WorkerClient(worker)
    await client.open()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 4408
    await worker.close()


async def test_a_reader_that_stalls_loses_its_own_connection_and_resumes_without_loss(
    worker_config: WorkerConfig,
) -> None:
    worker = small(worker_config, outbox_frames=64)  # over what one group of writes publishes at once

    async def many(send: Any) -> AsyncIterator[Any]:
        for number in range(100):
            yield send.text(str(number))

    async with WorkerClient(worker) as good, WorkerClient(worker, user_id="stalled") as stalled:
        reply = await good.say("hi")
        await stalled.ask("thread.subscribe", {"thread_id": reply.thread_id})
        stalled.socket.reading.clear()
        stream = await worker.dispatch(many, **WHO, message="go", thread_id=reply.thread_id)
        events = await stream.collect()
        assert len(events) == 100
        seen: list[int] = []
        while len(seen) < 101:
            frame = await good.expect("event.append")
            seen += [event["seq"] for event in frame["payload"]["events"]]
        stalled.socket.reading.set()
        last = reply.events[-1].id
        with pytest.raises(Closed) as closed:
            while True:
                frame = await stalled.receive()
                if frame["type"] == "event.append":
                    last = frame["payload"]["events"][-1]["id"]
        assert closed.value.code == 1013
    async with WorkerClient(worker, user_id="stalled") as back:
        snapshot = (await back.ask("thread.subscribe", {"thread_id": reply.thread_id, "after_event_id": last}))[
            "payload"
        ]
        assert snapshot["events"][-1]["seq"] == seen[-1]
    await worker.close()


async def test_a_session_that_ends_leaves_nothing_behind(worker_config: WorkerConfig) -> None:
    worker = small(worker_config)
    await worker.ensure_initialized()
    broadcast = worker._parts.broadcast()
    before = len(asyncio.all_tasks())
    for _ in range(20):
        async with WorkerClient(worker) as client:
            reply = await client.say("hi")
            await client.ask("thread.subscribe", {"thread_id": reply.thread_id})
            await client.ask("analytics.subscribe")
    assert (broadcast._places, broadcast._threads, broadcast._subscribed, broadcast._topics) == ({}, {}, {}, {})
    assert worker._sessions == set()
    assert len(worker._parts.lanes()) == 0
    assert worker._parts.runner().running == 0
    assert len(asyncio.all_tasks()) <= before
    await worker.close()


async def test_a_closing_worker_closes_its_sockets_with_a_code_that_says_come_back(worker_config: WorkerConfig) -> None:
    worker = small(worker_config)
    client = await WorkerClient(worker).__aenter__()
    await client.say("hi")
    await worker.close()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1012


async def test_subscriptions_of_one_connection_are_bounded(worker_config: WorkerConfig) -> None:
    worker = small(worker_config, max_subscriptions=3)
    repository = await worker.repository()
    threads = [await repository.create_thread("worker", "org-1", "ws-1", "u") for _ in range(4)]
    async with WorkerClient(worker) as client:
        for thread in threads[:3]:
            assert (await client.ask("thread.subscribe", {"thread_id": thread.id}))["type"] == "thread.snapshot"
        answer = await client.ask("thread.subscribe", {"thread_id": threads[3].id})
        assert answer["payload"]["error"]["code"] == "TOO_LARGE"
        await client.ask("thread.unsubscribe", {"thread_id": threads[0].id})
        assert (await client.ask("thread.subscribe", {"thread_id": threads[3].id}))["type"] == "thread.snapshot"
    await worker.close()


async def test_a_snapshot_larger_than_the_outbox_still_gets_out(worker_config: WorkerConfig) -> None:
    worker = small(worker_config, outbox_bytes=65536)
    repository = await worker.repository()
    thread = await repository.create_thread("worker", "org-1", "ws-1", "u")
    for _ in range(10):
        await repository.create_event(thread.id, content=["x" * 50_000])
    async with WorkerClient(worker) as client:
        snapshot = await client.ask("thread.subscribe", {"thread_id": thread.id})
        assert len(snapshot["payload"]["events"]) == 10
    await worker.close()


# ---------------------------------------------------------------- pieces of messages that are being written


class NoSocket:
    """A session's socket that nobody reads."""

    scope: Any = None

    async def receive(self) -> Any:
        raise AssertionError("nobody reads")

    async def send(self, message: Any) -> None:
        raise AssertionError("nobody writes")


async def unheard(session: Session, frame: Any) -> None:
    raise AssertionError("nobody asks")


def a_session(**limits: Any) -> Session:
    config = WorkerConfig(database_type="memory", **limits)
    return Session(
        NoSocket(), unheard, config, Broadcast(SystemClock()), SystemClock(), Quotas(config).single(), Counts()
    )


async def test_a_reader_that_is_behind_gets_no_piece_of_a_message_after_one_it_missed() -> None:
    session = a_session(outbox_frames=16)
    for number in range(10):
        session.put_delta(str(number), "a")
    session._outbox.clear()
    session.put_delta("10", "a")
    session.put_delta("first", "b")
    session.put_delta("whole", "")
    assert list(session._outbox) == ["first", "whole"]


async def test_a_reader_that_was_shown_a_message_up_to_now_gets_its_pieces_again() -> None:
    session = a_session()
    session.go_without(["a", "b"])
    session.go_on_with(["a", "never missed"])
    session.put_delta("of a", "a")
    session.put_delta("of b", "b")
    assert list(session._outbox) == ["of a"]


async def test_a_piece_that_would_fill_the_outbox_is_left_out_and_closes_nothing() -> None:
    session = a_session(outbox_bytes=65536)
    session.put("x" * 20_000)
    session.put_delta("y" * 60_000, "")
    session.put_delta("z" * 60_000, "a")
    session.put("x")
    assert [len(text) for text in session._outbox] == [20_000, 1]
    assert session._close_code is None


async def test_a_session_forgets_the_messages_of_long_ago_first() -> None:
    session = a_session()
    session.go_without(str(number) for number in range(WITHOUT + 5))
    assert len(session._without) == WITHOUT
    session.put_delta("old", "0")
    session.put_delta("new", str(WITHOUT + 4))
    assert list(session._outbox) == ["old"]


# ---------------------------------------------------------------- a proof that ends


@define
class SetClock(SystemClock):
    """A clock on the wall that somebody sets."""

    at: datetime = T0

    def now(self) -> datetime:
        return self.at


def expiring(config: WorkerConfig, clock: SetClock, seconds: float) -> WorkerServer:
    """A worker whose proofs of identity end so many seconds after T0."""
    worker = small(config)
    worker._parts.clock.override(providers.Object(clock))

    @worker.authenticate
    def authenticate(request: Any) -> Identity:
        claims: Identity = request.claims
        return evolve(claims, expires_at=T0 + timedelta(seconds=seconds))

    return worker


async def closed_with(client: WorkerClient) -> int:
    with pytest.raises(Closed) as closed:
        while True:
            await client.receive()
    return closed.value.code


@pytest.mark.parametrize("seconds", [0, -1, -1e6])
async def test_a_proof_that_has_ended_is_none(worker_config: WorkerConfig, seconds: float) -> None:
    worker = expiring(worker_config, SetClock(), seconds)
    client = WorkerClient(worker)
    await client.open()
    answer = await client.ask("connect", {"worker_id": "worker", **WHO})
    assert answer["payload"]["error"]["code"] == "UNAUTHENTICATED"
    assert "expired" in answer["payload"]["error"]["message"]
    assert await closed_with(client) == 4401
    await worker.close()


async def test_a_frame_after_the_end_of_the_proof_is_refused_and_nothing_after_it_is_read(
    worker_config: WorkerConfig,
) -> None:
    clock = SetClock()
    worker = expiring(worker_config, clock, 3600)
    async with WorkerClient(worker) as client:
        assert (await client.say("hi")).text == "hi"
        clock.at += timedelta(seconds=3600)
        for _ in range(2):
            client.post("event.create", {"event": {"content": [{"type": "text", "text": "too late"}]}})
        assert (await client.receive())["payload"]["error"]["code"] == "UNAUTHENTICATED"
        assert await closed_with(client) == 4401
    assert len(await (await worker.repository()).list_threads()) == 1
    await worker.close()


async def test_an_idle_session_ends_with_its_proof_and_turns_go_on(worker_config: WorkerConfig) -> None:
    clock = SetClock()
    worker = expiring(worker_config, clock, 0.05)
    go_on = asyncio.Event()

    @worker.handler("slow")
    async def slow(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        await go_on.wait()
        yield send.text("done")

    async with WorkerClient(worker, handler="slow") as client:
        await client.ask("event.create", {"event": {"content": [{"type": "text", "text": "go"}]}})
        thread_id = (await client.expect("thread.upsert"))["payload"]["thread"]["id"]
        clock.at += timedelta(seconds=1)
        assert await closed_with(client) == 4401
    assert worker.is_answering(thread_id)
    assert worker._sessions == set()
    go_on.set()
    while worker.is_answering(thread_id):
        await asyncio.sleep(0)
    repository = await worker.repository()
    assert [run.status for run in await repository.list_runs()] == ["succeeded"]
    assert len(await repository.list_events({"thread_id": thread_id})) == 2
    await worker.close()


async def test_a_clock_that_is_set_is_noticed_and_one_that_lags_is_waited_for(
    worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.session.EXPIRY_WATCH", 0.01)
    clock = SetClock()
    worker = expiring(worker_config, clock, 1e6)
    async with WorkerClient(worker) as client:
        with pytest.raises(TimeoutError):
            await client.receive(within=0.05)
        clock.at += timedelta(seconds=1e6)
        assert await closed_with(client) == 4401
    await worker.close()


async def test_a_session_whose_proof_outlives_it_leaves_no_timer(worker_config: WorkerConfig) -> None:
    worker = expiring(worker_config, SetClock(), 1e9)
    async with WorkerClient(worker) as client:
        (session,) = worker._sessions
        assert session._expiry is not None
        await client.ask("ping")
    assert session._expiry.cancelled()
    await worker.close()


async def test_a_close_says_why(worker_config: WorkerConfig) -> None:
    for code, said in REASONS.items():
        assert said, code
    worker = small(worker_config, connect_timeout=0.02)
    client = WorkerClient(worker)
    await client.open()
    message = await client.socket.to_client.get()
    assert message == {"type": "websocket.close", "code": 4408, "reason": "no connect frame in time"}
    await worker.close()
