"""A database that the predecessor wrote becomes ours, in place: on SQLite and on PostgreSQL, with the same outcome."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from attrs import evolve
from contract import bury, later, texts
from former import COLUMNS, Database, PostgresDatabase, Rows, SqliteDatabase, empty, opened, predecessor
from services.postgres import Address

from dooers import WorkerConfig, WorkerServer
from dooers.exceptions import StoreError
from dooers.models import Change, DocumentPart, EventQuery, ImagePart, Run, RunQuery, TextPart, ThreadQuery, User
from dooers.stores import Store
from dooers.stores.migrations import HEAD
from dooers.testing import WorkerClient

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    async with empty(request) as database:
        yield database


def said(text: str) -> str:
    return json.dumps([{"type": "text", "text": text}])


def at(seconds: float) -> datetime:
    return later(seconds)


def thread(name: str = "t1", **more: Any) -> dict[str, Any]:
    times = {"created_at": at(0), "updated_at": at(9), "last_event_at": at(8)}
    place = {"worker_id": "w", "organization_id": "o", "workspace_id": "s", "user_id": "ana"}
    return {"id": name, **place, "title": None, **times, **more}


def event(
    name: str, seconds: float = 0, *, thread: str | None = "t1", actor: str | None = "user", **more: Any
) -> dict[str, Any]:
    who = {"user_id": "ana", "user_name": "Ana", "user_email": "ana@example.com"} if actor == "user" else {}
    return {
        "id": name,
        "thread_id": thread,
        "type": "message",
        "actor": actor,
        **who,
        "content": said(name),
        "created_at": at(seconds),
        **more,
    }


def run(name: str, status: str | None = "succeeded", **more: Any) -> dict[str, Any]:
    return {"id": name, "thread_id": "t1", "status": status, "started_at": at(1), "ended_at": at(2), **more}


CONVERSATION: Rows = {
    "threads": [thread(title="Größe 🦊"), thread("t2", user_id="bob", title="other")],
    "events": [
        event("m1", 1),
        event("a1", 2, actor="assistant", author="Robot", run_id="r1"),
        event(
            "call",
            3,
            actor="assistant",
            type="tool.call",
            run_id="r1",
            content=None,
            data='{"name": "f", "args": {"n": 1.5}}',
        ),
        event("m2", 4),
        event("a2", 5, actor="assistant", run_id="r2"),
        event("n1", 1, thread="t2", user_id="bob", user_name=None, user_email=None),
    ],
    "runs": [run("r1", agent_id="helper"), run("r2", "failed", error="ValueError: x")],
    "settings": [
        {
            "worker_id": "w",
            "values": '{"model": "größer", "n": 0.7, "on": true, "none": null}',
            "created_at": at(0),
            "updated_at": at(3),
        }
    ],
}


async def everything(store: Store) -> list[Any]:
    threads = await store.threads(ThreadQuery(limit=100))
    return [
        threads,
        [await store.events(EventQuery(thread_id=one.id)) for one in threads],
        await store.runs(RunQuery(limit=100)),
        [(worker_id, await store.settings(worker_id)) for worker_id in await store.configured()],
    ]


# ---------------------------------------------------------------- what comes over


async def test_a_conversation_comes_over_whole(database: Database) -> None:
    await predecessor(database, CONVERSATION)
    async with opened(database) as store:
        first, second = await store.threads(ThreadQuery(oldest_first=True))
        assert (first.id, first.title, first.worker_id, first.organization_id, first.workspace_id) == (
            "t1",
            "Größe 🦊",
            "w",
            "o",
            "s",
        )
        assert (first.created_at, first.updated_at, first.last_event_at) == (at(0), at(9), at(8))
        assert (first.user_id, first.owner) == ("ana", User("ana", "Ana", "ana@example.com"))
        assert (second.owner, second.last_seq) == (User("bob"), 1)
        events = await store.events(EventQuery(thread_id="t1"))
        assert [(one.id, one.seq, one.turn_seq) for one in events] == [
            ("m1", 1, 1), ("a1", 2, 1), ("call", 3, 1), ("m2", 4, 4), ("a2", 5, 4),
        ]  # fmt: skip
        assert first.last_seq == 5
        message, answer, call, *_ = events
        assert (message.user, message.created_at, message.content) == (first.owner, at(1), [TextPart("m1")])
        assert (answer.user, answer.author, answer.run_id) == (None, "Robot", "r1")
        assert (call.type, call.content, call.data) == ("tool.call", [], {"name": "f", "args": {"n": 1.5}})
        ended: dict[str, Any] = {"thread_id": "t1", "started_at": at(1), "ended_at": at(2)}
        assert await store.runs(RunQuery(oldest_first=True)) == [
            Run(id="r1", agent_id="helper", status="succeeded", **ended),
            Run(id="r2", status="failed", error="ValueError: x", **ended),
        ]
        stored = await store.settings("w")
        assert (stored.values, stored.updated_at) == ({"model": "größer", "n": 0.7, "on": True, "none": None}, at(3))


async def test_the_conversation_goes_on_through_the_doors(database: Database) -> None:
    await predecessor(database, CONVERSATION)
    worker = WorkerServer(evolve(database.config, worker_id="w"))
    histories: list[list[dict[str, Any]]] = []

    @worker.handler
    async def agent(incoming: Any, send: Any, memory: Any) -> Any:
        histories.append(await memory.get_history())
        yield send.text("a3")

    who: dict[str, Any] = {"worker_id": "w", "organization_id": "o", "workspace_id": "s", "user_id": "ana"}
    async with worker.lifespan(), WorkerClient(worker, **who) as client:
        snapshot = await client.ask("thread.subscribe", {"thread_id": "t1"})
        assert [one["id"] for one in snapshot["payload"]["events"]] == ["m1", "a1", "call", "m2", "a2"]
        assert (await client.say("m3", thread_id="t1")).texts == ["a3"]
        stored = await (await worker.repository()).list_events(filter={"thread_id": "t1"})
        assert sorted(one.seq for one in stored) == [1, 2, 3, 4, 5, 6, 7]
    assert [one["content"] for one in histories[0]] == ["m1", "a1", "m2", "a2", "m3"]


@pytest.mark.parametrize("related", [False, True])
async def test_adopted_tables_are_as_new_ones_are(database: Database, related: bool) -> None:
    async with opened(database):
        fresh = await database.catalog()
    prefix = database.config.database_table_prefix
    await database.execute(
        *(f'DROP TABLE "{prefix}{t}"' for t in ("events", "runs", "settings", "threads", "schema_version"))
    )
    await predecessor(database, CONVERSATION, related=related)
    async with opened(database):
        assert await database.catalog() == fresh


async def test_what_was_adopted_is_the_same_in_both_databases(worker_config: WorkerConfig, postgres: Address) -> None:
    async with postgres.database() as name:
        outcomes = []
        for database in (SqliteDatabase(worker_config), PostgresDatabase(postgres.config(name), postgres)):
            await predecessor(database, ODD)
            async with opened(database) as store:
                outcomes.append(await everything(store))
                stored = await store.apply(Change(thread=(await store.threads(ThreadQuery()))[0], removes=True))
                assert await store.thread(stored.thread.id) is None
    assert outcomes[0] == outcomes[1]


# ---------------------------------------------------------------- order


async def test_events_of_one_instant_are_in_the_order_of_their_ids_by_bytes(database: Database) -> None:
    names = ["b", "_c", "B", "a", "Z", "é", "-1"]
    await predecessor(
        database, {"threads": [thread()], "events": [*(event(name, 5) for name in names), event("first", 4)]}
    )
    async with opened(database) as store:
        events = await store.events(EventQuery(thread_id="t1"))
        assert texts(events) == ["first", *sorted(names)]
        assert [one.seq for one in events] == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_what_stands_before_the_first_message_of_a_user_is_a_turn_of_its_own(database: Database) -> None:
    events = [
        event("hello", 1, actor="assistant"),
        event("ready", 2, actor="system"),
        event("m1", 3),
        event("a1", 4, actor="tool"),
    ]
    await predecessor(database, {"threads": [thread()], "events": events})
    async with opened(database) as store:
        assert [one.turn_seq for one in await store.events(EventQuery(thread_id="t1"))] == [1, 2, 3, 3]


TIMES = {
    "2026-01-01T12:30:15.123456+00:00": at(0),
    "2026-01-01T12:30:15.123456": at(0),
    "2026-01-01T12:30:15.123456Z": at(0),
    "2026-01-01 12:30:15.123456": at(0),
    "2026-01-01 14:30:15.123456+02:00": at(0),
    "2026-01-01T14:30:15.123456+0200": at(0),
    "2026-01-01T07:00:15.123456-05:30": at(0),
    "2026-01-01T12:30:15": at(-0.123456),
    "2026-01-01T12:30:15Z": at(-0.123456),
    "2026-01-01T12:30:15+00:00": at(-0.123456),
    "2026-01-01T12:30:15.999999": datetime(2026, 1, 1, 12, 30, 15, 999999, UTC),
    "2026-01-01T12:30:15.5": datetime(2026, 1, 1, 12, 30, 15, 500000, UTC),
    "2026-01-01T12:30:15.123Z": datetime(2026, 1, 1, 12, 30, 15, 123000, UTC),
    "2026-01-01T00:00:15.000001+02": datetime(2025, 12, 31, 22, 0, 15, 1, UTC),
    "2024-02-29": datetime(2024, 2, 29, tzinfo=UTC),
    "0001-01-01T00:00:00": datetime(1, 1, 1, tzinfo=UTC),
    "9999-12-31T23:59:59.999999": datetime.max.replace(tzinfo=UTC),
}


@pytest.mark.parametrize(("text", "expected"), TIMES.items())
async def test_a_time_is_read_in_every_way_it_may_be_written(
    worker_config: WorkerConfig, text: str, expected: datetime
) -> None:
    database = SqliteDatabase(worker_config)
    await predecessor(database, {"threads": [thread(created_at=text)], "runs": [run("r", ended_at=text)]})
    async with opened(database) as store:
        [found] = await store.threads(ThreadQuery())
        [ran] = await store.runs(RunQuery())
    assert found.created_at == ran.ended_at == expected
    assert await database.fetch("SELECT created_at FROM worker_threads") == [
        (expected.isoformat(timespec="microseconds"),)
    ]


async def test_times_of_another_zone_or_of_none_are_kept_as_utc(postgres: Address) -> None:
    async with postgres.database() as name:
        database = PostgresDatabase(postgres.config(name), postgres)
        await database.execute(f"ALTER DATABASE {name} SET timezone = 'America/New_York'")
        rome = timezone(timedelta(hours=2))
        await predecessor(database, {"threads": [thread(created_at=at(0).astimezone(rome))], "events": [event("m")]})
        await database.execute(
            "ALTER TABLE worker_events ALTER created_at TYPE TIMESTAMP USING created_at AT TIME ZONE 'UTC'"
        )
        async with opened(database) as store:
            assert (await store.threads(ThreadQuery()))[0].created_at == at(0)
            assert (await store.events(EventQuery(thread_id="t1")))[0].created_at == at(0)


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-13-01T00:00:00", "1767270615.12", "2026-01-01T12:30:15 CET", "now"]
)
@pytest.mark.parametrize(
    ("table", "column"), [("threads", "created_at"), ("events", "created_at"), ("runs", "ended_at")]
)
async def test_a_time_that_cannot_be_read_is_named_and_nothing_is_touched(
    worker_config: WorkerConfig, table: str, column: str, value: str
) -> None:
    database = SqliteDatabase(worker_config)
    rows = {"threads": [thread()], "events": [event("m")], "runs": [run("r")]}
    rows[table][0][column] = value
    await predecessor(database, rows)
    before = await database.catalog()
    with pytest.raises(StoreError, match=rf"worker_{table}\.{column} of '(t1|m|r)', got '{value}'"):
        await database.store().open()
    assert await database.catalog() == before


# ---------------------------------------------------------------- odd rows

PARTS = [
    ({"type": "text", "text": "a\u00e9🦊 ' : ; % \\ \""}, TextPart("a\u00e9🦊 ' : ; % \\ \"")),
    ({"type": "text", "text": ""}, TextPart("")),
    ({"type": "text", "text": "x", "more": [1]}, TextPart("x")),
    ({"type": "image", "url": "https://x/a.png"}, ImagePart("https://x/a.png")),
    (
        {"type": "image", "url": "https://x/a.png", "mime_type": None, "width": 3, "height": None, "alt": "fox"},
        ImagePart("https://x/a.png", width=3, alt="fox"),
    ),
    (
        {"type": "document", "url": "https://x/a", "filename": "a", "mime_type": "b", "size_bytes": 7},
        DocumentPart("https://x/a", "a", "b", 7),
    ),
    (
        {"type": "document", "url": "https://x/a", "filename": None},
        DocumentPart("https://x/a", "document", "application/octet-stream"),
    ),
    ("only words", TextPart("only words")),
]
STRANGE = [
    {"type": "audio", "url": "https://x/a.mp3"},
    {"type": "text"},
    {"type": "text", "text": 5},
    {"type": "image", "url": None},
    {"type": "image", "url": "https://x/a", "width": 1.5},
    {"type": ["text"]},
    {"text": "no type"},
    {},
    ["nested"],
    17,
    0.1,
    True,
    None,
]

CONTENTS: dict[str, tuple[str | None, list[str]]] = {
    "null": (None, []),
    "json null": ("null", []),
    "empty": ("[]", []),
    "a text": ('"hello"', ["hello"]),
    "one part": ('{"type": "text", "text": "hi"}', ["hi"]),
    "a number": ("5", ["5"]),
}
DATA: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "null": (None, None),
    "json null": ("null", None),
    "empty": ("{}", {}),
    "a list": ("[1, 2]", {"value": [1, 2]}),
    "a text": ('"x"', {"value": "x"}),
    "deep": ('{"a": {"b": [1, {"c": null}]}, "big": 12345678901234567890, "f": 0.30000000000000004}', {
        "a": {"b": [1, {"c": None}]}, "big": 12345678901234567890, "f": 0.1 + 0.2,
    }),
}  # fmt: skip


async def test_content_and_data_are_kept_whatever_they_are(database: Database) -> None:
    events = [
        event("parts", content=json.dumps([part for part, _ in PARTS])),
        event("strange", content=json.dumps(STRANGE)),
    ]
    events += [event(f"content {name}", content=given) for name, (given, _) in CONTENTS.items()]
    events += [event(f"data {name}", data=given) for name, (given, _) in DATA.items()]
    await predecessor(database, {"threads": [thread()], "events": events})
    async with opened(database) as store:
        found = {one.id: one for one in await store.events(EventQuery(thread_id="t1"))}
    assert found["parts"].content == [part for _, part in PARTS]
    assert [json.loads(part.text) for part in found["strange"].content if isinstance(part, TextPart)] == STRANGE
    for name, (_, words) in CONTENTS.items():
        assert texts([found[f"content {name}"]]) == ["\n".join(words)]
    for name, (_, data) in DATA.items():
        assert found[f"data {name}"].data == data


@pytest.mark.parametrize("text", ["not json {", "", "[NaN]", "{'a': 1}"])
async def test_a_text_that_is_no_json_is_kept_as_a_text(worker_config: WorkerConfig, text: str) -> None:
    database = SqliteDatabase(worker_config)
    settings = [{"worker_id": "w", "values": text, "updated_at": at(0)}]
    await predecessor(
        database, {"threads": [thread()], "events": [event("m", content=text, data=text)], "settings": settings}
    )
    async with opened(database) as store:
        [found] = await store.events(EventQuery(thread_id="t1"))
        assert (await store.settings("w")).values == ({"values": text} if text else {})
    assert (found.text, found.data) == (text, {"value": text} if text else None)


VALUES = {"x": {"y": [1, "é"]}, "": "empty", 'a.b"c': 0.1 + 0.2, "big": 1e300}

ODD: Rows = {
    "threads": [
        thread(created_at=None, updated_at=None, last_event_at=None),
        dict.fromkeys(COLUMNS["threads"].split()) | {"id": "bare"},
        thread("nameless", user_id="cleo"),
    ],
    "events": [
        event("m1", 5),
        event("m2", 6, type="typing.started", actor="robot"),
        event("m3", 7, type=None, actor=None, run_id="nowhere"),
        event("untimed", created_at=None),
        event("x", 3, thread="gone"),
        event("y", 4, thread="gone", actor="assistant"),
        event("z", 4, thread=None),
    ],
    "runs": [
        run("r1", "cancelled"),
        run("r2", "pending", ended_at=None),
        run("r3", None, started_at=None),
        run("r4", "running", ended_at=None),
        run("r5", thread_id="gone too", started_at=None, ended_at=None),
        run("r6", thread_id="gone"),
    ],
    "settings": [
        {"worker_id": "a", "values": None, "created_at": at(0)},
        {"worker_id": "b", "values": "{}", "created_at": at(0)},
        {"worker_id": "c", "values": json.dumps(VALUES), "created_at": at(2)},
        {"worker_id": "d", "values": "[1]", "created_at": None, "updated_at": at(1)},
    ],
}  # fmt: skip


async def test_odd_rows_are_kept_too(database: Database) -> None:
    await predecessor(database, ODD)
    async with opened(database) as store:
        threads = {one.id: one for one in await store.threads(ThreadQuery())}
        assert set(threads) == {"t1", "bare", "nameless", "gone", "gone too", "orphaned"}
        bare, gone = threads["bare"], threads["gone"]
        assert (bare.worker_id, bare.organization_id, bare.workspace_id, bare.user_id, bare.owner) == (
            "",
            "",
            "",
            "",
            User(),
        )
        assert bare.created_at == bare.last_event_at == EPOCH
        assert threads["nameless"].owner == User("cleo")
        assert threads["t1"].last_event_at == at(7)
        # A place that nobody is let into, as nobody can say whose it was.
        assert {(gone.worker_id, gone.organization_id, gone.workspace_id, gone.user_id)} == {("orphaned",) * 3 + ("",)}
        assert (gone.created_at, gone.last_event_at, gone.last_seq) == (at(3), at(4), 2)
        assert texts(await store.events(EventQuery(thread_id="gone"))) == ["x", "y"]
        assert texts(await store.events(EventQuery(thread_id="orphaned"))) == ["z"]

        events = await store.events(EventQuery(thread_id="t1"))
        assert [(one.id, one.type, one.actor) for one in events] == [
            ("untimed", "message", "user"), ("m1", "message", "user"), ("m2", "typing.started", "robot"), ("m3", "message", "system"),
        ]  # fmt: skip
        assert events[0].created_at == EPOCH

        runs = {one.id: one for one in await store.runs(RunQuery())}
        assert {name: one.status for name, one in runs.items()} == {
            "r1": "canceled", "r2": "pending", "r3": "failed", "r4": "failed", "r5": "succeeded", "r6": "succeeded",
        }  # fmt: skip
        assert (runs["r3"].started_at, runs["r5"].started_at, runs["r2"].ended_at) == (at(2), EPOCH, None)
        assert await bury(store, later(60), later(60), "lost") == []

        assert await store.configured() == ["c", "d"]
        assert ((await store.settings("c")).values, (await store.settings("c")).updated_at) == (VALUES, at(2))
        assert (await store.settings("d")).values == {"values": [1]}


async def test_rows_that_nobody_is_related_to_go_with_foreign_keys_too(worker_config: WorkerConfig) -> None:
    database = SqliteDatabase(worker_config)  # which keeps them only for who asks for it
    await predecessor(database, ODD, related=True)
    async with opened(database) as store:
        assert await store.count_threads({"worker_id": "orphaned"}) == 3


async def test_no_row_is_joined_with_every_other(worker_config: WorkerConfig) -> None:
    database = SqliteDatabase(worker_config)
    await predecessor(database, ODD)
    upgrade = (await database.store().schema()).upgrade
    assert upgrade is not None
    plans: list[str] = []
    with closing(sqlite3.connect(worker_config.database_name)) as connection:
        for statement in upgrade():
            if statement.startswith("INSERT"):
                plans += [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
            connection.execute(statement)
    joins = [line for line in plans if "JOIN" in line]
    assert len(joins) == 5
    assert [line for line in joins if not line.startswith("SEARCH")] == []


async def test_an_error_that_people_were_shown_is_no_part_of_a_models_history(database: Database) -> None:
    events = [
        event("m1", 1),
        event("by data", 2, actor="system", data='{"error": true}'),
        event("boom", 3, actor="system", run_id="r"),
        event("a rule", 4, actor="system", run_id="r"),
        event("an answer", 5, actor="assistant", data='{"error": true}'),
    ]
    await predecessor(database, {"threads": [thread()], "events": events, "runs": [run("r", "failed", error="boom")]})
    async with opened(database) as store:
        assert texts(await store.events(EventQuery(thread_id="t1", for_model=True))) == ["m1", "a rule", "an answer"]
        assert len(await store.events(EventQuery(thread_id="t1"))) == 5


async def test_a_password_in_clear_can_be_sealed_afterwards(database: Database) -> None:
    await predecessor(
        database,
        {"settings": [{"worker_id": "w", "values": '{"key": "s\\u00e9cret \\" \\\\ \\u001b"}', "updated_at": at(0)}]},
    )
    async with opened(database) as store:
        assert await store.swap_setting("w", "key", 's\u00e9cret " \\ \x1b', {"sealed": "x"})


# ---------------------------------------------------------------- when, and when not


async def test_without_auto_migrate_it_is_said_what_was_found(database: Database) -> None:
    await predecessor(database, CONVERSATION)
    before = await database.catalog()
    with pytest.raises(StoreError, match=f"tables of the predecessor.* needs {HEAD}.*dooers migrate"):
        await database.store(database_auto_migrate=False).open()
    assert await database.catalog() == before
    assert await database.store(database_auto_migrate=False).migrate() == (
        f"adopted the tables of the predecessor (2 threads, 6 events, 2 runs, 4 settings): now schema version {HEAD}"
    )
    async with opened(database, database_auto_migrate=False) as store:
        assert await store.count_threads({}) == 2


async def test_an_empty_database_of_the_predecessor_is_adopted_too(database: Database) -> None:
    await predecessor(database, {})
    async with opened(database) as store:
        assert await everything(store) == [[], [], [], []]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('ALTER TABLE "{p}events" ADD COLUMN topic TEXT', "columns of {p}events: unexpected topic."),
        ('ALTER TABLE "{p}runs" DROP COLUMN error', "columns of {p}runs: missing error."),
        ('ALTER TABLE "{p}settings" RENAME COLUMN "values" TO "value"', "unexpected value, missing values."),
        ('DROP TABLE "{p}settings"', "there is no {p}settings."),
    ],
)
@pytest.mark.parametrize("prefix", ["worker_", "", "Odd_"])
async def test_tables_of_somebody_else_are_told_and_left_alone(
    database: Database, prefix: str, change: str, said: str
) -> None:
    database = evolve(database, config=evolve(database.config, database_table_prefix=prefix))
    await predecessor(database, CONVERSATION)
    await database.execute(change.format(p=prefix))
    before = await database.catalog()
    for migrate in (True, False):
        with pytest.raises(StoreError) as caught:
            await database.store(database_auto_migrate=migrate).open()
        assert said.format(p=prefix) in str(caught.value)
        assert f"database_table_prefix other than {prefix!r}" in str(caught.value)
    with pytest.raises(StoreError, match="not the predecessor's"):
        await database.store().schema()
    assert await database.catalog() == before


@pytest.mark.parametrize("prefix", ["", "Odd_Case_", "p" * 40])
async def test_any_prefix_is_adopted(database: Database, prefix: str) -> None:
    database = evolve(database, config=evolve(database.config, database_table_prefix=prefix))
    await predecessor(database, CONVERSATION)
    async with opened(database) as store:
        assert await store.count_threads({}) == 2
    async with opened(database) as store:  # once
        assert len(await store.events(EventQuery(thread_id="t1"))) == 5


async def test_a_failure_in_the_middle_leaves_the_tables_of_the_predecessor_alone(database: Database) -> None:
    await predecessor(database, CONVERSATION)
    prefix = database.config.database_table_prefix
    # In the way of the last step: all rows have been copied by then, and the old tables dropped.
    await database.execute(f"CREATE VIEW {prefix}runs_running AS SELECT 1 AS one")
    before, rows = await database.catalog(), await database.fetch(f"SELECT * FROM {prefix}events ORDER BY id")
    for _ in range(2):
        with pytest.raises(StoreError, match="runs_running"):
            await database.store().open()
        assert await database.catalog() == before
    assert await database.fetch(f"SELECT * FROM {prefix}events ORDER BY id") == rows
    await database.execute(f"DROP VIEW {prefix}runs_running")
    async with opened(database) as store:
        assert await store.count_threads({}) == 2
