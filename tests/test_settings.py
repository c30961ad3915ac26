"""Settings: values over defaults, what clients see and may change, and settings classes of both makes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, Optional

import attrs
import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dooers import (
    ConfigError,
    Help,
    Internal,
    InternalFieldError,
    InvalidValueError,
    Label,
    NotFoundError,
    Number,
    Placeholder,
    ReadOnly,
    ReadOnlyError,
    Secret,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
    Text,
)
from dooers.codec import dumps
from dooers.models import StoredSettings
from dooers.settings import (
    MASK,
    check_patch,
    effective,
    is_mask,
    public_fields,
    public_schema,
    public_value,
    typed_settings,
)
from dooers.vault import Vault

KINDS = SettingsFieldType
NOW = datetime(2024, 5, 1, tzinfo=UTC)

SCHEMA = SettingsSchema(
    [
        SettingsField(
            "model",
            KINDS.SELECT,
            "Model",
            value="a",
            required=True,
            options=[SettingsSelectOption("a", "A"), SettingsSelectOption("b", "B")],
        ),
        SettingsField("qr", KINDS.IMAGE, "QR", src="https://x/qr.png", width=100, height=200),
        SettingsField("plan", KINDS.TEXT, "Plan", readonly=True, value="free"),
        SettingsField("api_key", KINDS.PASSWORD, "Key", is_internal=True, value="sk-default"),
        SettingsField("pin", KINDS.PASSWORD, "Pin", max_length=4),
        SettingsFieldGroup(
            "advanced",
            "Advanced",
            [
                SettingsField("temperature", KINDS.NUMBER, "T", value=0.5, min=0, max=2, step=0.1),
                SettingsField("inner", KINDS.TEXT, "I", is_internal=True),
            ],
            collapsible="open",
        ),
        SettingsFieldGroup("backend", "Backend", [SettingsField("token", KINDS.TEXT, "Token")], is_internal=True),
    ],
    version="2.0",
)


# ---------------------------------------------------------------- values


def test_what_is_stored_goes_before_the_default_also_when_it_is_empty() -> None:
    values = effective(SCHEMA, {"temperature": 0, "plan": None, "model": "", "unknown": 1})
    assert (values["temperature"], values["plan"], values["model"], values["api_key"]) == (0, None, "", "sk-default")
    assert "unknown" not in values
    assert set(values) == {"model", "qr", "plan", "api_key", "pin", "temperature", "inner", "token"}


def test_without_a_schema_the_values_are_what_is_stored() -> None:
    stored = {"anything": [1]}
    values = effective(None, stored)
    assert values == stored
    values["more"] = 1
    assert "more" not in stored


def test_a_password_leaves_as_a_mask_and_an_unset_one_as_null() -> None:
    pin = SCHEMA.field("pin")
    assert public_value(pin, "1234") == MASK
    assert public_value(pin, "") is None
    assert public_value(pin, None) is None
    assert public_value(SCHEMA.field("plan"), "free") == "free"
    # One that is sealed is set, and needs no key to be a mask.
    assert public_value(pin, Vault([Fernet.generate_key().decode()]).seal("1234", "worker", "pin")) == MASK
    # The same length for every password: the mask must not tell it.
    assert public_value(pin, "x" * 50) == public_value(pin, "x")


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize(
    ("field_id", "value", "kept"),
    [("model", "b", "b"), ("temperature", 2, 2), ("pin", "1234", "1234"), ("pin", "", ""), ("pin", None, None)],
)
def test_a_client_may_change_what_it_is_shown(field_id: str, value: Any, kept: Any) -> None:
    assert check_patch(SCHEMA, field_id, value) == kept


@pytest.mark.parametrize(
    ("field_id", "value", "error"),
    [
        ("api_key", "x", InternalFieldError),
        ("inner", "x", InternalFieldError),
        ("token", "x", InternalFieldError),
        ("api_key", MASK, InternalFieldError),
        ("plan", "pro", ReadOnlyError),
        ("qr", "https://evil", ReadOnlyError),
        ("advanced", {}, NotFoundError),
        ("", 1, NotFoundError),
        ("nothing", 1, NotFoundError),
        ("model", "c", InvalidValueError),
        ("model", None, InvalidValueError),
        ("model", "", InvalidValueError),
        ("temperature", 2.1, InvalidValueError),
        ("temperature", 10**400, InvalidValueError),
        ("temperature", {"a": []}, InvalidValueError),
        ("pin", "12345", InvalidValueError),
        ("pin", 1234, InvalidValueError),
    ],
)
def test_a_client_may_not_change_anything_else(field_id: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_patch(SCHEMA, field_id, value)


def test_a_clients_misspelling_is_not_answered_with_the_name_of_an_internal_field() -> None:
    with pytest.raises(NotFoundError) as raised:
        check_patch(SCHEMA, "api_ke", "x")
    assert str(raised.value) == "there is no setting 'api_ke'"


def test_the_mask_given_back_is_no_new_password_even_where_it_is_too_long_for_one() -> None:
    assert check_patch(SCHEMA, "pin", MASK) == MASK
    assert is_mask(SCHEMA, "pin", MASK)
    assert not is_mask(SCHEMA, "pin", "1234")
    assert not is_mask(SCHEMA, "plan", MASK)


# ---------------------------------------------------------------- what clients see


def test_a_snapshot_has_every_public_field_with_every_key_and_no_internal_one() -> None:
    items = public_fields(SCHEMA, StoredSettings({"pin": "1234", "temperature": 1.5, "token": "tok-1"}, NOW))
    assert [item["id"] for item in items] == ["model", "qr", "plan", "pin", "advanced"]
    model, image, plan, pin, group = items
    assert model == {
        "id": "model",
        "type": "select",
        "label": "Model",
        "value": "a",
        "is_internal": False,
        "visibility": "user",
        "options": [{"value": "a", "label": "A"}, {"value": "b", "label": "B"}],
        "required": True,
        "readonly": False,
        "placeholder": None,
        "min": None,
        "max": None,
        "rows": None,
        "src": None,
        "width": None,
        "height": None,
        "help": None,
        "step": None,
        "max_length": None,
    }
    assert (image["type"], image["src"], image["width"], image["height"]) == ("image", "https://x/qr.png", 100, 200)
    assert (plan["readonly"], plan["value"]) == (True, "free")
    assert pin["value"] == MASK
    assert {name: value for name, value in group.items() if name != "fields"} == {
        "id": "advanced",
        "label": "Advanced",
        "collapsible": "open",
        "is_internal": False,
        "visibility": "user",
    }
    (temperature,) = group["fields"]
    assert (temperature["value"], temperature["min"], temperature["max"], temperature["step"]) == (1.5, 0, 2, 0.1)
    text = dumps(items)
    for hidden in ("1234", "tok-1", "sk-default", "api_key", "inner", "token", "backend"):
        assert hidden not in text


def test_the_public_schema_has_no_value_at_all() -> None:
    out = public_schema(SCHEMA)
    assert out["version"] == "2.0"
    flat = [field for item in out["fields"] for field in item.get("fields", [item])]
    assert [field["value"] for field in flat] == [None] * 5
    assert "sk-default" not in dumps(out)


# ---------------------------------------------------------------- settings classes


class Tone(Enum):
    VERY_FORMAL = "formal"
    CASUAL = "casual"


@dataclass
class Advanced:
    top_p: Annotated[float, Number(min=0, max=1)] = 1
    stop: str | None = None


@attrs.frozen
class AttrsAdvanced:
    top_p: Annotated[float, Number(min=0, max=1)] = 1
    stop: str | None = None


@dataclass
class Data:
    model: Literal["small", "large"] = "small"
    speed: Literal[1, 2] = 2
    tone: Tone = Tone.CASUAL
    since: date = date(2024, 5, 1)
    until: date | None = None
    greet: bool = True
    tries: Annotated[int, Number(min=1, max=5)] = 3
    temperature: Annotated[float, Number(min=0, max=2, step=0.1)] = 1
    api_key: Annotated[Secret, Internal()] = dataclasses.field(default_factory=lambda: Secret("sk-default"))
    other_key: Annotated[Secret | None, Internal] = None
    name: Annotated[str, Label("Your name"), Placeholder("Ann"), Help("Shown to people")] = "Ann"
    notes: Annotated[str, Text(multiline=True, rows=8, placeholder="...", max_length=100)] = ""
    mail: Annotated[str, Text(format="email")] = ""
    logo: Annotated[str, Text(format="image")] = ""
    plan: Annotated[str, ReadOnly()] = "free"
    old: Optional[str] = None  # noqa: UP045  written the old way on purpose
    marked_inside: Annotated[str, Internal()] | None = None
    advanced: Advanced = dataclasses.field(default_factory=Advanced)
    hidden: Annotated[Advanced, Internal(), Label("Backend")] = dataclasses.field(
        default_factory=lambda: Advanced(0.5, "x")
    )
    shown: Annotated[Advanced, ReadOnly] = dataclasses.field(default_factory=Advanced)
    shared: ClassVar[int] = 5


@attrs.frozen
class Attrs:
    model: Literal["small", "large"] = "small"
    speed: Literal[1, 2] = 2
    tone: Tone = Tone.CASUAL
    since: date = date(2024, 5, 1)
    until: date | None = None
    greet: bool = True
    tries: Annotated[int, Number(min=1, max=5)] = 3
    temperature: Annotated[float, Number(min=0, max=2, step=0.1)] = 1
    api_key: Annotated[Secret, Internal()] = Secret("sk-default")
    other_key: Annotated[Secret | None, Internal] = None
    name: Annotated[str, Label("Your name"), Placeholder("Ann"), Help("Shown to people")] = "Ann"
    notes: Annotated[str, Text(multiline=True, rows=8, placeholder="...", max_length=100)] = ""
    mail: Annotated[str, Text(format="email")] = ""
    logo: Annotated[str, Text(format="image")] = ""
    plan: Annotated[str, ReadOnly()] = "free"
    old: Optional[str] = None  # noqa: UP045  written the old way on purpose
    marked_inside: Annotated[str, Internal()] | None = None
    advanced: AttrsAdvanced = attrs.Factory(AttrsAdvanced)
    hidden: Annotated[AttrsAdvanced, Internal(), Label("Backend")] = AttrsAdvanced(0.5, "x")
    shown: Annotated[AttrsAdvanced, ReadOnly] = AttrsAdvanced()
    shared: ClassVar[int] = 5


BOTH = pytest.mark.parametrize("cls", [Data, Attrs], ids=["dataclass", "attrs"])


@BOTH
def test_a_settings_class_becomes_a_schema(cls: type) -> None:
    schema = typed_settings(cls).schema
    kinds = {field.id: field.type for field in schema.every_field()}
    assert kinds == {
        "model": KINDS.SELECT,
        "speed": KINDS.SELECT,
        "tone": KINDS.SELECT,
        "since": KINDS.DATE,
        "until": KINDS.DATE,
        "greet": KINDS.CHECKBOX,
        "tries": KINDS.NUMBER,
        "temperature": KINDS.NUMBER,
        "api_key": KINDS.PASSWORD,
        "other_key": KINDS.PASSWORD,
        "name": KINDS.TEXT,
        "notes": KINDS.TEXTAREA,
        "mail": KINDS.EMAIL,
        "logo": KINDS.IMAGE,
        "plan": KINDS.TEXT,
        "old": KINDS.TEXT,
        "marked_inside": KINDS.TEXT,
        **{
            f"{group}.{name}": kind
            for group in ("advanced", "hidden", "shown")
            for name, kind in (("top_p", KINDS.NUMBER), ("stop", KINDS.TEXT))
        },
    }
    assert [option.value for option in schema.field("model").options or ()] == ["small", "large"]
    assert [option.value for option in schema.field("speed").options or ()] == [1, 2]
    assert [(one.value, one.label) for one in schema.field("tone").options or ()] == [
        ("formal", "Very formal"),
        ("casual", "Casual"),
    ]


@BOTH
def test_markers_and_defaults_reach_the_fields(cls: type) -> None:
    schema = typed_settings(cls).schema
    tries, temperature, name, notes = (schema.field(one) for one in ("tries", "temperature", "name", "notes"))
    assert (tries.min, tries.max, tries.integer, tries.value) == (1, 5, True, 3)
    assert (temperature.min, temperature.max, temperature.step, temperature.integer) == (0, 2, 0.1, False)
    assert (name.label, name.placeholder, name.help, name.value) == ("Your name", "Ann", "Shown to people", "Ann")
    assert (notes.rows, notes.placeholder, notes.max_length) == (8, "...", 100)
    assert (schema.field("since").value, schema.field("tone").value) == ("2024-05-01", "casual")
    assert (schema.field("api_key").value, schema.field("other_key").value) == ("sk-default", None)
    assert schema.field("other_key").label == "Other key"
    internal = {field.id for field in schema.every_field() if field.is_internal}
    assert internal == {"api_key", "other_key", "marked_inside", "hidden.top_p", "hidden.stop"}
    readonly = {field.id for field in schema.every_field() if field.readonly}
    assert readonly == {"plan", "shown.top_p", "shown.stop"}


@BOTH
def test_a_class_of_fields_becomes_a_group_with_its_own_defaults(cls: type) -> None:
    schema = typed_settings(cls).schema
    advanced, hidden, shown = (item for item in schema.fields if isinstance(item, SettingsFieldGroup))
    assert (advanced.id, advanced.label, advanced.is_internal) == ("advanced", "Advanced", False)
    assert (hidden.id, hidden.label, hidden.is_internal) == ("hidden", "Backend", True)
    assert shown.id == "shown"
    assert [field.label for field in advanced.fields] == ["Top p", "Stop"]
    assert schema.field("hidden.top_p").value == 0.5
    assert schema.field("hidden.stop").value == "x"


@BOTH
def test_a_marker_on_a_group_keeps_clients_from_its_fields(cls: type) -> None:
    schema = typed_settings(cls).schema
    with pytest.raises(InternalFieldError):
        check_patch(schema, "hidden.top_p", 0.1)
    with pytest.raises(ReadOnlyError):
        check_patch(schema, "shown.top_p", 0.1)
    assert check_patch(schema, "advanced.top_p", 0.1) == 0.1


@BOTH
def test_nothing_stored_gives_the_class_as_it_is_by_itself(cls: type) -> None:
    typed = typed_settings(cls)
    assert typed.load(effective(typed.schema, {})) == cls()
    assert typed.load({}) == cls()
    assert type(typed.load({}).temperature) is float


STORED: dict[str, Any] = {
    "model": "large",
    "speed": 1,
    "tone": "formal",
    "since": "2025-01-02",
    "until": "2025-01-03",
    "greet": False,
    "tries": 5,
    "temperature": 0,
    "api_key": "sk-new",
    "other_key": "ok-new",
    "old": "x",
    "advanced.top_p": 0.25,
    "advanced.stop": "y",
    "hidden.stop": None,
}


@BOTH
def test_stored_values_come_back_in_the_types_of_the_class(cls: type) -> None:
    typed = typed_settings(cls)
    loaded = typed.load(effective(typed.schema, json.loads(json.dumps(STORED))))
    assert isinstance(loaded, cls)
    got: Any = loaded
    assert (got.model, got.speed, got.tone, got.greet, got.tries) == ("large", 1, Tone.VERY_FORMAL, False, 5)
    assert (got.since, got.until) == (date(2025, 1, 2), date(2025, 1, 3))
    assert (got.temperature, type(got.temperature)) == (0.0, float)
    assert (got.api_key, got.other_key, got.old) == (Secret("sk-new"), Secret("ok-new"), "x")
    assert (got.advanced.top_p, got.advanced.stop) == (0.25, "y")
    assert (got.hidden.top_p, got.hidden.stop) == (0.5, None)


@BOTH
@pytest.mark.parametrize(
    ("field_id", "value"),
    [
        ("model", "gone"),
        ("model", None),
        ("speed", True),
        ("tone", "rude"),
        ("since", "yesterday"),
        ("since", ""),
        ("since", None),
        ("greet", "yes"),
        ("greet", None),
        ("tries", 6),
        ("tries", 2.5),
        ("tries", None),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("api_key", 5),
        ("name", ["x"]),
        ("name", None),
        ("mail", "nobody"),
        ("old", 5),
        ("advanced.top_p", 2),
        ("until", "x"),
    ],
)
def test_a_stored_value_that_no_longer_fits_falls_back_to_the_default(cls: type, field_id: str, value: Any) -> None:
    typed = typed_settings(cls)
    assert typed.load(effective(typed.schema, {field_id: value})) == cls()


@BOTH
def test_what_may_be_none_can_be_cleared(cls: type) -> None:
    typed = typed_settings(cls)
    got = typed.load({**typed.schema.defaults(), "until": "", "other_key": None, "old": None})
    assert (got.until, got.other_key, got.old) == (None, None, None)
    assert typed.load({"until": None, "other_key": ""}).other_key == Secret("")


@BOTH
def test_a_secret_can_be_emptied_and_is_then_not_its_default_again(cls: type) -> None:
    typed = typed_settings(cls)
    assert typed.load({"api_key": None}).api_key == Secret("")
    assert typed.load({"api_key": ""}).api_key == Secret("")
    typed.check("api_key", None)


@BOTH
def test_null_is_refused_where_the_class_has_no_room_for_it(cls: type) -> None:
    typed = typed_settings(cls)
    for field_id in ("old", "until", "other_key", "advanced.stop"):
        typed.check(field_id, None)
    typed.check("tries", 3)
    for field_id, kind in (("tries", "number"), ("name", "text"), ("advanced.top_p", "number"), ("since", "date")):
        with pytest.raises(InvalidValueError, match=f"^{field_id}: expected {kind}, got null$"):
            typed.check(field_id, None)


@BOTH
def test_a_secret_is_shown_by_nothing_that_is_made_of_a_settings_class(cls: type) -> None:
    typed = typed_settings(cls)
    loaded = typed.load({"api_key": "sk-stored", "other_key": "ok-stored"})
    stored = StoredSettings({"api_key": "sk-stored"}, NOW)
    shown = [
        repr(typed),
        repr(typed.schema),
        repr(loaded),
        str(loaded),
        repr(typed.schema.field("api_key")),
        repr(stored),
        dumps(public_fields(typed.schema, stored)),
        dumps(public_schema(typed.schema)),
        repr(attrs.asdict(loaded) if attrs.has(cls) else dataclasses.asdict(loaded)),
    ]
    for text in shown:
        for secret in ("sk-default", "sk-stored", "ok-stored"):
            assert secret not in text


@BOTH
def test_every_default_passes_its_own_check_and_reads_back(cls: type) -> None:
    typed = typed_settings(cls)
    for field in typed.schema.every_field():
        assert field.check(field.value) == field.value


def test_aliases_private_names_and_keyword_only_fields_are_the_classs_own_business() -> None:
    @attrs.define(kw_only=True)
    class Private:
        _token: str = "t"
        other: str = attrs.field(default="o", alias="another")
        computed: int = attrs.field(init=False, default=5)

    typed = typed_settings(Private)
    assert [field.id for field in typed.schema.every_field()] == ["_token", "other"]
    assert typed.load({"_token": "x", "other": "y"}) == Private(token="x", another="y")


def test_what_a_dataclass_computes_itself_is_no_setting() -> None:
    @dataclass
    class Computed:
        name: str = "a"
        upper: str = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            self.upper = self.name.upper()

    typed = typed_settings(Computed)
    assert [field.id for field in typed.schema.every_field()] == ["name"]
    assert typed.load({"name": "b"}).upper == "B"


def test_annotations_may_be_texts() -> None:
    cls = dataclasses.make_dataclass("Textual", [("tries", "Annotated[int, Number(min=1)] | None", None)])
    cls.__module__ = __name__
    assert typed_settings(cls).schema.field("tries").min == 1


# ---------------------------------------------------------------- classes that cannot be


def of(annotation: Any, *default: Any) -> Callable[[], type]:
    """A dataclass with one field `x`."""
    field: list[Any] = [dataclasses.field(default_factory=functools.partial(copy.copy, one)) for one in default]
    return lambda: dataclasses.make_dataclass("Bad", [("x", annotation, *field)])


@dataclass
class Nested:
    advanced: Advanced = dataclasses.field(default_factory=Advanced)


class NoValues(Enum):
    pass


class ListValues(Enum):
    ONE = [1]  # noqa: RUF012


def attrs_self() -> type:
    @attrs.define
    class Bad:
        a: int = 1
        x: int = attrs.Factory(lambda self: self.a, takes_self=True)

    return Bad


def attrs_bare() -> type:
    @attrs.define
    class Bad:
        x = attrs.field(default=1)  # type: ignore[var-annotated]

    return Bad


def attrs_required() -> type:
    @attrs.define
    class Bad:
        x: int

    return Bad


def unbuildable() -> type:
    @dataclass
    class Bad:
        x: str = ""

        def __post_init__(self) -> None:
            raise RuntimeError("x is needed")

    return Bad


WRONG: Any = "phone"

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: 5, "@worker.settings: expected a dataclass or an attrs class, got 5"),
    (lambda: Data(), "@worker.settings: expected a dataclass or an attrs class, got Data("),
    (lambda: Tone, "@worker.settings: expected a dataclass or an attrs class, got <enum 'Tone'>; put @dataclass under"),
    (of(int), "Bad.x: a setting needs a default, so that a worker works before anybody has set it"),
    (attrs_required, "Bad.x: a setting needs a default"),
    (attrs_self, "Bad.x: the default of a setting cannot depend on other settings"),
    (
        attrs_bare,
        "Bad.x: typing.Any cannot be a setting; expected str, int, float, bool, date, Secret, an Enum, a Literal, ",
    ),
    (of(list[str], []), "Bad.x: list[str] cannot be a setting; expected str, int, "),
    (of(dict, {}), "Bad.x: <class 'dict'> cannot be a setting"),
    (of(datetime, NOW), "Bad.x: <class 'datetime.datetime'> cannot be a setting"),
    (of(bytes, b""), "Bad.x: <class 'bytes'> cannot be a setting"),
    (of(int | str, 1), "Bad.x: expected one type, or one type | None, got int | str"),
    (of(int | str | None, 1), "Bad.x: expected one type, or one type | None, got int | str | None"),
    (of(Nested, Nested()), "Nested.advanced: groups do not nest: a settings class has fields, and classes of fields"),
    (of("Missing", 1), "Bad: an annotation cannot be read: name 'Missing' is not defined"),
    (of("int |", 1), "Bad: an annotation cannot be read: "),
    (of(str, None), "Bad.x: its default is None; annotate it with `| None`, or give it another"),
    (of(int, "1"), "Bad.x: SettingsField 'x': its default does not fit: x: expected a whole number, got '1'"),
    (of(int, 1.5), "Bad.x: SettingsField 'x': its default does not fit"),
    (of(int, True), "Bad.x: SettingsField 'x': its default does not fit"),
    (of(int, ""), "Bad.x: x: expected a whole number, got ''"),
    (of(bool, 1), "Bad.x: SettingsField 'x': its default does not fit: x: expected true or false, got 1"),
    (of(bool, ""), "Bad.x: x: expected true or false, got ''"),
    (
        of(date, "May"),
        "Bad.x: SettingsField 'x': its default does not fit: x: expected a date as YYYY-MM-DD, got 'May'",
    ),
    (of(date, NOW), "Bad.x: SettingsField 'x': its default does not fit"),
    (of(date, ""), "Bad: cannot be made from its own defaults: "),
    (of(Literal["a"], "b"), "Bad.x: SettingsField 'x': its default does not fit: x: expected one of 'a', got 'b'"),
    (of(Literal["a"], ""), "Bad.x: x: expected one of 'a', got ''"),
    (of(Literal["a", None], "a"), "Bad.x: a Literal setting is of texts, numbers or booleans, got "),
    (of(Literal[Tone.CASUAL], Tone.CASUAL), "Bad.x: a Literal setting is of texts, numbers or booleans, got "),
    (of(NoValues, "x"), "Bad.x: SettingsField 'x': a SELECT needs options="),
    (
        of(ListValues, ListValues.ONE),
        "Bad.x: SettingsSelectOption.value: expected a text, a number or a boolean, got [1]",
    ),
    (of(Annotated[int, Number(min=5, max=1)], 1), "Bad.x: SettingsField 'x': min 5 is above max 1"),
    (
        of(Annotated[int, Number(min=5)], 1),
        "Bad.x: SettingsField 'x': its default does not fit: x: expected at least 5, got 1",
    ),
    (of(Annotated[str, Number(min=5)], "x"), "Bad.x: Number is for int and float, Text for str, this is <class 'str'>"),
    (of(Annotated[int, Text()], 1), "Bad.x: Number is for int and float, Text for str, this is <class 'int'>"),
    (
        of(Annotated[str, Text(format=WRONG)], ""),
        "Bad.x: Text(format): expected 'email', 'image' or None, got 'phone'",
    ),
    (
        of(Secret, 5),
        "Bad.x: SettingsField 'x': its default does not fit: x: expected text, got a value that is not shown",
    ),
    (unbuildable, "Bad: cannot be made from its own defaults: x is needed"),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=range(len(BAD)))
def test_a_class_that_cannot_be_settings_is_refused_with_the_path_and_the_reason(
    make: Callable[[], Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        typed_settings(make())
    assert str(raised.value).startswith(said)


# ---------------------------------------------------------------- whatever is stored

ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["small", "formal", "2024-01-01", "a@b", MASK]),
    st.lists(st.integers(), max_size=2),
)


@given(st.dictionaries(st.sampled_from(sorted([*STORED, "name", "notes", "mail", "gone"])), ANY_VALUE))
@hypothesis_settings(max_examples=200, deadline=None)
def test_whatever_is_stored_a_settings_class_can_be_loaded_and_its_types_hold(stored: dict[str, Any]) -> None:
    typed = typed_settings(Data)
    got = typed.load(effective(typed.schema, stored))
    assert got.model in ("small", "large")
    assert isinstance(got.tone, Tone)
    assert type(got.since) is date
    assert type(got.greet) is bool
    assert type(got.tries) is int
    assert 1 <= got.tries <= 5
    assert type(got.temperature) is float
    assert isinstance(got.api_key, Secret)
    assert got.old is None or isinstance(got.old, str)
    assert isinstance(got.advanced, Advanced)
    json.loads(dumps(public_fields(typed.schema, StoredSettings(stored, NOW))))
