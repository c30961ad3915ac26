"""Google's streams as what a handler yields: Gemini, by its own API or by Vertex AI, through google-genai.

```python
stream = await client.aio.models.generate_content_stream(model="gemini-3.8-flash", contents=contents)
answer = google.answer(send, stream)
async for event in answer:
    yield event
```

What Google's library does for us: the request to either API, credentials, the chunks, its errors also in mid-stream. What is left for
here: prompts that are blocked, thoughts and signatures kept for the next request, and that people see the answer while it comes.

Give it tools as declarations, and run them with `Answer.run`. Python functions given to the library itself are run by the library,
out of everybody's sight.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import uuid4

from dooers import WorkerSend
from dooers_contrib.answers import Answer, AnswerError, ToolCall

try:
    from google.genai.types import Content, FunctionResponse, GenerateContentResponse, Part
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[google]'", name=missing.name) from None

__all__ = ["answer"]


def answer(send: WorkerSend, stream: AsyncIterator[GenerateContentResponse], author: str | None = None) -> Answer:
    """The answer of `await client.aio.models.generate_content_stream(...)`.

    A prompt that is blocked gives an answer without a word, whose `finish_reason` says why.
    """
    return Answer(send, lambda it: _read(it, stream), _results, ("STOP",), author)


async def _read(it: Answer, stream: Any) -> AsyncGenerator[str, None]:
    parts: list[Part] = []
    try:
        async for chunk in stream:
            if chunk.usage_metadata is not None:
                it.usage.update(_figures(chunk.usage_metadata))
            if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason is not None:
                it.finish_reason = chunk.prompt_feedback.block_reason.value
            for candidate in (chunk.candidates or ())[:1]:
                if candidate.finish_reason is not None:
                    it.finish_reason = candidate.finish_reason.value
                for part in (candidate.content and candidate.content.parts) or ():
                    parts.append(part)
                    if part.text and not part.thought:
                        yield part.text
    finally:
        await stream.aclose()
    if not it.finish_reason:
        raise AnswerError("the stream of Google's answer ended before the answer did")
    it.tool_calls = [_call(part.function_call) for part in parts if part.function_call is not None]
    # As they came: a signature belongs to its part, and some models refuse a conversation without it.
    it.messages = [Content(role="model", parts=parts)]


def _call(call: Any) -> ToolCall:
    if getattr(call, "partial_args", None) or getattr(call, "will_continue", None):  # unknown to older versions
        raise AnswerError("arguments in pieces are not read here: leave stream_function_call_arguments off")
    return ToolCall(call.id or uuid4().hex, call.name or "", call.args or {})


def _figures(usage: Any) -> dict[str, int]:
    return {
        "input_tokens": (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        "cached_tokens": usage.cached_content_token_count or 0,
        "output_tokens": (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
    }


def _results(it: Answer, results: list[tuple[ToolCall, Any]]) -> list[Any]:
    # An id is repeated only where the model gave one.
    given = {part.function_call.id for part in it.messages[0].parts if part.function_call is not None}
    parts = [
        Part(
            function_response=FunctionResponse(
                id=call.id if call.id in given else None,
                name=call.name,
                response=result if isinstance(result, dict) else {"result": result},
            )
        )
        for call, result in results
    ]
    return [Content(role="user", parts=parts)]
