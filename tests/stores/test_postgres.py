"""The PostgreSQL store: the contract of all stores on a real server, and what only a server can do: be shared, be lost, come back."""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest
import trustme
from attrs import evolve
from contract import (
    OTHERS,
    SCOPE,
    T0,
    StoreContract,
    a_run,
    a_thread,
    an_event,
    bury,
    later,
    opened,
    opening,
    seqs,
    texts,
)
from services.postgres import Address, OwnPostgres, Proxy, own_postgres

from dooers import WorkerConfig
from dooers.exceptions import ConfigError, DooersError, NotFoundError, StoreError
from dooers.models import Change, EventQuery, Run, RunQuery, Thread, ThreadEvent, ThreadQuery
from dooers.stores import Store, open_store, postgres_connection
from dooers.stores.migrations import HEAD
from dooers.stores.postgres import PostgresStore
from dooers.stores.postgres_writers import GROUP
from dooers.stores.sql_postgres import Aside
from dooers.stores.sqlite import SqliteStore

WITHIN = 30.0
AUTHORITY = trustme.CA()


class TestPostgresStore(StoreContract):
    @pytest.fixture
    async def store(self, postgres: Address, postgres_database: str) -> AsyncIterator[Store]:
        store = PostgresStore(postgres.config(postgres_database))
        await store.open()
        async with postgres.session(postgres_database) as session:
            await session.execute("TRUNCATE worker_threads, worker_events, worker_runs, worker_settings")
        yield store
        await store.close()


@pytest.fixture
async def store(postgres_config: WorkerConfig) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_config)
    await store.open()
    yield store
    await store.close()


@asynccontextmanager
async def opened_store(config: WorkerConfig, **more: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(config, **more)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def connections(address: Address, database: str) -> dict[str, int]:
    """How many connections stores have to a database, by state."""
    async with address.session() as admin:
        rows = await admin.fetch(
            "SELECT coalesce(state, '') AS state, count(*) AS total FROM pg_stat_activity "
            "WHERE datname = $1 AND application_name = 'dooers' GROUP BY 1",
            database,
        )
    return {row["state"]: row["total"] for row in rows}


async def none_left(address: Address, database: str) -> None:
    # The server notices a moment after we have closed ours.
    async with asyncio.timeout(WITHIN):
        while await connections(address, database):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def statements(store: PostgresStore) -> AsyncIterator[list[str]]:
    """What is sent by the one connection that a quiet store writes and reads by."""
    sent: list[str] = []

    def note(record: Any) -> None:
        sent.append(record.query)

    pool = store._pool._database._backend._pool  # type: ignore[union-attr]
    raws = [holder._con for holder in pool._holders if holder._con is not None]
    for raw in raws:
        raw.add_query_logger(note)
    yield sent
    for raw in raws:
        raw.remove_query_logger(note)


def test_the_config_chooses_this_store(postgres: Address) -> None:
    assert isinstance(open_store(postgres.config("any")), PostgresStore)


# ---------------------------------------------------------------- round trips


async def test_a_change_is_one_statement(postgres_config: WorkerConfig) -> None:
    async with opened_store(evolve(postgres_config, database_pool_min=1)) as store:
        thread = await opened(store, "one")
        run = a_run(thread)
        for change in (
            opening(new := a_thread(), an_event(new), repeat_key="k", guard=SCOPE),
            Change(thread=thread, events=(an_event(thread), an_event(thread)), guard=SCOPE),
            Change(thread=thread, patch={"title": "t", "metadata": {"a": 1}}, runs=(run,), events=(an_event(thread),)),
            Change(thread=thread, during=run.id, events=(an_event(thread),), patch={"title": "u"}),
            Change(thread=thread, during=run.id, runs=(evolve(run, status="succeeded", ended_at=T0),)),
            Change(thread=thread, removes=True),
        ):
            async with statements(store) as sent:
                await store.apply(change)
            assert len(sent) == 1, sent


async def test_a_turn_of_four_yields_is_two_statements_after_its_message(store: PostgresStore) -> None:
    thread = await opened(store, "question")
    run = a_run(thread)
    changes = [
        Change(thread=thread, runs=(run,)),
        Change(thread=thread, events=(an_event(thread, "answer", at=later(1)),)),
        Change(thread=thread, patch={"title": "T", "metadata": {"n": (1, 2)}, "updated_at": later(2)}),
        Change(thread=thread, events=(an_event(thread, "more", at=later(3)),), patch={"title": "U"}),
        Change(thread=thread, runs=(evolve(run, status="succeeded", ended_at=later(4)),)),
    ]
    changes = [evolve(change, during=run.id) for change in changes]
    async with statements(store) as sent:
        futures = []
        for change in changes:
            futures.append(store.apply(change))
            await asyncio.sleep(0)
        stored = await asyncio.gather(*futures)
    assert len(sent) == 2, sent
    # Merged, and yet each has the thread as it was after it.
    assert [(one.thread.title, one.thread.last_seq, one.thread.updated_at) for one in stored] == [
        (None, 1, T0),
        (None, 2, later(1)),
        ("T", 2, later(2)),
        ("U", 3, later(3)),
        ("U", 3, later(3)),
    ]
    assert stored[2].thread.metadata == {"n": [1, 2]}
    assert stored[-1].thread == await store.thread(thread.id)
    assert await store.run(run.id) == evolve(run, status="succeeded", ended_at=later(4))
    assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["question", "answer", "more"]


async def test_a_run_that_is_closed_while_a_change_of_it_waits_for_the_thread_is_over(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    name = postgres_config.database_name
    async with (
        opened_store(postgres_config) as store,
        postgres.session() as admin,
    ):
        thread = await opened(store, "one")
        run = a_run(thread)
        await store.apply(Change(thread=thread, runs=(run,)))
        async with postgres.session(name) as other:
            async with other.transaction():
                await other.execute("UPDATE worker_threads SET last_seq = last_seq WHERE id = $1", thread.id)
                end = evolve(run, status="succeeded", ended_at=later(61))
                late = [
                    store.apply(Change(thread=thread, during=run.id, events=(an_event(thread, "late"),))),
                    store.apply(Change(thread=thread, during=run.id, runs=(end,), events=(an_event(thread, "later"),))),
                ]
                await waiting_for_a_lock(admin, name, 1)  # its statement has begun: it sees the run as it is now
                over = "UPDATE worker_runs SET status = 'failed', error = 'lost' WHERE id = $1"
                await other.execute(over, run.id)
        for future in late:
            with pytest.raises(NotFoundError):
                await future
        assert await store.run(run.id) == evolve(run, status="failed", error="lost")
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one"]


async def test_merged_changes_do_not_lend_each_other_their_guard(store: PostgresStore) -> None:
    thread = await opened(store)
    changes = [
        Change(thread=thread, events=(an_event(thread, f"m{n}"),), guard=OTHERS["user"] if n % 2 else SCOPE)
        for n in range(10)
    ]
    outcomes = await asyncio.gather(*(store.apply(change) for change in changes), return_exceptions=True)
    assert [isinstance(one, NotFoundError) for one in outcomes] == [False, True] * 5
    assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["m0", "m2", "m4", "m6", "m8"]


async def test_a_change_that_cannot_even_be_written_down_leaves_its_neighbours_alone(store: PostgresStore) -> None:
    thread = await opened(store)
    bad = [
        Change(thread=thread, events=(an_event(thread, author="nul \x00"),)),
        Change(thread=thread, events=(an_event(thread, data={"no": object()}),)),
        Change(thread=thread, patch={"no such column": 1}),
    ]
    good = [Change(thread=thread, events=(an_event(thread, f"m{n}"),)) for n in range(4)]
    order = [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3]]
    results = await asyncio.gather(*(store.apply(change) for change in order), return_exceptions=True)
    assert [isinstance(result, DooersError) for result in results] == [False, True] * 3 + [False]
    assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["m0", "m1", "m2", "m3"]


async def test_changes_of_many_threads_share_a_statement_and_each_ends_by_itself(store: PostgresStore) -> None:
    known, gone, done = [await opened(store, "one") for _ in range(3)]
    run = a_run(done)
    await store.apply(Change(thread=done, runs=(evolve(run, status="failed", ended_at=T0),)))
    await store.apply(opening(known, an_event(known, "said"), repeat_key="k"))
    await store.apply(Change(thread=gone, removes=True))
    new, again, begun, silent = a_thread(), a_thread(), await opened(store, "one"), await opened(store, "one")
    fresh = a_run(begun)
    changes = {
        "new": opening(new, an_event(new, "hello"), repeat_key="l", guard=SCOPE),
        "again": opening(again, an_event(again, "said"), repeat_key="k"),
        "begun": Change(thread=begun, during=fresh.id, runs=(fresh,), events=(an_event(begun, "two"),)),
        "titled": Change(thread=silent, patch={"title": None, "metadata": {"a": [1]}, "updated_at": later(5)}),
        "gone": Change(thread=gone, events=(an_event(gone),)),
        "a stranger's": Change(thread=known, guard=OTHERS["user"], events=(an_event(known),)),
        "buried": Change(thread=done, during=run.id, events=(an_event(done, "late"),)),
    }
    before = store.tally.commits
    async with statements(store) as sent:
        futures = {name: store.apply(change) for name, change in changes.items()}
        written = [name for name in ("new", "begun", "titled") if (await futures[name]) is not None]
        assert (len(sent), store.tally.commits - before) == (1, 1), written
    results = await asyncio.gather(*futures.values(), return_exceptions=True)
    outcomes: dict[str, Any] = dict(zip(futures, results, strict=True))
    assert {name for name, one in outcomes.items() if isinstance(one, NotFoundError)} == {
        "gone",
        "a stranger's",
        "buried",
    }
    assert (outcomes["new"].created, outcomes["new"].thread.last_seq) == (True, 1)
    assert (outcomes["again"].repeated, outcomes["again"].thread.id) == (True, known.id)
    assert outcomes["begun"].events[0].seq == 2
    assert outcomes["titled"].thread.metadata == {"a": [1]}
    for name in ("new", "begun", "titled"):
        thread = outcomes[name].thread
        assert await store.thread(thread.id) == thread
    assert await store.run(fresh.id) == fresh
    assert await store.thread(again.id) is None
    assert texts(await store.events(EventQuery(thread_id=known.id))) == ["one", "said"]
    assert texts(await store.events(EventQuery(thread_id=done.id))) == ["one"]


async def test_what_spoils_a_statement_of_many_threads_spoils_it_for_nobody_else(store: PostgresStore) -> None:
    threads = [await opened(store, "one") for _ in range(8)]
    (taken,) = await store.events(EventQuery(thread_id=threads[0].id))
    bad = {
        3: evolve(an_event(threads[3]), id=taken.id),
        5: an_event(threads[5], author="nul \x00"),
        6: an_event(threads[6], data={"no": object()}),
    }
    changes = [Change(thread=one, events=(bad.get(n) or an_event(one, "two"),)) for n, one in enumerate(threads)]
    outcomes = await asyncio.gather(*(store.apply(change) for change in changes), return_exceptions=True)
    assert [n for n, one in enumerate(outcomes) if isinstance(one, DooersError)] == [3, 5, 6]
    for n, thread in enumerate(threads):
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert texts(kept) == (["one"] if n in bad else ["one", "two"])


async def test_more_threads_than_a_statement_holds_are_all_written(store: PostgresStore) -> None:
    threads = [a_thread() for _ in range(GROUP + 50)]
    stored = await asyncio.gather(*(store.apply(opening(one, an_event(one), repeat_key=one.id)) for one in threads))
    assert [(change.thread.id, change.created) for change in stored] == [(one.id, True) for one in threads]
    assert store.tally.commits <= 4
    assert await store.count_threads({}) == len(threads)


async def test_a_thread_that_is_held_up_does_not_hold_up_another(
    postgres: Address, postgres_config: WorkerConfig, store: PostgresStore
) -> None:
    held, free = await opened(store), await opened(store)
    async with postgres.session(postgres_config.database_name) as other, other.transaction():
        await other.execute("SELECT 1 FROM worker_threads WHERE id = $1 FOR UPDATE", held.id)
        waiting = store.apply(Change(thread=held, events=(an_event(held),)))
        for _ in range(5):
            await store.apply(Change(thread=free, events=(an_event(free),)))
        assert (await store.events(EventQuery(thread_id=free.id)))[-1].seq == 5
        assert not waiting.done()
    assert (await waiting).events[0].seq == 1


async def test_a_dead_run_that_somebody_holds_does_not_keep_others_from_being_buried(
    postgres: Address, postgres_config: WorkerConfig, store: PostgresStore
) -> None:
    thread = await opened(store)
    runs = [Run(id=f"run-{n}", thread_id=thread.id, started_at=T0, process_id="dead") for n in range(3)]
    await store.apply(Change(thread=thread, runs=tuple(runs)))
    late = T0 + timedelta(seconds=60)
    async with postgres.session(postgres_config.database_name) as other, other.transaction():
        await other.execute("SELECT 1 FROM worker_runs WHERE id = 'run-1' FOR UPDATE")
        async with asyncio.timeout(5):
            assert sorted(run.id for run in await bury(store, late, late, "lost")) == ["run-0", "run-2"]
    assert [run.id for run in await bury(store, late, late, "lost")] == ["run-1"]


async def test_readers_get_a_connection_while_every_writer_waits(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with opened_store(evolve(postgres_config, database_pool_max=2)) as store:
        threads = [await opened(store) for _ in range(20)]
        async with postgres.session(postgres_config.database_name) as other, other.transaction():
            await other.execute("LOCK worker_events IN SHARE MODE")
            futures = [store.apply(Change(thread=one, events=(an_event(one),))) for one in threads]
            assert len(await store.threads(ThreadQuery(limit=50))) == 20
            assert not any(future.done() for future in futures)
        await asyncio.gather(*futures)


async def test_what_is_put_beside_a_change_happens_with_it_or_not_at_all(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    under_way = 0

    @contextmanager
    def beside(groups: Sequence[Sequence[Change]]) -> Iterator[Aside]:
        nonlocal under_way
        under_way += 1
        try:
            yield "pg_notify('spoken', :said)", [{"said": ",".join(one.thread.id for one in group)} for group in groups]
        finally:
            under_way -= 1

    heard: asyncio.Queue[str] = asyncio.Queue()
    async with (
        opened_store(postgres_config, beside=beside) as store,
        postgres.session(postgres_config.database_name) as listener,
    ):
        await listener.add_listener("spoken", lambda *call: heard.put_nowait(call[3]))
        thread = await opened(store, "one")
        with pytest.raises(NotFoundError):
            await store.apply(Change(thread=a_thread(), events=(an_event(thread),)))
        with pytest.raises(StoreError):
            event = (await store.events(EventQuery(thread_id=thread.id)))[0]
            await store.apply(Change(thread=thread, events=(event,)))
        async with statements(store) as sent:
            await store.apply(Change(thread=thread, events=(an_event(thread),)))
        assert len(sent) == 1
        await store.apply(Change(thread=thread, removes=True))
        async with asyncio.timeout(WITHIN):
            assert [await heard.get() for _ in range(3)] == [thread.id] * 3
        assert (heard.empty(), under_way) == (True, 0)


async def test_a_change_for_which_there_are_no_words_is_an_error_and_spoils_nobody_else(
    postgres_config: WorkerConfig,
) -> None:
    def beside(groups: Sequence[Sequence[Change]]) -> AbstractContextManager[None]:
        if any(event.text == "unspeakable" for group in groups for change in group for event in change.events):
            raise ValueError("no words")
        return nullcontext()

    async with opened_store(postgres_config, beside=beside) as store:
        thread = await opened(store, "one")
        said = ["two", "unspeakable", "three"]
        writing = [store.apply(Change(thread=thread, events=(an_event(thread, text),))) for text in said]
        two, wrong, three = await asyncio.gather(*writing, return_exceptions=True)
        assert isinstance(wrong, StoreError)
        assert isinstance(two, Change)
        assert isinstance(three, Change)
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "two", "three"]


# ---------------------------------------------------------------- the same as SQLite


class Bursts:
    """Random Changes of a few threads, with everything that may go wrong with one. The same seed, the same Changes."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._count = 0
        self._threads = [self._thread(n) for n in range(3)]
        self._events: list[ThreadEvent] = []
        self._taken: list[ThreadEvent] | None = None
        self._runs = {
            thread.id: [self._run(thread, f"run-{thread.id}-{n}") for n in range(3)] for thread in self._threads
        }

    def next(self) -> list[Change]:
        """Changes of one thread that are given to a store at once."""
        index = self._chance.randrange(3)
        return [self._change(index) for _ in range(self._chance.randrange(1, 7))]

    def several(self) -> list[Change]:
        """Changes of all threads that are given to a store at once, in any order. What one of them ends in, no other thread decides."""
        self._taken, taken = list(self._events), self._taken
        changes = [self._change(self._chance.randrange(3)) for _ in range(self._chance.randrange(2, 12))]
        self._taken = taken
        return changes

    def _likely(self, percent: int) -> bool:
        return self._chance.randrange(100) < percent

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _thread(self, n: int) -> Thread:
        return a_thread(f"thread-{n}", at=later(self._number()), title=f"first title {n}")

    def _run(self, thread: Thread, run_id: str) -> Run:
        return a_run(thread, id=run_id, at=later(self._number()), agent_id=f"agent {self._count}")

    def _change(self, index: int) -> Change:
        if self._likely(3):
            self._threads[index] = self._thread(index)  # made again, if what follows removes and opens it
        thread = self._threads[index]
        more: dict[str, Any] = {}
        if self._likely(40):
            more["patch"] = {
                name: self._patched(name) for name in ("title", "metadata", "updated_at") if self._likely(50)
            }
        if self._likely(60):
            more["events"] = tuple(self._event(thread) for _ in range(self._chance.randrange(1, 4)))
        if self._likely(50):
            more["runs"] = tuple(self._ended(thread) for _ in range(self._chance.randrange(1, 4)))
        if self._likely(40):
            more["guard"] = self._chance.choice([SCOPE, evolve(SCOPE, user_id=None), *OTHERS.values()])
        if "events" in more and self._likely(20):
            more["repeat_key"] = f"key-{thread.id}-{self._chance.randrange(4)}"
        return Change(thread=thread, opens=self._likely(35), exact=self._likely(70), removes=self._likely(4), **more)

    def _patched(self, name: str) -> Any:
        number = self._number()
        return {"title": f"title {number}", "metadata": {"n": number, "t": (1, [])}, "updated_at": later(number)}[name]

    def _event(self, thread: Thread) -> ThreadEvent:
        pool = self._events if self._taken is None else self._taken
        if pool and self._likely(3):
            taken = self._chance.choice(pool)
            if self._taken is not None:
                pool.remove(taken)  # of two threads that want it, the database chooses one
            return evolve(taken, thread_id=thread.id)  # its id is taken
        number = self._number()
        event = an_event(thread, f"text {number}", id=f"event-{number}", at=later(number), turn_seq=number % 3)
        self._events.append(event)
        return event

    def _ended(self, thread: Thread) -> Run:
        run = self._chance.choice(self._runs[thread.id])
        if self._likely(50):
            return run
        return evolve(run, status=self._chance.choice(["succeeded", "failed"]), ended_at=later(self._number()))


async def outcomes_of(store: Store, changes: list[Change]) -> list[Any]:
    outcomes = await asyncio.gather(*(store.apply(change) for change in changes), return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in outcomes]


async def everything_in(store: Store) -> list[Any]:
    threads = await store.threads(ThreadQuery())
    events = [await store.events(EventQuery(thread_id=thread.id)) for thread in threads]
    return [threads, events, await store.runs(RunQuery(limit=100))]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_random_changes_end_and_leave_what_they_do_in_sqlite(
    store: PostgresStore, worker_config: WorkerConfig, seed: int, several: bool
) -> None:
    reference = SqliteStore(worker_config)
    await reference.open()
    bursts = Bursts(seed)
    for _ in range(60):
        changes = bursts.several() if several else bursts.next()
        wanted = await outcomes_of(reference, changes)
        got = await outcomes_of(store, changes)
        for n, change in enumerate(changes):
            assert got[n] == wanted[n], (n, change)
        assert await everything_in(store) == await everything_in(reference)
    await reference.close()


# ---------------------------------------------------------------- several stores, as several processes are


async def test_two_stores_number_the_events_of_one_thread_without_gaps(postgres_config: WorkerConfig) -> None:
    async with opened_store(postgres_config) as one, opened_store(postgres_config) as two:
        thread = await opened(one)

        async def write(store: PostgresStore, name: str) -> None:
            for n in range(0, 60, 3):
                run = a_run(thread)
                changes = [
                    Change(thread=thread, events=(an_event(thread, f"{name}{n}"),), runs=(run,)),
                    Change(
                        thread=thread, events=(an_event(thread, f"{name}{n + 1}"), an_event(thread, f"{name}{n + 2}"))
                    ),
                    Change(thread=thread, patch={"title": name}),
                ]
                await asyncio.gather(*(store.apply(change) for change in changes))

        await asyncio.gather(*(write(store, name) for store, name in ((one, "a"), (one, "b"), (two, "c"), (two, "d"))))
        kept = await one.events(EventQuery(thread_id=thread.id))
        assert seqs(kept) == list(range(1, 241))
        for name in "abcd":
            assert [text for text in texts(kept) if text[0] == name] == [f"{name}{n}" for n in range(60)]
        found = await two.thread(thread.id)
        assert found is not None
        assert found.last_seq == 240


async def test_stores_that_write_the_same_threads_at_once_do_not_lock_each_other_out(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened_store(postgres_config)) for _ in range(3)]
        threads = [await opened(stores[0], "one") for _ in range(12)]
        chance, wanted = random.Random(9), {thread.id: ["one"] for thread in threads}
        for burst in range(15):
            new = [a_thread() for _ in range(4)]
            writing = []
            for name, store in enumerate(stores):
                for thread in chance.sample(threads, len(threads)):
                    run, text = a_run(thread, process_id="process"), f"{name}.{burst}"
                    writing.append(store.apply(Change(thread=thread, during=run.id, runs=(run,))))
                    writing.append(store.apply(Change(thread=thread, during=run.id, events=(an_event(thread, text),))))
                    wanted[thread.id].append(text)
                for thread in chance.sample(new, len(new)):  # the same messages, at every door
                    event = an_event(thread, "one", id=f"{thread.id}-{name}")
                    writing.append(store.apply(opening(thread, event, repeat_key=thread.id)))
            async with asyncio.timeout(WITHIN):
                await asyncio.gather(*writing, *(store.beat("process", later(burst)) for store in stores))
        for thread in threads:
            kept = await stores[1].events(EventQuery(thread_id=thread.id))
            assert seqs(kept) == list(range(1, len(kept) + 1))
            assert sorted(texts(kept)) == sorted(wanted[thread.id])
            for name in range(3):
                assert [text for text in texts(kept) if text.startswith(f"{name}.")] == [
                    f"{name}.{n}" for n in range(15)
                ]
        assert await stores[0].count_threads({}) == 12 + 15 * 4
    async with postgres.session(postgres_config.database_name) as session:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await session.fetchval(query) == 0


async def test_of_many_stores_one_creates_a_thread_and_one_stores_a_message(postgres_config: WorkerConfig) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened_store(postgres_config)) for _ in range(4)]
        for n in range(20):
            thread = a_thread()
            opens = await asyncio.gather(*(store.apply(opening(thread, an_event(thread))) for store in stores))
            assert sorted(change.created for change in opens) == [False] * 3 + [True]
            assert sorted(change.events[0].seq for change in opens) == [1, 2, 3, 4]
            # The same message at every door at once, into one thread and into new ones.
            for threads in ([thread] * 4, [a_thread() for _ in range(4)]):
                key = f"{n}-{threads[1].id}"
                stored = await asyncio.gather(
                    *(
                        store.apply(opening(one, an_event(one), repeat_key=key))
                        for store, one in zip(stores, threads, strict=True)
                    )
                )
                assert sorted(change.repeated for change in stored) == [False] + [True] * 3
                assert len({(change.thread.id, change.events[0].id) for change in stored}) == 1


async def test_a_thread_that_another_store_removes_is_not_found_and_nothing_is_left(
    postgres_config: WorkerConfig,
) -> None:
    async with opened_store(postgres_config) as one, opened_store(postgres_config) as two:
        for _ in range(20):
            thread = await opened(one)
            outcomes = await asyncio.gather(
                *(
                    one.apply(Change(thread=thread, events=(an_event(thread),), runs=(a_run(thread),)))
                    for _ in range(5)
                ),
                two.apply(Change(thread=thread, removes=True)),
                *(one.apply(Change(thread=thread, runs=(a_run(thread),))) for _ in range(5)),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes} <= {Change, NotFoundError}
            assert await one.thread(thread.id) is None
            assert await one.runs(RunQuery()) == []


# ---------------------------------------------------------------- starting


async def test_ten_stores_may_open_one_empty_database_at_once(postgres_config: WorkerConfig) -> None:
    stores = [PostgresStore(postgres_config) for _ in range(10)]
    await asyncio.gather(*(store.open() for store in stores))
    thread = await opened(stores[0], "one")
    for store in stores:
        assert await store.thread(thread.id) == thread
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_current_schema_is_seen_by_one_statement(postgres_config: WorkerConfig) -> None:
    async with opened_store(postgres_config):
        pass
    code = (
        "import asyncio, sys\nfrom dooers import WorkerConfig\nfrom dooers.stores.postgres import PostgresStore\n"
        "async def main():\n"
        "    store = PostgresStore(WorkerConfig(database_type='postgres', database_host=sys.argv[1], "
        "database_port=int(sys.argv[2]), database_user=sys.argv[3], database_password=sys.argv[4], database_name=sys.argv[5]))\n"
        "    await store.open()\n    await store.ping()\n    await store.close()\n"
        "asyncio.run(main())\nassert 'alembic' not in sys.modules\n"
    )
    config = postgres_config
    where = (config.database_host, str(config.database_port), config.database_user, config.database_password)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code, *where, config.database_name, cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(WITHIN):
        assert await process.wait() == 0


async def test_without_auto_migrate_an_empty_database_is_refused_with_what_to_do(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    store = PostgresStore(evolve(postgres_config, database_auto_migrate=False))
    with pytest.raises(StoreError, match=f"needs {HEAD}.*migrate"):
        await store.open()
    await none_left(postgres, postgres_config.database_name)
    await store.migrate()
    await none_left(postgres, postgres_config.database_name)
    await store.open()
    await opened(store, "one")
    await store.close()


@pytest.mark.parametrize("migrate", [True, False])
async def test_a_newer_database_is_refused_and_left_alone(
    postgres: Address, postgres_config: WorkerConfig, migrate: bool
) -> None:
    name = postgres_config.database_name
    async with opened_store(postgres_config):
        pass
    async with postgres.session(name) as session:
        await session.execute("UPDATE worker_schema_version SET version_num = '9999'")
    for _ in range(2):
        with pytest.raises(StoreError, match="9999"):
            await PostgresStore(evolve(postgres_config, database_auto_migrate=migrate)).open()
    await none_left(postgres, name)
    async with postgres.session(name) as session:
        assert await session.fetchval("SELECT version_num FROM worker_schema_version") == "9999"


async def test_a_migration_that_fails_leaves_nothing(postgres: Address, postgres_config: WorkerConfig) -> None:
    name = postgres_config.database_name
    async with postgres.session(name) as session:
        await session.execute("CREATE TABLE worker_runs (nobody_knows_why int)")  # in the way of the third step
        with pytest.raises(StoreError, match="worker_runs"):
            await PostgresStore(postgres_config).open()
        tables = await session.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [row["tablename"] for row in tables] == ["worker_runs"]
        await session.execute("DROP TABLE worker_runs")
    async with opened_store(postgres_config) as store:
        await opened(store, "one")


async def test_prefixes_in_one_database_are_databases_of_their_own(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    prefixes = ("", "a_", "A_", "odd_Prefix9_")
    stores = [PostgresStore(evolve(postgres_config, database_table_prefix=prefix)) for prefix in prefixes]
    await asyncio.gather(*(store.open() for store in stores))
    for n, store in enumerate(stores):
        thread = await opened(store, f"of {n}")
        await store.set_settings("w", {"n": n}, T0)
        assert not (await store.apply(opening(thread, an_event(thread), repeat_key="same"))).repeated
    for n, store in enumerate(stores):
        assert await store.count_threads({}) == 1
        assert (await store.settings("w")).values == {"n": n}
        await store.close()
    async with postgres.session(postgres_config.database_name) as session:
        for name in ("odd_Prefix9_events", "odd_Prefix9_events_order"):
            assert await session.fetchval("SELECT count(*) FROM pg_class WHERE relname = $1", name) == 1


@pytest.mark.parametrize("wrong", ["database", "host", "port", "directory"])
async def test_a_server_that_cannot_be_reached_is_a_store_error_without_the_password(
    postgres_config: WorkerConfig, wrong: str
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "database": {"database_name": "nowhere"},
        "host": {"database_host": "host.invalid"},
        "port": {"database_host": "127.0.0.1", "database_port": 1},
        "directory": {"database_host": "/nowhere"},
    }
    store = PostgresStore(evolve(postgres_config, **ways[wrong], database_password="hunter2:@/"))
    with pytest.raises(StoreError, match="cannot open the PostgreSQL database") as caught:
        await store.open()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    with pytest.raises(StoreError, match="not open"):
        await store.ping()


async def test_behind_pgbouncer_nothing_is_set_or_prepared(postgres_config: WorkerConfig) -> None:
    config = evolve(postgres_config, database_statement_cache=0)
    async with opened_store(config) as store:
        thread = await opened(store, "one")
        changes = [Change(thread=thread, events=(an_event(thread),)) for _ in range(20)]
        await asyncio.gather(
            *(store.apply(change) for change in changes), *(store.snapshot(thread.id) for _ in range(5))
        )
        assert len(await store.events(EventQuery(thread_id=thread.id))) == 21
        async with store._pool.line() as line:
            assert (await line.fetch(("SHOW statement_timeout", {})))[0]["statement_timeout"] == "0"
            assert await line.fetch(("SELECT * FROM pg_prepared_statements WHERE name <> ''", {})) == []
            # In one transaction, so that both messages go to one server.
            assert (await line.fetch(("SELECT now() < clock_timestamp() AS began", {})))[0]["began"]
    async with opened_store(postgres_config) as store, store._pool.line() as line:
        assert (await line.fetch(("SHOW statement_timeout", {})))[0]["statement_timeout"] == "10s"


# ---------------------------------------------------------------- connections at hand


def free(store: PostgresStore) -> int:
    """How many open connections the driver's pool has."""
    return int(store._pool._database._backend._pool.get_idle_size())  # type: ignore[union-attr]


async def test_a_connection_stays_at_hand_for_who_reads_next_and_goes_back_when_nobody_does(
    postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "AT_HAND", 0.05)
    async with opened_store(postgres_config) as store:
        for _ in range(3):
            async with store._pool.line() as line:
                await line.fetch(("SELECT 1", {}))
            assert len(store._pool._at_hand) == 1
            assert free(store) == 0
        async with asyncio.timeout(WITHIN):
            while not free(store):
                await asyncio.sleep(0.01)
        assert await store.thread("none") is None


async def test_who_waits_for_a_connection_gets_the_one_that_a_reader_no_longer_needs(
    postgres_config: WorkerConfig,
) -> None:
    async with opened_store(evolve(postgres_config, database_pool_max=2)) as store, AsyncExitStack() as others:
        async with store._pool.line() as line:
            await line.raw()
            await (await others.enter_async_context(store._pool.line())).raw()
            waits = asyncio.create_task(store.thread("none"))
            async with asyncio.timeout(WITHIN):
                while not store._pool._waiting:
                    await asyncio.sleep(0)
        async with asyncio.timeout(WITHIN):
            assert await waits is None


async def test_a_connection_that_is_lost_while_it_is_at_hand_is_nobodys(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with opened_store(postgres_config) as store:
        async with store._pool.line() as line:
            lost = await line.raw()
        (at_hand,) = store._pool._at_hand
        async with postgres.session() as admin:
            await admin.execute("SELECT pg_terminate_backend($1)", at_hand.raw_connection.get_server_pid())
        async with asyncio.timeout(WITHIN):
            while not postgres_connection._gone(lost):
                await asyncio.sleep(0.01)
        async with store._pool.line() as line:
            assert await line.raw() is not lost
            await line.fetch(("SELECT 1", {}))


async def test_a_connection_that_something_went_wrong_on_is_not_kept_at_hand(postgres_config: WorkerConfig) -> None:
    async with opened_store(postgres_config) as store:
        with pytest.raises(asyncpg.PostgresError):
            async with store._pool.line() as line:
                await line.fetch(("SELECT no_such_column", {}))
        assert not store._pool._at_hand
        assert free(store) == 1


# ---------------------------------------------------------------- cancelled callers


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_storm_of_cancellations_leaks_no_connection(
    postgres: Address, postgres_config: WorkerConfig, way: str
) -> None:
    config = evolve(postgres_config, database_pool_max=4)
    chance = random.Random(4)
    acknowledged = []
    async with opened_store(config) as store:
        thread = await opened(store, "one")

        async def work() -> None:
            stored = await store.apply(Change(thread=thread, events=(an_event(thread),)))
            acknowledged.append(stored.events[0].id)
            await store.events(EventQuery(thread_id=thread.id, limit=5))
            await store.snapshot(thread.id)
            await store.set_settings("w", {"a": 1}, T0)

        async def cut_short(after: float) -> None:
            if way == "scope":
                with anyio.move_on_after(after):
                    await work()
            else:
                task = asyncio.create_task(work())
                await asyncio.wait([task], timeout=after)
                task.cancel()
                await asyncio.wait([task])

        for _ in range(12):
            await asyncio.gather(*(cut_short(chance.random() * 0.03) for _ in range(10)))
        async with asyncio.timeout(WITHIN):
            # All of them are there to be taken, and none is in the middle of something.
            async with AsyncExitStack() as stack:
                await store._writers.drain()
                for _ in range(4):
                    line = await stack.enter_async_context(store._pool.line())
                    assert not (await line.raw()).is_in_transaction()
                    await line.fetch(("SELECT 1", {}))
        assert (await connections(postgres, config.database_name)).keys() <= {"idle"}
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert seqs(kept) == list(range(1, 122))  # a caller may go away, what it asked for is written
        assert set(acknowledged) <= {event.id for event in kept}
    await none_left(postgres, config.database_name)


async def test_openings_that_are_cancelled_leave_no_connection(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    for ticks in range(15):
        store = PostgresStore(evolve(postgres_config, database_pool_min=3))
        task = asyncio.create_task(store.open())
        await asyncio.sleep(ticks * 0.003)
        task.cancel()
        await asyncio.wait([task], timeout=WITHIN)
        await store.close()
    await none_left(postgres, postgres_config.database_name)


async def test_writers_that_are_cancelled_still_write(store: PostgresStore) -> None:
    thread = await opened(store)
    for yields in range(8):
        futures = [store.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(2)]
        for _ in range(yields):
            await asyncio.sleep(0)
        if yields > 4:
            await asyncio.sleep(yields * 0.0002)
        for task in list(store._writers._tasks):
            task.cancel()  # as a loop that ends does
        async with asyncio.timeout(WITHIN):
            stored = [await future for future in futures]
        assert [change.events[0].seq for change in stored] == [2 * yields + 1, 2 * yields + 2]
    assert seqs(await store.events(EventQuery(thread_id=thread.id))) == list(range(1, 17))


# ---------------------------------------------------------------- lost connections


async def test_a_change_whose_answer_is_lost_is_written_once(postgres: Address, postgres_config: WorkerConfig) -> None:
    proxy = Proxy(postgres)
    async with proxy.open() as address:
        config = address.config(postgres_config.database_name)
        async with opened_store(config) as store:
            thread = a_thread()

            async def lost(change: Change) -> Change:
                # What a store asks for a first time is prepared first. So the second answer is the one that is lost.
                async with opened_store(config) as new, asyncio.timeout(WITHIN):
                    proxy.after = 1
                    stored = await new.apply(change)
                assert not proxy.armed
                return stored

            stored = await lost(opening(thread, an_event(thread, "one"), repeat_key="k"))
            assert (stored.created, stored.repeated, stored.events[0].seq) == (True, False, 1)
            empty = a_thread()
            assert (await lost(opening(empty))).created
            run = a_run(thread)
            changes = [
                Change(thread=thread, runs=(run,)),
                Change(thread=thread, events=(an_event(thread, "two"), an_event(thread, "three"))),
                Change(thread=thread, patch={"title": "T"}),
                Change(thread=thread, events=(an_event(thread, "four"),), repeat_key="l"),
                Change(thread=thread, during=run.id, events=(an_event(thread, "five"),)),
                Change(thread=thread, during=run.id, runs=(evolve(run, status="failed", ended_at=T0),)),
            ]
            for change in changes:
                stored = await lost(change)
                assert not stored.repeated
                assert stored.thread == await store.thread(thread.id)
            assert stored.thread.title == "T"
            kept = await store.events(EventQuery(thread_id=thread.id))
            assert texts(kept) == ["one", "two", "three", "four", "five"]
            assert seqs(kept) == [1, 2, 3, 4, 5]
            assert await store.run(run.id) == evolve(run, status="failed", ended_at=T0)
            await lost(Change(thread=thread, removes=True))
            assert await store.thread(thread.id) is None
            proxy.after = 1
            with pytest.raises(NotFoundError):
                await store.apply(Change(thread=empty, removes=True, guard=OTHERS["user"]))
            proxy.after = 0
            assert await store.thread(empty.id) is not None


@pytest.mark.parametrize("answers", [0, 1])
async def test_many_threads_in_a_statement_whose_connection_is_lost_are_written_once(
    postgres: Address, postgres_config: WorkerConfig, answers: int
) -> None:
    """With the answer lost, and with the question: it is being prepared when the connection goes."""
    proxy = Proxy(postgres)
    async with proxy.open() as address, opened_store(address.config(postgres_config.database_name)) as store:
        known = [await opened(store, "one") for _ in range(5)]
        runs = [a_run(thread) for thread in known]
        await asyncio.gather(
            *(store.apply(Change(thread=run_of, runs=(run,))) for run_of, run in zip(known, runs, strict=True))
        )
        new = [a_thread() for _ in range(5)]
        changes = [
            *(
                Change(thread=one, during=run.id, events=(an_event(one, "two"),))
                for one, run in zip(known[:3], runs, strict=False)
            ),
            Change(thread=known[3], during=runs[3].id, runs=(evolve(runs[3], status="failed", ended_at=T0),)),
            Change(thread=known[4], patch={"title": "T"}),
            *(opening(one, an_event(one, "one"), repeat_key=one.id) for one in new[:4]),
            opening(new[4]),
        ]
        async with opened_store(address.config(postgres_config.database_name)) as other, asyncio.timeout(WITHIN):
            proxy.after = answers
            stored = await asyncio.gather(*(other.apply(change) for change in changes))
            assert not proxy.armed
        assert [change.created for change in stored] == [False] * 5 + [True] * 5
        assert not any(change.repeated for change in stored)
        for change in stored:
            assert await store.thread(change.thread.id) == change.thread
            kept = await store.events(EventQuery(thread_id=change.thread.id))
            assert seqs(kept) == list(range(1, change.thread.last_seq + 1))
            assert kept[len(kept) - len(change.events) :] == list(change.events)
        assert await store.run(runs[3].id) == changes[3].runs[0]


async def waiting_for_a_lock(admin: Any, database: str, count: int) -> None:
    """Return when this many statements of stores wait for a lock."""
    async with asyncio.timeout(WITHIN):
        while count != await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = $1 AND application_name = 'dooers' AND wait_event_type = 'Lock'",
            database,
        ):
            await asyncio.sleep(0.01)


async def test_a_change_that_the_server_is_still_at_when_its_connection_is_lost_is_written_once(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    name, proxy = postgres_config.database_name, Proxy(postgres)
    async with proxy.open() as address, opened_store(address.config(name)) as store, postgres.session() as admin:
        thread = await opened(store, "one")
        async with postgres.session(name) as other, other.transaction():
            await other.execute("SELECT 1 FROM worker_threads WHERE id = $1 FOR UPDATE", thread.id)
            futures = [
                store.apply(Change(thread=thread, events=(an_event(thread, text),))) for text in ("two", "three")
            ]
            await waiting_for_a_lock(admin, name, 1)
            proxy.cut()  # of which that backend knows nothing before it answers
            await waiting_for_a_lock(admin, name, 2)
        async with asyncio.timeout(WITHIN):
            stored = await asyncio.gather(*futures)
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert texts(kept) == ["one", "two", "three"]
        assert [change.events[0] for change in stored] == kept[1:]


async def test_a_change_that_waits_too_long_for_its_thread_fails_and_is_not_written_later(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    name = postgres_config.database_name
    async with opened_store(evolve(postgres_config, database_timeout=1.0)) as store:
        thread = await opened(store, "one")
        async with postgres.session(name) as other, other.transaction():
            await other.execute("SELECT 1 FROM worker_threads WHERE id = $1 FOR UPDATE", thread.id)
            with pytest.raises(StoreError, match="QueryCanceled"):
                await store.apply(Change(thread=thread, events=(an_event(thread, "late"),)))
        stored = await store.apply(Change(thread=thread, events=(an_event(thread, "two"),)))
        assert stored.events[0].seq == 2
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "two"]


async def test_many_threads_that_wait_too_long_fail_together_and_are_not_written_later(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with opened_store(evolve(postgres_config, database_timeout=0.5)) as store:
        threads = [a_thread() for _ in range(40)]
        before = store.tally.commits
        async with postgres.session(postgres_config.database_name) as other, other.transaction():
            await other.execute("LOCK worker_events IN SHARE MODE")
            writing = [store.apply(opening(one, an_event(one))) for one in threads]
            outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert {str(one) for one in outcomes} == {"the database did not do it (QueryCanceledError)"}
        assert (await store.count_threads({}), store.tally.commits) == (0, before)


async def write_for_a_while(store: PostgresStore, thread: Thread, until: asyncio.Event) -> list[str]:
    """The ids of all events that were acknowledged; every one was tried once."""
    acknowledged: list[str] = []
    while not until.is_set():
        changes = [Change(thread=thread, events=(an_event(thread),), patch={"title": str(n)}) for n in range(3)]
        for stored in await asyncio.gather(*(store.apply(change) for change in changes)):
            acknowledged.append(stored.events[0].id)
    return acknowledged


async def nothing_lost_or_doubled(store: PostgresStore, written: list[tuple[Thread, list[str]]]) -> None:
    for thread, acknowledged in written:
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert [event.id for event in kept] == acknowledged
        assert seqs(kept) == list(range(1, len(kept) + 1))


async def test_terminated_connections_lose_and_double_nothing(postgres: Address, postgres_config: WorkerConfig) -> None:
    name, done = postgres_config.database_name, asyncio.Event()
    async with opened_store(postgres_config) as store, postgres.session() as admin:
        threads = [await opened(store) for _ in range(6)]
        writing = [asyncio.create_task(write_for_a_while(store, thread, done)) for thread in threads]
        for _ in range(15):
            await asyncio.sleep(0.03)
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = $1 AND application_name = 'dooers'",
                name,
            )
            assert len(await store.threads(ThreadQuery())) == 6  # readers get over it too
        done.set()
        async with asyncio.timeout(WITHIN):
            written = await asyncio.gather(*writing)
        assert all(len(ids) > 3 for ids in written)
        await nothing_lost_or_doubled(store, list(zip(threads, written, strict=True)))


async def test_deadlocks_are_tried_again(postgres: Address, postgres_config: WorkerConfig) -> None:
    async with opened_store(postgres_config) as store:
        thread = await opened(store)
        run = a_run(thread)
        await store.apply(Change(thread=thread, runs=(run,)))
        async with postgres.session(postgres_config.database_name) as other:
            await other.execute("SET deadlock_timeout = '10s'")  # so that it is the store's who is chosen
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT 1 FROM worker_runs WHERE id = $1 FOR UPDATE", run.id)
            ended = store.apply(Change(thread=thread, runs=(evolve(run, status="failed", ended_at=T0),)))
            async with postgres.session() as admin:
                await waiting_for_a_lock(admin, postgres_config.database_name, 1)
            await other.execute("SELECT 1 FROM worker_threads WHERE id = $1 FOR UPDATE", thread.id)
            await transaction.commit()
        async with asyncio.timeout(WITHIN):
            await ended
        assert await store.run(run.id) == evolve(run, status="failed", ended_at=T0)


@pytest.fixture(scope="module")
def spare() -> Iterator[OwnPostgres]:
    """A server that may be stopped."""
    with own_postgres() as server:
        yield server


async def test_a_server_that_restarts_under_load_loses_and_doubles_nothing(spare: OwnPostgres) -> None:
    done = asyncio.Event()
    config = spare.address.config("postgres", database_table_prefix="restart_", database_timeout=WITHIN)
    async with opened_store(config) as store:
        threads = [await opened(store) for _ in range(4)]
        writing = [asyncio.create_task(write_for_a_while(store, thread, done)) for thread in threads]
        for mode in ("immediate", "fast"):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(spare.stop, mode)
            await asyncio.to_thread(spare.start)
        await asyncio.sleep(0.1)
        done.set()
        async with asyncio.timeout(WITHIN):
            written = await asyncio.gather(*writing)
        await nothing_lost_or_doubled(store, list(zip(threads, written, strict=True)))


async def test_while_the_server_is_away_everything_fails_in_time_and_then_works_again(spare: OwnPostgres) -> None:
    config = spare.address.config("postgres", database_table_prefix="away_", database_timeout=1.0)
    async with opened_store(config) as store:
        thread = await opened(store, "one")
        await asyncio.to_thread(spare.stop)
        try:
            others = [a_thread() for _ in range(50)]
            begun = asyncio.get_running_loop().time()
            futures = [store.apply(opening(one, an_event(one))) for one in others]
            outcomes = await asyncio.gather(*futures, store.thread(thread.id), store.ping(), return_exceptions=True)
            assert asyncio.get_running_loop().time() - begun < 10
            assert {type(outcome) for outcome in outcomes} == {StoreError}
        finally:
            await asyncio.to_thread(spare.start)
        stored = await store.apply(Change(thread=thread, events=(an_event(thread, "two"),)))
        assert stored.events[0].seq == 2
        await store.ping()


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def issued() -> trustme.LeafCert:
    """What a server on `localhost` shows."""
    return AUTHORITY.issue_cert("localhost")


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of two authorities: the one that has issued it, and another."""
    home = tmp_path_factory.mktemp("authorities")
    for name, authority in (("right", AUTHORITY), ("wrong", trustme.CA())):
        authority.cert_pem.write_to_path(str(home / f"{name}.pem"))
    return {name: str(home / f"{name}.pem") for name in ("right", "wrong")}


@pytest.mark.parametrize(
    ("mode", "authority", "host", "fits"),
    [
        (False, None, "localhost", True),
        ("disable", None, "localhost", True),
        ("prefer", None, "127.0.0.1", True),
        ("require", None, "127.0.0.1", True),
        ("require", "wrong", "127.0.0.1", True),
        ("verify-ca", "right", "127.0.0.1", True),
        ("verify-ca", "wrong", "localhost", False),
        ("verify-ca", None, "localhost", False),
        ("verify-full", "right", "localhost", True),
        ("verify-full", "right", "127.0.0.1", False),
        ("verify-full", "wrong", "localhost", False),
        (True, "right", "localhost", True),
        (True, "right", "127.0.0.1", False),
        (True, None, "localhost", False),
    ],
)
async def test_tls_proves_as_much_as_its_mode_says(
    postgres: Address,
    postgres_config: WorkerConfig,
    issued: trustme.LeafCert,
    authorities: dict[str, str],
    mode: Any,
    authority: str | None,
    host: str,
    fits: bool,
) -> None:
    # The embedded server is built without TLS, so its front does it, with PostgreSQL's own opening words.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    proxy = Proxy(postgres, context)
    async with proxy.open() as address:
        config = address.config(
            postgres_config.database_name,
            database_ssl=mode,
            database_ssl_ca=None if authority is None else authorities[authority],
        )
        store = PostgresStore(evolve(config, database_host=host))
        if fits:
            await store.open()
            await opened(store, "one")
            await store.close()
            assert bool(proxy.encrypted) == (mode not in (False, "disable"))
        else:
            with pytest.raises(StoreError, match="certificate"):
                await store.open()


@pytest.mark.parametrize(("mode", "fits"), [("prefer", True), ("require", False), ("verify-ca", False), (True, False)])
async def test_a_server_without_tls_is_refused_where_tls_is_required(
    postgres: Address, postgres_config: WorkerConfig, mode: Any, fits: bool
) -> None:
    async with Proxy(postgres).open() as address:  # a port, as on a socket nobody listens in
        store = PostgresStore(address.config(postgres_config.database_name, database_ssl=mode))
        if fits:
            await store.open()
            await store.close()
        else:
            with pytest.raises(StoreError, match="rejected SSL"):
                await store.open()


async def test_a_file_that_holds_no_certificate_is_a_config_error(
    tmp_path: Path, postgres_config: WorkerConfig
) -> None:
    path = tmp_path / "letter.pem"
    path.write_text("Dear server")
    with pytest.raises(ConfigError, match=r"database_ssl_ca.*PEM"):
        await PostgresStore(evolve(postgres_config, database_ssl=True, database_ssl_ca=str(path))).open()


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_lists_pages_and_histories_use_an_index(store: PostgresStore, plans: str) -> None:
    place = {"worker_id": "worker-1", "organization_id": "org-1", "workspace_id": "ws-1"}
    fields = "'{}', t0, t0, t0 + n * interval '1 second'"
    seeds = (
        f"INSERT INTO worker_threads (id, worker_id, organization_id, workspace_id, user_id, owner, created_at, updated_at, "
        f"last_event_at, last_seq) SELECT 't' || n, 'worker-' || n % 2, 'org-1', 'ws-' || n % 3, 'user-' || n % 5, {fields}, "
        f"100 FROM generate_series(1, 20000) AS n, (SELECT CAST('2026-01-01' AS timestamptz) AS t0) AS begun",
        "INSERT INTO worker_events (id, thread_id, seq, turn_seq, type, actor, content, notice, created_at) "
        "SELECT 'e' || t || '-' || n, 't' || t, n, n, 'message', 'user', '[]', 0, now() "
        "FROM generate_series(1, 10) AS t, generate_series(1, 3000) AS n",
        "INSERT INTO worker_runs (id, thread_id, status, started_at) SELECT 'r' || n, 't' || n, 'running', now() "
        "FROM generate_series(1, 3000) AS n",
    )
    sql, queries = store._sql, {}
    queries["list"] = sql.list_threads(ThreadQuery(equal=place))
    queries["list of a user"] = sql.list_threads(ThreadQuery(equal={**place, "user_id": "user-1"}, before=(T0, "t5")))
    queries["next page of the list"] = sql.list_threads(ThreadQuery(equal=place, before=(T0, "t5")))
    queries["page"] = sql.list_events(EventQuery(thread_id="t5", before_seq=2000, limit=20))
    queries["gap"] = sql.list_events(EventQuery(thread_id="t5", after_seq=2000, limit=20, oldest_first=True))
    queries["history"] = sql.list_events(EventQuery(thread_id="t5", for_model=True, until_turn=2500, limit=50))
    queries["runs"] = sql.list_runs(RunQuery(equal={"thread_id": "t5", "status": "running"}, oldest_first=True))
    queries["event"] = sql.event("e5-5")
    queries["repeat"] = sql.event_by_key("k")
    async with store._pool.line() as line:
        raw = await line.raw()
        for seed in seeds:
            await raw.execute(seed)
        await raw.execute("ANALYZE")
        await raw.execute(f"SET plan_cache_mode = {plans}")
        for what, (text, values) in queries.items():
            plan = "\n".join(row[0] for row in await line.fetch((f"EXPLAIN {text}", values)))
            assert "Index" in plan, (what, plan)
            assert "Seq Scan" not in plan, (what, plan)
            assert "Sort" not in plan, (what, plan)
        await raw.execute("RESET plan_cache_mode")


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_what_writes_reads_no_table_also_where_nobody_has_counted_its_rows(
    store: PostgresStore, plans: str
) -> None:
    """The plan that is kept is made when the tables are empty, and they may be full before it is made anew."""
    groups = [[opening(one, an_event(one), repeat_key=one.id)] for one in (a_thread() for _ in range(32))]
    async with store._pool.line() as line:
        await line.fetch((f"SET plan_cache_mode = {plans}", {}))
        for waits in (False, True):
            text, values = store._sql.write(groups, waits=waits)
            plan = "\n".join(row[0] for row in await line.fetch((f"EXPLAIN {text}", values)))
            assert "Seq Scan" not in plan, plan
        await line.fetch(("RESET plan_cache_mode", {}))


# ---------------------------------------------------------------- titles


async def test_titles_are_found_in_whatever_case_where_the_locale_of_the_database_knows_ascii_only(
    postgres: Address,
) -> None:
    name = f"t{uuid4().hex}"
    async with postgres.session() as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            async with opened_store(postgres.config(name)) as store, postgres.session(name) as session:
                assert await session.fetchval("SELECT lower('Ä')") == "Ä"
                thread = a_thread(title="Grüne ÄPFEL, Мир")
                await store.apply(opening(thread))
                for text in ("äpfel", "GRÜN", "мИр"):
                    assert await store.threads(ThreadQuery(containing=text)) == [thread]
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
