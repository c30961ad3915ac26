"""The broker over Redis keeps the contract of all brokers, whatever becomes of its connections and of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from attrs import evolve
from brokers.contract import A_WHILE, WITHIN, BrokerContract, Process
from dooers_contrib import redis_connection
from dooers_contrib.redis import RedisBroker
from redis import Redis
from services.redis import Proxy, free_port, own_redis, proxy, redis_url, worker

from dooers import ConfigError, StoreError, WorkerConfig
from dooers.brokers import Broker, open_broker

__all__ = ["redis_url"]


def broker(process: Process) -> RedisBroker:
    assert isinstance(process.broker, RedisBroker)
    return process.broker


@asynccontextmanager
async def opened(*configs: WorkerConfig) -> AsyncIterator[list[Process]]:
    """A process for each, closed afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        processes = []
        for config in configs:
            process = Process(open_broker(config))
            stack.push_async_callback(process.broker.close)
            processes.append(await process.open())
        yield processes


def kill(redis: Redis, *brokers: RedisBroker) -> None:
    """Let the server end the connections on which these listen."""
    names = {f"dooers-{broker._me}" for broker in brokers}
    ears = [client for client in redis.client_list() if client["name"] in names and client["sub"] != "0"]
    assert len(ears) == len(brokers)
    for ear in ears:
        redis.client_kill_filter(_id=ear["id"])


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


def left_by(redis: Redis, config: WorkerConfig) -> list[Any]:
    found = redis.keys(f"*{config.database_name}*")
    assert isinstance(found, list)
    return found


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    async def processes(self, redis: Redis, redis_url: str) -> AsyncIterator[list[Process]]:
        config = worker(redis_url)
        async with opened(config, config, config) as processes:
            yield processes
        assert left_by(redis, config) == []

    async def interrupt(self, broker: Broker) -> None:
        assert isinstance(broker, RedisBroker)
        with Redis.from_url(broker._url) as redis:
            kill(redis, broker)


class TestThroughAConnectionThatIsCut(BrokerContract):
    @pytest.fixture
    async def processes(self, redis: Redis, redis_url: str) -> AsyncIterator[list[Process]]:
        async with proxy(redis_url) as one, proxy(redis_url) as two, proxy(redis_url) as three:
            config = worker(redis_url)
            self.proxies = {between.url: between for between in (one, two, three)}
            async with opened(*(evolve(config, broker_url=url) for url in self.proxies)) as processes:
                yield processes
        assert left_by(redis, config) == []

    async def interrupt(self, broker: Broker) -> None:
        assert isinstance(broker, RedisBroker)
        self.proxies[broker._url].cut()


# ---------------------------------------------------------------- telling and hearing


async def test_opening_misses_nothing(redis_url: str) -> None:
    config = worker(redis_url)
    async with opened(config, config) as (one, two):
        one.broker.tell("x")
        await two.hears("x")
        assert (one.missed, two.missed) == (0, 0)


async def test_what_was_told_in_vain_is_told_again_in_its_order_and_heard_once(redis_url: str) -> None:
    config = worker(redis_url)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        for number in range(300):
            if number % 30 == 10:
                between.losing = b"PUBLISH"  # it is heard, and who told it does not know
            if number % 30 == 25:
                between.cut()
            one.broker.tell(f"{number}")
            await asyncio.sleep(0.001)
        await two.hears(*(f"{number}" for number in range(300)))
        assert two.missed == 0
        assert one.missed > 0


async def test_others_hear_that_something_is_missing_when_more_waits_than_fits(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_connection, "WAITING", 10)
    config = worker(redis_url)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        between.closed = True
        between.cut()
        for number in range(50):
            one.broker.tell(f"{number}")
            await asyncio.sleep(0)
        between.closed = False
        await two.until(lambda: "49" in two.heard)
        assert two.missed == 1
        assert two.heard[-10:] == [f"{number}" for number in range(40, 50)]
        assert two.heard == sorted(two.heard, key=int)
    assert caplog.text.count("more waits to be said than fits") == 1


async def test_what_waits_is_bounded_in_bytes_too(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "WAITING_BYTES", 1000)
    config = worker(redis_url)
    async with opened(config, config) as (one, two):
        for number in range(5):
            one.broker.tell(f"{number}{'€' * 100}")
        await two.until(lambda: len(two.heard) == 3)
        assert [text[0] for text in two.heard] == ["2", "3", "4"]
        assert two.missed == 1


async def test_what_others_say_on_its_channel_does_no_harm(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = worker(redis_url)
    async with opened(config, config) as (one, two):
        for junk in (b"", b"\xff", b"{}", b"[1]", orjson.dumps(["x", "y", False, []])):
            redis.publish(f"{broker(two)._name}:news", junk)
            redis.publish(f"{broker(two)._name}:to:{broker(two)._me}", junk)
        one.broker.tell("x")
        await two.hears("x")
    assert "was not understood" in caplog.text


# ---------------------------------------------------------------- connections


async def test_a_connection_that_is_dead_and_was_not_closed_is_found_out(redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.9)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        between.frozen = True
        two.broker.tell("lost")
        began, before = time.monotonic(), between.opened
        async with asyncio.timeout(WITHIN):
            while between.opened == before:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began < 3 * 0.3 + 0.3  # a third of 0.9 until it asks, another for the answer
        between.frozen = False
        between.cut()
        await one.until(lambda: one.missed > 0)
        two.broker.tell("heard")
        await one.hears("heard")
        one.broker.tell("and back")
        await two.hears("and back")


async def test_a_quiet_connection_stays(redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.3)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url)) as (one,):
        before = between.opened
        await asyncio.sleep(1)
        assert (between.opened, one.missed) == (before, 0)


async def test_who_reads_too_slowly_is_cut_off_by_redis_and_knows_that_it_missed_something() -> None:
    with own_redis("client-output-buffer-limit pubsub 1mb 0 0") as server:
        config = worker(server.url)
        async with opened(config) as (one,):

            def flood() -> None:
                with Redis.from_url(server.url) as redis:
                    for _ in range(100):
                        redis.publish(f"{broker(one)._name}:news", b"x" * 500_000)

            thread = threading.Thread(target=flood)
            thread.start()
            thread.join()  # our event loop stands still for so long
            await one.until(lambda: one.missed > 0)
            async with opened(config) as (two,):
                two.broker.tell("x")
                await one.hears("x")


async def test_when_redis_is_restarted_everybody_is_told_and_locks_are_taken_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_redis() as server:
        config = worker(server.url, run_heartbeat=0.1, run_timeout=1.5)
        async with opened(config, config) as (one, two):
            await one.broker.lock("k")
            waiting = asyncio.create_task(two.broker.lock("k"))
            await asyncio.sleep(A_WHILE)
            server.stop()
            one.broker.tell("meanwhile")
            await asyncio.to_thread(server.start)
            await one.until(lambda: one.missed > 0)
            await two.until(lambda: two.missed > 0)
            done, _ = await asyncio.wait([waiting], timeout=2)  # longer than a lease
            assert not done
            one.broker.unlock("k")
            await asyncio.wait_for(waiting, WITHIN)
            two.heard.clear()
            one.broker.tell("again")
            await two.until(lambda: "again" in two.heard)
    assert "may be answered by two" not in caplog.text


async def test_opening_without_redis_is_a_store_error_and_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    process = Process(open_broker(worker(f"redis://127.0.0.1:{free_port()}/0")))
    with pytest.raises(StoreError, match=r"cannot reach Redis \(ConnectionError\)"):
        await process.open()
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreError):
        await process.broker.lock("k")
    process.broker.tell("to nobody")
    await process.broker.close()


async def test_opening_towards_a_redis_that_says_nothing_ends(redis_url: str) -> None:
    async with proxy(redis_url) as silent:
        silent.frozen = True
        with pytest.raises(StoreError):
            await asyncio.wait_for(Process(open_broker(worker(silent.url, database_timeout=0.3))).open(), 3)


async def test_closing_while_redis_is_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dooers_contrib.redis.CLOSING", 0.3)
    with own_redis() as server:
        before = asyncio.all_tasks()
        async with opened(worker(server.url)) as (one,):
            await one.broker.lock("k")
            waiting = asyncio.create_task(one.broker.lock("k"))
            server.stop()
            one.broker.tell("in vain")
            await asyncio.wait_for(one.broker.close(), 2)
            with pytest.raises(StoreError):
                await asyncio.wait_for(waiting, 1)
        assert asyncio.all_tasks() == before


# ---------------------------------------------------------------- locks


async def test_a_key_that_is_wanted_is_given_at_once(redis_url: str) -> None:
    config = worker(redis_url, run_timeout=60)
    async with opened(config, config) as (one, two):
        await one.broker.lock("k")
        for _ in range(20):  # each would last a lease, if somebody had to look
            waiting = asyncio.create_task(two.broker.lock("k"))
            await asyncio.sleep(0.01)
            one.broker.unlock("k")
            await asyncio.wait_for(waiting, 2)
            waiting = asyncio.create_task(one.broker.lock("k"))
            await asyncio.sleep(0.01)
            two.broker.unlock("k")
            await asyncio.wait_for(waiting, 2)


async def test_who_frees_a_key_does_not_have_it_again_before_others_who_wait(redis_url: str) -> None:
    config = worker(redis_url)
    order: list[str] = []

    async def work(process: Process, name: str) -> None:
        await process.broker.lock("k")
        order.append(name)
        process.broker.unlock("k")

    async with opened(config, config, config) as (one, two, three):
        await one.broker.lock("k")
        here = [asyncio.create_task(work(one, "one")) for _ in range(10)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(work(process, name)) for process, name in ((two, "two"), (three, "three"))]
        await asyncio.sleep(A_WHILE)
        one.broker.unlock("k")
        await asyncio.wait_for(asyncio.gather(*here, *others), WITHIN)
    assert set(order[:3]) == {"one", "two", "three"} or set(order[:2]) == {"two", "three"}


async def test_a_key_whose_process_died_is_free_when_its_lease_ends(redis: Redis, redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.6)
    async with opened(config, config) as (one, two):
        dead = Process(open_broker(config))
        await dead.open()
        await dead.broker.lock("k")
        waiting_too = asyncio.create_task(dead.broker.lock("j"))
        await one.broker.lock("i")
        await waiting_too
        heir = asyncio.create_task(dead.broker.lock("i"))  # it dies while it stands in line, and before others
        await asyncio.sleep(A_WHILE)
        began = time.monotonic()
        for task in broker(dead)._tasks:
            task.cancel()
        await asyncio.wait(broker(dead)._tasks)
        await broker(dead)._pool.disconnect()
        waiting = asyncio.create_task(two.broker.lock("i"))
        await asyncio.wait_for(two.broker.lock("k"), WITHIN)
        assert time.monotonic() - began < 0.6 + 0.3
        assert not waiting.done()
        began = time.monotonic()
        one.broker.unlock("i")
        await asyncio.wait_for(waiting, WITHIN)
        assert time.monotonic() - began < 0.3  # the dead one is passed over
        heir.cancel()
        await asyncio.wait([heir])


async def test_a_lease_is_renewed(redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.6)
    async with opened(config, config) as (one, two):
        await one.broker.lock("k")
        waiting = asyncio.create_task(two.broker.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=2)
        assert not done
        one.broker.unlock("k")
        await asyncio.wait_for(waiting, 0.5)


async def test_a_lease_that_was_lost_is_said_and_the_key_of_who_has_it_now_is_left_alone(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.6)
    async with opened(config) as (one,):
        await one.broker.lock("k")
        lock, _ = broker(one)._of("k")
        time.sleep(0.7)  # the loop stands still, the lease ends, and somebody else is there first  # noqa: ASYNC251
        assert redis.get(lock) is None
        redis.set(lock, "somebody", px=60_000)
        async with asyncio.timeout(WITHIN):
            while "may be answered by two processes" not in caplog.text:
                await asyncio.sleep(0.01)
        one.broker.unlock("k")
        waiting = asyncio.create_task(one.broker.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=0.8)
        assert not done
        assert redis.get(lock) == b"somebody"
        assert caplog.text.count("may be answered by two processes") == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        redis.delete(lock)
    assert left_by(redis, config) == []


async def test_a_lease_that_ended_unseen_is_taken_again(redis: Redis, redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.6)
    async with opened(config) as (one,):
        await one.broker.lock("k")
        lock, _ = broker(one)._of("k")
        redis.delete(lock)
        async with asyncio.timeout(WITHIN):
            while redis.get(lock) is None:
                await asyncio.sleep(0.01)


async def test_a_key_is_asked_for_again_when_the_answer_was_lost(redis_url: str) -> None:
    config = worker(redis_url)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        between.losing = b"EVAL"
        await asyncio.wait_for(one.broker.lock("k"), WITHIN)
        between.losing = b"EVAL"
        one.broker.unlock("k")
        await asyncio.wait_for(two.broker.lock("k"), WITHIN)


@pytest.mark.parametrize("steps", range(12))
async def test_a_lock_that_is_cancelled_at_any_moment_leaves_nothing_behind(
    redis: Redis, redis_url: str, steps: int
) -> None:
    config = worker(redis_url, run_timeout=60)
    async with opened(config, config) as (one, two):
        taking = asyncio.create_task(one.broker.lock("k"))
        for _ in range(steps):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled():
            one.broker.unlock("k")
        await asyncio.wait_for(two.broker.lock("k"), WITHIN)
        two.broker.unlock("k")
    assert left_by(redis, config) == []


async def test_a_lock_that_is_cancelled_while_its_answer_is_on_its_way_leaves_nothing_behind(
    redis: Redis, redis_url: str
) -> None:
    config = worker(redis_url, run_timeout=60)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        between.slow = 0.1
        taking = asyncio.create_task(one.broker.lock("k"))
        lock, _ = broker(one)._of("k")
        async with asyncio.timeout(WITHIN):
            while redis.get(lock) is None:
                await asyncio.sleep(0.005)
        assert not taking.done()
        taking.cancel()
        await asyncio.wait([taking])
        await asyncio.wait_for(two.broker.lock("k"), 2)


async def test_a_lock_that_redis_does_not_answer_is_a_store_error_in_time(redis_url: str) -> None:
    config = worker(redis_url, run_heartbeat=0.1, run_timeout=0.6, database_timeout=0.5)
    async with proxy(redis_url) as between, opened(evolve(config, broker_url=between.url), config) as (one, two):
        between.frozen = True
        began = time.monotonic()
        with pytest.raises(StoreError, match="no answer"):
            await one.broker.lock("k")
        assert 0.4 < time.monotonic() - began < 1.5
        between.frozen = False
        between.cut()
        await asyncio.wait_for(two.broker.lock("k"), WITHIN)
        two.broker.unlock("k")
        await asyncio.wait_for(one.broker.lock("k"), WITHIN)


@pytest.mark.parametrize("seed", range(3))
async def test_a_key_has_one_holder_whatever_becomes_of_the_connections(redis_url: str, seed: int) -> None:
    chance, config = random.Random(seed), worker(redis_url, run_timeout=6)
    inside: list[int] = []
    taken = [0, 0]

    async def contend(process: Process, me: int) -> None:
        while min(taken) < 25:
            taking = asyncio.create_task(process.broker.lock("k"))
            await asyncio.wait([taking], timeout=chance.choice([0.0, 0.001, 0.01, 5]))
            if not taking.done():
                taking.cancel()
                await asyncio.wait([taking])
            if taking.cancelled():
                await asyncio.sleep(chance.random() * 0.002)
                continue
            taking.result()
            inside.append(me)
            assert inside == [me]
            await asyncio.sleep(chance.random() * 0.005)
            inside.remove(me)
            taken[me] += 1
            process.broker.unlock("k")

    async def disturb(proxies: list[Proxy]) -> None:
        while True:
            await asyncio.sleep(chance.random() * 0.2)
            unlucky = chance.choice(proxies)
            if chance.random() < 0.5:
                unlucky.cut()
            else:
                unlucky.losing = b"EVAL"

    async with proxy(redis_url) as a, proxy(redis_url) as b:
        configs = [evolve(config, broker_url=between.url) for between in (a, b)]
        async with opened(*configs) as (one, two):
            disturbing = asyncio.create_task(disturb([a, b]))
            try:
                async with asyncio.timeout(2 * WITHIN), asyncio.TaskGroup() as both:
                    both.create_task(contend(one, 0))
                    both.create_task(contend(two, 1))
            finally:
                disturbing.cancel()
                await asyncio.wait([disturbing])


# ---------------------------------------------------------------- who hears whom


@pytest.mark.parametrize(
    "other",
    [
        {"database_name": "other"},
        {"database_table_prefix": "other_"},
        {"database_type": "cosmos"},
        {"database_type": "sqlite"},
        {"database_type": "memory"},
        {"broker_url": "/1"},
        {"broker_url": "?channel=staging"},
    ],
    ids=str,
)
async def test_who_has_another_database_hears_nothing_and_locks_nothing(redis_url: str, other: dict[str, Any]) -> None:
    config = worker(redis_url)
    more = other.get("broker_url")
    if more is not None:
        other = {"broker_url": (redis_url.removesuffix("/0") if more.startswith("/") else redis_url) + more}
    async with opened(config, config, evolve(config, **other)) as (one, two, stranger):
        await one.broker.lock("k")
        await asyncio.wait_for(stranger.broker.lock("k"), WITHIN)
        one.broker.tell("a secret")
        await two.hears("a secret")
        stranger.broker.tell("another")
        one.broker.tell("end")
        await two.hears("end")
        await asyncio.sleep(A_WHILE)
        assert stranger.heard == []


async def test_a_host_may_have_another_name_on_another_machine(redis_url: str) -> None:
    config = worker(redis_url)
    other = evolve(config, database_host="pgbouncer.internal", database_port=6432, database_user="b")
    async with opened(config, other) as (one, two):
        one.broker.tell("x")
        await two.hears("x")


async def test_who_names_the_same_channel_hears_each_other(redis_url: str) -> None:
    configs = [worker(f"{redis_url}?channel=ours", database_name=name) for name in ("a", "b")]
    async with opened(*configs) as (one, two):
        one.broker.tell("x")
        await two.hears("x")


async def test_a_sqlite_file_is_the_same_by_any_path(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [
        worker(redis_url, database_type="sqlite", database_name=name) for name in ("a.db", str(tmp_path / "a.db"))
    ]
    async with opened(*configs) as (one, two):
        one.broker.tell("x")
        await two.hears("x")


# ---------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:s3cr/et@host:6379/0", "urllib.parse.quote"),
        ("redis://:s3cr#et@host", "urllib.parse.quote"),
        ("redis://:123?s3cret@host", "urllib.parse.quote"),
        ("redis://u:123/s3cret@host", "urllib.parse.quote"),
        ("redis://u:123#s3cret@host/1", "urllib.parse.quote"),
        ("redis://:s3cret@[host:6379/0", "urllib.parse.quote"),
        ("redis://:s3cret@host:port/0", "redis://user:password@host:6379/0"),
        ("redis://:s3cret@host/production", "the number of a database"),
        ("redis://:s3cret@host/0?db=x", "values of their kind"),
        ("redis://:s3cret@host/0?sokcet_timeout=1", "did you mean 'socket_timeout'"),
        ("redis://:s3cret@host/0?s3cret=1", "options of redis-py's connections"),
        ("redis://:s3cret@host/0?s3cret", "redis://user:password"),
        ("redis://:s3cret@host/0?channel=", "a name after channel="),
        ("unix://?password=s3cret", "the path of a socket"),
    ],
)
def test_a_url_that_is_wrong_is_refused_with_what_to_do_and_never_shown(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_broker(worker(url))
    assert "WorkerConfig.broker_url: expected" in str(caught.value)
    assert says in str(caught.value)
    assert "s3cr" not in str(caught.value)
    assert "123" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_urls_that_redis_py_reads_are_taken() -> None:
    for url in (
        "redis://",
        "redis://host",
        "redis://user:p%40ss@host:1/7?socket_timeout=2.5&socket_keepalive=yes&client_name=us&max_connections=9",
        "rediss://host:6380/0?ssl_cert_reqs=required&ssl_check_hostname=yes&protocol=3",
        "unix:///run/redis.sock?db=3&password=x&channel=ours",
    ):
        broker = open_broker(worker(url))
        assert isinstance(broker, RedisBroker)
        assert not broker.alone


async def test_a_password_is_used_and_gets_into_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with own_redis("user default off", "user ann on >s3cret/@ ~dooers:* &dooers:* +@all") as server:
        url = f"redis://ann:{{}}@127.0.0.1:{server.port}/0"
        config = worker(url.format("s3cret%2F%40"))
        async with opened(config, config) as (one, two):
            one.broker.tell("x")
            await two.hears("x")
            await one.broker.lock("k")
            server.stop()
            one.broker.tell("y")
            await asyncio.sleep(0.2)
        with pytest.raises(StoreError) as caught:
            await Process(open_broker(config)).open()
        server.start()
        with pytest.raises(StoreError, match="AuthenticationError") as refused:
            await Process(open_broker(worker(url.format("wr0ng")))).open()
    for error in (caught.value, refused.value):
        assert "s3cret" not in f"{error} {error!r} {error.__cause__!r}"
        assert "wr0ng" not in f"{error} {error!r} {error.__cause__!r}"
    assert "s3cret" not in caplog.text


async def test_who_may_not_ask_is_told_so_when_it_opens() -> None:
    with own_redis("user default on nopass ~dooers:* &dooers:* +@all -eval") as server:
        with pytest.raises(StoreError, match="Redis refused it"):
            await Process(open_broker(worker(server.url))).open()


async def test_it_speaks_tls_and_wants_to_know_whom_it_speaks_to(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    files = [
        f"tls-{use}-file {tmp_path / name}.pem" for use, name in (("cert", "cert"), ("key", "key"), ("ca-cert", "ca"))
    ]
    with own_redis(f"tls-port {port}", "tls-auth-clients no", *files) as server:
        url = f"rediss://127.0.0.1:{port}/0"
        config = worker(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")
        async with opened(config, evolve(config, broker_url=server.url)) as (one, two):
            one.broker.tell("x")
            await two.hears("x")
            two.broker.tell("y")
            await one.hears("y")
        with pytest.raises(StoreError):
            await Process(open_broker(worker(url))).open()


async def test_it_speaks_through_a_unix_socket() -> None:
    with own_redis() as server:
        config = worker(f"unix://{server.socket}?db=2")
        async with opened(config, evolve(config, broker_url=f"redis://127.0.0.1:{server.port}/2")) as (one, two):
            one.broker.tell("x")
            await two.hears("x")
            await one.broker.lock("k")


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("redis.", "dooers_contrib.redis"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dooers-workers-server\[redis\]'"):
        importlib.import_module("dooers_contrib.redis")
