"""The SQL of this package, all of it: tables, statements, rows to models. Text and parameters only; connections are the stores' business.

Parameters are named (`:name`). Columns are set one by one in the statement that needs it: no row is ever read, changed in
Python and written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from dooers.codec import dumps, loads, parts, plain_parts, plain_user, user
from dooers.exceptions import InvalidValueError
from dooers.models import Change, EventQuery, Run, RunQuery, Scope, Thread, ThreadEvent, ThreadQuery

__all__ = ["Statement", "Statements", "event_of", "run_of", "thread_of"]

Statement: TypeAlias = tuple[str, dict[str, Any]]
# A row as the driver gives it: sqlite3.Row or asyncpg.Record, both mappings in all but name.
Row: TypeAlias = Any

THREAD_COLUMNS = (
    "id, worker_id, organization_id, workspace_id, user_id, owner, title, metadata, "
    "created_at, updated_at, last_event_at, last_seq"
)
EVENT_COLUMNS = (
    "id, thread_id, seq, turn_seq, type, actor, author, user_id, sender, content, data, "
    "run_id, client_event_id, notice, created_at"
)
RUN_COLUMNS = "id, thread_id, agent_id, status, started_at, ended_at, error"

# What may be compared in a filter; anything else in a filter is a mistake, or an attempt.
COMPARABLE = {
    "threads": ("id", "worker_id", "organization_id", "workspace_id", "user_id", "title"),
    "events": ("id", "type", "actor", "author", "user_id", "run_id", "client_event_id"),
    "runs": ("id", "thread_id", "agent_id", "status", "worker_id"),
}


# NULL: any thread of this id.
_EXACT = "(:made_at IS NULL OR created_at = :made_at)"


def _named(columns: str) -> str:
    return ", ".join(f":{name.strip()}" for name in columns.split(","))


class Statements:
    """The statements for one table prefix. The prefix was validated with the config; nothing else is ever put into the text."""

    def __init__(self, prefix: str) -> None:
        self.threads, self.events, self.runs = f"{prefix}threads", f"{prefix}events", f"{prefix}runs"
        self.settings, self.version = f"{prefix}settings", f"{prefix}schema_version"
        # One statement opens a thread, or appends to it if it is there and lies in the guard's scope: no row comes back if not.
        self._open = (
            f"INSERT INTO {self.threads} ({THREAD_COLUMNS}) VALUES ({_named(THREAD_COLUMNS)}) "
            f"ON CONFLICT (id) DO UPDATE SET last_seq = {self.threads}.last_seq + :count, "
            f"last_event_at = excluded.last_event_at, updated_at = excluded.updated_at "
            f"WHERE {_in_scope(self.threads + '.')} RETURNING {THREAD_COLUMNS}"
        )
        self._append = (
            f"UPDATE {self.threads} SET last_seq = last_seq + :count, last_event_at = :at, updated_at = :at "
            f"WHERE id = :id AND {_EXACT} AND {_in_scope('')} RETURNING {THREAD_COLUMNS}"
        )
        self._add_event = (
            f"INSERT INTO {self.events} ({EVENT_COLUMNS}, repeat_key) VALUES ({_named(EVENT_COLUMNS)}, :repeat_key)"
        )
        # A run that has ended stays ended, whoever comes late.
        self._put_run = (
            f"INSERT INTO {self.runs} ({RUN_COLUMNS}) VALUES ({_named(RUN_COLUMNS)}) ON CONFLICT (id) DO UPDATE SET "
            f"status = excluded.status, ended_at = excluded.ended_at, error = excluded.error "
            f"WHERE {self.runs}.status = 'running'"
        )

    # ------------------------------------------------------------ writing

    def append(self, change: Change) -> Statement:
        """Take numbers for the change's events, opening the thread where the change may. Returns the thread, or no row."""
        scope, count = _scope_values(change.guard), len(change.events)
        at = stamp(change.events[-1].created_at if change.events else change.thread.updated_at)
        if change.opens:
            times = {"last_event_at": at, "updated_at": at} if change.events else {}
            return self._open, {**thread_row(change.thread), **times, "last_seq": count, "count": count, **scope}
        made_at = stamp(change.thread.created_at) if change.exact else None
        return self._append, {"id": change.thread.id, "made_at": made_at, "count": count, "at": at, **scope}

    def patch(self, thread: Thread, patch: Mapping[str, Any], guard: Scope | None) -> Statement:
        """Set some columns of a thread. Returns the thread, or no row."""
        values = {name: _PATCH[name](value) for name, value in patch.items()}
        sets = ", ".join(f"{name} = :{name}" for name in values)
        return (
            f"UPDATE {self.threads} SET {sets} WHERE id = :id AND {_EXACT} AND {_in_scope('')} "
            f"RETURNING {THREAD_COLUMNS}",
            {**values, "id": thread.id, "made_at": stamp(thread.created_at), **_scope_values(guard)},
        )

    def add_event(self, event: ThreadEvent, repeat_key: str | None) -> Statement:
        return self._add_event, {**event_row(event), "repeat_key": repeat_key}

    def put_run(self, run: Run) -> Statement:
        return self._put_run, run_row(run)

    def remove_thread(self, thread_id: str, guard: Scope | None) -> Statement:
        """Delete a thread; its events and runs go with it by foreign key. Returns it, or no row."""
        return (
            f"DELETE FROM {self.threads} WHERE id = :id AND {_in_scope('')} RETURNING {THREAD_COLUMNS}",
            {"id": thread_id, **_scope_values(guard)},
        )

    def remove_event(self, event_id: str) -> Statement:
        return f"DELETE FROM {self.events} WHERE id = :id", {"id": event_id}

    def put_setting(self, worker_id: str, field_id: str, value: Any, at: datetime) -> Statement:
        return (
            f"INSERT INTO {self.settings} (worker_id, field_id, value, updated_at) "
            f"VALUES (:worker_id, :field_id, :value, :at) ON CONFLICT (worker_id, field_id) "
            f"DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            {"worker_id": worker_id, "field_id": field_id, "value": dumps(value), "at": stamp(at)},
        )

    def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> Statement:
        """Replace a value that is still the one given. Returns its field, or no row."""
        return (
            f"UPDATE {self.settings} SET value = :value "
            f"WHERE worker_id = :worker_id AND field_id = :field_id AND value = :was RETURNING field_id",
            {"worker_id": worker_id, "field_id": field_id, "was": dumps(was), "value": dumps(value)},
        )

    # ------------------------------------------------------------ reading

    def thread(self, thread_id: str) -> Statement:
        return f"SELECT {THREAD_COLUMNS} FROM {self.threads} WHERE id = :id", {"id": thread_id}

    def list_threads(self, query: ThreadQuery) -> Statement:
        where, values = _where("threads", query.equal)
        if query.before is not None:
            where.append("(last_event_at, id) < (:before_at, :before_id)")
            values.update(before_at=stamp(query.before[0]), before_id=query.before[1])
        way = "ASC" if query.oldest_first else "DESC"
        return (
            f"SELECT {THREAD_COLUMNS} FROM {self.threads}{_and(where)} "
            f"ORDER BY last_event_at {way}, id {way} LIMIT :limit",
            {**values, "limit": query.limit},
        )

    def count_threads(self, equal: Mapping[str, str]) -> Statement:
        where, values = _where("threads", equal)
        return f"SELECT count(*) AS total FROM {self.threads}{_and(where)}", values

    def event(self, event_id: str) -> Statement:
        return f"SELECT {EVENT_COLUMNS} FROM {self.events} WHERE id = :id", {"id": event_id}

    def event_by_key(self, repeat_key: str) -> Statement:
        return f"SELECT {EVENT_COLUMNS} FROM {self.events} WHERE repeat_key = :key", {"key": repeat_key}

    def list_events(self, query: EventQuery) -> Statement:
        """The newest `limit`, newest first (the oldest, oldest first, with `oldest_first`)."""
        where, values = _where("events", query.equal)
        where.insert(0, "thread_id = :thread_id")
        values["thread_id"] = query.thread_id
        for name, test in _EVENT_TESTS.items():
            if (value := getattr(query, name)) is not None:
                where.append(test)
                values[name] = value
        if query.for_model:
            where.append("type = 'message' AND notice = 0")
        limit = "" if query.limit is None else " LIMIT :limit"
        if query.limit is not None:
            values["limit"] = query.limit
        way = "ASC" if query.oldest_first else "DESC"
        return f"SELECT {EVENT_COLUMNS} FROM {self.events}{_and(where)} ORDER BY seq {way}{limit}", values

    def seq_of(self, thread_id: str, event_id: str) -> Statement:
        return (
            f"SELECT seq FROM {self.events} WHERE id = :id AND thread_id = :thread_id",
            {"id": event_id, "thread_id": thread_id},
        )

    def run(self, run_id: str) -> Statement:
        return f"SELECT {RUN_COLUMNS} FROM {self.runs} WHERE id = :id", {"id": run_id}

    def list_runs(self, query: RunQuery) -> Statement:
        check_filter("runs", query.equal)
        where, values = _where("runs", {k: v for k, v in query.equal.items() if k != "worker_id"})
        if "worker_id" in query.equal:
            where.append(f"thread_id IN (SELECT id FROM {self.threads} WHERE worker_id = :worker_id)")
            values["worker_id"] = query.equal["worker_id"]
        way = "ASC" if query.oldest_first else "DESC"
        return (
            f"SELECT {RUN_COLUMNS} FROM {self.runs}{_and(where)} ORDER BY started_at {way}, id {way} LIMIT :limit",
            {**values, "limit": query.limit},
        )

    def list_settings(self, worker_id: str) -> Statement:
        return (
            f"SELECT field_id, value, updated_at FROM {self.settings} WHERE worker_id = :worker_id",
            {"worker_id": worker_id},
        )

    def list_configured(self) -> Statement:
        return f"SELECT DISTINCT worker_id FROM {self.settings}", {}


_EVENT_TESTS = {
    "after_seq": "seq > :after_seq",
    "before_seq": "seq < :before_seq",
    "until_turn": "turn_seq <= :until_turn",
    "turn": "turn_seq = :turn",
}


def _in_scope(table: str) -> str:
    """True for a row in the scope; a scope column of NULL compares with nothing. `access.visible` is the same rule in Python."""
    return (
        f"(:scope_worker IS NULL OR ({table}worker_id = :scope_worker AND {table}organization_id = :scope_organization "
        f"AND {table}workspace_id = :scope_workspace "
        f"AND (:scope_user IS NULL OR ({table}user_id = :scope_user AND :scope_user <> ''))))"
    )


def _scope_values(guard: Scope | None) -> dict[str, str | None]:
    return {
        "scope_worker": guard.worker_id if guard else None,
        "scope_organization": guard.organization_id if guard else None,
        "scope_workspace": guard.workspace_id if guard else None,
        "scope_user": guard.user_id if guard else None,
    }


def _where(table: str, equal: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    check_filter(table, equal)
    return [f"{name} = :{name}" for name in equal], dict(equal)


def check_filter(table: str, equal: Mapping[str, Any]) -> None:
    """Raise InvalidValueError for a filter on something that cannot be compared."""
    for name, value in equal.items():
        if name not in COMPARABLE[table]:
            raise InvalidValueError(f"filter: expected any of {', '.join(COMPARABLE[table])}, got {name!r}")
        if not isinstance(value, str):
            raise InvalidValueError(f"filter[{name!r}]: expected a text, got {value!r}")


def _and(where: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(where)}" if where else ""


# ---------------------------------------------------------------- rows and models


def stamp(at: datetime) -> str:
    """A time as SQLite keeps it: ISO 8601, UTC, always the same width, so that texts sort as times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _maybe_stamp(at: datetime | None) -> str | None:
    return None if at is None else stamp(at)


def _maybe_json(value: Any) -> str | None:
    return None if value is None else dumps(value)


_PATCH: dict[str, Any] = {"title": lambda value: value, "metadata": _maybe_json, "updated_at": stamp}


def thread_row(thread: Thread) -> dict[str, Any]:
    return {
        "id": thread.id,
        "worker_id": thread.worker_id,
        "organization_id": thread.organization_id,
        "workspace_id": thread.workspace_id,
        "user_id": thread.user_id,
        "owner": dumps(plain_user(thread.owner)),
        "title": thread.title,
        "metadata": _maybe_json(thread.metadata),
        "created_at": stamp(thread.created_at),
        "updated_at": stamp(thread.updated_at),
        "last_event_at": stamp(thread.last_event_at),
        "last_seq": thread.last_seq,
    }


def event_row(event: ThreadEvent) -> dict[str, Any]:
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
        "data": _maybe_json(event.data),
        "run_id": event.run_id,
        "client_event_id": event.client_event_id,
        "notice": int(event.notice),
        "created_at": stamp(event.created_at),
    }


def run_row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "thread_id": run.thread_id,
        "agent_id": run.agent_id,
        "status": run.status,
        "started_at": stamp(run.started_at),
        "ended_at": _maybe_stamp(run.ended_at),
        "error": run.error,
    }


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def thread_of(row: Row) -> Thread:
    values = dict(row)
    values["owner"] = user(loads(values["owner"]))
    values["metadata"] = None if values["metadata"] is None else loads(values["metadata"])
    for name in ("created_at", "updated_at", "last_event_at"):
        values[name] = _time(values[name])
    return Thread(**values)


def event_of(row: Row) -> ThreadEvent:
    values = dict(row)
    del values["user_id"]
    sender = values.pop("sender")
    values["user"] = None if sender is None else user(loads(sender))
    values["content"] = parts(loads(values["content"]))
    values["data"] = None if values["data"] is None else loads(values["data"])
    values["created_at"] = _time(values["created_at"])
    values["notice"] = bool(values["notice"])
    return ThreadEvent(**values)


def run_of(row: Row) -> Run:
    values = dict(row)
    values["started_at"] = _time(values["started_at"])
    values["ended_at"] = None if values["ended_at"] is None else _time(values["ended_at"])
    return Run(**values)
