"""The broker of Cosmos DB keeps the contract of locks, and its leases outlive neither their holder nor a bad line."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from services.between import Asked, Between, between, lose, pass_on, throttle, unplug
from services.cosmos import Service, database, running, service

from brokers.contract import A_WHILE, WITHIN, LockContract, Process
from dooers import WorkerConfig, WorkerServer
from dooers.brokers import Broker, open_broker
from dooers.brokers.cosmos import LOOK_AT_MOST, CosmosBroker
from dooers.brokers.memory import MemoryBroker
from dooers.exceptions import ConfigError, StoreError
from dooers.stores.cosmos import CosmosStore
from dooers.stores.cosmos_documents import lease_document

# A lease of so many seconds: long enough for a busy machine to renew it, short enough to wait for its end.
SHORT = {"run_heartbeat": 0.3, "run_timeout": 1.2}


@pytest.fixture(scope="session")
def cosmos() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture
async def config(cosmos: Service) -> AsyncIterator[WorkerConfig]:
    async with database(cosmos) as config:
        yield evolve(config, broker_url="cosmos:")


@pytest.fixture
async def store(config: WorkerConfig) -> AsyncIterator[CosmosStore]:
    """It makes the container, and can look into it."""
    async with running(config) as store:
        yield store


@pytest.fixture
async def line(cosmos: Service) -> AsyncIterator[Between]:
    """The way to the service, which a test may disturb."""
    async with between(cosmos.url) as line:
        yield line


@asynccontextmanager
async def broker_of(config: WorkerConfig, **changed: Any) -> AsyncIterator[CosmosBroker]:
    """An open broker that leaves nothing of its own behind in this process."""
    broker = CosmosBroker(evolve(config, **changed))
    process = await Process(broker).open()
    try:
        yield broker
    finally:
        await broker.close()
        assert (process.heard, process.missed) == ([], 0)
        assert (len(broker._locks), broker._held, broker._tasks) == (0, {}, set())
        assert (broker._waiting, broker._stretch) == ({}, {})


async def leases(store: CosmosStore) -> list[dict[str, Any]]:
    return await store._container.query("SELECT * FROM c WHERE c.kind = 'lease'", {})


async def nothing_is_left(store: CosmosStore, *brokers: CosmosBroker) -> None:
    async with asyncio.timeout(WITHIN):
        for broker in brokers:
            while len(broker._locks):
                await asyncio.wait(broker._tasks, return_when=asyncio.FIRST_COMPLETED)
    assert await leases(store) == []


async def locked(broker: CosmosBroker, key: str = "k") -> None:
    async with asyncio.timeout(WITHIN):
        await broker.lock(key)


class TestCosmosBroker(LockContract):
    @pytest.fixture
    async def processes(self, config: WorkerConfig, store: CosmosStore) -> AsyncIterator[list[Process]]:
        processes = [await Process(CosmosBroker(config)).open() for _ in range(3)]
        yield processes
        for process in processes:
            await process.broker.close()
        assert await leases(store) == []


# ---------------------------------------------------------------- who gets it


async def test_it_is_asked_for_by_its_url_and_not_by_the_database(config: WorkerConfig) -> None:
    assert isinstance(open_broker(config), CosmosBroker)
    assert isinstance(open_broker(evolve(config, broker_url=None)), MemoryBroker)


def test_on_another_database_it_is_a_config_error(worker_config: WorkerConfig) -> None:
    with pytest.raises(ConfigError, match=r"database_type 'cosmos', got 'sqlite'"):
        open_broker(evolve(worker_config, broker_url="cosmos:"))


async def test_it_carries_no_news(config: WorkerConfig, store: CosmosStore) -> None:
    async with broker_of(config) as one, broker_of(config) as two:
        broker: Broker = one
        assert (broker.alone, broker.limit, broker.announce) == (True, None, None)
        one.tell("nobody hears this")
        await locked(two)  # by now it would have come


async def test_without_its_container_it_does_not_open_and_may_be_opened_later(config: WorkerConfig) -> None:
    broker = CosmosBroker(config)
    with pytest.raises(StoreError, match="worker_conversations"):
        await Process(broker).open()
    async with running(config):
        await Process(broker).open()
        await locked(broker)
        await broker.close()
        await Process(broker).open()
        await locked(broker)
        await broker.close()


# ---------------------------------------------------------------- a lease and its time


async def test_a_key_that_is_free_costs_a_request_to_take_and_one_to_let_go(
    config: WorkerConfig, store: CosmosStore, line: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(config, database_host=line.url) as broker:
        await locked(broker, "another")  # once, the SDK asks how the container is made
        line.asked.clear()
        with caplog.at_level(logging.DEBUG, logger="dooers"):
            await locked(broker)
            broker.unlock("k")
            broker.unlock("another")
            await nothing_is_left(store, broker)
        assert [asked.batch[0]["operationType"] for asked in line.asked] == ["Create", "Delete", "Delete"]
        assert [record.getMessage() for record in caplog.records if "lock of k" in record.getMessage()] == [
            "taking the lock of k cost 1.00 request units in 1 requests",
            "letting go of the lock of k cost 1.00 request units in 1 requests",
        ]


async def test_a_lease_that_is_held_is_renewed_and_nobody_takes_it(config: WorkerConfig, store: CosmosStore) -> None:
    async with broker_of(config, **SHORT) as one, broker_of(config, **SHORT) as two:
        await locked(one)
        (first,) = await leases(store)
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=3 * SHORT["run_timeout"])  # the time itself is what is tested
        assert not done
        (now,) = await leases(store)
        assert now["_etag"] != first["_etag"]
        assert {name: now[name] for name in first if name[0] != "_"} == {
            name: first[name] for name in first if name[0] != "_"
        }
        assert now["ttl"] > SHORT["run_timeout"]
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)


async def test_the_lease_of_a_process_that_died_is_taken_over_when_its_time_is_over(
    config: WorkerConfig, store: CosmosStore, line: Between
) -> None:
    async with broker_of(config, **SHORT) as two, broker_of(config, **SHORT) as three:
        async with broker_of(config, database_host=line.url, **SHORT) as dying:
            await locked(dying)
            line.rule = unplug  # from here on nothing it does can be noticed
            began = time.monotonic()
            taken: list[tuple[CosmosBroker, float]] = []

            async def take(broker: CosmosBroker) -> None:
                await locked(broker)
                taken.append((broker, time.monotonic() - began))

            tasks = [asyncio.create_task(take(broker)) for broker in (two, three)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            (heir, after), *others = taken
            assert others == []
            assert after >= SHORT["run_timeout"]
            heir.unlock("k")
            await asyncio.wait_for(asyncio.gather(*tasks), WITHIN)


async def test_of_many_who_take_over_at_once_one_does(
    config: WorkerConfig, store: CosmosStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dooers.brokers.cosmos.LOOK_AT_MOST", 0.02)
    inside, most = 0, 0
    for number in range(5):
        dead = lease_document(f"k{number}", "a dead process", 60)
        await store._container.commit(dead["pk"], [("create", (dead,), {})])

    async def work(broker: CosmosBroker, key: str, held: Counter[str]) -> None:
        nonlocal inside, most
        await broker.lock(key)
        held[key] += 1
        most = max(most, held[key])
        inside += 1
        await asyncio.sleep(0.02)
        held[key] -= 1
        broker.unlock(key)

    held: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(broker_of(config, **SHORT)) for _ in range(5)]
        async with asyncio.timeout(2 * WITHIN):
            await asyncio.gather(*(work(broker, f"k{n}", held) for n in range(5) for broker in brokers))
    assert (most, inside) == (1, 25)
    assert await leases(store) == []
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_lease_lost_to_somebody_else_is_a_warning_and_is_not_let_go_for_them(
    config: WorkerConfig, store: CosmosStore, line: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(config, **SHORT) as quick:
        async with broker_of(config, database_host=line.url, **SHORT) as slow:
            await locked(slow)
            line.rule = unplug
            await locked(quick)
            line.rule = pass_on
            async with asyncio.timeout(WITHIN):
                while not [one for one in caplog.records if one.levelno == logging.WARNING]:
                    await asyncio.sleep(0.01)
            assert "thread k may be answered by two processes" in caplog.text
            slow.unlock("k")
            again = asyncio.create_task(slow.lock("k"))
            done, _ = await asyncio.wait([again], timeout=A_WHILE)
            assert not done
            quick.unlock("k")
            await asyncio.wait_for(again, WITHIN)


async def test_a_lease_that_the_service_took_away_is_taken_again(
    config: WorkerConfig, store: CosmosStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(config, **SHORT) as one, broker_of(config, **SHORT) as two:
        await locked(one)
        (lease,) = await leases(store)
        await store._container.commit(lease["pk"], [("delete", (lease["id"],), {})])
        async with asyncio.timeout(WITHIN):
            while not await leases(store):
                await asyncio.sleep(0.01)
        assert "was gone, and is taken again" in caplog.text
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=A_WHILE)
        assert not done
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)


async def test_those_of_one_process_do_not_have_a_key_among_themselves_for_ever(
    config: WorkerConfig, store: CosmosStore
) -> None:
    async with broker_of(config, **SHORT) as one, broker_of(config, **SHORT) as two:

        async def again_and_again() -> None:
            while True:
                await one.lock("k")
                await asyncio.sleep(0.01)
                one.unlock("k")

        await locked(one)
        greedy = [asyncio.create_task(again_and_again()) for _ in range(3)]
        waiting = asyncio.create_task(two.lock("k"))
        await asyncio.wait([waiting], timeout=2 * LOOK_AT_MOST)  # by now it looks as seldom as it ever does
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)
        for task in greedy:
            task.cancel()
        await asyncio.wait(greedy)


# ---------------------------------------------------------------- being cancelled


@pytest.mark.parametrize("ticks", range(0, 40, 3))
async def test_whoever_is_cancelled_at_any_moment_of_taking_leaves_nothing_behind(
    config: WorkerConfig, store: CosmosStore, ticks: int
) -> None:
    async with broker_of(config) as one:
        taking = asyncio.create_task(one.lock("k"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled():
            one.unlock("k")
        await nothing_is_left(store, one)


async def test_whoever_is_cancelled_while_the_key_is_being_given_leaves_nothing_behind(
    config: WorkerConfig, store: CosmosStore, line: Between
) -> None:
    async with broker_of(config, database_host=line.url) as one, broker_of(config) as two:
        given, free = asyncio.Event(), asyncio.Event()

        async def hold_the_answer(asked: Asked) -> web.Response | None:
            answer = await asked.go_on()
            if asked.writes("lease"):
                given.set()
                await free.wait()
            return answer

        line.rule = hold_the_answer
        taking = asyncio.create_task(one.lock("k"))
        await given.wait()
        assert len(await leases(store)) == 1
        taking.cancel()
        await asyncio.wait([taking])
        assert taking.cancelled()
        behind = asyncio.create_task(one.lock("k"))  # in the same process, and in another
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([behind, waiting], timeout=A_WHILE)
        assert not done
        line.rule = pass_on
        free.set()
        done, rest = await asyncio.wait([behind, waiting], timeout=WITHIN, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        (one if behind in done else two).unlock("k")
        await asyncio.wait_for(asyncio.gather(*rest), WITHIN)


async def test_whoever_is_cancelled_before_a_lost_answer_is_made_good_leaves_nothing_behind(
    config: WorkerConfig, store: CosmosStore, line: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.brokers.cosmos.LOOK", WITHIN)
    async with broker_of(config, database_host=line.url) as one:
        line.rule = once(lose)
        taking = asyncio.create_task(one.lock("k"))
        async with asyncio.timeout(WITHIN):
            while one._tasks or not await leases(store):  # until it pauses before it looks
                await asyncio.sleep(0.01)
        assert not taking.done()
        taking.cancel()
        await asyncio.wait([taking])
        await nothing_is_left(store, one)


async def test_closing_in_the_midst_of_taking_leaves_nothing_behind(
    config: WorkerConfig, store: CosmosStore, line: Between
) -> None:
    async with broker_of(config, database_host=line.url) as one:
        given, free = asyncio.Event(), asyncio.Event()

        async def hold_the_answer(asked: Asked) -> web.Response | None:
            answer = await asked.go_on()
            if asked.writes("lease"):
                given.set()
                await free.wait()
            return answer

        line.rule = hold_the_answer
        taking = [asyncio.create_task(one.lock("k")) for _ in range(2)]
        await given.wait()
        closing = asyncio.create_task(one.close())
        await asyncio.sleep(0)
        line.rule = pass_on
        free.set()
        await asyncio.wait_for(closing, WITHIN)
        for failed in await asyncio.gather(*taking, return_exceptions=True):
            assert isinstance(failed, StoreError)
        assert await leases(store) == []


# ---------------------------------------------------------------- a bad line


def once(what: Callable[[Asked], Awaitable[web.Response | None]]) -> Any:
    """A rule for the first transaction; the others go through."""
    done: list[Asked] = []

    async def rule(asked: Asked) -> web.Response | None:
        if asked.batch and not done:
            done.append(asked)
            return await what(asked)
        return await asked.go_on()

    return rule


@pytest.mark.parametrize("way", [lose, unplug, throttle])
async def test_an_answer_that_is_lost_changes_nothing(
    config: WorkerConfig, store: CosmosStore, line: Between, way: Callable[[Asked], Awaitable[web.Response | None]]
) -> None:
    async with broker_of(config, database_host=line.url) as one, broker_of(config) as two:
        line.rule = once(way)
        await locked(one)
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=A_WHILE)
        assert not done
        line.rule = once(way)
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)
        two.unlock("k")
        await nothing_is_left(store, one, two)


@pytest.mark.parametrize("way", [lose, unplug, throttle])
async def test_a_renewal_whose_answer_is_lost_is_made_good(
    config: WorkerConfig,
    store: CosmosStore,
    line: Between,
    way: Callable[[Asked], Awaitable[web.Response | None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with broker_of(config, database_host=line.url, **SHORT) as one, broker_of(config, **SHORT) as two:
        await locked(one)
        line.rule = once(way)
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=2 * SHORT["run_timeout"])
        assert not done
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)
        assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_renewal_that_gets_no_answer_or_a_late_one_does_not_cost_the_lease(
    config: WorkerConfig, store: CosmosStore, line: Between, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(config, database_host=line.url, **SHORT) as one, broker_of(config, **SHORT) as two:
        await locked(one)
        held, free = asyncio.Event(), asyncio.Event()

        async def late(asked: Asked) -> web.Response | None:
            held.set()
            await free.wait()
            return await asked.go_on()

        line.rule = once(late)
        await asyncio.wait_for(held.wait(), WITHIN)
        waiting = asyncio.create_task(two.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=2 * SHORT["run_timeout"])
        assert not done
        free.set()
        one.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)
        assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_an_answer_that_comes_late_is_no_lease_until_it_is_written_anew(
    config: WorkerConfig, store: CosmosStore, line: Between
) -> None:
    async with broker_of(config, database_host=line.url, **SHORT) as one:

        async def slow(asked: Asked) -> web.Response | None:
            answer = await asked.go_on()
            await asyncio.sleep(SHORT["run_timeout"] * 2 / 3)
            return answer

        line.rule = once(slow)
        await locked(one)
        assert [asked.batch[0]["operationType"] for asked in line.asked if asked.batch] == ["Create", "Replace"]


async def test_a_service_that_does_not_answer_is_a_store_error_and_the_next_try_is_a_fresh_one(
    config: WorkerConfig, store: CosmosStore, line: Between
) -> None:
    async with broker_of(config, database_host=line.url, database_timeout=1.5) as one:

        async def quiet(asked: Asked) -> web.Response | None:
            await asked.go_on()
            await asyncio.sleep(2)
            return None

        for way in (unplug, quiet):
            line.rule = way
            with pytest.raises(StoreError):
                await locked(one)
            line.rule = pass_on
            await locked(one)  # whatever the try before left: it is ours
            one.unlock("k")
            await nothing_is_left(store, one)


async def test_over_a_bad_line_a_key_is_never_held_twice(
    config: WorkerConfig, store: CosmosStore, line: Between, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(5)
    holders: dict[str, int] = {}
    most, done = 0, 0

    async def rule(asked: Asked) -> web.Response | None:
        fate = chance.random() if asked.batch else chance.random() * 4
        for limit, way in ((0.06, lose), (0.12, unplug), (0.18, throttle)):
            if fate < limit:
                return await way(asked)
        return await asked.go_on()

    async def work(broker: CosmosBroker) -> None:
        nonlocal most, done
        for _ in range(8):
            key = chance.choice("ab")
            taking = asyncio.create_task(broker.lock(key))
            await asyncio.wait([taking], timeout=chance.choice((None, None, None, 0.0, 0.02, 0.1)))
            if not taking.done():
                taking.cancel()
                await asyncio.wait([taking])
            if taking.cancelled():
                continue
            taking.result()
            holders[key] = holders.get(key, 0) + 1
            most = max(most, holders[key])
            await asyncio.sleep(chance.choice((0, 0.01, 0.05)))
            holders[key] -= 1
            done += 1
            broker.unlock(key)

    line.rule = rule
    far = {"database_host": line.url}
    async with broker_of(config, **far) as one, broker_of(config, **far) as two, broker_of(config, **far) as three:
        async with asyncio.timeout(6 * WITHIN):
            await asyncio.gather(*(work(broker) for broker in (one, two, three) for _ in range(3)))
    assert most == 1
    assert done > 30
    assert await leases(store) == []
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


# ---------------------------------------------------------------- workers on it


async def test_two_workers_answer_the_messages_of_one_thread_one_after_the_other(config: WorkerConfig) -> None:
    inside, most = 0, 0
    workers = [WorkerServer(config) for _ in range(2)]

    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.05)
        yield send.text(f"re: {incoming.message}")
        inside -= 1

    for worker in workers:
        worker.handler(agent)
    try:
        who: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u", "thread_id": "t"}
        streams = [await workers[n % 2].dispatch(message=str(n), **who) for n in range(6)]
        async with asyncio.timeout(3 * WITHIN):
            await asyncio.gather(*(stream.collect() for stream in streams))
        assert most == 1
        events = await (await workers[0].repository()).list_events({"thread_id": "t"}, {"direction": "asc"})
        assert sorted(event.content[0].text for event in events if event.actor == "assistant") == [  # type: ignore[union-attr]
            f"re: {n}" for n in range(6)
        ]
    finally:
        for worker in workers:
            await worker.close()
