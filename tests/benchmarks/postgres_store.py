"""What a turn costs in PostgreSQL: its Changes through the store, and the same on a bare asyncpg pool beside them, a statement a turn
and step. With many turns at once the store needs fewer, as they share them.

Run it by hand: `python tests/benchmarks/postgres_store.py` (DOOERS_TEST_POSTGRES_URL for a server of your own). Rounds are
interleaved, so the ratios mean something on any machine; the absolute numbers are this machine's. Not a test: nothing here passes
or fails.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
from attrs import evolve, frozen

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "stores")]

from contract import T0, a_run, a_thread, an_event, opening  # noqa: E402
from services.postgres import Address, own_postgres  # noqa: E402

from dooers.models import Change, Thread  # noqa: E402
from dooers.stores.postgres import PostgresStore  # noqa: E402
from dooers.stores.postgres_connection import _light_reset, _numbered  # noqa: E402

ROUNDS, TURNS, SIDE_BY_SIDE = 24, 40, 16


@frozen
class Way:
    """How a handler yields: without waiting for the disk, as it is, or after each step was stored, as it would be for a
    handler that has something else to wait for. `groups` is what the store makes statements of, with the message first."""

    name: str
    waits: bool
    groups: tuple[slice, ...]


FAST = Way("yields without waiting", False, (slice(0, 1), slice(1, 2), slice(2, 6)))
SLOW = Way("each yield stored before the next", True, tuple(slice(n, n + 1) for n in range(6)))


def turn_of(thread: Thread) -> list[Change]:
    """A message, and what `run_start`, three texts and `run_end` become."""
    run = a_run(thread)
    return [
        opening(thread, an_event(thread, "A question?"), repeat_key=thread.id, exact=False),
        Change(thread=thread, during=run.id, runs=(run,)),
        *(
            Change(thread=thread, during=run.id, events=(an_event(thread, text, actor="assistant", turn_seq=1),))
            for text in TEXTS
        ),
        Change(thread=thread, during=run.id, runs=(evolve(run, status="succeeded", ended_at=T0),)),
    ]


TEXTS = ("An answer of one line.", "Another one.", "And a last one.")


async def through_store(store: PostgresStore, way: Way, changes: list[Change]) -> None:
    """A turn as the runner has it: the message is waited for, the handler is not. (A writer takes the start of the run at once, and
    finds the rest when it comes back: the same statements each time.)"""
    await store.apply(changes[0])
    for number, change in enumerate(changes[1:]):
        future = store.apply(change)
        if way.waits:
            await future
        elif number == 0:
            await asyncio.sleep(0)
    await future  # they end in order


async def bare(pool: Any, statements: Callable[[], list[tuple[str, list[Any]]]]) -> None:
    """The same statements and nothing else: nobody orders them, answers for them, or reads what comes back."""
    for text, arguments in statements():
        async with pool.acquire() as connection:
            await connection.fetch(text, *arguments)


def as_sent(store: PostgresStore, way: Way, changes: list[Change]) -> list[tuple[str, list[Any]]]:
    """The statements the store makes of a turn."""
    sent = []
    for group in way.groups:
        named, values = store._sql.write([changes[group]])
        text, names = _numbered(named)
        sent.append((text, [values[name] for name in names]))
    return sent


async def timed(turns: list[Callable[[], Awaitable[None]]], at_once: int) -> tuple[float, float]:
    """Microseconds a turn, on the clock and of this process."""
    waiting = iter(turns)

    async def lane() -> None:
        for turn in waiting:
            await turn()

    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(lane() for _ in range(at_once)))
    count = len(turns)
    return (time.perf_counter() - begun) / count * 1e6, (time.process_time() - used) / count * 1e6


async def measure(store: PostgresStore, pool: Any, way: Way, at_once: int) -> None:
    rows: dict[str, list[tuple[float, float]]] = {
        "store": [],
        "bare asyncpg": [],
        "bare, arguments made beforehand": [],
    }
    for number in range(ROUNDS + 2):
        works: dict[str, list[Callable[[], Awaitable[None]]]] = {name: [] for name in rows}
        for name, turns in works.items():
            for changes in (turn_of(a_thread()) for _ in range(TURNS)):
                make = partial(as_sent, store, way, changes)
                if name == "store":
                    turns.append(partial(through_store, store, way, changes))
                elif name == "bare asyncpg":
                    turns.append(partial(bare, pool, make))
                else:
                    turns.append(partial(bare, pool, partial(list, make())))
        # Each is first in one round of three: what a server has just done makes the next thing cheaper, or dearer.
        for name in sorted(works, key=lambda name: (list(works).index(name) + number) % len(works)):
            result = await timed(works[name], at_once)
            if number >= 2:
                rows[name].append(result)
    print(f"{way.name}, {at_once} at once, µs a turn (of them this process)")
    for name, values in rows.items():
        wall, own = (statistics.median(value[n] for value in values) for n in (0, 1))
        pairs = list(zip(rows["store"], values, strict=True))
        ratios = [statistics.median(ours[n] / theirs[n] for ours, theirs in pairs) for n in (0, 1)]
        print(f"  {name:34}{wall:6.0f} ({own:.0f}); the store is {ratios[0]:.2f} ({ratios[1]:.2f}) of it")


async def round_trips(store: PostgresStore, proxy: Counter, way: Way) -> None:
    """Of ten turns, as they go over the wire: what was run, and how often somebody waited for an answer."""
    for _ in range(12):  # until everything is prepared
        await through_store(store, way, turn_of(a_thread()))
    before = proxy.run, proxy.answered
    for _ in range(10):
        await through_store(store, way, turn_of(a_thread()))
    run, answered = (now - then for now, then in zip((proxy.run, proxy.answered), before, strict=True))
    print(f"{way.name}: {run / 10:.1f} statements and {answered / 10:.1f} round trips a turn")


class Counter:
    """A way to the server that counts what comes back: commands that were run, and answers that are complete."""

    def __init__(self, address: Address) -> None:
        self._to = address
        self.run = self.answered = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield evolve(self._to, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._to.host, self._to.port
        if host.startswith("/"):
            there, back = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there, back = await asyncio.open_connection(host, port)
        asking = asyncio.create_task(_pass_on(reader, back))
        with suppress(OSError, EOFError):
            while True:
                head = await there.readexactly(5)
                self.run += head[:1] == b"C"
                self.answered += head[:1] == b"Z"
                writer.write(head + await there.readexactly(int.from_bytes(head[1:], "big") - 4))
        await asking
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def main(address: Address) -> None:
    async with address.database() as database:
        store = PostgresStore(address.config(database))
        await store.open()
        pool = await asyncpg.create_pool(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password or None,
            database=database,
            min_size=1,
            max_size=8,
            reset=_light_reset,
            ssl=False if address.host.startswith("/") else "prefer",
        )
        for way in (FAST, SLOW):
            for at_once in (1, SIDE_BY_SIDE):
                await measure(store, pool, way, at_once)
        await pool.close()
        await store.close()
        counter = Counter(address)
        async with counter.open() as counted:
            store = PostgresStore(counted.config(database))
            await store.open()
            for way in (FAST, SLOW):
                await round_trips(store, counter, way)
            await store.close()


if __name__ == "__main__":
    url = os.environ.get("DOOERS_TEST_POSTGRES_URL")
    if url is None:
        with own_postgres() as server:
            asyncio.run(main(server.address))
    else:
        parts = urlsplit(url)
        asyncio.run(
            main(
                Address(
                    parts.hostname or "localhost",
                    parts.port or 5432,
                    unquote(parts.username or ""),
                    unquote(parts.password or ""),
                )
            )
        )
