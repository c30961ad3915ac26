"""Every example that needs no account is really run: served by `dooers run`, and spoken to over a socket."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fakes import serving
from serving import WITHIN, Served, dooers_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dooers import ForbiddenError, UnauthenticatedError
from dooers.client import Client, Delta, RunChanged
from dooers.testing import assert_succeeded

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory as somebody has it who copied the examples: their databases belong there, and nowhere else."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.db*", "__pycache__"))
    return tmp_path


@pytest.fixture
def quickstart(here: Path) -> Iterator[Served]:
    with dooers_run("examples.quickstart:worker", here) as served:
        yield served


@pytest.fixture
def fastapi_basic(here: Path) -> Iterator[Served]:
    with dooers_run("examples.fastapi_basic:app", here) as served:
        yield served


@pytest.fixture
def authenticate_jwt(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("JWT_SECRET", "one that the issuer and the worker share")
    with dooers_run("examples.authenticate_jwt:worker", here) as served:
        yield served


@pytest.fixture
def tour(here: Path) -> Iterator[Served]:
    with dooers_run("examples.tour:worker", here) as served:
        yield served


async def test_quickstart_answers_and_keeps_the_conversation(quickstart: Served, here: Path) -> None:
    async with Client(quickstart.ws, user_id="ana") as client:
        first = await client.say("hello")
        second = await client.say("again", first.thread_id)
        assert (first.text.rstrip(), second.text.rstrip()) == ("You said: hello", "You said: again")
        assert_succeeded(first, second)

    assert quickstart.stop() == 0
    assert (here / "quickstart.db").exists()

    with dooers_run("examples.quickstart:worker", here) as restarted:
        async with Client(restarted.ws, user_id="ana") as client:
            [thread] = (await client.threads()).items
            history = await client.history(first.thread_id)
    assert (thread.id, thread.title) == (first.thread_id, "hello")
    told = [event.text.rstrip() for event in history.items]
    assert told == ["hello", "You said: hello", "again", "You said: again"]


async def test_quickstart_writes_its_answer_word_by_word(quickstart: Served) -> None:
    async with Client(quickstart.ws, user_id="ana") as client:
        updates = client.stream("one two three four five six")
        pieces = [update.text async for update in updates if isinstance(update, Delta)]
    assert "".join(pieces).rstrip() == "You said: one two three four five six"
    assert len(pieces) > 3


async def test_fastapi_basic_serves_people_and_webhooks_from_one_handler(fastapi_basic: Served) -> None:
    async with Client(fastapi_basic.ws, organization_id="org-1", workspace_id="ws-1", user_id="bob") as client:
        assert (await client.say("from a person")).text.rstrip() == "You said: from a person"

        async with httpx.AsyncClient(base_url=fastapi_basic.http, timeout=WITHIN) as http:
            first = await http.post("/api/webhook", json={"text": "from a system", "user_id": "alice"})
            first.raise_for_status()
            told = first.json()
            assert told == {"thread_id": told["thread_id"], "is_new": True, "texts": ["You said: from a system"]}

            second = await http.post(
                "/api/webhook", json={"text": "more", "user_id": "alice", "thread_id": told["thread_id"]}
            )
            assert second.json() == {"thread_id": told["thread_id"], "is_new": False, "texts": ["You said: more"]}

        assert told["thread_id"] in [thread.id for thread in (await client.threads()).items]
        history = await client.history(told["thread_id"])
        assert [event.text for event in history.items if event.actor == "user"] == ["from a system", "more"]

    assert fastapi_basic.stop() == 0
    assert "Traceback" not in fastapi_basic.said


async def test_authenticate_jwt_knows_people_by_their_token(authenticate_jwt: Served, here: Path) -> None:
    def token(user_id: str) -> str:
        command = [sys.executable, "-m", "examples.authenticate_jwt", user_id]
        return subprocess.run(
            command, cwd=here, check=True, capture_output=True, text=True, timeout=WITHIN
        ).stdout.strip()

    alice, bob = token("alice"), token("bob")
    async with Client(authenticate_jwt.ws, user_id="mallory", auth_token=alice) as client:
        assert (await client.say("hello")).text == "Alice (member) of acme said: hello"
        assert len((await client.threads()).items) == 1
    async with Client(authenticate_jwt.ws, user_id="alice", auth_token=bob) as client:
        assert (await client.threads()).items == []
    async with Client(authenticate_jwt.ws, workspace_id="sales", auth_token=alice) as client:
        assert (await client.threads()).items == []
    with pytest.raises(ForbiddenError):
        async with Client(authenticate_jwt.ws, workspace_id="somebody-elses", auth_token=alice):
            pass
    for forged in (None, "", alice[:-4] + "AAAA"):
        with pytest.raises(UnauthenticatedError, match="this connection is not allowed"):
            async with Client(authenticate_jwt.ws, user_id="alice", auth_token=forged):
                pass

    assert authenticate_jwt.stop() == 0
    assert "Traceback" not in authenticate_jwt.said
    assert alice.partition(".")[0] not in authenticate_jwt.said


async def test_tour_stops_everywhere_it_says_it_does(tour: Served) -> None:
    async with Client(tour.ws, user_id="ana") as client:
        await client.patch("pause", 0)
        hello = await client.say("hello")
        thread_id = hello.thread_id
        assert hello.text.startswith("Hello! Say one of these")
        stops = re.findall(r"`(\w+)`", hello.text)
        assert len(stops) == 9

        replies = {stop: await client.say(stop, thread_id) for stop in set(stops) - {"slow"}}
        kinds: dict[str, list[str]] = {
            stop: [event.content[0].type if event.content else event.type for event in reply.events]
            for stop, reply in replies.items()
        }
        assert kinds.pop("fail") == ["text", "text"]
        assert kinds.pop("tools") == ["tool.call", "tool.result", "tool.transaction", "text"]
        assert kinds.pop("image") == ["image", "text"]
        assert kinds.pop("document") == ["document", "text"]
        assert kinds == {stop: ["text"] for stop in ("markdown", "long", "settings", "me")}

        await client.patch("tone", "loud")
        assert (await client.say("me", thread_id)).text.rstrip() == "YOU ARE **ANA** OF LOCAL, IN LOCAL."

        async for update in client.stream("slow", thread_id):
            if isinstance(update, Delta):
                await client.cancel(thread_id=thread_id)
            if isinstance(update, RunChanged):
                ended = update.run.status
        assert ended == "canceled"
    assert tour.stop() == 0


@pytest.fixture
def fastapi_multiple_endpoints(here: Path) -> Iterator[Served]:
    with dooers_run("examples.fastapi_multiple_endpoints:app", here) as served:
        yield served


async def test_fastapi_multiple_endpoints_has_one_handler_behind_three_doors(
    fastapi_multiple_endpoints: Served,
) -> None:
    served = fastapi_multiple_endpoints
    async with Client(served.ws, organization_id="org-1", workspace_id="ws-1", user_id="alice") as client:
        async with httpx.AsyncClient(base_url=served.http, timeout=WITHIN) as http:
            thread_id = (await client.say("over the socket")).thread_id
            message = {"text": "over REST", "user_id": "alice", "thread_id": thread_id}
            answer = await http.post("/api/ask", json=message)
            assert answer.json() == {"thread_id": thread_id, "texts": ["Message 2: over REST"]}
            told = [await http.post("/api/tell", json={**message, "text": "later", "key": "k"}) for _ in range(2)]
            assert [(one.status_code, one.json()["is_repeat"]) for one in told] == [(202, False), (202, True)]
            assert (await client.say("and back", thread_id)).text.rstrip() == "Message 4: and back"
            assert len((await http.get(f"/api/threads/{thread_id}")).json()) == 8
            assert (await http.post("/api/ask", json={**message, "text": "fail"})).status_code == 502
    assert served.stop() == 0


async def test_fastapi_whatsapp_webhook_knows_its_customers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = asyncio.Queue[tuple[str, str]]()

    async def messages(request: Request) -> JSONResponse:
        assert request.headers["authorization"] == "Bearer token"
        message = await request.json()
        sent.put_nowait((message["to"], message["text"]["body"]))
        return JSONResponse({"messages": [{"id": "wamid.out"}]})

    async with serving(Starlette(routes=[Route("/v1/111/messages", messages, methods=["POST"])])) as meta:
        for name, value in {
            "ACCESS_TOKEN": "token",
            "APP_SECRET": "s",
            "VERIFY_TOKEN": "v",
            "API_URL": f"http://{meta}/v1",
        }.items():
            monkeypatch.setenv(f"WHATSAPP_{name}", value)
        with ExitStack() as stack:
            served = await asyncio.to_thread(
                stack.enter_context, dooers_run("examples.fastapi_whatsapp_webhook:app", here)
            )
            async with httpx.AsyncClient(base_url=served.http, timeout=WITHIN) as http:
                asked = {"hub.mode": "subscribe", "hub.verify_token": "v", "hub.challenge": "42"}
                assert (await http.get("/whatsapp", params=asked)).text == "42"
                for person in ("4915112345678", "4915112345678", "999"):
                    said = {"from": person, "id": f"wamid.{person}", "type": "text", "text": {"body": "hi"}}
                    change = {"value": {"metadata": {"phone_number_id": "111"}, "messages": [said]}}
                    body = json.dumps({"entry": [{"changes": [change]}]}).encode()
                    signature = "sha256=" + hmac.digest(b"s", body, "sha256").hex()
                    answer = await http.post("/whatsapp", content=body, headers={"x-hub-signature-256": signature})
                    assert answer.status_code == 200
                assert (await http.post("/whatsapp", content=b"{}")).status_code == 401
            async with asyncio.timeout(WITHIN):
                heard = sorted([await sent.get(), await sent.get()])
            assert heard == [
                ("4915112345678", "Hello Ana Lima (gold)! You said: hi"),
                ("999", "Hello! We do not know 999 yet. What is your name?"),
            ]
            assert await asyncio.to_thread(served.stop) == 0
            assert "Traceback" not in served.said
    assert sent.empty()
