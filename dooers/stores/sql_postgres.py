"""How PostgreSQL writes Changes: what waits for many threads in a single statement, so in one round trip and one transaction.

The statement's first part finds or makes each thread's row, in scope, and holds it; everything else hangs on that row, so
without it nothing is written of that thread. `mergeable` says which Changes of one thread may be written as one. There is one text for
all of it, prepared once a connection. Text and parameters only, as in `sql.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import repeat
from typing import Any, TypeAlias

from dooers.access import visible
from dooers.codec import dumps, plain_parts, plain_user
from dooers.models import Change, EventQuery, Run, RunQuery, Thread
from dooers.stores.rows import EVENT_COLUMNS, RUN_COLUMNS, THREAD_COLUMNS, run_row
from dooers.stores.sql import Statement, Statements, in_scope, scope_values
from dooers.turn import begins, ends

__all__ = ["Aside", "Beside", "PostgresStatements", "creates", "mergeable"]

# An SQL expression such as `pg_notify(:channel, :payload)`, with its values for each thread that is written. The text is to be the same
# each time, as it is prepared.
Aside: TypeAlias = tuple[str, Sequence[dict[str, Any]]]
# What else is to happen in the very statement that writes these Changes, a group of each thread, where they are written; None for
# nothing. Left when it is known what became of them.
Beside: TypeAlias = Callable[[Sequence[Sequence[Change]]], AbstractContextManager[Aside | None]]

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
_LANE = (
    "n INT, id TEXT, takes INT, scope_worker TEXT, scope_organization TEXT, scope_workspace TEXT, scope_user TEXT, "
    "made_at TIMESTAMPTZ, during TEXT, begins BOOL, repeat_key TEXT, makes JSONB, sets JSONB, events JSONB, runs JSONB, said JSONB"
)
_RUN = (
    "id TEXT, thread_id TEXT, agent_id TEXT, status TEXT, started_at TIMESTAMPTZ, ended_at TIMESTAMPTZ, error TEXT, "
    "process_id TEXT"
)
_PATCHED = {"title", "metadata", "updated_at", "last_event_at"}
# A parameter of an expression beside, and where its value is in a statement that has one for each thread.
_NAME, _SAID = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)"), r"(held.said ->> '\1')"


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
    """Times are native here, and Changes, also of many threads, are one statement that returns the row of each thread.

    It is the row as it was before them, or where it was `created` as it is after. No row: there is no such thread, or it was a repeat.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._texts: dict[tuple[str, bool], str] = {}

    def at(self, moment: datetime) -> Any:
        return moment

    def events_by_id(self, event_ids: list[str]) -> Statement:
        return f"SELECT {EVENT_COLUMNS} FROM {self.events} WHERE id = ANY(:ids)", {"ids": event_ids}

    def view(self, query: EventQuery, runs: RunQuery | None) -> Statement:
        """Events, and beside them one row with their thread and these runs of it: what one statement reads is of one instant, without a
        transaction around it."""
        text, values = self.list_events(query)
        running = "NULL"
        if runs is not None:
            listed, more = self.list_runs(runs)
            running = f"ARRAY(SELECT ROW({RUN_COLUMNS}) FROM ({listed.replace(':limit', ':most_runs')}) AS r)"
            values["most_runs"] = more["limit"]
        nothing = ", ".join(f"NULL AS {name}" for name in EVENT_COLUMNS.split(", "))
        return (
            f"SELECT {nothing}, ROW({THREAD_COLUMNS}) AS thread, "
            f"{running} AS runs FROM {self.threads} WHERE id = :thread_id "
            f"UNION ALL SELECT e.*, NULL, NULL FROM ({text}) AS e",
            values,
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

    def threads_by_id(self, thread_ids: list[str]) -> Statement:
        return f"SELECT {THREAD_COLUMNS} FROM {self.threads} WHERE id = ANY(:ids)", {"ids": thread_ids}

    def runs_by_id(self, run_ids: list[str]) -> Statement:
        return f"SELECT {RUN_COLUMNS} FROM {self.runs} WHERE id = ANY(:ids)", {"ids": run_ids}

    # ------------------------------------------------------------ one statement for many Changes

    def remove(self, change: Change, beside: Aside | None = None) -> Statement:
        """Delete a thread; its events and runs go with it by foreign key. Returns its row, or none."""
        expression, [more] = beside or ("NULL", [{}])
        once = f"AND (CAST(:repeat_key AS TEXT) IS NULL OR {self._unknown_key(':repeat_key')})"
        return (
            f"WITH thread AS (DELETE FROM {self.threads} WHERE id = :id AND {in_scope('')} {once} "
            f"AND (CAST(:made_at AS TIMESTAMPTZ) IS NULL OR created_at = :made_at) RETURNING *) "
            f"SELECT {THREAD_COLUMNS}, {expression} AS beside FROM thread"
        ), {
            "id": change.thread.id,
            "made_at": _made_at(change),
            "repeat_key": change.repeat_key,
            **scope_values(change.guard),
            **more,
        }

    def write(
        self, groups: Sequence[Sequence[Change]], beside: Aside | None = None, *, waits: bool = False
    ) -> Statement:
        """Write groups of Changes, each of one thread, mergeable and in order, no two of the same thread; none removes one.

        Without `waits` a thread that somebody else holds is left out, and so is one whose run is held: nobody waits in a circle, and
        a thread that is held up holds up no other.
        """
        expression, said = beside or ("", repeat(None))
        # New threads are made in the order of their ids: so two who make the same ones wait in one order.
        lanes = [_lane(n, group, words) for n, (group, words) in enumerate(zip(groups, said, strict=False))]
        lanes.sort(key=lambda lane: lane["id"])
        text = self._texts.get((expression, waits))
        if text is None:
            text = self._texts[expression, waits] = self._compose(expression, "" if waits else " SKIP LOCKED")
        return text, {"lanes": dumps(lanes)}

    def _compose(self, expression: str, skip: str) -> str:
        columns = THREAD_COLUMNS.split(", ")
        lane = "lane.id, n, takes, sets, events, runs, said"
        row = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in columns)
        beside = (
            f"CASE WHEN held.said IS NOT NULL THEN {_NAME.sub(_SAID, expression)} END AS beside"
            if expression
            else "NULL"
        )
        parts = (
            f"lane AS ({self._find(skip)})",
            f"made AS (INSERT INTO {self.threads} ({THREAD_COLUMNS}) SELECT {', '.join(f'r.{name}' for name in columns)} "
            f"FROM lane, jsonb_to_record(lane.makes) AS r ({row}) WHERE lane.state = 'makes' "
            f"ON CONFLICT (id) DO NOTHING RETURNING {THREAD_COLUMNS})",
            # The row as it was found, or as it was made.
            f"held AS (SELECT {lane}, {', '.join(columns[1:])}, CAST(NULL AS BOOL) AS created, last_seq AS before "
            f"FROM lane WHERE state = 'running' "
            f"UNION ALL SELECT {lane}, {', '.join(f'made.{name}' for name in columns[1:])}, TRUE, 0 "
            f"FROM made JOIN lane ON lane.id = made.id)",
            self._touch(),
            self._put_runs(),
            self._add_events(),
        )
        return (
            f"WITH {', '.join(parts)} SELECT thread.*, n, {beside} FROM held, "
            f"LATERAL (SELECT {', '.join(f'held.{name}' for name in columns)}, held.created) AS thread"
        )

    def _find(self, skip: str) -> str:
        """Each lane with the row of its thread as it is now, held, and with how things stand: "running" where it may be appended to.

        The row is held before the run is looked at, and as it is now, not as it was when the statement began: nobody else gives out these
        numbers. So is the run: whoever closes one says so in its thread, and what is before that may stand. A weaker lock would show
        it as it was.
        """
        scope = in_scope("t.").replace(":", "g.")
        columns = ", ".join(f"t.{name}" for name in THREAD_COLUMNS.split(", ")[1:])
        return (
            f"SELECT g.*, {columns}, CASE WHEN NOT {self._unknown_key('g.repeat_key')} THEN 'repeat' "
            f"WHEN t.id IS NULL THEN CASE WHEN g.makes IS NULL THEN 'nowhere' ELSE 'makes' END "
            f"WHEN r.status IS NOT NULL OR g.during IS NULL THEN coalesce(r.status, 'running') "
            f"WHEN g.begins AND (SELECT u.id FROM {self.runs} AS u WHERE u.id = g.during) IS NULL THEN 'running' END AS state "
            f"FROM jsonb_to_recordset(CAST(:lanes AS JSONB)) AS g ({_LANE}) "
            f"LEFT JOIN LATERAL (SELECT {THREAD_COLUMNS} FROM {self.threads} AS t WHERE t.id = g.id "
            f"AND (g.made_at IS NULL OR t.created_at = g.made_at) AND {scope} FOR NO KEY UPDATE{skip}) AS t ON TRUE "
            f"LEFT JOIN LATERAL (SELECT r.status FROM {self.runs} AS r WHERE r.id = g.during AND t.id IS NOT NULL "
            f"FOR SHARE{skip}) AS r ON TRUE"
        )

    def _unknown_key(self, key: str) -> str:
        # A subquery for a value is asked for each row by itself, by the index: no plan makes a join of it that reads the table.
        return f"(SELECT k.id FROM {self.events} AS k WHERE k.repeat_key = {key}) IS NULL"

    def _touch(self) -> str:
        return (
            f"touched AS (UPDATE {self.threads} AS t SET last_seq = t.last_seq + takes, "
            f"title = CASE WHEN sets ? 'title' THEN sets ->> 'title' ELSE t.title END, "
            f"metadata = CASE WHEN sets ? 'metadata' THEN nullif(sets -> 'metadata', 'null') ELSE t.metadata END, "
            f"updated_at = coalesce(CAST(sets ->> 'updated_at' AS TIMESTAMPTZ), t.updated_at), "
            f"last_event_at = coalesce(CAST(sets ->> 'last_event_at' AS TIMESTAMPTZ), t.last_event_at) "
            f"FROM held WHERE t.id = held.id AND held.created IS NULL AND (takes > 0 OR sets IS NOT NULL))"
        )

    def _add_events(self) -> str:
        return (
            f"added AS (INSERT INTO {self.events} ({EVENT_COLUMNS}, repeat_key) SELECT e.id, held.id, before + e.n, "
            f"CASE WHEN e.turn_seq = 0 THEN before + e.n ELSE e.turn_seq END, e.type, e.actor, e.author, e.user_id, "
            f"e.sender, e.content, e.data, e.run_id, e.client_event_id, e.notice, e.created_at, e.repeat_key "
            f"FROM held, jsonb_to_recordset(held.events) AS e ({_EVENT}))"
        )

    def _put_runs(self) -> str:
        # A run that has ended stays ended, whoever comes late.
        columns = ", ".join(f"x.{name}" for name in RUN_COLUMNS.split(", "))
        return (
            f"ran AS (INSERT INTO {self.runs} AS r ({RUN_COLUMNS}, beat_at) SELECT {columns}, x.started_at "
            f"FROM held, jsonb_to_recordset(held.runs) AS x ({_RUN}) ON CONFLICT (id) DO UPDATE SET "
            f"status = excluded.status, ended_at = excluded.ended_at, error = excluded.error WHERE r.status = 'running')"
        )


def _lane(n: int, changes: Sequence[Change], said: dict[str, Any] | None) -> dict[str, Any]:
    """What one thread's part of the statement is made of. What is not in it is NULL there."""
    first = changes[0]
    takes, sets = sum(change.takes for change in changes), _sets(changes)
    lane: dict[str, Any] = {"n": n, "id": first.thread.id, "takes": takes}
    if first.guard is not None:
        lane |= scope_values(first.guard)
    if first.repeat_key is not None:
        lane["repeat_key"] = first.repeat_key
    if creates(first):
        lane["makes"] = {**_made(first.thread), **sets, "last_seq": takes}
    else:
        if (made_at := _made_at(first)) is not None:
            lane["made_at"] = made_at
        if first.during is not None:
            lane["during"] = first.during
            lane["begins"] = begins(first)
    if sets:
        lane["sets"] = sets
    if takes:
        lane["events"] = list(_event_rows(changes, first.repeat_key))
    if runs := _folded(run for change in changes for run in change.runs):
        lane["runs"] = runs
    if said is not None:
        lane["said"] = said
    return lane


def _made(thread: Thread) -> dict[str, Any]:
    row = {name: getattr(thread, name) for name in THREAD_COLUMNS.split(", ")}
    return {**row, "owner": plain_user(thread.owner)}


def _as_it_is(at: datetime) -> datetime:
    return at


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
        if change.patch:
            if wrong := change.patch.keys() - _PATCHED:
                raise ValueError(f"a patch sets {', '.join(sorted(_PATCHED))}; got {', '.join(sorted(wrong))}")
            sets |= change.patch
    return sets


def _folded(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of these runs, each once, as a statement may touch a row once: its begin with its end, and what comes after that is late."""
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        row = run_row(run, _as_it_is)
        begun = rows.setdefault(run.id, row)
        if begun is not row and begun["status"] == "running":
            begun |= {name: row[name] for name in ("status", "ended_at", "error")}
    return [*rows.values()]
