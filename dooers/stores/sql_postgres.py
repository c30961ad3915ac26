"""How PostgreSQL writes Changes: all that waits for one thread in a single statement, so in one round trip and one transaction.

The statement's first part finds or makes the thread's row, in scope, and holds it; everything else hangs on that row, so
without it nothing is written. `mergeable` says which Changes may share a statement. Text and parameters only, as in `sql.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeAlias

from attrs import evolve

from dooers.access import visible
from dooers.codec import dumps, plain_parts, plain_user
from dooers.models import Change, EventQuery, Run, RunQuery
from dooers.stores.rows import EVENT_COLUMNS, RUN_COLUMNS, THREAD_COLUMNS, maybe_json, run_row, thread_row
from dooers.stores.sql import Statement, Statements, in_scope, scope_values
from dooers.turn import begins, ends

__all__ = ["Beside", "PostgresStatements", "creates", "mergeable"]

# What else is to happen in the very statement that writes these Changes, if they are written: an SQL expression such as
# `pg_notify(:channel, :payload)` with its values; the text is to be the same each time, as it is prepared. None: nothing else.
# Left when it is known what became of them.
Beside: TypeAlias = Callable[[Sequence[Change]], AbstractContextManager[Statement | None]]

_TYPES = {
    "owner": "JSONB",
    "metadata": "JSONB",
    "created_at": "TIMESTAMPTZ",
    "updated_at": "TIMESTAMPTZ",
    "last_event_at": "TIMESTAMPTZ",
    "last_seq": "BIGINT",
}
_EVENT = (
    "n INT, id TEXT, turn_seq BIGINT, type TEXT, actor TEXT, author TEXT, user_id TEXT, sender JSONB, content JSONB, "
    "data JSONB, run_id TEXT, client_event_id TEXT, notice SMALLINT, created_at TIMESTAMPTZ, repeat_key TEXT"
)
_RUN = (
    "id TEXT, thread_id TEXT, agent_id TEXT, status TEXT, started_at TIMESTAMPTZ, ended_at TIMESTAMPTZ, error TEXT, "
    "process_id TEXT"
)
_PATCH: dict[str, Callable[[Any], Any]] = {
    "title": lambda v: v,
    "metadata": maybe_json,
    "updated_at": lambda v: v,
    "last_event_at": lambda v: v,
}


def creates(change: Change) -> bool:
    """Whether a Change makes its thread where there is none. One outside its own guard may only append."""
    return change.opens and (change.guard is None or visible(change.thread, change.guard))


def mergeable(change: Change, then: Change) -> bool:
    """Whether two Changes of one thread find their row, or do not, in the same way, so that a statement may write one after the other."""
    return not (_alone(change) or _alone(then) or ends(change)) and _found_by(change) == _found_by(then)


def _found_by(change: Change) -> tuple[Any, ...]:
    return change.guard, _made_at(change), change.during


def _alone(change: Change) -> bool:
    return change.opens or change.removes or change.repeat_key is not None


def _made_at(change: Change) -> datetime | None:
    return change.thread.created_at if change.exact and not change.opens else None


class PostgresStatements(Statements):
    """Times are native here, and a Change, or several, is one statement that returns the thread's row.

    It is the row as it was before them, or with `creates` as it is after. No row: there is no such thread, or it was a repeat.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        # Texts by what is in them: each is prepared once a connection, and a turn uses a handful.
        self._texts: dict[Any, str] = {}

    def at(self, moment: datetime) -> Any:
        return moment

    def events_by_id(self, event_ids: list[str]) -> Statement:
        return f"SELECT {EVENT_COLUMNS} FROM {self.events} WHERE id = ANY(:ids)", {"ids": event_ids}

    def view(self, query: EventQuery, runs: RunQuery) -> Statement:
        """Events, and beside them one row with their thread and its runs: what one statement reads is of one instant, without a
        transaction around it."""
        text, values = self.list_events(query)
        running, more = self.list_runs(runs)
        running = running.replace(":limit", ":most_runs")
        nothing = ", ".join(f"NULL AS {name}" for name in EVENT_COLUMNS.split(", "))
        return (
            f"SELECT {nothing}, ROW({THREAD_COLUMNS}) AS thread, "
            f"ARRAY(SELECT ROW({RUN_COLUMNS}) FROM ({running}) AS r) AS runs FROM {self.threads} WHERE id = :thread_id "
            f"UNION ALL SELECT e.*, NULL, NULL FROM ({text}) AS e",
            {**values, "most_runs": more["limit"]},
        )

    def put_settings(self, worker_id: str, values: Iterable[tuple[str, Any]], at: datetime) -> Statement:
        """Set several fields in one statement; sorted, so that two writers lock their rows in one order."""
        fields = [{"field_id": name, "value": value} for name, value in sorted(values)]
        return (
            f"INSERT INTO {self.settings} (worker_id, field_id, value, updated_at) "
            f"SELECT CAST(:worker_id AS TEXT), f.field_id, coalesce(f.value, 'null'), CAST(:at AS TIMESTAMPTZ) "
            f"FROM jsonb_to_recordset(CAST(:fields AS JSONB)) AS f (field_id TEXT, value JSONB) "
            f"ON CONFLICT (worker_id, field_id) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            {"worker_id": worker_id, "fields": dumps(fields), "at": at},
        )

    def silent(self, before: datetime) -> Statement:
        """As elsewhere, but a row that somebody holds is left for the next time: whoever hangs with it would hold up who closes it."""
        text, values = super().silent(before)
        return f"{text} FOR UPDATE SKIP LOCKED", values

    def version_if_there(self) -> Statement:
        return f"SELECT version_num FROM {self.version}", {}

    def version_is_there(self) -> Statement:
        return "SELECT to_regclass(:name) IS NOT NULL AS there", {"name": self.version}

    def take_your_time(self) -> Statement:
        """No timeout of the server's until the end of the transaction: a migration may be long."""
        return (
            "SELECT set_config('statement_timeout', '0', true), "
            "set_config('idle_in_transaction_session_timeout', '0', true)"
        ), {}

    def lock_schema(self) -> Statement:
        """Keep others from changing these tables until the end of the transaction; those of another prefix do not wait."""
        return "SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))", {"name": f"dooers schema {self.version}"}

    # ------------------------------------------------------------ one statement for a Change, or several

    def write(self, changes: Sequence[Change], beside: Statement | None = None) -> Statement:
        """Write these Changes, which are mergeable or only one, in order."""
        first = changes[0]
        expression, more = beside if beside is not None else ("", {})
        values: dict[str, Any] = {"id": first.thread.id, **scope_values(first.guard), **more}
        if first.repeat_key is not None:
            values["repeat_key"] = first.repeat_key
        if first.removes:
            return self._text(("remove", first.repeat_key is not None, expression)), values
        count = sum(change.takes for change in changes)
        runs = _folded(run for change in changes for run in change.runs)
        sets = _sets(changes)
        values |= sets
        if count:
            values |= {"count": count, "events": dumps(list(_event_rows(changes, first.repeat_key)))}
        if runs:
            values["runs"] = dumps([run_row(run, self.at) for run in runs])
        how = "open" if creates(first) else "append"
        if how == "open":
            values = {**thread_row(first.thread, self.at), **values, "last_seq": first.takes, "count": first.takes}
        else:
            values["made_at"] = _made_at(first)
        during = how == "append" and first.during is not None
        if during:
            values |= {"during": first.during, "unknown": "running" if begins(first) else ""}
        key = (how, first.repeat_key is not None, expression, tuple(sorted(sets)), bool(count), bool(runs), during)
        return self._text(key), values

    def _text(self, key: tuple[Any, ...]) -> str:
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = self._compose(*key)
        return text

    def _compose(
        self,
        how: str,
        keyed: bool,
        expression: str,
        sets: tuple[str, ...] = (),
        events: bool = False,
        runs: bool = False,
        during: bool = False,
    ) -> str:
        once = f" AND NOT EXISTS (SELECT 1 FROM {self.events} WHERE repeat_key = :repeat_key)" if keyed else ""
        if how == "remove":
            parts = [f"thread AS (DELETE FROM {self.threads} WHERE id = :id AND {in_scope('')}{once} RETURNING *)"]
        elif how == "open":
            parts = [self._open(sets, once)]
        else:
            parts = self._append(sets, events, once, during)
        if runs:
            parts.append(self._put_runs())
        if events:
            parts.append(self._add_events("thread.last_seq - :count" if how == "open" else "thread.last_seq", keyed))
        columns = (
            THREAD_COLUMNS
            + (", created" if how == "open" else "")
            + (f", {expression} AS beside" if expression else "")
        )
        return f"WITH {', '.join(parts)} SELECT {columns} FROM thread"

    def _open(self, sets: tuple[str, ...], once: str) -> str:
        values = ", ".join(f"CAST(:{name} AS {_TYPES.get(name, 'TEXT')})" for name in THREAD_COLUMNS.split(", "))
        update = ", ".join(["last_seq = t.last_seq + :count", *(f"{name} = :{name}" for name in sets)])
        # A row that was inserted has no xmax; one that was updated has been locked first, and has.
        return (
            f"thread AS (INSERT INTO {self.threads} AS t ({THREAD_COLUMNS}) SELECT {values} WHERE TRUE{once} "
            f"ON CONFLICT (id) DO UPDATE SET {update} WHERE {in_scope('t.')} RETURNING t.*, t.xmax = 0 AS created)"
        )

    def _append(self, sets: tuple[str, ...], events: bool, once: str, during: bool) -> list[str]:
        # The row is locked as it is now, not as it was when the statement began: nobody else gives out these numbers.
        exact = "(CAST(:made_at AS TIMESTAMPTZ) IS NULL OR created_at = :made_at)"
        parts = [
            f"{'held' if during else 'thread'} AS (SELECT {THREAD_COLUMNS} FROM {self.threads} "
            f"WHERE id = :id AND {exact} AND {in_scope('')}{once} FOR NO KEY UPDATE)"
        ]
        if during:
            # So is the run, and after the thread: whoever closes a run says so in its thread, and what is before that may stand.
            # A weaker lock would show it as it was. Only this statement's own run is locked, so nobody waits in a circle.
            parts += [
                f"run AS (SELECT r.status FROM held, {self.runs} AS r WHERE r.id = :during FOR SHARE OF r)",
                f"thread AS (SELECT {THREAD_COLUMNS} FROM held "
                f"WHERE coalesce((SELECT status FROM run), :unknown) = 'running')",
            ]
        update = [f"{name} = :{name}" for name in sets] + (["last_seq = t.last_seq + :count"] if events else [])
        if update:
            parts.append(
                f"touched AS (UPDATE {self.threads} AS t SET {', '.join(update)} FROM thread WHERE t.id = thread.id)"
            )
        return parts

    def _add_events(self, before: str, keyed: bool) -> str:
        number = f"{before} + e.n"
        return (
            f"added AS (INSERT INTO {self.events} ({EVENT_COLUMNS}, repeat_key) SELECT e.id, thread.id, {number}, "
            f"CASE WHEN e.turn_seq = 0 THEN {number} ELSE e.turn_seq END, e.type, e.actor, e.author, e.user_id, "
            f"e.sender, e.content, e.data, e.run_id, e.client_event_id, e.notice, e.created_at, e.repeat_key "
            f"FROM thread, jsonb_to_recordset(CAST(:events AS JSONB)) AS e ({_EVENT}))"
        )

    def _put_runs(self) -> str:
        # A run that has ended stays ended, whoever comes late.
        columns = ", ".join(f"x.{name}" for name in RUN_COLUMNS.split(", "))
        return (
            f"ran AS (INSERT INTO {self.runs} AS r ({RUN_COLUMNS}, beat_at) SELECT {columns}, x.started_at "
            f"FROM thread, jsonb_to_recordset(CAST(:runs AS JSONB)) AS x ({_RUN}) ON CONFLICT (id) DO UPDATE SET "
            f"status = excluded.status, ended_at = excluded.ended_at, error = excluded.error WHERE r.status = 'running')"
        )


def _event_rows(changes: Sequence[Change], repeat_key: str | None) -> Iterator[dict[str, Any]]:
    n = 0
    for change in changes:
        n += change.takes - len(change.events)
        for event in change.events:
            n += 1
            yield {
                "n": n,
                "id": event.id,
                "turn_seq": event.turn_seq,
                "type": event.type,
                "actor": event.actor,
                "author": event.author,
                "user_id": event.user_id,
                "sender": None if event.user is None else plain_user(event.user),
                "content": plain_parts(event.content),
                "data": event.data,
                "run_id": event.run_id,
                "client_event_id": event.client_event_id,
                "notice": int(event.notice),
                "created_at": event.created_at,
                "repeat_key": repeat_key,
            }
            repeat_key = None  # the first event carries it


def _sets(changes: Sequence[Change]) -> dict[str, Any]:
    """What the columns of the thread are after all of them; those nobody touches are left out."""
    sets: dict[str, Any] = {}
    for change in changes:
        if change.events:
            sets["last_event_at"] = sets["updated_at"] = change.events[-1].created_at
        for name, value in change.patch.items():
            sets[name] = _PATCH[name](value)
    return sets


def _folded(runs: Iterable[Run]) -> list[Run]:
    """The same runs, each once, as a statement may touch a row once: its begin with its end, and what comes after that is late."""
    last: dict[str, Run] = {}
    for run in runs:
        begun = last.get(run.id)
        if begun is None:
            last[run.id] = run
        elif begun.status == "running":
            last[run.id] = evolve(begun, status=run.status, ended_at=run.ended_at, error=run.error)
    return list(last.values())
