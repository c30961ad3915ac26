"""How the processes of one worker hear of each other: the Broker that the engine needs, and which one a config asks for.

A broker carries texts; what they mean is `news.py`'s business, what becomes of them `relay.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol, TypeAlias

from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError
from dooers.models import Change
from dooers.stores.sql_postgres import Aside

__all__ = ["BROKERS", "Announce", "Broker", "open_broker"]


# While these Changes are written, a group of each thread: what the store is to add to its statement, so that others hear it in this
# sender's name. Nothing where nobody is there to hear.
Announce: TypeAlias = Callable[[Sequence[Sequence[Change]], str], AbstractContextManager[Aside | None]]


class Broker(Protocol):
    """Tells every process of a worker what one of them says. Every implementation passes `tests/brokers/contract.py`.

    Errors: StoreError from `open` and `lock`; nothing else raises. What is told is never waited for; what cannot be delivered makes
    the others hear `missed` when they can be reached again. `lock` ends in bounded time where the broker does not answer. The engine
    survives a broker that does neither: others are not told, and a key that could not be let go is tried again with each heartbeat.
    """

    @property
    def alone(self) -> bool:
        """Whether there can be no other process: then nothing needs to be put into words."""
        ...

    @property
    def limit(self) -> int | None:
        """The most bytes that one text may have; None for any."""
        ...

    @property
    def announce(self) -> Announce | None:
        """Where the store can tell of Changes itself, in the transaction that writes them: what it is to do while it writes.

        None where it cannot: then each Change is told once it is stored.
        """
        ...

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        """Begin to listen. `heard` is called with what others say, in the order in which each of them said it; `missed` when the
        connection was away and is back: what was said meanwhile is lost."""
        ...

    async def close(self) -> None:
        """Say what waits to be said, let go of all locks, and stop listening."""
        ...

    def tell(self, text: str) -> None:
        """Say something to all others. Returns at once."""
        ...

    async def lock(self, key: str) -> float | None:
        """Return when no other process, nor anybody here, holds this key, and hold it. Being cancelled leaves nothing behind.

        Says since when, in the time of the event loop, no other process can have held it, where that is longer than just now: a broker
        may keep a key for the next one here, as long as nobody else wants it.

        StoreError where the broker is not open, or does not answer.
        """
        ...

    def unlock(self, key: str) -> None:
        """Let go of a key; no harm if it is not held (any more). A process that dies lets go of all of its."""
        ...


# Which class serves which URL scheme, imported when it is asked for.
BROKERS: dict[str, tuple[str, str]] = {
    "memory": ("dooers.brokers.memory", "MemoryBroker"),
    "postgres": ("dooers.brokers.postgres", "PostgresBroker"),
    "postgresql": ("dooers.brokers.postgres", "PostgresBroker"),
    "cosmos": ("dooers.brokers.cosmos", "CosmosBroker"),
    "redis": ("dooers_contrib.redis", "RedisBroker"),
    "rediss": ("dooers_contrib.redis", "RedisBroker"),
    "unix": ("dooers_contrib.redis", "RedisBroker"),
}
# The broker that comes with a database; with the others a process is alone unless `broker_url` says otherwise.
_COMES_WITH = {"postgres": "postgres:"}


def open_broker(config: WorkerConfig) -> Broker:
    """The broker a config asks for, not yet opened: by `broker_url`, else the one that comes with the database."""
    url = config.broker_url or _COMES_WITH.get(config.database_type, "memory:")
    scheme = url.partition(":")[0]
    if scheme not in BROKERS:
        raise ConfigError(
            f"WorkerConfig.broker_url: expected one that begins with {', '.join(f'{s}:' for s in BROKERS)}"
        )
    module, name = BROKERS[scheme]
    make: Callable[[WorkerConfig], Broker] = getattr(import_module(module), name)
    return make(config)
