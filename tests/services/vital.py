"""The worker of `worker.py`, which also tells how it is at `/vitals`: memory, files, tasks, statistics and, if asked to look, objects.

Served as a process of its own by `soaking.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from typing import Any

from attrs import asdict
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dooers.stores.sqlite import SqliteStore
from services.worker import app, worker

__all__ = ["app", "vitals"]

PAGE = os.sysconf("SC_PAGE_SIZE")


def vitals(look: bool) -> dict[str, Any]:
    """How this process is. Looking at its objects takes a while."""
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * PAGE
    return {
        "resident": resident,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "stats": asdict(worker.stats()),
        "objects": _objects() if look else {},
    }


def _objects() -> dict[str, int]:
    store = worker._parts.store()
    if isinstance(store, SqliteStore):  # what it knows of its latest threads is bounded, and not left behind by anybody
        store._groups._known.clear()
    gc.collect()
    kinds = Counter(type(one) for one in gc.get_objects())
    return {f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.items() if count > 1}


async def answer(request: Request) -> JSONResponse:
    return JSONResponse(vitals("look" in request.query_params))


app.router.routes.append(Route("/vitals", answer))  # type: ignore[attr-defined]
