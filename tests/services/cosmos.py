"""A Cosmos DB for tests: an emulator in a Node process of its own, or the real service where the environment names one.

DOOERS_TEST_COSMOS_URL and DOOERS_TEST_COSMOS_KEY point to an account (or to Microsoft's emulator): tests make a database in it and
drop it again. Without them the npm package in package.json is installed beside this file, once, from its lock file.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve, frozen

from dooers import WorkerConfig
from dooers.stores.cosmos import CosmosStore
from services import npm

__all__ = ["Service", "database", "running", "service"]

HERE = Path(__file__).parent
SERVER = HERE / "cosmos_server.cjs"
# What emulators answer to is no secret, and only has to be base64.
KEY = "bm90LWEtc2VjcmV0"


@frozen
class Service:
    """Where it is, and whether what tests make there stays when they are over."""

    url: str
    key: str
    keeps: bool = False


@contextmanager
def service() -> Iterator[Service]:
    """A running service; the test that asks is skipped, with the reason, where there can be none."""
    url, key = os.environ.get("DOOERS_TEST_COSMOS_URL"), os.environ.get("DOOERS_TEST_COSMOS_KEY", KEY)
    if url:
        yield Service(url, key, keeps=True)
        return
    npm.install("the Cosmos DB emulator")
    process = subprocess.Popen(
        ["node", str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            pytest.fail("the Cosmos DB emulator did not start: run `node tests/services/cosmos_server.cjs` to see why")
        yield Service(f"http://127.0.0.1:{port}/", KEY)
    finally:
        process.stdin.close()  # which is its sign to end
        process.stdout.close()
        process.wait(10)


@asynccontextmanager
async def database(where: Service) -> AsyncIterator[WorkerConfig]:
    """A worker with a database that nobody else has."""
    config = WorkerConfig(
        database_type="cosmos",
        database_host=where.url,
        database_key=where.key,
        database_name=f"dooers-test-{uuid4().hex[:12]}",
    )
    yield config
    if where.keeps:
        async with running(config) as store:
            client = store._container._client
            assert client is not None
            await client.delete_database(config.database_name)


@asynccontextmanager
async def running(config: WorkerConfig, **changed: Any) -> AsyncIterator[CosmosStore]:
    """An open store on it."""
    store = CosmosStore(evolve(config, **changed))
    await store.open()
    try:
        yield store
    finally:
        await store.close()
