"""Who is next in a thread: turns of one thread run one at a time, in the order in which their messages arrived.

A lane is a queue of tickets, and exists only while somebody stands in it. Not a lock: the place in the queue is taken at once and
without awaiting, when a message arrives, long before anybody waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator

from dooers.config import TurnOrder
from dooers.exceptions import ThreadBusyError

__all__ = ["Lanes", "Ticket"]


class Ticket:
    """A place in a thread's queue. Whoever holds one leaves it on every way out, also without ever having waited."""

    __slots__ = ("_lanes", "_ready", "_waiting", "key")

    def __init__(self, lanes: Lanes, key: Hashable) -> None:
        self.key = key
        self._lanes: Lanes | None = lanes
        self._ready = False
        self._waiting: asyncio.Future[None] | None = None

    @property
    def in_line(self) -> bool:
        """Whether this is a place in a queue, and not one beside it."""
        return self._lanes is not None

    async def wait(self) -> None:
        """Return when all who came before have left. For one to wait, who may be cancelled."""
        if not self._ready:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    def admit(self) -> None:
        """All who came before have left."""
        self._ready = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def leave(self) -> None:
        """Free the place. Leaving twice is no harm."""
        if self._lanes is not None:
            self._lanes._leave(self)
            self._lanes = None


class Lanes:
    """The queues of one worker, at most `limit` tickets in each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: dict[Hashable, deque[Ticket]] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys of the lanes in which somebody stands."""
        return iter(self._lanes)

    def is_taken(self, key: Hashable) -> bool:
        """Whether somebody stands in this lane."""
        return key in self._lanes

    def place(self, key: Hashable, order: TurnOrder) -> Ticket:
        """A ticket as the policy has it: one of its own, the next one, or ThreadBusyError."""
        if order == "parallel":
            return self.beside(key)
        if order == "reject" and self.is_taken(key):
            raise ThreadBusyError("this thread is being answered; try again when it is done")
        return self.join(key)

    def beside(self, key: Hashable) -> Ticket:
        """A ticket that waits for nobody and that nobody waits for."""
        ticket = Ticket(self, key)
        ticket._lanes = None
        ticket.admit()
        return ticket

    def join(self, key: Hashable) -> Ticket:
        """Take the next place in the queue of a key, or raise ThreadBusyError when it is full."""
        lane = self._lanes.get(key)
        if lane is not None and len(lane) >= self._limit:
            raise ThreadBusyError(
                f"{len(lane)} messages of this thread wait for an answer; try again when some have one"
            )
        ticket = Ticket(self, key)
        if lane is None:
            self._lanes[key] = lane = deque()
            ticket.admit()
        lane.append(ticket)
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        lane = self._lanes[ticket.key]
        lane.remove(ticket)
        if lane:
            lane[0].admit()
        else:
            del self._lanes[ticket.key]
