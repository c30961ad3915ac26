"""Telegram's webhook: updates as its own types write them are taken once, and the answers are what its own client would send."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
import telegram as vendor
from attrs import Factory, define, evolve
from dooers_contrib.channel import NEXT_SIGN
from dooers_contrib.telegram import telegram
from fakes import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from telegram.error import RetryAfter

from dooers import ConfigError, WorkerConfig, WorkerServer

TOKEN = "4242:the-token-that-nobody-may-see"
HIDDEN = TOKEN.partition(":")[2]
SECRET = "what-setWebhook-was-given"
PNG = b"\x89PNG of no great size"
SLOW_DOWN = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 0}}
REFUSED = {"ok": False, "error_code": 400, "description": "Bad Request: wrong HTTP URL specified"}
NO_PREVIEW = {"is_disabled": True}


@define
class Telegram:
    """The Bot API. Answers `replies` to what sends something, in turn, then ok; `files` are what there is, by id."""

    url: str = ""
    replies: list[Any] = Factory(list)
    calls: list[tuple[str, dict[str, Any]]] = Factory(list)
    files: dict[str, dict[str, Any]] = Factory(dict)
    file_status: int = 200
    named: int = 0
    typing: asyncio.Event = Factory(asyncio.Event)

    async def call(self, request: Request) -> Response:
        method = request.path_params["method"]
        if method == "getMe":
            self.named += 1
            me = {"id": 4242, "is_bot": True, "first_name": "Helper", "username": "Helper_bot"}
            return JSONResponse({"ok": True, "result": me})
        told = await fields(request)
        if method == "getFile":
            found = self.files.get(told["file_id"])
            answer = {"ok": True, "result": found} if found else {"ok": False, "error_code": 400, "description": "big"}
            return JSONResponse(answer, 200 if found else 400)
        self.calls.append((method, told))
        if method == "sendChatAction":
            self.typing.set()
            return JSONResponse({"ok": True, "result": True})
        status, body = self.replies.pop(0) if self.replies else (200, {"ok": True, "result": SENT})
        return JSONResponse(body, status)

    async def file(self, request: Request) -> Response:
        return Response(PNG, self.file_status)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [told for method, told in self.calls if method == "sendMessage"]

    @property
    def texts(self) -> list[str]:
        return [told["text"] for told in self.sent]


SENT = {"message_id": 900, "date": 1, "chat": {"id": 7, "type": "private"}, "text": "ok"}


async def fields(request: Request) -> dict[str, Any]:
    """What a method is called with, whether it came as JSON or as a form, whose fields are JSON where they are no texts."""
    if request.headers.get("content-type") == "application/json":
        found = await request.json()
        assert isinstance(found, dict)
        return found
    kind, body = request.headers.get("content-type", ""), await request.body()
    if not kind.startswith("multipart/"):
        return {name: read(value) for name, value in parse_qsl(body.decode())}
    form = message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + body)
    told: dict[str, Any] = {}
    for part in form.walk():
        data = part.get_payload(decode=True)
        if isinstance(data, bytes):
            name = str(part.get_param("name", header="content-disposition"))
            told[name] = read(data.decode()) if part.get_filename() is None else (part.get_filename(), data)
    return told


def read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


@pytest.fixture
async def api() -> AsyncIterator[Telegram]:
    made = Telegram()
    routes = [
        Route(f"/bot{TOKEN}/{{method}}", made.call, methods=["POST"]),
        Route(f"/file/bot{TOKEN}/photos/file_1.jpg", made.file),
    ]
    async with serving(Starlette(routes=routes)) as address:
        made.url = f"http://{address}"
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


@asynccontextmanager
async def hook(worker: WorkerServer, api: Telegram, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    more = {"pause": 0.001, "api_url": api.url, **more}
    route = Route("/hook", telegram(worker, bot_token=TOKEN, secret_token=SECRET, **more), methods=["POST"])
    transport = httpx.ASGITransport(Starlette(routes=[route]))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


async def post(client: httpx.AsyncClient, update: Any) -> int:
    """Post an update: of Telegram's types, or any JSON."""
    body = update.to_json() if isinstance(update, vendor.Update) else json.dumps(update)
    return (await client.post("/hook", content=body, headers={"x-telegram-bot-api-secret-token": SECRET})).status_code


ANN = vendor.User(7, "Ann", False, last_name="Lee", username="annlee", language_code="de")
BEN = vendor.User(8, "Ben", False)
ME = vendor.User(4242, "Helper", True, username="helper_bot")
OTHER_BOT = vendor.User(9, "Other", True)
PRIVATE = vendor.Chat(7, "private")
GROUP = vendor.Chat(-100123, "supergroup")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def message(
    text: str | None = None, number: int = 1, chat: vendor.Chat = PRIVATE, who: Any = ANN, **more: Any
) -> vendor.Message:
    return vendor.Message(number, NOW, chat, from_user=who, text=text, **more)


def said(
    text: str | None = None, number: int = 1, chat: vendor.Chat = PRIVATE, who: Any = ANN, **more: Any
) -> vendor.Update:
    return vendor.Update(5000 + number, message=message(text, number, chat, who, **more))


def marks(kind: str, offset: int, length: int, **more: Any) -> Any:
    return {"entities": [vendor.MessageEntity(kind, offset, length, **more)]}


async def threads(worker: WorkerServer) -> list[Any]:
    return await (await worker.repository()).list_threads()


# ---------------------------------------------------------------- who is at the door


async def test_who_does_not_know_the_secret_is_refused_unread(worker: WorkerServer, api: Telegram) -> None:
    body = said("hi").to_json()
    wrong: list[Any] = [None, "", SECRET[:-1], SECRET.upper(), f"{SECRET} x", b"\xe4"]
    async with hook(worker, api) as client:
        for token in wrong:
            headers: Any = {} if token is None else {"x-telegram-bot-api-secret-token": token}
            assert (await client.post("/hook", content=body, headers=headers)).status_code == 401
        headers = {"x-telegram-bot-api-secret-token": SECRET}
        assert (await client.post("/hook", content=b"x" * (4 * 1024 * 1024 + 1), headers=headers)).status_code == 413
    assert (ran, await threads(worker)) == ([], [])


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"bot_token": ""}, "bot_token.: expected a text that is not empty"),
        ({"bot_token": "4242"}, "as BotFather gives it"),
        ({"bot_token": f"{TOKEN}/../x"}, "as BotFather gives it"),
        ({"secret_token": " "}, "secret_token.: expected a text that is not empty"),
        ({"secret_token": "with a space"}, "as setWebhook wants it"),
        ({"groups": "some"}, "expected one of addressed, all, none, got 'some'"),
    ],
)
async def test_what_cannot_work_is_refused_at_once(worker: WorkerServer, wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        telegram(worker, **{"bot_token": TOKEN, "secret_token": SECRET, **wrong})
    assert HIDDEN not in str(raised.value)


ODD: list[dict[str, Any]] = [
    {},
    {"chat": {"id": "../getMe"}, "text": "x"},
    {"from": {"id": 7}, "text": "whether it is a bot is not said"},
    {"message_id": 10**40, "text": "x"},
    {"photo": [5, {"file_size": "x"}], "text": 5},
    {"photo": []},
    {"location": {"latitude": "x"}},
    {"new_chat_members": [{"id": 7}]},
    {"text": "/x", "entities": [{"type": "bot_command", "offset": 0, "length": 10**30}], "from": {"id": []}},
    {"text": "@x", "entities": [5, {"type": "mention", "offset": -1, "length": {}}], "chat": {"id": -1}},
]
HOSTILE: list[Any] = [
    *(None, [], 5, "x", {}, {"message": 5}, {"message": {"chat": 5, "from": 6}}, {"message": {"message_id": [1]}}),
    *(
        {"message": {"message_id": 1, "chat": {"id": 7, "type": "private"}, "from": {"id": 7, "is_bot": False}, **more}}
        for more in ODD
    ),
]  # fmt: skip


async def test_odd_shapes_are_read_past(worker: WorkerServer, api: Telegram) -> None:
    headers = {"x-telegram-bot-api-secret-token": SECRET}
    async with hook(worker, api) as client:
        for shape in HOSTILE:
            assert await post(client, shape) == (200 if isinstance(shape, dict) else 400)
        for broken in (b"", b"{", b"[" * 100_000, b"\xff"):
            assert (await client.post("/hook", content=broken, headers=headers)).status_code == 400
        assert [text for text in ran if "could not be read" not in text] == []
        odd = {"type": "bot_command", "offset": 0, "length": 999}
        odd_start: dict[str, Any] = said("/\ud800 still\x00 here", 77).to_dict()
        odd_start["message"]["entities"] = [odd, {"type": "mention", "offset": 10**9, "length": 1}]
        assert await post(client, odd_start) == 200
    assert "here" in ran[-1]


# ---------------------------------------------------------------- one turn for a message


async def test_a_redelivery_runs_nothing_and_sends_nothing(worker: WorkerServer, api: Telegram) -> None:
    async with hook(worker, api) as client:
        for _ in range(3):
            assert await post(client, said("hi")) == 200
        again = vendor.Update(9999, message=said("hi").message)  # another number for what has come already
        assert await asyncio.gather(*(post(client, one) for one in [again, *[said("at once", 2)] * 10])) == [200] * 11
    assert (ran, len(api.sent)) == (["hi", "at once"], 2)


async def test_two_processes_with_one_delivery_answer_it_once(postgres_config: WorkerConfig, api: Telegram) -> None:
    ran.clear()
    workers = [WorkerServer(postgres_config), WorkerServer(postgres_config)]
    for worker in workers:
        worker.handler(echo)
    try:
        async with hook(workers[0], api) as one, hook(workers[1], api) as two:
            for number in range(3):
                assert await asyncio.gather(*(post(at, said("hi", number)) for at in (one, two))) == [200, 200]
        assert (ran, len(api.sent)) == (["hi"] * 3, 3)
    finally:
        for worker in workers:
            await worker.close()


async def test_a_chat_is_a_thread_and_so_is_a_topic_and_another_bot_has_its_own(
    worker: WorkerServer, api: Telegram
) -> None:
    topic: dict[str, Any] = {"is_topic_message": True}
    async with hook(worker, api, groups="all") as client:
        for update in (said("one"), said("two", 2)):
            assert await post(client, update) == 200
        assert len(await threads(worker)) == 1
        assert await post(client, said("group", 3, GROUP)) == 200
        assert await post(client, said("a reply has a thread id too", 4, GROUP, BEN, message_thread_id=3)) == 200
        assert len(await threads(worker)) == 2
        assert await post(client, said("topic", 5, GROUP, message_thread_id=3, **topic)) == 200
        assert await post(client, said("the other", 6, GROUP, message_thread_id=4, **topic)) == 200
        assert len(await threads(worker)) == 4
    assert [one.get("message_thread_id") for one in api.sent] == [None, None, None, None, 3, 4]
    route = Route(
        "/hook", telegram(worker, bot_token="5:x", secret_token=SECRET, attempts=1, api_url=api.url), methods=["POST"]
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(Starlette(routes=[route])), base_url="http://app"
    ) as other:
        assert await post(other, said("one")) == 200
    assert ran[-1] == "one"
    found = await threads(worker)
    assert len(found) == 5
    assert {thread.owner.user_name for thread in found} == {"Ann Lee"}


async def test_with_private_threads_people_of_a_group_have_their_own(
    worker_config: WorkerConfig, api: Telegram
) -> None:
    worker = WorkerServer(evolve(worker_config, private_threads=True))
    worker.handler(echo)
    async with hook(worker, api, groups="all") as client:
        assert await post(client, said("one", 1, GROUP)) == 200
        assert await post(client, said("two", 2, GROUP, BEN)) == 200
    assert len(await threads(worker)) == 2
    await worker.close()


# ---------------------------------------------------------------- what is answered

NAMED = "hey @helper_BOT you"
MEANT: dict[str, vendor.Update] = {
    "a command": said("/help me", 1, GROUP, **marks("bot_command", 0, 5)),
    "a command to us": said("/help@Helper_bot me", 1, GROUP, **marks("bot_command", 0, 16)),
    "our name": said(NAMED, 1, GROUP, **marks("mention", 4, 11)),
    "our name after what is two units in UTF-16": said("😀😀 @helper_bot", 1, GROUP, **marks("mention", 5, 11)),
    "us by a link": said("hey you", 1, GROUP, **marks("text_mention", 4, 3, user=ME)),
    "a reply": said("and?", 1, GROUP, reply_to_message=message("so", 99, GROUP, ME)),
    "our name under a picture": said(
        None, 1, GROUP, caption="@helper_bot", caption_entities=marks("mention", 0, 11)["entities"], location=None,
        photo=[vendor.PhotoSize("photo", "u", 1, 1)],
    ),
}  # fmt: skip
NOT_MEANT: dict[str, vendor.Update] = {
    "people among themselves": said("hi Ben", 1, GROUP),
    "a command in the middle": said("try /help", 1, GROUP, **marks("bot_command", 4, 5)),
    "another's name": said("hey @helper_bot2", 1, GROUP, **marks("mention", 4, 12)),
    "an address that is no mention": said("mail me@helper_bot", 1, GROUP),
    "somebody by a link": said("hey Ben", 1, GROUP, **marks("text_mention", 4, 3, user=BEN)),
    "a reply to somebody": said("and?", 1, GROUP, reply_to_message=message("so", 99, GROUP, BEN)),
    "a topic that we opened": said(
        "hi", 1, GROUP, is_topic_message=True, message_thread_id=99,
        reply_to_message=message(None, 99, GROUP, ME, forum_topic_created=vendor.ForumTopicCreated("t", 1)),
    ),
}  # fmt: skip
NEVER: dict[str, vendor.Update] = {
    "a command to another bot": said("/help@other_bot", 1, GROUP, **marks("bot_command", 0, 15)),
    "a bot": said("hi", who=OTHER_BOT),
    "ourselves": said("@helper_bot", 1, GROUP, ME, **marks("mention", 0, 11)),
    "a channel's post": said("hi", 1, GROUP, vendor.User(777000, "Telegram", False), is_automatic_forward=True),
    "an edit": vendor.Update(1, edited_message=message("edited")),
    "a post in a channel": vendor.Update(1, channel_post=message("post", who=None)),
    "somebody who joins": said(None, 1, GROUP, new_chat_members=[BEN]),
    "a button of somebody's": vendor.Update(1, callback_query=vendor.CallbackQuery("1", ANN, "x", data="y")),
}


@pytest.mark.parametrize("what", [*MEANT, *NOT_MEANT, *NEVER])
async def test_in_a_group_what_is_said_to_the_bot_is_answered(worker: WorkerServer, api: Telegram, what: str) -> None:
    update = {**MEANT, **NOT_MEANT, **NEVER}[what]
    async with hook(worker, api) as client:
        assert await post(client, update) == 200
    assert len(api.sent) == (what in MEANT)
    async with hook(worker, api, groups="all", worker_id="all") as client:
        assert await post(client, update) == 200
    assert len(api.sent) == 2 * (what in MEANT) + (what in NOT_MEANT)
    async with hook(worker, api, groups="none", worker_id="none") as client:
        assert await post(client, update) == 200
    assert len(api.sent) == 2 * (what in MEANT) + (what in NOT_MEANT)


async def test_a_command_is_a_message_and_said_apart(worker: WorkerServer, api: Telegram) -> None:
    start = said("/start from-the-site", 1, **marks("bot_command", 0, 6))
    help_me = said("/help@Helper_bot me", 2, GROUP, **marks("bot_command", 0, 16))
    reply = said("yes", 3, reply_to_message=message("so?", 99, PRIVATE, ME))
    async with hook(worker, api) as client:
        for update in (start, help_me, reply):
            assert await post(client, update) == 200
    assert ran == ["/start from-the-site", "/help me", "yes"]
    assert api.named == 1
    repository = await worker.repository()
    events = [
        event
        for thread in await threads(worker)
        for event in await repository.list_events({"thread_id": thread.id, "actor": "user"})
    ]
    told = {event.text: (event.data or {})["telegram"] for event in events}
    assert [told[text].get("command") for text in ran] == ["start", "help", None]
    assert told["yes"] == {
        "update_id": "5003",
        "message_id": "3",
        "chat_id": "7",
        "chat_type": "private",
        "username": "annlee",
        "language": "de",
        "reply_to": "99",
    }
    # In a group it is seen what an answer is to, whatever was said meanwhile.
    answers = [one.get("reply_parameters") for one in api.sent]
    assert answers == [None, {"message_id": 2, "allow_sending_without_reply": True}, None]


async def test_a_name_that_cannot_be_looked_up_has_the_message_brought_again(
    worker: WorkerServer, api: Telegram, caplog: pytest.LogCaptureFixture
) -> None:
    async with hook(worker, api, api_url="http://127.0.0.1:1", timeout=1) as client:
        assert await post(client, MEANT["our name"]) == 503
        assert await post(client, MEANT["us by a link"]) == 200
    assert len(ran) == 1
    assert HIDDEN not in caplog.text


# ---------------------------------------------------------------- what people attach


PHOTO = [vendor.PhotoSize(f"size-{size}", f"u{size}", size, size, file_size=size) for size in (50, 100, 10**9)]
FILE: dict[str, Any] = {"file_id": "f", "file_unique_id": "u"}
JPG = {"file_id": "f", "file_unique_id": "u", "file_path": "photos/file_1.jpg"}


def sticker(is_animated: bool) -> vendor.Sticker:
    return vendor.Sticker(**FILE, width=1, height=1, is_animated=is_animated, is_video=False, type="regular")


ATTACHED: dict[str, tuple[dict[str, Any], str, str]] = {
    "photo": ({"photo": PHOTO}, "image", "image/jpeg"),
    "voice": ({"voice": vendor.Voice(**FILE, duration=1)}, "document", "audio/ogg"),
    "document": (
        {"document": vendor.Document(**FILE, mime_type="application/pdf", file_name="a.pdf")},
        "document", "application/pdf",
    ),
    "an image as a document": ({"document": vendor.Document(**FILE, mime_type="image/png")}, "image", "image/png"),
    "a type that is none": ({"document": vendor.Document(**FILE, mime_type="a<b")}, "document", "application/octet-stream"),
    "audio": ({"audio": vendor.Audio(**FILE, duration=1, mime_type="audio/mp4")}, "document", "audio/mp4"),
    "animation": (
        {"animation": vendor.Animation(**FILE, width=1, height=1, duration=1), "document": vendor.Document(**FILE)},
        "document", "video/mp4",
    ),
    "sticker": ({"sticker": sticker(is_animated=False)}, "image", "image/webp"),
    "a sticker that moves": ({"sticker": sticker(is_animated=True)}, "document", "application/x-tgsticker"),
}  # fmt: skip


async def test_attachments_come_with_their_bytes(worker: WorkerServer, api: Telegram) -> None:
    seen: list[Any] = []

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        seen.append(incoming.content)
        yield send.text("thanks")

    api.files = {"f": JPG, "size-100": JPG}
    async with hook(worker, api, handler=handler, max_media_bytes=1000) as client:
        for number, (attached, _, _) in enumerate(ATTACHED.values()):
            assert await post(client, said(None, number, caption="look", **attached)) == 200
    for name, content in zip(ATTACHED, seen, strict=True):
        _, kind, mime = ATTACHED[name]
        assert ([one.type for one in content], content[0].text, content[1].mime_type) == (["text", kind], "look", mime)
        assert httpx.URL(content[1].url).path.startswith(f"{mime};base64,")
    assert seen[2][1].filename == "a.pdf"
    assert seen[1][1].filename == "voice.ogg"
    [thread] = await threads(worker)
    stored = await (await worker.repository()).list_events({"thread_id": thread.id})
    assert "the-token" not in repr(stored)


async def test_what_never_comes_is_said_in_words_and_what_may_is_asked_for_again(
    worker: WorkerServer, api: Telegram
) -> None:
    def document(number: int, **more: Any) -> vendor.Update:
        return said(None, number, document=vendor.Document(**FILE, **more))

    async with hook(worker, api, max_media_bytes=5) as client:
        assert await post(client, document(1)) == 200
        assert await post(client, document(2, file_size=6)) == 200
        for number, path in enumerate(("/var/lib/bot/file", "../../getMe", "a?b", "a#b", "", "photos/none.jpg")):
            api.files["f"] = {**JPG, "file_path": path}
            assert await post(client, document(3 + number)) == 200
        api.files["f"] = JPG
        assert await post(client, document(20)) == 200
        api.file_status = 502
        assert await post(client, document(30)) == 503
        assert await post(client, document(31)) == 503
    reasons = [
        *("Telegram does not give it", "it has more than 5 bytes", *["it has no address"] * 5),
        *("status 404", "it has more than 5 bytes"),
    ]
    assert ran == [f"[document that could not be read: {reason}]" for reason in reasons]


async def test_places_are_texts(worker: WorkerServer, api: Telegram) -> None:
    home = vendor.Location(latitude=1.5, longitude=2)
    async with hook(worker, api) as client:
        assert await post(client, said(None, 1, location=home)) == 200
        venue = vendor.Venue(title="Home", address="x", location=home)
        assert await post(client, said(None, 2, location=home, venue=venue)) == 200
    assert ran == ["Location: 1.5, 2", "Location: Home (1.5, 2)"]


# ---------------------------------------------------------------- what people are sent


async def test_what_is_sent_is_what_telegrams_own_client_sends(worker: WorkerServer, api: Telegram) -> None:
    """`python-telegram-bot` against the same server, told to do the same: the same methods, with the same fields."""

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("hello")
        yield send.image("https://example.com/a.png", alt="A")
        yield send.image("data:image/png;base64,aGVsbG8=")
        yield send.image("data:image/svg+xml,%3Csvg/%3E", alt="drawn")
        yield send.document("data:text/plain,hello", "a.txt", "text/plain")
        yield send.document("https://example.com/a.pdf", "a.pdf", "application/pdf")

    asked = said("/go", 5, GROUP, is_topic_message=True, message_thread_id=3, **marks("bot_command", 0, 3))
    async with hook(worker, api, handler=handler) as client:
        assert await post(client, asked) == 200
    ours, api.calls = api.calls, []

    to: dict[str, Any] = {"chat_id": GROUP.id, "message_thread_id": 3}
    to["reply_parameters"] = vendor.ReplyParameters(5, allow_sending_without_reply=True)
    form = vendor.InputFile
    async with vendor.Bot(TOKEN, base_url=f"{api.url}/bot") as bot:
        await bot.send_message(text="hello", link_preview_options=vendor.LinkPreviewOptions(is_disabled=True), **to)
        await bot.send_photo(photo="https://example.com/a.png", caption="A", **to)
        await bot.send_photo(photo=form(b"hello", "image.png", attach=False), **to)
        await bot.send_document(document=form(b"<svg/>", "image.svg+xml", attach=False), caption="drawn", **to)
        await bot.send_document(document=form(b"hello", "a.txt", attach=False), **to)
        await bot.send_document(document="https://example.com/a.pdf", **to)
    theirs = api.calls
    assert [method for method, _ in ours] == [method for method, _ in theirs]
    for (method, one), (_, other) in zip(ours, theirs, strict=True):
        assert one == other, method


async def test_trouble_that_passes_is_waited_for_and_is_what_the_vendor_takes_for_it(
    worker: WorkerServer, api: Telegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTB_TIMEDELTA", "1")  # how its next version has it, and without a warning
    api.replies = [(429, SLOW_DOWN), (502, {}), (500, {"ok": False})]
    async with hook(worker, api) as client:
        assert await post(client, said("hi")) == 200
    assert api.texts == ["You said: hi"] * 4
    api.replies = [(429, {**SLOW_DOWN, "parameters": {"retry_after": 7}})]
    async with vendor.Bot(TOKEN, base_url=f"{api.url}/bot") as bot:
        with pytest.raises(RetryAfter, match="Retry in 0:00:07"):
            await bot.send_message(7, "x")


async def test_telegram_says_for_how_long_and_is_believed(
    worker: WorkerServer, api: Telegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    async def handler(send: Any) -> AsyncIterator[Any]:
        monkeypatch.setattr("dooers_contrib.channel.asyncio.sleep", sleep)
        yield send.text("hello")

    api.replies = [(429, {**SLOW_DOWN, "parameters": {"retry_after": wait}}) for wait in (3, 9999)]
    async with hook(worker, api, handler=handler) as client:
        assert await post(client, said("hi")) == 200
    monkeypatch.undo()
    assert [one for one in slept if one >= 1 and one != NEXT_SIGN] == [3, 60]
    assert api.texts == ["hello"] * 3


async def test_what_is_refused_for_good_is_tried_once(
    worker: WorkerServer, api: Telegram, caplog: pytest.LogCaptureFixture
) -> None:
    api.replies = [(403, {"ok": False, "description": "Forbidden: bot was blocked by the user"}), (200, {"hello": 1})]
    async with hook(worker, api) as client:
        assert await post(client, said("hi")) == 200
        assert await post(client, said("hi", 2)) == 200
        assert len(api.sent) == 2
        assert await post(client, said("hi", 3)) == 200
    assert "was not sent: status 403" in caplog.text
    assert "was not sent: an answer that is none of Telegram's" in caplog.text
    assert len(api.sent) == 3


async def test_what_telegram_does_not_fetch_goes_as_a_link(worker: WorkerServer, api: Telegram) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.image("https://example.com/a.png", alt="A")
        yield send.document("https://example.com/a.txt", "a.txt", "text/plain")

    api.replies = [(400, REFUSED), (200, {"ok": True}), (400, REFUSED)]
    async with hook(worker, api, handler=handler) as client:
        assert await post(client, said("hi")) == 200
    assert api.texts == ["A\nhttps://example.com/a.png", "a.txt\nhttps://example.com/a.txt"]
    assert all(one["link_preview_options"] == NO_PREVIEW for one in api.sent)


async def test_long_texts_are_cut_as_telegram_counts(worker: WorkerServer, api: Telegram) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("😀" * 3000)
        yield send.text("  \n")
        yield send.image("https://example.com/a.png", alt="😀" * 1000)

    async with hook(worker, api, handler=handler) as client:
        assert await post(client, said("hi")) == 200
    assert [len(text) for text in api.texts] == [2048, 952]
    assert [len(told["caption"]) for method, told in api.calls if method == "sendPhoto"] == [512]


async def test_answers_of_one_chat_go_out_in_order_and_a_failed_handler_is_apologized_for(
    worker: WorkerServer, api: Telegram
) -> None:
    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        ran.append(incoming.message)
        yield send.text(incoming.message)
        if incoming.message == "4":
            raise ValueError("secret")

    api.replies = [(500, {})] * 3
    async with hook(worker, api, handler=handler) as client:
        await asyncio.gather(*(post(client, said(str(number), number)) for number in range(5)))
    order = list(dict.fromkeys(api.texts))
    order.remove("Sorry, something went wrong. Please try again.")
    assert order == ran


async def test_who_waits_sees_that_it_is_typing(worker: WorkerServer, api: Telegram) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        async with asyncio.timeout(30):
            await api.typing.wait()
        yield send.text("done")

    async with hook(worker, api, handler=handler) as client:
        assert await post(client, said("hi")) == 200
        assert [method for method, _ in api.calls] == ["sendChatAction", "sendMessage"]
        assert api.calls[0][1] == {"chat_id": 7, "action": "typing"}
        topic = said("/hi", 2, GROUP, is_topic_message=True, message_thread_id=3, **marks("bot_command", 0, 3))
        api.calls.clear()
        api.typing.clear()
        assert await post(client, topic) == 200
    assert api.calls[0][1] == {"chat_id": GROUP.id, "message_thread_id": 3, "action": "typing"}


# ---------------------------------------------------------------- the token


SHOWN = (httpx.URL, httpx.Request, httpx.Response, httpx.AsyncClient, BaseException)


class Ears(logging.Handler):
    """Everything that any logger says, and what the records hold."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("uvicorn"):  # the server, which is Telegram here
            self.heard += [self.format(record), repr(record.args)]


@pytest.fixture
def ears() -> Iterator[Ears]:
    made, root = Ears(), logging.getLogger()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    try:
        yield made
    finally:
        root.setLevel(level)
        root.removeHandler(made)


async def test_the_token_is_in_no_log_no_error_and_nothing_that_is_shown(
    worker: WorkerServer, api: Telegram, ears: Ears
) -> None:
    echoed = {"detail": f"no route for /bot{TOKEN}/sendMessage"}
    api.files = {"f": JPG, "lost": {**JPG, "file_path": "photos/none.jpg"}}
    api.replies = [(500, {}), (200, {"ok": True}), (404, echoed)]
    async with hook(worker, api) as client:
        assert await post(client, said("hi")) == 200
        assert await post(client, said("hi", 2)) == 200
        for number, file in enumerate(("f", "lost", "unknown")):
            document = vendor.Document(file, "u")
            assert await post(client, said(None, 10 + number, document=document)) == 200
        assert await post(client, MEANT["our name"]) == 200
    async with hook(worker, api, api_url="http://127.0.0.1:1", attempts=2) as client:
        assert await post(client, said("hi", 3)) == 200
        assert await post(client, said(None, 20, document=vendor.Document("f", "u"))) == 503
    text = "\n".join(ears.heard)
    # They are all there, without what nobody may see.
    for said_of in ("/bot4242:***/sendMessage", "/bot4242:***/getFile", "/file/bot4242:***/photos/file_1.jpg", "getMe"):
        assert f'{said_of} "HTTP/1.1 ' in text
    assert "no route for /bot4242:***/sendMessage" in text
    assert "2 attempts, the last one: ConnectError" in text
    assert HIDDEN not in text
    shown = [
        repr(one)
        for one in gc.get_objects()
        if str(type(one).__module__).startswith("dooers") or isinstance(one, SHOWN)
    ]
    assert [one for one in shown if HIDDEN in one] == []


async def test_an_error_of_a_request_shows_no_token(api: Telegram) -> None:
    """What an error tracker would keep: the request of the exception, and its URL."""
    from dooers_contrib.telegram import _veil

    async with httpx.AsyncClient(event_hooks={"request": [_veil]}) as client:
        with pytest.raises(httpx.ConnectError) as raised:
            await client.get(f"http://127.0.0.1:1/bot{TOKEN}/getMe")
    error = raised.value
    for text in (str(error), repr(error), repr(error.request), str(error.request.url), repr(error.request.url)):
        assert HIDDEN not in text
