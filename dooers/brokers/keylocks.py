"""Keys of which each is held by one task at a time, within one event loop; who waits for one gets it in the order of asking."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["KeyLocks"]


class KeyLocks:
    """A key is held while it is in here, by somebody; the queue is of those who wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, key: str) -> bool:
        """Hold the key, if nobody does."""
        if key in self._waiting:
            return False
        self._waiting[key] = deque()
        return True

    async def acquire(self, key: str) -> None:
        """Return when nobody else holds the key, and hold it. Being cancelled leaves nothing behind."""
        if self.take(key):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[key].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was our turn already
                self.release(key)
            raise

    def release(self, key: str) -> None:
        """Whoever held this key does not any more: the next one who still waits does, or nobody."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
