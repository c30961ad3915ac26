"""The examples with a model are served, and spoken to over a socket; the vendor's real library asks a fake of its API."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accounts import account
from serving import Served, dooers_run
from test_examples import here
from wires import Reply, Vendor, a_vendor, chat, gemini, refused
from wires import anthropic as anthropic_stream

from dooers.client import Client

__all__ = ["here"]

# How each vendor says a text, an end that comes too early, and half of a text.
TEXT = "Olá, how are you today?"
WORDS = [f"{word} " for word in TEXT.split(" ")]
SAYS = {
    "openai": (chat(*WORDS), chat("Olá", finish="length"), chat("Olá", finish=None)[: -len("data: [DONE]\n\n")]),
    "anthropic": (
        anthropic_stream(TEXT),
        anthropic_stream("Olá", stop="max_tokens"),
        anthropic_stream("Olá", end=False),
    ),
    "vertex": (gemini(*WORDS), gemini("Olá", finish="MAX_TOKENS"), gemini("Olá", finish=None)),
}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@contextmanager
def served(name: str, vendor: Vendor, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An example, in an environment in which its vendor is this one."""
    environment = {
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": f"{vendor.url}/v1",
        "ANTHROPIC_API_KEY": "sk-test",
        "ANTHROPIC_BASE_URL": vendor.url,
        "GOOGLE_VERTEX_BASE_URL": vendor.url,
        "GOOGLE_CLOUD_PROJECT": "acme",
        "GOOGLE_CLOUD_LOCATION": "europe-west4",
        "GOOGLE_APPLICATION_CREDENTIALS": str(account(vendor, here)),
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for variable in PROXIES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    with dooers_run(f"examples.fastapi_{name}:app", here) as served:
        yield served


async def turn(client: Client, text: str, thread_id: str | None = None) -> tuple[list[dict[str, Any]], list[str], Any]:
    """The events of a turn, the pieces of its text as they came, and its run at the end."""
    events, pieces, run = [], [], None
    async for frame in client.send(text, thread_id):
        match frame["type"]:
            case "event.append":
                events += frame["payload"]["events"]
            case "event.delta":
                pieces.append(frame["payload"]["text"])
            case "run.upsert":
                run = frame["payload"]["run"]
    return events, pieces, run


def said(events: list[dict[str, Any]]) -> list[str]:
    return [event["content"][0]["text"].rstrip() for event in events if event["actor"] == "assistant"]


@pytest.mark.parametrize("name", SAYS)
async def test_the_answer_is_seen_while_it_is_written_and_is_kept(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut_off, half = SAYS[name]
    gate = asyncio.Event()
    first = whole.index("Olá".encode()) + 300
    async with a_vendor(Reply(whole, first=first, until=gate), Reply(whole)) as vendor:
        with served(name, vendor, here, monkeypatch) as process:
            async with Client(process.ws, user_id="ana", deltas=True) as client:
                events, pieces = [], []
                async for frame in client.send("Hello."):
                    if frame["type"] == "event.delta":
                        pieces.append(frame["payload"]["text"])
                        gate.set()  # the vendor goes on when somebody has read the first piece
                    events += frame["payload"].get("events", ())
                assert len(pieces) > 1
                assert "".join(pieces).rstrip() == TEXT
                assert said(events) == [TEXT]
                thread_id = events[0]["thread_id"]
                events, _, run = await turn(client, "And you?", thread_id)
                assert (said(events), run["status"]) == ([TEXT], "succeeded")
                again = vendor.asked[1].body
                texts = re.findall(r"Hello\.|Olá|And you\?", json.dumps(again, ensure_ascii=False))
                assert texts == ["Hello.", "Olá", "And you?"]

                vendor.replies.append(Reply(cut_off))
                events, _, run = await turn(client, "Briefly.", thread_id)
                assert (said(events), run["status"]) == (["Olá"], "failed")
                assert "The model stopped early" in run["error"]

                vendor.replies.append(Reply(half, breaks=True))
                events, _, run = await turn(client, "Hold the line.", thread_id)
                assert (events[-2]["content"][0]["text"], events[-2]["data"]) == ("Olá", {"incomplete": True})
                assert run["status"] == "failed"

                vendor.replies += [refused(401, {"error": {"code": 401, "message": "sk-test is wrong", "type": "no"}})]
                events, _, run = await turn(client, "Who are you?", thread_id)
                assert (said(events), run["status"]) == ([], "failed")
                assert "sk-test" not in json.dumps(events)

                vendor.replies.append(Reply(whole))
                events, _, run = await turn(client, "And now?", thread_id)
                assert (said(events), run["status"]) == ([TEXT], "succeeded")
            assert process.stop() == 0
            assert "Unclosed" not in process.said
    assert vendor.replies == []


async def test_vertex_is_asked_with_the_accounts_token(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_vendor(Reply(SAYS["vertex"][0])) as vendor:
        with served("vertex", vendor, here, monkeypatch) as process:
            async with Client(process.ws, user_id="ana") as client:
                await turn(client, "Hello.")
        [asked] = vendor.asked
    assert "/projects/acme/locations/europe-west4/publishers/google/models/gemini-3.8-flash:stream" in asked.path
    assert asked.headers["authorization"] == "Bearer from-the-account"
    assert asked.body["systemInstruction"]["parts"] == [{"text": "You are a helpful assistant."}]


CALLS = [
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "get_weather", "arguments": '{"city"'}},
    {"index": 0, "function": {"arguments": '{"city": "Lisbon"}'}},
    {"index": 1, "function": {"arguments": ': "São Paulo"}'}},
]
ANSWER = chat("Warm ", "in ", "both.", usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})


async def test_tools_are_called_run_shown_and_told_to_the_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [Reply(chat("I look.", calls=CALLS, finish="tool_calls"), cut=9), Reply(ANSWER)]
    async with a_vendor(*replies) as vendor:
        with served("tools", vendor, here, monkeypatch) as process:
            async with Client(process.ws, user_id="ana", deltas=True) as client:
                await client.ask("analytics.subscribe", {"worker_id": "worker"})
                answered = []
                events, pieces = [], []
                async for frame in client.send("How is the weather?"):
                    events += frame["payload"].get("events", ())
                    if frame["type"] == "event.delta":
                        pieces.append(frame["payload"]["text"])
                    if frame["type"] == "analytics.event" and frame["payload"]["event"] == "model.answered":
                        answered.append(frame["payload"]["data"])
                kinds = ["tool.call", "tool.call", "tool.result", "tool.result", "message"]
                assert [event["type"] for event in events if event["actor"] == "assistant"] == ["message", *kinds]
                assert "".join(pieces) == "I look.Warm in both."
                results = [event["data"] for event in events if event["type"] == "tool.result"]
                assert [(result["id"], result["result"]["city"]) for result in results] == [
                    ("call_a", "Lisbon"),
                    ("call_b", "São Paulo"),
                ]
                assert answered[-1] == {
                    "model": "gpt-4o-mini",
                    "input_tokens": 7,
                    "cached_tokens": 0,
                    "output_tokens": 3,
                }
            assert process.stop() == 0
    told = vendor.asked[1].body["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool", "tool"]
    assert [call["function"]["arguments"] for call in told[2]["tool_calls"]] == [
        '{"city": "Lisbon"}',
        '{"city": "São Paulo"}',
    ]
    assert json.loads(told[3]["content"]) == {"city": "Lisbon", "sky": "clear", "celsius": 26}


async def test_a_model_that_calls_for_ever_is_stopped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_vendor(*[Reply(chat(calls=CALLS, finish="tool_calls"))] * 8) as vendor:
        with served("tools", vendor, here, monkeypatch) as process:
            async with Client(process.ws, user_id="ana") as client:
                events, _, run = await turn(client, "How is the weather?")
    assert (len(vendor.asked), run["status"]) == (8, "failed")
    assert [event["type"] for event in events].count("tool.result") == 16
