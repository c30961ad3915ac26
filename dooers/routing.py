"""What each client frame does: one small function a frame type, found in the table `ROUTES`. No SQL, no frames made by hand.

Every function gets the session that asked and the frame that was read, and answers by `session.send`. What it raises becomes an
`ack ok:false` with the error's code.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs
from attrs import frozen

from dooers.access import check_visible
from dooers.analytics import AnalyticsEvent, AnalyticsEventPayload, Collector
from dooers.broadcast import Broadcast
from dooers.config import WorkerConfig
from dooers.context import WorkerSettings
from dooers.exceptions import (
    AlreadyConnectedError,
    DooersError,
    ForbiddenError,
    InvalidCursorError,
    InvalidValueError,
    NotConfiguredError,
    NotConnectedError,
    NotFoundError,
    TooLargeError,
    UnauthenticatedError,
)
from dooers.models import Change, EventQuery, Identity, Thread, ThreadQuery
from dooers.openturn import Handler, Message, OpenTurn
from dooers.protocol import (
    CLIENT,
    VERSION,
    ClientFrame,
    Connect,
    EventCreate,
    EventList,
    Feedback,
    RunCancel,
    SettingsPatch,
    SettingsSubscribe,
    ThreadList,
    ThreadName,
    ThreadSubscribe,
    WorkerName,
    ack,
    appended,
    event_out,
    read_cursor,
    refusal,
    thread_out,
    write_cursor,
)
from dooers.resume import send_snapshot
from dooers.runner import Runner
from dooers.schema import SettingsSchema
from dooers.session import NOT_YOU, WHO_ARE_YOU, AuthRequest, Session
from dooers.settings import public_schema
from dooers.stores import Store
from dooers.turn import Clock, repeat_key

__all__ = ["ROUTES", "Authenticate", "Desk"]

log = logging.getLogger("dooers")

Authenticate: TypeAlias = Callable[[AuthRequest], "Awaitable[Identity | None] | Identity | None"]

PAGE, MAX_PAGE = 50, 200
CAPABILITIES = ["deltas", "run.cancel"]


@frozen(kw_only=True)
class Desk:
    """Where frames are answered: the parts of the worker that routes need, and the handler of this door."""

    config: WorkerConfig
    store: Store
    broadcast: Broadcast
    collector: Collector
    runner: Runner
    clock: Clock
    settings: Callable[[str], WorkerSettings]
    schema: SettingsSchema | None
    handler: Handler | None
    authenticate: Authenticate | None

    async def route(self, session: Session, frame: ClientFrame) -> None:
        """Answer one frame of a session."""
        if session.identity is None and frame.type not in _BEFORE_CONNECT:
            raise NotConnectedError("send `connect` first")
        await ROUTES[frame.type](self, session, frame)


# ---------------------------------------------------------------- the connection


async def connect(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Decide who this is, once."""
    payload: Connect = frame.payload
    if session.identity is not None:
        raise AlreadyConnectedError("this socket has an identity already; open another one")
    try:
        identity = await _identity(desk, session, payload)
    except DooersError as error:
        session.send("ack", refusal(frame.id, error))
        session.close(WHO_ARE_YOU if isinstance(error, UnauthenticatedError) else NOT_YOU)
        return
    session.connected(payload.worker_id, identity, payload.dialect, payload.capabilities)
    server = {"name": "dooers-workers-server", "version": VERSION, "capabilities": CAPABILITIES}
    session.send("ack", ack(frame.id, server=server))


async def _identity(desk: Desk, session: Session, payload: Connect) -> Identity:
    if desk.authenticate is None:
        return payload.identity
    request = AuthRequest.of(session.socket.scope, payload.worker_id, payload.identity, payload.auth_token)
    identity: Any
    try:
        identity = desk.authenticate(request)
        if inspect.isawaitable(identity):
            identity = await identity
    except (UnauthenticatedError, ForbiddenError):
        raise
    except Exception:
        log.exception("the authenticate hook failed; the connection is refused")
        identity = None
    if isinstance(identity, Identity):
        return identity
    if identity is not None:
        log.error("the authenticate hook returned %r, which is neither an Identity nor None; refused", type(identity))
    raise UnauthenticatedError("this connection is not allowed")


async def ping(desk: Desk, session: Session, frame: ClientFrame) -> None:
    session.send("pong", {})


# ---------------------------------------------------------------- threads


async def thread_list(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadList = frame.payload
    limit = _page(payload.limit)
    equal = {name: value for name, value in attrs.asdict(session.scope).items() if value is not None}
    threads: list[Thread] = []
    total = 0
    before = None if payload.cursor is None else read_cursor(payload.cursor)
    session.hold()  # what is told of a thread while the page is read must come after it: the page may be the older news
    try:
        if session.scope.user_id != "":  # where threads are private, nobody's threads are nobody's to see
            threads = await desk.store.threads(ThreadQuery(equal=equal, limit=limit + 1, before=before))
            total = await desk.store.count_threads(equal)
        page = threads[:limit]
        result: dict[str, Any] = {"threads": [thread_out(one, session.dialect) for one in page], "total_count": total}
        if len(threads) > limit:
            result["cursor"] = write_cursor(page[-1])
        session.send("thread.list.result", result)
    finally:
        session.release()


async def thread_subscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Snapshot, then live: what is published while the snapshot is read is held back and follows it."""
    payload: ThreadSubscribe = frame.payload
    was_live = desk.broadcast.is_subscribed(session, payload.thread_id)
    if not was_live and desk.broadcast.subscriptions(session) >= desk.config.max_subscriptions:
        raise TooLargeError(f"at most {desk.config.max_subscriptions} subscriptions; unsubscribe from some first")
    desk.broadcast.hold(session, payload.thread_id)
    try:
        thread = await send_snapshot(desk.store, desk.runner, session, payload)
    except BaseException as error:
        if was_live and not isinstance(error, NotFoundError):
            _begin_without(desk, session, payload.thread_id)
            desk.broadcast.release(session, payload.thread_id, 0)  # no snapshot this time; what was live stays so
        else:
            desk.broadcast.unsubscribe(session, payload.thread_id)
        raise
    desk.broadcast.release(session, thread.id, thread.last_seq)


async def thread_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadName = frame.payload
    desk.broadcast.unsubscribe(session, payload.thread_id)
    session.send("ack", ack(frame.id))


async def thread_delete(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: ThreadName = frame.payload
    thread = check_visible(await desk.store.thread(payload.thread_id), session.scope)
    await desk.runner.commit(Change(thread=thread, removes=True, guard=session.scope))
    session.send("ack", ack(frame.id))


# ---------------------------------------------------------------- events


async def event_create(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """A message: stored, told, acknowledged, and only then answered, in a task that is not the session's."""
    payload: EventCreate = frame.payload
    if desk.handler is None:
        raise NotConfiguredError("this worker has no handler: nobody would answer")
    content = payload.event.content
    if len(content) > desk.config.max_content_parts:
        raise TooLargeError(f"payload.event.content: at most {desk.config.max_content_parts} parts, got {len(content)}")
    if not content and payload.event.data is None:
        raise InvalidValueError("payload.event.content: expected at least one part")
    assert session.identity is not None
    key = payload.client_event_id
    thread_id = desk.clock.new_id() if payload.thread_id is None else payload.thread_id
    message = Message(
        worker_id=session.worker_id,
        identity=session.identity,
        content=content,
        handler=desk.handler,
        thread_id=thread_id,
        create=payload.thread_id is None,
        data=payload.event.data,
        client_event_id=key,
        repeat_key=None if key is None else repeat_key("client", session.worker_id, session.identity, key),
    )
    # Before the message is stored, so that its sender cannot miss it.
    fresh = desk.broadcast.subscribe(session, thread_id)
    if fresh:
        _begin_without(desk, session, thread_id)

    def accept(opened: OpenTurn) -> None:
        if opened.repeated:
            if fresh and thread_id != opened.thread.id:
                desk.broadcast.unsubscribe(session, thread_id)
            if desk.broadcast.is_here(session) and desk.broadcast.subscribe(session, opened.thread.id):
                _begin_without(desk, session, opened.thread.id)
            session.send("event.append", appended(opened.thread.id, [opened.event]))
        session.send("ack", ack(frame.id))
        if not opened.repeated:
            desk.runner.start(opened)

    try:
        await desk.runner.open(message, accept)
    except Exception:
        if fresh:
            desk.broadcast.unsubscribe(session, thread_id)
        raise


def _begin_without(desk: Desk, session: Session, thread_id: str) -> None:
    """A session goes live without a snapshot: pieces of what is being written just now would lack their beginning."""
    session.go_without(event.id for event in desk.runner.growing(thread_id))


async def run_cancel(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Stop a run, or whatever runs and waits in a thread. What has ended already is stopped already."""
    payload: RunCancel = frame.payload
    thread_id, run_id = payload.thread_id, payload.run_id
    if (thread_id is None) == (run_id is None):
        raise InvalidValueError("payload: expected a run_id or a thread_id, one of the two")
    if run_id is not None:
        run = await desk.store.run(run_id)
        if run is None:
            raise NotFoundError("there is no such run")
        check_visible(await desk.store.thread(run.thread_id), session.scope)
    else:
        check_visible(await desk.store.thread(thread_id or ""), session.scope)
    session.send("ack", ack(frame.id))
    desk.runner.cancel(thread_id=thread_id, run_id=run_id)


async def event_list(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: EventList = frame.payload
    limit = _page(payload.limit)
    thread = check_visible(await desk.store.thread(payload.thread_id), session.scope)
    before_seq = None
    if payload.before_event_id is not None:
        before = await desk.store.event(payload.before_event_id)
        if before is None or before.thread_id != thread.id:
            raise InvalidCursorError("payload.before_event_id: is no event of this thread")
        before_seq = before.seq
    events = await desk.store.events(EventQuery(thread_id=thread.id, before_seq=before_seq, limit=limit + 1))
    page = events[-limit:]
    result: dict[str, Any] = {
        "thread_id": thread.id,
        "events": [event_out(event) for event in page],
        "has_more": len(events) > limit,
    }
    if len(events) > limit:
        result["cursor"] = page[0].id
    session.send("event.list.result", result)


# ---------------------------------------------------------------- settings


async def settings_subscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: SettingsSubscribe = frame.payload
    _own_worker(session, payload.agent_id, payload.worker_id)
    _schema(desk)
    session.hold()  # a patch that is told while the snapshot is read must come after it
    try:
        desk.broadcast.follow(session, "settings", session.worker_id)
        session.send("settings.snapshot", await desk.settings(session.worker_id).snapshot())
    except BaseException:
        desk.broadcast.unfollow(session, "settings", session.worker_id)
        raise
    finally:
        session.release()
    session.send("ack", ack(frame.id))


async def settings_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: WorkerName = frame.payload
    _own_worker(session, payload.agent_id, payload.worker_id)
    desk.broadcast.unfollow(session, "settings", session.worker_id)
    session.send("ack", ack(frame.id))


async def settings_patch(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: SettingsPatch = frame.payload
    _schema(desk)
    await desk.settings(session.worker_id).patch(payload.field_id, payload.value)
    session.send("ack", ack(frame.id))


async def settings_public_schema(desk: Desk, session: Session, frame: ClientFrame) -> None:
    session.send("settings.public_schema.result", {"schema": public_schema(_schema(desk))}, frame.id)


# ---------------------------------------------------------------- feedback and analytics


async def feedback(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: Feedback = frame.payload
    thread, run_id, event_id = await _target(desk, payload.target_type, payload.target_id)
    thread = check_visible(thread, session.scope)
    assert session.identity is not None
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
            user_id=session.identity.user_id,
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
    _own_worker(session, payload.agent_id, payload.worker_id)
    desk.broadcast.follow(session, "analytics", session.worker_id)
    session.send("ack", ack(frame.id))


async def analytics_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: WorkerName = frame.payload
    _own_worker(session, payload.agent_id, payload.worker_id)
    desk.broadcast.unfollow(session, "analytics", session.worker_id)
    session.send("ack", ack(frame.id))


ROUTES: dict[str, Callable[[Desk, Session, ClientFrame], Awaitable[None]]] = {
    "connect": connect,
    "ping": ping,
    "thread.list": thread_list,
    "thread.subscribe": thread_subscribe,
    "thread.unsubscribe": thread_unsubscribe,
    "thread.delete": thread_delete,
    "event.create": event_create,
    "event.list": event_list,
    "run.cancel": run_cancel,
    "settings.subscribe": settings_subscribe,
    "settings.unsubscribe": settings_unsubscribe,
    "settings.patch": settings_patch,
    "settings.public_schema": settings_public_schema,
    "feedback": feedback,
    "analytics.subscribe": analytics_subscribe,
    "analytics.unsubscribe": analytics_unsubscribe,
}
assert ROUTES.keys() == CLIENT.keys(), "every client frame has a route"

_BEFORE_CONNECT = {"connect", "ping", "settings.public_schema"}


# ---------------------------------------------------------------- what several of them need


def _page(limit: int | None) -> int:
    if limit is None:
        return PAGE
    if limit < 1:
        raise InvalidValueError(f"payload.limit: expected 1 to {MAX_PAGE}, got {limit}")
    return min(limit, MAX_PAGE)


def _own_worker(session: Session, *names: str | None) -> None:
    """A frame that names a worker names the one it is connected to; any other is as if it did not exist."""
    for name in names:
        if name is not None and name != session.worker_id:
            raise NotFoundError("there is no such worker")


def _schema(desk: Desk) -> SettingsSchema:
    if desk.schema is None:
        raise NotConfiguredError("this worker has no settings")
    return desk.schema
