"""A group of Changes written to SQLite, inside a transaction that somebody else has begun and commits: looked up, decided, written.

Nobody else writes meanwhile, so what was looked up stays true. What becomes of a group that cannot be written is `sqlite.py`'s business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from dooers.codec import loads
from dooers.exceptions import NotFoundError
from dooers.models import Change, Run, Thread, ThreadEvent
from dooers.stores.ledger import Ledger
from dooers.stores.rows import event_of, run_of, thread_of
from dooers.stores.sql_sqlite import Filled, SqliteStatements

__all__ = ["write"]


def write(
    connection: sqlite3.Connection, sql: SqliteStatements, changes: Sequence[Change]
) -> list[Change | NotFoundError]:
    """Every Change as stored, or why there is no place for it; the others do not mind. Any other error spoils the group."""
    results: list[Change | NotFoundError] = []
    # What goes with a thread is the database's business, so a removal comes between, and what follows looks again.
    for removes, part in groupby(changes, key=lambda change: change.removes):
        if removes:
            results += [_remove(connection, sql, change) for change in part]
        else:
            results += _write(connection, sql, list(part))
    return results


def _remove(connection: sqlite3.Connection, sql: SqliteStatements, change: Change) -> Change | NotFoundError:
    decided = _decided(_look_up(connection, sql, [change]), change)
    if isinstance(decided, Change) and not decided.repeated:
        connection.execute(*sql.remove_thread(decided.thread.id)).close()
    return decided


def _write(
    connection: sqlite3.Connection, sql: SqliteStatements, changes: Sequence[Change]
) -> list[Change | NotFoundError]:
    ledger = _look_up(connection, sql, changes)
    results: list[Change | NotFoundError] = []
    new: dict[str, Thread] = {}
    touched: dict[str, Thread] = {}
    altered: dict[str, Thread] = {}
    runs: dict[str, Run] = {}
    events: list[tuple[ThreadEvent, str | None]] = []
    for change in changes:
        stored = _decided(ledger, change)
        results.append(stored)
        if not isinstance(stored, Change) or stored.repeated:
            continue
        ledger.enter(stored)
        thread = stored.thread
        if stored.created or thread.id in new:
            new[thread.id] = thread
        elif thread.id in altered or "title" in stored.patch or "metadata" in stored.patch:
            altered[thread.id] = thread
            touched.pop(thread.id, None)
        elif stored.events or stored.patch:
            touched[thread.id] = thread
        runs.update((run.id, ledger.runs[run.id]) for run in stored.runs)
        events.extend((event, None if n else stored.repeat_key) for n, event in enumerate(stored.events))
    for statements in (
        sql.add_threads(new.values()),
        sql.touch_threads(touched.values()),
        sql.alter_threads(altered.values()),
        sql.add_events(events),
        sql.put_runs(runs.values()),
    ):
        _execute(connection, statements)
    return results


def _decided(ledger: Ledger, change: Change) -> Change | NotFoundError:
    try:
        return ledger.decide(change)
    except NotFoundError as error:
        return error


def _look_up(connection: sqlite3.Connection, sql: SqliteStatements, changes: Sequence[Change]) -> Ledger:
    """As much of the database as these Changes ask for."""
    [row] = connection.execute(
        *sql.known(
            {change.thread.id for change in changes},
            {change.during for change in changes if change.during is not None},
            {change.repeat_key for change in changes if change.repeat_key is not None},
        )
    ).fetchall()
    return Ledger(
        {values[0]: thread_of(values) for values in loads(row["threads"])},
        {values[0]: run_of(values) for values in loads(row["runs"])},
        {key: event_of(values) for key, *values in loads(row["keys"])},
    )


def _execute(connection: sqlite3.Connection, statements: Iterable[Filled]) -> None:
    for statement in statements:
        connection.execute(*statement).close()
