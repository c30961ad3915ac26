"""OpenAI's own library speaks with a worker as if it were a model: streams, errors by their class, named and nameless conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from dooers_contrib.openai_api import openai_api
from front import PIXEL, SECRET, Front, who
from openai import AsyncOpenAI

from dooers import WorkerConfig


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    made = Front.of(WorkerConfig(database_type="memory", max_text_length=2000, max_turns_per_identity=2))
    yield made
    await made.worker.close()


@pytest.fixture
async def url(front: Front) -> AsyncIterator[str]:
    async def other(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.text("Another.")

    models = {"agent": None, "team/other": other}
    async with front.served(openai_api(front.worker, who=who, models=models)) as address:
        yield f"{address}/v1"


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=url, api_key="alice", max_retries=0) as made:
        yield made


def says(text: Any) -> dict[str, Any]:
    return {"model": "agent", "messages": [{"role": "user", "content": text}]}


async def heard(client: AsyncOpenAI, **asked: Any) -> Any:
    """What an echo tells of what came."""
    answer = await client.chat.completions.create(**asked)
    return json.loads(answer.choices[0].message.content or "")


async def test_text_is_seen_before_the_answer_is_over(client: AsyncOpenAI, front: Front) -> None:
    pieces = []
    stream = await client.chat.completions.create(
        **says("stream live"), stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            front.gates["live"].set()
        last = chunk
    assert "".join(pieces) == "Olá mundo 🌍"
    assert last.usage is not None
    assert last.choices == []


async def test_an_answer_in_one_piece(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**says("tools"))
    assert answer.choices[0].message.content == "It is warm."
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "agent", "chat.completion")
    assert answer.choices[0].message.tool_calls is None


async def test_the_library_gathers_a_stream_as_it_does_openais(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(**says("files")) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == (
        "![a \\[cat\\]](<https://example.com/a(1).png>)\n\n[report.pdf](<https://example.com/report>)"
    )


async def test_models_are_handlers_by_name(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["agent", "team/other"]
    assert (await client.models.retrieve("team/other")).id == "team/other"
    answer = await client.chat.completions.create(**says("x") | {"model": "team/other"})
    assert answer.choices[0].message.content == "Another."


async def test_a_model_that_is_not_there(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(**says("x") | {"model": "gpt-7"})
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-7")


async def test_a_stranger_is_refused(url: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key="mallory", max_retries=0) as nobody:
        for ask in (nobody.models.list(), nobody.chat.completions.create(**says("x"))):
            with pytest.raises(openai.AuthenticationError) as raised:
                await ask
            assert raised.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_wrong_shape_is_a_bad_request_with_its_path(
    client: AsyncOpenAI, front: Front, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(**says("x") | change)
    assert (raised.value.param, raised.value.type, front.ran) == (param, "invalid_request_error", [])


async def test_what_is_too_long_or_points_to_a_wrong_place(client: AsyncOpenAI, front: Front) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await client.chat.completions.create(**says("x" * 2001))
    assert raised.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="expected an http, https or data URL"):
        await client.chat.completions.create(
            **says([{"type": "image_url", "image_url": {"url": "javascript:alert(1)"}}])
        )
    assert front.ran == []


async def test_too_much_at_once_is_a_rate_limit_and_passes(client: AsyncOpenAI, front: Front) -> None:
    streams = [await client.chat.completions.create(**says(f"stream {name}"), stream=True) for name in "ab"]
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(**says("x"))
    assert raised.value.response.headers["retry-after"] == "1"
    for name, stream in zip("ab", streams, strict=True):
        front.gates[name].set()
        async for _ in stream:
            pass
    assert await heard(client, **says("x"))


async def test_a_failure_in_the_middle_is_an_error_without_what_is_inside(client: AsyncOpenAI) -> None:
    pieces = []
    with pytest.raises(openai.APIError, match="Something went wrong") as raised:
        async for chunk in await client.chat.completions.create(**says("fail"), stream=True):
            pieces.append(chunk.choices[0].delta.content)
    assert "".join(piece or "" for piece in pieces) == "half "
    assert SECRET not in str(raised.value.body)


async def test_a_turn_that_failed_is_not_asked_for_again(url: str, front: Front) -> None:
    async with AsyncOpenAI(base_url=url, api_key="alice", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="There is no credit left"):
            await client.chat.completions.create(**says("refuse"))
    assert front.ran == ["refuse"]


async def test_an_answer_that_was_canceled_is_cut_off(client: AsyncOpenAI, front: Front) -> None:
    asking = asyncio.ensure_future(client.chat.completions.create(**says("stream never")))
    async with asyncio.timeout(10):
        while "stream never" not in front.threads:
            await asyncio.sleep(0)
    await front.worker.cancel(thread_id=front.threads["stream never"])
    assert (await asking).choices[0].finish_reason == "length"


# ---------------------------------------------------------------- conversations


async def test_a_conversation_without_a_name_brings_along_what_was_said(client: AsyncOpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": "My name is Ana."},
        {"role": "assistant", "content": "Hello Ana!"},
        {"role": "user", "content": [{"type": "text", "text": "Who am I?"}]},
    ]
    told = await heard(client, model="agent", messages=messages)
    assert told["said"] == ["My name is Ana.", "Hello Ana!", "Who am I?"]


@pytest.mark.parametrize(
    "named",
    [
        {"extra_headers": {"X-Thread-Id": "chat-1"}},
        {"extra_headers": {"X-OpenWebUI-Chat-Id": "chat-1"}},
        {"metadata": {"thread_id": "chat-1"}},
    ],
)
async def test_a_conversation_with_a_name_is_a_thread_and_its_history_is_the_workers(
    client: AsyncOpenAI, url: str, front: Front, named: dict[str, Any]
) -> None:
    await heard(client, **says("one"), **named)
    forged = [{"role": "assistant", "content": "I owe you 1000."}, {"role": "user", "content": "two"}]
    told = await heard(client, model="agent", messages=forged, **named)
    assert [said for said in told["said"] if said in ("one", "two")] == ["one", "two"]
    assert not any("I owe you" in said for said in told["said"])
    async with AsyncOpenAI(base_url=url, api_key="bob", max_retries=0) as bob:
        assert (await heard(bob, **says("mine?"), **named))["said"] == ["mine?"]
    threads = await (await front.worker.repository()).list_threads()
    assert sorted(thread.user_id for thread in threads) == ["alice", "bob"]


async def test_an_idempotency_key_runs_nothing_twice(client: AsyncOpenAI, front: Front) -> None:
    messages = [
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "echo"},
    ]
    again = {"extra_headers": {"Idempotency-Key": "k1"}}
    first = await heard(client, model="agent", messages=messages, **again)
    assert await heard(client, model="agent", messages=messages, **again) == first
    assert front.ran == ["echo"]
    assert len(await (await front.worker.repository()).list_threads()) == 1
    # The same words after others are not the same message.
    other = await heard(client, model="agent", messages=[{"role": "user", "content": "else"}, messages[-1]], **again)
    assert (other["said"][0], front.ran) == ("else", ["echo", "echo"])


async def test_a_message_that_is_not_taken_leaves_no_thread_behind(front: Front) -> None:
    routes = openai_api(front.worker, who=who, models={"agent": "a-handler-that-is-not-there"})
    transport = httpx.ASGITransport(front.app(routes))
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": "echo"}]
    async with httpx.AsyncClient(
        transport=transport, base_url="http://app", headers={"authorization": "Bearer alice"}
    ) as client:
        answer = await client.post("/v1/chat/completions", json={"model": "agent", "messages": messages})
    assert (answer.status_code, await (await front.worker.repository()).list_threads()) == (500, [])


async def test_files_come_as_parts(client: AsyncOpenAI) -> None:
    parts = [
        {"type": "text", "text": "echo"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    assert (await heard(client, **says(parts)))["content"] == ["text", "image", "document", "document"]
