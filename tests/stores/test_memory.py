"""The store in memory keeps the contract of all stores."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from contract import StoreContract

from dooers.stores import Store
from dooers.stores.memory import MemoryStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = MemoryStore()
        await store.open()
        yield store
        await store.close()
