"""The Cosmos DB store: the contract of all stores, and what only a service far away can do: throttle, lose an answer, stop half-way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from uuid import uuid4

import pytest
from contract import StoreContract
from services.cosmos import Service, service

from dooers import WorkerConfig
from dooers.stores import Store
from dooers.stores.cosmos import CosmosStore


@pytest.fixture(scope="session")
def cosmos() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture
async def cosmos_config(cosmos: Service) -> AsyncIterator[WorkerConfig]:
    """A database of its own: what is counted or listed without a filter is this test's."""
    config = WorkerConfig(
        database_type="cosmos",
        database_host=cosmos.url,
        database_key=cosmos.key,
        database_name=f"dooers-test-{uuid4().hex[:12]}",
    )
    yield config
    store = CosmosStore(config)
    await store._container.open()
    with suppress(Exception):
        assert store._container._client is not None
        await store._container._client.delete_database(config.database_name)
    await store._container.close()


@pytest.fixture
async def store(cosmos_config: WorkerConfig) -> AsyncIterator[CosmosStore]:
    store = CosmosStore(cosmos_config)
    await store.open()
    yield store
    await store.close()


class TestCosmosStore(StoreContract):
    @pytest.fixture
    async def store(self, cosmos_config: WorkerConfig) -> AsyncIterator[Store]:
        store = CosmosStore(cosmos_config)
        await store.open()
        yield store
        await store.close()
