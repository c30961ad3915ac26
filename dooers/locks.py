"""The broker's locks as turns take them and give them back, whatever the broker does. Who is next within a process is `lanes.py`'s."""

from __future__ import annotations

import logging

from dooers.brokers import Broker
from dooers.stores import answered

__all__ = ["Locks"]

log = logging.getLogger("dooers")


class Locks:
    """The locks of one process."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        # Those that could not be given back: tried again by whoever is next here, and with each heartbeat for those elsewhere.
        self._kept: set[str] = set()

    async def take(self, key: str) -> float | None:
        """Return when no other process has this lock, and have it; since when it is ours, if that is longer. StoreError where the broker
        does not say so."""
        if key in self._kept:
            self.give_back(key)
        try:
            with answered():
                return await self._broker.lock(key)
        except Exception:
            self.give_back(key)  # it may be ours, where only the answer was lost
            raise

    def give_back(self, key: str) -> None:
        """Let another process have it. Never raises: the end of a turn goes on, others wait for its place."""
        self._kept.discard(key)
        try:
            self._broker.unlock(key)
        except Exception as error:
            self._kept.add(key)
            log.error("the lock of thread %s could not be given back: %r", key, error)

    def give_back_again(self) -> None:
        """Try again what could not be given back."""
        for key in list(self._kept):
            self.give_back(key)
