"""What happened, told live and, only where a URL is set, to a webhook. How it is delivered: test_webhook.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from attrs import evolve
from receiver import Receiver, a_receiver, eventually
from samples import T0, THREAD

from dooers import AnalyticsBatch, WorkerConfig, WorkerServer
from dooers.analytics import AnalyticsEventPayload, Collector, events_of
from dooers.broadcast import Broadcast
from dooers.clock import SystemClock
from dooers.models import Change, ImagePart, Run, TextPart, ThreadEvent, User


def collector_for(receiver: Receiver | None, **more: Any) -> Collector:
    clock = SystemClock()
    url = None if receiver is None else receiver.url
    config = WorkerConfig(database_type="memory", analytics_webhook_url=url, **more)
    return Collector(config, Broadcast(clock), clock)


def tracked(number: int, worker_id: str = "worker-1") -> AnalyticsEventPayload:
    return AnalyticsEventPayload(event=f"e{number}", timestamp=T0, worker_id=worker_id)


# ---------------------------------------------------------------- to the webhook


async def test_what_is_tracked_arrives_as_the_public_batch_says() -> None:
    async with a_receiver() as receiver:
        collector = collector_for(receiver, analytics_batch_size=2, analytics_flush_interval=600)
        collector.track(tracked(1), None)
        rich = evolve(tracked(2), thread_id="t", user_id="u", run_id="r", event_id="e", data={"n": [1, None, "é"]})
        collector.track(rich, None)
        await receiver.until(1)
        await collector.close()
    (request,) = receiver.requests
    batch = request.batch
    assert batch["events"][0] == {
        "event": "e1",
        "timestamp": "2026-01-01T00:00:00Z",
        "worker_id": "worker-1",
        "agent_id": "worker-1",
        "thread_id": None,
        "user_id": None,
        "run_id": None,
        "event_id": None,
        "data": None,
    }
    sent_at = datetime.fromisoformat(batch["sent_at"])
    told = AnalyticsBatch(
        batch_id=batch["batch_id"], worker_id="worker-1", events=[tracked(1), rich], sent_at=sent_at
    ).out()
    assert batch == told
    assert list(batch) == list(told)


async def test_the_counters_of_the_webhook_can_be_read_from_the_collector() -> None:
    async with a_receiver(400, 500, slow=True) as receiver:
        collector = collector_for(receiver, analytics_batch_size=1)
        for n in range(3):
            collector.track(tracked(n), None)
        await receiver.until(1)
        assert (collector.delivered, collector.dropped, collector.waiting, collector.failed_attempts) == (0, 0, 3, 0)
        receiver.open.set()
        await eventually(lambda: collector.waiting == 0)
        assert (collector.delivered, collector.dropped, collector.waiting, collector.failed_attempts) == (2, 1, 0, 2)
        await collector.close()


# ---------------------------------------------------------------- only where it was asked for


async def test_without_a_url_nothing_is_kept_and_nothing_leaves() -> None:
    collector = collector_for(None)
    before = asyncio.all_tasks()
    collector.observe(Change(thread=THREAD, created=True))
    collector.track(tracked(1), THREAD)
    assert collector.webhook is None
    assert (collector.delivered, collector.dropped, collector.waiting, collector.failed_attempts) == (0, 0, 0, 0)
    assert asyncio.all_tasks() == before
    await collector.close()


async def test_analytics_that_are_off_send_nothing_anywhere() -> None:
    async with a_receiver() as receiver:
        collector = collector_for(receiver, analytics_enabled=False, analytics_batch_size=1)
        collector.observe(Change(thread=THREAD, created=True))
        collector.track(tracked(1), THREAD)
        await collector.close()
        assert receiver.requests == []


async def test_what_another_process_stored_is_delivered_there_and_not_here() -> None:
    async with a_receiver() as receiver:
        collector = collector_for(receiver, analytics_batch_size=1)
        collector.show(Change(thread=THREAD, created=True))
        collector.track(tracked(1), THREAD)
        await collector.close()
        assert [request.names for request in receiver.requests] == [["e1"]]


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
    async with a_receiver() as receiver:
        worker = WorkerServer(evolve(worker_config, analytics_webhook_url=receiver.url, analytics_flush_interval=600))

        async def answer(incoming: Any, send: Any, analytics: Any) -> AsyncIterator[Any]:
            await analytics.track("mine", data={"n": 1})
            yield send.tool_call("search", {})
            yield send.text("hi")

        async with worker.lifespan():
            stream = await worker.dispatch(answer, organization_id="o", workspace_id="w", user_id="u", message="hello")
            await stream.collect()
        found = await receiver.events(5)
        assert sorted(event["event"] for event in found) == [
            "message.c2s",
            "message.s2c",
            "mine",
            "thread.created",
            "tool.called",
        ]
        assert {event["thread_id"] for event in found} == {stream.thread_id}
        assert {event["user_id"] for event in found} == {"u"}
