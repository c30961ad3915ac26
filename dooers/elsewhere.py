"""What other processes are writing just now, and what has ended: so that neither a late piece nor a run that is over is shown again.

Kept from what is heard; nothing is read here, and nothing told to other processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dooers.broadcast import Broadcast
from dooers.models import Change, ThreadEvent, evolve
from dooers.news import News
from dooers.steps import Growing

__all__ = ["Elsewhere"]

# How many messages that others write are kept, and how many that are whole, or runs that are over; what is older is forgotten.
GROWING, OVER = 1_000, 10_000
# Seconds after which one that gets no piece is not shown to whoever comes: its process died, and it had no run that somebody would close.
SILENT = 60.0


class Elsewhere:
    """The messages of other processes that grow, and runs as people here were shown them."""

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self._growing: dict[str, Growing] = {}
        # Messages that are whole, and runs that have ended: sets in the order of arrival. (A run may have the id of a message.)
        self._whole: dict[str, None] = {}
        self._over: dict[str, None] = {}
        # Runs that were shown to be at work, and their threads: whoever was shown that is to be shown their end.
        self._begun: dict[str, str] = {}

    def piece(self, news: News) -> None:
        """Another process tells a piece of a message."""
        event_id, thread, event = news.event_id, news.thread, news.event
        if event_id is None:
            raise ValueError("news of a piece without its message")
        if event_id in self._whole:
            return  # it is whole already: what the store says may overtake what is told otherwise
        growing = self._growing.get(event_id)
        if growing is None and thread is not None and event is not None:
            # Also where nobody watches: whoever comes while it is written gets what there is of it.
            growing = self._growing[event_id] = Growing(event, None, thread, self._broadcast)
            if len(self._growing) > GROWING:
                self._growing.pop(next(iter(self._growing))).end()
        if growing is None:
            return  # its beginning was not heard: people here get it whole, when it is done
        if growing.length == news.at:
            growing.add(news.text)
        elif news.at > growing.length:
            self._growing.pop(event_id).end()

    def growing(self, thread_id: str) -> list[ThreadEvent]:
        """The messages of a thread that other processes are writing, with their text so far."""
        for event_id, one in list(self._growing.items()):
            if one.silence > SILENT:
                self._growing.pop(event_id).end()
        here = (one for one in self._growing.values() if one.event.thread_id == thread_id)
        return [event for one in here if (event := one.so_far()) is not None]

    def end(self, change: Change) -> None:
        """A Change is known: the messages that are whole with it, and those of runs that are over, grow no more."""
        done = {event.id: event for event in change.events}
        _remember(self._whole, done)
        over = {run.id for run in change.runs if run.status != "running"}
        for event_id, growing in list(self._growing.items()):
            event = growing.event
            gone = change.removes and event.thread_id == change.thread.id
            if event_id in done or event.run_id in over or gone:
                if event_id in done:  # what the store says may overtake the last pieces, and has them
                    growing.add_rest(done[event_id])
                self._growing.pop(event_id).end()

    def end_all(self) -> None:
        """Nobody can be heard: of what is being written, no more is shown until it is whole."""
        for growing in self._growing.values():
            growing.end()
        self._growing.clear()

    def begun_in(self, thread_id: str) -> list[str]:
        """The runs of a thread that people here were shown to be at work."""
        return [run_id for run_id, its in self._begun.items() if its == thread_id]

    def without_ended(self, change: Change) -> Change:
        """The change without runs whose end was shown: one that has ended stays so, whatever comes late."""
        runs = tuple(run for run in change.runs if run.id not in self._over)
        for run in runs:
            if run.status == "running":
                self._begun[run.id] = run.thread_id
            else:
                self._begun.pop(run.id, None)
        _forget_oldest(self._begun)
        _remember(self._over, (run.id for run in runs if run.status != "running"))
        return change if len(runs) == len(change.runs) else evolve(change, runs=runs)


def _remember(kept: dict[str, None], ids: Iterable[str]) -> None:
    kept.update(dict.fromkeys(ids))
    _forget_oldest(kept)


def _forget_oldest(kept: dict[str, Any]) -> None:
    while len(kept) > OVER:
        del kept[next(iter(kept))]
