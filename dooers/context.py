"""What a handler is given beside `send`: incoming, memory, settings, analytics. Each also works outside a turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Literal

from attrs import evolve, field, frozen

from dooers.analytics import AnalyticsEvent, AnalyticsEventPayload, Collector
from dooers.broadcast import Broadcast
from dooers.codec import plain
from dooers.exceptions import InvalidValueError, NotConfiguredError, NotFoundError
from dooers.history import format_history
from dooers.models import ContentPart, EventQuery, Identity, StoredSettings, Thread, ThreadEvent, text_of
from dooers.protocol import iso
from dooers.schema import SettingsSchema
from dooers.settings import TypedSettings, check_patch, effective, is_mask, public_fields, public_value
from dooers.stores import Store
from dooers.turn import Clock

__all__ = ["WorkerAnalytics", "WorkerContext", "WorkerIncoming", "WorkerMemory", "WorkerSettings"]

MAX_HISTORY = 10_000


# ---------------------------------------------------------------- incoming


@frozen(kw_only=True)
class WorkerContext:
    """Where a message came from and who sent it. Ids are whole; texts are empty, never None, where nothing is known."""

    thread_id: str
    event_id: str
    worker_id: str
    identity: Identity
    thread_title: str | None = None
    thread_created_at: datetime | None = None

    @property
    def organization_id(self) -> str:
        """The sender's organization."""
        return self.identity.organization_id

    @property
    def workspace_id(self) -> str:
        """The sender's workspace."""
        return self.identity.workspace_id

    @property
    def user_id(self) -> str:
        """The sender."""
        return self.identity.user_id

    @property
    def user_name(self) -> str:
        """The sender's name."""
        return self.identity.user_name

    @property
    def user_email(self) -> str:
        """The sender's address."""
        return self.identity.user_email

    @property
    def user_role(self) -> str:
        """The sender's role."""
        return self.identity.user_role


@frozen
class WorkerIncoming:
    """The message a turn answers: its text, all its parts, and where it came from."""

    content: list[ContentPart]
    context: WorkerContext
    message: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "message", text_of(self.content))


# ---------------------------------------------------------------- memory


class WorkerMemory:
    """The thread so far, as models want to read it.

    In a turn it holds what that turn may know: everything up to its own message, what it has yielded itself, and not the
    messages that came later and wait for their own turn.
    """

    def __init__(
        self,
        store: Store,
        thread_id: str,
        *,
        turn_seq: int | None = None,
        settle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._thread_id = thread_id
        self._turn_seq = turn_seq
        self._settle = settle

    async def get_history(
        self,
        limit: int = 50,
        format: str = "openai",
        order: Literal["asc", "desc"] | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """The newest `limit` messages that pass `filters`, in a vendor's format ("openai", "anthropic", "google", "cohere", "voyage").

        Oldest first, as a model needs them, unless `order="desc"`. Error notices are never among them. In the anthropic
        format the user begins and roles alternate, so neighbours of one side are joined.
        """
        events = await self._fetch(limit, filters, for_model=True)
        return _ordered(format_history(events, format), order)

    async def get_history_raw(
        self,
        limit: int = 50,
        order: Literal["asc", "desc"] | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[ThreadEvent]:
        """The newest `limit` events of every kind that pass `filters`, as they are stored; oldest first unless `order="desc"`."""
        return _ordered(await self._fetch(limit, filters, for_model=False), order)

    async def _fetch(self, limit: int, filters: Mapping[str, str] | None, *, for_model: bool) -> list[ThreadEvent]:
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_HISTORY:
            raise InvalidValueError(f"limit: expected a number from 1 to {MAX_HISTORY}, got {limit!r}")
        if self._settle is not None:
            await self._settle()
        query = EventQuery(
            thread_id=self._thread_id,
            limit=limit,
            for_model=for_model,
            until_turn=self._turn_seq,
            equal=dict(filters or {}),
        )
        events = await self._store.events(query)
        if len(events) == limit and events[0].seq > (oldest := min(event.turn_seq for event in events)) + 1:
            # Messages that waited while that turn was answered have lower numbers than its answers, and are newer all the same.
            waited = evolve(
                query,
                limit=MAX_HISTORY,
                after_seq=oldest,
                before_seq=events[0].seq,
                equal={**query.equal, "actor": "user"},
            )
            if query.equal.get("actor", "user") == "user":
                events = await self._store.events(waited) + events
        # By turn, then by number: a message that arrived while an earlier one was being answered stands after that answer.
        return sorted(events, key=lambda event: (event.turn_seq, event.seq))[-limit:]


def _ordered(items: list[Any], order: str | None) -> list[Any]:
    if order not in (None, "asc", "desc"):
        raise InvalidValueError(f"order: expected 'asc', 'desc' or None, got {order!r}")
    return items[::-1] if order == "desc" else items


# ---------------------------------------------------------------- settings


class WorkerSettings:
    """The settings of one worker id. In a turn the values are read once; outside a turn they are read each time."""

    def __init__(
        self,
        store: Store,
        broadcast: Broadcast,
        clock: Clock,
        worker_id: str,
        schema: SettingsSchema | None,
        typed: TypedSettings | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._store = store
        self._broadcast = broadcast
        self._clock = clock
        self._worker_id = worker_id
        self._schema = schema
        self._typed = typed
        self._keep = keep
        self._kept: StoredSettings | None = None

    async def get(self, field_id: str) -> Any:
        """The value of a field: what was set, else its default. NotFoundError for a field the schema does not have."""
        if self._schema is not None:
            self._schema.field(field_id)
        return effective(self._schema, (await self._stored()).values).get(field_id)

    async def get_all(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Every field's value, internal ones too, without those in `exclude`."""
        values = effective(self._schema, (await self._stored()).values)
        return {name: value for name, value in values.items() if name not in exclude}

    async def set(self, field_id: str, value: Any) -> None:
        """Set a field and tell subscribers. The handler's side may set internal and read-only fields too.

        Raises NotFoundError for an unknown field and InvalidValueError for a value it does not take.
        """
        await self._write({field_id: plain(self._checked(field_id, value), field_id)})

    async def load(self) -> Any:
        """The values as an instance of the class given to `@worker.settings`."""
        if self._typed is None:
            raise NotConfiguredError("settings.load() needs a settings class: register one with @worker.settings")
        return self._typed.load(effective(self._schema, (await self._stored()).values))

    async def patch(self, field_id: str, value: Any) -> None:
        """A client's change: as `set`, but not of internal or read-only fields, and a password's mask changes nothing."""
        schema = self._need_schema()
        checked = check_patch(schema, field_id, value)
        if is_mask(schema, field_id, value):
            return
        if self._typed is not None:
            self._typed.check(field_id, checked)
        await self._write({field_id: plain(checked, field_id)})

    async def update(self, values: Mapping[str, Any]) -> None:
        """Set several fields at once; names outside the schema are kept as they are."""
        checked: dict[str, Any] = {}
        for name, value in values.items():
            try:
                checked[name] = self._checked(name, value)
            except NotFoundError:
                checked[name] = value
        await self._write({name: plain(value, name) for name, value in checked.items()})

    def _checked(self, field_id: str, value: Any) -> Any:
        if self._schema is None:
            return value
        value = self._schema.field(field_id).check(value)
        if self._typed is not None:
            self._typed.check(field_id, value)
        return value

    async def snapshot(self) -> dict[str, Any]:
        """The payload of `settings.snapshot`: public fields with their values."""
        stored = await self._stored()
        fields = public_fields(self._need_schema(), stored)
        return {
            "worker_id": self._worker_id,
            "agent_id": self._worker_id,
            "fields": fields,
            "updated_at": iso(stored.updated_at or self._clock.now()),
        }

    def _need_schema(self) -> SettingsSchema:
        if self._schema is None:
            raise NotConfiguredError("this worker has no settings")
        return self._schema

    async def _stored(self) -> StoredSettings:
        if self._kept is not None:
            return self._kept
        stored = await self._store.settings(self._worker_id)
        if self._keep:
            self._kept = stored
        return stored

    async def _write(self, values: Mapping[str, Any]) -> None:
        at = self._clock.now()
        await self._store.set_settings(self._worker_id, values, at)
        self._kept = None
        for name, value in values.items():
            self._tell(name, value, at)

    def _tell(self, field_id: str, value: Any, at: datetime) -> None:
        try:
            field = self._schema.field(field_id) if self._schema is not None else None
        except NotFoundError:
            return  # not a field of the schema: nobody can have subscribed to it
        if field is None or field.is_internal:
            return
        payload = {
            "worker_id": self._worker_id,
            "agent_id": self._worker_id,
            "field_id": field_id,
            "value": public_value(field, value),
            "updated_at": iso(at),
        }
        self._broadcast.tell("settings", self._worker_id, "settings.patch", payload, None)


# ---------------------------------------------------------------- analytics


class WorkerAnalytics:
    """Track what happened. Returns at once: delivery is the collector's business."""

    def __init__(
        self,
        collector: Collector,
        clock: Clock,
        worker_id: str,
        *,
        thread_id: str | None = None,
        thread: Thread | None = None,
        user_id: str | None = None,
        run_id: Callable[[], str | None] | None = None,
    ) -> None:
        self._collector = collector
        self._clock = clock
        self._worker_id = worker_id
        self._thread_id = thread_id if thread is None else thread.id
        self._thread = thread
        self._user_id = user_id
        self._run_id = run_id

    async def track(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Track an event of your own. `data` is anything with a JSON form."""
        if not isinstance(event, str) or not event:
            raise InvalidValueError(f"analytics.track(event): expected a name, got {event!r}")
        self._track(event, None, data)

    async def like(
        self, target_type: Literal["event", "run", "thread"], target_id: str, reason: str | None = None
    ) -> None:
        """Somebody liked an event, a run or a thread."""
        self._feedback(AnalyticsEvent.FEEDBACK_LIKE, target_type, target_id, reason)

    async def dislike(
        self, target_type: Literal["event", "run", "thread"], target_id: str, reason: str | None = None
    ) -> None:
        """Somebody disliked an event, a run or a thread."""
        self._feedback(AnalyticsEvent.FEEDBACK_DISLIKE, target_type, target_id, reason)

    def _feedback(self, event: AnalyticsEvent, target_type: str, target_id: str, reason: str | None) -> None:
        if target_type not in ("event", "run", "thread"):
            raise InvalidValueError(f"target_type: expected 'event', 'run' or 'thread', got {target_type!r}")
        data = {"target_type": target_type, "target_id": target_id, "reason": reason}
        self._track(event.value, target_id if target_type == "event" else None, data)

    def _track(self, event: str, event_id: str | None, data: Mapping[str, Any] | None) -> None:
        payload = AnalyticsEventPayload(
            event=event,
            timestamp=self._clock.now(),
            worker_id=self._worker_id,
            thread_id=self._thread_id,
            user_id=self._user_id,
            run_id=None if self._run_id is None else self._run_id(),
            event_id=event_id,
            data=None if data is None else plain(data, "analytics data"),
        )
        self._collector.track(payload, self._thread)
