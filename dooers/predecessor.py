"""What programs written for the predecessor find under its names, in terms of what is here: `Metadata`, `worker.registry`,
`worker.broadcast`, `worker.persistence`. New programs need none of it: `docs/migrating.md` has what to use instead.

Nothing is decided here. What is written goes through the repository, so it is stored before anybody is told of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from warnings import warn

from dooers.analytics import Collector
from dooers.broadcast import Broadcast, Teller
from dooers.container import Worker
from dooers.context import WorkerAnalytics, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.dispatch import identity_of
from dooers.exceptions import ForbiddenError, InvalidValueError, NotFoundError
from dooers.models import (
    Actor,
    ContentPart,
    EventQuery,
    Identity,
    Metadata,
    Run,
    RunQuery,
    Thread,
    ThreadEvent,
    ThreadQuery,
)
from dooers.repository import check_limit
from dooers.send import WorkerEvent, WorkerSend

__all__ = ["BroadcastManager", "ConnectionRegistry", "Handler", "Persistence", "inner"]

# The classic form of a handler. `@worker.handler` takes more: fewer parameters, others, and coroutines.
Handler: TypeAlias = Callable[
    [WorkerIncoming, WorkerSend, WorkerMemory, WorkerAnalytics, WorkerSettings], AsyncIterator[WorkerEvent]
]

# Names that could be imported, and that nothing public ever gave out.
_INNER: dict[str, Any] = {"AnalyticsCollector": Collector, "SettingsBroadcaster": Teller}

Parts: TypeAlias = Callable[[], Awaitable[Worker]]


class ConnectionRegistry:
    """The connections to this process, by worker id."""

    def __init__(self, broadcast: Callable[[], Broadcast]) -> None:
        self._broadcast = broadcast

    def get_connection_count(self, worker_id: str) -> int:
        """How many connections this process has to a worker id."""
        return len(self._broadcast().members(worker_id))

    async def broadcast(self, worker_id: str, message: str) -> int:
        """Queue a text, as it is, for every connection that this process has to a worker id, whoever they are; for how many."""
        if not isinstance(message, str):
            raise InvalidValueError(f"broadcast(message): expected a text, got {type(message).__name__}")
        members = self._broadcast().members(worker_id)
        for member in members:
            member.put(message)
        return len(members)


class BroadcastManager:
    """Messages and threads from outside of a turn. Each call also says how many connections to this process it reached."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def send_event(
        self,
        worker_id: str,
        thread_id: str,
        content: Iterable[ContentPart | Mapping[str, Any] | str],
        actor: Actor = "system",
        metadata: Identity | Mapping[str, Any] | None = None,
        *,
        user_id: str | None = None,
        user_name: str | None = None,
        user_email: str | None = None,
    ) -> tuple[ThreadEvent, int]:
        """Append a message to a thread and tell who follows it; no handler runs, whoever the `actor` is.

        NotFoundError if there is no such thread, ForbiddenError if it is another worker id's.
        """
        parts = await self._parts()
        thread = await self._thread_of(parts, worker_id, thread_id)
        flat = {"user_id": user_id, "user_name": user_name, "user_email": user_email}
        by_nobody = metadata is None and actor != "user" and not any(flat.values())
        user = None if by_nobody else identity_of(metadata or Metadata(), **flat).user
        event = await parts.repository().create_event(thread_id, actor=actor, content=content, user=user)
        return event, parts.broadcast().audience(thread)[0]

    async def send_thread_update(self, worker_id: str, thread: Thread) -> int:
        """Store a thread's title as it is in `thread`, and tell who sees the thread."""
        parts = await self._parts()
        await self._thread_of(parts, worker_id, thread.id)
        updated = await parts.repository().update_thread(thread.id, title=thread.title)
        return 0 if updated is None else parts.broadcast().audience(updated)[1]

    async def create_thread_and_broadcast(
        self, worker_id: str, metadata: Identity | Mapping[str, Any] | None = None, title: str | None = None
    ) -> tuple[Thread, int]:
        """Open a thread without events, of whom `metadata` says, and tell who sees it."""
        parts = await self._parts()
        who = Metadata() if metadata is None else identity_of(metadata)
        thread = await parts.repository().create_thread(worker_id, title=title, metadata=who)
        return thread, parts.broadcast().audience(thread)[1]

    async def _thread_of(self, parts: Worker, worker_id: str, thread_id: str) -> Thread:
        thread = await parts.store().thread(thread_id)
        if thread is None:
            raise NotFoundError(f"there is no thread {thread_id!r}")
        if thread.worker_id != worker_id:
            raise ForbiddenError(f"thread {thread_id!r} does not belong to worker {worker_id!r}")
        return thread


class Persistence:
    """Reads and writes past the handler, with the predecessor's parameters; `worker.repository()` is what to use now.

    Not here: `create_event` (`worker.broadcast.send_event` or the repository's tell people too), and runs, which only turns have.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def get_thread(self, thread_id: str) -> Thread | None:
        """A thread, or None."""
        return await (await self._parts()).store().thread(thread_id)

    async def create_thread(self, thread: Thread) -> None:
        """Store a thread without events under its id; no harm if it is there. The times are those of now."""
        await (
            (await self._parts())
            .repository()
            .create_thread(
                thread.worker_id,
                thread.organization_id,
                thread.workspace_id,
                thread.user_id,
                thread.title,
                metadata=thread.metadata,
                id=thread.id,
            )
        )

    async def update_thread(self, thread: Thread) -> None:
        """Store a thread's title."""
        await (await self._parts()).repository().update_thread(thread.id, title=thread.title)

    async def list_threads(
        self,
        worker_id: str,
        organization_id: str,
        workspace_id: str,
        user_id: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> list[Thread]:
        """The threads of a place, or of one person in it, the most recently active first; before the `cursor`, an ISO time (UTC)."""
        equal = _place(worker_id, organization_id, workspace_id, user_id)
        moment = None if cursor is None else datetime.fromisoformat(cursor)
        if moment is not None and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        before = None if moment is None else (moment, "")
        return (
            await (await self._parts())
            .store()
            .threads(ThreadQuery(equal=equal, limit=check_limit(limit), before=before))
        )

    async def count_threads(
        self, worker_id: str, organization_id: str, workspace_id: str, user_id: str | None = None
    ) -> int:
        """How many threads a place has, or one person in it; at most 10,000."""
        equal = _place(worker_id, organization_id, workspace_id, user_id)
        return await (await self._parts()).store().count_threads(equal)

    async def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all its events and runs."""
        await (await self._parts()).repository().remove_thread(thread_id)

    async def get_events(
        self,
        thread_id: str,
        *,
        after_event_id: str | None = None,
        before_event_id: str | None = None,
        limit: int = 50,
        order: Literal["asc", "desc"] = "asc",
        filters: Mapping[str, str] | None = None,
    ) -> list[ThreadEvent]:
        """The first `limit` events with "asc", the last ones, newest first, with "desc"; of those between two events."""
        store = (await self._parts()).store()
        between = {
            name: None if event_id is None else await store.event(event_id)
            for name, event_id in (("after_seq", after_event_id), ("before_seq", before_event_id))
        }
        ends: dict[str, Any] = {name: event.seq for name, event in between.items() if event is not None}
        query = EventQuery(
            thread_id=thread_id,
            limit=check_limit(limit),
            oldest_first=order == "asc",
            equal=dict(filters or {}),
            **ends,
        )
        events = await store.events(query)
        return events if order == "asc" else events[::-1]

    async def get_event(self, event_id: str) -> ThreadEvent | None:
        """An event, or None."""
        return await (await self._parts()).store().event(event_id)

    async def delete_event(self, event_id: str) -> None:
        """Delete an event."""
        await (await self._parts()).repository().remove_event(event_id)

    async def get_run(self, run_id: str) -> Run | None:
        """A run, or None."""
        return await (await self._parts()).store().run(run_id)

    async def list_runs(
        self,
        thread_id: str | None = None,
        worker_id: str | None = None,
        status: str | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Runs, the latest first."""
        asked = {"thread_id": thread_id, "worker_id": worker_id, "status": status}
        equal = {name: value for name, value in asked.items() if value is not None}
        return await (await self._parts()).store().runs(RunQuery(equal=equal, limit=check_limit(limit)))

    async def get_settings(self, worker_id: str) -> dict[str, Any]:
        """What has been set for a worker id."""
        return await (await self._parts()).repository().get_settings(worker_id)

    async def update_setting(self, worker_id: str, field_id: str, value: Any) -> datetime:
        """Set one field and leave the others."""
        return await self.set_settings(worker_id, {field_id: value})

    async def set_settings(self, worker_id: str, values: Mapping[str, Any]) -> datetime:
        """Set these fields and leave the others."""
        parts = await self._parts()
        await parts.repository().update_settings(worker_id, values)
        return parts.clock().now()


def _place(worker_id: str, organization_id: str, workspace_id: str, user_id: str | None) -> dict[str, str]:
    place = {"worker_id": worker_id, "organization_id": organization_id, "workspace_id": workspace_id}
    return place if user_id is None else {**place, "user_id": user_id}


def inner(name: str) -> Any:
    """What the package gives for a name that it does not declare: what the predecessor exported of its own inside. AttributeError else."""
    if name not in _INNER:
        raise AttributeError(f"module 'dooers' has no attribute {name!r}")
    warn(f"dooers.{name} is an inner part of the worker: drop the import", DeprecationWarning, stacklevel=3)
    return _INNER[name]
