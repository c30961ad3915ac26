"""An agent's run while it goes on, as what a handler yields: what the adapters of the agent frameworks have in common.

Not a framework, and it runs nothing: the framework asks the model and runs the tools, `langgraph.py`, `openai_agents.py` and
`pydantic_ai.py` read what it tells of that. For one answer of a model there is `answers.py`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Hashable
from typing import Any, Self, TypeAlias

from attrs import Factory, define, field, frozen

from dooers import WorkerEvent, WorkerSend

__all__ = ["Done", "Part", "Said", "progress", "readable"]


@frozen
class Said:
    """A piece of a text. Pieces of one key are one message, until it is `Done`."""

    key: Hashable
    text: str
    author: str | None = None


@frozen
class Done:
    """The message of this key is whole."""

    key: Hashable


Part: TypeAlias = Said | Done | WorkerEvent


async def progress(send: WorkerSend, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[WorkerEvent, None]:
    """Each text as a message that is seen while it is written, and everything else between them, in the order in which it happened.

    While a message is being written the others wait for its end: agents that talk at the same time are heard one after the other.
    Whatever ends this, ends `parts`.
    """
    line = _Line(parts)
    try:
        while (part := await line.next()) is not None:
            if isinstance(part, Said):
                yield send.stream(_Text(line, part), part.author)
            elif isinstance(part, WorkerEvent):
                yield part
    finally:
        await parts.aclose()


@define(eq=False)
class _Line:
    """What comes, and what came while a message was being written."""

    parts: AsyncGenerator[Part, None]
    waiting: deque[Part] = field(init=False, default=Factory(deque))

    async def next(self) -> Part | None:
        return self.waiting.popleft() if self.waiting else await anext(self.parts, None)

    async def next_of(self, key: Hashable) -> Part | None:
        """The next part of one message; the others stand in line."""
        while (part := await anext(self.parts, None)) is not None:
            if not isinstance(part, WorkerEvent) and part.key == key:
                return part
            self.waiting.append(part)
        return None


class _Text:
    """One message as `send.stream` wants it. Closed before its end, it closes everything: the turn is over."""

    def __init__(self, line: _Line, first: Said) -> None:
        self._line = line
        self._key = first.key
        # What has come of it while another message was being written.
        self._come: deque[Part] = deque([first])
        others: deque[Part] = deque()
        for part in line.waiting:
            (others if isinstance(part, WorkerEvent) or part.key != first.key else self._come).append(part)
        line.waiting = others
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        part = self._come.popleft() if self._come else await self._line.next_of(self._key)
        if isinstance(part, Said):
            return part.text
        self._over = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._over:
            await self._line.parts.aclose()


def readable(told: Any) -> Any:
    """What a model was told of a tool's result, as people can be shown it: frameworks make texts of objects and lists."""
    if not isinstance(told, str) or told.lstrip()[:1] not in ("{", "["):
        return told
    try:
        return json.loads(told)
    except (ValueError, RecursionError):
        return told
