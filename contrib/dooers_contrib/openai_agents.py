"""The OpenAI Agents SDK's runs as what a handler yields.

```python
result = Runner.run_streamed(agent, openai_agents.history(await memory.get_history(limit=20, format="openai")))
async for event in openai_agents.answer(send, result):
    yield event
```

What the SDK does for us: it asks the model, runs the tools, hands over between agents, checks guardrails, and tells of all that as typed
items. What is left for here: which pieces are one message, whose it is, and that a turn that ends takes the run along, which
otherwise goes on in a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from dooers import InvalidValueError, WorkerEvent, WorkerSend
from dooers_contrib.answers import arguments
from dooers_contrib.progress import Done, Part, Said, progress, readable

try:
    from agents import RunResultStreaming
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[openai-agents]'", name=missing.name) from None

__all__ = ["answer", "history"]


def answer(
    send: WorkerSend, result: RunResultStreaming, author: str | None = None
) -> AsyncGenerator[WorkerEvent, None]:
    """What `Runner.run_streamed(...)` tells. The agent that speaks is the author of what it says, unless `author` is given.

    A handoff is shown as the tool that the model calls for it; a tool of OpenAI's own, such as its search, as a transaction, since it is
    done when it is told of. Of tools that are called together the SDK tells the results when it has all of them.
    """
    return progress(send, _read(send, result, author))


def history(messages: list[dict[str, Any]]) -> list[Any]:
    """`memory.get_history(format="openai")` as the SDK takes it, which names images and files in the way of the responses API."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [_input(part) for part in message["content"]],
        }
        for message in messages
    ]


def _input(part: dict[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "image_url"}:
            return {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
        case {"type": "file"}:
            return {"type": "input_file", **part["file"]}
    return {"type": "input_text", "text": part["text"]}


async def _read(send: WorkerSend, result: RunResultStreaming, author: str | None) -> AsyncGenerator[Part, None]:
    name, item = author, 0
    names: dict[str | None, str] = {}  # of the tools, by the id of their call
    async with aclosing(_events(result)) as events:
        async for event in events:
            if event.type == "agent_updated_stream_event":
                name = author or event.new_agent.name
            elif event.type == "run_item_stream_event":
                if event.item.type in ("tool_call_output_item", "handoff_output_item"):
                    yield _result(send, event.item, names)
            elif event.data.type in ("response.output_text.delta", "response.refusal.delta") and event.data.delta:
                yield Said(item, event.data.delta, name)
            elif event.data.type == "response.output_item.done":
                # Tools from here, not from the SDK's items: those come after the response, whatever was said after the call.
                yield Done(item)
                item += 1
                if (called := _call(send, event.data.item, names)) is not None:
                    yield called


async def _events(result: RunResultStreaming) -> AsyncGenerator[Any, None]:
    """The events of a run, read at once: when a run fails, the SDK drops those that nobody has read yet."""
    read: asyncio.Queue[Any] = asyncio.Queue()

    async def reading() -> None:
        try:
            async for event in result.stream_events():
                read.put_nowait(event)
        finally:
            read.put_nowait(None)

    task = asyncio.create_task(reading())
    try:
        while (event := await read.get()) is not None:
            yield event
        await task
    finally:
        result.cancel()
        task.cancel()
        await asyncio.wait({task, result.run_loop_task or task})
        if not task.cancelled():
            task.exception()  # where it failed and nobody is left to hear of it


def _call(send: WorkerSend, item: Any, names: dict[str | None, str]) -> WorkerEvent | None:
    if not item.type.endswith("_call"):
        return None  # a message, or a thought
    call_id = getattr(item, "call_id", None)
    name = names[call_id] = getattr(item, "name", None) or item.type.removesuffix("_call")
    if item.type == "function_call":
        return send.tool_call(name, arguments(item.arguments or "{}") or {}, id=call_id)
    args = item.model_dump(mode="json", exclude={"id", "type", "status", "call_id", "result"}, exclude_none=True)
    # What has an id of its call is run here, and its result will be told.
    return send.tool_call(name, args, id=call_id) if call_id else send.tool_transaction(name, args, item.status)


def _result(send: WorkerSend, item: Any, names: dict[str | None, str]) -> WorkerEvent:
    told, call_id = item.raw_item, item.raw_item["call_id"]
    name = names.get(call_id, "")
    try:
        return send.tool_result(name, getattr(item, "output", readable(told["output"])), id=call_id)
    except InvalidValueError:  # what the tool gave has no JSON form; what the model was told of it has
        return send.tool_result(name, told["output"], id=call_id)
