"""How SQLite writes: a statement a table to look up what a group of Changes must know, and one for the rows of each table.

Rows are bound as one long list of values: a statement lets other threads of Python run, and has to get its turn back, each time it is
stepped. Measured beside a busy thread that costs more than the row itself, so many rows are one step (`executemany` takes one each, and
`json_each` twice the time). Text and parameters only, as in `sql.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from dooers.codec import dumps
from dooers.models import Run, Thread, ThreadEvent
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
from dooers.stores.sql import Statement, Statements

__all__ = ["Filled", "SqliteStatements"]

# A statement with its values in order.
Filled: TypeAlias = tuple[str, list[Any]]

# How many rows a statement has. Few sizes, as each is a text that the connection keeps prepared; 37 rows are 32, 4 and 1.
SIZES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class SqliteStatements(Statements):
    """A row that cannot be written ends the transaction (OR ROLLBACK), as the store would do anyway: so SQLite need not keep a copy of
    every page that the statement touches."""

    contains = "title REGEXP :pattern"

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._texts: dict[tuple[str, int], str] = {}

    def threads_of(self, ids: Iterable[str]) -> Statement:
        return f"SELECT {THREAD_COLUMNS} FROM {self.threads} WHERE id IN ({_LISTED})", {"ids": dumps([*ids])}

    def runs_of(self, ids: Iterable[str]) -> Statement:
        return f"SELECT {RUN_COLUMNS} FROM {self.runs} WHERE id IN ({_LISTED})", {"ids": dumps([*ids])}

    def events_of_keys(self, keys: Iterable[str]) -> Statement:
        """Events and their repeat keys."""
        text = f"SELECT {EVENT_COLUMNS}, repeat_key FROM {self.events} WHERE repeat_key IN ({_LISTED})"
        return text, {"ids": dumps([*keys])}

    def add_threads(self, threads: Iterable[Thread]) -> Iterator[Filled]:
        return self._filled("add threads", self._add_threads, [[*thread_row(one, stamp).values()] for one in threads])

    def touch_threads(self, threads: Iterable[Thread]) -> Iterator[Filled]:
        """Write their last numbers and times."""
        return self._filled("touch threads", self._touch_threads, [_touched(one) for one in threads])

    def alter_threads(self, threads: Iterable[Thread]) -> Iterator[Filled]:
        """The same, and what people have called them."""
        rows = [[one.title, maybe_json(one.metadata), *_touched(one)] for one in threads]
        return self._filled("alter threads", self._alter_threads, rows)

    def add_events(self, events: Iterable[tuple[ThreadEvent, str | None]]) -> Iterator[Filled]:
        """Insert events, each with its repeat key."""
        rows = [[*event_row(event, stamp).values(), key] for event, key in events]
        return self._filled("add events", self._add_events, rows)

    def put_runs(self, runs: Iterable[Run]) -> Iterator[Filled]:
        """Insert runs, or close those that are running."""
        rows = [[*(row := run_row(run, stamp)).values(), row["started_at"]] for run in runs]
        return self._filled("put runs", self._put_runs, rows)

    def remove_thread(self, thread_id: str) -> Statement:
        """Delete a thread; its events and runs go with it by foreign key."""
        return f"DELETE FROM {self.threads} WHERE id = :id", {"id": thread_id}

    def _filled(self, name: str, compose: Callable[[int], str], rows: Sequence[list[Any]]) -> Iterator[Filled]:
        at, all_of_them = 0, len(rows)
        for size in SIZES if rows else ():
            while all_of_them - at >= size:
                text = self._texts.get((name, size))
                if text is None:
                    text = self._texts[name, size] = compose(size)
                yield text, [value for row in rows[at : at + size] for value in row]
                at += size

    def _add_threads(self, size: int) -> str:
        return f"INSERT OR ROLLBACK INTO {self.threads} ({THREAD_COLUMNS}) {_values(12, size)}"

    def _touch_threads(self, size: int) -> str:
        return self._update(_TOUCHED, size)

    def _alter_threads(self, size: int) -> str:
        return self._update(f"title, metadata, {_TOUCHED}", size)

    def _update(self, columns: str, size: int) -> str:
        names = columns.split(", ")
        if size == 1:
            sets = ", ".join(f"{name} = ?" for name in names[:-1])
            return f"UPDATE OR ROLLBACK {self.threads} SET {sets} WHERE id = ?"
        sets = ", ".join(f"{name} = new.{name}" for name in names[:-1])
        return (
            f"WITH new ({columns}) AS ({_values(len(names), size)}) "
            f"UPDATE OR ROLLBACK {self.threads} SET {sets} FROM new WHERE {self.threads}.id = new.id"
        )

    def _add_events(self, size: int) -> str:
        return f"INSERT OR ROLLBACK INTO {self.events} ({EVENT_COLUMNS}, repeat_key) {_values(16, size)}"

    def _put_runs(self, size: int) -> str:
        # A run that has ended stays ended, whoever comes late.
        return (
            f"INSERT OR ROLLBACK INTO {self.runs} ({RUN_COLUMNS}, beat_at) {_values(9, size)} "
            f"ON CONFLICT (id) DO UPDATE SET "
            f"status = excluded.status, ended_at = excluded.ended_at, error = excluded.error "
            f"WHERE {self.runs}.status = 'running'"
        )


_LISTED = "SELECT value FROM json_each(:ids)"
_TOUCHED = "last_seq, last_event_at, updated_at, id"


def _values(columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"VALUES {', '.join([row] * rows)}"


def _touched(thread: Thread) -> list[Any]:
    return [thread.last_seq, stamp(thread.last_event_at), stamp(thread.updated_at), thread.id]
