"""Threads as JSON lines: what `dooers export` writes and `dooers import` reads. The format only; docs/command-line.md is its description.

A head, then each thread with its runs and its events in order, then an end. Reading is strict: whatever does not fit is a Fault with the
path of the first thing that is wrong. A key that is not known is left alone, so a later version may say more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from attrs import Factory, frozen

from dooers.codec import decoded, dumps, plain_parts, plain_user, structure
from dooers.exceptions import InvalidValueError, ProtocolError, quoted
from dooers.models import Actor, ContentPart, EventType, Run, RunStatus, Thread, ThreadEvent, User, check_id

__all__ = ["VERSION", "End", "Fault", "Head", "Line", "read", "write"]

# Raised when a reader of the former version would misread a file.
VERSION = 1


class Fault(ValueError):
    """What is wrong with a line, with the path of it."""


@frozen
class Head:
    """The first line: when the export began."""

    exported_at: datetime


@frozen
class End:
    """The last line: what a file holds that is all there."""

    threads: int
    runs: int
    events: int


Line: TypeAlias = Head | Thread | Run | ThreadEvent | End


def write(line: Line) -> bytes:
    """A line, with its newline."""
    return dumps(_written(line)).encode() + b"\n"


def _written(line: Line) -> dict[str, Any]:
    match line:
        case Head():
            return {"kind": "dooers.export", "version": VERSION, "exported_at": line.exported_at.astimezone(UTC)}
        case Thread():
            return {"kind": "thread", **_plain(line, _ThreadLine), "owner": plain_user(line.owner)}
        case Run():
            return {"kind": "run", **_plain(line, _RunLine)}
        case ThreadEvent():
            who = None if line.user is None else plain_user(line.user)
            return {"kind": "event", **_plain(line, _EventLine), "user": who, "content": plain_parts(line.content)}
        case End():
            return {"kind": "end", "threads": line.threads, "runs": line.runs, "events": line.events}


def _plain(line: Thread | Run | ThreadEvent, kind: type) -> dict[str, Any]:
    values = {name: getattr(line, name) for name in kind.__annotations__}
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in values.items()}


def read(text: bytes) -> Line:
    """What a line says; Fault where it says nothing that is known here."""
    try:
        value = decoded(text)
    except ValueError:
        raise Fault("expected a JSON object, this is no JSON") from None
    if not isinstance(value, dict):
        raise Fault(f"expected a JSON object, got {quoted(value)}")
    kind = value.get("kind")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise Fault(f"kind: expected one of {', '.join(map(repr, _READERS))}, got {quoted(kind)}")
    try:
        return reader(value)  # type: ignore[no-any-return]
    except (ProtocolError, InvalidValueError) as error:
        raise Fault(str(error)) from None


# ---------------------------------------------------------------- as it stands in the file


@frozen
class _Person:
    user_id: str = ""
    user_name: str = ""
    user_email: str = ""
    user_role: str = ""
    identity_ids: list[str] = Factory(list)
    system_role: str = ""
    organization_role: str = ""
    workspace_role: str = ""


@frozen(kw_only=True)
class _ThreadLine:
    id: str
    worker_id: str
    organization_id: str
    workspace_id: str
    user_id: str
    owner: _Person
    title: str | None = None
    metadata: dict[str, Any] | None = None
    created_at: str
    updated_at: str
    last_event_at: str
    last_seq: int


@frozen(kw_only=True)
class _RunLine:
    id: str
    thread_id: str
    agent_id: str | None = None
    status: RunStatus
    started_at: str
    ended_at: str | None = None
    error: str | None = None
    process_id: str | None = None


@frozen(kw_only=True)
class _EventLine:
    id: str
    thread_id: str
    seq: int
    turn_seq: int
    type: EventType
    actor: Actor
    author: str | None = None
    user: _Person | None = None
    content: list[ContentPart]
    data: dict[str, Any] | None = None
    run_id: str | None = None
    client_event_id: str | None = None
    notice: bool = False
    created_at: str


@frozen
class _HeadLine:
    version: int
    exported_at: str


def _head(value: Mapping[str, Any]) -> Head:
    line = structure(value, _HeadLine)
    if line.version != VERSION:
        raise Fault(f"version: expected {VERSION}, got {line.version}: this was written by another version of dooers")
    return Head(_time(line.exported_at, "exported_at"))


def _end(value: Mapping[str, Any]) -> End:
    return structure(value, End)


def _thread(value: Mapping[str, Any]) -> Thread:
    line = structure(value, _ThreadLine)
    values = _values(line, "id", "worker_id", "organization_id", "workspace_id", "user_id")
    if line.last_seq < 0:
        raise Fault(f"last_seq: expected a number from 0, got {line.last_seq}")
    return Thread(**{**values, "owner": _person(line.owner)})


def _run(value: Mapping[str, Any]) -> Run:
    return Run(**_values(structure(value, _RunLine), "id", "thread_id"))


def _event(value: Mapping[str, Any]) -> ThreadEvent:
    line = structure(value, _EventLine)
    for name in ("seq", "turn_seq"):
        if getattr(line, name) < 1:
            raise Fault(f"{name}: expected a number from 1, got {getattr(line, name)}")
    who = None if line.user is None else _person(line.user)
    return ThreadEvent(**{**_values(line, "id", "thread_id"), "user": who})


def _values(line: Any, *ids: str) -> dict[str, Any]:
    values = {name: getattr(line, name) for name in type(line).__annotations__}
    for name in ids:
        check_id(values[name], name)
    if not values["id"]:
        raise Fault("id: expected a text that is not empty")
    for name, value in values.items():
        if name.endswith("_at") and value is not None:
            values[name] = _time(value, name)
    return values


def _person(line: _Person) -> User:
    return User(
        **{name: getattr(line, name) for name in _Person.__annotations__} | {"identity_ids": tuple(line.identity_ids)}
    )


def _time(text: str, path: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Fault(f"{path}: expected a time with its zone, as 2026-01-31T12:00:00Z, got {quoted(text)}")


_READERS: dict[str, Any] = {"dooers.export": _head, "thread": _thread, "run": _run, "event": _event, "end": _end}
