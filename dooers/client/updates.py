"""What a client is told, as typed values: the updates of a thread one by one, and the reply they add up to. Pure data, read from frames.

Each update has the `frame` that it came in, for what the types do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar

from attrs import field, frozen

from dooers.client.connection import Frame
from dooers.codec import part, user
from dooers.exceptions import InvalidValueError
from dooers.models import ContentPart, Run, RunStatus, Thread, ThreadEvent

__all__ = [
    "Appended",
    "Connecting",
    "Delta",
    "Looked",
    "Lost",
    "Page",
    "Reconnected",
    "Reply",
    "RunChanged",
    "SettingChanged",
    "Settings",
    "ThreadChanged",
    "ThreadDeleted",
    "ToolUse",
    "Update",
    "read_event",
    "read_run",
    "read_settings",
    "read_thread",
    "read_time",
]

T = TypeVar("T")


def _frame() -> Any:
    return field(factory=dict, repr=False, eq=False, kw_only=True)


# ---------------------------------------------------------------- updates


@frozen
class Delta:
    """The next piece of a message that is being written; `whole` is all of it so far.

    Pieces put together are the message, nothing twice and nothing missing, however often the connection was lost in between.
    """

    thread_id: str
    event_id: str
    text: str
    whole: str
    run_id: str | None = None
    frame: Frame = _frame()


@frozen
class Appended:
    """An event that is stored now: a message of anybody, a tool call, an error notice."""

    event: ThreadEvent
    frame: Frame = _frame()

    @property
    def thread_id(self) -> str:
        """Its thread."""
        return self.event.thread_id


@frozen
class RunChanged:
    """A run has begun or ended."""

    run: Run
    frame: Frame = _frame()


@frozen
class ThreadChanged:
    """A thread is new, or has another title or other metadata."""

    thread: Thread
    frame: Frame = _frame()


@frozen
class ThreadDeleted:
    """The thread is gone, with everything in it."""

    thread_id: str
    frame: Frame = _frame()


@frozen
class Looked:
    """The first update of `watch`: the thread as it is. What is being written comes as a Delta after it, with its text so far."""

    thread: Thread
    events: list[ThreadEvent]
    runs: list[Run]
    has_more: bool
    frame: Frame = _frame()


@frozen
class Lost:
    """The connection is lost and another one is being made. Until then nothing comes, and nothing gets lost."""

    code: int | None = None
    reason: str = ""
    frame: Frame = _frame()


@frozen
class Reconnected:
    """There is a connection again, after this many attempts and seconds. What was missed comes after it."""

    attempts: int = 1
    seconds: float = 0.0
    frame: Frame = _frame()


Connecting: TypeAlias = Lost | Reconnected
Update: TypeAlias = Delta | Appended | RunChanged | ThreadChanged | ThreadDeleted | Looked | Lost | Reconnected


# ---------------------------------------------------------------- what is asked for


@frozen
class Page(Generic[T]):
    """Some of many. `cursor` asks for the next ones; None at the end."""

    items: list[T]
    cursor: str | None = None
    total: int | None = None


@frozen
class Settings:
    """The settings form of a worker: its fields as the form shows them, and when somebody last changed one."""

    worker_id: str
    fields: list[dict[str, Any]]
    updated_at: datetime | None = None
    frame: Frame = _frame()

    @property
    def values(self) -> dict[str, Any]:
        """The value of each field by its id, those in groups too; of passwords only a mask."""
        return dict(_values(self.fields))


@frozen
class SettingChanged:
    """Somebody has changed a field of the settings."""

    worker_id: str
    field_id: str
    value: Any
    updated_at: datetime | None = None
    frame: Frame = _frame()


def _values(fields: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Any]]:
    for one in fields:
        if isinstance(inner := one.get("fields"), list):
            yield from _values(inner)
        else:
            yield one["id"], one.get("value")


# ---------------------------------------------------------------- a reply


@frozen
class ToolUse:
    """A tool that was called, with its result where one came. `done` tells a result of None from none."""

    name: str
    args: dict[str, Any]
    result: Any = None
    done: bool = False
    id: str = ""
    display_name: str | None = None

    def __repr__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        return f"{self.name}({args}){f' -> {self.result!r}' if self.done else ''}"


@frozen(repr=False)
class Reply:
    """What a turn answered. `frames` are those it came in, `event_id` is the message that it answers."""

    thread_id: str
    event_id: str
    events: list[ThreadEvent] = field(factory=list)
    runs: list[Run] = field(factory=list)
    frames: list[Frame] = field(factory=list, eq=False)

    @property
    def texts(self) -> list[str]:
        """The texts that people see, in order; an error notice among them."""
        return [part.text for event in self.events for part in event.content if part.type == "text"]

    @property
    def text(self) -> str:
        """The texts, a line each."""
        return "\n".join(self.texts)

    @property
    def tools(self) -> list[ToolUse]:
        """The tools that were called, in order, each with its result."""
        used: dict[str, ToolUse] = {}
        for event in self.events:
            data = event.data or {}
            if event.type in ("tool.call", "tool.result", "tool.transaction"):
                key = str(data.get("id", event.id))
                known = used.get(key)
                used[key] = ToolUse(
                    name=str(data.get("name", known.name if known else "")),
                    args=data.get("args") or (known.args if known else {}),
                    result=data.get("result"),
                    done=event.type != "tool.call",
                    id=key,
                    display_name=data.get("display_name", known.display_name if known else None),
                )
        return list(used.values())

    @property
    def run(self) -> Run | None:
        """The last run of the turn; None where the handler opened none and has shown something."""
        return self.runs[-1] if self.runs else None

    @property
    def status(self) -> RunStatus:
        """How the turn ended. Of several runs the first one that did not succeed counts."""
        for run in self.runs:
            if run.status != "succeeded":
                return run.status
        return "failed" if any(event.notice for event in self.events) else "succeeded"

    @property
    def error(self) -> str | None:
        """What people were told of what went wrong."""
        told = [run.error for run in self.runs if run.error] + [event.text for event in self.events if event.notice]
        return told[0] if told else None

    def __repr__(self) -> str:
        said = [f"text {event.text!r}" for event in self.events if event.type == "message" and not event.notice]
        parts = [self.status, *said, *(f"tool {tool!r}" for tool in self.tools)]
        if self.error:
            parts.append(f"error {self.error!r}")
        return f"<Reply {'; '.join(parts)}>"


# ---------------------------------------------------------------- from the wire


def read_time(text: str | None) -> datetime | None:
    """A time of the wire."""
    return None if text is None else datetime.fromisoformat(text)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _parts(content: Iterable[Mapping[str, Any]]) -> list[ContentPart]:
    parts = []
    for one in content:
        try:
            parts.append(part(one))
        except InvalidValueError:  # of a newer worker: the frame has it
            continue
    return parts


def read_event(out: Mapping[str, Any]) -> ThreadEvent:
    """An event of the wire."""
    return ThreadEvent(
        id=out["id"],
        thread_id=out["thread_id"],
        type=out["type"],
        actor=out["actor"],
        created_at=_time(out["created_at"]),
        author=out.get("author"),
        user=user(out["user"]) if out.get("user") else None,
        content=_parts(out.get("content") or ()),
        data=out.get("data"),
        run_id=out.get("run_id"),
        client_event_id=out.get("client_event_id"),
        notice=out["actor"] == "system",
        streaming=bool(out.get("streaming")),
        seq=out.get("seq", 0),
    )


def read_run(out: Mapping[str, Any]) -> Run:
    """A run of the wire."""
    return Run(
        id=out["id"],
        thread_id=out["thread_id"],
        agent_id=out.get("agent_id"),
        status=out["status"],
        started_at=_time(out["started_at"]),
        ended_at=read_time(out.get("ended_at")),
        error=out.get("error"),
    )


def read_thread(out: Mapping[str, Any]) -> Thread:
    """A thread of the wire."""
    return Thread(
        id=out["id"],
        worker_id=out["worker_id"],
        organization_id=out["organization_id"],
        workspace_id=out["workspace_id"],
        user_id=out["user_id"],
        owner=user(out["owner"]),
        title=out.get("title"),
        metadata=out.get("metadata"),
        created_at=_time(out["created_at"]),
        updated_at=_time(out["updated_at"]),
        last_event_at=_time(out["last_event_at"]),
        last_seq=out.get("last_seq", 0),
    )


def read_settings(frame: Frame) -> Settings | SettingChanged | None:
    """What a frame says about the settings; None where it says nothing."""
    payload = frame["payload"]
    readers: dict[str, Callable[[], Settings | SettingChanged]] = {
        "settings.snapshot": lambda: Settings(
            payload["worker_id"], payload["fields"], read_time(payload.get("updated_at")), frame=frame
        ),
        "settings.patch": lambda: SettingChanged(
            payload["worker_id"],
            payload["field_id"],
            payload["value"],
            read_time(payload.get("updated_at")),
            frame=frame,
        ),
    }
    read = readers.get(frame["type"])
    return None if read is None else read()
