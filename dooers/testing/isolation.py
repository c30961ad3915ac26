"""A worker with a database of its own for a while, whatever it is configured with: a test must not write into the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from attrs import evolve

from dooers.container import renew
from dooers.server import WorkerServer

__all__ = ["isolated"]


@asynccontextmanager
async def isolated(worker: WorkerServer, **changes: Any) -> AsyncIterator[WorkerServer]:
    """Inside the block the worker keeps its conversations in memory, alone and without an analytics webhook; then it is as it was.

    `changes` are other options of its WorkerConfig for the block: `database_type="sqlite", database_name=str(tmp_path / "test.db")`, say.
    What it is in the middle of is closed at both ends.
    """
    own = {"database_type": "memory", "broker_url": None, "analytics_webhook_url": None, **changes}
    parts, config = worker._parts, worker.config
    await worker.close()
    _forget(worker)
    worker.config = evolve(config, **own)
    parts.config.override(worker.config)
    try:
        yield worker
    finally:
        try:
            await worker.close()
        finally:
            parts.config.reset_last_overriding()
            worker.config = config
            _forget(worker)


def _forget(worker: WorkerServer) -> None:
    renew(worker._parts)
    # It outlives the event loop, but not its configuration.
    worker._parts.store.reset()
