"""A group of Changes written to SQLite: looked up, decided, written and committed, in a transaction that somebody else has begun.

Nobody else writes meanwhile, so what was looked up stays true; and until another connection has written, so does what was known after the
last group. What becomes of a group that cannot be written is `sqlite.py`'s business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from attrs import Factory, define

from dooers.exceptions import NotFoundError
from dooers.models import Change, Run, Thread, ThreadEvent
from dooers.stores.ledger import Ledger
from dooers.stores.rows import event_of, run_of, thread_of
from dooers.stores.sql import Statement
from dooers.stores.sql_sqlite import Filled, SqliteStatements

__all__ = ["GroupWriter", "write"]

# Threads and open runs that are known at most, mostly less than a kilobyte each. One more, and all are looked up again.
KNOWN = 4096


@define(eq=False)
class GroupWriter:
    """Writes groups by the one connection that writes, and knows threads and open runs as it left them."""

    _sql: SqliteStatements
    _known: Ledger = Factory(Ledger)
    # What SQLite calls the state that others have left: another number as soon as another connection has committed something.
    _others: int | None = None

    def commit(self, connection: sqlite3.Connection, changes: Sequence[Change]) -> list[Change | NotFoundError]:
        """`write`, and end the transaction. After an error nothing is known any more, as nobody can tell what was undone."""
        known, self._known = self._known, Ledger()
        [(others,)] = connection.execute("PRAGMA data_version").fetchall()
        if others != self._others:
            known, self._others = Ledger(), others
        results = write(connection, self._sql, known, changes)
        connection.execute("COMMIT").close()
        _forget(known, results)
        self._known = known
        return results


def _forget(known: Ledger, results: Sequence[Change | NotFoundError]) -> None:
    """Of what has just become known, whatever does not stay as it is, or is not asked for again."""
    known.keys.clear()  # an event may be removed, and then its message is not a repeat any more
    for stored in results:
        if isinstance(stored, Change):
            if stored.thread.metadata is not None:  # others have that dict in their hands now, and may alter it
                known.threads.pop(stored.thread.id, None)
            for run in stored.runs:
                if run.status != "running":
                    known.runs.pop(run.id, None)
    if len(known.threads) + len(known.runs) > KNOWN:
        known.clear()


def write(
    connection: sqlite3.Connection, sql: SqliteStatements, known: Ledger, changes: Sequence[Change]
) -> list[Change | NotFoundError]:
    """Every Change as stored, or why there is no place for it; the others do not mind. Any other error spoils the group.

    What is `known` is not looked up, and goes on to what it is afterwards.
    """
    results: list[Change | NotFoundError] = []
    # What goes with a thread is the database's business, so a removal comes between, and what follows looks again.
    for removes, part in groupby(changes, key=lambda change: change.removes):
        if removes:
            results += [_remove(connection, sql, known, change) for change in part]
        else:
            results += _write(connection, sql, known, list(part))
    return results


def _remove(
    connection: sqlite3.Connection, sql: SqliteStatements, known: Ledger, change: Change
) -> Change | NotFoundError:
    _look_up(connection, sql, known, [change])
    decided = _decided(known, change)
    if isinstance(decided, Change) and not decided.repeated:
        connection.execute(*sql.remove_thread(decided.thread.id)).close()
        known.clear()
    return decided


def _write(
    connection: sqlite3.Connection, sql: SqliteStatements, known: Ledger, changes: Sequence[Change]
) -> list[Change | NotFoundError]:
    _look_up(connection, sql, known, changes)
    results: list[Change | NotFoundError] = []
    new: dict[str, Thread] = {}
    touched: dict[str, Thread] = {}
    altered: dict[str, Thread] = {}
    runs: dict[str, Run] = {}
    events: list[tuple[ThreadEvent, str | None]] = []
    for change in changes:
        stored = _decided(known, change)
        results.append(stored)
        if not isinstance(stored, Change) or stored.repeated:
            continue
        known.enter(stored)
        thread = stored.thread
        if stored.created or thread.id in new:
            new[thread.id] = thread
        elif thread.id in altered or "title" in stored.patch or "metadata" in stored.patch:
            altered[thread.id] = thread
            touched.pop(thread.id, None)
        elif stored.events or stored.patch:
            touched[thread.id] = thread
        runs.update((run.id, known.runs[run.id]) for run in stored.runs)
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


def _look_up(connection: sqlite3.Connection, sql: SqliteStatements, known: Ledger, changes: Sequence[Change]) -> None:
    """Make known what these Changes ask for."""
    keys = {change.repeat_key for change in changes if change.repeat_key is not None} - known.keys.keys()
    if keys:
        known.keys |= {row["repeat_key"]: event_of(row) for row in _rows(connection, sql.events_of_keys(keys))}
    threads = {change.thread.id for change in changes}.union(event.thread_id for event in known.keys.values())
    if threads := threads - known.threads.keys():
        known.threads |= {row["id"]: thread_of(row) for row in _rows(connection, sql.threads_of(threads))}
    # Those too that a Change only tells of: what is known of a run must be what the database says.
    runs = {run.id for change in changes for run in change.runs}
    runs.update(change.during for change in changes if change.during is not None)
    if runs := runs - known.runs.keys():
        known.runs |= {row["id"]: run_of(row) for row in _rows(connection, sql.runs_of(runs))}


def _rows(connection: sqlite3.Connection, statement: Statement) -> list[sqlite3.Row]:
    return connection.execute(*statement).fetchall()


def _execute(connection: sqlite3.Connection, statements: Iterable[Filled]) -> None:
    for statement in statements:
        connection.execute(*statement).close()
