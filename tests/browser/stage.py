"""A worker whose handler does what a test says, and its server, on the loop of the test. Not a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from attrs import define, field
from fakes import serving

from dooers import WorkerConfig, WorkerEvent, WorkerServer

__all__ = ["WHO", "Pieces", "Stage", "staged"]

# What the page believes to be if nobody tells it.
WHO = {"organization_id": "local", "workspace_id": "local", "user_id": "local"}

Script: TypeAlias = Callable[..., AsyncIterator[WorkerEvent]]


async def echo(incoming: Any, send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
    yield send.text(f"You said: {incoming.message}")


@define(eq=False)
class Stage:
    """`script` answers the messages; whatever a handler may ask for, it is given by name."""

    worker: WorkerServer
    url: str = ""
    script: Script = echo

    async def dispatch(self, text: str, **more: Any) -> str:
        """A message from elsewhere, with its answer; the thread's id."""
        stream = await self.worker.dispatch(**{**WHO, "message": text, **more})
        await stream.collect()
        return stream.thread_id


@asynccontextmanager
async def staged(
    path: Path, setup: Callable[[WorkerServer], None] | None = None, **config: Any
) -> AsyncIterator[Stage]:
    """A worker with a database at `path`, and its playground. `setup` may register more with it before it is served."""
    stage = Stage(WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(path), **config)))

    @stage.worker.handler
    async def perform(
        incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any, identity: Any
    ) -> AsyncIterator[WorkerEvent]:
        yield send.run_start()
        given = {"memory": memory, "analytics": analytics, "settings": settings, "identity": identity}
        async for event in stage.script(incoming=incoming, send=send, **given):
            yield event
        yield send.run_end()

    if setup is not None:
        setup(stage.worker)
    async with serving(stage.worker.asgi_app(playground=True)) as address:
        stage.url = f"http://{address}/"
        yield stage


@define(eq=False)
class Pieces:
    """A text that is written when the test says so: `await pieces.write("...")`, and `end()`."""

    _feed: asyncio.Queue[str | None] = field(factory=asyncio.Queue)

    async def write(self, *texts: str) -> None:
        for text in texts:
            await self._feed.put(text)

    def end(self) -> None:
        self._feed.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (text := await self._feed.get()) is not None:
            yield text

    def script(self) -> Script:
        """A handler that streams this, and nothing else."""

        async def stream(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
            yield send.stream(aiter(self))

        return stream
