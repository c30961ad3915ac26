"""A worker whose SQLite file really fails: locked by another process, a full disk, writes that the disk refuses, a page that is no page."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from failing import WHO, WITHIN, survives

from dooers import WorkerConfig, WorkerServer
from dooers.exceptions import HandlerError, StoreError
from dooers.stores.sqlite import SqliteStore
from dooers.stores.sqlite_connection import hop


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
    command = (sys.executable, "-c", HOLDER, worker.config.database_name)
    holder = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        yield
    finally:
        await holder.communicate(b"")  # the end of its input is the end of it


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


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:  # the same file, not a new one
        file.write(content)


@asynccontextmanager
async def corrupt(worker: WorkerServer) -> AsyncIterator[None]:
    """The pages of all tables hold something else; later they are put back from a copy."""
    path = Path(worker.config.database_name)
    for connection in (store_of(worker)._writer, store_of(worker)._reader):
        assert connection is not None
        await hop(connection, lambda raw: raw.execute("PRAGMA cache_size=0").fetchall())
    await on_writer(worker, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    overwrite(path, whole[:4096] + b"\xff" * (len(whole) - 4096))
    # Only when the log says that there is something new does a connection look again; it has no changes of its own.
    for connection in (store_of(worker)._writer, store_of(worker)._reader):
        assert connection is not None
        await hop(connection, lambda raw: raw.execute("PRAGMA shrink_memory").fetchall())
    yield
    overwrite(path, whole)


FAILURES: dict[str, Callable[[WorkerServer], AbstractAsyncContextManager[None]]] = {
    "locked": locked,
    "full": full,
    "refused": refused,
    "read-only": read_only,
    "corrupt": corrupt,
}


# ---------------------------------------------------------------- what people see


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_turn_ends_the_socket_stays_and_the_next_turn_works(
    failure: str, worker_config: WorkerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = evolve(worker_config, database_timeout=0.3)
    # What is read does not wait for writers.
    await survives(config, FAILURES[failure], readable=failure != "corrupt")
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


async def test_a_file_that_is_removed_or_replaced_under_a_worker_makes_it_not_ready(
    worker_config: WorkerConfig,
) -> None:
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
