"""The error tree: every error on purpose is in it, has its code, and tells no more than it should."""

from __future__ import annotations

import re
import sys

import pytest

from dooers import exceptions
from dooers.exceptions import (
    ConfigError,
    DisconnectedError,
    DispatchError,
    DooersError,
    HandlerError,
    InvalidCursorError,
    InvalidValueError,
    NoAnswerError,
    ProtocolError,
    RateLimitedError,
    SignatureError,
    quoted,
    told,
)
from dooers.protocol import refusal

CLASSES: list[type[DooersError]] = [getattr(exceptions, name) for name in exceptions.__all__]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_and_in_its_drawing(kind: type[DooersError]) -> None:
    assert issubclass(kind, DooersError)
    assert kind.__doc__
    assert kind.__name__ in (exceptions.__doc__ or "")


def test_the_codes_in_the_drawing_are_the_codes_of_the_classes() -> None:
    drawn = re.findall(r"── (\w+) +([A-Z_]{6,})\b", exceptions.__doc__ or "")
    assert len(drawn) > 10
    for name, code in drawn:
        assert getattr(exceptions, name).code == code


def test_what_is_also_a_builtin_error_can_be_caught_as_one() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(InvalidValueError, ValueError)
    assert issubclass(InvalidCursorError, InvalidValueError)
    assert issubclass(SignatureError, TypeError)
    assert issubclass(DisconnectedError, ConnectionError)
    assert issubclass(NoAnswerError, TimeoutError)


def test_a_protocol_error_says_where_and_for_which_frame() -> None:
    error = ProtocolError("expected string", path="payload.thread_id", frame_id="f1")
    assert str(error) == "payload.thread_id: expected string"
    assert (error.path, error.frame_id, error.code) == ("payload.thread_id", "f1", "INVALID_FRAME")


def test_a_protocol_error_may_carry_another_code_without_changing_that_of_others() -> None:
    error = ProtocolError("too long", code="TOO_LARGE")
    assert (str(error), error.code) == ("too long", "TOO_LARGE")
    assert ProtocolError.code == "INVALID_FRAME"


def test_a_dispatch_error_carries_the_code_of_its_reason() -> None:
    assert DispatchError("no").code == "SERVER_ERROR"
    assert DispatchError("no", code="NOT_FOUND").code == "NOT_FOUND"


def test_a_lost_connection_says_how_the_socket_was_closed_where_it_was() -> None:
    assert DisconnectedError("gone").close_code is None
    assert DisconnectedError("gone", 1012).close_code == 1012


def test_a_handler_error_keeps_the_original() -> None:
    original = RuntimeError("boom")
    assert HandlerError("the handler failed", original).original is original


def test_a_quoted_value_is_short_and_never_an_error_itself() -> None:
    deep: list[object] = []
    for _ in range(2 * sys.getrecursionlimit()):
        deep = [deep]

    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert quoted("a") == "'a'"
    assert len(quoted("x" * 1000)) == 60
    assert quoted("x" * 1000, 10) == "'xxxxxxxxx"
    assert quoted(deep) == "[[[[[[[...]]]]]]]"
    assert len(quoted(["x"] * 1_000_000)) < 60
    assert quoted(10**5000) == "a int"
    assert quoted(Rude()) == "a Rude"
    while deep:  # freed layer by layer: some interpreters recurse when they free it at once
        deep = deep[0]  # type: ignore[assignment]


def test_people_are_told_a_number_and_only_a_developer_the_text() -> None:
    error = RuntimeError("postgres://admin:hunter2@db/prod")
    safe = told("Something went wrong.", error, "e-1", expose=False)
    assert safe == "Something went wrong. If it happens again, mention this number: e-1"
    exposed = told("Something went wrong.", error, "e-1", expose=True)
    assert exposed.startswith("Something went wrong. RuntimeError")
    assert "postgres://admin:hunter2@db/prod" in exposed
    assert exposed.endswith("(error e-1)")


def test_an_error_that_cannot_be_put_into_words_is_told_all_the_same() -> None:
    class Rude(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no")

        __str__ = __repr__

    assert told("Something went wrong.", Rude(), "e-1", expose=True) == "Something went wrong. a Rude (error e-1)"
    assert len(told("Something went wrong.", RuntimeError("x" * 100_000), "e-1", expose=True)) < 2000


@pytest.mark.parametrize("seconds", [0.0001, 0.0004, 0.0005, 0.1234, 0.9999, 1.0, 100.00001])
def test_whoever_comes_back_when_they_were_told_to_is_not_too_early(seconds: float) -> None:
    refused = refusal("f", RateLimitedError("too much", seconds))["error"]
    assert seconds <= refused["retry_after"] <= seconds + 0.002
    assert "retry_after" not in refusal("f", DooersError("no"))["error"]
