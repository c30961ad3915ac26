"""What a turn costs in PostgreSQL: its Changes through the store, and the very same statements on a bare asyncpg pool beside them.

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
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
from attrs import evolve

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "stores")]

from contract import T0, a_run, a_thread, an_event, opening  # noqa: E402
from services.postgres import Address, own_postgres  # noqa: E402

from dooers.models import Change, Thread  # noqa: E402
from dooers.stores.postgres import PostgresStore  # noqa: E402
from dooers.stores.postgres_connection import _light_reset, _numbered  # noqa: E402

ROUNDS, TURNS, SIDE_BY_SIDE = 15, 40, 16


def answer(thread: Thread) -> list[Change]:
    """What `run_start, text, update_thread, run_end` become."""
    run = a_run(thread)
    return [
        Change(thread=thread, runs=(run,)),
        Change(thread=thread, events=(an_event(thread, "An answer of one line.", actor="assistant", turn_seq=1),)),
        Change(thread=thread, patch={"title": "A title", "updated_at": T0}),
        Change(thread=thread, runs=(evolve(run, status="succeeded", ended_at=T0),)),
    ]


async def through_store(store: PostgresStore, message: Change, changes: list[Change]) -> None:
    """A turn as the runner has it: the message is waited for, the handler is not."""
    await store.apply(message)
    futures = []
    for change in changes:
        futures.append(store.apply(change))
        await asyncio.sleep(0)
    await futures[-1]  # they end in order


async def bare(pool: Any, statements: Callable[[], list[tuple[str, list[Any]]]]) -> None:
    """The same statements and nothing else: nobody orders them, answers for them, or reads what comes back."""
    for text, arguments in statements():
        async with pool.acquire() as connection:
            await connection.fetch(text, *arguments)
    for _ in range(4):
        await asyncio.sleep(0)


def as_sent(store: PostgresStore, message: Change, changes: list[Change]) -> list[tuple[str, list[Any]]]:
    """The statements the store makes of a turn, compiled beforehand."""
    sent = []
    for group in ([message], changes[:1], changes[1:]):
        named, values = store._sql.write(group)
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


def message_of(thread: Thread) -> Change:
    return opening(thread, an_event(thread, "A question?"), repeat_key=thread.id, exact=False)


async def measure(store: PostgresStore, pool: Any, at_once: int) -> None:
    rows: dict[str, list[tuple[float, float]]] = {
        "store": [],
        "bare asyncpg": [],
        "bare, arguments made beforehand": [],
    }
    for number in range(ROUNDS + 2):
        works: dict[str, list[Callable[[], Awaitable[None]]]] = {name: [] for name in rows}
        for name, turns in works.items():
            for thread in (a_thread() for _ in range(TURNS)):
                message, changes = message_of(thread), answer(thread)
                make = partial(as_sent, store, message, changes)
                if name == "store":
                    turns.append(partial(through_store, store, message, changes))
                elif name == "bare asyncpg":
                    turns.append(partial(bare, pool, make))
                else:
                    turns.append(partial(bare, pool, partial(list, make())))
        for name, turns in works.items():
            result = await timed(turns, at_once)
            if number >= 2:
                rows[name].append(result)
    print(f"{at_once} at once, µs a turn (of them this process)")
    for name, values in rows.items():
        wall, own = (statistics.median(value[n] for value in values) for n in (0, 1))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(rows["store"], values, strict=True))
        print(f"  {name:34}{wall:6.0f} ({own:.0f}); the store is {ratio:.2f} of it")


async def round_trips(store: PostgresStore, address: Address, database: str) -> None:
    """Statements as the server counts them, of ten turns."""
    log: list[str] = []
    connections = [line async for line in _connections(store)]
    for connection in connections:
        connection.add_query_logger(lambda record: log.append(record.query))
    for _ in range(10):
        thread = a_thread()
        await through_store(store, message_of(thread), answer(thread))
    for connection in connections:
        connection._query_loggers.clear()
    print(f"statements a turn (a message and four yields): {len(log) / 10:.1f}, each a round trip and a transaction")


async def _connections(store: PostgresStore) -> Any:
    lines = [store._pool.line() for _ in range(10)]
    for line in lines:
        yield (await line.raw())._con
    for line in lines:
        await line.drop()


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
        for at_once in (1, SIDE_BY_SIDE):
            await measure(store, pool, at_once)
        await round_trips(store, address, database)
        await pool.close()
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
