"""What a group of Changes becomes is the same however it is cut: as one transaction, in pieces, one by one, in memory or in a file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from contract import OTHERS, SCOPE, a_run, a_thread, an_event, later, opening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dooers import WorkerConfig
from dooers.exceptions import NotFoundError, StoreError
from dooers.models import Change, EventQuery, RunQuery, ThreadQuery, evolve
from dooers.stores import Store, sqlite_writers
from dooers.stores.memory import MemoryStore
from dooers.stores.sqlite import SqliteStore

ENDS: list[dict[str, Any]] = [{}, {"status": "succeeded", "ended_at": later(50)}, {"status": "failed", "error": "e"}]
THREADS = [a_thread(f"t{n}", at=later(n)) for n in range(3)]
AGAIN = [evolve(thread, created_at=later(100), title="again") for thread in THREADS]


# ---------------------------------------------------------------- any Changes at all


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    return [draw(a_change(n)) for n in range(draw(st.integers(1, 14)))]


@st.composite
def a_change(draw: st.DrawFn, n: int) -> Change:
    which = draw(st.integers(0, 2))
    thread = draw(st.sampled_from([THREADS[which], AGAIN[which]]))
    at = later(n + 1)
    guard = draw(st.sampled_from([None, SCOPE, SCOPE, OTHERS["user"]]))
    if draw(st.integers(0, 7)) == 0:
        return Change(thread=thread, removes=True, guard=guard, exact=draw(st.booleans()))
    # Now and then an id that is taken: such a Change spoils its group.
    names = [f"e{n}.{k}" if draw(st.integers(0, 30)) else "taken" for k in range(draw(st.integers(0, 2)))]
    # A run lies in its thread, so its name says which one.
    run_ids = [f"{thread.id}.{name}" for name in ("a", "b")]
    runs = [
        a_run(thread, id=draw(st.sampled_from(run_ids)), at=at, process_id="p", **how)
        for how in draw(st.lists(st.sampled_from(ENDS), max_size=2))
    ]
    patches: list[dict[str, Any]] = [{}, {}, {"title": f"T{n}"}, {"metadata": {"n": n}}, {"updated_at": at}]
    return Change(
        thread=thread,
        opens=draw(st.booleans()),
        exact=draw(st.booleans()),
        guard=guard,
        during=draw(st.sampled_from([None, *run_ids])),
        patch=draw(st.sampled_from(patches)),
        events=tuple(an_event(thread, name, id=name, at=at) for name in names),
        skips=draw(st.sampled_from([0, 0, 3])),
        runs=tuple(runs),
        repeat_key=draw(st.sampled_from([None, None, "k1", "k2"])),
    )


@asynccontextmanager
async def sqlite(path: Path | str = ":memory:") -> Any:
    store = SqliteStore(WorkerConfig(database_type="sqlite", database_name=str(path)))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def cut(changes: Sequence[Change], sizes: Sequence[int]) -> Iterator[Sequence[Change]]:
    at = 0
    for size in sizes:
        yield changes[at : at + size]
        at += size
    yield changes[at:]


async def applied(store: Store, groups: Iterator[Sequence[Change]]) -> list[Any]:
    """What became of each Change, and what is stored in the end."""
    outcomes: list[Any] = []
    for group in groups:
        results = await asyncio.gather(*map(store.apply, group), return_exceptions=True)
        outcomes += [type(one) if isinstance(one, Exception) else one for one in results]
    threads = await store.threads(ThreadQuery())
    events = [await store.events(EventQuery(thread_id=thread.id)) for thread in threads]
    silent = sorted(run.id for run in await store.silent(later(5), later(5)))
    return [outcomes, threads, events, await store.runs(RunQuery()), silent]


@given(changes(), st.lists(st.integers(0, 5), max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changes_end_alike_however_they_are_grouped_in_memory_and_in_sqlite(
    given_changes: list[Change], sizes: list[int]
) -> None:
    async def compare() -> None:
        memory = MemoryStore()
        await memory.open()
        wanted = await applied(memory, cut(given_changes, [1] * len(given_changes)))
        for groups in ([], sizes, [1] * len(given_changes)):
            async with sqlite() as store:
                assert await applied(store, cut(given_changes, groups)) == wanted

    asyncio.run(compare())


@given(changes(), st.lists(st.integers(0, 1), min_size=14, max_size=14), st.sampled_from([None, "e0.0", "e1.0"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changes_end_alike_whichever_of_two_processes_writes_them(
    given_changes: list[Change], writers: list[int], removed: str | None
) -> None:
    async def compare(folder: str) -> None:
        memory = MemoryStore()
        await memory.open()
        async with sqlite(f"{folder}/worker.db") as one, sqlite(f"{folder}/worker.db") as two:
            for change, writer in zip(given_changes, writers, strict=False):
                store = (one, two)[writer]
                assert await applied(store, iter([[change]])) == await applied(memory, iter([[change]]))
                if removed is not None:
                    await store.remove_event(removed)
                    await memory.remove_event(removed)

    with TemporaryDirectory() as folder:
        asyncio.run(compare(folder))


# ---------------------------------------------------------------- a group, by name


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        memory = MemoryStore()
        await memory.open()
        yield memory
        return
    async with sqlite(tmp_path / "worker.db") as file:
        yield file


async def together(store: Store, *changes: Change) -> list[Any]:
    return await asyncio.gather(*map(store.apply, changes), return_exceptions=True)


async def test_a_repeat_within_a_group_comes_back_with_the_first_ones_ids(store: Store) -> None:
    first, other = a_thread(), a_thread()
    one, two = await together(
        store, opening(first, an_event(first), repeat_key="k"), opening(other, an_event(other), repeat_key="k")
    )
    assert (one.repeated, two.repeated, two.thread, two.events) == (False, True, one.thread, one.events)
    assert await store.thread(other.id) is None


async def test_a_run_may_begin_speak_and_end_in_one_group_and_what_is_late_is_refused(store: Store) -> None:
    thread = a_thread()
    run = a_run(thread, process_id="p")
    over = evolve(run, status="succeeded", ended_at=later(1))
    late = Change(thread=thread, during=run.id, events=(an_event(thread, "late"),))
    results = await together(
        store,
        opening(thread, an_event(thread, "asked")),
        Change(thread=thread, during=run.id, runs=(run,)),
        Change(thread=thread, during=run.id, events=(an_event(thread, "said"),)),
        Change(thread=thread, during=run.id, patch={"title": "T"}),
        Change(thread=thread, during=run.id, runs=(over,)),
        late,
        Change(thread=thread, events=(an_event(thread, "after"),)),
    )
    assert [type(one) for one in results].count(NotFoundError) == 1
    assert isinstance(results[5], NotFoundError)
    assert [event.text for event in await store.events(EventQuery(thread_id=thread.id))] == ["asked", "said", "after"]
    assert await store.run(run.id) == over
    assert await store.thread(thread.id) == results[6].thread


async def test_a_thread_may_go_and_come_again_within_a_group(store: Store) -> None:
    thread = a_thread()
    again = evolve(thread, created_at=later(9))
    made, gone, late, anew = await together(
        store,
        opening(thread, an_event(thread, "former"), repeat_key="k"),
        Change(thread=thread, removes=True),
        Change(thread=thread, events=(an_event(thread, "late"),)),
        opening(again, an_event(again, "anew"), repeat_key="k"),
    )
    assert isinstance(late, NotFoundError)
    assert (made.created, gone.thread, anew.created, anew.repeated) == (True, made.thread, True, False)
    assert [event.text for event in await store.events(EventQuery(thread_id=thread.id))] == ["anew"]


async def test_a_thread_that_was_made_again_is_not_removed_by_who_meant_the_former(store: Store) -> None:
    thread = a_thread()
    await store.apply(opening(thread))
    with pytest.raises(NotFoundError):
        await store.apply(Change(thread=evolve(thread, created_at=later(-5)), removes=True))
    assert await store.thread(thread.id) == thread


async def test_an_id_twice_in_a_group_fails_the_second_alone(store: Store) -> None:
    thread = a_thread()
    await store.apply(opening(thread))
    event = an_event(thread, "one")
    twice = an_event(thread, "twice")
    results = await together(
        store,
        Change(thread=thread, events=(event,)),
        Change(thread=thread, events=(event,)),
        Change(thread=thread, events=(twice, twice)),
        Change(thread=thread, events=(an_event(thread, "two"),)),
    )
    assert [isinstance(one, StoreError) for one in results] == [False, True, True, False]
    assert [event.text for event in await store.events(EventQuery(thread_id=thread.id))] == ["one", "two"]


# ---------------------------------------------------------------- what it costs, and who else writes


async def statements(store: Any, *changes: Change) -> tuple[list[str], list[Any]]:
    """The first words of what a group is on the connection that writes, and what became of it."""
    traced: list[str] = []
    await store._writer.raw_connection.set_trace_callback(traced.append)
    results = await together(store, *changes)
    await store._writer.raw_connection.set_trace_callback(None)
    return [text.split()[0] for text in traced if not text.startswith("--")], results


@pytest.mark.parametrize("count", [1, 2, 6, 32, 256])
async def test_a_group_is_one_look_up_and_one_statement_a_table_for_each_power_of_two(
    tmp_path: Path, count: int
) -> None:
    threads = [a_thread() for _ in range(count)]
    async with sqlite(tmp_path / "worker.db") as former:
        await together(former, *map(opening, threads))
    async with sqlite(tmp_path / "worker.db") as store:
        words, _ = await statements(store, *(Change(thread=one, events=(an_event(one),)) for one in threads))
        sizes = bin(count).count("1")
        # 6 rows are 4 and 2.
        tables = [*["WITH" if count > 1 else "UPDATE"] * sizes, *["INSERT"] * sizes]
        assert words == ["BEGIN", "PRAGMA", "SELECT", *tables, "COMMIT"]


async def test_what_this_process_wrote_last_is_not_looked_up_again_but_keys_are(tmp_path: Path) -> None:
    thread = a_thread()
    run = a_run(thread)
    said = Change(thread=thread, during=run.id, events=(an_event(thread),))
    ended = Change(thread=thread, during=run.id, runs=(evolve(run, status="succeeded", ended_at=later(1)),))
    async with sqlite(tmp_path / "worker.db") as store:
        await store.apply(opening(thread, runs=(run,)))
        again = opening(thread, an_event(thread), repeat_key="k")
        looked = [(await statements(store, change))[0].count("SELECT") for change in (again, said, ended)]
        assert looked == [1, 0, 0]
        words, [late] = await statements(store, evolve(said, events=(an_event(thread),)))
        assert (words, type(late)) == (["BEGIN", "PRAGMA", "SELECT", "COMMIT"], NotFoundError)


async def test_what_anybody_else_writes_is_seen_by_the_next_group(tmp_path: Path) -> None:
    thread = a_thread()
    async with sqlite(tmp_path / "worker.db") as store:
        await store.apply(opening(thread, an_event(thread)))
        with closing(sqlite3.connect(tmp_path / "worker.db")) as other, other:
            other.execute("UPDATE worker_threads SET title = 'by hand', last_seq = 7")
        stored = await store.apply(Change(thread=thread, events=(an_event(thread),)))
        assert (stored.thread.title, stored.thread.last_seq) == ("by hand", 8)
        with closing(sqlite3.connect(tmp_path / "worker.db")) as other, other:
            other.execute("DELETE FROM worker_threads")
        with pytest.raises(NotFoundError):
            await store.apply(Change(thread=thread, events=(an_event(thread),)))


async def test_what_a_caller_makes_of_the_metadata_in_its_hands_is_not_stored(tmp_path: Path) -> None:
    thread = a_thread(metadata={"n": 1})
    async with sqlite(tmp_path / "worker.db") as store:
        for title in ("one", "two"):
            stored = await store.apply(opening(thread, patch={"title": title}))
            assert stored.thread.metadata == {"n": 1}
            stored.thread.metadata["n"] = 2
            thread = evolve(thread, metadata={"n": 1})
        assert (await store.apply(Change(thread=thread, patch={"title": "three"}))).thread.metadata == {"n": 1}
        found = await store.thread(thread.id)
        assert found is not None
        assert (found.title, found.metadata) == ("three", {"n": 1})


async def test_what_is_known_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writers, "KNOWN", 5)
    async with sqlite(tmp_path / "worker.db") as store:
        for number in range(12):
            thread = a_thread(f"t{number}")
            await store.apply(opening(thread, runs=(a_run(thread),)))
            known = store._groups._known
            assert len(known.threads) + len(known.runs) <= 5
        threads = [a_thread(f"t{number}") for number in range(12)]
        results = await together(store, *(Change(thread=one, events=(an_event(one),)) for one in threads))
        assert [one.thread.last_seq for one in results] == [1] * 12


async def test_two_that_write_one_file_at_once_number_their_threads_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    async with sqlite(path) as one, sqlite(path) as two:
        thread = a_thread()
        run = a_run(thread)
        await one.apply(opening(thread, runs=(run,)))
        said = [Change(thread=thread, during=run.id, events=(an_event(thread, f"{n}"),)) for n in range(60)]
        end = Change(thread=thread, during=run.id, runs=(evolve(run, status="failed", ended_at=later(1)),))
        await asyncio.gather(*((one, two)[n % 2].apply(change) for n, change in enumerate(said)))
        ended, again = await together(two, end, end)
        assert isinstance(ended, Change)
        assert isinstance(again, NotFoundError)
        with pytest.raises(NotFoundError):
            await one.apply(evolve(said[0], events=(an_event(thread, "late"),)))
        assert [event.seq for event in await two.events(EventQuery(thread_id=thread.id))] == list(range(1, 61))
