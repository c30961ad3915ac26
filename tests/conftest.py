"""What every test may ask for: the event loop the tests run on, and a config with a database of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from services.postgres import postgres, postgres_config, postgres_database

from dooers import WorkerConfig

__all__ = ["anyio_backend", "postgres", "postgres_config", "postgres_database", "worker_config"]

# Asserts of the suite that other modules subclass should say what they compared, as those of test modules do.
pytest.register_assert_rewrite("contract", "failing", "brokers.contract")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The drivers speak asyncio only."""
    return "asyncio"


@pytest.fixture
def worker_config(tmp_path: Path) -> WorkerConfig:
    """A worker with a SQLite file that nobody else has."""
    return WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With DOOERS_TEST_STRICT a skipped test fails the run: in CI no backend may go untested without a word."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DOOERS_TEST_STRICT") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("skipped tests are failures here (DOOERS_TEST_STRICT)", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
