"""What live costs: a streamed message to many, a reader that never reads, and the time a stop takes.

Run it by hand: `python tests/benchmarks/live.py`. All in one process, so the ratios mean something on any machine. Not a test.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

from dooers import WorkerConfig, WorkerServer
from dooers.codec import loads
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
CONNECT = {"worker_id": "worker", **WHO, "client": {"capabilities": ["deltas"]}}
GO = {"event": {"content": [{"type": "text", "text": "go"}]}}
DELTAS = 5000
ROUNDS = 3
STOPS = 200


async def streaming(send: Any) -> AsyncIterator[Any]:
    """As fast as a quick model: ten pieces every two milliseconds."""

    async def pieces() -> AsyncIterator[str]:
        for number in range(DELTAS):
            if number % 10 == 0:
                await asyncio.sleep(0.002)
            yield "word "

    yield send.run_start()
    yield send.stream(pieces())


async def streamed(subscribers: int, asleep: int = 0) -> dict[str, float]:
    """One stream of deltas to so many subscribers, `asleep` of whom do not read."""
    worker = WorkerServer(WorkerConfig(database_type="memory", worker_id="worker"))
    stream = await worker.dispatch(streaming, **WHO, message="go")
    clients = [WorkerClient(worker, connect=CONNECT) for _ in range(subscribers)]
    for client in clients:
        await client.__aenter__()
        await client.ask("thread.subscribe", {"thread_id": stream.thread_id})
    for client in clients[:asleep]:
        client.socket.reading.clear()
    wall, began = time.perf_counter(), time.process_time()
    await stream.collect()
    await asyncio.sleep(0.05)
    took, cpu = time.perf_counter() - wall, time.process_time() - began
    awake = clients[asleep:]
    seen: list[dict[str, Any]] = []
    if awake:
        inbox = awake[0].socket.to_client
        while not inbox.empty():
            seen.append(loads(inbox.get_nowait()["text"]))
    events = await (await worker.repository()).list_events({"thread_id": stream.thread_id}, {"direction": "asc"})
    deltas = [frame for frame in seen if frame["type"] == "event.delta"]
    text = "".join(frame["payload"]["text"] for frame in deltas)
    assert not awake or text == events[-1].text == "word " * DELTAS
    for client in clients:
        await client.drop()
    await worker.close()
    return {"rows": len(events) - 1, "frames": len(deltas), "cpu": cpu, "wall": took}


async def stops() -> tuple[float, float, float]:
    """Medians, in seconds: an echo round trip; from run.cancel to the handler's finally; to the client's `canceled`."""
    worker = WorkerServer(WorkerConfig(database_type="memory", worker_id="worker"))
    ended = 0.0

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        nonlocal ended
        yield send.run_start()
        try:
            if incoming.message == "go":
                await asyncio.sleep(60)
            yield send.text(incoming.message)
        finally:
            ended = time.perf_counter()

    echoes, handlers, clients = [], [], []

    async def until(client: WorkerClient, status: str) -> dict[str, Any]:
        while True:
            run: dict[str, Any] = (await client.expect("run.upsert"))["payload"]["run"]
            if run["status"] == status:
                return run

    async with WorkerClient(worker, connect=CONNECT, handler=handler) as client:
        for _ in range(STOPS):
            began = time.perf_counter()
            client.post("event.create", {"event": {"content": [{"type": "text", "text": "echo"}]}})
            await until(client, "succeeded")
            echoes.append(time.perf_counter() - began)
            client.post("event.create", GO)
            run = await until(client, "running")
            await asyncio.sleep(0)
            began = time.perf_counter()
            client.post("run.cancel", {"run_id": run["id"]})
            await until(client, "canceled")
            clients.append(time.perf_counter() - began)
            handlers.append(ended - began)
    await worker.close()
    return statistics.median(echoes), statistics.median(handlers), statistics.median(clients)


async def main() -> None:
    logging.disable(logging.WARNING)  # that clients are believed, once a worker
    print(f"| {DELTAS} deltas to | rows | frames each | deltas a frame | CPU ms | µs a delta and subscriber |")
    print("|--:|--:|--:|--:|--:|--:|")
    for subscribers in (1, 50, 500):
        rounds = [await streamed(subscribers) for _ in range(ROUNDS)]
        cpu = statistics.median(one["cpu"] for one in rounds)
        one = rounds[0]
        each = cpu / DELTAS / subscribers * 1e6
        print(
            f"| {subscribers} | {one['rows']:.0f} | {one['frames']:.0f} | {DELTAS / one['frames']:.0f} | {cpu * 1e3:.0f} | {each:.3f} |"
        )
    pairs = [(await streamed(50), await streamed(51, asleep=1)) for _ in range(ROUNDS)]
    ratio = statistics.median(asleep["cpu"] / awake["cpu"] for awake, asleep in pairs)
    walls = statistics.median(asleep["wall"] / awake["wall"] for awake, asleep in pairs)
    print(f"\n50 subscribers and one that never reads, to 50 alone: CPU x {ratio:.2f}, time x {walls:.2f}")
    echo, handler, client = await stops()
    print(f"\nmedian of {STOPS}: an echo round trip {echo * 1e6:.0f} µs;")
    print(f"from run.cancel to the handler's finally {handler * 1e6:.0f} µs (x {handler / echo:.2f} of it),")
    print(f"to the client's `canceled` {client * 1e6:.0f} µs (x {client / echo:.2f})")


if __name__ == "__main__":
    asyncio.run(main())
