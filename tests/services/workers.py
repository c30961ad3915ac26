"""Several processes of one worker, each a uvicorn on a port of its own, and people who use them: for what two workers in one event
loop cannot show. Not tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from attrs import Factory, define, frozen

from dooers.client import Client
from dooers.exceptions import DisconnectedError, DooersError

__all__ = ["AWAY", "Cluster", "Node", "Poster", "Reader", "Said", "text_of"]

Frame: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
UP_WITHIN = 60.0
WITHIN = 30.0
# Seconds between two looks at what no event tells: whether a process has died.
LOOK = 0.05
# Seconds before somebody who was sent away, or refused, tries again.
AGAIN = 0.05
# How a run ended that did while somebody was away.
AWAY = "ended while away"


# ---------------------------------------------------------------- the processes


@define(eq=False, repr=False)
class Node:
    """One process."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    paused: bool = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text()

    def client(self, **more: Any) -> Client:
        usual = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1", "within": WITHIN}
        # Who comes back, and how, is what the tests are about.
        return Client(self.url, **{"deltas": False, "retry_for": 0, **usual, **more})

    def kill(self) -> None:
        """As when the machine is gone: no last word."""
        self.process.kill()
        self.process.wait(WITHIN)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self.paused = True

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def wait_until_up(self) -> None:
        until = time.monotonic() + UP_WITHIN
        while self.alive and time.monotonic() < until:
            if found := re.search(r"Uvicorn running on http://(\S+)", self.said):
                self.url = f"ws://{found[1]}/ws"
                return
            time.sleep(0.01)
        raise AssertionError(f"a worker process did not come up:\n{self.said}")


@define(eq=False, repr=False)
class Cluster:
    """The processes of one worker. `options` are those of its WorkerConfig."""

    options: dict[str, Any]
    home: Path
    size: int
    nodes: list[Node] = Factory(list)
    app: str = "services.worker:app"

    @property
    def up(self) -> list[Node]:
        """Those that are alive."""
        return [node for node in self.nodes if node.alive]

    def start(self) -> None:
        """Start what is missing, all at once, and wait until each serves."""
        self.nodes = self.up
        new = [self._launch() for _ in range(self.size - len(self.nodes))]
        self.nodes += new
        for node in new:
            node.wait_until_up()

    def _launch(self) -> Node:
        path = [str(ROOT), str(ROOT / "contrib"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        log = self.home / f"{uuid4().hex}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", self.app, "--port", "0", "--ws", "websockets-sansio"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    "DOOERS_TEST_WORKER": json.dumps(self.options),
                },
            )
        return Node(process, log)

    def stop(self) -> None:
        """End them as an operator would, all at once."""
        for node in self.up:
            node.process.terminate()
            node.process.send_signal(signal.SIGCONT)
        for node in self.nodes:
            try:
                node.process.wait(WITHIN)
            finally:
                node.process.kill()

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        try:
            self.start()
            yield self
        finally:
            self.stop()


# ---------------------------------------------------------------- their people


def text_of(event: Frame) -> str:
    return "".join(part.get("text", "") for part in event["content"])


@define(eq=False, repr=False)
class Reader:
    """Follows a thread as a browser does: through one process and, when that sends it away or dies, through the next, from the last
    event that it has. What it was told is kept, in the order in which it came.
    """

    cluster: Cluster
    thread_id: str
    at: int
    events: list[Frame] = Factory(list)
    # What came of each run after the event with this number.
    runs: dict[str, list[tuple[int, str]]] = Factory(dict)
    deltas: dict[str, str] = Factory(dict)
    # Messages that came piece by piece and then whole, and whether the pieces were all of it, in order.
    streamed: dict[str, bool] = Factory(dict)
    frames: list[Frame] = Factory(list)
    # The codes that it was closed with, and when it was there again.
    closed: list[int | None] = Factory(list)
    resumed: list[float] = Factory(list)
    _news: asyncio.Event = Factory(asyncio.Event)
    _task: asyncio.Task[None] | None = None

    @property
    def node(self) -> Node:
        nodes = self.cluster.nodes
        return nodes[self.at % len(nodes)]

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    @property
    def texts(self) -> list[str]:
        return [text_of(event) for event in self.events]

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Reader]:
        """Follow, from the moment in which the first snapshot is there."""
        self._task = asyncio.create_task(self._follow())
        try:
            await self.until(lambda: bool(self.resumed))
            yield self
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def until(self, true: Callable[[], Any], within: float = WITHIN) -> None:
        """Wait until what was told makes this true."""
        try:
            async with asyncio.timeout(within):
                while not true():
                    if self._task is not None and self._task.done():
                        self._task.result()
                    self._news.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK):
                            await self._news.wait()
        except TimeoutError:
            at_work = [run_id for run_id, told in self.runs.items() if told[-1][1] == "running"]
            raise AssertionError(
                f"not within {within} s; {len(self.events)} events, the last {[text[:40] for text in self.texts[-5:]]}, "
                f"at work {at_work}, closed {self.closed}, process {self.at} of {len(self.cluster.nodes)}"
            ) from None

    async def says(self, text: str) -> None:
        """Wait for an answer that begins like this."""
        await self.until(lambda: any(said.startswith(text) for said in self.texts))

    async def has(self, seq: int) -> None:
        """Wait for the event with this number."""
        await self.until(lambda: self.seqs[-1:] == [seq])

    async def ended(self, count: int = 0) -> list[str]:
        """Wait until every run that was told of has ended, so many at least. How each ended."""
        await self.until(
            lambda: len(self.runs) >= count and all(told[-1][1] != "running" for told in self.runs.values())
        )
        return [told[-1][1] for told in self.runs.values()]

    async def sees(self, status: str) -> None:
        """Wait until some run is like this."""
        await self.until(lambda: any(told[-1][1] == status for told in self.runs.values()))

    async def reads_along(self) -> None:
        """Wait for a message of which there are some pieces."""
        await self.until(lambda: self.deltas.keys() - self.streamed.keys())

    async def leave(self) -> None:
        """Go elsewhere, as somebody whose network has changed."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def come_back(self, at: int) -> None:
        """Go on through another process."""
        before, self.at = len(self.resumed), at
        self._task = asyncio.create_task(self._follow())
        await self.until(lambda: len(self.resumed) > before)

    async def _follow(self) -> None:
        while True:
            try:
                async with self.node.client(deltas=True) as client:
                    feed = client.frames()
                    asked = {"thread_id": self.thread_id}
                    if self.events:
                        asked["after_event_id"] = self.events[-1]["id"]
                    self._take_snapshot(await client.ask("thread.subscribe", asked))
                    async for frame in feed:
                        self._take(frame)
            except DooersError as error:
                if isinstance(error, DisconnectedError):
                    self.closed.append(error.close_code)
            await asyncio.sleep(AGAIN)
            self.at += 1

    def _take_snapshot(self, snapshot: Frame) -> None:
        self.deltas.clear()
        self._take_events(snapshot["events"])
        active = {run["id"] for run in snapshot["runs"]}
        for run_id, told in self.runs.items():
            if told[-1][1] == "running" and run_id not in active:
                told.append((self.seqs[-1], AWAY))
        for run in snapshot["runs"]:
            self._take_run(run)
        self.resumed.append(time.monotonic())
        self._news.set()

    def _take(self, frame: Frame) -> None:
        payload = frame["payload"]
        if self.thread_id in (payload.get("thread_id"), payload.get("run", {}).get("thread_id")):
            self.frames.append(frame)
            if frame["type"] == "event.append":
                self._take_events(payload["events"])
            elif frame["type"] == "run.upsert":
                self._take_run(payload["run"])
            elif frame["type"] == "event.delta":
                self.deltas[payload["event_id"]] = self.deltas.get(payload["event_id"], "") + payload["text"]
        self._news.set()

    def _take_events(self, events: list[Frame]) -> None:
        for event in events:
            if event.get("streaming"):
                self.deltas[event["id"]] = text_of(event)
                continue
            if event["id"] in self.deltas:
                self.streamed[event["id"]] = self.deltas[event["id"]] == text_of(event)
            self.events.append(event)

    def _take_run(self, run: Frame) -> None:
        told = self.runs.setdefault(run["id"], [])
        if not told or told[-1][1] != run["status"]:
            told.append((self.seqs[-1] if self.events else 0, run["status"]))


@frozen(eq=False)
class Said:
    """A message that was acknowledged: its client_event_id, its text, and through whom it went."""

    key: str
    text: str
    node: Node


@define(eq=False, repr=False)
class Poster:
    """Says one thing after the other in a thread, through all processes in turn. What is not acknowledged is said again elsewhere,
    under the same id; the next comes when the last one is answered, or when whoever should have answered is dead.
    """

    reader: Reader
    messages: Iterator[str]
    said: list[Said] = Factory(list)
    _clients: dict[Node, Client] = Factory(dict)
    _stopping: bool = False
    _at: int = 0
    _task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[Poster]:
        """Talk meanwhile."""
        self._task = asyncio.create_task(self._talk())
        try:
            yield self
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def goes_on(self, messages: int) -> None:
        """Wait until so many more were said."""
        target = len(self.said) + messages
        await self.reader.until(lambda: len(self.said) >= target)

    async def stop(self) -> None:
        """Say no more; return when the last word was answered."""
        assert self._task is not None
        self._stopping = True
        async with asyncio.timeout(WITHIN):
            await self._task

    async def _talk(self) -> None:
        try:
            for text in self.messages:
                if self._stopping:
                    return
                await self.reader.until(partial(self._settled, await self.say(text)))
        finally:
            for client in self._clients.values():
                with suppress(Exception):
                    await client.__aexit__(None, None, None)

    def _settled(self, said: Said) -> bool:
        return (
            not said.node.alive or said.node.paused or any(t.startswith(f"re: {said.text}") for t in self.reader.texts)
        )

    async def say(self, text: str) -> Said:
        """Say it until somebody acknowledges it."""
        key = uuid4().hex
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
        payload = {"thread_id": self.reader.thread_id, "client_event_id": key, "event": event}
        while True:
            self._at += 1
            nodes = [node for node in self.reader.cluster.up if not node.paused]
            node = nodes[self._at % len(nodes)]
            try:
                async with asyncio.timeout(WITHIN / 3):
                    await (await self._client(node)).ask("event.create", payload)
                self.said.append(said := Said(key, text, node))
                return said
            except (DooersError, TimeoutError):
                await self._hang_up(node)
                await asyncio.sleep(AGAIN)

    async def _client(self, node: Node) -> Client:
        if node not in self._clients:
            self._clients[node] = await node.client().__aenter__()
        return self._clients[node]

    async def _hang_up(self, node: Node) -> None:
        client = self._clients.pop(node, None)
        if client is not None:
            with suppress(Exception):
                async with asyncio.timeout(1):
                    await client.__aexit__(None, None, None)
