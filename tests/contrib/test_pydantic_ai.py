"""Pydantic AI, with OpenAI's own library below it, asks a fake; the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asking import Turn, ask, leave, stop
from dooers_contrib import pydantic_ai
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ImageUrl, ModelRetry, capture_run_messages
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits
from wires import Reply, Vendor, a_vendor, chat, refused, response

from dooers import WorkerConfig, WorkerEvent, WorkerSend

CUTS = [7, 1 << 20]


async def weather(city: str) -> dict[str, Any]:
    """How the weather is."""
    return {"city": city, "high": 27}


def call(index: int, id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], text: str = "") -> bytes:
    return chat(*([text] if text else []), calls=calls, finish="tool_calls")


LISBON = call(0, "a", "weather", '{"city": "Lisbon"}')


class Asking:
    """Agents over a model of the vendor's; `events` is the last run."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.client = AsyncOpenAI(api_key="sk-test", base_url=f"{vendor.url}/v1", max_retries=1)
        self.provider = OpenAIProvider(openai_client=self.client)
        self.model = OpenAIChatModel("gpt-test", provider=self.provider)
        self.events: Any = None

    def agent(self, *tools: Any, **how: Any) -> Any:
        return Agent(**{"model": self.model, "tools": list(tools), **how})

    def turn_of(self, agent: Any, author: str | None = None, **how: Any) -> Callable[..., AsyncIterator[WorkerEvent]]:
        async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
            async with agent.run_stream_events("Well?", **how) as self.events:
                async for event in pydantic_ai.answer(send, self.events, author):
                    yield event

        return handler

    async def ask(self, agent: Any, *replies: bytes | Reply, **how: Any) -> Turn:
        self.vendor.replies += [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        turn = await ask(self.config, self.turn_of(agent, **how))
        assert self.vendor.replies == []
        return turn


@pytest.fixture
async def asking(worker_config: WorkerConfig) -> AsyncIterator[Asking]:
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        async with asking.client:
            yield asking


@pytest.mark.parametrize("cut", CUTS)
async def test_texts_calls_and_results_come_in_the_order_in_which_they_happen(asking: Asking, cut: int) -> None:
    calls = [
        call(0, "a", "weather", '{"city": "Lis'),
        call(1, "b", "weather", ""),
        {"index": 0, "function": {"arguments": 'bon"}'}},
        {"index": 1, "function": {"arguments": '{"city": "São Paulo"}'}},
    ]
    replies = [Reply(calling(*calls, text="I look."), cut=cut), Reply(chat("Warm ", "in ", "both."), cut=cut)]
    turn = await asking.ask(asking.agent(weather), *replies)
    assert turn.story[:3] == ["I look.", ("call", "a"), ("call", "b")]
    assert sorted(turn.story[3:5]) == [("result", "a"), ("result", "b")]
    assert turn.story[5:] == ["Warm in both."]
    assert (turn.pieces, turn.status) == (["I look.", "Warm ", "in ", "both."], "succeeded")
    assert [data.get("args") for _, data in turn.tools[:2]] == [{"city": "Lisbon"}, {"city": "São Paulo"}]
    assert {data["id"]: data["result"] for _, data in turn.tools[2:]}["b"] == {"city": "São Paulo", "high": 27}
    assert asking.events.result.output == "Warm in both."


async def test_a_result_is_told_when_it_is_there_whatever_another_tool_does(asking: Asking) -> None:
    told = asyncio.Event()

    async def slow() -> str:
        """Waits until the other result has been seen."""
        await told.wait()
        return "at last"

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in asking.turn_of(asking.agent(weather, slow))(send):
            yield event
            if event.send_type == "tool_result":
                told.set()

    first = calling(call(0, "s", "slow"), call(1, "w", "weather", '{"city": "Lisbon"}'))
    asking.vendor.replies = [Reply(first), Reply(chat("Done."))]
    turn = await ask(asking.config, handler)
    assert turn.story == [("call", "s"), ("call", "w"), ("result", "w"), ("result", "s"), "Done."]


async def test_an_agent_within_a_tool_is_one_call(asking: Asking) -> None:
    inner = asking.agent(weather)

    async def forecast(city: str) -> str:
        """Asks another agent."""
        async with inner.run_stream_events(city) as events:
            async for _ in events:
                pass
        return str(events.result.output)

    replies = [
        calling(call(0, "f", "forecast", '{"city": "Lisbon"}')),
        calling(LISBON),
        chat("Warm."),
        chat("Warm, they say."),
    ]
    turn = await asking.ask(asking.agent(forecast), *replies, author="Ana")
    assert turn.story == [("call", "f"), ("result", "f"), "Warm, they say."]
    assert turn.tools[1][1]["result"] == "Warm."
    assert turn.authors == ["Ana"]


async def test_a_call_that_does_not_fit_or_asks_to_be_made_again_has_its_error_as_the_result(asking: Asking) -> None:
    def picky() -> str:
        """Is never content."""
        raise ModelRetry("Ask in another way.")

    first = calling(
        call(0, "a", "weather", '{"town": "Lisbon"}'), call(1, "b", "picky"), call(2, "c", "weather", '{"ci')
    )
    turn = await asking.ask(asking.agent(weather, picky), first, chat("Sorry."))
    assert turn.story[-1] == "Sorry."
    results = {data["id"]: data["result"] for kind, data in turn.tools if kind == "tool.result"}
    assert [list(result) for result in results.values()] == [["error"]] * 3
    assert "Ask in another way." in str(results["b"])
    assert [data["args"] for kind, data in turn.tools if kind == "tool.call"] == [{"town": "Lisbon"}, {}, {}]


async def test_a_structured_output_is_not_shown_and_is_there_for_the_handler(asking: Asking) -> None:
    class Forecast(BaseModel):
        city: str

    turn = await asking.ask(
        asking.agent(output_type=Forecast), calling(call(0, "o", "final_result", '{"city": "Lisbon"}'))
    )
    assert (turn.stored, turn.status) == ([], "succeeded")
    assert asking.events.result.output == Forecast(city="Lisbon")


async def test_a_tool_of_the_vendors_own_is_a_call_and_a_result(asking: Asking) -> None:
    part = {"type": "output_text", "text": "Found it.", "annotations": []}
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    model = OpenAIResponsesModel("gpt-test", provider=asking.provider)
    turn = await asking.ask(asking.agent(model=model), response(search, said))
    assert turn.story == [("call", "ws_1"), ("result", "ws_1"), "Found it."]


async def test_what_a_tool_raises_ends_the_turn(asking: Asking) -> None:
    def broken() -> str:
        """Does not work."""
        raise KeyError("secret")

    turn = await asking.ask(asking.agent(broken), calling(call(0, "a", "broken"), text="I look."))
    assert (turn.story[:2], turn.status) == (["I look.", ("call", "a")], "failed")
    assert isinstance(turn.error, KeyError)
    assert "secret" not in str([event.content for event in turn.stored])


async def test_a_model_that_says_nothing_fails_the_turn_after_its_tries(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(), chat(), chat())
    assert ([event.type for event in turn.stored if event.actor == "assistant"], turn.status) == ([], "failed")
    assert isinstance(turn.error, UnexpectedModelBehavior)


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (429, 2), (500, 2)])
async def test_a_request_that_is_refused_fails_the_turn(asking: Asking, status: int, tries: int) -> None:
    reply = refused(status, {"error": {"message": "The key sk-test is wrong.", "type": "invalid", "code": "no"}})
    turn = await asking.ask(asking.agent(), *[reply] * tries)
    assert (turn.status, turn.pieces) == ("failed", [])
    assert isinstance(turn.error, ModelHTTPError)
    assert turn.error.status_code == status
    assert "sk-test" not in str([event.content for event in turn.stored])


async def test_a_connection_that_breaks_fails_the_turn_and_keeps_what_was_said(asking: Asking) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    turn = await asking.ask(asking.agent(weather), calling(LISBON, text="I look."), Reply(half, breaks=True))
    assert turn.story[:4] == ["I look.", ("call", "a"), ("result", "a"), "It was a dark"]
    assert (turn.cut_off[:2], turn.status) == ([False, True], "failed")
    assert isinstance(turn.error, ModelAPIError)


async def test_a_run_that_goes_round_and_round_fails_the_turn(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(weather), calling(LISBON), usage_limits=UsageLimits(request_limit=1))
    assert (turn.story[:2], turn.status) == ([("call", "a"), ("result", "a")], "failed")
    assert isinstance(turn.error, UsageLimitExceeded)


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_model(asking: Asking, spoken: bool) -> None:
    body = chat("It was ", "a dark")
    first = body.index(b"a dark") if spoken else 0
    asking.vendor.replies = [Reply(body, first=first, until=asyncio.Event())]
    texts = await stop(asking.config, asking.turn_of(asking.agent()), None if spoken else asking.vendor.called)
    assert texts == (["It was "] if spoken else [])
    async with asyncio.timeout(30):
        await asking.vendor.left.wait()


@pytest.mark.parametrize("how", ["stopped", "left"])
async def test_a_turn_that_ends_while_a_tool_runs_ends_the_tool(asking: Asking, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> str:
        """Never comes back."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in asking.turn_of(asking.agent(endless))(send):
            yield event
            if how == "left":  # the handler stands at a yield of its own, the adapter at that of the call
                await begun.wait()
                yield send.text("It runs.")

    asking.vendor.replies = [Reply(calling(call(0, "a", "endless")))]
    if how == "stopped":
        await stop(asking.config, handler, begun)
    else:
        await leave(asking.config, handler, "text")
    async with asyncio.timeout(30):
        await ended.wait()


async def test_the_history_becomes_pydantic_ais_messages(asking: Asking) -> None:
    history = pydantic_ai.history(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look."},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    {"type": "image_url", "image_url": {"url": "DATA:image/png;BASE64,aGk="}},
                    {
                        "type": "file",
                        "file": {"filename": "a.txt", "file_data": "data:text/plain;charset=utf-8,h%C3%A9"},
                    },
                ],
            },
        ]
    )
    assert [type(message) for message in history] == [ModelRequest, ModelRequest, ModelResponse, ModelRequest]
    parts: list[Any] = [message.parts[0] for message in history]
    assert [type(part) for part in parts] == [SystemPromptPart, UserPromptPart, TextPart, UserPromptPart]
    assert [part.content for part in parts[:3]] == ["Be brief.", "Hello.", "Hi."]
    words, image, inline, file = parts[3].content
    assert (words, isinstance(image, ImageUrl)) == ("Look.", True)
    assert [(one.data, one.media_type) for one in (inline, file)] == [
        (b"hi", "image/png"),
        ("hé".encode(), "text/plain"),
    ]
    assert isinstance(inline, BinaryContent)

    asking.vendor.replies = [Reply(chat("Nice."))]
    with capture_run_messages():
        async with asking.agent(instructions="Look well.").run_stream_events(message_history=history) as events:
            async for _ in events:
                pass
    told = asking.vendor.asked[0].body["messages"]
    assert [message["role"] for message in told if message["role"] != "system"] == ["user", "assistant", "user"]
