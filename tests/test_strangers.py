"""What a stranger gets of somebody else's conversations: nothing, by whatever frame, from wherever they come.

Every row of `ROWS` (a client frame that names something of the owner's) is tried by every one of `STRANGERS`, in two worlds at once:
one in which the owner lives, and one in which she never did. The stranger must not be able to tell which of them it is in.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
import attrs
import pytest
from attrs import evolve, frozen
from dependency_injector import providers
from samples import THREAD

from dooers import DispatchError, Identity, WorkerConfig, WorkerServer
from dooers.clock import SystemClock
from dooers.codec import dumps
from dooers.config import ORDERS
from dooers.models import Change, Operation
from dooers.protocol import CLIENT, Dialect
from dooers.session import AuthRequest
from dooers.testing import Closed, WorkerClient

WORKER = "worker"
OWNER = Identity(
    organization_id="owners-org",
    workspace_id="owners-desk",
    user_id="ada-lovelace",
    user_name="Ada Lovelace",
    user_email="ada@owner.example",
    user_role="keeper",
)
# What she has: a thread that is at rest, and one that is being answered.
FIRST, SECOND = "the owner's first secret", "the owner's second secret"
ANSWER, MORE = "the owner's answer", ", and the rest of it"
KEYS = {FIRST: "the-owners-key-1", SECOND: "the-owners-key-2"}
MODEL = "the-owners-model"
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


def title_of(message: str) -> str:
    return f"title of {message}"


# ---------------------------------------------------------------- who comes


@frozen(kw_only=True)
class Stranger:
    """Somebody who must not get at what is the owner's, and the worker that keeps them out.

    `who` is what the authenticate hook proves, None for one that it refuses. Whatever it is, they claim to be the owner.
    One who `expires` or is `shut_out` by the authorize hook was welcome when they connected, and subscribed to all she has.
    """

    who: Identity | None = None
    worker_id: str = WORKER
    connects: bool = True
    expires: bool = False
    shut_out: bool = False
    config: Mapping[str, Any] = attrs.Factory(dict)
    hook: Callable[[Identity, Operation, Any], bool] | None = None
    # The settings of a worker are those of all its tenants: who may read and change them, may.
    shares_settings: bool = False

    @property
    def has_a_thread(self) -> bool:
        """Whether there may be a thread of their own."""
        return self.who is not None and not self.expires and self.who.user_id != ""


MALLORY = evolve(OWNER, user_id="mallory", user_name="Mallory", user_email="m@stranger.example", user_role="guest")
NAMESAKE = evolve(MALLORY, user_id=OWNER.user_id)
PRIVATE = {"private_threads": True}


def reads_own_only(identity: Identity, operation: Operation, thread: Any) -> bool:
    """The least that a hook can deny: reading a thread. What cannot be read cannot be anything else."""
    return operation != "thread.read" or thread is None or thread.user_id == identity.user_id


STRANGERS = {
    "of another worker": Stranger(who=NAMESAKE, worker_id="another-worker"),
    "of another organization": Stranger(who=evolve(NAMESAKE, organization_id="strange-org"), shares_settings=True),
    "of another workspace": Stranger(who=evolve(NAMESAKE, workspace_id="strange-desk"), shares_settings=True),
    "of no organization": Stranger(who=evolve(NAMESAKE, organization_id="", workspace_id=""), shares_settings=True),
    "another user, threads are private": Stranger(who=MALLORY, config=PRIVATE, shares_settings=True),
    "an empty user, threads are private": Stranger(
        who=evolve(MALLORY, user_id=""), config=PRIVATE, shares_settings=True
    ),
    "before connect": Stranger(connects=False),
    "refused": Stranger(),
    "the owner, expired": Stranger(who=OWNER, expires=True),
    "a role without anything": Stranger(
        who=MALLORY, config={"permissions": dict.fromkeys(get_args(Operation), OWNER.user_role)}
    ),
    "a role that may not read threads": Stranger(
        who=MALLORY, config={"permissions": {"thread.read": OWNER.user_role}}, shares_settings=True
    ),
    "kept from the thread by the hook": Stranger(who=MALLORY, hook=reads_own_only, shut_out=True, shares_settings=True),
}
stranger_of_each_kind = pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
each_store = pytest.mark.parametrize("store", ["memory", "sqlite"])


# ---------------------------------------------------------------- what they try


@frozen(kw_only=True)
class Things:
    """What can be named: things of the owner's, and a thread of the stranger's own."""

    first: str
    second: str
    message_id: str
    answer_id: str
    ended_run: str
    run: str
    cursor: str
    mine: str = "mine"


@frozen
class Row:
    """A frame that names something. For the owner it works: the answer `shows` this, her other connections are told of that."""

    type: str
    payload: Callable[[Things], dict[str, Any]]
    shows: str = '"ok":true'
    tells: str | None = None
    changes: bool = False


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}, **more}


def claims(dialect: Dialect, worker_id: str = WORKER) -> dict[str, Any]:
    """A `connect` of somebody who says that they are the owner."""
    place = {"organization_id": OWNER.organization_id, "workspace_id": OWNER.workspace_id}
    names = ("user_id", "user_name", "user_email", "user_role")
    person = {name: getattr(OWNER, name) for name in names}
    # Without "deltas" the agents dialect is told of a growing text in its own way.
    deltas = {"client": {"capabilities": ["deltas"]}}
    return {
        "flat": {"worker_id": worker_id, **place, **person, **deltas},
        "metadata": {"worker_id": worker_id, "metadata": {**place, **person}, **deltas},
        "user": {"worker_id": worker_id, **place, "user": person, **deltas},
        "agents": {"agent_id": worker_id, **place, "user": person},
    }[dialect]


def claimed_in(dialect: Dialect, _: Things) -> dict[str, Any]:
    return claims(dialect)


def opinion(kind: str, target_id: str) -> dict[str, Any]:
    return {"target_type": kind, "target_id": target_id, "feedback": "like", "reason": "r"}


PATCH = {"field_id": "model", "value": "patched"}
ROWS = {
    **{f"connect, {one}": Row("connect", partial(claimed_in, one)) for one in DIALECTS},
    "ping": Row("ping", lambda o: {}, '"type":"pong"'),
    "list": Row("thread.list", lambda o: {}, title_of(FIRST)),
    "list, a page": Row("thread.list", lambda o: {"limit": 1}, title_of(SECOND)),
    "list, her cursor": Row("thread.list", lambda o: {"limit": 1, "cursor": o.cursor}, title_of(FIRST)),
    "list, her title": Row("thread.list", lambda o: {"query": FIRST.upper()}, title_of(FIRST)),
    "subscribe": Row("thread.subscribe", lambda o: {"thread_id": o.first}, ANSWER),
    "subscribe, being written": Row("thread.subscribe", lambda o: {"thread_id": o.second}, ANSWER),
    "subscribe, after her event": Row(
        "thread.subscribe", lambda o: {"thread_id": o.first, "after_event_id": o.message_id}, ANSWER
    ),
    "subscribe, mine after her event": Row(
        "thread.subscribe", lambda o: {"thread_id": o.mine, "after_event_id": o.message_id}, "thread.snapshot"
    ),
    "unsubscribe": Row("thread.unsubscribe", lambda o: {"thread_id": o.first}),
    "post": Row("event.create", lambda o: said("x", thread_id=o.first), tells="message.c2s", changes=True),
    "post, full queue": Row("event.create", lambda o: said("x", thread_id=o.second), '"THREAD_BUSY"'),
    "post, her key": Row("event.create", lambda o: said("x", client_event_id=KEYS[FIRST]), FIRST),
    "post, her key and thread": Row(
        "event.create", lambda o: said("x", thread_id=o.second, client_event_id=KEYS[SECOND]), SECOND
    ),
    "post, mine with her key": Row(
        "event.create", lambda o: said("x", thread_id=o.mine, client_event_id=KEYS[SECOND]), SECOND
    ),
    "events": Row("event.list", lambda o: {"thread_id": o.first}, FIRST),
    "events, before her event": Row(
        "event.list", lambda o: {"thread_id": o.first, "before_event_id": o.answer_id}, FIRST
    ),
    "events, mine before her event": Row(
        "event.list", lambda o: {"thread_id": o.mine, "before_event_id": o.answer_id}, FIRST
    ),
    "cancel the run": Row("run.cancel", lambda o: {"run_id": o.run}, tells='"canceled"', changes=True),
    "cancel the ended run": Row("run.cancel", lambda o: {"run_id": o.ended_run}),
    "cancel the thread": Row("run.cancel", lambda o: {"thread_id": o.second}, tells='"canceled"', changes=True),
    "feedback, thread": Row("feedback", lambda o: opinion("thread", o.first), tells="feedback.like"),
    "feedback, run": Row("feedback", lambda o: opinion("run", o.run), tells="feedback.like"),
    "feedback, event": Row("feedback", lambda o: opinion("event", o.answer_id), tells="feedback.like"),
    "settings": Row("settings.subscribe", lambda o: {}, MODEL),
    "settings, worker": Row("settings.subscribe", lambda o: {"worker_id": WORKER}, MODEL),
    "settings, agent": Row("settings.subscribe", lambda o: {"agent_id": WORKER}, MODEL),
    "patch": Row("settings.patch", lambda o: PATCH, tells="settings.patch", changes=True),
    "no settings": Row("settings.unsubscribe", lambda o: {"worker_id": WORKER}),
    "no settings, agent": Row("settings.unsubscribe", lambda o: {"agent_id": WORKER}),
    "public schema": Row("settings.public_schema", lambda o: {}, '"model"'),
    "analytics": Row("analytics.subscribe", lambda o: {"worker_id": WORKER}),
    "analytics, agent": Row("analytics.subscribe", lambda o: {"agent_id": WORKER}),
    "no analytics": Row("analytics.unsubscribe", lambda o: {"worker_id": WORKER}),
    "no analytics, agent": Row("analytics.unsubscribe", lambda o: {"agent_id": WORKER}),
    "rename": Row(
        "thread.update", lambda o: {"thread_id": o.first, "title": "mine"}, tells="thread.upsert", changes=True
    ),
    "rename, being answered": Row(
        "thread.update", lambda o: {"thread_id": o.second, "title": None}, tells="thread.upsert", changes=True
    ),
    "rename, no title": Row("thread.update", lambda o: {"thread_id": o.first, "title": "x" * 201}, '"TOO_LARGE"'),
    "delete": Row("thread.delete", lambda o: {"thread_id": o.first}, tells="thread.deleted", changes=True),
    "delete, being answered": Row(
        "thread.delete", lambda o: {"thread_id": o.second}, tells="thread.deleted", changes=True
    ),
}


def test_every_frame_and_every_name_in_a_frame_is_tried() -> None:
    tried: dict[str, set[str]] = {kind: set() for kind in CLIENT}
    nobody = Things(**{one.name: "-" for one in attrs.fields(Things)})
    for row in ROWS.values():
        tried[row.type] |= row.payload(nobody).keys()
    assert {row.type for row in ROWS.values()} == CLIENT.keys()
    for kind, shape in CLIENT.items():
        names = {one.name for one in attrs.fields(shape) if one.name.endswith("_id") or one.name == "cursor"}
        assert names <= tried[kind], f"{kind}: a row is needed for what its payload names"


# ---------------------------------------------------------------- the two worlds


class Clock(SystemClock):
    """The machine's clock, set on by hand."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass
class Settings:
    model: str = "small"


class World:
    """A worker with a stranger's things in it, and with the owner's where she lives. `turns` are those that ran, in order."""

    def __init__(self, stranger: Stranger, store: str, folder: Path, **config: Any) -> None:
        name = str(folder / f"{id(self)}.db")
        limits = {"thread_queue_limit": 1, **stranger.config, **config}
        self.worker = WorkerServer(WorkerConfig(database_type=store, database_name=name, **limits))  # type: ignore[arg-type]
        self.stranger = stranger
        self.clock = Clock()
        self.worker._parts.clock.override(providers.Object(self.clock))
        self.gate = anyio.Event()
        self.turns: list[tuple[str, str]] = []
        self.worker.settings(Settings)
        self.worker.handler(self._handler())
        self.worker.authenticate(self._who)
        self.shut = not stranger.shut_out
        if (hook := stranger.hook) is not None:
            self.worker.authorize(lambda who, operation, thread: not self.shut or hook(who, operation, thread))
        # Her own eyes: connected from the start, and subscribed to whatever she has.
        self.ada = WorkerClient(self.worker, headers={"x-who": "owner"}, connect=claims("flat"))
        self.things: Things

    def _handler(self) -> Any:
        async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
            self.turns.append((incoming.context.thread_id, incoming.message))
            if incoming.context.user_id != OWNER.user_id or incoming.message not in (FIRST, SECOND):
                return
            yield send.run_start("the-owners-agent")
            yield send.update_thread(title=title_of(incoming.message))
            yield send.stream(self._answer(incoming.message))
            yield send.run_end()

        return agent

    async def _answer(self, message: str) -> AsyncIterator[str]:
        yield ANSWER
        if message == SECOND:
            await self.gate.wait()
        yield MORE

    def _who(self, request: AuthRequest) -> Identity | None:
        if request.headers["x-who"] == "owner":
            return OWNER
        who = self.stranger.who
        until = self.clock.now() + timedelta(hours=1)
        return evolve(who, expires_at=until) if who is not None and self.stranger.expires else who

    async def furnish(self, *, owned: bool) -> None:
        """Everybody's things: hers around the stranger's, so that whatever counts or pages has to get past them."""
        await (await self.worker.settings(WORKER)).set("model", MODEL)
        if owned:
            await self.ada.__aenter__()
            for topic in ("settings.subscribe", "analytics.subscribe"):
                assert (await self.ada.ask(topic))["payload"]["ok"]
            first = await self.ada.say(FIRST, client_event_id=KEYS[FIRST])
        if owned and (who := self.stranger.who) is not None and who.user_id == "":
            # What belongs to nobody, from before threads were private, is not for any nobody who comes.
            place: Any = {"organization_id": who.organization_id, "workspace_id": who.workspace_id, "user_id": ""}
            nobodys = evolve(THREAD, id="mine", worker_id=WORKER, title=title_of(FIRST), **place)
            await self.worker._parts.store().apply(Change(thread=nobodys, opens=True))
        if self.stranger.has_a_thread:
            stream = await self.worker.dispatch(message="mine", thread_id="mine", **place_of(self.stranger))
            await stream.collect()
        if owned:
            assert (await self.ada.ask("event.create", said(SECOND, client_event_id=KEYS[SECOND])))["payload"]["ok"]
            delta = (await self.ada.expect("event.delta"))["payload"]
            listed = (await self.ada.ask("thread.list", {"limit": 1}))["payload"]
            runs = [one["payload"]["run"]["id"] for one in first.frames if one["type"] == "run.upsert"]
            self.things = Things(
                first=first.thread_id,
                second=delta["thread_id"],
                message_id=first.event_id,
                answer_id=first.events[-1].id,
                ended_run=runs[0],
                run=delta["run_id"],
                cursor=listed["cursor"],
            )
            await heard(self.ada)

    async def come(self, who: str, dialect: Dialect, *, connects: bool, worker_id: str = WORKER) -> WorkerClient:
        """A connection that has sent `connect` and has its answer, whatever that was."""
        client = WorkerClient(self.worker, headers={"x-who": who})
        await client.open()
        if connects:
            client.post("connect", claims(dialect, worker_id), "connect")
            await client.expect("ack")
        return client

    async def stranger_comes(self, dialect: Dialect, follow: Sequence[tuple[str, dict[str, Any]]] = ()) -> WorkerClient:
        """A connection of theirs; one that was welcome at first has sent `follow` while it was."""
        stranger = self.stranger
        client = await self.come("stranger", dialect, connects=stranger.connects, worker_id=stranger.worker_id)
        if stranger.expires or stranger.shut_out:
            for kind, payload in follow:
                await client.ask(kind, payload)
            await heard(client)
            self.shut = True
            self.clock.ahead += timedelta(hours=2)
        return client

    async def transcript(self, row: Row, payload: dict[str, Any], thread_id: str, dialect: Dialect) -> str:
        """All that a stranger gets who sends this frame, and then asks for the owner's thread in case it helped."""
        client = await self.stranger_comes(dialect)
        client.post(row.type, payload, "asked")
        client.post("event.list", {"thread_id": thread_id}, "again")
        lines = (await heard(client)).splitlines()
        # A turn that shows nothing tells its end at a time of its own: it is waited for, and comes last.
        async with asyncio.timeout(10):
            while any(turn.event.text not in (FIRST, SECOND) for turn in self.worker._parts.runner()._turns):
                await asyncio.sleep(0.001)
        if not any(line.startswith("closed ") for line in lines):
            lines += (await heard(client)).splitlines()
        await client.drop()
        return "\n".join(sorted(lines, key=lambda line: '"type":"run.upsert"' in line))

    async def kept(self, *, settings: bool) -> Any:
        """What the store has of the owner's."""
        repository = await self.worker.repository()
        place = {name: getattr(OWNER, name) for name in ("organization_id", "workspace_id", "user_id")}
        threads = await repository.list_threads({"worker_id": WORKER, **place}, limit=1000)
        events = [await repository.list_events({"thread_id": one.id}, limit=1000) for one in threads]
        runs = [await repository.list_runs({"thread_id": one.id}, limit=1000) for one in threads]
        return threads, events, runs, await repository.get_settings(WORKER) if settings else None

    def her_turns(self) -> list[str]:
        """The messages for which a turn ran in a thread of hers."""
        return [message for thread_id, message in self.turns if thread_id in (self.things.first, self.things.second)]


def place_of(stranger: Stranger) -> dict[str, Any]:
    """Where a dispatch of theirs goes."""
    assert stranger.who is not None
    names = ("organization_id", "workspace_id", "user_id", "user_name")
    return {"worker_id": stranger.worker_id, **{name: getattr(stranger.who, name) for name in names}}


@asynccontextmanager
async def world(
    stranger: Stranger, store: str, folder: Path, *, owned: bool = True, **config: Any
) -> AsyncIterator[World]:
    made = World(stranger, store, folder, **config)
    async with made.worker.lifespan():
        await made.furnish(owned=owned)
        try:
            yield made
        finally:
            made.gate.set()
            if owned:
                await made.ada.drop()


async def heard(client: WorkerClient) -> str:
    """Every frame up to now, a line each, and how the connection was closed if it was."""
    lines: list[str] = []
    end = client.post("thread.unsubscribe", {"thread_id": "-"})
    try:
        while True:
            frame = await client.receive()
            if frame["type"] == "ack" and frame["payload"]["ack_id"] == end:
                break
            lines.append(dumps(frame))
    except Closed as closed:
        lines.append(f"closed {closed.code}")
    return "\n".join(lines)


async def until(client: WorkerClient, text: str) -> str:
    """The frames up to the one that has this text in it."""
    frames = ""
    while text not in frames:
        frames += dumps(await client.receive())
    return frames


UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
CURSOR = re.compile(r'"cursor":"([^"]*)"')


def comparable(text: str) -> str:
    """A transcript without what differs from one minute to the next: ids and times that the worker made."""
    return CURSOR.sub('"cursor":"*"', TIME.sub("<time>", UUID.sub("<id>", text)))


def secrets(there: World, kept: Any) -> Iterator[str]:
    """Whatever is the owner's alone."""
    threads, events, runs, _ = kept
    yield from (FIRST, SECOND, ANSWER, MORE, *KEYS.values(), OWNER.user_name, OWNER.user_email, "the-owners-agent")
    yield from (one.id for one in threads)
    yield from (event.id for page in events for event in page)
    yield from (run.id for page in runs for run in page)
    who = there.stranger.who or Identity(organization_id="", workspace_id="", user_id="")
    for name in ("organization_id", "workspace_id", "user_id"):
        if getattr(who, name) != getattr(OWNER, name):
            yield getattr(OWNER, name)
    if not there.stranger.shares_settings:
        yield MODEL


def leaked(text: str, among: list[str], sent: str) -> list[str]:
    """The owner's secrets in what a stranger got, but for what it said itself. Cursors are looked into."""
    cursors = [base64.urlsafe_b64decode(cursor).decode() for cursor in CURSOR.findall(text) if not UUID.match(cursor)]
    whole = "\n".join([text, *cursors])
    return [secret for secret in among if secret in whole and secret not in sent]


# ---------------------------------------------------------------- the matrix


@stranger_of_each_kind
@each_store
async def test_a_stranger_reads_nothing_changes_nothing_and_cannot_tell_denied_from_absent(
    stranger: Stranger, store: str, tmp_path: Path
) -> None:
    wrong: list[str] = []
    async with world(stranger, store, tmp_path, owned=False) as absent, world(stranger, store, tmp_path) as there:
        things, settings = there.things, not stranger.shares_settings
        before, turns = await there.kept(settings=settings), there.her_turns()
        hers = [*secrets(there, before)]
        for number, (name, row) in enumerate(ROWS.items()):
            payload, dialect = row.payload(things), DIALECTS[number % len(DIALECTS)]
            got = await there.transcript(row, payload, things.first, dialect)
            otherwise = await absent.transcript(row, payload, things.first, dialect)
            if comparable(got) != comparable(otherwise):
                wrong.append(f"{name}: {comparable(got)}\n and where she is not: {comparable(otherwise)}")
            if found := leaked(got, hers, dumps(payload)):
                wrong.append(f"{name}: leaked {found} in {got}")
            if "SERVER_ERROR" in got:
                wrong.append(f"{name}: was not foreseen: {got}")
            if (after := await there.kept(settings=settings)) != before:
                wrong.append(f"{name}: changed what is hers")
                before = after
            told = await heard(there.ada)
            if things.first in told or things.second in told:
                wrong.append(f"{name}: she is told of her thread: {told}")
        assert not wrong, "\n\n".join(wrong)
        assert there.her_turns() == turns
        # Her turn runs on, and nobody has unsubscribed her from it.
        there.gate.set()
        assert ANSWER + MORE in await until(there.ada, '"succeeded"')


@pytest.mark.parametrize("name", ROWS)
@each_store
async def test_the_owner_gets_the_real_thing_with_the_same_frame(name: str, store: str, tmp_path: Path) -> None:
    row, nobody_else = ROWS[name], evolve(STRANGERS["a role without anything"], who=None)
    async with world(nobody_else, store, tmp_path) as there:
        things = evolve(there.things, mine=there.things.first)
        before = await there.kept(settings=True)
        client = await there.come("owner", "flat", connects=row.type != "connect")
        client.post(row.type, row.payload(things), "asked")
        assert row.shows in await heard(client)
        if row.tells is not None:
            await until(there.ada, row.tells)
        assert (await there.kept(settings=True) != before) is row.changes
        await client.drop()


@pytest.mark.parametrize("name", ["worker_id", "agent_id"])
@pytest.mark.parametrize("kind", sorted(kind for kind, shape in CLIENT.items() if hasattr(shape, "agent_id")))
async def test_a_frame_that_names_another_worker_is_refused_whether_or_not_that_one_exists(
    kind: str, name: str, tmp_path: Path
) -> None:
    async with world(STRANGERS["of another worker"], "memory", tmp_path) as there:
        client = await there.stranger_comes("flat")
        hers, none = [(await client.ask(kind, {name: one}))["payload"] for one in (WORKER, "no-such-worker")]
        assert hers["error"] == none["error"]
        assert hers["error"]["code"] == "NOT_FOUND"
        await client.drop()


# ---------------------------------------------------------------- live


@pytest.mark.parametrize(("store", "dialect"), [("sqlite", "flat"), *(("memory", one) for one in DIALECTS)])
@stranger_of_each_kind
async def test_nothing_that_the_owner_does_is_delivered_to_a_stranger(
    stranger: Stranger, store: str, dialect: Dialect, tmp_path: Path
) -> None:
    async with world(stranger, store, tmp_path) as there:
        things, ada = there.things, there.ada
        witness = await there.come("owner", dialect, connects=True)
        follow = [("thread.subscribe", {"thread_id": one}) for one in (things.first, things.second)]
        follow += [("settings.subscribe", {}), ("analytics.subscribe", {})]
        for kind, payload in follow:
            await witness.ask(kind, payload)
        spy = await there.stranger_comes(dialect, follow)
        for row in ROWS.values():
            # Who is shut out keeps still, for whoever is refused is unsubscribed.
            if "unsubscribe" not in row.type and not stranger.shut_out:
                spy.post(row.type, row.payload(things))
        await heard(spy)

        there.gate.set()
        assert await end_of_run(ada, things.run) == "succeeded"
        there.gate = anyio.Event()
        assert (await ada.ask("event.create", said(SECOND, thread_id=things.first)))["payload"]["ok"]
        seen = await until(witness, "event.delta" if dialect != "agents" else '"streaming":true')
        there.gate.set()
        await until(ada, '"succeeded"')
        await ada.say(FIRST)
        await ada.ask("settings.patch", {"field_id": "model", "value": "patched by the owner"})
        await ada.ask("feedback", opinion("thread", things.first))
        await (await there.worker.repository()).update_thread(things.first, title="another title")
        await (await there.worker.analytics(thread_id=things.first)).track("owners.own", {"text": FIRST})
        for thread_id in (things.first, things.second):
            assert (await ada.ask("thread.delete", {"thread_id": thread_id}))["payload"]["ok"]

        seen += await heard(witness)
        for kind in ("thread.upsert", "event.append", "run.upsert", "thread.deleted", "settings.patch", "owners.own"):
            assert kind in seen
        spied = (await heard(spy)).splitlines()
        silent = [line for line in spied if line.startswith("closed")]
        allowed = [line for line in spied if '"type":"settings.patch"' in line and stranger.shares_settings]
        own = [
            line for line in spied if f'"thread_id":"{things.mine}"' in line
        ]  # the end of what the stranger has asked above
        assert sorted(spied) == sorted(silent + allowed + own)
        await witness.drop()
        await spy.drop()


# ---------------------------------------------------------------- the queue, the limits


async def end_of_run(client: WorkerClient, run_id: str) -> str:
    """How a run ended, once it has."""
    while True:
        run = (await client.expect("run.upsert"))["payload"]["run"]
        if run["id"] == run_id and run["status"] != "running":
            return str(run["status"])


@pytest.mark.parametrize("order", ORDERS)
@stranger_of_each_kind
async def test_a_stranger_stands_in_nobody_elses_queue_and_takes_nobody_elses_turn(
    stranger: Stranger, order: str, tmp_path: Path
) -> None:
    async with world(stranger, "sqlite", tmp_path, turn_order=order) as there:
        things = there.things
        client = await there.stranger_comes("flat")
        for thread_id in (things.first, things.second) * 2:
            client.post("event.create", said("x", thread_id=thread_id))
        # While those are on their way. Her thread takes one message at a time, and that place is hers.
        assert (await there.ada.ask("event.create", said(FIRST, thread_id=things.first)))["payload"]["ok"]
        await heard(client)
        there.gate.set()
        assert await end_of_run(there.ada, things.run) == "succeeded"
        while there.worker.is_answering(things.first):
            await anyio.sleep(0.001)
        assert there.her_turns() == [FIRST, SECOND, FIRST]
        await client.drop()


# Whoever is proved to be the same person counts as the same, at whatever worker.
READERS = [
    name for name, one in STRANGERS.items() if one.has_a_thread and name != "of another worker" and "role" not in name
]


@pytest.mark.parametrize("name", READERS)
async def test_a_subscription_that_is_refused_takes_no_room_and_says_nothing_when_there_is_none(
    name: str, tmp_path: Path
) -> None:
    async with world(STRANGERS[name], "memory", tmp_path, max_subscriptions=2) as there:
        client = await there.stranger_comes("flat")
        hers, none, mine = ({"thread_id": one} for one in (there.things.first, "none", "mine"))
        for _ in range(3):
            assert (await client.ask("thread.subscribe", hers))["payload"]["error"]["code"] == "NOT_FOUND"
            assert not (await client.ask("event.create", said("x", **hers)))["payload"]["ok"]
        assert (await client.ask("thread.subscribe", mine))["type"] == "thread.snapshot"
        assert (await client.ask("event.create", said("x")))["payload"]["ok"]
        full = [(await client.ask("thread.subscribe", one))["payload"]["error"] for one in (hers, none)]
        assert full[0] == full[1]
        assert full[0]["code"] == "TOO_LARGE"
        await client.drop()


# ---------------------------------------------------------------- inside the same tenant

NEEDS: dict[Operation, set[str]] = {
    "thread.read": {"thread.list", "thread.subscribe", "event.list"},
    "thread.post": {"event.create"},
    "thread.update": {"thread.update"},
    "thread.delete": {"thread.delete"},
    "run.cancel": {"run.cancel"},
    "settings.read": {"settings.subscribe"},
    "settings.patch": {"settings.patch"},
    "analytics.read": {"analytics.subscribe"},
    "feedback": {"feedback"},
}


@pytest.mark.parametrize("operation", get_args(Operation))
@pytest.mark.parametrize("by", ["the table", "the hook"])
async def test_who_lacks_one_operation_is_refused_that_one(by: str, operation: Operation, tmp_path: Path) -> None:
    lacking = (
        Stranger(who=MALLORY, config={"permissions": {operation: OWNER.user_role}})
        if by == "the table"
        else Stranger(who=MALLORY, hook=lambda who, asked, _: asked != operation or who.user_id != MALLORY.user_id)
    )
    code = "NOT_FOUND" if operation == "thread.read" else "FORBIDDEN"
    async with world(lacking, "memory", tmp_path) as there:
        before, tried = await there.kept(settings=True), 0
        client = await there.stranger_comes("flat")
        for name, row in ROWS.items():
            if row.type in NEEDS[operation]:
                answer = (await client.ask(row.type, row.payload(there.things)))["payload"]
                assert answer["error"]["code"] == ("FORBIDDEN" if row.type == "thread.list" else code), name
                assert await there.kept(settings=True) == before, name
                tried += 1
        assert tried
        await client.drop()


async def test_the_cursor_of_a_page_does_not_name_a_thread_that_the_hook_hides(tmp_path: Path) -> None:
    """A list that has looked at many threads in vain ends early: where it goes on is no less a secret than they are."""
    async with world(STRANGERS["kept from the thread by the hook"], "memory", tmp_path) as there:
        place = [getattr(OWNER, name) for name in ("organization_id", "workspace_id", "user_id")]
        repository = await there.worker.repository()
        hidden = [(await repository.create_thread(WORKER, *place)).id for _ in range(30)]
        client = await there.stranger_comes("flat")
        client.post("thread.list", {"limit": 1})
        assert not leaked(await heard(client), hidden, "")
        await client.drop()


async def test_a_key_that_two_nobodies_use_does_not_show_one_what_the_hook_keeps_from_them() -> None:
    """People without an id are one to a repeat key, but not to a hook that goes by roles."""
    worker = WorkerServer(WorkerConfig(database_type="memory"))
    worker.authorize(lambda who, operation, thread: thread is None or who.user_role == "keeper")

    @worker.handler
    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        return
        yield

    async with worker.lifespan():
        async with (
            WorkerClient(worker, user_id="", user_role="keeper") as keeper,
            WorkerClient(worker, user_id="", user_role="guest") as guest,
        ):
            await keeper.say(FIRST, client_event_id="k")
            guest.post("event.create", said("x", client_event_id="k"))
            assert FIRST not in await heard(guest)


# ---------------------------------------------------------------- the second door

# Roles and the hook do not bind `dispatch`: it is the application's own door.
OUTSIDERS = [name for name, one in STRANGERS.items() if one.who and not (one.expires or one.hook or "role" in name)]


@pytest.mark.parametrize("name", OUTSIDERS)
@each_store
async def test_a_dispatch_into_the_owners_thread_is_refused_and_leaves_it_as_it_was(
    name: str, store: str, tmp_path: Path
) -> None:
    stranger = STRANGERS[name]
    async with world(stranger, store, tmp_path) as there:
        before = await there.kept(settings=True)
        with pytest.raises(DispatchError) as refused:
            await there.worker.dispatch(message="x", thread_id=there.things.first, **place_of(stranger))
        assert refused.value.code == ("NOT_FOUND" if stranger.has_a_thread else "FORBIDDEN")
        assert not leaked(str(refused.value), [*secrets(there, before)], "")
        assert await there.kept(settings=True) == before
        assert there.her_turns() == [FIRST, SECOND]


@pytest.mark.parametrize("name", [name for name in OUTSIDERS if STRANGERS[name].has_a_thread])
@each_store
async def test_the_owners_idempotency_key_is_no_repeat_for_a_stranger_nor_at_the_other_door(
    name: str, store: str, tmp_path: Path
) -> None:
    hers = place_of(Stranger(who=OWNER))
    async with world(STRANGERS[name], store, tmp_path) as there:
        dispatch = there.worker.dispatch
        first = await dispatch(message=FIRST, idempotency_key="k", **hers)
        await first.collect()
        again = await dispatch(message=FIRST, idempotency_key="k", **hers)
        assert (again.is_repeat, again.thread_id, again.event_id) == (True, first.thread_id, first.event_id)
        other = await dispatch(message="x", idempotency_key="k", **place_of(STRANGERS[name]))
        assert (other.is_repeat, other.is_new_thread) == (False, True)
        assert await other.collect() == []
        client = await there.come("owner", "flat", connects=True)
        client.post("event.create", said("x", client_event_id="k"))
        assert first.event_id not in await heard(client)
        await client.drop()
