"""A script with a worker, `python -m services.script HUNG ENDS`: what hangs in it, and how it ends. Its config comes as JSON in
DOOERS_TEST_WORKER. For tests of what is left behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from dooers import WorkerConfig, WorkerServer

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

HUNG, ENDS = sys.argv[1:]
worker = WorkerServer(WorkerConfig(**json.loads(os.environ["DOOERS_TEST_WORKER"])))
begun = asyncio.Event()


async def never() -> None:
    while True:
        try:
            await asyncio.sleep(0.2)
        except BaseException:
            continue


@worker.provide(scope="turn")
async def passing() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        if HUNG == "everything":
            await asyncio.Event().wait()


@worker.provide(scope="worker")
async def lasting() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        if HUNG in ("dependency", "everything"):
            await never()


@worker.handler
async def answer(send: Any, passing: int, lasting: int) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("begin")
    begun.set()
    if HUNG in ("handler", "everything"):
        await never()
    await asyncio.Event().wait()


async def main() -> None:
    turn = await worker.dispatch(organization_id="org-1", workspace_id="ws-1", user_id="user-1", message="go")
    turn.detach()
    await begun.wait()
    if ENDS == "close":
        await worker.close()
    elif ENDS == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    elif ENDS == "error":
        raise ValueError("of its own")


if __name__ == "__main__":
    asyncio.run(main())
