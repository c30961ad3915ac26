"""LangGraph's streams as what a handler yields: any compiled graph, also LangChain's `create_agent`.

```python
messages = convert_to_messages(await memory.get_history(limit=20, format="openai"))
async for event in langgraph.answer(send, graph.astream({"messages": messages}, stream_mode="messages", subgraphs=True)):
    yield event
```

What LangGraph does for us: it asks the models, runs the tools (several at once, each result told when it is there), routes between agents,
and tells of all that as messages with their origin. What is left for here: which pieces are one message, and agents that talk at the
same time heard one after the other. For a model or a chain without tools of its own see `langchain.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from attrs import Factory, define

from dooers import WorkerEvent, WorkerSend
from dooers_contrib.answers import AnswerError
from dooers_contrib.progress import Done, Part, Said, progress, readable

try:
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage

    from dooers_contrib.langchain import called, whole
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[langgraph]'", name=missing.name) from None

__all__ = ["answer"]


def answer(
    send: WorkerSend, stream: AsyncIterator[Any], author: str | None = None
) -> AsyncGenerator[WorkerEvent, None]:
    """What `graph.astream(..., stream_mode="messages")` tells, in every form that it has: with other modes beside it, with `subgraphs`.

    An agent that has a name (`create_agent(name=...)`) is the author of what it says, unless `author` is given. Parts of other modes
    are passed over.
    """
    return progress(send, _read(send, stream, author))


async def _read(send: WorkerSend, stream: Any, author: str | None) -> AsyncGenerator[Part, None]:
    calling: dict[str | None, list[AIMessage]] = {}  # chunks of messages that are not whole, by their id
    speakers = _Speakers()
    passed_over, read = False, False
    async with aclosing(stream):
        async for part in stream:
            message, origin = _message(part)
            passed_over, read = passed_over or message is None, read or message is not None
            if isinstance(message, AIMessage):
                if text := str(message.text):
                    if (given_up := speakers.given_up(origin.get("langgraph_checkpoint_ns"), message.id)) is not None:
                        yield Done(given_up)
                    yield Said(message.id, text, author or origin.get("lc_agent_name"))
                calling.setdefault(message.id, []).append(message)
                # Its last chunk says so; a message of a model that does not stream, or of a node, is whole.
                if not isinstance(message, AIMessageChunk) or message.chunk_position == "last":
                    yield Done(message.id)
                    for call in called(whole(calling.pop(message.id))):
                        yield send.tool_call(call.name, call.args or {}, id=call.id)
            elif isinstance(message, ToolMessage):
                told = readable(message.content)
                result = {"error": told} if message.status == "error" else told
                yield send.tool_result(message.name or "", result, id=message.tool_call_id)
    if passed_over and not read:
        raise AnswerError(
            'the graph told of no messages: its astream() needs stream_mode="messages", or that mode among others'
        )


@define(eq=False)
class _Speakers:
    """Which message each step of the graph is writing.

    Of a model that fails half-way, and is asked again or replaced by another, nobody tells that its message is over: the next one of
    its step does. A step in which an earlier one goes on asks several at once, and nothing is concluded of it any more.
    """

    last: dict[str, str | None] = Factory(dict)
    said: set[str | None] = Factory(set)
    several: set[str] = Factory(set)

    def given_up(self, step: str | None, message: str | None) -> str | None:
        """The message that is over, now that this one is written."""
        if step is None or (before := self.last.get(step, message)) == message:
            before = None
        elif message in self.said:
            self.several.add(step)
        if step is not None:
            self.last[step] = message
        self.said.add(message)
        return None if step in self.several else before


def _message(part: Any) -> tuple[BaseMessage | None, dict[str, Any]]:
    """The message in a part, and where it comes from."""
    match part:
        case (BaseMessage() as message, dict() as origin):  # one mode
            return message, origin
        case (tuple(), (BaseMessage() as message, dict() as origin)):  # with subgraphs
            return message, origin
        case (*_, "messages", (BaseMessage() as message, dict() as origin)):  # several modes, with or without subgraphs
            return message, origin
        case {"type": "messages", "data": (BaseMessage() as message, dict() as origin)}:  # version="v2"
            return message, origin
    return None, {}
