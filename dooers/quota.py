"""How much one identity may take at once: frames a second, connections, turns. Counts only; what is refused is said by the doors.

An identity is counted as one when a hook has proved it. Claims that nobody proved are free to invent, so without a hook, and for
people without a user id, each connection counts for itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from dooers.broadcast import Member
from dooers.config import WorkerConfig
from dooers.models import Identity

__all__ = ["Bucket", "Quota", "Quotas"]

# A large frame counts for several: one more for each of these bytes. So does a long page: one more for each of these rows; and a search:
# one more for each of these threads that it walks past.
WEIGHT, ROWS, WALKED = 4096, 20, 500


@define(eq=False)
class Bucket:
    """A token bucket: `rate` tokens a second, `burst` at most. Full at the start."""

    rate: float
    burst: float
    level: float = field(init=False)
    at: float = field(default=-math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self.level = self.burst

    def take(self, cost: float, now: float) -> float:
        """Take tokens, and return 0; where there are too few, take none, and return the seconds until there will be enough."""
        cost = min(cost, self.burst)
        if now > self.at:
            self.level, self.at = min(self.burst, self.level + (now - self.at) * self.rate), now
        if self.level >= cost:
            self.level -= cost
            return 0.0
        return (cost - self.level) / self.rate

    def charge(self, cost: float) -> None:
        """Take tokens for what was done already, below zero too: whoever comes next waits for it."""
        self.level -= cost

    def full(self, now: float) -> bool:
        """Whether nobody would notice if this were made anew."""
        return self.level >= self.burst or self.level + (now - self.at) * self.rate >= self.burst


@define(eq=False)
class Quota:
    """What one identity has in hand just now."""

    bucket: Bucket
    connections: set[Member] = field(factory=set)
    turns: int = 0

    @contextmanager
    def posting(self) -> Iterator[None]:
        """Count a message whose turn is not open yet: of those that come at once, too, only so many may."""
        self.turns += 1
        try:
            yield
        finally:
            self.turns -= 1

    def begin_turn(self, over: asyncio.Future[None]) -> None:
        """Count a turn until it is over."""
        self.turns += 1
        over.add_done_callback(self._end_turn)

    def _end_turn(self, _: asyncio.Future[None]) -> None:
        self.turns -= 1

    def take_frame(self, size: int, now: float) -> float:
        """Count a frame of `size`; the seconds to wait if it is one too many."""
        return self.bucket.take(1 + size // WEIGHT, now)


class Quotas:
    """The quotas of all identities that are here, or were a moment ago."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._known: dict[tuple[str, str, str], Quota] = {}
        self._sweep_at = 1000

    def __len__(self) -> int:
        return len(self._known)

    def single(self) -> Quota:
        """A quota that is shared with nobody."""
        return Quota(Bucket(self._config.frames_per_second, self._config.frames_burst))

    def of(self, identity: Identity, now: float) -> Quota:
        """The quota that all connections of an identity share. Whoever leaves and comes back finds it as they left it.

        Whatever worker they are to: its id is the client's word, and would multiply what one may take.
        """
        key = (identity.organization_id, identity.workspace_id, identity.user_id)
        quota = self._known.get(key)
        if quota is None:
            if len(self._known) >= self._sweep_at:
                self._sweep(now)
            self._known[key] = quota = self.single()
        return quota

    def _sweep(self, now: float) -> None:
        """Forget who is gone and whose bucket is full again. Each time twice as many are here, so the cost stays small."""
        self._known = {
            key: quota
            for key, quota in self._known.items()
            if quota.connections or quota.turns or not quota.bucket.full(now)
        }
        self._sweep_at = max(1000, 2 * len(self._known))
