"""A worker whose PostgreSQL server really fails: away, frozen, read-only, out of connections, out of disk.

Lost connections and lost answers are test_postgres.py's business, several processes on one server test_cluster.py's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from failing import WITHIN, survives
from services.postgres import OwnPostgres

from dooers import WorkerServer

# As few as a worker needs with its broker, so that they are quickly taken.
CONNECTIONS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    """A server of our own: what is done to it here nobody else would like."""
    own = OwnPostgres()
    try:
        with (own.data / "postgresql.conf").open("a") as conf:
            conf.write(f"max_connections = {CONNECTIONS}\nsuperuser_reserved_connections = 0\n")
        own.start()
        yield own
    finally:
        own.remove()


Failure = Callable[[OwnPostgres, WorkerServer], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def stopped(server: OwnPostgres, worker: WorkerServer) -> AsyncIterator[None]:
    """Connections are cut, and new ones refused."""
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def frozen(server: OwnPostgres, worker: WorkerServer) -> AsyncIterator[None]:
    """Connections stand, new ones are taken by the kernel, and nobody answers."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    everybody = [postmaster, *map(int, children)]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def read_only(server: OwnPostgres, worker: WorkerServer) -> AsyncIterator[None]:
    """As after a failover to a replica that is not yet the first."""
    name = worker.config.database_name
    async with server.address.session() as admin:
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await _cut(admin, name)
        yield
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await _cut(admin, name)


@asynccontextmanager
async def out_of_disk(server: OwnPostgres, worker: WorkerServer) -> AsyncIterator[None]:
    """The server says of every event that there is no room for it."""
    async with server.address.session(worker.config.database_name) as admin:
        await admin.execute(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
            'CREATE TRIGGER no_room BEFORE INSERT ON "worker_events" FOR EACH ROW EXECUTE FUNCTION no_room()'
        )
        yield
        await admin.execute("DROP FUNCTION no_room CASCADE")


@asynccontextmanager
async def out_of_connections(server: OwnPostgres, worker: WorkerServer) -> AsyncIterator[None]:
    """Others have all connections, and the worker has lost its own."""
    address, name = server.address, worker.config.database_name
    taken: list[asyncpg.Connection] = []

    async def take() -> bool:
        try:
            taken.append(await asyncpg.connect(host=address.host, port=address.port, user=address.user, ssl=False))
        except asyncpg.TooManyConnectionsError:
            return False
        return True

    async with address.session() as admin:
        calm = 0  # one that was cut keeps its place for a moment, and the worker is quick to take another
        async with asyncio.timeout(WITHIN):
            while calm < 5:
                await _cut(admin, name)
                while await take():
                    calm = 0
                left = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name)
                calm = 0 if left else calm + 1
                await asyncio.sleep(0.02)
        try:
            yield
        finally:
            for one in taken:
                await one.close()


async def _cut(admin: asyncpg.Connection, database: str) -> None:
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)


FAILURES: dict[str, Failure] = {
    "stopped": stopped,
    "frozen": frozen,
    "read-only": read_only,
    "out of disk": out_of_disk,
    "out of connections": out_of_connections,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_turn_ends_the_socket_stays_and_the_next_turn_works(
    failure: str, server: OwnPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.address.database() as name:
        config = server.address.config(name, database_timeout=1.0, database_pool_max=4)
        readable = failure in ("read-only", "out of disk")
        await survives(config, lambda worker: FAILURES[failure](server, worker), readable=readable)
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
