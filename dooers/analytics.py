"""Analytics: what happened, told live to subscribers and, only if a URL is set, in batches to a webhook. Never on a turn's path.

`events_of` says which events a Change is worth; the Collector passes them on. A webhook that is slow, broken or gone costs
turns nothing: they only ever append to a bounded buffer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import Any, Literal

from attrs import Factory, frozen

from dooers.broadcast import Teller
from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.models import Change, Thread
from dooers.protocol import iso
from dooers.turn import Clock

__all__ = ["AnalyticsBatch", "AnalyticsEvent", "AnalyticsEventPayload", "Collector", "FeedbackData", "events_of"]

log = logging.getLogger("dooers")

# How many events wait for a webhook that does not take them; older ones are dropped and counted.
BUFFER = 10_000
ATTEMPTS = 4
FIRST_WAIT = 0.5
TIMEOUT = 10.0


class AnalyticsEvent(str, Enum):  # noqa: UP042  see SettingsFieldType
    """The events that come by themselves, and those of feedback. `track` takes any other name."""

    THREAD_CREATED = "thread.created"
    MESSAGE_C2S = "message.c2s"
    MESSAGE_S2C = "message.s2c"
    TOOL_CALLED = "tool.called"
    ERROR_OCCURRED = "error.occurred"
    FEEDBACK_LIKE = "feedback.like"
    FEEDBACK_DISLIKE = "feedback.dislike"


@frozen(kw_only=True)
class AnalyticsEventPayload:
    """One event, as the `analytics.event` frame and the webhook's batches carry it."""

    event: str
    timestamp: datetime
    worker_id: str
    thread_id: str | None = None
    user_id: str | None = None
    run_id: str | None = None
    event_id: str | None = None
    data: dict[str, Any] | None = None

    def out(self) -> dict[str, Any]:
        """The payload on the wire, nulls included."""
        return {
            "event": self.event,
            "timestamp": iso(self.timestamp),
            "worker_id": self.worker_id,
            "agent_id": self.worker_id,
            "thread_id": self.thread_id,
            "user_id": self.user_id,
            "run_id": self.run_id,
            "event_id": self.event_id,
            "data": self.data,
        }


@frozen(kw_only=True)
class AnalyticsBatch:
    """What one POST to the webhook carries. A batch that is sent again keeps its `batch_id`."""

    batch_id: str
    worker_id: str
    events: list[AnalyticsEventPayload] = Factory(list)
    sent_at: datetime

    def out(self) -> dict[str, Any]:
        """The JSON of the POST."""
        return {
            "batch_id": self.batch_id,
            "worker_id": self.worker_id,
            "events": [event.out() for event in self.events],
            "sent_at": iso(self.sent_at),
        }


@frozen(kw_only=True)
class FeedbackData:
    """What somebody liked or disliked, and why."""

    target_type: Literal["event", "run", "thread"]
    target_id: str
    reason: str | None = None
    classification: str | None = None


def events_of(change: Change) -> Iterator[AnalyticsEventPayload]:
    """The automatic events of a stored Change."""
    thread = change.thread
    base: dict[str, Any] = {"worker_id": thread.worker_id, "thread_id": thread.id, "user_id": thread.user_id}
    if change.created:
        yield AnalyticsEventPayload(event="thread.created", timestamp=thread.created_at, **base)
    for event in change.events:
        name = "error.occurred" if event.notice else _AUTOMATIC.get((event.type, event.actor))
        if name is None:
            continue
        data: dict[str, Any] | None = {"name": (event.data or {}).get("name")} if name == "tool.called" else None
        if name == "message.s2c":
            data = {"type": event.content[0].type if event.content else "text"}
        yield AnalyticsEventPayload(
            event=name,
            timestamp=event.created_at,
            run_id=event.run_id,
            event_id=event.id,
            data=data,
            **{**base, "user_id": event.user_id if event.user_id is not None else thread.user_id},
        )


_AUTOMATIC = {
    ("message", "user"): "message.c2s",
    ("message", "assistant"): "message.s2c",
    ("tool.call", "assistant"): "tool.called",
    ("tool.transaction", "assistant"): "tool.called",
}


class Collector:
    """Takes events and passes them on: at once to subscribers of this process, in batches to the webhook."""

    def __init__(self, config: WorkerConfig, teller: Teller, clock: Clock) -> None:
        self._config = config
        self._teller = teller
        self._clock = clock
        self._buffer: deque[AnalyticsEventPayload] = deque(maxlen=BUFFER)
        self._enough = asyncio.Event()
        self._closing = False
        self._sender: asyncio.Task[None] | None = None
        self._under_way = 0
        self.dropped = 0

    def observe(self, change: Change) -> None:
        """Take the automatic events of a Change that this process has stored."""
        if self._config.analytics_enabled:
            for payload in events_of(change):
                # Only here: other processes hear of the Change, and make their own of it.
                self._tell(payload, change.thread, here=True)
                self._keep(payload)

    def show(self, change: Change) -> None:
        """Show live subscribers here the automatic events of a Change that another process stored, and delivers."""
        if self._config.analytics_enabled:
            for payload in events_of(change):
                self._tell(payload, change.thread, here=True)

    def track(self, payload: AnalyticsEventPayload, thread: Thread | None) -> None:
        """Take one event. Live subscribers hear of it if they may see its thread; without a thread only the webhook does."""
        if self._config.analytics_enabled:
            if thread is not None:
                self._tell(payload, thread, here=False)
            self._keep(payload)

    def _tell(self, payload: AnalyticsEventPayload, thread: Thread, *, here: bool) -> None:
        self._teller.tell("analytics", payload.worker_id, "analytics.event", payload.out(), thread, here=here)

    def _keep(self, payload: AnalyticsEventPayload) -> None:
        if self._config.analytics_webhook_url is not None:
            if len(self._buffer) == BUFFER:
                self.dropped += 1
            self._buffer.append(payload)
            self._have_sender()
            if len(self._buffer) >= self._config.analytics_batch_size:
                self._enough.set()

    def _have_sender(self) -> asyncio.Task[None]:
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_batches(), name="dooers-analytics")
        return self._sender

    async def close(self) -> None:
        """Send what is left, within the time of one attempt, then stop."""
        if self._sender is None:
            return
        self._closing = True
        self._enough.set()
        # A loop that ends has cancelled the sender before it comes to us; what is left deserves its one attempt all the same.
        sender = self._have_sender() if self._buffer else self._sender
        try:
            await asyncio.wait([sender], timeout=TIMEOUT)
        finally:  # also where who closes has less time than that
            sender.cancel()
            await asyncio.wait([sender])
            self._count_lost()

    def _count_lost(self) -> None:
        lost = len(self._buffer) + self._under_way
        if lost:
            self.dropped += lost
            log.warning("analytics: %d events were not delivered before the worker closed", lost)
        self._buffer.clear()
        self._under_way = 0
        self._sender = None

    async def _send_batches(self) -> None:
        import httpx

        # The URL may hold a token, and httpx logs each URL that it asks.
        with _unlogged(httpx.URL(self._config.analytics_webhook_url or "")):
            async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                await self._send_all(client)

    async def _send_all(self, client: Any) -> None:
        while not (self._closing and not self._buffer):
            try:
                async with asyncio.timeout(self._config.analytics_flush_interval):
                    await self._enough.wait()
            except TimeoutError:
                pass  # the interval is over: send what there is, even if it is not a full batch
            self._enough.clear()
            while self._buffer:
                await self._deliver(client)

    async def _deliver(self, client: Any) -> None:
        count = min(len(self._buffer), self._config.analytics_batch_size)
        events = [self._buffer.popleft() for _ in range(count)]
        self._under_way += count
        for worker_id in dict.fromkeys(event.worker_id for event in events):
            batch = AnalyticsBatch(
                batch_id=self._clock.new_id(),
                worker_id=worker_id,
                events=[event for event in events if event.worker_id == worker_id],
                sent_at=self._clock.now(),
            )
            await self._post(client, batch)
            self._under_way -= len(batch.events)

    async def _post(self, client: Any, batch: AnalyticsBatch) -> None:
        try:
            body = dumps(batch.out())
        except Exception:
            log.exception("analytics: a batch has no JSON form; %d events dropped", len(batch.events))
            self.dropped += len(batch.events)
            return
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0 if self._closing else FIRST_WAIT * 2**attempt)
            try:
                answer = await client.post(
                    self._config.analytics_webhook_url, content=body, headers={"content-type": "application/json"}
                )
            except Exception as error:  # whatever the network does, the next attempt may work
                log.info("analytics: batch %s was not delivered: %r", batch.batch_id, error)
                continue
            if answer.is_success:
                return
            if answer.status_code < 500 and answer.status_code != 429:
                break
        self.dropped += len(batch.events)
        log.warning("analytics: %d events dropped, the webhook does not take them", len(batch.events))


@contextmanager
def _unlogged(url: Any) -> Iterator[None]:
    """Keep a URL out of what httpx logs, inside this block."""

    def unseen(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple("the analytics webhook" if arg == url else arg for arg in record.args)
        return True

    logger = logging.getLogger("httpx")
    logger.addFilter(unseen)
    try:
        yield
    finally:
        logger.removeFilter(unseen)
