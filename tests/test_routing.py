"""Every client frame: what it answers, who hears of it, and what strangers get."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, get_args

import pytest
from attrs import define, evolve
from dependency_injector import providers
from samples import T0

from dooers import (
    Identity,
    Internal,
    Number,
    Operation,
    ReadOnly,
    Secret,
    StoreError,
    TextPart,
    Thread,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.clock import SystemClock
from dooers.protocol import CLIENT
from dooers.routing import ROUTES
from dooers.testing import Closed, Reply, WorkerClient


def build(config: WorkerConfig) -> WorkerServer:
    worker = WorkerServer(config)

    @worker.settings
    @dataclass
    class Settings:
        model: str = "small"
        temperature: Annotated[float, Number(min=0, max=2)] = 0.7
        secret: Secret = Secret("")
        token: Annotated[str, Internal()] = "internal"
        version: Annotated[str, ReadOnly()] = "1"

    @worker.handler
    async def agent(incoming: Any, send: Any, settings: Settings) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == "tool":
            yield send.tool_call("search", {"q": 1})
        yield send.text(f"{settings.model}: {incoming.message}")
        if incoming.message == "boom":
            raise RuntimeError("boom")
        yield send.run_end()

    return worker


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    made = build(worker_config)
    yield made
    await made.close()


@pytest.fixture
async def private(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    name = worker_config.database_name
    made = build(WorkerConfig(database_type="sqlite", database_name=name, private_threads=True))
    yield made
    await made.close()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}, **more}


async def code_of(client: WorkerClient, kind: str, payload: dict[str, Any] | None = None) -> str:
    answer = await client.ask(kind, payload)
    if answer["type"] != "ack" or answer["payload"]["ok"]:
        return "ok"
    return str(answer["payload"]["error"]["code"])


def test_every_client_frame_has_a_route_and_every_route_a_frame() -> None:
    assert ROUTES.keys() == CLIENT.keys()


# ---------------------------------------------------------------- connect


async def test_before_connect_only_ping_and_the_public_schema_are_answered(worker: WorkerServer) -> None:
    client = WorkerClient(worker)
    await client.open()
    assert (await client.ask("ping"))["type"] == "pong"
    schema = (await client.ask("settings.public_schema"))["payload"]["schema"]
    assert [field["id"] for field in schema["fields"]] == ["model", "temperature", "secret", "version"]
    assert {field["value"] for field in schema["fields"]} == {None}
    samples: dict[str, dict[str, Any]] = {
        "thread.list": {},
        "thread.subscribe": {"thread_id": "t"},
        "thread.unsubscribe": {"thread_id": "t"},
        "thread.update": {"thread_id": "t", "title": "T"},
        "thread.delete": {"thread_id": "t"},
        "event.create": said("hi"),
        "event.list": {"thread_id": "t"},
        "run.cancel": {"thread_id": "t"},
        "settings.subscribe": {},
        "settings.unsubscribe": {},
        "settings.patch": {"field_id": "model", "value": "x"},
        "feedback": {"target_type": "event", "target_id": "e", "feedback": "like"},
        "analytics.subscribe": {},
        "analytics.unsubscribe": {},
    }
    assert samples.keys() == CLIENT.keys() - {"connect", "ping", "settings.public_schema"}
    for kind, payload in samples.items():
        assert await code_of(client, kind, payload) == "NOT_CONNECTED", kind
    await client.drop()


PERSON = {"user_id": "u", "user_name": "Ann", "user_email": "a@x", "user_role": "member"}
PLACE: dict[str, Any] = {"organization_id": "o", "workspace_id": "w"}
DIALECTS: dict[str, dict[str, Any]] = {
    "flat": {"worker_id": "worker", **PLACE, **PERSON},
    "metadata": {"worker_id": "worker", "metadata": {**PLACE, **PERSON}},
    "user": {"worker_id": "worker", **PLACE, "user": PERSON, "client": {"name": "c", "version": "9"}},
    "agents": {"agent_id": "worker", **PLACE, "user": {**PERSON, "identity_ids": ["i"]}, "client": {"version": "0"}},
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_all_four_dialects_connect_and_see_one_another(worker: WorkerServer, dialect: str) -> None:
    async with WorkerClient(worker, connect=DIALECTS[dialect]) as client, WorkerClient(worker, **PLACE) as other:
        reply = await client.say("hi")
        seen = (await other.expect("thread.upsert"))["payload"]["thread"]
        assert (seen["id"], seen["user_id"], seen["owner"]["user_name"]) == (reply.thread_id, "u", "Ann")
        assert seen["worker_id"] == seen["agent_id"] == "worker"
        assert seen["users"] == [seen["owner"]]
        listed = (await client.ask("thread.list"))["payload"]["threads"][0]
        if dialect == "metadata":
            assert listed["metadata"]["organization_id"] == "o"
            assert listed["metadata"]["user_id"] == "u"
        else:
            assert "metadata" not in listed


async def test_a_second_connect_is_refused_and_changes_nothing(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        assert (
            await code_of(client, "connect", {"worker_id": "worker", "user_id": "somebody else"}) == "ALREADY_CONNECTED"
        )
        reply = await client.say("hi")
        thread = await (await worker.repository()).get_thread(reply.thread_id)
        assert thread is not None
        assert thread.user_id == "user-1"


async def test_the_authenticate_hook_decides_who_this_is(worker: WorkerServer) -> None:
    seen: list[Any] = []

    @worker.authenticate
    async def authenticate(request: Any) -> Identity | None:
        seen.append(request)
        if request.auth_token == "alice's":
            return Identity(organization_id="real", workspace_id="real", user_id="alice")
        if request.auth_token == "broken":
            raise RuntimeError("the directory is down")
        return None

    claims = {"worker_id": "worker", "organization_id": "claimed", "workspace_id": "claimed", "user_id": "mallory"}
    headers = {"Authorization": "Bearer x"}
    good = {**claims, "auth_token": "alice's"}
    async with WorkerClient(worker, connect=good, headers=headers, query="a=1&b=") as client:
        reply = await client.say("hi")
        thread = await (await worker.repository()).get_thread(reply.thread_id)
        assert thread is not None
        assert (thread.organization_id, thread.user_id) == ("real", "alice")
    request = seen[0]
    assert (request.claims.user_id, request.worker_id) == ("mallory", "worker")
    assert request.headers["authorization"] == "Bearer x"
    assert request.query_params == {"a": "1", "b": ""}
    assert request.client == ("testclient", 50000)
    for token in (None, "wrong", "broken"):
        client = WorkerClient(worker)
        await client.open()
        client.post("connect", {**claims, "auth_token": token} if token else claims)
        client.post("thread.list", {})
        client.post("connect", good)
        answer = await client.receive()
        assert answer["payload"]["error"]["code"] == "UNAUTHENTICATED"
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 4401
        await client.drop()


async def test_an_authenticate_hook_may_be_a_plain_function_and_name_its_refusal(worker: WorkerServer) -> None:
    @worker.authenticate
    def authenticate(request: Any) -> Identity:
        raise UnauthenticatedError("token expired")

    with pytest.raises(UnauthenticatedError, match="token expired"):
        await WorkerClient(worker).__aenter__()


# ---------------------------------------------------------------- lists and pages


async def test_threads_are_listed_in_pages_the_latest_first(worker: WorkerServer) -> None:
    repository = await worker.repository()
    made = [(await repository.create_thread("worker", "org-1", "ws-1", "user-1", str(n))).id for n in range(25)]
    await repository.create_event(made[0], content=["the first is the latest now"])
    async with WorkerClient(worker) as client:
        seen: list[str] = []
        cursor = None
        while True:
            answer = (await client.ask("thread.list", {"limit": 10, "cursor": cursor}))["payload"]
            assert answer["total_count"] == 25
            seen += [thread["id"] for thread in answer["threads"]]
            cursor = answer.get("cursor")
            if cursor is None:
                break
        assert seen == [made[0], *made[:0:-1]]
        bad = base64.urlsafe_b64encode(b'["yesterday", 5]').decode()
        for cursor in ("nonsense", "", bad, "é"):
            assert await code_of(client, "thread.list", {"cursor": cursor}) == "INVALID_CURSOR"
        for limit in (0, -1):
            assert await code_of(client, "thread.list", {"limit": limit}) == "INVALID_VALUE"
        assert len((await client.ask("thread.list", {"limit": 10_000}))["payload"]["threads"]) == 25


async def test_a_snapshot_that_cannot_be_read_leaves_a_live_subscription_as_it_was(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        reply = await client.say("hi")
        store: Any = worker._parts.store()
        real = store.snapshot

        async def failing(*_: Any, **__: Any) -> None:
            await (await worker.repository()).create_event(reply.thread_id, content=["meanwhile"])
            raise StoreError("disk gone")

        store.snapshot = failing
        client.post("thread.subscribe", {"thread_id": reply.thread_id})
        assert (await client.expect("event.append"))["payload"]["events"][0]["content"][0]["text"] == "meanwhile"
        assert (await client.expect("ack"))["payload"]["error"]["code"] == "SERVER_ERROR"
        store.snapshot = real
        assert (await client.say("still live", reply.thread_id)).text == "small: still live"


async def test_an_event_of_another_thread_is_no_cursor(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        one, two = await client.say("one"), await client.say("two")
        payload = {"thread_id": one.thread_id, "before_event_id": two.event_id}
        assert await code_of(client, "event.list", payload) == "INVALID_CURSOR"
        payload["before_event_id"] = "unknown"
        assert await code_of(client, "event.list", payload) == "INVALID_CURSOR"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_resuming_gives_everything_after_the_event(worker: WorkerServer, dialect: str) -> None:
    repository = await worker.repository()
    thread = await repository.create_thread("worker", "o", "w", "u")
    made = [(await repository.create_event(thread.id, content=[TextPart(str(n))])).id for n in range(1250)]
    async with WorkerClient(worker, connect=DIALECTS[dialect]) as client:
        for after in (1249, 1200, 1100, 10):
            snapshot = (await client.ask("thread.subscribe", {"thread_id": thread.id, "after_event_id": made[after]}))[
                "payload"
            ]
            seen = [event["id"] for event in snapshot["events"]]
            expected = made[after + 1 :]
            if dialect == "user" and len(expected) < 100:
                expected = made[-100:]
            while len(seen) < len(expected):
                frame = await client.expect("event.append")
                seen += [event["id"] for event in frame["payload"]["events"]]
            assert seen == expected
            assert snapshot["has_more"] is True
        for unknown in ("unknown", ""):
            snapshot = (await client.ask("thread.subscribe", {"thread_id": thread.id, "after_event_id": unknown}))[
                "payload"
            ]
            assert [event["id"] for event in snapshot["events"]] == made[-100:]


# ---------------------------------------------------------------- messages


async def test_a_repeated_client_event_id_is_recognised_and_runs_nothing(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        first = await client.say("hi", client_event_id="c1")
        answer = await client.ask("event.create", said("hi", client_event_id="c1"))
        assert answer["payload"]["ok"]
        again = (await client.expect("event.append"))["payload"]
        assert again["thread_id"] == first.thread_id
        assert again["events"][0]["id"] == first.event_id
        assert again["events"][0]["client_event_id"] == "c1"
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="other") as other:
        await client.ask("event.create", said("hi", client_event_id="c1", thread_id=first.thread_id))
        assert (await client.expect("event.append"))["payload"]["events"][0]["id"] == first.event_id
        assert (await other.say("hi", client_event_id="c1")).thread_id != first.thread_id
    assert len(await (await worker.repository()).list_events({"thread_id": first.thread_id})) == 2


async def test_concurrent_repeats_run_one_turn(worker: WorkerServer) -> None:
    clients = [WorkerClient(worker) for _ in range(10)]
    for client in clients:
        await client.__aenter__()
    answers = await asyncio.gather(*(c.ask("event.create", said("hi", client_event_id="same")) for c in clients))
    assert all(answer["payload"]["ok"] for answer in answers)
    repository = await worker.repository()
    (thread,) = await repository.list_threads()
    while worker.is_answering(thread.id):
        await asyncio.sleep(0.001)
    assert len(await repository.list_events({"thread_id": thread.id})) == 2
    for client in clients:
        await client.drop()


async def test_bad_messages_are_refused_and_nothing_is_stored(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        cases: list[tuple[dict[str, Any], str]] = [
            ({"event": {"content": []}}, "INVALID_VALUE"),
            ({"event": {"content": [{"type": "text", "text": "x"}] * 101}}, "TOO_LARGE"),
            (said("hi", thread_id="no such thread"), "NOT_FOUND"),
            (said("hi", thread_id=""), "NOT_FOUND"),
            ({}, "INVALID_FRAME"),
            ({"event": {"content": "hi"}}, "INVALID_FRAME"),
            ({"event": {"content": [{"type": "text", "text": "x"}], "actor": "system"}}, "INVALID_FRAME"),
        ]
        for payload, code in cases:
            assert await code_of(client, "event.create", payload) == code, payload
        assert (await client.ask("thread.list"))["payload"]["total_count"] == 0
        client.post_text("{")
        assert (await client.receive())["payload"]["error"]["code"] == "INVALID_FRAME"
        assert (await client.say("still here")).text == "small: still here"


# ---------------------------------------------------------------- who sees what


async def everything(client: WorkerClient, thread_id: str, event_id: str, run_id: str) -> dict[str, str]:
    """What a client is told about a thread, by every frame that could touch it."""
    frames: dict[str, dict[str, Any]] = {
        "thread.subscribe": {"thread_id": thread_id},
        "event.list": {"thread_id": thread_id},
        "event.create": said("intruding", thread_id=thread_id),
        "feedback": {"target_type": "event", "target_id": event_id, "feedback": "like"},
        "feedback ": {"target_type": "run", "target_id": run_id, "feedback": "like"},
        "feedback  ": {"target_type": "thread", "target_id": thread_id, "feedback": "like"},
        "run.cancel": {"thread_id": thread_id},
        "run.cancel ": {"run_id": run_id},
        "thread.update": {"thread_id": thread_id, "title": "theirs"},
        "thread.delete": {"thread_id": thread_id},
    }
    return {kind: await code_of(client, kind.strip(), payload) for kind, payload in frames.items()}


STRANGERS: dict[str, dict[str, Any]] = {
    "another worker": {"worker_id": "other"},
    "another organization": {"organization_id": "other"},
    "another workspace": {"workspace_id": "other"},
    "no organization": {"organization_id": ""},
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_strangers_answers_do_not_tell_a_thread_from_none(worker: WorkerServer, stranger: str) -> None:
    async with WorkerClient(worker) as owner, WorkerClient(worker, **STRANGERS[stranger]) as other:
        await other.ask("analytics.subscribe")
        reply = await owner.say("mine")
        run_id = reply.frames[0]["payload"]["run"]["id"]
        real = await everything(other, reply.thread_id, reply.event_id, run_id)
        assert real == await everything(other, "none", "none", "none")
        assert set(real.values()) == {"NOT_FOUND"}
        assert (await other.ask("thread.list"))["payload"] == {"threads": [], "total_count": 0}
        await owner.say("again", reply.thread_id)
        await other.ask("ping")
        assert [frame["type"] for frame in other.unread] == []
        assert (await owner.ask("thread.list"))["payload"]["total_count"] == 1


@pytest.mark.parametrize("user", ["other", ""])
async def test_a_private_thread_is_its_users_alone(private: WorkerServer, user: str) -> None:
    async with WorkerClient(private) as owner, WorkerClient(private, user_id=user) as other:
        await other.ask("analytics.subscribe")
        reply = await owner.say("mine")
        run_id = reply.frames[0]["payload"]["run"]["id"]
        assert set((await everything(other, reply.thread_id, reply.event_id, run_id)).values()) <= {
            "NOT_FOUND",
            "FORBIDDEN",
        }
        assert (await other.ask("thread.list"))["payload"] == {"threads": [], "total_count": 0}
        await other.ask("ping")
        assert other.unread == []


async def test_an_empty_user_id_is_nobody_where_threads_are_private(private: WorkerServer) -> None:
    repository = await private.repository()
    await repository.create_thread("worker", "org-1", "ws-1", "")
    async with WorkerClient(private, user_id="") as nobody:
        assert (await nobody.ask("thread.list"))["payload"] == {"threads": [], "total_count": 0}
        assert await code_of(nobody, "event.create", said("hi")) == "FORBIDDEN"


async def test_a_colleague_sees_a_shared_thread_and_gets_its_events_only_after_subscribing(
    worker: WorkerServer,
) -> None:
    async with WorkerClient(worker) as owner, WorkerClient(worker, user_id="colleague") as other:
        reply = await owner.say("one")
        await other.ask("ping")
        assert [frame["type"] for frame in other.unread] == ["thread.upsert"]
        other.unread.clear()
        snapshot = (await other.ask("thread.subscribe", {"thread_id": reply.thread_id}))["payload"]
        assert len(snapshot["events"]) == 2
        await owner.say("two", reply.thread_id)
        await other.ask("ping")
        assert [frame["type"] for frame in other.unread] == [
            "event.append",
            "run.upsert",
            "event.append",
            "run.upsert",
        ]
        other.unread.clear()
        assert await code_of(other, "thread.unsubscribe", {"thread_id": reply.thread_id}) == "ok"
        await owner.say("three", reply.thread_id)
        await other.ask("ping")
        assert other.unread == []


# ---------------------------------------------------------------- settings


async def test_settings_are_shown_and_synced_to_every_subscriber(worker: WorkerServer) -> None:
    async with (
        WorkerClient(worker) as one,
        WorkerClient(worker, organization_id="other") as two,
        WorkerClient(worker) as deaf,
    ):
        for client in (one, two):
            client.post("settings.subscribe", {"agent_id": "worker"})
            snapshot = (await client.receive())["payload"]
            assert {f["id"]: f["value"] for f in snapshot["fields"]} == {
                "model": "small", "temperature": 0.7, "secret": None, "version": "1",
            }  # fmt: skip
            assert snapshot["fields"][0]["placeholder"] is None
            assert (await client.receive())["type"] == "ack"
        one.post("settings.patch", {"field_id": "model", "value": "large"})
        for client in (one, two):
            patch = (await client.receive())["payload"]
            assert (patch["field_id"], patch["value"], patch["worker_id"]) == ("model", "large", "worker")
        assert (await one.receive())["type"] == "ack"
        assert (await one.say("hi")).text == "large: hi"
        await deaf.ask("ping")
        assert [frame["type"] for frame in deaf.unread] == ["thread.upsert"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("nothing", 1, "NOT_FOUND"),
        ("token", "x", "INTERNAL"),
        ("version", "2", "READONLY"),
        ("temperature", 3, "INVALID_VALUE"),
        ("temperature", "1", "INVALID_VALUE"),
        ("temperature", None, "INVALID_VALUE"),
        ("model", 5, "INVALID_VALUE"),
    ],
)
async def test_a_patch_that_may_not_be_is_refused_and_changes_nothing(
    worker: WorkerServer, field: str, value: Any, code: str
) -> None:
    async with WorkerClient(worker) as client:
        await client.ask("settings.subscribe")
        client.unread.clear()
        assert await code_of(client, "settings.patch", {"field_id": field, "value": value}) == code
        assert client.unread == []
    assert await (await worker.repository()).get_settings("worker") == {}


async def test_a_password_is_a_mask_on_the_wire_and_the_mask_changes_nothing(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        await client.ask("settings.subscribe")
        client.post("settings.patch", {"field_id": "secret", "value": "hunter2"})
        mask = (await client.expect("settings.patch"))["payload"]["value"]
        assert "hunter2" not in mask
        assert await code_of(client, "settings.patch", {"field_id": "secret", "value": mask}) == "ok"
        assert await (await worker.settings("worker")).get("secret") == "hunter2"
        client.post("settings.subscribe", {})
        fields = (await client.expect("settings.snapshot"))["payload"]["fields"]
        assert fields[2]["value"] == mask


async def test_internal_settings_are_set_without_a_word_to_clients(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        await client.ask("settings.subscribe")
        await (await worker.settings("worker")).set("token", "new")
        await (await worker.repository()).update_settings("worker", {"token": "newer", "unknown": 1})
        await client.ask("ping")
        assert [frame["type"] for frame in client.unread] == ["settings.snapshot"]
    assert await (await worker.settings("worker")).get("token") == "newer"


async def test_another_workers_settings_and_analytics_are_not_found(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        for kind in ("settings.subscribe", "settings.unsubscribe", "analytics.subscribe", "analytics.unsubscribe"):
            assert await code_of(client, kind, {"worker_id": "other"}) == "NOT_FOUND"


async def test_a_worker_without_settings_says_so(worker_config: WorkerConfig) -> None:
    bare = WorkerServer(worker_config)

    async def handler() -> None: ...

    async with WorkerClient(bare, handler=handler) as client:
        frames: dict[str, dict[str, Any]] = {
            "settings.subscribe": {},
            "settings.patch": {"field_id": "a", "value": 1},
            "settings.public_schema": {},
        }
        for kind, payload in frames.items():
            assert await code_of(client, kind, payload) == "NOT_CONFIGURED"
    await bare.close()


# ---------------------------------------------------------------- analytics and feedback


async def test_analytics_reach_subscribers_of_the_tenant(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="colleague") as watcher:
        await watcher.ask("analytics.subscribe", {})
        reply = await client.say("tool")
        await client.say("boom", reply.thread_id)
        await client.ask(
            "feedback",
            {
                "target_type": "event",
                "target_id": reply.event_id,
                "feedback": "dislike",
                "reason": "wrong",
                "classification": "c",
            },
        )
        await watcher.ask("ping")
        events = [frame["payload"] for frame in watcher.unread if frame["type"] == "analytics.event"]
        assert [event["event"] for event in events] == [
            "thread.created", "message.c2s", "tool.called", "message.s2c",
            "message.c2s", "message.s2c", "error.occurred", "feedback.dislike",
        ]  # fmt: skip
        assert events[-1]["data"] == {
            "target_type": "event", "target_id": reply.event_id, "reason": "wrong", "classification": "c",
        }  # fmt: skip
        assert events[0]["run_id"] is None  # nulls are carried here
        assert {event["thread_id"] for event in events} == {reply.thread_id}
        assert await code_of(watcher, "analytics.unsubscribe", {}) == "ok"
        watcher.unread.clear()
        await client.say("quiet", reply.thread_id)
        await watcher.ask("ping")
        assert watcher.unread == []


async def test_feedback_is_acknowledged_by_a_frame_of_its_own(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        reply = await client.say("hi")
        run_id = reply.frames[0]["payload"]["run"]["id"]
        for kind, target in (("event", reply.event_id), ("run", run_id), ("thread", reply.thread_id)):
            payload = {"target_type": kind, "target_id": target, "feedback": "like"}
            answer = await client.ask("feedback", payload)
            assert answer["type"] == "feedback.ack"
            assert answer["payload"] == {**payload, "ok": True}


# ---------------------------------------------------------------- who may do what


async def operations(client: WorkerClient, reply: Reply) -> dict[str, str]:
    """What a client is told when it tries each operation on a thread of its own tenant."""
    named = {"thread_id": reply.thread_id}
    run_id = reply.frames[0]["payload"]["run"]["id"]
    about = {"target_type": "event", "target_id": reply.event_id, "feedback": "like"}
    frames: list[tuple[str, str, dict[str, Any]]] = [
        ("thread.read", "thread.subscribe", named),
        ("thread.read", "event.list", named),
        ("thread.read", "thread.list", {}),
        ("thread.post", "event.create", said("hi", **named)),
        ("run.cancel", "run.cancel", named),
        ("run.cancel", "run.cancel", {"run_id": run_id}),
        ("feedback", "feedback", about),
        ("settings.read", "settings.subscribe", {}),
        ("settings.patch", "settings.patch", {"field_id": "model", "value": "new"}),
        ("analytics.read", "analytics.subscribe", {}),
        ("thread.update", "thread.update", {**named, "title": "T"}),
        ("thread.delete", "thread.delete", named),
    ]
    assert {operation for operation, _, _ in frames} == set(get_args(Operation))
    return {f"{operation} {kind}": await code_of(client, kind, payload) for operation, kind, payload in frames}


def by_table(worker: WorkerServer, operation: Operation) -> WorkerServer:
    return build(evolve(worker.config, permissions={operation: "admin"}))


def by_hook(worker: WorkerServer, operation: Operation) -> WorkerServer:
    made = build(worker.config)
    made.authorize(lambda identity, asked, thread: asked != operation or identity.user_role == "admin")
    return made


@pytest.mark.parametrize("denied", [by_table, by_hook])
@pytest.mark.parametrize("operation", get_args(Operation))
async def test_an_operation_that_is_kept_to_a_role_is_refused_to_all_others_and_nothing_else_is(
    worker: WorkerServer, operation: Operation, denied: Any
) -> None:
    kept = denied(worker, operation)
    async with WorkerClient(kept, user_role="admin") as admin, WorkerClient(kept, user_id="member") as member:
        codes = await operations(member, await admin.say("hi"))
        for name, code in codes.items():
            needs_reading = not name.startswith(("settings", "analytics")) and name != "thread.read thread.list"
            if operation == "thread.read" and needs_reading:
                assert code == "NOT_FOUND", name  # what may not be read is not there, whatever else one may do
            else:
                assert code == ("FORBIDDEN" if name.startswith(operation) else "ok"), name
        assert set((await operations(admin, await admin.say("hi"))).values()) == {"ok"}
    await kept.close()


async def test_one_line_keeps_settings_and_analytics_to_those_who_should_have_them(worker: WorkerServer) -> None:
    kept = build(evolve(worker.config, permissions={"settings.patch": "admin", "analytics.read": ["admin", "analyst"]}))
    roles = {"admin": ("ok", "ok"), "analyst": ("FORBIDDEN", "ok"), "member": ("FORBIDDEN", "FORBIDDEN")}
    for role, (patch, analytics) in {**roles, "": roles["member"]}.items():
        async with WorkerClient(kept, user_role=role) as client:
            patched = await code_of(client, "settings.patch", {"field_id": "model", "value": f"of {role}"})
            assert (patched, await code_of(client, "analytics.subscribe")) == (patch, analytics), role
    assert await (await kept.settings()).get("model") == "of admin"
    await kept.close()


@define
class StoppedClock(SystemClock):
    """A clock that stands still until somebody sets it."""

    at: datetime = T0

    def now(self) -> datetime:
        return self.at


def hiding(worker: WorkerServer, hidden: Callable[[Thread], bool]) -> WorkerServer:
    """A worker whose threads are for their own user where `hidden` says so."""

    @worker.authorize
    def may(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        return thread is None or thread.user_id == identity.user_id or not hidden(thread)

    return worker


async def walk(client: WorkerClient, limit: int) -> list[str]:
    """The threads of all pages, as a client sees them that follows the cursors to their end."""
    seen: list[str] = []
    cursor = None
    for _ in range(1000):
        page = (await client.ask("thread.list", {"limit": limit, "cursor": cursor}))["payload"]
        assert len(page["threads"]) <= limit
        seen += [thread["id"] for thread in page["threads"]]
        cursor = page.get("cursor")
        if cursor is None:
            return seen
    raise AssertionError("the list has no end")


@pytest.mark.parametrize(
    "shown", ["all", "none", "every second", "the last", "the first", "every seventh", "a block"]
)  # of a list whose every thread was active at one and the same instant, or each at its own
@pytest.mark.parametrize("ties", [True, False])
async def test_pages_hold_what_the_hook_shows_and_lose_and_repeat_nothing(shown: str, ties: bool) -> None:
    worker = hiding(WorkerServer(WorkerConfig(database_type="memory")), lambda thread: thread.title == "hidden")
    clock = StoppedClock()
    worker._parts.clock.override(providers.Object(clock))
    shows: Callable[[int], bool] = {
        "all": lambda n: True,
        "none": lambda n: False,
        "every second": lambda n: n % 2 == 0,
        "the last": lambda n: n == 99,
        "the first": lambda n: n == 0,
        "every seventh": lambda n: n % 7 == 0,
        "a block": lambda n: 40 <= n < 50,
    }[shown]
    repository = await worker.repository()
    made: list[Thread] = []
    for number in range(100):
        clock.at += timedelta(seconds=0 if ties else 1)
        title = "shown" if shows(number) else "hidden"
        made.append(await repository.create_thread("worker", "org-1", "ws-1", "owner", title))
    ordered = sorted(made, key=lambda thread: (thread.last_event_at, thread.id), reverse=True)
    expected = [thread.id for thread in ordered if thread.title == "shown"]
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="owner") as owner:
        for limit in (1, 3, 10, 50, 99, 100, 200):
            assert await walk(client, limit) == expected, limit
            assert await walk(owner, limit) == [thread.id for thread in ordered]
    await worker.close()


async def test_a_cursor_names_no_thread_that_is_hidden(worker: WorkerServer) -> None:
    hiding(worker, lambda thread: True)
    repository = await worker.repository()
    made = [(await repository.create_thread("worker", "org-1", "ws-1", "owner")).id for _ in range(30)]
    async with WorkerClient(worker) as client:
        page = (await client.ask("thread.list", {"limit": 1}))["payload"]
        assert page["threads"] == []
        told = base64.urlsafe_b64decode(page.get("cursor", "")).decode()
        assert [thread_id for thread_id in made if thread_id in told] == []


async def test_what_is_told_live_is_what_the_hook_shows_at_that_moment(worker: WorkerServer) -> None:
    open_doors = True
    hiding(worker, lambda thread: not open_doors)
    async with WorkerClient(worker) as owner, WorkerClient(worker, user_id="colleague") as other:
        await other.ask("analytics.subscribe")
        thread_id = (await owner.say("one")).thread_id
        assert (await other.ask("thread.subscribe", {"thread_id": thread_id}))["type"] == "thread.snapshot"
        await owner.say("two", thread_id)
        await other.ask("ping")
        kinds = {frame["type"] for frame in other.unread}
        assert kinds == {"thread.upsert", "event.append", "run.upsert", "analytics.event"}
        other.unread.clear()
        open_doors = False
        await owner.say("three", thread_id)
        await owner.say("and a thread of its own")
        await owner.ask("thread.delete", {"thread_id": thread_id})
        await other.ask("ping")
        assert other.unread == []


async def test_a_hook_that_raises_refuses_everything_and_keeps_the_socket(
    worker: WorkerServer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = False

    @worker.authorize
    def may(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        if broken:
            raise RuntimeError("the directory is down")
        return True

    async with WorkerClient(worker) as client:
        reply = await client.say("hi")
        broken = True
        assert set((await operations(client, reply)).values()) == {"FORBIDDEN", "NOT_FOUND"}
        broken = False
        assert (await client.say("hi", reply.thread_id)).text == "small: hi"
    assert "the directory is down" in caplog.text


async def test_a_strangers_thread_is_never_asked_of_the_hook(worker: WorkerServer) -> None:
    asked: list[Thread | None] = []

    @worker.authorize
    def may(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        asked.append(thread)
        return True

    async with WorkerClient(worker) as owner, WorkerClient(worker, organization_id="other") as stranger:
        reply = await owner.say("mine")
        asked.clear()
        codes = await operations(stranger, reply)
        assert {code for name, code in codes.items() if "settings" not in name} == {"NOT_FOUND", "ok"}
        assert [thread for thread in asked if thread is not None] == []
