"""JSON in and out, and the strict reading of it: what fits, what does not, and where."""

from __future__ import annotations

import json
import time
from collections import OrderedDict, UserDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

import attrs
import cattrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers.codec import (
    clean,
    dumps,
    fault,
    loads,
    part,
    parts,
    plain,
    plain_parts,
    plain_user,
    stored_parts,
    stored_user,
    structure,
    user,
)
from dooers.exceptions import InvalidValueError, ProtocolError
from dooers.models import DocumentPart, ImagePart, TextPart, User
from dooers.schema import Secret

FAST = settings(max_examples=150, deadline=None)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int
    y: Any = None


@attrs.frozen
class Box:
    width: float
    inside: Any = None


class Modelled:
    """What pydantic's models look like from here."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return {"mode": mode, "at": datetime(2024, 1, 2, tzinfo=UTC)}


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain", "plain"),
        ("", ""),
        ("a\x00b", "ab"),
        ("é\x00", "é"),
        ("half \ud83d emoji", "half \ufffd emoji"),
        ("whole 😀", "whole 😀"),
        ("\t\r\n\x7f\x01", "\t\r\n\x7f\x01"),
    ],
)
def test_a_text_loses_only_what_no_database_can_hold(text: str, kept: str) -> None:
    assert clean(text) == kept


@given(st.text(st.characters(), max_size=30) | st.text("\x00\ud800\udfffa", max_size=10))
@FAST
def test_a_clean_text_can_always_be_stored(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned
    assert clean(cleaned) == cleaned


# ---------------------------------------------------------------- dumps and loads


def test_times_are_written_in_utc_with_a_z() -> None:
    at = datetime(2024, 5, 1, 12, 30, 1, 250000, tzinfo=UTC)
    assert dumps({"at": at}) == '{"at":"2024-05-01T12:30:01.250000Z"}'
    assert dumps({"at": at, "n": 2**70}).startswith('{"at":"2024-05-01T12:30:01.250000Z"')


def test_json_is_compact_and_not_escaped() -> None:
    assert dumps({"a": [1, "é😀"]}) == '{"a":[1,"é😀"]}'


def test_what_is_written_is_json_for_everybody_also_on_the_slow_road() -> None:
    text = dumps({"wide": 2**70, "nan": float("nan"), "half": "\ud800", "point": Box(1.5, Color.RED)})
    text.encode("utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read == {"wide": float(2**70), "nan": None, "half": "\ufffd", "point": {"width": 1.5, "inside": "red"}}


def test_what_has_no_json_form_is_refused_by_dumps() -> None:
    with pytest.raises(InvalidValueError, match=r"value\.a: expected something with a JSON form, got object"):
        dumps({"a": object()})


@pytest.mark.parametrize("text", ["", "{", "nul", "NaN", "[Infinity]", "{'a': 1}", b"\xff", "[1] 2", "9" * 5000])
def test_what_is_not_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[" * 5000 + "]" * 5000])
def test_too_deep_a_nest_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


def test_half_an_emoji_is_read_as_a_replacement_character() -> None:
    assert loads('{"a":"x\\ud83d"}') == {"a": "x\ufffd"}
    assert loads('"\ud800"') == "\ufffd"


def test_the_last_of_two_equal_keys_counts() -> None:
    assert loads('{"a":1,"a":2}') == {"a": 2}
    assert loads('{"a":1,"a":"\\ud800"}') == {"a": "\ufffd"}


@given(JSON)
@FAST
def test_what_plain_gives_comes_back_from_json_as_it_was(value: Any) -> None:
    try:
        kept = plain(value)
    except InvalidValueError:
        return
    assert loads(dumps(kept)) == kept


@given(st.binary(max_size=60) | st.text(st.characters(), max_size=60))
@FAST
def test_reading_anything_gives_a_value_or_a_value_error(text: str | bytes) -> None:
    with suppress(ValueError):
        loads(text)


# ---------------------------------------------------------------- plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        ("a\x00", "a"),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        (UserDict({"a": 1}), {"a": 1}),
        (Color.RED, "red"),
        (Level.LOW, 1),
        ({Color.RED: Level.LOW}, {"red": 1}),
        ({1: "a", 2.5: "b", UUID(int=1): "c"}, {"1": "a", "2.5": "b", str(UUID(int=1)): "c"}),
        (date(2024, 5, 1), "2024-05-01"),
        (time_of_day(1, 2), "01:02:00"),
        (datetime(2024, 5, 1, tzinfo=UTC), "2024-05-01T00:00:00Z"),
        (datetime(2024, 5, 1), "2024-05-01T00:00:00"),  # noqa: DTZ001  a naive time stays one
        (datetime(2024, 5, 1, tzinfo=timezone(timedelta(hours=2))), "2024-05-01T00:00:00+02:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.5"), 1.5),
        (Decimal("12"), 12),
        (Decimal("1E+400"), None),
        (Decimal("1E+30"), 1e30),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("-Infinity"), None),
        (Point(1, Box(2)), {"x": 1, "y": {"width": 2, "inside": None}}),
        (Modelled(), {"mode": "json", "at": "2024-01-02T00:00:00Z"}),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (2**64, float(2**64)),
        (-(2**63) - 1, -float(2**63)),
        (type("MyText", (str,), {"__str__": lambda self: "other"})("own"), "own"),
        (type("MyInt", (int,), {})(5), 5),
        (type("MyFloat", (float,), {})(5.5), 5.5),
    ],
)
def test_anything_with_a_json_form_becomes_plain(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "args: expected something with a JSON form, got object"),
        ({"a": [1, b"x"]}, "args.a[1]: expected something with a JSON form, got bytes"),
        ({"a": {None: 1}}, "args.a: expected keys that are text, got NoneType"),
        ({True: 1}, "args: expected keys that are text, got bool"),
        ({(1, 2): 1}, "args: expected keys that are text, got tuple"),
        (Point, "args: expected something with a JSON form, got type"),
        (Modelled, "args: expected something with a JSON form, got type"),
        (Box, "args: expected something with a JSON form, got type"),
        ([10**400], "args[0]: expected a number that fits a float, this one is larger"),
        ([10**5000], "args[0]: expected a number that fits a float, this one is larger"),
        ({"s": Secret("sk-1")}, "args.s: expected something with a JSON form, got Secret"),
    ],
)
def test_what_has_no_json_form_is_refused_with_its_path(value: Any, said: str) -> None:
    with pytest.raises(InvalidValueError) as raised:
        plain(value, "args")
    assert str(raised.value) == said


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(InvalidValueError, match="nested more than 100 deep"):
        plain(loop)


def test_plain_is_a_copy_that_later_changes_do_not_reach() -> None:
    args = {"list": [1]}
    kept = plain(args)
    args["list"].append(2)
    assert kept == {"list": [1]}


def test_the_path_in_an_error_stays_short_whatever_the_keys_are() -> None:
    value: Any = object()
    for _ in range(50):
        value = {"k" * 10_000: value}
    with pytest.raises(InvalidValueError) as raised:
        plain(value)
    assert len(str(raised.value)) < 300


def test_a_long_key_does_not_cost_its_length_for_each_item_below_it() -> None:
    began = time.perf_counter()
    plain({"k" * 2_000_000: [0] * 200_000})
    # Copied once an item it would be 400 gigabytes.
    assert time.perf_counter() - began < 5


# ---------------------------------------------------------------- structure


@attrs.frozen
class Inner:
    name: str
    kind: Literal["a", "b"] = "a"


@attrs.frozen
class Outer:
    inner: Inner
    items: list[Inner] = attrs.Factory(list)
    ratio: float | None = None
    on: bool = False
    data: dict[str, Any] | None = None
    anything: Any = None


def test_a_value_that_fits_becomes_the_model_and_unknown_keys_are_ignored() -> None:
    value = {
        "inner": {"name": "x\x00", "later": 1},
        "items": [{"name": "y", "kind": "b"}],
        "ratio": 2,
        "on": True,
        "data": {"a": ["\x00"]},
        "anything": ["\x00b"],
        "new": {},
    }
    expected = Outer(Inner("x"), [Inner("y", "b")], 2, True, {"a": [""]}, ["b"])
    assert structure(value, Outer) == expected


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        (5, "at", "expected object, got integer"),
        ({}, "at.inner", "is required"),
        ({"inner": None}, "at.inner", "expected object, got null"),
        ({"inner": {"name": 5}}, "at.inner.name", "expected string, got integer"),
        ({"inner": {"name": None}}, "at.inner.name", "expected string, got null"),
        ({"inner": {"name": "x", "kind": "c"}}, "at.inner.kind", "expected 'a' or 'b', got 'c'"),
        ({"inner": {"name": "x", "kind": ["a"]}}, "at.inner.kind", "expected 'a' or 'b', got ['a']"),
        ({"inner": {"name": "x"}, "items": {}}, "at.items", "expected array, got object"),
        ({"inner": {"name": "x"}, "items": "ab"}, "at.items", "expected array, got string"),
        ({"inner": {"name": "x"}, "items": [{"name": "y"}, 1]}, "at.items[1]", "expected object, got integer"),
        ({"inner": {"name": "x"}, "items": [{}]}, "at.items[0].name", "is required"),
        ({"inner": {"name": "x"}, "ratio": "1"}, "at.ratio", "expected number, got string"),
        ({"inner": {"name": "x"}, "ratio": True}, "at.ratio", "expected number, got boolean"),
        ({"inner": {"name": "x"}, "on": 1}, "at.on", "expected boolean, got integer"),
        ({"inner": {"name": "x"}, "on": 1.5}, "at.on", "expected boolean, got number"),
        ({"inner": {"name": "x"}, "data": []}, "at.data", "expected object, got array"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_path_of_the_fault(value: Any, path: str, what: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        structure(value, Outer, "at")
    assert (raised.value.path, str(raised.value)) == (path, f"{path}: {what}")


def test_without_a_root_the_path_starts_at_the_first_key() -> None:
    with pytest.raises(ProtocolError) as raised:
        structure({"inner": {"name": 1}}, Outer)
    assert raised.value.path == "inner.name"
    with pytest.raises(ProtocolError) as raised:
        structure({}, Outer)
    assert raised.value.path == "inner"


def test_too_deep_a_value_is_refused_inside_objects_and_where_anything_goes() -> None:
    deep: Any = 1
    for _ in range(120):
        deep = [deep]
    for name, value in (("data", {"a": deep}), ("anything", deep)):
        with pytest.raises(ProtocolError) as raised:
            structure({"inner": {"name": "x"}, name: value}, Outer, "payload")
        assert raised.value.path.startswith(f"payload.{name}")
        assert "nested more than 100 deep" in str(raised.value)


def test_a_list_of_wrong_items_costs_one_fault_not_one_each() -> None:
    began = time.perf_counter()
    with pytest.raises(ProtocolError) as raised:
        structure({"inner": {"name": "x"}, "items": [1] * 300_000}, Outer)
    assert raised.value.path == "items[0]"
    assert time.perf_counter() - began < 2


def test_what_cattrs_groups_without_a_place_is_told_without_one() -> None:
    grouped = cattrs.ClassValidationError("no", [ValueError("too odd")], Outer)
    assert fault(grouped, "payload") == ("payload", "too odd")
    assert fault(TypeError("internal"), "payload") == ("payload", "does not fit (TypeError)")


def test_what_cattrs_groups_by_index_is_told_with_it() -> None:
    with pytest.raises(cattrs.IterableValidationError) as raised:
        cattrs.Converter().structure([1, "x"], tuple[int, ...])
    where, what = fault(raised.value, "ids")
    assert where == "ids[1]"
    assert "x" in what


# ---------------------------------------------------------------- content parts


PARTS = [
    ({"type": "text", "text": "hi"}, TextPart("hi")),
    (
        {"type": "image", "url": "http://x/i", "mime_type": "image/png", "width": 1, "height": 2, "alt": "a"},
        ImagePart("http://x/i", "image/png", 1, 2, "a"),
    ),
    ({"type": "image", "url": "data:,"}, ImagePart("data:,")),
    (
        {"type": "document", "url": "http://x/d", "filename": "d.pdf", "mime_type": "application/pdf", "size_bytes": 9},
        DocumentPart("http://x/d", "d.pdf", "application/pdf", 9),
    ),
]


@pytest.mark.parametrize(("value", "expected"), PARTS)
def test_a_part_is_read_from_any_mapping_and_written_as_it_came(value: dict[str, Any], expected: Any) -> None:
    for given_as in (value, OrderedDict(value), MappingProxyType(value), expected):
        assert part(given_as) == expected
    assert plain_parts([expected]) == [value]
    assert next(iter(plain_parts([expected])[0])) == "type"


def test_a_text_is_a_text_part() -> None:
    assert part("a\x00b") == TextPart("ab")
    assert parts(["a", TextPart("b"), {"type": "text", "text": "c"}]) == [TextPart("a"), TextPart("b"), TextPart("c")]
    assert parts(iter(())) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "content: expected object, got integer"),
        (None, "content: expected object, got null"),
        ({}, "content.type: expected one of 'text', 'image', 'document', got None"),
        ({"type": ["text"]}, "content.type: expected one of 'text', 'image', 'document', got ['text']"),
        ({"type": "text"}, "content.text: is required"),
        ({"type": "image", "url": 1}, "content.url: expected string, got integer"),
        ({"type": "image", "url": "u", "width": 1.5}, "content.width: expected integer, got number"),
        (TextPart(5), "content.text: expected string, got integer"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_part_is_refused_with_its_path(value: Any, said: str) -> None:
    with pytest.raises(InvalidValueError) as raised:
        part(value)
    assert str(raised.value) == said


def test_a_wrong_part_among_parts_is_told_by_its_index() -> None:
    with pytest.raises(InvalidValueError, match=r"^content\[1\]\.text: is required$"):
        parts(["fine", {"type": "text"}])


@pytest.mark.parametrize("value", ["hello", b"hello", {"type": "text", "text": "x"}, 5, None, TextPart("x")])
def test_one_part_in_the_place_of_a_list_does_not_fall_into_letters(value: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^content: expected a list of parts, got "):
        parts(value)


def test_a_person_comes_back_as_they_were_written() -> None:
    person = User("u", "n", "e", "r", ("a", "b"), "s", "o", "w")
    assert user(plain_user(person)) == person
    assert user(loads(dumps(plain_user(person)))) == person
    assert user({"user_id": "u"}) == User("u")


STORED = st.one_of(
    st.builds(TextPart, st.text().map(clean)),
    st.builds(ImagePart, st.text().map(clean), width=st.none() | st.integers(0, 9999)),
    st.builds(DocumentPart, st.just("https://example.com/a.pdf"), st.just("a.pdf"), st.just("application/pdf")),
)


@FAST
@given(st.lists(STORED, max_size=4))
def test_stored_parts_come_back_as_they_were_written(content: list[Any]) -> None:
    assert stored_parts(dumps(plain_parts(content))) == content


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "text",
        {"type": "text", "text": "x"},
        ["x", 5],
        [{}],
        [{"type": "text"}],
        [{"type": "text", "text": 5}],
        [{"type": ["text"], "text": "x"}],
        [{"type": "video"}],
        ["a text", {"type": "text", "text": "x", "more": 1}],
    ],
)
def test_stored_parts_that_look_otherwise_are_read_strictly(value: Any) -> None:
    def told(read: Any) -> Any:
        try:
            return read()
        except InvalidValueError as error:
            return str(error)

    assert told(lambda: stored_parts(dumps(value))) == told(lambda: parts(value))


def test_a_stored_person_comes_back_as_they_were_written_however_much_there_is_of_them() -> None:
    for person in (User("u", "n", "e", "r", ("a", "b"), "s", "o", "w"), User("u", "n" * 2000)):
        text = dumps(plain_user(person))
        assert stored_user(text) == stored_user(text) == person
