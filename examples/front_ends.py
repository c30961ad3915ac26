"""One handler behind every door: AG-UI, the Vercel AI SDK, an OpenAI-compatible API, and the WebSocket with the playground.

pip install 'dooers-workers-server[cli,ag-ui]'
export KEYS="sk-alice=alice,sk-bob=bob"     (who has which key; a program of yours asks its database)
dooers run examples.front_ends:app

AG-UI: new HttpAgent({ url: "http://127.0.0.1:8000/ag-ui", headers: { authorization: "Bearer sk-alice" } })
AI SDK: new DefaultChatTransport({ api: "http://127.0.0.1:8000/api/chat", headers: { authorization: "Bearer sk-alice" } })
OpenAI: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="sk-alice")
"""

import os
from collections.abc import AsyncIterator

from dooers_contrib.ag_ui import ag_ui
from dooers_contrib.ai_sdk import ai_sdk
from dooers_contrib.openai_api import openai_api
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Mount

from dooers import (
    AuthRequest,
    Identity,
    WorkerConfig,
    WorkerEvent,
    WorkerIncoming,
    WorkerMemory,
    WorkerSend,
    WorkerServer,
)

worker = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="front_ends.db", worker_id="helper", private_threads=True)
)
people = dict(pair.split("=", 1) for pair in os.environ["KEYS"].split(","))


@worker.handler
async def helper(incoming: WorkerIncoming, send: WorkerSend, memory: WorkerMemory) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = await memory.get_history(limit=20, format="openai")  # ready for a model
    yield send.tool_transaction("count", {"what": "messages"}, len(history))
    yield send.stream(words(f"{incoming.context.user_id}, this is message {len(history)}: {incoming.message}"))
    yield send.run_end()


async def words(text: str) -> AsyncIterator[str]:
    for word in text.split(" "):
        yield f"{word} "


def identity_of(key: str | None) -> Identity | None:
    user_id = people.get(key or "")
    return None if user_id is None else Identity(organization_id="acme", workspace_id="main", user_id=user_id)


def who(request: Request) -> Identity | None:
    """Who asks at the doors."""
    return identity_of(request.headers.get("authorization", "").removeprefix("Bearer "))


@worker.authenticate
async def authenticate(request: AuthRequest) -> Identity | None:
    """Who connects to the WebSocket."""
    return identity_of(request.auth_token)


app = Starlette(
    routes=[
        *ag_ui(worker, who=who),
        *ai_sdk(worker, who=who),
        *openai_api(worker, who=who),
        Mount("/", worker.asgi_app(playground=True)),
    ],
    # The pages that may ask from elsewhere.
    middleware=[
        Middleware(
            CORSMiddleware,
            allow_origins=["http://localhost:3000"],
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    ],
    lifespan=worker.lifespan,
)
