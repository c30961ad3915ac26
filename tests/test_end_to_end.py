"""Through a real uvicorn and a real socket: the main job as a front end sees it, from the first message to resuming after a gap."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uvicorn
from dependency_injector import providers
from websockets.asyncio.client import ClientConnection, connect

from dooers import TextPart, WorkerConfig, WorkerServer
from dooers.clock import SystemClock

EQUAL = datetime(2026, 1, 1, tzinfo=UTC)


class StandingClock(SystemClock):
    """A clock on which no time passes."""

    __slots__ = ()

    def now(self) -> datetime:
        return EQUAL


@asynccontextmanager
async def served(worker: WorkerServer) -> AsyncIterator[str]:
    """The worker behind a real uvicorn; the URL of its WebSocket."""
    listening = socket.socket()
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(worker.asgi_app(), log_level="warning", lifespan="on"))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
    finally:
        server.should_exit = True
        await task
        listening.close()


class Front:
    """A front end, as small as one can be."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.count = 0

    async def post(self, kind: str, payload: dict[str, Any]) -> str:
        self.count += 1
        await self.socket.send(json.dumps({"id": f"f{self.count}", "type": kind, "payload": payload}))
        return f"f{self.count}"

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        return frame

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Every frame up to the first of a kind."""
        frames = [await self.next()]
        while frames[-1]["type"] != kind:
            frames.append(await self.next())
        return frames

    async def ask(self, kind: str, payload: dict[str, Any], answer: str) -> Any:
        await self.post(kind, payload)
        return (await self.until(answer))[-1]["payload"]


@asynccontextmanager
async def front(url: str, user: str = "alice") -> AsyncIterator[Front]:
    async with connect(url) as connected:
        client = Front(connected)
        payload = {
            "worker_id": "worker",
            "organization_id": "org",
            "workspace_id": "ws",
            "user": {"user_id": user, "system_role": "user", "organization_role": "member", "workspace_role": "member"},
            "client": {"name": "test", "version": "0"},
        }
        answer = await client.ask("connect", payload, "ack")
        assert answer["ok"], answer
        yield client


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}, **more}


@pytest.fixture
def worker(worker_config: WorkerConfig) -> WorkerServer:
    made = WorkerServer(worker_config)

    @made.handler
    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text(f"echo: {incoming.message}")
        if incoming.context.thread_title is None:
            yield send.update_thread(title=incoming.message[:60])
        yield send.run_end()

    return made


async def test_a_first_message_is_told_in_the_order_front_ends_expect(worker: WorkerServer) -> None:
    async with served(worker) as url, front(url) as client:
        sent = await client.post("event.create", message("hello", client_event_id="c1"))
        frames = [await client.next() for _ in range(7)]
        kinds = [frame["type"] for frame in frames]
        assert kinds == [
            "thread.upsert", "event.append", "ack", "run.upsert", "event.append", "thread.upsert", "run.upsert",
        ]  # fmt: skip
        new, mine, ack, running, reply, titled, done = (frame["payload"] for frame in frames)
        assert mine["events"][0]["client_event_id"] == "c1"
        assert mine["events"][0]["user"]["user_id"] == "alice"
        assert ack == {"ack_id": sent, "ok": True}
        assert running["run"]["status"] == "running"
        assert reply["events"][0]["content"] == [{"type": "text", "text": "echo: hello"}]
        assert reply["events"][0]["run_id"] == running["run"]["id"] == done["run"]["id"]
        assert "title" not in new["thread"]
        assert titled["thread"]["title"] == "hello"
        assert done["run"]["status"] == "succeeded"

        listed = await client.ask("thread.list", {}, "thread.list.result")
        assert [thread["title"] for thread in listed["threads"]] == ["hello"]
        assert listed["total_count"] == 1
        assert "cursor" not in listed
        snapshot = await client.ask("thread.subscribe", {"thread_id": new["thread"]["id"]}, "thread.snapshot")
        assert [event["actor"] for event in snapshot["events"]] == ["user", "assistant"]
        assert snapshot["runs"] == []
        assert snapshot["has_more"] is False


async def test_three_hundred_events_of_one_instant_are_paged_without_gap_or_repeat(worker: WorkerServer) -> None:
    worker._parts.clock.override(providers.Object(StandingClock()))
    async with served(worker) as url, front(url) as client:
        repository = await worker.repository()
        thread = await repository.create_thread("worker", "org", "ws", "alice", title="long")
        made = [(await repository.create_event(thread.id, content=[TextPart(str(number))])).id for number in range(300)]
        assert {event.created_at for event in await repository.list_events({"thread_id": thread.id}, limit=300)} == {
            EQUAL
        }

        snapshot = await client.ask("thread.subscribe", {"thread_id": thread.id}, "thread.snapshot")
        assert [event["id"] for event in snapshot["events"]] == made[-100:]
        assert snapshot["has_more"] is True
        seen = [event["id"] for event in snapshot["events"]]
        more = True
        while more:
            page = await client.ask(
                "event.list", {"thread_id": thread.id, "before_event_id": seen[0], "limit": 33}, "event.list.result"
            )
            seen = [event["id"] for event in page["events"]] + seen
            more = page["has_more"]
            assert more is ("cursor" in page)
        assert seen == made


async def test_a_reconnect_has_no_gap_and_no_repeat(worker: WorkerServer) -> None:
    async with served(worker) as url:
        async with front(url) as client:
            await client.post("event.create", message("one"))
            frames = await client.until("run.upsert")
            thread_id = frames[0]["payload"]["thread"]["id"]
            while (await client.next())["type"] != "run.upsert":
                pass
            snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id}, "thread.snapshot")
            seen = [event["seq"] for event in snapshot["events"]]
            last = snapshot["events"][-1]["id"]
        # While the client is away the thread goes on, through the other door.
        for number in range(150):
            await (await _said(worker, thread_id, f"away {number}")).collect()
        async with front(url) as client:
            await client.post("thread.subscribe", {"thread_id": thread_id, "after_event_id": last})
            writing = asyncio.create_task(_keep_writing(worker, thread_id, 30))
            frames = await client.until("thread.snapshot")
            snapshot = frames[-1]["payload"]
            # This dialect replaces its view, so it gets all it missed, and all of it is newer than what it had.
            seen += [event["seq"] for event in snapshot["events"] if event["seq"] > seen[-1]]
            await writing
            thread = await (await worker.repository()).get_thread(thread_id)
            assert thread is not None
            while seen[-1] < thread.last_seq:
                frame = await client.next()
                if frame["type"] == "event.append":
                    seen += [event["seq"] for event in frame["payload"]["events"]]
        assert seen == list(range(1, 2 + 1 + 2 * 180))


async def test_a_turn_outlives_its_connection(worker_config: WorkerConfig) -> None:
    finish = asyncio.Event()
    worker = WorkerServer(worker_config)

    @worker.handler
    async def slow(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        await finish.wait()
        yield send.text("done without you")

    async with served(worker) as url:
        async with front(url) as client:
            await client.post("event.create", message("go"))
            thread_id = (await client.until("run.upsert"))[0]["payload"]["thread"]["id"]
        async with front(url) as client:
            snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id}, "thread.snapshot")
            assert [run["status"] for run in snapshot["runs"]] == ["running"]
            finish.set()
            frames = [await client.next(), await client.next()]
            assert frames[0]["payload"]["events"][0]["content"][0]["text"] == "done without you"
            assert frames[1]["payload"]["run"]["status"] == "succeeded"


async def test_health_and_readiness_are_served(worker: WorkerServer) -> None:
    async with served(worker) as url, httpx.AsyncClient() as http:
        base = url.replace("ws://", "http://").removesuffix("/ws")
        assert (await http.get(f"{base}/health")).json() == {"status": "ok"}
        assert (await http.get(f"{base}/ready")).status_code == 200


async def _said(worker: WorkerServer, thread_id: str, text: str) -> Any:
    return await worker.dispatch(
        organization_id="org", workspace_id="ws", user_id="alice", message=text, thread_id=thread_id
    )


async def _keep_writing(worker: WorkerServer, thread_id: str, count: int) -> None:
    for number in range(count):
        await (await _said(worker, thread_id, f"meanwhile {number}")).collect()
