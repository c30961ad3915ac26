"""Frames about threads: list them, follow one, let one go, name one, delete one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

import attrs
from attrs import evolve

from dooers.content import one_line
from dooers.exceptions import (
    NotFoundError,
)
from dooers.models import Change, Thread, ThreadQuery
from dooers.protocol import (
    ClientFrame,
    ThreadList,
    ThreadName,
    ThreadSubscribe,
    ThreadUpdate,
    ack,
    read_cursor,
    thread_out,
    write_cursor,
)
from dooers.quota import ROWS, WALKED
from dooers.resume import send_snapshot
from dooers.routes.desk import Desk, begin_without, page_size, room_for, seen_thread
from dooers.session import Session
from dooers.stores import PAGE
from dooers.stores.titles import is_in, pattern_of

__all__ = ["thread_delete", "thread_list", "thread_subscribe", "thread_unsubscribe", "thread_update"]

# A page holds only what somebody may see; one that has to look at this many times its size for that ends early, with a cursor.
LOOKS = 10
# So does one that looks for titles, when it has walked past this many threads.
WALK = 10_000

_Place: TypeAlias = tuple[datetime, str]


async def thread_list(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadList = frame.payload
    limit = page_size(desk, session, payload.limit)
    session.access.check("thread.read")
    query = ThreadQuery(
        equal={name: value for name, value in attrs.asdict(session.scope).items() if value is not None},
        limit=limit + 1,
        before=None if payload.cursor is None else read_cursor(payload.cursor),
        containing=one_line(payload.query, "payload.query"),
    )
    session.hold()  # what is told of a thread while the page is read must come after it: the page may be the older news
    try:
        page, more = await _threads(desk, session, query)
        result: dict[str, Any] = {"threads": [thread_out(one, session.dialect) for one in page]}
        if session.access.sees_all:  # else the number would tell of threads that this one does not see
            result["total_count"] = await _total(desk, session, query, page, more)
        if more is not None:
            result["cursor"] = write_cursor(*more)
        session.send("thread.list.result", result)
    finally:
        session.release()


async def _total(desk: Desk, session: Session, query: ThreadQuery, page: list[Thread], more: _Place | None) -> int:
    if _is_nobody(session) or (query.before is None and more is None):
        return len(page)  # that is all of them
    return await desk.totals.of(query.equal, query.containing)


async def _threads(desk: Desk, session: Session, query: ThreadQuery) -> tuple[list[Thread], _Place | None]:
    """A page of the threads that somebody sees, and where the next one begins: after this place, or nowhere.

    The query asks for one more than the page may hold.
    """
    page: list[Thread] = []
    if _is_nobody(session):
        return page, None
    wanted = _is_wanted(session, query)
    if not session.access.sees_all:
        # The store looks for no titles then: how far a page gets would tell what is in those that are hidden.
        query = evolve(query, containing=None)
    elif query.containing is not None:
        query = evolve(query, until=await desk.store.reach(query, WALK))
        session.quota.bucket.charge(0 if query.until is None else WALK / WALKED)
    for _ in range(LOOKS):
        found = await desk.store.threads(query)
        for thread in found:
            if not wanted(thread):
                continue
            if len(page) == query.limit - 1:
                return page, (page[-1].last_event_at, page[-1].id)
            page.append(thread)
        if len(found) < query.limit:
            return page, None if query.until is None else await _from(desk, query, query.until)
        query = evolve(query, before=(found[-1].last_event_at, found[-1].id))
    assert query.before is not None
    return page, await _from(desk, query, query.before)


def _is_wanted(session: Session, query: ThreadQuery) -> Callable[[Thread], bool]:
    pattern = pattern_of(query.containing or "")
    return lambda thread: (not pattern or is_in(pattern, thread.title)) and session.sees(thread)


async def _from(desk: Desk, query: ThreadQuery, place: _Place) -> _Place | None:
    """Where to look on, None at the end. The id is left out, for it may be hidden; the time alone will do, unless the next has the
    very same."""
    after = await desk.store.threads(ThreadQuery(equal=query.equal, limit=1, before=place))
    if not after:
        return None
    return place if after[0].last_event_at == place[0] else (place[0], "")


def _is_nobody(session: Session) -> bool:
    # Where threads are private, nobody's threads are nobody's to see.
    return session.scope.user_id == ""


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


async def thread_update(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """A new title, whatever else goes on in the thread: nothing but its column is written."""
    payload: ThreadUpdate = frame.payload
    thread = await seen_thread(desk, session, "thread.update", payload.thread_id)
    patch = {"title": one_line(payload.title, "payload.title"), "updated_at": desk.clock.now()}
    await desk.runner.commit(Change(thread=thread, patch=patch, guard=session.scope))
    session.send("ack", ack(frame.id))


async def thread_delete(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadName = frame.payload
    thread = await seen_thread(desk, session, "thread.delete", payload.thread_id)
    await desk.runner.commit(Change(thread=thread, removes=True, guard=session.scope))
    session.send("ack", ack(frame.id))
