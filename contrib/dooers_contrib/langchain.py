"""LangChain's streams as what a handler yields: a chat model's, or a chain's.

```python
answer = langchain.answer(send, model.astream(convert_to_messages(await memory.get_history(format="openai"))))
async for event in answer:
    yield event
```

What LangChain does for us: one interface to every vendor's model, chunks that can be added up, and (`convert_to_messages`) the history as
its messages. What is left for here: that people see the answer while it comes, tools called with what the model really wrote (LangChain
completes half a JSON text by itself), and one name for why a model stopped. For agents, which call tools themselves, see `langgraph.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from dooers import WorkerSend
from dooers_contrib.answers import Answer, ToolCall, arguments

try:
    from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage, message_chunk_to_message
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[langchain]'", name=missing.name) from None

__all__ = ["answer", "called", "whole"]

# How the vendors call the reason, and the words for an end that the model came to by itself.
_REASONS = ("finish_reason", "stop_reason", "done_reason", "status")
_ENDS = ("stop", "tool_calls", "end_turn", "stop_sequence", "tool_use", "STOP", "completed")


def answer(send: WorkerSend, stream: AsyncIterator[Any], author: str | None = None) -> Answer:
    """The answer of `model.astream(...)`, or of a chain that ends in a model or in a parser of texts.

    Its `messages` are LangChain's. A model that does not say why it stopped, and a chain that gives texts, are never `complete`.
    """
    return Answer(send, lambda it: _read(it, stream), _results, _ENDS, author)


async def _read(it: Answer, stream: Any) -> AsyncGenerator[str, None]:
    messages: list[AIMessage] = []
    async with aclosing(stream):
        async for piece in stream:
            if isinstance(piece, AIMessage):
                messages.append(piece)
            if text := piece if isinstance(piece, str) else str(piece.text):
                yield text
    message = whole(messages) if messages else AIMessage(it.text)
    it.finish_reason = _reason(message)
    it.tool_calls = called(message)
    it.usage = _figures(message)
    it.messages = [message_chunk_to_message(message) if isinstance(message, AIMessageChunk) else message]


def whole(messages: list[AIMessage]) -> AIMessage:
    """A message of its chunks; one that came whole is that already."""
    first, *others = messages
    return first + others if others else first  # type: ignore[return-value]  # they are chunks where there are several


def called(message: AIMessage) -> list[ToolCall]:
    """The tools that a message calls, with what was really written: a chunk's own `tool_calls` are what may have been meant."""
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        nothing = "{}" if _reason(message) in _ENDS else ""
        return [
            ToolCall(call["id"] or uuid4().hex, call["name"] or "", arguments(call["args"] or nothing))
            for call in message.tool_call_chunks
        ]
    calls = [ToolCall(call["id"] or uuid4().hex, call["name"], call["args"]) for call in message.tool_calls]
    return calls + [ToolCall(bad["id"] or uuid4().hex, bad["name"] or "", None) for bad in message.invalid_tool_calls]


def _reason(message: AIMessage) -> str:
    told = message.response_metadata
    return next((str(told[name]) for name in _REASONS if told.get(name)), "")


def _figures(message: AIMessage) -> dict[str, int]:
    usage = message.usage_metadata
    if usage is None:
        return {}
    cached = usage.get("input_token_details", {}).get("cache_read", 0)
    return {"input_tokens": usage["input_tokens"], "cached_tokens": cached, "output_tokens": usage["output_tokens"]}


def _results(it: Answer, results: list[tuple[ToolCall, Any]]) -> list[Any]:
    return [
        ToolMessage(
            result if isinstance(result, str) else json.dumps(result, ensure_ascii=False),
            tool_call_id=call.id,
            name=call.name,
        )
        for call, result in results
    ]
