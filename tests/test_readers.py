"""Readers that do not read, over real sockets: the operating system's buffers, the server's and ours, one behind the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from services.soaking import Served, served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dooers.client import Client

OUTBOX = 512 * 1024
WITHIN = 60.0


@asynccontextmanager
async def reader(server: Served, thread_id: str, after: str | None = None) -> AsyncIterator[ClientConnection]:
    """A connection that follows a thread, and has asked for what came after an event. What it gets is for whoever reads it."""
    async with connect(f"ws://{server.address}/ws", proxy=None, compression=None, max_size=None) as socket:
        who = {"worker_id": "worker", "organization_id": "local", "workspace_id": "local", "user_id": "reader"}
        asked = {"thread_id": thread_id} | ({} if after is None else {"after_event_id": after})
        for kind, payload in (("connect", who), ("thread.subscribe", asked)):
            await socket.send(json.dumps({"id": kind, "type": kind, "payload": payload}))
        yield socket


async def events(socket: ClientConnection, upto: int | None = None) -> list[dict[str, Any]]:
    """The events that come, until the one with this number, or until the connection is closed."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(WITHIN):
        try:
            while upto is None or not found or found[-1]["seq"] < upto:
                found += json.loads(await socket.recv())["payload"].get("events", [])
        except ConnectionClosed:
            assert upto is None, "closed before all was told"
    return found


async def say(client: Client, text: str, thread_id: str | None = None) -> tuple[str, int]:
    """A turn, to its end; its thread, and the number of its last event."""
    reply = await client.say(text, thread_id)
    return reply.thread_id, reply.events[-1].seq


@pytest.mark.parametrize("again", ["in time", "too late"])
async def test_a_reader_that_stalls_is_let_go_costs_no_more_than_its_outbox_and_resumes_without_loss(
    tmp_path: Path, again: str
) -> None:
    options = {"database_type": "sqlite", "database_name": str(tmp_path / "worker.db"), "outbox_bytes": OUTBOX}
    with served(tmp_path, **options) as server:
        async with Client(f"ws://{server.address}/ws") as talker:
            thread_id, _ = await say(talker, "steps 0")
            async with reader(server, thread_id) as stalled:
                first = await events(stalled, 2)
                stalled.transport.pause_reading()
                largest = last = 0
                async with asyncio.timeout(WITHIN):
                    while not (stats := (await server.vitals()).stats)["readers_dropped"]:
                        largest = max(largest, stats["outbox_size"])
                        _, last = await say(talker, "big 100000", thread_id)
                assert 0 < largest <= OUTBOX
                if again == "too late":
                    async with asyncio.timeout(WITHIN):
                        while (await server.vitals()).stats["sessions"] > 1:
                            await asyncio.sleep(0.1)
                stalled.transport.resume_reading()
                seen = first + await events(stalled)
                # In time it is told why. Too late, there was no room for a last word: it sees a connection that broke.
                assert stalled.close_code == (1013 if again == "in time" else 1006)
            async with reader(server, thread_id, after=seen[-1]["id"]) as back:
                seen += await events(back, last)
        assert [event["seq"] for event in seen] == list(range(1, last + 1))
    assert [line for line in server.complaints if "does not read" not in line] == []
