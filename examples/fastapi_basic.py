"""A worker inside a FastAPI application: people talk to it over a WebSocket, other systems over a webhook. Same handler.

pip install 'dooers-workers-server[cli]' fastapi
uvicorn examples.fastapi_basic:app
dooers chat ws://127.0.0.1:8000/ws --organization org-1 --workspace ws-1
curl -H 'content-type: application/json' -d '{"text": "hi", "user_id": "alice"}' http://127.0.0.1:8000/api/webhook
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

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

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_basic.db", assistant_name="Echo")
)
app = FastAPI(lifespan=worker_server.lifespan)  # opens the database with the application, and closes it with it


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    yield send.text(f"You said: {incoming.message}")
    yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)


class Message(BaseModel):
    text: str
    user_id: str
    thread_id: str | None = None  # None opens a new thread


@app.post("/api/webhook")
async def webhook(message: Message) -> dict[str, Any]:
    stream = await worker_server.dispatch(
        handler=agent_handler,
        worker_id="worker",
        organization_id="org-1",
        workspace_id="ws-1",
        user_id=message.user_id,
        message=message.text,
        thread_id=message.thread_id,
    )
    texts = [event.data["text"] async for event in stream if event.send_type == "text"]
    return {"thread_id": stream.thread_id, "is_new": stream.is_new_thread, "texts": texts}
