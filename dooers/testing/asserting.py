"""What an answer should be, said in a line each, and a difference that can be read where it is not.

Only what is named is compared: `tool_call("search", q="cats")` fits a call with more arguments. Wherever a value stands, a class fits its
instances, a compiled pattern the texts it is found in, and `...` anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import frozen

from dooers.client.connection import Frame
from dooers.client.updates import Reply
from dooers.codec import dumps
from dooers.models import ThreadEvent

__all__ = [
    "ExpectationError",
    "Expected",
    "assert_events",
    "assert_succeeded",
    "document",
    "image",
    "in_short",
    "misfit",
    "notice",
    "text",
    "tool_call",
    "tool_result",
]

LINE = 120
# The fields of an event that are shown also where nobody has named them.
SHOWN = ("name", "text", "url", "filename", "args", "result")


class ExpectationError(AssertionError, TimeoutError):
    """What was expected did not come in time."""


@frozen
class Expected:
    """An event as it should be: its kind, and the fields that are compared."""

    kind: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return _line(self.kind, self.fields)


def text(text: str | re.Pattern[str] | Any = ..., **fields: Any) -> Expected:
    """A message of the worker with this text; `author=` and `data=` may be named too."""
    return Expected("text", {"text": text, **fields})


def tool_call(name: str | Any = ..., /, **args: Any) -> Expected:
    """A call of this tool, with these among its arguments."""
    return Expected("tool_call", {"name": name, **({"args": args} if args else {})})


def tool_result(name: str | Any = ..., result: Any = ...) -> Expected:
    """A result of this tool; of a mapping only the keys that are named are compared."""
    return Expected("tool_result", {"name": name, "result": result})


def image(url: str | Any = ..., **fields: Any) -> Expected:
    """A message with an image."""
    return Expected("image", {"url": url, **fields})


def document(filename: str | Any = ..., **fields: Any) -> Expected:
    """A message with a file."""
    return Expected("document", {"filename": filename, **fields})


def notice(text: str | re.Pattern[str] | Any = ...) -> Expected:
    """The word that something went wrong."""
    return Expected("notice", {"text": text})


Line: TypeAlias = Any  # Expected, a text for `text(...)`, or `...` for any number of events


def assert_events(answer: Reply | Iterable[ThreadEvent], expected: Iterable[Line]) -> None:
    """The events of an answer are these, in this order. A text stands for `text(...)`, `...` for any events or none.

    AssertionError with both, line by line: `-` was expected and is missing, `+` came and was not expected.
    """
    __tracebackhide__ = True
    came = list(answer.events if isinstance(answer, Reply) else answer)
    wanted = [text(one) if isinstance(one, str | re.Pattern) else one for one in expected]
    steps = _aligned(wanted, came)
    if any(sign != " " for sign, _, _ in steps):
        lines = "\n".join(_difference(wanted, came, steps))
        status = f"; the turn {answer.status}" if isinstance(answer, Reply) and answer.status != "succeeded" else ""
        raise AssertionError(f"the events are not as expected (- expected, + came{status}):\n{lines}")


def assert_succeeded(*replies: Reply) -> None:
    """Each turn has succeeded, and no error was shown in it."""
    __tracebackhide__ = True
    for reply in replies:
        if reply.status != "succeeded" or reply.error is not None:
            raise AssertionError(
                f"the turn {reply.status}{f': {reply.error}' if reply.error else ''}\n"
                f"  {reply!r}\n  (what the handler raised is in the log, under the number that people are shown)"
            )


# ---------------------------------------------------------------- comparing


def misfit(wanted: Any, got: Any, path: str = "") -> str | None:
    """Where and why a value does not fit; None where it does."""
    if wanted is ...:
        return None
    if isinstance(wanted, type):
        fits, said = isinstance(got, wanted), f"a {wanted.__name__}"
    elif isinstance(wanted, re.Pattern):
        fits, said = isinstance(got, str) and wanted.search(got) is not None, f"/{wanted.pattern}/"
    elif isinstance(wanted, Mapping) and isinstance(got, Mapping):
        for name, value in wanted.items():
            inner = f"{path}.{name}" if path else str(name)
            if name not in got:
                return f"{inner}: expected {_short(value)}, it is not there"
            if (fault := misfit(value, got[name], inner)) is not None:
                return fault
        return None
    elif isinstance(wanted, list | tuple) and isinstance(got, list | tuple) and len(wanted) == len(got):
        faults = (misfit(one, other, f"{path}[{at}]") for at, (one, other) in enumerate(zip(wanted, got, strict=True)))
        return next((fault for fault in faults if fault is not None), None)
    else:
        fits, said = bool(wanted == got), _short(wanted)
    return None if fits else f"{path or 'value'}: expected {said}, got {_short(got)}"


def _seen(event: ThreadEvent) -> tuple[str, dict[str, Any]]:
    """An event's kind, and its fields by the names that expectations have for them."""
    if event.type != "message":
        return event.type.replace(".", "_"), {"args": {}, **(event.data or {})}
    more = {"author": event.author, "data": event.data}
    part = event.content[0] if event.content else None
    if part is None or part.type == "text":
        return "notice" if event.notice else "text", {"text": event.text, **more}
    fields = {name: getattr(part, name) for name in getattr(part, "__slots__", ()) if not name.startswith("__")}
    return part.type, {**fields, **more}


def _fault(wanted: Line, event: ThreadEvent) -> str | None:
    kind, fields = _seen(event)
    if not isinstance(wanted, Expected):
        raise TypeError(
            f"assert_events: expected text(...), tool_call(...) and the like, a text or ..., got {wanted!r}"
        )
    return "another kind" if wanted.kind != kind else misfit(wanted.fields, fields)


def _aligned(wanted: Sequence[Line], came: Sequence[ThreadEvent]) -> list[tuple[str, int, int]]:
    """The fewest steps from what was wanted to what came: a sign, and how far each of the two is."""
    rows, columns = len(wanted), len(came)
    cost = [[0] * (columns + 1) for _ in range(rows + 1)]
    fits = [[one is not ... and _fault(one, event) is None for event in came] for one in wanted]
    for i in range(rows, -1, -1):
        for j in range(columns, -1, -1):
            choices = [0] if (i, j) == (rows, columns) else []
            if i < rows:
                choices.append(cost[i + 1][j] + (wanted[i] is not ...))
            if j < columns:
                choices.append(cost[i][j + 1] + (i == rows or wanted[i] is not ...))
            if i < rows and j < columns and fits[i][j]:
                choices.append(cost[i + 1][j + 1])
            cost[i][j] = min(choices)
    steps: list[tuple[str, int, int]] = []
    i = j = 0
    while (i, j) != (rows, columns):
        skips = i < rows and wanted[i] is ...
        if i < rows and j < columns and fits[i][j] and cost[i][j] == cost[i + 1][j + 1]:
            steps.append((" ", i, j))
            i, j = i + 1, j + 1
        elif i < rows and cost[i][j] == cost[i + 1][j] + (not skips):
            if not skips:
                steps.append(("-", i, j))
            i += 1
        else:
            steps.append((" " if skips else "+", -1, j))
            j += 1
    return steps


def _difference(
    wanted: Sequence[Line], came: Sequence[ThreadEvent], steps: list[tuple[str, int, int]]
) -> Iterable[str]:
    missing: list[Expected] = []
    for sign, i, j in steps:
        if sign == "-":
            missing.append(wanted[i])
            yield f"  - {wanted[i]}"
            continue
        kind, fields = _seen(came[j])
        why, named = "", set(SHOWN)
        if sign == "+":
            alike = next((one for one in missing if one.kind == kind), None)
            if alike is not None:
                missing.remove(alike)
                named |= set(alike.fields)
                why = f"    <- {misfit(alike.fields, fields)}"
        else:
            missing.clear()
        yield f"  {sign} {_line(kind, {name: value for name, value in fields.items() if name in named})}{why}"


def _line(kind: str, fields: Mapping[str, Any]) -> str:
    named = {name: value for name, value in fields.items() if value not in (None, ..., {}) and name != "id"}
    first = next((name for name in ("name", "text", "url", "filename") if name in named), None)
    parts = [] if first is None else [_short(named.pop(first))]
    return " ".join([kind, *parts, *(f"{name}={_short(value)}" for name, value in named.items())])


def _short(value: Any) -> str:
    if isinstance(value, re.Pattern):
        return f"/{value.pattern}/"
    line = value.__name__ if isinstance(value, type) else repr(value)
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"


def in_short(frame: Frame) -> str:
    """A frame in one line."""
    line = f"{frame['type']} {dumps(frame['payload'])}"
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"
