"""Slack's events: signed lately, taken once however often and in whatever kind of event they come, answered in their thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from attrs import Factory, define, evolve
from dooers_contrib.slack import slack
from fakes import serving
from slack_sdk.signature import Clock, SignatureVerifier
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dooers import ConfigError, Identity, Operation, Thread, WorkerConfig, WorkerServer

SECRET = "a signing secret"
NOW = 1_700_000_000


@define
class Slack:
    """The Web API. Answers with `replies` in turn, then ok."""

    url: str = ""
    replies: list[Any] = Factory(list)
    sent: list[dict[str, Any]] = Factory(list)
    tried: int = 0

    async def post(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer xoxb"
        self.tried += 1
        status, body, headers = self.replies.pop(0) if self.replies else (200, {"ok": True}, {})
        if body.get("ok"):
            self.sent.append(await request.json())
        return JSONResponse(body, status, headers)

    @property
    def texts(self) -> list[str]:
        return [one["text"] for one in self.sent]


@pytest.fixture
async def api() -> AsyncIterator[Slack]:
    made = Slack()
    async with serving(Starlette(routes=[Route("/chat.postMessage", made.post, methods=["POST"])])) as address:
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
async def hook(worker: WorkerServer, api: Slack, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    more = {"pause": 0.001, "api_url": api.url, "clock": lambda: NOW, **more}
    route = Route("/hook", slack(worker, bot_token="xoxb", signing_secret=SECRET, **more), methods=["POST"])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(Starlette(routes=[route])), base_url="http://app"
    ) as client:
        yield client


def signed(body: bytes, at: int = NOW, secret: str = SECRET) -> dict[str, str]:
    """The headers as Slack's own library makes them."""
    verifier = SignatureVerifier(secret, Clock())
    signature = verifier.generate_signature(timestamp=str(at), body=body)
    assert signature is not None
    return {"x-slack-request-timestamp": str(at), "x-slack-signature": signature}


async def post(client: httpx.AsyncClient, payload: Any) -> int:
    body = json.dumps(payload).encode()
    return (await client.post("/hook", content=body, headers=signed(body))).status_code


def said(text: str, ts: str = "1.1", **more: Any) -> dict[str, Any]:
    event = {
        "type": "message",
        "channel": "C1",
        "user": "U1",
        "text": text,
        "ts": ts,
        "channel_type": "channel",
        **more,
    }
    return {"type": "event_callback", "team_id": "T1", "event_id": f"Ev{ts}", "event": event}


async def threads(worker: WorkerServer) -> int:
    return len(await (await worker.repository()).list_threads())


async def test_the_url_is_verified_for_slack_alone(worker: WorkerServer, api: Slack) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "abc"}).encode()
    async with hook(worker, api) as client:
        answer = await client.post("/hook", content=body, headers=signed(body))
        assert (answer.status_code, answer.text) == (200, "abc")
        assert (await client.post("/hook", content=body)).status_code == 401


async def test_forged_cut_and_replayed_requests_are_refused(worker: WorkerServer, api: Slack) -> None:
    body = json.dumps(said("hi")).encode()
    good = signed(body)
    wrong: list[Any] = [
        signed(body, secret="x"),
        signed(body, NOW - 301),
        signed(body, NOW + 301),
        {**good, "x-slack-request-timestamp": str(NOW - 1)},
        *(
            {**good, "x-slack-request-timestamp": stamp}
            for stamp in ("", "x", "-1", "9" * 5000, "1e9", "\u0663".encode())
        ),
        {**good, "x-slack-signature": b"v0=\xe4"},
        {**good, "x-slack-signature": ""},
    ]
    async with hook(worker, api) as client:
        for headers in wrong:
            assert (await client.post("/hook", content=body, headers=headers)).status_code == 401
        assert (await client.post("/hook", content=body[:-3], headers=good)).status_code == 401
        assert (await client.post("/hook", content=body, headers=signed(body, NOW - 299))).status_code == 200
    assert ran == ["hi"]


async def test_redeliveries_and_mentions_of_one_message_are_one_turn(worker: WorkerServer, api: Slack) -> None:
    mention = said("hi", type="app_mention")
    mention["event_id"] = "another"
    async with hook(worker, api) as client:
        assert await asyncio.gather(*(post(client, one) for one in (said("hi"), mention, said("hi")))) == [200] * 3
        assert await post(client, said("hi")) == 200
    assert (ran, len(api.sent)) == (["hi"], 1)


async def test_two_processes_with_one_delivery_answer_it_once(postgres_config: WorkerConfig, api: Slack) -> None:
    workers = [WorkerServer(postgres_config), WorkerServer(postgres_config)]
    ran.clear()
    for worker in workers:
        worker.handler(echo)
    try:
        async with hook(workers[0], api) as one, hook(workers[1], api) as two:
            assert list(await asyncio.gather(post(one, said("hi")), post(two, said("hi")))) == [200, 200]
        assert (ran, len(api.sent)) == (["hi"], 1)
    finally:
        for worker in workers:
            await worker.close()


async def test_a_slack_thread_is_a_thread_and_so_is_a_direct_conversation(worker: WorkerServer, api: Slack) -> None:
    async with hook(worker, api) as client:
        await post(client, said("top", "1.1"))
        await post(client, said("reply", "1.2", thread_ts="1.1", user="U2"))
        await post(client, said("new", "1.3"))
        assert await threads(worker) == 2
        await post(client, said("dm", "2.1", channel="D1", channel_type="im"))
        await post(client, said("dm again", "2.2", channel="D1", channel_type="im"))
        assert await threads(worker) == 3
    assert [one.get("thread_ts") for one in api.sent] == ["1.1", "1.1", "1.3", None, None]


async def test_who_may_not_read_or_post_is_not_heard(worker: WorkerServer, api: Slack) -> None:
    refused = {"U1": "thread.post", "U2": "thread.read"}

    @worker.authorize
    def authorize(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        return refused.get(identity.user_id) != operation

    async with hook(worker, api) as client:
        for user in ("U1", "U2", "U3"):
            assert await post(client, said(f"I am {user}", f"1.{user[1]}", user=user)) == 200
    assert (ran, api.texts) == (["I am U3"], ["You said: I am U3"])
    assert await threads(worker) == 1


async def test_with_private_threads_people_of_one_slack_thread_have_their_own(
    worker_config: WorkerConfig, api: Slack
) -> None:
    worker = WorkerServer(evolve(worker_config, private_threads=True))
    worker.handler(echo)
    async with hook(worker, api) as client:
        await post(client, said("one", "1.1"))
        await post(client, said("two", "1.2", thread_ts="1.1", user="U2"))
    assert len(api.sent) == 2
    assert await threads(worker) == 2
    await worker.close()


IGNORED: list[Any] = [
    said("mine", bot_id="B1"),
    said("edit", subtype="message_changed"),
    said("", files=[]),
    said("x", user={}),
    said("x", type="reaction_added"),
    {"type": "event_callback", "event": 5},
    {"type": ["event_callback"]},
    {},
]


@pytest.mark.parametrize("payload", IGNORED, ids=range(len(IGNORED)))
async def test_what_is_no_message_of_a_person_is_acknowledged_only(
    worker: WorkerServer, api: Slack, payload: Any
) -> None:
    async with hook(worker, api) as client:
        assert await post(client, payload) == 200
        assert await post(client, [payload]) == 400
    assert (ran, api.tried) == ([], 0)


async def test_slack_asks_to_wait_and_is_waited_for(worker: WorkerServer, api: Slack) -> None:
    api.replies = [
        (429, {"ok": False}, {"retry-after": "0"}),
        (200, {"ok": False, "error": "ratelimited"}, {}),
        (503, {}, {}),
    ]
    async with hook(worker, api) as client:
        assert await post(client, said("hi")) == 200
    assert (api.tried, api.texts) == (4, ["You said: hi"])


async def test_what_slack_refuses_for_good_is_tried_once(
    worker: WorkerServer, api: Slack, caplog: pytest.LogCaptureFixture
) -> None:
    api.replies = [(200, {"ok": False, "error": "not_in_channel"}, {})]
    async with hook(worker, api) as client:
        assert await post(client, said("hi")) == 200
    assert api.tried == 1
    assert "was not sent: not_in_channel" in caplog.text


async def test_nobody_is_pinged_by_what_a_model_writes(worker: WorkerServer, api: Slack) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("<!channel> a & b")
        yield send.image("https://example.com/a.png", alt="<!here>")
        yield send.text("x" * 9000)

    async with hook(worker, api, handler=handler) as client:
        await post(client, said("1 &lt; 2"))
    assert api.texts[:2] == ["&lt;!channel&gt; a &amp; b", "<https://example.com/a.png|&lt;!here&gt;>"]
    assert [len(text) for text in api.texts[2:]] == [4000, 4000, 1000]
    # Nor is a link fetched that a model was talked into writing; an image that the handler gave is shown.
    assert [one.get("unfurl_media") for one in api.sent] == [False, None, False, False, False]
    assert [one.get("unfurl_links") for one in api.sent] == [False, None, False, False, False]


async def test_empty_secrets_are_refused(worker: WorkerServer) -> None:
    for token, secret in (("", "x"), ("x", " ")):
        with pytest.raises(ConfigError, match="expected a text that is not empty"):
            slack(worker, bot_token=token, signing_secret=secret)
