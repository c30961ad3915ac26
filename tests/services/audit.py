"""What people were told (`crowd.Told`), held against what the database has. Not tests."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import Factory, define, frozen

from services.crashing import Answer, answers
from services.crowd import Said, Told, WrongError
from services.postgres import Address
from services.workers import Frame

__all__ = ["Audit", "Books", "check_file", "look_into_postgres", "look_into_sqlite"]

BROKE_OFF = "The answer broke off."
# Bytes that the log of a SQLite file may have: four times the size at which it is written back.
WAL = 16 * 1024 * 1024

QUERIES = {
    "threads": "SELECT id, last_seq, title FROM worker_threads",
    "events": (
        "SELECT id, thread_id, seq, turn_seq, type, actor, content, data, run_id, client_event_id, notice "
        "FROM worker_events ORDER BY thread_id, seq"
    ),
    "runs": "SELECT id, thread_id, status, error FROM worker_runs",
    "settings": "SELECT field_id, value FROM worker_settings",
}


@frozen
class Books:
    """All rows of one instant, as dicts."""

    threads: list[dict[str, Any]]
    events: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    settings: list[dict[str, Any]]


async def look_into_sqlite(path: Path) -> Books:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        rows = {name: [dict(row) for row in connection.execute(sql)] for name, sql in QUERIES.items()}
    return Books(**rows)


async def look_into_postgres(address: Address, database: str) -> Books:
    async with address.session(database) as session:
        async with session.transaction(isolation="repeatable_read", readonly=True):
            return Books(**{name: [dict(row) for row in await session.fetch(sql)] for name, sql in QUERIES.items()})


def check_file(path: Path, beside: Path) -> int:
    """A SQLite file as a dead process left it is whole: looked at as a copy, so that recovering it stays the next one's work. The
    size of its log."""
    log = path.with_name(path.name + "-wal")
    size = log.stat().st_size if log.exists() else 0
    if size > WAL:
        raise WrongError(f"the log of the file has grown to {size} bytes")
    copy = beside / "copy.db"
    for old in beside.glob("copy.db*"):
        old.unlink()
    shutil.copy(path, copy)
    if size:
        shutil.copy(log, beside / "copy.db-wal")
    with closing(sqlite3.connect(copy)) as connection:
        said = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        loose = connection.execute("PRAGMA foreign_key_check").fetchall()
    if said != ["ok"] or loose:
        raise WrongError(f"the file is not whole: {said} {loose}")
    return size


@define(eq=False, repr=False)
class Audit:
    """One look at the books. Raises WrongError for the first thing that is not as somebody was told."""

    told: Told
    books: Books
    # Message (by key), thread, event and life of every time a handler ran.
    ran: list[tuple[str, str, str, int]]
    threads: dict[str, dict[str, Any]] = Factory(dict)
    events: dict[str, dict[str, Any]] = Factory(dict)
    runs: dict[str, dict[str, Any]] = Factory(dict)
    messages: dict[str, dict[str, Any]] = Factory(dict)  # what people said, by its key

    def __attrs_post_init__(self) -> None:
        self.threads = {row["id"]: row for row in self.books.threads}
        self.events = {row["id"]: row for row in self.books.events}
        self.runs = {row["id"]: row for row in self.books.runs}
        for row in self.books.events:
            for name in ("content", "data"):
                row[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
            row["text"] = "".join(part.get("text", "") for part in row["content"])

    def check(self) -> None:
        self._threads()
        self._messages()
        self._events()
        self._runs()
        self._settings()
        self._ran()
        self._turns()

    def _threads(self) -> None:
        numbers = defaultdict[str, list[int]](list)
        for row in self.books.events:
            numbers[row["thread_id"]].append(row["seq"])
        for thread_id, row in self.threads.items():
            if thread_id in self.told.deleted:
                raise WrongError(f"thread {thread_id} was deleted in life {self.told.deleted[thread_id]}, and is there")
            if numbers.pop(thread_id, []) != list(range(1, row["last_seq"] + 1)):
                raise WrongError(f"thread {thread_id} has numbered {row['last_seq']} events; of them some are missing")
        for one, rows in (
            ("events", numbers),
            ("runs", {row["thread_id"] for row in self.runs.values()} - self.threads.keys()),
        ):
            if rows:
                raise WrongError(f"there are {one} of threads that are not: {list(rows)}")

    def _messages(self) -> None:
        for row in self.books.events:
            if row["actor"] != "user":
                continue
            key = row["text"].split(" ")[2]
            if key in self.messages:
                raise WrongError(f"message {key} is there twice: {self.messages[key]} and {row}")
            if row["client_event_id"] not in (None, key):
                raise WrongError(f"message {key} has another's client_event_id: {row}")
            self.messages[key] = row
        for said in self.told.said.values():
            stored = self.messages.get(said.key)
            if said.acknowledged and stored is None and not self.told.gone(said.thread_id):
                raise WrongError(f"message {said} was acknowledged, and is not there")
            if stored is not None:
                self._as_said(said, stored)

    def _as_said(self, said: Said, stored: dict[str, Any]) -> None:
        if stored["text"] != said.text or said.event_id not in (None, stored["id"]):
            raise WrongError(f"{said} is there as {stored}")
        if said.into not in (None, stored["thread_id"]):
            raise WrongError(f"{said} is in thread {stored['thread_id']}")

    def _events(self) -> None:
        for event_id, (life, frame) in self.told.events.items():
            if self.told.gone(frame["thread_id"]):
                continue
            stored = self.events.get(event_id)
            if stored is None:
                raise WrongError(f"an event that was shown in life {life} is not there: {frame}")
            if _core(frame) != _core(stored):
                raise WrongError(f"an event that was shown in life {life} is {stored}, and was {frame}")
        for event_id, (life, seq, text) in self.told.given.items():
            stored = self.events.get(event_id)
            if stored is None or (stored["seq"], stored["text"]) != (seq, text):
                raise WrongError(
                    f"a caller was given event {event_id} ({seq}, {text}) in life {life}, and it is {stored}"
                )

    def _runs(self) -> None:
        for run_id, (life, frame) in self.told.ended.items():
            if self.told.gone(frame["thread_id"]):
                continue
            stored = self.runs.get(run_id)
            if stored is None or (stored["status"], stored["error"]) != (frame["status"], frame.get("error")):
                raise WrongError(f"a run ended in life {life} as {frame}, and it is {stored}")
        for event in self.books.events:
            if event["run_id"] is not None and event["run_id"] not in self.runs:
                raise WrongError(f"an event has a run that is not there: {event}")

    def _settings(self) -> None:
        stored = {row["field_id"]: int(json.loads(row["value"])) for row in self.books.settings}
        for field, (acknowledged, sent) in self.told.settings.items():
            if not acknowledged <= stored.get(field, 0) <= sent:
                raise WrongError(f"{field} is {stored.get(field)}; {acknowledged} was acknowledged and {sent} sent")
        for thread_id, titles in self.told.titles.items():
            if thread_id in self.threads and not self.told.gone(thread_id):
                now = self.threads[thread_id]["title"]
                # A title leaves no trace of its turn: one that was shown, and its turn killed right then, takes place once more. So what
                # counts is when handlers ran: the one of this title, at last, not before any other of which a title was shown began.
                if now is None or self._times(now)[-1] < max(self._times(title)[0] for title in titles):
                    raise WrongError(f"thread {thread_id} is called {now!r}, and was shown as {titles}")

    def _times(self, title: str) -> list[int]:
        """When a handler ran for the message that a title is of: places in the order in which all of them ran."""
        return [place for place, (key, *_) in enumerate(self.ran) if key == title.split(" ")[2]]

    def _ran(self) -> None:
        last = dict[tuple[str, int], int]()
        # In another life again only where the first one left nothing: else what it left would be there twice, which `_turns` sees.
        for (key, life), times in Counter((key, life) for key, _, _, life in self.ran).items():
            if times > 1:
                raise WrongError(f"a handler ran {times} times for message {key} in life {life}")
        for key, thread_id, event_id, life in self.ran:
            if self.told.gone(thread_id):
                continue
            stored = self.events.get(event_id)
            if stored is None:
                raise WrongError(f"a handler ran in life {life} for message {key}, which is not there as {event_id}")
            if self.told.said[key].life < life:
                continue  # it may have been stored long before, and was taken up when it came again
            if stored["seq"] <= last.get((thread_id, life), 0):
                raise WrongError(f"a handler ran for message {key} after one that came later, in life {life}")
            last[thread_id, life] = stored["seq"]

    def _turns(self) -> None:
        """What a handler has answered is what it answers, from the first on, and all of it where its run succeeded."""
        given = defaultdict[tuple[str, int], list[dict[str, Any]]](list)
        for row in self.books.events:
            if row["actor"] != "user" and not row["notice"]:
                given[row["thread_id"], row["turn_seq"]].append(row)
        ran = {key for key, _, _, _ in self.ran}
        for key, message in self.messages.items():
            rows = given.pop((message["thread_id"], message["seq"]), [])
            if rows and key not in ran:
                raise WrongError(f"nobody ran for message {key}, and it was answered: {rows}")
            self._turn(message["text"], rows)
        if given:
            raise WrongError(f"these answer nothing: {given}")

    def _turn(self, said: str, rows: list[dict[str, Any]]) -> None:
        wanted = [answer for answer in answers(said) if answer[0] != "title"]
        found = [_answer(row) for row in rows]
        cut = bool(rows) and bool((rows[-1]["data"] or {}).get("incomplete"))
        if cut:
            kind, text = found.pop()
            whole = wanted[len(found)] if len(found) < len(wanted) else None
            if whole is None or whole[0] != kind or not whole[1].startswith(text):
                raise WrongError(f"of {said!r} a piece is there that is no beginning: {text!r}")
        if found != wanted[: len(found)]:
            raise WrongError(f"{said!r} was answered by {found}, and not by {wanted}")
        run = self.runs.get(rows[0]["run_id"] or "") if rows else None
        if run is not None and run["status"] == "succeeded" and (cut or found != wanted):
            raise WrongError(f"the run of {said!r} has succeeded, and of {wanted} there is {found}: {run}")

    # ------------------------------------------------------------ at the end

    def check_end(self) -> None:
        """Somebody lives who has had the time to see to all that the dead have left."""
        told = Counter(row["run_id"] for row in self.books.events if row["notice"])
        for run_id, run in self.runs.items():
            if run["status"] == "running":
                raise WrongError(f"a run of a dead process is running: {run}")
            if run["status"] == "failed" and told[run_id] != 1:
                raise WrongError(f"a run has failed, and its thread was told {told[run_id]} times: {run}")

    def check_read(self, thread_id: str, events: list[Frame]) -> None:
        """Somebody new reads what is there."""
        stored = [row for row in self.books.events if row["thread_id"] == thread_id]
        if [_core(event) for event in events] != [_core(row) for row in stored]:
            raise WrongError(f"thread {thread_id} has {len(stored)} events, and these are read: {events}")

    def untold(self) -> list[str]:
        """Runs that were closed for a dead process and of which their thread says nothing."""
        told = {row["run_id"] for row in self.books.events if row["notice"]}
        return [run_id for run_id, run in self.runs.items() if run["status"] == "failed" and run_id not in told]

    def running(self) -> list[str]:
        return [run_id for run_id, run in self.runs.items() if run["status"] == "running"]

    def unanswered(self) -> list[str]:
        """Messages that are there and for which no handler ever ran."""
        ran = {key for key, _, _, _ in self.ran}
        return [key for key in self.messages if key not in ran]

    def broke_off(self) -> list[str]:
        return [run_id for run_id, run in self.runs.items() if (run["error"] or "").startswith(BROKE_OFF)]


def _core(event: Frame) -> dict[str, Any]:
    """What is the same of an event on the wire and in the database."""
    names = ("id", "thread_id", "seq", "type", "actor", "content", "data", "run_id", "client_event_id")
    return {name: event.get(name) for name in names}


def _answer(row: dict[str, Any]) -> Answer:
    return (row["type"], row["data"]["id"]) if row["type"] != "message" else ("text", row["text"])
