"""When an answer is over, told from the frames of its thread. No socket, no waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dooers.client.connection import Frame
from dooers.client.feeds import BACK, LOST, Feed, thread_of

__all__ = ["Turn"]


class Turn:
    """Tells the end of the turn that one message has opened; without `event_id`, of all turns of the thread.

    The first run of a turn has the id of its message, and the turn is over when its run is. A handler need not open a run; then silence
    after a whole message is all there is to go by, unless somebody knows better (`settled`).
    """

    def __init__(self, feed: Feed, thread_id: str, event_id: str | None = None) -> None:
        self.feed = feed
        self.thread_id = thread_id
        self.event_id = event_id
        self.answered = False
        self.canceled = False
        # What opened it, as it was sent.
        self.message: Mapping[str, Any] | None = None
        # Known from elsewhere to be over.
        self.settled = False
        # The connection is lost just now, and silence means nothing.
        self.away = False
        self.deleted = False
        # Runs of turns that this one has to wait for, or that wait for it.
        self.others: set[str] = set()
        # The messages of others, and so the ids of the runs that answer them; whether the run that answers this one has come.
        self._messages: set[str] = set()
        self._begun = event_id is None
        self._runs: set[str] = set()
        self._growing: set[str] = set()
        self._over = False
        feed.thread_id = thread_id
        feed.runs = {event_id} if event_id is not None else set()

    @property
    def busy(self) -> bool:
        """A run is open or a message is growing: the end will be told, however long it takes."""
        return bool(self._runs or self._growing)

    @property
    def ended(self) -> bool:
        return self.settled or (self._over and not self._runs)

    @property
    def unseen(self) -> bool:
        """Nothing of the answer was seen so far."""
        return not (self._begun or self.answered or self._growing)

    def cancel(self, thread_id: str | None, run_id: str | None) -> None:
        """It was told to stop, if it is meant: it ends with its run or, where it has none, with a silence."""
        if self.thread_id == thread_id or run_id in self._runs:
            self.canceled = True
            self.feed.wake()

    def settle(self) -> None:
        """It is over: whatever it has shown has been sent."""
        self.settled = True
        self.feed.wake()

    def take(self, frame: Frame) -> bool:
        """Whether the frame is for who follows the turn; the turn moves on with it."""
        kind, payload = frame["type"], frame["payload"]
        if kind in (LOST, BACK):
            self.away = kind == LOST
            return True
        if thread_of(frame) != self.thread_id:
            return False
        match kind:
            case "run.upsert":
                self.run(payload["run"])
            case "event.delta":
                self._growing.add(payload["event_id"])
            case "event.append":
                for event in payload["events"]:
                    self.event(event)
            case "thread.snapshot":
                self.snapshot(payload)
            case "thread.deleted":
                self._runs.clear()
                self._growing.clear()
                self._over = self.deleted = True
        return True

    def snapshot(self, payload: Mapping[str, Any]) -> None:
        """The thread as it stands, after a connection was lost: what was open and is not told of any more has ended meanwhile."""
        gone = self._runs - {run["id"] for run in payload["runs"]}
        self._growing.clear()
        for run in payload["runs"]:
            self.run(run)
        for event in payload["events"]:
            self.event(event)
        if gone:
            self._end(gone)

    def run(self, run: Mapping[str, Any]) -> None:
        self._begun = self._begun or run["id"] == self.event_id
        if not self._begun or (self.event_id is not None and run["id"] in self._messages):
            self.others.add(run["id"])
        elif run["status"] == "running":
            self._runs.add(run["id"])
            self.feed.runs.add(run["id"])
        else:
            self._end({run["id"]})

    def _end(self, runs: set[str]) -> None:
        self._runs -= runs
        self.feed.runs -= runs - {self.event_id}
        self._over = True

    def event(self, event: Mapping[str, Any]) -> None:
        if event["actor"] == "user":
            if event["id"] != self.event_id:
                self._messages.add(event["id"])
            return
        if event.get("streaming"):
            self._growing.add(event["id"])
            return
        self._growing.discard(event["id"])
        # A tool call is no answer yet: tools take their time, and silence after one means nothing.
        if event["type"] == "message" and event.get("run_id") not in self.others:
            self.answered = True
