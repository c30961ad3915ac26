"""Direct access to threads, events, runs and settings, for code that is not a turn. Trusted: nobody's identity is asked for.

What it changes is stored and told to connected clients the same way as what a turn changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from dooers.codec import clean, parts, plain
from dooers.content import one_line
from dooers.context import WorkerSettings
from dooers.exceptions import InvalidValueError, NotFoundError
from dooers.models import (
    Actor,
    Change,
    ContentPart,
    EventQuery,
    EventType,
    Identity,
    Run,
    RunQuery,
    Scope,
    Thread,
    ThreadEvent,
    ThreadQuery,
    User,
    check_id,
)
from dooers.runner import Runner
from dooers.stores import Store
from dooers.turn import Clock

__all__ = ["Repository", "check_limit"]

_UNSET: Any = object()
# Nobody has more, and every database can count that far.
MOST = 1 << 31


class Repository:
    """Reads and writes past the handler. Filters compare for equality; unknown ones raise InvalidValueError.

    `order` is `{"direction": "asc" | "desc"}`. Lists are the newest first unless asked otherwise.
    """

    def __init__(self, runner: Runner, store: Store, clock: Clock, settings: Callable[[str], WorkerSettings]) -> None:
        self._runner = runner
        self._store = store
        self._clock = clock
        self._settings = settings

    # ------------------------------------------------------------ threads

    async def list_threads(
        self,
        filter: Mapping[str, str] | None = None,
        order: Mapping[str, str] | None = None,
        limit: int = 50,
        *,
        query: str | None = None,
    ) -> list[Thread]:
        """Threads by last activity. Filters: id, worker_id, organization_id, workspace_id, user_id, title.

        `query`: only those whose title has this text in it, in whatever case. All that the filters leave are looked at for it.
        """
        asked = ThreadQuery(
            equal=dict(filter or {}),
            limit=check_limit(limit),
            oldest_first=_ascending(order),
            containing=None if query is None else one_line(_text("query", query), "query"),
        )
        return await self._store.threads(asked)

    async def get_thread(self, thread_id: str) -> Thread | None:
        """A thread, or None."""
        return await self._store.thread(thread_id)

    async def create_thread(
        self,
        worker_id: str,
        organization_id: str = "",
        workspace_id: str = "",
        user_id: str = "",
        title: str | None = None,
        *,
        metadata: Mapping[str, Any] | Identity | None = None,
        id: str | None = None,
    ) -> Thread:
        """A new thread without events; or the one that there is by the `id` you give, if it is in the same place.

        `metadata` is an object of yours that is kept with it. An Identity (or Metadata) in its place says whose the thread is.
        NotFoundError where the `id` is taken elsewhere.
        """
        owner = User(user_id=user_id)
        if isinstance(metadata, Identity):
            organization_id, workspace_id, user_id = metadata.organization_id, metadata.workspace_id, metadata.user_id
            owner, metadata = metadata.user, None
        ids = {
            "worker_id": worker_id,
            "organization_id": organization_id,
            "workspace_id": workspace_id,
            "user_id": user_id,
            "id": self._clock.new_id() if id is None else id,
        }
        for name, value in ids.items():
            if clean(check_id(_text(name, value), name)) != value:
                raise InvalidValueError(f"{name}: holds characters that no id can have")
        if not ids["id"]:
            raise InvalidValueError("id: expected a text that is not empty, or None")
        now = self._clock.now()
        thread = Thread(
            id=ids["id"],
            worker_id=worker_id,
            organization_id=organization_id,
            workspace_id=workspace_id,
            user_id=user_id,
            owner=owner,
            title=None if title is None else clean(_text("title", title)),
            metadata=_object("metadata", metadata),
            created_at=now,
            updated_at=now,
            last_event_at=now,
        )
        # One that is there is given back, unless it is in another place, where it is as if it were not.
        place = Scope(worker_id, organization_id, workspace_id)
        return (await self._runner.commit(Change(thread=thread, opens=True, exact=False, guard=place))).thread

    async def update_thread(
        self, thread_id: str, title: str | None = _UNSET, *, metadata: Mapping[str, Any] | None = _UNSET
    ) -> Thread | None:
        """Set a thread's title or metadata; what is not given stays. The thread as it is then, None if there is none."""
        patch: dict[str, Any] = {}
        if title is not _UNSET:
            patch["title"] = None if title is None else clean(_text("title", title))
        if metadata is not _UNSET:
            patch["metadata"] = _object("metadata", metadata)
        thread = await self._store.thread(thread_id)
        if thread is None or not patch:
            return thread
        try:
            change = Change(thread=thread, patch={**patch, "updated_at": self._clock.now()})
            return (await self._runner.commit(change)).thread
        except NotFoundError:
            return None  # deleted between the two

    async def remove_thread(self, thread_id: str) -> None:
        """Delete a thread with all its events and runs. No harm if there is none."""
        thread = await self._store.thread(thread_id)
        if thread is not None:
            try:
                await self._runner.commit(Change(thread=thread, removes=True))
            except NotFoundError:
                return  # somebody else was faster, which is what was wanted

    # ------------------------------------------------------------ events

    async def list_events(
        self, filter: Mapping[str, str] | None = None, order: Mapping[str, str] | None = None, limit: int = 50
    ) -> list[ThreadEvent]:
        """Events of the thread in `filter["thread_id"]`: with "asc" its first `limit`, else its newest, newest first.

        Further filters: id, type, actor, author, user_id, run_id, client_event_id.
        """
        equal = dict(filter or {})
        thread_id = equal.pop("thread_id", None)
        if not thread_id:
            raise InvalidValueError("list_events: filter needs a thread_id")
        ascending = _ascending(order)
        query = EventQuery(thread_id=thread_id, limit=check_limit(limit), oldest_first=ascending, equal=equal)
        events = await self._store.events(query)
        return events if ascending else events[::-1]

    async def get_event(self, event_id: str) -> ThreadEvent | None:
        """An event, or None."""
        return await self._store.event(event_id)

    async def create_event(
        self,
        thread_id: str,
        type: EventType = "message",
        actor: Actor = "assistant",
        content: Iterable[ContentPart | Mapping[str, Any] | str] | ContentPart = (),
        *,
        data: Mapping[str, Any] | None = None,
        author: str | None = None,
        user: User | None = None,
        run_id: str | None = None,
    ) -> ThreadEvent:
        """Append an event to a thread; no handler runs. A single text or part is taken for its only one.

        NotFoundError if there is no such thread, InvalidValueError for anything that does not fit.
        """
        for name, value, kind in (("type", type, EventType), ("actor", actor, Actor)):
            if value not in get_args(kind):
                raise InvalidValueError(
                    f"create_event({name}): expected one of {', '.join(get_args(kind))}, got {value!r}"
                )
        thread = await self._store.thread(thread_id)
        if thread is None:
            raise NotFoundError(f"there is no thread {thread_id!r}")
        event = ThreadEvent(
            id=self._clock.new_id(),
            thread_id=thread_id,
            type=type,
            actor=actor,
            author=None if author is None else clean(_text("author", author)),
            user=user,
            content=parts(
                content if isinstance(content, Iterable) and not isinstance(content, str | Mapping) else [content]
            ),
            data=_object("data", data),
            run_id=run_id,
            created_at=self._clock.now(),
        )
        return (await self._runner.commit(Change(thread=thread, events=(event,)))).events[0]

    async def remove_event(self, event_id: str) -> None:
        """Delete an event. No harm if there is none."""
        await self._store.remove_event(event_id)

    # ------------------------------------------------------------ runs

    async def list_runs(
        self, filter: Mapping[str, str] | None = None, order: Mapping[str, str] | None = None, limit: int = 50
    ) -> list[Run]:
        """Runs by when they started. Filters: id, thread_id, agent_id, status, worker_id."""
        query = RunQuery(equal=dict(filter or {}), limit=check_limit(limit), oldest_first=_ascending(order))
        return await self._store.runs(query)

    async def get_run(self, run_id: str) -> Run | None:
        """A run, or None."""
        return await self._store.run(run_id)

    # ------------------------------------------------------------ settings

    async def get_settings(self, worker_id: str) -> dict[str, Any]:
        """What has been set for a worker id; defaults are not in it."""
        return await self._settings(worker_id).get_stored()

    async def update_settings(self, worker_id: str, values: Mapping[str, Any]) -> None:
        """Set these fields and leave the others. Fields of the schema are checked; other names are kept as they are."""
        await self._settings(worker_id).update(values)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"{name}: expected a text, got {value!r:.60}")
    return value


def _object(name: str, value: Any) -> dict[str, Any] | None:
    made = plain(value, name)
    if made is not None and not isinstance(made, dict):
        raise InvalidValueError(f"{name}: expected an object, got {value!r:.60}")
    return made


def check_limit(limit: Any) -> int:
    """How many of something are asked for, as databases take it; InvalidValueError for none."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidValueError(f"limit: expected a number from 1, got {limit!r}")
    return min(limit, MOST)


def _ascending(order: Mapping[str, str] | None) -> bool:
    direction = (order or {}).get("direction", "desc")
    if direction not in ("asc", "desc"):
        raise InvalidValueError(f"order: expected {{'direction': 'asc' or 'desc'}}, got {order!r}")
    return direction == "asc"
