"""The desk at which frames are answered: the parts of the worker that routes need, and what several of them ask.

Not a route itself, and nothing that is one route's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from attrs import frozen

from dooers.access import Policy
from dooers.analytics import Collector
from dooers.broadcast import Broadcast
from dooers.config import WorkerConfig
from dooers.context import WorkerSettings
from dooers.exceptions import (
    InvalidValueError,
    NotConfiguredError,
    NotFoundError,
    TooLargeError,
)
from dooers.models import Identity, Operation, Thread
from dooers.openturn import Handler
from dooers.quota import ROWS, Quotas
from dooers.relay import Relay
from dooers.runner import Runner
from dooers.schema import SettingsSchema
from dooers.session import AuthRequest, Session
from dooers.stores import Store
from dooers.totals import Totals
from dooers.turn import Clock

__all__ = ["Authenticate", "Desk", "begin_without", "need_schema", "own_worker", "page_size", "room_for", "seen_thread"]

Authenticate: TypeAlias = Callable[[AuthRequest], "Awaitable[Identity | None] | Identity | None"]

USUAL = 50


@frozen(kw_only=True)
class Desk:
    """Where frames are answered: the parts of the worker that routes need, and the handler of this door."""

    config: WorkerConfig
    store: Store
    broadcast: Broadcast
    relay: Relay
    collector: Collector
    runner: Runner
    clock: Clock
    settings: Callable[[str], WorkerSettings]
    schema: SettingsSchema | None
    policy: Policy
    quotas: Quotas
    totals: Totals
    handler: Handler | None
    authenticate: Authenticate | None


async def seen_thread(desk: Desk, session: Session, operation: Operation, thread_id: str | None) -> Thread:
    """The thread, where this session sees it and may do that with it."""
    thread = session.access.seen(None if thread_id is None else await desk.store.thread(thread_id))
    session.access.check(operation, thread)
    return thread


def room_for(desk: Desk, session: Session, thread_id: str) -> bool:
    """Whether a session is subscribed to a thread already; if not, there is room for one more, or TooLargeError."""
    if desk.broadcast.is_subscribed(session, thread_id):
        return True
    taken = sum(desk.broadcast.subscriptions(one) for one in session.quota.connections)
    if taken >= desk.config.max_subscriptions:
        raise TooLargeError(f"at most {desk.config.max_subscriptions} subscriptions; unsubscribe from some first")
    return False


def page_size(desk: Desk, session: Session, limit: int | None) -> int:
    """How many rows a page has; a long one counts for several frames."""
    most = desk.config.max_page_size
    if limit is not None and limit < 1:
        raise InvalidValueError(f"payload.limit: expected 1 to {most}, got {limit}")
    size = min(USUAL if limit is None else limit, most)
    session.quota.bucket.charge(size / ROWS)
    return size


def own_worker(session: Session, *names: str | None) -> None:
    """A frame that names a worker names the one it is connected to; any other is as if it did not exist."""
    for name in names:
        if name is not None and name != session.worker_id:
            raise NotFoundError("there is no such worker")


def need_schema(desk: Desk) -> SettingsSchema:
    if desk.schema is None:
        raise NotConfiguredError("this worker has no settings")
    return desk.schema


def begin_without(desk: Desk, session: Session, thread_id: str) -> None:
    """A session goes live without a snapshot: pieces of what is being written just now would lack their beginning."""
    session.go_without(event.id for event in desk.runner.growing(thread_id))
