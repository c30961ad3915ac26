"""Google's real library reads a fake of both of its APIs, and the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from accounts import account
from asking import WHO, Turn, ask
from dooers_contrib import google
from dooers_contrib.answers import Answer, AnswerError, ToolCall
from google.genai import Client
from google.genai.errors import APIError
from google.genai.types import FunctionDeclaration, GenerateContentConfig, HttpOptions, Tool
from wires import Reply, Vendor, a_vendor, gemini, refused, sse

from dooers import WorkerConfig, WorkerEvent, WorkerSend, WorkerServer

# Where aiohttp is installed (the cosmos extra brings it), google-genai uses it, in a way that aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

CUTS = [1, 7, 1 << 20]
ONE = {"functionCall": {"name": "weather", "args": {"city": "São Paulo"}}, "thoughtSignature": "c2lnbmVk"}
TWO = {"functionCall": {"id": "call-2", "name": "weather", "args": {"city": "Lisbon"}}}
TOOLS: Any = GenerateContentConfig(
    tools=[Tool(function_declarations=[FunctionDeclaration(name="weather", description="The weather")])]
)


class Asking:
    """A client and its vendor; `answer` is the last answer."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.client = Client(api_key="key-test", http_options=HttpOptions(base_url=vendor.url)).aio
        self.answer: Any = None
        self.contents: list[Any] = [{"role": "user", "parts": [{"text": "Well?"}]}]

    async def __call__(self, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        stream = await self.client.models.generate_content_stream(
            model="gemini-test", contents=self.contents, config=TOOLS
        )
        self.answer = google.answer(send, stream)
        async for event in self.answer:
            yield event

    async def of(self, body: bytes, **how: Any) -> tuple[Turn, Answer]:
        self.vendor.replies.append(Reply(body, **how))
        return await ask(self.config, self), self.answer


@pytest.fixture
async def asking(worker_config: WorkerConfig) -> AsyncIterator[Asking]:
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        yield asking
        await asking.client.aclose()


@pytest.mark.parametrize("cut", CUTS)
async def test_a_text_is_one_message_written_live_however_the_stream_is_cut(asking: Asking, cut: int) -> None:
    turn, answer = await asking.of(gemini("Olá ", "mundo ", "🌍!"), cut=cut)
    assert turn.pieces == ["Olá ", "mundo ", "🌍!"]
    assert (turn.texts, turn.cut_off, turn.tools, turn.status) == (["Olá mundo 🌍!"], [False], [], "succeeded")
    assert (answer.text, answer.finish_reason, answer.complete) == ("Olá mundo 🌍!", "STOP", True)
    assert answer.usage == {"input_tokens": 6, "cached_tokens": 0, "output_tokens": 5}
    # The version in front of it is the library's affair, which has changed it before.
    assert asking.vendor.asked[0].path.endswith("/models/gemini-test:streamGenerateContent?alt=sse")
    assert asking.vendor.asked[0].headers["x-goog-api-key"] == "key-test"


async def test_tools_are_called_and_their_results_go_back_with_the_signatures(asking: Asking) -> None:
    thought = {"text": "Hm, the weather.", "thought": True}
    asking.vendor.replies = [Reply(gemini(thought, "I look.", ONE, TWO)), Reply(gemini("27 degrees."))]

    def weather(city: str) -> Any:
        return {"high": 27} if city == "Lisbon" else "Rain."

    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        for _ in range(2):
            async for event in asking(send):
                yield event
            calls = asking.answer.tool_calls
            async for event in asking.answer.run({"weather": weather}):
                yield event
            asking.contents.extend(asking.answer.messages)
            if calls:
                assert calls[1] == ToolCall("call-2", "weather", {"city": "Lisbon"})
                assert calls[0] == ToolCall(calls[0].id, "weather", {"city": "São Paulo"})

    turn = await ask(asking.config, agent)
    assert turn.texts == ["I look.", "27 degrees."]
    assert [kind for kind, _ in turn.tools] == ["tool.call", "tool.call", "tool.result", "tool.result"]
    ids = [data["id"] for _, data in turn.tools]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2
    _, model, results = asking.vendor.asked[1].body["contents"]
    assert model["role"] == "model"
    assert model["parts"][0] == thought
    assert model["parts"][1:] == [{"text": "I look."}, ONE, TWO]
    # An id that the model did not give is not made up for it.
    assert results == {
        "role": "user",
        "parts": [
            {"functionResponse": {"name": "weather", "response": {"result": "Rain."}}},
            {"functionResponse": {"id": "call-2", "name": "weather", "response": {"high": 27}}},
        ],
    }


async def test_an_answer_that_only_calls_a_tool_is_no_message(asking: Asking) -> None:
    turn, answer = await asking.of(gemini(TWO))
    assert [event.send_type for event in turn.told] == ["tool_call"]
    assert answer.complete


@pytest.mark.parametrize("finish", ["MAX_TOKENS", "SAFETY", "RECITATION", "OTHER"])
async def test_an_answer_that_did_not_end_by_itself_says_so(asking: Asking, finish: str) -> None:
    turn, answer = await asking.of(gemini("It was a dark", finish=finish))
    assert (turn.texts, turn.status) == (["It was a dark"], "succeeded")
    assert (answer.finish_reason, answer.complete) == (finish, False)


async def test_a_candidate_without_content_is_an_empty_answer(asking: Asking) -> None:
    body = sse([{"candidates": [{"finishReason": "SAFETY", "index": 0}], "usageMetadata": {"promptTokenCount": 6}}])
    turn, answer = await asking.of(body)
    assert (turn.told, turn.stored, answer.finish_reason, answer.complete) == ([], [], "SAFETY", False)
    assert answer.usage == {"input_tokens": 6, "cached_tokens": 0, "output_tokens": 0}


async def test_a_prompt_that_is_blocked_says_why(asking: Asking) -> None:
    turn, answer = await asking.of(sse([{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}]))
    assert (turn.stored, turn.status) == ([], "succeeded")
    assert (answer.finish_reason, answer.complete) == ("PROHIBITED_CONTENT", False)


async def test_arguments_in_pieces_are_told_to_be_off(asking: Asking) -> None:
    part = {"functionCall": {"name": "weather", "willContinue": True}}
    turn, _ = await asking.of(gemini("I look.", part))
    assert (turn.texts[0], turn.status) == ("I look.", "failed")
    assert "stream_function_call_arguments" in str(turn.error)


# ---------------------------------------------------------------- Vertex AI


async def test_vertex_is_asked_with_the_accounts_token(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account(asking.vendor, tmp_path)))
    options = HttpOptions(base_url=asking.vendor.url)
    client = Client(vertexai=True, project="acme", location="europe-west4", http_options=options).aio
    await asking.client.aclose()
    asking.client = client
    turn, answer = await asking.of(gemini("Hello ", "from Vertex."))
    assert (turn.texts, answer.complete) == (["Hello from Vertex."], True)
    [asked] = asking.vendor.asked
    place = "projects/acme/locations/europe-west4/publishers/google/models/gemini-test"
    assert asked.path.endswith(f"/{place}:streamGenerateContent?alt=sse")
    assert asked.headers["authorization"] == "Bearer from-the-account"


async def test_vertex_is_asked_with_a_key(asking: Asking) -> None:
    await asking.client.aclose()
    options = HttpOptions(base_url=asking.vendor.url)
    asking.client = Client(vertexai=True, api_key="key-test", http_options=options).aio
    turn, _ = await asking.of(gemini("Hello."))
    assert turn.texts == ["Hello."]
    assert "/publishers/google/models/gemini-test:streamGenerateContent" in asking.vendor.asked[0].path


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_request_that_is_refused_fails_the_turn(asking: Asking, status: int) -> None:
    asking.vendor.replies = [
        refused(status, {"error": {"code": status, "message": "The key key-test is wrong.", "status": "NO"}})
    ]
    turn = await ask(asking.config, asking)
    assert (turn.status, turn.pieces) == ("failed", [])
    assert isinstance(turn.error, APIError)
    assert turn.error.code == status
    assert "key-test" not in str([event.content for event in turn.stored])


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_stream_that_breaks_or_ends_too_early_fails_the_turn_and_keeps_the_text(
    asking: Asking, breaks: bool
) -> None:
    turn, _ = await asking.of(gemini("It was", " a dark", finish=None), breaks=breaks)
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert breaks is not isinstance(turn.error, AnswerError)


async def test_an_error_in_the_middle_fails_the_turn_and_keeps_the_text(asking: Asking) -> None:
    error = {"error": {"code": 503, "message": "Overloaded.", "status": "UNAVAILABLE"}}
    turn, _ = await asking.of(gemini("It was", finish=None) + sse([error]))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was", True, "failed")
    assert isinstance(turn.error, APIError)


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_vendor(asking: Asking, spoken: bool) -> None:
    body = gemini("It was", " a dark")
    first = body.index(b" a dark") - 60 if spoken else 20
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
        asking.vendor.replies = [Reply(gemini("Hello."))]
        again = await worker.dispatch(message="And now?", thread_id=stream.thread_id, **WHO)
        assert [event.data["text"] async for event in again if event.send_type == "text"] == ["Hello."]
