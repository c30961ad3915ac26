"""Many clients, chosen at random, do everything they can to one worker; afterwards what each of them sees must be what is stored.

A client here is a front end in small: its view is made of frames alone. The driver takes every choice from one seed, so that
a failure names the seed and the last steps; `DOOERS_TEST_LONG=1` runs many more seeds. Timing is the machine's own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import pytest
from attrs import Factory, define

from dooers import DispatchError, HandlerError, WorkerConfig, WorkerServer, steps
from dooers.codec import dumps, loads
from dooers.models import Change, EventQuery, RunQuery, Thread, ThreadEvent, ThreadQuery

LONG = os.environ.get("DOOERS_TEST_LONG") == "1"
STEPS = 3000 if LONG else 620
SEEDS = range(40) if LONG else range(8)
CHECK_EVERY = 155
ROOMY = 5000
WITHIN = 20.0
DIALECTS = ("flat", "metadata", "user", "agents")

Frame: TypeAlias = dict[str, Any]


class Boom(Exception):
    """What the failing handler raises: the only error that may be in the log."""


def text_in(event: Frame) -> str:
    return "\n".join(part["text"] for part in event["content"] if part["type"] == "text")


# ---------------------------------------------------------------- a front end in small


@define
class Request:
    """A frame that is not answered yet."""

    kind: str
    thread_id: str | None = None
    after: str | None = None
    before: int | None = None
    token: str | None = None
    key: str | None = None


@define
class View:
    """One thread as a client shows it. `tip` is the number of its newest event, None until it has one."""

    created_at: str | None = None
    events: dict[str, Frame] = Factory(dict)
    growing: dict[str, str] = Factory(dict)
    runs: dict[str, Frame] = Factory(dict)
    tip: int | None = None
    has_more: bool = True
    live: bool = True
    loose: bool = False  # what it has so far is the first delivery of a repeat; the thread may be further on
    provisional: bool = False  # made by frames that came before the ack of the message that subscribed to them

    @property
    def first(self) -> int:
        return min((event["seq"] for event in self.events.values()), default=0)

    @property
    def last_id(self) -> str | None:
        return max(self.events.values(), key=lambda event: int(event["seq"]))["id"] if self.events else None


class Link:
    """The worker's side of one socket of a client."""

    def __init__(self, client: Client) -> None:
        self.scope: Frame = {"type": "websocket", "headers": [], "query_string": b"", "client": ("sim", 1)}
        self._client = client
        self.inbox: asyncio.Queue[Frame] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self.broken = False

    async def receive(self) -> Frame:
        return await self.inbox.get()

    async def send(self, message: Frame) -> None:
        await self.reading.wait()
        if self.broken:
            raise ConnectionError("the peer is gone")
        if self._client.link is not self:
            return  # said into a socket that nobody reads any more
        if message["type"] == "websocket.close":
            self._client.closed_by_worker(message["code"])
        else:
            self._client.take(loads(message["text"]))


class Client:
    """A user's tab: it connects, posts frames, and makes its views of what comes back."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.name = f"c{number}"
        self.dialect = DIALECTS[number % 4]
        self.deltas = number // 4 % 2 == 0
        self.user = f"u{number % 3}"
        self.org = "org-2" if number % 7 == 6 else "org-1"
        self.link: Link | None = None
        self.threads: dict[str, Frame] = {}
        self.listed = False
        self.views: dict[str, View] = {}
        self.pending: dict[str, Request] = {}
        self._count = 0

    # -------------------------------------------------- the socket

    def connect(self) -> None:
        self.link = Link(self)
        self.threads.clear()
        self.listed = False
        self.sim.serve(self.link)
        who = {"user_id": self.user, "user_name": self.user}
        place = {"organization_id": self.org, "workspace_id": "ws"}
        dialects: dict[str, Frame] = {
            "flat": {"worker_id": "w", **place, **who},
            "metadata": {"worker_id": "w", "metadata": {**place, **who}},
            "user": {"worker_id": "w", **place, "user": who},
            "agents": {"agent_id": "w", **place, "user": {**who, "identity_ids": []}},
        }
        payload = dialects[self.dialect]
        if self.deltas:
            payload["client"] = {"name": "sim", "capabilities": ["deltas"]}
        self.post("connect", payload)
        self.post("thread.list", {"limit": 200})

    def drop(self, *, broken: bool) -> None:
        """The socket goes; what this tab has on its screen stays."""
        link, self.link = self.link, None
        if link is not None:
            link.broken = broken
            link.reading.set()
            link.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self.pending.clear()
        for view in self.views.values():
            view.live = False

    def closed_by_worker(self, code: int) -> None:
        if code != 1013:
            self.fault(f"closed with {code}")
        self.sim.closed_slow += 1
        self.drop(broken=False)

    def post(self, kind: str, payload: Frame, **known: Any) -> None:
        self._count += 1
        frame_id = f"{self.name}-{self._count}"
        self.pending[frame_id] = Request(kind, **known)
        self.post_text(dumps({"id": frame_id, "type": kind, "payload": payload}))

    def post_text(self, text: str) -> None:
        assert self.link is not None
        self.link.inbox.put_nowait({"type": "websocket.receive", "text": text})

    def subscribe(self, thread_id: str, after: str | None) -> None:
        payload = {"thread_id": thread_id} | ({"after_event_id": after} if after else {})
        self.post("thread.subscribe", payload, thread_id=thread_id, after=after)

    def fault(self, what: str) -> None:
        self.sim.fault(f"{self.name} ({self.dialect}{', deltas' if self.deltas else ''}): {what}")

    # -------------------------------------------------- frames

    def take(self, frame: Frame) -> None:
        name = "on_" + frame["type"].replace(".", "_")
        self.sim.frames += 1
        getattr(self, name)(frame["payload"])

    def answered(self, kind: str, thread_id: str | None = None) -> Request:
        for frame_id, request in self.pending.items():
            if request.kind == kind and (thread_id is None or request.thread_id == thread_id):
                return self.pending.pop(frame_id)
        self.fault(f"an answer that nobody asked for: {kind}")
        return Request(kind)

    def on_ack(self, payload: Frame) -> None:
        request = self.pending.pop(payload["ack_id"], None)
        if request is None:
            if payload["ok"] or payload["ack_id"]:
                self.fault(f"an ack of nothing: {payload}")
            return
        view = self.views.get(request.thread_id or "")
        if request.kind == "event.create" and view is not None and view.provisional:
            del self.views[request.thread_id or ""]  # refused, or a repeat of a message in another thread
        if not payload["ok"]:
            code = payload["error"]["code"]
            if code == "SERVER_ERROR":
                self.fault(f"{request.kind}: {payload['error']}")
            if request.kind in ("thread.subscribe", "event.create") and code == "NOT_FOUND" and request.thread_id:
                self.views.pop(request.thread_id, None)
        elif request.kind == "thread.unsubscribe":
            self.views.pop(request.thread_id or "", None)
        elif request.kind == "event.create":
            said = request.token if request.key is None else (self.org, self.user, request.key)
            self.sim.check(said in self.sim.stored or said in self.sim.stored_keys, f"{said}: acknowledged, not stored")
        elif request.kind == "bad":
            self.fault("a bad frame was taken")

    def on_pong(self, payload: Frame) -> None:
        self.answered("ping")

    def on_thread_list_result(self, payload: Frame) -> None:
        self.answered("thread.list")
        self.threads = {thread["id"]: thread for thread in payload["threads"]}
        self.listed = "cursor" not in payload

    def on_thread_upsert(self, payload: Frame) -> None:
        self.threads[payload["thread"]["id"]] = payload["thread"]

    def on_thread_deleted(self, payload: Frame) -> None:
        self.threads.pop(payload["thread_id"], None)
        self.views.pop(payload["thread_id"], None)

    def on_thread_snapshot(self, payload: Frame) -> None:
        thread = payload["thread"]
        request = self.answered("thread.subscribe", thread["id"])
        self.threads[thread["id"]] = thread
        stored = [event for event in payload["events"] if not event["streaming"]]
        old = self.views.get(thread["id"])
        known = old.events.get(request.after or "") if old and old.created_at in (None, thread["created_at"]) else None
        view = View(thread["created_at"], has_more=payload["has_more"])
        if old is not None and known is not None and self.dialect != "user":
            view.events, view.has_more = dict(old.events), old.has_more
            if stored and stored[0]["seq"] != known["seq"] + 1:
                self.fault(f"resumed after {known['seq']} and got {stored[0]['seq']} first")
            tip = known["seq"]
        else:
            tip = thread["last_seq"]
            if known is not None and stored and stored[0]["seq"] > known["seq"] + 1:
                self.fault(f"resumed after {known['seq']}, the new view begins with {stored[0]['seq']}")
        seqs = [event["seq"] for event in stored]
        if seqs != sorted(set(seqs)):
            self.fault(f"a snapshot out of order: {seqs}")
        view.events |= {event["id"]: event for event in stored}
        view.growing = {event["id"]: text_in(event) for event in payload["events"] if event["streaming"]}
        ended = {} if old is None or known is None else old.runs
        view.runs = {id: run for id, run in ended.items() if run["status"] != "running"}
        view.runs |= {run["id"]: run for run in payload["runs"]}
        view.tip = seqs[-1] if seqs else tip
        self.views[thread["id"]] = view

    def view_of(self, thread_id: str, what: str) -> View:
        """The view that a live frame is for. Who sends a message is subscribed by that, without a snapshot."""
        view = self.views.get(thread_id)
        if view is None or not view.live:
            sent = [request for request in self.pending.values() if request.kind == "event.create"]
            if not any(request.thread_id in (None, thread_id) or request.key for request in sent):
                self.fault(f"{what} of a thread that is not subscribed")
            self.views[thread_id] = view = View(self.threads.get(thread_id, {}).get("created_at"), provisional=True)
        return view

    def on_event_append(self, payload: Frame) -> None:
        view = self.view_of(payload["thread_id"], "event.append")
        for event in payload["events"]:
            if event["streaming"]:
                self._grow(view, event)
            else:
                self._append(view, event)

    def _grow(self, view: View, event: Frame) -> None:
        text = text_in(event)
        if event["id"] in view.events:
            self.fault("a message grows after its end")
        elif not text.startswith(view.growing.get(event["id"], "")):
            self.fault(f"a growing message shrank: {view.growing[event['id']]!r} to {text!r}")
        else:
            view.growing[event["id"]] = text

    def _is_answer(self, event: Frame) -> bool:
        """Whether an event is a message that this client waits to see stored, or the first delivery of one."""
        key, token = event.get("client_event_id"), text_in(event).split()[1] if event["actor"] == "user" else None
        return any(token == sent.token or (key and key == sent.key) for sent in self.pending.values() if sent.token)

    def _append(self, view: View, event: Frame) -> None:
        view.provisional = view.provisional and not self._is_answer(event)
        mine = event.get("client_event_id") in self.sim.keys[self.org, self.user]
        if view.tip is None:
            view.tip, view.loose = event["seq"], mine
        elif event["seq"] == view.tip + 1 or (view.loose and event["seq"] > view.tip):
            if event["seq"] != view.tip + 1:
                view.events.clear()  # what it had was the first delivery again; there is more between
                view.has_more = True
            # Several repeats may come before the first event that is news.
            view.tip, view.loose = event["seq"], view.loose and mine
        elif not mine or event["seq"] > view.tip:
            self.fault(f"event {event['seq']} came after {view.tip}: {event}")
        if event["seq"] < (view.first or event["seq"]):
            return  # a repeat of something older than what is shown
        text = view.growing.pop(event["id"], None)
        lossless = self.deltas and self.sim.config.outbox_frames == ROOMY
        if text is not None and (not text_in(event).startswith(text) or (lossless and text_in(event) != text)):
            self.fault(f"it grew to {text!r} and ended as {text_in(event)!r}")
        view.events[event["id"]] = event

    def on_event_delta(self, payload: Frame) -> None:
        view = self.view_of(payload["thread_id"], "event.delta")
        if not self.deltas:
            self.fault("a delta that nobody asked for")
        if payload["event_id"] in view.events:
            self.fault("a delta after the end of its message")
        else:
            view.growing[payload["event_id"]] = view.growing.get(payload["event_id"], "") + payload["text"]
            self.sim.deltas += 1

    def on_run_upsert(self, payload: Frame) -> None:
        run = payload["run"]
        view = self.view_of(run["thread_id"], "run.upsert")
        view.runs[run["id"]] = run

    def on_event_list_result(self, payload: Frame) -> None:
        request = self.answered("event.list")
        view = self.views.get(payload["thread_id"])
        if view is not None and view.events and view.first == request.before:
            view.events |= {event["id"]: event for event in payload["events"]}
            view.has_more = payload["has_more"]


# ---------------------------------------------------------------- the world


class Simulation:
    """One worker, its clients, and what is written down about them."""

    def __init__(self, seed: int, config: WorkerConfig) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.config = config
        self.worker = WorkerServer(config)
        self.worker.handler(self.make_handler())
        self.trace: deque[str] = deque(maxlen=30)
        self.faults: list[str] = []
        self.keys: dict[tuple[str, str], list[str]] = {}
        self.clients = [Client(self, number) for number in range(12)]
        for client in self.clients:
            self.keys.setdefault((client.org, client.user), [])
        self.tasks: set[asyncio.Task[Any]] = set()
        self.stored: dict[Any, list[tuple[str, str]]] = {}
        self.stored_keys: set[Any] = set()
        self.removed: list[str] = []
        self.cancelled: set[str] = set()
        self.inside: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self.idempotency: list[str] = []
        self.tokens = self.frames = self.deltas = self.closed_slow = self.step = 0

    # -------------------------------------------------- what is written down

    def fault(self, what: str) -> None:
        if not self.faults:
            self.faults = [f"step {self.step}: {what}", *self.trace]

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.fault(what)

    def serve(self, link: Link) -> None:
        self.spawn(self.worker.handle(link))

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fault(f"a task failed: {error!r}")

    def watch_store(self) -> None:
        """Write down each user's message at the moment it is stored, and each thread that goes."""
        store: Any = self.worker._parts.store()
        apply = store.apply

        def watched(change: Change) -> asyncio.Future[Change]:
            future: asyncio.Future[Change] = apply(change)
            future.add_done_callback(note)
            return future

        def note(future: asyncio.Future[Change]) -> None:
            if future.cancelled() or future.exception() is not None or future.result().repeated:
                return
            change = future.result()
            if change.removes:
                self.removed.append(change.thread.id)
            for event in change.events:
                if event.actor == "user":
                    self.stored.setdefault(event.text.split()[1], []).append((change.thread.id, event.id))
                    self.stored_keys.add((change.thread.organization_id, event.user_id, event.client_event_id))

        store.apply = watched

    # -------------------------------------------------- the handler

    def make_handler(self) -> Callable[..., AsyncIterator[Any]]:
        async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
            kind, token, *_ = incoming.message.split()
            random = Random(f"{self.seed}-{token}")
            thread_id = incoming.context.thread_id
            self.turns[incoming.context.event_id] += 1
            self.inside[thread_id] += 1
            self.check(self.inside[thread_id] == 1, f"two turns of thread {thread_id} at once")
            try:
                if kind != "norun" and kind != "quiet":
                    yield send.run_start(agent_id=kind)
                await pause(random)
                async for event in getattr(self, f"do_{kind}")(send, random, token):
                    yield event
            finally:
                try:
                    if random.random() < 0.3:
                        await asyncio.sleep(0.001)  # a teardown that takes its time
                finally:
                    self.inside[thread_id] -= 1

        return answer

    async def do_echo(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield f"echo {token}"

    async def do_norun(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.text("one", author="Nobody")
        await pause(random)
        yield "two"

    async def do_quiet(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        return
        yield  # a generator that gives nothing

    async def do_texts(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        for number in range(random.randint(2, 9)):
            yield f"{token} {number}"
            await pause(random)

    async def do_many(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        for number in range(60):
            yield f"{token} {number}"

    async def do_stream(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.stream(pieces(random, random.randint(1, 25), False))
        if random.random() < 0.3:
            yield send.stream(pieces(random, 5, False))

    async def do_empty(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.stream(pieces(random, 0, False))

    async def do_cut(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.stream(pieces(random, random.randint(0, 5), True))

    async def do_fail(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield "before"
        raise Boom(token)

    async def do_slow(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield "slow"
        await asyncio.sleep(0.04)
        yield "done"

    async def do_tools(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.tool_call("find", {"for": token}, id=token)
        await pause(random)
        yield send.tool_result("find", [1, 2], id=token)
        yield send.run_end()
        yield send.run_start("second")
        yield "found"

    async def do_title(self, send: Any, random: Random, token: str) -> AsyncIterator[Any]:
        yield send.update_thread(title=f"title {token}")
        yield "named"


HOW = ("iterate", "iterate", "collect", "collect", "detach", "leave", "forget", "cancel", "interrupt")
KINDS: tuple[str, ...] = ("echo", "norun", "quiet", "empty", "cut", "fail", "tools", "many")
KINDS += ("texts", "slow", "title") * 2 + ("stream",) * 4


async def pause(random: Random) -> None:
    await asyncio.sleep(random.choice((0, 0, 0, 0.001, 0.004)))


async def pieces(random: Random, count: int, fails: bool) -> AsyncIterator[str]:
    await pause(random)
    for number in range(count):
        yield f"{number} "
        await pause(random)
    if fails:
        raise Boom("in a stream")


# ---------------------------------------------------------------- what clients do


class Driver:
    """Chooses, from the seed, who does what."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.random = sim.random

    def pick(self, items: Any) -> Any:
        items = list(items)
        number = self.random.random()  # one draw, whatever there is to choose from
        return items[int(number * len(items))] if items else None

    def thread_for(self, client: Client) -> str | None:
        thread_id: str | None = self.pick(list(client.threads)[-8:])
        return thread_id

    def act(self) -> str:
        """One step, and how it reads in the trace."""
        client, roll = self.pick(self.sim.clients), self.random.random()
        if client.link is None:
            client.connect()
            again = [thread_id for thread_id in client.views if self.random.random() < 0.8]
            for thread_id in again:
                client.subscribe(thread_id, client.views[thread_id].last_id)
            return f"{client.name} connects, resumes {len(again)}"
        for bound, action in ACTIONS:
            if roll < bound:
                return f"{client.name} {action.__name__} {action(self, client) or ''}"
        raise AssertionError("the bounds end with 1")

    def message(self) -> tuple[str, str]:
        self.sim.tokens += 1
        token = f"m{self.sim.tokens}"
        return f"{self.pick(KINDS)} {token}", token

    def say(self, client: Client) -> str:
        text, token = self.message()
        thread_id = self.thread_for(client) if self.random.random() < 0.85 else None
        keys, roll = self.sim.keys[client.org, client.user], self.random.random()
        key = None
        if roll < 0.5:
            keys.append(key := f"k{token}")
        elif roll < 0.65 and keys:
            key = self.pick(keys[-20:])
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
        more = ({"thread_id": thread_id} if thread_id else {}) | ({"client_event_id": key} if key else {})
        client.post("event.create", {"event": event, **more}, thread_id=thread_id, token=token, key=key)
        return f"{text} in {thread_id} as {key}"

    def subscribe(self, client: Client) -> str:
        thread_id = self.thread_for(client)
        if thread_id is None:
            return "nothing"
        view, roll = client.views.get(thread_id), self.random.random()
        after = view.last_id if view is not None and roll < 0.6 else None
        if view is not None and view.events and roll < 0.2:
            after = self.pick(view.events)
        client.subscribe(thread_id, "nobody" if roll > 0.95 else after)
        return f"{thread_id} after {after}"

    def unsubscribe(self, client: Client) -> str:
        thread_id: str | None = self.pick(client.views)
        if thread_id is not None:
            client.post("thread.unsubscribe", {"thread_id": thread_id}, thread_id=thread_id)
        return str(thread_id)

    def drop(self, client: Client) -> None:
        client.drop(broken=self.random.random() < 0.5)

    def stall(self, client: Client) -> str:
        assert client.link is not None
        reading = client.link.reading
        if reading.is_set():
            reading.clear()
            return "stops to read"
        reading.set()
        return "reads on"

    def cancel(self, client: Client) -> str:
        thread_id = self.thread_for(client)
        view = client.views.get(thread_id or "")
        run_id = self.pick(view.runs) if view is not None and self.random.random() < 0.5 else None
        if thread_id is not None:
            self.sim.cancelled.add(thread_id)
            client.post("run.cancel", {"run_id": run_id} if run_id else {"thread_id": thread_id})
        return f"{thread_id} {run_id}"

    def delete(self, client: Client) -> str:
        thread_id = self.thread_for(client)
        if thread_id is not None:
            client.post("thread.delete", {"thread_id": thread_id})
        return str(thread_id)

    def rename(self, client: Client) -> str:
        thread_id = self.thread_for(client)
        if thread_id is not None:
            self.sim.spawn(self._rename(thread_id, f"renamed {self.sim.step}"))
        return str(thread_id)

    async def _rename(self, thread_id: str, title: str) -> None:
        repository = await self.sim.worker.repository()
        await repository.update_thread(thread_id, title=title)

    def page_back(self, client: Client) -> str:
        thread_id = self.pick(client.views)
        view = client.views.get(thread_id or "")
        if view is None or not view.events:
            return "nothing"
        before = min(view.events.values(), key=lambda event: int(event["seq"]))
        payload = {"thread_id": thread_id, "before_event_id": before["id"], "limit": self.pick((1, 5, 50, 200))}
        client.post("event.list", payload, before=before["seq"])
        return str(thread_id)

    def relist(self, client: Client) -> None:
        client.post("thread.list", {"limit": 200})

    def bad(self, client: Client) -> str:
        kind, payload = self.pick(
            (
                ("nonsense", {}),
                ("thread.subscribe", {"thread_id": 7}),
                ("thread.subscribe", {"thread_id": "no-such-thread"}),
                ("event.create", {"event": {"content": "text"}}),
                ("event.list", {"thread_id": "no-such-thread"}),
                ("run.cancel", {"run_id": "a", "thread_id": "b"}),
                ("run.cancel", {"run_id": "no-such-run"}),
                ("connect", {"worker_id": "w"}),
                ("", None),
            )
        )
        if payload is None:
            client.post_text("{not json")
        else:
            client._count += 1
            client.pending[frame_id := f"{client.name}-{client._count}"] = Request("bad")
            client.post_text(dumps({"id": frame_id, "type": kind, "payload": payload}))
        return str(kind)

    def dispatch(self, client: Client) -> str:
        text, token = self.message()
        thread_id = self.thread_for(client) if self.random.random() < 0.9 else None
        roll, key = self.random.random(), None
        if roll < 0.4:
            self.sim.idempotency.append(key := f"i{token}")
        elif roll < 0.55 and self.sim.idempotency:
            key = self.pick(self.sim.idempotency[-20:])
        how = self.pick(HOW)
        self.sim.spawn(self._dispatch(client, text, thread_id, key, how))
        return f"{how} {text} in {thread_id} as {key}"

    async def _dispatch(self, client: Client, text: str, thread_id: str | None, key: str | None, how: str) -> None:
        who: dict[str, Any] = {"organization_id": client.org, "workspace_id": "ws", "user_id": client.user}
        try:
            stream = await self.sim.worker.dispatch(message=text, thread_id=thread_id, idempotency_key=key, **who)
            fresh = text.split()[1] in self.sim.stored
            # A repeat of what nobody ever ran, as its stream was cancelled or forgotten before, is answered now.
            known = stream.is_repeat or stream._opened.again
            self.sim.check(fresh != known, f"{text}: known before {known}, stored now {fresh}")
            if how in ("leave", "forget", "cancel", "interrupt"):
                self.sim.cancelled.add(stream.thread_id)
            if how == "iterate":
                async for _ in stream:
                    await asyncio.sleep(0)
            elif how == "collect":
                await stream.collect()
            elif how == "detach":
                stream.detach()
            elif how == "leave":
                async for _ in (events := stream.events(deltas=True)):
                    break
                await events.aclose()  # type: ignore[attr-defined]
            elif how == "cancel":
                stream.detach()
                await asyncio.sleep(0.002)
                await stream.cancel()
            elif how == "interrupt":
                collecting = asyncio.create_task(stream.collect())
                await asyncio.sleep(0.002)
                collecting.cancel()
                await asyncio.wait([collecting])
                if not collecting.cancelled():
                    collecting.exception()
        except HandlerError as error:
            self.sim.check(isinstance(error.original, Boom), f"a handler failed with {error.original!r}")
        except DispatchError as error:
            self.sim.check(error.code in ("THREAD_BUSY", "NOT_FOUND"), f"dispatch: {error!r}")


def _bounds(*weighted: tuple[int, Callable[[Driver, Client], str | None]]) -> list[tuple[float, Any]]:
    total, sum_so_far, bounds = sum(weight for weight, _ in weighted), 0, []
    for weight, action in weighted:
        sum_so_far += weight
        bounds.append((sum_so_far / total, action))
    return bounds


ACTIONS = _bounds(
    (34, Driver.say),
    (16, Driver.subscribe),
    (3, Driver.unsubscribe),
    (7, Driver.drop),
    (7, Driver.stall),
    (6, Driver.cancel),
    (2, Driver.delete),
    (3, Driver.rename),
    (4, Driver.page_back),
    (2, Driver.relist),
    (4, Driver.bad),
    (14, Driver.dispatch),
)


# ---------------------------------------------------------------- when all is quiet


async def settle(sim: Simulation) -> None:
    """Return when every turn has ended and every client has read everything."""
    for client in sim.clients:
        if client.link is not None:
            client.link.reading.set()
    async with asyncio.timeout(WITHIN):
        runner = sim.worker._parts.runner()
        quiet = 0
        while quiet < 3:
            pinged = [client for client in sim.clients if client.link is not None]
            for client in pinged:
                client.post("ping", {})
            while any(client.pending for client in pinged if client.link is not None):
                await asyncio.sleep(0.001)
            servers = len([client for client in sim.clients if client.link is not None])
            quiet = quiet + 1 if runner.running == 0 and len(sim.tasks) == servers else 0
            await asyncio.sleep(0.002)


async def compare(sim: Simulation) -> None:
    """Each view with the store, and the store with what was promised."""
    store = sim.worker._parts.store()
    threads = {thread.id: thread for thread in await store.threads(ThreadQuery(limit=10_000))}
    events = {thread_id: await store.events(EventQuery(thread_id=thread_id)) for thread_id in threads}
    runs = {run.id: run for run in await store.runs(RunQuery(limit=100_000))}
    for run in runs.values():
        sim.check(run.status != "running", f"a run was left open: {run}")
    for thread_id, thread in threads.items():
        numbers = [event.seq for event in events[thread_id]]
        sim.check(numbers == list(range(1, thread.last_seq + 1)), f"{thread_id} holds {numbers} of {thread.last_seq}")
    for client in sim.clients:
        if client.link is not None:
            compare_threads(sim, client, threads)
            for thread_id, view in client.views.items():
                if view.live:
                    compare_view(client, thread_id, view, events.get(thread_id, []), runs)
    compare_messages(sim, threads, [event for some in events.values() for event in some])
    inside = {thread_id: count for thread_id, count in sim.inside.items() if count}
    sim.check(not inside, f"handlers that never left: {inside}")
    fail_on_faults(sim)


def fail_on_faults(sim: Simulation) -> None:
    if sim.faults:
        pytest.fail(f"seed {sim.seed}\n" + "\n".join(sim.faults), pytrace=False)


def compare_threads(sim: Simulation, client: Client, threads: dict[str, Thread]) -> None:
    mine = {
        thread.id: thread.title
        for thread in threads.values()
        if thread.organization_id == client.org and (not sim.config.private_threads or thread.user_id == client.user)
    }
    shown = {thread_id: thread.get("title") for thread_id, thread in client.threads.items()}
    if client.listed and shown != mine:
        client.fault(f"threads: shows {shown.items() - mine.items()}, lacks {mine.items() - shown.items()}")


def compare_view(client: Client, thread_id: str, view: View, stored: list[ThreadEvent], runs: dict[str, Any]) -> None:
    shown = sorted(view.events.values(), key=lambda event: int(event["seq"]))
    first = view.first
    expected = [(event.seq, event.id, event.text) for event in stored if first and event.seq >= first]
    if view.loose:
        expected = [entry for entry in expected if entry[1] in view.events]
    if [(event["seq"], event["id"], text_in(event)) for event in shown] != expected:
        numbers = [event["seq"] for event in shown]
        client.fault(f"thread {thread_id}: shows {numbers}, stored are {[event[0] for event in expected]}")
    if view.tip is not None and stored and view.tip != stored[-1].seq and not view.loose:
        client.fault(f"thread {thread_id}: is at {view.tip}, the store at {stored[-1].seq}")
    if shown and not view.has_more and stored[0].seq != first:
        client.fault(f"thread {thread_id}: was told that nothing comes before {first}")
    if view.provisional:
        client.fault(f"thread {thread_id}: frames that belong to no message of this client")
    if view.growing:
        client.fault(f"thread {thread_id}: still being written: {view.growing}")
    for run in view.runs.values() if not view.loose else ():
        now = runs.get(run["id"])
        if now is None or now.status != run["status"] or now.error != run.get("error"):
            client.fault(f"thread {thread_id}: shows {run}, stored is {now}")


def compare_messages(sim: Simulation, threads: dict[str, Thread], events: list[ThreadEvent]) -> None:
    present = {event.id: event for event in events if event.actor == "user"}
    keys = Counter((event.user_id, event.client_event_id) for event in present.values() if event.client_event_id)
    sim.check(max(keys.values(), default=1) == 1, f"stored twice: {keys.most_common(3)}")
    sim.check(max(sim.turns.values(), default=1) == 1, f"answered twice: {sim.turns.most_common(3)}")
    for token, places in sim.stored.items():
        sim.check(len(places) == 1, f"{token} was stored {len(places)} times")
        thread_id, event_id = places[0]
        if thread_id not in sim.removed:
            sim.check(event_id in present, f"{token} is gone from the store")
            if thread_id not in sim.cancelled:
                sim.check(sim.turns[event_id] == 1, f"{token} was not answered, in thread {thread_id}")


def check_nothing_stays(sim: Simulation) -> None:
    """Nobody is there any more: nor is anything of them."""
    broadcast, lanes = sim.worker._parts.broadcast(), sim.worker._parts.lanes()
    left = {
        "places": broadcast._places,
        "threads": broadcast._threads,
        "subscribed": broadcast._subscribed,
        "topics": broadcast._topics,
        "lanes": list(lanes),
        "turns": sim.worker._parts.runner()._turns,
        "last words": sim.worker._parts.runner()._deaf.last_words,
        "sessions": sim.worker._sessions,
    }
    assert not any(left.values()), f"seed {sim.seed}: left behind: {left}"


async def simulate(seed: int, config: WorkerConfig) -> Simulation:
    sim = Simulation(seed, config)
    driver = Driver(sim)
    await sim.worker.ensure_initialized()
    sim.watch_store()
    try:
        for sim.step in range(1, STEPS + 1):
            sim.trace.append(f"{sim.step}: {driver.act()}")
            for _ in range(driver.random.choice((0, 1, 1, 3))):
                await asyncio.sleep(0)
            if driver.random.random() < 0.12:
                await asyncio.sleep(driver.random.choice((0.001, 0.004, 0.01)))
            fail_on_faults(sim)
            if sim.step % CHECK_EVERY == 0 or sim.step == STEPS:
                await settle(sim)
                await compare(sim)
        for client in sim.clients:
            client.drop(broken=False)
        async with asyncio.timeout(WITHIN):
            while sim.tasks:
                await asyncio.sleep(0.001)
        check_nothing_stays(sim)
    finally:
        for client in sim.clients:
            client.drop(broken=False)
        await sim.worker.close()
    return sim


def _run(seed: int, config: WorkerConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # Quick enough that a stream of a few milliseconds is told in several pieces and grows before eyes that know none.
    monkeypatch.setattr(steps, "DELTA_EVERY", 0.002)
    monkeypatch.setattr(steps, "APPEND_EVERY", 0.004)
    with caplog.at_level(logging.ERROR):
        sim = asyncio.run(simulate(seed, config))
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    strange = [r.getMessage() for r in errors if not (r.exc_info and isinstance(r.exc_info[1], Boom))]
    assert not strange, f"seed {seed}: {strange[:3]}"
    assert sim.frames > STEPS, "clients heard too little for this to mean anything"


def _config(seed: int, **database: Any) -> WorkerConfig:
    return WorkerConfig(
        worker_id="w",
        private_threads=seed % 4 == 3,
        # Small enough on every other seed that who does not read is cut off, and does without pieces before that.
        outbox_frames=ROOMY if seed % 2 == 0 else 90,
        thread_queue_limit=4,
        shutdown_grace=1,
        teardown_timeout=1,
        **database,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_views_equal_the_store_whatever_clients_do(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(seed, database_type="sqlite", database_name=str(tmp_path / "worker.db"))
    _run(seed, config, caplog, monkeypatch)


@pytest.mark.parametrize("seed", [1000, 1003])
def test_views_equal_the_store_in_memory_too(
    seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(seed, _config(seed, database_type="memory"), caplog, monkeypatch)
