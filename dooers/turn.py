"""A turn as a value: what a message opens, what each yielded event alters, how it ends. No store, no clock of its own, no socket.

`opening()` gives the Change of the message itself. `step()` gives the Change of one yielded event and the turn after it; it looks
the event up in `STEPS`, so a new kind of event is one function and one row. `closing()` gives the Change that leaves a clean thread,
however the handler ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, Protocol, TypeAlias

from attrs import frozen

from dooers.codec import dumps, loads
from dooers.exceptions import InvalidValueError, quoted
from dooers.models import (
    Change,
    ContentPart,
    DocumentPart,
    EventType,
    Identity,
    ImagePart,
    Run,
    Scope,
    TextPart,
    Thread,
    ThreadEvent,
    evolve,
)
from dooers.send import WorkerEvent

__all__ = [
    "STEPS",
    "Clock",
    "Outcome",
    "Turn",
    "as_event",
    "as_stored",
    "at_work",
    "begins",
    "closing",
    "ends",
    "grown",
    "has_ended",
    "mourning",
    "numbered",
    "opening",
    "repeat_key",
    "sprout",
    "step",
]

Outcome: TypeAlias = Literal["succeeded", "failed", "canceled"]


class Clock(Protocol):
    """Where times and ids come from."""

    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    def new_id(self) -> str:
        """An id that nobody else has."""
        ...


@frozen(slots=False)
class Turn:
    """One message and everything the handler answers to it. `event_id` is that message, `seq` its number in its thread; `run` the
    open run, `ran` whether there was one. `process_id` is who is at it.

    The first run of a turn has the id of its message, so that everybody can tell whose run it is, and whether there is one.
    """

    thread: Thread
    event_id: str
    seq: int
    assistant_name: str
    process_id: str | None = None
    run: Run | None = None
    ran: bool = False

    @property
    def run_id(self) -> str | None:
        """The open run's id, if there is one."""
        return None if self.run is None else self.run.id


def opening(
    identity: Identity,
    scope: Scope,
    content: list[ContentPart],
    clock: Clock,
    *,
    thread_id: str | None,
    create: bool,
    title: str | None = None,
    data: dict[str, Any] | None = None,
    client_event_id: str | None = None,
    repeat_key: str | None = None,
) -> Change:
    """The Change of a message: the event, and the thread where it is new. `create` allows a given `thread_id` to be new."""
    now = clock.now()
    thread = Thread(
        id=clock.new_id() if thread_id is None else thread_id,
        worker_id=scope.worker_id,
        organization_id=identity.organization_id,
        workspace_id=identity.workspace_id,
        user_id=identity.user_id,
        owner=identity.user,
        title=title,
        created_at=now,
        updated_at=now,
        last_event_at=now,
    )
    event = ThreadEvent(
        id=clock.new_id(),
        thread_id=thread.id,
        type="message",
        actor="user",
        created_at=now,
        user=identity.user,
        content=content,
        data=data,
        client_event_id=client_event_id,
    )
    opens = create or thread_id is None
    return Change(thread=thread, opens=opens, exact=False, guard=scope, events=(event,), repeat_key=repeat_key)


def repeat_key(door: Literal["client", "dispatch"], worker_id: str, identity: Identity, value: str) -> str:
    """What makes a message the same message again: the same value from the same user in the same place, through the same door."""
    owner = (door, worker_id, identity.organization_id, identity.workspace_id, identity.user_id, value)
    return sha256(dumps(owner).encode()).hexdigest()


def step(turn: Turn, event: WorkerEvent, clock: Clock) -> tuple[Turn, Change | None]:
    """The turn after one yielded event, and what it alters; None where it alters nothing."""
    return STEPS[event.send_type](turn, event.data, clock)


def closing(
    turn: Turn, outcome: Outcome, clock: Clock, *, notice: str | None = None, traced: bool = True
) -> Change | None:
    """What it takes to leave a clean thread: the open run ended, and with a `notice` the safe text of a failure.

    A turn that fails or is cancelled before it has a run gets one that ended so: clients learn of it in one way only. So does one
    that has not `traced` itself in any other way: a repeat of its message is to find that it was answered.
    """
    now = clock.now()
    run = turn.run
    if run is None and (outcome == "failed" or not (turn.ran or (outcome == "succeeded" and traced))):
        run = _new_run(turn, clock, started_at=now)
    if run is None:
        return None
    run = evolve(run, status=outcome, ended_at=now, error=notice)
    if notice is None:
        return Change(thread=turn.thread, during=run.id, runs=(run,))
    told = _notice(turn.thread, run, notice, turn.seq, clock)
    return Change(thread=turn.thread, during=run.id, runs=(run,), events=(told,))


def _new_run(turn: Turn, clock: Clock, **fields: Any) -> Run:
    run_id = clock.new_id() if turn.ran else turn.event_id
    return Run(id=run_id, thread_id=turn.thread.id, process_id=turn.process_id, **fields)


def mourning(thread: Thread, run: Run, clock: Clock) -> Change:
    """The Change that closes a run whose process died, if it still runs, and tells of it: the safe text of it in the thread."""
    return Change(thread=thread, during=run.id, runs=(run,), events=(_notice(thread, run, run.error or "", 0, clock),))


def _notice(thread: Thread, run: Run, text: str, turn_seq: int, clock: Clock) -> ThreadEvent:
    return ThreadEvent(
        id=clock.new_id(),
        thread_id=thread.id,
        type="message",
        actor="system",
        created_at=clock.now(),
        content=[TextPart(text)],
        data={"error": True},
        run_id=run.id,
        notice=True,
        turn_seq=turn_seq,
    )


# ---------------------------------------------------------------- when it is stored


def at_work(change: Change, run: Run | None) -> bool:
    """Whether the run that a Change is a part of, as it is stored, lets it be written."""
    if change.during is None:
        return True
    return begins(change) if run is None else run.status == "running"


def begins(change: Change) -> bool:
    """Whether a Change may be the first to tell of the run that it is a part of."""
    return any(run.id == change.during for run in change.runs)


def ends(change: Change) -> bool:
    """Whether nothing of the run that a Change is a part of may come after it."""
    return any(run.id == change.during and run.status != "running" for run in change.runs)


def has_ended(changes: Sequence[Change], run: Run | None) -> bool:
    """Whether a stored run has the very end that these Changes give it: then they were written, if that was not known."""
    ends = [one for change in changes for one in change.runs if run is not None and one.id == run.id]
    said = ends[-1] if ends else None
    return (
        run is not None
        and said is not None
        and said.status != "running"
        and (said.status, said.ended_at, said.error) == (run.status, run.ended_at, run.error)
    )


def as_stored(thread: Thread, changes: Sequence[Change]) -> list[Change]:
    """Changes of one thread with the thread as each left it and their events numbered, counted on from the row that they found."""
    stored = []
    for change in changes:
        events = numbered(change, thread.last_seq)
        if events:
            at = events[-1].created_at
            thread = evolve(thread, last_seq=events[-1].seq, last_event_at=at, updated_at=at)
        if change.patch:
            thread = evolve(thread, **_as_read(change.patch))
        stored.append(evolve(change, thread=thread, events=events))
    return stored


def numbered(change: Change, last_seq: int) -> tuple[ThreadEvent, ...]:
    """The events of a Change with the numbers after this one."""
    if not change.events:
        return ()
    first = last_seq + change.skips + 1
    return tuple(
        [evolve(event, seq=seq, turn_seq=event.turn_seq or seq) for seq, event in enumerate(change.events, first)]
    )


def _as_read(patch: dict[str, Any]) -> dict[str, Any]:
    """A patch as it would come back from a database: a copy, in plain JSON."""
    if patch.get("metadata") is None:
        return patch
    return {**patch, "metadata": loads(dumps(patch["metadata"]))}


# ---------------------------------------------------------------- a message that is streamed


def sprout(turn: Turn, author: str | None, clock: Clock) -> ThreadEvent:
    """A message of which nothing is written yet."""
    return ThreadEvent(
        id=clock.new_id(),
        thread_id=turn.thread.id,
        type="message",
        actor="assistant",
        author=turn.assistant_name if author is None else author,
        created_at=clock.now(),
        run_id=turn.run_id,
        turn_seq=turn.seq,
        streaming=True,
    )


def grown(turn: Turn, event: ThreadEvent, text: str, *, incomplete: bool) -> Change:
    """The Change that stores it: once, when it is done, or with what there is of it when it was cut off."""
    whole = evolve(event, content=[TextPart(text)], streaming=False, data={"incomplete": True} if incomplete else None)
    return Change(thread=turn.thread, during=event.run_id, events=(whole,))


# ---------------------------------------------------------------- one function an event kind

Step: TypeAlias = Callable[[Turn, Mapping[str, Any], Clock], "tuple[Turn, Change | None]"]


def _append(turn: Turn, clock: Clock, kind: EventType, author: str | None, **fields: Any) -> tuple[Turn, Change]:
    event = ThreadEvent(
        id=clock.new_id(),
        thread_id=turn.thread.id,
        type=kind,
        actor="assistant",
        author=author,
        created_at=clock.now(),
        run_id=turn.run_id,
        turn_seq=turn.seq,
        **fields,
    )
    return turn, Change(thread=turn.thread, during=turn.run_id, events=(event,))


def _message(make_part: Callable[[Mapping[str, Any]], ContentPart]) -> Step:
    def message(turn: Turn, data: Mapping[str, Any], clock: Clock) -> tuple[Turn, Change]:
        author = data["author"]
        author = turn.assistant_name if author is None else author
        return _append(turn, clock, "message", author, content=[make_part(data)])

    return message


def _tool(kind: EventType) -> Step:
    def tool(turn: Turn, data: Mapping[str, Any], clock: Clock) -> tuple[Turn, Change]:
        known = {key: value for key, value in data.items() if value is not None or key == "result"}
        known.setdefault("id", clock.new_id())
        return _append(turn, clock, kind, None, data=known)

    return tool


def _update_thread(turn: Turn, data: Mapping[str, Any], clock: Clock) -> tuple[Turn, Change | None]:
    if not data:
        return turn, None
    return turn, Change(thread=turn.thread, during=turn.run_id, patch={**data, "updated_at": clock.now()})


def _run_start(turn: Turn, data: Mapping[str, Any], clock: Clock) -> tuple[Turn, Change]:
    now = clock.now()
    begun = _new_run(turn, clock, agent_id=data["agent_id"], started_at=now)
    ended = (evolve(turn.run, status="succeeded", ended_at=now),) if turn.run is not None else ()
    # Where one ends another, it is the end that may come too late; what follows needs the other to be there.
    during = turn.run_id or begun.id
    return evolve(turn, run=begun, ran=True), Change(thread=turn.thread, during=during, runs=(*ended, begun))


def _run_end(turn: Turn, data: Mapping[str, Any], clock: Clock) -> tuple[Turn, Change | None]:
    if turn.run is None:
        return turn, None
    ended = evolve(turn.run, status=data["status"], ended_at=clock.now(), error=data["error"])
    return evolve(turn, run=None), Change(thread=turn.thread, during=ended.id, runs=(ended,))


STEPS: dict[str, Step] = {
    "text": _message(lambda data: TextPart(data["text"])),
    "image": _message(lambda data: ImagePart(data["url"], mime_type=data["mime_type"], alt=data["alt"])),
    "document": _message(lambda data: DocumentPart(data["url"], data["filename"], data["mime_type"])),
    "tool_call": _tool("tool.call"),
    "tool_result": _tool("tool.result"),
    "tool_transaction": _tool("tool.transaction"),
    "update_thread": _update_thread,
    "run_start": _run_start,
    "run_end": _run_end,
}


def as_event(value: Any, text: Callable[[str], WorkerEvent]) -> WorkerEvent:
    """What a handler yielded or returned as an event: a text is `send.text`. InvalidValueError for anything else."""
    if isinstance(value, WorkerEvent):
        return value
    if isinstance(value, str):
        return text(value)
    raise InvalidValueError(
        f"a handler yields send.text(...) and its siblings, or a text; it yielded {type(value).__name__} ({quoted(value)})"
    )
