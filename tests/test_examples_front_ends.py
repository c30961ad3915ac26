"""The example with every door is served by `dooers run`, and spoken to at each of them, and over the WebSocket."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from serving import dooers_run
from test_examples import here

from dooers import UnauthenticatedError
from dooers.client import Client

__all__ = ["here"]


async def test_one_handler_answers_at_every_door(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "sk-alice=alice,sk-bob=bob")
    alice = {"authorization": "Bearer sk-alice"}
    with dooers_run("examples.front_ends:app", here) as served:
        async with httpx.AsyncClient(base_url=served.http, trust_env=False, headers=alice) as client:
            run = {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hi"}]}
            assert "RUN_FINISHED" in (await client.post("/ag-ui", json=run)).text
            parts = [{"type": "text", "text": "Hi again"}]
            chat = {"id": "t", "messages": [{"id": "2", "role": "user", "parts": parts}]}
            # The same conversation: this is its third message, after one and its answer.
            assert '"output":3' in (await client.post("/api/chat", json=chat)).text
            asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
            assert (await client.options("/api/chat", headers=asked)).status_code == 200
            assert (await client.get("/health")).status_code == 200
            assert "<title>" in (await client.get("/")).text
            assert (await client.post("/ag-ui", json=run, headers={"authorization": ""})).status_code == 401
        async with AsyncOpenAI(base_url=f"{served.http}/v1", api_key="sk-bob", max_retries=0) as bob:
            answer = await bob.chat.completions.create(model="helper", messages=[{"role": "user", "content": "Hi"}])
            assert answer.choices[0].message.content == "bob, this is message 1: Hi "
        async with Client(served.ws, auth_token="sk-alice") as people:
            assert (await people.say("Hello")).texts == ["alice, this is message 1: Hello "]
        with pytest.raises(UnauthenticatedError):
            async with Client(served.ws, auth_token="sk-mallory"):
                pass
