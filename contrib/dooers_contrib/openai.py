"""OpenAI's streams as what a handler yields: `answer` for chat completions, `response` for responses. Also whoever speaks the same.

```python
stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
answer = openai.answer(send, stream)
async for event in answer:
    yield event
```

What OpenAI's library does for us: the request, retries before the first byte, server-sent events, typed chunks, its errors. What is
left for here: the pieces of a tool call put together, the ways in which an answer ends, and that people see it while it comes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

from dooers import WorkerSend
from dooers_contrib.answers import Answer, AnswerError, ToolCall, arguments, mended

try:
    from openai import AsyncStream
    from openai.types.chat import ChatCompletionChunk
    from openai.types.responses import ResponseStreamEvent
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[openai]'", name=missing.name) from None

__all__ = ["answer", "response"]

# What is read is `Any` below: those who speak the same leave out what OpenAI's types promise.


def answer(send: WorkerSend, stream: AsyncStream[ChatCompletionChunk], author: str | None = None) -> Answer:
    """The answer of `await client.chat.completions.create(..., stream=True)`. A refusal is text like any other.

    `usage` stays empty without `stream_options={"include_usage": True}`.
    """
    return Answer(send, lambda it: _read_chat(it, stream), _chat_results, ("stop", "tool_calls"), author)


def response(send: WorkerSend, stream: AsyncStream[ResponseStreamEvent], author: str | None = None) -> Answer:
    """The answer of `await client.responses.create(..., stream=True)`. A refusal is text like any other."""
    return Answer(send, lambda it: _read_response(it, stream), _response_results, ("completed",), author)


# ---------------------------------------------------------------- chat completions


async def _read_chat(it: Answer, stream: Any) -> AsyncGenerator[str, None]:
    calls: list[dict[str, str]] = []
    at: dict[int, dict[str, str]] = {}
    async with stream:
        async for chunk in stream:
            if chunk.usage is not None:  # in a last chunk that has no choice
                it.usage.update(_chat_usage(chunk.usage))
            for choice in chunk.choices or ():
                if choice.index or choice.delta is None:
                    continue  # one answer is shown, however many were asked for
                it.finish_reason = choice.finish_reason or it.finish_reason
                for piece in choice.delta.tool_calls or ():
                    _put_together(piece, calls, at)
                if text := (choice.delta.content or "") + (choice.delta.refusal or ""):
                    yield text
    if not it.finish_reason:
        raise AnswerError("the stream of OpenAI's answer ended before the answer did")
    for call in calls:
        call["arguments"] = mended(call["arguments"])
    it.tool_calls = [
        ToolCall(call["id"], call["name"], arguments(call["arguments"] or ("" if _cut(it) else "{}"))) for call in calls
    ]
    it.messages = [_chat_message(it.text, calls)]


def _cut(it: Answer) -> bool:
    return it.finish_reason not in ("stop", "tool_calls")


def _put_together(piece: Any, calls: list[dict[str, str]], at: dict[int, dict[str, str]]) -> None:
    """Add a piece of a tool call to the call that it belongs to. Some servers give all calls one index, and each its id."""
    call = at.get(piece.index)
    if call is None or (piece.id and piece.id != call["id"]):
        call = at[piece.index] = {"id": piece.id or uuid4().hex, "name": "", "arguments": ""}
        calls.append(call)
    if piece.function is not None:
        call["name"] += piece.function.name or ""
        call["arguments"] += piece.function.arguments or ""


def _chat_message(text: str, calls: list[dict[str, str]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"] or "{}"},
            }
            for call in calls
        ]
    return message


def _chat_usage(usage: Any) -> dict[str, int]:
    return _figures(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details)


def _figures(given: int, made: int, details: Any) -> dict[str, int]:
    cached = getattr(details, "cached_tokens", None) or 0
    return {"input_tokens": given, "cached_tokens": cached, "output_tokens": made}


def _chat_results(it: Answer, results: list[tuple[ToolCall, Any]]) -> list[Any]:
    return [{"role": "tool", "tool_call_id": call.id, "content": _as_text(result)} for call, result in results]


def _as_text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


# ---------------------------------------------------------------- responses


async def _read_response(it: Answer, stream: Any) -> AsyncGenerator[str, None]:
    ended, place = None, None
    async with stream:
        async for event in stream:
            match event.type:
                case "response.output_text.delta" | "response.refusal.delta":
                    if event.delta:
                        # Two messages of one answer, as before and after a search, are told apart.
                        yield event.delta if place in (None, event.output_index) else f"\n\n{event.delta}"
                        place = event.output_index
                case "response.completed" | "response.incomplete":
                    ended = event.response
                case "response.failed":
                    raise AnswerError(f"OpenAI could not answer: {_why(event.response.error)}")
                case "error":
                    raise AnswerError(f"OpenAI could not answer: {_why(event)}")
    if ended is None:
        raise AnswerError("the stream of OpenAI's response ended before the response did")
    it.finish_reason = getattr(ended.incomplete_details, "reason", None) or ended.status or ""
    it.messages = list(ended.output)
    it.tool_calls = [
        ToolCall(item.call_id, item.name, arguments(item.arguments))
        for item in ended.output
        if item.type == "function_call"
    ]
    if ended.usage is not None:
        it.usage = _figures(ended.usage.input_tokens, ended.usage.output_tokens, ended.usage.input_tokens_details)


def _why(error: Any) -> str:
    return f"{error.message} ({error.code})" if error is not None else "it did not say why"


def _response_results(it: Answer, results: list[tuple[ToolCall, Any]]) -> list[Any]:
    return [
        {"type": "function_call_output", "call_id": call.id, "output": _as_text(result)} for call, result in results
    ]
