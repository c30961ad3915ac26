"""OpenAI's real library reads a fake of its API, and the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai as library
import pytest
from asking import WHO, Turn, ask
from dooers_contrib import openai
from dooers_contrib.answers import Answer, AnswerError, ToolCall
from openai import AsyncOpenAI
from wires import Reply, Vendor, a_vendor, chat, refused, response, sse

from dooers import WorkerConfig, WorkerEvent, WorkerSend, WorkerServer

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}
# Two calls at once, their arguments cut into pieces and mixed.
CALLS: list[dict[str, Any]] = [
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"ci'}},
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}},
    {"index": 0, "function": {"arguments": 'ty": "São Paulo"}'}},
    {"index": 1, "function": {"arguments": '"Lisbon"}'}},
]
CUTS = [1, 7, 1 << 20]


class Asking:
    """A client and its vendor; `answer` is the last answer."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.client = AsyncOpenAI(api_key="sk-test", base_url=f"{vendor.url}/v1", max_retries=1)
        self.answer: Any = None

    @property
    def open_connections(self) -> int:
        """How many the library holds."""
        transport: Any = self.client._client._transport
        return len(transport._pool.connections)

    async def chat(self, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        stream = await self.client.chat.completions.create(model="gpt-test", messages=[], stream=True)
        self.answer = openai.answer(send, stream)
        async for event in self.answer:
            yield event

    async def response(self, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        stream = await self.client.responses.create(model="gpt-test", input="Well?", stream=True)
        self.answer = openai.response(send, stream)
        async for event in self.answer:
            yield event

    async def of_chat(self, body: bytes, **how: Any) -> tuple[Turn, Answer]:
        self.vendor.replies.append(Reply(body, **how))
        return await ask(self.config, self.chat), self.answer

    async def of_response(self, body: bytes, **how: Any) -> tuple[Turn, Answer]:
        self.vendor.replies.append(Reply(body, **how))
        return await ask(self.config, self.response), self.answer


@pytest.fixture
async def asking(worker_config: WorkerConfig) -> AsyncIterator[Asking]:
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        async with asking.client:
            yield asking


# ---------------------------------------------------------------- chat completions


@pytest.mark.parametrize("cut", CUTS)
async def test_a_text_is_one_message_written_live_however_the_stream_is_cut(asking: Asking, cut: int) -> None:
    turn, answer = await asking.of_chat(chat("Olá, ", "mundo ", "🌍!", usage=USAGE), cut=cut)
    assert turn.pieces == ["Olá, ", "mundo ", "🌍!"]
    assert (turn.texts, turn.cut_off, turn.tools, turn.status) == (["Olá, mundo 🌍!"], [False], [], "succeeded")
    assert (answer.text, answer.finish_reason, answer.complete) == ("Olá, mundo 🌍!", "stop", True)
    assert answer.usage == {"input_tokens": 7, "cached_tokens": 2, "output_tokens": 3}
    assert answer.messages == [{"role": "assistant", "content": "Olá, mundo 🌍!"}]


@pytest.mark.parametrize("cut", CUTS)
async def test_calls_side_by_side_are_put_together_from_their_pieces(asking: Asking, cut: int) -> None:
    turn, answer = await asking.of_chat(chat("I look.", calls=CALLS, finish="tool_calls"), cut=cut)
    assert answer.tool_calls == [
        ToolCall("call_a", "weather", {"city": "São Paulo"}),
        ToolCall("call_b", "weather", {"city": "Lisbon"}),
    ]
    assert [event.send_type for event in turn.told] == ["text", "tool_call", "tool_call"]
    assert turn.tools == [
        ("tool.call", {"id": "call_a", "name": "weather", "args": {"city": "São Paulo"}}),
        ("tool.call", {"id": "call_b", "name": "weather", "args": {"city": "Lisbon"}}),
    ]
    assert answer.complete
    assert answer.messages == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "São Paulo"}'},
                },
                {
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'},
                },
            ],
        }
    ]


async def test_halves_of_an_emoji_that_come_apart_are_put_together_and_half_of_one_goes_nowhere(asking: Asking) -> None:
    calls = [
        call("0", "weather", '{"city": "Lisbon \ud83c'),
        {"index": 0, "function": {"arguments": '\udf1e \ud800"}'}},
    ]
    first = chat("I look \ud83d", "\udc40. \ud800", ".\ud83d", calls=calls, finish="tool_calls")
    asking.vendor.replies = [Reply(first), Reply(chat("Sunny."))]
    messages: list[Any] = []

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        for _ in range(2):
            stream = await asking.client.chat.completions.create(model="gpt-test", messages=messages, stream=True)
            answer = openai.answer(send, stream)
            async for event in answer:
                yield event
            async for event in answer.run({"weather": lambda city: city}):
                yield event
            messages.extend(answer.messages)

    turn = await ask(asking.config, agent)
    assert (turn.error, turn.texts) == (None, ["I look 👀. \ufffd.\ufffd", "Sunny."])
    asked, told = asking.vendor.asked[1].body["messages"]
    assert asked["content"] == turn.texts[0]
    assert asked["tool_calls"][0]["function"]["arguments"] == '{"city": "Lisbon 🌞 \ufffd"}'
    assert told["content"] == "Lisbon 🌞 \ufffd"


async def test_an_answer_that_only_calls_tools_is_no_message(asking: Asking) -> None:
    turn, answer = await asking.of_chat(chat(calls=CALLS, finish="tool_calls"))
    assert [event.send_type for event in turn.told] == ["tool_call", "tool_call"]
    assert answer.messages[0]["content"] is None


async def test_servers_that_give_every_call_one_index_are_understood_by_the_ids(asking: Asking) -> None:
    calls = [
        {"index": 0, "id": "a", "function": {"name": "one", "arguments": '{"n": 1}'}},
        {"index": 0, "id": "b", "function": {"name": "two", "arguments": '{"n": 2}'}},
    ]
    _, answer = await asking.of_chat(chat(calls=calls))
    assert answer.tool_calls == [ToolCall("a", "one", {"n": 1}), ToolCall("b", "two", {"n": 2})]


@pytest.mark.parametrize(
    ("written", "finish", "read"),
    [
        ("", "tool_calls", {}),
        ("{}", "tool_calls", {}),
        ('{"city": "Li', "length", None),
        ("", "length", None),
        ("[1]", "tool_calls", None),
        ("city=Lisbon", "tool_calls", None),
        ("[" * 100_000, "tool_calls", None),
    ],
)
async def test_arguments_that_are_no_complete_object_are_not_taken_for_one(
    asking: Asking, written: str, finish: str, read: Any
) -> None:
    calls = [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": written}}]
    turn, answer = await asking.of_chat(chat(calls=calls, finish=finish))
    assert answer.tool_calls == [ToolCall("a", "weather", read)]
    assert turn.tools == [("tool.call", {"id": "a", "name": "weather", "args": {}})]
    assert answer.complete is (finish == "tool_calls")


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_an_answer_that_was_cut_off_says_so(asking: Asking, finish: str) -> None:
    turn, answer = await asking.of_chat(chat("It was a dark", finish=finish))
    assert (turn.texts, turn.status) == (["It was a dark"], "succeeded")
    assert (answer.finish_reason, answer.complete) == (finish, False)


async def test_an_empty_answer_leaves_no_message_and_is_not_complete(asking: Asking) -> None:
    turn, answer = await asking.of_chat(chat())
    assert (turn.told, turn.stored, answer.text, answer.finish_reason) == ([], [], "", "stop")
    assert not answer.complete


async def test_a_refusal_is_read_as_text(asking: Asking) -> None:
    turn, answer = await asking.of_chat(chat(refusal=["I cannot ", "help with that."]))
    assert turn.texts == [answer.text] == ["I cannot help with that."]


async def test_chunks_without_a_choice_or_a_delta_are_passed_over(asking: Asking) -> None:
    # As Azure sends them, before the answer and after its filter.
    filtered = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
    after = {**filtered, "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}]}
    body = sse([filtered]) + chat("Hello.").replace(b"data: [DONE]\n\n", b"") + sse([after, "[DONE]"])
    turn, answer = await asking.of_chat(body)
    assert (turn.texts, answer.complete) == (["Hello."], True)


async def test_of_several_choices_the_first_is_the_answer(asking: Asking) -> None:
    other = {"index": 1, "delta": {"content": "Not me."}, "finish_reason": "length"}
    body = sse([{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [other]}])
    turn, answer = await asking.of_chat(body + chat("Me."))
    assert (turn.texts, answer.finish_reason) == (["Me."], "stop")


# ---------------------------------------------------------------- responses

MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
CALL = {"type": "function_call", "id": "fc_1", "status": "completed"}


def said(text: str, id: str = "msg_1") -> dict[str, Any]:
    return {**MESSAGE, "id": id, "content": [{"type": "output_text", "text": text, "annotations": []}]}


def called(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {**CALL, "id": f"fc_{id}", "call_id": id, "name": name, "arguments": arguments}


@pytest.mark.parametrize("cut", CUTS)
async def test_a_response_is_one_message_and_its_calls(asking: Asking, cut: int) -> None:
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        said("Olá, I look 🌍."),
        called("a", "weather", '{"city": "São Paulo"}'),
        called("b", "weather", '{"city": "Lisbon"}'),
    ]
    turn, answer = await asking.of_response(response(*items), cut=cut)
    assert turn.pieces == ["Olá,", " I", " look", " 🌍."]
    assert [event.send_type for event in turn.told] == ["text", "tool_call", "tool_call"]
    assert turn.texts == [answer.text] == ["Olá, I look 🌍."]
    assert answer.tool_calls == [
        ToolCall("a", "weather", {"city": "São Paulo"}),
        ToolCall("b", "weather", {"city": "Lisbon"}),
    ]
    assert (answer.finish_reason, answer.complete) == ("completed", True)
    assert answer.usage == {"input_tokens": 7, "cached_tokens": 2, "output_tokens": 3}


async def test_two_messages_of_a_response_do_not_run_into_each_other(asking: Asking) -> None:
    turn, _ = await asking.of_response(response(said("I search."), said("Found it.", "msg_2")))
    assert turn.texts == ["I search.\n\nFound it."]


async def test_a_refusal_in_a_response_is_read_as_text(asking: Asking) -> None:
    item = {**MESSAGE, "content": [{"type": "refusal", "refusal": "No, I cannot."}]}
    turn, answer = await asking.of_response(response(item))
    assert (turn.texts, answer.complete) == (["No, I cannot."], True)


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
async def test_a_response_that_was_cut_off_says_so(asking: Asking, reason: str) -> None:
    body = response(said("It was"), called("a", "weather", '{"ci'), status="incomplete", reason=reason)
    turn, answer = await asking.of_response(body)
    assert (turn.texts, turn.status) == (["It was"], "succeeded")
    assert (answer.finish_reason, answer.complete) == (reason, False)
    assert answer.tool_calls == [ToolCall("a", "weather", None)]


async def test_a_response_that_fails_in_the_middle_fails_the_turn_and_keeps_the_text(asking: Asking) -> None:
    error = {"code": "server_error", "message": "The server had an error."}
    turn, _ = await asking.of_response(response(said("It was a dark"), status="failed", error=error))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert isinstance(turn.error, AnswerError)
    assert "The server had an error. (server_error)" in str(turn.error)


async def test_an_error_event_among_responses_fails_the_turn(asking: Asking) -> None:
    event = {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None}
    body = response(said("It was"), end=False) + sse([{**event, "sequence_number": 9}], named=True)
    turn, _ = await asking.of_response(body)
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was", True, "failed")
    assert "Slow down. (rate_limit_exceeded)" in str(turn.error)


# ---------------------------------------------------------------- what goes wrong, either way


@pytest.mark.parametrize("kind", ["chat", "response"])
@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [(401, library.AuthenticationError, 1), (429, library.RateLimitError, 2), (500, library.InternalServerError, 2)],
)
async def test_a_request_that_is_refused_fails_the_turn(
    asking: Asking, kind: str, status: int, error: type[Exception], tries: int
) -> None:
    reply = refused(status, {"error": {"message": "The key sk-test is wrong.", "type": "invalid", "code": "no"}})
    asking.vendor.replies = [reply] * tries
    turn = await ask(asking.config, getattr(asking, kind))
    assert (turn.status, turn.pieces) == ("failed", [])
    assert isinstance(turn.error, error)
    assert asking.vendor.replies == []
    assert "sk-test" not in str([event.content for event in turn.stored])


@pytest.mark.parametrize("kind", ["chat", "response"])
async def test_a_connection_that_breaks_fails_the_turn_and_keeps_what_was_said(asking: Asking, kind: str) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    asking.vendor.replies = [Reply(half if kind == "chat" else response(said("It was a dark"), end=False), breaks=True)]
    turn = await ask(asking.config, getattr(asking, kind))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert turn.error is not None


async def test_a_handler_that_hears_of_a_connection_that_breaks_may_ask_again(asking: Asking) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    asking.vendor.replies = [Reply(half, breaks=True), Reply(chat("Hello."))]
    worker = WorkerServer(asking.config)

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        try:
            async for event in asking.chat(send):
                yield event
        except Exception:  # which one, differs between the versions of the library
            async for event in asking.chat(send):
                yield event

    async with worker.lifespan():
        stream = await worker.dispatch(message="Well?", **WHO)
        assert [event.data["text"] async for event in stream] == ["It was a dark", "Hello."]
        assert stream.status == "succeeded"


@pytest.mark.parametrize("kind", ["chat", "response"])
async def test_a_stream_that_ends_too_early_is_not_taken_for_an_answer(asking: Asking, kind: str) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    asking.vendor.replies = [Reply(half if kind == "chat" else response(said("It was a dark"), end=False))]
    turn = await ask(asking.config, getattr(asking, kind))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert isinstance(turn.error, AnswerError)


async def test_an_error_in_the_middle_of_a_chat_stream_fails_the_turn(asking: Asking) -> None:
    body = chat("It was", finish=None).replace(b"data: [DONE]\n\n", sse([{"error": {"message": "Overloaded."}}]))
    turn, _ = await asking.of_chat(body)
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was", True, "failed")
    assert isinstance(turn.error, library.APIError)


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_vendor(asking: Asking, spoken: bool) -> None:
    body = chat("It was", " a dark") if spoken else chat(calls=CALLS)
    first = body.index(b" a dark" if spoken else b"call_b") - 100
    asking.vendor.replies = [Reply(body, first=first, until=asyncio.Event())]
    worker = WorkerServer(asking.config)
    begun = asyncio.Event()

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        begun.set()
        async for event in asking.chat(send):
            yield event

    async with worker.lifespan():
        stream = await worker.dispatch(message="Well?", **WHO)
        stream.detach()
        await begun.wait()
        async with asyncio.timeout(30):
            while not asking.vendor.asked or asking.answer is None:
                await asyncio.sleep(0.002)
        assert await worker.cancel(thread_id=stream.thread_id) == 1
        assert stream.status == "canceled"
        assert asking.open_connections == 0
        asking.vendor.replies = [Reply(chat("Hello."))]
        again = await worker.dispatch(message="And now?", thread_id=stream.thread_id, **WHO)
        assert [event.data["text"] async for event in again if event.send_type == "text"] == ["Hello."]


# ---------------------------------------------------------------- tools


def weather(city: str, days: int = 1) -> dict[str, Any]:
    return {"city": city, "high": 27}


async def later(city: str) -> str:
    await asyncio.sleep(0)
    return f"Rain in {city}."


def call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"index": int(id), "id": id, "function": {"name": name, "arguments": arguments}}


async def test_tools_are_run_shown_and_told_to_the_model(asking: Asking) -> None:
    calls = [
        call("0", "weather", '{"city": "São Paulo"}'),
        call("1", "later", '{"city": "Lisbon"}'),
        call("2", "sing", "{}"),
        call("3", "weather", '{"town": "Lisbon"}'),
        call("4", "weather", '{"city": "Li'),
    ]
    asking.vendor.replies = [Reply(chat(calls=calls, finish="tool_calls")), Reply(chat("Rain."))]
    messages: list[Any] = [{"role": "user", "content": "Well?"}]

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        while True:
            stream = await asking.client.chat.completions.create(model="gpt-test", messages=messages, stream=True)
            answer = openai.answer(send, stream)
            async for event in answer:
                yield event
            async for event in answer.run({"weather": weather, "later": later}):
                yield event
            messages.extend(answer.messages)
            if not answer.tool_calls:
                return

    turn = await ask(asking.config, agent)
    results = [data for kind, data in turn.tools if kind == "tool.result"]
    assert [result["id"] for result in results] == ["0", "1", "2", "3", "4"]
    assert [result["result"] for result in results] == [
        {"city": "São Paulo", "high": 27},
        "Rain in Lisbon.",
        {"error": "there is no tool 'sing'; there are: weather, later"},
        {"error": "the arguments do not fit: missing a required argument: 'city'"},
        {"error": "the arguments are not a complete JSON object"},
    ]
    sent = asking.vendor.asked[1].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", *["tool"] * 5]
    assert [message["tool_call_id"] for message in sent[2:]] == ["0", "1", "2", "3", "4"]
    assert json.loads(sent[2]["content"]) == {"city": "São Paulo", "high": 27}
    assert sent[3]["content"] == "Rain in Lisbon."
    assert (turn.texts, turn.status) == (["Rain."], "succeeded")


async def test_tools_of_a_response_go_back_as_its_items(asking: Asking) -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed"}
    asked = response(reasoning, called("a", "weather", '{"city": "Lisbon"}'))
    asking.vendor.replies = [Reply(asked), Reply(response(said("27 degrees.")))]
    items: list[Any] = [{"role": "user", "content": "Well?"}]

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        for _ in range(2):
            stream = await asking.client.responses.create(model="gpt-test", input=items, stream=True)
            answer = openai.response(send, stream)
            async for event in answer:
                yield event
            async for event in answer.run({"weather": weather}):
                yield event
            items.extend(answer.messages)

    turn = await ask(asking.config, agent)
    assert turn.texts == ["27 degrees."]
    sent = asking.vendor.asked[1].body["input"]
    assert [item.get("type", "message") for item in sent] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert sent[1]["encrypted_content"] == "sealed"
    assert sent[3] == {"type": "function_call_output", "call_id": "a", "output": '{"city": "Lisbon", "high": 27}'}


async def test_what_a_tool_raises_ends_the_turn(asking: Asking) -> None:
    asking.vendor.replies = [Reply(chat(calls=[call("0", "broken", "{}")], finish="tool_calls"))]

    def broken() -> None:
        raise KeyError("secret")

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in asking.chat(send):
            yield event
        async for event in asking.answer.run({"broken": broken}):
            yield event

    turn = await ask(asking.config, agent)
    assert (turn.status, [kind for kind, _ in turn.tools]) == ("failed", ["tool.call"])
    assert isinstance(turn.error, KeyError)
    assert "secret" not in str([event.content for event in turn.stored])
