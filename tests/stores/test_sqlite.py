"""The SQLite store: the contract of all stores, and what only a file can do: be locked, be broken, be opened ten times at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from attrs import evolve
from contract import T0, StoreContract, a_run, a_thread, an_event, bury, later, opened, opening, seqs, texts

from dooers import WorkerConfig
from dooers.exceptions import DooersError, StoreError
from dooers.models import Change, EventQuery, Run, RunQuery, ThreadQuery
from dooers.stores import Store, migrations, open_store, sqlite, sqlite_schema
from dooers.stores.migrations import HEAD
from dooers.stores.rows import stamp
from dooers.stores.sqlite import SqliteStore
from dooers.stores.sqlite_connection import hop

WITHIN = 30.0


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, worker_config: WorkerConfig) -> AsyncIterator[Store]:
        store = SqliteStore(worker_config)
        await store.open()
        yield store
        await store.close()


@pytest.fixture
async def store(worker_config: WorkerConfig) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(worker_config)
    await store.open()
    yield store
    await store.close()


async def on_writer(store: SqliteStore, work: Any) -> Any:
    """Run a function with the store's writing connection, on its thread."""
    assert store._writer is not None
    return await hop(store._writer, work)


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


# ---------------------------------------------------------------- how the file is used


def test_the_config_chooses_this_store(worker_config: WorkerConfig) -> None:
    assert isinstance(open_store(worker_config), SqliteStore)


async def test_both_connections_use_wal_full_synchronous_and_foreign_keys(store: SqliteStore) -> None:
    # The writer waits as long, but looks every now and then whether it still is to.
    for connection, patience in ((store._writer, 100), (store._reader, 10_000)):
        assert connection is not None
        assert await hop(connection, lambda raw: pragma(raw, "journal_mode")) == "wal"
        assert await hop(connection, lambda raw: pragma(raw, "synchronous")) == 2
        assert await hop(connection, lambda raw: pragma(raw, "foreign_keys")) == 1
        assert await hop(connection, lambda raw: pragma(raw, "busy_timeout")) == patience
        assert await hop(connection, lambda raw: pragma(raw, "secure_delete")) == 2  # FAST


async def test_concurrent_changes_share_their_commits(store: SqliteStore) -> None:
    thread = await opened(store)
    traced: list[str] = []
    await on_writer(store, lambda raw: raw.set_trace_callback(traced.append))
    await asyncio.gather(*(store.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(100)))
    await on_writer(store, lambda raw: raw.set_trace_callback(None))
    assert traced.count("BEGIN IMMEDIATE") == traced.count("COMMIT") <= 5
    assert "ROLLBACK" not in traced


async def test_a_change_that_is_not_found_costs_its_group_nothing(store: SqliteStore) -> None:
    thread = await opened(store)
    traced: list[str] = []
    await on_writer(store, lambda raw: raw.set_trace_callback(traced.append))
    threads = [a_thread() if n % 2 else thread for n in range(100)]
    futures = [store.apply(Change(thread=one, events=(an_event(one),))) for one in threads]
    await asyncio.gather(*futures, return_exceptions=True)
    await on_writer(store, lambda raw: raw.set_trace_callback(None))
    assert traced.count("COMMIT") <= 5
    assert "ROLLBACK" not in traced
    assert seqs(await store.events(EventQuery(thread_id=thread.id))) == list(range(1, 51))


async def test_a_change_that_cannot_even_be_written_down_leaves_its_group_alone(store: SqliteStore) -> None:
    thread = await opened(store)
    bad = [
        Change(thread=thread, events=(an_event(thread, author="half \ud83d"),)),
        Change(thread=thread, events=(an_event(thread, data={"no": object()}),)),
        Change(thread=thread, patch={"no such column": 1}),
    ]
    good = [Change(thread=thread, events=(an_event(thread, f"m{n}"),)) for n in range(4)]
    order = [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3]]
    results = await asyncio.gather(*(store.apply(change) for change in order), return_exceptions=True)
    assert [isinstance(result, DooersError) for result in results] == [False, True] * 3 + [False]
    assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["m0", "m1", "m2", "m3"]


async def test_more_changes_than_a_group_holds_are_all_written(store: SqliteStore) -> None:
    thread = await opened(store)
    count = sqlite.GROUP + 10
    futures = [store.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(count)]
    assert [change.events[0].seq for change in await asyncio.gather(*futures)] == list(range(1, count + 1))


async def test_what_comes_while_a_group_is_written_is_written_next_though_the_event_loop_is_busy(
    store: SqliteStore,
) -> None:
    thread = await opened(store)
    begun, go_on, written = threading.Event(), threading.Event(), threading.Event()

    def look(sql: str) -> None:
        if sql == "COMMIT" and begun.is_set():
            written.set()
        elif sql == "COMMIT":
            begun.set()
            go_on.wait(WITHIN)

    await on_writer(store, lambda raw: raw.set_trace_callback(look))
    first = store.apply(Change(thread=thread, events=(an_event(thread, "first"),)))
    assert await asyncio.to_thread(begun.wait, WITHIN)
    second = store.apply(Change(thread=thread, events=(an_event(thread, "second"),)))
    go_on.set()
    assert written.wait(WITHIN)  # nothing else runs here meanwhile
    assert [(await one).events[0].seq for one in (first, second)] == [1, 2]
    await on_writer(store, lambda raw: raw.set_trace_callback(None))


async def test_who_else_wants_to_write_gets_the_thread_though_changes_never_cease(store: SqliteStore) -> None:
    thread = await opened(store)
    enough = False

    def another(_: object = None) -> None:
        if not enough:
            store.apply(Change(thread=thread, events=(an_event(thread),))).add_done_callback(another)

    for _ in range(20):
        another()
    async with asyncio.timeout(WITHIN):
        for number in range(5):
            await store.set_settings("w", {"n": number}, thread.created_at)
    enough = True
    assert (await store.settings("w")).values == {"n": 4}


async def test_the_plan_of_a_page_uses_the_index(store: SqliteStore) -> None:
    thread = await opened(store, "one")
    queries = [
        store._sql.list_events(EventQuery(thread_id=thread.id, before_seq=5, limit=10)),
        store._sql.list_threads(
            ThreadQuery(equal={"worker_id": "w", "organization_id": "o", "workspace_id": "s", "user_id": "u"})
        ),
        store._sql.list_runs(RunQuery(equal={"thread_id": thread.id, "status": "running"})),
    ]
    for text, values in queries:
        plan = await on_writer(
            store,
            lambda raw, text=text, values=values: [
                row["detail"] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
            ],
        )
        assert all("USING INDEX" in step for step in plan), plan


# ---------------------------------------------------------------- when the file cannot be used


async def test_a_file_locked_by_somebody_else_is_a_store_error_and_the_next_change_works(
    worker_config: WorkerConfig,
) -> None:
    worker_config = evolve(worker_config, database_timeout=0.2)
    store = SqliteStore(worker_config)
    await store.open()
    thread = await opened(store)
    with closing(sqlite3.connect(worker_config.database_name, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [store.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(50)]
        async with asyncio.timeout(WITHIN / 5):  # not fifty times the patience
            results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        with pytest.raises(StoreError):
            await store.set_settings("w", {"a": 1}, thread.created_at)
        with pytest.raises(StoreError):
            await store.remove_event("x")
        assert await store.thread(thread.id) == thread  # readers do not wait for writers
        other.execute("ROLLBACK")
    stored = await store.apply(Change(thread=thread, events=(an_event(thread),)))
    assert stored.events[0].seq == 1
    await store.close()


async def test_a_file_that_stays_locked_at_the_first_start_is_a_store_error(
    worker_config: WorkerConfig,
) -> None:
    worker_config = evolve(worker_config, database_timeout=0.2)
    before = set(threading.enumerate())
    store = SqliteStore(worker_config)
    with closing(sqlite3.connect(worker_config.database_name, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError):
            await store.open()
        with pytest.raises(StoreError):
            await store.migrate()
        other.execute("ROLLBACK")
    await no_thread_left(before)
    await store.open()
    await store.close()


async def no_thread_left(before: set[threading.Thread]) -> None:
    # The pools of asyncio and anyio keep theirs for the next call, and end them with the loop.
    def left() -> list[str]:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [name for name in names if not name.startswith(("AnyIO", "asyncio"))]

    for _ in range(200):
        if not left():
            return
        await asyncio.sleep(0.01)
    assert left() == []


@pytest.mark.parametrize("kind", ["no directory", "a directory", "no database", "a newer database"])
async def test_a_file_that_cannot_be_opened_is_a_store_error_and_leaves_no_thread(
    tmp_path: Path, worker_config: WorkerConfig, kind: str
) -> None:
    path = tmp_path / "there"
    if kind == "no directory":
        path = path / "is" / "nothing.db"
    elif kind == "a directory":
        path.mkdir()
    elif kind == "no database":
        path.write_text("This is a letter, and has been one all its life. " * 50)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE worker_schema_version (version_num TEXT)")
            connection.execute("INSERT INTO worker_schema_version VALUES ('9999')")
            connection.commit()
    before = set(threading.enumerate())
    store = SqliteStore(evolve(worker_config, database_name=str(path)))
    for _ in range(2):
        with pytest.raises(StoreError, match="there"):
            await store.open()
    with pytest.raises(StoreError):
        await store.ping()
    await no_thread_left(before)


async def test_an_opening_that_is_cancelled_leaves_no_thread(worker_config: WorkerConfig) -> None:
    before = set(threading.enumerate())
    for ticks in range(12):
        store = SqliteStore(worker_config)
        task = asyncio.create_task(store.open())
        for _ in range(ticks):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task], timeout=WITHIN)
        await store.close()
    await no_thread_left(before)


async def test_closing_leaves_no_thread(worker_config: WorkerConfig) -> None:
    before = set(threading.enumerate())
    store = SqliteStore(worker_config)
    await store.open()
    await opened(store, "one")
    await store.close()
    await no_thread_left(before)


async def test_without_auto_migrate_an_empty_file_is_refused_with_what_to_do(worker_config: WorkerConfig) -> None:
    before = set(threading.enumerate())
    store = SqliteStore(evolve(worker_config, database_auto_migrate=False))
    with pytest.raises(StoreError, match=f"needs {HEAD}.*migrate"):
        await store.open()
    await no_thread_left(before)
    await store.migrate()
    await store.open()
    await opened(store, "one")
    await store.close()


# ---------------------------------------------------------------- cancelled callers


async def test_a_caller_that_is_cancelled_finds_its_change_written(store: SqliteStore) -> None:
    thread = await opened(store)
    for delay in (0.0, 0.0, 0.0005, 0.001, 0.002):

        async def write() -> None:
            await store.apply(Change(thread=thread, events=(an_event(thread),)))

        task = asyncio.create_task(write())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task], timeout=WITHIN)
    async with asyncio.timeout(WITHIN):
        last = await store.apply(Change(thread=thread, events=(an_event(thread),)))
    assert last.events[0].seq == 6
    assert seqs(await store.events(EventQuery(thread_id=thread.id))) == [1, 2, 3, 4, 5, 6]


async def test_a_flusher_that_is_cancelled_still_writes(store: SqliteStore) -> None:
    thread = await opened(store)
    for yields in range(4):
        future = store.apply(Change(thread=thread, events=(an_event(thread),)))
        for _ in range(yields):
            await asyncio.sleep(0)
        assert store._flusher is not None
        store._flusher.cancel()  # as a loop that ends does
        async with asyncio.timeout(WITHIN):
            assert (await future).events[0].seq == yields + 1


async def test_being_cancelled_while_settings_are_written_is_not_swallowed(store: SqliteStore) -> None:
    thread = await opened(store)

    async def write() -> None:
        while True:
            await store.set_settings("w", {"a": 1}, thread.created_at)

    for _ in range(5):
        task = asyncio.create_task(write())
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task], timeout=WITHIN / 5)
        assert task.cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await write()
    await store.ping()


# ---------------------------------------------------------------- paths and prefixes


@pytest.mark.parametrize(
    "name",
    [
        "with space.db",
        "?mode=ro#x%20%.db",
        "zażółć 日本.db",
        "a:b@c&d=e;f.db",
        "'quoted\".db",
        "no suffix",
        "%2e%2e.db",
    ],
)
async def test_any_file_name_is_a_file_name(tmp_path: Path, worker_config: WorkerConfig, name: str) -> None:
    directory = tmp_path / f"in {name}"
    directory.mkdir()
    path = directory / name
    store = SqliteStore(evolve(worker_config, database_name=str(path)))
    await store.open()
    thread = await opened(store, "one")
    await store.close()
    assert path.is_file()
    assert os.listdir(tmp_path) == [directory.name]
    assert os.listdir(directory) == [name]
    await store.open()
    assert await store.thread(thread.id) == thread
    await store.close()


async def test_a_relative_path_is_relative(
    tmp_path: Path, worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore(evolve(worker_config, database_name="relative file.db"))
    await store.open()
    await store.close()
    assert (tmp_path / "relative file.db").is_file()


async def test_a_database_in_memory_works_and_is_nobody_elses(worker_config: WorkerConfig) -> None:
    config = evolve(worker_config, database_name=":memory:")
    one, two = SqliteStore(config), SqliteStore(config)
    await one.open()
    await two.open()
    thread = await opened(one, "one")
    snapshot = await one.snapshot(thread.id)
    assert snapshot is not None
    assert texts(snapshot.events) == ["one"]
    assert await two.thread(thread.id) is None
    await one.close()
    await two.close()


async def test_every_table_and_index_carries_the_prefix(worker_config: WorkerConfig) -> None:
    store = SqliteStore(evolve(worker_config, database_table_prefix="odd_Prefix9_"))
    await store.open()
    thread = await opened(store, "one")
    await store.apply(Change(thread=thread, runs=(a_run(thread),)))
    await store.set_settings("w", {"a": 1}, thread.created_at)
    await store.close()
    with closing(sqlite3.connect(worker_config.database_name)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        ]
    assert len(names) >= 10
    assert all(name.startswith("odd_Prefix9_") for name in names)


async def test_two_prefixes_in_one_file_are_two_databases(worker_config: WorkerConfig) -> None:
    stores = [SqliteStore(evolve(worker_config, database_table_prefix=prefix)) for prefix in ("", "a_", "a_b_")]
    await asyncio.gather(*(store.open() for store in stores))
    threads = [await opened(store, f"of {n}") for n, store in enumerate(stores)]
    for n, store in enumerate(stores):
        await store.set_settings("w", {"n": n}, threads[n].created_at)
        other = a_thread()
        assert not (await store.apply(opening(other, an_event(other), repeat_key="same"))).repeated
    for n, store in enumerate(stores):
        assert await store.count_threads({}) == 2
        assert texts(await store.events(EventQuery(thread_id=threads[n].id))) == [f"of {n}"]
        assert await store.thread(threads[n - 1].id) is None
        assert (await store.settings("w")).values == {"n": n}
        await store.apply(Change(thread=threads[n], removes=True))
    for store in stores:
        assert await store.count_threads({}) == 1
        await store.close()


# ---------------------------------------------------------------- migrations


def test_head_is_the_last_alembic_revision() -> None:
    config = Config()
    config.set_main_option("script_location", "dooers:stores/migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_many_stores_of_one_process_may_open_at_once(tmp_path: Path, worker_config: WorkerConfig) -> None:
    stores = [
        SqliteStore(
            evolve(worker_config, database_name=str(tmp_path / f"{n % 4}.db"), database_table_prefix=f"p{n % 3}_")
        )
        for n in range(12)
    ]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        thread = await opened(store, "one")
        assert await store.thread(thread.id) == thread
        await store.close()


OLD_RUNS = """
INSERT INTO {p}threads (id, worker_id, organization_id, workspace_id, user_id, owner, created_at, updated_at, last_event_at, last_seq)
VALUES ('t', 'w', 'o', 's', 'u', '{{}}', '{at}', '{at}', '{at}', 0);
INSERT INTO {p}runs (id, thread_id, agent_id, status, started_at, ended_at, error) VALUES
('done', 't', 'a', 'failed', '{at}', '{at}', 'why'), ('left', 't', NULL, 'running', '{at}', NULL, NULL);
"""


@pytest.mark.parametrize("prefix", ["worker_", "p1_"])
async def test_runs_of_the_first_schema_are_kept_and_those_left_running_can_be_buried(
    worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    config = evolve(worker_config, database_table_prefix=prefix)
    at = stamp(T0)
    with monkeypatch.context() as before:
        before.setattr(migrations, "HEAD", "0001")
        await asyncio.to_thread(sqlite_schema.prepare_file, config.database_name, prefix, migrate=True)
    with closing(sqlite3.connect(config.database_name)) as raw:
        raw.executescript(OLD_RUNS.format(p=prefix, at=at))
        assert raw.execute(f"SELECT version_num FROM {prefix}schema_version").fetchall() == [("0001",)]
    store = SqliteStore(config)
    await store.open()
    done = Run(id="done", thread_id="t", agent_id="a", status="failed", started_at=T0, ended_at=T0, error="why")
    left = Run(id="left", thread_id="t", started_at=T0)
    assert [await store.run("done"), await store.run("left")] == [done, left]
    assert await bury(store, T0, later(60), "lost") == []
    assert await bury(store, later(1), later(60), "lost") == [
        evolve(left, status="failed", ended_at=later(60), error="lost")
    ]
    assert await store.run("done") == done
    await store.close()


async def test_of_many_files_open_at_once_each_dead_run_is_given_to_one(worker_config: WorkerConfig) -> None:
    stores = [SqliteStore(worker_config) for _ in range(4)]
    for store in stores:
        await store.open()
    thread = await opened(stores[0])
    runs = [a_run(thread, process_id=f"dead-{n % 3}") for n in range(30)]
    await stores[0].apply(Change(thread=thread, runs=tuple(runs)))
    shares = await asyncio.gather(*(bury(store, later(1), later(60), "lost") for store in stores * 3))
    assert sorted(run.id for share in shares for run in share) == sorted(run.id for run in runs)
    for store in stores:
        await store.close()


async def test_looking_for_dead_runs_reads_an_index_and_not_the_table(store: SqliteStore) -> None:
    for statement, values in (store._sql.silent(T0), store._sql.beat("p", T0)):
        plan = await on_writer(
            store,
            lambda raw, s=statement, v=values: raw.execute(f"EXPLAIN QUERY PLAN {s}", v).fetchall(),
        )
        assert any("runs_running" in row["detail"] for row in plan), [row["detail"] for row in plan]


# ---------------------------------------------------------------- other processes


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])},
    )


OPEN_AND_WRITE = """
import asyncio, sys, uuid
from datetime import UTC, datetime
from dooers.config import WorkerConfig
from dooers.models import Change, Thread, ThreadEvent, User
from dooers.stores.rows import stamp
from dooers.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(WorkerConfig(database_type="sqlite", database_name=sys.argv[1]))
    sys.stdin.readline()
    await store.open()
    name, now = str(uuid.uuid4()), datetime.now(UTC)
    place = dict(worker_id="w", organization_id="o", workspace_id="s", user_id="u", owner=User())
    thread = Thread(id=name, **place, created_at=now, updated_at=now, last_event_at=now)
    for n in range(6):
        event = ThreadEvent(id=f"{name}-{n}", thread_id=name, type="message", actor="user", created_at=now)
        await store.apply(Change(thread=thread, opens=n == 0, events=(event,)))
    await store.close()

asyncio.run(main())
"""


async def test_ten_processes_may_open_one_new_file_at_once(worker_config: WorkerConfig) -> None:
    processes = [python(OPEN_AND_WRITE, worker_config.database_name) for _ in range(10)]
    for process in processes:  # all have what they need loaded, or nearly: now at once
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, None, WITHIN)
        assert process.returncode == 0, errors
    store = SqliteStore(worker_config)
    await store.open()
    threads = await store.threads(ThreadQuery())
    assert [thread.last_seq for thread in threads] == [6] * 10
    await store.close()


NEVER_CLOSED = """
import asyncio, sys
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=sys.argv[1]))

async def main():
    repository = await worker.repository()
    thread = await repository.create_thread("w")
    await repository.create_event(thread.id, content=["last words"])

asyncio.run(main())
print("over")
"""


async def test_a_process_whose_loop_ends_with_an_open_store_exits(worker_config: WorkerConfig) -> None:
    process = python(NEVER_CLOSED, worker_config.database_name)
    try:
        output, errors = await asyncio.to_thread(process.communicate, None, WITHIN / 2)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, output, errors) == (0, "over\n", "")
    store = SqliteStore(worker_config)
    await store.open()
    threads = await store.threads(ThreadQuery())
    said = [text for thread in threads for text in texts(await store.events(EventQuery(thread_id=thread.id)))]
    assert "last words" in said
    await store.close()


WRITE_UNTIL_KILLED = """
import asyncio, sys
from contract import an_event, opened
from dooers import WorkerConfig
from dooers.models import Change
from dooers.stores.rows import stamp
from dooers.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(WorkerConfig(database_type="sqlite", database_name=sys.argv[1]))
    await store.open()
    thread = await opened(store)

    async def write():
        while True:
            event = an_event(thread)
            await store.apply(Change(thread=thread, events=(event,), patch={"title": event.id}))
            print(event.id, flush=True)

    await asyncio.gather(*(write() for _ in range(8)))

asyncio.run(main())
"""


async def test_a_writer_that_is_killed_loses_nothing_it_had_acknowledged(worker_config: WorkerConfig) -> None:
    process = python(WRITE_UNTIL_KILLED, worker_config.database_name)
    assert process.stdout is not None
    acknowledged = [await asyncio.to_thread(process.stdout.readline) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    # Not by `communicate` alone: it knows nothing of what `readline` has read ahead.
    rest = await asyncio.to_thread(process.stdout.read)
    await asyncio.to_thread(process.communicate, None, WITHIN)
    acknowledged += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    store = SqliteStore(worker_config)
    await store.open()
    (thread,) = await store.threads(ThreadQuery())
    kept = await store.events(EventQuery(thread_id=thread.id))
    assert {line.strip() for line in acknowledged} <= {event.id for event in kept}
    assert seqs(kept) == list(range(1, thread.last_seq + 1))
    assert thread.title == kept[-1].id  # each change whole, the last one too
    await store.close()
