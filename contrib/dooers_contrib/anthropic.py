"""Anthropic's message streams as what a handler yields.

```python
answer = anthropic.answer(send, client.messages.stream(model="claude-sonnet-5-5", max_tokens=1000, messages=messages))
async for event in answer:
    yield event
```

What Anthropic's library does for us: the request, retries before the first byte, server-sent events, its errors also in mid-stream, and
the whole message put together: thinking with its signature, tools with their input. What is left for here: the ways in which an answer
ends, inputs that were cut off (the library completes half a JSON text by itself), and that people see it while it comes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from dooers import WorkerSend
from dooers_contrib.answers import Answer, AnswerError, ToolCall, arguments

try:
    from anthropic.lib.streaming import AsyncMessageStream, AsyncMessageStreamManager
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[anthropic]'", name=missing.name) from None

__all__ = ["answer"]


def answer(
    send: WorkerSend, stream: AsyncMessageStreamManager[Any] | AsyncMessageStream[Any], author: str | None = None
) -> Answer:
    """The answer of `client.messages.stream(...)`, entered with `async with` or not."""
    return Answer(send, lambda it: _read(it, stream), _results, ("end_turn", "stop_sequence", "tool_use"), author)


async def _read(it: Answer, stream: Any) -> AsyncGenerator[str, None]:
    message, last = None, None
    inputs: dict[int, str] = {}
    async with stream as events:
        async for event in events:
            match event.type:
                case "content_block_delta" if event.delta.type == "text_delta" and event.delta.text:
                    # Blocks that follow each other are one text in pieces; with something in between they are two.
                    yield event.delta.text if last is None or event.index - last < 2 else f"\n\n{event.delta.text}"
                    last = event.index
                case "content_block_delta" if event.delta.type == "input_json_delta":
                    inputs[event.index] = inputs.get(event.index, "") + event.delta.partial_json
                case "message_stop":
                    message = event.message
    if message is None or message.stop_reason is None:
        raise AnswerError("the stream of Anthropic's answer ended before the answer did")
    it.finish_reason = message.stop_reason
    nothing = "{}" if message.stop_reason == "tool_use" else ""
    it.tool_calls = [
        ToolCall(block.id, block.name, arguments(inputs.get(index) or nothing))
        for index, block in enumerate(message.content)
        if block.type == "tool_use"
    ]
    it.messages = [{"role": "assistant", "content": message.content}]
    it.usage = _figures(message.usage)


def _figures(usage: Any) -> dict[str, int]:
    cached = usage.cache_read_input_tokens or 0
    given = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
    return {"input_tokens": given, "cached_tokens": cached, "output_tokens": usage.output_tokens}


def _results(it: Answer, results: list[tuple[ToolCall, Any]]) -> list[Any]:
    # All of them in one message, as Anthropic wants it.
    blocks = [
        {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": result if isinstance(result, str) else json.dumps(result, ensure_ascii=False),
        }
        for call, result in results
    ]
    return [{"role": "user", "content": blocks}]
