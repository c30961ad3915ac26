"""The settings form of a worker: fields, groups, options, and the markers of the typed style. Descriptions only: no values, no storage."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from enum import Enum
from typing import Any, Literal

from attrs import evolve, field, frozen

from dooers.exceptions import ConfigError, InvalidValueError, NotFoundError, meant, quoted

__all__ = [
    "Help",
    "Internal",
    "Label",
    "Number",
    "Placeholder",
    "ReadOnly",
    "Secret",
    "SettingsField",
    "SettingsFieldGroup",
    "SettingsFieldType",
    "SettingsSchema",
    "SettingsSelectOption",
    "Text",
]


class SettingsFieldType(str, Enum):  # noqa: UP042  StrEnum changes str() of members that programs compare and print
    """What kind of input a field is. The value is what goes on the wire."""

    TEXT = "text"
    NUMBER = "number"
    SELECT = "select"
    CHECKBOX = "checkbox"
    TEXTAREA = "textarea"
    PASSWORD = "password"
    EMAIL = "email"
    DATE = "date"
    IMAGE = "image"


def _bare(value: Any) -> Any:
    """An enum member as its value, anything else as it is."""
    return value.value if isinstance(value, Enum) else value


@frozen
class SettingsSelectOption:
    """One choice of a SELECT. `value` is a text, a number or a boolean."""

    value: Any = field(converter=_bare)
    label: str

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.value, str | int | float | None):
            raise ConfigError(
                f"SettingsSelectOption.value: expected a text, a number or a boolean, got {quoted(self.value)}"
            )


def _checked(where: str, given: Any, *kinds: type) -> tuple[Any, ...]:
    names = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(given, Iterable):
        raise ConfigError(f"{where}: expected a list of {names}, got {quoted(given)}")
    items = tuple(given)
    for item in items:
        if not isinstance(item, kinds):
            raise ConfigError(f"{where}: expected {names}, got {quoted(item)}")
    return items


def _options(given: Iterable[SettingsSelectOption] | None) -> tuple[SettingsSelectOption, ...] | None:
    return None if given is None else _checked("SettingsField.options", given, SettingsSelectOption)


def _field_type(kind: SettingsFieldType | str) -> SettingsFieldType:
    try:
        return SettingsFieldType(kind)
    except ValueError:
        known = ", ".join(member.name for member in SettingsFieldType)
        raise ConfigError(f"SettingsField.type: expected one of {known}, got {kind!r}") from None


@frozen
class SettingsField:
    """One setting. `value` is its default; `is_internal` keeps it from clients altogether.

    `min`, `max` and `step` belong to NUMBER (`integer` allows whole numbers only), `options` to SELECT, `rows` to TEXTAREA,
    `src`, `width` and `height` (pixels) to IMAGE, `max_length` (characters) to the text kinds.
    """

    id: str
    type: SettingsFieldType = field(converter=_field_type)
    label: str
    required: bool = False
    readonly: bool = False
    value: Any = field(default=None, repr=False)  # a PASSWORD's default must not be shown
    is_internal: bool = False
    placeholder: str | None = None
    options: tuple[SettingsSelectOption, ...] | None = field(default=None, converter=_options)
    min: float | None = None
    max: float | None = None
    rows: int | None = None
    src: str | None = None
    width: int | None = None
    height: int | None = None
    help: str | None = None
    step: float | None = None
    max_length: int | None = None
    integer: bool = False

    def __attrs_post_init__(self) -> None:
        where = f"SettingsField {self.id!r}"
        if not isinstance(self.id, str) or not self.id:
            raise ConfigError(f"SettingsField.id: expected a name, got {self.id!r}")
        if self.type is SettingsFieldType.SELECT and not self.options:
            raise ConfigError(f"{where}: a SELECT needs options=[SettingsSelectOption(value, label), ...]")
        if self.options and self.type is not SettingsFieldType.SELECT:
            raise ConfigError(f"{where}: options belong to SELECT, this is {self.type.name}")
        for name in ("min", "max", "step", "rows", "width", "height", "max_length"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float) or bound != bound):
                raise ConfigError(f"{where}: {name}: expected a number, got {quoted(bound)}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"{where}: min {self.min} is above max {self.max}")
        if self.value is not None and not (isinstance(self.value, str) and self.value == ""):
            try:
                # Kept as a set value would be kept: `settings.get` gives the same type before and after somebody sets it.
                object.__setattr__(self, "value", self.check(self.value))
            except InvalidValueError as error:
                raise ConfigError(f"{where}: its default does not fit: {error}") from None

    def check(self, value: Any) -> Any:
        """The value as it is stored, or InvalidValueError saying what was expected and what came."""
        if value is None or value == "":
            if self.required:
                raise InvalidValueError(f"{self.id}: is required, got {value!r}")
            if value is None:
                return None
        return _CHECKS[self.type](self, value)


def _inner(fields: Iterable[SettingsField]) -> tuple[SettingsField, ...]:
    return _checked("SettingsFieldGroup.fields", fields, SettingsField)


@frozen
class SettingsFieldGroup:
    """Fields under one heading. `collapsible`: "open", "closed", or None for a group that does not fold.

    `is_internal` covers every field in it.
    """

    id: str
    label: str
    fields: tuple[SettingsField, ...] = field(converter=_inner)
    collapsible: Literal["open", "closed"] | None = None
    is_internal: bool = False

    def __attrs_post_init__(self) -> None:
        if self.collapsible not in (None, "open", "closed"):
            raise ConfigError(
                f"SettingsFieldGroup {self.id!r}: collapsible: expected 'open', 'closed' or None, got {self.collapsible!r}"
            )


def _items(fields: Iterable[SettingsField | SettingsFieldGroup]) -> tuple[SettingsField | SettingsFieldGroup, ...]:
    return _checked("SettingsSchema.fields", fields, SettingsField, SettingsFieldGroup)


@frozen
class SettingsSchema:
    """All settings of a worker, in the order they are shown. Field ids are unique across groups."""

    fields: tuple[SettingsField | SettingsFieldGroup, ...] = field(converter=_items)
    version: str = "1.0"
    _by_id: dict[str, SettingsField] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        every = list(self.every_field())
        twice = [name for name, count in Counter(f.id for f in every).items() if count > 1]
        if twice:
            raise ConfigError(f"SettingsSchema: field ids must be unique, these are not: {', '.join(twice)}")
        object.__setattr__(self, "_by_id", {f.id: f for f in every})

    def every_field(self) -> Iterator[SettingsField]:
        """All fields, those in groups too; a field of an internal group comes as internal."""
        for item in self.fields:
            if isinstance(item, SettingsField):
                yield item
            else:
                for inner in item.fields:
                    yield evolve(inner, is_internal=True) if item.is_internal else inner

    def field(self, field_id: str) -> SettingsField:
        """The field of this id, or NotFoundError with the nearest name."""
        found = self._by_id.get(field_id)
        if found is None:
            raise NotFoundError(f"there is no setting {quoted(field_id)}{meant(field_id, self._by_id)}")
        return found

    def defaults(self) -> dict[str, Any]:
        """Field id to default, for every field."""
        return {name: f.value for name, f in self._by_id.items()}

    def public_items(self) -> list[SettingsField | SettingsFieldGroup]:
        """What clients may see: no internal field, no internal group, no group left empty."""
        items: list[SettingsField | SettingsFieldGroup] = []
        for item in self.fields:
            if item.is_internal:
                continue
            if isinstance(item, SettingsFieldGroup):
                inner = tuple(f for f in item.fields if not f.is_internal)
                if not inner:
                    continue
                item = evolve(item, fields=inner)
            items.append(item)
        return items


# ---------------------------------------------------------------- a value of each kind


def _wrong(spec: SettingsField, expected: str, value: Any) -> InvalidValueError:
    # A password that failed its check must not be quoted in an error that is shown and logged.
    got = "a value that is not shown" if spec.type is SettingsFieldType.PASSWORD else quoted(value)
    return InvalidValueError(f"{spec.id}: expected {expected}, got {got}")


def _text(spec: SettingsField, value: Any) -> str:
    text = value.reveal() if isinstance(value, Secret) else value
    if not isinstance(text, str):
        raise _wrong(spec, "text", value)
    if spec.max_length is not None and len(text) > spec.max_length:
        raise _wrong(spec, f"at most {spec.max_length} characters", value)
    return text


def _number(spec: SettingsField, value: Any) -> float:
    kind = "a whole number" if spec.integer else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise _wrong(spec, kind, value)
    if spec.integer and isinstance(value, float):
        if not value.is_integer():
            raise _wrong(spec, kind, value)
        value = int(value)
    number: float = value
    if spec.min is not None and value < spec.min:
        raise _wrong(spec, f"at least {spec.min}", value)
    if spec.max is not None and value > spec.max:
        raise _wrong(spec, f"at most {spec.max}", value)
    return number


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _select(spec: SettingsField, value: Any) -> Any:
    value = _bare(value)
    allowed = [option.value for option in spec.options or ()]
    for choice in allowed:
        # 1 == True in Python, and a select of numbers must not take a boolean; but 1 is what a browser makes of 1.0.
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    raise _wrong(spec, f"one of {', '.join(map(repr, allowed))}", value)


def _checkbox(spec: SettingsField, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(spec, "true or false", value)
    return value


def _email(spec: SettingsField, value: Any) -> str:
    text = _text(spec, value)
    # The check of HTML's own <input type=email> in short: something@something, no white space.
    if text and not re.fullmatch(r"[^\s@]+@[^\s@]+", text):
        raise _wrong(spec, "an e-mail address", value)
    return text


def _date(spec: SettingsField, value: Any) -> str:
    if isinstance(value, date):
        value = value.isoformat()[:10]
    text = _text(spec, value)
    if text:
        try:
            if date.fromisoformat(text).isoformat() != text:  # Python reads other forms too, weeks for example
                raise ValueError
        except ValueError:
            raise _wrong(spec, "a date as YYYY-MM-DD", value) from None
    return text


_CHECKS = {
    SettingsFieldType.TEXT: _text,
    SettingsFieldType.TEXTAREA: _text,
    SettingsFieldType.PASSWORD: _text,
    SettingsFieldType.IMAGE: _text,
    SettingsFieldType.EMAIL: _email,
    SettingsFieldType.DATE: _date,
    SettingsFieldType.NUMBER: _number,
    SettingsFieldType.SELECT: _select,
    SettingsFieldType.CHECKBOX: _checkbox,
}


# ---------------------------------------------------------------- the typed style


class Secret:
    """A text that is never shown by accident: `repr` and `str` mask it. Read it with `.reveal()`.

    Not an attrs class like the rest, so that `attrs.asdict` of settings, and all that walks through fields, finds none in it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        if not isinstance(value, str):
            raise ConfigError(f"Secret: expected a text, got {type(value).__name__}")
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __str__(self) -> str:
        return "********" if self._value else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


@frozen
class Number:
    """Bounds and step of a number: `Annotated[float, Number(min=0, max=2)]`."""

    min: float | None = None
    max: float | None = None
    step: float | None = None


@frozen
class Text:
    """How a text is typed in: `Annotated[str, Text(multiline=True, rows=8)]`; `format` may be "email" or "image"."""

    multiline: bool = False
    placeholder: str | None = None
    max_length: int | None = None
    rows: int | None = None
    format: Literal["email", "image"] | None = None


@frozen
class Internal:
    """Never shown to clients, never patched by them."""


@frozen
class ReadOnly:
    """Shown to clients, not patched by them."""


@frozen
class Label:
    """The name that people see; without it the field's own name is used."""

    text: str


@frozen
class Help:
    """A sentence of explanation beside the field."""

    text: str


@frozen
class Placeholder:
    """What an empty input shows."""

    text: str
