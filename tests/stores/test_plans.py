"""Every statement of the hot paths finds its rows by an index: asked of the databases themselves, with enough in them to mean it.

What is measured at a million rows is in `tests/benchmarks/scale.py`; here nobody waits for that.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import frozen
from contract import a_run, a_thread, an_event, opening
from plenty import BIG, LONG, POSTGRES, SMALL, SQLITE, START, Plenty, numbered
from services.postgres import Address

from dooers.models import Change, EventQuery, RunQuery, Scope, Thread, ThreadQuery
from dooers.stores import COUNTED, running_in
from dooers.stores.postgres_connection import _numbered
from dooers.stores.postgres_schema import prepare
from dooers.stores.sql import Statement, Statements
from dooers.stores.sql_postgres import PostgresStatements
from dooers.stores.sql_sqlite import SqliteStatements
from dooers.stores.sqlite_schema import prepare_file
from dooers.stores.titles import is_in

THREADS, EVENTS = 4000, 8000
# Rows that a statement may look at, of those thousands: its page, and what an index entry too many costs.
FEW = 60

MIDDLE = START.replace(minute=30)
USER = {**BIG, "user_id": "user-1"}
SCOPE = Scope(*USER.values())


@frozen
class Case:
    """A statement, the indexes that it may use, how many rows it may look at, and whether it may sort those that it found."""

    name: str
    make: Callable[[Any], Statement]
    by: str
    rows: int = FEW
    sorts: bool = False


def threads(**more: Any) -> Callable[[Statements], Statement]:
    return lambda sql: sql.list_threads(ThreadQuery(**{"limit": 50, **more}))


def events(**more: Any) -> Callable[[Statements], Statement]:
    return lambda sql: sql.list_events(EventQuery(**{"thread_id": LONG, "limit": 50, **more}))


def runs(**more: Any) -> Callable[[Statements], Statement]:
    equal = {"thread_id": LONG, **more.pop("equal", {})}
    return lambda sql: sql.list_runs(RunQuery(**{"limit": 50, "equal": equal, **more}))


CURSOR = (MIDDLE, numbered("thread", 1800))
# As far as a search walks before its page ends.
UNTIL = (START.replace(minute=5), numbered("thread", 300))
READS = [
    Case("threads of a workspace", threads(equal=BIG), "threads_recent"),
    Case("threads of a workspace, from a cursor", threads(equal=BIG, before=CURSOR), "threads_recent"),
    Case("threads of a workspace, oldest first", threads(equal=BIG, oldest_first=True), "threads_recent"),
    Case("threads of a user", threads(equal=USER), "threads_recent_of_user"),
    Case("threads of a user, from a cursor", threads(equal=USER, before=CURSOR), "threads_recent_of_user"),
    Case("threads of a user, oldest first", threads(equal=USER, oldest_first=True), "threads_recent_of_user"),
    Case("threads of a small tenant", threads(equal=SMALL), "threads_recent"),
    Case("how many threads a small tenant has", lambda sql: sql.count_threads(SMALL, COUNTED), "threads_recent.*"),
    Case(
        "how many threads a user has",
        lambda sql: sql.count_threads(USER, COUNTED),
        "threads_recent_of_user",
        THREADS // 20,
    ),
    # A search looks at the titles of its walk, and at nothing else.
    Case("how far a walk reaches", lambda sql: sql.reach(ThreadQuery(equal=BIG), 1000), "threads_recent", 1001),
    Case(
        "how far a walk of a user reaches, from a cursor",
        lambda sql: sql.reach(ThreadQuery(equal=USER, before=CURSOR), 50),
        "threads_recent_of_user",
    ),
    Case(
        "how many of the latest threads have a title",
        lambda sql: sql.count_threads(BIG, 1000, "no such title"),
        "threads_recent",
        1001,
    ),
    # That of a tenant who has most of the table is not here: to count them is to read them, by whichever way is shorter.
    Case("a thread", lambda sql: sql.thread(LONG), "threads_pkey"),
    Case("an event", lambda sql: sql.event(numbered("event", 7)), "events_pkey"),
    Case("the number of an event", lambda sql: sql.seq_of(LONG, numbered("long event", 7)), "events_pkey"),
    Case("an event by its repeat key", lambda sql: sql.event_by_key("event-8"), "events_repeat"),
    Case("newest events of a thread", events(), "events_order"),
    Case("events after another", events(after_seq=4000, oldest_first=True), "events_order"),
    Case("all events after another", events(after_seq=EVENTS - 40, limit=None), "events_order"),
    Case("events before another", events(before_seq=4000), "events_order"),
    Case("events of a gap", events(after_seq=4000, before_seq=4030, oldest_first=True), "events_order"),
    Case("history for a model", events(for_model=True, until_turn=EVENTS - 1), "events_order"),
    Case("messages that waited for a turn", events(after_seq=4000, before_seq=4030, until_turn=4031), "events_order"),
    Case("events of a late turn", events(turn=EVENTS - 1, limit=None), "events_order|events_late", sorts=True),
    Case("events of the first turn", events(turn=1, limit=None), "events_order|events_late", 120, sorts=True),
    Case(
        "whether the first turn has an answer",
        events(turn=1, limit=2, oldest_first=True),
        "events_order|events_late",
        120,
        sorts=True,
    ),
    Case("runs that failed", lambda sql: sql.list_runs(RunQuery(equal={"status": "failed"})), "runs_failed"),
    Case("runs of a thread", runs(), "runs_of_thread"),
    Case("runs of a thread, oldest first", runs(oldest_first=True), "runs_of_thread"),
    Case("running runs of a thread", runs(equal={"status": "running"}, oldest_first=True), "runs_running"),
    Case("a run", lambda sql: sql.run(numbered("run", 7)), "runs_pkey"),
    Case("settings of a worker", lambda sql: sql.list_settings("worker-7"), "settings_pkey"),
]
WRITES = [
    Case("a beat", lambda sql: sql.beat("process-1", MIDDLE), "runs_running"),
    Case("looking for the runs of the dead", lambda sql: sql.silent(MIDDLE), "runs_running|runs_pkey"),
    Case("removing an event", lambda sql: sql.remove_event(numbered("event", 7)), "events_pkey"),
    Case("swapping a setting", lambda sql: sql.swap_setting("worker-7", "field-1", 1, 2), "settings_pkey"),
    # What a foreign key does when its thread goes.
    Case(
        "events of a removed thread",
        lambda sql: (f"DELETE FROM {sql.events} WHERE thread_id = :id", {"id": numbered("thread", 7)}),
        "events_order",
    ),
    Case(
        "runs of a removed thread",
        lambda sql: (f"DELETE FROM {sql.runs} WHERE thread_id = :id", {"id": numbered("thread", 7)}),
        "runs_of_thread",
    ),
]

KNOWN = a_thread(numbered("thread", 8), at=START)
RUN = a_run(KNOWN, id=numbered("run", 7))
SQLITE_WRITES = [
    Case("looking up threads", lambda sql: sql.threads_of(["t"]), "threads_pkey"),
    Case("looking up runs", lambda sql: sql.runs_of(["r"]), "runs_pkey"),
    Case("looking up repeat keys", lambda sql: sql.events_of_keys(["k"]), "events_repeat"),
    Case("touching a thread", lambda sql: next(sql.touch_threads([KNOWN])), "threads_pkey"),
    Case("touching threads", lambda sql: next(sql.touch_threads([KNOWN] * 64)), "threads_pkey"),
    Case("altering threads", lambda sql: next(sql.alter_threads([KNOWN] * 2)), "threads_pkey"),
    Case("removing a thread", lambda sql: sql.remove_thread(KNOWN.id), "threads_pkey"),
]
# SQLite reads these one after the other, in a transaction.
POSTGRES_READS = [
    Case(
        "a thread with its newest events and its runs",
        lambda sql: sql.view(EventQuery(thread_id=LONG, limit=50), running_in(LONG)),
        "threads_pkey|events_order|runs_running",
        FEW + 1,
    ),
    Case(
        "a thread with a page of its events",
        lambda sql: sql.view(EventQuery(thread_id=LONG, before_seq=4000, limit=50), None),
        "threads_pkey|events_order",
        FEW + 1,
    ),
    Case(
        "a thread with what follows an event, and its runs",
        lambda sql: sql.view(EventQuery(thread_id=LONG, after_seq=4000, limit=50, oldest_first=True), running_in(LONG)),
        "threads_pkey|events_order|runs_running",
        FEW + 1,
    ),
]
# What a plan says of values that came with the statement.
GIVEN = (
    r"MATERIALIZE new|SCAN (CONSTANT ROW|\d+ CONSTANT ROWS|new|json_each .*)|(SCALAR|LIST|LEFT-MOST) SUBQUERY.*|COMPOUND QUERY|"
    r"UNION ALL|.* SUBQUERY FOR IN-OPERATOR"
)
# One text for all that appends: what it does not need for a thread it does not do.
WRITTEN = "threads_pkey|runs_pkey|events_repeat"
POSTGRES_WRITES = [
    Case("opening a thread", lambda sql: sql.write([[message(a_thread())]]), WRITTEN),
    Case("a message to a thread", lambda sql: sql.write([[message(KNOWN)]]), WRITTEN),
    Case("a run and its events", lambda sql: sql.write([[change(), change(patch={"title": "T"})]]), WRITTEN),
    Case("a part of a run", lambda sql: sql.write([[part()]]), WRITTEN),
    Case("the end of a run", lambda sql: sql.write([[part(runs=(RUN,))]]), WRITTEN),
    Case(
        "removing a thread once",
        lambda sql: sql.remove(Change(thread=KNOWN, removes=True, repeat_key="k")),
        "threads_pkey|events_repeat",
    ),
    Case("looking for what may be stored", lambda sql: sql.events_by_id([numbered("event", 7)]), "events_pkey"),
    Case("setting several fields", lambda sql: sql.put_settings("worker-7", [("a", 1)], MIDDLE), ""),
]


def change(**more: Any) -> Change:
    return Change(thread=KNOWN, events=(an_event(KNOWN),), runs=(a_run(KNOWN),), exact=False, **more)


def part(**more: Any) -> Change:
    return Change(thread=KNOWN, during=RUN.id, events=(an_event(KNOWN),), **more)


def message(thread: Thread) -> Change:
    return opening(thread, an_event(thread), repeat_key=thread.id, exact=False)


def cases(*lists: list[Case]) -> pytest.MarkDecorator:
    every = [case for one in lists for case in one]
    return pytest.mark.parametrize("case", every, ids=[case.name for case in every])


# ---------------------------------------------------------------- SQLite


@pytest.fixture(scope="module")
def sqlite_plenty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path: Path = tmp_path_factory.mktemp("plans") / "worker.db"
    prepare_file(str(path), "worker_", migrate=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Few, and nobody has analyzed them: this planner goes by the indexes there are, as it does in production.
        for statement in Plenty(SQLITE, threads=100, events=100).statements():
            connection.execute(statement)
        connection.create_function("REGEXP", 2, is_in)
        yield connection


# PostgreSQL may read a walk in whichever order is shorter, and sort the few that it finds.
SQLITE_READS = [
    Case("a search as far as a walk reaches", threads(equal=BIG, until=UNTIL, containing="no such"), "threads_recent"),
    Case("a search from a cursor", threads(equal=USER, before=CURSOR, containing="no such"), "threads_recent_of_user"),
]


# How SQLite says that it puts the two halves of a turn together, and sorts the first.
TOGETHER = ("MERGE (UNION ALL)", "LEFT", "RIGHT", "CO-ROUTINE near", "SCAN near", "USE TEMP B-TREE FOR ORDER BY")


@cases(READS, SQLITE_READS, WRITES, SQLITE_WRITES)
def test_sqlite_finds_by_an_index_and_sorts_nothing(sqlite_plenty: sqlite3.Connection, case: Case) -> None:
    text, values = case.make(SqliteStatements("worker_"))
    plan = [row[3] for row in sqlite_plenty.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    if plan[:1] == ["CO-ROUTINE few"]:  # what is counted was found by what stands between
        plan = plan[1:-1]
    plan = [step for step in plan if not re.fullmatch(GIVEN, step)]
    for step in plan:
        if case.sorts and step in TOGETHER:
            continue
        # The index of the few that are running, or failed, may be read as a whole: that is what it is for.
        assert re.match(r"SEARCH|SCAN \w+ USING (COVERING )?INDEX worker_runs_(running|failed)", step), plan
        primary = r"sqlite_autoindex_worker_(threads|events|runs|settings)_1"
        used = re.sub(primary, r"worker_\1_pkey", step)
        assert re.search(rf"USING (COVERING )?INDEX worker_({case.by})\b", used), plan
    assert plan


# ---------------------------------------------------------------- PostgreSQL

Node: TypeAlias = dict[str, Any]


@pytest.fixture(scope="module")
def postgres_plenty(postgres: Address) -> Iterator[Callable[[str], list[Node]]]:
    """Ask a database of many conversations; each question is undone."""
    with asyncio.Runner() as runner:
        context = postgres.database()
        name = runner.run(context.__aenter__())
        session = postgres.session(name)
        connection = runner.run(session.__aenter__())
        runner.run(_fill(connection))

        def ask(statement: str, *arguments: Any, first: str = "") -> list[Node]:
            return runner.run(_undone(connection, statement, arguments, first))

        yield ask
        runner.run(session.__aexit__(None, None, None))
        runner.run(context.__aexit__(None, None, None))


async def _fill(connection: Any) -> None:
    await prepare(_Line(connection), "worker_", migrate=True)  # type: ignore[arg-type]
    for statement in Plenty(POSTGRES, threads=THREADS, events=EVENTS).statements():
        await connection.execute(statement)
    await connection.execute(
        "INSERT INTO worker_settings SELECT 'worker-' || (i % 1000), 'field-' || (i / 1000), '1', now() "
        "FROM generate_series(0, 3999) AS s (i)"
    )
    await connection.execute("VACUUM ANALYZE")


class _Line:
    """As much of a store's connection as the schema needs."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def raw(self) -> Any:
        return self._connection

    async def fetch(self, statement: Statement, timeout: float | None = None) -> Any:
        text, names = _numbered(statement[0])
        return await self._connection.fetch(text, *(statement[1][name] for name in names))


async def _undone(connection: Any, statement: str, arguments: tuple[Any, ...], first: str) -> list[Node]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        if first:
            await connection.execute(first)
        [row] = await connection.fetch(statement, *arguments)
    finally:
        await transaction.rollback()
        if first:
            await connection.execute("DEALLOCATE kept")  # a rollback does not
    return list(_nodes(json.loads(row[0])[0]["Plan"]))


def _nodes(plan: Node) -> Iterator[Node]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _check(case: Case, nodes: list[Node]) -> None:
    kinds = [(node["Node Type"], node.get("Index Name")) for node in nodes]
    tables = [node for node in nodes if "Scan" in node["Node Type"] and node["Node Type"] not in _NO_TABLE]
    for node in tables:
        if node["Node Type"] == "Bitmap Heap Scan":
            continue  # its index is the node below
        assert node["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Index Scan"), kinds
        assert "Index Cond" in node or node["Index Name"].endswith(("runs_running", "runs_failed")), kinds
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert all(re.fullmatch(f"worker_({case.by})", index) for index in used), kinds
    assert bool(used) == bool(case.by), kinds
    assert case.sorts or not any("Sort" in kind for kind, _ in kinds), kinds


_NO_TABLE = {"CTE Scan", "Function Scan", "Subquery Scan"}


@cases(READS, POSTGRES_READS, WRITES, POSTGRES_WRITES)
def test_postgres_finds_by_an_index_sorts_nothing_and_looks_at_few_rows(
    postgres_plenty: Callable[..., list[Node]], case: Case
) -> None:
    text, values = case.make(PostgresStatements("worker_"))
    text, names = _numbered(text)
    nodes = postgres_plenty(
        f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) {text}", *(values[name] for name in names)
    )
    _check(case, nodes)
    looked = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes
        if "Relation Name" in node and "Scan" in node["Node Type"]
    )
    assert looked <= case.rows, nodes


@cases(READS, POSTGRES_READS, WRITES, POSTGRES_WRITES)
def test_postgres_does_so_too_by_the_plan_it_keeps_for_any_arguments(
    postgres_plenty: Callable[..., list[Node]], case: Case
) -> None:
    text, names = _numbered(case.make(PostgresStatements("worker_"))[0])
    arguments = f"({', '.join(['NULL'] * len(names))})" if names else ""
    nodes = postgres_plenty(
        f"EXPLAIN (FORMAT JSON) EXECUTE kept{arguments}",
        first=f"SET LOCAL plan_cache_mode = force_generic_plan; PREPARE kept AS {text}",
    )
    _check(case, nodes)
