"""Who makes what, by lifetime: the worker's own parts, the values of a turn, and what users provide. The one registry of a worker.

`dependency-injector` is used as a registry with singletons and overriding, nothing more: no wiring, no container a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from dooers.analytics import Collector
from dooers.broadcast import Broadcast, Teller
from dooers.brokers import Broker, open_broker
from dooers.clock import SystemClock
from dooers.config import WorkerConfig
from dooers.context import WorkerAnalytics, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.deadline import Deadline
from dooers.exceptions import NotConfiguredError, SignatureError, StoreError, meant
from dooers.injector import containers, providers
from dooers.lanes import Lanes
from dooers.models import Change, Identity
from dooers.pulse import Pulse
from dooers.quota import Quotas
from dooers.relay import Relay
from dooers.repository import Repository
from dooers.runner import Runner
from dooers.schema import SettingsSchema
from dooers.scope import KeptValues, TurnValue, TypedSnapshot
from dooers.send import WorkerSend
from dooers.session import GOING_AWAY, Session
from dooers.settings import TypedSettings
from dooers.stats import Counts
from dooers.stores import Store, open_store
from dooers.stores.sql_postgres import Aside, Beside
from dooers.totals import Totals
from dooers.vault import Vault

__all__ = [
    "SettingsOf",
    "SettingsShape",
    "Turn",
    "Worker",
    "close_parts",
    "open_parts",
    "override",
    "renew",
    "turn_values",
]

# How many of the settings that a rotation cannot open its error names.
SHOWN = 10


class SettingsShape:
    """What settings this worker has: none, a classic schema, or a class that `@worker.settings` was given."""

    def __init__(self, schema: SettingsSchema | None) -> None:
        self.schema = schema
        self.typed: TypedSettings | None = None


class SettingsOf:
    """Makes the settings object of a worker id, and rotates the keys under all of them."""

    def __init__(self, store: Store, teller: Teller, clock: SystemClock, vault: Vault, shape: SettingsShape) -> None:
        self._parts = (store, teller, clock, vault)
        self._shape = shape

    def __call__(self, worker_id: str, *, keep: bool = False) -> WorkerSettings:
        return WorkerSettings(*self._parts, worker_id, self._shape.schema, self._shape.typed, keep=keep)

    async def rotate(self) -> int:
        """Seal the passwords of every worker id with the newest key; how many were not. Those that no key opens are told at the end."""
        store, _, _, vault = self._parts
        if not vault.has_key:
            raise NotConfiguredError(
                "a rotation needs settings_encryption_key: the new key first, the old ones after it"
            )
        count, closed = 0, list[str]()
        for worker_id in await store.configured():
            sealed, fields = await self(worker_id).rotate()
            count += sealed
            closed += [f"{field_id!r} of worker {worker_id!r}" for field_id in fields]
        if closed:
            more = f" and {len(closed) - SHOWN} more" if len(closed) > SHOWN else ""
            raise StoreError(
                f"{count} settings were sealed anew, but these cannot be opened: {', '.join(closed[:SHOWN])}{more}: "
                "was their key dropped? Keep it after the new one, or set the values anew, and rotate again"
            )
        return count


def _new_id(clock: SystemClock) -> str:
    return clock.new_id()


def _beside(broker: Callable[[], Broker], process_id: Callable[[], str]) -> Beside | None:
    """What the store has to say by itself, of the broker and the process as they are when it writes."""

    def beside(groups: Sequence[Sequence[Change]]) -> AbstractContextManager[Aside | None]:
        announce = broker().announce
        return nullcontext() if announce is None else announce(groups, process_id())

    return None if broker().announce is None else beside


# Thread-safe, because `worker.stats()` is asked from other threads.
Singleton = providers.ThreadSafeSingleton


class Worker(containers.DeclarativeContainer):
    """What lives as long as the worker. Each is made when it is first asked for."""

    config = providers.Dependency(instance_of=WorkerConfig)
    clock = Singleton(SystemClock)
    shape = Singleton(SettingsShape, config.provided.settings_schema)
    # Who this process is, among others that run the same worker: another one each time the worker opens.
    process_id = Singleton(_new_id, clock)
    broker = Singleton(open_broker, config)
    store = Singleton(open_store, config, Singleton(_beside, broker.provider, process_id.provider))
    vault = Singleton(Vault, config.provided.settings_encryption_key)
    # Made anew each time the worker opens.
    counts = Singleton(Counts)
    broadcast = Singleton(Broadcast, clock)
    relay = Singleton(Relay, broadcast, broker, store, clock, process_id)
    collector = Singleton(Collector, config, relay, clock)
    quotas = Singleton(Quotas, config)
    totals = Singleton(Totals, store)
    lanes = Singleton(Lanes, config.provided.thread_queue_limit)
    settings = Singleton(SettingsOf, store, relay, clock, vault, shape)
    runner = Singleton(Runner, config, store, relay, broker, collector, clock, lanes, settings, counts, process_id)
    pulse = Singleton(Pulse, config, store, runner, broker, clock, process_id)
    repository = Singleton(Repository, runner, store, clock, settings)


# What outlives the event loop that a worker was opened on. All else is made anew each time it opens.
LASTING = {"config", "clock", "shape", "store", "vault"}


async def open_parts(worker: Worker) -> None:
    """Connect to the database and to the other processes. After a failure nothing is left open."""
    await worker.store().open()
    try:
        await worker.relay().open(worker.runner(), worker.settings())
    except BaseException:
        await worker.store().close()
        renew(worker)
        raise
    worker.pulse().start()


# Which part of the time to close is used up, at most, when the turns have ended; when sockets, dependencies and analytics have; when
# the other processes are let go of. What is left is for the store's last writes.
TURNS, OUTSIDE, OTHERS = 0.55, 0.75, 0.85


async def close_parts(worker: Worker, sessions: Set[Session], kept: KeptValues, deadline: Deadline) -> None:
    """Let turns end, then go of people, of what handlers were given, of other processes and of the database, in bounded time."""
    await worker.runner().finish(deadline)
    await worker.runner().close(deadline, TURNS)
    for session in sessions:
        session.close(GOING_AWAY)
    share = deadline.share(OUTSIDE) * 0.9
    await deadline.stage(
        OUTSIDE,
        {
            "the ends of turns that could not be stored": worker.runner().close_again(),
            "the analytics": worker.collector().close(share),
            "the dependencies": kept.close(worker.config().teardown_timeout, share),
            "the sockets": _sent(sessions, share),
        },
    )
    for keeper in kept.forget():
        deadline.leave(keeper, f"the teardown of {keeper.get_name().removeprefix('dooers-')}")
    for session in sessions:
        if session.answering is not None:
            deadline.leave(session.answering, "a session that was answering a frame")
    await deadline.stage(OTHERS, {"the heartbeat": worker.pulse().stop(), "the broker": worker.relay().close()})
    await deadline.stage(1.0, {"the database": worker.store().close()})
    renew(worker)


async def _sent(sessions: Set[Session], timeout: float) -> None:
    """Return when the sessions have ended. A peer that takes nothing is not waited for; that it was closed, it finds out."""
    if sessions:
        await asyncio.wait([session.over for session in sessions], timeout=timeout)


def renew(worker: Worker) -> None:
    """Forget what was made for the time that a worker was open."""
    for name, provider in worker.providers.items():
        if name not in LASTING:
            provider.reset()  # type: ignore[attr-defined]


class Turn(containers.DeclarativeContainer):
    """What a handler may ask for by these names. `@worker.provide` adds to it, `worker.override` replaces in it."""

    incoming = TurnValue("incoming", WorkerIncoming)
    send = TurnValue("send", WorkerSend)
    memory = TurnValue("memory", WorkerMemory)
    analytics = TurnValue("analytics", WorkerAnalytics)
    settings = TurnValue("settings", WorkerSettings)
    identity = TurnValue("identity", Identity)
    typed_settings = TypedSnapshot("typed_settings")


def turn_values(worker: Worker) -> Turn:
    """The registry of what handlers of a worker may ask for."""
    values = Turn()
    values.set_provider("repository", worker.repository)
    return values


@contextmanager
def override(values: Turn, replacements: Mapping[str, Any]) -> Iterator[None]:
    """Let handlers be given these values instead, until the block ends. Blocks nest."""
    known = [name for name in values.providers if name != "typed_settings"]
    for name in replacements:
        if name not in known:
            hint = meant(name, known)
            raise SignatureError(f"override: nobody provides {name!r}{hint}. Known: {', '.join(sorted(known))}")
    with ExitStack() as stack:
        for name, value in replacements.items():
            # Who asks for the settings by their class means the same thing as who asks for them by name.
            for key in (name, "typed_settings") if name == "settings" else (name,):
                stack.enter_context(values.providers[key].override(providers.Object(value)))
        yield
