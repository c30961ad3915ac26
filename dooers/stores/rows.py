"""Rows and models: which columns there are, a model as the values of a row, a row as a model. No statements: those are in `sql.py`.

JSON is text on the way in and out, on every driver. Times are where databases differ: a text in SQLite, a native time in
PostgreSQL; `At` is what a store keeps one as.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias

from dooers.codec import dumps, loads, parts, plain_parts, plain_user, user
from dooers.models import Run, Thread, ThreadEvent, User

__all__ = [
    "EVENT_COLUMNS",
    "RUN_COLUMNS",
    "THREAD_COLUMNS",
    "At",
    "Row",
    "event_of",
    "event_row",
    "maybe_json",
    "moment",
    "run_of",
    "run_row",
    "stamp",
    "thread_of",
    "thread_row",
]

# A row as the driver gives it: sqlite3.Row or asyncpg.Record, both mappings in all but name.
Row: TypeAlias = Any
At: TypeAlias = Callable[[datetime], Any]

THREAD_COLUMNS = (
    "id, worker_id, organization_id, workspace_id, user_id, owner, title, metadata, "
    "created_at, updated_at, last_event_at, last_seq"
)
EVENT_COLUMNS = (
    "id, thread_id, seq, turn_seq, type, actor, author, user_id, sender, content, data, "
    "run_id, client_event_id, notice, created_at"
)
RUN_COLUMNS = "id, thread_id, agent_id, status, started_at, ended_at, error, process_id"


def stamp(at: datetime) -> str:
    """A time as SQLite keeps it: ISO 8601, UTC, always the same width, so that texts sort as times do."""
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(timespec="microseconds")


def maybe_json(value: Any) -> str | None:
    """A value as a JSON column keeps it; None is no value there, not the JSON word null."""
    return None if value is None else dumps(value)


def thread_row(thread: Thread, at: At) -> dict[str, Any]:
    return {
        "id": thread.id,
        "worker_id": thread.worker_id,
        "organization_id": thread.organization_id,
        "workspace_id": thread.workspace_id,
        "user_id": thread.user_id,
        "owner": dumps(plain_user(thread.owner)),
        "title": thread.title,
        "metadata": maybe_json(thread.metadata),
        "created_at": at(thread.created_at),
        "updated_at": at(thread.updated_at),
        "last_event_at": at(thread.last_event_at),
        "last_seq": thread.last_seq,
    }


def event_row(event: ThreadEvent, at: At) -> dict[str, Any]:
    return {
        "id": event.id,
        "thread_id": event.thread_id,
        "seq": event.seq,
        "turn_seq": event.turn_seq,
        "type": event.type,
        "actor": event.actor,
        "author": event.author,
        "user_id": event.user_id,
        "sender": None if event.user is None else dumps(plain_user(event.user)),
        "content": dumps(plain_parts(event.content)),
        "data": maybe_json(event.data),
        "run_id": event.run_id,
        "client_event_id": event.client_event_id,
        "notice": int(event.notice),
        "created_at": at(event.created_at),
    }


def run_row(run: Run, at: At) -> dict[str, Any]:
    return {
        "id": run.id,
        "thread_id": run.thread_id,
        "agent_id": run.agent_id,
        "status": run.status,
        "started_at": at(run.started_at),
        "ended_at": None if run.ended_at is None else at(run.ended_at),
        "error": run.error,
        "process_id": run.process_id,
    }


def moment(value: Any) -> datetime:
    """A time as a driver gives it: the text that `stamp` made, or a time already."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


@lru_cache(maxsize=1024)
def _person(text: str) -> User:
    """The same few people own what is written all day."""
    return user(loads(text))


def thread_of(row: Row) -> Thread:
    values = dict(row)
    values["owner"] = _person(values["owner"])
    values["metadata"] = None if values["metadata"] is None else loads(values["metadata"])
    for name in ("created_at", "updated_at", "last_event_at"):
        values[name] = moment(values[name])
    return Thread(**values)


def event_of(row: Row) -> ThreadEvent:
    values = dict(row)
    del values["user_id"]
    sender = values.pop("sender")
    values["user"] = None if sender is None else user(loads(sender))
    values["content"] = parts(loads(values["content"]))
    values["data"] = None if values["data"] is None else loads(values["data"])
    values["created_at"] = moment(values["created_at"])
    values["notice"] = bool(values["notice"])
    return ThreadEvent(**values)


def run_of(row: Row) -> Run:
    values = dict(row)
    values["started_at"] = moment(values["started_at"])
    values["ended_at"] = None if values["ended_at"] is None else moment(values["ended_at"])
    return Run(**values)
