"""Anthropic's real library reads a fake of its API, and the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic as library
import pytest
from anthropic import AsyncAnthropic
from asking import WHO, Turn, ask
from dooers_contrib import anthropic
from dooers_contrib.answers import Answer, AnswerError, ToolCall
from wires import Reply, Vendor, a_vendor, refused, sse, tool_use
from wires import anthropic as stream_of

from dooers import WorkerConfig, WorkerEvent, WorkerSend, WorkerServer

CUTS = [1, 7, 1 << 20]
ONE = tool_use("toolu_a", "weather", "", '{"ci', 'ty": "São Pau', 'lo"}')
TWO = tool_use("toolu_b", "weather", '{"city": "Lisbon"}')


class Asking:
    """A client and its vendor; `answer` is the last answer."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.client = AsyncAnthropic(api_key="sk-test", base_url=vendor.url, max_retries=1)
        self.answer: Any = None
        self.messages: list[Any] = [{"role": "user", "content": "Well?"}]

    @property
    def open_connections(self) -> int:
        """How many the library holds."""
        transport: Any = self.client._client._transport
        return len(transport._pool.connections)

    async def __call__(self, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        stream = self.client.messages.stream(model="claude-test", max_tokens=100, messages=self.messages)
        self.answer = anthropic.answer(send, stream)
        async for event in self.answer:
            yield event

    async def of(self, body: bytes, **how: Any) -> tuple[Turn, Answer]:
        self.vendor.replies.append(Reply(body, **how))
        return await ask(self.config, self), self.answer


@pytest.fixture
async def asking(worker_config: WorkerConfig) -> AsyncIterator[Asking]:
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        async with asking.client:
            yield asking


@pytest.mark.parametrize("cut", CUTS)
async def test_a_text_is_one_message_written_live_however_the_stream_is_cut(asking: Asking, cut: int) -> None:
    turn, answer = await asking.of(stream_of("Olá mundo 🌍!"), cut=cut)
    assert turn.pieces == ["Olá", " mundo", " 🌍!"]
    assert (turn.texts, turn.cut_off, turn.tools, turn.status) == (["Olá mundo 🌍!"], [False], [], "succeeded")
    assert (answer.text, answer.finish_reason, answer.complete) == ("Olá mundo 🌍!", "end_turn", True)
    assert answer.usage == {"input_tokens": 7, "cached_tokens": 2, "output_tokens": 9}


@pytest.mark.parametrize("cut", CUTS)
async def test_tools_are_called_with_inputs_that_came_in_pieces(asking: Asking, cut: int) -> None:
    turn, answer = await asking.of(stream_of("I look.", ONE, TWO, stop="tool_use"), cut=cut)
    assert answer.tool_calls == [
        ToolCall("toolu_a", "weather", {"city": "São Paulo"}),
        ToolCall("toolu_b", "weather", {"city": "Lisbon"}),
    ]
    assert [event.send_type for event in turn.told] == ["text", "tool_call", "tool_call"]
    assert [data["args"] for _, data in turn.tools] == [{"city": "São Paulo"}, {"city": "Lisbon"}]
    assert answer.complete


async def test_an_answer_that_only_calls_a_tool_is_no_message(asking: Asking) -> None:
    turn, answer = await asking.of(stream_of(tool_use("toolu_a", "now"), stop="tool_use"))
    assert [event.send_type for event in turn.told] == ["tool_call"]
    assert answer.tool_calls == [ToolCall("toolu_a", "now", {})]


async def test_a_stream_that_was_entered_already_is_taken_too(asking: Asking) -> None:
    asking.vendor.replies = [Reply(stream_of("Hello."))]

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async with asking.client.messages.stream(model="claude-test", max_tokens=9, messages=asking.messages) as stream:
            async for event in anthropic.answer(send, stream, author="Claude"):
                yield event

    turn = await ask(asking.config, agent)
    assert (turn.texts, turn.stored[0].author) == (["Hello."], "Claude")


async def test_an_input_that_was_cut_off_is_not_taken_for_one(asking: Asking) -> None:
    # Anthropic's library makes `{"amount": 1}` of it.
    half = tool_use("toolu_a", "pay", '{"amount": 1')
    _, answer = await asking.of(stream_of("I pay.", half, stop="max_tokens"))
    assert answer.tool_calls == [ToolCall("toolu_a", "pay", None)]
    assert (answer.finish_reason, answer.complete) == ("max_tokens", False)


@pytest.mark.parametrize(
    "stop", ["max_tokens", "refusal", "pause_turn", "model_context_window_exceeded", "one_of_tomorrow"]
)
async def test_an_answer_that_did_not_end_by_itself_says_so(asking: Asking, stop: str) -> None:
    turn, answer = await asking.of(stream_of("It was a dark", stop=stop))
    assert (turn.texts, turn.status) == (["It was a dark"], "succeeded")
    assert (answer.finish_reason, answer.complete) == (stop, False)


@pytest.mark.parametrize("stop", ["end_turn", "refusal"])
async def test_an_empty_answer_leaves_no_message_and_is_not_complete(asking: Asking, stop: str) -> None:
    turn, answer = await asking.of(stream_of(stop=stop))
    assert (turn.told, turn.stored, answer.text) == ([], [], "")
    assert not answer.complete


async def test_texts_with_something_in_between_do_not_run_into_each_other(asking: Asking) -> None:
    search = {**tool_use("srv_1", "web_search", '{"query": "x"}'), "type": "server_tool_use"}
    found = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}
    turn, answer = await asking.of(stream_of("I search.", search, found, "It is", " known."))
    assert turn.texts == ["I search.\n\nIt is known."]
    assert answer.tool_calls == []  # Anthropic has run it


async def test_thinking_is_not_said_and_goes_back_with_its_signature(asking: Asking) -> None:
    deltas = [{"type": "thinking_delta", "thinking": "Hm, the weather."}]
    deltas += [{"type": "signature_delta", "signature": "signed"}]
    thinking = {"type": "thinking", "thinking": "", "signature": "", "deltas": deltas}
    bodies = [stream_of(thinking, "I look.", ONE, TWO, stop="tool_use"), stream_of("27 degrees.")]
    asking.vendor.replies = [Reply(body) for body in bodies]

    def weather(city: str) -> Any:
        return {"high": 27} if city == "Lisbon" else "Rain."

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        for _ in range(2):
            async for event in asking(send):
                yield event
            async for event in asking.answer.run({"weather": weather}):
                yield event
            asking.messages.extend(asking.answer.messages)

    turn = await ask(asking.config, agent)
    assert turn.texts == ["I look.", "27 degrees."]
    assert asking.vendor.asked[1].body["messages"] == [
        {"role": "user", "content": "Well?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm, the weather.", "signature": "signed"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {"city": "São Paulo"}},
                {"type": "tool_use", "id": "toolu_b", "name": "weather", "input": {"city": "Lisbon"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_a", "content": "Rain."},
                {"type": "tool_result", "tool_use_id": "toolu_b", "content": '{"high": 27}'},
            ],
        },
    ]


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [(401, library.AuthenticationError, 1), (429, library.RateLimitError, 2), (500, library.InternalServerError, 2)],
)
async def test_a_request_that_is_refused_fails_the_turn(
    asking: Asking, status: int, error: type[Exception], tries: int
) -> None:
    reply = refused(status, {"type": "error", "error": {"type": "no", "message": "The key sk-test is wrong."}})
    asking.vendor.replies = [reply] * tries
    turn = await ask(asking.config, asking)
    assert (turn.status, turn.pieces) == ("failed", [])
    assert isinstance(turn.error, error)
    assert asking.vendor.replies == []
    assert "sk-test" not in str([event.content for event in turn.stored])


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_stream_that_breaks_or_ends_too_early_fails_the_turn_and_keeps_the_text(
    asking: Asking, breaks: bool
) -> None:
    turn, _ = await asking.of(stream_of("It was a dark", end=False), breaks=breaks)
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert breaks is not isinstance(turn.error, AnswerError)


async def test_an_error_in_the_middle_fails_the_turn_and_keeps_the_text(asking: Asking) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    turn, _ = await asking.of(stream_of("It was a dark", end=False) + sse([error], named=True))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert isinstance(turn.error, library.APIError)


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_vendor(asking: Asking, spoken: bool) -> None:
    body = stream_of("It was a dark", ONE)
    first = body.index(b" dark") if spoken else 40
    asking.vendor.replies = [Reply(body, first=first, until=asyncio.Event())]
    worker = WorkerServer(asking.config)

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        async for event in asking(send):
            yield event

    async with worker.lifespan():
        stream = await worker.dispatch(message="Well?", **WHO)
        stream.detach()
        async with asyncio.timeout(30):
            while not asking.vendor.asked:
                await asyncio.sleep(0.002)
        assert await worker.cancel(thread_id=stream.thread_id) == 1
        assert stream.status == "canceled"
        assert asking.open_connections == 0
        asking.vendor.replies = [Reply(stream_of("Hello."))]
        again = await worker.dispatch(message="And now?", thread_id=stream.thread_id, **WHO)
        assert [event.data["text"] async for event in again if event.send_type == "text"] == ["Hello."]
