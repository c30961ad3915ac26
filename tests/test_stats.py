"""What a worker counts: true while things happen, and back at nothing when everybody has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import asdict, evolve

from dooers import WorkerConfig, WorkerServer, WorkerStats
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}
CLAIMS = {"worker_id": "worker", "organization_id": "o", "workspace_id": "w", "user_id": "u"}
# What is of the moment: gone with whoever it was about.
MOMENT = (
    *("sessions", "subscriptions", "threads_followed", "outbox_frames", "outbox_size", "outbox_longest"),
    *("turns_running", "turns_waiting", "lanes", "catching_up", "ends_waiting", "analytics_waiting"),
)


def at_rest(stats: WorkerStats) -> bool:
    return not any(getattr(stats, name) for name in MOMENT)


def said(text: str) -> dict[str, Any]:
    return {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}}


async def end_of_run(client: WorkerClient) -> str:
    while (run := (await client.expect("run.upsert"))["payload"]["run"])["status"] == "running":
        pass
    return str(run["status"])


def test_a_worker_that_was_never_opened_has_done_nothing(worker_config: WorkerConfig) -> None:
    stats = WorkerServer(worker_config).stats()
    assert set(asdict(stats).values()) == {0}
    assert stats.group_size == 0


async def test_it_tells_what_runs_and_what_waits_and_how_each_turn_ended(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    go = asyncio.Event()

    @worker.handler
    async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        await go.wait()
        if str(incoming.message) == "fail":
            raise ValueError("no")
        if str(incoming.message) == "stop me":
            await asyncio.Event().wait()
        yield send.text("done")

    async with worker.lifespan():
        async with WorkerClient(worker) as client:
            await client.ask("event.create", said("one"))
            thread_id = (await client.expect("run.upsert"))["payload"]["run"]["thread_id"]
            for text in ("two", "fail", "stop me"):
                await client.ask("event.create", {**said(text), "thread_id": thread_id})
            stats = worker.stats()
            assert (stats.sessions, stats.connections, stats.frames_in) == (1, 1, 5)
            assert (stats.subscriptions, stats.threads_followed, stats.lanes, stats.identities) == (1, 1, 1, 0)
            assert (stats.turns_running, stats.turns_waiting) == (1, 3)
            go.set()
            assert [await end_of_run(client) for _ in range(3)] == ["succeeded", "succeeded", "failed"]
            await client.expect("run.upsert")
            await worker.cancel(thread_id=thread_id)
            stats = worker.stats()
            assert (stats.turns_succeeded, stats.turns_failed, stats.turns_canceled) == (2, 1, 1)
            assert stats.frames_out > 10
            assert stats.changes >= stats.commits > 0
            assert stats.group_size == stats.changes / stats.commits
        assert at_rest(worker.stats())


@pytest.mark.parametrize("database", ["memory", "sqlite"])
async def test_a_dispatch_that_nobody_iterates_waits_and_leaves_nothing_when_it_is_dropped(
    worker_config: WorkerConfig, database: Any
) -> None:
    worker = WorkerServer(evolve(worker_config, database_type=database))

    @worker.handler
    async def answer(send: Any) -> AsyncIterator[Any]:
        yield send.text("done")

    async with worker.lifespan():
        stream = await worker.dispatch(message="hi", **WHO)
        assert (worker.stats().turns_running, worker.stats().turns_waiting) == (0, 1)
        assert [event.send_type async for event in stream] == ["text"]
        assert at_rest(worker.stats())
        assert worker.stats().commits == worker.stats().changes == 2


async def test_turns_that_write_at_once_share_transactions(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)

    @worker.handler
    async def answer(send: Any) -> AsyncIterator[Any]:
        yield send.text("done")

    async with worker.lifespan():
        streams = await asyncio.gather(*(worker.dispatch(message="hi", **WHO) for _ in range(50)))
        await asyncio.gather(*(stream.collect() for stream in streams))
        assert worker.stats().changes == 100
        assert worker.stats().group_size > 2


async def test_pieces_and_readers_that_were_dropped_are_counted_and_what_waits_is_seen(
    worker_config: WorkerConfig,
) -> None:
    worker = WorkerServer(evolve(worker_config, outbox_frames=16))

    @worker.handler
    async def answer(send: Any) -> AsyncIterator[Any]:
        async def pieces() -> AsyncIterator[str]:
            yield "piece"
            while not worker.stats().deltas_dropped:
                await asyncio.sleep(0.02)
                yield " more"

        yield send.stream(pieces())
        for _ in range(20):
            yield send.text("done")

    async with worker.lifespan():
        async with WorkerClient(worker, connect={**CLAIMS, "client": {"capabilities": ["deltas"]}}) as client:
            await client.ask("event.create", said("hi"))
            client.socket.reading.clear()
            # A reader who does not read is told nothing, so this looks.
            while not worker.stats().outbox_longest:
                await asyncio.sleep(0.01)
            assert worker.stats().outbox_size > worker.stats().outbox_frames > 0
            while not worker.stats().readers_dropped:
                await asyncio.sleep(0.01)
            assert worker.stats().deltas_dropped > 0
        assert worker.stats().readers_dropped == 1
        assert at_rest(worker.stats())
