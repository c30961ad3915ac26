"""JSON and the strict reading of it: text to plain values, plain values to models, and the path of whatever does not fit.

Not the protocol: which frames exist is `protocol.py`'s business. Nothing here coerces: "1" is not a number, null is not a text.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin
from uuid import UUID

import attrs
import cattrs
import orjson

from dooers.exceptions import InvalidValueError, ProtocolError, quoted
from dooers.models import UNSTORABLE, ContentPart, DocumentPart, ImagePart, TextPart, User

__all__ = [
    "clean",
    "decoded",
    "dumps",
    "fault",
    "loads",
    "part",
    "parts",
    "plain",
    "plain_parts",
    "plain_user",
    "stored_parts",
    "stored_user",
    "structure",
    "user",
]

T = TypeVar("T")

_DEPTH = 100


def clean(text: str) -> str:
    """The text without what storage cannot hold: NUL goes, a lone surrogate becomes U+FFFD. Everything else stays as it is."""
    if text.isascii() and "\x00" not in text:
        return text
    # Before anything is stored: it is what makes every backend store the same.
    return UNSTORABLE.sub(lambda found: "" if found[0] == "\x00" else "\ufffd", text)


def dumps(value: Any) -> str:
    """Compact JSON text. Times become ISO 8601 with `Z`."""
    try:
        return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
    except TypeError:
        # What orjson has no form for (integers over 64 bits, lone surrogates, attrs classes) is rare enough for the slow road.
        return orjson.dumps(plain(value)).decode()


def loads(text: str | bytes) -> Any:
    """The value of a JSON text, such as storage can hold; ValueError where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return plain(decoded(text))


def decoded(text: str | bytes) -> Any:
    """The value of a JSON text as it is, for `structure` to read strictly; ValueError where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # orjson refuses "\ud800"; browsers send it when somebody cuts an emoji in half. NaN is not JSON for either of us.
        try:
            return json.loads(text, parse_constant=_not_json)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


# ---------------------------------------------------------------- any Python value to plain JSON values


def plain(value: Any, path: str = "value") -> Any:
    """A deep copy in plain JSON values, or InvalidValueError with the path of what has no such form.

    Takes dataclasses, attrs classes, enums, times, UUIDs, decimals, sets, mappings and whatever has a `model_dump()`.
    NaN and infinities become null, as they do in JavaScript. Integers over 64 bits become floats, as they do when they are
    read back, so that every backend gives back the same.
    """
    return _plain(value, (None, path), 0)


# Where a value sits: its parent's place and a key or index. Written out only for an error: with the text made on the way down, a
# client could have a long key copied once for each of a million items.
_Place: TypeAlias = "tuple[_Place | None, str | int]"


def _plain(value: Any, place: _Place, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return clean(value)
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _wide(value, place)
    if depth > _DEPTH:
        raise InvalidValueError(f"{_written(place)}: nested more than {_DEPTH} deep")
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {(name := _key(key, place)): _plain(item, (place, name), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, (place, index), depth + 1) for index, item in enumerate(value)]
    for types, convert in _PLAIN:
        if isinstance(value, types):
            return _plain(convert(value), place, depth + 1)
    if not isinstance(value, type):  # a class has the attributes of its instances, but not their values
        if attrs.has(kind):
            return _plain({f.name: getattr(value, f.name) for f in attrs.fields(kind)}, place, depth + 1)
        if dataclasses.is_dataclass(value):
            return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, place, depth + 1)
        if callable(dump := getattr(value, "model_dump", None)):
            return _plain(dump(mode="json"), place, depth + 1)
    raise InvalidValueError(f"{_written(place)}: expected something with a JSON form, got {kind.__qualname__}")


def _written(place: _Place) -> str:
    steps: list[str] = []
    at: _Place | None = place
    while at is not None:
        at, step = at
        steps.append(f"[{step}]" if isinstance(step, int) else step[:60] if at is None else f".{step[:60]}")
    text = "".join(reversed(steps))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _wide(value: int, place: _Place) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InvalidValueError(f"{_written(place)}: expected a number that fits a float, this one is larger") from None


def _key(key: Any, place: _Place) -> str:
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str | int | float | UUID | datetime | date) or isinstance(key, bool):
        raise InvalidValueError(f"{_written(place)}: expected keys that are text, got {type(key).__qualname__}")
    if type(key) is int and not -(2**63) <= key < 2**64:
        key = _wide(key, place)
    return clean(str(key))


def _decimal(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    return int(value) if abs(value) < 2**63 and value == value.to_integral_value() else float(value)


_PLAIN: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),
    (str, lambda value: str.__str__(value)),
    (int, int),
    (float, float),
    (datetime, lambda value: value.isoformat().replace("+00:00", "Z")),
    ((date, time), lambda value: value.isoformat()),
    (UUID, str),
    (Decimal, _decimal),
)


# ---------------------------------------------------------------- plain JSON values to models, strictly


class _Unfit(ValueError):
    """What a hook below says; the path is added on the way up."""


_JSON_NAMES = {
    dict: "object",
    list: "array",
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}


def _json_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _scalar(expected: str, *accepted: type) -> Callable[[Any, Any], Any]:
    def hook(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise _Unfit(f"expected {expected}, got {_json_name(value)}")
        return clean(value) if type(value) is str else value

    return hook


def _literal_hook(annotation: Any) -> Callable[[Any, Any], Any]:
    allowed = get_args(annotation)

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not str or value not in allowed:
            raise _Unfit(f"expected {' or '.join(map(repr, allowed))}, got {quoted(value)}")
        return value

    return hook


def _list_hook(annotation: Any, converter: cattrs.BaseConverter) -> Callable[[Any, Any], Any]:
    (kind,) = get_args(annotation)
    inner = converter.get_structure_hook(kind)

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise _Unfit(f"expected array, got {_json_name(value)}")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(inner(item, kind))
            except Exception as error:
                # The first fault is enough. cattrs collects all of them: seconds and gigabytes for a frame of wrong items.
                where, what = fault(error, f"[{index}]")
                raise _Unfit(f"{where}: {what}") from None
        return items

    return hook


def _object_hook(annotation: Any, converter: Any) -> Callable[[Any, Any], Any]:
    inner = cattrs.gen.make_dict_structure_fn(annotation, converter)

    def hook(value: Any, kind: Any) -> Any:
        if type(value) is not dict:
            raise _Unfit(f"expected object, got {_json_name(value)}")
        return inner(value, kind)

    return hook


_PARTS: dict[str, type[ContentPart]] = {"text": TextPart, "image": ImagePart, "document": DocumentPart}


def _part_hook(value: Any, _: Any) -> ContentPart:
    if type(value) is not dict:
        raise _Unfit(f"expected object, got {_json_name(value)}")
    kind = value.get("type")
    chosen = _PARTS.get(kind) if type(kind) is str else None
    if chosen is None:
        raise _Unfit(f".type: expected one of {', '.join(map(repr, _PARTS))}, got {quoted(kind)}")
    return _converter.structure(value, chosen)


def _any_object(value: Any, _: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _Unfit(f"expected object, got {_json_name(value)}")
    return plain(value, "")  # type: ignore[no-any-return]


def _anything(value: Any, _: Any) -> Any:
    return plain(value, "")


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    # Order matters: cattrs compiles and keeps a class's hook at first use, with the hooks known by then.
    converter.register_structure_hook(str, _scalar("string", str))
    converter.register_structure_hook(int, _scalar("integer", int))
    converter.register_structure_hook(float, _scalar("number", int, float))
    converter.register_structure_hook(bool, _scalar("boolean", bool))
    converter.register_structure_hook_func(lambda kind: kind is Any, _anything)
    converter.register_structure_hook_func(lambda kind: kind == dict[str, Any], _any_object)
    converter.register_structure_hook(ContentPart, _part_hook)
    converter.register_structure_hook_factory(_is_literal, _literal_hook)
    converter.register_structure_hook_factory(_is_list, _list_hook)
    converter.register_structure_hook_factory(attrs.has, _object_hook)
    return converter


_converter = _make_converter()


def structure(value: Any, kind: type[T], path: str = "") -> T:
    """A model of `kind` from plain JSON values, or ProtocolError with the path of the first fault. Unknown keys are ignored."""
    try:
        return _converter.structure(value, kind)
    except Exception as error:
        where, what = fault(error, path)
        raise ProtocolError(what, path=where) from None


def fault(error: BaseException, path: str = "") -> tuple[str, str]:
    """Path and meaning of the first fault in what cattrs raised."""
    while isinstance(error, cattrs.ClassValidationError | cattrs.IterableValidationError):
        noted, bare = error.group_exceptions()
        if not noted:
            error = bare[0]
            continue
        inner, note = noted[0]
        error = inner
        step = f"[{note.index}]" if isinstance(note, cattrs.IterableValidationNote) else f".{note.name}"
        path = (path + step).removeprefix(".")
    if isinstance(error, KeyError):  # the missing key is the last step of the path already
        return path, "is required"
    what = str(error) if isinstance(error, ValueError) else f"does not fit ({type(error).__name__})"
    if what.startswith((".", "[")):  # a hook named a place further down
        step, _, what = what.partition(": ")
        path = (path + step).removeprefix(".")
    return path, what


# ---------------------------------------------------------------- content parts and people, in and out


def part(value: Any) -> ContentPart:
    """A content part from itself, from a mapping or from a text; InvalidValueError for anything else."""
    return _part_at(value, "content")


def _part_at(value: Any, path: str) -> ContentPart:
    if isinstance(value, TextPart | ImagePart | DocumentPart):
        value = attrs.asdict(value)
    elif isinstance(value, str):
        return TextPart(clean(value))
    elif isinstance(value, Mapping):
        value = dict(value)
    try:
        return structure(value, ContentPart, path)  # type: ignore[arg-type]
    except ProtocolError as error:
        raise InvalidValueError(str(error)) from None


def parts(values: Iterable[Any]) -> list[ContentPart]:
    """Content parts from parts, mappings or texts; InvalidValueError for what is no list of them."""
    # A text and a mapping are iterable, but one of them is one part: read as a list it would fall into letters or keys.
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidValueError(f"content: expected a list of parts, got {type(values).__name__}")
    return [_part_at(value, f"content[{index}]") for index, value in enumerate(values)]


def plain_parts(content: Iterable[ContentPart]) -> list[dict[str, Any]]:
    """Content parts as they go on the wire and into storage: `type` first, nulls dropped."""
    return [
        {"type": one.type, "text": one.text}
        if type(one) is TextPart
        else {"type": one.type, **{k: v for k, v in attrs.asdict(one).items() if v is not None and k != "type"}}
        for one in content
    ]


def plain_user(person: User) -> dict[str, Any]:
    """A person as they go on the wire and into storage."""
    return {
        "user_id": person.user_id,
        "user_name": person.user_name,
        "user_email": person.user_email,
        "user_role": person.user_role,
        "identity_ids": list(person.identity_ids),
        "system_role": person.system_role,
        "organization_role": person.organization_role,
        "workspace_role": person.workspace_role,
    }


def user(value: Mapping[str, Any]) -> User:
    """The person that `plain_user` wrote."""
    return User(**{**value, "identity_ids": tuple(value.get("identity_ids", ()))})


def stored_parts(text: str) -> list[ContentPart]:
    """Content parts from the text of what `plain_parts` made of them. They were read strictly when they came in, so what is plainly
    text is only put together; everything else is read strictly again."""
    values = loads(text)
    made: list[ContentPart] = []
    try:
        for one in values:
            if one["type"] != "text" or type(one["text"]) is not str:
                return parts(values)
            made.append(TextPart(one["text"]))
    except (TypeError, KeyError):
        return parts(values)
    return made


def stored_user(text: str) -> User:
    """The person from the text of what `plain_user` wrote. The same few people write all of a thread, so they are remembered."""
    return _known_user(text) if len(text) <= _USUAL_USER else user(loads(text))


# What is remembered stays below a megabyte, whatever names people give themselves.
_USUAL_USER = 1000


@lru_cache(maxsize=512)
def _known_user(text: str) -> User:
    return user(loads(text))
