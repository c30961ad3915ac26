"""The settings form: fields, groups and options that fit together, and what each kind of field takes."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers import (
    ConfigError,
    InvalidValueError,
    NotFoundError,
    Secret,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
)

KINDS = SettingsFieldType


class Color(Enum):
    RED = "red"
    BLUE = "blue"


def make(kind: SettingsFieldType, **more: Any) -> SettingsField:
    if kind is KINDS.SELECT:
        more.setdefault(
            "options",
            [SettingsSelectOption("a", "A"), SettingsSelectOption(2, "Two"), SettingsSelectOption(1.0, "One")],
        )
    return SettingsField(**{"id": "f", "type": kind, "label": "F", **more})


# ---------------------------------------------------------------- values

TAKEN: list[tuple[SettingsField, Any, Any]] = [
    *((make(kind), "text", "text") for kind in (KINDS.TEXT, KINDS.TEXTAREA, KINDS.PASSWORD, KINDS.IMAGE)),
    *(
        (make(kind), "", "")
        for kind in (KINDS.TEXT, KINDS.TEXTAREA, KINDS.PASSWORD, KINDS.IMAGE, KINDS.EMAIL, KINDS.DATE)
    ),
    *((make(kind), None, None) for kind in KINDS),
    (make(KINDS.TEXT, max_length=3), "abc", "abc"),
    (make(KINDS.PASSWORD), Secret("sk"), "sk"),
    (make(KINDS.EMAIL), "a@b", "a@b"),
    (make(KINDS.EMAIL), "ann.b+c@sub.example.org", "ann.b+c@sub.example.org"),
    (make(KINDS.DATE), "2024-02-29", "2024-02-29"),
    (make(KINDS.DATE), date(2024, 2, 29), "2024-02-29"),
    (make(KINDS.DATE), datetime(2024, 2, 29, 23, 59, tzinfo=UTC), "2024-02-29"),
    (make(KINDS.DATE), date(1, 1, 1), "0001-01-01"),
    (make(KINDS.NUMBER), 5, 5),
    (make(KINDS.NUMBER), -5.5, -5.5),
    (make(KINDS.NUMBER, min=0, max=2), 0, 0),
    (make(KINDS.NUMBER, min=0, max=2), 2.0, 2.0),
    (make(KINDS.NUMBER, integer=True), 3.0, 3),
    (make(KINDS.CHECKBOX), True, True),
    (make(KINDS.CHECKBOX), False, False),
    (make(KINDS.SELECT), "a", "a"),
    (make(KINDS.SELECT), 2.0, 2),
    (make(KINDS.SELECT), 1, 1.0),
    (make(KINDS.SELECT, options=[SettingsSelectOption(Color.RED, "Red")]), "red", "red"),
    (make(KINDS.SELECT, options=[SettingsSelectOption("red", "Red")]), Color.RED, "red"),
    (make(KINDS.SELECT, options=[SettingsSelectOption(True, "Yes"), SettingsSelectOption(1, "One")]), 1, 1),
    (make(KINDS.SELECT, options=[SettingsSelectOption("", "None"), SettingsSelectOption("x", "X")]), "", ""),
]


@pytest.mark.parametrize(("spec", "value", "kept"), TAKEN)
def test_a_field_takes_the_values_of_its_kind(spec: SettingsField, value: Any, kept: Any) -> None:
    found = spec.check(value)
    assert found == kept
    assert type(found) is type(kept)


NO_TEXTS: list[Any] = [5, True, ["x"], b"x", {}]
NO_NUMBERS: list[Any] = ["5", "", True, False, float("nan"), float("inf"), [], 10**400, 10**5000]
NO_CHOICES: list[Any] = ["b", "2", "", True, ["a"], {"a": 1}, float("nan")]
NO_TRUTHS: list[Any] = [0, 1, "true", "", []]

REFUSED: list[tuple[SettingsField, Any, str]] = [
    *((make(kind), value, "text") for kind in (KINDS.TEXT, KINDS.TEXTAREA, KINDS.IMAGE) for value in NO_TEXTS),
    (make(KINDS.TEXT, max_length=3), "abcd", "at most 3 characters"),
    *((make(KINDS.EMAIL), value, "an e-mail address") for value in ("a", "@b", "a@", "a b@c", "a@b@c", "a@b\n", " ")),
    (make(KINDS.EMAIL), 5, "text"),
    (make(KINDS.EMAIL, max_length=3), "a@bc", "at most 3 characters"),
    *(
        (make(KINDS.DATE), value, "a date as YYYY-MM-DD")
        for value in (
            "2023-02-29",
            "20240229",
            "2024-2-29",
            "2024-W01-1",
            "2024-060",
            "29.02.2024",
            "2024-02-29T00:00",
            "x",
            "٢٠٢٤-٠٢-٢٩",
        )
    ),
    (make(KINDS.DATE), 20240229, "text"),
    *((make(KINDS.NUMBER), value, "a number") for value in NO_NUMBERS),
    (make(KINDS.NUMBER, min=0, max=2), -0.01, "at least 0"),
    (make(KINDS.NUMBER, min=0, max=2), 3, "at most 2"),
    (make(KINDS.NUMBER, integer=True), 1.5, "a whole number"),
    (make(KINDS.NUMBER, integer=True), "1", "a whole number"),
    *((make(KINDS.CHECKBOX), value, "true or false") for value in NO_TRUTHS),
    *((make(KINDS.SELECT), value, "one of 'a', 2, 1.0") for value in NO_CHOICES),
    (make(KINDS.SELECT, options=[SettingsSelectOption(True, "Yes")]), 1, "one of True"),
]


@pytest.mark.parametrize(("spec", "value", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_a_field_refuses_any_other_value_and_says_what_it_expected(
    spec: SettingsField, value: Any, expected: str
) -> None:
    with pytest.raises(InvalidValueError) as raised:
        spec.check(value)
    assert str(raised.value).startswith(f"f: expected {expected}, got ")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, ""])
def test_a_required_field_needs_a_value(kind: SettingsFieldType, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"^f: is required, got "):
        make(kind, required=True).check(value)


@pytest.mark.parametrize("value", [5, b"sk-1", ["sk-1"], Secret("sk-1" * 10), "sk-1" * 10])
def test_a_refused_password_is_not_quoted(value: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        make(KINDS.PASSWORD, max_length=3).check(value)
    assert "sk-1" not in str(raised.value)
    assert "a value that is not shown" in str(raised.value)


@pytest.mark.parametrize("kind", [KINDS.TEXT, KINDS.EMAIL, KINDS.DATE, KINDS.NUMBER, KINDS.CHECKBOX, KINDS.SELECT])
def test_a_secret_is_not_quoted_by_a_field_of_any_other_kind_either(kind: SettingsFieldType) -> None:
    with pytest.raises(InvalidValueError) as raised:
        make(kind, max_length=3).check(Secret("sk-1"))
    assert "sk-1" not in str(raised.value)


@given(
    st.sampled_from(list(KINDS)),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.dates(),
        st.binary(),
        st.lists(st.none()),
    ),
)
@settings(max_examples=200, deadline=None)
def test_a_kept_value_is_taken_again_and_stays_as_it_is(kind: SettingsFieldType, value: Any) -> None:
    spec = make(kind)
    try:
        kept = spec.check(value)
    except InvalidValueError:
        return
    assert spec.check(kept) == kept


# ---------------------------------------------------------------- descriptions


def test_a_field_may_be_described_by_the_name_of_its_kind() -> None:
    assert SettingsField("a", "text", "A").type is KINDS.TEXT


WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"type": "texts"}, "SettingsField.type: expected one of TEXT, NUMBER, SELECT, "),
    ({"type": None}, "SettingsField.type: expected one of "),
    ({"type": ["text"]}, "SettingsField.type: expected one of "),
    ({"id": ""}, "SettingsField.id: expected a name, got ''"),
    ({"id": None}, "SettingsField.id: expected a name, got None"),
    ({"type": KINDS.SELECT}, "SettingsField 'f': a SELECT needs options="),
    ({"type": KINDS.SELECT, "options": []}, "SettingsField 'f': a SELECT needs options="),
    ({"options": [SettingsSelectOption("a", "A")]}, "SettingsField 'f': options belong to SELECT, this is TEXT"),
    ({"type": KINDS.SELECT, "options": ["a"]}, "SettingsField.options: expected SettingsSelectOption, got 'a'"),
    ({"type": KINDS.SELECT, "options": 5}, "SettingsField.options: expected a list of SettingsSelectOption, got 5"),
    ({"type": KINDS.NUMBER, "min": 2, "max": 1}, "SettingsField 'f': min 2 is above max 1"),
    ({"type": KINDS.NUMBER, "min": "0"}, "SettingsField 'f': min: expected a number, got '0'"),
    ({"type": KINDS.NUMBER, "max": True}, "SettingsField 'f': max: expected a number, got True"),
    ({"type": KINDS.NUMBER, "step": float("nan")}, "SettingsField 'f': step: expected a number, got nan"),
    ({"max_length": "5"}, "SettingsField 'f': max_length: expected a number, got '5'"),
    ({"value": 5}, "SettingsField 'f': its default does not fit: f: expected text, got 5"),
    (
        {"type": KINDS.NUMBER, "value": 3, "max": 2},
        "SettingsField 'f': its default does not fit: f: expected at most 2, got 3",
    ),
    (
        {"type": KINDS.CHECKBOX, "value": 0},
        "SettingsField 'f': its default does not fit: f: expected true or false, got 0",
    ),
]


@pytest.mark.parametrize(("values", "said"), WRONG_FIELDS)
def test_a_field_that_cannot_work_is_refused_when_it_is_made(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SettingsField(**{"id": "f", "type": KINDS.TEXT, "label": "F", **values})
    assert str(raised.value).startswith(said)


def test_a_default_that_is_a_wrong_password_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as raised:
        make(KINDS.PASSWORD, value=b"sk-1")
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), b"x", Secret("x")])
def test_an_option_is_something_that_json_can_carry(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^SettingsSelectOption\.value: expected a text, a number or a boolean, got "
    ):
        SettingsSelectOption(value, "label")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("required", [True, False])
def test_an_empty_default_is_nothing_yet_and_passes(kind: SettingsFieldType, value: Any, required: bool) -> None:
    assert make(kind, value=value, required=required).value == value


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        (KINDS.DATE, date(2024, 5, 1), "2024-05-01"),
        (KINDS.PASSWORD, Secret("sk"), "sk"),
        (KINDS.SELECT, 1, 1.0),
        (KINDS.NUMBER, 2.5, 2.5),
    ],
)
def test_a_default_is_kept_as_a_set_value_would_be(kind: SettingsFieldType, value: Any, kept: Any) -> None:
    found = make(kind, value=value).value
    assert (found, type(found)) == (kept, type(kept))


def test_the_repr_of_a_schema_shows_no_password() -> None:
    schema = SettingsSchema([SettingsFieldGroup("g", "G", [make(KINDS.PASSWORD, value="sk-1")])])
    assert "sk-1" not in repr(schema)
    assert "sk-1" not in str(schema.fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (None, "SettingsFieldGroup.fields: expected a list of SettingsField, got None"),
        (["x"], "SettingsFieldGroup.fields: expected SettingsField, got 'x'"),
        (
            [SettingsFieldGroup("inner", "I", [])],
            "SettingsFieldGroup.fields: expected SettingsField, got SettingsFieldGroup(",
        ),
    ],
)
def test_a_group_is_of_fields_and_of_nothing_else(fields: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SettingsFieldGroup("g", "G", fields)
    assert str(raised.value).startswith(said)


def test_a_group_folds_in_one_of_three_ways() -> None:
    for way in ("open", "closed", None):
        SettingsFieldGroup("g", "G", [], collapsible=way)
    with pytest.raises(
        ConfigError, match="SettingsFieldGroup 'g': collapsible: expected 'open', 'closed' or None, got True"
    ):
        SettingsFieldGroup("g", "G", [], collapsible=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (5, "SettingsSchema.fields: expected a list of SettingsField or SettingsFieldGroup, got 5"),
        ([{"id": "a"}], "SettingsSchema.fields: expected SettingsField or SettingsFieldGroup, got {'id': 'a'}"),
        (
            [make(KINDS.TEXT), SettingsFieldGroup("g", "G", [make(KINDS.NUMBER)])],
            "SettingsSchema: field ids must be unique, these are not: f",
        ),
    ],
)
def test_a_schema_is_of_fields_and_groups_with_ids_of_their_own(fields: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SettingsSchema(fields)
    assert str(raised.value) == said


def test_fields_may_come_from_any_iterable() -> None:
    schema = SettingsSchema(iter([make(KINDS.TEXT)]))
    assert [field.id for field in schema.fields] == ["f"]


# ---------------------------------------------------------------- a whole schema

SCHEMA = SettingsSchema(
    [
        SettingsField("model", KINDS.TEXT, "Model", value="m"),
        SettingsField("secret", KINDS.TEXT, "Secret", is_internal=True),
        SettingsFieldGroup(
            "advanced",
            "Advanced",
            [
                SettingsField("temperature", KINDS.NUMBER, "T", value=0.5),
                SettingsField("hidden", KINDS.TEXT, "H", is_internal=True),
            ],
            collapsible="closed",
        ),
        SettingsFieldGroup("backend", "Backend", [SettingsField("token", KINDS.PASSWORD, "Token")], is_internal=True),
        SettingsFieldGroup("mixed", "Mixed", [SettingsField("only", KINDS.TEXT, "Only", is_internal=True)]),
        SettingsFieldGroup("empty", "Empty", []),
    ]
)


def test_an_internal_group_covers_its_fields() -> None:
    internal = {field.id: field.is_internal for field in SCHEMA.every_field()}
    assert internal == {
        "model": False,
        "secret": True,
        "temperature": False,
        "hidden": True,
        "token": True,
        "only": True,
    }
    assert SCHEMA.field("token").is_internal


def test_clients_see_no_internal_field_no_internal_group_and_no_empty_one() -> None:
    items = SCHEMA.public_items()
    assert [item.id for item in items] == ["model", "advanced"]
    group = items[1]
    assert isinstance(group, SettingsFieldGroup)
    assert [field.id for field in group.fields] == ["temperature"]
    assert group.collapsible == "closed"


def test_every_field_has_a_default() -> None:
    assert SCHEMA.defaults() == {
        "model": "m",
        "secret": None,
        "temperature": 0.5,
        "hidden": None,
        "token": None,
        "only": None,
    }


def test_an_unknown_field_is_told_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"^there is no setting 'temprature' \(did you mean 'temperature'\?\)$"):
        SCHEMA.field("temprature")
    with pytest.raises(NotFoundError, match=r"^there is no setting 'zzz'$"):
        SCHEMA.field("zzz")
    with pytest.raises(NotFoundError) as raised:
        SCHEMA.field("x" * 100_000)
    assert len(str(raised.value)) < 200


# ---------------------------------------------------------------- secrets


def test_a_secret_is_shown_by_nothing_but_reveal() -> None:
    secret = Secret("sk-1")
    assert secret.reveal() == "sk-1"

    @attrs.frozen
    class Holder:
        key: Secret

    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{secret}", repr([secret]), repr({"k": secret})]
    shown += [repr(Holder(secret)), repr(attrs.asdict(Holder(secret)))]
    assert not any("sk-1" in text for text in shown)
    assert not hasattr(secret, "__dict__")


def test_a_secret_is_true_when_it_is_set_and_equal_by_its_text() -> None:
    assert Secret("x")
    assert not Secret()
    assert (str(Secret("x")), str(Secret()), repr(Secret())) == ("********", "", "Secret('')")
    assert Secret("x") == Secret(value="x")
    assert Secret("x") != Secret("y")
    assert Secret("x") != "x"
    assert len({Secret("x"), Secret("x"), Secret("y")}) == 2


def test_a_secret_can_be_copied() -> None:
    assert copy.deepcopy(Secret("x")) == Secret("x")
    assert pickle.loads(pickle.dumps(Secret("x"))) == Secret("x")


@pytest.mark.parametrize("value", [None, 5, b"sk-1"])
def test_a_secret_is_a_text(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^Secret: expected a text, got ") as raised:
        Secret(value)
    assert "sk-1" not in str(raised.value)
