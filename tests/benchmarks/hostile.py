"""What one hostile client costs fifty ordinary ones: the server, the fifty and the hostile one are processes of their own, over sockets.

Run it by hand: `python tests/benchmarks/hostile.py [KIND ...]`. Each kind of hostility comes in turns with quiet, in one run,
so the ratios mean something on any machine. Not a test.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from attrs import frozen
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dooers import WorkerConfig, WorkerServer

CLIENTS = 50
PAUSE = 0.2
PHASE = 3.0
SETTLE = 0.5  # of each phase, at its beginning: what the last one left
ROUNDS = 3
PLACE = {"worker_id": "worker", "organization_id": "o", "workspace_id": "w"}
THREADS = 1000
PATIENCE = 60.0


# ---------------------------------------------------------------- the server


def serve(path: str) -> None:
    """Print the port, then for each line read: the CPU seconds so far, and where the event loop was seen since the last."""
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=path, private_threads=True))
    worker.authenticate(lambda request: request.claims)  # as good as proved: connections of one user count together

    @worker.handler
    async def echo(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text(incoming.message)
        yield send.run_end()

    async def seed() -> None:
        who: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "mallory"}
        for number in range(THREADS):
            await (await worker.dispatch(**who, message="hello", thread_id=f"m{number}")).collect()
        await worker.close()

    asyncio.run(seed())
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(listening.getsockname()[1], flush=True)
    seen: Counter[str] = Counter()
    _sample(seen)
    threading.Thread(target=_answer, args=(seen,), daemon=True).start()
    uvicorn.Server(uvicorn.Config(worker.asgi_app(), log_config=None)).run(sockets=[listening])


def _sample(seen: Counter[str]) -> None:
    """Count where the process is, every 5 ms of its CPU time. By a signal: a thread would see only who lets go of the GIL."""

    def count(_: int, frame: Any) -> None:
        seen[f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"] += 1

    signal.signal(signal.SIGPROF, count)
    signal.setitimer(signal.ITIMER_PROF, 0.005, 0.005)


def _answer(seen: Counter[str]) -> None:
    for _ in sys.stdin:
        print(json.dumps({"cpu": time.process_time(), "seen": dict(seen.most_common(40))}), flush=True)
        seen.clear()


# ---------------------------------------------------------------- clients


class Chat:
    """One connection, as whoever it says."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def post(self, kind: str, payload: dict[str, Any]) -> None:
        await self.socket.send(json.dumps({"id": kind, "type": kind, "payload": payload}))

    async def until(self, kind: str) -> dict[str, Any]:
        while True:
            frame: dict[str, Any] = json.loads(await self.socket.recv())
            if frame["type"] == kind:
                return frame

    async def hush(self) -> None:
        """Read whatever comes."""
        with suppress(ConnectionClosed):
            while True:
                await self.socket.recv()


async def chat(url: str, user: str, **options: Any) -> Chat:
    one = Chat(await connect(url, proxy=None, max_size=None, ping_interval=None, **options))
    await one.post("connect", {**PLACE, "user_id": user})
    assert (await one.until("ack"))["payload"]["ok"]
    if user == "mallory":
        with suppress(BrokenPipeError):
            print("here", flush=True)
    return one


def message(text: str, thread_id: str | None = None) -> dict[str, Any]:
    thread = {} if thread_id is None else {"thread_id": thread_id}
    return {**thread, "event": {"content": [{"type": "text", "text": text}]}}


async def ordinary(url: str, number: int) -> None:
    """A turn every 200 ms in a thread of one's own; prints when each began and how long it took."""
    one = await chat(url, f"user-{number}")
    thread_id = None
    await asyncio.sleep(random.random() * PAUSE)
    while True:
        began = time.monotonic()
        await one.post("event.create", message("hello", thread_id))
        while True:
            run = (await one.until("run.upsert"))["payload"]["run"]
            if run["status"] != "running":
                break
        thread_id = run["thread_id"]
        print(f"{began} {time.monotonic() - began}")
        await asyncio.sleep(max(0.0, PAUSE * random.uniform(0.9, 1.1) - (time.monotonic() - began)))


async def fifty(url: str) -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    await asyncio.gather(*(ordinary(url, number) for number in range(CLIENTS)))


# ---------------------------------------------------------------- hostility


async def flood(url: str, kind: str, payload: Callable[[int], dict[str, Any]], *, reads: bool = True) -> None:
    """The same frame as fast as the socket takes it, on four connections; whoever is closed comes again."""

    async def one() -> None:
        while True:
            with suppress(ConnectionClosed, OSError):
                mallory = await chat(url, "mallory", compression=None)
                if not reads:
                    mallory.socket.transport.pause_reading()
                reading = asyncio.ensure_future(mallory.hush() if reads else asyncio.sleep(0))
                try:
                    for number in range(10**9):
                        await mallory.post(kind, payload(number))
                        if number % 50 == 0:
                            await asyncio.sleep(0)
                finally:
                    reading.cancel()

    await asyncio.gather(*(one() for _ in range(4)))


async def large(url: str, body: str, *, inflated: bool = False) -> None:
    """Frames that are as large as they may be; `inflated`, larger, but compressed to almost nothing: what costs the sender little."""
    text = f'{{"id": "x", "type": "ping", "payload": {{"x": {body}}}}}'

    async def one() -> None:
        while True:
            with suppress(ConnectionClosed, OSError):
                mallory = await chat(url, "mallory", compression="deflate" if inflated else None)
                reading = asyncio.ensure_future(mallory.hush())
                try:
                    while True:
                        await mallory.socket.send(text)
                finally:
                    reading.cancel()

    await asyncio.gather(*(one() for _ in range(4)))


async def reconnects(url: str) -> None:
    async def one() -> None:
        while True:
            with suppress(ConnectionClosed, OSError, AssertionError):
                mallory = await chat(url, "mallory", compression=None)
                await mallory.socket.close()

    await asyncio.gather(*(one() for _ in range(8)))


async def asleep(url: str, *, reads: bool) -> None:
    """Twelve connections follow a thread in which 100 kB are said ten times a second, and read nothing of it; whoever is closed comes
    again. With `reads` they do read: what is said and followed costs something by itself."""

    async def one() -> None:
        while True:
            with suppress(ConnectionClosed, OSError):
                mallory = await chat(url, "mallory", compression=None)
                await mallory.post("thread.subscribe", {"thread_id": "m0"})
                if not reads:
                    mallory.socket.transport.pause_reading()
                    await mallory.socket.wait_closed()
                await mallory.hush()

    async def talk() -> None:
        talker = await chat(url, "mallory", compression=None)
        reading = asyncio.ensure_future(talker.hush())
        while not reading.done():
            await talker.post("event.create", message("x" * 100_000, "m0"))
            await asyncio.sleep(0.1)

    await asyncio.gather(talk(), *(one() for _ in range(12)))


async def elsewhere(url: str) -> None:
    """Burns as much of this machine as it gets, and is hostile to nobody: what the others cost beyond this is the server's."""
    mallory = await chat(url, "mallory")
    reading = asyncio.ensure_future(mallory.hush())
    while not reading.done():
        await asyncio.sleep(0)


KINDS: dict[str, Callable[[str], Awaitable[None]]] = {
    "elsewhere": elsewhere,
    "pings": lambda url: flood(url, "ping", lambda _: {}),
    "lists": lambda url: flood(url, "thread.list", lambda _: {"limit": 200}),
    "messages": lambda url: flood(url, "event.create", lambda n: message("x" * 1000, f"m{n % THREADS}")),
    "subscriptions": lambda url: flood(url, "thread.subscribe", lambda n: {"thread_id": f"m{n % THREADS}"}),
    "deaf": lambda url: flood(url, "thread.list", lambda _: {"limit": 200}, reads=False),
    "awake": lambda url: asleep(url, reads=True),
    "asleep": lambda url: asleep(url, reads=False),
    "nonsense": lambda url: flood(url, "nonsense", lambda _: {}),
    "large": lambda url: large(url, f'"{"x" * 4_000_000}"'),
    "intricate": lambda url: large(url, f"[{'{},' * 1_390_000}0]"),
    "inflated": lambda url: large(url, f"[{'{},' * 5_000_000}0]", inflated=True),
    "reconnects": reconnects,
    # A lone surrogate at the end: what the quick parser has read in vain, the slow one reads again.
    "crooked": lambda url: large(url, f"[{'{},' * 1_390_000}{json.dumps(chr(0xD800))}]"),
}


# ---------------------------------------------------------------- the measurement


def spawn(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


Turn: TypeAlias = tuple[float, float]  # when it began, and how long it took


@frozen
class Phase:
    """A stretch of time, quiet or with somebody hostile; the server's share of a CPU in it, and where it was."""

    began: float
    ended: float
    cpu: float
    seen: Counter[str]
    recovery: float = 0.0


def phase(server: subprocess.Popen[str], url: str, kind: str | None, samples: list[Turn]) -> Phase:
    """Let a stretch of time go by; after a hostile one, until all is as it was."""
    hostile = None if kind is None else spawn("hostile", url, kind)
    if hostile is not None:
        assert hostile.stdout is not None
        hostile.stdout.readline()
    time.sleep(SETTLE)
    began, before = time.monotonic(), _asked(server)
    time.sleep(PHASE)
    ended, after = time.monotonic(), _asked(server)
    recovery = 0.0
    if hostile is not None:
        hostile.kill()
        hostile.wait()
        gone = time.monotonic()
        # What is in the server's buffers outlives who sent it.
        while sum(one > gone for one, _ in samples[-CLIENTS:]) < CLIENTS and time.monotonic() < gone + PATIENCE:
            time.sleep(0.05)
        recovery = time.monotonic() - gone
        time.sleep(1.0)
    cpu = (after["cpu"] - before["cpu"]) / (ended - began)
    return Phase(began, ended, cpu, Counter(after["seen"]), recovery)


def _asked(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return answer


def main(kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = spawn("serve", str(Path(folder) / "worker.db"))
        assert server.stdout is not None
        url = f"ws://127.0.0.1:{int(server.stdout.readline())}/ws"
        normal = spawn("fifty", url)
        samples: list[Turn] = []

        def collect() -> None:
            assert normal.stdout is not None
            for line in normal.stdout:
                began, took = map(float, line.split())
                samples.append((began, took))

        threading.Thread(target=collect, daemon=True).start()
        try:
            time.sleep(2)
            phases = [
                (kind, phase(server, url, None, samples), phase(server, url, kind, samples))
                for _ in range(ROUNDS)
                for kind in kinds
            ]
            time.sleep(1)  # the last turns that began in time
        finally:
            for process in (normal, server):
                process.kill()
                process.wait()
    print(
        "| kind | median ms, quiet | with | x | p99 ms, quiet | with | x | server's CPU, quiet | with | turns | back after s |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for kind in kinds:
        print(f"| {kind} | {_row(samples, [(quiet, loud) for name, quiet, loud in phases if name == kind])} |")
    print("\nWhere the server's CPU went while somebody was hostile:\n")
    for kind in kinds:
        seen = sum((loud.seen for name, _, loud in phases if name == kind), Counter[str]())
        total = sum(seen.values()) or 1
        print(f"- {kind}: {', '.join(f'{name} {100 * count // total} %' for name, count in seen.most_common(6))}")


def _row(samples: list[Turn], pairs: list[tuple[Phase, Phase]]) -> str:
    """Medians over the rounds; a ratio is the median of the rounds' ratios, each of a phase to the quiet one before it."""
    rounds = [(_latency(samples, quiet), _latency(samples, loud)) for quiet, loud in pairs]
    cells: list[str] = []
    for place in (0, 1):
        quiet, loud = ([one[side][place] for one in rounds] for side in (0, 1))
        ratio = statistics.median(h / q for q, h in zip(quiet, loud, strict=True))
        cells += [f"{statistics.median(quiet) * 1e3:.1f}", f"{statistics.median(loud) * 1e3:.1f}", f"{ratio:.2f}"]
    cells += [f"{statistics.mean(pair[side].cpu for pair in pairs):.0%}" for side in (0, 1)]
    cells += ["/".join(str(sum(one[side][2] for one in rounds)) for side in (0, 1))]
    return " | ".join([*cells, f"{max(loud.recovery for _, loud in pairs):.1f}"])


def _latency(samples: list[Turn], one: Phase) -> tuple[float, float, int]:
    """Median, p99 and number of the turns that began in a phase."""
    took = [seconds for began, seconds in samples if one.began <= began < one.ended]
    if len(took) < 2:
        return float("inf"), float("inf"), len(took)  # nobody was served at all
    return statistics.median(took), statistics.quantiles(took, n=100)[98], len(took)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    match sys.argv[1:]:
        case ["serve", path]:
            serve(path)
        case ["fifty", url]:
            asyncio.run(fifty(url))
        case ["hostile", url, kind]:
            os.nice(19)  # it is elsewhere: what it costs should be the server's time, not this machine's
            asyncio.run(KINDS[kind](url))  # type: ignore[arg-type]
        case kinds:
            main(kinds or list(KINDS))
