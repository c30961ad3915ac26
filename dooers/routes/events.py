"""Frames about what is said in a thread: post a message, stop the answer, page through."""

from __future__ import annotations

from typing import Any

from dooers.content import check_content
from dooers.exceptions import (
    InvalidCursorError,
    InvalidValueError,
    NotConfiguredError,
    RateLimitedError,
)
from dooers.models import check_id
from dooers.openturn import Message, OpenTurn
from dooers.protocol import (
    ClientFrame,
    EventCreate,
    EventList,
    RunCancel,
    ack,
    appended,
    event_out,
)
from dooers.routes.desk import Desk, begin_without, page_size, room_for, seen_thread
from dooers.session import Session
from dooers.turn import repeat_key

__all__ = ["event_create", "event_list", "run_cancel"]


async def event_create(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """A message: stored, told, acknowledged, and only then answered, in a task that is not the session's."""
    payload: EventCreate = frame.payload
    if desk.handler is None:
        raise NotConfiguredError("this worker has no handler: nobody would answer")
    content = payload.event.content
    check_content(content, desk.config, "payload.event.content")
    if not content and payload.event.data is None:
        raise InvalidValueError("payload.event.content: expected at least one part")
    await _check_post(desk, session, payload.thread_id)
    key = None if payload.client_event_id is None else check_id(payload.client_event_id, "payload.client_event_id")
    thread_id = desk.clock.new_id() if payload.thread_id is None else payload.thread_id
    message = Message(
        worker_id=session.worker_id,
        identity=session.access.identity,
        content=content,
        handler=desk.handler,
        thread_id=thread_id,
        create=payload.thread_id is None,
        data=payload.event.data,
        client_event_id=key,
        repeat_key=None if key is None else repeat_key("client", session.worker_id, session.access.identity, key),
        from_client=True,
    )
    room_for(desk, session, thread_id)
    # Before the message is stored, so that its sender cannot miss it.
    fresh = desk.broadcast.subscribe(session, thread_id)
    if fresh:
        begin_without(desk, session, thread_id)

    def known(opened: OpenTurn) -> None:
        """It came before: it is shown where it is. At once, as its thread may be deleted in the next moment."""
        if fresh and thread_id != opened.thread.id:
            desk.broadcast.unsubscribe(session, thread_id)
        # Who has lost sight of a thread since, or shares an empty user id with somebody, learns that it is a repeat, and no more.
        if session.sees(opened.thread):
            if desk.broadcast.is_here(session) and desk.broadcast.subscribe(session, opened.thread.id):
                begin_without(desk, session, opened.thread.id)
            session.send("event.append", appended(opened.thread.id, [opened.event]))

    def accept(opened: OpenTurn) -> None:
        session.send("ack", ack(frame.id))
        if not opened.repeated:
            session.quota.begin_turn(opened.over)
            desk.runner.start(opened)

    try:
        with session.quota.posting():
            await desk.runner.open(message, accept, known)
    except Exception:
        if fresh:
            desk.broadcast.unsubscribe(session, thread_id)
        raise


async def _check_post(desk: Desk, session: Session, thread_id: str | None) -> None:
    """Whether somebody may post there. The store makes sure, as it writes, that the thread lies in their scope."""
    if session.quota.turns >= desk.config.max_turns_per_identity:
        raise RateLimitedError(f"at most {desk.config.max_turns_per_identity} messages may wait for an answer at once")
    if thread_id is not None and not session.access.sees_all:
        await seen_thread(desk, session, "thread.post", thread_id)
    else:
        session.access.check("thread.post")


async def run_cancel(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Stop a run, or whatever runs and waits in a thread. What has ended already is stopped already."""
    payload: RunCancel = frame.payload
    thread_id, run_id = payload.thread_id, payload.run_id
    if (thread_id is None) == (run_id is None):
        raise InvalidValueError("payload: expected a run_id or a thread_id, one of the two")
    named = thread_id
    if run_id is not None:
        run = await desk.store.run(run_id)
        named = None if run is None else run.thread_id  # no run: the same answer as for a run of somebody else
    await seen_thread(desk, session, "run.cancel", named)
    session.send("ack", ack(frame.id))
    desk.runner.cancel(thread_id=thread_id, run_id=run_id)


async def event_list(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: EventList = frame.payload
    limit = page_size(desk, session, payload.limit)
    found, events = await desk.store.page(payload.thread_id, before_event_id=payload.before_event_id, limit=limit + 1)
    thread = session.access.seen(found)
    if events is None:
        raise InvalidCursorError("payload.before_event_id: is no event of this thread")
    page = events[-limit:]
    result: dict[str, Any] = {
        "thread_id": thread.id,
        "events": [event_out(event) for event in page],
        "has_more": len(events) > limit,
    }
    if len(events) > limit:
        result["cursor"] = page[0].id
    session.send("event.list.result", result)
