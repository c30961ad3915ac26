"""The measured worker, in a process of its own: `python -m benchmarks.suite.worker '{"database_type": ...}'`. It prints its port."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.suite.handler import agent
from benchmarks.suite.listening import listen
from dooers import WorkerConfig, WorkerServer

__all__ = ["worker_on"]

# One machine is the crowd here, so what keeps a single client from being one is out of the way.
UNBOUNDED: dict[str, Any] = {
    "frames_per_second": 1e9,
    "frames_burst": 10**9,
    "max_connections": 10**6,
    "max_connections_per_identity": 10**6,
    "max_subscriptions": 10**6,
    "max_turns_per_identity": 10**6,
}


def worker_on(options: Mapping[str, Any]) -> WorkerServer:
    """The worker of a database, which is told in words of WorkerConfig."""
    logging.getLogger("dooers").setLevel(logging.ERROR)  # that clients are believed
    worker = WorkerServer(WorkerConfig(**UNBOUNDED, **options))
    worker.handler(agent)
    return worker


if __name__ == "__main__":
    listen(worker_on(json.loads(sys.argv[1])).asgi_app())
