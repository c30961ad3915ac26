"""The client against real sockets: a worker behind uvicorn, and where a worker cannot be made to do it, a server made of tape."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvicorn
from snippets import blocks, run
from websockets.asyncio.server import ServerConnection, serve

from dooers import (
    AuthRequest,
    DooersError,
    Identity,
    InvalidValueError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.client import Client, Looked, Update
from dooers.exceptions import DisconnectedError, NoAnswerError

WITHIN = 20.0


@contextmanager
def serving(worker: WorkerServer) -> Iterator[str]:
    """A worker behind uvicorn in a thread; the address of its WebSocket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(worker.asgi_app(), log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
        finally:
            server.should_exit = True
            thread.join(WITHIN)
            assert not thread.is_alive()


async def growing(end: str) -> AsyncIterator[str]:
    for number in range(5):
        yield f"{number} "
        await asyncio.sleep(0.06)
    if end == "forever":
        await asyncio.sleep(WITHIN)
    if end == "badly":
        raise RuntimeError("not for clients")


def make_worker(**config: Any) -> WorkerServer:
    """A worker whose handler does what the message says."""
    worker = WorkerServer(WorkerConfig(database_type="memory", **config))

    @worker.handler
    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        word, _, rest = incoming.message.partition(" ")
        if word == "silent":
            await asyncio.sleep(1)
            return
        if word == "plain":
            yield f"plain {rest}"
            return
        if word == "quietly":
            yield send.stream(growing(rest))
            return
        if word == "wait":
            await asyncio.sleep(WITHIN)
        yield send.run_start()
        if word == "stream":
            yield send.stream(growing(rest))
        if word == "slow":
            await asyncio.sleep(0.5)
        if word == "fail":
            raise RuntimeError("not for clients")
        if word == "tools":
            yield send.tool_call("look", {}, id="1")
            yield send.tool_result("look", 1, id="1")
        if word == "big":
            yield "x" * 2_000_000
        yield f"{word} done"
        if word == "twice":
            yield send.run_start()
            await asyncio.sleep(0.1)
            yield "once more"
        yield send.run_end()

    return worker


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_worker()) as address:
        yield address


@asynccontextmanager
async def tape(after_connect: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that acknowledges `connect` and then does what it is told."""

    async def talk(connection: ServerConnection) -> None:
        frame = json.loads(await connection.recv())
        await connection.send(_frame("ack", ack_id=frame["id"], ok=True))
        await after_connect(connection)

    async with serve(talk, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


def _frame(kind: str, **payload: Any) -> str:
    return json.dumps({"id": "x", "type": kind, "payload": payload})


def told(frames: list[dict[str, Any]]) -> list[str]:
    """The frames in short: runs with their status, events with their actor and text."""
    lines = []
    for frame in frames:
        payload = frame["payload"]
        match frame["type"]:
            case "run.upsert":
                lines.append(f"run {payload['run']['status']}")
            case "event.append":
                for event in payload["events"]:
                    text = event["content"][0]["text"] if event["content"] else event["type"]
                    lines.append(f"{event['actor']}: {text[:40]}")
            case kind:
                lines.append(kind)
    return lines


async def turn(client: Client, text: str, thread_id: str | None = None) -> list[dict[str, Any]]:
    async with asyncio.timeout(WITHIN):
        return [frame async for frame in client.send(text, thread_id)]


def thread_of(frames: list[dict[str, Any]]) -> str:
    return next(str(frame["payload"]["thread_id"]) for frame in frames if frame["type"] == "event.append")


# ---------------------------------------------------------------- turns


async def test_send_gives_the_frames_of_the_turn_and_ends_with_its_run(url: str) -> None:
    async with Client(url) as client:
        first = await turn(client, "tools please")
        assert told(first) == [
            "thread.upsert",
            "user: tools please",
            "run running",
            "assistant: tool.call",
            "assistant: tool.result",
            "assistant: tools done",
            "run succeeded",
        ]
        second = await turn(client, "more", thread_of(first))
        assert told(second) == ["user: more", "run running", "assistant: more done", "run succeeded"]
        assert thread_of(second) == thread_of(first)


async def test_a_handler_without_a_run_is_over_after_a_silence(url: str) -> None:
    async with Client(url, quiet=0.2) as client:
        assert told(await turn(client, "plain text")) == ["thread.upsert", "user: plain text", "assistant: plain text"]


async def test_a_run_that_begins_where_another_ends_belongs_to_the_turn(url: str) -> None:
    async with Client(url) as client:
        frames = told(await turn(client, "twice"))
        assert frames[2:] == [
            "run running",
            "assistant: twice done",
            "run succeeded",
            "run running",
            "assistant: once more",
            "run succeeded",
        ]


async def test_a_failed_turn_ends_with_its_notice(url: str) -> None:
    async with Client(url) as client:
        frames = told(await turn(client, "fail"))
        assert frames[-2] == "run failed"
        assert frames[-1].startswith("system: Something went wrong")


async def test_the_run_of_an_earlier_turn_does_not_end_this_one(url: str) -> None:
    async with Client(url, user_id="ana") as ana, Client(url, user_id="bob") as bob:
        thread_id = thread_of(await turn(ana, "hi"))
        slow = asyncio.create_task(turn(ana, "slow one", thread_id))
        await asyncio.sleep(0.2)
        frames = told(await turn(bob, "mine", thread_id))
        assert frames[-2:] == ["assistant: mine done", "run succeeded"]
        assert "slow done" in " ".join(told(await slow))


async def test_a_turn_that_shows_no_sign_is_no_answer(url: str) -> None:
    async with Client(url, within=0.3) as client:
        with pytest.raises(NoAnswerError, match=r"said nothing for 0\.3 s"):
            await turn(client, "silent")


async def test_frames_larger_than_a_megabyte_arrive(url: str) -> None:
    async with Client(url) as client:
        frames = await turn(client, "big")
        sizes = [len(event["content"][0]["text"]) for f in frames[3:4] for event in f["payload"]["events"]]
        assert sizes == [2_000_000]


# ---------------------------------------------------------------- text that is being written


def pieces(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["payload"]["text"] for frame in frames if frame["type"] == "event.delta"]


def messages(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The assistant's messages, also those of a snapshot."""
    events = [event for frame in frames for event in frame["payload"].get("events", ())]
    return [event for event in events if event["actor"] == "assistant"]


async def until_written(frames: AsyncIterator[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The frames up to the one with which this much of the message is there."""
    seen = []
    async with asyncio.timeout(WITHIN):
        async for frame in frames:
            seen.append(frame)
            if text in "".join(pieces(seen)):
                return seen
    raise AssertionError(f"it ended without {text!r}")


async def test_a_stream_comes_in_pieces_and_whole_at_the_end(url: str) -> None:
    async with Client(url, deltas=True) as client:
        frames = await turn(client, "stream please")
        assert len(pieces(frames)) > 1
        [whole, done] = messages(frames)
        assert "".join(pieces(frames)) == whole["content"][0]["text"] == "0 1 2 3 4 "
        assert {frame["payload"]["event_id"] for frame in frames if frame["type"] == "event.delta"} == {whole["id"]}
        assert (whole["streaming"], whole["finalized"], "data" in whole) == (False, True, False)
        assert done["content"][0]["text"] == "stream done"
        assert told(frames)[-1] == "run succeeded"


async def test_without_deltas_a_stream_comes_once(url: str) -> None:
    async with Client(url, deltas=False) as client:
        assert told(await turn(client, "stream please"))[3:] == [
            "assistant: 0 1 2 3 4 ",
            "assistant: stream done",
            "run succeeded",
        ]


async def test_a_growing_message_is_no_silence(url: str) -> None:
    async with Client(url, deltas=True, quiet=0.02) as client:
        frames = await turn(client, "quietly")
        assert told(frames)[-1] == "assistant: 0 1 2 3 4 "


async def test_a_stream_that_fails_keeps_what_was_written(url: str) -> None:
    async with Client(url, deltas=True) as client:
        frames = await turn(client, "stream badly")
        [part] = messages(frames)
        assert (part["content"][0]["text"], part["data"]) == ("0 1 2 3 4 ", {"incomplete": True})
        assert told(frames)[-2] == "run failed"


async def test_who_looks_into_a_thread_sees_what_is_being_written_and_then_the_rest(url: str) -> None:
    async with Client(url, deltas=True) as ana, Client(url, deltas=True) as bob:
        answer = ana.send("stream please")
        thread_id = thread_of(await until_written(answer, "1"))
        async with asyncio.timeout(WITHIN):
            frames = await raw(bob.watch(thread_id))
        snapshot = frames[0]
        assert snapshot["type"] == "thread.snapshot"
        assert [run["status"] for run in snapshot["payload"]["runs"]] == ["running"]
        [part, whole, _] = messages(frames)
        assert part["streaming"]
        assert part["content"][0]["text"].startswith("0 1")
        assert (whole["id"], whole["streaming"], whole["content"][0]["text"]) == (part["id"], False, "0 1 2 3 4 ")
        assert told(frames)[-1] == "run succeeded"
        await until_end(answer)

        async with asyncio.timeout(WITHIN):
            assert [type(update) async for update in bob.watch(thread_id)] == [Looked]


async def raw(updates: AsyncIterator[Update]) -> list[dict[str, Any]]:
    """The frames that the updates came in."""
    frames: list[dict[str, Any]] = []
    async for update in updates:
        if update.frame not in frames:
            frames.append(update.frame)
    return frames


async def until_end(frames: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    async with asyncio.timeout(WITHIN):
        return [frame async for frame in frames]


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("by", ["thread", "run"])
async def test_cancel_stops_the_answer_and_keeps_what_was_written(url: str, by: str) -> None:
    async with Client(url, deltas=True) as client:
        answer = client.send("stream forever")
        seen = await until_written(answer, "4")
        thread_id = thread_of(seen)
        run_id = next(frame["payload"]["run"]["id"] for frame in seen if frame["type"] == "run.upsert")
        await client.cancel(**({"thread_id": thread_id} if by == "thread" else {"run_id": run_id}))
        rest = await until_end(answer)
        [part] = messages(rest)
        assert (part["content"][0]["text"], part["data"]) == ("0 1 2 3 4 ", {"incomplete": True})
        assert told(rest)[-1] == "run canceled"
        assert told(await turn(client, "more", thread_id))[-1] == "run succeeded"


async def test_somebody_else_may_stop_it_and_everyone_sees_that(url: str) -> None:
    async with Client(url, user_id="ana", deltas=True) as ana, Client(url, user_id="bob") as bob:
        answer = ana.send("stream forever")
        await bob.cancel(thread_id=thread_of(await until_written(answer, "0")))
        assert told(await until_end(answer))[-1] == "run canceled"


async def test_a_turn_that_is_stopped_before_it_shows_a_sign_ends_with_a_run_that_is_canceled(url: str) -> None:
    async with Client(url, quiet=0.2) as client:
        answer = client.send("wait")
        async with asyncio.timeout(WITHIN):
            thread_id = thread_of([await anext(answer), await anext(answer)])
            waiting = asyncio.create_task(until_end(answer))
            await asyncio.sleep(0.05)
            await client.cancel(thread_id=thread_id)
            assert told(await waiting) == ["run canceled"]


async def test_cancel_stops_what_waits_in_the_queue_too(url: str) -> None:
    async with Client(url, quiet=0.2, deltas=True) as client:
        first = client.send("stream forever")
        thread_id = thread_of(await until_written(first, "0"))
        second = asyncio.create_task(turn(client, "never begun", thread_id))
        await asyncio.sleep(0.1)
        await client.cancel(thread_id=thread_id)
        assert told(await until_end(first))[-1] == "run canceled"
        assert "assistant: never done" not in told(await second)


async def test_cancel_of_what_has_ended_or_never_was(url: str) -> None:
    async with Client(url) as client:
        thread_id = thread_of(await turn(client, "hello"))
        await client.cancel(thread_id=thread_id)
        with pytest.raises(NotFoundError):
            await client.cancel(thread_id="nope")
        with pytest.raises(NotFoundError):
            await client.cancel(run_id="nope")
        with pytest.raises(InvalidValueError, match="a run_id or a thread_id"):
            await client.cancel()


# ---------------------------------------------------------------- asking and listening


async def test_asks_at_the_same_time_get_their_own_answers(url: str) -> None:
    async with Client(url, user_id="ana") as client:
        ids = [thread_of(await turn(client, f"n{number}")) for number in range(3)]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(client.ask("thread.subscribe", {"thread_id": one})) for one in ids * 5]
            pings = [group.create_task(client.ask("ping")) for _ in range(5)]
        assert [task.result()["thread"]["id"] for task in asked] == ids * 5
        assert [task.result() for task in pings] == [{}] * 5


async def test_frames_has_what_others_do_from_the_call_on(url: str) -> None:
    async with Client(url, user_id="ana") as ana, Client(url, user_id="bob") as bob:
        frames = ana.frames()
        thread_id = thread_of(await turn(bob, "a new thread"))
        async with asyncio.timeout(WITHIN):
            frame = await anext(frames)
        assert (frame["type"], frame["payload"]["thread"]["id"]) == ("thread.upsert", thread_id)


async def test_frames_ends_when_this_side_closes(url: str) -> None:
    async with Client(url) as client:
        frames = client.frames()
    assert [frame async for frame in frames] == []
    with pytest.raises(DisconnectedError):
        await client.ask("ping")


async def test_the_worker_says_what_it_is(url: str) -> None:
    async with Client(url) as client:
        assert client.server["name"] == "dooers-workers-server"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("frame_type", "payload", "error", "code"),
    [
        ("thread.subscribe", {"thread_id": "nope"}, NotFoundError, "NOT_FOUND"),
        ("thread.list", {"limit": 0}, InvalidValueError, "INVALID_VALUE"),
        ("event.create", {}, ProtocolError, "INVALID_FRAME"),
        ("no.such.frame", {}, ProtocolError, "INVALID_FRAME"),
        ("connect", {"worker_id": "w"}, DooersError, "ALREADY_CONNECTED"),
    ],
)
async def test_a_refusal_is_raised_as_the_error_of_its_code(
    url: str, frame_type: str, payload: dict[str, Any], error: type[DooersError], code: str
) -> None:
    async with Client(url) as client:
        with pytest.raises(error) as raised:
            await client.ask(frame_type, payload)
        assert raised.value.code == code
        assert await client.ask("ping") == {}


async def test_a_code_without_a_class_is_kept() -> None:
    async def refuse(connection: ServerConnection) -> None:
        frame = json.loads(await connection.recv())
        error = {"code": "RATE_LIMITED", "message": "slowly"}
        await connection.send(_frame("ack", ack_id=frame["id"], ok=False, error=error))
        await connection.wait_closed()

    async with tape(refuse) as address, Client(address) as client:
        with pytest.raises(DooersError, match="slowly") as raised:
            await client.ask("ping")
    assert raised.value.code == "RATE_LIMITED"


async def test_who_is_refused_hears_why_and_a_token_opens() -> None:
    worker = make_worker()

    @worker.authenticate
    async def authenticate(request: AuthRequest) -> Identity | None:
        return request.claims if request.auth_token == "right" else None

    with serving(worker) as address:
        with pytest.raises(UnauthenticatedError):
            async with Client(address, auth_token="wrong"):
                pass
        async with Client(address, auth_token="right") as client:
            assert await client.ask("ping") == {}


# ---------------------------------------------------------------- connections that are not, or no longer


async def test_nobody_there_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DisconnectedError, match=f"cannot connect to ws://127.0.0.1:{port}/ws") as raised:
        async with Client(f"ws://127.0.0.1:{port}/ws"):
            pass
    assert isinstance(raised.value, ConnectionError)


async def test_an_address_that_is_none_is_a_clear_error() -> None:
    with pytest.raises(DisconnectedError, match="cannot connect to nonsense"):
        async with Client("nonsense"):
            pass


async def test_a_path_without_a_worker_is_a_clear_error(url: str) -> None:
    with pytest.raises(DisconnectedError, match="HTTP 40"):
        async with Client(f"{url}/elsewhere"):
            pass


async def test_a_lost_connection_ends_everything_that_waits() -> None:
    async def leave(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(1012, "restarting")

    async with tape(leave) as address, Client(address, retry_for=0) as client:
        frames = client.frames()
        with pytest.raises(DisconnectedError, match="1012: restarting") as raised:
            await turn(client, "hello")
        assert raised.value.close_code == 1012
        for _ in range(2):
            with pytest.raises(DisconnectedError, match="1012"):
                await anext(frames)
        with pytest.raises(DisconnectedError, match="1012"):
            await client.ask("ping")
        with pytest.raises(DisconnectedError, match="1012"):
            await anext(client.frames())


async def test_a_connection_lost_in_the_middle_of_a_turn_is_told() -> None:
    async def half(connection: ServerConnection) -> None:
        frame = json.loads(await connection.recv())
        at = "2026-01-01T00:00:00Z"
        mine = {**frame["payload"]["event"], "id": "e", "thread_id": "t", "created_at": at}
        mine["client_event_id"] = frame["payload"]["client_event_id"]
        await connection.send(_frame("ack", ack_id=frame["id"], ok=True))  # ahead of the event, as other servers do
        await connection.send(_frame("event.append", thread_id="t", events=[mine]))
        run = {"id": "r", "thread_id": "t", "status": "running", "started_at": at}
        await connection.send(_frame("run.upsert", run=run))
        connection.transport.abort()

    async with tape(half) as address, Client(address, retry_for=0) as client:
        frames = client.send("hello")
        assert told([await anext(frames), await anext(frames)]) == ["user: hello", "run running"]
        with pytest.raises(DisconnectedError):
            await anext(frames)


async def test_a_server_of_another_kind_is_told_apart() -> None:
    async def chatter(connection: ServerConnection) -> None:
        await connection.send("welcome to the stock ticker")
        await connection.wait_closed()

    async with tape(chatter) as address, Client(address) as client:
        with pytest.raises(DisconnectedError, match="does not speak this protocol"):
            await anext(client.frames())


async def test_a_connection_without_answers_is_given_up() -> None:
    async def deaf(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with tape(deaf) as address, Client(address, within=0.2) as client:
        with pytest.raises(NoAnswerError, match=r"no answer to ping within 0\.2 s"):
            await client.ask("ping")


# ---------------------------------------------------------------- runs that are asked about


async def test_a_snapshot_tells_how_runs_have_ended_that_are_asked_about_and_only_of_its_own_thread(url: str) -> None:
    async with Client(url, user_id="ana") as ana, Client(url, user_id="bob") as bob:
        mine, failed = await ana.say("hello"), await ana.say("fail")
        again = await ana.say("fail", mine.thread_id)
        theirs = await bob.say("not for ana")
        named = [mine.event_id, again.event_id, failed.event_id, theirs.event_id, "nowhere"]
        snapshot = await ana.ask("thread.subscribe", {"thread_id": mine.thread_id, "runs": named})
        found = {run["id"]: (run["status"], run.get("error")) for run in snapshot["runs"]}
        assert found == {mine.event_id: ("succeeded", None), again.event_id: ("failed", again.error)}
        many = await ana.ask("thread.subscribe", {"thread_id": mine.thread_id, "runs": ["x"] * 10 + [mine.event_id]})
        assert many["runs"] == []
        assert (await ana.ask("thread.subscribe", {"thread_id": mine.thread_id}))["runs"] == []


# ---------------------------------------------------------------- its page


async def test_the_functions_of_the_page_about_the_client_run(url: str) -> None:
    page: dict[str, Any] = {}
    for block in blocks("docs/client.md"):
        if block.language == "python":
            await run(block.text, page, block.place)
    async with asyncio.timeout(WITHIN):
        first, again = await page["greet"](url)
        assert (first.text, again.text) == ("Hello. done", "And done")
        await page["follow"](url)
        looked, *_ = await page["look"](url, first.thread_id, first.event_id)
        assert [event.text for event in looked.events] == ["Hello. done", "And now?", "And done"]
        assert (await page["stay"](url, lambda: "token")).status == "succeeded"
        before = (await page["greet"](url))[0].thread_id
        left = await page["tidy"](url)
        async with Client(url) as client:
            assert left == (await client.threads()).total
        assert before
