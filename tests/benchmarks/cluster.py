"""What several processes cost and give: how late an event comes through another one, how long a fault is felt, what NOTIFY adds to a
write, and messages a second with one, two and four processes.

Run it by hand: `python tests/benchmarks/cluster.py [latency] [faults] [notify] [rate]`. It starts a PostgreSQL and a Redis of its own
(fsync off, but where it says on). Clients, processes and servers share this machine's cores. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "stores")]

from contract import a_thread, an_event, opening  # noqa: E402
from services.postgres import Address, OwnPostgres, own_postgres  # noqa: E402
from services.redis import OwnRedis, own_redis  # noqa: E402
from services.workers import Cluster, Poster, Reader  # noqa: E402

from dooers.brokers import Announce  # noqa: E402
from dooers.brokers.postgres import PostgresBroker  # noqa: E402
from dooers.client import Client  # noqa: E402
from dooers.models import Change  # noqa: E402
from dooers.stores.postgres import PostgresStore  # noqa: E402

MESSAGES, THREADS, SECONDS, ROUNDS, WRITES = 400, 16, 6.0, 9, 400


@contextmanager
def cluster(address: Address, database: str, size: int, redis: OwnRedis | None = None) -> Iterator[Cluster]:
    options = {
        "database_type": "postgres",
        "database_host": address.host,
        "database_port": address.port,
        "database_user": address.user,
        "database_name": database,
        "broker_url": None if redis is None else redis.url,
    }
    with tempfile.TemporaryDirectory() as home, Cluster(options, Path(home), size).running() as started:
        yield started


async def post(client: Client, text: str, thread_id: str | None = None) -> None:
    event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
    await client.ask("event.create", {"event": event} | ({"thread_id": thread_id} if thread_id else {}))


async def new_thread(client: Client) -> str:
    frames = [frame async for frame in client.send("echo 0 first")]
    return next(str(frame["payload"]["thread_id"]) for frame in frames if frame["type"] == "event.append")


def ms(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"median {statistics.median(seconds) * 1e3:6.2f} ms, p99 {cuts[98] * 1e3:6.2f} ms"


# ---------------------------------------------------------------- how late


class Arrivals:
    """When which text came to a client."""

    def __init__(self, client: Client) -> None:
        self._feed = client.frames()
        self._at: dict[str, float] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for frame in self._feed:
            if frame["type"] == "event.append":
                for event in frame["payload"]["events"]:
                    self._at[event["content"][0]["text"]] = time.perf_counter()
                self._news.set()

    async def of(self, text: str) -> float:
        while text not in self._at:
            self._news.clear()
            await self._news.wait()
        return self._at[text]

    def stop(self) -> None:
        self._task.cancel()


async def latency(server: OwnPostgres, redis: OwnRedis) -> None:
    print("From the ack of a message to its arrival at a client (before it, where negative), one message at a time")
    for name, broker in (("postgres", None), ("redis", redis)):
        async with server.address.database() as database:
            with cluster(server.address, database, 2, broker) as started:
                async with AsyncExitStack() as stack:
                    one, here, there = [await stack.enter_async_context(started.nodes[at].client()) for at in (0, 0, 1)]
                    thread_id = await new_thread(one)
                    arrivals = [Arrivals(client) for client in (here, there)]
                    for client in (here, there):
                        await client.ask("thread.subscribe", {"thread_id": thread_id})
                    late: list[list[float]] = [[], []]
                    for n in range(MESSAGES):
                        text = f"echo 0 {n}"
                        await post(one, text, thread_id)
                        acked = time.perf_counter()
                        for at, arriving in enumerate(arrivals):
                            late[at].append(await arriving.of(text) - acked)
                            await arriving.of(f"re: {text}")
                    for arriving in arrivals:
                        arriving.stop()
        print(f"  {name:9} same process {ms(late[0])};  another {ms(late[1])}")


# ---------------------------------------------------------------- how long a fault is felt


@asynccontextmanager
async def conversation(started: Cluster) -> AsyncIterator[tuple[Reader, Reader, Poster]]:
    async with started.nodes[0].client() as client:
        thread_id = await new_thread(client)
    one, two = Reader(started, thread_id, 0), Reader(started, thread_id, 1)
    async with one.following(), two.following():
        yield one, two, Poster(one, iter(()))


async def until_told(poster: Poster, *readers: Reader) -> float:
    """Seconds until somebody could say something, and all had it and its answer."""
    began = time.perf_counter()
    said = await poster.say(f"echo 0 {began}")
    for reader in readers:
        await reader.says(f"re: {said.text}")
    return time.perf_counter() - began


async def faults(server: OwnPostgres, redis: OwnRedis) -> None:
    print("Seconds until a message is said, answered, and seen through both processes again (median of 5 faults)")
    for name, broker in (("postgres", None), ("redis", redis)):
        async with server.address.database() as database:
            with cluster(server.address, database, 2, broker) as started:
                async with conversation(started) as (one, two, poster):
                    print(f"  {name:9} no fault: {await median_of(started, poster, one, two):.3f}")
                    took = []
                    for _ in range(5):
                        await asyncio.to_thread(server.stop)
                        await asyncio.to_thread(server.start)
                        took.append(await until_told(poster, one, two))
                    print(f"  {name:9} PostgreSQL restarted (from when it is up): {statistics.median(took):.3f}")
                    took = []
                    for _ in range(5):
                        await cut(server, database, broker)
                        took.append(await until_told(poster, one, two))
                    print(f"  {name:9} the broker's connections cut: {statistics.median(took):.3f}")
                if broker is not None:
                    continue
                await killed(started)


async def median_of(started: Cluster, poster: Poster, *readers: Reader) -> float:
    return statistics.median([await until_told(poster, *readers) for _ in range(20)])


async def cut(server: OwnPostgres, database: str, redis: OwnRedis | None) -> None:
    if redis is not None:
        from redis import Redis

        with Redis.from_url(redis.url) as admin:
            admin.client_kill_filter(_type="pubsub")
        return
    async with server.address.session(database) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'dooers broker' AND datname = current_database()"
        )


async def killed(started: Cluster) -> None:
    resumed, closed, answered = [], [], []
    for _ in range(3):
        started.start()
        async with conversation(started) as (one, two, poster), started.nodes[1].client() as client:
            await post(client, "wait 0 x", one.thread_id)
            await one.says("re: wait 0 x")
            times, began = len(two.resumed), time.monotonic()
            started.nodes[1].kill()
            await two.until(lambda two=two, times=times: len(two.resumed) > times)  # type: ignore[misc]
            resumed.append(two.resumed[-1] - began)
            await poster.say("echo 0 after")
            await two.says("re: echo 0 after")
            answered.append(time.monotonic() - began)
            await two.says("The answer broke off.")
            closed.append(time.monotonic() - began)
    print("A process killed with -9, run_timeout 6 s, heartbeat 2 s (median of 3), seconds until")
    print(f"  its client has resumed elsewhere {statistics.median(resumed):.2f}")
    print(f"  its thread has another answer    {statistics.median(answered):.2f}")
    print(f"  its runs are closed              {statistics.median(closed):.2f}")


# ---------------------------------------------------------------- what NOTIFY costs


async def write(store: PostgresStore, at_once: int) -> tuple[float, float]:
    """Changes a second, each waited for, in so many threads; and this process's own microseconds a Change."""
    threads = [a_thread() for _ in range(at_once)]
    for thread in threads:
        await store.apply(opening(thread, an_event(thread, "A question?"), repeat_key=thread.id, exact=False))

    async def lane(thread: Any) -> None:
        for _ in range(WRITES // at_once):
            event = an_event(thread, "An answer of one line.", actor="assistant", turn_seq=1)
            await store.apply(Change(thread=thread, events=(event,)))

    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(lane(thread) for thread in threads))
    count = WRITES // at_once * at_once
    return count / (time.perf_counter() - begun), (time.process_time() - used) / count * 1e6


async def notify(server: OwnPostgres, fsync: str) -> None:
    async with server.address.session() as admin:
        for setting in ("fsync", "full_page_writes"):
            await admin.execute(f"ALTER SYSTEM SET {setting} = {fsync}")
        await admin.execute("SELECT pg_reload_conf()")
    print(
        f"Changes a second without and with NOTIFY in their transaction, fsync {fsync} (median of {ROUNDS}, interleaved)"
    )
    async with server.address.database() as database:
        config = server.address.config(database, database_pool_max=44)
        # Who says it (one that is not open does not know whether anybody is there, so it does), and two who hear it.
        brokers = [PostgresBroker(config) for _ in range(3)]
        announce = cast(Announce, brokers[0].announce)
        stores = [PostgresStore(config), PostgresStore(config, beside=lambda groups: announce(groups, "process"))]
        for store in stores:
            await store.open()
        for broker in brokers[1:]:
            await broker.open(lambda text: None, lambda: None)
        for at_once in (1, 8, 32):
            rates: list[list[float]] = [[], []]
            for number in range(ROUNDS + 1):
                for rate, store in zip(rates, stores, strict=True):
                    result, _ = await write(store, at_once)
                    if number:
                        rate.append(result)
            ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
            without, beside = (statistics.median(rate) for rate in rates)
            print(f"  {at_once:2} threads at once: {without:6.0f}, {beside:6.0f} a second: {ratio:.2f} of it")
        for broker in brokers[1:]:
            await broker.close()
        for store in stores:
            await store.close()


# ---------------------------------------------------------------- how many


async def talk(client: Client, until: float) -> int:
    thread_id = await new_thread(client)
    said, arrivals = 0, Arrivals(client)
    while time.perf_counter() < until:
        text = f"echo 0 {said}"
        await post(client, text, thread_id)
        await arrivals.of(f"re: {text}")
        said += 1
    arrivals.stop()
    return said


async def rate(server: OwnPostgres, redis: OwnRedis) -> None:
    print(
        f"Messages a second (each stored, told, answered, seen), {THREADS} threads; {os.cpu_count()} cores for processes, PostgreSQL "
        "and all clients, which are one process"
    )
    for name, broker in (("postgres", None), ("redis", redis)):
        for size in (1, 2, 4):
            async with server.address.database() as database:
                with cluster(server.address, database, size, broker) as started:
                    async with AsyncExitStack() as stack:
                        clients = [
                            await stack.enter_async_context(started.nodes[at % size].client()) for at in range(THREADS)
                        ]
                        until = time.perf_counter() + SECONDS
                        counts = await asyncio.gather(*(talk(client, until) for client in clients))
            print(f"  {name:9} {size} processes: {sum(counts) / SECONDS:5.0f}")


async def main(wanted: list[str]) -> None:
    with own_postgres() as server, own_redis() as redis:
        if "latency" in wanted:
            await latency(server, redis)
        if "rate" in wanted:
            await rate(server, redis)
        if "notify" in wanted:
            for fsync in ("off", "on"):
                await notify(server, fsync)
        if "faults" in wanted:
            await faults(server, redis)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["latency", "rate", "notify", "faults"]))
