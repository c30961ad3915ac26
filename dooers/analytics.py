"""Analytics: what happened, told live to subscribers and, only if a URL is set, handed to the webhook. Never on a turn's path.

`events_of` says which events a Change is worth; the Collector passes them on. How they are delivered is `webhook.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from typing import Any, Literal

from attrs import Factory, frozen

from dooers.broadcast import Teller
from dooers.config import WorkerConfig
from dooers.models import Change, Thread
from dooers.protocol import iso
from dooers.turn import Clock
from dooers.webhook import Webhook

__all__ = ["AnalyticsBatch", "AnalyticsEvent", "AnalyticsEventPayload", "Collector", "FeedbackData", "events_of"]


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
    """Takes events and passes them on: at once to subscribers of this process, and to the webhook where there is one."""

    def __init__(self, config: WorkerConfig, teller: Teller, clock: Clock) -> None:
        self._enabled = config.analytics_enabled
        self._teller = teller
        self.webhook = Webhook(config, clock) if self._enabled and config.analytics_webhook_url is not None else None

    def observe(self, change: Change) -> None:
        """Take the automatic events of a Change that this process has stored."""
        if self._enabled and self._is_heard(change):
            for payload in events_of(change):
                # Only here: other processes hear of the Change, and make their own of it.
                self._pass_on(payload, change.thread, here=True)

    def _is_heard(self, change: Change) -> bool:
        # Asked before a payload is made: nobody listens to most of them.
        return self.webhook is not None or self._teller.is_followed("analytics", change.thread.worker_id)

    def show(self, change: Change) -> None:
        """Show live subscribers here the automatic events of a Change that another process stored, and delivers."""
        if self._enabled and self._is_heard(change):
            for payload in events_of(change):
                self._tell(payload, payload.out(), change.thread, here=True)

    def track(self, payload: AnalyticsEventPayload, thread: Thread | None) -> None:
        """Take one event. Live subscribers hear of it if they may see its thread; without a thread only the webhook does."""
        if self._enabled:
            self._pass_on(payload, thread, here=False)

    def _pass_on(self, payload: AnalyticsEventPayload, thread: Thread | None, *, here: bool) -> None:
        out = payload.out()
        if thread is not None:
            self._tell(payload, out, thread, here=here)
        if self.webhook is not None:
            self.webhook.take(payload.worker_id, payload.event, out)

    def _tell(self, payload: AnalyticsEventPayload, out: dict[str, Any], thread: Thread, *, here: bool) -> None:
        self._teller.tell("analytics", payload.worker_id, "analytics.event", out, thread, here=here)

    async def close(self, within: float = 10.0) -> None:
        """Deliver what is left, in that many seconds at the most; what is not delivered by then is counted as dropped."""
        if self.webhook is not None:
            await self.webhook.close(within)

    # ------------------------------------------------------------ counters, all 0 without a webhook

    @property
    def delivered(self) -> int:
        """Events that the webhook has taken."""
        return 0 if self.webhook is None else self.webhook.delivered

    @property
    def dropped(self) -> int:
        """Events that the webhook will never see."""
        return 0 if self.webhook is None else self.webhook.dropped

    @property
    def waiting(self) -> int:
        """Events in the buffer and under way."""
        return 0 if self.webhook is None else self.webhook.waiting

    @property
    def failed_attempts(self) -> int:
        """Requests to the webhook that it did not answer with a 2xx."""
        return 0 if self.webhook is None else self.webhook.failed_attempts
