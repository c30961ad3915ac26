"""What `exits.py` starts: a worker whose handlers are in every state in which a process may have to end. Its config comes as JSON in
DOOERS_TEST_WORKER.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from dooers import WorkerConfig, WorkerServer

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

worker = WorkerServer(WorkerConfig(**json.loads(os.environ["DOOERS_TEST_WORKER"])))
VERSION = os.environ.get("DOOERS_TEST_VERSION", "1")


@worker.handler
async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
    """What a message says is what happens."""
    word, _, number = str(incoming.message).partition(" ")
    yield send.run_start()
    yield send.text(f"{word} begins")
    if word == "slow":
        await asyncio.sleep(float(number))
    elif word == "wait":
        await asyncio.Event().wait()
    elif word == "stream":
        yield send.stream(pieces())
    elif word == "deaf":
        while True:
            try:
                await asyncio.sleep(3600)
            except BaseException:
                continue
    elif word == "block":
        await asyncio.sleep(0.5)  # what was said so far goes out
        print("it blocks now", flush=True)
        time.sleep(3600)  # noqa: ASYNC251
    elif word == "thread":
        await asyncio.to_thread(threading.Event().wait)
    yield send.text(f"{word} ends")


async def pieces() -> AsyncIterator[str]:
    for n in range(100_000):
        yield f"{n} "
        await asyncio.sleep(0.01)


app = worker.asgi_app()
