"""What every test may ask for: the event loop the tests run on, and a config with a database of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dooers import WorkerConfig

# Asserts of the suite that other modules subclass should say what they compared, as those of test modules do.
pytest.register_assert_rewrite("contract")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The drivers speak asyncio only."""
    return "asyncio"


@pytest.fixture
def worker_config(tmp_path: Path) -> WorkerConfig:
    """A worker with a SQLite file that nobody else has."""
    return WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db"))
