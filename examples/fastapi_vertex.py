"""Gemini on Google Vertex AI behind a chat: the answer is seen while it is written, and kept.

pip install 'dooers-workers-server[cli,google]' fastapi
gcloud auth application-default login        (or GOOGLE_APPLICATION_CREDENTIALS=account.json)
export GOOGLE_CLOUD_PROJECT=...               (and GOOGLE_CLOUD_LOCATION, where it is not "global")
uvicorn examples.fastapi_vertex:app
dooers chat

The same with the Gemini API, which needs no project: `genai.Client()` and GEMINI_API_KEY.
"""

import os
from collections.abc import AsyncIterator
from typing import Any

from dooers_contrib import google
from fastapi import FastAPI, WebSocket
from google import genai
from google.genai.types import GenerateContentConfig

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

MODEL = "gemini-3.8-flash"

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_vertex.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)
client = genai.Client(
    vertexai=True,
    project=os.environ["GOOGLE_CLOUD_PROJECT"],
    location=os.environ.get("GOOGLE_CLOUD_LOCATION", "global"),
)


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    contents: list[Any] = await memory.get_history(limit=20, format="google")
    stream = await client.aio.models.generate_content_stream(
        model=MODEL,
        contents=contents,
        config=GenerateContentConfig(system_instruction="You are a helpful assistant."),
    )
    answer = google.answer(send, stream)
    async for event in answer:
        yield event

    await analytics.track("model.answered", {"model": MODEL, "finish_reason": answer.finish_reason, **answer.usage})
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    if answer.complete:
        yield send.run_end()
    else:  # blocked, cut off, or empty
        yield send.run_end("failed", f"The model stopped early: {answer.finish_reason}.")


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
