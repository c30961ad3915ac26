"""The tests have a database of their own, in memory. This is read before the worker is imported."""

import os

import pytest

os.environ["WORKER_DATABASE_NAME"] = ":memory:"


@pytest.fixture
def anyio_backend() -> str:
    """What async tests run on. The plugin that runs them comes with dooers."""
    return "asyncio"
