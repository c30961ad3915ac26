"""A worker whose SQLite file really fails: locked by another process, a full disk, writes that the disk refuses, a page that is no page."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from dooers import WorkerConfig, WorkerServer
from dooers.exceptions import DispatchError, HandlerError, StoreError
from dooers.models import EventQuery, RunQuery
from dooers.stores.sqlite import SqliteStore
from dooers.stores.sqlite_connection import hop
from dooers.testing import WorkerClient

Frame = dict[str, Any]
WITHIN = 30.0
# Texts that need a page of their own: a full disk still has room for small ones.
PAD = "." * 8192
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


def store_of(worker: WorkerServer) -> SqliteStore:
    store = worker._parts.store()
    assert isinstance(store, SqliteStore)
    return store


async def on_writer(worker: WorkerServer, statement: str) -> None:
    writer = store_of(worker)._writer
    assert writer is not None
    await hop(writer, lambda raw: raw.execute(statement).fetchall())


# ---------------------------------------------------------------- what fails, and is mended at the end of the block

HOLDER = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(worker: WorkerServer) -> AsyncIterator[None]:
    """Another process has the file, for longer than anybody waits."""
    command = [sys.executable, "-c", HOLDER, worker.config.database_name]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        yield
    finally:
        await asyncio.to_thread(holder.communicate)


@asynccontextmanager
async def full(worker: WorkerServer) -> AsyncIterator[None]:
    """There is no room for another page."""
    # Until the very last page is used, small rows still fit.
    await on_writer(worker, "CREATE TABLE filler (x)")
    await on_writer(worker, "PRAGMA max_page_count=1")  # which SQLite takes for: as many as there are
    with pytest.raises(sqlite3.OperationalError, match="full"):
        while True:
            await on_writer(worker, "INSERT INTO filler VALUES (zeroblob(100))")
    yield
    await on_writer(worker, "PRAGMA max_page_count=1000000")


@asynccontextmanager
async def refused(worker: WorkerServer) -> AsyncIterator[None]:
    """The disk takes not one byte more: no file of this process may grow beyond what the log has."""
    size = os.path.getsize(f"{worker.config.database_name}-wal")
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


@asynccontextmanager
async def read_only(worker: WorkerServer) -> AsyncIterator[None]:
    """The file may be read and not written."""
    await on_writer(worker, "PRAGMA query_only=ON")
    yield
    await on_writer(worker, "PRAGMA query_only=OFF")


@asynccontextmanager
async def corrupt(worker: WorkerServer) -> AsyncIterator[None]:
    """The pages of all tables hold something else; later they are put back from a copy."""
    path = Path(worker.config.database_name)
    for connection in (store_of(worker)._writer, store_of(worker)._reader):
        assert connection is not None
        await hop(connection, lambda raw: raw.execute("PRAGMA cache_size=0").fetchall())
    await on_writer(worker, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (len(whole) - 4096))
    # Only when the log says that there is something new does a connection look again; it has no changes of its own.
    for connection in (store_of(worker)._writer, store_of(worker)._reader):
        assert connection is not None
        await hop(connection, lambda raw: raw.execute("PRAGMA shrink_memory").fetchall())
    yield
    with path.open("r+b") as file:
        file.write(whole)


FAILURES: dict[str, Callable[[WorkerServer], AbstractAsyncContextManager[None]]] = {
    "locked": locked,
    "full": full,
    "refused": refused,
    "read-only": read_only,
    "corrupt": corrupt,
}


# ---------------------------------------------------------------- what a turn does meanwhile


class Gate:
    """A handler that answers at once, or waits in the middle when it is told to."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def handler(self, incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == f"wait{PAD}":
            yield send.text("first")
            await memory.get_history()
            self.reached.set()
            await self.go.wait()
        yield send.text(f"re: {incoming.message}{PAD}")


async def post(asking: WorkerClient, text: str, thread_id: str, key: str) -> Frame:
    event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text + PAD}]}
    return await asking.ask("event.create", {"event": event, "thread_id": thread_id, "client_event_id": key})


async def quiet(worker: WorkerServer, thread_id: str) -> None:
    async with asyncio.timeout(WITHIN):
        while worker.is_answering(thread_id):
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_turn_ends_the_socket_stays_and_the_next_turn_works(
    failure: str, worker_config: WorkerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    # A beat that waits for a lock has its time, so that nobody has to wait for one here.
    config = evolve(worker_config, database_timeout=0.3, run_heartbeat=0.2, run_timeout=60.0)
    worker, gate = WorkerServer(config), Gate()
    worker.handler(gate.handler)
    async with worker.lifespan(), WorkerClient(worker) as asking, WorkerClient(worker) as watching:
        thread_id = (await asking.say("hello")).thread_id
        await watching.ask("thread.subscribe", {"thread_id": thread_id})
        assert (await post(asking, "wait", thread_id, "c1"))["payload"]["ok"]
        await gate.reached.wait()
        async with FAILURES[failure](worker):
            answer = await post(asking, "lost", thread_id, "c2")
            assert answer["payload"]["error"]["code"] == "SERVER_ERROR"
            assert "database" not in answer["payload"]["error"]["message"]
            assert (await asking.ask("ping"))["type"] == "pong"
            with pytest.raises(DispatchError) as raised:
                await worker.dispatch(**WHO, message=f"by code{PAD}", thread_id=thread_id, idempotency_key="k1")
            assert isinstance(raised.value.__cause__, StoreError)
            gate.go.set()  # the one at work wants to write, cannot, and cannot store its end either
            await quiet(worker, thread_id)
            # What is read does not wait for writers.
            listed = await asking.ask("event.list", {"thread_id": thread_id})
            assert (listed["type"] == "ack") == (failure == "corrupt"), listed
        # No restart: the end of that turn is stored by itself, and told.
        statuses: list[str] = []
        async with asyncio.timeout(WITHIN):
            while statuses[-1:] != ["failed"]:
                frame = await watching.receive(WITHIN)
                if frame["type"] == "run.upsert":
                    statuses.append(frame["payload"]["run"]["status"])
        # What was refused is sent again, and there once; so is what was not.
        for text, key in (("wait", "c1"), ("lost", "c2"), ("lost", "c2")):
            assert (await post(asking, text, thread_id, key))["payload"]["ok"]
        stream = await worker.dispatch(**WHO, message=f"by code{PAD}", thread_id=thread_id, idempotency_key="k1")
        assert [event.data["text"].rstrip(PAD) for event in await stream.collect() if "text" in event.data] == ["re: by code"]
        await quiet(worker, thread_id)
        store = store_of(worker)
        events = await store.events(EventQuery(thread_id=thread_id, limit=None))
        texts = [event.text.rstrip(PAD) for event in events if not event.notice]
        assert texts == ["hello", "re: hello", "wait", "first", "lost", "re: lost", "by code", "re: by code"]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sum(event.notice for event in events) == 1
        runs = await store.runs(RunQuery(equal={"thread_id": thread_id}, limit=10, oldest_first=True))
        assert [run.status for run in runs] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


async def test_a_dispatch_that_is_iterated_when_the_disk_fills_raises_and_does_not_wait(
    worker_config: WorkerConfig,
) -> None:
    worker = WorkerServer(evolve(worker_config, database_timeout=0.3))

    @worker.handler
    async def handler(send: Any) -> AsyncIterator[Any]:
        for number in range(10):
            yield send.text(str(number))

    async with worker.lifespan(), asyncio.timeout(WITHIN):
        stream = await worker.dispatch(**WHO, message="count")
        got = []
        with pytest.raises(HandlerError) as raised:
            async for event in stream:
                got.append(event.data["text"])
                if len(got) == 3:
                    await on_writer(worker, "PRAGMA query_only=ON")
        assert got == ["0", "1", "2"]
        assert isinstance(raised.value.original, StoreError)
        await on_writer(worker, "PRAGMA query_only=OFF")


async def test_whoever_waits_behind_others_for_a_locked_file_waits_no_longer_than_twice(
    worker_config: WorkerConfig,
) -> None:
    worker = WorkerServer(evolve(worker_config, database_timeout=0.5))
    async with worker.lifespan(), locked(worker):
        loop = asyncio.get_running_loop()
        began, now = loop.time(), worker._parts.clock().now()
        store = store_of(worker)
        ended = await asyncio.gather(*(store.beat("p", now) for _ in range(50)), return_exceptions=True)
        assert {type(one) for one in ended} == {StoreError}
        assert loop.time() - began < 10  # one after the other it would be 25


async def test_a_file_that_is_removed_or_replaced_under_a_worker_makes_it_not_ready(worker_config: WorkerConfig) -> None:
    """SQLite writes on, into a file that nobody will find again: whoever watches the worker has to hear of it."""
    worker = WorkerServer(worker_config)
    path = Path(worker_config.database_name)
    async with worker.lifespan():
        await worker.ready()
        path.rename(path.with_suffix(".away"))
        with pytest.raises(StoreError, match="removed or replaced"):
            await worker.ready()
        path.write_bytes(b"")
        with pytest.raises(StoreError, match="removed or replaced"):
            await worker.ready()
        path.with_suffix(".away").rename(path)
        await worker.ready()
