"""The examples with an agent framework are served, and spoken to over a socket; the framework and the vendor's library are real."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from serving import dooers_run
from test_examples import here
from test_examples_models import PROXIES, said, turn
from wires import Reply, Vendor, a_vendor, chat, refused, response

from dooers.client import Client

__all__ = ["here"]

TEXT = "Olá, how are you today?"


def call(index: int, id: str, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}


def says(text: str) -> bytes:
    return chat(*[f"{word} " for word in text.split(" ")])


def calls(text: str, *tools: tuple[str, dict[str, Any]]) -> bytes:
    pieces = [call(place, f"call_{place}", name, args) for place, (name, args) in enumerate(tools)]
    return chat(text, calls=pieces, finish="tool_calls")


def message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def response_says(text: str) -> bytes:
    return response(message(text))


def response_calls(text: str, *tools: tuple[str, dict[str, Any]]) -> bytes:
    items = [
        {
            "type": "function_call",
            "id": f"fc_{place}",
            "call_id": f"call_{place}",
            "name": name,
            "arguments": json.dumps(args),
        }
        for place, (name, args) in enumerate(tools)
    ]
    return response(message(text), *items)


@frozen
class Example:
    """How one is asked: what it calls, and what the model is told of that; `half` is a text that breaks off."""

    target: str
    path: str
    half: bytes
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    results: tuple[Any, ...] = ()

    def says(self, text: str) -> bytes:
        return says(text) if "chat" in self.path else response_says(text)

    def middle(self, whole: bytes) -> int:
        """Where the piece with "how" begins."""
        return whole.index(b"how " if "chat" in self.path else b'" how"')

    def calls(self, text: str) -> bytes:
        return (calls if "chat" in self.path else response_calls)(text, *self.tools)


HALF_RESPONSE = response(message("Olá")).partition(b"event: response.output_item.done")[0]
HALF = chat("Olá", finish=None)[: -len("data: [DONE]\n\n")]
WEATHER = ("get_weather", {"city": "Lisbon"})
WARM = {"city": "Lisbon", "sky": "clear", "celsius": 26}
EXAMPLES = {
    "langchain": Example("fastapi_langchain:app", "/v1/chat/completions", HALF),
    "langgraph": Example(
        "fastapi_langgraph:app",
        "/v1/chat/completions",
        HALF,
        (WEATHER, ("get_weather", {"city": "São Paulo"})),
        (WARM, {"city": "São Paulo", "sky": "clear", "celsius": 29}),
    ),
    "openai_agents": Example("fastapi_openai_agents:app", "/v1/responses", HALF_RESPONSE, (WEATHER,), (WARM,)),
    "pydantic_ai": Example(
        "pydantic_ai_agent:worker",
        "/v1/chat/completions",
        HALF,
        (("get_order", {"number": 7}), ("get_order", {"number": 8})),
        ({"number": 7, "state": "on its way"}, {"number": 8, "state": "unknown"}),
    ),
}


async def seen_live(client: Client, example: Example, vendor: Vendor) -> str:
    """The first piece is read while the model still writes. The thread."""
    gate = asyncio.Event()
    whole = example.says(TEXT)
    vendor.replies = [Reply(whole, first=example.middle(whole), until=gate)]
    events, pieces = [], []
    async for frame in client.send("Hello."):
        if frame["type"] == "event.delta":
            pieces.append(frame["payload"]["text"])
            gate.set()
        events += frame["payload"].get("events", ())
    assert len(pieces) > 1
    assert "".join(pieces).rstrip() == TEXT
    assert said(events) == [TEXT]
    return str(events[0]["thread_id"])


async def tools_are_shown(client: Client, example: Example, vendor: Vendor, thread_id: str) -> None:
    """What was called, and what came of it, between what was said before and after."""
    vendor.replies = [Reply(example.calls("I look.")), Reply(example.says("Here it is."))]
    events, _, run = await turn(client, "Please look.", thread_id)
    ours = [event for event in events if event["actor"] == "assistant"]
    many = len(example.tools)
    assert [event["type"] for event in ours] == [
        "message",
        *["tool.call"] * many,
        *["tool.result"] * many,
        "message",
    ]
    assert [event["data"]["args"] for event in ours[1 : 1 + many]] == [args for _, args in example.tools]
    results = {event["data"]["id"]: event["data"]["result"] for event in ours[1 + many : -1]}
    assert results == {f"call_{place}": result for place, result in enumerate(example.results)}
    assert run["status"] == "succeeded"
    # Earlier turns are known to the model, each message once.
    told = json.dumps(vendor.asked[-1].body, ensure_ascii=False)
    assert re.findall(r"Hello\.|Olá|Please look\.|I look\.", told) == ["Hello.", "Olá", "Please look.", "I look."]


async def what_goes_wrong_is_told(client: Client, example: Example, vendor: Vendor, thread_id: str) -> None:
    vendor.replies = [Reply(example.half, breaks=True)]
    events, _, run = await turn(client, "Hold the line.", thread_id)
    assert (events[-2]["content"][0]["text"], events[-2]["data"]) == ("Olá", {"incomplete": True})
    assert run["status"] == "failed"
    vendor.replies = [refused(401, {"error": {"code": 401, "message": "sk-test is wrong", "type": "no"}})]
    events, _, run = await turn(client, "Who are you?", thread_id)
    assert (said(events), run["status"]) == ([], "failed")
    assert "sk-test" not in json.dumps(events)


async def stopping_lets_go_of_the_model(client: Client, example: Example, vendor: Vendor, thread_id: str) -> None:
    vendor.left.clear()
    whole = example.says(TEXT)
    vendor.replies = [Reply(whole, first=example.middle(whole), until=asyncio.Event())]
    status = None
    async for frame in client.send("Talk.", thread_id):
        if frame["type"] == "event.delta":
            await client.cancel(thread_id=thread_id)
        if frame["type"] == "run.upsert":
            status = frame["payload"]["run"]["status"]
    assert status == "canceled"
    async with asyncio.timeout(30):
        await vendor.left.wait()


async def the_agents_hand_over_to_each_other(client: Client, vendor: Vendor) -> None:
    vendor.replies = [
        Reply(response_calls("One moment.", ("transfer_to_refunds", {}))),
        Reply(response_says("How much?")),
    ]
    events, _, _ = await turn(client, "I want my money back.")
    told = [(event["author"], event["content"][0]["text"]) for event in events[1:] if event["type"] == "message"]
    assert told == [("My Assistant", "One moment."), ("Refunds", "How much?")]


async def which_model_is_asked_is_a_setting(client: Client, vendor: Vendor) -> None:
    assert vendor.asked[-1].body["model"] == "gpt-4o-mini"
    assert "You help ana with their orders." in json.dumps(vendor.asked[-1].body["messages"])
    await client.patch("model", "gpt-4o")
    vendor.replies = [Reply(says("Hello."))]
    await turn(client, "Hello.")
    assert vendor.asked[-1].body["model"] == "gpt-4o"


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_example_does_what_its_users_expect(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES[name]
    async with a_vendor() as vendor:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{vendor.url}/v1")
        for variable in (*PROXIES, "LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
            monkeypatch.delenv(variable, raising=False)
            monkeypatch.delenv(variable.lower(), raising=False)
        with dooers_run(f"examples.{example.target}", here) as process:
            async with asyncio.timeout(60), Client(process.ws, user_id="ana", deltas=True) as client:
                thread_id = await seen_live(client, example, vendor)
                if example.tools:
                    await tools_are_shown(client, example, vendor, thread_id)
                await what_goes_wrong_is_told(client, example, vendor, thread_id)
                await stopping_lets_go_of_the_model(client, example, vendor, thread_id)
                vendor.replies = [Reply(example.says(TEXT))]
                events, _, run = await turn(client, "And now?", thread_id)
                assert (said(events), run["status"]) == ([TEXT], "succeeded")
                if name == "openai_agents":
                    await the_agents_hand_over_to_each_other(client, vendor)
                if name == "pydantic_ai":
                    await which_model_is_asked_is_a_setting(client, vendor)
            assert process.stop() == 0
            for complaint in ("Unclosed", "never retrieved", "Warning"):
                assert complaint not in process.said
        assert {asked.path for asked in vendor.asked} == {example.path}
