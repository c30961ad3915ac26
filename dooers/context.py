"""What a handler is given beside `send`: incoming, memory, settings, analytics. Each also works outside a turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal, TypeVar

from attrs import evolve, field, frozen

from dooers.analytics import AnalyticsEvent, AnalyticsEventPayload, Collector
from dooers.broadcast import Teller
from dooers.codec import plain
from dooers.exceptions import InvalidValueError, NotConfiguredError, NotFoundError, StoreError
from dooers.history import Said, format_history
from dooers.models import ContentPart, EventQuery, Identity, StoredSettings, Thread, ThreadEvent, text_of
from dooers.protocol import iso
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema
from dooers.settings import TypedSettings, check_patch, effective, is_mask, public_fields, public_value
from dooers.stores import Store
from dooers.turn import Clock
from dooers.vault import Vault

__all__ = ["WorkerAnalytics", "WorkerContext", "WorkerIncoming", "WorkerMemory", "WorkerSettings"]

T = TypeVar("T", ThreadEvent, Said)

_PLACE = attrgetter("turn_seq", "seq")
MAX_HISTORY = 10_000
# How often a rotation looks again at settings that others wrote meanwhile, with an older key than its own.
ROTATION_ROUNDS = 10


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
    # The handler that answers, and for how many seconds the message has waited for it.
    handler: str = ""
    waited: float = 0.0

    @property
    def metadata(self) -> Identity:
        """The sender, by the name that the predecessor has for it."""
        return self.identity

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
    """The message a turn answers: its text, all its parts, and where it came from.

    `data` is what your own code gave to `dispatch(data=...)`; `client_data` what a client sent beside its message: only its word. Each is
    None where there is none.
    """

    content: list[ContentPart]
    context: WorkerContext
    data: dict[str, Any] | None = None
    client_data: dict[str, Any] | None = None
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
        said = await self._fetch(self._store.said, limit, filters, for_model=True)
        return _ordered(format_history(said, format), order)

    async def get_history_raw(
        self,
        limit: int = 50,
        order: Literal["asc", "desc"] | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> list[ThreadEvent]:
        """The newest `limit` events of every kind that pass `filters`, as they are stored; oldest first unless `order="desc"`."""
        return _ordered(await self._fetch(self._store.events, limit, filters), order)

    async def _fetch(
        self,
        read: Callable[[EventQuery], Awaitable[list[T]]],
        limit: int,
        filters: Mapping[str, str] | None,
        *,
        for_model: bool = False,
    ) -> list[T]:
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
        events = await read(query)
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
                events = await read(waited) + events
        # By turn, then by number: a message that arrived while an earlier one was being answered stands after that answer.
        return sorted(events, key=_PLACE)[-limit:]


def _ordered(items: list[Any], order: str | None) -> list[Any]:
    if order not in (None, "asc", "desc"):
        raise InvalidValueError(f"order: expected 'asc', 'desc' or None, got {order!r}")
    return items[::-1] if order == "desc" else items


# ---------------------------------------------------------------- settings


class WorkerSettings:
    """The settings of one worker id. In a turn the values are read once; outside a turn they are read each time.

    Passwords are sealed on their way to the store and opened when they are read, each by itself: one that no key opens fails
    only who asks for it.
    """

    def __init__(
        self,
        store: Store,
        teller: Teller,
        clock: Clock,
        vault: Vault,
        worker_id: str,
        schema: SettingsSchema | None,
        typed: TypedSettings | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._store = store
        self._teller = teller
        self._clock = clock
        self._vault = vault
        self._worker_id = worker_id
        self._schema = schema
        self._typed = typed
        self._keep = keep
        self._kept: StoredSettings | None = None

    async def get(self, field_id: str) -> Any:
        """The value of a field: what was set, else its default. NotFoundError for a field the schema does not have."""
        if self._schema is not None:
            self._schema.field(field_id)
        return self._opened(field_id, effective(self._schema, (await self._stored()).values).get(field_id))

    async def get_all(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Every field's value, internal ones too, without those in `exclude`."""
        values = effective(self._schema, (await self._stored()).values)
        return {name: self._opened(name, value) for name, value in values.items() if name not in exclude}

    async def get_stored(self) -> dict[str, Any]:
        """What has been set; defaults are not in it."""
        return {name: self._opened(name, value) for name, value in (await self._stored()).values.items()}

    async def set(self, field_id: str, value: Any) -> None:
        """Set a field and tell subscribers. The handler's side may set internal and read-only fields too.

        Raises NotFoundError for an unknown field and InvalidValueError for a value it does not take.
        """
        await self._write({field_id: plain(self._checked(field_id, value), field_id)})

    async def load(self) -> Any:
        """The values as an instance of the class given to `@worker.settings`."""
        if self._typed is None:
            raise NotConfiguredError("settings.load() needs a settings class: register one with @worker.settings")
        return self._typed.load(await self.get_all())

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
        schema, stored = self._need_schema(), await self._stored()
        # A password leaves as a mask, so it stays closed: the form still comes when its key is lost, to set a new one.
        given = effective(schema, stored.values).items()
        values = {name: value if self._is_password(name) else self._opened(name, value) for name, value in given}
        fields = public_fields(schema, evolve(stored, values=values))
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
        sealed = {name: self._sealed(name, value) for name, value in values.items()}
        await self._store.set_settings(self._worker_id, sealed, at)
        self._kept = None
        for name, value in values.items():
            self._tell(name, value, at)

    def _tell(self, field_id: str, value: Any, at: datetime) -> None:
        payload = self._patch(field_id, value, at)
        if payload is not None:
            self._teller.tell("settings", self._worker_id, "settings.patch", payload, None)

    async def patched(self, field_id: str) -> dict[str, Any] | None:
        """The payload of a `settings.patch` that says what a field is now; None for one of which nobody is told."""
        stored = await self._stored()
        value = effective(self._schema, stored.values).get(field_id)
        value = value if self._is_password(field_id) else self._opened(field_id, value)
        return self._patch(field_id, value, stored.updated_at or self._clock.now())

    def _patch(self, field_id: str, value: Any, at: datetime) -> dict[str, Any] | None:
        field = self._field(field_id)
        if field is None or field.is_internal:
            return None  # nobody can have subscribed to it
        return {
            "worker_id": self._worker_id,
            "agent_id": self._worker_id,
            "field_id": field_id,
            "value": public_value(field, value),
            "updated_at": iso(at),
        }

    def _field(self, field_id: str) -> SettingsField | None:
        try:
            return None if self._schema is None else self._schema.field(field_id)
        except NotFoundError:
            return None  # kept under a name outside the schema

    # -------------------------------------------------------- passwords, sealed

    async def rotate(self) -> tuple[int, list[str]]:
        """Seal with the newest key what is not: how many values that were, and the fields that no key opens.

        A value is replaced only while it is the one that was read, so what somebody sets meanwhile stands.
        """
        count, closed = 0, set[str]()
        for _ in range(ROTATION_ROUNDS):
            values = (await self._store.settings(self._worker_id)).values
            behind = {name: was for name, was in values.items() if name not in closed and self._is_behind(name, was)}
            if not behind:
                return count, sorted(closed)
            for name, was in behind.items():
                try:
                    value = self._vault.seal(self._opened(name, was), self._worker_id, name)
                except StoreError:
                    closed.add(name)
                    continue
                count += await self._store.swap_setting(self._worker_id, name, was, value)
        raise StoreError(
            f"settings of worker {self._worker_id!r} are being written with an older key all the time: "
            "give the new key to every process first"
        )

    def _is_behind(self, field_id: str, value: Any) -> bool:
        # Also what was sealed while its field was still a password: the old key can go only when nothing needs it.
        return (self._vault.is_sealed(value) or self._is_password(field_id)) and not self._vault.is_current(value)

    def _is_password(self, field_id: str) -> bool:
        field = self._field(field_id)
        return field is not None and field.type is SettingsFieldType.PASSWORD

    def _sealed(self, field_id: str, value: Any) -> Any:
        return self._vault.seal(value, self._worker_id, field_id) if self._is_password(field_id) else value

    def _opened(self, field_id: str, value: Any) -> Any:
        return self._vault.open(value, self._worker_id, field_id)


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
