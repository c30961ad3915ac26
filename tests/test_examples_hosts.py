"""The examples that need no vendor but a host or a library: served, and spoken to over a socket; the one about tests is run by pytest."""

from __future__ import annotations

import asyncio
import re
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import Chat, serving
from serving import WITHIN, Served, dooers_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from test_examples import here
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from dooers.client import Client

__all__ = ["here"]


@contextmanager
def served(name: str, here: Path) -> Iterator[Served]:
    with dooers_run(f"examples.{name}", here) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.said
        assert "Warning" not in process.said


def python(here: Path, *command: str) -> str:
    """What it says, where all is well."""
    ran = subprocess.run([sys.executable, *command], cwd=here, capture_output=True, text=True, timeout=WITHIN)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", ["starlette_mount", "litestar_mount"])
async def test_a_mounted_worker_is_whole_below_its_prefix(name: str, here: Path) -> None:
    with served(f"{name}:app", here) as host:
        async with Client(f"ws://{host.host}/assistant/ws", user_id="ana") as client:
            assert (await client.say("from the chat")).text == "You said: from the chat"
        async with httpx.AsyncClient(base_url=host.http, timeout=WITHIN, follow_redirects=True) as http:
            assert (await http.get("/ask", params={"q": "from a route"})).text == "You said: from a route"
            assert (await http.get("/assistant/ready")).json() == {"status": "ok"}
            page = await http.get("/assistant")
            assert page.url.path == "/assistant/"  # what the page asks for is relative to that
            for file in re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text):
                assert (await http.get(f"/assistant/{file}")).status_code == 200, file
            assert (await http.get("/assistant/nothing")).status_code == 404
            assert (await http.get("/health")).status_code == 404  # it takes nothing beside its prefix
        assert "made the tables" in host.said[: host.said.index("listens on")]  # opened by the host's lifespan
        assert (here / f"{name}.db-wal").exists()
    assert not (here / f"{name}.db-wal").exists()  # and closed by it


async def test_a_mount_in_litestar_stands_behind_a_prefix_and_needs_no_lifespan(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    example = runpy.run_path("examples/litestar_mount.py")

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        """As uvicorn's `--root-path /api` behind a proxy that takes the prefix away; and there is no lifespan."""
        if scope["type"] == "lifespan":
            raise NotImplementedError
        paths = {"path": "/api" + scope["path"], "raw_path": b"/api" + scope["raw_path"], "root_path": "/api"}
        await example["app"]({**scope, **paths}, receive, send)

    async with serving(behind) as host:
        async with Client(f"ws://{host}/assistant/ws", user_id="ana") as client:
            assert (await client.say("hello")).text == "You said: hello"
        async with httpx.AsyncClient(base_url=f"http://{host}", timeout=WITHIN) as http:
            assert (await http.get("/assistant")).headers["location"].endswith("/api/assistant/")
            assert (await http.get("/assistant/health")).status_code == 200
    await example["worker"].close()


async def test_django_tells_the_worker_who_is_logged_in(here: Path) -> None:
    program = """
import runpy, sys
sys.argv = ["django_asgi", "migrate", "--verbosity=0"]
runpy.run_module("examples.django_asgi", run_name="__main__", alter_sys=True)
from django.contrib.auth.models import User
User.objects.create_superuser("ana", "ana@example.com", "secret-a", first_name="Ana", last_name="Lima")
User.objects.create_user("bob", "", "secret-b")
"""
    await asyncio.to_thread(python, here, "-c", program)
    with served("django_asgi:app", here) as host:
        url = f"ws://{host.host}/assistant/ws"

        async def log_in(name: str, password: str) -> str | None:
            async with httpx.AsyncClient(base_url=host.http, timeout=WITHIN) as http:
                token = re.findall(r'value="(\w+)"', (await http.get("/")).text)[0]
                form = {"username": name, "password": password, "csrfmiddlewaretoken": token}
                assert (await http.post("/", data=form)).status_code == 200
                return http.cookies.get("sessionid")

        @asynccontextmanager
        async def browser(cookie: str, user_id: str, **headers: str) -> AsyncIterator[dict[str, Any]]:
            """What a connection with a cookie gets to see of itself, its threads and the answer."""
            async with (
                asyncio.timeout(WITHIN),
                connect(url, proxy=None, additional_headers={"Cookie": cookie, **headers}) as socket,
            ):
                chat = Chat(socket)
                await chat.send("connect", worker_id="w", organization_id="o", workspace_id="w", user_id=user_id)
                seen = await chat.until("ack", ack_id="connect")
                if seen["ok"]:
                    await chat.send("thread.list")
                    seen["threads"] = (await chat.until("thread.list.result"))["threads"]
                    said = {"type": "message", "actor": "user", "content": [{"type": "text", "text": "hi"}]}
                    await chat.send("event.create", event=said)
                    while "assistant" not in str(seen.get("said")):
                        seen["said"] = await chat.until("event.append")
                yield seen

        ana, bob = await log_in("ana", "secret-a"), await log_in("bob", "secret-b")
        assert await log_in("ana", "wrong") is None
        for _ in range(2):
            async with browser(f"other=1; sessionid={ana}", user_id="mallory") as seen:
                assert "Hello Ana Lima (admin)." in str(seen["said"])
        assert len(seen["threads"]) == 1
        async with browser(f"sessionid={bob}", user_id="1") as seen:
            assert "Hello bob (member)." in str(seen["said"])
            assert seen["threads"] == []

        with closing(sqlite3.connect(here / "django.db")) as database, database:
            database.execute("UPDATE auth_user SET is_active = 0 WHERE username = 'bob'")
        for cookie in ("", "sessionid=forged", f"sessionid={bob}", f"csrftoken={ana}"):
            async with browser(cookie, user_id="1") as seen:
                assert (seen["ok"], seen["error"]["code"]) == (False, "UNAUTHENTICATED")
        with pytest.raises(InvalidStatus, match="403"):  # another page, with the cookie that the browser has
            async with browser(f"sessionid={ana}", user_id="1", Origin="https://evil.example"):
                pass
        async with httpx.AsyncClient(base_url=host.http, timeout=WITHIN) as http:
            assert (await http.get("/nothing")).status_code == 404
            assert (await http.get("/assistant/")).status_code == 200


async def test_typed_settings_hold_from_the_next_message_on(here: Path) -> None:
    with served("typed_settings:worker", here) as host:
        async with Client(host.ws, user_id="ana") as client:
            first = await client.say("hello")
            assert first.text == "Hi, I am Robin, without a key. You said: hello"
            for field, value in {"name": "Sam", "api_key": "sk-1", "style.tone": "formal", "style.emoji": True}.items():
                await client.patch(field, value)
            second = await client.say("hello", first.thread_id)
            assert second.text == "Good day, I am Sam, with a key. You said: hello 🙂"
            await client.patch("words", 2)
            assert (await client.say("hello", first.thread_id)).text == "Good day, 🙂"
            for field, value in {"version": "2", "budget": 1.0, "words": 0}.items():
                with pytest.raises(Exception, match=field):
                    await client.patch(field, value)


async def test_dependencies_are_made_once_a_worker_once_a_turn_and_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def latest(request: Request) -> JSONResponse:
        asked.append(str(request.query_params))
        return JSONResponse({"rates": {"USD": 1.5}})

    async with serving(Starlette(routes=[Route("/v1/latest", latest)])) as rates:
        monkeypatch.setenv("RATES_URL", f"http://{rates}/v1")
        with dooers_run("examples.dependencies:worker", here) as host:
            async with (
                Client(host.ws, user_id="ana") as ana,
                Client(host.ws, user_id="bob") as bob,
            ):
                assert [(await ana.say(text)).text for text in ("4", "note milk", "notes")] == [
                    "6.00 dollars",
                    "Noted.",
                    "milk",
                ]
                assert (await ana.say("note ")).status == "failed"
                assert ((await ana.say("notes")).text, (await bob.say("notes")).text) == ("milk", "Nothing.")
            assert host.stop() == 0
    assert asked == ["base=EUR&symbols=USD"]
    said = await asyncio.to_thread(python, here, "-m", "examples.dependencies")
    assert (said.splitlines()[-1], len(asked)) == ("5.00 dollars", 1)


def test_testing_passes_its_own_tests(here: Path) -> None:
    said = python(here, "-m", "pytest", "-q", "-o", "anyio_mode=auto", "-W", "error", "examples/testing.py")
    assert "4 passed" in said
    assert not (here / "testing.db").exists()
