"""The frames of a thread as updates, each thing once: a frame may have several of them, and after a lost connection some a second time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import define, field

from dooers.client.connection import Frame
from dooers.client.feeds import BACK, LOST, thread_of
from dooers.client.turns import Turn
from dooers.client.updates import (
    Appended,
    Delta,
    Looked,
    Lost,
    Reconnected,
    Reply,
    RunChanged,
    ThreadChanged,
    ThreadDeleted,
    Update,
    read_event,
    read_run,
    read_thread,
)
from dooers.models import Run, ThreadEvent

__all__ = ["Unfolding", "reply_of"]


@define
class _Growing:
    """A message that is being written: as the worker has it, and as it was told here."""

    text: str = ""
    told: str = ""


@define
class Unfolding:
    """What one reader was told of a thread so far. `looks` says that its first snapshot is an update of its own."""

    looks: bool = False
    _seq: int = 0
    _runs: dict[str, str] = field(factory=dict)
    _growing: dict[str, _Growing] = field(factory=dict)
    _thread: tuple[Any, Any] | None = None

    def take(self, frame: Frame) -> Iterator[Update]:
        """The updates in a frame."""
        payload = frame["payload"]
        match frame["type"]:
            case "event.append":
                yield from self._events(payload["events"], frame)
            case "event.delta":
                growing = self._growing.setdefault(payload["event_id"], _Growing())
                yield from self._grown(payload, payload["event_id"], growing.text + payload["text"], frame)
            case "run.upsert":
                yield from self._run(payload["run"], frame, again=True)
            case "thread.upsert":
                self._thread = _shown(payload["thread"])
                yield ThreadChanged(read_thread(payload["thread"]), frame=frame)
            case "thread.deleted":
                yield ThreadDeleted(payload["thread_id"], frame=frame)
            case "thread.snapshot":
                yield from self._snapshot(frame)
            case kind if kind == LOST:
                yield Lost(payload["code"], payload["reason"], frame=frame)
            case kind if kind == BACK:
                yield Reconnected(payload["attempts"], payload["seconds"], frame=frame)

    def _snapshot(self, frame: Frame) -> Iterator[Update]:
        payload = frame["payload"]
        looked, self.looks = self.looks, False
        growing = [event for event in payload["events"] if event.get("streaming")]
        if looked:
            stored = [event for event in payload["events"] if not event.get("streaming")]
            self._thread = _shown(payload["thread"])
            self._seq = max([self._seq, *(event.get("seq", 0) for event in stored)])
            self._runs.update({run["id"]: run["status"] for run in payload["runs"]})
            yield Looked(
                read_thread(payload["thread"]),
                [read_event(event) for event in stored],
                [read_run(run) for run in payload["runs"]],
                bool(payload.get("has_more")),
                frame=frame,
            )
            yield from self._events(growing, frame)
            return
        if self._thread not in (None, _shown(payload["thread"])):
            yield ThreadChanged(read_thread(payload["thread"]), frame=frame)
        self._thread = _shown(payload["thread"])
        # A run that began is told before what it has shown, one that ended after it.
        for run in payload["runs"]:
            if run["status"] == "running" or run["id"] not in self._runs:
                begun = {name: value for name, value in run.items() if name not in ("ended_at", "error")}
                yield from self._run({**begun, "status": "running"}, frame, again=False)
        yield from self._events(payload["events"], frame)
        for run in payload["runs"]:
            yield from self._run(run, frame, again=False)

    def _events(self, events: Iterable[Mapping[str, Any]], frame: Frame) -> Iterator[Update]:
        for out in events:
            if out.get("streaming"):
                text = "\n".join(one["text"] for one in out["content"] if one["type"] == "text")
                yield from self._grown(out, out["id"], text, frame)
                continue
            seq = out.get("seq", 0)
            if seq and seq <= self._seq:
                continue
            self._seq = max(seq, self._seq)
            event = read_event(out)
            if event.id in self._growing:  # so that its pieces add up to it
                yield from self._grown(out, event.id, event.text, frame)
                del self._growing[event.id]
            yield Appended(event, frame=frame)

    def _grown(self, out: Mapping[str, Any], event_id: str, text: str, frame: Frame) -> Iterator[Update]:
        growing = self._growing.setdefault(event_id, _Growing())
        growing.text = text
        if growing.told.startswith(text):
            return  # nothing new, or less than was told: another process may be behind
        more = text[len(growing.told) :] if text.startswith(growing.told) else ""
        growing.told = text
        yield Delta(out["thread_id"], event_id, more, text, out.get("run_id"), frame=frame)

    def _run(self, out: Mapping[str, Any], frame: Frame, *, again: bool) -> Iterator[Update]:
        if again or self._runs.get(out["id"]) != out["status"]:
            self._runs[out["id"]] = out["status"]
            yield RunChanged(read_run(out), frame=frame)


def _shown(thread: Mapping[str, Any]) -> tuple[Any, Any]:
    return thread.get("title"), thread.get("metadata")


def reply_of(turn: Turn, frames: list[Frame]) -> Reply:
    """What the frames of a turn add up to."""
    events: list[ThreadEvent] = []
    runs: dict[str, Run] = {}
    unfolding = Unfolding()
    for update in (one for frame in frames if thread_of(frame) == turn.thread_id for one in unfolding.take(frame)):
        if isinstance(update, RunChanged) and update.run.id not in turn.others:
            runs[update.run.id] = update.run
        elif isinstance(update, Appended) and update.event.actor != "user" and update.event.run_id not in turn.others:
            events.append(update.event)
    return Reply(turn.thread_id, turn.event_id or "", events, list(runs.values()), frames)
