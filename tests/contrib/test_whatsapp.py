"""WhatsApp's webhook: what Meta brings is stored once before it is acknowledged, and answered once, whatever Meta's API does."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from attrs import Factory, define
from dooers_contrib.channel import pieces
from dooers_contrib.whatsapp import whatsapp
from fakes import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dooers import ConfigError, WorkerConfig, WorkerServer

SECRET = "the app's secret"
MEDIA = b"\x89PNG of no great size"


@define
class Meta:
    """The Cloud API. Answers to messages with `replies` in turn, then 200."""

    url: str = ""
    replies: list[Any] = Factory(list)
    sent: list[dict[str, Any]] = Factory(list)
    tried: int = 0
    uploads: list[bytes] = Factory(list)
    media: dict[str, Any] = Factory(lambda: {"mime_type": "image/png"})
    media_status: int = 200
    arrived: asyncio.Event = Factory(asyncio.Event)

    async def messages(self, request: Request) -> Response:
        self.tried += 1
        self.arrived.set()
        status, body, headers = self.replies.pop(0) if self.replies else (200, {"messages": [{"id": "wamid.out"}]}, {})
        if status == 200:
            self.sent.append(await request.json())
        return JSONResponse(body, status, headers)

    async def upload(self, request: Request) -> Response:
        self.uploads.append(await request.body())
        return JSONResponse({"id": "uploaded"})

    async def about(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer token"
        return JSONResponse({"url": f"{self.url}/file", **self.media}, self.media_status)

    async def file(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer token"
        return Response(MEDIA)

    @property
    def texts(self) -> list[str]:
        return [one["text"]["body"] for one in self.sent if one["type"] == "text"]


@pytest.fixture
async def meta() -> AsyncIterator[Meta]:
    made = Meta()
    routes = [
        Route("/v1/{number}/messages", made.messages, methods=["POST"]),
        Route("/v1/{number}/media", made.upload, methods=["POST"]),
        Route("/v1/file", made.file),
        Route("/v1/{media}", made.about),
    ]
    async with serving(Starlette(routes=routes)) as address:
        made.url = f"http://{address}/v1"
        yield made


ran: list[str] = []


async def echo(incoming: Any, send: Any) -> AsyncIterator[Any]:
    ran.append(incoming.message)
    yield send.text(f"You said: {incoming.message}")


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    made = WorkerServer(worker_config)
    made.handler(echo)
    ran.clear()
    yield made
    await made.close()


def endpoint(worker: WorkerServer, meta: Meta, **more: Any) -> Any:
    more = {"pause": 0.001, "api_url": meta.url, **more}
    return whatsapp(worker, access_token="token", app_secret=SECRET, verify_token="verify", **more)


@asynccontextmanager
async def hook(worker: WorkerServer, meta: Meta, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the webhook. An answer comes back when what went on behind it is over, too."""
    route = Route("/hook", endpoint(worker, meta, **more), methods=["GET", "POST"])
    transport = httpx.ASGITransport(Starlette(routes=[route]))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


def payload(*messages: Any, number: str = "111") -> bytes:
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "1", "phone_number_id": number},
        "contacts": [{"wa_id": "4917", "profile": {"name": "Ann"}}],
        "messages": list(messages),
    }
    change = {"field": "messages", "value": value}
    return json.dumps({"object": "whatsapp_business_account", "entry": [{"id": "9", "changes": [change]}]}).encode()


def said(text: str, id: str = "wamid.1", sender: str = "4917") -> dict[str, Any]:
    return {"from": sender, "id": id, "timestamp": "1", "type": "text", "text": {"body": text}}


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {"x-hub-signature-256": "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()}


async def post(client: httpx.AsyncClient, body: bytes) -> int:
    return (await client.post("/hook", content=body, headers=signed(body))).status_code


async def threads(worker: WorkerServer) -> list[Any]:
    return await (await worker.repository()).list_threads()


# ---------------------------------------------------------------- who is at the door


async def test_the_challenge_is_answered_to_whoever_knows_the_token(worker: WorkerServer, meta: Meta) -> None:
    asked = {"hub.mode": "subscribe", "hub.verify_token": "verify", "hub.challenge": "1158201444"}
    async with hook(worker, meta) as client:
        answer = await client.get("/hook", params=asked)
        assert (answer.status_code, answer.text) == (200, "1158201444")
        assert answer.headers["content-type"].startswith("text/plain")
        for wrong in ({"hub.verify_token": "wrong"}, {"hub.verify_token": "ä"}, {"hub.mode": "x"}):
            assert (await client.get("/hook", params={**asked, **wrong})).status_code == 403
        assert (await client.get("/hook")).status_code == 403


async def test_what_is_not_signed_with_the_secret_is_refused_unread(worker: WorkerServer, meta: Meta) -> None:
    body = payload(said("hi"))
    right = signed(body)["x-hub-signature-256"]
    async with hook(worker, meta) as client:
        for header in (None, "", "sha256=", right[:-1], right.upper(), right[7:], b"sha256=\xe4", signed(body, "x")):
            headers: Any = (
                header if isinstance(header, dict) else {} if header is None else {"x-hub-signature-256": header}
            )
            assert (await client.post("/hook", content=body, headers=headers)).status_code == 401
        cut = await client.post("/hook", content=body[:-5], headers=signed(body))
        assert cut.status_code == 401
        huge = b"x" * (4 * 1024 * 1024 + 1)
        assert (await client.post("/hook", content=huge, headers=signed(huge))).status_code == 413
    assert (ran, await threads(worker)) == ([], [])


@pytest.mark.parametrize("empty", ["access_token", "app_secret", "verify_token"])
async def test_an_empty_secret_is_refused_at_once(worker: WorkerServer, empty: str) -> None:
    secrets: dict[str, Any] = {"access_token": "a", "app_secret": "b", "verify_token": "c", empty: ""}
    with pytest.raises(ConfigError, match=empty):
        whatsapp(worker, **secrets)


async def test_a_body_that_breaks_off_is_no_error_of_the_application(worker: WorkerServer, meta: Meta) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Starlette(routes=[Route("/hook", endpoint(worker, meta), methods=["POST"])])
    scope = {"type": "http", "method": "POST", "path": "/hook", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 400


HOSTILE: list[Any] = [
    *(
        None,
        [],
        5,
        "x",
        {},
        {"entry": 5},
        {"entry": [None, {"changes": "x"}]},
        {"entry": [{"changes": [{"value": 5}]}]},
    ),
    {"entry": [{"changes": [{"value": {"metadata": {"phone_number_id": "../me"}, "messages": [said("x")]}}]}]},
    *(
        json.loads(payload(message))
        for message in [
            {},
            {"from": [], "id": {}},
            {"from": "1", "id": "2", "type": {}},
            {"from": "1", "id": "2", "type": "text", "text": "x"},
            {"from": "1", "id": "2", "type": "interactive", "interactive": {"type": {"a": 1}}},
            {"from": "1", "id": "2", "type": "location", "location": {"latitude": "x"}},
            {"from": "1", "id": "2", "type": "reaction", "reaction": {"emoji": "x"}},
            {"from": "1", "id": "3" * 5000, "type": "text", "text": {"body": "an id that is too long"}},
        ]
    ),
]


@pytest.mark.parametrize("shape", HOSTILE, ids=range(len(HOSTILE)))
async def test_odd_shapes_are_read_past(worker: WorkerServer, meta: Meta, shape: Any) -> None:
    async with hook(worker, meta) as client:
        assert await post(client, json.dumps(shape).encode()) == (200 if isinstance(shape, dict) else 400)
        for broken in (b"", b"{", b"[" * 100_000, b"\xff"):
            assert await post(client, broken) == 400
        assert await post(client, payload(said("still\x00 here"))) == 200
    assert len(ran) == 1


async def test_statuses_are_acknowledged_and_nothing_else(worker: WorkerServer, meta: Meta) -> None:
    value = {"metadata": {"phone_number_id": "111"}, "statuses": [{"id": "wamid.1", "status": "read"}]}
    async with hook(worker, meta) as client:
        assert await post(client, json.dumps({"entry": [{"changes": [{"value": value}]}]}).encode()) == 200
    assert (ran, await threads(worker)) == ([], [])


# ---------------------------------------------------------------- one turn for a message


async def test_a_message_is_answered_in_the_one_thread_of_its_phone(worker: WorkerServer, meta: Meta) -> None:
    async with hook(worker, meta) as client:
        assert await post(client, payload(said("one", "a"), said("two", "b"))) == 200
        assert await post(client, payload(said("other", "c", "4918"))) == 200
        assert await post(client, payload(said("elsewhere", "d"), number="222")) == 200
    assert meta.texts == [f"You said: {text}" for text in ("one", "two", "other", "elsewhere")]
    assert [one["to"] for one in meta.sent] == ["4917", "4917", "4918", "4917"]
    found = await threads(worker)
    assert len({thread.id for thread in found}) == 3
    assert {thread.owner.user_name for thread in found} == {"Ann", ""}


async def test_a_redelivery_runs_nothing_and_sends_nothing(worker: WorkerServer, meta: Meta) -> None:
    async with hook(worker, meta) as client:
        for _ in range(3):
            assert await post(client, payload(said("hi"))) == 200
        await asyncio.gather(*(post(client, payload(said("at once", "b"))) for _ in range(10)))
    assert ran == ["hi", "at once"]
    assert len(meta.sent) == 2


async def test_two_processes_with_one_delivery_answer_it_once(postgres_config: WorkerConfig, meta: Meta) -> None:
    ran.clear()
    workers = [WorkerServer(postgres_config), WorkerServer(postgres_config)]
    for worker in workers:
        worker.handler(echo)
    try:
        async with hook(workers[0], meta) as one, hook(workers[1], meta) as two:
            for number in range(10):
                body = payload(said(f"{number}", f"id-{number}"))
                assert list(await asyncio.gather(post(one, body), post(two, body))) == [200, 200]
        assert ran == [f"{number}" for number in range(10)]
        assert len(meta.sent) == 10
    finally:
        for worker in workers:
            await worker.close()


async def test_what_could_not_be_stored_is_asked_for_again(
    worker_config: WorkerConfig, meta: Meta, tmp_path: Any
) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "missing" / "worker.db")))
    worker.handler(echo)
    ran.clear()
    async with hook(worker, meta) as client:
        assert await post(client, payload(said("hi"))) == 503
        (tmp_path / "missing").mkdir()
        assert await post(client, payload(said("hi"))) == 200
    assert meta.texts == ["You said: hi"]
    await worker.close()


async def test_200_is_said_before_the_handler_has_ended(worker: WorkerServer, meta: Meta) -> None:
    go, answered = asyncio.Event(), asyncio.Event()

    async def slow(send: Any) -> AsyncIterator[Any]:
        await go.wait()
        yield send.text("at last")

    app = Starlette(routes=[Route("/hook", endpoint(worker, meta, handler=slow), methods=["POST"])])
    async with serving(app) as address, httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
        assert await post(client, payload(said("hi"))) == 200
        answered.set()
        assert meta.sent == []
        assert len(await threads(worker)) == 1
        go.set()
        async with asyncio.timeout(30):
            await meta.arrived.wait()
            while not meta.sent:
                await asyncio.sleep(0.002)
    assert meta.texts == ["at last"]


async def test_a_request_that_is_cut_off_loses_no_message(worker: WorkerServer, meta: Meta) -> None:
    async with hook(worker, meta) as client:
        task = asyncio.create_task(post(client, payload(said("hi"))))
        await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await post(client, payload(said("hi"))) == 200
        async with asyncio.timeout(30):
            while not meta.sent:
                await asyncio.sleep(0.002)
    assert (ran, meta.texts) == (["hi"], ["You said: hi"])


# ---------------------------------------------------------------- what people send


async def test_captions_buttons_and_places_are_texts_and_say_what_they_were(worker: WorkerServer, meta: Meta) -> None:
    base = {"from": "4917", "timestamp": "1"}
    messages = [
        {"type": "interactive", "interactive": {"type": "button_reply", "button_reply": {"id": "y", "title": "Yes"}}},
        {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": {"id": "z", "title": "Blue"}}},
        {"type": "button", "button": {"payload": "p", "text": "Stop"}},
        {"type": "location", "location": {"latitude": 1.5, "longitude": 2, "name": "Home"}},
    ]
    async with hook(worker, meta) as client:
        for number, message in enumerate(messages):
            assert await post(client, payload({**base, "id": str(number), **message})) == 200
    assert ran == ["Yes", "Blue", "Stop", "Location: Home (1.5, 2)"]
    [thread] = await threads(worker)
    events = await (await worker.repository()).list_events(
        {"thread_id": thread.id, "actor": "user"}, {"direction": "asc"}
    )
    assert [(event.data or {})["whatsapp"].get("reply_id") for event in events] == ["y", "z", "p", None]


@pytest.mark.parametrize(
    ("kind", "mime", "part"),
    [("image", "image/png", "image"), ("audio", "audio/ogg; codecs=opus", "document"), ("document", "a<b", "document")],
)
async def test_media_come_with_their_bytes(worker: WorkerServer, meta: Meta, kind: str, mime: str, part: str) -> None:
    seen: list[Any] = []

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        seen.extend(incoming.content)
        yield send.text("thanks")

    meta.media = {"mime_type": mime}
    message = {"from": "4917", "id": "m", "type": kind, kind: {"id": "77", "caption": "look"}}
    async with hook(worker, meta, handler=handler) as client:
        assert await post(client, payload(message)) == 200
    assert [one.type for one in seen] == ["text", part]
    assert seen[0].text == "look"
    assert httpx.URL(seen[1].url).scheme == "data"
    assert seen[1].url.startswith(
        f"data:{mime.partition(';')[0] if kind != 'document' else 'application/octet-stream'};base64,"
    )


async def test_media_that_never_come_are_said_in_words_and_those_that_may_are_asked_for_again(
    worker: WorkerServer, meta: Meta
) -> None:
    message = {"from": "4917", "id": "m", "type": "image", "image": {"id": "77"}}
    async with hook(worker, meta, max_media_bytes=5) as client:
        meta.media_status = 500
        assert await post(client, payload(message)) == 503
        assert (ran, await threads(worker)) == ([], [])
        meta.media_status = 404
        assert await post(client, payload({**message, "id": "a"})) == 200
        meta.media_status = 200
        assert await post(client, payload({**message, "id": "b"})) == 200
        meta.media = {"url": "http://elsewhere.example/file"}
        assert await post(client, payload({**message, "id": "c"})) == 200
        assert await post(client, payload({**message, "id": "d", "image": {"id": "../../me"}})) == 200
    reasons = ("status 404", "it has more than 5 bytes", "it has no address", "it has no id")
    assert ran == [f"[image that could not be read: {reason}]" for reason in reasons]


async def test_what_a_lookup_knows_is_who_they_are_and_kept_with_the_message(worker: WorkerServer, meta: Meta) -> None:
    seen: list[Any] = []

    async def handler(incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        [event] = await memory.get_history_raw(limit=1)
        seen.append((incoming.context.user_name, incoming.context.organization_id, event.data["customer"]))
        yield send.text("ok")

    customers = {"4917": {"user_name": "Ann Smith", "organization_id": "acme", "plan": "gold"}}

    async def asynchronous(number: str) -> Any:
        return customers.get(number)

    for number, lookup in enumerate((customers.get, asynchronous)):
        async with hook(worker, meta, handler=handler, lookup=lookup) as client:
            assert await post(client, payload(said("hi", f"a{number}"))) == 200
            assert await post(client, payload(said("hi", f"b{number}", "4918"))) == 200
    assert seen == [("Ann Smith", "acme", customers["4917"]), ("", "whatsapp", None)] * 2


async def test_a_lookup_that_fails_has_the_message_brought_again(worker: WorkerServer, meta: Meta) -> None:
    def lookup(number: str) -> Any:
        raise ConnectionError("the CRM is down")

    async with hook(worker, meta, lookup=lookup) as client:
        assert await post(client, payload(said("hi"))) == 503
    assert ran == []


# ---------------------------------------------------------------- what people are sent


async def test_trouble_that_passes_is_waited_for(worker: WorkerServer, meta: Meta) -> None:
    slow_down = {"error": {"code": 131056, "message": "pair rate limit"}}
    meta.replies = [(429, {}, {"retry-after": "0"}), (500, {}, {}), (400, slow_down, {})]
    async with hook(worker, meta) as client:
        assert await post(client, payload(said("hi"))) == 200
    assert (meta.tried, meta.texts) == (4, ["You said: hi"])


async def test_what_is_refused_for_good_is_tried_once(
    worker: WorkerServer, meta: Meta, caplog: pytest.LogCaptureFixture
) -> None:
    meta.replies = [(400, {"error": {"code": 131047, "message": "Re-engagement message"}}, {})]
    async with hook(worker, meta) as client:
        assert await post(client, payload(said("hi"))) == 200
        assert meta.tried == 1
        assert "Re-engagement" in caplog.text
        assert await post(client, payload(said("again", "b"))) == 200
    assert meta.texts == ["You said: again"]


async def test_an_api_that_is_away_costs_the_answer_and_not_the_turn(
    worker: WorkerServer, meta: Meta, caplog: pytest.LogCaptureFixture
) -> None:
    async with hook(worker, meta, api_url="http://127.0.0.1:1/v1", attempts=3) as client:
        assert await post(client, payload(said("hi"))) == 200
    assert "was not sent: 3 attempts, the last one: ConnectError" in caplog.text
    [thread] = await threads(worker)
    assert [event.text for event in await (await worker.repository()).list_events({"thread_id": thread.id})] == [
        "You said: hi",
        "hi",
    ]


async def test_answers_of_one_conversation_go_out_in_order(worker: WorkerServer, meta: Meta) -> None:
    meta.replies = [(500, {}, {})] * 3
    async with hook(worker, meta) as client:
        await asyncio.gather(*(post(client, payload(said(str(number), f"m{number}"))) for number in range(5)))
    assert meta.texts == [f"You said: {text}" for text in ran]


async def test_a_failed_handler_is_apologized_for(worker: WorkerServer, meta: Meta) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("so far")
        raise ValueError("secret")

    async with hook(worker, meta, handler=handler) as client:
        assert await post(client, payload(said("hi"))) == 200
    async with hook(worker, meta, handler=handler, sorry=None) as client:
        assert await post(client, payload(said("hi", "b"))) == 200
    assert meta.texts == ["so far", "Sorry, something went wrong. Please try again.", "so far"]


async def test_long_texts_images_and_documents(worker: WorkerServer, meta: Meta) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("x" * 5000)
        yield send.text("  \n")
        yield send.image("https://example.com/a.png", alt="A")
        yield send.image("data:image/png;base64,aGVsbG8=")
        yield send.document("data:text/plain,hello", "a.txt", "text/plain")

    async with hook(worker, meta, handler=handler) as client:
        assert await post(client, payload(said("hi"))) == 200
    assert [len(text) for text in meta.texts] == [4096, 904]
    assert [one[one["type"]] for one in meta.sent[2:]] == [
        {"link": "https://example.com/a.png", "caption": "A"},
        {"id": "uploaded"},
        {"id": "uploaded", "filename": "a.txt"},
    ]
    assert [b"hello" in upload for upload in meta.uploads] == [True, True]


@pytest.mark.parametrize(
    "text", ["", "short", "word " * 3000, "a" * 9000, "line\n" * 2000, "😀" * 5000, "a" + "😀" * 4096]
)
def test_pieces_are_within_the_limit_and_lose_nothing(text: str) -> None:
    found = pieces(text, 4096)
    assert all(0 < len(piece.encode("utf-16-le")) // 2 <= 4096 for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())
