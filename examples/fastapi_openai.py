"""A model of OpenAI behind a chat: the answer is seen while it is written, and kept.

pip install 'dooers-workers-server[cli,openai]' fastapi
export OPENAI_API_KEY=...        (and OPENAI_BASE_URL for anybody else who speaks the same)
uvicorn examples.fastapi_openai:app
dooers chat
"""

from collections.abc import AsyncIterator
from typing import Any

from dooers_contrib import openai
from fastapi import FastAPI, WebSocket
from openai import AsyncOpenAI

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

MODEL = "gpt-4o-mini"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_openai.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)
client = AsyncOpenAI()


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    messages: list[Any] = [SYSTEM, *await memory.get_history(limit=20, format="openai")]
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    answer = openai.answer(send, stream)
    async for event in answer:
        yield event

    await analytics.track("model.answered", {"model": MODEL, "finish_reason": answer.finish_reason, **answer.usage})
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    if answer.complete:
        yield send.run_end()
    else:  # cut off, filtered, or empty
        yield send.run_end("failed", f"The model stopped early: {answer.finish_reason}.")


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
