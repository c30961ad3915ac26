"""Frames about what people think of answers, and what happens here at large: feedback and analytics."""

from __future__ import annotations

from dooers.analytics import AnalyticsEvent, AnalyticsEventPayload
from dooers.exceptions import TooLargeError
from dooers.models import Thread
from dooers.protocol import (
    ClientFrame,
    Feedback,
    WorkerName,
    ack,
)
from dooers.routes.desk import Desk, own_worker
from dooers.session import Session

__all__ = ["analytics_subscribe", "analytics_unsubscribe", "feedback"]


async def feedback(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: Feedback = frame.payload
    thread, run_id, event_id = await _target(desk, payload.target_type, payload.target_id)
    thread = session.access.seen(thread)
    session.access.check("feedback", thread)
    for name in ("reason", "classification"):
        if len(getattr(payload, name) or "") > desk.config.max_text_length:
            raise TooLargeError(f"payload.{name}: at most {desk.config.max_text_length} characters")
    liked = AnalyticsEvent.FEEDBACK_LIKE if payload.feedback == "like" else AnalyticsEvent.FEEDBACK_DISLIKE
    data = {
        "target_type": payload.target_type,
        "target_id": payload.target_id,
        "reason": payload.reason,
        "classification": payload.classification,
    }
    desk.collector.track(
        AnalyticsEventPayload(
            event=liked.value,
            timestamp=desk.clock.now(),
            worker_id=session.worker_id,
            thread_id=thread.id,
            user_id=session.access.identity.user_id,
            run_id=run_id,
            event_id=event_id,
            data=data,
        ),
        thread,
    )
    session.send(
        "feedback.ack",
        {
            "target_type": payload.target_type,
            "target_id": payload.target_id,
            "feedback": payload.feedback,
            "ok": True,
        },
    )


async def _target(desk: Desk, kind: str, target_id: str) -> tuple[Thread | None, str | None, str | None]:
    """The thread that a feedback's target lies in, with the ids of its run and its event."""
    if kind == "thread":
        return await desk.store.thread(target_id), None, None
    if kind == "run":
        run = await desk.store.run(target_id)
        return (None if run is None else await desk.store.thread(run.thread_id)), target_id, None
    event = await desk.store.event(target_id)
    if event is None:
        return None, None, None
    return await desk.store.thread(event.thread_id), event.run_id, target_id


async def analytics_subscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: WorkerName = frame.payload
    own_worker(session, payload.agent_id, payload.worker_id)
    session.access.check("analytics.read")
    desk.broadcast.follow(session, "analytics", session.worker_id)
    session.send("ack", ack(frame.id))


async def analytics_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: WorkerName = frame.payload
    own_worker(session, payload.agent_id, payload.worker_id)
    desk.broadcast.unfollow(session, "analytics", session.worker_id)
    session.send("ack", ack(frame.id))
