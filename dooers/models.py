"""The words: threads, events, runs, people, and the Change that alters them. Pure data, no behaviour with a clock or a socket.

Two families live here. What people see (`Thread`, `ThreadEvent`, `Run`, content parts, `Identity`), and the one noun that
everything inside passes on: a `Change`, what one step of a turn altered. If you look for where something happens, follow the Change.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from re import compile as pattern
from typing import Any, Literal, TypeAlias, TypeVar

from attrs import Factory, field, frozen

from dooers.exceptions import InvalidValueError, quoted

__all__ = [
    "UNSTORABLE",
    "Actor",
    "Change",
    "ContentPart",
    "DocumentPart",
    "EventQuery",
    "EventType",
    "Identity",
    "ImagePart",
    "Metadata",
    "Operation",
    "Run",
    "RunQuery",
    "RunStatus",
    "Scope",
    "Snapshot",
    "StoredSettings",
    "TextPart",
    "Thread",
    "ThreadEvent",
    "ThreadQuery",
    "User",
    "check_id",
    "evolve",
    "text_of",
]

T = TypeVar("T")

Actor: TypeAlias = Literal["user", "assistant", "system", "tool"]
EventType: TypeAlias = Literal["message", "run.started", "run.finished", "tool.call", "tool.result", "tool.transaction"]
RunStatus: TypeAlias = Literal["running", "succeeded", "failed", "canceled"]
# What somebody may be allowed or not, inside their own tenant.
Operation: TypeAlias = Literal[
    "thread.read",
    "thread.post",
    "thread.update",
    "thread.delete",
    "run.cancel",
    "settings.read",
    "settings.patch",
    "analytics.read",
    "feedback",
]


# ---------------------------------------------------------------- what a message is made of


@frozen
class TextPart:
    """Plain text."""

    text: str
    type: Literal["text"] = "text"


@frozen
class ImagePart:
    """An image by URL (http, https or data). Sizes in pixels."""

    url: str
    mime_type: str | None = None
    width: int | None = None
    height: int | None = None
    alt: str | None = None
    type: Literal["image"] = "image"


@frozen
class DocumentPart:
    """A file by URL (http, https or data)."""

    url: str
    filename: str
    mime_type: str
    size_bytes: int | None = None
    type: Literal["document"] = "document"


ContentPart: TypeAlias = TextPart | ImagePart | DocumentPart


def text_of(content: list[ContentPart]) -> str:
    """The text of a message: its text parts, a line each."""
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


# ---------------------------------------------------------------- who


@frozen
class User:
    """A person as they appear beside a thread or an event. Strings are empty, never None, when nothing is known."""

    user_id: str = ""
    user_name: str = ""
    user_email: str = ""
    user_role: str = ""
    identity_ids: tuple[str, ...] = ()
    system_role: str = ""
    organization_role: str = ""
    workspace_role: str = ""


# What no backend can keep: PostgreSQL has no NUL in text, UTF-8 no lone surrogates.
UNSTORABLE = pattern("[\x00\ud800-\udfff]")
# Long enough for any id or name in use, short enough for every database's keys, and for a copy of it beside each message.
MAX_ID, MAX_NAME, MAX_IDS = 256, 1000, 100


def check_id(value: str, path: str) -> str:
    """The id, or InvalidValueError for one that is too long to be one."""
    if len(value) > MAX_ID:
        raise InvalidValueError(f"{path}: expected at most {MAX_ID} characters, got {len(value)}")
    return value


def _or_empty(value: str | None) -> str:
    return "" if value is None else value


def _strings(values: Iterable[str] | None) -> tuple[str, ...]:
    # A single text is iterable too, and would fall into letters.
    return () if values is None else (values,) if isinstance(values, str) else tuple(values)


@frozen(kw_only=True)
class Identity:
    """Who a connection or a dispatch acts for: decided once, never changed, never mixed with what a client claims.

    `expires_at` (aware, UTC) is when the proof behind it ends; None means with the connection. The three ids must be texts:
    a None here would be read as "any user" further on. Names and roles may be None for "not known". InvalidValueError else.
    """

    organization_id: str
    workspace_id: str
    user_id: str
    user_name: str = field(default="", converter=_or_empty)
    user_email: str = field(default="", converter=_or_empty)
    user_role: str = field(default="", converter=_or_empty)
    system_role: str = field(default="", converter=_or_empty)
    organization_role: str = field(default="", converter=_or_empty)
    workspace_role: str = field(default="", converter=_or_empty)
    identity_ids: tuple[str, ...] = field(default=(), converter=_strings)
    expires_at: datetime | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.identity_ids) > MAX_IDS:
            raise InvalidValueError(f"Identity.identity_ids: expected at most {MAX_IDS}, got {len(self.identity_ids)}")
        texts = {name: getattr(self, name) for name in _IDENTITY_TEXTS}
        texts |= {f"identity_ids[{index}]": value for index, value in enumerate(self.identity_ids)}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise InvalidValueError(f"Identity.{name}: expected a text, got {quoted(value)}")
            most = MAX_ID if "_id" in name else MAX_NAME
            if len(value) > most:
                raise InvalidValueError(f"Identity.{name}: expected at most {most} characters, got {len(value)}")
            if UNSTORABLE.search(value):  # to leave them out would make one person another
                raise InvalidValueError(
                    f"Identity.{name}: holds characters that no database keeps, got {quoted(value)}"
                )
        if self.expires_at is not None and not isinstance(self.expires_at, datetime):
            raise InvalidValueError(f"Identity.expires_at: expected an aware time, got {quoted(self.expires_at)}")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise InvalidValueError("Identity.expires_at: expected an aware time, this one has no time zone")

    @cached_property
    def user(self) -> User:
        """The same person as they appear on threads and events."""
        return User(
            user_id=self.user_id,
            user_name=self.user_name,
            user_email=self.user_email,
            user_role=self.user_role,
            identity_ids=self.identity_ids,
            system_role=self.system_role,
            organization_role=self.organization_role,
            workspace_role=self.workspace_role,
        )


@frozen(kw_only=True)
class Metadata(Identity):
    """An Identity of which everything may be left out, under the name that the predecessor has for one: what is not given is empty."""

    organization_id: str = field(default="", converter=_or_empty)
    workspace_id: str = field(default="", converter=_or_empty)
    user_id: str = field(default="", converter=_or_empty)


_IDENTITY_TEXTS = (
    "organization_id",
    "workspace_id",
    "user_id",
    "user_name",
    "user_email",
    "user_role",
    "system_role",
    "organization_role",
    "workspace_role",
)


@frozen
class Scope:
    """The part of the world an identity lives in: a thread lies in it when every id is equal.

    `user_id` None means that threads are shared within the workspace; a string, even an empty one, never means "any".
    `access.py` makes scopes and compares them; stores only ever test their fields for equality.
    """

    worker_id: str
    organization_id: str
    workspace_id: str
    user_id: str | None = None


# ---------------------------------------------------------------- what is kept

# Classes of which a turn makes dozens are without slots: so they are made, and altered by `evolve`, in a third of the time.


def evolve(value: T, **changes: Any) -> T:
    """A copy with some fields changed: `attrs.evolve` for the classes below, of which nothing is checked or made when one is made."""
    altered = object.__new__(type(value))
    fields = altered.__dict__
    fields.update(value.__dict__, **changes)
    if len(fields) != len(value.__dict__):
        unknown = ", ".join(changes.keys() - value.__dict__.keys())
        raise TypeError(f"{type(value).__name__} has no field {unknown}")
    return altered


@frozen(kw_only=True, slots=False)
class Thread:
    """A conversation. `last_seq` is the number of its newest event, 0 while it has none."""

    id: str
    worker_id: str
    organization_id: str = ""
    workspace_id: str = ""
    user_id: str = ""
    owner: User = field(default=Factory(lambda thread: User(user_id=thread.user_id), takes_self=True))
    title: str | None = None
    metadata: dict[str, Any] | None = None
    created_at: datetime
    updated_at: datetime
    last_event_at: datetime
    last_seq: int = 0


@frozen(kw_only=True, slots=False)
class ThreadEvent:
    """One entry of a thread.

    `seq` numbers the events of a thread from 1 without gaps of meaning: order, paging and resume use it.
    `turn_seq` is the `seq` of the message that this event answers (its own for a message that opens a turn).
    Both are 0 until the store has given them out. `notice` marks an error shown to people; models never get it.
    `streaming`: still being written, and not stored yet.
    """

    id: str
    thread_id: str
    type: EventType
    actor: Actor
    created_at: datetime
    author: str | None = None
    user: User | None = None
    content: list[ContentPart] = Factory(list)
    data: dict[str, Any] | None = None
    run_id: str | None = None
    client_event_id: str | None = None
    notice: bool = False
    streaming: bool = False
    seq: int = 0
    turn_seq: int = 0

    @property
    def user_id(self) -> str | None:
        """The id of the person who wrote it; None where no person did."""
        return self.user.user_id if self.user is not None else None

    @property
    def user_name(self) -> str | None:
        """The name of the person who wrote it; None where no person did."""
        return self.user.user_name if self.user is not None else None

    @property
    def user_email(self) -> str | None:
        """The address of the person who wrote it; None where no person did."""
        return self.user.user_email if self.user is not None else None

    @property
    def text(self) -> str:
        """The text parts, a line each."""
        return text_of(self.content)


@frozen(kw_only=True, slots=False)
class Run:
    """One stretch of a handler's work. `agent_id` is what the handler gave to `send.run_start`, `process_id` who is at it."""

    id: str
    thread_id: str
    agent_id: str | None = None
    status: RunStatus = "running"
    started_at: datetime
    ended_at: datetime | None = None
    error: str | None = None
    process_id: str | None = None


# ---------------------------------------------------------------- what changes


@frozen(kw_only=True, slots=False)
class Change:
    """What one step altered, stored in one transaction and then published. The one noun that every ring passes on.

    Before it is stored, `thread` is the thread as the author of the change knows it, events have no `seq`. What the store
    gives back has both filled in: `thread` as it is now (when the step touched it), events numbered.

    `opens`      the thread may not exist yet: create it from `thread` if so
    `created`    set by the store: this change did create it
    `exact`      for this very thread only: one that was deleted and made again under its id (`created_at` differs) is another
    `guard`      the thread must lie in this scope, else NotFoundError and nothing is written
    `during`     the run that this is a part of, which must be running: once it is over nothing is written, and that is NotFoundError.
                 It may be unknown only to a Change that has it among its `runs`. For Changes that append
    `patch`      columns of the thread to set (`title`, `metadata`, its times); never the whole row
    `events`     to append, in order
    `skips`      how many numbers are left out before its events: an import keeps the numbers that its events have
    `runs`       to insert, or to close if they exist
    `removes`    the thread goes, with everything in it
    `repeat_key` unique: when an earlier change carried the same, nothing is written and that one comes back as `repeated`
    `repeated`   set by the store: this was stored before, by an earlier change with the same `repeat_key`
    """

    thread: Thread
    opens: bool = False
    created: bool = False
    exact: bool = True
    guard: Scope | None = None
    during: str | None = None
    patch: dict[str, Any] = Factory(dict)
    events: tuple[ThreadEvent, ...] = ()
    skips: int = 0
    runs: tuple[Run, ...] = ()
    removes: bool = False
    repeat_key: str | None = None
    repeated: bool = False

    @property
    def takes(self) -> int:
        """How many numbers of its thread it uses up."""
        return self.skips + len(self.events) if self.events else 0


@frozen(kw_only=True)
class EventQuery:
    """Which events of one thread. The newest `limit` that fit; `None` means all of them.

    `for_model` keeps messages that are not error notices. `equal` compares columns. `until_turn` leaves out what belongs to
    turns after that one. The answer is in order of `seq`.
    """

    thread_id: str
    limit: int | None = None
    after_seq: int | None = None
    before_seq: int | None = None
    oldest_first: bool = False
    for_model: bool = False
    until_turn: int | None = None
    turn: int | None = None
    equal: dict[str, str] = Factory(dict)


@frozen(kw_only=True)
class ThreadQuery:
    """Which threads, the most recently active first. `equal` compares columns; `before` is where the last page ended.

    `containing` keeps those whose title has this text in it, in whatever case; no text keeps all. `until` is the last place to look at.
    """

    equal: dict[str, str] = Factory(dict)
    limit: int = 50
    before: tuple[datetime, str] | None = None
    until: tuple[datetime, str] | None = None
    containing: str | None = None
    oldest_first: bool = False


@frozen(kw_only=True)
class RunQuery:
    """Which runs, the latest first. `equal` compares columns, and `worker_id` that of their thread; `before` as with threads."""

    equal: dict[str, str] = Factory(dict)
    limit: int = 50
    before: tuple[datetime, str] | None = None
    oldest_first: bool = False


@frozen(kw_only=True)
class Snapshot:
    """A thread as of one instant: its newest page (or what follows an event), the active runs, and whether there is more before."""

    thread: Thread
    events: list[ThreadEvent]
    runs: list[Run]
    has_more: bool


@frozen
class StoredSettings:
    """The values somebody has set for a worker, and when last; defaults are not in here. Passwords are, so `repr` leaves them out."""

    values: dict[str, Any] = field(factory=dict, repr=False)
    updated_at: datetime | None = None
