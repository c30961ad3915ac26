"""The rules of settings: a settings class as a schema, values as clients may see them, a client's patch, a typed snapshot. No storage.

The descriptions themselves (fields, groups, markers) are in `schema.py`; `context.py` reads and writes the values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import evolve, frozen

from dooers.exceptions import (
    ConfigError,
    InternalFieldError,
    InvalidValueError,
    NotFoundError,
    ReadOnlyError,
    quoted,
)
from dooers.models import StoredSettings
from dooers.schema import (
    Help,
    Internal,
    Label,
    Number,
    Placeholder,
    ReadOnly,
    Secret,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
    Text,
)

__all__ = [
    "MASK",
    "TypedSettings",
    "check_patch",
    "effective",
    "is_mask",
    "public_fields",
    "public_schema",
    "public_value",
    "typed_settings",
]

# What a set password looks like on the wire. Patching it back changes nothing.
MASK = "********"


# ---------------------------------------------------------------- values


def effective(schema: SettingsSchema | None, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Every field's value: what is stored, else its default. Without a schema, what is stored."""
    if schema is None:
        return dict(stored)
    return {name: stored.get(name, default) for name, default in schema.defaults().items()}


def public_value(field: SettingsField, value: Any) -> Any:
    """A value as it may leave for a client: a password only ever as a mask, or null where none is set."""
    if field.type is SettingsFieldType.PASSWORD:
        return MASK if value else None
    return value


def check_patch(schema: SettingsSchema, field_id: str, value: Any) -> Any:
    """What a client's patch would store; raises NotFound, Internal, ReadOnly or InvalidValue where it may not."""
    try:
        field = schema.field(field_id)
    except NotFoundError:
        # Without the suggestion: it might name an internal field.
        raise NotFoundError(f"there is no setting {quoted(field_id)}") from None
    if field.is_internal:
        raise InternalFieldError(f"{field_id}: is not for clients")
    if field.readonly or field.type is SettingsFieldType.IMAGE:
        raise ReadOnlyError(f"{field_id}: is shown only")
    # The mask stands for a password that is set already, whether or not it would pass for one itself.
    return value if is_mask(schema, field_id, value) else field.check(value)


def is_mask(schema: SettingsSchema, field_id: str, value: Any) -> bool:
    """Whether a patch merely gives the mask of a password back."""
    return value == MASK and schema.field(field_id).type is SettingsFieldType.PASSWORD


# ---------------------------------------------------------------- what clients see


def public_fields(schema: SettingsSchema, stored: StoredSettings) -> list[dict[str, Any]]:
    """The public items with their values, as `settings.snapshot` carries them."""
    values = effective(schema, stored.values)
    return [_item_out(item, values) for item in schema.public_items()]


def public_schema(schema: SettingsSchema) -> dict[str, Any]:
    """The public items without any value, for `settings.public_schema`."""
    return {"version": schema.version, "fields": [_item_out(item, {}) for item in schema.public_items()]}


def _item_out(item: SettingsField | SettingsFieldGroup, values: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(item, SettingsFieldGroup):
        return {
            "id": item.id,
            "label": item.label,
            "fields": [_item_out(inner, values) for inner in item.fields],
            "collapsible": item.collapsible,
            "is_internal": False,
            "visibility": "user",
        }
    names = (
        "required",
        "readonly",
        "placeholder",
        "min",
        "max",
        "rows",
        "src",
        "width",
        "height",
        "help",
        "step",
        "max_length",
    )
    return {
        "id": item.id,
        "type": item.type.value,
        "label": item.label,
        "value": public_value(item, values.get(item.id)),
        "is_internal": False,
        "visibility": "user",
        "options": [{"value": o.value, "label": o.label} for o in item.options] if item.options else None,
        **{name: getattr(item, name) for name in names},
    }


# ---------------------------------------------------------------- a settings class as a schema


@frozen
class _Leaf:
    """One field of a settings class: where it sits, what it takes, and how a stored value becomes its own type again."""

    path: tuple[str, ...]
    field: SettingsField
    hint: Any
    nullable: bool

    def of(self, value: Any) -> Any:
        """A checked value as the class wants it; ValueError where the class has no room for it."""
        if self.nullable and (value is None or (value == "" and self.hint is date)):
            return None
        if self.hint is Secret:
            return Secret("" if value is None else value)
        if value is None:
            raise ValueError("null")
        if self.hint is date:
            return date.fromisoformat(value)
        if self.hint is float:
            return float(value)
        if isinstance(self.hint, type) and issubclass(self.hint, Enum):
            return self.hint(value)
        return value


@frozen
class TypedSettings:
    """A settings class, understood once: its schema, and how stored values become an instance of it."""

    cls: type
    schema: SettingsSchema
    _leaves: tuple[_Leaf, ...]

    def load(self, values: Mapping[str, Any]) -> Any:
        """An instance of the class from effective values. A stored value that no longer fits falls back to the default."""
        tree: dict[str, Any] = {}
        for leaf in self._leaves:
            value = values.get(leaf.field.id, leaf.field.value)
            try:
                value = leaf.of(leaf.field.check(value))
            except ValueError:
                value = leaf.of(leaf.field.value)
            branch = tree
            for name in leaf.path[:-1]:
                branch = branch.setdefault(name, {})
            branch[leaf.path[-1]] = value
        return _build(self.cls, tree)

    def check(self, field_id: str, value: Any) -> None:
        """Raise InvalidValueError for null where the class has no room for it."""
        for leaf in self._leaves:
            if leaf.field.id == field_id and value is None and not leaf.nullable and leaf.hint is not Secret:
                raise InvalidValueError(f"{field_id}: expected {leaf.field.type.value}, got null")


def typed_settings(cls: type) -> TypedSettings:
    """The schema of a dataclass or attrs class; ConfigError with the path of what cannot be a setting."""
    if not isinstance(cls, type) or not (dataclasses.is_dataclass(cls) or attrs.has(cls)):
        hint = "; put @dataclass under @worker.settings" if isinstance(cls, type) else ""
        raise ConfigError(f"@worker.settings: expected a dataclass or an attrs class, got {cls!r}{hint}")
    leaves: list[_Leaf] = []
    items = [_describe(cls, name, hint, default, (name,), leaves) for name, hint, default in _members(cls)]
    typed = TypedSettings(cls, SettingsSchema(fields=items), tuple(leaves))
    try:
        typed.load({})
    except Exception as error:
        raise ConfigError(f"{cls.__name__}: cannot be made from its own defaults: {error}") from error
    return typed


_MISSING: Any = object()


def _members(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each field that the class takes; what it computes itself is no setting."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise ConfigError(f"{cls.__name__}: an annotation cannot be read: {error}") from None
    if attrs.has(cls):
        for a in attrs.fields(cls):
            if a.init:
                yield a.name, hints.get(a.name, Any), _attrs_default(cls, a)
        return
    for f in dataclasses.fields(cls):
        if f.init:
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            yield f.name, hints[f.name], _MISSING if default is dataclasses.MISSING else default


def _attrs_default(cls: type, attribute: Any) -> Any:
    default = attribute.default
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return _MISSING if default is attrs.NOTHING else default
    if default.takes_self:
        raise ConfigError(f"{cls.__name__}.{attribute.name}: the default of a setting cannot depend on other settings")
    return default.factory()


def _describe(
    owner: type, name: str, hint: Any, default: Any, path: tuple[str, ...], leaves: list[_Leaf]
) -> SettingsField | SettingsFieldGroup:
    where = f"{owner.__name__}.{name}"
    hint, marks, nullable = _unwrap(where, hint)
    label = marks[Label].text if Label in marks else name.replace("_", " ").capitalize()
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or attrs.has(hint)):
        if len(path) > 1:
            raise ConfigError(f"{where}: groups do not nest: a settings class has fields, and classes of fields")
        inner = [_describe(hint, n, h, getattr(default, n, d), (*path, n), leaves) for n, h, d in _members(hint)]
        fields = [item for item in inner if isinstance(item, SettingsField)]
        if ReadOnly in marks:
            fields = [evolve(item, readonly=True) for item in fields]
        return SettingsFieldGroup(".".join(path), label, fields, is_internal=Internal in marks)
    if default is _MISSING:
        raise ConfigError(f"{where}: a setting needs a default, so that a worker works before anybody has set it")
    if default is None and not nullable:
        raise ConfigError(f"{where}: its default is None; annotate it with `| None`, or give it another")
    try:
        field = SettingsField(
            id=".".join(path),
            label=label,
            value=_plain_default(default),
            is_internal=Internal in marks,
            readonly=ReadOnly in marks,
            **_kind(hint, marks),
        )
        field.check(
            field.value
        )  # a SettingsField lets an empty default pass for "nothing yet"; a class has no such value
    except (ConfigError, InvalidValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
    leaves.append(_Leaf(path, field, hint, nullable))
    return field


def _unwrap(where: str, hint: Any) -> tuple[Any, dict[type, Any], bool]:
    """The bare type of an annotation, its markers by class, and whether None is allowed, in whatever order they are wrapped."""
    marks: dict[type, Any] = {}
    nullable = False
    while True:
        if get_origin(hint) is Annotated:
            hint, *found = get_args(hint)
            # `Internal` and `Internal()` both read well; take both.
            made = [mark() if isinstance(mark, type) and mark in (Internal, ReadOnly) else mark for mark in found]
            marks = {**{type(mark): mark for mark in made}, **marks}
        elif get_origin(hint) in (Union, UnionType):
            rest = [kind for kind in get_args(hint) if kind is not NoneType]
            if len(rest) != 1:
                raise ConfigError(f"{where}: expected one type, or one type | None, got {hint}")
            hint, nullable = rest[0], True
        else:
            return hint, marks, nullable


def _kind(hint: Any, marks: Mapping[type, Any]) -> dict[str, Any]:
    """The field type of an annotation, with what the markers add."""
    number, text = marks.get(Number, Number()), marks.get(Text, Text())
    if (Number in marks and hint not in (int, float)) or (Text in marks and hint is not str):
        raise ConfigError(f"Number is for int and float, Text for str, this is {hint!r}")
    more: dict[str, Any] = {"help": marks[Help].text} if Help in marks else {}
    if Placeholder in marks or text.placeholder:
        more["placeholder"] = marks[Placeholder].text if Placeholder in marks else text.placeholder
    if get_origin(hint) is Literal:
        if any(isinstance(value, Enum | bytes | None) for value in get_args(hint)):
            raise ConfigError(f"a Literal setting is of texts, numbers or booleans, got {hint}")
        options = [SettingsSelectOption(value, str(value)) for value in get_args(hint)]
        return {"type": SettingsFieldType.SELECT, "options": options, **more}
    if isinstance(hint, type) and issubclass(hint, Enum):
        options = [SettingsSelectOption(m.value, m.name.replace("_", " ").capitalize()) for m in hint]
        return {"type": SettingsFieldType.SELECT, "options": options, **more}
    if hint is str:
        formats = {"email": SettingsFieldType.EMAIL, "image": SettingsFieldType.IMAGE, None: SettingsFieldType.TEXT}
        if text.format not in formats:
            raise ConfigError(f"Text(format): expected 'email', 'image' or None, got {quoted(text.format)}")
        kind = SettingsFieldType.TEXTAREA if text.multiline else formats[text.format]
        return {"type": kind, "rows": text.rows, "max_length": text.max_length, **more}
    if hint in (int, float):
        bounds = {"min": number.min, "max": number.max, "step": number.step}
        return {"type": SettingsFieldType.NUMBER, "integer": hint is int, **bounds, **more}
    simple = {bool: SettingsFieldType.CHECKBOX, Secret: SettingsFieldType.PASSWORD, date: SettingsFieldType.DATE}
    if isinstance(hint, type) and hint in simple:
        return {"type": simple[hint], **more}
    raise ConfigError(
        f"{hint!r} cannot be a setting; expected str, int, float, bool, date, Secret, an Enum, a Literal, or a class of these"
    )


def _plain_default(default: Any) -> Any:
    match default:
        case Secret():
            return default.reveal() or None
        case Enum():
            return default.value
        case date():
            return default.isoformat()
        case _:
            return default


def _build(cls: type, tree: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for name, value in tree.items():
        hint, _, _ = _unwrap(name, hints[name])
        alias = str(attrs.fields_dict(cls)[name].alias) if attrs.has(cls) else name
        values[alias] = _build(hint, value) if isinstance(value, dict) else value
    return cls(**values)
