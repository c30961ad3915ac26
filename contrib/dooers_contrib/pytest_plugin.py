"""Fixtures for tests of workers, found by pytest by itself wherever dooers is installed; `-p no:dooers` leaves them out.

It costs nothing where they are not used: dooers is imported by the fixtures, not by this module. (That also lets the coverage of dooers
begin before dooers does.) They are async, so they need anyio's plugin, or pytest-asyncio in its auto mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["isolated_worker", "worker", "worker_client", "worker_config"]

HOW = """define a fixture `worker` that gives the WorkerServer to test, in conftest.py or beside the test:

    from agent import worker as agents_worker

    @pytest.fixture
    def worker():
        return agents_worker
"""


@pytest.fixture
def worker_config(tmp_path: Path) -> Any:
    """A WorkerConfig with a SQLite file that no other test has."""
    from dooers import WorkerConfig

    return WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db"))


@pytest.fixture
def worker() -> Any:
    """The WorkerServer to test. Yours to define: this one only says so."""
    pytest.fail(HOW, pytrace=False)


@pytest.fixture
async def isolated_worker(worker: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """The `worker` with a database in memory, whatever it is configured with; closed at the end.

    One that keeps its conversations in memory, or in a SQLite file below `tmp_path`, keeps its own.
    """
    from dooers.testing import isolated

    kept = {"database_type": worker.config.database_type} if _is_of_the_test(worker.config, tmp_path) else {}
    async with isolated(worker, **kept):
        yield worker


def _is_of_the_test(config: Any, tmp_path: Path) -> bool:
    if config.database_type != "sqlite":
        return bool(config.database_type == "memory")
    name = config.database_name
    return name == ":memory:" or Path(name).resolve().is_relative_to(tmp_path.resolve())


@pytest.fixture
async def worker_client(isolated_worker: Any) -> AsyncIterator[Any]:
    """A WorkerClient of the `worker`, connected; others of it: `worker_client.as_(user_id="bob")`."""
    from dooers.testing import WorkerClient

    async with WorkerClient(isolated_worker, deltas=True) as client:
        yield client
