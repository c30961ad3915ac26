"""The documents of the Cosmos DB store: where each one lives, what is in it, which are asked for. Values and text only.

One container, partitioned by `/pk`:

| pk | id | what |
|---|---|---|
| `thread:<thread id>` | `thread` | the thread, `body` as in the SQL tables; every transaction of the partition replaces it |
| | `event:<event id>`, `run:<run id>` | what belongs to the thread |
| `key:<repeat key>` | `key` | which event was the first with this repeat key; a claim until that event is there |
| `settings:<worker id>` | `field:<field id>` | one field of the settings |
| `process:<process id>` | `process` | when that process last said that it lives; goes away by itself |
| `lease:<key>` | `lease` | who holds a lock (`brokers/cosmos.py`); goes away by itself |

A thread shares its partition with all that is in it because a transaction of Cosmos DB lives inside one partition; and it can be read,
paged and removed there without asking anybody else. A partition holds 20 GB, which no conversation reaches.

JSON columns stay text inside `body`: numbers of Cosmos DB are doubles, ours have 64 bits, and what is not indexed costs less to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from re import compile as pattern
from typing import Any

from attrs import frozen

from dooers.codec import dumps
from dooers.models import EventQuery, Run, RunQuery, Thread, ThreadEvent, ThreadQuery
from dooers.stores.rows import event_row, run_row, stamp, thread_of, thread_row
from dooers.stores.sql import check_filter
from dooers.stores.titles import pattern_of

__all__ = [
    "INDEXING",
    "KEY",
    "LEASE",
    "OPEN_RUNS",
    "PROCESS",
    "THREAD",
    "Query",
    "claim_document",
    "count_threads",
    "event_document",
    "event_name",
    "field_document",
    "field_name",
    "key_partition",
    "lease_document",
    "lease_partition",
    "leftovers",
    "list_events",
    "list_runs",
    "list_threads",
    "process_document",
    "process_partition",
    "run_document",
    "run_name",
    "settings_partition",
    "shown",
    "thread_document",
    "thread_partition",
    "tombstone_document",
    "void_document",
]

THREAD = "thread"
KEY = "key"
LEASE = "lease"
PROCESS = "process"

# How long a void document is kept, in seconds: far longer than any write that it may have to keep out.
VOID_FOR = 24 * 3600

# Only what a query compares or sorts by. Indexing the texts would more than double the price of every message.
_INDEXED = [
    *("pk", "kind", "worker_id", "since", "until"),
    *("body/id", "body/worker_id", "body/organization_id", "body/workspace_id", "body/user_id", "body/title"),
    *("body/last_event_at", "body/seq", "body/turn_seq"),
    *("body/thread_id", "body/agent_id", "body/status", "body/started_at"),
]
INDEXING: dict[str, Any] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": f"/{path}/?"} for path in _INDEXED],
    "excludedPaths": [{"path": "/*"}],
    # Sorting by two properties needs both in one index; it serves the opposite direction too.
    "compositeIndexes": [
        [{"path": f"/body/{name}", "order": "descending"}, {"path": "/body/id", "order": "descending"}]
        for name in ("last_event_at", "started_at")
    ],
}

# Numbers of Cosmos DB are doubles: above this, they skip some.
_HIGHEST = 2**53

_PLAIN = pattern(r"[A-Za-z0-9_.-]{1,200}")


@frozen
class Query:
    """A query, its values, and the partition it stays in (None: it asks all of them)."""

    text: str
    values: dict[str, Any]
    partition: str | None = None


# ---------------------------------------------------------------- names


def _name(kind: str, value: str) -> str:
    """A name made of somebody's id. Cosmos DB allows neither every character in an id nor every length; a digest has both right."""
    if not _PLAIN.fullmatch(value):
        value = "~" + sha256(value.encode(errors="surrogatepass")).hexdigest()
    return f"{kind}:{value}"


def thread_partition(thread_id: str) -> str:
    return _name("thread", thread_id)


def key_partition(repeat_key: str) -> str:
    return _name("key", repeat_key)


def settings_partition(worker_id: str) -> str:
    return _name("settings", worker_id)


def process_partition(process_id: str) -> str:
    return _name("process", process_id)


def lease_partition(key: str) -> str:
    return _name("lease", key)


def event_name(event_id: str) -> str:
    return _name("event", event_id)


def run_name(run_id: str) -> str:
    return _name("run", run_id)


def field_name(field_id: str) -> str:
    return _name("field", field_id)


# ---------------------------------------------------------------- documents


def thread_document(thread: Thread, version: int, mark: str, maker: str) -> dict[str, Any]:
    """`version` counts the transactions, `mark` names the last of them, `maker` the first."""
    return {
        "id": THREAD,
        "pk": thread_partition(thread.id),
        "kind": "thread",
        "body": thread_row(thread, stamp),
        "version": version,
        "mark": mark,
        "maker": maker,
    }


def event_document(event: ThreadEvent, mark: str, repeat_key: str | None) -> dict[str, Any]:
    return {
        "id": event_name(event.id),
        "pk": thread_partition(event.thread_id),
        "kind": "event",
        "body": event_row(event, stamp),
        "mark": mark,
        "repeat_key": repeat_key,
    }


def run_document(run: Run, worker_id: str, since: int, until: int | None) -> dict[str, Any]:
    """`since` and `until`: the versions of the thread between which it ran. A snapshot asks who ran at its own."""
    return {
        "id": run_name(run.id),
        "pk": thread_partition(run.thread_id),
        "kind": "run",
        "body": run_row(run, stamp),
        "worker_id": worker_id,
        "since": since,
        "until": until,
    }


def tombstone_document(thread_id: str, mark: str) -> dict[str, Any]:
    """Stands in the place of a thread that is removed, until nothing of it is left."""
    return {"id": THREAD, "pk": thread_partition(thread_id), "kind": "removed", "thread_id": thread_id, "mark": mark}


def void_document(thread_id: str, event_id: str) -> dict[str, Any]:
    """Stands where an event would be written, so that it cannot be any more."""
    return {
        "id": event_name(event_id),
        "pk": thread_partition(thread_id),
        "kind": "void",
        "ttl": VOID_FOR,
    }


def claim_document(repeat_key: str, thread_id: str, event_id: str, mark: str) -> dict[str, Any]:
    return {
        "id": KEY,
        "pk": key_partition(repeat_key),
        "kind": "key",
        "thread_id": thread_id,
        "event_id": event_id,
        "mark": mark,
    }


def field_document(worker_id: str, field_id: str, value: Any, updated_at: str) -> dict[str, Any]:
    return {
        "id": field_name(field_id),
        "pk": settings_partition(worker_id),
        "kind": "setting",
        "worker_id": worker_id,
        "field_id": field_id,
        "value": dumps(value),
        "updated_at": updated_at,
    }


def process_document(process_id: str, at: str, seconds: int) -> dict[str, Any]:
    return {"id": PROCESS, "pk": process_partition(process_id), "kind": "process", "at": at, "ttl": seconds}


def lease_document(key: str, holder: str, seconds: int) -> dict[str, Any]:
    """Each write of it has another ETag, and that is its sign of life: nobody reads a time in it."""
    return {"id": LEASE, "pk": lease_partition(key), "kind": "lease", "holder": holder, "ttl": seconds}


def shown(document: dict[str, Any] | None) -> Thread | None:
    """The thread of a document; None for a tombstone, and for a thread that is still being staged."""
    return thread_of(document["body"]) if document is not None and document["kind"] == "thread" else None


# ---------------------------------------------------------------- queries

# Nothing else has such a property, so the index leads to the runs that run and to no other document, however many there are.
OPEN_RUNS = "SELECT c.body FROM c WHERE c.until = null"


def _where(table: str, equal: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    check_filter(table, equal)
    # The worker of a run is its thread's, written beside it: there are no joins between documents.
    where = [
        f"c.{name} = @{name}" if table == "runs" and name == "worker_id" else f"c.body.{name} = @{name}"
        for name in equal
    ]
    return where, dict(equal)


def _select(what: str, where: list[str], order: str, limit: int | None, values: dict[str, Any]) -> Query:
    top = ""
    if limit is not None:
        top, values["top"] = "TOP @top ", limit
    # The partition stands in the text as well: the emulators look for it there.
    return Query(f"SELECT {top}{what} FROM c WHERE {' AND '.join(where)}{order}", values, values.get("pk"))


def _threads(equal: Mapping[str, str], containing: str | None) -> tuple[list[str], dict[str, Any]]:
    where, values = _where("threads", equal)
    where.insert(0, "c.kind = 'thread'")
    if containing:
        where.append("RegexMatch(c.body.title, @pattern)")
        values["pattern"] = pattern_of(containing)
    return where, values


def list_threads(query: ThreadQuery) -> Query:
    where, values = _threads(query.equal, query.containing)
    if query.before is not None:
        where.append("(c.body.last_event_at < @at OR (c.body.last_event_at = @at AND c.body.id < @before))")
        values.update(at=stamp(query.before[0]), before=query.before[1])
    if query.until is not None:
        where.append("(c.body.last_event_at > @end OR (c.body.last_event_at = @end AND c.body.id >= @until))")
        values.update(end=stamp(query.until[0]), until=query.until[1])
    way = "ASC" if query.oldest_first else "DESC"
    return _select("*", where, f" ORDER BY c.body.last_event_at {way}, c.body.id {way}", query.limit, values)


def count_threads(equal: Mapping[str, str], containing: str | None = None) -> Query:
    where, values = _threads(equal, containing)
    return _select("VALUE COUNT(1)", where, "", None, values)


def list_events(query: EventQuery, last_seq: int | None = None) -> Query:
    """The newest `limit`, newest first (the oldest, oldest first, with `oldest_first`); those up to `last_seq`, if it is known."""
    where, values = _where("events", query.equal)
    where[:0] = ["c.pk = @pk", "c.kind = 'event'"]
    values["pk"] = thread_partition(query.thread_id)
    # Both bounds always: a few texts that the service has planned already, instead of many.
    where.append("c.body.seq > @after AND c.body.seq <= @upto")
    upto = _HIGHEST if last_seq is None else last_seq
    values["after"] = query.after_seq or 0
    values["upto"] = upto if query.before_seq is None else min(upto, query.before_seq - 1)
    if query.until_turn is not None:
        where.append("c.body.turn_seq <= @until_turn")
        values["until_turn"] = query.until_turn
    if query.turn is not None:
        where.append("c.body.turn_seq = @turn")
        values["turn"] = query.turn
    if query.for_model:
        where.append("c.body.type = 'message' AND c.body.notice = 0")
    way = "ASC" if query.oldest_first else "DESC"
    return _select("*", where, f" ORDER BY c.body.seq {way}", query.limit, values)


def list_runs(query: RunQuery, gone: list[str], version: int | None = None) -> Query:
    """Runs, but not those of the threads that are `gone`. With `version`: those that ran when their thread was at it."""
    where, values = _where("runs", query.equal)
    where.insert(0, "c.kind = 'run'")
    if version is not None:
        where = [test for test in where if test != "c.body.status = @status"]
        del values["status"]
        where.append("c.since <= @version AND (c.until = null OR c.until > @version)")
        values["version"] = version
    if "thread_id" in query.equal:
        where.append("c.pk = @pk")
        values["pk"] = thread_partition(query.equal["thread_id"])
    if query.before is not None:
        where.append("(c.body.started_at < @at OR (c.body.started_at = @at AND c.body.id < @before))")
        values.update(at=stamp(query.before[0]), before=query.before[1])
    if gone:
        where.append("NOT ARRAY_CONTAINS(@gone, c.body.thread_id)")
        values["gone"] = gone
    way = "ASC" if query.oldest_first else "DESC"
    return _select("*", where, f" ORDER BY c.body.started_at {way}, c.body.id {way}", query.limit, values)


def leftovers(partition: str, limit: int, above: int | None = None) -> Query:
    """What a removed thread left behind; with `above`, the events that a Change of many transactions left there."""
    where = ["c.pk = @pk"]
    values: dict[str, Any] = {"pk": partition}
    if above is None:
        where.append("(c.kind = 'event' OR c.kind = 'run')")
    else:
        where.append("c.kind = 'event' AND c.body.seq > @above")
        values |= {"above": above}
    return _select("c.id, c.repeat_key, c.body.id AS event_id", where, "", limit, values)
