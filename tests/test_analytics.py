"""What happened, told live and, only where a URL is set, in batches to a webhook. The webhook here is a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import Factory, define, evolve
from samples import T0, THREAD

from dooers import WorkerConfig, WorkerServer, analytics
from dooers.analytics import AnalyticsEventPayload, Collector, events_of
from dooers.broadcast import Broadcast
from dooers.clock import SystemClock
from dooers.models import Change, ImagePart, Run, TextPart, ThreadEvent, User

WITHIN = 20.0


@define
class Webhook:
    """An HTTP server that keeps what it is sent, and answers with `statuses` in turn, then 200; None hangs up instead."""

    url: str = ""
    statuses: list[int | None] = Factory(list)
    open: asyncio.Event = Factory(asyncio.Event)
    arrived: asyncio.Event = Factory(asyncio.Event)
    batches: list[dict[str, Any]] = Factory(list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                assert line.startswith(b"POST /hook ")
                headers = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                assert headers["content-type"] == "application/json"
                self.batches.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
                self.arrived.set()
                await self.open.wait()
                status = self.statuses.pop(0) if self.statuses else 200
                if status is None:
                    break
                writer.write(f"HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        except ConnectionError:
            pass  # the collector went away, which some tests want
        finally:
            writer.close()

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The events of everything that arrived, once there are `count` of them."""
        async with asyncio.timeout(WITHIN):
            while len(found := [event for batch in self.batches for event in batch["events"]]) < count:
                await asyncio.sleep(0.005)
        return found


@asynccontextmanager
async def a_webhook(*statuses: int | None, slow: bool = False) -> AsyncIterator[Webhook]:
    webhook = Webhook(statuses=list(statuses))
    if not slow:
        webhook.open.set()
    server = await asyncio.start_server(webhook.serve, "127.0.0.1", 0)
    webhook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield webhook
    finally:
        webhook.open.set()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.02)  # the connections' own tasks see that their peer is gone


def config_for(webhook: Webhook | None, **more: Any) -> WorkerConfig:
    url = None if webhook is None else webhook.url
    return WorkerConfig(database_type="memory", analytics_webhook_url=url, **more)


def collector_for(webhook: Webhook | None, **more: Any) -> Collector:
    clock = SystemClock()
    return Collector(config_for(webhook, **more), Broadcast(clock), clock)


def tracked(number: int, worker_id: str = "worker-1") -> AnalyticsEventPayload:
    return AnalyticsEventPayload(event=f"e{number}", timestamp=T0, worker_id=worker_id)


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


# ---------------------------------------------------------------- batches


async def test_a_full_batch_is_sent_at_once_and_whole() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=3, analytics_flush_interval=600)
        for n in range(3):
            collector.track(tracked(n), None)
        assert names(await webhook.events(3)) == ["e0", "e1", "e2"]
        (batch,) = webhook.batches
        assert set(batch) == {"batch_id", "worker_id", "events", "sent_at"}
        assert batch["worker_id"] == "worker-1"
        assert batch["events"][0] == {
            "event": "e0",
            "timestamp": "2026-01-01T00:00:00Z",
            "worker_id": "worker-1",
            "agent_id": "worker-1",
            "thread_id": None,
            "user_id": None,
            "run_id": None,
            "event_id": None,
            "data": None,
        }
        await collector.close()


async def test_no_batch_is_larger_than_the_batch_size() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=10, analytics_flush_interval=600)
        for n in range(45):
            collector.track(tracked(n), None)
        await collector.close()
        assert names(await webhook.events(45)) == [f"e{n}" for n in range(45)]
        assert [len(batch["events"]) for batch in webhook.batches] == [10, 10, 10, 10, 5]
        assert len({batch["batch_id"] for batch in webhook.batches}) == 5
        assert collector.dropped == 0


async def test_what_is_no_full_batch_is_sent_after_the_interval() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=100, analytics_flush_interval=0.05)
        for n in range(3):
            collector.track(tracked(n), None)
            assert names(await webhook.events(n + 1))[-1] == f"e{n}"
        await collector.close()


async def test_nothing_is_sent_before_the_interval_or_a_full_batch() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=3, analytics_flush_interval=600)
        collector.track(tracked(1), None)
        collector.track(tracked(2), None)
        await asyncio.sleep(0.1)
        assert webhook.batches == []
        await collector.close()
        assert names(await webhook.events(2)) == ["e1", "e2"]


async def test_a_batch_is_of_one_worker() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=4)
        for n in range(4):
            collector.track(tracked(n, f"worker-{n % 2}"), None)
        await webhook.events(4)
        assert {batch["worker_id"]: names(batch["events"]) for batch in webhook.batches} == {
            "worker-0": ["e0", "e2"],
            "worker-1": ["e1", "e3"],
        }
        await collector.close()


# ---------------------------------------------------------------- a webhook that fails


@pytest.mark.parametrize("status", [500, 503, 429, None])
async def test_a_batch_that_failed_is_sent_again_under_its_id(
    status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analytics, "FIRST_WAIT", 0.005)
    async with a_webhook(status, status) as webhook:
        collector = collector_for(webhook, analytics_batch_size=2)
        collector.track(tracked(1), None)
        collector.track(tracked(2), None)
        await webhook.events(6)
        assert len(webhook.batches) == 3
        assert len({batch["batch_id"] for batch in webhook.batches}) == 1
        assert all(names(batch["events"]) == ["e1", "e2"] for batch in webhook.batches)
        await collector.close()
        assert collector.dropped == 0


async def test_a_batch_that_keeps_failing_is_dropped_counted_and_the_next_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(analytics, "FIRST_WAIT", 0.005)
    async with a_webhook(*[500] * analytics.ATTEMPTS) as webhook:
        collector = collector_for(webhook, analytics_batch_size=2)
        for n in range(4):
            collector.track(tracked(n), None)
        await collector.close()
        assert collector.dropped == 2
        assert names(webhook.batches[-1]["events"]) == ["e2", "e3"]
        assert len(webhook.batches) == analytics.ATTEMPTS + 1
    assert "2 events dropped" in caplog.text


async def test_a_refused_batch_is_dropped_and_not_sent_again() -> None:
    async with a_webhook(400) as webhook:
        collector = collector_for(webhook, analytics_batch_size=1)
        collector.track(tracked(1), None)
        collector.track(tracked(2), None)
        await webhook.events(2)
        await collector.close()
        assert [names(batch["events"]) for batch in webhook.batches] == [["e1"], ["e2"]]
        assert collector.dropped == 1


async def test_what_cannot_be_written_as_json_is_dropped_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=1)
        collector.track(evolve(tracked(1), data={"no": object()}), None)
        collector.track(tracked(2), None)
        assert names(await webhook.events(1)) == ["e2"]
        await collector.close()
        assert collector.dropped == 1


async def test_a_slow_webhook_delays_nobody_who_tracks() -> None:
    async with a_webhook(slow=True) as webhook:
        collector = collector_for(webhook, analytics_batch_size=1)
        collector.track(tracked(0), None)
        async with asyncio.timeout(WITHIN):
            await webhook.arrived.wait()
        began = time.perf_counter()
        for n in range(1, 1000):
            collector.track(tracked(n), None)
        assert time.perf_counter() - began < 1
        assert len(webhook.batches) == 1
        webhook.open.set()
        assert names(await webhook.events(1000)) == [f"e{n}" for n in range(1000)]
        await collector.close()
        assert collector.dropped == 0


async def test_more_than_the_buffer_holds_drops_the_oldest_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytics, "BUFFER", 50)
    async with a_webhook(slow=True) as webhook:
        collector = collector_for(webhook, analytics_batch_size=10)
        for n in range(10):
            collector.track(tracked(n), None)
        async with asyncio.timeout(WITHIN):
            await webhook.arrived.wait()
        for n in range(10, 90):
            collector.track(tracked(n), None)
        assert collector.dropped == 30
        webhook.open.set()
        await collector.close()
        assert names(await webhook.events(60)) == [f"e{n}" for n in (*range(10), *range(40, 90))]


# ---------------------------------------------------------------- closing


async def test_closing_sends_what_is_left() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=100, analytics_flush_interval=600)
        collector.track(tracked(1), None)
        await collector.close()
        assert names(await webhook.events(1)) == ["e1"]
        await collector.close()


async def test_closing_does_not_wait_for_a_webhook_that_hangs_and_counts_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(analytics, "TIMEOUT", 0.3)
    async with a_webhook(slow=True) as webhook:
        collector = collector_for(webhook, analytics_batch_size=2, analytics_flush_interval=0.01)
        for n in range(5):
            collector.track(tracked(n), None)
        async with asyncio.timeout(WITHIN):
            await webhook.arrived.wait()
            await collector.close()
        assert collector.dropped == 5
    assert "5 events were not delivered" in caplog.text


async def test_a_webhook_that_is_not_there_ends_in_counted_drops(caplog: pytest.LogCaptureFixture) -> None:
    async with a_webhook() as webhook:
        pass
    collector = collector_for(webhook, analytics_batch_size=2)
    for n in range(3):
        collector.track(tracked(n), None)
    with caplog.at_level(logging.CRITICAL, "dooers"):
        async with asyncio.timeout(WITHIN):
            await collector.close()
    assert collector.dropped == 3


async def test_a_sender_that_a_dying_loop_cancelled_does_not_keep_events_to_itself() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_batch_size=10, analytics_flush_interval=600)
        collector.track(tracked(1), None)
        await asyncio.sleep(0)
        assert collector._sender is not None
        collector._sender.cancel()
        await asyncio.wait([collector._sender])
        collector.track(tracked(2), None)
        collector._sender.cancel()
        await asyncio.sleep(0)
        await collector.close()
        assert names(await webhook.events(2)) == ["e1", "e2"]


# ---------------------------------------------------------------- only where it was asked for


async def test_without_a_url_nothing_is_kept_and_nothing_leaves() -> None:
    collector = collector_for(None)
    before = asyncio.all_tasks()
    collector.observe(Change(thread=THREAD, created=True))
    collector.track(tracked(1), THREAD)
    assert not collector._buffer
    assert asyncio.all_tasks() == before
    await collector.close()


async def test_analytics_that_are_off_send_nothing_anywhere() -> None:
    async with a_webhook() as webhook:
        collector = collector_for(webhook, analytics_enabled=False, analytics_batch_size=1)
        collector.observe(Change(thread=THREAD, created=True))
        collector.track(tracked(1), THREAD)
        await collector.close()
        assert webhook.batches == []


# ---------------------------------------------------------------- automatic events


def an_event(kind: str, actor: str, **more: Any) -> ThreadEvent:
    fields: dict[str, Any] = {"id": f"{kind}-{actor}", "type": kind, "actor": actor, "run_id": "run-1", **more}
    return ThreadEvent(thread_id="thread-1", created_at=T0, **fields)


def test_the_automatic_events_of_a_change() -> None:
    change = Change(
        thread=THREAD,
        created=True,
        events=(
            an_event("message", "user", user=User("bob"), content=[TextPart("secret words")]),
            an_event("message", "assistant", content=[ImagePart("https://e.org/i.png")]),
            an_event("message", "assistant"),
            an_event("tool.call", "assistant", data={"name": "search", "args": {"q": "secret words"}}),
            an_event("tool.result", "assistant", data={"name": "search"}),
            an_event("tool.transaction", "assistant", data={"name": "pay"}),
            an_event("message", "system", notice=True, content=[TextPart("Something went wrong.")]),
            an_event("message", "system", content=[TextPart("posted by the application")]),
        ),
        runs=(Run(id="run-1", thread_id="thread-1", started_at=T0),),
    )
    found = list(events_of(change))
    assert [(one.event, one.data) for one in found] == [
        ("thread.created", None),
        ("message.c2s", None),
        ("message.s2c", {"type": "image"}),
        ("message.s2c", {"type": "text"}),
        ("tool.called", {"name": "search"}),
        ("tool.called", {"name": "pay"}),
        ("error.occurred", None),
    ]
    assert [one.user_id for one in found] == ["ada", "bob"] + ["ada"] * 5
    assert all((one.worker_id, one.thread_id) == ("worker-1", "thread-1") for one in found)
    assert "secret words" not in repr(found)


def test_a_change_without_news_has_no_events() -> None:
    assert list(events_of(Change(thread=THREAD, patch={"title": "t"}))) == []
    assert list(events_of(Change(thread=THREAD, removes=True))) == []


async def test_a_turn_and_what_its_handler_tracks_reach_the_webhook(worker_config: WorkerConfig) -> None:
    async with a_webhook() as webhook:
        worker = WorkerServer(evolve(worker_config, analytics_webhook_url=webhook.url, analytics_flush_interval=600))

        async def answer(incoming: Any, send: Any, analytics: Any) -> AsyncIterator[Any]:
            await analytics.track("mine", data={"n": 1})
            yield send.tool_call("search", {})
            yield send.text("hi")

        async with worker.lifespan():
            stream = await worker.dispatch(answer, organization_id="o", workspace_id="w", user_id="u", message="hello")
            await stream.collect()
        found = await webhook.events(5)
        assert sorted(names(found)) == ["message.c2s", "message.s2c", "mine", "thread.created", "tool.called"]
        assert {event["thread_id"] for event in found} == {stream.thread_id}
        assert {event["user_id"] for event in found} == {"u"}
