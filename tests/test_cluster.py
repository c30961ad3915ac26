"""Several real processes of one worker: two, then four uvicorns on one PostgreSQL, with its own broker and with Redis.

What two workers in one event loop can show is in `test_processes.py`. Here processes are killed, stopped and cut off, under load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, cycle
from typing import Any
from uuid import uuid4

import pytest
from attrs import define
from redis import Redis
from services.postgres import OwnPostgres, own_postgres
from services.redis import OwnRedis, own_redis
from services.workers import AWAY, Cluster, Poster, Reader, text_of

from dooers.client import Client

Frame = dict[str, Any]
WITHIN = 30.0
HEARTBEAT, TIMEOUT = 0.25, 2.0
SAFE = "The answer broke off."


@define(eq=False, repr=False)
class Place:
    """A cluster and what it stands on."""

    cluster: Cluster
    database: str
    postgres: OwnPostgres
    redis: OwnRedis | None

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        async with self.postgres.address.session(self.database) as session:
            return list(await session.fetch(sql, *values))

    async def events(self, thread_id: str) -> list[Any]:
        return await self.rows("SELECT * FROM worker_events WHERE thread_id = $1 ORDER BY seq", thread_id)

    async def runs(self, thread_id: str) -> list[Any]:
        return await self.rows("SELECT * FROM worker_runs WHERE thread_id = $1", thread_id)


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, own_server: OwnPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Processes that the tests of one kind share."""
    broker, size = request.param
    redis: OwnRedis | None = request.getfixturevalue("redis") if broker == "redis" else None
    database = f"cluster{uuid4().hex}"

    async def create() -> None:
        async with own_server.address.session() as admin:
            await admin.execute(f"CREATE DATABASE {database} TEMPLATE template0")

    asyncio.run(create())
    address = own_server.address
    options = {
        "database_type": "postgres",
        "database_host": address.host,
        "database_port": address.port,
        "database_user": address.user,
        "database_password": address.password,
        "database_name": database,
        "database_pool_max": 5,
        "broker_url": None if redis is None else redis.url,
        "run_heartbeat": HEARTBEAT,
        "run_timeout": TIMEOUT,
        "teardown_timeout": 1.0,
        "shutdown_grace": 0,
    }
    cluster = Cluster(options, tmp_path_factory.mktemp("cluster"), size)
    with cluster.running():
        yield Place(cluster, database, own_server, redis)


@pytest.fixture
def cluster(place: Place) -> Cluster:
    """All processes of it, up."""
    place.cluster.start()
    return place.cluster


ALL = [("postgres", 2), ("postgres", 4), ("redis", 2), ("redis", 4)]
on_all = pytest.mark.parametrize("place", ALL, indirect=True, scope="module", ids=lambda p: f"{p[0]}-{p[1]}")
on_two = pytest.mark.parametrize("place", ALL[::2], indirect=True, scope="module", ids=lambda p: f"{p[0]}-{p[1]}")
on_postgres = pytest.mark.parametrize("place", ALL[:1], indirect=True, scope="module", ids=lambda p: f"{p[0]}-{p[1]}")
on_redis = pytest.mark.parametrize("place", ALL[2:3], indirect=True, scope="module", ids=lambda p: f"{p[0]}-{p[1]}")


# ---------------------------------------------------------------- what people do


async def post(client: Client, text: str, thread_id: str | None = None, **more: Any) -> None:
    payload: Frame = {
        "event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]},
        **more,
    }
    if thread_id is not None:
        payload["thread_id"] = thread_id
    await client.ask("event.create", payload)


async def next_of(feed: AsyncIterator[Frame], frame_type: str, wanted: Callable[[Frame], Any] = bool) -> Frame:
    """The payload of the next frame of a type that is wanted."""
    async with asyncio.timeout(WITHIN):
        async for frame in feed:
            if frame["type"] == frame_type and wanted(frame["payload"]):
                return dict(frame["payload"])
    raise AssertionError(f"no {frame_type} came")


async def new_thread(client: Client) -> str:
    """A thread with a message and its answer."""
    async with asyncio.timeout(WITHIN):
        frames = [frame async for frame in client.send("echo 0 first")]
    return next(str(frame["payload"]["thread_id"]) for frame in frames if frame["type"] == "event.append")


@asynccontextmanager
async def everywhere(cluster: Cluster, **more: Any) -> AsyncIterator[list[Client]]:
    """A client of each process."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node.client(**more)) for node in cluster.nodes]


@asynccontextmanager
async def readers(cluster: Cluster, thread_id: str) -> AsyncIterator[list[Reader]]:
    """Somebody who follows a thread through each process."""
    async with AsyncExitStack() as stack:
        found = [Reader(cluster, thread_id, at) for at in range(len(cluster.nodes))]
        for reader in found:
            await stack.enter_async_context(reader.following())
        yield found


async def alike(place: Place, reading: list[Reader]) -> list[Any]:
    """Everybody has got what the store has, each event once and in order. The store's events."""
    stored = await place.events(reading[0].thread_id)
    for reader in reading:
        await reader.has(stored[-1]["seq"])
        assert [event["id"] for event in reader.events] == [row["id"] for row in stored]
        assert reader.seqs == [row["seq"] for row in stored]
    return stored


# ---------------------------------------------------------------- what everybody sees


@on_all
async def test_a_turn_is_seen_alike_through_every_process(place: Place, cluster: Cluster) -> None:
    async with everywhere(cluster) as clients:
        thread_id = await new_thread(clients[0])
        async with readers(cluster, thread_id) as reading:
            for at, client in enumerate(clients):
                await post(client, f"stream 12 {at}", thread_id)
                await post(client, f"big 9000 {at}", thread_id)  # over what a notification may have
                await post(client, f"echo 0 {at}", thread_id)
            for at in range(len(clients)):
                for word in ("stream 12", "big 9000", "echo 0"):
                    await reading[0].says(f"re: {word} {at}")
            stored = await alike(place, reading)
            assert [row["seq"] for row in stored] == list(range(1, 2 + 1 + 6 * len(clients)))
            for reader in reading:
                assert await reader.ended(3 * len(clients)) == ["succeeded"] * 3 * len(clients)
                assert list(reader.streamed.values()) == [True] * len(clients)  # piece by piece, and nothing was lost


@on_all
async def test_who_comes_back_through_another_process_has_missed_nothing(place: Place, cluster: Cluster) -> None:
    async with everywhere(cluster) as clients:
        thread_id = await new_thread(clients[0])
        async with readers(cluster, thread_id) as reading:
            for at in range(1, 6):
                coming, staying = reading[0], reading[1]
                await post(clients[at % 2], f"stream 10 {at}", thread_id)
                await coming.reads_along()  # in the middle of it
                await coming.leave()
                await post(clients[0], f"echo 0 {at}", thread_id)
                if at % 2:
                    await staying.says(f"re: echo 0 {at}")  # or while it goes on
                await coming.come_back(at)
                await coming.says(f"re: echo 0 {at}")
            await alike(place, reading)
            assert all(reading[1].streamed.values())


@on_all
async def test_what_is_done_through_one_process_is_done_in_all(place: Place, cluster: Cluster) -> None:
    async with everywhere(cluster) as clients:
        first, last = clients[0], clients[-1]
        feeds = [client.frames() for client in clients]
        thread_id = await new_thread(first)
        for feed in feeds:
            await next_of(feed, "thread.upsert", lambda p: p["thread"]["id"] == thread_id)
        async with readers(cluster, thread_id) as reading:
            # stopped: the one that runs, and the one that waits
            await post(first, "wait 0 x", thread_id)
            await reading[-1].says("re: wait 0 x")
            await post(first, "echo 0 never", thread_id)
            await last.ask("run.cancel", {"thread_id": thread_id})
            for reader in reading:
                await reader.sees("canceled")
            await post(last, "echo 0 after", thread_id)
            for reader in reading:
                await reader.says("re: echo 0 after")
            assert "re: echo 0 never" not in [text_of(event) for event in reading[0].events]
            # renamed, and gone
            await post(last, "title 0 new", thread_id)
            for feed in feeds:
                await next_of(feed, "thread.upsert", lambda p: p["thread"].get("title") == "title 0 new")
            await last.ask("thread.update", {"thread_id": thread_id, "title": "by a person"})
            for feed in feeds:
                await next_of(feed, "thread.upsert", lambda p: p["thread"].get("title") == "by a person")
            await last.ask("thread.delete", {"thread_id": thread_id})
            for feed in feeds:
                await next_of(feed, "thread.deleted", lambda p: p["thread_id"] == thread_id)


@on_all
async def test_settings_and_analytics_reach_their_subscribers_everywhere_once(place: Place, cluster: Cluster) -> None:
    async with everywhere(cluster) as clients:
        feeds = [client.frames() for client in clients]
        for client in clients:
            await client.ask("settings.subscribe", {"worker_id": "worker"})
            await client.ask("analytics.subscribe", {"worker_id": "worker"})
        values = [uuid4().hex for _ in clients]
        for client, value in zip(clients, values, strict=True):
            await client.ask("settings.patch", {"field_id": "model", "value": value})
        for feed in feeds:
            patches = [await next_of(feed, "settings.patch") for _ in clients]
            assert sorted(patch["value"] for patch in patches) == sorted(values)
        for n, client in enumerate(clients):
            await post(client, f"track {n} x")
        await post(clients[0], "track 99 last")
        for feed in feeds:
            told: list[int] = []
            while len(told) < len(clients) + 1:
                event = await next_of(feed, "analytics.event", lambda p: p["event"] == "my.event")
                told.append(event["data"]["n"])
            assert sorted(told) == [*range(len(clients)), 99]


@on_all
async def test_messages_to_one_thread_are_answered_one_after_the_other_each_once(
    place: Place, cluster: Cluster
) -> None:
    async with everywhere(cluster) as clients:
        thread_id = await new_thread(clients[0])
        async with readers(cluster, thread_id) as reading:
            keys = [uuid4().hex for _ in range(12)]
            async with asyncio.TaskGroup() as group:
                for key, client in zip(keys, cycle(clients), strict=False):
                    # Through every process, and each of them twice at once through another.
                    for one in (client, clients[clients.index(client) - 1]):
                        group.create_task(post(one, f"steps 0 {key}", thread_id, client_event_id=key))
            for key in keys:
                await reading[0].says(f"re: steps 0 {key}")
            stored = await alike(place, reading)
            assert len(stored) == 2 + 3 * len(keys)
            said = [text_of(event) for event in reading[-1].events if event["actor"] == "assistant"][1:]
            begun = [text.removeprefix("begin ") for text in said[::2]]
            assert said[1::2] == [f"re: {text}" for text in begun]  # nobody began before another had ended
            assert sorted(begun) == sorted(f"steps 0 {key}" for key in keys)


# ---------------------------------------------------------------- under load


@define(eq=False, repr=False)
class Load:
    """Conversations that go on all the time, each through all processes, with people who follow through each."""

    place: Place
    posters: list[Poster]
    reading: list[list[Reader]]

    @property
    def everybody(self) -> list[Reader]:
        return [reader for one in self.reading for reader in one]

    async def going_on(self, messages: int = 3) -> None:
        """Wait until everybody has said so much more."""
        for poster in self.posters:
            await poster.goes_on(messages)

    async def check(self) -> None:
        """Once the posters are done: nothing acknowledged is lost, nothing is there twice, everybody has it all in order, and each
        run has one end, after which nothing of it comes."""
        for poster, reading in zip(self.posters, self.reading, strict=True):
            thread_id = poster.reader.thread_id
            for reader in reading:
                await reader.ended()
            stored = await alike(self.place, reading)
            keys = [row["client_event_id"] for row in stored if row["client_event_id"]]
            assert len(keys) == len(set(keys))
            assert {said.key for said in poster.said} <= set(keys)
            answers = [text_of(event) for event in reading[0].events if event["actor"] == "assistant"]
            assert len(answers) == len(set(answers))
            ended = {row["id"]: row["status"] for row in await self.place.runs(thread_id)}
            for reader in reading:
                for run_id, told in reader.runs.items():
                    ends = [status for _, status in told if status not in ("running", AWAY)]
                    # Who was away when it ended knows from the snapshot that it is over, and may be told how later.
                    assert ends == [ended[run_id]] or (not ends and told[-1][1] == AWAY), told
                    last = max(event["seq"] for event in reader.events if event.get("run_id") == run_id)
                    notice = [
                        event["seq"] for event in reader.events if event.get("run_id") == run_id and is_notice(event)
                    ]
                    assert notice in ([], [last])


def is_notice(event: Frame) -> bool:
    return bool(event["actor"] == "system")


@asynccontextmanager
async def load(place: Place, threads: int = 3) -> AsyncIterator[Load]:
    cluster = place.cluster
    async with AsyncExitStack() as stack:
        async with everywhere(cluster) as clients:
            made = [await new_thread(client) for client, _ in zip(cycle(clients), range(threads), strict=False)]
        going = Load(place, [], [])
        for thread_id in made:
            going.reading.append(await stack.enter_async_context(readers(cluster, thread_id)))
        for reading in going.reading:
            words = (f"{word} {n}" for n, word in zip(count(), cycle(["echo 0", "stream 8", "big 9000", "steps 0"])))
            poster = Poster(reading[0], words)
            await stack.enter_async_context(poster.talking())
            going.posters.append(poster)
        await going.going_on()
        yield going
        await going.going_on()
        for poster in going.posters:
            await poster.stop()
        await going.check()


@on_all
async def test_a_process_that_is_killed_under_load_takes_nothing_with_it(place: Place, cluster: Cluster) -> None:
    async with load(place) as going:
        victim = cluster.nodes[1]
        threads = [poster.reader.thread_id for poster in going.posters]
        async with victim.client() as client:  # of these at least it has runs
            for thread_id in threads:
                await post(client, "wait 0 dying", thread_id)
            for reader in going.everybody:
                await reader.says("re: wait 0 dying")
            victim.kill()
            loop = asyncio.get_running_loop()
            killed = loop.time()
        for reader in going.everybody:
            await reader.says(SAFE)
        # Its own time, two heartbeats until somebody looks, and slack for a busy machine.
        assert loop.time() - killed < TIMEOUT + 2 * HEARTBEAT + 5
        await going.going_on()
    open_runs = await place.rows("SELECT id FROM worker_runs WHERE status = 'running'")
    assert open_runs == []
    failed = await place.rows("SELECT error FROM worker_runs WHERE status = 'failed'")
    assert failed
    assert all(row["error"].startswith(SAFE) for row in failed)


@on_two
async def test_a_process_that_stood_still_stops_what_was_taken_for_dead(place: Place, cluster: Cluster) -> None:
    async with load(place):
        slow = cluster.nodes[1]
        async with slow.client() as client:
            thread_id = await new_thread(client)
            async with readers(cluster, thread_id) as reading:
                await post(client, "tick 100000 x", thread_id)
                for reader in reading:
                    await reader.says("tick 3")
                slow.pause()
                await reading[0].says(SAFE)  # to somebody of the other process
                async with cluster.nodes[0].client() as other:
                    await post(other, "echo 0 meanwhile", thread_id)
                await reading[0].says("re: echo 0 meanwhile")  # its thread goes on without it
                slow.go_on()
                for reader in reading:
                    await reader.says(SAFE)
                await post(client, "echo 0 after", thread_id)
                await reading[0].says("re: echo 0 after")
                await alike(place, reading)
                (failed,) = [row for row in await place.runs(thread_id) if row["status"] == "failed"]
                of_run = [text_of(e) for e in reading[0].events if e.get("run_id") == failed["id"]]
                assert of_run[-1].startswith(SAFE)  # and nothing of it after its end
                for reader in reading:
                    assert [status for _, status in reader.runs[failed["id"]]] == ["running", "failed"]


# ---------------------------------------------------------------- what they stand on goes away


@on_two
async def test_a_database_that_restarts_under_load_loses_nothing(place: Place, cluster: Cluster) -> None:
    async with load(place) as going:
        for mode in ("immediate", "fast"):
            await asyncio.to_thread(place.postgres.stop, mode)
            await asyncio.to_thread(place.postgres.start)
            await going.going_on()
    await nobody_was_buried(place, going)


@on_postgres
async def test_connections_of_the_broker_that_are_cut_under_load_lose_nothing(place: Place, cluster: Cluster) -> None:
    async with load(place) as going:
        for _ in range(10):
            cut = await place.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'dooers broker' AND datname = current_database()"
            )
            assert len(cut) <= 2
            await going.going_on(1)
    await nobody_was_buried(place, going)
    assert [reader.closed for reader in going.everybody] == [[]] * len(going.everybody)


@on_redis
async def test_a_redis_that_drops_its_listeners_or_restarts_under_load_loses_nothing(
    place: Place, cluster: Cluster
) -> None:
    redis = place.redis
    assert redis is not None

    def drop() -> None:
        with Redis.from_url(redis.url) as admin:
            admin.client_kill_filter(_type="pubsub")

    def restart() -> None:
        redis.stop()
        redis.start()

    async with load(place) as going:
        for fault in (drop, drop, restart, drop, restart):
            await asyncio.to_thread(fault)
            await going.going_on()
    await nobody_was_buried(place, going)
    assert [reader.closed for reader in going.everybody] == [[]] * len(going.everybody)


async def nobody_was_buried(place: Place, going: Load) -> None:
    for poster in going.posters:
        assert [
            row["status"] for row in await place.runs(poster.reader.thread_id) if row["status"] != "succeeded"
        ] == []
