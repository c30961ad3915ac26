"""The SQL of this package: what all databases read by, and how SQLite writes. How PostgreSQL writes is in `sql_postgres.py`.

Text and parameters only; connections are the stores' business. Parameters are named (`:name`). Columns are set one by one in
the statement that needs it: no row is ever read, changed in Python and written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from dooers.codec import dumps
from dooers.exceptions import InvalidValueError
from dooers.models import Change, EventQuery, Run, RunQuery, Scope, Thread, ThreadEvent, ThreadQuery
from dooers.stores.rows import (
    EVENT_COLUMNS,
    RUN_COLUMNS,
    THREAD_COLUMNS,
    event_row,
    maybe_json,
    run_row,
    stamp,
    thread_row,
)
from dooers.stores.titles import pattern_of

__all__ = ["SqliteStatements", "Statement", "Statements", "check_filter", "in_scope", "scope_values"]

Statement: TypeAlias = tuple[str, dict[str, Any]]

# How many numbers behind its message an event of a turn is found by the order of its thread. What the index of the others is of, so
# changed with a migration only.
NEAR = 1000

# What may be compared in a filter; anything else in a filter is a mistake, or an attempt.
COMPARABLE = {
    "threads": ("id", "worker_id", "organization_id", "workspace_id", "user_id", "title"),
    "events": ("id", "type", "actor", "author", "user_id", "run_id", "client_event_id"),
    "runs": ("id", "thread_id", "agent_id", "status", "worker_id"),
}


class Statements:
    """The statements for one table prefix. The prefix was validated with the config; nothing else is ever put into the text."""

    # Whether a title has in it what `titles.pattern_of` looks for.
    contains = "title ~ :pattern"

    def __init__(self, prefix: str) -> None:
        # Quoted, so that a prefix in mixed case is the same name here and in the scripts that make the tables.
        self.threads, self.events, self.runs = f'"{prefix}threads"', f'"{prefix}events"', f'"{prefix}runs"'
        self.settings, self.version = f'"{prefix}settings"', f'"{prefix}schema_version"'

    def at(self, moment: datetime) -> Any:
        """What a time is kept as."""
        return stamp(moment)

    # ------------------------------------------------------------ reading

    def thread(self, thread_id: str) -> Statement:
        return f"SELECT {THREAD_COLUMNS} FROM {self.threads} WHERE id = :id", {"id": thread_id}

    def list_threads(self, query: ThreadQuery) -> Statement:
        where, values = self._among(query)
        if query.containing:
            where.append(self.contains)
            values["pattern"] = pattern_of(query.containing)
        text = f"SELECT {THREAD_COLUMNS} FROM {self.threads}{_and(where)} {_by_activity(query)} LIMIT :limit"
        return text, {**values, "limit": query.limit}

    def reach(self, query: ThreadQuery, rows: int) -> Statement:
        """The place of that row, by the index alone."""
        where, values = self._among(query)
        text = f"SELECT last_event_at, id FROM {self.threads}{_and(where)} {_by_activity(query)} LIMIT 1 OFFSET :rows"
        return text, {**values, "rows": rows - 1}

    def _among(self, query: ThreadQuery) -> tuple[list[str], dict[str, Any]]:
        where, values = _where("threads", query.equal)
        for name, test, place in (("before", "<", query.before), ("until", ">=", query.until)):
            if place is not None:
                where.append(f"(last_event_at, id) {test} (:{name}_at, :{name}_id)")
                values |= {f"{name}_at": self.at(place[0]), f"{name}_id": place[1]}
        return where, values

    def count_threads(self, equal: Mapping[str, str], at_most: int, containing: str | None = None) -> Statement:
        where, values = _where("threads", equal)
        values["at_most"] = at_most
        if not containing:
            few = f"SELECT 1 AS one FROM {self.threads}{_and(where)} LIMIT :at_most"
            return f"SELECT count(*) AS total FROM ({few}) AS few", values
        few = f"SELECT title FROM {self.threads}{_and(where)} {_by_activity(ThreadQuery())} LIMIT :at_most"
        values["pattern"] = pattern_of(containing)
        return f"SELECT count(*) AS total FROM ({few}) AS few WHERE {self.contains}", values

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
        wheres = [where]
        if query.turn is not None:
            # Nothing of a turn is before its message, and most of it right behind. What is farther off has an index of its own: else
            # all of a long thread would be looked at for what may still come.
            near = f"turn_seq = :turn AND seq >= :turn AND seq <= :turn + {NEAR}"
            wheres = [[*where, near], [*where, f"turn_seq = :turn AND seq - turn_seq > {NEAR}"]]
            values["turn"] = query.turn
        limit = "" if query.limit is None else " LIMIT :limit"
        if query.limit is not None:
            values["limit"] = query.limit
        way = "ASC" if query.oldest_first else "DESC"
        text = " UNION ALL ".join(f"SELECT {EVENT_COLUMNS} FROM {self.events}{_and(one)}" for one in wheres)
        return f"{text} ORDER BY seq {way}{limit}", values

    def seq_of(self, thread_id: str, event_id: str) -> Statement:
        return (
            f"SELECT seq FROM {self.events} WHERE id = :id AND thread_id = :thread_id",
            {"id": event_id, "thread_id": thread_id},
        )

    def run(self, run_id: str) -> Statement:
        return f"SELECT {RUN_COLUMNS} FROM {self.runs} WHERE id = :id", {"id": run_id}

    def list_runs(self, query: RunQuery) -> Statement:
        check_filter("runs", query.equal)
        status = query.equal.get("status")
        apart = {"worker_id", "status"} if status in _INDEXED else {"worker_id"}
        where, values = _where("runs", {k: v for k, v in query.equal.items() if k not in apart})
        if status in _INDEXED:
            where.append(f"status = '{status}'")  # written out, as their index is only for them
        if "worker_id" in query.equal:
            where.append(f"thread_id IN (SELECT id FROM {self.threads} WHERE worker_id = :worker_id)")
            values["worker_id"] = query.equal["worker_id"]
        if query.before is not None:
            where.append("(started_at, id) < (:before_at, :before_id)")
            values.update(before_at=self.at(query.before[0]), before_id=query.before[1])
        way = "ASC" if query.oldest_first else "DESC"
        return (
            f"SELECT {RUN_COLUMNS} FROM {self.runs}{_and(where)} ORDER BY started_at {way}, id {way} LIMIT :limit",
            {**values, "limit": query.limit},
        )

    def silent(self, before: datetime) -> Statement:
        """The runs of dead processes."""
        return (
            f"SELECT {RUN_COLUMNS} FROM {self.runs} WHERE status = 'running' AND beat_at < :before",
            {"before": self.at(before)},
        )

    def list_settings(self, worker_id: str) -> Statement:
        return (
            f"SELECT field_id, value, updated_at FROM {self.settings} WHERE worker_id = :worker_id",
            {"worker_id": worker_id},
        )

    def configured(self) -> Statement:
        return f"SELECT DISTINCT worker_id FROM {self.settings}", {}

    # ------------------------------------------------------------ writing

    def beat(self, process_id: str, at: datetime) -> Statement:
        return (
            f"UPDATE {self.runs} SET beat_at = :at WHERE status = 'running' AND process_id = :process_id",
            {"process_id": process_id, "at": self.at(at)},
        )

    def remove_event(self, event_id: str) -> Statement:
        return f"DELETE FROM {self.events} WHERE id = :id", {"id": event_id}

    def put_setting(self, worker_id: str, field_id: str, value: Any, at: datetime) -> Statement:
        return (
            f"INSERT INTO {self.settings} (worker_id, field_id, value, updated_at) "
            f"VALUES (:worker_id, :field_id, :value, :at) ON CONFLICT (worker_id, field_id) "
            f"DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            {"worker_id": worker_id, "field_id": field_id, "value": dumps(value), "at": self.at(at)},
        )

    def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> Statement:
        """Set a field that is still `was`. Returns a row if it was."""
        return (
            f"UPDATE {self.settings} SET value = :value "
            f"WHERE worker_id = :worker_id AND field_id = :field_id AND value = :was RETURNING field_id",
            {"worker_id": worker_id, "field_id": field_id, "was": dumps(was), "value": dumps(value)},
        )


class SqliteStatements(Statements):
    """How SQLite writes a Change: a statement for each of its parts, run inside one transaction."""

    contains = "title REGEXP :pattern"

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        # One statement opens a thread, or appends to it if it is there and lies in the guard's scope: no row comes back if not.
        self._open = (
            f"INSERT INTO {self.threads} ({THREAD_COLUMNS}) VALUES ({_named(THREAD_COLUMNS)}) "
            f"ON CONFLICT (id) DO UPDATE SET last_seq = {self.threads}.last_seq + :count, "
            f"last_event_at = excluded.last_event_at, updated_at = excluded.updated_at "
            f"WHERE {in_scope(self.threads + '.')} RETURNING {THREAD_COLUMNS}"
        )
        self._append = (
            f"UPDATE {self.threads} SET last_seq = last_seq + :count, last_event_at = :at, updated_at = :at "
            f"WHERE id = :id AND {_EXACT} AND {in_scope('')} RETURNING {THREAD_COLUMNS}"
        )
        self._add_event = (
            f"INSERT INTO {self.events} ({EVENT_COLUMNS}, repeat_key) VALUES ({_named(EVENT_COLUMNS)}, :repeat_key)"
        )
        # A run that has ended stays ended, whoever comes late.
        self._put_run = (
            f"INSERT INTO {self.runs} ({RUN_COLUMNS}, beat_at) VALUES ({_named(RUN_COLUMNS)}, :started_at) "
            f"ON CONFLICT (id) DO UPDATE SET "
            f"status = excluded.status, ended_at = excluded.ended_at, error = excluded.error "
            f"WHERE {self.runs}.status = 'running'"
        )

    def append(self, change: Change) -> Statement:
        """Take numbers for the change's events, opening the thread where the change may. Returns the thread, or no row."""
        scope, count = scope_values(change.guard), change.takes
        at = stamp(change.events[-1].created_at if change.events else change.thread.updated_at)
        if change.opens:
            times = {"last_event_at": at, "updated_at": at} if change.events else {}
            return self._open, {**thread_row(change.thread, stamp), **times, "last_seq": count, "count": count, **scope}
        made_at = stamp(change.thread.created_at) if change.exact else None
        return self._append, {"id": change.thread.id, "made_at": made_at, "count": count, "at": at, **scope}

    def patch(self, thread: Thread, change: Change) -> Statement:
        """Set the columns of the thread that a Change names. Returns the thread, or no row."""
        patch, made_at = change.patch, stamp(thread.created_at) if change.exact else None
        values = {name: _PATCH[name](value) for name, value in patch.items()}
        sets = ", ".join(f"{name} = :{name}" for name in values)
        return (
            f"UPDATE {self.threads} SET {sets} WHERE id = :id AND {_EXACT} AND {in_scope('')} "
            f"RETURNING {THREAD_COLUMNS}",
            {**values, "id": thread.id, "made_at": made_at, **scope_values(change.guard)},
        )

    def add_event(self, event: ThreadEvent, repeat_key: str | None) -> Statement:
        return self._add_event, {**event_row(event, stamp), "repeat_key": repeat_key}

    def put_run(self, run: Run) -> Statement:
        return self._put_run, run_row(run, stamp)

    def remove_thread(self, thread_id: str, guard: Scope | None) -> Statement:
        """Delete a thread; its events and runs go with it by foreign key. Returns it, or no row."""
        return (
            f"DELETE FROM {self.threads} WHERE id = :id AND {in_scope('')} RETURNING {THREAD_COLUMNS}",
            {"id": thread_id, **scope_values(guard)},
        )


# NULL: any thread of this id.
_EXACT = "(:made_at IS NULL OR created_at = :made_at)"


def _named(columns: str) -> str:
    return ", ".join(f":{name.strip()}" for name in columns.split(","))


_PATCH: dict[str, Any] = {
    "title": lambda value: value,
    "metadata": maybe_json,
    "updated_at": stamp,
    "last_event_at": stamp,
}


_INDEXED = ("running", "failed")
_EVENT_TESTS = {
    "after_seq": "seq > :after_seq",
    "before_seq": "seq < :before_seq",
    "until_turn": "turn_seq <= :until_turn",
}


def in_scope(table: str) -> str:
    """True for a row in the scope; a scope column of NULL compares with nothing. `access.visible` is the same rule in Python.

    PostgreSQL wants to be told what a NULL is a NULL of, hence the casts.
    """
    return (
        f"(CAST(:scope_worker AS TEXT) IS NULL OR ({table}worker_id = :scope_worker AND {table}organization_id = :scope_organization "
        f"AND {table}workspace_id = :scope_workspace "
        f"AND (CAST(:scope_user AS TEXT) IS NULL OR ({table}user_id = :scope_user AND :scope_user <> ''))))"
    )


def scope_values(guard: Scope | None) -> dict[str, str | None]:
    return {
        "scope_worker": guard.worker_id if guard else None,
        "scope_organization": guard.organization_id if guard else None,
        "scope_workspace": guard.workspace_id if guard else None,
        "scope_user": guard.user_id if guard else None,
    }


def _by_activity(query: ThreadQuery) -> str:
    way = "ASC" if query.oldest_first else "DESC"
    return f"ORDER BY last_event_at {way}, id {way}"


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
