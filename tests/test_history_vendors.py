"""The vendors' own libraries take what `memory.get_history` gives, and what they put on the wire says what the thread says.

Each test reads one and the same thread, made by a real worker, sends it with the vendor's real client to a fake of the vendor's
HTTP interface, and looks at what arrived there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cohere
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam
from cohere.types import Message as CohereMessage
from fakes import Vendors, vendors
from google import genai
from google.genai.types import Content
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import TypeAdapter

from dooers import HandlerError, WorkerConfig, WorkerMemory, WorkerServer

PIXEL = "iVBORw0KGgo="
PDF = "JVBERi0xLjcK"
PNG_URL, PDF_URL = f"data:image/png;base64,{PIXEL}", f"data:application/pdf;base64,{PDF}"
# The libraries do not check all that they send; their types do. A key that a type does not know is gone after validation.
# Kept for as long as the tests run: what they give is validated only when it is read.
OF_OPENAI = TypeAdapter(list[ChatCompletionMessageParam])
OF_ANTHROPIC = TypeAdapter(list[MessageParam])
OF_COHERE: TypeAdapter[Any] = TypeAdapter(list[CohereMessage])

WHO: dict[str, Any] = {"organization_id": "org", "workspace_id": "main", "user_id": "alice"}


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[WorkerMemory]:
    """The memory of a thread in which everything occurs that a thread may hold."""
    config = WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db"))
    worker = WorkerServer(config)

    @worker.handler
    async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == "Fail.":
            raise ValueError("no")
        if incoming.message == "Draw one.":
            yield send.tool_call("draw", {"what": "cat"}, id="c1")
            yield send.tool_result("draw", "done", id="c1")
            yield send.image("https://example.com/drawn.png", "image/png", alt="A drawn cat")
            yield send.document("https://example.com/drawn.pdf", "drawn.pdf", "application/pdf")
        else:
            yield send.text(f"You said {incoming.message!r}.")
            yield send.text("Anything else?")

    async def say(message: str, content: list[Any] | None = None) -> None:
        stream = await worker.dispatch(message=message, content=content, thread_id="t", **WHO)
        await stream.collect()

    async with worker.lifespan():
        await say("Hello.")
        await say(
            "What is this?",
            [
                {"type": "image", "url": PNG_URL, "mime_type": "image/png"},
                {"type": "image", "url": "https://example.com/cat.png", "mime_type": "image/png", "alt": "A cat"},
                {"type": "document", "url": PDF_URL, "filename": "in.pdf", "mime_type": "application/pdf"},
                {
                    "type": "document",
                    "url": "https://example.com/far.pdf",
                    "filename": "far.pdf",
                    "mime_type": "application/pdf",
                },
                {
                    "type": "document",
                    "url": "https://example.com/sheet.csv",
                    "filename": "sheet.csv",
                    "mime_type": "text/csv",
                },
            ],
        )
        with pytest.raises(HandlerError):
            await say("Fail.")
        await say("Draw one.")
        repository = await worker.repository()
        await repository.create_event("t", actor="user", content=["Thanks."])
        yield await worker.memory("t")


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendors]:
    async with vendors(monkeypatch) as fake:
        yield fake


def plain(value: Any) -> Any:
    """A vendor's validated message as plain values again: its lazy sequences read, its models dumped."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | Iterator) or type(value).__name__ == "ValidatorIterator":
        return [plain(item) for item in value]
    return value


def proto(value: Any) -> Any:
    """JSON as Google's parsers read it: they take `mimeType` and `mime_type` alike, and its library sends both kinds."""
    if isinstance(value, dict):
        return {re.sub(r"_([a-z])", lambda m: m[1].upper(), name): proto(item) for name, item in value.items()}
    return [proto(item) for item in value] if isinstance(value, list) else value


ASKED = "You said 'What is this?'."


async def test_openai_gets_roles_in_order_and_the_parts_of_a_user(memory: WorkerMemory, fake: Vendors) -> None:
    history: Any = await memory.get_history(format="openai")
    async with AsyncOpenAI() as client:
        completion = await client.chat.completions.create(model="gpt-test", messages=history)
    assert completion.choices[0].message.content == fake.reply
    assert fake.last.path == "/v1/chat/completions"
    assert fake.last.body["messages"] == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "You said 'Hello.'."},
        {"role": "assistant", "content": "Anything else?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PNG_URL}},
                {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                {"type": "file", "file": {"filename": "in.pdf", "file_data": PDF_URL}},
                {"type": "text", "text": "[document: far.pdf]"},
                {"type": "text", "text": "[document: sheet.csv]"},
            ],
        },
        {"role": "assistant", "content": ASKED},
        {"role": "assistant", "content": "Anything else?"},
        {"role": "user", "content": "Fail."},
        {"role": "user", "content": "Draw one."},
        {"role": "assistant", "content": "[image: A drawn cat]"},
        {"role": "assistant", "content": "[document: drawn.pdf]"},
        {"role": "user", "content": "Thanks."},
    ]
    assert plain(OF_OPENAI.validate_python(history)) == history


async def test_anthropic_gets_alternating_roles_that_begin_with_the_user_and_blocks(
    memory: WorkerMemory, fake: Vendors
) -> None:
    history: Any = await memory.get_history(format="anthropic")
    async with AsyncAnthropic() as client:
        answer = await client.messages.create(model="claude-test", max_tokens=100, messages=history)
    assert [getattr(block, "text", None) for block in answer.content] == [fake.reply]
    assert fake.last.path == "/v1/messages"
    assert fake.last.body["messages"] == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "You said 'Hello.'.\nAnything else?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                    "title": "in.pdf",
                },
                {
                    "type": "document",
                    "source": {"type": "url", "url": "https://example.com/far.pdf"},
                    "title": "far.pdf",
                },
                {"type": "text", "text": "[document: sheet.csv]"},
            ],
        },
        {"role": "assistant", "content": f"{ASKED}\nAnything else?"},
        {"role": "user", "content": "Fail.\nDraw one."},
        {"role": "assistant", "content": "[image: A drawn cat]\n[document: drawn.pdf]"},
        {"role": "user", "content": "Thanks."},
    ]
    assert plain(OF_ANTHROPIC.validate_python(history)) == history


async def test_a_history_cut_in_the_middle_still_begins_with_the_user_for_anthropic(
    memory: WorkerMemory, fake: Vendors
) -> None:
    for limit in range(1, 11):
        history: Any = await memory.get_history(limit=limit, format="anthropic")
        async with AsyncAnthropic() as client:
            await client.messages.create(model="claude-test", max_tokens=100, messages=history)
        roles = [message["role"] for message in fake.last.body["messages"]]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert roles[-1] == "user"


# Where aiohttp is installed (the cosmos extra brings it), google-genai uses it, in a way that aiohttp warns of.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
async def test_google_gets_user_and_model_with_their_parts(memory: WorkerMemory, fake: Vendors) -> None:
    history: Any = await memory.get_history(format="google")
    client = genai.Client().aio
    try:
        answer = await client.models.generate_content(model="gemini-test", contents=history)
    finally:
        await client.aclose()
    assert answer.text == fake.reply
    assert fake.last.path.endswith("/models/gemini-test:generateContent")
    assert proto(fake.last.body["contents"]) == [
        {"role": "user", "parts": [{"text": "Hello."}]},
        {"role": "model", "parts": [{"text": "You said 'Hello.'."}]},
        {"role": "model", "parts": [{"text": "Anything else?"}]},
        {
            "role": "user",
            "parts": [
                {"text": "What is this?"},
                {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
                {"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/cat.png"}},
                {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
                {"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/far.pdf"}},
                {"fileData": {"mimeType": "text/csv", "fileUri": "https://example.com/sheet.csv"}},
            ],
        },
        {"role": "model", "parts": [{"text": ASKED}]},
        {"role": "model", "parts": [{"text": "Anything else?"}]},
        {"role": "user", "parts": [{"text": "Fail."}]},
        {"role": "user", "parts": [{"text": "Draw one."}]},
        {
            "role": "model",
            "parts": [{"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/drawn.png"}}],
        },
        {
            "role": "model",
            "parts": [{"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/drawn.pdf"}}],
        },
        {"role": "user", "parts": [{"text": "Thanks."}]},
    ]
    for message in history:  # strict: these models forbid what they do not know
        Content.model_validate(message)


async def test_cohere_gets_its_chat_history_in_words(memory: WorkerMemory, fake: Vendors) -> None:
    *history, last = await memory.get_history(format="cohere")
    async with cohere.AsyncClient() as client:
        answer = await client.chat(model="command-test", message=last["message"], chat_history=history)
    assert answer.text == fake.reply
    assert fake.last.path == "/v1/chat"
    assert fake.last.body["message"] == "Thanks."
    in_words = "[image: inline]\n[image: A cat]\n[document: in.pdf]\n[document: far.pdf]\n[document: sheet.csv]"
    assert fake.last.body["chat_history"] == [
        {"role": "USER", "message": "Hello."},
        {"role": "CHATBOT", "message": "You said 'Hello.'."},
        {"role": "CHATBOT", "message": "Anything else?"},
        {"role": "USER", "message": "What is this?\n" + in_words},
        {"role": "CHATBOT", "message": ASKED},
        {"role": "CHATBOT", "message": "Anything else?"},
        {"role": "USER", "message": "Fail."},
        {"role": "USER", "message": "Draw one."},
        {"role": "CHATBOT", "message": "[image: A drawn cat]"},
        {"role": "CHATBOT", "message": "[document: drawn.pdf]"},
    ]
    assert [message.model_dump(exclude_none=True) for message in OF_COHERE.validate_python(history)] == history


async def test_the_history_for_voyage_is_role_and_text(memory: WorkerMemory) -> None:
    history = await memory.get_history(format="voyage")
    assert [message["role"] for message in history] == [
        message["role"] for message in await memory.get_history(format="openai")
    ]
    for message in history:
        assert set(message) == {"role", "content"}
        assert isinstance(message["content"], str)


BLANK: list[tuple[str, list[Any]]] = [("user", []), ("user", ["  "]), ("assistant", [""]), ("user", ["Hello."])]


@pytest.mark.parametrize(("vendor", "words"), [("anthropic", "content"), ("google", "parts"), ("cohere", "message")])
async def test_messages_without_a_word_are_left_out_for_vendors_who_refuse_them(
    vendor: str, words: str, tmp_path: Path
) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db")))
    async with worker.lifespan():
        repository = await worker.repository()
        thread = await repository.create_thread("worker")
        for actor, content in BLANK:
            await repository.create_event(thread.id, actor=actor, content=content)  # type: ignore[arg-type]
        history = await (await worker.memory(thread.id)).get_history(format=vendor)
    assert [message[words] for message in history] in (["Hello."], [[{"text": "Hello."}]])
