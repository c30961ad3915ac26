"""A Redis for tests: a server of its own in a directory of its own, or the one that DOOERS_TEST_REDIS_URL names."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NoRedisError
from redis.retry import Retry

from dooers import WorkerConfig

__all__ = ["OwnRedis", "Proxy", "free_port", "own_redis", "proxy", "redis_url", "worker"]


class OwnRedis:
    """A server that may be stopped and started, on a port of 127.0.0.1 and on a Unix socket, with more lines of its configuration."""

    def __init__(self, *lines: str) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed; or set DOOERS_TEST_REDIS_URL")
        self.home = Path(tempfile.mkdtemp(prefix="dooers-redis-"))
        self.socket, self.port = self.home / "redis.sock", free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        # It keeps nothing: a restart is one that has lost everything.
        lines = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"dir {self.home}",
            'save ""',
            *lines,
        )
        (self.home / "redis.conf").write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(["redis-server", self.home / "redis.conf"], stdout=log, stderr=log)
        with Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0)) as redis:
            for _ in range(500):
                try:
                    redis.ping()
                    return
                except AuthenticationError:  # it is there, and lets not everybody in
                    return
                except NoRedisError:
                    if self._process.poll() is not None:
                        break
                    self._wait(0.02)
        pytest.fail(f"redis-server did not start: {(self.home / 'log').read_text()[-500:]}")

    def stop(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _wait(self, seconds: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


@contextmanager
def own_redis(*lines: str) -> Iterator[OwnRedis]:
    server = OwnRedis(*lines)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.home)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The server of this session."""
    url = os.environ.get("DOOERS_TEST_REDIS_URL")
    if url is not None:
        yield url
    else:
        with own_redis() as server:
            yield server.url


def worker(url: str, **more: Any) -> WorkerConfig:
    """A worker of which there may be many, with a database that nobody else has, and that no broker looks at."""
    more = {"database_type": "postgres", "database_name": f"t{uuid4().hex}", **more}
    return WorkerConfig(broker_url=url, **more)


class Proxy:
    """A way to a server that somebody may cut, or freeze: then it swallows what goes through, and everybody waits."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.opened = 0
        self.frozen = False
        # Seconds that an answer takes.
        self.slow = 0.0
        self.closed = False
        # Once, swallow the answer to what contains this, and the connection with it: it was done, and nobody hears of it.
        self.losing: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        back: asyncio.StreamWriter | None = None
        try:
            if self.closed:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            async with asyncio.TaskGroup() as both:
                lose = asyncio.Event()
                both.create_task(self._pass(reader, back, lose, answers=False))
                both.create_task(self._pass(there, writer, lose, answers=True))
        except* (_CutError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if back is not None:
                back.close()
            self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lose: asyncio.Event, *, answers: bool
    ) -> None:
        while data := await reader.read(65536):
            if self.frozen:
                continue
            if not answers and self.losing is not None and self.losing in data:
                self.losing = None
                lose.set()
            elif answers and lose.is_set():
                raise _CutError
            if answers and self.slow:
                await asyncio.sleep(self.slow)
            writer.write(data)
        raise _CutError


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A new way to the server at this URL."""
    with Redis.from_url(url) as redis:
        between = Proxy(redis.connection_pool.connection_kwargs["port"])
    server = await asyncio.start_server(between.connected, "127.0.0.1", 0)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        between.cut()
        await asyncio.gather(*between._tasks, return_exceptions=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class _CutError(Exception):
    """One side is gone, so the other goes too."""
