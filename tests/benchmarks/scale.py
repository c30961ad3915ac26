"""What the same work costs in a small database and in a large one: a thousand threads and a million, and so many events in one of them.

Run it by hand: `python tests/benchmarks/scale.py` (some minutes, 5 GB on disk for a while), `--rows 100000` for less, `--only sqlite`,
`--only postgres` (a server of its own, or that of DOOERS_TEST_POSTGRES_URL). Both databases are asked in turns, so that the ratios
mean something on any machine. Not a test: nothing here passes or fails; that indexes are used is in `tests/stores/test_plans.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "stores")]

from contract import a_run, a_thread, an_event, opening  # noqa: E402
from plenty import BIG, LONG, POSTGRES, SMALL, SQLITE, START, Plenty, numbered  # noqa: E402
from services.postgres import Address, own_postgres  # noqa: E402

from dooers import WorkerConfig  # noqa: E402
from dooers.models import Change, EventQuery, RunQuery, Thread, ThreadQuery  # noqa: E402
from dooers.stores import Store, open_store  # noqa: E402

FEW_ROWS = 1000
SAMPLES, WARM, SECONDS = 400, 12, 6.0
# A page that a thousand threads have fifty of.
PAGE, DEEP = 15, 50


@frozen
class Side:
    """One of the two databases that are compared."""

    store: Store
    plenty: Plenty

    def thread(self, n: int) -> Thread:
        """The nth of any in the newer half, all over the place."""
        half = self.plenty.threads // 2
        return self.known(half + n * 7919 % half)

    def known(self, n: int) -> Thread:
        at = START + timedelta(seconds=n)
        return a_thread(numbered("thread", n), at=at, user_id=f"user-{n % self.plenty.users}", **BIG)


Work: TypeAlias = Callable[[Side, int], Awaitable[Any]]


def listed(equal: dict[str, str], *, pages: int = 0, **more: Any) -> Work:
    """A page of threads; after so many pages of the big tenant, which has nine rows of ten."""

    async def work(side: Side, n: int) -> None:
        last = side.known(side.plenty.threads - pages * PAGE * 10 // 9)
        before = (last.last_event_at, last.id) if pages else None
        found = await side.store.threads(ThreadQuery(equal=equal, limit=PAGE, before=before, **more))
        assert len(found) == PAGE

    return work


def read(expected: int, **query: Any) -> Work:
    """Events of the long thread. Negative numbers are counted from its end."""

    async def work(side: Side, n: int) -> None:
        at: dict[str, Any] = {
            name: side.plenty.events + v if type(v) is int and v < 0 else v for name, v in query.items()
        }
        at = {name: side.plenty.events // 2 if value == "middle" else value for name, value in at.items()}
        assert len(await side.store.events(EventQuery(thread_id=LONG, **at))) == expected

    return work


async def snapshot(side: Side, n: int, thread: Thread | None = None) -> None:
    assert await side.store.snapshot(LONG if thread is None else thread.id) is not None


async def resumed(side: Side, n: int) -> None:
    after = numbered("long event", side.plenty.events - 60)
    found = await side.store.snapshot(LONG, after_event_id=after)
    assert found is not None
    assert len(found.events) >= 59


async def turn(side: Side, n: int, thread: Thread) -> None:
    """A message, a run with three answers; the message is waited for, and then the end."""
    at = side.plenty.end + timedelta(milliseconds=n)
    question = an_event(thread, "A question?", at=at)
    await side.store.apply(opening(thread, question, repeat_key=question.id, exact=False))
    run = a_run(thread, at=at, process_id="bench")
    for change in (
        Change(thread=thread, runs=(run,), exact=False),
        *(Change(thread=thread, events=(an_event(thread, text, at=at),), exact=False) for text in ("a", "b", "c")),
    ):
        side.store.apply(change)
    ended = evolve(run, status="succeeded", ended_at=at)
    await side.store.apply(Change(thread=thread, runs=(ended,), exact=False))


async def removed(side: Side, n: int) -> None:
    """A thread of two events and a run, each time another one of the older half."""
    apart = side.plenty.threads // 2 // (WARM + SAMPLES + 1)
    await side.store.apply(Change(thread=side.known(1 + n * apart), removes=True))


async def bury(side: Side, n: int) -> None:
    assert await side.store.silent(START - timedelta(1), START) == []


async def counted(side: Side, n: int, equal: dict[str, str]) -> None:
    assert await side.store.count_threads(equal) > 0


async def reading(store: Any, statement: Any) -> None:
    if store._sql.__class__.__name__ == "SqliteStatements":
        await store._read(lambda connection: connection.execute(*statement).fetchall())
    else:
        await store._fetch(statement)


USER = {**BIG, "user_id": "user-1"}
WORKS: dict[str, Work] = {
    "threads of a workspace, 1st page": listed(BIG),
    f"threads of a workspace, page {DEEP}": listed(BIG, pages=DEEP),
    "threads of a workspace, oldest first": listed(BIG, oldest_first=True),
    "threads of a user": listed(USER),
    "threads of a small tenant": listed(SMALL),
    "count, small tenant": partial(counted, equal=SMALL),
    "count, a user of the big tenant": partial(counted, equal=USER),
    "count, big tenant": partial(counted, equal=BIG),
    # For whoever looks after a worker; no index serves them.
    "repository: threads of a worker": listed({"worker_id": "worker-1"}),
    "repository: runs that failed": lambda side, n: side.store.runs(RunQuery(equal={"status": "failed"})),
    "a thread": lambda side, n: side.store.thread(side.thread(n).id),
    "an event": lambda side, n: side.store.event(numbered("event", n * 31 % side.plenty.threads)),
    "history, newest 50": read(50, limit=50),
    "history for a model, 50": read(50, limit=50, for_model=True, until_turn=-1),
    "history, 50 before the middle": read(50, limit=50, before_seq="middle"),
    "history, 50 after the middle": read(50, limit=50, after_seq="middle", oldest_first=True),
    "history of the newest turn": read(2, turn=-1),
    "history of the turn of 400 events ago": read(2, turn=-401),
    "history of the first turn": read(2, turn=1),
    "runs of the long thread, 50": lambda side, n: side.store.runs(RunQuery(equal={"thread_id": LONG})),
    "snapshot of the long thread": snapshot,
    "snapshot of it after 59 events": resumed,
    "snapshot of any thread": lambda side, n: snapshot(side, n, side.thread(n)),
    "beat": lambda side, n: side.store.beat("process-1", side.plenty.end),
    "bury": bury,
    "a turn in a new thread": lambda side, n: turn(side, n, a_thread(at=side.plenty.end)),
    "a turn in any thread": lambda side, n: turn(side, n, side.thread(n)),
    "a turn in the long thread": lambda side, n: turn(side, n, side.known(0)),
    "removing a thread": removed,
}


async def measure(name: str, work: Work, sides: list[Side]) -> None:
    """Ask both in turns, and print a row."""
    took: list[list[float]] = [[], []]
    give_up = time.perf_counter() + SECONDS
    for n in range(WARM + SAMPLES):
        for side, times in zip(sides, took, strict=True) if n % 2 else [*zip(sides, took, strict=True)][::-1]:
            begun = time.perf_counter()
            await work(side, n)
            if n >= WARM:
                times.append((time.perf_counter() - begun) * 1e6)
        if time.perf_counter() > give_up and len(took[0]) >= 20:
            break
    middle = [statistics.median(times) for times in took]
    late = [statistics.quantiles(times, n=100, method="inclusive")[98] for times in took]
    # Of each pair, as what disturbs a machine lasts longer than a pair.
    ratio = statistics.median(many / few for few, many in zip(*took, strict=True))
    row = f"{middle[0]:10.0f} {late[0]:9.0f} {middle[1]:10.0f} {late[1]:9.0f} {ratio:8.2f} {late[1] / late[0]:8.2f}"
    print(f"  {name:40}{row}", flush=True)


async def compare(title: str, sides: list[Side]) -> None:
    few, many = (side.plenty.threads for side in sides)
    print(f"{title}, µs: threads, and events of the long one: {few:,} and {many:,}")
    print(f"  {'':40}{few:>10,} {'p99':>9} {many:>10,} {'p99':>9} {'ratio':>8} {'of p99':>8}")
    for name, work in WORKS.items():
        await measure(name, work, sides)


# ------------------------------------------------------------ filling


@asynccontextmanager
async def opened(config: WorkerConfig) -> AsyncIterator[Store]:
    store = open_store(config)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def in_sqlite(rows: list[int]) -> None:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dooers-scale-")))
        sides = []
        for count in rows:
            path, plenty = home / f"{count}.db", Plenty(SQLITE, threads=count, events=count)
            config = WorkerConfig(database_type="sqlite", database_name=str(path))
            store = await stack.enter_async_context(opened(config))
            begun = time.perf_counter()
            await asyncio.to_thread(fill_sqlite, path, plenty)
            print(f"filled in {time.perf_counter() - begun:.0f} s: {path.stat().st_size / 2**20:.0f} MiB", flush=True)
            sides.append(Side(store, plenty))
        await compare(f"SQLite {sqlite3.sqlite_version}", sides)


def fill_sqlite(path: Path, plenty: Plenty) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for statement in plenty.statements():
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def in_postgres(rows: list[int]) -> None:
    url = os.environ.get("DOOERS_TEST_POSTGRES_URL")
    parts = urlsplit(url or "")
    there = Address(
        parts.hostname or "localhost", parts.port or 5432, unquote(parts.username or ""), unquote(parts.password or "")
    )
    async with AsyncExitStack() as stack:
        server = stack.enter_context(own_postgres() if url is None else nullcontext(None))
        address = there if server is None else server.address
        sides = []
        for count in rows:
            name = await stack.enter_async_context(address.database())
            store = await stack.enter_async_context(opened(address.config(name)))
            plenty = Plenty(POSTGRES, threads=count, events=count)
            await fill_postgres(address, name, plenty)
            sides.append(Side(store, plenty))
        await compare("PostgreSQL", sides)


async def fill_postgres(address: Address, name: str, plenty: Plenty) -> None:
    begun = time.perf_counter()
    async with address.session(name) as connection:
        await connection.execute("SET session_replication_role = replica")  # nobody checks the foreign keys of ours
        for statement in plenty.statements():
            await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
        size = await connection.fetchval("SELECT pg_database_size($1)", name)
    print(f"filled in {time.perf_counter() - begun:.0f} s: {size / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What the same work costs in a small database and in a large one.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="threads, and events of the long one (1000000)")
    parser.add_argument("--only", choices=("sqlite", "postgres"), help="one of the two databases")
    options = parser.parse_args()
    for kind, run in (("sqlite", in_sqlite), ("postgres", in_postgres)):
        if options.only in (None, kind):
            asyncio.run(run([FEW_ROWS, options.rows]))
