"""The PostgreSQL store: the contract of all stores on a real server, and what only a server can do: be shared, be lost, come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from contract import StoreContract
from services import Address

from dooers.stores import Store, open_store
from dooers.stores.postgres import PostgresStore

WITHIN = 30.0


class TestPostgresStore(StoreContract):
    @pytest.fixture
    async def store(self, postgres: Address, postgres_database: str) -> AsyncIterator[Store]:
        store = PostgresStore(postgres.config(postgres_database))
        await store.open()
        async with postgres.session(postgres_database) as session:
            await session.execute("TRUNCATE worker_threads, worker_events, worker_runs, worker_settings")
        yield store
        await store.close()
