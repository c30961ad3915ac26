"""Which function answers which frame: the table, and the one rule that stands before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dooers.exceptions import NotConnectedError
from dooers.protocol import CLIENT, ClientFrame
from dooers.routes.connection import connect, ping
from dooers.routes.desk import Desk
from dooers.routes.events import event_create, event_list, run_cancel
from dooers.routes.opinions import analytics_subscribe, analytics_unsubscribe, feedback
from dooers.routes.settings import settings_patch, settings_public_schema, settings_subscribe, settings_unsubscribe
from dooers.routes.threads import thread_delete, thread_list, thread_subscribe, thread_unsubscribe, thread_update
from dooers.session import Session

__all__ = ["ROUTES", "route"]

ROUTES: dict[str, Callable[[Desk, Session, ClientFrame], Awaitable[None]]] = {
    "connect": connect,
    "ping": ping,
    "thread.list": thread_list,
    "thread.subscribe": thread_subscribe,
    "thread.unsubscribe": thread_unsubscribe,
    "thread.update": thread_update,
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


async def route(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Answer one frame of a session."""
    if session.identity is None and frame.type not in _BEFORE_CONNECT:
        raise NotConnectedError("send `connect` first")
    await ROUTES[frame.type](desk, session, frame)
