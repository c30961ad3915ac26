"""Frames about threads: list them, follow one, let one go, delete one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
from attrs import evolve

from dooers.exceptions import (
    NotFoundError,
)
from dooers.models import Change, Thread, ThreadQuery
from dooers.protocol import (
    ClientFrame,
    ThreadList,
    ThreadName,
    ThreadSubscribe,
    ack,
    read_cursor,
    thread_out,
    write_cursor,
)
from dooers.quota import ROWS
from dooers.resume import send_snapshot
from dooers.routes.desk import Desk, begin_without, page_size, room_for, seen_thread
from dooers.session import Session
from dooers.stores import PAGE

__all__ = ["thread_delete", "thread_list", "thread_subscribe", "thread_unsubscribe"]

# A page holds only what somebody may see; one that has to look at this many times its size for that ends early, with a cursor.
LOOKS = 10


async def thread_list(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadList = frame.payload
    limit = page_size(desk, session, payload.limit)
    session.access.check("thread.read")
    before = None if payload.cursor is None else read_cursor(payload.cursor)
    session.hold()  # what is told of a thread while the page is read must come after it: the page may be the older news
    try:
        page, more = await _threads(desk, session, limit, before)
        result: dict[str, Any] = {"threads": [thread_out(one, session.dialect) for one in page]}
        if session.access.sees_all:  # else the number would tell of threads that this one does not see
            result["total_count"] = 0 if _is_nobody(session) else await desk.store.count_threads(_equal(session))
        if more is not None:
            result["cursor"] = write_cursor(more)
        session.send("thread.list.result", result)
    finally:
        session.release()


async def _threads(
    desk: Desk, session: Session, limit: int, before: tuple[datetime, str] | None
) -> tuple[list[Thread], Thread | None]:
    """A page of the threads that somebody sees, and where the next one begins: after this thread, or nowhere."""
    page: list[Thread] = []
    if _is_nobody(session):
        return page, None
    for _ in range(LOOKS):
        found = await desk.store.threads(ThreadQuery(equal=_equal(session), limit=limit + 1, before=before))
        for thread in found:
            if not session.sees(thread):
                continue
            if len(page) == limit:
                return page, page[-1]
            page.append(thread)
        if len(found) <= limit:
            return page, None
        last = found[-1]
        before = (last.last_event_at, last.id)
    # Where to look on. Its id is left out, for it may be hidden; the time alone will do, unless the next has the very same.
    after = await desk.store.threads(ThreadQuery(equal=_equal(session), limit=1, before=before))
    return page, last if after and after[0].last_event_at == last.last_event_at else evolve(last, id="")


def _is_nobody(session: Session) -> bool:
    # Where threads are private, nobody's threads are nobody's to see.
    return session.scope.user_id == ""


def _equal(session: Session) -> dict[str, str]:
    return {name: value for name, value in attrs.asdict(session.scope).items() if value is not None}


async def thread_subscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Snapshot, then live: what is published while the snapshot is read is held back and follows it."""
    payload: ThreadSubscribe = frame.payload
    session.quota.bucket.charge(PAGE / ROWS)
    was_live = room_for(desk, session, payload.thread_id)
    desk.broadcast.hold(session, payload.thread_id)
    try:
        thread = await send_snapshot(desk.store, desk.runner, session, payload)
    except BaseException as error:
        if was_live and not isinstance(error, NotFoundError):
            begin_without(desk, session, payload.thread_id)
            desk.relay.release(session, payload.thread_id, None)  # no snapshot this time; what was live stays so
        else:
            desk.broadcast.unsubscribe(session, payload.thread_id)
        raise
    desk.relay.release(session, thread.id, thread)


async def thread_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadName = frame.payload
    desk.broadcast.unsubscribe(session, payload.thread_id)
    session.send("ack", ack(frame.id))


async def thread_delete(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadName = frame.payload
    thread = await seen_thread(desk, session, "thread.delete", payload.thread_id)
    await desk.runner.commit(Change(thread=thread, removes=True, guard=session.scope))
    session.send("ack", ack(frame.id))
