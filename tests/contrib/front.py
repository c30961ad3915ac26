"""A worker behind the doors for other front ends: it does what it is told by a word, and waits where a client is to see something first.
Not a test."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import Factory, define
from fakes import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dooers import WorkerConfig, WorkerServer

__all__ = ["PIXEL", "SECRET", "Front", "node", "who"]

PIXEL = "data:image/png;base64,iVBORw0KGgo="
PEOPLE = ("alice", "bob", "carol")
SCRIPTS = Path(__file__).parent.parent / "services"  # beside their node_modules
SECRET = "postgres://user:password@db"
PIECE = "x" * 65536


def who(request: Request) -> dict[str, str] | None:
    """Alice, Bob and Carol are known."""
    name = request.headers.get("authorization", "").removeprefix("Bearer ")
    return (
        {"organization_id": "org", "workspace_id": "main", "user_id": name, "user_role": "member"}
        if name in PEOPLE
        else None
    )


@define
class Front:
    """The worker, and what clients may do to its handler while it runs."""

    worker: WorkerServer
    ran: list[str] = Factory(list)
    gates: dict[str, asyncio.Event] = Factory(lambda: defaultdict(asyncio.Event))
    threads: dict[str, str] = Factory(dict)

    @classmethod
    def of(cls, config: WorkerConfig) -> Front:
        front = cls(WorkerServer(config))
        front.worker.handler(front.handler)
        return front

    async def handler(self, incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        word, _, gate = incoming.message.partition(" ")
        self.ran.append(incoming.message)
        self.threads[incoming.message] = incoming.context.thread_id
        yield send.run_start()
        match word:
            case "stream":
                yield send.stream(self._gated(gate, "Olá ", "mundo 🌍"))
            case "fail":
                yield send.stream(self._failing())
            case "refuse":
                yield send.text("I looked.")
                yield send.run_end(status="failed", error="There is no credit left.")
            case "tools":
                yield send.tool_call("weather", {"city": "Lisboa"}, id="call-1")
                yield send.tool_result("weather", {"celsius": 21}, id="call-1")
                yield send.tool_call("clock")
                yield send.tool_result("clock", "12:00")
                yield send.tool_transaction("dice", {"sides": 6}, 4)
                yield send.text("It is warm.")
            case "files":
                yield send.image("https://example.com/a(1).png", alt="a [cat]")
                yield send.document("https://example.com/report", "report.pdf", "application/pdf")
            case "title":
                yield send.update_thread(title="About titles", metadata={"secret": SECRET})
                yield send.text("Named.")
            case "empty":
                yield send.text("")
            case "flood":
                yield send.stream(self._flood(int(gate)))
            case _:
                kinds = [part.type for part in incoming.content]
                history = await memory.get_history(limit=50, format="openai")
                said = [message["content"] for message in history if isinstance(message["content"], str)]
                yield send.text(json.dumps({"content": kinds, "said": said, "who": incoming.context.user_id}))

    async def _gated(self, gate: str, first: str, then: str) -> AsyncIterator[str]:
        yield first
        await self.gates[gate].wait()
        yield then

    async def _failing(self) -> AsyncIterator[str]:
        yield "half "
        raise RuntimeError(SECRET)

    async def _flood(self, pieces: int) -> AsyncIterator[str]:
        for _ in range(pieces):
            yield PIECE

    def app(self, routes: Iterable[BaseRoute]) -> Starlette:
        """The doors, and beside them what opens gates."""

        async def gate(request: Request) -> Response:
            self.gates[request.path_params["name"]].set()
            return JSONResponse(self.ran)

        async def cancel(request: Request) -> Response:
            thread = self.threads[(await request.json())["message"]]
            return JSONResponse(await self.worker.cancel(thread_id=thread))

        own = [Route("/gate/{name}", gate, methods=["POST"]), Route("/cancel", cancel, methods=["POST"])]
        return Starlette(routes=[*routes, *own], lifespan=self.worker.lifespan)

    @asynccontextmanager
    async def served(self, routes: Iterable[BaseRoute]) -> AsyncIterator[str]:
        """Where it is served."""
        async with serving(self.app(routes)) as address:
            yield f"http://{address}"


async def node(script: str, *arguments: str) -> Any:
    """What a script of Node prints, as JSON."""
    process = await asyncio.create_subprocess_exec(
        "node", str(SCRIPTS / script), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(120):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-3000:]
    return json.loads(out)
