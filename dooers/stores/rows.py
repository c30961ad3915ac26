"""Rows and models: which columns there are, a model as the values of a row, a row as a model. No statements: those are in `sql.py`.

JSON is text on the way in and out, on every driver. Times are where databases differ: a text in SQLite, a native time in
PostgreSQL; `At` is what a store keeps one as. A row is read by place, not by name: that is half of what reading it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeAlias

from dooers.codec import dumps, loads, plain_parts, plain_user, stored_parts, stored_user
from dooers.history import Said
from dooers.models import Run, Thread, ThreadEvent

__all__ = [
    "EVENT_COLUMNS",
    "RUN_COLUMNS",
    "SAID_COLUMNS",
    "THREAD_COLUMNS",
    "At",
    "Row",
    "event_of",
    "event_row",
    "maybe_json",
    "moment",
    "run_of",
    "run_row",
    "said_of",
    "stamp",
    "thread_of",
    "thread_row",
]

# A row as the driver gives it, sqlite3.Row or asyncpg.Record, which are sequences and mappings in all but name; or a dict of it.
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
# Of an event only what models read: to read a row costs as much as it has columns.
SAID_COLUMNS = "actor, content, seq, turn_seq"
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


def _values(row: Row, columns: tuple[str, ...]) -> Iterable[Any]:
    """A row by place. What a document database gives has its names in any order, and lacks those that came later."""
    return map(row.get, columns) if isinstance(row, dict) else row


def thread_of(row: Row) -> Thread:
    """The thread of a row that begins with `THREAD_COLUMNS`."""
    id, worker, organization, workspace, user_id, owner, title, metadata, created, updated, last, seq, *_ = _values(
        row, _OF_THREAD
    )
    return Thread(
        id=id,
        worker_id=worker,
        organization_id=organization,
        workspace_id=workspace,
        user_id=user_id,
        owner=stored_user(owner),
        title=title,
        metadata=None if metadata is None else loads(metadata),
        created_at=moment(created),
        updated_at=moment(updated),
        last_event_at=moment(last),
        last_seq=seq,
    )


def event_of(row: Row) -> ThreadEvent:
    """The event of a row that begins with `EVENT_COLUMNS`."""
    id, thread_id, seq, turn, type, actor, author, _, sender, content, data, run_id, key, notice, created, *_ = _values(
        row, _OF_EVENT
    )
    return ThreadEvent(
        id=id,
        thread_id=thread_id,
        type=type,
        actor=actor,
        created_at=moment(created),
        author=author,
        user=None if sender is None else stored_user(sender),
        content=stored_parts(content),
        data=None if data is None else loads(data),
        run_id=run_id,
        client_event_id=key,
        notice=bool(notice),
        seq=seq,
        turn_seq=turn,
    )


def said_of(row: Row) -> Said:
    """What a model reads of a row that is `SAID_COLUMNS`."""
    actor, content, seq, turn = row
    return Said(actor, stored_parts(content), seq, turn)


def run_of(row: Row) -> Run:
    """The run of a row that begins with `RUN_COLUMNS`."""
    id, thread_id, agent_id, status, started, ended, error, process_id, *_ = _values(row, _OF_RUN)
    return Run(
        id=id,
        thread_id=thread_id,
        agent_id=agent_id,
        status=status,
        started_at=moment(started),
        ended_at=None if ended is None else moment(ended),
        error=error,
        process_id=process_id,
    )


_OF_THREAD, _OF_EVENT, _OF_RUN = (
    tuple(columns.split(", ")) for columns in (THREAD_COLUMNS, EVENT_COLUMNS, RUN_COLUMNS)
)
