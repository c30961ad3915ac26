"""The worker that `workers.py` starts: a handler that does what the message asks for. Its config comes as JSON in DOOERS_TEST_WORKER."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from dooers import WorkerConfig, WorkerServer
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema

SCHEMA = SettingsSchema(fields=[SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small")])
PACE = 0.01

worker = WorkerServer(WorkerConfig(settings_schema=SCHEMA, **json.loads(os.environ["DOOERS_TEST_WORKER"])))


@worker.handler
async def answer(incoming: Any, send: Any, analytics: Any) -> AsyncIterator[Any]:
    """`WORD NUMBER ANYTHING`: do the word, and answer with the whole of it."""
    said = str(incoming.message)
    word, number, *_ = [*said.split(" "), "", ""]
    if word == "title":
        yield send.update_thread(title=said)
        return
    yield send.run_start()
    if word == "track":
        await analytics.track("my.event", data={"n": int(number)})
    elif word == "stream":
        yield send.stream(pieces(said, int(number)))
        return
    elif word == "big":
        yield send.text(f"re: {said} " + "x" * int(number))
        return
    elif word == "steps":
        yield send.text(f"begin {said}")
        await asyncio.sleep(PACE)
    elif word == "tick":
        for n in range(int(number)):
            yield send.text(f"tick {n}")
            await asyncio.sleep(PACE)
    yield send.text(f"re: {said}")
    if word == "wait":
        await asyncio.Event().wait()


async def pieces(said: str, count: int) -> AsyncIterator[str]:
    yield f"re: {said}"
    for n in range(count):
        await asyncio.sleep(PACE)
        yield f" {n}"


app = worker.asgi_app()
