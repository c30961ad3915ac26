"""Claude behind a chat: the answer is seen while it is written, and kept.

pip install 'dooers-workers-server[cli,anthropic]' fastapi
export ANTHROPIC_API_KEY=...
uvicorn examples.fastapi_anthropic:app
dooers chat
"""

from collections.abc import AsyncIterator
from typing import Any

from anthropic import AsyncAnthropic
from dooers_contrib import anthropic
from fastapi import FastAPI, WebSocket

from dooers import (
    WorkerAnalytics,
    WorkerConfig,
    WorkerEvent,
    WorkerIncoming,
    WorkerMemory,
    WorkerSend,
    WorkerServer,
    WorkerSettings,
)

MODEL = "claude-sonnet-5-5"

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_anthropic.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)
client = AsyncAnthropic()


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    messages: list[Any] = await memory.get_history(limit=20, format="anthropic")
    stream = client.messages.stream(
        model=MODEL, max_tokens=4000, system="You are a helpful assistant.", messages=messages
    )
    answer = anthropic.answer(send, stream)
    async for event in answer:
        yield event

    await analytics.track("model.answered", {"model": MODEL, "finish_reason": answer.finish_reason, **answer.usage})
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    if answer.complete:
        yield send.run_end()
    else:  # cut off at max_tokens, refused, or empty
        yield send.run_end("failed", f"The model stopped early: {answer.finish_reason}.")


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
