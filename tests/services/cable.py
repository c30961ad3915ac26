"""A cable between a client and a server on this machine: it can be cut, also in mid-frame, go dumb one way, or lead elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field

__all__ = ["Cable", "cable"]


@define(eq=False)
class _Strand:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter

    def cut(self) -> None:
        for end in (self.near, self.far):
            end.transport.abort()


@define
class Cable:
    """`target` is where new connections lead, None for nowhere: then they are taken and cut at once.

    `up` and `down` say whether bytes pass to the server and to the client; what does not pass is gone. `left` bytes may still come down
    before it is cut.
    """

    target: str | None
    address: str = ""
    up: bool = True
    down: bool = True
    left: int | None = None
    made: int = 0
    strands: set[_Strand] = field(factory=set)

    @property
    def url(self) -> str:
        """For a client of the worker behind it."""
        return f"ws://{self.address}/ws"

    def cut(self) -> None:
        """End every connection, without a word."""
        for strand in list(self.strands):
            strand.cut()

    def mend(self) -> None:
        """Let everything pass again, on new connections."""
        self.cut()
        self.up, self.down, self.left = True, True, None

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        self.made += 1
        if self.target is None:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        strand = _Strand(writer, far_writer)
        self.strands.add(strand)
        try:
            await asyncio.wait(
                {
                    asyncio.create_task(self._up(reader, far_writer)),
                    asyncio.create_task(self._down(far_reader, writer)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            strand.cut()
            self.strands.discard(strand)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if self.up:
                    writer.write(data)
        except OSError:
            pass

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if self.left is not None:
                    data, self.left = data[: self.left], max(self.left - len(data), 0)
                if self.down:
                    writer.write(data)
                if self.left == 0:
                    await writer.drain()
                    return
        except OSError:
            pass


@asynccontextmanager
async def cable(target: str | None) -> AsyncIterator[Cable]:
    """A cable to `host:port`."""
    here = Cable(target)
    carrying: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        carrying.add(task)
        await here.carry(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    here.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        here.cut()
        if carrying:
            await asyncio.wait(carrying, timeout=5)
