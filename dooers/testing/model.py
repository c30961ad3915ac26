"""A model that says what the test has written down, and remembers what it was asked. It imitates no vendor: give it to a handler in
place of the function, or the stream, that asks the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

__all__ = ["Answer", "Call", "FakeModel", "Gate", "ToolCall"]


@frozen
class ToolCall:
    """The model wants a tool: `tool(name, q=1)` in a script makes one."""

    name: str
    args: Mapping[str, Any] = field(factory=dict)
    id: str = "call-1"


class Answer(str):
    """What the model said: a text, which may be empty where it wants tools."""

    tools: tuple[ToolCall, ...] = ()


@frozen
class Call:
    """One time that the model was asked: with what."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Gate:
    """A place in a script where the model stops until the test opens it."""

    def __init__(self) -> None:
        self._there = asyncio.Event()
        self._open = asyncio.Event()

    async def reached(self, within: float = 10.0) -> None:
        """Return when the model stands there; TimeoutError if it does not come."""
        async with asyncio.timeout(within):
            await self._there.wait()

    def open(self) -> None:
        """Let it go on."""
        self._open.set()

    async def _pass(self) -> None:
        self._there.set()
        await self._open.wait()


Piece: TypeAlias = "str | Gate | BaseException | type[BaseException] | ToolCall"
Scripted: TypeAlias = "Piece | Sequence[Piece] | Callable[..., Piece | Sequence[Piece]]"


class FakeModel:
    """A scripted model. Each time it is asked it gives the next answer of its script:

    - a text, or a list of texts: the pieces in which it streams
    - `FakeModel.tool("search", q="cats")`, alone or in a list, where the model wants a tool
    - an exception: it fails with it, after what stands before it in a list
    - a `Gate`, alone or in a list: it waits there for the test
    - a function: called with what the model was asked, it gives one of these

    `await model(...)` is an `Answer`: a text, with `.tools`. `async for piece in model.stream(...)` gives the pieces. Both take any
    arguments; `model.calls` has them. Past the end of the script it gives `otherwise`, or fails.
    """

    def __init__(self, *script: Scripted, otherwise: Scripted | None = None) -> None:
        self.calls: list[Call] = []
        self._script = list(script)
        self._otherwise = otherwise
        self._missing = 0

    @staticmethod
    def tool(name: str, /, **args: Any) -> ToolCall:
        """A tool that the model wants, with these arguments."""
        return ToolCall(name, args)

    @property
    def last(self) -> Call:
        """The latest call; AssertionError where there was none."""
        assert self.calls, "the model was not asked"
        return self.calls[-1]

    def assert_done(self) -> None:
        """Every answer of the script was asked for, and none beyond."""
        left = max(len(self._script) - len(self.calls), 0)
        assert not left, f"{left} of the {len(self._script)} answers in the script were not asked for"
        assert not self._missing, (
            f"the model was asked {len(self.calls)} times; its script has {len(self._script)} answers"
        )

    async def __call__(self, *args: Any, **kwargs: Any) -> Answer:
        """The next answer, whole."""
        pieces, tools = [], []
        for piece in self._next(args, kwargs):
            if isinstance(piece, ToolCall):
                tools.append(piece)
            elif (said := await _play(piece)) is not None:
                pieces.append(said)
        answer = Answer("".join(pieces))
        answer.tools = _numbered(tools, len(self.calls))
        return answer

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        """The next answer, piece by piece."""
        for piece in self._next(args, kwargs):
            if isinstance(piece, ToolCall):
                raise AssertionError(
                    f"the script has {piece} where a stream of text was asked for; use `await model(...)`"
                )
            if (said := await _play(piece)) is not None:
                yield said

    def _next(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Piece]:
        self.calls.append(Call(args, dict(kwargs)))
        number = len(self.calls)
        if number <= len(self._script):
            scripted = self._script[number - 1]
        elif self._otherwise is not None:
            scripted = self._otherwise
        else:
            self._missing += 1
            raise AssertionError(
                f"the fake model was asked for answer {number}; its script has {len(self._script)}. It was asked: {args!r} {kwargs!r}"
            )
        if callable(scripted) and not isinstance(scripted, type):
            scripted = scripted(*args, **kwargs)
        return list(scripted) if isinstance(scripted, list | tuple) else [scripted]  # type: ignore[list-item]


async def _play(piece: Piece) -> str | None:
    if isinstance(piece, Gate):
        await piece._pass()
        return None
    if isinstance(piece, BaseException) or (isinstance(piece, type) and issubclass(piece, BaseException)):
        raise piece
    if not isinstance(piece, str):
        raise TypeError(f"a script has texts, tools, gates, exceptions and lists of these, got {piece!r}")
    await asyncio.sleep(0)  # as a model, which never answers in the same step
    return piece


def _numbered(tools: list[ToolCall], call: int) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(one.name, one.args, f"call-{call}-{at}") for at, one in enumerate(tools, 1))
