"""The wire: text to frame and frame to text. No socket, no clock, no store; whatever does not fit raises ProtocolError and nothing else.

`CLIENT` is the table of what clients may send, one attrs class a frame type. `frames_of` turns a Change into frames.
What goes out is one shape for all dialects; how they differ in `connect` is `dialects.py`.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from attrs import Factory, field, frozen

from dooers.codec import clean, decoded, dumps, loads, plain_parts, plain_user, structure
from dooers.dialects import Connect, Dialect, read_connect
from dooers.exceptions import (
    DooersError,
    InvalidCursorError,
    ProtocolError,
    RateLimitedError,
    quoted,
)
from dooers.models import Change, ContentPart, Run, Thread, ThreadEvent

__all__ = [
    "ANSWERS",
    "CLIENT",
    "VERSION",
    "Audience",
    "ClientFrame",
    "Connect",
    "Dialect",
    "EventCreate",
    "EventList",
    "Feedback",
    "Frame",
    "NewEvent",
    "Ping",
    "PublicSchema",
    "RunCancel",
    "SettingsPatch",
    "SettingsSubscribe",
    "ThreadList",
    "ThreadName",
    "ThreadSubscribe",
    "ThreadUpdate",
    "WorkerName",
    "ack",
    "appended",
    "event_out",
    "frames_of",
    "iso",
    "parse",
    "read_cursor",
    "refusal",
    "run_out",
    "serialize",
    "thread_out",
    "write_cursor",
]

# Of this package, as a client is told when it connects.
VERSION = "0.1.0"

# ---------------------------------------------------------------- what clients send: one class a shape


@frozen
class ThreadList:
    cursor: str | None = None
    limit: int | None = None
    query: str | None = None


@frozen
class ThreadSubscribe:
    thread_id: str
    after_event_id: str | None = None
    # Runs that the snapshot tells of in any case: they may have ended while nobody was told.
    runs: list[str] | None = None


@frozen
class ThreadName:
    """The payload of frames that only name a thread."""

    thread_id: str


@frozen
class ThreadUpdate:
    """The title is to be said: None takes it away, and who forgets it is not to lose one."""

    thread_id: str
    title: str | None


@frozen
class NewEvent:
    content: list[ContentPart]
    type: Literal["message"] = "message"
    actor: Literal["user"] = "user"
    data: dict[str, Any] | None = None


@frozen
class EventCreate:
    event: NewEvent
    thread_id: str | None = None
    client_event_id: str | None = None


@frozen
class RunCancel:
    run_id: str | None = None
    thread_id: str | None = None


@frozen
class EventList:
    thread_id: str
    before_event_id: str | None = None
    limit: int | None = None


@frozen
class WorkerName:
    """The payload of frames that only name a worker; without a name, the one that is connected to."""

    worker_id: str | None = None
    agent_id: str | None = None


@frozen
class SettingsSubscribe:
    worker_id: str | None = None
    agent_id: str | None = None
    audience: str | None = None


@frozen
class SettingsPatch:
    field_id: str
    value: Any = field(repr=False)  # it may be a password


@frozen
class Feedback:
    target_type: Literal["event", "run", "thread"]
    target_id: str
    feedback: Literal["like", "dislike"]
    reason: str | None = None
    classification: str | None = None


@frozen
class Ping:
    pass


@frozen
class PublicSchema:
    pass


CLIENT: dict[str, type] = {
    "connect": Connect,
    "thread.list": ThreadList,
    "thread.subscribe": ThreadSubscribe,
    "thread.unsubscribe": ThreadName,
    "thread.update": ThreadUpdate,
    "thread.delete": ThreadName,
    "event.create": EventCreate,
    "event.list": EventList,
    "run.cancel": RunCancel,
    "settings.subscribe": SettingsSubscribe,
    "settings.unsubscribe": WorkerName,
    "settings.patch": SettingsPatch,
    "settings.public_schema": PublicSchema,
    "feedback": Feedback,
    "analytics.subscribe": WorkerName,
    "analytics.unsubscribe": WorkerName,
    "ping": Ping,
}


# What answers a frame that is not answered by an `ack`. These carry no id of the request: the worker answers in order.
ANSWERS = {
    "ping": "pong",
    "thread.list": "thread.list.result",
    "thread.subscribe": "thread.snapshot",
    "event.list": "event.list.result",
    "feedback": "feedback.ack",
    "settings.public_schema": "settings.public_schema.result",
}


@frozen
class ClientFrame:
    """A frame that was read: its id (to answer to), its type, and its payload as the class `CLIENT` names for it."""

    id: str
    type: str
    payload: Any


# How many lists and objects, and how many values in all, a frame may have. A message has a handful, a table of data some thousands; a
# frame of nothing but brackets would keep everybody waiting while it is read.
MOST_LISTS, MOST_VALUES = 50_000, 250_000


def _check_size(text: str | bytes) -> None:
    if len(text) <= MOST_LISTS:
        return
    count = text.count if isinstance(text, str) else text.decode("latin-1").count
    if count("[") + count("{") > MOST_LISTS or count(",") > MOST_VALUES:
        raise ProtocolError(f"at most {MOST_LISTS} lists and objects, and {MOST_VALUES} values", code="TOO_LARGE")


def parse(text: str | bytes) -> ClientFrame:
    """The frame in a text, or ProtocolError with the path of the fault and, where it could be read, the frame's id."""
    _check_size(text)
    try:
        raw = decoded(text)
    except ValueError as error:
        raise ProtocolError(f"is not JSON ({error})") from None
    if type(raw) is not dict:
        raise ProtocolError('expected an object {"id", "type", "payload"}')
    frame_id = raw.get("id")
    if type(frame_id) is not str:
        raise ProtocolError("is required" if frame_id is None else "expected string", path="id")
    frame_id = clean(frame_id)  # as it goes back
    kind = raw.get("type")
    shape = CLIENT.get(kind) if type(kind) is str else None
    if shape is None:
        what = "is required" if kind is None else f"{quoted(kind)} is none of {', '.join(CLIENT)}"
        raise ProtocolError(what, path="type", frame_id=frame_id)
    payload = raw.get("payload")
    try:
        if payload is None:
            payload = {}
        read = read_connect(payload) if shape is Connect else structure(payload, shape, "payload")
    except ProtocolError as error:
        error.frame_id = frame_id
        raise
    return ClientFrame(frame_id, str(kind), read)


# ---------------------------------------------------------------- what goes out: one shape for all dialects


def thread_out(thread: Thread, dialect: Dialect = "flat") -> dict[str, Any]:
    """A thread on the wire. Its `metadata` is the application's own, but the metadata dialect expects the identity there."""
    owner = plain_user(thread.owner)
    metadata = thread.metadata
    if dialect == "metadata":
        metadata = {"organization_id": thread.organization_id, "workspace_id": thread.workspace_id, **owner}
    out = {
        "id": thread.id,
        "worker_id": thread.worker_id,
        "agent_id": thread.worker_id,
        "organization_id": thread.organization_id,
        "workspace_id": thread.workspace_id,
        "user_id": thread.user_id,
        "owner": owner,
        "users": [owner],
        "created_at": thread.created_at,
        "updated_at": thread.updated_at,
        "last_event_at": thread.last_event_at,
        "last_seq": thread.last_seq,
    }
    if thread.title is not None:
        out["title"] = thread.title
    if metadata is not None:
        out["metadata"] = metadata
    return out


def event_out(event: ThreadEvent) -> dict[str, Any]:
    """An event on the wire."""
    out: dict[str, Any] = {
        "id": event.id,
        "thread_id": event.thread_id,
        "type": event.type,
        "actor": event.actor,
        "content": plain_parts(event.content),
        "created_at": event.created_at,
        "streaming": event.streaming,
        "finalized": not event.streaming,
    }
    if event.seq:  # one that is still being written has no number yet
        out["seq"] = event.seq
    # Written out, as this is done for each event that goes to anybody.
    if event.run_id is not None:
        out["run_id"] = event.run_id
    if event.author is not None:
        out["author"] = event.author
    if event.data is not None:
        out["data"] = event.data
    if event.client_event_id is not None:
        out["client_event_id"] = event.client_event_id
    if event.user is not None:
        out["user"] = plain_user(event.user)
        out["user_id"] = event.user.user_id
        out["user_name"] = event.user.user_name
        out["user_email"] = event.user.user_email
    return out


def appended(thread_id: str, events: Iterable[ThreadEvent]) -> dict[str, Any]:
    """The payload of an `event.append`."""
    return {"thread_id": thread_id, "events": [event_out(event) for event in events]}


def run_out(run: Run) -> dict[str, Any]:
    """A run on the wire."""
    out: dict[str, Any] = {"id": run.id, "thread_id": run.thread_id, "status": run.status, "started_at": run.started_at}
    if run.agent_id is not None:
        out["agent_id"] = run.agent_id
    if run.ended_at is not None:
        out["ended_at"] = run.ended_at
    if run.error is not None:
        out["error"] = run.error
    return out


Audience: TypeAlias = Literal["tenant", "subscribers"]


@frozen
class Frame:
    """A frame to send. `thread` is set where the payload differs between dialects; `frames_of` decides the audience."""

    type: str
    payload: dict[str, Any] = Factory(dict)
    audience: Audience = "subscribers"
    thread: Thread | None = None

    def text(self, frame_id: str, dialect: Dialect) -> str:
        """The frame as it goes out in a dialect."""
        payload = self.payload
        if self.thread is not None:
            payload = {**payload, "thread": thread_out(self.thread, dialect)}
        return serialize(self.type, payload, frame_id)


def frames_of(change: Change) -> Iterator[Frame]:
    """The frames that tell people of a stored Change, in the order they are told."""
    if change.created or change.patch:
        yield Frame("thread.upsert", audience="tenant", thread=change.thread)
    for run in change.runs:
        yield Frame("run.upsert", {"run": run_out(run)})
    if change.events:
        yield Frame("event.append", appended(change.thread.id, change.events))
    if change.removes:
        yield Frame("thread.deleted", {"thread_id": change.thread.id}, audience="tenant")


def serialize(kind: str, payload: dict[str, Any], frame_id: str) -> str:
    """The text of a frame."""
    return dumps({"id": frame_id, "type": kind, "payload": payload})


def ack(ack_id: str, **more: Any) -> dict[str, Any]:
    """The payload of an `ack` that says yes."""
    return {"ack_id": ack_id, "ok": True, **more}


def refusal(ack_id: str | None, error: DooersError) -> dict[str, Any]:
    """The payload of an `ack` that says no, with the code and what to do. The id is empty where the frame's could not be read."""
    told: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, RateLimitedError):
        told["retry_after"] = round(error.retry_after + 0.0005, 3)  # up: who comes exactly then must not be too early
    return {"ack_id": ack_id if ack_id is not None else "", "ok": False, "error": told}


def write_cursor(at: datetime, thread_id: str) -> str:
    """The place where a page of threads ended, as clients give it back: opaque to them."""
    return urlsafe_b64encode(dumps([at.isoformat(), thread_id]).encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """The place that `write_cursor` wrote, or InvalidCursorError."""
    try:
        at, thread_id = loads(urlsafe_b64decode(cursor.encode()))
        moment = datetime.fromisoformat(at)
        if not isinstance(thread_id, str) or moment.tzinfo is None:
            raise ValueError
        moment = moment.astimezone(UTC)  # here, where it may still be out of range
    except (ValueError, TypeError, OverflowError):
        raise InvalidCursorError("payload.cursor: is none that this list gave out") from None
    return moment, thread_id


def iso(at: datetime | None) -> str | None:
    """A time as it is written inside payloads that carry nulls."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")
