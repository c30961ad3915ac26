"""What Changes make of what is stored, in order: the rule of the stores that decide in Python. No database and no rows.

Whoever asks sees to it that nobody else writes meanwhile: SQLite inside a transaction that has the write lock, the store in memory anyway.
"""

from __future__ import annotations

from attrs import Factory, define

from dooers.access import visible
from dooers.models import Change, Run, Thread, ThreadEvent, evolve
from dooers.stores import nowhere
from dooers.turn import as_stored, at_work

__all__ = ["Ledger"]


@define(eq=False)
class Ledger:
    """Threads and runs by id, the first events of Changes by their repeat keys: everything, or as much as the Changes to come ask for.

    That is their threads, the runs that they are `during` or tell of, their keys, and the threads of events with such a key.
    """

    threads: dict[str, Thread] = Factory(dict)
    runs: dict[str, Run] = Factory(dict)
    keys: dict[str, ThreadEvent] = Factory(dict)

    def decide(self, change: Change) -> Change:
        """The Change as it is to be stored, or what was stored first where it is a repeat; nothing is entered yet.

        NotFoundError where it has no place.
        """
        first = None if change.repeat_key is None else self.keys.get(change.repeat_key)
        if first is not None:
            return evolve(change, thread=self.threads[first.thread_id], events=(first,), created=False, repeated=True)
        thread = self.threads.get(change.thread.id)
        if thread is not None and change.exact and not change.opens and thread.created_at != change.thread.created_at:
            thread = None  # another one, made again under the same id
        created = thread is None and change.opens and not change.removes
        if created:
            thread = evolve(change.thread, last_seq=0)
        if thread is None or (change.guard is not None and not visible(thread, change.guard)):
            raise nowhere(change)
        if change.during is not None and not at_work(change, self.runs.get(change.during)):
            raise nowhere(change)
        if change.removes:
            return evolve(change, thread=thread)
        [stored] = as_stored(thread, (change,))
        return evolve(stored, created=True) if created else stored

    def enter(self, stored: Change) -> None:
        """Go on from what was decided. Not for repeats, nor for removals: what goes with a thread is not all known here."""
        self.threads[stored.thread.id] = stored.thread
        for run in stored.runs:
            begun = self.runs.get(run.id)
            if begun is None:
                self.runs[run.id] = run
            elif begun.status == "running":  # one that has ended stays ended, whoever comes late
                self.runs[run.id] = evolve(begun, status=run.status, ended_at=run.ended_at, error=run.error)
        if stored.repeat_key is not None and stored.events:
            self.keys[stored.repeat_key] = stored.events[0]

    def clear(self) -> None:
        """Know nothing any more."""
        for known in (self.threads, self.runs, self.keys):
            known.clear()
