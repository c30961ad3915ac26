"""Worker processes that are asked to end, each in some state: how long that takes, with which exit code, and what is in the database
afterwards. Not tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from attrs import Factory, define, frozen

from dooers import WorkerConfig, WorkerServer
from dooers.client import Client
from dooers.exceptions import DisconnectedError
from dooers.models import RunStatus
from services.postgres import OwnPostgres

__all__ = [
    "HOSTS",
    "STATES",
    "Ended",
    "Hosted",
    "Left",
    "address",
    "freezing",
    "hosted",
    "left_in",
    "measure",
    "mute",
    "take",
]

Frame = dict[str, Any]

ROOT = Path(__file__).parents[2]
WITHIN = 60.0
# How a worker is served, and the exit code that this gives it on SIGTERM: uvicorn dies of the signal when it is done.
HOSTS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "dooers run": ((sys.executable, "-m", "dooers", "run", "services.ending:worker", "--port", "0"), 0),
    "uvicorn": (
        (sys.executable, "-m", "uvicorn", "services.ending:app", "--port", "0", "--timeout-graceful-shutdown", "3"),
        -signal.SIGTERM,
    ),
}


@define(eq=False)
class Hosted:
    """A serving process, and what was said to it and acknowledged: the thread of each message."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    said: dict[str, str] = Factory(dict)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def client(self, **more: Any) -> Client:
        who: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
        return Client(self.url, **who, within=WITHIN, retry_for=0, **more)

    async def say(self, client: Client, text: str, thread_id: str | None = None, until: str = "") -> str:
        """Say something; returns when it is acknowledged and its answer has come as far as `until`. The thread."""
        feed = client.frames()
        payload: Frame = {"client_event_id": uuid4().hex, "event": {"content": [{"type": "text", "text": text}]}}
        if thread_id is not None:
            payload["thread_id"] = thread_id
        answer = await client.ask("event.create", payload)
        if thread_id is None:
            thread_id = answer.get("thread_id") or await self._thread_of(feed)
        self.said[text] = thread_id
        if until:
            told: dict[str, str] = {}
            async with asyncio.timeout(WITHIN):
                async for frame in feed:
                    if take(frame, told).startswith(until):
                        break
        return thread_id

    async def _thread_of(self, feed: AsyncIterator[Frame]) -> str:
        async with asyncio.timeout(WITHIN):
            async for frame in feed:
                if frame["type"] == "event.append":
                    return str(frame["payload"]["thread_id"])
        raise AssertionError

    async def until_said(self, words: str) -> None:
        """Return when its log has these words."""
        async with asyncio.timeout(WITHIN):
            while words not in self.output:
                await asyncio.sleep(0.02)

    async def block(self, client: Client, word: str) -> None:
        """Let a handler do what only the end of the process ends."""
        await self.say(client, word, until=f"{word} begins")
        if word == "block":
            await self.until_said("it blocks now")

    async def end(self, sign: int = signal.SIGTERM) -> tuple[float, int]:
        """Ask it to end; after how many seconds it has, and with which exit code."""
        began = time.monotonic()
        self.process.send_signal(sign)
        code = await asyncio.to_thread(self.process.wait, WITHIN)
        return time.monotonic() - began, code


def _start(command: tuple[str, ...], options: Mapping[str, Any], home: Path, env: Mapping[str, str]) -> Hosted:
    path = [str(ROOT), str(ROOT / "contrib"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(path), "DOOERS_TEST_WORKER": json.dumps(dict(options))}
    log = home / f"{uuid4().hex}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings, **env},
            start_new_session=True,  # so that what it starts can be ended with it
        )
    return Hosted(process, log)


def take(frame: Frame, told: dict[str, str]) -> str:
    """What a frame says, with the pieces of the same message that were `told` before it."""
    payload = frame["payload"]
    if frame["type"] == "event.delta":
        told[payload["event_id"]] = told.get(payload["event_id"], "") + payload["text"]
        return told[payload["event_id"]]
    if frame["type"] == "event.append":
        return "".join(part.get("text", "") for part in payload["events"][-1]["content"])
    return ""


@asynccontextmanager
async def hosted(command: tuple[str, ...], options: Mapping[str, Any], home: Path, **env: str) -> AsyncIterator[Hosted]:
    """A process that serves; killed at the end whatever happens. `options` are those of its WorkerConfig."""
    serving = _start(command, options, home, env)
    process = serving.process
    try:
        until = time.monotonic() + WITHIN
        while not (found := re.search(r"(?:running on http|talk to it: dooers chat ws)://([^\s/]+)", serving.output)):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"it did not come up:\n{serving.output}")
            await asyncio.sleep(0.02)
        serving.url = f"ws://{found[1]}/ws"
        yield serving
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WITHIN)


# ---------------------------------------------------------------- the states


@contextmanager
def mute() -> Iterator[str]:
    """The URL of a server that takes everything and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


async def _idle(hosted: Hosted, client: Client) -> None: ...


async def _mid_turn(hosted: Hosted, client: Client) -> None:
    await hosted.say(client, "wait", until="wait begins")


async def _mid_stream(hosted: Hosted, client: Client) -> None:
    await hosted.say(client, "stream", until="0 1 2 3 ")


async def _queued(hosted: Hosted, client: Client) -> None:
    thread_id = await hosted.say(client, "wait", until="wait begins")
    for n in range(5):
        await hosted.say(client, f"slow {n}", thread_id)


async def _hung_handler(hosted: Hosted, client: Client) -> None:
    await hosted.say(client, "wait", until="wait begins")
    await hosted.say(client, "deaf", until="deaf begins")
    await hosted.say(client, "stream", until="0 1 2 3 ")


async def _hung_webhook(hosted: Hosted, client: Client) -> None:
    await hosted.say(client, "slow 0", until="slow ends")
    await hosted.say(client, "wait", until="wait begins")


STATES: Mapping[str, Callable[[Hosted, Client], Awaitable[None]]] = {
    "idle": _idle,
    "mid-turn": _mid_turn,
    "mid-stream": _mid_stream,
    "queued turns": _queued,
    "hung handler": _hung_handler,
    "hung webhook": _hung_webhook,
}


# ---------------------------------------------------------------- databases on a bad day


def address(server: OwnPostgres, name: str) -> dict[str, Any]:
    """The options of a worker whose database this is, and which waits for it much longer than it has to close."""
    where = server.address
    return {
        "database_type": "postgres",
        "database_name": name,
        "database_host": where.host,
        "database_port": where.port,
        "database_user": where.user,
        "database_timeout": 30,
    }


@contextmanager
def freezing(server: OwnPostgres) -> Iterator[None]:
    """Every process of a server stands still, and no connection ends."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    everybody = [
        postmaster,
        *(int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _of(stat, postmaster)),
    ]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)


def _of(stat: Path, parent: int) -> bool:
    with suppress(OSError):  # it has ended meanwhile
        return int(stat.read_text().rpartition(")")[2].split()[1]) == parent
    return False


# ---------------------------------------------------------------- what is left


@frozen
class Left:
    """What is in the database: the texts of each thread in order, and how its runs ended."""

    texts: dict[str, list[str]]
    runs: dict[str, list[RunStatus]]


async def left_in(options: Mapping[str, Any]) -> Left:
    """Look into the database as it is: nobody is taken for dead, and nothing mended."""
    looking = {"analytics_webhook_url": None, "run_timeout": 3600.0, "database_timeout": 10.0}
    worker = WorkerServer(WorkerConfig(**{**options, **looking}))
    try:
        repository = await worker.repository()
        threads = await repository.list_threads()
        texts = {
            thread.id: [
                event.text for event in await repository.list_events({"thread_id": thread.id}, {"direction": "asc"})
            ]
            for thread in threads
        }
        runs = {
            thread.id: [run.status for run in reversed(await repository.list_runs({"thread_id": thread.id}))]
            for thread in threads
        }
        return Left(texts, runs)
    finally:
        await worker.close()


# ---------------------------------------------------------------- all of it


@frozen
class Ended:
    """How a process ended that was asked to."""

    seconds: float
    code: int
    closed_with: int | None
    output: str
    said: dict[str, str]
    told: list[str]
    left: Left


async def measure(
    host: str, state: str, options: Mapping[str, Any], home: Path, sign: int = signal.SIGTERM, froze: Any = None
) -> Ended:
    """Serve, bring the worker into a state, ask it to end, and look what it has left. `froze` is entered before it is asked."""
    with mute() as nobody:
        options = {**options, **({"analytics_webhook_url": nobody} if state == "hung webhook" else {})}
        async with hosted(HOSTS[host][0], options, home) as serving:
            told: dict[str, str] = {}
            async with serving.client() as client:
                feed = client.frames()
                await STATES[state](serving, client)
                with froze if froze is not None else nullcontext():
                    seconds, code = await serving.end(sign)
                try:
                    async for frame in feed:
                        take(frame, told)
                    closed_with = None
                except DisconnectedError as lost:
                    closed_with = lost.close_code
            left = await left_in(options)
            return Ended(seconds, code, closed_with, serving.output, serving.said, list(told.values()), left)
