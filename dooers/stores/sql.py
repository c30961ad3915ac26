"""The SQL that all databases read by, and write settings by. How they write Changes is in `sql_sqlite.py` and `sql_postgres.py`.

Text and parameters only; connections are the stores' business. Parameters are named (`:name`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from dooers.codec import dumps
from dooers.exceptions import InvalidValueError
from dooers.models import EventQuery, RunQuery, Scope, ThreadQuery
from dooers.stores.rows import EVENT_COLUMNS, RUN_COLUMNS, SAID_COLUMNS, THREAD_COLUMNS, stamp
from dooers.stores.titles import pattern_of

__all__ = ["Statement", "Statements", "check_filter", "in_scope", "scope_values"]

Statement: TypeAlias = tuple[str, dict[str, Any]]

# How many numbers behind its message an event of a turn is found by the order of its thread. What the index of the others is of, so
# changed with a migration only.
NEAR = 100

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

    def list_said(self, query: EventQuery) -> Statement:
        """As `list_events`, of each event what a model reads."""
        return self.list_events(query, SAID_COLUMNS)

    def list_events(self, query: EventQuery, columns: str = EVENT_COLUMNS) -> Statement:
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
        if query.turn is None:
            text = f"SELECT {columns} FROM {self.events}{_and(where)}"
        else:
            text, values["turn"] = self._of_turn(where, columns), query.turn
        return f"{text} ORDER BY seq {way}{limit}", values

    def _of_turn(self, where: list[str], columns: str) -> str:
        """Nothing of a turn is before its message, and most of it is right behind. What is farther off has an index of its own: else
        all of a long thread would be looked at for what may still come."""
        # A bound that planners believe: seen by itself, a range of low numbers is most of the table.
        first = (
            f"SELECT * FROM {self.events} WHERE thread_id = :thread_id AND seq >= :turn ORDER BY seq LIMIT {NEAR + 1}"
        )
        near = _and([*where, "turn_seq = :turn", f"seq - turn_seq <= {NEAR}"])
        far = _and([*where, "turn_seq = :turn", f"seq - turn_seq > {NEAR}"])
        return f"SELECT {columns} FROM ({first}) AS near{near} UNION ALL SELECT {columns} FROM {self.events}{far}"

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


# What has an index of its own among runs.
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
