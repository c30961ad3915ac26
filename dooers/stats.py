"""What a worker counts while it is open, and how it is shown: `worker.stats()`. Numbers only; who counts is whoever does it.

Counting is an addition where the thing happens. Looking is a walk over the parts, so nothing is kept up to date for nobody.
"""

from __future__ import annotations

from attrs import define, frozen

__all__ = ["Counts", "Tally", "WorkerStats"]


@define(eq=False)
class Tally:
    """What a store has written: transactions that hold Changes, and the Changes in them."""

    commits: int = 0
    changes: int = 0

    def count(self, changes: int) -> None:
        """One more transaction."""
        self.commits += 1
        self.changes += changes


@define(eq=False)
class Counts:
    """What happened since the worker was opened. Each only ever grows."""

    connections: int = 0
    frames_in: int = 0
    frames_out: int = 0
    deltas_dropped: int = 0
    readers_dropped: int = 0
    turns_succeeded: int = 0
    turns_failed: int = 0
    turns_canceled: int = 0

    def turn(self, status: str) -> None:
        """One more turn that is over."""
        name = f"turns_{status}"
        setattr(self, name, getattr(self, name) + 1)


@frozen(kw_only=True)
class WorkerStats:
    """One process of a worker, as of now. What is "so far" counts from when the worker was opened; all else is at this moment.

    With nobody connected and nothing to do, everything that is of this moment is 0.
    """

    # Connections now, and so far; those that were closed because they did not read.
    sessions: int
    connections: int
    readers_dropped: int
    # Subscriptions of sessions to threads, and how many threads that are.
    subscriptions: int
    threads_followed: int
    # Frames so far; pieces of messages that a reader who was behind did without.
    frames_in: int
    frames_out: int
    deltas_dropped: int
    # Frames that wait to be sent: all sessions together, and the one that is furthest behind. Sizes are in characters.
    outbox_frames: int
    outbox_size: int
    outbox_longest: int
    # Turns at work and in their thread's queue, and so far by how they ended.
    turns_running: int
    turns_waiting: int
    turns_succeeded: int
    turns_failed: int
    turns_canceled: int
    # Threads in which somebody stands in line, identities whose use is counted, threads of which something was missed and is being read.
    lanes: int
    identities: int
    catching_up: int
    # Ends of turns that wait for a database that is away.
    ends_waiting: int
    # Transactions so far, and the changes that they held.
    commits: int
    changes: int
    # Analytics for the webhook: events that wait, and so far those that were delivered or given up; attempts that failed.
    analytics_waiting: int
    analytics_delivered: int
    analytics_dropped: int
    analytics_failures: int

    @property
    def group_size(self) -> float:
        """Changes that shared a transaction, on average; 0 where there was none."""
        return self.changes / self.commits if self.commits else 0.0
