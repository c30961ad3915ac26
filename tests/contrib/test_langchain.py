"""LangChain's models, with the vendors' own libraries below them, read a fake; the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asking import Turn, ask, stop
from dooers_contrib import langchain
from dooers_contrib.answers import Answer, ToolCall
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import AuthenticationError, DefaultAsyncHttpxClient
from pydantic import SecretStr
from wires import Reply, Vendor, a_vendor, anthropic, chat, refused, sse, tool_use

from dooers import WorkerConfig, WorkerEvent, WorkerSend

KEY = SecretStr("sk-test")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}
CALLS: list[dict[str, Any]] = [
    {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"ci'}},
    {"index": 1, "id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}},
    {"index": 0, "function": {"arguments": 'ty": "São Paulo"}'}},
    {"index": 1, "function": {"arguments": '"Lisbon"}'}},
]


class Asking:
    """A model of LangChain's and its vendor; `answer` is the last answer."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.http = DefaultAsyncHttpxClient()
        self.model = ChatOpenAI(
            model="gpt-test", api_key=KEY, base_url=f"{vendor.url}/v1", max_retries=1, http_async_client=self.http
        )
        self.answer: Any = None

    async def of(self, reply: bytes | Reply | None, runnable: Any = None) -> tuple[Turn, Answer]:
        if reply is not None:
            self.vendor.replies.append(reply if isinstance(reply, Reply) else Reply(reply))
        runnable = runnable or self.model

        async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
            self.answer = langchain.answer(send, runnable.astream([HumanMessage("Well?")]))
            async for event in self.answer:
                yield event

        return await ask(self.config, handler), self.answer


@pytest.fixture
async def asking(worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGCHAIN_TRACING"):
        monkeypatch.delenv(name, raising=False)
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        async with asking.http:
            yield asking


@pytest.mark.parametrize("cut", [7, 1 << 20])
async def test_a_text_and_its_calls_are_read_live_and_told_of_afterwards(asking: Asking, cut: int) -> None:
    body = chat("Olá, ", "eu ", "vejo 🌍.", calls=CALLS, finish="tool_calls", usage=USAGE)
    turn, answer = await asking.of(Reply(body, cut=cut))
    assert turn.pieces == ["Olá, ", "eu ", "vejo 🌍."]
    assert turn.story == ["Olá, eu vejo 🌍.", ("call", "a"), ("call", "b")]
    assert answer.tool_calls == [
        ToolCall("a", "weather", {"city": "São Paulo"}),
        ToolCall("b", "weather", {"city": "Lisbon"}),
    ]
    assert (answer.finish_reason, answer.complete) == ("tool_calls", True)
    assert answer.usage == {"input_tokens": 7, "cached_tokens": 2, "output_tokens": 3}
    [message] = answer.messages
    assert (type(message), message.text, len(message.tool_calls)) == (AIMessage, "Olá, eu vejo 🌍.", 2)


async def test_anthropics_answer_is_read_as_well(asking: Asking) -> None:
    model = ChatAnthropic(model_name="claude-test", api_key=KEY, base_url=asking.vendor.url, timeout=30, stop=None)
    body = anthropic(
        "I look.", tool_use("a", "weather", '{"ci', 'ty": "Lisbon"}'), tool_use("b", "now"), stop="tool_use"
    )
    turn, answer = await asking.of(body, model.bind_tools([{"name": "weather", "input_schema": {"type": "object"}}]))
    assert turn.story == ["I look.", ("call", "a"), ("call", "b")]
    assert answer.tool_calls == [ToolCall("a", "weather", {"city": "Lisbon"}), ToolCall("b", "now", {})]
    assert (answer.finish_reason, answer.complete) == ("tool_use", True)
    assert answer.usage["output_tokens"] == 9
    await model._async_client.close()


async def test_a_chain_that_ends_in_texts_is_streamed(asking: Asking) -> None:
    chain = ChatPromptTemplate.from_messages([("placeholder", "{messages}")]) | asking.model | StrOutputParser()
    asking.vendor.replies = [Reply(chat("Hello ", "there."))]

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        asking.answer = langchain.answer(send, chain.astream({"messages": [("user", "Well?")]}))
        async for event in asking.answer:
            yield event

    turn = await ask(asking.config, handler)
    assert (turn.pieces, turn.texts) == (["Hello ", "there."], ["Hello there."])
    assert [message.text for message in asking.answer.messages] == ["Hello there."]
    assert not asking.answer.complete


async def test_a_model_that_does_not_stream_is_read_whole(asking: Asking) -> None:
    call = {"name": "weather", "args": {"city": "Lisbon"}, "id": "a"}
    bad = {"name": "weather", "args": '{"ci', "id": "b", "error": None, "type": "invalid_tool_call"}
    said = AIMessage("I look.", tool_calls=[call], invalid_tool_calls=[bad])
    turn, answer = await asking.of(None, FakeMessagesListChatModel(responses=[said]))
    assert turn.story == ["I look.", ("call", "a"), ("call", "b")]
    assert answer.tool_calls == [ToolCall("a", "weather", {"city": "Lisbon"}), ToolCall("b", "weather", None)]


@pytest.mark.parametrize(
    ("written", "finish", "read"),
    [("", "tool_calls", {}), ('{"city": "Li', "length", None), ("", "length", None), ("[1]", "tool_calls", None)],
)
async def test_arguments_are_what_was_written_not_what_may_have_been_meant(
    asking: Asking, written: str, finish: str, read: Any
) -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": written}}
    _, answer = await asking.of(chat(calls=[call], finish=finish))
    assert answer.tool_calls == [ToolCall("a", "weather", read)]
    assert answer.complete is (finish == "tool_calls")


async def test_an_empty_answer_leaves_no_message(asking: Asking) -> None:
    turn, answer = await asking.of(chat())
    assert (turn.stored, answer.text, answer.complete) == ([], "", False)


@pytest.mark.parametrize("finish", ["length", None])
async def test_an_answer_that_was_cut_off_is_not_complete(asking: Asking, finish: str | None) -> None:
    turn, answer = await asking.of(chat("It was a dark", finish=finish))
    assert (turn.texts, answer.finish_reason, answer.complete) == (["It was a dark"], finish or "", False)


async def test_tools_are_run_and_the_model_is_told(asking: Asking) -> None:
    asking.vendor.replies = [Reply(chat(calls=CALLS, finish="tool_calls")), Reply(chat("Warm."))]
    messages = convert_to_messages([{"role": "user", "content": "Well?"}])

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        for _ in range(2):
            answer = langchain.answer(send, asking.model.astream(messages))
            async for event in answer:
                yield event
            async for event in answer.run({"weather": lambda city: {"city": city, "high": 27}}):
                yield event
            messages.extend(answer.messages)

    turn = await ask(asking.config, handler)
    assert turn.story == [("call", "a"), ("call", "b"), ("result", "a"), ("result", "b"), "Warm."]
    told = asking.vendor.asked[1].body["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in told[1]["tool_calls"]] == ["a", "b"]
    assert json.loads(told[2]["content"]) == {"city": "São Paulo", "high": 27}


async def test_what_goes_wrong_fails_the_turn_and_keeps_what_was_said(asking: Asking) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    for reply in (Reply(half, breaks=True), Reply(half + sse([{"error": {"message": "Overloaded."}}]))):
        turn, _ = await asking.of(reply)
        assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    turn, _ = await asking.of(refused(401, {"error": {"message": "The key sk-test is wrong."}}))
    assert turn.status == "failed"
    assert isinstance(turn.error, AuthenticationError)
    assert "sk-test" not in str([event.content for event in turn.stored])


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_model(asking: Asking, spoken: bool) -> None:
    body = chat("It was ", "a dark")
    first = body.index(b"a dark") if spoken else 0
    asking.vendor.replies = [Reply(body, first=first, until=asyncio.Event())]

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in langchain.answer(send, asking.model.astream("Well?")):
            yield event

    texts = await stop(asking.config, handler, None if spoken else asking.vendor.called)
    assert texts == (["It was "] if spoken else [])
    async with asyncio.timeout(30):
        await asking.vendor.left.wait()


async def test_the_history_becomes_langchains_messages(asking: Asking) -> None:
    image = "data:image/png;base64,aGk="
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}
    parts = [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {"url": image}}]
    messages = convert_to_messages([{"role": "user", "content": [*parts, {"type": "file", "file": file}]}])
    asking.vendor.replies = [Reply(chat("Nice."))]
    await asking.model.ainvoke(messages, stream=True)
    assert asking.vendor.asked[0].body["messages"][0]["content"] == [*parts, {"type": "file", "file": file}]
