"""What all doors for front ends have in common: who may come in, how much, and what becomes of a turn that nobody reads."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from attrs import evolve
from dependency_injector import providers
from dooers_contrib import ag_ui, ai_sdk, openai_api
from dooers_contrib.door import Asked, Door, Refused, Turn
from dooers_contrib.jwt import JwtAuthenticator
from dooers_contrib.telling import Telling, Told, file_part, link, mime_type_of
from front import Front, who
from starlette.requests import Request

from dooers import (
    AuthRequest,
    ConfigError,
    DocumentPart,
    ForbiddenError,
    Identity,
    ImagePart,
    TextPart,
    WorkerConfig,
    WorkerEvent,
    WorkerServer,
)
from dooers.brokers.memory import Hub, MemoryBroker

ALICE = {"authorization": "Bearer alice"}
DOORS: dict[str, Callable[..., Any]] = {
    "/ag-ui": ag_ui.ag_ui,
    "/api/chat": ai_sdk.ai_sdk,
    "/v1/chat/completions": openai_api.openai_api,
}


def body(path: str, text: str, place: str = "p1", message: str = "m1") -> dict[str, Any]:
    """A request in the words of each door."""
    match path:
        case "/ag-ui":
            messages = [{"id": message, "role": "user", "content": text}]
            return {"threadId": place, "runId": "r1", "messages": messages}
        case "/api/chat":
            return {
                "id": place,
                "messages": [{"id": message, "role": "user", "parts": [{"type": "text", "text": text}]}],
            }
        case _:
            said = [{"role": "user", "content": text}]
            return {"model": "worker", "messages": said, "metadata": {"thread_id": place}, "stream": True}


MEMORY = WorkerConfig(database_type="memory")


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    made = Front.of(MEMORY)
    yield made
    await made.worker.close()


def at(front: Front, path: str, **more: Any) -> Any:
    return DOORS[path](front.worker, **{"who": who, **more})


def inside(front: Front, path: str, **more: Any) -> httpx.AsyncClient:
    """A client in process, for what has no life in it."""
    transport = httpx.ASGITransport(front.app(at(front, path, **more)))
    return httpx.AsyncClient(transport=transport, base_url="http://app", headers=ALICE)


every_door = pytest.mark.parametrize("path", DOORS)


# ---------------------------------------------------------------- who


@every_door
async def test_there_is_no_door_without_a_hook(front: Front, path: str) -> None:
    with pytest.raises(TypeError, match="who"):
        DOORS[path](front.worker)
    with pytest.raises(ConfigError, match="expected a function"):
        DOORS[path](front.worker, who={"user_id": "alice"})


@every_door
async def test_a_stranger_is_refused_before_the_body_is_read(front: Front, path: str) -> None:
    async with inside(front, path) as client:
        answer = await client.post(path, content=b"{", headers={"authorization": "Bearer mallory"})
    assert (answer.status_code, front.ran) == (401, [])


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"organization_id": "o", "workspace_id": "w", "user_id": ""}, 500),
        ({"organization_id": "o", "workspace_id": "w"}, 500),
        ({"organization_id": None, "workspace_id": "w", "user_id": "u"}, 500),
        (True, 500),
        (ForbiddenError("not you"), 403),
        (RuntimeError("postgres://user:password@db"), 500),
    ],
)
async def test_what_the_hook_may_not_say_lets_nobody_in(front: Front, found: Any, status: int) -> None:
    async def hook(request: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    async with inside(front, "/ag-ui", who=hook) as client:
        answer = await client.post("/ag-ui", json=body("/ag-ui", "echo"))
    assert (answer.status_code, front.ran) == (status, [])
    assert "password" not in answer.text


async def test_the_hook_may_say_an_identity(front: Front) -> None:
    identity = Identity(organization_id="o", workspace_id="w", user_id="dora", organization_role="owner")
    seen: list[Identity] = []

    async def handler(identity: Identity) -> str:
        seen.append(identity)
        return "Yes."

    async with inside(front, "/ag-ui", who=lambda request: identity, handler=handler) as client:
        assert "Yes." in (await client.post("/ag-ui", json=body("/ag-ui", "echo"))).text
    assert seen == [identity]


async def test_an_authenticate_hook_serves_as_one(front: Front) -> None:
    key = "a key that the issuer and the worker share"
    claims = {"organization_id": "org", "workspace_id": "workspace"}
    authenticate = JwtAuthenticator(
        issuer="https://id.example.com", audience="doors", key=key, algorithms=["HS256"], claims=claims
    )
    nobody = Identity(organization_id="", workspace_id="", user_id="")

    async def hook(request: Request) -> Identity:
        return await authenticate(AuthRequest.of(request.scope, "worker", nobody, None))

    told = {"iss": "https://id.example.com", "aud": "doors", "sub": "eve", "org": "o", "workspace": "w"}
    token = jwt.encode({**told, "exp": time.time() + 60}, key, "HS256")
    async with inside(front, "/ag-ui", who=hook) as client:
        for sent, status in ((token, 200), (token[:-2], 401)):
            headers = {"authorization": f"Bearer {sent}"}
            answer = await client.post("/ag-ui", json=body("/ag-ui", "echo"), headers=headers)
            assert answer.status_code == status
    assert front.ran == ["echo"]


async def test_who_has_expired_is_a_stranger(front: Front) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    identity = Identity(organization_id="o", workspace_id="w", user_id="dora", expires_at=past)
    async with inside(front, "/ag-ui", who=lambda request: identity) as client:
        assert (await client.post("/ag-ui", json=body("/ag-ui", "echo"))).status_code == 401


@every_door
async def test_permissions_and_the_authorize_hook_hold_here_too(path: str) -> None:
    front = Front.of(evolve(MEMORY, permissions={"thread.post": ["member"]}))
    banned = list[str]()

    @front.worker.authorize
    def authorize(identity: Any, operation: str, thread: Any) -> bool:
        return not (operation == "thread.read" and thread is not None and thread.user_id in banned)

    async with inside(front, path) as client:
        assert (await client.post(path, json=body(path, "echo"))).status_code == 200
        banned.append("alice")
        assert (await client.post(path, json=body(path, "echo", message="m2"))).status_code == 404
    async with inside(front, path, who=lambda request: {**(who(request) or {}), "user_role": "guest"}) as client:
        assert (await client.post(path, json=body(path, "echo", "p2"))).status_code == 403
    assert front.ran == ["echo"]
    await front.worker.close()


@every_door
async def test_who_may_post_and_not_read_is_not_told_the_answer(path: str) -> None:
    front = Front.of(evolve(MEMORY, permissions={"thread.read": ["admin"]}))
    async with inside(front, path) as client:
        for asked in (body(path, "echo"), body(path, "echo", message="m2")):
            answer = await client.post(path, json=asked)
            assert (answer.status_code, "content" in answer.text) == (404, False)
    async with inside(front, path, who=lambda request: {**(who(request) or {}), "user_role": "admin"}) as client:
        assert (await client.post(path, json=body(path, "echo", message="m3"))).status_code == 200
    assert len(front.ran) == 2
    await front.worker.close()


@every_door
async def test_pages_of_other_origins_may_not_ask_where_that_is_said(path: str) -> None:
    front = Front.of(evolve(MEMORY, allowed_origins=["https://app.example.com"]))
    async with inside(front, path) as client:
        refused = await client.post(path, json=body(path, "echo"), headers={"origin": "https://evil.example.com"})
        assert (refused.status_code, front.ran) == (403, [])
        taken = await client.post(path, json=body(path, "echo"), headers={"origin": "https://app.example.com"})
        assert taken.status_code == 200
    await front.worker.close()


# ---------------------------------------------------------------- bodies


@every_door
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"x" * 2000, "application/json", 413),
        # What a page of another origin can send with its reader's cookies.
        (b'{"id": "p1"}', "text/plain", 415),
    ],
)
async def test_a_body_that_is_none(front: Front, path: str, content: bytes, kind: str, status: int) -> None:
    limit = 1000 if len(content) == 2000 else 1_000_000
    async with inside(front, path, max_body=limit) as client:
        answer = await client.post(path, content=content, headers={"content-type": kind})
    assert (answer.status_code, front.ran) == (status, [])


@every_door
async def test_text_that_no_database_takes_is_taken_or_refused(front: Front, path: str) -> None:
    async with inside(front, path) as client:
        asked = json.dumps(body(path, "echo \x00 \ud800")).encode()
        answer = await client.post(path, content=asked, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 422, 400)


def with_parts(path: str, parts: list[Any]) -> dict[str, Any]:
    asked = body(path, "echo")
    asked["messages"][0]["parts" if path == "/api/chat" else "content"] = parts
    return asked


@every_door
async def test_half_a_character_in_an_address_or_a_name_breaks_nothing(front: Front, path: str) -> None:
    url = "data:image/png;base64,\ud800"
    part = {
        "/ag-ui": {"type": "image", "source": {"type": "url", "value": url}},
        "/api/chat": {"type": "file", "mediaType": "image/png", "url": url},
        "/v1/chat/completions": {"type": "image_url", "image_url": {"url": url}},
    }[path]
    async with inside(front, path) as client:
        for asked in (with_parts(path, [part]), body(path, "echo", "\ud800"), body(path, "echo", message="\ud800")):
            ran = len(front.ran)
            answer = await client.post(path, content=json.dumps(asked), headers={"content-type": "application/json"})
            assert answer.status_code in (200, 422)
            if answer.status_code == 422:
                assert len(front.ran) == ran
            else:
                assert "RUN_FINISHED" in answer.text or answer.text.endswith("[DONE]\n\n")


@every_door
async def test_more_parts_than_may_be_are_refused_before_anything_is_made_of_them(front: Front, path: str) -> None:
    async with inside(front, path) as client:
        answer = await client.post(path, json=with_parts(path, [{}] * 101))
    assert (answer.status_code, front.ran) == (413, [])
    assert "at most 100 parts, got 101" in answer.text


@every_door
async def test_what_is_hung_onto_a_message_costs_nothing(front: Front, path: str) -> None:
    deep = "[" * 900 + "]" * 900
    asked = json.dumps(with_parts(path, [{"type": "text", "text": "echo", "more": "DEEP"}])).replace('"DEEP"', deep)
    async with inside(front, path) as client:
        answer = await client.post(path, content=asked, headers={"content-type": "application/json"})
    assert (answer.status_code, front.ran) == (200, ["echo"])


@every_door
async def test_an_address_without_end_is_none(front: Front, path: str) -> None:
    url = "https://example.com/" + "a" * 10_000
    part = {
        "/ag-ui": {"type": "image", "source": {"type": "url", "value": url}},
        "/api/chat": {"type": "file", "mediaType": "image/png", "url": url},
        "/v1/chat/completions": {"type": "image_url", "image_url": {"url": url}},
    }[path]
    async with inside(front, path) as client:
        answer = await client.post(path, json=with_parts(path, [part]))
    assert answer.status_code in (400, 422)
    assert "expected at most 8192 characters" in answer.text


async def test_no_more_messages_than_may_be_wait_for_an_answer_however_many_come_at_once(front: Front) -> None:
    door = Door("ai_sdk", front.worker, who)
    alice = Identity(organization_id="org", workspace_id="main", user_id="alice")
    limit = front.worker.config.max_turns_per_identity
    await front.worker.ensure_initialized()
    asked = [Asked(f"thread-{index}", [TextPart("stream many")], None) for index in range(2 * limit)]
    found = await asyncio.gather(*(door.dispatch(alice, one) for one in asked), return_exceptions=True)
    assert sum(isinstance(one, Turn) for one in found) == limit
    assert {one.code for one in found if isinstance(one, Refused)} == {"RATE_LIMITED"}
    front.gates["many"].set()


# ---------------------------------------------------------------- readers


@every_door
async def test_a_door_says_that_it_lives_while_there_is_nothing_to_say(front: Front, path: str) -> None:
    async with front.served(at(front, path, keep_alive=0.01)) as url:
        async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE) as client:
            async with client.stream("POST", url + path, json=body(path, "stream silence")) as answer:
                text = ""
                async for piece in answer.aiter_text():
                    text += piece
                    if ":\n\n" in text:
                        front.gates["silence"].set()
    assert "mundo" in text


@every_door
async def test_who_leaves_stops_nothing(front: Front, path: str) -> None:
    async with front.served(at(front, path)) as url:
        await _leave(url + path, body(path, "stream on"))
        front.gates["on"].set()
        assert await _stored(front, "stream on") == ["stream on", "Olá mundo 🌍"]


@every_door
async def test_who_leaves_stops_the_turn_where_that_is_wanted(front: Front, path: str) -> None:
    async with front.served(at(front, path, leaving_stops=True)) as url:
        await _leave(url + path, body(path, "stream off"))
        assert await _stored(front, "stream off", "canceled") == ["stream off", "Olá "]


async def test_who_leaves_stops_nothing_that_somebody_else_reads(front: Front) -> None:
    path = "/api/chat"
    async with front.served(at(front, path, leaving_stops=True)) as url:
        async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE) as client:
            async with client.stream("POST", url + path, json=body(path, "stream both")) as first:
                await _until(lambda: "stream both" in front.threads)
                async with client.stream("GET", f"{url}{path}/p1/stream") as second:
                    async for piece in second.aiter_text():
                        if "Olá" in piece:
                            break
                for _ in range(5):  # until the server has seen it leave
                    await client.post(f"{url}/gate/none")
                front.gates["both"].set()
                text = "".join([piece async for piece in first.aiter_text()])
    assert '"finish"' in text


async def test_who_leaves_before_the_first_word_stops_nothing_that_somebody_else_reads(front: Front) -> None:
    door = Door("ai_sdk", front.worker, who, leaving_stops=True)
    alice = Identity(organization_id="org", workspace_id="main", user_id="alice")
    turn = await door.dispatch(alice, Asked("thread", [TextPart("stream both")], ("m1",)))
    steps = door.told(turn)
    assert (await anext(steps)).kind == "run_start"

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    await door.answer(turn, Silent())({}, gone, never)
    front.gates["both"].set()
    assert [told.data async for told in steps if told.kind == "over"] == [{"status": "succeeded", "error": ""}]


class Silent:
    """A voice that says nothing."""

    def begin(self) -> list[str]:
        return [""]

    def say(self, told: Told) -> list[str]:
        return []


async def test_who_leaves_before_an_answer_in_one_piece_is_one_who_leaves(front: Front) -> None:
    path = "/v1/chat/completions"
    asked = {**body(path, "stream off"), "stream": False}
    async with front.served(at(front, path, leaving_stops=True)) as url:
        async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE) as client:
            asking = asyncio.ensure_future(client.post(url + path, json=asked))
            await _until(lambda: "stream off" in front.threads)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await _ended(front, "stream off", "canceled")


async def _leave(url: str, asked: dict[str, Any]) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE) as client:
        async with client.stream("POST", url, json=asked) as answer:
            async for piece in answer.aiter_text():
                if "Olá" in piece:
                    return


async def _until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not seen():
            await asyncio.sleep(0.002)


async def _ended(front: Front, message: str, status: str) -> None:
    repository = await front.worker.repository()
    async with asyncio.timeout(20):
        while not await repository.list_runs({"thread_id": front.threads[message], "status": status}):
            await asyncio.sleep(0.002)


async def _stored(front: Front, message: str, status: str = "succeeded") -> list[str]:
    """The texts of a thread, once the turn of this message has ended so."""
    await _ended(front, message, status)
    events = await (await front.worker.repository()).list_events(
        {"thread_id": front.threads[message]}, {"direction": "asc"}
    )
    return [event.text for event in events if event.type == "message"]


async def test_who_does_not_read_holds_up_nobody_and_is_given_up(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/api/chat"
    asked = json.dumps(body(path, "flood 256")).encode()  # 16 MB
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer alice\r\ncontent-type: application/json\r\n"
    with caplog.at_level(logging.WARNING), socket.socket() as deaf:
        async with front.served(at(front, path, patience=0.2)) as url:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            host, _, port = url.removeprefix("http://").partition(":")
            await loop.sock_connect(deaf, (host, int(port)))
            await loop.sock_sendall(deaf, f"{request}content-length: {len(asked)}\r\n\r\n".encode() + asked)
            async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE) as client:
                other = await client.post(url + path, json=body(path, "echo", "p2"))
            assert '"finish"' in other.text
            texts = await _stored(front, "flood 256")
            assert len(texts[1]) == 256 * 65536
            await _until(lambda: "was not read for 0.2 seconds" in caplog.text)
            deaf.close()


# ---------------------------------------------------------------- repeats


async def test_a_repeat_at_another_process_waits_for_the_whole_answer(
    worker_config: WorkerConfig,
) -> None:
    path = "/api/chat"
    front, elsewhere = Front.of(worker_config), Front.of(worker_config)
    async with front.served(at(front, path)) as here, elsewhere.served(at(elsewhere, path)) as there:
        async with httpx.AsyncClient(trust_env=False, verify=False, headers=ALICE, timeout=20) as client:
            await _leave(here + path, body(path, "stream one"))
            async with client.stream("POST", there + path, json=body(path, "stream one")) as again:
                front.gates["one"].set()
                text = "".join([piece async for piece in again.aiter_text()])
    assert "mundo" in text
    assert text.endswith("[DONE]\n\n")
    assert (front.ran, elsewhere.ran) == (["stream one"], [])
    await front.worker.close()
    await elsewhere.worker.close()


async def test_a_repeat_of_what_waits_at_another_process_has_the_whole_answer_too(worker_config: WorkerConfig) -> None:
    path, hub = "/api/chat", Hub()
    front, elsewhere = Front.of(worker_config), Front.of(worker_config)
    for one in (front, elsewhere):
        one.worker._parts.broker.override(providers.Object(MemoryBroker(hub=hub)))
    async with inside(front, path) as here, inside(elsewhere, path) as there, asyncio.timeout(20):
        first = asyncio.ensure_future(here.post(path, json=body(path, "stream first")))
        await _until(lambda: "stream first" in front.threads)
        asked = body(path, "echo", message="m2")
        waiting = asyncio.ensure_future(here.post(path, json=asked))
        await _until(lambda: front.worker.stats().turns_waiting == 1)
        again = asyncio.ensure_future(there.post(path, json=asked))
        await _until(lambda: elsewhere.worker.stats().turns_waiting == 1)  # as the first one has left no trace so far
        front.gates["first"].set()
        answers = [(await one).text for one in (first, waiting, again)]
    assert front.ran + elsewhere.ran == ["stream first", "echo"]
    assert [('"text-delta"' in text, text.endswith("[DONE]\n\n")) for text in answers] == [(True, True)] * 3
    await front.worker.close()
    await elsewhere.worker.close()


@every_door
async def test_a_failed_turn_fails_again_when_it_is_asked_for_again(front: Front, path: str) -> None:
    async with inside(front, path) as client:
        headers = {"idempotency-key": "k"}
        first, again = [(await client.post(path, json=body(path, "refuse"), headers=headers)).text for _ in range(2)]
    assert "There is no credit left." in first
    assert "There is no credit left." in again
    assert front.ran == ["refuse"]


@every_door
async def test_an_answer_of_nothing_has_its_end(front: Front, path: str) -> None:
    async with inside(front, path) as client:
        text = (await client.post(path, json=body(path, "empty"))).text
    assert "RUN_FINISHED" in text or text.endswith("[DONE]\n\n")


# ---------------------------------------------------------------- pieces


def test_steps_of_what_a_handler_says() -> None:
    telling = Telling()
    kinds = []
    for event in (
        WorkerEvent("delta", {"event_id": "a", "text": "x"}),
        WorkerEvent("delta", {"event_id": "b", "text": "y"}),
        WorkerEvent("tool_result", {"id": "1", "name": "dice", "result": 4}),
        WorkerEvent("run_end", {"status": "succeeded", "error": None}),
    ):
        kinds += [(told.kind, told.id) for told in telling.take(event)]
    kinds += [(told.kind, told.id) for told in telling.close()]
    assert kinds == [
        ("text_start", "a"),
        ("text_delta", "a"),
        ("text_end", "a"),
        ("text_start", "b"),
        ("text_delta", "b"),
        ("tool_call", "1"),
        ("tool_result", "1"),
        ("run_end", ""),
        ("text_end", "b"),
    ]


def test_results_without_an_id_belong_to_the_calls_of_their_name_in_order() -> None:
    telling = Telling()
    said = [("tool_call", "1", "dice"), ("tool_call", "2", "dice"), ("tool_call", "3", "clock")]
    said += [("tool_result", "x", "dice"), ("tool_result", "3", "clock"), ("tool_result", "y", "dice")]
    events = [WorkerEvent(kind, {"id": id, "name": name}) for kind, id, name in said]  # type: ignore[arg-type]
    assert [told.id for event in events for told in telling.take(event)] == ["1", "2", "3", "1", "3", "2"]


def test_files_by_what_their_urls_say() -> None:
    assert file_part("data:image/png;base64,AA", None) == ImagePart("data:image/png;base64,AA", mime_type="image/png")
    assert file_part("https://a/b/c.pdf?x=1", None) == DocumentPart("https://a/b/c.pdf?x=1", "c.pdf", "application/pdf")
    assert file_part("http://[", None) == DocumentPart("http://[", "file", "application/octet-stream")
    assert mime_type_of("data:,x") is None
    assert link(Told("image", data={"url": "https://a/<b>", "alt": "a]\n(b"})) == "![a\\] (b](<https://a/%3Cb%3E>)"


def test_a_thread_belongs_to_a_person_in_a_place_of_a_worker() -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory"))
    alice = Identity(organization_id="o", workspace_id="w", user_id="alice")
    others = [
        Identity(organization_id="o", workspace_id="w", user_id="bob"),
        Identity(organization_id="o2", workspace_id="w", user_id="alice"),
        Identity(organization_id="o", workspace_id="w2", user_id="alice"),
    ]
    door, another = Door("x", worker, who), Door("x", worker, who, "another")
    found = {door.thread_of(alice, "p"), door.thread_of(alice, "q"), another.thread_of(alice, "p")}
    assert len(found | {door.thread_of(one, "p") for one in others}) == 6
    assert door.thread_of(alice, "p") == Door("y", worker, who).thread_of(alice, "p")


@every_door
def test_every_kind_of_step_has_a_translation(path: str) -> None:
    module = {"/ag-ui": ag_ui, "/api/chat": ai_sdk, "/v1/chat/completions": openai_api}[path]
    kinds = {"text_start", "text_delta", "text_end", "image", "document", "tool_call", "tool_result"}
    assert set(module.SAYS) - {"over"} == kinds | {"update_thread", "run_start", "run_end"}
