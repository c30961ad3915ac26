"""Programs written for the predecessor run as they are: its names, its parameters, its ways past the handler.

The programs here are of that time in everything they call; only what they say is ours.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from attrs import evolve
from fakes import chat, serving
from fastapi import FastAPI, Request, WebSocket

import dooers
from dooers import (
    AnalyticsBatch,
    AnalyticsEvent,
    AnalyticsEventPayload,
    BroadcastManager,
    ConnectionRegistry,
    DispatchError,
    FeedbackData,
    ForbiddenError,
    Handler,
    Identity,
    InvalidValueError,
    Metadata,
    NotFoundError,
    Persistence,
    TextPart,
    Thread,
    User,
    WorkerConfig,
    WorkerEvent,
    WorkerIncoming,
    WorkerSend,
    WorkerServer,
)
from dooers.client import Appended, Looked
from dooers.testing import WorkerClient

EXPORTED = """
    Actor AnalyticsBatch AnalyticsCollector AnalyticsEvent AnalyticsEventPayload BroadcastManager ConnectionRegistry ContentPart
    DispatchError DispatchStream DocumentPart EventType FeedbackData Handler HandlerError ImagePart Metadata Persistence Repository
    Run RunStatus SettingsBroadcaster SettingsField SettingsFieldGroup SettingsFieldType SettingsSchema SettingsSelectOption TextPart
    Thread ThreadEvent WorkerAnalytics WorkerConfig WorkerContext WorkerIncoming WorkerMemory WorkerSend WorkerServer WorkerSettings
""".split()  # noqa: SIM905
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "ana"}


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    worker = WorkerServer(worker_config)

    @worker.handler
    async def told(incoming: WorkerIncoming, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        yield send.text(f"{incoming.context.metadata.user_name}: {incoming.message}")

    yield worker
    await worker.close()


def client(worker: WorkerServer, **who: str) -> WorkerClient:
    return WorkerClient(worker, worker_id="worker", **{**WHO, **who})


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", EXPORTED)
def test_what_could_be_imported_can_be(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert getattr(dooers, name) is not None


@pytest.mark.parametrize("name", ["AnalyticsCollector", "SettingsBroadcaster"])
def test_an_inner_part_says_that_nobody_needs_it(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"dooers.{name} is an inner part of the worker: drop the import"):
        getattr(dooers, name)


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dooers' has no attribute 'Agent'"):
        dooers.Agent  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from dooers import Agent  # type: ignore[attr-defined]  # noqa: F401


def test_its_data_classes_are_made_by_its_fields() -> None:
    now = datetime.now(UTC)
    payload = AnalyticsEventPayload(event=AnalyticsEvent.MESSAGE_C2S, timestamp=now, worker_id="w")
    assert AnalyticsBatch(batch_id="b", worker_id="w", events=[payload], sent_at=now).events == [payload]
    assert FeedbackData(target_type="event", target_id="e").reason is None
    thread = Thread(id="t", worker_id="w", user_id="ana", created_at=now, updated_at=now, last_event_at=now)
    assert (thread.organization_id, thread.owner) == ("", User(user_id="ana"))


def test_metadata_is_an_identity_of_which_everything_may_be_left_out() -> None:
    assert isinstance(Metadata(), Identity)
    assert Metadata(user_id="ana", user_name=None).user == User(user_id="ana")


# ---------------------------------------------------------------- dispatch(metadata=...)


@pytest.mark.parametrize(
    "given",
    [
        {"metadata": Metadata(**WHO, user_name="Ana")},
        {"metadata": Identity(**WHO, user_name="Ana")},
        {"metadata": {**WHO, "user_name": "Ana"}},
        {"metadata": {"organization_id": "org-1", "user_name": "Ana"}, "workspace_id": "ws-1", "user_id": "ana"},
        {"metadata": {**WHO, "user_role": None}, "user_name": "Ana", "user_id": "ana"},
        {**WHO, "user_name": "Ana"},
    ],
)
async def test_whom_a_dispatch_is_for_is_said_together_or_one_by_one(
    worker: WorkerServer, given: dict[str, Any]
) -> None:
    stream = await worker.dispatch(message="hi", **given)
    assert [event.data["text"] for event in await stream.collect()] == ["Ana: hi"]
    thread = await (await worker.repository()).get_thread(stream.thread_id)
    assert thread is not None
    assert (thread.organization_id, thread.workspace_id, thread.owner) == (
        "org-1",
        "ws-1",
        User(user_id="ana", user_name="Ana"),
    )


async def test_what_metadata_leaves_out_is_empty(worker: WorkerServer) -> None:
    stream = await worker.dispatch(message="hi", metadata=Metadata(user_id="ana"))
    thread = await (await worker.repository()).get_thread(stream.thread_id)
    await stream.collect()
    assert thread is not None
    assert (thread.organization_id, thread.workspace_id, thread.user_id) == ("", "", "ana")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "organization_id, workspace_id, user_id: expected a text, got none"),
        ({"user_id": "ana"}, "organization_id, workspace_id: expected a text"),
        ({"metadata": "ana"}, "metadata: expected a Metadata, an Identity or a mapping, got 'ana'"),
        ({"metadata": {"user": "ana"}}, "nobody is told by 'user' (did you mean 'user_id'?)"),
        ({"metadata": {"plan": "gold"}}, "For what is not about the sender there is `data`"),
        ({"metadata": {"user_id": 5}}, "user_id: expected a text, got 5"),
        (
            {"metadata": Metadata(user_id="ana"), "user_id": "bob"},
            "user_id: given twice, as 'bob' and in metadata as 'ana'",
        ),
        ({"metadata": {"user_id": "x" * 300}}, "at most 256 characters"),
    ],
)
async def test_metadata_that_says_nobody_is_refused(worker: WorkerServer, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(DispatchError) as caught:
        await worker.dispatch(message="hi", **wrong)
    assert told in str(caught.value)
    assert caught.value.code == "INVALID_VALUE"


async def test_a_handler_is_given_what_came_with_the_message(worker: WorkerServer) -> None:
    @worker.handler("plan")
    async def plan(incoming: WorkerIncoming) -> str:
        return str(incoming.data)

    stream = await worker.dispatch("plan", message="hi", data={"plan": "gold"}, **WHO)
    assert (await stream.collect())[0].data["text"] == "{'plan': 'gold'}"
    stream = await worker.dispatch("plan", message="hi", **WHO)
    assert (await stream.collect())[0].data["text"] == "None"


async def test_what_a_client_claims_is_not_what_your_code_said(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)

    @worker.handler
    async def plan(incoming: WorkerIncoming) -> str:
        return f"{incoming.data} {incoming.client_data}"

    async with serving(worker.asgi_app()) as address, chat(f"ws://{address}/ws", worker_id="worker", **WHO) as eve:
        event = {
            "type": "message",
            "actor": "user",
            "content": [{"type": "text", "text": "hi"}],
            "data": {"plan": "gold"},
        }
        await eve.send("event.create", event=event)
        while "None {'plan': 'gold'}" not in str(await eve.until("event.append")):
            pass


# ---------------------------------------------------------------- worker.broadcast


async def test_an_event_from_outside_reaches_who_follows_the_thread_and_is_stored(worker: WorkerServer) -> None:
    assert isinstance(worker.broadcast, BroadcastManager)
    async with client(worker) as ana, client(worker, user_id="bob") as bob, client(worker, organization_id="org-2"):
        thread_id = (await ana.say("hi")).thread_id
        await bob.history(thread_id)  # sees it, and does not follow it
        async with aclosing(ana.watch(thread_id)) as updates:
            assert isinstance(await anext(updates), Looked)
            event, count = await worker.broadcast.send_event(
                "worker", thread_id, [TextPart("Lunch!")], actor="assistant"
            )
            async for update in updates:
                if isinstance(update, Appended) and update.event.id == event.id:
                    break
    assert count == 1
    stored = await (await worker.repository()).get_event(event.id)
    assert stored is not None
    assert (stored.text, stored.actor, stored.user) == ("Lunch!", "assistant", None)


@pytest.mark.parametrize(
    ("said", "user"),
    [
        ({}, User()),
        ({"metadata": Metadata(user_id="ana", user_name="Ana")}, User(user_id="ana", user_name="Ana")),
        ({"metadata": {"user_id": "ana"}}, User(user_id="ana")),
        ({"user_id": "ana", "user_email": "ana@example.com"}, User(user_id="ana", user_email="ana@example.com")),
    ],
)
async def test_a_message_of_a_person_says_whose_it_is(worker: WorkerServer, said: dict[str, Any], user: User) -> None:
    thread, _ = await worker.broadcast.create_thread_and_broadcast("worker")
    event, count = await worker.broadcast.send_event("worker", thread.id, [TextPart("hi")], "user", **said)
    assert (event.user, count) == (user, 0)


async def test_nothing_is_sent_into_a_thread_that_is_not_there_or_another_workers(worker: WorkerServer) -> None:
    thread, _ = await worker.broadcast.create_thread_and_broadcast("worker")
    with pytest.raises(NotFoundError, match="there is no thread 'nope'"):
        await worker.broadcast.send_event("worker", "nope", [TextPart("hi")])
    with pytest.raises(ForbiddenError, match="does not belong to worker 'other'"):
        await worker.broadcast.send_event("other", thread.id, [TextPart("hi")])
    with pytest.raises(ForbiddenError):
        await worker.broadcast.send_thread_update("other", thread)
    assert await worker.persistence.get_events(thread.id) == []


async def test_a_thread_from_outside_is_seen_in_its_own_place_only(worker: WorkerServer) -> None:
    async with client(worker) as ana, client(worker, organization_id="org-2") as eve:
        who = Metadata(**WHO, user_name="Ana")
        thread, count = await worker.broadcast.create_thread_and_broadcast("worker", who, title="New")
        assert (thread.title, thread.owner, count) == ("New", who.user, 1)
        assert [one.id for one in (await ana.threads()).items] == [thread.id]
        assert (await eve.threads()).items == []


async def test_a_threads_title_is_stored_before_it_is_told(worker: WorkerServer) -> None:
    thread, _ = await worker.broadcast.create_thread_and_broadcast("worker", Metadata(**WHO))
    async with client(worker) as ana:
        assert await worker.broadcast.send_thread_update("worker", evolve(thread, title="Renamed")) == 1
        assert (await ana.threads()).items[0].title == "Renamed"


# ---------------------------------------------------------------- worker.registry


async def test_the_registry_counts_and_reaches_the_connections_of_a_worker_id(worker: WorkerServer) -> None:
    assert isinstance(worker.registry, ConnectionRegistry)
    assert worker.registry.get_connection_count("worker") == 0
    async with (
        serving(worker.asgi_app()) as address,
        chat(f"ws://{address}/ws", worker_id="worker", **WHO) as ana,
        client(worker),
    ):
        assert worker.registry.get_connection_count("worker") == 2
        assert worker.registry.get_connection_count("other") == 0
        assert (
            await worker.registry.broadcast("worker", '{"id": "1", "type": "maintenance", "payload": {"at": 5}}') == 2
        )
        assert (await ana.until("maintenance"))["at"] == 5
        with pytest.raises(InvalidValueError, match="expected a text, got dict"):
            await worker.registry.broadcast("worker", {})  # type: ignore[arg-type]


# ---------------------------------------------------------------- worker.persistence


async def test_persistence_reads_what_the_worker_wrote(worker: WorkerServer) -> None:
    persistence = worker.persistence
    assert isinstance(persistence, Persistence)
    async with client(worker) as ana:
        first = await ana.say("one")
        await ana.say("two", first.thread_id)
    place: dict[str, Any] = {"worker_id": "worker", "organization_id": "org-1", "workspace_id": "ws-1"}
    (thread,) = await persistence.list_threads(**place, user_id=None, cursor=None, limit=10)
    assert await persistence.list_threads(**place, user_id="bob", limit=10) == []
    assert await persistence.list_threads(**place, cursor=thread.last_event_at.isoformat()) == []
    assert (await persistence.count_threads(**place, user_id="ana"), await persistence.get_thread("nope")) == (1, None)
    messages = {"type": "message"}
    events = await persistence.get_events(thread.id, filters=messages)
    assert [event.text for event in events] == ["one", ": one", "two", ": two"]
    backwards = await persistence.get_events(thread.id, order="desc", limit=2, filters=messages)
    assert [event.text for event in backwards] == [": two", "two"]
    between = await persistence.get_events(thread.id, after_event_id=events[0].id, before_event_id=events[3].id)
    assert [event.text for event in between if event.type == "message"] == [": one", "two"]
    assert await persistence.get_event(events[0].id) == events[0]
    await persistence.delete_event(events[0].id)
    assert await persistence.get_event(events[0].id) is None
    await persistence.delete_thread(thread.id)
    assert await persistence.get_thread(thread.id) is None


async def test_a_cursor_without_a_time_zone_is_utc() -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory"))
    async with worker.lifespan():
        thread, _ = await worker.broadcast.create_thread_and_broadcast("worker")
        for later, found in ((0, []), (1, [thread])):
            cursor = (thread.last_event_at + timedelta(seconds=later)).replace(tzinfo=None).isoformat()
            assert await worker.persistence.list_threads("worker", "", "", cursor=cursor) == found


async def test_persistence_reads_runs_and_writes_settings(worker: WorkerServer) -> None:
    @worker.handler("run")
    async def run(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        yield send.run_end()

    await (await worker.dispatch("run", message="go", metadata=Metadata(**WHO))).collect()
    (found,) = await worker.persistence.list_runs(worker_id="worker", status="succeeded")
    assert await worker.persistence.get_run(found.id) == found
    assert await worker.persistence.list_runs(thread_id="nope") == []
    await worker.persistence.set_settings("worker", {"a": 1, "b": 2})
    assert await worker.persistence.update_setting("worker", "b", 3) <= datetime.now(UTC)
    assert await worker.persistence.get_settings("worker") == {"a": 1, "b": 3}


async def test_a_thread_keeps_the_id_that_it_is_given_and_is_made_once(worker: WorkerServer) -> None:
    now = datetime.now(UTC)
    thread = Thread(
        id="wa_1", worker_id="worker", user_id="ana", title="A", created_at=now, updated_at=now, last_event_at=now
    )
    for title in ("A", "B"):
        await worker.persistence.create_thread(evolve(thread, title=title))
    kept = await worker.persistence.get_thread("wa_1")
    assert kept is not None
    assert (kept.title, kept.user_id) == ("A", "ana")
    await worker.persistence.update_thread(evolve(kept, title="C"))
    kept = await worker.persistence.get_thread("wa_1")
    assert kept is not None
    assert kept.title == "C"


async def test_an_id_of_another_tenant_is_not_given_away(worker: WorkerServer) -> None:
    repository = await worker.repository()
    await repository.create_thread("worker", "org-1", "ws-1", "ana", "Secret", id="t-1")
    assert (await repository.create_thread("worker", "org-1", "ws-1", "bob", id="t-1")).title == "Secret"
    with pytest.raises(NotFoundError):
        await repository.create_thread("worker", "org-2", "ws-1", "eve", id="t-1")


# ---------------------------------------------------------------- a whole program


async def test_a_program_of_that_time_runs_as_it_is(worker_config: WorkerConfig) -> None:
    worker_server = WorkerServer(worker_config)
    app = FastAPI(lifespan=worker_server.lifespan)

    async def echo(request, response, memory, analytics, settings):  # type: ignore[no-untyped-def]
        yield response.run_start(agent_id="echo")
        await analytics.track("echoed", {"length": len(request.message)})
        yield response.text(f"{request.context.metadata.user_id or 'nobody'} said: {request.message}")
        yield response.update_thread(title=request.message[:60])
        yield response.run_end()

    handler: Handler = echo

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await worker_server.handle(websocket, handler)

    @app.post("/webhook/{worker_id}")
    async def webhook(worker_id: str, request: Request) -> dict[str, Any]:
        body = await request.json()
        thread_id = f"webhook_{worker_id}_{body['sender']}"
        persistence, broadcast = worker_server.persistence, worker_server.broadcast
        if await persistence.get_thread(thread_id) is None:
            now = datetime.now(UTC)
            thread = Thread(
                id=thread_id,
                worker_id=worker_id,
                user_id=body["sender"],
                title=body["sender"],
                created_at=now,
                updated_at=now,
                last_event_at=now,
            )
            await persistence.create_thread(thread)
            await broadcast.send_thread_update(worker_id, thread)
        await broadcast.send_event(
            worker_id=worker_id,
            thread_id=thread_id,
            content=[TextPart(text=body["text"])],
            actor="user",
            user_id=body["sender"],
        )
        stream = await worker_server.dispatch(
            handler=handler,
            worker_id=worker_id,
            message=body["text"],
            metadata=Metadata(user_id=body["sender"]),
            thread_id=thread_id,
            thread_title="Webhook",
            content=None,
        )
        texts = [event.data["text"] async for event in stream if event.send_type == "text"]
        return {"thread_id": stream.thread_id, "texts": texts, "is_new": stream.is_new_thread}

    async with serving(app) as address, httpx.AsyncClient(trust_env=False) as http:
        async with chat(
            f"ws://{address}/ws", worker_id="w-1", user_id="ana", organization_id="", workspace_id=""
        ) as ana:
            frames = await ana.say("hello")
            assert "ana said: hello" in str(frames)
            for is_first in (True, False):
                response = await http.post(f"http://{address}/webhook/w-1", json={"sender": "+49", "text": "hi"})
                assert response.json() == {"thread_id": "webhook_w-1_+49", "texts": ["+49 said: hi"], "is_new": False}
                await ana.until("thread.upsert")
                assert worker_server.registry.get_connection_count("w-1") == 1, is_first


@pytest.mark.parametrize("wrong", [0, -1, True, "5"])
async def test_a_limit_that_is_none_is_told(worker: WorkerServer, wrong: Any) -> None:
    with pytest.raises(InvalidValueError, match="limit: expected a number from 1"):
        await worker.persistence.get_events("t", limit=wrong)
    with pytest.raises(InvalidValueError, match="limit: expected a number from 1"):
        await worker.persistence.list_runs(limit=wrong)
    assert await worker.persistence.list_runs(limit=1 << 80) == []
