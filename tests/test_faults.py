"""Every call of the store and of the broker fails, hangs or is cancelled once, in turn; and what holds whatever it was.

A scenario is what one client, or code, does. It is run once to count its calls, and then once for each call and each fault. What the
client saw and what the thread held is the table in docs/survival.md; run with DOOERS_TEST_WRITE_TABLES=1 to write it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define, frozen
from cryptography.fernet import Fernet
from dependency_injector import providers
from fakes import chat, serving
from services.faults import FAULTS, SECRET, Call, Fault, Faults, FaultyBroker, FaultyStore, methods

from dooers import WorkerConfig, WorkerServer
from dooers.brokers import Broker
from dooers.brokers.memory import Hub, MemoryBroker
from dooers.clock import SystemClock
from dooers.exceptions import DispatchError, DooersError, HandlerError
from dooers.models import Change, EventQuery, Run, RunQuery, TextPart
from dooers.protocol import write_cursor
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema
from dooers.stores import Store
from dooers.stores.memory import MemoryStore
from dooers.stores.sqlite import SqliteStore
from dooers.testing import WorkerClient
from dooers.vault import Vault

Frame = dict[str, Any]
WITHIN = 30.0
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
KEYS = [Fernet.generate_key().decode() for _ in range(2)]
SCHEMA = SettingsSchema(
    fields=[
        SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small"),
        SettingsField(id="key", type=SettingsFieldType.PASSWORD, label="Key"),
    ]
)
PAGE = Path(__file__).parent.parent / "docs" / "survival.md"
BEFORE: set[Any] = set()
WRITE = bool(os.environ.get("DOOERS_TEST_WRITE_TABLES"))


# ---------------------------------------------------------------- a worker with everybody in it


@define(eq=False)
class House:
    """A worker whose store and broker fail when they are told to; the one who asks, and others who have nothing to do with it."""

    worker: WorkerServer
    # Another process of the same worker, where there is one.
    other: WorkerServer
    faults: Faults
    store: Any
    hub: Hub | None
    thread_id: str = ""
    event_id: str = ""
    run_id: str = ""
    asking: WorkerClient = None  # type: ignore[assignment]
    watching: WorkerClient = None  # type: ignore[assignment]
    seen: list[Frame] = Factory(list)
    watched: list[Frame] = Factory(list)
    notes: dict[str, str] = Factory(dict)
    going: asyncio.Event = Factory(asyncio.Event)

    async def ask(self, what: str, frame_type: str, **payload: Any) -> Frame:
        """Ask for something, and note what came."""
        frame = await self.asking.ask(frame_type, payload)
        self.notes[what] = outcome(frame)
        return frame

    async def post(self, text: str, what: str = "post", **more: Any) -> Frame:
        frame = await post(self.asking, text, **{"thread_id": self.thread_id, **more})
        self.notes[what] = outcome(frame)
        return frame

    async def read(self) -> list[Frame]:
        """What has come to the one who asks."""
        assert (await self.asking.ask("ping"))["type"] == "pong"
        frames, self.asking.unread = self.asking.unread, []
        self.seen += frames
        return frames

    async def over(self) -> None:
        """Return when nothing runs in the thread; note how its runs ended, as the client was told."""
        await self.quiet()
        await self.read()
        if (status := self.told_status()) is not None:
            self.notes["run"] = status

    def told_status(self) -> str | None:
        """How the newest run stands, as the client was told; None where none was told of but the one before."""
        told = {run_id: status for run_id, status in statuses(self.seen).items() if run_id != self.run_id}
        return list(told.values())[-1] if told else None

    async def quiet(self) -> None:
        async with asyncio.timeout(WITHIN):
            for worker in (self.worker, self.other):
                parts = worker._parts
                while parts.runner().running or parts.runner()._admission.opening or parts.relay()._catchup._tasks:
                    await asyncio.sleep(0.001)
        for _ in range(5):
            await asyncio.sleep(0)


async def post(asking: WorkerClient, text: str, thread_id: str | None = None, **more: Any) -> Frame:
    """Post a message; the answer to the frame."""
    event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
    return await asking.ask("event.create", {"event": event, **({"thread_id": thread_id} if thread_id else {}), **more})


def text_of(event: Frame) -> str:
    return "".join(part["text"] for part in event["content"])


def statuses(frames: list[Frame]) -> dict[str, str]:
    """How the runs stand, as somebody was told."""
    told: dict[str, str] = {}
    for frame in frames:
        if frame["type"] == "run.upsert":
            told[frame["payload"]["run"]["id"]] = frame["payload"]["run"]["status"]
    return told


def outcome(frame: Frame) -> str:
    if frame["type"] != "ack":
        return "ok"
    payload = frame["payload"]
    if payload["ok"]:
        return "ok"
    return str(payload["error"]["code"])


def client(worker: WorkerServer, user_id: str = "user-1") -> WorkerClient:
    return WorkerClient(worker, connect={"worker_id": "worker", **WHO, "user_id": user_id})


async def pieces() -> AsyncIterator[str]:
    yield "as it is "
    yield "written"


def handler_of(house: Callable[[], House]) -> Callable[..., Any]:
    async def handler(incoming: Any, send: Any, memory: Any, settings: Any) -> AsyncIterator[Any]:
        said = incoming.message
        if said == "plain":
            yield send.run_start()
            yield send.text("re: plain")
        elif said == "wait":
            yield send.run_start()
            yield send.text("first")
            await memory.get_history()  # which waits until that is stored
            house().going.set()
            await asyncio.Event().wait()
        elif said == "short":
            yield send.run_start()
            yield send.text("one")
            await memory.get_history()
            yield send.text("two")
        else:
            yield send.run_start(agent_id="agent")
            yield send.tool_call("search", {"for": "it"}, id="t1")
            await settings.get("model")
            await memory.get_history()
            yield send.tool_result("search", "found", id="t1")
            yield send.stream(pieces())
            yield send.text("done")
            yield send.update_thread(title="a title")
            await memory.get_history()
            yield send.run_end()

    return handler


@asynccontextmanager
async def house(home: Path, empty: Path | None, *, processes: int = 1, **changes: Any) -> AsyncIterator[House]:
    """A worker with a thread in which a turn has been, a client of it, one who watches that thread, and faults not yet planned."""
    home.mkdir()
    BEFORE.update(asyncio.all_tasks())
    config = WorkerConfig(
        **{
            "database_type": "sqlite",
            "database_name": str(home / "worker.db"),
            "settings_schema": SCHEMA,
            "settings_encryption_key": KEYS,
            "run_heartbeat": 100.0,
            "run_timeout": 1000.0,
            "teardown_timeout": 0.1,
            "shutdown_grace": 0,
            **changes,
        }
    )
    if empty is not None:
        shutil.copy(empty, home / "worker.db")
    hub = Hub() if processes > 1 else None
    faults, here = Faults(), list[House]()
    workers: list[WorkerServer] = []
    store: Any = SqliteStore(config) if config.database_type == "sqlite" else MemoryStore(config)
    for _ in range(processes):
        worker = WorkerServer(config)
        worker.handler(handler_of(lambda: here[0]))
        first = not workers
        real: Any = store if first or config.database_type == "memory" else SqliteStore(config)
        broker = MemoryBroker(hub=hub)
        worker._parts.store.override(providers.Object(FaultyStore(real, faults) if first else real))
        worker._parts.broker.override(providers.Object(FaultyBroker(broker, faults) if first else broker))
        workers.append(worker)
    here.append(House(workers[0], workers[-1], faults, store, hub))
    house = here[0]
    for worker in workers:
        await worker.ensure_initialized()
    old = Vault([KEYS[1]]).seal("secret", "worker", "key")
    await store.set_settings("worker", {"key": old}, datetime.now(UTC))
    async with client(workers[0]) as house.asking, client(workers[-1], "user-2") as house.watching:
        reply = await house.asking.say("plain")
        house.thread_id, house.event_id = reply.thread_id, reply.event_id
        house.run_id = next(frame["payload"]["run"]["id"] for frame in reply.frames if frame["type"] == "run.upsert")
        await house.asking.ask("thread.subscribe", {"thread_id": house.thread_id})
        await house.watching.ask("thread.subscribe", {"thread_id": house.thread_id})
        yield house
    await nothing_is_left(house)
    async with asyncio.timeout(WITHIN):
        for worker in workers:
            await worker.close()


# ---------------------------------------------------------------- what holds after any fault


async def nothing_is_left(house: House) -> None:
    """Everybody has gone and nothing runs: no task, place, ticket, subscription, lock is left."""
    await house.quiet()
    for worker in {house.worker, house.other}:
        parts = worker._parts
        runner, broadcast, relay = parts.runner(), parts.broadcast(), parts.relay()
        left = {
            "turns": len(runner._turns),
            "waiting turns": len(runner._unrun),
            "openings": len(runner._admission.opening),
            "last words": len(runner._deaf.last_words),
            "unclosed": len(runner._stage._unclosed),
            "lanes": len(parts.lanes()),
            "subscriptions": len(broadcast._subscribed) + len(broadcast._threads) + len(broadcast._topics),
            "places": len(broadcast._places),
            "readings": len(relay._catchup),
            "growing": len(relay._elsewhere._growing),
            "sessions": len(worker._sessions),
            "turns of identities": sum(quota.turns for quota in parts.quotas()._known.values()),
        }
        assert not any(left.values()), left
    assert house.hub is None or len(house.hub.keys) == 0, "a lock is left"
    names = Counter(
        task.get_name() for task in asyncio.all_tasks() - BEFORE if task.get_name().startswith(("dooers", "faulty"))
    )
    for usual in ("dooers-worker", "dooers-pulse", "dooers-sqlite-flush"):
        names.pop(usual, None)
    assert not names, names


async def others_are_served(house: House) -> None:
    """Somebody else, in another thread, is answered as ever."""
    async with client(house.worker, "user-3") as third:
        reply = await third.say("plain")
        assert reply.text == "re: plain"
        assert (await third.ask("thread.list"))["type"] == "thread.list.result"
        assert (await third.ask("thread.subscribe", {"thread_id": reply.thread_id}))["type"] == "thread.snapshot"


async def stored(house: House) -> tuple[list[Any], list[Any]]:
    """What the thread holds: its events, and its runs in the order in which they began."""
    events = await house.store.events(EventQuery(thread_id=house.thread_id, limit=None))
    runs = await house.store.runs(RunQuery(equal={"thread_id": house.thread_id}, limit=100, oldest_first=True))
    return events, runs


def shown(frames: list[Frame]) -> dict[str, Frame]:
    """The whole events that were told, by id."""
    return {
        event["id"]: event
        for frame in frames
        if frame["type"] in ("event.append", "thread.snapshot")
        for event in frame["payload"]["events"]
        if not event.get("streaming")
    }


async def check(house: House) -> str:
    """What holds in the thread once the store is back; what is in it, in words."""
    await house.quiet()
    assert house.asking._task is not None
    assert not house.asking._task.done(), "the socket is closed"
    before = house.told_status()
    await house.worker._parts.runner().close_again()  # as the next heartbeat does
    await house.quiet()
    await house.read()
    if (status := house.told_status()) != before:
        house.notes["run"] = f"{before}, and {status} with the next heartbeat"
    events, runs = await stored(house)
    assert [run.status for run in runs if run.status == "running"] == []
    holds = ", ".join(["+".join(kinds(events)), *(run.status for run in runs[1:])])
    thread = await house.store.thread(house.thread_id)
    assert thread is not None or not (events or runs)
    answer = await post(house.asking, "plain", None if thread is None else house.thread_id)
    assert answer["payload"]["ok"], answer
    await house.quiet()
    assert "re: plain" in [text_of(event) for event in shown(await house.read()).values()]
    if thread is None:
        holds = "gone"
    await house.quiet()
    assert (await house.watching.ask("ping"))["type"] == "pong"
    house.watched += house.watching.unread
    house.watching.unread = []
    events, runs = await stored(house)
    if thread is not None:
        kept_runs = {run.id: run.status for run in runs}
        # Of a broker that drops what it is told and does not say so, others hear no end of a run before they come back.
        dropped = house.faults.last is not None and house.faults.last.method == "tell"
        for frames in (house.seen, *([] if dropped else [house.watched])):
            told_runs = {run_id: status for run_id, status in statuses(frames).items() if run_id in kept_runs}
            assert told_runs.items() <= kept_runs.items(), "a run is not as somebody was told"
        gone = 1 if "remove event" in house.notes else 0
        seqs = [event.seq for event in events]
        assert len(seqs) >= seqs[-1] - gone, seqs
        assert seqs == sorted(set(seqs))
        for who, frames in (("asked", house.seen), ("watches", house.watched)):
            told, kept = shown(frames), {event.id: event for event in events}
            told = {i: event for i, event in told.items() if event["thread_id"] == house.thread_id}
            if not gone:
                assert told.keys() <= kept.keys(), f"{who}: was shown what is not stored"
            for event_id, event in kept.items():
                if event_id in told:
                    text = "".join(part.text for part in event.content if isinstance(part, TextPart))
                    assert text == text_of(told[event_id])
                else:
                    # What came before they did they had with the snapshot.
                    assert event.seq <= 2, f"{who}: was not shown event {event.seq}, {event.type}"
    for frame in house.seen + house.watched:
        assert SECRET not in str(frame), frame
        assert "Traceback" not in str(frame), frame
    return holds


def kinds(events: list[Any]) -> Iterator[str]:
    for event in events[2:]:  # those before are of the turn that was there
        if event.notice:
            yield "notice"
        elif event.type == "message":
            yield "message" if event.actor == "user" else "part of the answer" if event.data else "answer"
        else:
            yield event.type.removeprefix("tool.")


# ---------------------------------------------------------------- the scenarios


async def a_turn(house: House) -> None:
    await house.post("all of it")
    await house.over()


async def a_message_sent_twice(house: House) -> None:
    await house.post("short", client_event_id="c1")
    await house.over()
    await house.post("short", "again", client_event_id="c1")
    await house.over()


async def a_new_thread(house: House) -> None:
    await house.post("plain", thread_id=None, client_event_id="c1")
    await house.over()
    again = await house.post("plain", "again", thread_id=None, client_event_id="c1")
    await house.over()
    if again["payload"]["ok"]:  # the first or the second: one of them is answered, and whoever asked sees it
        said = {text_of(event) for event in shown(house.seen).values()}
        assert "re: plain" in said or house.notes["run"] == "failed"


async def a_stop(house: House) -> None:
    await house.post("wait")
    while not house.going.is_set() and house.worker.is_answering(house.thread_id):
        await asyncio.sleep(0.001)
    running = [frame["payload"]["run"]["id"] for frame in await house.read() if frame["type"] == "run.upsert"]
    named = {"run_id": running[-1]} if running else {"thread_id": house.thread_id}
    await house.ask("stop", "run.cancel", **named)
    if house.notes["stop"] != "ok":
        await house.ask("stop again", "run.cancel", thread_id=house.thread_id)
    await house.over()


async def reading(house: House) -> None:
    await house.ask("list", "thread.list")
    # A later page: of the first, if it is the only one, the total needs no counting.
    await house.ask("page", "thread.list", cursor=write_cursor(datetime.now(UTC), house.thread_id))
    await house.ask("search", "thread.list", query="t")
    await house.ask("rename", "thread.update", thread_id=house.thread_id, title="of a person")
    await house.ask("events", "event.list", thread_id=house.thread_id, before_event_id=house.event_id)
    await house.ask("subscribe", "thread.subscribe", thread_id=house.thread_id)
    await house.ask("resume", "thread.subscribe", thread_id=house.thread_id, after_event_id=house.event_id)


async def a_deletion(house: House) -> None:
    await house.ask("delete", "thread.delete", thread_id=house.thread_id)
    await house.ask("delete again", "thread.delete", thread_id=house.thread_id)


async def the_settings(house: House) -> None:
    await house.ask("subscribe", "settings.subscribe", worker_id="worker")
    await house.ask("patch", "settings.patch", field_id="model", value="large")
    told = [frame["type"] for frame in await house.read()]
    house.notes["told"] = "yes" if "settings.patch" in told else "no"


async def opinions(house: House) -> None:
    await house.ask("analytics", "analytics.subscribe", worker_id="worker")
    for kind, target in (("thread", house.thread_id), ("run", house.run_id), ("event", house.event_id)):
        await house.ask(kind, "feedback", target_type=kind, target_id=target, feedback="like")
    tracker = await code(house, "analytics of a thread", house.worker.analytics(thread_id=house.thread_id))
    if tracker is not None:
        await tracker.track("seen")


async def code(house: House, what: str, work: Awaitable[Any]) -> Any:
    """What code of the same process asks for; notes what it got."""
    try:
        answer = await work
    except (DispatchError, HandlerError) as error:
        house.notes[what] = type(error).__name__
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        house.notes[what] = "raises that"
    else:
        house.notes[what] = "ok"
        return answer
    return None


async def dispatched(house: House) -> None:
    for what in ("dispatch", "again"):
        stream = await code(house, what, house.worker.dispatch(**WHO, **SHORT, thread_id=house.thread_id))
        if stream is not None:
            await code(house, f"{what}: iterate", iterate(stream))
    await house.over()


async def iterate(stream: Any) -> list[Any]:
    return [event async for event in stream]


async def collected(house: House) -> None:
    stream = await code(house, "dispatch", house.worker.dispatch(**WHO, message="short", thread_id=house.thread_id))
    if stream is not None:
        await code(house, "collect", stream.collect())
    await house.over()


async def detached(house: House) -> None:
    stream = await code(house, "dispatch", house.worker.dispatch(**WHO, message="short", thread_id=house.thread_id))
    if stream is not None:
        stream.detach()
    await house.over()


async def code_at_work(house: House) -> None:
    repository = await house.worker.repository()
    await code(house, "rename", repository.update_thread(house.thread_id, "another title"))
    await code(house, "append", repository.create_event(house.thread_id, content="from code"))
    await code(house, "threads", repository.list_threads())
    await code(house, "event", repository.get_event(house.event_id))
    await code(house, "runs", repository.list_runs({"thread_id": house.thread_id}))
    await code(house, "run", repository.get_run(house.run_id))
    await code(house, "settings", repository.update_settings("worker", {"model": "large"}))
    await code(house, "remove event", repository.remove_event(house.event_id))


async def a_rotation(house: House) -> None:
    await code(house, "rotate", house.worker.rotate_settings())
    await code(house, "again", house.worker.rotate_settings())
    await code(house, "ready", house.worker.ready())
    settings = await house.worker.settings("worker")
    await code(house, "password", settings.get("key"))


async def away_and_back(house: House) -> None:
    """The process of who asks hears nothing for a while, and reads what it has missed."""
    await house.asking.ask("settings.subscribe", {"worker_id": "worker"})
    broker: MemoryBroker = house.worker._parts.broker().real  # type: ignore[attr-defined]
    broker.cut()
    await post(house.watching, "short", house.thread_id)
    await house.watching.ask("settings.patch", {"field_id": "model", "value": "large"})
    broker.mend()
    await house.over()


SHORT: dict[str, Any] = {"message": "short", "idempotency_key": "k1"}


@frozen
class Scenario:
    """What one does, and how many processes there are."""

    what: str
    play: Callable[[House], Awaitable[None]]
    processes: int = 1
    # Of which seam: that of the store has its turn elsewhere.
    seam: type = object


SCENARIOS = {
    one.what: one
    for one in (
        Scenario("A message and its turn", a_turn),
        Scenario("A message sent again with its id", a_message_sent_twice),
        Scenario("A message that opens a thread", a_new_thread),
        Scenario("A turn that is stopped", a_stop),
        Scenario("Reading", reading),
        Scenario("A thread is deleted", a_deletion),
        Scenario("Settings", the_settings),
        Scenario("Feedback and analytics", opinions),
        Scenario("dispatch, iterated and repeated", dispatched),
        Scenario("dispatch, collected", collected),
        Scenario("dispatch, detached", detached),
        Scenario("The repository", code_at_work),
        Scenario("Keys are rotated", a_rotation),
        Scenario("A turn with another process", a_turn, processes=2, seam=Broker),
        Scenario("A process that comes back", away_and_back, processes=2),
    )
}


# ---------------------------------------------------------------- each call, each fault


@define
class Trial:
    """What became of a scenario, with one fault in it or without any."""

    notes: dict[str, str]
    holds: str
    calls: dict[Call, str]


async def trial(home: Path, empty: Path | None, scenario: Scenario, call: Call | None, fault: Fault | None) -> Trial:
    changes = {} if empty is not None else {"database_type": "memory"}
    async with house(home, empty, processes=scenario.processes, **changes) as here:
        here.faults.begin(call, fault)
        playing = asyncio.ensure_future(scenario.play(here))
        struck = asyncio.ensure_future(here.faults.struck.wait())
        async with asyncio.timeout(WITHIN):
            await asyncio.wait([playing, struck], return_when=asyncio.FIRST_COMPLETED)
            assert call is None or here.faults.struck.is_set(), "this time the call was not made"
            struck.cancel()
            if fault == "hangs":
                await others_are_served(here)
                here.faults.released.set()
            await playing
        calls = here.faults.said
        here.faults.mend()
        holds = await check(here)
        return Trial(here.notes, holds, calls)


def faults_of(call: Call) -> tuple[Fault, ...]:
    # What returns at once and gives nothing cannot hang, nor be cancelled.
    return ("refused", "raw", "lost") if call.method in ("tell", "unlock") else FAULTS


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is ready."""
    path = tmp_path_factory.mktemp("empty") / "worker.db"

    async def make() -> None:
        store = SqliteStore(WorkerConfig(database_type="sqlite", database_name=str(path)))
        await store.open()
        await store.close()

    asyncio.run(make())
    return path


@pytest.mark.parametrize(
    ("name", "database"),
    [*((name, "sqlite") for name in SCENARIOS), ("A message and its turn", "memory"), ("Settings", "memory")],
)
async def test_every_call_fails_once_in_turn(
    name: str, database: str, tmp_path: Path, empty: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    scenario, empty = SCENARIOS[name], empty if database == "sqlite" else None
    usual = await trial(tmp_path / "usual", empty, scenario, None, None)
    outcomes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for number, (call, what) in enumerate(usual.calls.items()):
        if scenario.seam is Broker and call.method not in methods(Broker):
            continue
        for fault in faults_of(call):
            caplog.clear()
            try:
                one = await trial(tmp_path / f"{number}-{fault}", empty, scenario, call, fault)
                check_log(caplog.records, failed=bool({"SERVER_ERROR", "failed"} & set(one.notes.values())))
            except Exception as error:
                error.add_note(f"{name}: {call} ({what}), {fault}")
                raise
            label = f"`{call.method}` {call.number}" + (f" ({what})" if what else "")
            outcomes.setdefault(words(one, usual), {}).setdefault(label, []).append(fault)
    check_table(name, outcomes)


def check_log(records: list[logging.LogRecord], *, failed: bool) -> None:
    """What went wrong is in the log, and is there a few times at most."""
    assert not [record.getMessage() for record in records if record.name == "asyncio"]
    told = [record for record in records if record.name == "dooers" and record.levelno >= logging.WARNING]
    told = [record for record in told if "no @worker.authenticate" not in record.message]
    assert told or not failed, "nothing of it in the log"
    assert len(told) <= 10
    assert sum(record.exc_info is not None for record in told) <= 2


# ---------------------------------------------------------------- the heartbeat


PULSE: dict[str, str] = {
    "beat": "the heartbeat",
    "ping": "the question whether the database is there, where nothing runs",
    "silent": "which runs are dead",
    "thread": "their threads",
    "apply": "their end, and the word of it",
}


async def a_dead_run(house: House) -> Run:
    """A run in the thread whose process died long ago."""
    thread = await house.store.thread(house.thread_id)
    begun = datetime.now(UTC) - timedelta(hours=1)
    run = Run(id=SystemClock().new_id(), thread_id=thread.id, started_at=begun, process_id="dead")
    await house.store.apply(Change(thread=thread, runs=(run,)))
    return run


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", PULSE)
async def test_a_heartbeat_that_fails_stops_nobody_and_the_dead_are_buried(
    method: str, fault: Fault, tmp_path: Path, empty: Path
) -> None:
    """Once, and by then a turn has waited no longer than it must: a call that hangs is given up after `run_timeout`."""
    async with house(tmp_path / "home", empty, run_heartbeat=0.1, run_timeout=0.5) as here:
        if method == "beat":
            await post(here.asking, "wait", here.thread_id)
            await here.going.wait()
        if method == "ping":  # only where nothing was heard of the database for a while
            here.worker._parts.pulse()._seen = -inf
        here.faults.begin(Call(method, 1), fault)
        dead = await a_dead_run(here)
        async with asyncio.timeout(WITHIN):
            await here.faults.struck.wait()
            # Whoever works meanwhile is not kept: not for ever, where others must be able to know that this process lives.
            await others_are_served(here)
            if method == "apply":  # what comes after it in the thread waits for it, and nothing else does
                here.faults.released.set()
            while statuses(here.watched).get(dead.id) != "failed":
                here.watched.append(await here.watching.receive())
        if method == "beat":
            await here.ask("stop", "run.cancel", thread_id=here.thread_id)
        here.faults.mend()
        await here.over()
        events, _ = await stored(here)
        assert [event.run_id for event in events if event.notice] == [dead.id]
        await check(here)


# ---------------------------------------------------------------- over a real socket


async def test_over_a_real_socket_a_call_that_hangs_keeps_its_own_session_and_nobody_else(
    tmp_path: Path, empty: Path
) -> None:
    async with (
        house(tmp_path / "home", empty) as here,
        serving(here.worker.asgi_app()) as address,
        chat(f"ws://{address}/ws", worker_id="worker", **{**WHO, "user_id": "user-4"}) as one,
        chat(f"ws://{address}/ws", worker_id="worker", **{**WHO, "user_id": "user-5"}) as other,
    ):
        here.faults.begin(Call("threads", 1), "hangs")
        await one.send("thread.list")
        await one.send("ping")
        await here.faults.struck.wait()
        frames = await other.say("plain")
        assert frames
        here.faults.released.set()
        await one.until("thread.list.result")
        await one.until("pong")  # in the order in which they were asked
        here.faults.begin(Call("threads", 1), "raw")
        await one.send("thread.list")
        answer = await one.until("ack", ack_id="thread.list")
        assert answer["error"]["code"] == "SERVER_ERROR"
        assert SECRET not in str(answer)
        await one.send("ping")
        await one.until("pong")
        here.faults.mend()


# ---------------------------------------------------------------- the worker opens and closes


@pytest.mark.parametrize("fault", ["refused", "raw", "hangs", "cancelled"])
@pytest.mark.parametrize("who", ["store", "broker"])
async def test_a_worker_that_cannot_be_opened_can_be_later(who: str, fault: Fault, tmp_path: Path, empty: Path) -> None:
    async with house(tmp_path / "home", empty, processes=2) as here:
        worker = here.worker
        await worker.close()
        worker._parts.broker.override(providers.Object(FaultyBroker(MemoryBroker(hub=here.hub), here.faults)))
        here.faults.begin(Call("open", 1 if who == "store" else 2), fault)
        opening = asyncio.ensure_future(worker.ensure_initialized())
        async with asyncio.timeout(WITHIN):
            await here.faults.struck.wait()
            if fault == "hangs":
                here.faults.released.set()
                await opening
            else:
                with pytest.raises((DooersError, RuntimeError)):
                    await opening
                await worker.ensure_initialized()
        here.faults.mend()
        async with client(worker) as here.asking:
            assert (await post(here.asking, "plain", here.thread_id))["payload"]["ok"]
            await here.quiet()


def test_every_method_of_the_seams_is_reached(tmp_path: Path, empty: Path) -> None:
    """A method that is new is to be in a scenario, or here with where it is failed instead."""
    elsewhere = {
        "open": test_a_worker_that_cannot_be_opened_can_be_later,
        "close": "tests of shutting down",
        "migrate": "the same call that `open` makes; no worker is open",
        "schema": "the command line only",
        **dict.fromkeys(PULSE, test_a_heartbeat_that_fails_stops_nobody_and_the_dead_are_buried),
    }

    async def reached() -> set[str]:
        found = set()
        for number, scenario in enumerate(SCENARIOS.values()):
            usual = await trial(tmp_path / str(number), empty, scenario, None, None)
            found |= {call.method for call in usual.calls}
        return found

    missing = (methods(Store).keys() | methods(Broker).keys()) - elsewhere.keys() - asyncio.run(reached())
    assert not missing


async def test_the_seams_are_all_that_the_engine_calls(tmp_path: Path) -> None:
    """What the wrappers let through is what the Protocols declare, so nothing is called that is not failed here."""
    store = FaultyStore(MemoryStore(), Faults())
    with pytest.raises(AttributeError, match="Store has no"):
        store.anything  # noqa: B018


# ---------------------------------------------------------------- the table


USUAL = "as ever"
BEGIN, END = "<!-- tests/test_faults.py writes this: begin -->", "<!-- end -->"


def words(one: Trial, usual: Trial) -> tuple[str, str]:
    """What was otherwise than usual: for who asked, and in the thread."""
    seen = [f"{what}: {got}" for what, got in one.notes.items() if usual.notes.get(what) != got]
    return "; ".join(seen) or USUAL, USUAL if one.holds == usual.holds else one.holds or "nothing new"


def rows(outcomes: dict[tuple[str, str], dict[str, list[str]]]) -> Iterator[str]:
    """The rows of a table: calls and faults that came to the same share one."""
    yield "| call | fault | who asked sees | the thread holds |"
    yield "|---|---|---|---|"
    for (seen, holds), calls in outcomes.items():
        together: dict[str, list[str]] = {}
        for label, faults in calls.items():
            together.setdefault(", ".join(faults), []).append(label)
        for kind, labels in together.items():
            yield f"| {', '.join(labels)} | {kind} | {seen} | {holds} |"


def check_table(name: str, outcomes: dict[tuple[str, str], dict[str, list[str]]]) -> None:
    """The page says what was seen; with DOOERS_TEST_WRITE_TABLES it is made to."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    between, after = rest.split(END, 1)
    tables = dict(re.findall(r"\*\*(.+?)\*\*\n\n((?:.+\n)+)", between))
    unusual = {key: calls for key, calls in outcomes.items() if key != (USUAL, USUAL)}
    table = "".join(f"{row}\n" for row in rows(unusual)) if unusual else "Every call, every fault: as ever.\n"
    if WRITE:
        tables[name] = table
        written = "\n".join(f"**{one}**\n\n{tables[one]}" for one in SCENARIOS if one in tables)
        PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n{END}{after}")
    assert tables.get(name) == table, "run it with DOOERS_TEST_WRITE_TABLES=1, and look at what has changed"
