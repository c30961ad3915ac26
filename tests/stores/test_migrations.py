"""The versions of the schema: from each to the newest with data in it, once among many processes, and never back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from attrs import evolve
from contract import OWNER, T0, a_thread, bury, later, opening, texts
from former import COLUMNS, Database, PostgresDatabase, Rows, SqliteDatabase, empty, opened, predecessor

from dooers import WorkerConfig
from dooers.exceptions import StoreError
from dooers.models import ContentPart, EventQuery, Run, RunQuery, TextPart, ThreadEvent, ThreadQuery
from dooers.stores.migrations import HEAD, VERSIONS
from dooers.stores.rows import event_row, run_row, stamp, thread_row

WITHIN = 60.0
# The schema as each version made it, written down when it was released: a script that is changed later is found out.
WRITTEN = Path(__file__).parent / "versions"


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """An empty database that nobody else has."""
    async with empty(request) as database:
        yield database


def test_the_versions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", "dooers:stores/migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == VERSIONS
    assert scripts.get_heads() == [HEAD]


# ---------------------------------------------------------------- from each version

CALL = {"name": "größer", "args": {"n": [1, 2.5, None]}}


async def filled(database: Database, version: str) -> None:
    """A database of a version, with a conversation in it."""
    for statement in (WRITTEN / f"{version}.{database.dialect}.sql").read_text().split(";\n"):
        if statement.strip():
            await database.execute(statement)
    at = stamp if database.dialect == "sqlite" else lambda moment: moment
    thread = a_thread("t", title="Größe 🦊", metadata={"a": [1]}, last_seq=2)
    content: list[ContentPart] = [TextPart("hi")]
    events = [
        ThreadEvent(
            id="m",
            thread_id="t",
            type="message",
            actor="user",
            user=OWNER,
            content=content,
            seq=1,
            turn_seq=1,
            created_at=T0,
        ),
        ThreadEvent(
            id="c",
            thread_id="t",
            type="tool.call",
            actor="assistant",
            data=CALL,
            seq=2,
            turn_seq=1,
            created_at=later(1),
        ),
    ]
    runs = [
        Run(id="done", thread_id="t", agent_id="a", status="failed", started_at=T0, ended_at=later(1), error="why"),
        Run(id="left", thread_id="t", started_at=later(2)),
    ]
    await database.insert("worker_threads", [thread_row(thread, at)])
    await database.insert("worker_events", [event_row(event, at) for event in events])
    known = {"0001": {"process_id"}}.get(version, set())
    await database.insert(
        "worker_runs", [{k: v for k, v in run_row(run, at).items() if k not in known} for run in runs]
    )
    setting = {"worker_id": "w", "field_id": "f", "value": json.dumps({"a": 1}), "updated_at": at(T0)}
    await database.insert("worker_settings", [setting])


@pytest.mark.parametrize("version", VERSIONS[:-1])
async def test_what_a_version_stored_is_there_in_the_newest(database: Database, version: str) -> None:
    await filled(database, version)
    schema = await database.store().schema()
    assert (schema.current, schema.found, schema.needed) == (
        False,
        f"schema version {version}",
        f"schema version {HEAD}",
    )
    assert await database.store().migrate() == f"brought the database from schema version {version} to {HEAD}"
    async with opened(database, database_auto_migrate=False) as store:
        thread = await store.thread("t")
        assert thread is not None
        assert thread == a_thread("t", title="Größe 🦊", metadata={"a": [1]}, last_seq=2)
        message, call = await store.events(EventQuery(thread_id="t"))
        assert (message.user, message.text, message.seq, call.data, call.turn_seq) == (OWNER, "hi", 1, CALL, 1)
        left, done = await store.runs(RunQuery())
        assert (left.status, done.agent_id, done.error, done.ended_at) == ("running", "a", "why", later(1))
        assert await bury(store, later(2), later(60), "lost") == []
        assert [run.id for run in await bury(store, later(3), later(60), "lost")] == ["left"]
        assert (await store.settings("w")).values == {"f": {"a": 1}}
        stored = await store.apply(opening(thread, evolve(message, id="next", seq=0, turn_seq=0)))
        assert (stored.created, stored.events[0].seq) == (False, 3)


@pytest.mark.parametrize("version", VERSIONS[:-1])
async def test_an_upgraded_schema_is_as_a_new_one_is(database: Database, version: str) -> None:
    await filled(database, version)
    await database.store().migrate()
    upgraded = await database.catalog()
    tables = ("events", "runs", "settings", "threads", "schema_version")
    await database.execute(*(f'DROP TABLE "worker_{table}"' for table in tables))
    await database.store().migrate()
    assert await database.catalog() == upgraded


@pytest.mark.parametrize("version", VERSIONS[:-1])
async def test_without_auto_migrate_an_older_version_is_told_and_left_alone(database: Database, version: str) -> None:
    await filled(database, version)
    before = await database.catalog()
    with pytest.raises(StoreError, match=f"has schema version {version}, this code needs {HEAD}; run `dooers migrate"):
        await database.store(database_auto_migrate=False).open()
    assert await database.catalog() == before


async def test_what_was_done_is_said(database: Database) -> None:
    assert (await database.store().schema()).found == "no schema version"
    assert await database.store().migrate() == f"made the tables: schema version {HEAD}"
    assert await database.store().migrate() == f"the database was up to date: schema version {HEAD}"
    schema = await database.store().schema()
    assert (schema.current, schema.found) == (True, f"schema version {HEAD}")
    assert schema.upgrade is not None
    assert schema.upgrade() == []


async def test_a_newer_schema_is_told_and_never_touched(database: Database) -> None:
    await database.store().migrate()
    await database.execute("UPDATE worker_schema_version SET version_num = '9999'", "DROP TABLE worker_settings")
    before = await database.catalog()
    newer = f"schema version 9999, this code knows versions up to {HEAD}.*[Uu]pdate dooers"
    for migrate in (True, False):
        with pytest.raises(StoreError, match=newer) as caught:
            await database.store(database_auto_migrate=migrate).open()
        assert "auto_migrate" not in str(caught.value)
    with pytest.raises(StoreError, match=newer):
        await database.store().migrate()
    with pytest.raises(StoreError, match=newer):
        await database.store().schema()
    assert await database.catalog() == before


# ---------------------------------------------------------------- the SQL


@pytest.mark.parametrize("version", [None, *VERSIONS[:-1], "predecessor"])
async def test_the_sql_that_is_shown_does_what_a_migration_does(database: Database, version: str | None) -> None:
    if version == "predecessor":
        await predecessor(database, OLD)
    elif version is not None:
        await filled(database, version)
    shown = (await database.store().schema()).upgrade
    assert shown is not None
    await database.execute(*(statement.rstrip(";") for statement in shown() if not statement.startswith("--")))
    assert (await database.store().schema()).current
    by_hand = await database.catalog()
    async with opened(database, database_auto_migrate=False) as store:
        assert await store.count_threads({}) == {None: 0, "predecessor": 3}.get(version, 1)
    tables = ("events", "runs", "settings", "threads", "schema_version")
    await database.execute(*(f'DROP TABLE "worker_{table}"' for table in tables))
    await database.store().migrate()
    assert await database.catalog() == by_hand


@pytest.mark.parametrize("name", ["no directory/worker.db", "worker.db"])
async def test_looking_at_a_file_that_is_not_there_makes_none(
    tmp_path: Path, worker_config: WorkerConfig, name: str
) -> None:
    store = SqliteDatabase(evolve(worker_config, database_name=str(tmp_path / name))).store()
    assert not (await store.schema()).current
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["closed", "open"])
async def test_looking_at_a_file_changes_nothing_of_it(tmp_path: Path, worker_config: WorkerConfig, left: str) -> None:
    database = SqliteDatabase(worker_config)
    await predecessor(database, OLD)
    before = (tmp_path / "worker.db").read_bytes()
    assert (await database.store().schema()).found == "the tables of the predecessor, without a schema version"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("worker.db", before)]
    async with opened(database) as store:
        if left == "closed":
            await store.close()
        assert (await database.store().schema()).current


async def test_a_database_in_memory_has_no_schema_to_look_at(worker_config: WorkerConfig) -> None:
    for config in (WorkerConfig(database_type="memory"), evolve(worker_config, database_name=":memory:")):
        store = SqliteDatabase(config).store()
        assert (await store.schema()).current
        assert "in memory" in await store.migrate()


# ---------------------------------------------------------------- order


async def test_ids_sort_by_bytes_in_every_column_that_sorts(postgres: Any) -> None:
    async with postgres.database() as name:
        database = PostgresDatabase(postgres.config(name), postgres)
        await database.store().migrate()
        sorts = await database.fetch(
            "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_collation o ON o.oid = a.attcollation WHERE c.relkind = 'r' AND o.collname = 'C' AND c.relname LIKE 'worker%'"
        )
    ids = {
        "worker_threads.id",
        "worker_events.id",
        "worker_events.thread_id",
        "worker_runs.id",
        "worker_runs.thread_id",
    }
    assert {row[0] for row in sorts} == ids


# ---------------------------------------------------------------- many processes at once

OPEN_AND_WRITE = """
import asyncio, json, sys, uuid
from dooers import WorkerConfig
from dooers.clock import SystemClock
from dooers.models import Change, Thread, ThreadEvent, User
from dooers.stores import open_store

async def main():
    store = open_store(WorkerConfig(**json.loads(sys.argv[1])))
    import alembic.runtime.environment  # so that none is late for having to load it
    print("ready", flush=True)
    sys.stdin.readline()
    await store.open()
    name, now = str(uuid.uuid4()), SystemClock().now()
    place = dict(worker_id="w", organization_id="o", workspace_id="s", user_id="u", owner=User())
    thread = Thread(id=name, **place, created_at=now, updated_at=now, last_event_at=now)
    for n in range(3):
        event = ThreadEvent(id=f"{name}-{n}", thread_id=name, type="message", actor="user", created_at=now)
        await store.apply(Change(thread=thread, opens=n == 0, events=(event,)))
    await store.close()

asyncio.run(main())
"""
OLD: Rows = {
    "threads": [
        dict.fromkeys(COLUMNS["threads"].split(), name) | {"created_at": T0, "updated_at": T0, "last_event_at": T0}
        for name in ("t0", "t1", "t2")
    ],
    "events": [
        {
            "id": f"e{n}",
            "thread_id": f"t{n % 3}",
            "content": f'[{{"type": "text", "text": "{n}"}}]',
            "created_at": later(n),
        }
        for n in range(300)
    ],
}


def started(config: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OPEN_AND_WRITE, config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.parametrize("before", ["nothing", "the predecessor's tables"])
async def test_of_ten_processes_that_start_at_once_one_migrates(database: Database, before: str) -> None:
    if before == "the predecessor's tables":
        await predecessor(database, OLD)
    config = database.config
    names = ("type", "host", "port", "user", "password", "name")
    given = {f"database_{name}": getattr(config, f"database_{name}") for name in names}
    processes = [started(json.dumps(given)) for _ in range(10)]
    for process in processes:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, None, WITHIN)
        assert process.returncode == 0, errors
    async with opened(database) as store:
        threads = await store.threads(ThreadQuery(limit=100))
        made = [thread for thread in threads if thread.worker_id == "w"]
        assert [thread.last_seq for thread in made] == [3] * 10
        if before == "the predecessor's tables":
            assert len(threads) == 13
            for n in range(3):
                assert texts(await store.events(EventQuery(thread_id=f"t{n}"))) == [str(m) for m in range(n, 300, 3)]
    assert await database.fetch("SELECT version_num FROM worker_schema_version") == [(HEAD,)]
