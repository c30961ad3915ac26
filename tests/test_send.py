"""What a handler yields: each constructor, its arguments as they were given, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, get_args
from uuid import UUID

import pytest

from dooers import Secret
from dooers.exceptions import InvalidValueError
from dooers.send import SendType, WorkerEvent, WorkerSend

send = WorkerSend()


class Mood(Enum):
    GOOD = "good"


@dataclass
class Weather:
    city: str
    mood: Mood


class Model:
    """What pydantic's models look like from here."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return {"mode": mode}


@pytest.mark.parametrize(
    ("event", "kind", "data"),
    [
        (send.text("hi"), "text", {"text": "hi", "author": None}),
        (send.text(""), "text", {"text": "", "author": None}),
        (send.text("hi", author="Bot"), "text", {"text": "hi", "author": "Bot"}),
        (send.text("a\x00b\ud83d", author="\x00"), "text", {"text": "ab\ufffd", "author": ""}),
        (send.image("https://x/u"), "image", {"url": "https://x/u", "mime_type": None, "alt": None, "author": None}),
        (
            send.image("https://x/u", "image/png", "alt", "Bot"),
            "image",
            {"url": "https://x/u", "mime_type": "image/png", "alt": "alt", "author": "Bot"},
        ),
        (
            send.document("https://x/u", "f", "m"),
            "document",
            {"url": "https://x/u", "filename": "f", "mime_type": "m", "author": None},
        ),
        (
            send.document("https://x/u", "f", "m", "Bot"),
            "document",
            {"url": "https://x/u", "filename": "f", "mime_type": "m", "author": "Bot"},
        ),
        (send.tool_call("t"), "tool_call", {"id": None, "name": "t", "display_name": None, "args": {}}),
        (
            send.tool_call("t", {"a": 1}, "Tool", "id1"),
            "tool_call",
            {"id": "id1", "name": "t", "display_name": "Tool", "args": {"a": 1}},
        ),
        (
            send.tool_result("t", "r"),
            "tool_result",
            {"id": None, "name": "t", "display_name": None, "args": None, "result": "r"},
        ),
        (
            send.tool_result("t", None, {"a": 1}, "Tool", "id1"),
            "tool_result",
            {"id": "id1", "name": "t", "display_name": "Tool", "args": {"a": 1}, "result": None},
        ),
        (
            send.tool_transaction("t"),
            "tool_transaction",
            {"id": None, "name": "t", "display_name": None, "args": {}, "result": None},
        ),
        (
            send.tool_transaction("t", {"a": 1}, [2], "Tool", "id1"),
            "tool_transaction",
            {"id": "id1", "name": "t", "display_name": "Tool", "args": {"a": 1}, "result": [2]},
        ),
        (send.update_thread(), "update_thread", {}),
        (send.update_thread(title="T"), "update_thread", {"title": "T"}),
        (send.update_thread(title=None), "update_thread", {"title": None}),
        (send.update_thread(metadata={"a": (1,)}), "update_thread", {"metadata": {"a": [1]}}),
        (send.update_thread(title="", metadata=None), "update_thread", {"title": "", "metadata": None}),
        (send.run_start(), "run_start", {"agent_id": None}),
        (send.run_start("a"), "run_start", {"agent_id": "a"}),
        (send.run_start(agent_id="a"), "run_start", {"agent_id": "a"}),
        (send.run_end(), "run_end", {"status": "succeeded", "error": None}),
        (send.run_end("failed", "why"), "run_end", {"status": "failed", "error": "why"}),
        (send.run_end(status="canceled"), "run_end", {"status": "canceled", "error": None}),
    ],
)
def test_an_event_holds_the_arguments_of_its_constructor(event: WorkerEvent, kind: str, data: dict[str, Any]) -> None:
    assert (event.send_type, event.data, event.event) == (kind, data, None)


def test_every_kind_of_event_that_a_handler_yields_has_a_constructor_of_its_name() -> None:
    assert all(callable(getattr(send, kind)) for kind in get_args(SendType) if kind != "delta")
    assert not hasattr(send, "delta")  # only callers of dispatch get those


class Pieces:
    """An async iterator that is no generator."""

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> str | None:
        raise StopAsyncIteration


async def pieces() -> AsyncIterator[str]:
    yield "a"


def test_a_stream_holds_its_iterator_and_does_not_begin_it() -> None:
    for source in (pieces(), Pieces()):
        event = send.stream(source, author="B\x00ot")
        assert (event.send_type, event.data) == ("stream", {"source": source, "author": "Bot"})
    assert send.stream(Pieces()).data["author"] is None


@pytest.mark.parametrize("value", [["a"], ("a",), "text"])
def test_a_stream_of_what_is_there_already_is_refused_with_a_hint(value: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        send.stream(value)
    assert str(raised.value).startswith("send.stream(source): expected an async iterator of texts, got ")
    assert str(raised.value).endswith("; for a list use send.text")


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, iter("a"), pieces])
def test_a_stream_of_anything_else_is_refused_without_a_hint(value: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        send.stream(value)
    assert str(raised.value).startswith("send.stream(source): expected an async iterator of texts, got ")
    assert "send.text" not in str(raised.value)


WRONG: list[tuple[str, Callable[[Any], WorkerEvent]]] = [
    ("text(text)", lambda value: send.text(value)),
    ("image(url)", lambda value: send.image(value)),
    ("document(url)", lambda value: send.document(value, "f", "m")),
    ("document(filename)", lambda value: send.document("https://x/u", value, "m")),
    ("document(mime_type)", lambda value: send.document("https://x/u", "f", value)),
    ("tool_call(name)", lambda value: send.tool_call(value)),
    ("tool_result(name)", lambda value: send.tool_result(value, 1)),
    ("tool_transaction(name)", lambda value: send.tool_transaction(value)),
]
WRONG_OPTIONAL: list[tuple[str, Callable[[Any], WorkerEvent]]] = [
    ("text(author)", lambda value: send.text("x", author=value)),
    ("stream(author)", lambda value: send.stream(Pieces(), author=value)),
    ("image(mime_type)", lambda value: send.image("https://x/u", value)),
    ("image(alt)", lambda value: send.image("https://x/u", alt=value)),
    ("image(author)", lambda value: send.image("https://x/u", author=value)),
    ("document(author)", lambda value: send.document("https://x/u", "f", "m", value)),
    ("tool_call(display_name)", lambda value: send.tool_call("t", display_name=value)),
    ("tool_call(id)", lambda value: send.tool_call("t", id=value)),
    ("tool_result(display_name)", lambda value: send.tool_result("t", 1, display_name=value)),
    ("tool_result(id)", lambda value: send.tool_result("t", 1, id=value)),
    ("tool_transaction(display_name)", lambda value: send.tool_transaction("t", display_name=value)),
    ("tool_transaction(id)", lambda value: send.tool_transaction("t", id=value)),
    ("update_thread(title)", lambda value: send.update_thread(title=value)),
    ("run_start(agent_id)", lambda value: send.run_start(value)),
    ("run_end(error)", lambda value: send.run_end(error=value)),
]


@pytest.mark.parametrize(("name", "make"), WRONG + WRONG_OPTIONAL, ids=[name for name, _ in WRONG + WRONG_OPTIONAL])
@pytest.mark.parametrize("value", [5, b"x", ["x"], {"x": 1}, True, ValueError("x")])
def test_what_is_no_text_is_refused_by_the_name_of_the_argument(
    name: str, make: Callable[[Any], WorkerEvent], value: object
) -> None:
    with pytest.raises(InvalidValueError) as raised:
        make(value)
    assert str(raised.value).startswith(f"send.{name}: expected a text, got {type(value).__name__} (")


@pytest.mark.parametrize(("name", "make"), WRONG, ids=[name for name, _ in WRONG])
def test_none_in_the_place_of_a_text_is_refused(name: str, make: Callable[[Any], WorkerEvent]) -> None:
    # `completion.choices[0].message.content` is None when a model calls a tool: the error has to say which argument it was.
    with pytest.raises(InvalidValueError) as raised:
        make(None)
    assert str(raised.value) == f"send.{name}: expected a text, got NoneType (None)"


def test_a_wrong_value_is_quoted_shortly_and_a_secret_not_at_all() -> None:
    with pytest.raises(InvalidValueError) as raised:
        send.text(["x" * 10_000])  # type: ignore[arg-type]
    assert len(str(raised.value)) < 200
    with pytest.raises(InvalidValueError) as raised:
        send.text(Secret("sk-1"))  # type: ignore[arg-type]
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize("status", ["running", "", None, 5, ["failed"], "Failed"])
def test_a_run_ends_in_one_of_three_ways(status: Any) -> None:
    with pytest.raises(
        InvalidValueError, match=r"^send\.run_end\(status\): expected one of succeeded, failed, canceled, got "
    ):
        send.run_end(status)


@pytest.mark.parametrize("metadata", [[], "x", 5, True])
def test_metadata_is_a_dict_or_none(metadata: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^send\.update_thread\(metadata\): expected a dict or None, got "):
        send.update_thread(metadata=metadata)


ANYTHING: list[tuple[Any, Any]] = [
    (
        {"at": datetime(2024, 5, 1, tzinfo=UTC), "on": date(2024, 5, 1)},
        {"at": "2024-05-01T00:00:00Z", "on": "2024-05-01"},
    ),
    (Weather("Ulm", Mood.GOOD), {"city": "Ulm", "mood": "good"}),
    (Model(), {"mode": "json"}),
    ([UUID(int=0), Decimal("1.5")], ["00000000-0000-0000-0000-000000000000", 1.5]),
    ('{"arguments": "as text"}', '{"arguments": "as text"}'),
    (float("inf"), None),
    (0, 0),
    (False, False),
    ("", ""),
    ([], []),
]


@pytest.mark.parametrize(("value", "kept"), ANYTHING)
def test_a_tool_takes_anything_with_a_json_form(value: Any, kept: Any) -> None:
    assert send.tool_call("t", value).data["args"] == kept
    assert send.tool_result("t", value, value).data["result"] == kept
    assert send.tool_result("t", value, value).data["args"] == kept
    assert send.tool_transaction("t", value, value).data["result"] == kept


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda value: send.tool_call("t", value), "send.tool_call(args)"),
        (lambda value: send.tool_result("t", value), "send.tool_result(result)"),
        (lambda value: send.tool_result("t", 1, value), "send.tool_result(args)"),
        (lambda value: send.tool_transaction("t", value), "send.tool_transaction(args)"),
        (lambda value: send.tool_transaction("t", {}, value), "send.tool_transaction(result)"),
        (lambda value: send.update_thread(metadata=value), "send.update_thread(metadata)"),
    ],
)
@pytest.mark.parametrize("bad", [object(), b"x", Secret("sk-1"), lambda: None, 10**400])
def test_what_has_no_json_form_is_refused_with_the_argument_and_the_path(
    make: Callable[[Any], WorkerEvent], path: str, bad: object
) -> None:
    with pytest.raises(InvalidValueError) as raised:
        make({"deep": [bad]})
    assert str(raised.value).startswith(f"{path}.deep[0]: expected ")
    assert "sk-1" not in str(raised.value)


def test_the_arguments_of_a_tool_are_kept_as_they_were_when_it_was_sent() -> None:
    args: dict[str, Any] = {"list": [1], "inner": {"a": 1}}
    events = [
        send.tool_call("t", args),
        send.tool_result("t", args, args),
        send.tool_transaction("t", args, args),
        send.update_thread(metadata=args),
    ]
    args["list"].append(2)
    args["inner"]["a"] = 2
    args["more"] = True
    for event in events:
        for name in ("args", "result", "metadata"):
            if name in event.data:
                assert event.data[name] == {"list": [1], "inner": {"a": 1}}
