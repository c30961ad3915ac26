"""Pydantic AI's runs as what a handler yields.

```python
history = pydantic_ai.history(await memory.get_history(limit=20, format="openai"))
async with agent.run_stream_events(message_history=history, deps=deps) as events:
    async for event in pydantic_ai.answer(send, events):
        yield event
```

What Pydantic AI does for us: it asks the model, checks and runs the tools (several at once), asks again where something does not fit, and
tells of all that as typed events; leaving the `async with` ends the run. What is left for here: which pieces are one message, and the
thread as its messages.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from dooers import WorkerEvent, WorkerSend
from dooers_contrib.answers import arguments
from dooers_contrib.progress import Done, Part, Said, progress, readable

try:
    from pydantic_ai import messages as told
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[pydantic-ai]'", name=missing.name) from None

__all__ = ["answer", "history"]


def answer(
    send: WorkerSend, events: AsyncIterator[Any], author: str | None = None
) -> AsyncGenerator[WorkerEvent, None]:
    """What `async with agent.run_stream_events(...) as events` tells. Afterwards `events.result` has the output.

    A structured output (`output_type`) is the tool call that the model makes of it: it is not shown, it is yours to show.
    """
    return progress(send, _read(send, events, author))


async def _read(send: WorkerSend, events: AsyncIterator[Any], author: str | None) -> AsyncGenerator[Part, None]:
    message = 0
    async for event in events:
        match event:
            case told.PartStartEvent(part=told.TextPart(content=text)) if text:
                yield Said(message, text, author)
            case told.PartDeltaEvent(delta=told.TextPartDelta(content_delta=text)) if text:
                yield Said(message, text, author)
            case told.PartEndEvent(part=told.TextPart()):
                yield Done(message)
                message += 1
            case told.FunctionToolCallEvent(part=call) | told.PartEndEvent(part=told.NativeToolCallPart() as call):
                yield send.tool_call(call.tool_name, _arguments(call), id=call.tool_call_id)
            case (
                told.FunctionToolResultEvent(part=result)
                | told.PartStartEvent(part=told.NativeToolReturnPart() as result)
            ):
                yield send.tool_result(result.tool_name, readable(result.model_response_str()), id=result.tool_call_id)


def _arguments(call: Any) -> dict[str, Any]:
    return call.args if isinstance(call.args, dict) else arguments(call.args or "{}") or {}


def history(messages: Sequence[dict[str, Any]]) -> list[told.ModelMessage]:
    """`memory.get_history(format="openai")` as Pydantic AI's messages. Its last message needs no prompt beside it."""
    found: list[told.ModelMessage] = []
    for message in messages:
        match message["role"], message["content"]:
            case "assistant", text:
                found.append(told.ModelResponse([told.TextPart(text)]))
            case "system", text:
                found.append(told.ModelRequest([told.SystemPromptPart(text)]))
            case _, str() as text:
                found.append(told.ModelRequest([told.UserPromptPart(text)]))
            case _, parts:
                found.append(told.ModelRequest([told.UserPromptPart([_content(part) for part in parts])]))
    return found


def _content(part: dict[str, Any]) -> told.UserContent:
    match part:
        case {"type": "image_url", "image_url": {"url": url}}:
            return _inline(url) if url[:5].lower() == "data:" else told.ImageUrl(url)
        case {"type": "file", "file": {"file_data": url}}:
            return _inline(url)
    return str(part["text"])


def _inline(url: str) -> told.BinaryContent:
    """What a data URL holds. Pydantic AI's own reading takes a lower-case one without parameters, in base64."""
    head, _, data = url.partition(",")
    mime, *parameters = head[5:].split(";")
    inline = unquote_to_bytes(data)
    if parameters and parameters[-1].lower() == "base64":
        inline = b64decode(inline)
    return told.BinaryContent(inline, media_type=mime or "text/plain")
