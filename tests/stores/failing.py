"""What a worker does when its database really fails, and when it is back: the same for all databases. Not a test itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from attrs import evolve

from dooers import WorkerConfig, WorkerServer
from dooers.exceptions import DispatchError, StoreError
from dooers.models import EventQuery, RunQuery
from dooers.testing import WorkerClient

__all__ = ["WHO", "WITHIN", "survives"]

Frame = dict[str, Any]
WITHIN = 30.0
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
# Texts that need a page of their own: a full disk still has room for small ones.
PAD = "." * 8192


class Gate:
    """A handler that answers at once, or waits in the middle when it is told to."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def handler(self, incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == f"wait{PAD}":
            yield send.text("first")
            await memory.get_history()
            self.reached.set()
            await self.go.wait()
        yield send.text(f"re: {incoming.message}{PAD}")


async def post(asking: WorkerClient, text: str, thread_id: str, key: str) -> Frame:
    event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text + PAD}]}
    return await asking.ask("event.create", {"event": event, "thread_id": thread_id, "client_event_id": key})


async def quiet(worker: WorkerServer, thread_id: str) -> None:
    async with asyncio.timeout(WITHIN):
        while worker.is_answering(thread_id):
            await asyncio.sleep(0.002)


async def recovered(worker: WorkerServer) -> None:
    """Return when the database and the broker answer again."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                for _ in range(3):  # on every connection that there is
                    await asyncio.gather(*(worker.ready() for _ in range(4)))
                await worker._parts.broker().lock("recovered")
                return worker._parts.broker().unlock("recovered")
            except StoreError:
                await asyncio.sleep(0.05)


async def survives(
    config: WorkerConfig, failure: Callable[[WorkerServer], AbstractAsyncContextManager[None]], *, readable: bool
) -> None:
    """The database fails within a `failure`: what waits gets an error, the socket stays, and afterwards everything works, without a
    restart. Nothing is doubled, nothing acknowledged is lost. `readable`: reading goes on meanwhile."""
    # A beat that waits for the database has its time, so that nobody has to wait for one here.
    worker, gate = WorkerServer(evolve(config, run_heartbeat=0.2, run_timeout=60.0)), Gate()
    worker.handler(gate.handler)
    async with worker.lifespan(), WorkerClient(worker) as asking, WorkerClient(worker) as watching:
        thread_id = (await asking.say("hello")).thread_id
        await watching.ask("thread.subscribe", {"thread_id": thread_id})
        assert (await post(asking, "wait", thread_id, "c1"))["payload"]["ok"]
        await gate.reached.wait()
        async with failure(worker):
            answer = await post(asking, "lost", thread_id, "c2")
            assert answer["payload"]["error"]["code"] == "SERVER_ERROR"
            assert "database" not in answer["payload"]["error"]["message"]
            assert (await asking.ask("ping"))["type"] == "pong"
            with pytest.raises(DispatchError) as raised:
                await worker.dispatch(**WHO, message=f"by code{PAD}", thread_id=thread_id, idempotency_key="k1")
            assert isinstance(raised.value.__cause__, StoreError)
            gate.go.set()  # the one at work wants to write, cannot, and cannot store its end either
            await quiet(worker, thread_id)
            listed = await asking.ask("event.list", {"thread_id": thread_id})
            assert (listed["type"] != "ack") == readable, listed
        # No restart: the end of that turn is stored by itself, and told.
        statuses: list[str] = []
        async with asyncio.timeout(WITHIN):
            while statuses[-1:] != ["failed"]:
                frame = await watching.receive(WITHIN)
                if frame["type"] == "run.upsert":
                    statuses.append(frame["payload"]["run"]["status"])
        await recovered(worker)
        # What was refused is sent again, and there once; so is what was not.
        for text, key in (("wait", "c1"), ("lost", "c2"), ("lost", "c2")):
            async with asyncio.timeout(WITHIN):
                while not (await post(asking, text, thread_id, key))["payload"]["ok"]:
                    await asyncio.sleep(0.05)
        stream = await worker.dispatch(**WHO, message=f"by code{PAD}", thread_id=thread_id, idempotency_key="k1")
        assert [event.data["text"].rstrip(PAD) for event in await stream.collect() if "text" in event.data] == [
            "re: by code"
        ]
        await quiet(worker, thread_id)
        store = worker._parts.store()
        events = await store.events(EventQuery(thread_id=thread_id, limit=None))
        texts = [event.text.rstrip(PAD) for event in events if not event.notice]
        # Both may have been written when the server came back, before anybody sent them again: then their answers follow together.
        assert texts[:4] == ["hello", "re: hello", "wait", "first"]
        assert sorted(texts[4:]) == ["by code", "lost", "re: by code", "re: lost"]
        assert all(texts.index(f"re: {text}") > texts.index(text) for text in ("lost", "by code"))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sum(event.notice for event in events) == 1
        runs = await store.runs(RunQuery(equal={"thread_id": thread_id}, limit=10, oldest_first=True))
        assert [run.status for run in runs] == ["succeeded", "failed", "succeeded", "succeeded"]
