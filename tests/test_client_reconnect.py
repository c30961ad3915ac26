"""The client and a connection that is lost: real sockets, a cable that is cut, servers that are killed. Nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from attrs import define, field
from fakes import serving
from services.cable import Cable, cable
from serving import dooers_run
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from dooers import (
    AuthRequest,
    DisconnectedError,
    ForbiddenError,
    Identity,
    NoAnswerError,
    NotFoundError,
    SettingsField,
    SettingsFieldType,
    SettingsSchema,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.client import (
    Appended,
    Client,
    Connecting,
    Delta,
    Looked,
    Lost,
    Reconnected,
    RunChanged,
    SettingChanged,
    Settings,
    ThreadDeleted,
    Update,
)
from dooers.testing import FakeModel, Gate

WITHIN = 20.0


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    yield
    async with asyncio.timeout(5):
        while left := [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("client-")]:
            assert left
            await asyncio.sleep(0.01)


@define
class House:
    """A worker that streams what its model says, and the cable to it."""

    worker: WorkerServer
    cable: Cable
    script: list[Any]
    asked: list[str] = field(factory=list)

    def client(self, **options: Any) -> Client:
        return Client(self.cable.url, **{"within": WITHIN, "retry_for": WITHIN, **options})


@asynccontextmanager
async def house(*script: Any, **config: Any) -> AsyncIterator[House]:
    worker = WorkerServer(WorkerConfig(database_type="memory", **config))
    async with serving(worker.asgi_app()) as address, cable(address) as line:
        here = House(worker, line, list(script))

        @worker.handler(order="parallel")
        async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
            here.asked.append(incoming.message)
            if incoming.message == "plain":
                yield "plain answer"
                return
            yield send.run_start()
            if here.script:
                yield send.stream(FakeModel(here.script.pop(0)).stream())
            yield f"done: {incoming.message}"

        yield here


def told(updates: list[Update]) -> dict[str, str]:
    """What somebody has who puts the pieces of each message together."""
    texts: dict[str, str] = {}
    for update in updates:
        if isinstance(update, Delta):
            texts[update.event_id] = texts.get(update.event_id, "") + update.text
            assert texts[update.event_id] == update.whole
    return texts


def stored(updates: list[Update]) -> list[str]:
    return [update.event.text for update in updates if isinstance(update, Appended)]


def statuses(updates: list[Update]) -> list[str]:
    return [update.run.status for update in updates if isinstance(update, RunChanged)]


async def until(updates: AsyncIterator[Update], whole: str) -> list[Update]:
    """The updates up to the one with which that much of a message is there."""
    seen: list[Update] = []
    async with asyncio.timeout(WITHIN):
        async for update in updates:
            seen.append(update)
            if isinstance(update, Delta) and update.whole == whole:
                return seen
    raise AssertionError(f"it ended without {whole!r}: {seen}")


async def rest(updates: AsyncIterator[Update]) -> list[Update]:
    async with asyncio.timeout(WITHIN):
        return [update async for update in updates]


# ---------------------------------------------------------------- in the middle of an answer


async def test_a_stream_goes_on_where_it_was_cut() -> None:
    gates = [Gate(), Gate()]
    async with house(["one ", gates[0], "two ", gates[1], "three"]) as here, here.client() as client:
        answer = client.stream("count")
        seen = await until(answer, "one ")
        here.cable.cut()
        gates[0].open()
        seen += await until(answer, "one two ")
        gates[1].open()
        seen += await rest(answer)
    assert list(told(seen).values()) == ["one two three"]
    assert stored(seen) == ["count", "one two three", "done: count"]
    assert statuses(seen) == ["running", "succeeded"]
    assert [type(update) for update in seen if isinstance(update, Lost | Reconnected)] == [Lost, Reconnected]
    assert here.asked == ["count"]


@pytest.mark.parametrize("how", ["well", "badly"])
async def test_what_ended_meanwhile_is_told_as_it_ended(how: str) -> None:
    gate = Gate()
    script = ["one ", gate, "two", *([RuntimeError("not for clients")] if how == "badly" else [])]
    async with house(script) as here, here.client() as client:
        answer = client.stream("count")
        seen = await until(answer, "one ")
        away = here.cable.target
        here.cable.target = None
        here.cable.cut()
        gate.open()
        thread_id = next(update.thread_id for update in seen if isinstance(update, Appended))
        while here.worker.is_answering(thread_id):
            await asyncio.sleep(0.01)
        here.cable.target = away
        seen += await rest(answer)
    assert list(told(seen).values()) == ["one two"]
    if how == "well":
        assert stored(seen) == ["count", "one two", "done: count"]
        assert statuses(seen) == ["running", "succeeded"]
    else:
        assert stored(seen)[:2] == ["count", "one two"]
        assert "Something went wrong" in stored(seen)[2]
        assert statuses(seen) == ["running", "failed"]


async def test_a_turn_that_began_and_ended_meanwhile_is_told_whole() -> None:
    async with house() as here, here.client() as client:
        here.cable.down = False
        saying = asyncio.create_task(client.say("hello"))
        while not here.asked:
            await asyncio.sleep(0.01)
        here.cable.mend()
        reply = await saying
        assert (reply.text, reply.status, here.asked) == ("done: hello", "succeeded", ["hello"])
        again = await client.say("plain")
        assert (again.text, again.status, again.run) == ("plain answer", "succeeded", None)


async def test_a_message_that_never_arrived_is_said_again() -> None:
    async with house() as here, here.client() as client:
        here.cable.up = False
        saying = asyncio.create_task(client.say("hello"))
        await asyncio.sleep(0.05)
        assert here.asked == []
        here.cable.mend()
        reply = await saying
        assert (reply.text, here.asked) == ("done: hello", ["hello"])


@pytest.mark.parametrize("after", [0, 1, 200, 700, 1500])
async def test_a_frame_that_is_cut_in_two_is_neither_lost_nor_twice(after: int) -> None:
    pieces = [f"{uuid4().hex} " for _ in range(50)]  # nothing that could be deflated to less
    async with house(pieces) as here, here.client() as client:
        here.cable.left = after
        saying = asyncio.create_task(rest(client.stream("count")))
        while here.cable.left != 0:
            await asyncio.sleep(0.005)
        here.cable.left = None
        seen = await saying
    whole = "".join(pieces)
    assert set(told(seen).values()) <= {whole}  # who was away all the time gets it whole
    assert stored(seen) == ["count", whole, "done: count"]
    assert statuses(seen)[-1] == "succeeded"
    assert here.asked == ["count"]


async def test_a_connection_that_is_cut_again_and_again_tells_everything_once() -> None:
    gates = [Gate() for _ in range(3)]
    script = [piece for number, gate in enumerate(gates) for piece in (f"{number} ", gate)]
    async with house(script) as here, here.client() as client:
        answer = client.stream("count")
        seen: list[Update] = []
        for number, gate in enumerate(gates):
            seen += await until(answer, "".join(f"{one} " for one in range(number + 1)))
            here.cable.cut()
            gate.open()
        seen += await rest(answer)
    assert list(told(seen).values()) == ["0 1 2 "]
    assert stored(seen) == ["count", "0 1 2 ", "done: count"]
    assert here.asked == ["count"]


async def test_many_at_once_survive_a_cut() -> None:
    async with house() as here, here.client() as client:
        saying = [asyncio.create_task(client.say(f"n{number}")) for number in range(120)]
        while len(here.asked) < 40:
            await asyncio.sleep(0.005)
        here.cable.cut()
        replies = await asyncio.gather(*saying)
    assert [reply.text for reply in replies] == [f"done: n{number}" for number in range(120)]
    assert sorted(here.asked) == sorted(f"n{number}" for number in range(120))


async def test_a_message_for_a_worker_that_closes_is_answered_when_it_is_there_again() -> None:
    gate = Gate()
    async with house(["one ", gate, "two"], shutdown_grace=10) as here, here.client() as client:
        answer = client.stream("count")
        seen = await until(answer, "one ")
        closing = asyncio.create_task(here.worker.close())
        saying = asyncio.create_task(client.say("while it closes"))
        await asyncio.sleep(0.2)
        assert not saying.done()
        gate.open()
        seen += await rest(answer)
        await closing
        assert (await saying).text == "done: while it closes"
    assert stored(seen) == ["count", "one two", "done: count"]
    assert here.asked == ["count", "while it closes"]


@pytest.mark.parametrize("order", ["queue", "reject"])
async def test_a_turn_that_was_cut_before_it_showed_anything_is_waited_for_and_not_run_again(order: Any) -> None:
    gate = Gate()
    async with house() as here:
        asked = 0

        @here.worker.handler("quiet", order=order)
        async def quiet(send: Any) -> AsyncIterator[Any]:
            nonlocal asked
            asked += 1
            await gate._pass()
            yield "after a while"

        async with quietly(here) as url, Client(url, retry_for=WITHIN) as client:
            saying = asyncio.create_task(client.say("hello"))
            await gate.reached()
            client._line.abort()
            await asyncio.sleep(0.7)
            gate.open()
            assert ((await saying).text, asked) == ("after a while", 1)


@asynccontextmanager
async def quietly(here: House) -> AsyncIterator[str]:
    """The worker's handler "quiet", served."""

    async def talk(connection: ServerConnection) -> None:
        await here.worker.handle(_Accepted(connection), "quiet")

    async with serve(talk, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


class _Accepted:
    """A connection of the `websockets` library as a worker takes it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.scope: dict[str, Any] = {"type": "websocket", "headers": []}

    async def receive(self) -> dict[str, Any]:
        try:
            return {"type": "websocket.receive", "text": await self._connection.recv(decode=True)}
        except ConnectionClosed:
            return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            await self._connection.close(message["code"])
        else:
            await self._connection.send(message["text"])


# ---------------------------------------------------------------- what is followed


async def test_a_watched_thread_goes_on_from_the_last_event_that_came() -> None:
    async with house() as here, here.client() as ana, here.client(user_id="bob") as bob:
        thread_id = (await ana.say("first")).thread_id
        watching = bob.watch(thread_id, live=True)
        looked = await anext(watching)
        assert isinstance(looked, Looked)
        assert [event.text for event in looked.events] == ["first", "done: first"]
        away, here.cable.target = here.cable.target, None
        here.cable.cut()
        async with Client(f"ws://{away}/ws") as near:
            await near.say("second", thread_id)
        here.cable.target = away
        seen: list[Update] = []
        async with asyncio.timeout(WITHIN):
            while stored(seen)[-1:] != ["done: second"]:
                seen.append(await anext(watching))
        assert stored(seen) == ["second", "done: second"]
        await watching.aclose()


async def test_who_knows_the_beginning_is_told_what_follows() -> None:
    async with house() as here, here.client() as client:
        first = await client.say("first")
        await client.say("second", first.thread_id)
        looked = await anext(client.watch(first.thread_id, after=first.events[-1].id))
        assert isinstance(looked, Looked)
        assert [event.text for event in looked.events] == ["second", "done: second"]


async def test_a_thread_that_was_deleted_meanwhile_is_told_as_deleted() -> None:
    async with house() as here, here.client() as client:
        thread_id = (await client.say("first")).thread_id
        watching = client.watch(thread_id, live=True)
        await anext(watching)
        away, here.cable.target = here.cable.target, None
        here.cable.cut()
        async with Client(f"ws://{away}/ws") as near:
            await near.delete(thread_id)
        here.cable.target = away
        assert isinstance((await rest(watching))[-1], ThreadDeleted)
        with pytest.raises(NotFoundError):
            await anext(client.watch(thread_id))


async def test_raw_frames_have_what_was_missed_too() -> None:
    async with house() as here, here.client() as client:
        thread_id = (await client.say("first")).thread_id
        frames = client.frames()
        away, here.cable.target = here.cable.target, None
        here.cable.cut()
        async with Client(f"ws://{away}/ws") as near:
            await near.say("second", thread_id)
        here.cable.target = away
        kinds = []
        async with asyncio.timeout(WITHIN):
            async for frame in frames:
                kinds.append(frame["type"])
                if frame["type"] == "thread.snapshot":
                    assert [event["seq"] for event in frame["payload"]["events"]] == [3, 4]
                    break
        assert kinds == ["client.lost", "client.reconnected", "thread.snapshot"]


async def test_settings_and_analytics_are_followed_again() -> None:
    schema = SettingsSchema(
        fields=[SettingsField(id="model", type=SettingsFieldType.TEXT, value="small", label="Model")]
    )
    async with house(settings_schema=schema) as here, here.client() as client:
        watching, listening = client.watch_settings(), client.analytics()
        first = await anext(watching)
        assert isinstance(first, Settings)
        assert first.values == {"model": "small"}
        hearing = asyncio.ensure_future(anext(listening))
        await client.ask("ping")
        here.cable.cut()
        again = await anext(watching)
        assert isinstance(again, Settings)
        await client.patch("model", "large")
        changed = await anext(watching)
        assert isinstance(changed, SettingChanged)
        assert (changed.field_id, changed.value) == ("model", "large")
        assert (await client.settings()).values == {"model": "large"}
        await client.say("hello")
        assert (await hearing).event == "thread.created"
        await watching.aclose()
        await listening.aclose()


async def test_what_is_asked_while_there_is_no_connection_waits_for_one() -> None:
    async with house() as here, here.client() as client:
        thread_id = (await client.say("first")).thread_id
        away, here.cable.target = here.cable.target, None
        here.cable.cut()
        listing = asyncio.create_task(client.threads())
        deleting = asyncio.create_task(client.delete(thread_id))
        await asyncio.sleep(0.05)
        here.cable.target = away
        assert (await listing).total in (0, 1)
        await deleting


async def test_a_delete_whose_answer_was_lost_is_done_and_no_error() -> None:
    async with house() as here, here.client() as client:
        thread_id = (await client.say("first")).thread_id
        here.cable.down = False
        deleting = asyncio.create_task(client.delete(thread_id))
        repository = await here.worker.repository()
        while await repository.get_thread(thread_id) is not None:
            await asyncio.sleep(0.01)
        here.cable.mend()
        await deleting


async def test_what_may_have_been_done_is_not_done_twice() -> None:
    async with house() as here, here.client() as client:
        reply = await client.say("first")
        here.cable.down = False
        liking = asyncio.create_task(client.feedback(reply.events[-1].id, "like"))
        await asyncio.sleep(0.05)
        here.cable.mend()
        with pytest.raises(DisconnectedError, match="nobody knows whether feedback was done"):
            await liking
        assert await client.ask("ping") == {}


async def test_who_speaks_in_ever_more_threads_lets_go_of_the_old_ones() -> None:
    async with house(max_subscriptions=55) as here, here.client() as client:
        for number in range(60):
            await client.say(f"n{number}")
        assert here.worker.stats().subscriptions <= 55


# ---------------------------------------------------------------- who is told, and when it is over


async def test_the_application_is_told_of_each_loss_and_return() -> None:
    heard: list[Connecting] = []
    async with house() as here, here.client(on_connection=heard.append) as client:
        here.cable.cut()
        await client.say("hello")
        assert [type(one) for one in heard] == [Lost, Reconnected]
        assert isinstance(heard[1], Reconnected)
        assert heard[1].attempts >= 1


async def test_it_gives_up_after_its_time_and_says_why_it_was_lost() -> None:
    async with house() as here, here.client(retry_for=0.6) as client:
        watching = client.frames()
        here.cable.target = None
        here.cable.cut()
        with pytest.raises(DisconnectedError, match=r"closed \(1006\), and none that holds could be made within 0.6 s"):
            await client.say("hello")
        with pytest.raises(DisconnectedError, match="1006"):
            await rest_of(watching)
        with pytest.raises(DisconnectedError, match="1006"):
            await client.threads()


async def rest_of(frames: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    async with asyncio.timeout(WITHIN):
        return [frame async for frame in frames]


async def test_connections_that_are_closed_as_soon_as_they_are_made_are_no_connection() -> None:
    async def slam(connection: ServerConnection) -> None:
        frame = json.loads(await connection.recv())
        payload = {"ack_id": frame["id"], "ok": True}
        await connection.send(json.dumps({"id": "x", "type": "ack", "payload": payload}))
        await connection.close(1013, "too slow")

    async with serve(slam, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}/ws", retry_for=1.0) as client:
            async with asyncio.timeout(WITHIN):
                with pytest.raises(DisconnectedError, match="1013"):
                    await client.say("hello")


async def test_a_server_that_takes_connections_and_never_answers_is_given_up() -> None:
    async with house() as here:
        async with here.client(within=0.3, retry_for=0.8, heartbeat=0.2) as client:
            here.cable.mend()
            here.cable.down = False
            async with asyncio.timeout(WITHIN):
                with pytest.raises((DisconnectedError, NoAnswerError)):
                    await client.say("hello")
        here.cable.down = False
        with pytest.raises((DisconnectedError, NoAnswerError)):
            async with here.client(within=0.3):
                pass


async def test_a_peer_that_shows_no_sign_of_life_is_left_for_another_connection() -> None:
    gate = Gate()
    async with house(["one ", gate, "two"]) as here, here.client(heartbeat=0.2) as client:
        answer = client.stream("count")
        seen = await until(answer, "one ")
        here.cable.down = here.cable.up = False  # the cable stands, nothing comes
        made = here.cable.made
        gate.open()
        while here.cable.made == made:
            await asyncio.sleep(0.01)
        here.cable.mend()
        seen += await rest(answer)
    assert list(told(seen).values()) == ["one two"]


async def test_who_only_listens_shows_that_it_lives() -> None:
    heard: list[Connecting] = []
    async with house(idle_timeout=0.6) as here:
        async with here.client(heartbeat=0.15, on_connection=heard.append) as client:
            thread_id = (await client.say("hello")).thread_id
            watching = client.watch(thread_id, live=True)
            await anext(watching)
            await asyncio.sleep(1.5)
            assert heard == []
            await watching.aclose()


async def test_a_worker_that_stops_answering_is_left_for_another_connection() -> None:
    frozen = asyncio.Event()

    async def talk(connection: ServerConnection) -> None:
        async for text in connection:
            frame = json.loads(text)
            if frame["type"] == "connect":
                payload = {"ack_id": frame["id"], "ok": True}
                await connection.send(json.dumps({"id": "x", "type": "ack", "payload": payload}))
            elif frozen.is_set():
                await connection.send(json.dumps({"id": "x", "type": "pong", "payload": {}}))

    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        heard: asyncio.Queue[Connecting] = asyncio.Queue()
        options: dict[str, Any] = {"heartbeat": 0.2, "within": 0.3, "on_connection": heard.put_nowait}
        async with Client(f"ws://127.0.0.1:{port}/ws", **options) as client, asyncio.timeout(WITHIN):
            assert isinstance(await heard.get(), Lost)
            frozen.set()
            assert isinstance(await heard.get(), Reconnected)
            assert await client.ask("ping") == {}


async def test_leaving_while_it_looks_for_a_connection_leaves_nothing() -> None:
    async with house() as here:
        async with here.client() as client:
            here.cable.target = None
            here.cable.cut()
            saying = asyncio.create_task(client.say("hello"))
            await asyncio.sleep(0.05)
        with pytest.raises(DisconnectedError, match="closed"):
            await saying


async def test_cancelling_who_waits_takes_nothing_from_others() -> None:
    async with house() as here, here.client() as client:
        here.cable.down = False
        waiting = [asyncio.create_task(client.threads()) for _ in range(3)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()
        here.cable.down = True
        here.cable.cut()
        assert [page.items for page in await asyncio.gather(*waiting[1:])] == [[], []]


# ---------------------------------------------------------------- who one is


async def test_a_refusal_is_not_tried_again() -> None:
    async with house() as here:
        welcome = True

        @here.worker.authenticate
        async def authenticate(request: AuthRequest) -> Identity:
            if not welcome:
                raise ForbiddenError("not any more")
            return request.claims

        async with here.client() as client:
            await client.say("hello")
            welcome = False
            here.cable.cut()
            with pytest.raises(ForbiddenError, match="not any more"):
                await client.say("hello")
            with pytest.raises(ForbiddenError):
                await client.threads()


@pytest.mark.parametrize("kind", ["text", "function", "async function"])
async def test_a_token_that_expires_is_asked_for_again_where_that_is_possible(kind: str) -> None:
    issued: list[str] = []

    def token() -> str:
        issued.append(f"token-{len(issued)}")
        return issued[-1]

    async def later() -> str:
        return token()

    async with house() as here:

        @here.worker.authenticate
        async def authenticate(request: AuthRequest) -> Identity | None:
            if request.auth_token != issued[-1]:
                return None
            soon = datetime.now(UTC) + timedelta(seconds=0.3 if len(issued) == 1 else 600)
            return Identity(organization_id="o", workspace_id="w", user_id="ana", expires_at=soon)

        proof: Any = {"text": token() if kind == "text" else "", "function": token, "async function": later}[kind]
        async with here.client(auth_token=proof) as client:
            await client.say("hello")
            if kind == "text":
                with pytest.raises(UnauthenticatedError):
                    await rest_of(client.frames())
            else:
                frames = client.frames()
                async with asyncio.timeout(WITHIN):
                    while (await anext(frames))["type"] != "client.reconnected":
                        pass
                assert (await client.say("still me")).text == "done: still me"
                assert issued == ["token-0", "token-1"]


async def test_reconnecting_on_purpose_takes_a_new_token_and_goes_on() -> None:
    tokens = iter(["a", "b"])
    seen: list[str | None] = []
    async with house() as here:

        @here.worker.authenticate
        async def authenticate(request: AuthRequest) -> Identity:
            seen.append(request.auth_token)
            return request.claims

        async with here.client(auth_token=lambda: next(tokens)) as client:
            thread_id = (await client.say("hello")).thread_id
            await client.reconnect()
            assert (await client.say("again", thread_id)).text == "done: again"
    assert seen == ["a", "b"]


# ---------------------------------------------------------------- a server that is killed

KILLED = """
import asyncio
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="worker.db", run_heartbeat=0.3, run_timeout=1.5)
)

async def counting():
    for number in range(1000):
        yield f"{number} "
        await asyncio.sleep(0.05)

@worker.handler
async def agent(incoming, send):
    yield send.run_start()
    if incoming.message == "count":
        yield send.stream(counting())
    yield f"done: {incoming.message}"
"""


async def test_a_server_that_is_killed_and_started_again_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    heard: list[Connecting] = []
    with dooers_run("killed:worker", tmp_path) as first:
        async with cable(first.host) as line:
            async with Client(line.url, retry_for=60, on_connection=heard.append) as client:
                before = await client.say("before")
                answer = client.stream("count", before.thread_id)
                async with asyncio.timeout(WITHIN):
                    async for update in answer:
                        if isinstance(update, Delta) and "3 " in update.whole:
                            break
                os.killpg(first.process.pid, signal.SIGKILL)
                first.process.wait()
                with dooers_run("killed:worker", tmp_path) as second:
                    line.target = second.host
                    seen = await rest(answer)
                    assert statuses(seen) == ["failed"]
                    after = await client.say("after", before.thread_id)
                    assert (after.text, after.status) == ("done: after", "succeeded")
                    texts = [event.text for event in (await client.history(before.thread_id)).items]
                    assert texts[:3] == ["before", "done: before", "count"]
                    assert texts[-2:] == ["after", "done: after"]
    assert [type(one) for one in heard] == [Lost, Reconnected]


async def test_a_server_that_restarts_in_good_order_is_come_back_to(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    with dooers_run("killed:worker", tmp_path) as first:
        async with cable(first.host) as line, Client(line.url, retry_for=60) as client:
            frames = client.frames()
            thread_id = (await client.say("before")).thread_id
            first.stop()
            with dooers_run("killed:worker", tmp_path) as second:
                line.target = second.host
                assert (await client.say("after", thread_id)).text == "done: after"
            lost = [frame async for frame in _some(frames, "client.lost")]
            assert lost[-1]["payload"]["code"] == 1012


async def _some(frames: AsyncIterator[dict[str, Any]], until: str) -> AsyncIterator[dict[str, Any]]:
    async for frame in frames:
        yield frame
        if frame["type"] == until:
            return
