"""The broker of a worker that is one process. Workers of one event loop that are given the same `Hub` hear each other: for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dooers.brokers.keylocks import KeyLocks
from dooers.config import WorkerConfig
from dooers.exceptions import StoreError

__all__ = ["Hub", "MemoryBroker"]


class Hub:
    """Where several brokers of one event loop meet: who is there, and who holds which key."""

    def __init__(self) -> None:
        self.members: list[MemoryBroker] = []
        self.keys = KeyLocks()


class MemoryBroker:
    """An ordinary broker, within one event loop."""

    limit: int | None = None
    announce = None

    def __init__(self, config: WorkerConfig | None = None, hub: Hub | None = None) -> None:
        self.alone = hub is None
        self._hub = Hub() if hub is None else hub
        self._heard: Callable[[str], None] | None = None
        self._missed: Callable[[], None] | None = None
        self._held: set[str] = set()

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed
        self._hub.members.append(self)

    async def close(self) -> None:
        self._heard = self._missed = None
        for key in list(self._held):
            self.unlock(key)
        if self in self._hub.members:
            self._hub.members.remove(self)

    def cut(self) -> None:
        """Hear nothing any more, as if the connection were away."""
        self._hub.members.remove(self)

    def mend(self) -> None:
        """The connection is back."""
        self._hub.members.append(self)
        if self._missed is not None:
            self._missed()

    def tell(self, text: str) -> None:
        for member in self._hub.members:
            if member is not self:
                asyncio.get_running_loop().call_soon(member._hear, text)

    def _hear(self, text: str) -> None:
        if self._heard is not None:
            self._heard(text)

    async def lock(self, key: str) -> None:
        await self._hub.keys.acquire(key)
        if self._heard is None:
            self._hub.keys.release(key)
            raise StoreError("this broker is not open")
        self._held.add(key)

    def unlock(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            self._hub.keys.release(key)
