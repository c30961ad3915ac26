"""The broker in memory keeps the contract of all brokers, and one without a hub is alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from attrs import evolve

from brokers.contract import BrokerContract, Process
from dooers import WorkerConfig
from dooers.brokers import Broker, open_broker
from dooers.brokers.memory import Hub, MemoryBroker
from dooers.exceptions import ConfigError


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    async def processes(self) -> AsyncIterator[list[Process]]:
        hub = Hub()
        processes = [await Process(MemoryBroker(hub=hub)).open() for _ in range(3)]
        yield processes
        for process in processes:
            await process.broker.close()
        assert (hub.members, len(hub.keys)) == ([], 0)

    async def interrupt(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.cut()
        broker.mend()


async def test_what_is_told_to_one_whose_connection_is_away_is_lost() -> None:
    hub = Hub()
    one, two = [await Process(MemoryBroker(hub=hub)).open() for _ in range(2)]
    assert isinstance(two.broker, MemoryBroker)
    two.broker.cut()
    one.broker.tell("lost")
    two.broker.mend()
    one.broker.tell("heard")
    await two.hears("heard")
    assert two.missed == 1


async def test_a_broker_without_a_hub_is_alone_and_its_keys_exclude_all_the_same() -> None:
    process = await Process(MemoryBroker()).open()
    assert process.broker.alone
    process.broker.tell("to nobody")
    await process.broker.lock("k")
    waiting = asyncio.create_task(process.broker.lock("k"))
    await asyncio.sleep(0)
    assert not waiting.done()
    process.broker.unlock("k")
    await waiting
    await process.broker.close()
    assert process.heard == []


def test_without_a_url_the_broker_is_the_one_that_comes_with_the_database(worker_config: WorkerConfig) -> None:
    broker = open_broker(worker_config)
    assert isinstance(broker, MemoryBroker)
    assert broker.alone
    assert isinstance(open_broker(evolve(worker_config, broker_url="memory://")), MemoryBroker)


def test_a_url_that_no_broker_serves_is_refused_with_those_there_are(worker_config: WorkerConfig) -> None:
    with pytest.raises(ConfigError, match="broker_url: expected one that begins with memory:"):
        open_broker(evolve(worker_config, broker_url="carrier-pigeon://coop"))
