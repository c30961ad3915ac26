"""`dooers export` and `dooers import`: what goes out comes in again, anywhere, once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve
from services.cosmos import Service, database, service
from serving import DOOERS, WITHIN

from dooers import WorkerConfig, WorkerServer
from dooers.cli.archive import End, Head, read, write
from dooers.cli.exporting import lines
from dooers.cli.intake import CUT, Intake, Outcome
from dooers.exceptions import InvalidValueError
from dooers.models import (
    Change,
    DocumentPart,
    EventQuery,
    ImagePart,
    Run,
    RunQuery,
    TextPart,
    Thread,
    ThreadEvent,
    ThreadQuery,
    User,
)
from dooers.stores import Store, open_store
from dooers.stores.memory import MemoryStore
from dooers.testing import WorkerClient

T0 = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
AT = datetime(2026, 2, 1, tzinfo=UTC)
ADA = User("ana", "Ada", "ada@example.com", "member", ("i-1", "i-2"), "admin", "owner", "guest")
BOT = """
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="worker.db"))
other = WorkerServer(WorkerConfig(database_type="sqlite", database_name="other.db"))
fleeting = WorkerServer(WorkerConfig(database_type="memory"))
late = WorkerServer(WorkerConfig(database_type="sqlite", database_name="late.db", database_auto_migrate=False))
"""


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def a_thread(**more: Any) -> Thread:
    fields: dict[str, Any] = {
        "id": str(uuid4()),
        "worker_id": "worker",
        "organization_id": "org-1",
        "workspace_id": "ws-1",
        "user_id": "ana",
        "owner": ADA,
        "created_at": T0,
        "updated_at": T0,
        "last_event_at": T0,
        **more,
    }
    return Thread(**fields)


def an_event(thread: Thread, text: str = "hi", **more: Any) -> ThreadEvent:
    fields: dict[str, Any] = {
        "id": str(uuid4()),
        "thread_id": thread.id,
        "type": "message",
        "actor": "user",
        "created_at": T0,
        "content": [TextPart(text)],
        **more,
    }
    return ThreadEvent(**fields)


async def rich(store: Store) -> None:
    """Threads with everything that there may be."""
    full = a_thread(title='ünï → 😀 \\ "quoted" \u2028', metadata={"deep": [{"a": 1.5, "b": None}], "": True})
    run = Run(id=str(uuid4()), thread_id=full.id, started_at=later(1), agent_id="planner", process_id="p-1")
    runs = (
        evolve(run, status="succeeded", ended_at=later(2)),
        evolve(run, id=str(uuid4()), status="failed", ended_at=later(3), error="why\nnot"),
        evolve(run, id=str(uuid4()), status="canceled", ended_at=later(3), agent_id=None, process_id=None),
    )
    parts = [
        TextPart("a\nb\t\u2028"),
        ImagePart("https://example.org/a.png", "image/png", 10, 20, "alt"),
        DocumentPart("data:text/plain,hi", "a.txt", "text/plain", 2),
    ]
    events = (
        an_event(full, user=ADA, client_event_id="c-1", content=parts),
        an_event(full, actor="assistant", author="Robot", turn_seq=1, run_id=run.id, created_at=later(1.5)),
        an_event(full, type="tool.call", actor="tool", turn_seq=1, content=[], data={"args": {"x": [1, None]}}),
        an_event(full, actor="system", notice=True, turn_seq=1, user=User()),
        an_event(full, "waits", created_at=later(5)),
        an_event(full, "answers", actor="assistant", turn_seq=5, created_at=later(4)),
        an_event(full, "last", created_at=later(9)),
    )
    stored = await store.apply(
        Change(thread=full, opens=True, events=events, runs=runs, patch={"updated_at": later(99)})
    )
    for gone in (0, 2, 6):  # the message of a turn, one in the middle, the newest
        await store.remove_event(stored.events[gone].id)
    await store.apply(Change(thread=a_thread(user_id="", owner=User(), last_event_at=later(7)), opens=True))
    emptied = a_thread(organization_id="org-2", worker_id="elsewhere")
    stored = await store.apply(Change(thread=emptied, opens=True, events=(an_event(emptied),)))
    await store.remove_event(stored.events[0].id)
    large = a_thread(workspace_id="ws-2", user_id="bob")
    await store.apply(Change(thread=large, opens=True))
    for start in range(0, 1300, 50):
        some = [
            an_event(large, f"{n}", turn_seq=0 if n % 2 == 0 else n, created_at=later(n))
            for n in range(start, start + 50)
        ]
        many = [
            evolve(
                run, id=str(uuid4()), thread_id=large.id, status="succeeded", started_at=later(start), ended_at=later(n)
            )
            for n in range(5)
        ]
        stored = await store.apply(Change(thread=large, events=tuple(some), runs=tuple(many)))
        await store.remove_event(stored.events[7].id)


async def exported(store: Store, **equal: str) -> bytes:
    found = [line async for line in lines(store, equal)]
    kinds = [type(line) for line in found]
    end = End(kinds.count(Thread), kinds.count(Run), kinds.count(ThreadEvent))
    return b"".join(map(write, [Head(AT), *found, end]))


async def imported(store: Store, text: bytes, worker_id: str | None = None) -> Outcome:
    intake = Intake(store, io.BytesIO(text), worker_id)
    intake.begin()
    return await intake.run()


async def everything(store: Store) -> dict[str, Any]:
    threads = await store.threads(ThreadQuery(limit=1000))
    return {
        # What was removed from the end of a thread is not known any more.
        "threads": [evolve(thread, last_seq=0) for thread in threads],
        "events": {thread.id: await store.events(EventQuery(thread_id=thread.id)) for thread in threads},
        "runs": await store.runs(RunQuery(limit=10_000)),
    }


@pytest.fixture(scope="session")
def cosmos() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(params=["memory", "sqlite", "postgres", "cosmos"])
async def store(
    request: pytest.FixtureRequest, worker_config: WorkerConfig, postgres_config: WorkerConfig
) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        config = {"sqlite": worker_config, "postgres": postgres_config}.get(
            request.param, WorkerConfig(database_type="memory")
        )
        if request.param == "cosmos":
            config = await stack.enter_async_context(database(request.getfixturevalue("cosmos")))
        made = open_store(config)
        await made.open()
        stack.push_async_callback(made.close)
        yield made


@pytest.fixture
async def memory() -> AsyncIterator[MemoryStore]:
    made = MemoryStore()
    await made.open()
    yield made
    await made.close()


# ---------------------------------------------------------------- from anywhere to anywhere


async def test_every_store_takes_in_what_another_gave(store: Store, memory: MemoryStore) -> None:
    await rich(memory)
    text = await exported(memory)
    outcome = await imported(store, text)
    assert (outcome.threads, outcome.known, outcome.faults) == (4, 0, [])
    there = await everything(memory)
    assert await everything(store) == there
    # And gives it back as it was.
    again = MemoryStore()
    await again.open()
    await imported(again, await exported(store))
    assert await everything(again) == there


async def test_importing_twice_is_importing_once(store: Store, memory: MemoryStore) -> None:
    await rich(memory)
    text = await exported(memory)
    await imported(store, text)
    there = await everything(store)
    outcome = await imported(store, text)
    assert (outcome.threads, outcome.events, outcome.runs, outcome.known, outcome.faults) == (0, 0, 0, 4, [])
    assert await everything(store) == there


class Breaking(MemoryStore):
    """Breaks off after so many writes."""

    left = 0

    def _write(self, change: Change) -> Change:
        self.left -= 1
        if self.left < 0:
            raise InvalidValueError("no more")
        return super()._write(change)


@pytest.fixture
async def breaking() -> AsyncIterator[Breaking]:
    made = Breaking()
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("writes", [1, 2, 5, 9])
async def test_an_import_that_broke_off_is_finished_by_the_next(
    writes: int, memory: MemoryStore, breaking: Breaking
) -> None:
    await rich(memory)
    text = await exported(memory)
    for breaking.left in (writes, writes, 10_000):
        outcome = await imported(breaking, text)
    assert outcome.faults == []
    assert await everything(breaking) == await everything(memory)


@pytest.mark.parametrize("events", [0, 1])
async def test_an_import_that_broke_off_among_runs_is_finished_by_the_next(
    events: int, memory: MemoryStore, breaking: Breaking
) -> None:
    thread = a_thread()
    run = Run(id="", thread_id=thread.id, started_at=T0, status="succeeded", ended_at=T0)
    runs = tuple(evolve(run, id=str(uuid4())) for _ in range(120))
    await memory.apply(Change(thread=thread, opens=True, runs=runs, events=(an_event(thread),) * events))
    text = await exported(memory)
    for breaking.left in (1, 2, 10_000, 10_000):
        outcome = await imported(breaking, text)
    assert outcome.faults == []
    assert await everything(breaking) == await everything(memory)


async def test_what_was_added_since_comes_with_the_next_import(store: Store, memory: MemoryStore) -> None:
    thread = a_thread(title="then")
    first = await memory.apply(Change(thread=thread, opens=True, events=(an_event(thread), an_event(thread))))
    await imported(store, await exported(memory))
    await store.apply(Change(thread=thread, patch={"title": "renamed here"}))
    await memory.remove_event(first.events[1].id)
    await memory.apply(Change(thread=thread, events=(an_event(thread, created_at=later(60)),)))
    # What is in the middle was removed there, so it is not known that it is the same; the first is.
    await store.remove_event(first.events[1].id)
    outcome = await imported(store, await exported(memory))
    assert (outcome.threads, outcome.events, outcome.faults) == (1, 1, [])
    assert [event.seq for event in await store.events(EventQuery(thread_id=thread.id))] == [1, 3]
    kept = await store.thread(thread.id)
    assert kept is not None
    assert (kept.title, kept.last_event_at) == ("renamed here", later(60))


async def test_a_thread_that_went_on_otherwise_is_left_alone(store: Store, memory: MemoryStore) -> None:
    thread = a_thread()
    await memory.apply(Change(thread=thread, opens=True, events=(an_event(thread),)))
    await imported(store, await exported(memory))
    await store.apply(Change(thread=thread, events=(mine := an_event(thread, "mine"),)))
    older = await imported(store, await exported(memory))
    assert (older.known, older.faults) == (1, [])
    await memory.apply(Change(thread=thread, events=(an_event(thread), an_event(thread))))
    before = await everything(store)
    outcome = await imported(store, await exported(memory))
    assert outcome.faults == [
        f"line 2: thread {thread.id}: the thread is there already, and went on otherwise: its event {mine.id!r} is not in "
        "the file; nothing of it was imported"
    ]
    assert await everything(store) == before


async def test_a_thread_of_somebody_else_under_the_same_id_is_left_alone(store: Store, memory: MemoryStore) -> None:
    thread = a_thread()
    await memory.apply(Change(thread=thread, opens=True, events=(an_event(thread),)))
    text = await exported(memory)
    others: dict[str, Any] = {"user_id": "eve", "organization_id": "o", "worker_id": "w", "created_at": later(1)}
    for name, value in others.items():
        theirs = evolve(thread, **{name: value})
        await store.apply(Change(thread=theirs, opens=True))
        outcome = await imported(store, text)
        assert outcome.faults[0].startswith(
            f"line 2: thread {thread.id}: there is another thread of this id: its {name} is"
        )
        assert await store.events(EventQuery(thread_id=thread.id)) == []
        await store.apply(Change(thread=theirs, removes=True))


async def test_runs_that_ran_are_over_where_they_are_brought_to(store: Store, memory: MemoryStore) -> None:
    thread = a_thread()
    run = Run(id=str(uuid4()), thread_id=thread.id, started_at=T0, process_id="p-1")
    await memory.apply(Change(thread=thread, opens=True, events=(an_event(thread),), runs=(run,)))
    text = await exported(memory)
    assert b'"status":"running"' in text
    await imported(store, text)
    assert await store.run(run.id) == evolve(run, status="failed", ended_at=AT, error=CUT)
    assert await store.silent(later(10**6), later(10**6)) == []


async def test_threads_may_come_under_another_worker_id(store: Store, memory: MemoryStore) -> None:
    await rich(memory)
    await imported(store, await exported(memory), worker_id="mine")
    threads = await store.threads(ThreadQuery())
    assert {thread.worker_id for thread in threads} == {"mine"}
    assert len(await store.runs(RunQuery(equal={"worker_id": "mine"}, limit=1000))) == 133


async def test_an_imported_conversation_goes_on(
    memory: MemoryStore, worker_config: WorkerConfig, tmp_path: Path
) -> None:
    def made(config: WorkerConfig) -> WorkerServer:
        worker = WorkerServer(config)

        @worker.handler
        async def agent(incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
            yield send.run_start()
            history = await memory.get_history(limit=20, format="openai")
            yield send.text(" / ".join(entry["content"] for entry in history))
            yield send.run_end()

        return worker

    worker = made(worker_config)
    async with worker.lifespan(), WorkerClient(worker) as client:
        thread_id = (await client.say("one")).thread_id
        assert (await client.say("two", thread_id)).text == "one / one / two"
        kept = await client.ask("thread.subscribe", {"thread_id": thread_id})
    source = open_store(worker_config)
    await source.open()
    text = await exported(source)
    await source.close()
    config = evolve(worker_config, database_name=str(tmp_path / "other.db"))
    there = open_store(config)
    await there.open()
    assert (await imported(there, text)).faults == []
    await there.close()
    worker = made(config)
    async with worker.lifespan(), WorkerClient(worker) as client:
        same = await client.ask("thread.subscribe", {"thread_id": thread_id})
        assert same["payload"] == kept["payload"]
        assert (await client.say("three", thread_id)).text == "one / one / two / one / one / two / three"


# ---------------------------------------------------------------- what is written meanwhile


async def test_each_thread_is_exported_once_and_as_it_was_in_one_moment() -> None:
    class Busy(MemoryStore):
        """Somebody writes to the oldest thread, and begins another one, whenever a page is read."""

        turns = 5

        async def threads(self, query: ThreadQuery) -> list[Thread]:
            page = await super().threads(evolve(query, limit=3))
            if self.turns:
                self.turns -= 1
                oldest = (await super().threads(ThreadQuery(oldest_first=True)))[0]
                at = later(1000 + 100 * (5 - self.turns))
                self._write(Change(thread=oldest, events=(an_event(oldest, created_at=at),)))
                new = a_thread(last_event_at=at)
                self._write(Change(thread=new, opens=True, events=(an_event(new, created_at=at),)))
            return page

        async def runs(self, query: RunQuery) -> list[Run]:
            thread = self._threads[query.equal["thread_id"]]
            self._write(Change(thread=thread, events=(an_event(thread, "too late"),)))
            return await super().runs(query)

    store = Busy()
    await store.open()
    for number in range(10):
        thread = a_thread(last_event_at=later(number))
        store._write(Change(thread=thread, opens=True, events=(an_event(thread, created_at=later(number)),)))
    found = [line async for line in lines(store, {})]
    ids = [line.id for line in found if isinstance(line, Thread)]
    assert len(ids) == len(set(ids)) == 15
    assert set(ids) == set(store._threads)
    assert "too late" not in [line.text for line in found if isinstance(line, ThreadEvent)]
    for thread in [line for line in found if isinstance(line, Thread)]:
        events = [line.seq for line in found if isinstance(line, ThreadEvent) and line.thread_id == thread.id]
        assert events == list(range(1, thread.last_seq + 1))


# ---------------------------------------------------------------- bad lines


THREAD = write(a_thread(id="t-1", last_seq=9)).decode()
EVENT = write(an_event(a_thread(id="t-1"), id="e-1", seq=1, turn_seq=1)).decode()
RUN = write(Run(id="r-1", thread_id="t-1", started_at=T0, status="succeeded", ended_at=T0)).decode()
SECOND = write(an_event(a_thread(id="t-1"), id="e-2", seq=2, turn_seq=1)).decode()


def changed(line: str, **values: Any) -> str:
    return json.dumps({**json.loads(line), **values}) + "\n"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{nonsense\n", "expected a JSON object, this is no JSON"),
        ("[1]\n", "expected a JSON object, got [1]"),
        ('{"a": NaN}\n', "expected a JSON object, this is no JSON"),
        ("\xff\xfe\n", "expected a JSON object, this is no JSON"),
        ('{"kind": "evnt"}\n', "kind: expected one of 'dooers.export', 'thread', 'run', 'event', 'end', got 'evnt'"),
        ('{"kind": ["event"]}\n', "kind: expected one of"),
        ('{"kind": "event"}\n', "id: is required"),
        (changed(EVENT, id=""), "id: expected a text that is not empty"),
        (changed(EVENT, id="x" * 300), "id: expected at most 256 characters, got 300"),
        (changed(EVENT, thread_id="t-2"), "thread_id: expected 't-1', the thread that this stands under, got 't-2'"),
        (changed(EVENT, seq="1"), "seq: expected integer, got string"),
        (changed(EVENT, seq=0), "seq: expected a number from 1, got 0"),
        (changed(EVENT, seq=10), "seq: expected a number from 3 to 9, got 10"),
        (changed(EVENT, seq=2), "seq: expected a number from 3 to 9, got 2"),
        (changed(EVENT, seq=3, turn_seq=0), "turn_seq: expected a number from 1, got 0"),
        (changed(EVENT, seq=3), "id: two events of this thread have the same"),
        (changed(EVENT, type="massage"), "type: expected 'message' or"),
        (changed(EVENT, actor=None), "actor: expected 'user' or"),
        (
            changed(EVENT, created_at="2026-01-01T00:00:00"),
            "created_at: expected a time with its zone, as 2026-01-31T12",
        ),
        (changed(EVENT, created_at="yesterday"), "created_at: expected a time"),
        (changed(EVENT, content=[{"type": "text", "text": "a"}, {"type": "vido"}]), "content[1].type: expected one of"),
        (changed(EVENT, content=[{"type": "image"}]), "content[0].url: is required"),
        (changed(EVENT, content="hi"), "content: expected array, got string"),
        (changed(EVENT, data=[1]), "data: expected object, got array"),
        (changed(EVENT, user={"user_id": 7}), "user.user_id: expected string, got integer"),
        (changed(EVENT, user={"identity_ids": "abc"}), "user.identity_ids: expected array, got string"),
        (changed(RUN, status="done"), "status: expected 'running' or"),
        (changed(RUN, started_at=None), "started_at: expected string, got null"),
    ],
)
async def test_a_bad_line_is_told_with_its_path_and_costs_its_own_thread_only(
    bad: str, says: str, memory: MemoryStore
) -> None:
    others = [write(a_thread(id=name)).decode() for name in ("before", "after")]
    head, end = write(Head(AT)).decode(), write(End(3, 1, 3)).decode()
    text = (
        head
        + others[0]
        + "\n"
        + THREAD
        + RUN
        + EVENT
        + SECOND
        + bad
        + changed(EVENT, seq=4, id="e-4")
        + others[1]
        + end
    )
    outcome = await imported(memory, text.encode("latin-1" if "\xff" in bad else "utf-8"))
    number = 4 if "two events" in says else 8  # seen at its end only
    assert outcome.faults[0].startswith(f"line {number}: thread t-1: {says}"), outcome.faults
    assert outcome.faults[0].endswith("; nothing of it was imported")
    assert len(outcome.faults) == 1
    assert {thread.id for thread in await memory.threads(ThreadQuery())} == {"before", "after"}
    assert await memory.runs(RunQuery()) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (changed(THREAD, owner=None), "owner: expected object, got null"),
        (changed(THREAD, last_seq=-1), "last_seq: expected a number from 0, got -1"),
        (changed(THREAD, metadata="x"), "metadata: expected object, got string"),
        (changed(THREAD, user_id=None), "user_id: expected string, got null"),
    ],
)
async def test_a_bad_thread_is_left_out_with_all_that_stands_under_it(
    line: str, says: str, memory: MemoryStore
) -> None:
    text = (
        write(Head(AT)).decode()
        + line
        + RUN
        + EVENT
        + write(a_thread(id="after")).decode()
        + write(End(1, 1, 1)).decode()
    )
    outcome = await imported(memory, text.encode())
    assert outcome.faults[0] == f"line 2: {says}"
    assert {thread.id for thread in await memory.threads(ThreadQuery())} == {"after"}


async def test_of_a_file_that_breaks_off_the_last_thread_is_left_out(memory: MemoryStore) -> None:
    whole = write(Head(AT)) + write(a_thread(id="before")) + (THREAD + EVENT + SECOND).encode()
    for text, line in ((whole, 5), (whole[:-30], 5)):
        outcome = await imported(memory, text)
        assert len(outcome.faults) == 1
        assert outcome.faults[0].startswith(f"line {line}: thread t-1: ")
        assert {thread.id for thread in await memory.threads(ThreadQuery())} == {"before"}
    assert (await imported(memory, write(Head(AT)))).faults == ["the file has no end: is all of it there?"]


async def test_files_may_be_put_one_behind_another(memory: MemoryStore) -> None:
    one = write(Head(AT)) + write(a_thread(id="a")) + write(End(1, 0, 0))
    two = write(Head(AT)) + THREAD.encode() + EVENT.encode() + write(End(1, 0, 1))
    more = write(Head(AT)) + THREAD.encode() + EVENT.encode() + SECOND.encode() + write(End(1, 0, 2))
    outcome = await imported(memory, one + two + more)
    assert (outcome.threads, outcome.events, outcome.faults) == (3, 2, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "line 0: expected the head of an export, this is none"),
        (b"hello\n", "line 1: expected a JSON object, this is no JSON"),
        (b"\x1f\x8b\x08\x00", "line 1: expected a JSON object, this is no JSON"),
        (THREAD.encode(), "line 1: expected the head of an export, this is none"),
        (
            b'{"kind":"dooers.export","version":2,"exported_at":"2026-01-01T00:00:00Z"}',
            "line 1: version: expected 1, got 2",
        ),
    ],
)
async def test_what_is_no_export_is_refused_at_once(text: bytes, says: str, memory: MemoryStore) -> None:
    with pytest.raises(InvalidValueError) as raised:
        await imported(memory, text)
    assert str(raised.value).startswith(says)


def test_what_a_later_version_adds_is_left_alone() -> None:
    assert read(changed(EVENT, mood="fine").encode()) == read(EVENT.encode())


# ---------------------------------------------------------------- the commands


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "bot.py").write_text(BOT)

    async def fill() -> None:
        store = open_store(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db")))
        await store.open()
        await rich(store)
        await store.close()

    asyncio.run(fill())
    return tmp_path


def dooers(*words: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [*DOOERS, *words], cwd=cwd, env=env, input=stdin, capture_output=True, timeout=WITHIN, check=False
    )


def kinds(text: bytes) -> dict[str, int]:
    found = [json.loads(line)["kind"] for line in text.splitlines()]
    return {kind: found.count(kind) for kind in found}


def test_a_file_goes_from_one_database_to_another(here: Path) -> None:
    done = dooers("export", "bot:worker", "--out", "threads.jsonl", cwd=here)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"exported 4 threads, 1,278 events, 133 runs to threads.jsonl\n"
    assert stat.S_IMODE((here / "threads.jsonl").stat().st_mode) == 0o600
    assert not (here / "threads.jsonl.part").exists()
    done = dooers("import", "bot:other", "threads.jsonl", cwd=here)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"imported 4 threads, 1,278 events, 133 runs; no threads there already, no faults\n" in done.stderr
    done = dooers("import", "bot:other", "-", cwd=here, stdin=(here / "threads.jsonl").read_bytes())
    assert done.stderr == b"imported no threads, no events, no runs; 4 threads there already, no faults\n"
    piped = dooers("export", "bot:other", cwd=here)
    texts = [(here / "threads.jsonl").read_bytes(), piped.stdout]
    # What was removed from the end of a thread is not known any more.
    one, two = (re.sub(rb'"last_seq":\d+', b"", text).splitlines()[1:] for text in texts)
    assert one == two


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), 4),
        (("--organization", "org-1"), 3),
        (("--organization", "org-1", "--workspace", "ws-1"), 2),
        (("--user", "ana"), 2),
        (("--user", "nobody"), 0),
        (("--worker-id", "elsewhere"), 1),
    ],
)
def test_only_what_was_asked_for_is_exported(options: tuple[str, ...], found: int, here: Path) -> None:
    done = dooers("export", "bot:worker", *options, cwd=here)
    assert done.returncode == 0
    assert kinds(done.stdout).get("thread", 0) == found
    assert kinds(done.stdout)["end"] == 1


def test_one_thread_is_exported_by_its_id_and_one_that_is_not_there_is_told(here: Path) -> None:
    every = dooers("export", "bot:worker", cwd=here).stdout
    thread_id = next(json.loads(line)["id"] for line in every.splitlines() if json.loads(line)["kind"] == "thread")
    done = dooers("export", "bot:worker", "--thread", thread_id, cwd=here)
    assert kinds(done.stdout)["thread"] == 1
    done = dooers("export", "bot:worker", "--thread", "nope", cwd=here)
    assert (done.returncode, done.stderr) == (1, b"dooers: there is no thread 'nope'\n")


def test_mistakes_are_one_sentence_and_make_nothing(here: Path) -> None:
    (here / "bad.jsonl").write_bytes(write(Head(AT)) + b"{}\n" + write(End(0, 0, 0)))
    for words, code, says in (
        (("export", "bot:fleeting"), 2, "its conversations are in the memory of the process that serves it"),
        (("export", "bot:other"), 2, "found no schema version, needed schema version"),
        (("export", "bot:late"), 2, "found no schema version, needed schema version"),
        (("export", "bot:worker", "--out", "nowhere/x.jsonl"), 1, "cannot write nowhere/x.jsonl: No such file"),
        (("export", "bto:worker"), 2, "did you mean bot:worker?"),
        (("import", "bot:fleeting", "bad.jsonl"), 2, "its conversations are in the memory"),
        (("import", "bot:other", "absent.jsonl"), 2, "cannot read absent.jsonl: No such file or directory"),
        (("import", "bot:other", "bot.py"), 2, "line 2: expected a JSON object, this is no JSON; expected a file that"),
        (("import", "bot:other", "bad.jsonl", "bad.jsonl"), 2, "expected [MODULE:NAME] FILE, got 3 words"),
        (("import", "absent.jsonl"), 2, "expected MODULE:NAME, e.g. app:worker; or name it once"),
        (("import", "bot:late", "bad.jsonl"), 1, "the database"),
        (("import", "bot:worker", "bad.jsonl", "--worker-id", ""), 2, "--worker-id: expected a text that is not empty"),
    ):
        done = dooers(*words, cwd=here)
        assert (done.returncode, done.stdout) == (code, b""), (words, done.stderr)
        assert says in done.stderr.decode(), (words, done.stderr)
        assert b"Traceback" not in done.stderr
    assert not (here / "other.db").exists()
    done = dooers("import", "bot:other", "bad.jsonl", cwd=here)
    assert done.returncode == 1
    assert b"dooers: bad.jsonl: line 2: kind: expected one of" in done.stderr


def test_who_has_read_enough_ends_an_export_quietly(here: Path) -> None:
    command = f"{' '.join(DOOERS)} export bot:worker | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=here, capture_output=True, timeout=WITHIN, check=False
    )
    assert b"dooers.export" in done.stdout
    assert done.stderr == b""


def test_progress_is_shown_on_a_terminal_only(here: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    try:
        for words, says in (
            (("export", "bot:worker", "--out", "x.jsonl"), b"4/4"),
            (("import", "bot:other", "x.jsonl"), b"importing"),
        ):
            done = subprocess.run(
                [*DOOERS, *words], cwd=here, env=env, stderr=theirs, stdout=subprocess.PIPE, timeout=WITHIN, check=False
            )
            assert (done.returncode, done.stdout) == (0, b"")
            said = os.read(ours, 1 << 16)
            assert says in said
    finally:
        os.close(ours)
        os.close(theirs)


def test_ctrl_c_ends_an_export_and_leaves_no_file(here: Path) -> None:
    (here / "slow.py").write_text(
        "from bot import worker\nimport dooers.cli.exporting as e, asyncio\nold = e.lines\n"
        "async def lines(store, equal):\n    async for line in old(store, equal):\n        yield line\n        await asyncio.sleep(60)\n"
        "e.lines = lines\n"
    )
    talking = subprocess.Popen(
        [*DOOERS, "export", "slow:worker", "--out", "x.jsonl"], cwd=here, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        until = time.monotonic() + WITHIN
        while not (here / "x.jsonl.part").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.3)
        talking.send_signal(signal.SIGINT)
        _, said = talking.communicate(timeout=WITHIN)
    finally:
        talking.kill()
        talking.wait(WITHIN)
    assert talking.returncode == 1
    assert said == b"dooers: interrupted; nothing was written\n"
    assert not list(here.glob("x.jsonl*"))


def many(path: Path, threads: int = 1500, events: int = 4000) -> None:
    """A file of many small threads, and a large one in their midst."""
    with path.open("wb") as file:
        file.write(write(Head(AT)))
        for number in range(threads):
            thread = a_thread(id=f"t-{number}", last_seq=events)
            file.write(write(thread))
            for seq in range(1, (events if number == threads // 2 else 2) + 1):
                file.write(write(an_event(thread, id=f"e-{number}-{seq}", seq=seq, turn_seq=seq)))
        file.write(write(End(threads, 0, 0)))


def until_it_writes(database: Path) -> None:
    until = time.monotonic() + WITHIN
    while True:
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("SELECT count(*) FROM worker_threads").fetchone()[0]:
                return
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_import_that_was_killed_is_finished_by_the_next(here: Path) -> None:
    many(here / "x.jsonl")
    for _ in range(2):
        talking = subprocess.Popen([*DOOERS, "import", "bot:other", "x.jsonl"], cwd=here, stderr=subprocess.DEVNULL)
        try:
            until_it_writes(here / "other.db")
        finally:
            talking.kill()
            talking.wait(WITHIN)
    assert dooers("import", "bot:other", "x.jsonl", cwd=here).returncode == 0
    again = dooers("import", "bot:other", "x.jsonl", cwd=here)
    assert again.stderr == b"imported no threads, no events, no runs; 1,500 threads there already, no faults\n"
    assert kinds(dooers("export", "bot:other", cwd=here).stdout)["event"] == 2 * 1499 + 4000


def test_ctrl_c_ends_an_import_that_goes_on_when_it_is_repeated(here: Path) -> None:
    many(here / "x.jsonl", 100, 10)
    (here / "slow.py").write_text(
        "from bot import other\nimport dooers.cli.intake as i, asyncio\nold = i.Intake._take\n"
        "async def take(self, thread):\n    if thread.id == 't-90':\n        await asyncio.sleep(60)\n    return await old(self, thread)\n"
        "i.Intake._take = take\n"
    )
    talking = subprocess.Popen(
        [*DOOERS, "import", "slow:other", "x.jsonl"], cwd=here, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        until_it_writes(here / "other.db")
        talking.send_signal(signal.SIGINT)
        _, said = talking.communicate(timeout=WITHIN)
    finally:
        talking.kill()
        talking.wait(WITHIN)
    assert talking.returncode == 1
    assert said.endswith(b"dooers: interrupted; what was imported stays, and the same command goes on from there\n")
    assert b"Traceback" not in said
    done = dooers("import", "bot:other", "x.jsonl", cwd=here)
    assert done.returncode == 0
    assert kinds(dooers("export", "bot:other", cwd=here).stdout)["thread"] == 100
