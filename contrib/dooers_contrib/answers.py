"""A model's answer while it comes, and what is known of it afterwards: what the adapters of the model vendors have in common.

Not a client: the vendor's library asks the model, `openai.py`, `anthropic.py` and `google.py` read what it gives.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from inspect import isawaitable, signature
from typing import Any, Self, TypeAlias

from attrs import Factory, define, field, frozen

from dooers import WorkerEvent, WorkerSend

__all__ = ["Answer", "AnswerError", "Reader", "Results", "ToolCall", "arguments", "mended"]


class AnswerError(Exception):
    """The vendor said in the middle of a stream that it failed, or the stream ended before the answer did."""


@frozen
class ToolCall:
    """A tool that the model wants to be run. `args` is None where what the model wrote is no JSON object, or was cut off."""

    id: str
    name: str
    args: dict[str, Any] | None


@define(eq=False)
class Answer:
    """One answer. Iterate it in a handler and yield what comes: the text, live, as one message; then the tools that are called.

    When the iteration is over, `text` is what was said and `tool_calls` what is to be run. `usage` has `input_tokens` (all of them),
    `cached_tokens` (of these) and `output_tokens`, as far as the vendor told. `messages` is what the next request has to repeat of
    this answer, in the vendor's own form. `finish_reason` is the vendor's word for why the model stopped.

    Whatever the vendor's library raises passes through to the handler. What was said until then is kept, as with every `send.stream`.
    """

    _send: WorkerSend
    _read: Reader
    _results: Results
    _ends: Collection[str]
    _author: str | None = None
    pieces: list[str] = Factory(list)
    tool_calls: list[ToolCall] = Factory(list)
    finish_reason: str = ""
    usage: dict[str, int] = Factory(dict)
    messages: list[Any] = Factory(list)

    @property
    def text(self) -> str:
        """What the model has said so far."""
        return mended("".join(self.pieces))

    @property
    def complete(self) -> bool:
        """Whether the model ended by itself, and said or called something: not cut off, not filtered, not refused, not empty."""
        return self.finish_reason in self._ends and (bool(self.tool_calls) or bool(self.text.strip()))

    async def __aiter__(self) -> AsyncIterator[WorkerEvent]:
        text = _Text(self, self._read(self))
        # Only when there is a first piece: an answer that calls tools and says nothing is no message.
        if await text.begin():
            yield self._send.stream(text, self._author)
        for call in self.tool_calls:
            yield self._send.tool_call(call.name, call.args or {}, id=call.id)

    async def run(self, tools: Mapping[str, Callable[..., Any]]) -> AsyncIterator[WorkerEvent]:
        """Run the tools that were called, one after the other, and yield what each gave; then `messages` has the results too.

        `tools` are your functions by name, async or not. A call that does not fit (a tool that is not there, arguments that it does
        not take) gets an error as its result, for the model to do better. What a tool raises is raised, and ends the turn.
        """
        results = []
        for call in self.tool_calls:
            event = self._send.tool_result(call.name, await _run(call, tools), id=call.id)
            results.append((call, event.data["result"]))  # in plain JSON: the model is told what people see
            yield event
        if results:
            self.messages.extend(self._results(self, results))


Reader: TypeAlias = Callable[[Answer], AsyncGenerator[str, None]]
Results: TypeAlias = Callable[[Answer, list[tuple[ToolCall, Any]]], list[Any]]


@define(eq=False)
class _Text:
    """The text as `send.stream` wants it. It is begun before it is handed over, so that closing it closes the vendor's stream, always."""

    _answer: Answer
    _reading: AsyncGenerator[str, None]
    _first: str | None = field(init=False, default=None)

    async def begin(self) -> bool:
        """Wait for the first piece; whether there is one."""
        try:
            self._first = await anext(self._reading, None)
        finally:
            if self._first is None:
                await self._reading.aclose()
        return self._first is not None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece, self._first = self._first, None
        if piece is None:
            piece = await anext(self._reading)
        self._answer.pieces.append(piece)
        if "\ud800" <= piece[-1] <= "\udbff":
            other = await anext(self._reading, "")
            self._answer.pieces.append(other)
            piece += other
        return mended(piece)

    async def aclose(self) -> None:
        await self._reading.aclose()


def arguments(text: str) -> dict[str, Any] | None:
    """A tool's arguments as a model wrote them; None for what is no JSON object."""
    try:
        args = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return args if isinstance(args, dict) else None


def mended(text: str) -> str:
    """A text as it was meant, of which some servers send the halves of an emoji apart; a half without its other is U+FFFD.

    No request can have one, so it must not come into what is sent back either.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


async def _run(call: ToolCall, tools: Mapping[str, Callable[..., Any]]) -> Any:
    tool = tools.get(call.name)
    if tool is None:
        return {"error": f"there is no tool {call.name!r}; there are: {', '.join(tools) or 'none'}"}
    if call.args is None:
        return {"error": "the arguments are not a complete JSON object"}
    try:
        signature(tool).bind(**call.args)
    except TypeError as error:
        return {"error": f"the arguments do not fit: {error}"}
    result = tool(**call.args)
    return await result if isawaitable(result) else result
