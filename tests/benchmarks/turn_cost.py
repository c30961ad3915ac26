"""What a turn costs: statements and commits by a trace, microseconds by stage, and the bare limits measured beside them.

Run it by hand: `python tests/benchmarks/turn_cost.py`. Times are medians of interleaved rounds in one process, so the ratios mean
something on any machine; the absolute numbers are this machine's. Not a test: nothing here passes or fails.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from websockets.asyncio.client import connect

from dooers import WorkerConfig, WorkerServer
from dooers.access import scope_of
from dooers.models import Change, Identity, TextPart
from dooers.openturn import Message
from dooers.protocol import frames_of, parse
from dooers.send import WorkerSend
from dooers.stores.sqlite import SqliteStore
from dooers.turn import Turn, opening, step

WHO: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}
ROUNDS = 7


async def echo(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text(incoming.message)
    yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()


async def ten(incoming: Any, send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    for number in range(10):
        yield send.text(f"text {number}")
    yield send.run_end()


def worker_on(folder: Path, name: str) -> WorkerServer:
    return WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(folder / name)))


# ---------------------------------------------------------------- statements and commits


async def traced(worker: WorkerServer, handler: Any) -> Counter[str]:
    """Statements of one turn through dispatch, by their first word, on the writing connection."""
    await (await worker.dispatch(handler, **WHO, message="warm")).collect()
    store = worker._parts.store()
    assert isinstance(store, SqliteStore)
    assert store._writer is not None
    seen: Counter[str] = Counter()
    raw: Any = store._writer.raw_connection
    await raw.set_trace_callback(lambda sql: seen.update([sql.split()[0].upper()]))
    await (await worker.dispatch(handler, **WHO, message="hello")).collect()
    await raw.set_trace_callback(None)
    return seen


# ---------------------------------------------------------------- stages


def timed(work: Callable[[], Any], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


async def timed_async(work: Callable[[], Awaitable[Any]], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await work()
    return (time.perf_counter() - began) / times * 1e6


def changes_of_a_turn(worker: WorkerServer) -> list[Change]:
    """The Changes of one echo turn, as the runner makes them."""
    clock = worker._parts.clock()
    identity = Identity(**WHO)
    scope = scope_of(identity, "worker", private=False)
    opened = opening(identity, scope, [TextPart("hello")], clock, thread_id=None, create=True)
    turn, made = Turn(thread=opened.thread, event_id=opened.events[0].id, seq=1, assistant_name="Assistant"), [opened]
    send = WorkerSend()
    for event in (send.run_start(), send.text("hello"), send.update_thread(title="hello"), send.run_end()):
        turn, change = step(turn, event, clock)
        assert change is not None
        made.append(change)
    return made


async def stages(worker: WorkerServer) -> dict[str, float]:
    """One round: microseconds a turn of each stage."""
    await worker.ensure_initialized()
    store, runner = worker._parts.store(), worker._parts.runner()
    content = [{"type": "text", "text": "hello"}]
    frame = json.dumps({"id": "1", "type": "event.create", "payload": {"event": {"content": content}}})
    told = [frame for change in changes_of_a_turn(worker) for frame in frames_of(change)]
    compiled = worker._compiler.handler(echo)
    opened = await runner.open(
        Message(
            worker_id="worker", identity=Identity(**WHO), content=[TextPart("hello")], handler=compiled, create=True
        ),
        runner.stop,
    )
    assert opened.status == "canceled"
    given = dict.fromkeys(("incoming", "send", "memory", "analytics", "settings", "identity"))

    async def nothing(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
        return
        yield

    injected = worker._compiler.handler(nothing)

    async def inject() -> None:
        async with injected.run(given) as yielded:
            async for _ in yielded:
                pass

    async def directly() -> None:
        async for _ in nothing(None, None, None, None, None):
            pass

    async def stored_one_by_one() -> None:
        for change in changes_of_a_turn(worker):
            await store.apply(change)

    async def stored_pipelined() -> None:
        await asyncio.gather(*(store.apply(change) for change in changes_of_a_turn(worker)))

    async def dispatched() -> None:
        await (await worker.dispatch(echo, **WHO, message="hello")).collect()

    return {
        "parse the message's frame": timed(lambda: parse(frame), 2000),
        "injection (five values)": await timed_async(inject, 2000) - await timed_async(directly, 2000),
        "turn: five Changes made": timed(lambda: changes_of_a_turn(worker), 1000),
        "serialise its six frames": timed(lambda: [one.text("id", "flat") for one in told], 1000),
        "store, one Change after the other (5 commits)": await timed_async(stored_one_by_one, 30),
        "store, as many at once as wait (group commit)": await timed_async(stored_pipelined, 60),
        "the whole turn through dispatch": await timed_async(dispatched, 60),
    }


# ---------------------------------------------------------------- bare limits


def raw_commit(folder: Path) -> float:
    """One row inserted and committed by the standard library, WAL, synchronous=FULL."""
    connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, text TEXT)")

    def one() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t (text) VALUES ('hello')")
        connection.execute("COMMIT")

    took = timed(one, 60)
    connection.close()
    return took


class Served:
    """A uvicorn in this process, for the two socket measures."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self.listening = socket.socket()
        # As asyncio does for sockets it makes itself; without it small frames wait for delayed acknowledgements.
        self.listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listening.bind(("127.0.0.1", 0))

    async def __aenter__(self) -> str:
        self.task = asyncio.create_task(self.server.serve(sockets=[self.listening]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        return f"ws://127.0.0.1:{self.listening.getsockname()[1]}/ws"

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self.task
        self.listening.close()


async def bare_echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def sockets(worker: WorkerServer) -> dict[str, float]:
    """One round: a raw echo through the same server, and a whole turn, both from send to last frame."""
    async with Served(bare_echo) as url, connect(url) as client:

        async def echoed() -> None:
            await client.send("x" * 200)
            await client.recv()

        raw = await timed_async(echoed, 300)
    async with Served(worker.asgi_app()) as url, connect(url) as client:
        claims = {"worker_id": "worker", **WHO}
        await client.send(json.dumps({"id": "c", "type": "connect", "payload": claims}))
        await client.recv()

        async def turn() -> None:
            content = [{"type": "text", "text": "hello"}]
            await client.send(
                json.dumps({"id": "m", "type": "event.create", "payload": {"event": {"content": content}}})
            )
            while True:
                frame = json.loads(await client.recv())
                if frame["type"] == "run.upsert" and frame["payload"]["run"]["status"] != "running":
                    return

        whole = await timed_async(turn, 60)
    return {"limit: a raw WebSocket echo": raw, "the whole turn over the socket (7 frames)": whole}


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = worker_on(folder, "worker.db")
        worker.handler(echo)
        for label, handler in (("echo turn", echo), ("turn of ten texts", ten)):
            seen = await traced(worker, handler)
            total = sum(seen.values())
            print(f"{label}: {total} statements, {seen['COMMIT']} commits   {dict(seen)}")
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            one = {"limit: one raw SQLite commit": raw_commit(folder)}
            one |= await stages(worker)
            one |= await sockets(worker)
            rounds.append(one)
        print(f"\n| µs a turn, median of {ROUNDS} | µs | in raw commits |\n|---|--:|--:|")
        commit = statistics.median(one["limit: one raw SQLite commit"] for one in rounds)
        for stage in rounds[0]:
            middle = statistics.median(one[stage] for one in rounds)
            print(f"| {stage} | {middle:.1f} | {middle / commit:.2f} |")
        await worker.close()


if __name__ == "__main__":
    asyncio.run(main())
